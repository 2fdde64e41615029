"""How far the logits of bfloat16 and int8 are from those of float32, on the same weights and the same tokens.

    python benchmarks/accuracy.py full [--tokens 24]

Error: root of the mean square of the difference, as part of the root of the mean square of the float32 logits (their
mean over the vocabulary taken out); and in how many of the steps the likeliest token is another one. The tokens that
are read are those that float32 finds. Each type runs in a process of its own; float32 takes 9 GB.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from compare import sound  # noqa: E402

from glmasr import load  # noqa: E402


@torch.inference_mode()
def logits(
    directory: str, dtype: str, seconds: float, ids: list[int] | None, tokens: int, threads: int
) -> tuple[np.ndarray, list[int]]:
    """The logits (T, V) of `tokens` steps that read `ids`, or the likeliest token each time."""
    torch.set_num_threads(threads)
    recognizer = load(directory, device="cpu", dtype=dtype)
    model = recognizer.model
    rows = recognizer.family.embed(sound(seconds))
    prompt = model.prompt(recognizer.tokenizer, len(rows))
    cache = model.new_cache(1, len(prompt) + tokens)
    found, read = [model.prefill([rows], [prompt], cache).float()[0]], []
    for step in range(tokens - 1):
        read.append(int(found[-1].argmax()) if ids is None else ids[step])
        found.append(model.step(torch.tensor([read[-1]]), cache).float()[0])
    return torch.stack(found).numpy(), read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL_DIR")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()

    def alone(*arguments):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(logits, args.model, *arguments, args.tokens, args.threads).result()

    exact, ids = alone("float32", args.seconds, None)
    exact -= exact.mean(1, keepdims=True)
    print("| type | error of the logits | another likeliest token |\n|---|---|---|")
    for dtype in ("bfloat16", "int8"):
        other, _ = alone(dtype, args.seconds, ids)
        other -= other.mean(1, keepdims=True)
        error = np.sqrt(((other - exact) ** 2).mean() / (exact**2).mean())
        print(
            f"| {dtype} | {100 * error:.2f} % | {int((other.argmax(1) != exact.argmax(1)).sum())} of {len(exact)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
