"""Errors, time and memory on recordings of people: this package, openai-whisper and faster-whisper, all with the same
Whisper weights.

    pip install -c constraints.txt '.[bench]'
    python benchmarks/real.py MANIFEST --model DIR [--most 40] [--beams 5]

MANIFEST is a table with tabs and a header: path (beside it), language (en, zh or yue), text, speaker; maybe kind, for
--kind. DIR holds a Whisper model as faster-whisper has it (model.bin); a model in another format runs without
faster-whisper.

English: word errors after Whisper's normalizer. Chinese: character errors after NFKC, without punctuation, digits as
hanzi, both sides Simplified. The interval holds 95 % of 10,000 draws of the speakers, with replacement (bootstrap);
that of a difference is drawn in pairs. Each runs in a process of its own, is given the language and the beams, and
otherwise does what it does by default, from samples to text; they take turns, a few recordings each, so that a drift of
the machine hits all. Memory is the peak of the process.

The exit code is 1 if this package in float32 makes more errors than another one, by more than the interval.
"""

import argparse
import csv
import datetime
import importlib.metadata
import importlib.util
import os
import platform
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is on the disk

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

# TRAP: a process's peak begins at its parent's, so nothing large is imported here, but where it is used.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from glmasr.evaluation.scoring import Errors  # noqa: E402
from glmasr.evaluation.significance import interval  # noqa: E402

RATE = 16000  # of the samples, in Hz
TURN = 4  # recordings, then it is the next one's turn
NAMES = {"en": "English, words", "zh": "Mandarin, characters", "yue": "Cantonese, characters"}


# ---- those that recognize --------------------------------------------------------------------------------------------------


def openai_checkpoint(model) -> dict:
    """A Whisper model of this package -> what openai-whisper's `load_model` reads: the same tensors, by its names."""
    encoder, decoder = model.config.encoder, model.config.decoder
    names = {
        "encoder.frontend.": "encoder.",
        "encoder.norm": "encoder.ln_post",
        "encoder.positions": "encoder.positional_embedding",
        "decoder.norm": "decoder.ln",
        "decoder.positions.weight": "decoder.positional_embedding",
        "decoder.embed": "decoder.token_embedding",
        "attn_norm": "attn_ln",
        "cross_norm": "cross_attn_ln",
        "mlp_norm": "mlp_ln",
        "mlp.up": "mlp.0",
        "mlp.down": "mlp.2",
        ".cross.": ".cross_attn.",
    }

    def theirs(name: str) -> str:
        for mine, other in names.items():
            name = name.replace(mine, other)
        return name

    return {
        "dims": {
            "n_mels": encoder.bands,
            "n_audio_ctx": encoder.positions,
            "n_audio_state": encoder.width,
            "n_audio_head": encoder.heads,
            "n_audio_layer": encoder.layers,
            "n_vocab": decoder.vocabulary,
            "n_text_ctx": decoder.positions,
            "n_text_state": decoder.width,
            "n_text_head": decoder.heads,
            "n_text_layer": decoder.layers,
        },
        "model_state_dict": {theirs(name): tensor.detach() for name, tensor in model.named_parameters()},
    }


def ours(dtype: str, args, checkpoint: str):
    import torch

    import glmasr

    torch.set_num_threads(args.threads)
    recognizer = glmasr.load(args.model, device="cpu", dtype=dtype)
    known = getattr(recognizer.config, "languages", None)

    def recognize(samples: np.ndarray, language: str) -> str:
        return recognizer.transcribe(
            samples, language_for(language, known) if known else language, sample_rate=RATE, beams=args.beams
        ).text

    return recognize


def openai_whisper(dtype: str, args, checkpoint: str):
    import torch
    import whisper

    torch.set_num_threads(args.threads)
    model = whisper.load_model(checkpoint, device="cpu")

    def recognize(samples: np.ndarray, language: str) -> str:
        known = whisper.tokenizer.LANGUAGES if model.is_multilingual else ("en",)
        # By default it searches greedily, so its five draws at higher temperatures are said again here.
        return model.transcribe(
            samples, language=language_for(language, known), beam_size=args.beams, best_of=5, fp16=False
        )["text"]

    return recognize


def faster_whisper(dtype: str, args, checkpoint: str):
    from faster_whisper import WhisperModel

    model = WhisperModel(str(args.model), device="cpu", compute_type=dtype, cpu_threads=args.threads)

    def recognize(samples: np.ndarray, language: str) -> str:
        segments, _ = model.transcribe(
            samples, language=language_for(language, model.supported_languages), beam_size=args.beams
        )
        return "".join(segment.text for segment in segments)

    return recognize


def language_for(language: str, known) -> str:
    """A model without Cantonese gets Mandarin."""
    return "zh" if language == "yue" and "yue" not in known else language


KINDS = {
    "glmasr": ("glmasr", ours, ("float32", "bfloat16", "int8")),
    "openai-whisper": ("whisper", openai_whisper, ("float32",)),
    "faster-whisper": ("faster_whisper", faster_whisper, ("float32", "int8")),
}  # name: module, function, types


# ---- in a process of its own -----------------------------------------------------------------------------------------------

recognize = None  # of this process


def begin(make, dtype: str, args, checkpoint: str) -> None:
    global recognize
    recognize = make(dtype, args, checkpoint)


def work(recordings: list[tuple[np.ndarray, str]]) -> list[tuple[str, float]]:
    """(samples, language) of some -> (text, seconds of work) of each."""
    found = []
    for samples, language in recordings:
        start = time.perf_counter()
        text = recognize(samples, language)
        found.append((text, time.perf_counter() - start))
    return found


def memory() -> float:
    """MiB, at the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def prepare(paths: list[Path], model: Path, checkpoint: str) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Samples of the recordings, and the languages that the model has tokens for; writes the weights for
    openai-whisper."""
    import torch

    from glmasr import audio, weights

    loaded = weights.load(model)
    torch.save(openai_checkpoint(loaded), checkpoint)
    return [np.asarray(audio.load(path)) for path in paths], tuple(loaded.config.languages or ())


@dataclass
class Subject:
    """One that is measured."""

    name: str
    pool: ProcessPoolExecutor
    found: list[tuple[str, float]] = field(default_factory=list)
    memory: float = 0.0


# ---- the table -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    path: Path
    language: str
    text: str
    speaker: str


def read(manifest: Path, kind: str | None, languages: list[str], most: int | None) -> list[Clip]:
    """The recordings of a manifest: of each language at most so many, of as many speakers as there are, the languages
    one after the other."""
    with open(manifest, encoding="utf-8", newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if kind in (None, row.get("kind"))
        ]
    chosen = []
    for language in languages:
        seen: dict[str, int] = {}
        some = []
        for row in rows:
            if row["language"] == language:
                seen[row["speaker"]] = seen.get(row["speaker"], 0) + 1
                some.append(
                    (seen[row["speaker"]], Clip(manifest.parent / row["path"], language, row["text"], row["speaker"]))
                )
        chosen += [
            clip for _, clip in sorted(some, key=lambda one: one[0])[:most]
        ]  # a stable order: first one of each speaker
    if not chosen:
        sys.exit(
            f"{manifest} has no recording in {', '.join(languages)}{f' of the kind {kind!r}' if kind else ''}; "
            "expected columns path, language, text and speaker, with tabs"
        )
    return chosen


def table(subjects: list[Subject], clips: list[Clip], sounds: list[np.ndarray], language: str) -> tuple[str, list[str]]:
    """A table in Markdown, and those that make fewer errors than this package by more than the interval."""
    places = [place for place, clip in enumerate(clips) if clip.language == language]
    speakers = [clips[place].speaker for place in places]
    seconds = sum(len(sounds[place]) for place in places) / RATE
    lines = [
        f"| {NAMES.get(language, language)} | errors, % (95 %) | substituted | deleted | inserted | glmasr float32 less this, points (95 %) | "
        "real-time factor | peak memory, MiB |",
        "|---" * 8 + "|",
    ]
    better, first = [], None
    for subject in subjects:
        errors = [Errors.of(subject.found[place][0], clips[place].text, language) for place in places]
        total = sum(errors, Errors())
        wrong, count = np.array([one.wrong for one in errors]), np.array([one.count for one in errors])
        low, high = interval(wrong, count, speakers)
        first = wrong if first is None else first
        less, more = interval(first - wrong, count, speakers)
        if less > 0:
            better.append(subject.name)
        difference = (
            ""
            if subject is subjects[0]
            else f"{100 * (first - wrong).sum() / total.count:+.2f} ({less:+.2f} to {more:+.2f})"
        )
        lines.append(
            f"| {subject.name} | {total.percent:.2f} ({low:.2f}-{high:.2f}) | {total.substitutions} | {total.deletions} | {total.insertions} | {difference} | "
            f"{sum(subject.found[place][1] for place in places) / seconds:.3f} | {subject.memory:.0f} |"
        )
    lines.append(
        f"\n{len(places)} recordings of {len(set(speakers))} speakers, {seconds:.0f} s of sound, {count.sum()} {NAMES.get(language, 'x, words').split(', ')[1]}.\n"
    )
    return "\n".join(lines), better


def machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--languages",
        nargs="+",
        default=["en", "zh"],
        choices=list(NAMES),
        help="by default en and zh; a model of English alone: en",
    )
    parser.add_argument("--kind", help="only recordings of this kind")
    parser.add_argument("--most", type=int, metavar="N", help="recordings of each language at the most (default: all)")
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()

    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(Path(folder) / "openai.pt")
        clips = read(args.manifest, args.kind, args.languages, args.most)
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            sounds, known = pool.submit(prepare, [clip.path for clip in clips], args.model, checkpoint).result()
        if not known:
            kept = [place for place, clip in enumerate(clips) if clip.language == "en"]
            clips, sounds, args.languages = [clips[place] for place in kept], [sounds[place] for place in kept], ["en"]

        subjects = []
        for name, (module, make, dtypes) in KINDS.items():
            if importlib.util.find_spec(module) is None:
                print(
                    f"{name} isn't installed and is left out: pip install -c constraints.txt '.[bench]'",
                    file=sys.stderr,
                )
            elif name == "faster-whisper" and not (args.model / "model.bin").is_file():
                print(f"{name} is left out: {args.model} has no model.bin, its format", file=sys.stderr)
            else:
                subjects += [
                    Subject(
                        f"{name} {dtype}",
                        ProcessPoolExecutor(
                            1, mp_context=context, initializer=begin, initargs=(make, dtype, args, checkpoint)
                        ),
                    )
                    for dtype in dtypes
                ]

        recordings = [(samples, clip.language) for samples, clip in zip(sounds, clips)]
        for subject in subjects:
            subject.pool.submit(work, recordings[:1]).result()  # loads, and prepares the kernels: not counted
        with tqdm(total=len(subjects) * len(clips), unit="recording") as progress:
            for turn, start in enumerate(range(0, len(clips), TURN)):
                some = recordings[start : start + TURN]
                for subject in (*subjects[turn % len(subjects) :], *subjects[: turn % len(subjects)]):
                    subject.found += subject.pool.submit(work, some).result()
                    progress.update(len(some))
        for subject in subjects:
            subject.memory = subject.pool.submit(memory).result()
            subject.pool.shutdown()

    packages = ("torch", "openai-whisper", "faster-whisper", "ctranslate2")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages if installed(name))
    print(
        f"`{args.model.name}`, {args.beams} beams, {args.threads} threads; {datetime.date.today()}, {machine()}; Python {platform.python_version()}, {versions}\n"
    )
    better = []
    for language in args.languages:
        text, some = table(subjects, clips, sounds, language)
        better += [f"{language}: {name}" for name in some]
        print(text)
    if better:
        sys.exit(f"fewer errors than glmasr float32, by more than the interval: {'; '.join(better)}")


def installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


if __name__ == "__main__":
    main()
