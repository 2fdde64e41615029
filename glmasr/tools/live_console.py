"""Live on the command line: sound from a pipe or a microphone -> text while somebody speaks.

    a thread: blocks of 0.1 s -> a queue -> session -> events -> Screen (live_screen.py), Files

Unusual: the thread reads while the model works, and where ten minutes wait, it waits too, so whoever writes into the
pipe does: no sound is dropped. How far this machine is behind, the clock says, not the queue: a recording comes faster
than it was spoken, and that is no delay.
"""

import math
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .. import audio
from ..audio_files import live_sound, microphone
from ..audio_files.pcm import Pcm
from ..errors import GlmAsrError, OutputError
from ..pipeline import Recognizer
from ..transcription.live import Live
from ..transcription.live_decoder import Course, run_together
from ..transcription.live_events import Committed, Event, Notice, Tentative
from ..transcription.results import Part, Segment, Transcript
from ..writers.formats import WRITERS
from ..writers.line_breaks import Layout
from ..writers.output import write_whole
from .console import Messages, peak_memory
from .live_screen import Screen

BLOCK = 0.1  # seconds
AT_ONCE = 5  # blocks that are fed together, where so many wait
MOST_WAITING = 600  # seconds of sound in the queue
MOST_AFTER = 30  # seconds of it that are still recognized after Ctrl-C
SELDOM = 20  # times as long as the last writing of the files took, they aren't written again


class Waiting:
    """Blocks of sound that a thread has read and nobody has taken yet."""

    def __init__(self, blocks: Iterator[Tensor]):
        self.queue: queue.Queue[Tensor | BaseException | None] = queue.Queue(round(MOST_WAITING / BLOCK))
        self.began = 0.0  # when the first block came
        self.taken = 0.0  # seconds
        self.stopped = False
        threading.Thread(target=self._read, args=[blocks], daemon=True).start()

    def _read(self, blocks: Iterator[Tensor]) -> None:
        try:
            for block in blocks:
                self.began = self.began or time.monotonic()
                self.queue.put(block)
                if self.stopped:
                    return
            self.queue.put(None)
        except BaseException as error:  # for whoever takes the blocks
            self.queue.put(error)

    def take(self, wait: bool = True) -> Tensor | None:
        """The next samples (S,); None at the end, or where there are none and it isn't to `wait`. Raises what the
        reading has raised."""
        some: list[Tensor] = []
        while len(some) < AT_ONCE:
            try:
                item = self.queue.get(block=wait and not some)
            except queue.Empty:
                break
            if not isinstance(item, Tensor):
                if some:  # for the next time
                    self.queue.put(item)
                    break
                if item is None:
                    return None
                raise item
            some.append(item)
        self.taken += sum(map(len, some)) / audio.SAMPLE_RATE
        return torch.cat(some) if some else None

    @property
    def seconds(self) -> float:
        """How much waits."""
        return self.queue.qsize() * BLOCK

    @property
    def behind(self) -> float:
        """How much of it waits because this machine is slow."""
        late = time.monotonic() - self.began - self.taken
        return max(0.0, min(late, self.seconds))


class Interrupt:
    """Ctrl-C: while the session waits for sound, it is the usual KeyboardInterrupt, and the second one always is. While
    it works, it is kept in mind, so that nothing is torn in the middle."""

    def __init__(self) -> None:
        self.asked = self.waiting = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """While this runs. Only of the main thread, and where nobody else handles it."""
        main = threading.current_thread() is threading.main_thread()
        if not (main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
            yield
            return
        signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, *signal_and_frame: object) -> None:
        before, self.asked = self.asked, True
        if before or self.waiting:
            raise KeyboardInterrupt


class Files:
    """The files of a session, which are complete after each segment: {format: file}."""

    def __init__(self, outputs: Mapping[str, Path], layout: Layout, name: str, how: dict[str, str], words: bool):
        self.outputs, self.layout, self.name, self.how, self.words = outputs, layout, name, how, words
        self.parts: list[Part] = []
        self.warnings: list[str] = []
        self.next = 0.0  # when they may be written again

    def add(self, segment: Segment) -> None:
        """Raises OutputError."""
        segment = segment if self.words else replace(segment, words=())
        segments = [segment] if segment.text else []
        self.parts.append(Part(segment.start, segment.end, segment.language, segments, self.warnings))
        self.warnings = []
        if time.monotonic() >= self.next:
            self.write(segment.end)

    def write(self, seconds: float) -> None:
        """All of them, for so much sound. Raises OutputError."""
        begun = time.monotonic()
        if self.outputs:
            end = max([seconds, *(part.end for part in self.parts)])
            transcript = Transcript.of([*self.parts, Part(end, end, "", [], self.warnings, last=True)], self.how)
            for form, path in self.outputs.items():
                write_whole(path, WRITERS[form](transcript, self.layout, self.name))
        now = time.monotonic()
        self.next = now + SELDOM * (now - begun)


class Console:
    """A session on the command line. `run` gives the exit code."""

    def __init__(self, recognizer: Recognizer, session: Live, screen: Screen, files: Files, messages: Messages):
        self.recognizer, self.session = recognizer, session
        self.screen, self.files, self.messages = screen, files, messages
        self.failed = False  # to decode, or to write
        self.told: list[str] = []  # errors
        self.lock = threading.RLock()  # the thread that reads has warnings, too

    def run(self, blocks: Callable[[ExitStack, Callable[[str], None]], Iterator[Tensor]]) -> int:
        """`blocks(stack, warn)`, read by a thread: the sound. 0, or 1 if something failed. Raises KeyboardInterrupt, at
        the end, if that was asked for."""
        interrupt, trouble = Interrupt(), None
        with interrupt.caught(), self.nobody_reads(), ExitStack() as stack:
            waiting = Waiting(blocks(stack, self.warn))
            try:
                while not (interrupt.asked or self.failed):
                    interrupt.waiting = True
                    samples = waiting.take()
                    interrupt.waiting = False
                    if samples is None:
                        break
                    self.follow(self.session.hearing(samples, waiting.behind))
            except KeyboardInterrupt:  # while it waited; the second one would be raised in what follows
                interrupt.waiting = False
            except GlmAsrError as error:  # of the reading
                interrupt.waiting, trouble = False, error
            waiting.stopped = True
            if interrupt.asked and not self.failed:
                self.rest(waiting)
            if not self.failed:
                self.follow(self.session.finishing())
            if trouble is not None:
                self.fail(trouble)
            self.close()
        if interrupt.asked:
            raise KeyboardInterrupt
        return 1 if self.failed else 0

    @contextmanager
    def nobody_reads(self) -> Iterator[None]:
        """Where standard output takes no more, as whoever read it has seen enough (`| head`) or its disk is full, the
        files get what was said up to there."""
        try:
            yield
        except OSError:
            try:
                self.files.write(self.session.seconds)
            except OutputError as error:  # `fail` would write on standard output
                if str(error) not in self.told:
                    self.messages.complain(str(error))
            raise

    def rest(self, waiting: Waiting) -> None:
        """What was said before Ctrl-C."""
        if waiting.seconds > MOST_AFTER:
            self.warn(f"{waiting.seconds:.0f} s of sound that waited are not recognized")
            return
        end = waiting.taken + waiting.seconds
        while not self.failed and waiting.taken < end:
            try:
                samples = waiting.take(wait=False)
            except GlmAsrError:
                return
            if samples is None:
                return
            self.follow(self.session.hearing(samples))

    def follow(self, course: Course) -> None:
        """Events, as far as they come."""
        [events] = run_together(self.recognizer, [course])
        with self.lock:
            for event in events:
                self.show(event)
            self.screen.draw()

    def show(self, event: Event | GlmAsrError) -> None:
        """Puts an event where it belongs."""
        if isinstance(event, Committed):
            self.screen.commit(event.text)
        elif isinstance(event, Tentative):
            self.screen.guess(event.text)
        elif isinstance(event, Segment):
            try:
                self.files.add(event)
            except OutputError as error:
                self.fail(error)
            self.screen.end(event)
        elif isinstance(event, Notice):
            self.warn(event.text)
        elif isinstance(event, GlmAsrError):
            self.fail(event)

    def warn(self, text: str) -> None:
        """Prints a warning, and keeps it for the files."""
        with self.lock, self.screen.cleared():
            self.files.warnings.append(text)
            self.messages.say(f"warning: {text}")

    def fail(self, error: GlmAsrError) -> None:
        """What was recognized stays, and nothing more is."""
        self.failed = True
        if str(error) not in self.told:
            self.told.append(str(error))
            with self.lock, self.screen.cleared():
                self.messages.complain(str(error))

    def close(self) -> None:
        """The files, and what came of it."""
        try:
            self.files.write(self.session.seconds)
        except OutputError as error:
            self.fail(error)
        else:
            if self.files.outputs:
                self.messages.say(f"{self.files.name} -> {', '.join(map(str, self.files.outputs.values()))}")
        count = sum(len(part.segments) for part in self.files.parts)
        said = f"{count} segment{'' if count == 1 else 's'}"
        self.messages.say(f"{self.session.seconds:.1f} s of sound, {said}; peak memory {peak_memory()}")


def sound(source: str, raw: Pcm, device: str | None, stack: ExitStack, warn: Callable[[str], None]) -> Iterator[Tensor]:
    """Blocks (1600,) at 16 kHz of "mic", "-" or a path; `raw`: how samples without a header are. Raises AudioError."""
    if source == "mic":
        parts, name = microphone.parts(device, stack, warn), microphone.NAME
    elif live_sound.is_recording(source):
        yield from audio.blocks(source, seconds=BLOCK, max_duration=math.inf, warn=warn)
        return
    else:
        file, name = live_sound.opened(source, stack)
        parts = live_sound.parts(file, name, raw, stack, lambda: False)
    yield from audio.blocks_of(parts, name, BLOCK, warn)
