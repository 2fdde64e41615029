"""Live sessions in the worker process: messages of their clients -> their events; what several want decoded goes
through the model in common batches.

What is unusual here:
- A client gets at most PIECE seconds of its sound heard in a turn, however much waits. So one that has sent an hour at
  once holds up no other.
- What ends a segment ends the session, and another one begins: so all the sound so far is in the segment, and no part
  of a frame goes into the next one.
"""

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import GlmAsrError
from ..pipeline import Recognizer
from ..transcription import live_decoder
from ..transcription.live import Live
from ..transcription.live_decoder import Course, run_together
from ..transcription.live_events import Event
from .messages import Clear, FromLive, Heard, Listen, LiveSettings, Refused, Sound, ToLive

PIECE = 1.0  # seconds


class Listener:
    """A client's sessions, one after the other. `inputs`, the messages that wait, is guarded by the worker's
    condition."""

    def __init__(self, number: int):
        self.number = number
        self.inputs: deque[ToLive] = deque()
        self.settings = LiveSettings()
        self.session: Live | None = None
        self.since = self.seconds = 0.0  # of sound before the session; of all sound

    def take(self) -> "Turn":
        """The next message, or as many of sound as are heard in one turn. The caller holds the condition."""
        message, samples, count = self.inputs.popleft(), b"", 0
        if isinstance(message, Sound):
            samples, count = message.samples, 1
            while (
                self.inputs
                and isinstance(after := self.inputs[0], Sound)
                and self.lasts(samples + after.samples) <= PIECE
            ):
                samples, count = samples + after.samples, count + 1
                self.inputs.popleft()
        behind = sum(self.lasts(other.samples) for other in self.inputs if isinstance(other, Sound))
        return Turn(self, message, samples, max(1, count), behind)

    def lasts(self, samples: bytes) -> float:
        """The seconds that this sound lasts."""
        return len(samples) / 2 / self.settings.rate

    def begin(self, recognizers: Mapping[str, Recognizer], settings: LiveSettings) -> None:
        """Another session from here on. Raises GlmAsrError where the settings can't be taken; nothing has changed
        then."""
        session = recognizers[settings.adapter].live(
            settings.language, sample_rate=settings.rate, pause=settings.pause, **settings.options
        )
        self.session, self.settings, self.since = session, settings, self.seconds


class Turn:
    """What is done for a listener in a turn: a message, or `count` of them with sound, `behind` which so many seconds
    wait."""

    def __init__(self, listener: Listener, message: ToLive, samples: bytes, count: int, behind: float):
        self.listener, self.message, self.samples = listener, message, samples
        self.count, self.behind, self.since = count, behind, listener.since

    def begin(self, recognizers: Mapping[str, Recognizer]) -> Course | None:
        """What the session so far has to do; messages other than sound begin the next one. Raises GlmAsrError, where
        nothing has changed."""
        listener, message, session = self.listener, self.message, self.listener.session
        if isinstance(message, Sound):
            listener.seconds += listener.lasts(self.samples)
            return None if session is None else session.hearing(np.frombuffer(self.samples, np.int16), self.behind)
        listener.begin(recognizers, message.settings if isinstance(message, Listen) else listener.settings)
        return None if session is None or isinstance(message, Clear) else session.finishing()

    def heard(self, events: "list[Event | GlmAsrError]") -> Heard:
        """The answer."""
        seconds = self.listener.lasts(self.samples)
        return Heard(self.listener.number, events, type(self.message), self.count, seconds, self.since)


def take_turns(recognizers: Mapping[str, Recognizer], turns: Sequence[Turn]) -> list[FromLive]:
    """Does what the turns of several listeners are about. -> what they say to that.

    recognizers   by the name of the adapter; "": of the model alone
    """
    said: list[FromLive] = []
    begun: dict[live_decoder.Recognizer, list[tuple[Turn, Course]]] = {}
    for turn in turns:
        before = turn.listener.session  # what it still has to do is its own recognizer's
        try:
            course = turn.begin(recognizers)
        except GlmAsrError as error:
            said.append(Refused(turn.listener.number, error))
            continue
        if course is None or before is None:
            said.append(turn.heard([]))
        else:
            begun.setdefault(before.recognizer, []).append((turn, course))
    for recognizer, some in begun.items():
        found = run_together(recognizer, [course for _, course in some])
        said += [turn.heard(events) for (turn, _), events in zip(some, found, strict=True)]
    return said
