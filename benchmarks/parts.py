"""What the parts of a Whisper cost: its encoder and the step of a token, in the type that is chosen by itself, in int8, and
compiled.

    python benchmarks/parts.py base tiny.en [--rows 1 5 20]
    python benchmarks/parts.py base --rows 5 --compile

Milliseconds of the processor, the least of some turns in one process; one thread, so that they are those of the work.
Rows are what is decoded at once: windows times beams, here windows with five beams where they are five or more. The
second table says where the time goes: into the products of the linears; into attention; and into all else, which with
int8 is also the rounding of x and the scaling of what comes out. --compile also measures `torch.compile` of the plain
encoder and decoder, which needs a C++ compiler, and says how long the first call took.
"""

import argparse
import datetime
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from real import machine  # noqa: E402

import glmasr  # noqa: E402
from glmasr.model import EncoderDecoder  # noqa: E402

BEAMS, STEPS, TURNS = 5, 10, 3
PRODUCTS = ("linear_pointwise", "aten::mm", "aten::addmm", "aten::bmm")
ATTENTION = ("scaled_dot_product", "softmax")
Work = tuple[int, Callable[[], object]]  # how often a call does it, and the call


def works(model: EncoderDecoder, rows: list[int]) -> dict[str, Work]:
    """What is measured, by name."""
    length = round(model.config.window_seconds * 16_000)
    noise = torch.from_numpy(np.random.default_rng(1).normal(0, 0.1, (1, length)).astype(np.float32))
    features = model.features(noise)
    states = torch.zeros(1, model.config.encoder.positions, model.config.encoder.width, dtype=model.dtype)
    cross = model.decoder.cross_kv(states)
    found: dict[str, Work] = {
        "encoder, a window": (1, lambda: model.encode(features)),
        "its keys and values": (1, lambda: model.decoder.cross_kv(states)),
    }
    for count in rows:
        windows = max(1, count // BEAMS)
        cache = model.new_cache(count, 2 * STEPS)
        cache.cross = [(key.repeat(windows, 1, 1, 1), value.repeat(windows, 1, 1, 1)) for key, value in cross]
        tokens = torch.full((count,), 100)

        def steps(cache=cache, tokens=tokens) -> None:
            cache.cut(0)
            for _ in range(STEPS):
                model.step(tokens, cache)

        found[f"step, {count} row{'s' * (count > 1)}"] = (STEPS, steps)
    return found


def processor() -> float:
    """Seconds that this process and those that it started have taken."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def shares(work: Callable[[], object]) -> tuple[float, float, float]:
    """Per cent of the time that goes into products, attention, and all else."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        work()
    times = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    products, attention = (
        sum(spent for name, spent in times.items() if any(one in name for one in names))
        for names in (PRODUCTS, ATTENTION)
    )
    total = sum(times.values())
    return 100 * products / total, 100 * attention / total, 100 * (total - products - attention) / total


def least(some: dict[str, Work]) -> dict[str, tuple[float, float]]:
    """By kind: milliseconds of the processor that a call takes at the least, turn about, and seconds of the first one."""
    found = dict.fromkeys(some, np.inf)
    first = {}
    for turn in range(1 + TURNS):
        for kind, (times, work) in some.items():
            start = processor()
            work()
            spent = processor() - start
            if turn:
                found[kind] = min(found[kind], 1000 * spent / times)
            else:
                first[kind] = spent
    return {kind: (found[kind], first[kind]) for kind in some}


def main() -> None:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--dtype", default="auto", help="beside which the others are measured (default: auto)")
    parser.add_argument("--compile", action="store_true", help="compiled in place of int8")
    args = parser.parse_args()
    torch.set_num_threads(1)
    other = "compiled" if args.compile else "int8"
    first, second = [], []
    for path in args.models:
        loaded = [glmasr.load(path, device="cpu", dtype=args.dtype)]
        if args.compile:
            loaded.append(glmasr.load(path, device="cpu", dtype=args.dtype, plain=True))
        else:
            loaded.append(glmasr.load(path, device="cpu", dtype="int8"))
        models, name, dtype = [one.model for one in loaded], Path(path).name, loaded[0].how()["dtype"]
        if not isinstance(models[0], EncoderDecoder):
            parser.error(f"{path} is no Whisper; benchmarks/compare.py measures GLM-ASR")
        if args.compile:
            models[1].encoder, models[1].decoder = torch.compile(models[1].encoder), torch.compile(models[1].decoder)
        with torch.inference_mode():
            made = [works(model, args.rows) for model in models]
            for what in made[0]:
                found = least({dtype: made[0][what], other: made[1][what]})
                (by_itself, _), (changed, beginning) = found[dtype], found[other]
                begun = f" | {beginning:.1f}" if args.compile else ""
                first.append(
                    f"| `{name}`: {what} | {by_itself:.1f} | {changed:.1f} | {changed / by_itself:.2f}{begun} |"
                )
                for kind, some in ((dtype, made[0]), (other, made[1])):
                    if kind != "compiled":
                        parts = " | ".join(f"{share:.0f} %" for share in shares(some[what][1]))
                        second.append(f"| `{name}`: {what}, {kind} | {parts} |")
    print(f"{datetime.date.today()}, {machine()}, one thread; torch {torch.__version__}\n")
    head = f"| CPU, ms | {dtype} | {other} | {other} / {dtype} |" + (" first call, s |" if args.compile else "")
    print(head, "|---" * (head.count("|") - 1) + "|", *first, sep="\n")
    print("\n| of the time | products | attention | all else |\n|---|---|---|---|", *second, sep="\n")


if __name__ == "__main__":
    main()
