"""What GLM-ASR costs on a GPU, and the least that it could: the second half of `benchmarks/gpu.sh`.

    python benchmarks/gpu.py MODEL_DIR                  a Markdown table
    python benchmarks/gpu.py MODEL_DIR --device cpu     the same steps without graphs: to try this file

A limit is what has to be read over the rate at which this device reads, or what has to be computed over the rate at
which it multiplies; both rates are measured first. Captured and plain steps run over the same weights.
"""

import argparse
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from compare import Clock, Ours, sound, to_text  # noqa: E402

from glmasr.kernels.cuda_graphs import GraphedModel, rows_of  # noqa: E402
from glmasr.model import GlmAsr  # noqa: E402

ROWS = (1, 16, 64)  # windows that are decoded at once
TURNS = 5  # of each measurement; the best counts for a rate, the median for the rest


def seconds(work: Callable[[], object], device: str, best: bool = False) -> float:
    """Of one run, after one that doesn't count."""
    found = []
    for _ in range(TURNS + 1):
        clock = Clock(device)
        clock.tick()
        work()
        clock.tick()
        found.append(clock.moments[1] - clock.moments[0])
    found = sorted(found[1:])
    return found[0] if best else found[len(found) // 2]


# -- limits ------------------------------------------------------------------------------------------------------------


def rates(device: str, dtype: torch.dtype, small: bool) -> tuple[float, float, float]:
    """Bytes a second that the device's memory gives and takes, that come from the host's, and products of numbers of
    `dtype`, in FLOP/s."""
    count, width = (2**24, 256) if small else (2**30, 8192)
    on_host = torch.ones(count, dtype=torch.uint8)
    given, taken = (torch.ones(count, dtype=torch.uint8, device=device) for _ in range(2))
    memory = 2 * count / seconds(lambda: taken.copy_(given), device, best=True)
    host = count / seconds(lambda: taken.copy_(on_host), device, best=True)
    a, b = (torch.ones(width, width, dtype=dtype, device=device) for _ in range(2))
    return memory, host, 2 * width**3 / seconds(lambda: a @ b, device, best=True)


def weight_bytes(model: GlmAsr) -> int:
    """Of all weights."""
    return sum(weight.nbytes for weight in model.parameters())


def step_bytes(model: GlmAsr, rows: int, slots: int) -> int:
    """What a step of this many rows has to read: the decoder's weights, of the embeddings its own rows only, and all
    keys and values of a memory of so many slots."""
    decoder = model.decoder
    weights = {id(weight): weight.nbytes for weight in (*decoder.parameters(), *decoder.head.parameters())}
    if decoder.embed.weight is not decoder.head.weight:
        weights.pop(id(decoder.embed.weight))
    config, size = decoder.config, decoder.embed.weight.element_size()
    return sum(weights.values()) + 2 * config.layers * rows * config.key_heads * slots * config.head_size * size


def encoder_flop(model: GlmAsr, mel: torch.Tensor, samples: int) -> int:
    """Of the products and convolutions for one window."""
    with FlopCounterMode(display=False) as counter:
        model.encode(mel, [samples])
    return counter.get_total_flops()


# -- what is measured --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def measure(args: argparse.Namespace) -> list[tuple[str, str, str, str]]:
    """The lines of the table: what, measured, with plain steps, the limit."""
    device = args.device
    torch.zeros(1, device=device)  # CUDA itself starts
    ours = Ours(args.model, device, args.dtype)
    model = ours.model if isinstance(ours.model, GraphedModel) else GraphedModel(ours.model, captured=False)
    plain = model.model
    memory, host, products = rates(device, model.dtype, small=device == "cpu")
    weights = weight_bytes(plain)
    lines = [
        ("memory, copied, GB/s", f"{memory / 1e9:.0f}", "", ""),
        ("from the host, GB/s", f"{host / 1e9:.1f}", "", ""),
        (f"products in {args.dtype}, TFLOP/s", f"{products / 1e12:.3g}", "", ""),
        ("load, s", f"{ours.load_seconds:.2f}", "", f"{weights / host:.2f}: {weights / 1e9:.2f} GB from the host"),
    ]

    recording = sound(args.seconds)
    [(mel, counts)] = ours.features([recording])
    flop = encoder_flop(plain, mel[:1], counts[0])
    for count in sorted({1, ours.most}):
        some, lengths = mel[:1].repeat(count, 1, 1), counts[:1] * count
        spent = [seconds(lambda way=way: way.encode(some, lengths), device) for way in (model, plain)]
        lines.append(
            (
                f"encoder and projector, {count} x {min(args.seconds, 30):g} s, ms",
                *(f"{1000 * each:.2f}" for each in spent),
                f"{1000 * count * flop / products:.2f}: {count * flop / 1e12:.3g} TFLOP",
            )
        )

    step_limits = {}
    features = ours.features([recording])
    [encoded] = ours.encode(features)
    for count in args.rows:
        spent = []
        for way in (model, plain):
            ours.model = way
            times = []
            for _ in range(3):
                clock = Clock(device)
                ours.search([encoded] * count, features, args.tokens, clock)
                times.append((clock.moments[1] - clock.moments[0]) / (args.tokens - 1))
            spent.append(sorted(times[1:])[0])
        slots = model.pool.free[0].capacity
        read = step_bytes(plain, rows_of(count), slots)
        step_limits[count] = read / memory
        lines.append(
            (
                f"a token, {count} at once, ms",
                *(f"{1000 * each:.3f}" for each in spent),
                f"{1000 * read / memory:.3f}: {read / 1e9:.2f} GB",
            )
        )

    for count in args.rows:
        factors = []
        for way in (model, plain):
            ours.model = way
            spent_all = [to_text(ours, args, count, args.seconds, args.tokens) for _ in range(2)]
            factors.append(spent_all[-1] / (count * args.seconds))
        least = (count * len(counts) * flop / products + args.tokens * step_limits[count]) / (count * args.seconds)
        lines.append(
            (
                f"real-time factor, {count} x {args.seconds:g} s, {args.tokens} tokens each",
                *(f"{each:.5f}" for each in factors),
                f"{least:.5f}: encoder and steps",
            )
        )

    if device == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    else:
        peak = torch.cuda.max_memory_allocated()
    least = weights + sum(kept.bytes for kept in model.pool.free)
    lines.append(("peak memory, GiB", f"{peak / 2**30:.2f}", "", f"{least / 2**30:.2f}: weights, keys and values"))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="of GLM-ASR; random weights take as long")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="windows at once (default: 1 16 64)")
    parser.add_argument("--seconds", type=float, default=30, help="of sound (default: 30, one window)")
    parser.add_argument("--tokens", type=int, default=100, help="of each window, 2 or more (default: 100)")
    args = parser.parse_args()
    if args.tokens < 2 or min(args.rows) < 1:
        parser.error("--tokens has to be 2 or more, --rows 1 or more")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU; expected one, or --device cpu to try the script")
    lines = measure(args)
    name = torch.cuda.get_device_name() if args.device == "cuda" else f"a CPU, {torch.get_num_threads()} threads"
    print(
        f"{name}; {args.dtype}; Python {platform.python_version()}, torch {torch.__version__}; {time.strftime('%F')}\n"
    )
    print(f"| | {'graphs' if args.device == 'cuda' else 'static memory'} | plain | limit |\n|---|---|---|---|")
    for line in lines:
        print(f"| {' | '.join(line)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
