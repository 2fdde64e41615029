"""The process that owns the model: recordings of many people at once -> their parts, windows of several decoded together.

    receive (thread)      requests and cancellations come in through a pipe
    Listening (threads)   one for each recording: reads it, cuts it into windows, stays a few windows ahead
    run                   takes windows of all recordings in turn, decodes them in one batch, sends the parts back

What is unusual here: it is a process, not a thread. A decoder of a strange format that crashes, or a machine that is out of memory,
then ends this process and not the server, which starts another one (`batching.py`). So whatever is not a user's error may end it.
"""

import ctypes
import os
import signal
import sys
import threading
import traceback
from collections import deque
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .. import audio as sound
from ..audio_files import sound_files
from ..errors import Cancelled, GlmAsrError, OptionError
from ..kernels import prepare
from ..pipeline import Options, Part, Reader, load
from ..transcription.families import Job, RecordingState
from ..transcription.language import LANGUAGES, join, spaced

IDLE = 2.0                      # seconds without work after which memory is given back
AHEAD = 4                       # windows of a recording that are read before their turn: 8 MB of samples
MOST_PEAKS = 2000               # of a recording: a screen has no more columns


# ---- messages: plain data, which the pipe pickles -------------------------------------------------------------------------

@dataclass(frozen=True)
class Recording:
    """To the worker: recognise this file. `number` names it in all that follows."""

    number: int
    path: str
    language: str
    options: Options


@dataclass(frozen=True)
class Cancel:
    """To the worker: nobody waits for this one any more."""

    number: int


@dataclass(frozen=True)
class Ready:
    """The model is loaded.

    languages    what may be asked for
    timestamps   whether it has time tokens
    tasks        "transcribe", and "translate" where the vocabulary has it
    how          `Recogniser.how`
    """

    languages: list[str]
    timestamps: bool
    tasks: list[str]
    how: dict[str, str]


@dataclass(frozen=True)
class Broken:
    """The model can't be loaded, and why."""

    reason: str


@dataclass(frozen=True)
class Began:
    """Reading has begun. `seconds` is what the header states, None where it says nothing."""

    number: int
    seconds: float | None


@dataclass(frozen=True)
class Heard:
    """A stretch was recognised."""

    number: int
    part: Part


@dataclass(frozen=True)
class Done:
    """All was recognised: the last part, as `Recogniser.stream` ends with; the options with the model's defaults; the loudest sample
    of each stretch of equal length, 0 to 1; the tokens of each segment's text, as `language.spaced` gives it."""

    number: int
    part: Part
    how: dict[str, str]
    peaks: list[float]
    tokens: list[list[int]]


@dataclass(frozen=True)
class Failed:
    """It can't be recognised: a user's error, or no room for a temporary file."""

    number: int
    error: GlmAsrError | OSError


@dataclass(frozen=True)
class Batch:
    """So many windows of so many recordings were decoded together."""

    windows: int
    recordings: int


# ---- reading --------------------------------------------------------------------------------------------------------------

class Peaks:
    """The outline of a sound of unknown length: at most MOST_PEAKS values, each the loudest sample of `unit` samples."""

    def __init__(self):
        self.values, self.unit, self._rest = torch.zeros(0), 160, torch.zeros(0)

    def add(self, samples: torch.Tensor) -> None:
        samples = torch.cat([self._rest, samples.abs()])
        count = len(samples) // self.unit
        self._rest = samples[count * self.unit:]
        self.values = torch.cat([self.values, samples[:count * self.unit].view(count, self.unit).amax(1)])
        while len(self.values) > MOST_PEAKS:
            even = F.pad(self.values, (0, len(self.values) % 2)).view(-1, 2)
            if len(self.values) % 2:            # an odd one goes on to be filled
                self._rest = torch.cat([self.values[-1:].expand(self.unit), self._rest])
                even = even[:-1]
            self.values, self.unit = even.amax(1), 2 * self.unit

    def listed(self) -> list[float]:
        last = self._rest.amax().view(1) if len(self._rest) else self._rest
        return [round(value, 3) for value in torch.cat([self.values, last]).clamp(max=1).tolist()]


class Listening(threading.Thread):
    """A recording while it is read. `windows` and `ended` are guarded by the worker's condition; `left` becomes true once."""

    def __init__(self, worker: "Worker", recording: Recording, options: Options):
        super().__init__(daemon=True)
        self.worker, self.recording, self.options = worker, recording, options
        self.windows: deque[Job] = deque()
        self.ended: Done | Failed | None = None
        self.left = False
        self.tokens: list[list[int]] = []
        self.said = ""                                  # the last text: whether a space stands before the next one goes by it

    def run(self) -> None:
        recogniser, recording, peaks, warnings = self.worker.recogniser, self.recording, Peaks(), []

        def blocks():
            for block in sound.blocks(recording.path, track=self.options.track, max_duration=self.options.max_duration,
                                      warn=warnings.append, cancelled=lambda: self.left):
                peaks.add(block)
                yield block

        try:
            self.worker.send(Began(recording.number, sound_files.stated_duration(recording.path)))
            reader = Reader(blocks(), recogniser.config.window)
            for job in recogniser.jobs(reader, RecordingState.of(recording.language), self.options):
                if not self.put(job):
                    return
            end = Part(reader.seconds, reader.seconds, "", [], [self.anonymous(warning) for warning in warnings])
            ended = Done(recording.number, end, recogniser.how(self.options), peaks.listed(), self.tokens)
        except Cancelled:             # in hours of silence there is nothing to `put`
            return
        except GlmAsrError as error:
            ended = Failed(recording.number, type(error)(self.anonymous(str(error))))
        except OSError as error:
            ended = Failed(recording.number, OSError(error.errno, error.strerror))
        except Exception as error:
            give_up(error)
        with self.worker.changed:
            self.ended = ended
            self.worker.changed.notify_all()

    def put(self, job: Job) -> bool:
        """False: nobody waits for it any more."""
        with self.worker.changed:
            self.worker.changed.wait_for(lambda: self.left or len(self.windows) < AHEAD)
            self.windows.append(job)
            self.worker.changed.notify_all()
            return not self.left

    def anonymous(self, text: str) -> str:
        """Whoever sent the recording doesn't know the name that the server gave it."""
        return text.replace(f"{self.recording.path}: ", "").replace(self.recording.path, "the recording")


# ---- the worker -----------------------------------------------------------------------------------------------------------

class Worker:
    def __init__(self, recogniser, pipe):
        self.recogniser, self.pipe = recogniser, pipe
        self.listening: dict[int, Listening] = {}       # in the order in which they are served next
        self.taken = 0                                  # recordings so far
        self.changed = threading.Condition()
        self.sending = threading.Lock()

    def send(self, message) -> None:
        with self.sending:
            self.pipe.send(message)

    def receive(self) -> None:
        """Thread: what the server says."""
        while True:
            try:
                message = self.pipe.recv()
            except (EOFError, OSError):         # the server is gone
                os._exit(0)
            with self.changed:
                if isinstance(message, Cancel):
                    if gone := self.listening.pop(message.number, None):
                        gone.left = True
                    self.changed.notify_all()
                    continue
            try:
                options = self.recogniser.check(message.language, message.options)
            except OptionError as error:
                self.send(Failed(message.number, error))
                continue
            with self.changed:
                new = self.listening[message.number] = Listening(self, message, options)
                self.taken += 1
            new.start()

    def run(self) -> None:
        tidied = 0                              # recordings so far, when memory was last given back
        while True:
            with self.changed:
                if not self.changed.wait_for(lambda: any(one.windows or one.ended for one in self.listening.values()), IDLE):
                    if not self.listening and tidied < self.taken:
                        tidied = self.taken
                        give_memory_back()
                    continue
                ended = [one for one in self.listening.values() if one.ended and not one.windows]
                for one in ended:
                    del self.listening[one.recording.number]
                batch = self.take()
                self.changed.notify_all()       # there is room for more windows
            for one in ended:
                self.send(one.ended)
            if batch:
                self.decode(batch)

    def take(self) -> list[tuple[Listening, Job]]:
        """The next batch: a window of each recording in turn, as many as may be decoded together. All have the same options as the
        recording whose turn it is; who was served goes behind the others."""
        ready = [one for one in self.listening.values() if one.windows]
        if not ready:
            return []
        options = ready[0].options
        alike, batch = [one for one in ready if one.options == options], []
        most = self.recogniser.batch_size(options)
        while len(batch) < most and any(one.windows for one in alike):
            for one in alike:
                if one.windows and len(batch) < most:
                    batch.append((one, one.windows.popleft()))
        for one in dict.fromkeys(one for one, _ in batch):
            self.listening[one.recording.number] = self.listening.pop(one.recording.number)
        return batch

    def decode(self, batch: list[tuple[Listening, Job]]) -> None:
        parts = self.recogniser.decode_together([job for _, job in batch], batch[0][0].options)
        self.send(Batch(len(batch), len({one.recording.number for one, _ in batch})))
        for (one, _), part in zip(batch, parts, strict=True):
            if one.left:
                continue
            if isinstance(part, GlmAsrError):       # such as numbers that are not finite
                with self.changed:
                    self.listening.pop(one.recording.number, None)
                    one.left = True
                    self.changed.notify_all()
                self.send(Failed(one.recording.number, part))
                continue
            texts = [one.said, *(segment.text for segment in part.segments)]
            one.tokens += [self.recogniser.tokenizer.encode(text) for text in spaced(texts)[1:]]
            one.said = join(texts)[-1:]
            self.send(Heard(one.recording.number, part))


def die_with_the_server() -> None:
    """On Linux, also where this process is stopped, and doesn't see that its pipe is closed."""
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG. TRAP: it goes by the thread that has started this process, and that is the server's main one.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def give_memory_back() -> None:
    """TRAP: glibc keeps what threads have freed, up to 100 MB of each, and gives it back where it is asked only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None          # macOS has none
    if trim:
        trim(0)


def give_up(error: BaseException) -> None:
    """Ends the process. TRAP: the message of an error may quote a recording or its text, so only its place is told."""
    print(f"worker: {type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}", file=sys.stderr, flush=True)
    os._exit(1)


def work(pipe, model: dict) -> None:
    """The process: loads the model (arguments of `pipeline.load`), says Ready or Broken, and works until the server is gone."""
    # Ctrl-C, a service manager's SIGTERM and a closed terminal reach all processes; the server finishes what runs, and needs this one for it.
    for number in {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
        signal.signal(number, signal.SIG_IGN)
    die_with_the_server()
    try:
        recogniser = load(**model)
        prepare.lay_out(recogniser.model)              # a server that is ready has the memory that it needs
    except GlmAsrError as error:
        pipe.send(Broken(str(error)))
        return
    worker = Worker(recogniser, pipe)
    worker.send(Ready(languages(recogniser), able(recogniser, timestamps=True),
                      [task for task in ("transcribe", "translate") if able(recogniser, task=task)], recogniser.how()))
    threading.Thread(target=worker.receive, daemon=True).start()
    try:
        worker.run()
    except Exception as error:
        give_up(error)


def languages(recogniser) -> list[str]:
    known = getattr(recogniser.config, "languages", None)
    if known is None:
        return list(LANGUAGES)
    return ["auto", *sorted(known or ["en"], key=lambda name: (name not in LANGUAGES, name))]


def able(recogniser, **options) -> bool:
    try:
        recogniser.check("auto", Options(**options))
    except OptionError:
        return False
    return True
