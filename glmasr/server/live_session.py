"""A live session as the server sees it: what it is sent goes to the worker, what the worker makes of it comes back.

    with queue.listen(LiveSettings("en", 48_000)) as session:
        session.hear(samples); await session.room()     # again and again
        session.commit()                                # or not: a pause ends a segment as well
        heard = await session.heard()                   # until `session.done`

What is unusual here: nobody may send more than the worker can hear. `hear` takes all that it is given; who feeds it
waits for `room` before it takes more from its client, and the client waits for that.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from ..errors import GlmAsrError
from .messages import Clear, Commit, Finish, FromWorker, Heard, Listen, LiveSettings, Refused, Sound, ToLive
from .problems import Problem

ROOM = 30.0  # seconds of sound that may wait for the worker
PIECE = 1.0  # seconds of sound in one message


class LiveSession:
    """Of `RequestQueue.listen`; belongs to one event loop. Leave it with `close`, or as a context manager.

    send      hands a message to the worker
    leave     gives the place back
    overdue   is called where the worker hasn't answered for `time_limit` seconds
    """

    def __init__(
        self,
        number: int,
        settings: LiveSettings,
        send: Callable[[ToLive], None],
        leave: "Callable[[LiveSession], None]",
        overdue: "Callable[[LiveSession], None]",
        time_limit: float,
    ):
        self.number, self.settings = number, settings
        self._asked: deque[LiveSettings] = deque()
        self.started = time.monotonic()
        self.seconds = 0.0  # of sound that it was sent
        self.waiting = 0.0  # seconds of it that the worker hasn't heard
        self.unanswered = 0  # messages
        self.outcome = "left"
        self._send, self._leave, self._overdue, self._time_limit = send, leave, overdue, time_limit
        self._events: asyncio.Queue[Heard | Refused | Exception] = asyncio.Queue()
        self._room = asyncio.Event()
        self._room.set()
        self._alarm: asyncio.TimerHandle | None = None
        self._closed = False
        self.change(settings)

    # ---- what it is sent ----

    def hear(self, samples: bytes) -> None:
        """Samples of one channel, int16, at the rate of the settings."""
        size = 2 * round(PIECE * self.settings.rate)
        for start in range(0, len(samples), size):
            self._tell(Sound(self.number, samples[start : start + size]))
        seconds = len(samples) / 2 / self.settings.rate
        self.seconds, self.waiting = self.seconds + seconds, self.waiting + seconds
        if self.waiting > ROOM:
            self._room.clear()

    async def room(self) -> None:
        """Waits until at most ROOM seconds of sound wait."""
        await self._room.wait()

    def commit(self) -> None:
        """Ends the segment here."""
        self._tell(Commit(self.number))

    def clear(self) -> None:
        """Forgets the segment so far."""
        self._tell(Clear(self.number))

    def change(self, settings: LiveSettings) -> None:
        """Ends the segment here, and goes on with other settings. Wait for the answer before the next `hear`: where
        it is Refused, those before stay."""
        self._asked.append(settings)
        self._tell(Listen(self.number, settings))

    def finish(self) -> None:
        """Ends the last segment."""
        self._tell(Finish(self.number))

    def _tell(self, message: ToLive) -> None:
        self.unanswered += 1
        self._send(message)
        if self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(self._time_limit, self._overdue, self)

    # ---- what comes back ----

    async def heard(self) -> Heard | Refused:
        """The next answer. Raises Closing, once where the server is about to end and again when it does, TooLong,
        WorkerDied."""
        return self._taken(await self._events.get())

    @property
    def done(self) -> bool:
        """Whether all that it was sent is answered, and the answers were taken."""
        return not self.unanswered and self._events.empty()

    def ready(self) -> list[Heard | Refused]:
        """The answers that are there. Raises as `heard`."""
        found = []
        while not self._events.empty():
            found.append(self._taken(self._events.get_nowait()))
        return found

    @staticmethod
    def _taken(event: Heard | Refused | Exception) -> Heard | Refused:
        if isinstance(event, Exception):
            raise event
        return event

    def put(self, event: FromWorker | Exception) -> None:
        """Of the queue: what the worker says, or what ends the session."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if isinstance(event, Heard | Refused):
            self.unanswered -= event.count if isinstance(event, Heard) else 1
            self.waiting -= event.seconds if isinstance(event, Heard) else 0.0
            if isinstance(event, Refused):
                self._asked.popleft()
            elif event.asked is Listen:
                self.settings = self._asked.popleft()
            if self.unanswered and not self._closed:
                self._alarm = asyncio.get_running_loop().call_later(self._time_limit, self._overdue, self)
        if isinstance(event, Exception) or self.waiting <= ROOM:
            self._room.set()
        assert isinstance(event, Heard | Refused | Exception)
        self._events.put_nowait(event)

    # ---- the end ----

    def close(self) -> None:
        """Gives the place back, wherever it is."""
        if not self._closed:
            self._closed = True
            if self._alarm is not None:
                self._alarm.cancel()
            self._leave(self)

    def __enter__(self) -> "LiveSession":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Problem | GlmAsrError):
            self.outcome = type(error).__name__
        self.close()
