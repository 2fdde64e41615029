"""How cost grows with work: recordings of 1 to 60 minutes, 1 to 64 windows decoded at once, 1 to 8 live sessions.

    python benchmarks/growth.py demo                                    on the demos' digits
    python benchmarks/growth.py DIR --manifest MANIFEST --sessions 1 2 4 8 --plot growth.png
    python benchmarks/growth.py glm-asr-nano-2512 --dtype int8 --lengths 1 5 --rows 1 2 4 8

With a MANIFEST, as for `real.py`, recordings are made of its clips as `peers.py` makes them; without, of the examples over
and over. Each length and each number of sessions has a process of its own, which reads a file, or takes streams of
--seconds each by a simulated clock (`live.py`); peak memory is that process's, or the GPU's where it runs there. Windows
that are decoded at once are different ones, and get 32 tokens each. Random weights won't do: their answers have no end
and are tried again and again. A plot needs the extra [plot], live sessions [eval,vad].

At the end, whether time is linear and memory flat. Time: the real-time factor of the longest recording, and the time of
a token or of a second with the most windows or sessions at once, are at most 1.2 times the least of the others. Memory:
that of the longest recording is at most 1.1 times that of the one before, if both have 32 windows or more: it grows until
a batch is full.
"""

import argparse
import datetime
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

# TRAP: a process's peak begins at its parent's, so PyTorch is imported where it is used.
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from peers import RATE, compose  # noqa: E402
from real import Clip, machine, memory, read  # noqa: E402

TOKENS = 32  # for each of the windows decoded at once
EXAMPLES = ("zh.wav", "yue.flac", "en.mp3")
TIME, MEMORY = 1.2, 1.1  # how much more is still linear, and still flat


def alone(function, *arguments):
    """The result of a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# ---- in a process of its own -----------------------------------------------------------------------------------------


def write(path: Path, args) -> float:
    """Writes the longest recording; returns its seconds."""
    import soundfile

    from glmasr import audio

    minutes = max(*args.lengths, max(args.rows, default=0) / 2)
    if args.manifest:
        clips = read(args.manifest, args.kind, [args.language], None)
    else:
        clips = [Clip(ROOT / "examples" / name, "", "", "") for name in EXAMPLES]
    samples, _ = compose(clips, [np.asarray(audio.load(clip.path), np.float32) for clip in clips], minutes)
    soundfile.write(path, samples, RATE)
    return len(samples) / RATE


def loaded(args):
    import torch

    import glmasr

    torch.set_num_threads(args.threads)
    return glmasr.load(args.model, device=args.device, dtype=args.dtype)


def peak(recognizer) -> float:
    """MiB, at the most so far."""
    import torch

    if recognizer.model.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return memory()


def transcribe(path: Path, minutes: float, args) -> tuple[float, float, float, float, int]:
    """The first minutes of a recording: seconds of it, seconds that it took, those of the processor, MiB, and windows."""
    import soundfile

    from glmasr.pipeline import Options

    recognizer = loaded(args)
    part = path.with_name("part.wav")
    with soundfile.SoundFile(path) as file, soundfile.SoundFile(part, "w", RATE, 1) as begin:
        for block in file.blocks(RATE, frames=round(60 * minutes * RATE)):
            begin.write(block)
    language = args.language if getattr(recognizer.config, "languages", None) and args.manifest else "auto"
    start, cpu = time.perf_counter(), time.process_time()
    windows = sum(1 for _ in recognizer.stream(part, language, Options(beams=args.beams)))
    spent, cpu = time.perf_counter() - start, time.process_time() - cpu
    return soundfile.info(part).duration, spent, cpu, peak(recognizer), windows


def decode_rows(path: Path, args) -> list[tuple[float, float, float, float]]:
    """For each number of windows: seconds to encode them and to read their prompts, and for each further token, the
    real-time factor, and MiB."""
    import soundfile
    import torch

    from glmasr import audio, decode

    recognizer = loaded(args)
    family, model, config = recognizer.family, recognizer.model, recognizer.config
    samples = torch.from_numpy(soundfile.read(path, max(args.rows) * config.window, dtype="float32")[0])
    windows, moments, figures = audio.windows(samples, config.window), [], []
    with torch.inference_mode():
        for count in [min(args.rows), *args.rows]:  # the first one warms up
            moments.clear()
            some = [windows[place % len(windows)] for place in range(count)]
            start = time.perf_counter()
            if hasattr(family, "embed"):
                encoded = [family.embed(window) for window in some]
                prompts = [model.prompt(recognizer.tokenizer, len(rows)) for rows in encoded]
            else:
                encoded = family.encode_windows(some)
                known = config.languages
                prompts = [model.prompt(args.language if args.language in known else next(iter(known), None))] * count
            decode.greedy(
                model,
                encoded,
                prompts,
                stop=(),
                max_new=TOKENS,
                rules=[lambda logits, ids: moments.append(time.perf_counter())],
            )
            seconds = count * config.window / RATE
            step, spent = (moments[-1] - moments[0]) / (TOKENS - 1), moments[-1] - start
            figures.append((moments[0] - start, step, spent / seconds, peak(recognizer)))
    return figures[1:]


def follow(path: Path, count: int, args) -> tuple[float, float, float, int]:
    """So many live sessions at once: seconds of sound in all, seconds of work, MiB, and sessions that were too slow."""
    import soundfile
    import torch
    from live import Clock, policy

    recognizer = loaded(args)
    length = round(args.seconds * RATE)
    samples = torch.from_numpy(soundfile.read(path, count * length, dtype="float32")[0])
    streams, clock = list(samples.split(length))[:count], Clock(False, False)
    courses = policy(recognizer, args.language if args.manifest else "auto", streams, 1.0, clock)
    slow = sum(any("too slow" in notice for notice in course.notices) for course in courses)
    return sum(map(len, streams)) / RATE, clock.spent, peak(recognizer), slow


# ---- what is shown ---------------------------------------------------------------------------------------------------


def judged(what: str, last: float, others: list[float], bar: float) -> str:
    """A line: the last of some figures beside the least of the others."""
    ratio = last / min(others)
    return f"- {what} {ratio:.2f} x (bar {bar:g} x): {'met' if ratio <= bar else 'not met'}"


def plot(path: str, panels: list[tuple[str, list[tuple[float, float]]]], title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, drawn = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.5), layout="constrained", squeeze=False)
    for axes, (label, points) in zip(drawn[0], panels, strict=True):
        axes.plot(*zip(*points, strict=True), "o-")
        axes.set(xlabel=label, ylabel="real-time factor (less is better)", xscale="log")
        axes.set_ylim(0, 1.1 * max(y for _, y in points))
        axes.set_xticks([x for x, _ in points], [f"{x:g}" for x, _ in points])
        axes.minorticks_off()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def lengths(path: Path, args) -> tuple[list[tuple[float, float]], list[str]]:
    """Prints the table of the lengths; returns points of the plot, and what is said of them."""
    points, rows = [], []
    print("| minutes | processing time, s | real-time factor | CPU, s | peak memory, MiB |\n|---|---|---|---|---|")
    for minutes in sorted(args.lengths):
        sound, spent, cpu, peak, windows = alone(transcribe, path, minutes, args)
        points.append((minutes, spent / sound))
        rows.append((peak, windows))
        print(f"| {sound / 60:.1f} | {spent:.1f} | {spent / sound:.4f} | {cpu:.1f} | {peak:.0f} |", flush=True)
    if len(points) == 1:
        return points, []
    *factors, last = [factor for _, factor in points]
    lines = [judged("real-time factor of the longest recording, beside the least of the others:", last, factors, TIME)]
    (before, full), (longest, _) = rows[-2:]
    if full >= 32:
        lines.append(judged("memory of the longest recording, beside the one before:", longest, [before], MEMORY))
    return points, lines


def windows_at_once(path: Path, args) -> tuple[list[tuple[float, float]], list[str]]:
    points, times = [], []
    print(
        "\n| windows at once | to the first token, s | each further token, ms | tokens/s of all | real-time factor | "
        "peak memory so far, MiB |\n|---|---|---|---|---|---|"
    )
    args.rows.sort()
    for count, (first, step, factor, peak) in zip(args.rows, alone(decode_rows, path, args), strict=True):
        points.append((count, factor))
        times.append(step / count)
        print(
            f"| {count} | {first:.2f} | {1000 * step:.1f} | {count / step:.1f} | {factor:.4f} | {peak:.0f} |",
            flush=True,
        )
    if len(points) == 1:
        return points, []
    what = "time of a token of one window with the most at once, beside the least of the others:"
    return points, [judged(what, times[-1], times[:-1], TIME)]


def live_sessions(path: Path, args) -> tuple[list[tuple[float, float]], list[str]]:
    points, peaks = [], []
    print(
        "\n| live sessions | s of sound in all | processing time, s | time / sound | of them too slow | peak memory, MiB |\n"
        "|---|---|---|---|---|---|"
    )
    for count in sorted(args.sessions):
        sound, spent, peak, slow = alone(follow, path, count, args)
        points.append((count, spent / sound))
        peaks.append(peak)
        print(f"| {count} | {sound:.0f} | {spent:.1f} | {spent / sound:.3f} | {slow} | {peak:.0f} |", flush=True)
    if len(points) == 1:
        return points, []
    *factors, last = [factor for _, factor in points]
    what = "time of a second of sound with the most sessions, beside the least of the others:"
    more = (peaks[-1] - peaks[0]) / (points[-1][0] - points[0][0])
    return points, [judged(what, last, factors, TIME), f"- memory: {more:.0f} MiB for each further session"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--manifest", type=Path, help="a table of recordings of people")
    parser.add_argument("--language", default="en", help="of the manifest's clips (default: en)")
    parser.add_argument("--kind", default="sentence", help="of the manifest's clips (default: sentence)")
    parser.add_argument("--lengths", type=float, nargs="*", default=[1, 5, 20, 60], metavar="MINUTES")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64], metavar="WINDOWS")
    parser.add_argument("--sessions", type=int, nargs="*", default=[], metavar="SESSIONS", help="live (default: none)")
    parser.add_argument("--seconds", type=float, default=60, help="of a live session (default: 60)")
    parser.add_argument("--beams", type=int, help="for the recordings (default: the model's)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--plot", metavar="PNG", help="also draw it (extra [plot])")
    args = parser.parse_args()
    if args.plot:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            parser.error("--plot needs matplotlib: pip install -c constraints.txt '.[plot]'")
    if args.sessions and args.seconds * max(args.sessions) > 60 * max(args.lengths, default=0):
        parser.error(
            f"{max(args.sessions)} sessions of {args.seconds:g} s are longer than the longest recording; expected "
            "larger --lengths, or fewer --seconds"
        )
    name = Path(args.model).name
    how = f"`{name}`, {args.dtype}, {args.beams or 'default'} beams, {args.threads} threads"
    print(f"{how}; {datetime.date.today()}, {machine()}\n")
    panels, said = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.wav"
        alone(write, path, args)
        for label, wanted, measure in (
            ("minutes of sound", args.lengths, lengths),
            ("windows decoded at once", args.rows, windows_at_once),
            ("live sessions", args.sessions, live_sessions),
        ):
            if wanted:
                points, lines = measure(path, args)
                panels.append((label, points))
                said += lines
    print("\n" + "\n".join(said))
    if args.plot:
        plot(args.plot, panels, f"{name}, {args.dtype}, {args.threads} threads")


if __name__ == "__main__":
    main()
