"""A process that reads hostile files, one case after the other, and says what came of it. One that dies is a finding.

Limits: MEMORY bytes beyond what the program itself takes, SECONDS of processor time a case. Breaking either ends the
process or raises what is none of the package's own exceptions.
"""

import os
import signal
import traceback
import warnings
from pathlib import Path

MEMORY, SECONDS, PATIENCE = 2 * 2**30, 10, 60  # PATIENCE: seconds of the clock, for what waits instead of computing


class Worker:
    """The process, as the tests see it. It is started at the first case, and again after one that it did not
    survive."""

    def __init__(self, folder: Path, seconds: float = SECONDS):
        self.folder, self.seconds, self.process = folder, seconds, None

    def run(self, kind: str, content: bytes) -> str:
        """What became of `content` as a file of this kind: "read", the name of one of the package's exceptions, or a
        finding, which is of several words."""
        import multiprocessing

        context = multiprocessing.get_context("spawn")  # TRAP: a fork would inherit the locks of PyTorch's threads
        if self.process is None:
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=serve, args=(theirs, self.folder, self.seconds), daemon=True)
            self.process.start()
            theirs.close()
            self.pipe.recv()  # it has imported everything
        try:
            self.pipe.send((kind, content))
            if self.pipe.poll(PATIENCE):
                return self.pipe.recv()
            outcome = f"no answer within {PATIENCE} s"
        except (EOFError, ConnectionError):
            self.process.join(PATIENCE)
            code = self.process.exitcode
            outcome = (
                f"takes more than {self.seconds} s"
                if code == -signal.SIGPROF
                else f"the process died of signal or code {code}"
            )
        self.stop()
        return outcome

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


def serve(pipe, folder: Path, seconds: float) -> None:
    import resource

    os.environ["PATH"] = ""  # no ffmpeg: it is another program's affair, and slow to start
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries complain there
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = str(temporary)
    import torch

    from glmasr.errors import GlmAsrError

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send("ready")
    while True:
        kind, content = pipe.recv()
        signal.setitimer(signal.ITIMER_PROF, seconds)  # nobody handles SIGPROF: it ends the process
        try:
            read(kind, content, folder)
            outcome = "read"
        except GlmAsrError as error:
            outcome = (
                type(error).__name__
                if str(error) and len(str(error)) < 2000
                else f"an empty or endless message: {error!s:.2000}"
            )
        except BaseException:
            outcome = f"none of the package's exceptions:\n{traceback.format_exc()[-3000:]}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        left = [name for name in os.listdir(temporary) if name.startswith("glmasr")]
        pipe.send(outcome if not left else f"left behind: {left}")


def read(kind: str, content: bytes, folder: Path) -> None:
    """Use a file as a user would. `kind` is "audio", DIRECTORY/FILE of a checkpoint in `folder`, or one of FAULTS."""
    if kind == "audio":
        return read_audio(content)
    if kind in FAULTS:
        return FAULTS[kind]()
    path = folder / kind
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        (read_tokenizer if "token" in path.name else read_checkpoint)(path.parent)
    finally:
        path.write_bytes(whole)


def endless() -> None:
    while True:
        pass


# What a reader must not do, to try the worker.
FAULTS = {
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "memory": lambda: bytearray(MEMORY),
    "time": endless,
    "error": lambda: {}["key"],
}


def read_audio(content: bytes) -> None:
    import torch

    from glmasr import audio

    for block in audio.blocks(content, max_duration=3600):
        assert (
            block.dtype == torch.float32
            and block.dim() == 1
            and 0 < len(block) <= 30 * 16_000
            and block.isfinite().all()
        )


def read_checkpoint(directory: Path) -> None:
    import torch

    from glmasr import weights
    from glmasr.model import GlmAsr

    model = weights.load(directory)
    with torch.inference_mode():  # what is accepted can be computed with
        if isinstance(model, GlmAsr):
            model.encode(torch.zeros(1, model.config.encoder.bands, 200), [32_000])
        else:
            model.detect_language(model.encode(model.features(torch.zeros(1, model.config.window))))


def read_tokenizer(directory: Path) -> None:
    from glmasr import tokenizer

    made = tokenizer.read_tokenizer(directory)
    ids = made.encode("Please transcribe this audio into text 請將 42<|user|>\n" + "a" * 50)
    assert all(0 <= id < made.size for id in ids)
    decoder = made.decoder()
    assert "".join(map(decoder.feed, ids)) + decoder.finish() == made.decode(ids)
    made.decode(range(min(made.size, 1000)), skip_special=False)
