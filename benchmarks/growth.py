"""How cost grows with work: recordings of 1 to 60 minutes, and 1 to 64 windows decoded at once.

    python benchmarks/growth.py demo                        two Markdown tables
    python benchmarks/growth.py glm-asr-nano-2512 --dtype int8 --lengths 1 5 --rows 1 2 4 8 --plot growth.png

Each length runs in a process of its own, which reads a WAV made of the examples over and over; its peak memory is that
process's, or the GPU's where it runs there. Random weights won't do: their answers have no end and are tried again and
again. A plot needs the extra [plot].
"""

import argparse
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import soundfile
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import glmasr  # noqa: E402
from glmasr import (
    audio,
    decode,  # noqa: E402
)

TOKENS = 32  # for each of the windows decoded at once


def alone(function, *arguments):
    """The result of a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def transcribe(path: Path, args) -> tuple[float, float]:
    """Seconds, and MiB of memory at the most."""
    torch.set_num_threads(args.threads)
    recognizer = glmasr.load(args.model, device=args.device, dtype=args.dtype)
    start = time.perf_counter()
    for _ in recognizer.stream(path):
        pass
    spent = time.perf_counter() - start
    if recognizer.model.device.type == "cuda":
        return spent, torch.cuda.max_memory_allocated() / 2**20
    return spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.inference_mode()
def decode_rows(counts: list[int], args) -> list[tuple[float, float, float]]:
    """For each number of windows: seconds to encode them and to read their prompts, and for each further token, and the
    real-time factor."""
    torch.set_num_threads(args.threads)
    recognizer = glmasr.load(args.model, device=args.device, dtype=args.dtype)
    samples, moments, figures = audio.load(ROOT / "examples" / "zh.wav"), [], []
    for count in [min(counts), *counts]:  # the first one warms up
        moments.clear()
        start = time.perf_counter()
        if hasattr(recognizer.family, "embed"):
            encoded = [recognizer.family.embed(samples) for _ in range(count)]
            prompts = [recognizer.model.prompt(recognizer.tokenizer, len(rows)) for rows in encoded]
        else:
            encoded = recognizer.family.encode_windows([samples] * count)
            prompts = [recognizer.model.prompt(next(iter(recognizer.config.languages), None))] * count
        decode.greedy(
            recognizer.model,
            encoded,
            prompts,
            stop=(),
            max_new=TOKENS,
            rules=[lambda logits, ids: moments.append(time.perf_counter())],
        )
        seconds = count * len(samples) / audio.SAMPLE_RATE
        figures.append((moments[0] - start, (moments[-1] - moments[0]) / (TOKENS - 1), (moments[-1] - start) / seconds))
    return figures[1:]


def plot(path: str, lengths: list[tuple[float, float]], rows: list[tuple[int, float]], title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axes, points, label in ((left, lengths, "minutes of sound"), (right, rows, "windows decoded at once")):
        axes.plot(*zip(*points, strict=True), "o-")
        axes.set(xlabel=label, ylabel="real-time factor (less is better)", xscale="log", ylim=0)
        axes.set_xticks([x for x, _ in points], [f"{x:g}" for x, _ in points])
        axes.minorticks_off()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--lengths", type=float, nargs="+", default=[1, 5, 20, 60], metavar="MINUTES")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--plot", metavar="PNG", help="also draw it (extra [plot])")
    args = parser.parse_args()
    if args.plot:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            parser.error("--plot needs matplotlib: pip install -c constraints.txt '.[plot]'")
    speech = torch.cat(
        [
            torch.cat((audio.load(ROOT / "examples" / name), torch.zeros(8000)))
            for name in ("zh.wav", "yue.flac", "en.mp3")
        ]
    )
    lengths, found = [], []
    print("| minutes | seconds of work | real-time factor | peak memory, MiB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for minutes in args.lengths:
            path = Path(folder) / "long.wav"
            with soundfile.SoundFile(path, "w", audio.SAMPLE_RATE, 1) as file:
                for _ in range(max(1, round(60 * minutes * audio.SAMPLE_RATE / len(speech)))):
                    file.write(speech.numpy())
            seconds = soundfile.info(path).duration
            spent, peak = alone(transcribe, path, args)
            lengths.append((minutes, spent / seconds))
            print(f"| {seconds / 60:.1f} | {spent:.1f} | {spent / seconds:.4f} | {peak:.0f} |", flush=True)
    print(
        "\n| windows at once | to the first token, s | each further token, ms | tokens/s of all | real-time factor |\n|---|---|---|---|---|"
    )
    for count, (first, step, factor) in zip(args.rows, alone(decode_rows, args.rows, args), strict=True):
        found.append((count, factor))
        print(f"| {count} | {first:.2f} | {1000 * step:.1f} | {count / step:.1f} | {factor:.4f} |", flush=True)
    if args.plot:
        plot(args.plot, lengths, found, f"{args.model}, {args.dtype}, {args.threads} threads")


if __name__ == "__main__":
    main()
