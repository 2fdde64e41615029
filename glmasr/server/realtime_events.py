"""The realtime protocol, without connection or model: events of a client -> what a live session is told; what it
answers -> events for the client.

    session.update, input_audio_buffer.append, .commit, .clear -> `realtime_messages.read` -> `Dialog.take`
        -> session.change, .hear, .commit, .clear -> (worker) -> Heard, Refused -> `Dialog.answer`
        -> input_audio_buffer.speech_started, .speech_stopped, .committed, conversation.item.added, .done,
           conversation.item.input_audio_transcription.delta, .completed, .failed, error

What is unusual here: OpenAI transcribes an item when it is committed; here its deltas come while somebody speaks. They
are never revised. What speech fills a window with becomes an item without a pause, or, where the client commits, goes
on with the same item.
"""

import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from types import MappingProxyType
from typing import Any, Protocol

from ..errors import GlmAsrError, OptionError
from ..transcription.language import join
from ..transcription.live_events import Committed, Notice, SpeechStarted, SpeechStopped
from ..transcription.results import Segment
from .g711 import samples
from .messages import Clear, Commit, Finish, Heard, Listen, LiveSettings, Refused
from .problems import InvalidValue, ModelNotFound, Problem, as_problem
from .realtime_messages import Message
from .realtime_settings import Session, as_older, of_older, of_options, updated

EventData = dict[str, Any]
LEAST = 0.1  # seconds that may be committed
TRANSCRIPTION = "conversation.item.input_audio_transcription"


class Told(Protocol):
    """Of a `LiveSession`: what it is told."""

    @property
    def settings(self) -> LiveSettings:
        """Those that the worker took."""

    def hear(self, samples: bytes) -> None:
        """Samples, int16."""

    def commit(self) -> None:
        """Ends the segment."""

    def clear(self) -> None:
        """Forgets it."""

    def change(self, settings: LiveSettings) -> None:
        """Ends it, and goes on with other settings."""


@dataclass
class Item:
    """What is said up to a pause or a commit. `said`: the deltas so far."""

    id: str = field(default_factory=lambda: f"item_{secrets.token_hex(12)}")
    said: str = ""
    seconds: float = 0.0
    languages: list[str] = field(default_factory=list)
    committed: bool = False
    cut: bool = False  # whether the next text begins another window


@dataclass
class Update:
    """One that the worker is asked about."""

    event_id: str | None
    session: Session
    older: bool


class Dialog:
    """Of one connection.

    told     what the client's events go to
    names    of the model; the first one is that which no client names
    older    whether the client speaks the protocol as it was before it had transcription sessions of its own
    expires  when the session ends at the latest, in seconds of the epoch
    adapted  of the names those of the model with an adapter -> the adapter
    """

    def __init__(
        self,
        told: Told,
        names: tuple[str, ...],
        older: bool = False,
        expires: float = 0.0,
        adapted: Mapping[str, str] = MappingProxyType({}),
    ):
        self.told, self.names, self.older, self.expires = told, names, older, round(expires)
        self.adapted = adapted
        self.id = f"sess_{secrets.token_hex(12)}"
        self.session = Session.model_validate(
            {"type": "transcription", "audio": {"input": {"transcription": {"model": names[0]}}}}
        )
        self.updates: deque[Update | None] = deque([None])  # the first one is that with which it began
        self.item: Item | None = None  # the one that is under way
        self.previous: str | None = None  # the one that was committed last
        self.stopped = 0.0  # the second up to which somebody spoke
        self.warnings: list[str] = []
        self.buffered = 0.0  # seconds of sound since the client committed or cleared it

    @property
    def changing(self) -> bool:
        """Whether the worker is asked about settings: no more may be taken until it has answered."""
        return bool(self.updates)

    # ---- of the client ----

    def created(self) -> EventData:
        """What a session begins with."""
        return self._described("transcription_session.created" if self.older else "session.created", self.older)

    def take(self, message: Message) -> list[EventData]:
        """Does what an event of the client asks for. -> what is to be said to that at once."""
        try:
            if message.problem:
                raise message.problem
            self._obey(message)
        except Problem as problem:
            return [self._error(problem, message.event_id)]
        return []

    def _obey(self, message: Message) -> None:
        if message.kind == "input_audio_buffer.append":
            found = samples(message.sound, self.session.audio.input.format.type)
            self.buffered += len(found) / self.told.settings.rate
            self.told.hear(found.tobytes())
        elif message.kind == "input_audio_buffer.commit":
            self._check_buffer()
            self.buffered = 0.0
            self.told.commit()
        elif message.kind == "input_audio_buffer.clear":
            self.buffered = 0.0
            self.told.clear()
        else:
            older = message.kind != "session.update"
            session = updated(self.session, of_older(message.session) if older else message.session)
            model = session.audio.input.transcription.model
            check_model(model, self.names, "session.audio.input.transcription.model")
            try:
                settings = replace(session.live(), adapter=self.adapted.get(model, ""))
            except OptionError as error:
                raise of_options(error) from None
            self.updates.append(Update(message.event_id, session, older))
            self.told.change(settings)

    def _check_buffer(self) -> None:
        """Raises InvalidValue with OpenAI's code, where there is nothing to commit."""
        if round(self.buffered, 6) < LEAST:
            problem = InvalidValue(
                f"{1000 * self.buffered:.0f} ms of sound came since the last commit, expected at least "
                f"{1000 * LEAST:.0f} ms; append more, then commit"
            )
            problem.code = "input_audio_buffer_commit_empty"
            raise problem

    # ---- of the worker ----

    def answer(self, answer: Heard | Refused) -> list[EventData]:
        """What the client is told of an answer of the worker."""
        if isinstance(answer, Refused):
            update = self.updates.popleft()
            problem = of_options(answer.error) if isinstance(answer.error, OptionError) else as_problem(answer.error)
            return [self._error(problem, update.event_id if update else None)]
        told: list[EventData] = []
        for event, after in zip_longest(answer.events, answer.events[1:]):
            if isinstance(event, Segment) and isinstance(after, GlmAsrError):
                told += self._failed(as_problem(after), answer)
                break
            told += self._tell(event, answer)
        ended = any(event["type"] in (f"{TRANSCRIPTION}.completed", f"{TRANSCRIPTION}.failed") for event in told)
        if answer.asked is Commit and not ended:
            told += self._completed() if self.item or not self._detects else [self._nothing()]
        elif answer.asked is Clear:
            self.item = None
            told.append(self._event("input_audio_buffer.cleared"))
        elif answer.asked is Finish:
            told += self._completed() if self.item else []
        elif answer.asked is Listen and (update := self.updates.popleft()):
            detected, self.session = self._detects, update.session
            if self.item and (detected or self._detects):
                told += self._completed()
            kind = "transcription_session.updated" if update.older else "session.updated"
            told.append(self._described(kind, update.older))
        return told

    @property
    def _detects(self) -> bool:
        """Whether pauses end items."""
        return self.session.audio.input.turn_detection is not None

    def _tell(self, event: Any, answer: Heard) -> list[EventData]:
        if isinstance(event, SpeechStarted) and self._detects:
            self.item = Item()
            padding = self.told.settings.options.get("padding", 0.0)
            start = round(1000 * max(self.stopped, answer.since + max(0.0, event.seconds - padding)))
            return [self._event("input_audio_buffer.speech_started", audio_start_ms=start, item_id=self.item.id)]
        if isinstance(event, SpeechStopped) and (self._detects or answer.asked in (Commit, Finish)):
            return self._stopped(event, answer)
        if isinstance(event, Committed):
            return [self._delta(event.text)]
        if isinstance(event, Segment):
            return self._segment(event)
        if isinstance(event, Notice):
            self.warnings.append(event.text)
        if isinstance(event, GlmAsrError):  # of a text that would have been replaced anyway
            return [self._error(as_problem(event))]
        return []

    def _stopped(self, event: SpeechStopped, answer: Heard) -> list[EventData]:
        """A pause, or what the client has sent, ends an item."""
        item = self._current()
        pause = self.told.settings.pause or 0.0
        self.stopped = answer.since + event.seconds
        end = round(1000 * (self.stopped + pause))
        stopped = self._event("input_audio_buffer.speech_stopped", audio_end_ms=end, item_id=item.id)
        return [*([] if answer.asked in (Commit, Finish, Listen) else [stopped]), *self._committed(item)]

    def _delta(self, text: str) -> EventData:
        item = self._current()
        if item.cut:
            item.cut = False
            text = join([item.said, text])[len(item.said) :]
        item.said += text
        return self._event(f"{TRANSCRIPTION}.delta", item_id=item.id, content_index=0, delta=text)

    def _segment(self, segment: Segment) -> list[EventData]:
        """The end of an item; or of a window, where speech fills it, or the client ends items."""
        item = self._current()
        item.seconds += segment.end - segment.start
        if segment.language and segment.language not in item.languages:
            item.languages.append(segment.language)
        if not self._detects:
            item.cut = bool(item.said)
            return []
        goes_on = not item.committed
        item.said = segment.text
        told = self._completed()
        self.item = Item() if goes_on else None
        return told

    def _failed(self, problem: Problem, answer: Heard) -> list[EventData]:
        """The end of an item that has no text but its deltas; or of a window, as of `_segment`."""
        item = self._current()
        if not self._detects and answer.asked not in (Commit, Finish):
            item.cut = bool(item.said)
            return [self._error(problem)]
        self.item = None if item.committed else Item()
        error = problem.content()["error"]
        failed = self._event(f"{TRANSCRIPTION}.failed", item_id=item.id, content_index=0, error=error)
        return [*self._committed(item), failed]

    def _current(self) -> Item:
        self.item = self.item or Item()
        return self.item

    def _committed(self, item: Item) -> list[EventData]:
        """The events of an item that is in the conversation from now on; once."""
        if item.committed:
            return []
        item.committed = True
        previous, self.previous = self.previous, item.id
        content = {
            "id": item.id,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        kinds = ("created",) if self.older else ("added", "done")
        return [
            self._event("input_audio_buffer.committed", item_id=item.id, previous_item_id=previous),
            *(self._event(f"conversation.item.{kind}", item=content, previous_item_id=previous) for kind in kinds),
        ]

    def _completed(self) -> list[EventData]:
        """The events of an item whose text is whole."""
        item, self.item = self._current(), None
        warnings, self.warnings = self.warnings, []
        completed = self._event(
            f"{TRANSCRIPTION}.completed",
            item_id=item.id,
            content_index=0,
            transcript=item.said,
            usage={"type": "duration", "seconds": round(item.seconds, 3)},
            languages=[{"code": code} for code in item.languages],
            **({"warnings": warnings} if warnings else {}),
        )
        return [*self._committed(item), completed]

    def _nothing(self) -> EventData:
        """The answer to a commit of silence."""
        problem = InvalidValue("nobody has spoken since the last item; expected a commit while somebody speaks")
        problem.code = "input_audio_buffer_commit_empty"
        return self._error(problem)

    # ---- events ----

    def ended(self, problem: Problem) -> EventData:
        """Why the session is closed."""
        return self._error(problem)

    def _error(self, problem: Problem, event_id: str | None = None) -> EventData:
        return self._event("error", error={**problem.content()["error"], "event_id": event_id})

    def _described(self, kind: str, older: bool) -> EventData:
        shown = self.session.shown()
        described = as_older(shown) if older else shown
        about = {"id": self.id, "object": "realtime.transcription_session", "expires_at": self.expires}
        return self._event(kind, session={**about, **described})

    @staticmethod
    def _event(kind: str, **content: Any) -> EventData:
        return {"type": kind, "event_id": f"event_{secrets.token_hex(12)}", **content}


def check_model(name: str, names: tuple[str, ...], param: str) -> None:
    """Raises ModelNotFound unless it is one of `names`."""
    if name not in names:
        raise ModelNotFound(f"model is {name[:100]!r}, but this server has {', '.join(names)}", param)
