"""How near a stage is to the time that its products alone take: a Markdown table, in seconds of the processor, so that
other work on the machine counts little.

    python benchmarks/products.py base --dtype float32 int8
    python benchmarks/make_checkpoint.py two --layers 2 && python benchmarks/products.py two --dtype float32 int8

"at the rate": the floating point operations of a stage, those of its attention too, over the rate at which the kernel
of its type multiplies matrices of ROWS x SIDE and SIDE x SIDE in the same turn; the attention's are floats in int8 as
well. The ratio is the stage's time over that. In a second run each operator is timed by itself: "linears" (and
convolutions) and "attention" are what these took, the attention with its softmax; of the rest the largest are named.
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import glmasr  # noqa: E402
from glmasr.kernels import int8  # noqa: E402
from glmasr.model import GlmAsr  # noqa: E402

ROWS, SIDE = 1536, 2048  # of the product that gives the rate
NAMED = 4  # operators of the rest


def linear(x: Tensor, weight: Tensor, *rest) -> float:
    return 2 * x.numel() * weight.shape[0]


def quantized(x: Tensor, scale, zero, weight: Tensor, scales: Tensor, *rest) -> float:
    return 2 * x.numel() * len(scales)


def matrices(left: Tensor, right: Tensor) -> float:
    return 2 * left.numel() * right.shape[-1]


def convolution(x: Tensor, weight: Tensor, bias, stride, padding, *rest) -> float:
    length = (x.shape[-1] + 2 * padding[-1] - weight.shape[-1]) // stride[-1] + 1
    return 2 * len(x) * weight.numel() * length


def attention(query: Tensor, key: Tensor, *rest) -> float:
    return 4 * query.numel() * key.shape[-2]


# Operators -> (what they are counted as, floating point operations by their arguments).
PRODUCTS: dict[str, tuple[str, Callable[..., float]]] = {
    "mkldnn::_linear_pointwise": ("linears", linear),
    "onednn::qlinear_pointwise": ("linears", quantized),
    "aten::linear": ("linears", linear),
    "aten::conv1d": ("linears", convolution),
    "aten::matmul": ("attention", matrices),
    "aten::scaled_dot_product_attention": ("attention", attention),
}


class Stopwatch(TorchDispatchMode):
    """Seconds of the processor of each operator, by name, and what its products are."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        start = time.process_time()
        result = function(*args, **(kwargs or {}))
        kind, count = PRODUCTS.get(name, (name.split("::")[1], None))
        self.seconds[kind] += time.process_time() - start
        if count is not None:
            self.operations["int8" if name.startswith("onednn") else kind] += count(*args)
        return result


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def rates(dtype: torch.dtype, eight: bool) -> tuple[float, float]:
    """Operations a second of floats, and of int8 (else of the same floats)."""
    x, weight = torch.randn(ROWS, SIDE, dtype=dtype), torch.randn(SIDE, SIDE, dtype=dtype)
    work = 2 * ROWS * SIDE * SIDE
    floats = work / min(seconds(lambda: x @ weight) for _ in range(3))
    if not eight:
        return floats, floats
    made = int8.Int8Linear(*int8.quantize(weight), None)
    numbers = torch.randint(1, 2 * made.levels, (ROWS, SIDE), dtype=torch.uint8)
    kernel = torch.ops.onednn.qlinear_pointwise
    given = numbers, 1.0, made.levels + 1, made.weight, made.scale, made.zero, None, 1.0, 0, torch.float32
    return floats, work / min(seconds(lambda: kernel(*given, "none", [], "")) for _ in range(3))


def stages(recognizer) -> dict[str, Callable[[], object]]:
    """Of one window of noise."""
    model, config = recognizer.model, recognizer.config
    samples = 0.05 * torch.randn(config.window, generator=torch.Generator().manual_seed(0))
    if isinstance(model, GlmAsr):
        mel = glmasr.audio.log_mel(samples[None], config.encoder.bands).to(model.dtype)
        rows = model.encode(mel, [len(samples)])
        prompt = model.prompt(recognizer.tokenizer, len(rows[0]))
        return {
            "encoder and projector": lambda: model.encode(mel, [len(samples)]),
            f"prefill, {len(prompt)} positions": lambda: model.prefill(rows, [prompt], model.new_cache(1, len(prompt))),
        }
    features = model.features(samples[None])
    states = model.encode(features)
    return {
        "encoder": lambda: model.encode(features),
        "cross keys and values": lambda: model.decoder.cross_kv(states),
    }


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="(default: 1; with more, waiting counts as well)")
    args = parser.parse_args()
    if args.runs < 1:
        parser.error(f"--runs is {args.runs}, expected 1 or more")
    torch.set_num_threads(args.threads)
    models = {dtype: glmasr.load(args.model, device="cpu", dtype=dtype) for dtype in args.dtype}
    work = {(dtype, name): run for dtype, each in models.items() for name, run in stages(each).items()}
    for run in work.values():
        run()  # reads the weights and lays them out
    turns: list[dict[tuple[str, str], tuple[Stopwatch, float, float]]] = []
    for _ in range(args.runs):
        turn = {}
        for (dtype, name), run in work.items():
            floats, numbers = rates(models[dtype].model.dtype, dtype == "int8")
            taken = seconds(run)
            with Stopwatch() as watch:  # which takes time itself: what it sees counts for the parts only
                run()
            made = watch.operations
            turn[dtype, name] = (
                watch,
                taken,
                (made["linears"] + made["attention"]) / floats + made["int8"] / numbers,
            )
        turns.append(turn)
    print(
        "| stage | CPU s | GFLOP | at the rate, CPU s | ratio | linears | attention | the rest |\n" + "|---" * 8 + "|"
    )
    for dtype, name in work:
        watches, taken, least = zip(*(turn[dtype, name] for turn in turns), strict=True)
        parts = {
            kind: statistics.median(watch.seconds[kind] / sum(watch.seconds.values()) for watch in watches)
            for kind in watches[0].seconds
        }
        rest = sorted(set(parts) - {"linears", "attention"}, key=lambda kind: -parts[kind])[:NAMED]
        ratios = [whole / products for whole, products in zip(taken, least, strict=True)]
        print(
            f"| {name}, {dtype} | {spread(list(taken))} | {sum(watches[0].operations.values()) / 1e9:.1f} "
            f"| {spread(list(least))} | {spread(ratios)} | {parts.get('linears', 0):.1%} | {parts.get('attention', 0):.1%} "
            f"| {', '.join(f'{kind} {parts[kind]:.1%}' for kind in rest)} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
