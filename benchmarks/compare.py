"""Compares this package with Transformers on the same weights and the same sound: time, memory and, with --check, the numbers.

    python benchmarks/make_checkpoint.py full
    python benchmarks/compare.py full                   a Markdown table: medians (least-greatest) of runs turn about
    python benchmarks/compare.py full --check           float32: the same encoder output, the same greedy ids

Both do what their users do: `greedy` here, there `generate` with its key-value cache and
`scaled_dot_product_attention`; batch 1, inference mode, no compilation. Each is timed at the same four moments: before the encoder,
behind the projector, when the first logits are there, and when the last ones are.
Load time and peak memory are those of fresh processes, one implementation in each, weights in the disk cache.
"""

import argparse
import importlib.metadata
import math
import os
import platform
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"              # before any import of Transformers: everything is on the disk
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch                                                                          # noqa: E402
from torch import Tensor                                                              # noqa: E402
from tqdm import tqdm                                                                 # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from glmasr.config import SAMPLE_RATE                                                 # noqa: E402
from glmasr.weights import weight_files                                               # noqa: E402

CHECKED_IDS = 16
NEAR = 1e-4                                     # greatest difference of encoder outputs in float32, as part of the greatest value


def sound(seconds: float) -> Tensor:
    """A gliding tone in noise, with pauses: (S,) at 16 kHz."""
    time = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tone = 0.3 * torch.sin(2 * math.pi * (300 * time - 30 * torch.cos(3 * time))) * (torch.sin(5 * time) > -0.3)
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(0))
    return tone + 0.05 * noise * (torch.sin(1.7 * time) > -0.6)


class Clock:
    """The moments of one run: `tick` notes one; `logits(count)`, called with each of `count` logits, notes the first and the last."""

    def __init__(self, device: str):
        self.device = device
        self.moments: list[float] = []
        self.seen = 0

    def tick(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.moments.append(time.perf_counter())

    def logits(self, count: int) -> None:
        self.seen += 1
        if self.seen in (1, count):
            self.tick()


# -- the two implementations: `run` gives the audio rows that the decoder hears and `tokens` greedy ids ------------------

class Ours:
    name = "glmasr"

    def __init__(self, directory: Path, device: str, dtype: str):
        from glmasr import audio, decode, load
        self.audio, self.greedy = audio, decode.greedy
        start = time.perf_counter()                             # imports are not counted, here and there
        self.recogniser = load(directory, device=device, dtype=dtype)
        self.load_seconds = time.perf_counter() - start
        self.model = self.recogniser.model

    def prepare(self, samples: Tensor):
        window = self.model.config.window
        counts = [min(window, len(samples) - start) for start in range(0, len(samples), window)]
        mel = self.audio.log_mel(self.audio.windows(samples, window), self.model.config.encoder.bands)
        return mel.to(self.model.device, self.model.dtype), counts

    def run(self, inputs, tokens: int, clock: Clock) -> tuple[Tensor, list[int]]:
        mel, counts = inputs
        clock.tick()
        rows = torch.cat([self.model.encode(window[None], [count])[0] for window, count in zip(mel, counts, strict=True)])
        clock.tick()
        prompt = self.model.prompt(self.recogniser.tokenizer, len(rows))
        found = self.greedy(self.model, [rows], [prompt], stop=(), max_new=tokens, rules=[lambda logits, ids: clock.logits(tokens)])
        return rows, found[0].ids


class Theirs:
    name = "Transformers"

    def __init__(self, directory: Path, device: str, dtype: str):
        from transformers import AutoProcessor, GlmAsrForConditionalGeneration
        start = time.perf_counter()
        self.processor = AutoProcessor.from_pretrained(directory)
        self.model = GlmAsrForConditionalGeneration.from_pretrained(directory, dtype=dtype, attn_implementation="sdpa").to(device).eval()
        self.load_seconds = time.perf_counter() - start

    def prepare(self, samples: Tensor):
        return self.processor.apply_transcription_request(samples.numpy()).to(self.model.device, dtype=self.model.dtype)

    def run(self, inputs, tokens: int, clock: Clock) -> tuple[Tensor, list[int]]:
        def look(ids: Tensor, logits: Tensor) -> Tensor:
            clock.logits(tokens)
            return logits

        clock.tick()
        rows = self.model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
        clock.tick()
        ids = inputs["input_ids"]
        places = (ids == self.model.config.audio_token_id)[..., None]
        embeddings = self.model.get_input_embeddings()(ids).masked_scatter(places, rows)
        found = self.model.generate(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"], do_sample=False,
                                    min_new_tokens=tokens, max_new_tokens=tokens, logits_processor=[look])
        return rows, found[0].tolist()


# -- measuring -------------------------------------------------------------------------------------------------------------

def alone(function, *arguments):
    """The result of a function in a fresh process. TRAP: a child's peak begins at the parent's, so the parent has to be small."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@torch.inference_mode()
def load_and_memory(kind, args) -> dict[str, float]:
    """Seconds to load, and GiB at the most, of a process that loads and recognises the sound once."""
    torch.set_num_threads(args.threads)
    implementation = kind(args.model, args.device, args.dtype)
    implementation.run(implementation.prepare(sound(args.seconds)), args.tokens, Clock(args.device))
    if args.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"load": implementation.load_seconds, "memory": peak / 2**30}


def time_stages(implementation, inputs, args) -> dict[str, float]:
    clock = Clock(args.device)
    implementation.run(inputs, args.tokens, clock)
    start, heard, first, last = clock.moments
    return {"encoder": heard - start, "prefill": first - heard, "decode": (args.tokens - 1) / (last - first)}


@torch.inference_mode()
def measure(args) -> list[list[dict[str, float]]]:
    """For each run the figures of both implementations. The machine's speed drifts, so they take turns."""
    kinds = (Ours, Theirs)
    with tqdm(total=4 * args.runs + 2, unit="run") as progress:
        def step(function, *arguments):
            result = function(*arguments)
            progress.update()
            return result

        figures = [[step(alone, load_and_memory, kind, args) for kind in kinds] for _ in range(args.runs)]
        both = [kind(args.model, args.device, args.dtype) for kind in kinds]
        pairs = [(implementation, implementation.prepare(sound(args.seconds))) for implementation in both]
        for pair in pairs:
            step(time_stages, *pair, args)                      # reads the weights and prepares the kernels: not counted
        for run in figures:
            for figure, pair in zip(run, pairs, strict=True):
                figure |= step(time_stages, *pair, args)
    return figures


def table(figures: list[list[dict[str, float]]], args) -> str:
    rows = {"load": "load, s", "encoder": f"encoder and projector, {args.seconds:g} s of sound, s", "prefill": "prefill, s",
            "decode": f"decode, {args.tokens} tokens, tokens/s (more is better)",
            "memory": f"peak memory{' on the GPU' if args.device == 'cuda' else ''}, GiB"}
    lines = ["| | glmasr | Transformers | ratio |", "|---|---|---|---|"]
    for key, title in rows.items():
        values = list(zip(*[[figure[key] for figure in run] for run in figures], strict=True))
        cells = [f"{statistics.median(each):.3g} ({min(each):.3g}-{max(each):.3g})" for each in values]
        ratios = [ours / theirs for ours, theirs in zip(*values, strict=True)]
        lines.append(f"| {title} | {' | '.join(cells)} | {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |")
    return "\n".join(lines)


def machine(args) -> str:
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    if args.device == "cuda":
        name = f"{torch.cuda.get_device_name()}, {name}"
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("torch", "transformers"))
    return (f"{name}, {os.cpu_count()} cores, {args.threads} threads; {args.dtype}; Python {platform.python_version()}, {versions}; "
            f"{args.runs} runs turn about, median (least-greatest); ratios are glmasr / Transformers of one turn")


# -- checking --------------------------------------------------------------------------------------------------------------

@torch.inference_mode()
def rows_and_ids(kind, args):
    """Audio rows as a NumPy array (N, D), which goes between processes by value, and greedy ids."""
    torch.set_num_threads(args.threads)
    implementation = kind(args.model, args.device, "float32")
    rows, ids = implementation.run(implementation.prepare(sound(args.seconds)), CHECKED_IDS, Clock(args.device))
    return rows.float().cpu().numpy(), ids


def check(args) -> bool:
    """One after the other, as two full-size models in float32 need 18 GB."""
    (ours, our_ids), (theirs, their_ids) = (alone(rows_and_ids, kind, args) for kind in tqdm((Ours, Theirs), unit="model"))
    print(f"encoder and projector: greatest difference {abs(ours - theirs).max():.2e} among values up to {abs(theirs).max():.2f}")
    print(f"greedy ids, glmasr:       {our_ids}\ngreedy ids, Transformers: {their_ids}")
    return ours.shape == theirs.shape and abs(ours - theirs).max() <= NEAR * abs(theirs).max() and our_ids == their_ids


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--seconds", type=float, default=30, help="of sound (default: 30, one window)")
    parser.add_argument("--tokens", type=int, default=32, help="to be decoded, 2 or more (default: 32)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--check", action="store_true", help="compare numbers instead of times, in float32")
    args = parser.parse_args()
    if args.tokens < 2 or args.runs < 1:
        parser.error("--tokens has to be 2 or more, --runs 1 or more")
    torch.set_num_threads(args.threads)
    if args.check:
        same = check(args)
        print("the same" if same else "DIFFERENT")
        return 0 if same else 1
    for path in weight_files(args.model):                       # into the disk cache
        with open(path, "rb") as file:
            while file.read(2**24):
                pass
    print(table(measure(args), args))
    print(f"\n{machine(args)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
