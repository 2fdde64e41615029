"""The desk at which recordings are handed in: a bounded queue in front of the worker process, for one event loop.

    desk = Desk({"name_or_path": "demo"}, queue=20)
    await desk.start()
    async with aclosing(desk.recognise("talk.wav", "auto", Options())) as events:
        async for event in events: ...          # Began, Heard, Heard, ..., Finished

At most RUNNING recordings are with the worker, which decodes their windows in common batches; `queue` more may wait, and whoever comes
then is refused at once (`Busy`). Closing the iterator gives the place back, wherever the recording is by then.

What is unusual here: the worker may die. Whoever it was working for is told so (`WorkerDied`); who waits goes on waiting, for another
worker is started.
"""

import asyncio
import itertools
import logging
import multiprocessing
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from ..errors import CheckpointError, GlmAsrError
from ..pipeline import Options, Transcript
from . import worker
from .metrics import Figures
from .worker import Batch, Began, Broken, Cancel, Done, Failed, Heard, Ready, Recording

RUNNING = 16                    # recordings that the worker has at once
SOON = 30.0                     # seconds, at most, between two attempts to start a worker that can't be started
log = logging.getLogger("glmasr")


class Refused(Exception):
    """A recording isn't recognised, and that is not its own fault. `retry_after`: seconds until another attempt makes sense, or None."""

    def __init__(self, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.retry_after = retry_after


class Busy(Refused):
    """The queue is full."""


class Closing(Refused):
    """The server is about to end."""


class TooLong(Refused):
    """It took longer than the limit."""


class WorkerDied(Refused):
    """The process that worked at it has ended."""


@dataclass(frozen=True)
class Finished:
    """The end of a recording. `tokens`: the ids of each segment's text; `seeks`: the seconds at which the window of each begins;
    `peaks`: `worker.Done`."""

    transcript: Transcript
    tokens: list[list[int]]
    seeks: list[float]
    peaks: list[float]


@dataclass
class Ticket:
    """A recording between `recognise` and its end."""

    recording: Recording
    came: float
    events: asyncio.Queue = field(default_factory=asyncio.Queue)       # of what the worker says, or an exception that ends it
    started: float | None = None            # when it was handed to the worker


class Desk:
    """`model`: arguments of `pipeline.load`. `time_limit`: seconds for a recording, the waiting included."""

    def __init__(self, model: dict[str, Any], queue: int = 20, time_limit: float = 600.0):
        self.model, self.queue, self.time_limit, self.figures = model, queue, time_limit, Figures(self)
        self.waiting: deque[Ticket] = deque()
        self.running: dict[int, Ticket] = {}
        self.ready: Ready | None = None             # None while no worker can work
        self.facts: Ready | None = None             # what the last one that could has said
        self.closing = False
        self.restarts = 0
        self.process: multiprocessing.Process | None = None
        self._numbers = itertools.count(1)
        self._pace = 1.0                            # seconds between two recordings that leave, on average
        self._left = time.monotonic()
        self._spoke = time.monotonic()              # when the worker last said something
        self._pause = 0.5

    # -- the worker ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Loads the model. Raises CheckpointError for whatever keeps it from being loaded."""
        self._loop = asyncio.get_running_loop()
        self._first = self._loop.create_future()
        self._spawn()
        await self._first

    def _spawn(self) -> None:
        # TRAP: a fork of a process with threads may inherit a lock that nobody will open.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=worker.work, args=(theirs, self.model), daemon=True, name="glmasr-worker")
        self.process.start()
        theirs.close()                              # so that the end of the process is the end of the pipe
        self._outbox: SimpleQueue = SimpleQueue()
        threading.Thread(target=self._listen, args=(self._pipe,), daemon=True).start()
        threading.Thread(target=self._speak, args=(self._pipe, self._outbox), daemon=True).start()

    @staticmethod
    def _speak(pipe, outbox: SimpleQueue) -> None:
        """Thread: what the worker is told. TRAP: a pipe takes no more where the worker hangs, and the event loop may not wait for that."""
        with suppress(OSError):                     # it has just died: `_died` will tell
            while (message := outbox.get()) is not None:
                pipe.send(message)

    def _listen(self, pipe) -> None:
        """Thread: what the worker says, handed to the event loop."""
        with suppress(RuntimeError):                # the loop is closed
            try:
                while True:
                    self._loop.call_soon_threadsafe(self._hear, pipe.recv())
            except (EOFError, OSError):
                self._loop.call_soon_threadsafe(self._died, pipe)

    def _hear(self, message) -> None:
        self._spoke = time.monotonic()
        if isinstance(message, Ready):
            self.ready = self.facts = message
            self._pause = 0.5
            if not self._first.done():
                self._first.set_result(None)
            self._hand_over()
        elif isinstance(message, Broken):
            if self._first.done():
                log.error("the model can't be loaded again: %s", message.reason)
            else:
                self._first.set_exception(CheckpointError(message.reason))
        elif isinstance(message, Batch):
            self.figures.batch(message.windows, message.recordings)
        elif ticket := self.running.get(message.number):
            if isinstance(message, (Done, Failed)):
                self._release(ticket)
            ticket.events.put_nowait(message)

    def _died(self, pipe) -> None:
        pipe.close()
        if pipe is not self._pipe:
            return
        self._outbox.put(None)
        self.ready = None
        for ticket in list(self.running.values()):
            self._release(ticket)
            ticket.events.put_nowait(WorkerDied("the process that recognised it has ended; send it again, and a smaller part of it if that "
                                                "happens twice"))
        if self.closing or self.facts is None and self._first.done():       # the model could never be loaded
            return
        if not self._first.done():
            self._first.set_exception(CheckpointError("the process that loads the model has ended; is there enough memory for it?"))
            return
        self.restarts += 1
        log.error("the worker has ended; another one starts in %.1f s", self._pause)
        self._loop.call_later(self._pause, self._restart)
        self._pause = min(SOON, 2 * self._pause)

    def _restart(self) -> None:
        if not self.closing:
            self._spawn()

    # -- recordings ----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises Busy or Closing where another recording would be refused."""
        if self.closing:
            raise Closing("the server is about to end; send it to another one, or later", retry_after=10)
        if len(self.waiting) >= self.queue and (self.ready is None or len(self.running) >= RUNNING):
            raise Busy(f"{len(self.waiting)} recordings are waiting, which is as many as may; try again later", self._when())

    def _when(self) -> int:
        """Seconds until a place will be free, about."""
        return max(1, min(60, round(self._pace * (1 + len(self.waiting) / 4))))

    async def recognise(self, path: str, language: str, options: Options) -> AsyncIterator[Began | Heard | Finished]:
        """What becomes of a recording, as soon as it is known; Finished comes last. Raises Busy, Closing, TooLong, WorkerDied; AudioError
        for a recording that can't be used; OptionError; OSError, such as a full disk. The file may go as soon as the iterator is closed."""
        self.check()
        ticket = Ticket(Recording(next(self._numbers), path, language, options), time.monotonic())
        # TRAP: not `wait_for`, which in Python 3.10 and 3.11 loses a cancellation that coincides with an event, and with it this place.
        limit = asyncio.get_running_loop().call_later(self.time_limit, self._overdue, ticket)
        self.waiting.append(ticket)
        self._hand_over()
        outcome, parts, transcript = "left", [], None
        try:
            while transcript is None:
                event = await ticket.events.get()
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Done):
                    transcript = Transcript.of([*parts, event.part], event.how)
                    seeks = [part.start for part in parts for _ in part.segments]
                    event = Finished(transcript, event.tokens, seeks, event.peaks)
                    outcome = "done"
                elif isinstance(event, Heard):
                    parts.append(event.part)
                yield event
        except (Refused, GlmAsrError, OSError) as error:
            outcome = type(error).__name__
            raise
        finally:
            limit.cancel()
            self._leave(ticket)
            self._tell(ticket, outcome, transcript)

    def _overdue(self, ticket: Ticket) -> None:
        if ticket.started and time.monotonic() - self._spoke > self.time_limit:         # it hangs
            self.process.kill()
        ticket.events.put_nowait(TooLong(f"it took longer than {self.time_limit:g} s, the limit for a recording; cut it, or send it when less is "
                                         "to do"))

    def _hand_over(self) -> None:
        while self.waiting and self.ready is not None and len(self.running) < RUNNING:
            ticket = self.waiting.popleft()
            ticket.started = time.monotonic()
            self.running[ticket.recording.number] = ticket
            self._send(ticket.recording)

    def _send(self, message) -> None:
        self._outbox.put(message)

    def _release(self, ticket: Ticket) -> None:
        """Its place with the worker is free."""
        if self.running.pop(ticket.recording.number, None):
            now = time.monotonic()
            self._pace, self._left = 0.9 * self._pace + 0.1 * min(60.0, now - max(self._left, ticket.started)), now
        self._hand_over()

    def _leave(self, ticket: Ticket) -> None:
        """Whatever becomes of it, nobody waits for it any more."""
        if ticket.recording.number in self.running:
            self._send(Cancel(ticket.recording.number))
            self._release(ticket)
        with suppress(ValueError):
            self.waiting.remove(ticket)

    def _tell(self, ticket: Ticket, outcome: str, transcript: Transcript | None) -> None:
        now, seconds = time.monotonic(), transcript.seconds if transcript else 0.0
        waited, worked = (ticket.started or now) - ticket.came, now - (ticket.started or now)
        log.info("recording %d: %s, %.1f s of sound, waited %.2f s, took %.2f s", ticket.recording.number, outcome, seconds, waited, worked)
        self.figures.recording(ticket.recording.options.task, outcome, seconds, waited, worked)

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """From now on nothing is taken in. Who waits is refused; what runs is finished."""
        self.closing = True
        while self.waiting:
            self.waiting.popleft().events.put_nowait(Closing("the server is about to end; send it to another one, or later", retry_after=10))

    def give_up(self) -> None:
        """Who is still worked for is refused as well."""
        for ticket in self.running.values():
            ticket.events.put_nowait(Closing("the server ends, and this took too long to wait for; send it again", retry_after=10))

    def end(self) -> None:
        """Ends the worker."""
        self.closing = True
        if self.process is not None and self.process.is_alive():
            self.process.kill()                     # it ignores SIGTERM, and holds nothing that could be lost
            self.process.join()
