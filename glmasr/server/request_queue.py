"""A bounded request queue in front of the worker process, for one event loop.

    queue = RequestQueue({"name_or_path": "demo"}, max_waiting=20)
    await queue.start()
    async with aclosing(queue.recognize("talk.wav", "auto", Options())) as events:
        async for event in events: ...          # Began, PartReady, PartReady, ..., Finished

At most RUNNING recordings are with the worker, which decodes their windows in common batches; `max_waiting` more may
wait, and further requests are refused at once (`Busy`). Closing the iterator gives the place back, wherever the
recording is by then. A live session (`listen`) takes one of the places with the worker; it can't wait for one.

What is unusual here: the worker may die. The requests it was working on end with `WorkerDied`; those that wait go on
waiting, for another worker is started.
"""

import asyncio
import itertools
import logging
import multiprocessing
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any

from ..errors import CheckpointError, GlmAsrError
from ..transcription.options import Options
from ..transcription.results import Part, Transcript
from . import worker_process
from .live_session import LiveSession
from .messages import (
    Batch,
    Began,
    Broken,
    Cancel,
    Done,
    Failed,
    FromWorker,
    LiveSettings,
    PartReady,
    Ready,
    Recording,
    ToWorker,
)
from .metrics import Metrics
from .problems import Busy, Closing, Loading, Problem, TooLong, WorkerDied

RUNNING = 16  # recordings and live sessions that the worker has at once
SESSIONS = 12  # of them may be live sessions, which last: the rest is for recordings
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before a worker is started again: doubled until one can be started
log = logging.getLogger("glmasr")


@dataclass(frozen=True)
class Finished:
    """The end of a recording.

    tokens   the ids of each segment's text
    seeks    the seconds at which the window of each segment begins
    peaks    as of `messages.Done`
    """

    transcript: Transcript
    tokens: list[list[int]]
    seeks: list[float]
    peaks: list[float]


Event = Began | PartReady | Finished


@dataclass
class Request:
    """A recording between `recognize` and its end. Times are those of the monotonic clock."""

    recording: Recording
    arrived: float
    # What the worker says of it, or an exception that ends it.
    events: asyncio.Queue[FromWorker | Exception] = field(default_factory=asyncio.Queue)
    started: float | None = None  # when it was handed to the worker

    @property
    def number(self) -> int:
        """Its number in messages."""
        return self.recording.number

    def put(self, event: FromWorker | Exception) -> None:
        """Hands an event to whoever waits for it."""
        self.events.put_nowait(event)


class RequestQueue:
    """`model`: arguments of `worker.work`. `max_waiting`: recordings beside those that run. `time_limit`: seconds
    for a recording, the waiting included."""

    def __init__(self, model: dict[str, Any], max_waiting: int = 20, time_limit: float = 600.0):
        self.model, self.max_waiting, self.time_limit = model, max_waiting, time_limit
        self.metrics = Metrics(self)
        self.waiting: deque[Request] = deque()
        self.running: dict[int, Request | LiveSession] = {}
        self.ready: Ready | None = None  # None while no worker can work
        self.facts: Ready | None = None  # what the last one that could has said
        self.closing = False
        self.restarts = 0
        self.process: BaseProcess | None = None
        self._numbers = itertools.count(1)
        self._pace = 1.0  # seconds between two recordings that leave, on average
        self._last_left = time.monotonic()
        self._last_message = time.monotonic()  # of the worker
        self._pause = FIRST_PAUSE

    # ---- recordings ----

    async def recognize(
        self, path: str, language: str, options: Options, adapter: str = ""
    ) -> AsyncGenerator[Event, None]:
        """What becomes of a recording, as soon as it is known; Finished comes last. Raises Busy, Closing, TooLong,
        WorkerDied; AudioError for a recording that can't be used; OptionError; OSError, such as a full disk. The file
        may go as soon as the iterator is closed."""
        self.check()
        request = Request(Recording(next(self._numbers), path, language, options, adapter), time.monotonic())
        # TRAP: not `wait_for`, which in Python 3.10 and 3.11 loses a cancellation that coincides with an event, and
        # with it this place.
        limit = asyncio.get_running_loop().call_later(self.time_limit, self._overdue, request)
        self.waiting.append(request)
        self._hand_over()
        outcome, transcript = "left", None
        parts: list[Part] = []
        try:
            while transcript is None:
                message = await request.events.get()
                if isinstance(message, Exception):
                    raise message
                if isinstance(message, Failed):
                    raise message.error
                if isinstance(message, Done):
                    transcript = Transcript.of([*parts, message.part], message.runtime)
                    outcome = "done"
                    seeks = [part.start for part in parts for _ in part.segments]
                    yield Finished(transcript, message.tokens, seeks, message.peaks)
                elif isinstance(message, PartReady):
                    parts.append(message.part)
                    yield message
                elif isinstance(message, Began):
                    yield message
        except (Problem, GlmAsrError, OSError) as error:
            outcome = type(error).__name__
            raise
        finally:
            limit.cancel()
            self._leave(request)
            self._record(request, outcome, transcript)

    def check(self) -> None:
        """Raises Busy or Closing where another recording would be refused."""
        if self.closing:
            raise Closing("the server is about to end; send it to another one, or later", retry_after=10)
        if len(self.waiting) >= self.max_waiting and (self.ready is None or len(self.running) >= RUNNING):
            raise Busy(
                f"{len(self.waiting)} recordings are waiting, which is as many as may; try again later",
                retry_after=self._retry_after(),
            )

    def listen(self, settings: LiveSettings) -> LiveSession:
        """Begins a live session, which has to be closed. Raises as `check_session`."""
        self.check_session()
        number = next(self._numbers)
        session = LiveSession(number, settings, self._send, self._leave, self._overdue, self.time_limit)
        self.running[number] = session
        return session

    @property
    def sessions(self) -> list[LiveSession]:
        """The live sessions."""
        return [place for place in self.running.values() if isinstance(place, LiveSession)]

    def check_session(self) -> None:
        """Raises Busy, Loading or Closing where a live session would be refused."""
        if self.closing:
            raise Closing("the server is about to end; connect to another one, or later", retry_after=10)
        if self.ready is None:
            raise Loading("the model is being loaded; connect again later", retry_after=10)
        if len(self.running) >= RUNNING or len(self.sessions) >= SESSIONS:
            raise Busy(
                f"{len(self.sessions)} live sessions and {len(self.running) - len(self.sessions)} recordings are under "
                f"way; there may be {SESSIONS} sessions, and {RUNNING} of both; try again later",
                retry_after=self._retry_after(),
            )

    def _retry_after(self) -> int:
        """Seconds until a place will be free, about."""
        return max(1, min(60, round(self._pace * (1 + len(self.waiting) / 4))))

    def _overdue(self, request: Request | LiveSession) -> None:
        hangs = request.started and time.monotonic() - self._last_message > self.time_limit
        if hangs and self.process is not None:
            self.process.kill()
        request.put(
            TooLong(
                f"it took longer than {self.time_limit:g} s, the limit for a recording; cut it, or send it when less "
                "is to do"
            )
        )

    def _hand_over(self) -> None:
        """Gives the worker as many of those that wait as it takes."""
        while self.waiting and self.ready is not None and len(self.running) < RUNNING:
            request = self.waiting.popleft()
            request.started = time.monotonic()
            self.running[request.number] = request
            self._send(request.recording)

    def _release(self, request: Request | LiveSession) -> None:
        """Its place with the worker is free."""
        left = self.running.pop(request.number, None)
        if left and isinstance(request, Request) and request.started is not None:
            now = time.monotonic()
            took = min(60.0, now - max(self._last_left, request.started))
            self._pace, self._last_left = 0.9 * self._pace + 0.1 * took, now
        self._hand_over()

    def _leave(self, request: Request | LiveSession) -> None:
        """Whatever becomes of it, its client is gone or has been answered."""
        if request.number in self.running:
            self._send(Cancel(request.number))
            self._release(request)
        if isinstance(request, LiveSession):
            lasted = time.monotonic() - request.started
            text = "live session %d: %s, %.1f s of sound, took %.1f s"
            log.info(text, request.number, request.outcome, request.seconds, lasted)
            self.metrics.session(request.outcome, request.seconds, lasted)
        elif request in self.waiting:
            self.waiting.remove(request)

    def _record(self, request: Request, outcome: str, transcript: Transcript | None) -> None:
        """A line of the log, and the metrics."""
        now, seconds = time.monotonic(), transcript.seconds if transcript else 0.0
        started = request.started or now
        waited, worked = started - request.arrived, now - started
        number = request.recording.number
        text = "recording %d: %s, %.1f s of sound, waited %.2f s, took %.2f s"
        log.info(text, number, outcome, seconds, waited, worked)
        self.metrics.recording(request.recording.options.task, outcome, seconds, waited, worked)

    # ---- the worker ----

    @property
    def failing(self) -> bool:
        """No worker can work, and half a dozen that were started in a row have ended."""
        return self.ready is None and self._pause == LONGEST_PAUSE

    async def start(self) -> None:
        """Loads the model. Raises CheckpointError for whatever keeps it from being loaded."""
        self._loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[None] = self._loop.create_future()
        self._spawn()
        await self._loaded

    def _spawn(self) -> None:
        # TRAP: a fork of a process with threads may inherit a lock that is never opened.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        process = context.Process(
            target=worker_process.begin, args=(theirs, self.model), daemon=True, name="glmasr-worker"
        )
        self.process = process
        process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self._outbox: SimpleQueue[ToWorker | None] = SimpleQueue()
        threading.Thread(target=self._read_pipe, args=(self._pipe,), daemon=True).start()
        threading.Thread(target=self._write_pipe, args=(self._pipe, self._outbox), daemon=True).start()

    @staticmethod
    def _write_pipe(pipe: "Connection[Any, Any]", outbox: "SimpleQueue[ToWorker | None]") -> None:
        """Thread: what the worker is told, up to None. TRAP: a pipe takes no more where the worker hangs, and the event
        loop may not wait for that; nor may it close the pipe, into which half a message may just be written."""
        with pipe:
            while (message := outbox.get()) is not None:
                with suppress(OSError):  # it has just died: `_died` will say so
                    pipe.send(message)

    def _read_pipe(self, pipe: "Connection[Any, Any]") -> None:
        """Thread: what the worker says, handed to the event loop."""
        with suppress(RuntimeError):  # the loop is closed
            try:
                while True:
                    self._loop.call_soon_threadsafe(self._receive, pipe.recv())
            except (EOFError, OSError):
                self._loop.call_soon_threadsafe(self._died, pipe)

    def _send(self, message: ToWorker) -> None:
        self._outbox.put(message)

    def _receive(self, message: FromWorker) -> None:
        self._last_message = time.monotonic()
        if isinstance(message, Ready):
            self.ready = self.facts = message
            self._pause = FIRST_PAUSE
            if not self._loaded.done():
                self._loaded.set_result(None)
            self._hand_over()
        elif isinstance(message, Broken):
            if self._loaded.done():
                log.error("the model can't be loaded again: %s", message.reason)
            else:
                self._loaded.set_exception(CheckpointError(message.reason))
        elif isinstance(message, Batch):
            self.metrics.batch(message.windows, message.recordings)
        elif request := self.running.get(message.number):
            if isinstance(message, (Done, Failed)):
                self._release(request)
            request.put(message)

    def _died(self, pipe: "Connection[Any, Any]") -> None:
        if pipe is not self._pipe:
            return
        self._outbox.put(None)
        self.ready = None
        for request in list(self.running.values()):
            self._release(request)
            request.put(
                WorkerDied(
                    "the process that recognized it has ended; send it again, and a smaller part of it if that happens "
                    "twice"
                )
            )
        if self.closing or self.facts is None and self._loaded.done():  # the model could never be loaded
            return
        if not self._loaded.done():
            reason = "the process that loads the model has ended; is there enough memory for it?"
            self._loaded.set_exception(CheckpointError(reason))
            return
        self.restarts += 1
        log.error("the worker has ended; another one starts in %.1f s", self._pause)
        self._loop.call_later(self._pause, self._restart)
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)

    def _restart(self) -> None:
        if not self.closing:
            self._spawn()

    # ---- the end ----

    def close(self) -> None:
        """From now on nothing is taken in. Those that wait are refused; what runs is finished, and live sessions are
        told to."""
        self.closing = True
        message = "the server is about to end; send it to another one, or later"
        ending: list[Request | LiveSession] = [*self.waiting, *self.sessions]
        self.waiting.clear()
        for request in ending:
            request.put(Closing(message, retry_after=10))

    def give_up(self) -> None:
        """Those that still run are refused as well."""
        message = "the server ends, and this took too long to wait for; send it again"
        for request in self.running.values():
            request.put(Closing(message, retry_after=10))

    def end(self) -> None:
        """Ends the worker."""
        self.closing = True
        if self.process is not None and self.process.is_alive():
            self.process.kill()  # it ignores SIGTERM, and holds nothing that could be lost
            self.process.join()
