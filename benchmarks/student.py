"""Puts a student beside its teacher: parameters, size, the time of each stage and memory.

    python benchmarks/student.py TEACHER STUDENT AUDIO        a Markdown table: medians of runs turn about

AUDIO is of up to a window. Each model works in a process of its own. Seconds are those of the processor (--wall: of the
clock), for on a machine that others use as well they say more. Errors are counted by `glmasr-eval`.
"""

import argparse
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from glmasr import GlmAsrError, audio, decode, load, weights
from glmasr.checkpoint import hub
from glmasr.model import EncoderDecoder
from glmasr.pipeline import Options

STEPS = 60  # of the decoder
MIB = 2**20
GREEDY = Options(beams=1, temperatures=(0.0,))
LINES = {
    "parameters": "parameters, M",
    "decoder": "of them decoder layers, M",
    "file": "checkpoint, MiB",
    "encoder": "encoder, a window, s",
    "cross": "its keys and values for the decoder, s",
    "step": f"a step of the decoder, one row, ms (mean of {STEPS})",
    "tokens": "tokens a second",
    "text": "sound to text, greedy, s",
    "factor": "of the length of the sound",
    "memory": "peak memory of a process, MiB",
}


class Side:
    """A model in its process."""

    def __init__(self, directory: Path, sound: Path, language: str, threads: int, wall: bool):
        torch.set_num_threads(threads)
        self.clock = time.perf_counter if wall else time.process_time
        self.recognizer, self.directory = load(directory, device="cpu", dtype="float32"), directory
        self.model = self.recognizer.model
        if not isinstance(self.model, EncoderDecoder):
            raise GlmAsrError(f"{directory}: is no encoder-decoder; expected a Whisper or one of the article's design")
        self.language = language if self.model.config.languages else "auto"
        self.samples = audio.load(sound)
        if len(self.samples) > self.model.config.window:
            raise GlmAsrError(
                f"{sound}: {len(self.samples) / audio.SAMPLE_RATE:.1f} s; expected at most "
                f"{self.model.config.window_seconds:g} s, a window"
            )

    def fixed(self) -> dict[str, float]:
        """What is the same each time."""
        files = [path for path in self.directory.iterdir() if path.suffix in (".safetensors", ".bin")]
        with torch.device("meta"):  # weights that were packed for a faster product are no parameters
            model = weights.build(self.model.config)
        return {
            "parameters": sum(p.numel() for p in model.parameters()) / 1e6,
            "decoder": sum(p.numel() for p in model.decoder.blocks.parameters()) / 1e6,
            "file": sum(path.stat().st_size for path in files) / MIB,
        }

    @torch.inference_mode()
    def times(self) -> dict[str, float]:
        """Of one run."""
        model, clock, moments = self.model, self.clock, []

        def tick(*logits_and_ids: object) -> None:
            moments.append(clock())

        window = torch.nn.functional.pad(self.samples, (0, model.config.window - len(self.samples)))
        tick()
        states = model.encode(model.features(window[None]))
        tick()
        cross = model.decoder.cross_kv(states)
        tick()
        decode.greedy(model, cross, [[model.config.start]], stop=(), max_new=STEPS, rules=[tick])
        first, last = moments[3], moments[-1]
        encoder, keys, step = moments[1] - moments[0], moments[2] - moments[1], (last - first) / (STEPS - 1)
        begin = clock()
        self.recognizer.recognize([self.samples], [self.language], GREEDY)
        text = clock() - begin
        seconds = len(self.samples) / audio.SAMPLE_RATE
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        found = {"encoder": encoder, "cross": keys, "step": 1000 * step, "tokens": 1 / step, "text": text}
        return found | {"factor": text / seconds, "memory": peak / MIB}


_side: Side | None = None  # of this process


def begin(directory: Path, sound: Path, language: str, threads: int, wall: bool) -> dict[str, float]:
    """In a process of its own."""
    global _side
    _side = Side(directory, sound, language, threads, wall)
    return _side.fixed()


def again() -> dict[str, float]:
    """A run more."""
    assert _side is not None
    return _side.times()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("teacher", metavar="TEACHER", help="a checkpoint directory, or a name that the package knows")
    parser.add_argument("student", metavar="STUDENT", help="such as RUN/model of training/distill.py")
    parser.add_argument("audio", metavar="AUDIO", type=Path)
    parser.add_argument("--language", default="en", help="of the sound (default en)")
    parser.add_argument("--runs", type=int, default=5, help="default 5")
    parser.add_argument("--threads", type=int, default=1, help="default 1")
    parser.add_argument("--wall", action="store_true", help="seconds of the clock, not of the processor")
    args = parser.parse_args()
    found: list[dict[str, list[float]]] = []
    pools = [ProcessPoolExecutor(1, mp_context=get_context("spawn")) for _ in range(2)]
    try:
        for name, pool in zip((args.teacher, args.student), pools, strict=True):
            directory = Path(name) if Path(name).is_dir() else hub.find(name)
            fixed = pool.submit(begin, directory, args.audio, args.language, args.threads, args.wall).result()
            found.append({key: [value] for key, value in fixed.items()})
        for turn in range(args.runs + 1):
            for values, pool in zip(found, pools, strict=True):
                for key, value in pool.submit(again).result().items():
                    if turn:  # the first run reads mapped weights
                        values.setdefault(key, []).append(value)
    finally:
        for pool in pools:
            pool.shutdown()
    print(f"| | {Path(args.teacher).name} | {Path(args.student).name} | student / teacher |\n|---|---|---|---|")
    for key, title in LINES.items():
        teacher, student = (statistics.median(values[key]) for values in found)
        print(f"| {title} | {teacher:.4g} | {student:.4g} | {student / teacher:.2f} |")


if __name__ == "__main__":
    try:
        main()
    except GlmAsrError as error:
        sys.exit(f"error: {error}")
