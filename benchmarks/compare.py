"""Compares this package with Transformers on the same weights and the same sound: time, memory and, with --check, the
numbers.

    python benchmarks/make_checkpoint.py full
    python benchmarks/compare.py full                   a Markdown table: medians (least-greatest) of runs turn about,
                                                        which take 25 minutes
    python benchmarks/compare.py full --device cuda     the same on a GPU
    python benchmarks/compare.py full --check           float32: the same encoder output, the same greedy ids
    python benchmarks/compare.py full --cpu-seconds     on a machine with other work: seconds of the processor

"8 windows at once" are 8 recordings of that length: encoded, and decoded as one batch.
Both do what their users do: `greedy` and `beam` here, there `generate` with its key-value cache and
`scaled_dot_product_attention`, in inference mode. On a GPU there is a third: `generate` with a static cache, which
compiles its step. Load time and peak memory are those of fresh processes, one implementation in each, weights in the
disk cache.
"""

import argparse
import importlib.metadata
import math
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of Transformers: everything is on the disk
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from glmasr.checkpoint.tensor_files import weight_files  # noqa: E402
from glmasr.config import SAMPLE_RATE  # noqa: E402

CHECKED_IDS = 16
NEAR = 1e-4  # greatest difference of encoder outputs in float32, as part of the greatest value
ROWS = 8  # decoded together: the windows of a file
BEAMS, BEAM_SECONDS, BEAM_TOKENS = 5, 10, 40
TEXT_TOKENS = 100  # of a window of 30 s
CLIPS, CLIP_SECONDS, CLIP_TOKENS = 64, 8, 40  # short recordings, many at once


def sound(seconds: float) -> Tensor:
    """A gliding tone in noise, with pauses: (S,) at 16 kHz."""
    time = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tone = 0.3 * torch.sin(2 * math.pi * (300 * time - 30 * torch.cos(3 * time))) * (torch.sin(5 * time) > -0.3)
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(0))
    return tone + 0.05 * noise * (torch.sin(1.7 * time) > -0.6)


now = time.perf_counter


def set_up(args) -> None:
    """What holds for a process."""
    global now
    torch.set_num_threads(args.threads)
    now = time.process_time if args.cpu_seconds else time.perf_counter


class Clock:
    """The moments of one run: `tick` notes one; `logits(count)`, called with each of `count` logits, notes the first
    and the last."""

    def __init__(self, device: str):
        self.device = device
        self.moments: list[float] = []
        self.seen = 0

    def tick(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.moments.append(now())

    def logits(self, count: int) -> None:
        self.seen += 1
        if self.seen in (1, count):
            self.tick()


# -- the implementations: recordings -> what the encoder takes -> what the decoder reads -> so many ids for each ->
# texts ------


class Ours:
    def __init__(self, directory: Path, device: str, dtype: str):
        from glmasr import audio, decode, load
        from glmasr.transcription import glm_asr

        self.audio, self.decode = audio, decode
        start = now()  # imports are not counted, here and there
        self.recognizer = load(directory, device=device, dtype=dtype)
        self.load_seconds = now() - start
        self.model, self.device, self.most = (
            self.recognizer.model,
            device,
            glm_asr.ENCODER_BATCH[torch.device(device).type],
        )

    def features(self, recordings: list[Tensor]):
        model, features = self.model, []
        for samples in recordings:
            counts = [
                min(model.config.window, len(samples) - start) for start in range(0, len(samples), model.config.window)
            ]
            windows = self.audio.windows(samples, model.config.window).to(model.device)
            features.append((self.audio.log_mel(windows, model.config.encoder.bands).to(model.dtype), counts))
        return features

    def encode(self, features) -> list[Tensor]:
        mel, lengths = (
            torch.cat([windows for windows, _ in features]),
            [count for _, counts in features for count in counts],
        )
        parts = [slice(start, start + self.most) for start in range(0, len(mel), self.most)]
        rows = iter([row for part in parts for row in self.model.encode(mel[part], lengths[part])])
        return [torch.cat([next(rows) for _ in counts]) for _, counts in features]

    def search(self, encoded: list[Tensor], features, tokens: int, clock: Clock, beams: int = 1) -> list[list[int]]:
        prompts = [self.model.prompt(self.recognizer.tokenizer, len(rows)) for rows in encoded]
        how = {"stop": (), "max_new": tokens, "rules": [lambda logits, ids: clock.logits(tokens)]}
        if beams == 1:
            return [found.ids for found in self.decode.greedy(self.model, encoded, prompts, **how)]
        return [found[0].ids for found in self.decode.beam(self.model, encoded, prompts, width=beams, **how)]

    def texts(self, ids: list[list[int]]) -> list[str]:
        return [self.recognizer.tokenizer.decode(each) for each in ids]


class Theirs:
    cache = None

    def __init__(self, directory: Path, device: str, dtype: str):
        from transformers import AutoProcessor, GlmAsrForConditionalGeneration

        start = now()
        self.processor = AutoProcessor.from_pretrained(directory)
        self.model = (
            GlmAsrForConditionalGeneration.from_pretrained(directory, dtype=dtype, attn_implementation="sdpa")
            .to(device)
            .eval()
        )
        self.load_seconds = now() - start

    def features(self, recordings: list[Tensor]):
        inputs = self.processor.apply_transcription_request([samples.numpy() for samples in recordings])
        return inputs.to(self.model.device, dtype=self.model.dtype)

    def encode(self, features) -> list[Tensor]:
        return [
            self.model.get_audio_features(features["input_features"], features["input_features_mask"]).pooler_output
        ]

    def search(self, encoded: list[Tensor], features, tokens: int, clock: Clock, beams: int = 1) -> list[list[int]]:
        def tick(ids: Tensor, logits: Tensor) -> Tensor:
            clock.logits(tokens)
            return logits

        ids = features["input_ids"]
        places = (ids == self.model.config.audio_token_id)[..., None]
        embeddings = self.model.get_input_embeddings()(ids).masked_scatter(places, torch.cat(encoded))
        found = self.model.generate(
            inputs_embeds=embeddings,
            attention_mask=features["attention_mask"],
            do_sample=False,
            num_beams=beams,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            logits_processor=[tick],
            cache_implementation=self.cache,
        )
        return found.tolist()

    def texts(self, ids: list[list[int]]) -> list[str]:
        return self.processor.batch_decode(ids, skip_special_tokens=True)


class TheirsStatic(Theirs):
    cache = "static"


KINDS: dict[str, tuple[type, str | None]] = {
    "glmasr": (Ours, None),
    "glmasr int8": (Ours, "int8"),
    "Transformers": (Theirs, None),
    "Transformers, static": (TheirsStatic, None),
}


# -- what is measured
# --------------------------------------------------------------------------------------------------------


def alone(function, *arguments):
    """The result of a function in a fresh process. TRAP: a child's peak begins at the parent's, so the parent has to be
    small."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def make(name: str, args):
    kind, dtype = KINDS[name]
    directory = args.int8 if dtype == "int8" else args.model
    return kind(directory, args.device, dtype or args.dtype)


@torch.inference_mode()
def load_and_memory(name: str, args) -> dict[str, float]:
    """Seconds to load and to recognize the sound once, when weights that were mapped are read, and GiB at the most, of
    a process."""
    set_up(args)
    implementation = make(name, args)
    first = text(implementation, args)["text"]
    if args.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"load": implementation.load_seconds, "first": first, "memory": peak / 2**30}


def stages(implementation, args) -> dict[str, float]:
    """One window, step by step."""
    features, clock = implementation.features([sound(args.seconds)]), Clock(args.device)
    clock.tick()
    encoded = implementation.encode(features)
    clock.tick()
    implementation.search(encoded, features, args.tokens, clock)
    start, end, first, last = clock.moments
    return {"encoder": end - start, "prefill": first - end, "decode": (args.tokens - 1) / (last - first)}


def rows(implementation, args) -> dict[str, float]:
    """Several windows of the same recording at once: tokens a second of all of them."""
    features, clock = implementation.features([sound(args.seconds)] * ROWS), Clock(args.device)
    one = implementation.encode(implementation.features([sound(args.seconds)]))
    implementation.search(one * ROWS, features, args.tokens, clock)
    first, last = clock.moments
    return {"rows": ROWS * (args.tokens - 1) / (last - first)}


def beams(implementation, args) -> dict[str, float]:
    """Seconds from samples to ids."""
    clock = Clock(args.device)
    clock.tick()
    features = implementation.features([sound(BEAM_SECONDS)])
    implementation.search(implementation.encode(features), features, BEAM_TOKENS, clock, BEAMS)
    clock.tick()
    return {"beams": clock.moments[-1] - clock.moments[0]}


def text(implementation, args) -> dict[str, float]:
    return {"text": to_text(implementation, args, 1, args.seconds, TEXT_TOKENS)}


def texts(implementation, args) -> dict[str, float]:
    return {"texts": to_text(implementation, args, ROWS, args.seconds, TEXT_TOKENS)}


def clips(implementation, args) -> dict[str, float]:
    return {"clips": to_text(implementation, args, CLIPS, CLIP_SECONDS, CLIP_TOKENS)}


def to_text(implementation, args, count: int, seconds: float, tokens: int) -> float:
    """Seconds from samples to texts, for one or more recordings at once."""
    clock = Clock(args.device)
    clock.tick()
    features = implementation.features([sound(seconds)] * count)
    implementation.texts(implementation.search(implementation.encode(features), features, tokens, clock))
    clock.tick()
    return clock.moments[-1] - clock.moments[0]


@dataclass
class Line:
    """A line of the table. `ratios`: (name, what is divided, by what), each "key of an implementation". `sound`: the
    seconds of sound that the seconds of work are for."""

    key: str
    title: str
    ratios: list[tuple[str, Callable]]
    sound: float | None = None


def lines(args) -> list[Line]:
    def ratio(label, key, over, under, other=None, factor=1.0):
        return label, lambda turn: factor * turn[over][key] / turn[under][other or key]

    A, B, T = "glmasr", "glmasr int8", "Transformers"
    return [
        Line("load", "load, s", [ratio("glmasr / Transformers", "load", A, T)]),
        Line(
            "encoder",
            f"encoder and projector, {args.seconds:g} s of sound, s",
            [ratio("glmasr / Transformers", "encoder", A, T), ratio(f"int8 / {args.dtype}", "encoder", B, A)],
        ),
        Line(
            "prefill",
            "prefill, s",
            [ratio("glmasr / Transformers", "prefill", A, T), ratio(f"int8 / {args.dtype}", "prefill", B, A)],
        ),
        Line(
            "decode",
            "decode, one row, tokens/s",
            [ratio("glmasr / Transformers", "decode", A, T), ratio(f"int8 / {args.dtype}", "decode", B, A)],
        ),
        Line(
            "rows",
            f"decode, {ROWS} rows, tokens/s",
            [ratio("to one row", "rows", A, A, "decode"), ratio("int8 to its one row", "rows", B, B, "decode")],
        ),
        Line(
            "beams",
            f"{BEAMS} beams, {BEAM_SECONDS} s of sound, {BEAM_TOKENS} tokens, s",
            [ratio("Transformers / glmasr", "beams", T, A)],
        ),
        Line(
            "text",
            f"samples to text, {args.seconds:g} s, {TEXT_TOKENS} tokens, s",
            [
                ratio("Transformers / glmasr", "text", T, A),
                ratio(f"{args.dtype} / int8", "text", A, B),
                ratio("Transformers / int8", "text", T, B),
            ],
            args.seconds,
        ),
        Line(
            "texts",
            f"the same, {ROWS} windows at once, s",
            [
                ratio(f"{ROWS} one by one / at once", "text", A, A, "texts", ROWS),
                ratio("int8", "text", B, B, "texts", ROWS),
                ratio(f"{args.dtype} one by one / int8 at once", "text", A, B, "texts", ROWS),
                ratio("Transformers one by one / int8 at once", "text", T, B, "texts", ROWS),
            ],
            ROWS * args.seconds,
        ),
        Line(
            "first", "samples to text, the first time in a process, s", [ratio("Transformers / glmasr", "first", T, A)]
        ),
        Line(
            "clips",
            f"samples to text, {CLIPS} recordings of {CLIP_SECONDS} s at once, {CLIP_TOKENS} tokens each, s",
            [ratio("Transformers / glmasr", "clips", T, A)],
            CLIPS * CLIP_SECONDS,
        ),
        Line(
            "memory",
            f"peak memory{' on the GPU' if args.device == 'cuda' else ''}, GiB",
            [ratio("glmasr / Transformers", "memory", A, T)],
        ),
    ]


TASKS = {"stages": stages, "rows": rows, "beams": beams, "text": text, "texts": texts, "clips": clips}


@torch.inference_mode()
def measure(args, names: list[str]) -> list[dict[str, dict[str, float]]]:
    """For each turn the figures of all implementations. The machine's speed drifts, so they take turns."""
    tasks, fresh = [TASKS[name] for name in args.tasks if name in TASKS], "load" in args.tasks
    with tqdm(total=len(names) * ((len(tasks) + fresh) * args.runs + 1), unit="run") as progress:

        def step(function, *arguments):
            result = function(*arguments)
            progress.update()
            return result

        turns: list[dict[str, dict[str, float]]] = [
            {name: step(alone, load_and_memory, name, args) if fresh else {} for name in names}
            for _ in range(args.runs)
        ]
        implementations = {name: make(name, args) for name in names}
        for implementation in implementations.values():
            step(stages, implementation, args)  # reads the weights and prepares the kernels: not counted
        for turn in turns:
            for task in tasks:
                for name, implementation in implementations.items():
                    turn[name] |= step(task, implementation, args)
    return turns


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def table(turns: list[dict[str, dict[str, float]]], names: list[str], args) -> str:
    out = [f"| | {' | '.join(names)} | ratios |", "|---" * (len(names) + 2) + "|"]
    for line in lines(args):
        if not all(line.key in turn[name] for turn in turns for name in names):
            continue
        cells = [spread([turn[name][line.key] for turn in turns]) for name in names]
        if line.sound:
            cells = [
                f"{cell}, {line.sound / statistics.median(turn[name][line.key] for turn in turns):.3g} x real time"
                for cell, name in zip(cells, names)
            ]
        ratios = []
        for label, divide in line.ratios:
            try:
                ratios.append(f"{label} {spread([divide(turn) for turn in turns])}")
            except KeyError:  # of an implementation or a task that was left out
                continue
        out.append(f"| {line.title} | {' | '.join(cells)} | {'; '.join(ratios)} |")
    return "\n".join(out)


def machine(args) -> str:
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        found = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        name = found[0] if found else name
    if args.device == "cuda":
        name = f"{torch.cuda.get_device_name()}, {name}"
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("torch", "transformers"))
    return (
        f"{name}, {os.cpu_count()} cores, {args.threads} threads; {args.dtype}; Python {platform.python_version()}, {versions}; "
        f"{'seconds of the processor; ' * args.cpu_seconds}{args.runs} runs turn about, median (least-greatest); ratios are of one turn"
    )


# -- checking
# --------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def rows_and_ids(name: str, args):
    """Audio rows as a NumPy array (N, D), which goes between processes by value, and greedy ids."""
    set_up(args)
    implementation = KINDS[name][0](args.model, args.device, "float32")
    features = implementation.features([sound(args.seconds)])
    encoded = implementation.encode(features)
    [ids] = implementation.search(encoded, features, CHECKED_IDS, Clock(args.device))
    return torch.cat(encoded).float().cpu().numpy(), ids


def check(args) -> bool:
    """One after the other, as two full-size models in float32 need 18 GB."""
    (ours, our_ids), (theirs, their_ids) = (
        alone(rows_and_ids, name, args) for name in tqdm(("glmasr", "Transformers"), unit="model")
    )
    print(
        f"encoder and projector: greatest difference {abs(ours - theirs).max():.2e} among values up to {abs(theirs).max():.2f}"
    )
    print(f"greedy ids, glmasr:       {our_ids}\ngreedy ids, Transformers: {their_ids}")
    return ours.shape == theirs.shape and abs(ours - theirs).max() <= NEAR * abs(theirs).max() and our_ids == their_ids


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--seconds", type=float, default=30, help="of sound (default: 30, one window)")
    parser.add_argument(
        "--tokens", type=int, default=32, help="to be decoded where the decoder alone is timed, 2 or more (default: 32)"
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=["load", *TASKS],
        metavar="TASK",
        help=f"some of load, {', '.join(TASKS)} (default: all, on a CPU without clips, which take an hour)",
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-seconds", action="store_true", help="seconds of the processor, of all threads together")
    parser.add_argument(
        "--static",
        action="store_true",
        help="on a CPU, too, compare with Transformers' static cache (on a GPU it always is)",
    )
    parser.add_argument("--check", action="store_true", help="compare numbers instead of times, in float32")
    args = parser.parse_args()
    if args.tokens < 2 or args.runs < 1:
        parser.error("--tokens has to be 2 or more, --runs 1 or more")
    args.tasks = args.tasks or ["load", *(name for name in TASKS if args.device == "cuda" or name != "clips")]
    set_up(args)
    if args.check:
        same = check(args)
        print("the same" if same else "DIFFERENT")
        return 0 if same else 1
    names = (
        ["glmasr", "Transformers", "Transformers, static"]
        if args.device == "cuda"
        else ["glmasr", "glmasr int8", "Transformers"]
    )
    if args.static and args.device != "cuda":
        names.append("Transformers, static")
    with tempfile.TemporaryDirectory() as folder:
        args.int8 = Path(folder) / "int8"
        if "glmasr int8" in names:
            alone(quantize, args.model, args.int8)
        for path in [
            *weight_files(args.model),
            *(weight_files(args.int8) if args.int8.exists() else []),
        ]:  # into the disk cache
            with open(path, "rb") as file:
                while file.read(2**24):
                    pass
        print(table(measure(args, names), names, args))
    print(f"\n{machine(args)}")
    return 0


def quantize(directory: Path, out: Path) -> None:
    from glmasr.tools.quantize import quantize_directory

    quantize_directory(directory, out)


if __name__ == "__main__":
    sys.exit(main())
