"""Long recordings of people and short clips: the time of this package beside that of openai-whisper, faster-whisper (plain
and batched) and Transformers' pipeline, all with the same Whisper weights.

    pip install -c constraints.txt '.[bench,vad]'
    python benchmarks/peers.py MANIFEST --models base tiny.en --lengths clip 3 60 --beams 1 5 --results peers.json
    python benchmarks/peers.py --results peers.json --table          the README's six lines, of what is there
    python benchmarks/peers.py --results peers.json --report         all tables and bars, of what is there

MANIFEST and the models are as for `real.py`. A recording of so many minutes is made of the manifest's clips in one
language, in random order, with pauses of 0.3 to 0.8 s; once all of them were said they come again in another order. `clip`
are the ten clips whose length is nearest to 5 s, one by one.

Each run is a process of its own: it loads, recognizes one short clip, which isn't counted, and then takes the recording,
from samples to text, with the language and the beams given, and all else as it does by default. The subjects take turns;
a ratio is of two runs in the same turn. What a run found is added to the results at once, and isn't run again: a command
that was stopped goes on, and `--subjects` and `--turns` leave for later what takes long. Results of another machine, other
versions or other recordings are refused.

The exit code is 1 if a run failed.
"""

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np

# TRAP: as there, a process's peak begins at its parent's, so nothing large is imported or held here.
import real
from real import RATE, Clip, Errors, installed, language_for, machine, memory

from glmasr.errors import OptionError
from glmasr.evaluation.scoring import check_extra

PAUSES = 0.3, 0.8  # seconds between clips
SHORT, SHORT_CLIPS = 5.0, 10  # seconds; how many of about that length
PACKAGES = ("torch", "openai-whisper", "faster-whisper", "ctranslate2", "transformers")
OURS = "glmasr"
PLAIN, BATCHED = "faster-whisper", "faster-whisper batched"


# ---- those that recognize --------------------------------------------------------------------------------------------


def batched(dtype: str, args, checkpoint: str):
    """faster-whisper's pipeline that decodes several windows at once."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    model = WhisperModel(str(args.model), device="cpu", compute_type=dtype, cpu_threads=args.threads)
    pipeline = BatchedInferencePipeline(model=model)

    def recognize(samples: np.ndarray, language: str) -> str:
        known = language_for(language, model.supported_languages)
        segments, _ = pipeline.transcribe(samples, language=known, beam_size=args.beams)
        return "".join(segment.text for segment in segments)

    return recognize


def transformers(dtype: str, args, checkpoint: str):
    """Transformers' pipeline, with windows of 30 s that overlap, eight at once."""
    import torch
    from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration, pipeline
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    folder = published(checkpoint)
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    recognizer = pipeline(
        "automatic-speech-recognition",
        model=model,
        tokenizer=tokenizer,
        feature_extractor=WhisperFeatureExtractor.from_pretrained(folder),
        chunk_length_s=30,
        batch_size=8,
        device="cpu",
    )
    known = getattr(model.generation_config, "lang_to_id", None)

    def recognize(samples: np.ndarray, language: str) -> str:
        how = {"num_beams": args.beams}
        if known:
            how |= {"language": language_for(language, [name.strip("<|>") for name in known]), "task": "transcribe"}
        return recognizer({"raw": samples, "sampling_rate": RATE}, generate_kwargs=how)["text"]

    return recognize


SUBJECTS = {
    OURS: ("glmasr", real.ours, ("auto", "int8")),
    "openai-whisper": ("whisper", real.openai_whisper, ("float32",)),
    PLAIN: ("faster_whisper", real.faster_whisper, ("float32", "int8")),
    BATCHED: ("faster_whisper", batched, ("float32", "int8")),
    "Transformers": ("transformers", transformers, ("float32",)),
}  # name: module, function, types


def published(checkpoint: str) -> Path:
    """Where the weights are in Transformers' format, beside those in openai-whisper's."""
    return Path(checkpoint).with_name("transformers")


# ---- recordings ------------------------------------------------------------------------------------------------------


def compose(clips: list[Clip], sounds: list[np.ndarray], minutes: float, seed: int = 1) -> tuple[np.ndarray, str]:
    """Clips and their samples -> samples of at most so many minutes, and what is said. As long as there is room, all clips
    come once before one comes again."""
    draw, pieces, texts, room = random.Random(seed), [], [], round(60 * minutes * RATE)
    while True:
        for place in draw.sample(range(len(clips)), len(clips)):
            pause = np.zeros(round(draw.uniform(*PAUSES) * RATE), np.float32) if pieces else np.zeros(0, np.float32)
            if len(pause) + len(sounds[place]) > room:
                if not pieces:
                    raise ValueError(f"no clip fits into {minutes} minutes")
                return np.concatenate(pieces), " ".join(texts)
            pieces += [pause, sounds[place]]
            texts.append(clips[place].text)
            room -= len(pause) + len(sounds[place])


def recordings(clips: list[Clip], sounds: list[np.ndarray], length: str) -> list[tuple[np.ndarray, str]]:
    """Samples and text of each recording of a length: "clip", or a number of minutes."""
    if length != "clip":
        return [compose(clips, sounds, float(length))]
    nearest = sorted(range(len(clips)), key=lambda place: abs(len(sounds[place]) / RATE - SHORT))[:SHORT_CLIPS]
    return [(sounds[place], clips[place].text) for place in nearest]


def prepare(clips: list[Clip], lengths: list[str], folder: Path) -> dict[str, list[tuple[str, float, str]]]:
    """Writes the recordings; returns of each length (path, seconds, text) of them, and under "" the one to begin with."""
    from glmasr import audio

    sounds = [np.asarray(audio.load(clip.path), np.float32) for clip in clips]
    found = {length: recordings(clips, sounds, length) for length in lengths}
    found[""] = recordings(clips, sounds, "clip")[:1]
    made = {}
    for length, some in found.items():
        for number, (samples, _) in enumerate(some):
            np.save(folder / f"{length}-{number}.npy", samples)
        made[length] = [
            (str(folder / f"{length}-{number}.npy"), len(samples) / RATE, text)
            for number, (samples, text) in enumerate(some)
        ]
    return made


def convert(model: Path, checkpoint: str) -> tuple[str, ...]:
    """Writes the weights of a model for openai-whisper and for Transformers; returns the languages that it has tokens for."""
    import shutil

    import torch

    from glmasr import weights

    loaded = weights.load(model)
    torch.save(real.openai_checkpoint(loaded), checkpoint)
    weights.save(loaded, published(checkpoint), torch.float32)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (model / name).is_file():
            shutil.copy(model / name, published(checkpoint))
    return tuple(loaded.config.languages or ())


# ---- runs ------------------------------------------------------------------------------------------------------------


def measure(paths: list[str], language: str) -> tuple[list[str], float, float]:
    """In the subject's process: the texts of some recordings, seconds, and seconds of the processor."""
    sounds = [np.load(path) for path in paths]
    start, cpu = time.perf_counter(), time.process_time()
    texts = [real.recognize(samples, language) for samples in sounds]
    return texts, time.perf_counter() - start, time.process_time() - cpu


def run(make, dtype: str, args, checkpoint: str, made: dict, length: str) -> dict:
    """A subject in a process of its own -> what is kept of it."""
    paths = [path for path, _, _ in made[length]]
    context = get_context("spawn")
    with ProcessPoolExecutor(
        1, mp_context=context, initializer=real.begin, initargs=(make, dtype, args, checkpoint)
    ) as pool:
        pool.submit(measure, [made[""][0][0]], args.language).result()
        texts, seconds, cpu = pool.submit(measure, paths, args.language).result()
        peak = pool.submit(memory).result()
    errors = sum(
        (Errors.of(text, said, args.language) for text, (_, _, said) in zip(texts, made[length], strict=True)), Errors()
    )
    return {
        "sound": sum(seconds for _, seconds, _ in made[length]),
        "recordings": len(paths),
        "seconds": seconds,
        "cpu": cpu,
        "memory": peak,
        "substitutions": errors.substitutions,
        "deletions": errors.deletions,
        "insertions": errors.insertions,
        "said": errors.count,
        "date": str(datetime.date.today()),
        "texts": texts,
    }


KEYS = ("model", "length", "beams", "subject", "dtype", "turn")


def key(record: dict) -> tuple:
    return tuple(record[name] for name in KEYS)


def keep(path: Path, results: dict) -> None:
    """Writes the results, so that a stop in the middle leaves those from before."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(results, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def opened(path: Path, conditions: dict | None) -> dict:
    """The results in a file, a new one if there is none; only those of the same conditions."""
    if not path.exists():
        if conditions is None:
            sys.exit(f"{path} isn't there; expected results of an earlier run")
        return {"conditions": conditions, "runs": []}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        before, _ = results["conditions"], results["runs"]
    except (ValueError, LookupError, TypeError, OSError) as error:
        sys.exit(f"{path} holds no results of this program ({error}); expected another file")
    differ = [] if conditions is None else [name for name in conditions if before.get(name) != conditions[name]]
    if differ:
        name = differ[0]
        sys.exit(
            f"{path} was measured with {name} {before.get(name)!r}, and now it is {conditions[name]!r}; expected the "
            "same, or another file for --results"
        )
    return results


# ---- tables ----------------------------------------------------------------------------------------------------------


class Cell:
    """All turns of a subject in one type, with a model, a recording and a number of beams."""

    def __init__(self, name: str, dtype: str, records: list[dict]):
        self.name, self.dtype = name, dtype
        self.turns = {record["turn"]: record for record in records}
        first = records[0]
        self.sound, self.said = first["sound"], first["said"]
        self.recordings = first["recordings"]

    @property
    def seconds(self) -> float:
        """The median of the turns, for each recording."""
        return statistics.median(record["seconds"] for record in self.turns.values()) / self.recordings

    def median(self, name: str) -> float:
        return statistics.median(record[name] for record in self.turns.values())

    def wrong(self, *kinds: str) -> float:
        """Per cent of what was said, the median of the turns."""
        kinds = kinds or ("substitutions", "deletions", "insertions")
        return (
            100 * statistics.median(sum(record[kind] for kind in kinds) for record in self.turns.values()) / self.said
        )

    def times(self, other: "Cell") -> float | None:
        """How often this one's time goes into the other's, the median of the turns that both have."""
        both = self.turns.keys() & other.turns.keys()
        ratios = [other.turns[turn]["seconds"] / self.turns[turn]["seconds"] for turn in both]
        return statistics.median(ratios) if ratios else None

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}"


def cells(runs: list[dict]) -> dict[tuple, list[Cell]]:
    """(model, length, beams) -> the subjects, in the order in which they are named above."""
    grouped: dict[tuple, dict[tuple, list[dict]]] = {}
    for record in runs:
        group = grouped.setdefault((record["model"], record["length"], record["beams"]), {})
        group.setdefault((record["subject"], record["dtype"]), []).append(record)
    order = list(SUBJECTS)
    lengths = sorted({length for _, length, _ in grouped}, key=lambda length: 0 if length == "clip" else float(length))
    return {
        place: [
            Cell(*name, records) for name, records in sorted(grouped[place].items(), key=lambda x: order.index(x[0][0]))
        ]
        for place in sorted(grouped, key=lambda place: (lengths.index(place[1]), place[0], -place[2]))
    }


def named(place: tuple) -> str:
    model, length, beams = place
    what = f"clip of {SHORT:g} s" if length == "clip" else f"{length} min"
    return f"`{model}`, {what}, {f'{beams} beams' if beams > 1 else 'greedy'}"


def fastest(some: list[Cell]) -> Cell | None:
    return min(some, key=lambda cell: cell.seconds, default=None)


def report(results: dict) -> str:
    """A table for each model, recording and number of beams, and its bars."""
    parts = []
    for place, some in cells(results["runs"]).items():
        ours = [cell for cell in some if cell.name == OURS]
        best = fastest(ours)
        lines = [
            f"| {named(place)} | s, median (least-greatest) | times the fastest glmasr's, in a turn | real-time factor | "
            "CPU, s | peak memory, MiB | errors, % | of them deleted, % | turns |",
            "|---" * 9 + "|",
        ]
        for cell in some:
            seconds = sorted(record["seconds"] / cell.recordings for record in cell.turns.values())
            ratio = None if best is None or cell is best else best.times(cell)
            lines.append(
                f"| {cell} | {cell.seconds:.2f} ({seconds[0]:.2f}-{seconds[-1]:.2f}) | {'' if ratio is None else f'{ratio:.2f}'} | "
                f"{cell.seconds * cell.recordings / cell.sound:.3f} | {cell.median('cpu') / cell.recordings:.2f} | {cell.median('memory'):.0f} | "
                f"{cell.wrong():.2f} | {cell.wrong('deletions'):.2f} | {len(cell.turns)} |"
            )
        parts += ["\n".join(lines), "\n".join(f"- {line}" for line in bars(place, some))]
    return "\n\n".join(part for part in parts if part)


def bars(place: tuple, some: list[Cell]) -> list[str]:
    """What is asked for of a model, a recording and a number of beams, met or not."""
    _, length, beams = place
    ours = fastest([cell for cell in some if cell.name == OURS])
    others = [cell for cell in some if cell.name != OURS]
    if ours is None or not others:
        return []
    if length == "clip":
        asked = [("the fastest of the others", 1.0, others)]
    elif beams > 1:
        asked = [(PLAIN, 2.5, others), (BATCHED, 1.5, others)]
    else:
        asked = [(PLAIN, 2.0, others)]
    lines = []
    for name, bar, among in asked:
        other = fastest([cell for cell in among if name not in (PLAIN, BATCHED) or cell.name == name])
        ratio = None if other is None else ours.times(other)
        if other is not None and ratio is not None:
            lines.append(
                f"{ours} {ratio:.2f} x as fast as {other} (bar {bar:g} x): {'met' if ratio >= bar else 'not met'}"
            )
    least = min(others, key=lambda cell: cell.wrong())
    found = f"{ours} {ours.wrong():.2f} % errors, fewest of the others {least.wrong():.2f} % ({least})"
    return [*lines, f"{found}: {'met' if ours.wrong() <= least.wrong() else 'not met'}"]


def short_table(results: dict) -> str:
    """The README's: a line for each subject, of faster-whisper in the faster type; seconds and errors in each cell."""
    places = cells(results["runs"])
    lines = [
        "| s, errors | " + " | ".join(named(place) for place in places) + " |",
        "|---" * (1 + len(places)) + "|",
    ]
    rows = [(OURS, "auto"), (OURS, "int8"), *((name, None) for name in SUBJECTS if name != OURS)]
    for name, dtype in rows:
        found = [
            fastest([cell for cell in some if cell.name == name and dtype in (None, cell.dtype)])
            for some in places.values()
        ]
        several = dtype is None and len(SUBJECTS[name][2]) > 1
        texts = [
            "" if cell is None else f"{cell.seconds:.3g} s{f' ({cell.dtype})' if several else ''}, {cell.wrong():.1f} %"
            for cell in found
        ]
        lines.append(f"| {name}{f' {dtype}' if dtype else ''} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def described(results: dict) -> str:
    conditions = results["conditions"]
    dates = sorted({record["date"] for record in results["runs"]})
    when = f"{dates[0]} to {dates[-1]}" if dates[1:] else "".join(dates) or "nothing measured"
    return (
        f"{when}, {conditions['machine']}, {conditions['threads']} threads; Python {conditions['python']}, "
        f"{', '.join(f'{name} {number}' for name, number in conditions['packages'].items())}"
    )


# ---- command ---------------------------------------------------------------------------------------------------------


def chosen(names: list[str] | None) -> list[tuple[str, str, object]]:
    """(subject, type, function) of those that are asked for, `NAME` or `NAME:TYPE`, and installed."""
    found = []
    for name, (module, make, dtypes) in SUBJECTS.items():
        wanted = [one.partition(":")[2] for one in names or [name] if one.partition(":")[0].lower() == name.lower()]
        if wanted and find_spec(module) is None:
            print(f"{name} isn't installed and is left out: pip install -c constraints.txt '.[bench]'", file=sys.stderr)
        elif wanted:
            found += [(name, dtype, make) for dtype in ([one for one in wanted if one] if all(wanted) else dtypes)]
    return found


def subject(text: str) -> str:
    name = text.partition(":")[0].lower()
    if name not in (known.lower() for known in SUBJECTS):
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of {', '.join(SUBJECTS)}; a type may follow, as in glmasr:float32"
        )
    return text


def length(text: str) -> str:
    try:
        if text == "clip" or 0 < float(text) <= 600:
            return text
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is neither 'clip' nor minutes above 0, 600 at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("manifest", type=Path, nargs="?")
    parser.add_argument("--models", type=Path, nargs="+", metavar="DIR", help="Whisper models with model.bin")
    parser.add_argument("--lengths", type=length, nargs="+", default=["clip", "3", "60"], metavar="MINUTES")
    parser.add_argument("--beams", type=int, nargs="+", default=[5, 1])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--subjects", type=subject, nargs="+", metavar="NAME", help=f"of {', '.join(SUBJECTS)}; NAME:TYPE for one type"
    )
    parser.add_argument("--language", default="en", choices=list(real.NAMES))
    parser.add_argument("--kind", default="sentence", help="only clips of this kind (default: sentence)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, required=True, metavar="JSON")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--table", action="store_true", help="the README's lines, of the results alone")
    what.add_argument("--report", action="store_true", help="all tables and bars, of the results alone")
    args = parser.parse_args()
    if args.table or args.report:
        results = opened(args.results, None)
        print(f"{described(results)}\n\n{short_table(results) if args.table else report(results)}")
        return
    if args.manifest is None or not args.models:
        parser.error("expected a manifest and --models, or --table or --report")
    try:
        check_extra()
    except OptionError as error:
        parser.error(str(error))
    for model in args.models:
        if not (model / "model.bin").is_file():
            parser.error(f"{model} has no model.bin, faster-whisper's format")
    clips = real.read(args.manifest, args.kind, [args.language], None)
    said = "\n".join(f"{clip.path.name}\t{clip.text}" for clip in clips)
    results = opened(
        args.results,
        {
            "machine": machine(),
            "threads": args.threads,
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES if installed(name)},
            "language": args.language,
            "clips": zlib.crc32(said.encode()),
        },
    )
    failed = measure_all(args, clips, results)
    print(f"{described(results)}\n\n{report(results)}")
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


def places(args, model: Path) -> Iterator[tuple[dict, object]]:
    """The runs of a model, in their order: what is said of each in the results, and the subject's function."""
    wanted = chosen(args.subjects)
    for minutes, beams, turn in product(args.lengths, args.beams, range(args.turns)):
        first = turn % max(1, len(wanted))
        for name, dtype, make in wanted[first:] + wanted[:first]:
            yield dict(zip(KEYS, (model.name, minutes, beams, name, dtype, turn), strict=True)), make


def measure_all(args, clips: list[Clip], results: dict) -> list[str]:
    """All runs that aren't there yet, each kept at once; returns those that failed."""
    there, failed = {key(record) for record in results["runs"]}, []
    for model in args.models:
        left = [(place, make) for place, make in places(args, model) if key(place) not in there]
        if not left:
            continue
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = str(Path(folder) / "openai.pt")
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                made = pool.submit(prepare, clips, args.lengths, Path(folder)).result()
                known = pool.submit(convert, model, checkpoint).result()
            if not known and args.language != "en":
                sys.exit(f"{model} knows English only, and --language is {args.language!r}")
            for place, make in left:
                of_run = argparse.Namespace(**vars(args) | {"model": model, "beams": place["beams"]})
                told = f"{named(tuple(place[name] for name in KEYS[:3]))}: {place['subject']} {place['dtype']}"
                try:
                    found = run(make, place["dtype"], of_run, checkpoint, made, place["length"])
                except Exception as error:  # of another package, or memory: the others go on
                    failed.append(f"{told}: {type(error).__name__}: {error}")
                    print(failed[-1], file=sys.stderr, flush=True)
                    continue
                results["runs"].append(place | found)
                keep(args.results, results)
                print(f"{told}, turn {place['turn'] + 1}: {found['seconds']:.1f} s", file=sys.stderr, flush=True)
    return failed


if __name__ == "__main__":
    main()
