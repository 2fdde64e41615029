"""What users of the page say into their microphones, and the texts that grow from it: a `Talk` for each page.

    talk = talks.of(page)
    async for _ in talk.listen(queue, key, settings): ...    # there is more to show: `segments`, `committed`, ...
    await (await talks.find(key)).hear(at, samples, last)    # meanwhile, again and again

What is unusual here: no sound goes through Gradio. Its streaming microphone (6.31) sends ten files a second, which may
overtake each other; it drops those that are ready before the server has answered the first one, and the last one, where
the user stops; and of two that come while a function runs, the server keeps one. Here the page sends a piece when the
one before has arrived, and says where it belongs: so none is missing, and none is heard twice.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import replace

import anyio

from ..errors import GlmAsrError
from ..transcription.live_events import Committed, Event, Notice, SpeechStarted, Tentative
from ..transcription.results import Part, Segment, Transcript, Word
from .live_session import LiveSession
from .messages import Heard, LiveSettings, Refused
from .problems import Busy, Closing, Gone, InvalidValue, UnknownUrl
from .request_queue import RequestQueue
from .uploads import RETURN, Uploads

IDLE = 30.0  # seconds without sound, such as where a phone has no network, after which a place is given back
BEGINS = 10.0  # seconds in which the call that listens has to come, after the first sound
LONGEST_WAIT = 30.0  # seconds until a piece is answered, where too much of it waits for the model
MOST_TALKS = 500  # that are kept


class Talk:
    """Of one page, in one event loop.

    segments     what is complete; times in seconds of all sound of the talk
    committed    what is certain of the segment that is being spoken
    tentative    what probably follows it, with the space before it
    notices      what the user should know
    """

    def __init__(self, max_duration: float):
        self.max_duration = max_duration
        self.key = ""  # of the sound that comes, or came last
        self.used = time.monotonic()
        self.session: LiveSession | None = None
        self._count = 0  # samples that the session was sent
        self._over = False  # no more will come
        self.clear()

    def clear(self) -> None:
        """Forgets all of the text; times begin anew, where nobody speaks."""
        if self.session is None:
            self._before = 0.0  # seconds of sound before the session
        self.segments: list[Segment] = []
        self.notices: list[str] = []
        self._begin()

    @property
    def seconds(self) -> float:
        """Of sound that came."""
        return self._before + (self.session.seconds if self.session else 0.0)

    # ---- sound ----

    async def listen(self, queue: RequestQueue, key: str, settings: LiveSettings) -> AsyncGenerator[None, None]:
        """Takes a place for the sound that comes by this key, until its end; yields whenever there is more to show.
        What was said before stays. Raises Problem, GlmAsrError; where the server ends, after the rest of the text."""
        if self.session:
            raise InvalidValue("this page is being spoken to; stop that first")
        self.key, self.used = key, time.monotonic()
        self._count, self._over = 0, False
        closing: Closing | None = None
        with queue.listen(settings) as self.session:
            try:
                yield
                while self.session.unanswered or not self._over:
                    try:
                        self._take(await self.session.heard())
                    except Closing as error:
                        if closing:  # the rest can't be waited for any more
                            raise
                        closing = error
                        self.end()
                    yield
                for answer in self.session.ready():  # the last answers may have come together
                    self._take(answer)
                yield
                if closing:
                    raise closing
                self.session.outcome = "done"
            finally:
                self._before, self.session = self.seconds, None
                self._keep()

    async def hear(self, at: int, samples: bytes, last: bool) -> None:
        """The next samples, int16, from number `at` on; what was heard of them already, for the page didn't know, is
        left out. Returns when there is room for more. Raises Gone where nobody listens any more, InvalidValue,
        TooLong."""
        if self.session is None or self._over:
            raise Gone("nobody listens to this any more; begin anew")
        if at > self._count or len(samples) % 2:
            raise InvalidValue(f"the samples begin with number {at}, expected at most {self._count}, each with 2 bytes")
        new = samples[2 * (self._count - at) :]
        self._count += len(new) // 2
        self.used = time.monotonic()
        session = self.session
        session.hear(new)
        if self.seconds > self.max_duration:
            self.end()
            self.notice(f"{self.max_duration:g} s were heard, which is the limit (--max-duration); begin a new text")
        elif last:
            self.end()
        with anyio.move_on_after(LONGEST_WAIT):  # the session may end meanwhile
            await session.room()

    def end(self) -> None:
        """No more sound will come."""
        if self.session and not self._over:
            self._over = True
            self.session.finish()

    # ---- text ----

    def _begin(self) -> None:
        """A segment begins."""
        self.words: list[Word] = []  # of `committed`
        self.committed = self.tentative = ""

    def _keep(self) -> None:
        """What is certain of a segment that breaks off."""
        if self.words:
            first, last = self.words[0], self.words[-1]
            self.segments.append(Segment(first.start, last.end, self.committed, words=tuple(self.words)))
        self._begin()

    def _take(self, answer: Heard | Refused) -> None:
        if isinstance(answer, Refused):
            raise answer.error
        for event in answer.events:
            if isinstance(event, GlmAsrError):
                self.notice(str(event))
            else:
                self.add(event, self._before + answer.since)

    def add(self, event: Event, since: float = 0.0) -> None:
        """What an event says, whose times are those of a session that began after `since` seconds."""
        if isinstance(event, SpeechStarted):
            self._begin()
        elif isinstance(event, Tentative):
            self.tentative = event.text
        elif isinstance(event, Committed):
            self.committed += event.text
            self.words += [later(word, since) for word in event.words]
            self.tentative = ""
        elif isinstance(event, Notice):
            self.notice(event.text)
        elif isinstance(event, Segment):
            words = tuple(later(word, since) for word in event.words)
            if event.text:
                self.segments.append(replace(event, start=event.start + since, end=event.end + since, words=words))
            self._begin()

    def notice(self, text: str) -> None:
        """Tells the user something, once."""
        if text not in self.notices:
            self.notices.append(text)

    def transcript(self, how: dict[str, str]) -> Transcript:
        """Of the complete segments. `how`: as of `Ready.runtime`."""
        parts = [Part(segment.start, segment.end, segment.language, [segment], []) for segment in self.segments]
        return Transcript.of([*parts, Part(self.seconds, self.seconds, "", [], list(self.notices))], how)


class Talks:
    """By Gradio's name of the session of a page, which is random and known to nobody else; `max_duration`: seconds of
    sound of each."""

    def __init__(self, uploads: Uploads, max_duration: float):
        self.uploads, self.max_duration = uploads, max_duration
        self.talks: dict[str, Talk] = {}

    def of(self, page: str) -> Talk:
        """The talk of a page. Raises Busy where there are too many."""
        if page not in self.talks:
            if len(self.talks) >= MOST_TALKS:
                raise Busy(f"{MOST_TALKS} pages were spoken to and are still open; try again later", retry_after=60)
            self.talks[page] = Talk(self.max_duration)
        return self.talks[page]

    async def find(self, key: str) -> Talk:
        """The one whose sound has this key. Raises UnknownUrl where none has it, nor will in BEGINS seconds."""
        end = time.monotonic() + BEGINS
        while time.monotonic() < end:
            for talk in self.talks.values():
                if talk.key == key:
                    return talk
            await asyncio.sleep(0.05)
        raise UnknownUrl("nobody listens to this sound")

    def tidy(self) -> None:
        """Ends those to which no sound comes, and forgets those of pages that have left."""
        now = time.monotonic()
        for page, talk in list(self.talks.items()):
            if now > talk.used + IDLE:
                talk.end()
            if not talk.session and page not in self.uploads.pages and now > talk.used + RETURN:
                del self.talks[page]


def later(word: Word, seconds: float) -> Word:
    """The same word, so much later."""
    return replace(word, start=word.start + seconds, end=word.end + seconds)
