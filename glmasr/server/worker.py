"""The process that owns the model: many recordings at once -> their parts, windows of several decoded together.

    receive (thread)         requests and cancellations come in through a pipe
    ReaderThread (threads)   one for each recording: reads it, cuts it into windows, stays a few windows ahead
    run                      takes windows of all recordings in turn, decodes them in one batch, sends the parts back;
                             between two batches come the live sessions, `live_worker.py`

What is unusual here: it is a process, not a thread. A decoder of a strange format that crashes, or a machine that is
out of memory, then ends this process and not the server, which starts another one (`request_queue.py`). So whatever is
not a user's error may end it.
"""

import ctypes
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import torch
import torch.nn.functional as F

from .. import audio as sound
from ..audio_files import sound_files
from ..errors import Cancelled, GlmAsrError, OptionError
from ..kernels import prepare
from ..pipeline import Options, Part, Recognizer, load
from ..transcription.families import Job, RecordingState
from ..transcription.language import LANGUAGES, join, spaced
from ..transcription.long_form import Reader
from .live_worker import Listener, Turn, take_turns
from .messages import Batch, Began, Broken, Cancel, Done, Failed, FromWorker, PartReady, Ready, Recording, ToLive

IDLE = 2.0  # seconds without work after which memory is given back
AHEAD = 4  # windows of a recording that are read before their turn: 8 MB of samples
MOST_PEAKS = 2000  # of a recording: a screen has no more columns


def work(pipe: "Connection[Any, Any]", model: dict[str, Any]) -> None:
    """The process: loads the model, says Ready or Broken, and works until the server is gone.

    model   arguments of `pipeline.load`, and `adapters`: name -> folder
    """
    # Ctrl-C, a service manager's SIGTERM and a closed terminal reach all processes; the server finishes what runs, and
    # needs this one for it.
    for number in {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
        signal.signal(number, signal.SIG_IGN)
    die_with_the_server()
    folders = {"": None} | model.pop("adapters", {})
    try:
        recognizers = {name: load(**model, adapter=folder) for name, folder in folders.items()}
        for one in recognizers.values():
            prepare.lay_out(one.model)  # a server that is ready has the memory that it needs
    except GlmAsrError as error:
        pipe.send(Broken(str(error)))
        return
    recognizer = recognizers[""]
    worker = Worker(recognizers, pipe)
    tasks = [task for task in ("transcribe", "translate") if supports(recognizer, task=task)]
    timestamps = supports(recognizer, timestamps=True)
    worker.send(Ready(languages(recognizer), timestamps, tasks, recognizer.how()))
    threading.Thread(target=worker.receive, daemon=True).start()
    try:
        worker.run()
    except Exception as error:
        give_up(error)


class Worker:
    """What the process does: it takes requests from a pipe, decodes windows of all in turn, and sends the parts.

    recognizers   those with an adapter, by its name; "": the one of the model alone
    """

    def __init__(self, recognizers: Mapping[str, Recognizer], pipe: "Connection[Any, Any]"):
        self.recognizers, self.pipe = recognizers, pipe
        self.readers: dict[int, ReaderThread] = {}  # by the number of the recording, in the order of their turns
        self.listeners: dict[int, Listener] = {}  # by the number of the live session
        self.taken = 0  # recordings and live sessions so far
        self.changed = threading.Condition()  # guards `readers` and `listeners`, and what they have
        self.sending = threading.Lock()

    def send(self, message: FromWorker) -> None:
        """Sends to the server, under a lock: a pipe mixes up the messages of concurrent threads."""
        with self.sending:
            self.pipe.send(message)

    def receive(self) -> None:
        """Thread: what the server says."""
        while True:
            try:
                message = self.pipe.recv()
            except (EOFError, OSError):  # the server is gone
                os._exit(0)
            if isinstance(message, Cancel):
                with self.changed:
                    if reader := self.readers.pop(message.number, None):
                        reader.cancelled = True
                    self.listeners.pop(message.number, None)
                    self.changed.notify_all()
                continue
            if isinstance(message, ToLive):
                self.put(message)
                continue
            try:
                options = self.recognizers[message.adapter].check(message.language, message.options)
            except OptionError as error:
                self.send(Failed(message.number, error))
                continue
            with self.changed:
                reader = self.readers[message.number] = ReaderThread(self, message, options)
                self.taken += 1
            reader.start()

    def put(self, message: ToLive) -> None:
        """Hands a message to its live session."""
        with self.changed:
            if message.number not in self.listeners:
                self.listeners[message.number] = Listener(message.number)
                self.taken += 1
            self.listeners[message.number].inputs.append(message)
            self.changed.notify_all()

    def run(self) -> None:
        """Decodes what the readers have read and what live sessions have heard, for ever."""
        tidied = 0  # recordings and sessions so far, when memory was last given back
        while True:
            with self.changed:
                if not self.changed.wait_for(self.has_work, IDLE):
                    if not self.readers and not self.listeners and tidied < self.taken:
                        tidied = self.taken
                        give_memory_back()
                    continue
                ended = self.take_ended()
                turns = self.take_turns()
                batch = self.take_batch()
                self.changed.notify_all()  # there is room for more windows
            for message in [*ended, *take_turns(self.recognizers, turns)]:
                self.send(message)
            if batch:
                self.decode(batch)

    def has_work(self) -> bool:
        """Whether a window, the end of a recording or sound is there. The caller holds `changed`."""
        return any(reader.windows or reader.ended for reader in self.readers.values()) or any(
            listener.inputs for listener in self.listeners.values()
        )

    def take_turns(self) -> list[Turn]:
        """A turn of each live session that was sent something."""
        return [listener.take() for listener in self.listeners.values() if listener.inputs]

    def take_ended(self) -> list[Done | Failed]:
        """Forgets the readers whose last window is decoded. -> what they end with."""
        ended = {number: reader.ended for number, reader in self.readers.items() if reader.ended and not reader.windows}
        for number in ended:
            del self.readers[number]
        return list(ended.values())

    def take_batch(self) -> "list[tuple[ReaderThread, Job]]":
        """The next batch: a window of each recording in turn, as many as may be decoded together. All have the same
        options and adapter as the recording whose turn it is; those served move to the end of the line."""
        ready = [reader for reader in self.readers.values() if reader.windows]
        if not ready:
            return []
        options, recognizer = ready[0].options, ready[0].recognizer
        alike = [reader for reader in ready if reader.options == options and reader.recognizer is recognizer]
        batch: list[tuple[ReaderThread, Job]] = []
        most = recognizer.batch_size(options)
        while len(batch) < most and any(reader.windows for reader in alike):
            for reader in alike:
                if reader.windows and len(batch) < most:
                    batch.append((reader, reader.windows.popleft()))
        for number in dict.fromkeys(reader.recording.number for reader, _ in batch):
            self.readers[number] = self.readers.pop(number)
        return batch

    def decode(self, batch: "list[tuple[ReaderThread, Job]]") -> None:
        """Decodes a batch and sends its parts. An error fails its own recording only."""
        first = batch[0][0]
        parts = first.recognizer.decode_together([job for _, job in batch], first.options)
        self.send(Batch(len(batch), len({reader.recording.number for reader, _ in batch})))
        for (reader, _), part in zip(batch, parts, strict=True):
            if reader.cancelled:
                continue
            if isinstance(part, GlmAsrError):  # such as numbers that are not finite
                with self.changed:
                    self.readers.pop(reader.recording.number, None)
                    reader.cancelled = True
                    self.changed.notify_all()
                self.send(Failed(reader.recording.number, part))
                continue
            reader.add_tokens(part)
            self.send(PartReady(reader.recording.number, part))


class ReaderThread(threading.Thread):
    """A recording while it is read. `windows` and `ended` are guarded by the worker's condition; `cancelled` becomes
    true once."""

    def __init__(self, worker: Worker, recording: Recording, options: Options):
        super().__init__(daemon=True)
        self.worker, self.recording, self.options = worker, recording, options
        self.recognizer = worker.recognizers[recording.adapter]
        self.windows: deque[Job] = deque()
        self.ended: Done | Failed | None = None
        self.cancelled = False
        self.tokens: list[list[int]] = []
        self.last_letter = ""  # of the text so far: whether a space stands before the next one goes by it

    def run(self) -> None:
        """Reads the recording and puts its end, or its error, into `ended` for `Worker.take_ended`."""
        ended: Done | Failed | None
        try:
            ended = self.read()
        except Cancelled:  # in hours of silence there is nothing to `put`
            return
        except Exception as error:
            ended = self.failed(error)
        if ended is not None:
            with self.worker.changed:
                self.ended = ended
                self.worker.changed.notify_all()

    def read(self) -> Done | None:
        """Puts all windows. None: the client has left."""
        recognizer, recording, peaks = self.recognizer, self.recording, Peaks()
        warnings: list[str] = []

        def blocks() -> Iterator[torch.Tensor]:
            for block in sound.blocks(
                recording.path,
                track=self.options.track,
                max_duration=self.options.max_duration,
                warn=warnings.append,
                cancelled=lambda: self.cancelled,
            ):
                peaks.add(block)
                yield block

        self.worker.send(Began(recording.number, sound_files.stated_duration(recording.path)))
        reader = Reader(blocks(), recognizer.config.window)
        for job in recognizer.jobs(reader, RecordingState.of(recording.language), self.options):
            if not self.put(job):
                return None
        end = Part(reader.seconds, reader.seconds, "", [], [self.anonymous(warning) for warning in warnings])
        return Done(recording.number, end, recognizer.how(self.options), peaks.listed(), self.tokens)

    def put(self, job: Job) -> bool:
        """False: the client has left."""
        with self.worker.changed:
            self.worker.changed.wait_for(lambda: self.cancelled or len(self.windows) < AHEAD)
            self.windows.append(job)
            self.worker.changed.notify_all()
            return not self.cancelled

    def failed(self, error: Exception) -> Failed:
        """The message for a user's error, without file names. Any other error ends the process."""
        if isinstance(error, GlmAsrError):
            return Failed(self.recording.number, type(error)(self.anonymous(str(error))))
        if isinstance(error, OSError):
            return Failed(self.recording.number, OSError(error.errno, error.strerror))
        give_up(error)

    def anonymous(self, text: str) -> str:
        """Without the name that the server gave the recording, which its sender doesn't know."""
        return text.replace(f"{self.recording.path}: ", "").replace(self.recording.path, "the recording")

    def add_tokens(self, part: Part) -> None:
        """Of the segments of a part, each with the space before it, if any."""
        texts = [self.last_letter, *(segment.text for segment in part.segments)]
        self.tokens += [self.recognizer.tokenizer.encode(text) for text in spaced(texts)[1:]]
        self.last_letter = join(texts)[-1:]


class Peaks:
    """The outline of a sound of unknown length: at most MOST_PEAKS values, each the loudest of `unit` samples."""

    def __init__(self) -> None:
        self.values, self.unit, self._rest = torch.zeros(0), 160, torch.zeros(0)

    def add(self, samples: torch.Tensor) -> None:
        """Adds samples (S,). Above MOST_PEAKS values, pairs are merged and `unit` doubles."""
        samples = torch.cat([self._rest, samples.abs()])
        count = len(samples) // self.unit
        self._rest = samples[count * self.unit :]
        self.values = torch.cat([self.values, samples[: count * self.unit].view(count, self.unit).amax(1)])
        while len(self.values) > MOST_PEAKS:
            even = F.pad(self.values, (0, len(self.values) % 2)).view(-1, 2)
            if len(self.values) % 2:  # an odd one goes on to be filled
                self._rest = torch.cat([self.values[-1:].expand(self.unit), self._rest])
                even = even[:-1]
            self.values, self.unit = even.amax(1), 2 * self.unit

    def listed(self) -> list[float]:
        """The values, 0 to 1, rounded to three places; the last one may cover less than `unit` samples."""
        last = self._rest.amax().view(1) if len(self._rest) else self._rest
        return [round(value, 3) for value in torch.cat([self.values, last]).clamp(max=1).tolist()]


# ---- what the model can do -------------------------------------------------------------------------------------------


def languages(recognizer: Recognizer) -> list[str]:
    """What may be asked for as the language: "auto", then the model's that are in LANGUAGES, then its others."""
    known = getattr(recognizer.config, "languages", None)
    if known is None:
        return list(LANGUAGES)
    return ["auto", *sorted(known or ["en"], key=lambda name: (name not in LANGUAGES, name))]


def supports(recognizer: Recognizer, **options: Any) -> bool:
    """Whether the model takes these of `Options`."""
    try:
        recognizer.check("auto", Options(**options))
    except OptionError:
        return False
    return True


# ---- the process -----------------------------------------------------------------------------------------------------


def die_with_the_server() -> None:
    """On Linux, also where this process is stopped, and doesn't see that its pipe is closed."""
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG. TRAP: it goes by the thread that started this process, and that is the server's main one.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def give_memory_back() -> None:
    """TRAP: glibc keeps what threads have freed, up to 100 MB of each, and gives it back only where it is asked to."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None  # macOS has none
    if trim:
        trim(0)


def give_up(error: BaseException) -> NoReturn:
    """Ends the process. TRAP: the message of an error may quote a recording or its text, so its place is logged."""
    place = "".join(traceback.format_tb(error.__traceback__))
    print(f"worker: {type(error).__name__}\n{place}", file=sys.stderr, flush=True)
    os._exit(1)
