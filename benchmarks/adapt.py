"""What fine-tuning brings in a domain, and what it costs elsewhere: new voices, rare terms, a telephone line.

    pip install -c constraints.txt '.[train,eval]'; apt-get install flite
    python benchmarks/adapt.py MANIFEST --model DIR ... --people NAME ... --others NAME ... --out DIR
        [--clips 10 30 100 300] [--seeds 1 2 3] [--ways full lora] [--table md] [-- OPTIONS OF TRAIN.PY]

MANIFEST is a table with tabs and a header: path (beside it), language, text, speaker. Clips of --people are trained on, and
those of --others tested, both through the same line as the sentences with rare terms, which synthesizers say (`domains.py`):
every fourth clip is of a person as long as there are any. All other people of the manifest are the untouched set, clean as
they are: who forgets makes more errors there. A text that was trained on is in neither test.

Training is `training/train.py` with its defaults, and a fifth as many clips, 10 to 40, that it keeps the best by. Texts are
found greedily, and counted by `glmasr.evaluation`: words after Whisper's English normalizer, Chinese by characters. The
tests are the same for all seeds, what is trained on is not. A run that is there is not repeated. Runs share the states of
the frozen encoder; in the CPU minutes of each are those of all its clips, those of others at the rate that was measured.

Bars, of each model and way with 100 clips: errors in the domain fall by a third in the mean of the seeds, those on the
untouched set rise by at most 0.2 points in the mean, and no seed ends with more errors in the domain than it began with.
"""

import argparse
import csv
import datetime
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "training"), str(ROOT / "benchmarks")]

from domains import DOMAINS, Domain, missing, sentences, speak, telephone  # noqa: E402

RATE = 16_000
MOST = 300  # clips of a seed
TESTED = 40  # synthetic clips of the test
REAL = 4  # each fourth clip is of a person
JUDGED = 8  # clips of people that are not trained on, but the best is kept by
WAYS = {"full": [], "lora": ["--lora", "16"]}
BARS = {"clips": 100, "fall": 1 / 3, "forgetting": 0.2}


class UsageError(Exception):
    """What was asked for can't be done; the message is for the user."""


# ---- what is said: texts and people of each part -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    """A clip of the manifest."""

    path: str
    language: str
    text: str
    speaker: str


def read(manifest: Path) -> list[Person]:
    """Raises UsageError."""
    try:
        with open(manifest, encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        return [
            Person(
                str((manifest.parent / row["path"]).resolve()),
                row["language"],
                row["text"].lower() if row["text"].isupper() else row["text"],
                row["speaker"],
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{manifest}: can't be used ({type(error).__name__}: {error}); expected a table with tabs and a header: path, "
            "language, text, speaker"
        ) from None


@dataclass(frozen=True)
class Split:
    """Clips of people: to train with, to test with, and those of the untouched set."""

    train: list[Person]
    test: list[Person]
    untouched: list[Person]


def split(rows: list[Person], people: list[str], others: list[str], untouched: list[str]) -> Split:
    """By person, and no text that is trained on is in a test. Raises UsageError."""
    known = {row.speaker for row in rows}
    for name in [*people, *others, *untouched]:
        if name not in known:
            raise UsageError(f"{name}: no clip of the manifest is of such a speaker; expected some of {listed(known)}")
    for one, two in ((people, others), (people, untouched), (others, untouched)):
        if both := set(one) & set(two):
            raise UsageError(f"{listed(both)}: expected each speaker in one part only")
    train = [row for row in rows if row.speaker in people and row.language == "en"]
    texts = {plain(row.text) for row in train}
    rest = [row for row in rows if plain(row.text) not in texts]
    untouched = untouched or sorted(known - {*people, *others})
    return Split(
        train,
        [row for row in rest if row.speaker in others and row.language == "en"],
        [row for row in rest if row.speaker in untouched and row.language in ("en", "zh")],
    )


def plain(text: str) -> str:
    """To compare texts by."""
    return " ".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())


def listed(names, most: int = 8) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + ", ..." * (len(names) > most)


def mixed(synthetic: list, people: list, count: int) -> list:
    """The first `count` of both, each fourth of a person as long as there are any."""
    synthetic, people = iter(synthetic), iter(people)
    found = []
    for number in range(count):
        one = next(people, None) if number % REAL == REAL - 1 else None
        found.append(next(synthetic) if one is None else one)
    return found


def judges(clips: int) -> int:
    """How many clips the best is kept by."""
    return min(40, max(10, clips // 5))


def texts_of(domain: Domain, seed: int) -> tuple[list[str], list[str]]:
    """What synthesizers say for a seed: to train with, and to keep the best by."""
    found = sentences(domain, False, random.Random(f"texts {seed}"), MOST + judges(MOST))
    random.Random(f"order {seed}").shuffle(found)
    return found[:MOST], found[MOST:]


# ---- recordings --------------------------------------------------------------------------------------------------------------


class Data:
    """Recordings and manifests of a domain in a folder; what is there is not made again."""

    def __init__(self, folder: Path, domain: str, people: Split):
        self.folder, self.name, self.domain, self.people = folder, domain, DOMAINS[domain], people
        self.folder.mkdir(parents=True, exist_ok=True)

    def known(self, name: str, make: Callable[[], list[dict]]) -> Path:
        """A manifest by its name; `make` gives its lines if it is not there."""
        path = self.folder / f"{name}.jsonl"
        if not path.is_file():
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in make())
            path.with_suffix(".part").write_text(text, encoding="utf-8")
            path.with_suffix(".part").replace(path)
        return path

    def clip(self, what: str | Person, test: bool, seed: str) -> dict:
        """A text that a synthesizer says, or a clip of a person, through the line -> a line of a manifest."""
        import soundfile

        from glmasr import audio

        if isinstance(what, str):
            spoken = speak(what, self.domain, test, random.Random(seed))
            samples, text, speaker = spoken.samples, spoken.text, spoken.voice
        else:
            samples, text, speaker = audio.load(what.path).numpy(), what.text, what.speaker
        number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
        path = self.folder / "clips" / f"{number:016x}.flac"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, telephone(samples, np.random.default_rng(number)), RATE)
        return {"audio": f"clips/{path.name}", "text": text, "language": "en", "speaker": speaker}

    def test(self) -> Path:
        """Other sentences, voices and people."""

        def make():
            texts = sentences(self.domain, True, random.Random("test"), TESTED)
            found = [*texts, *self.people.test]
            return [self.clip(what, True, f"{self.name} test {number}") for number, what in enumerate(found)]

        return self.known("test", make)

    def untouched(self) -> Path:
        return self.known(
            "untouched",
            lambda: [
                {"audio": row.path, "text": row.text, "language": row.language, "speaker": row.speaker}
                for row in self.people.untouched
            ],
        )

    def train(self, seed: int, clips: int) -> tuple[Path, Path]:
        """Manifests to train with, and to keep the best by. The first clips of a seed are the same, however many follow."""
        rng, (learned, judged) = random.Random(f"people {seed}"), texts_of(self.domain, seed)
        people = rng.sample(self.people.train, len(self.people.train))
        parts = {
            "train": (mixed(learned, people[JUDGED:], MOST), clips),
            "eval": (mixed(judged, people[:JUDGED], judges(MOST)), judges(clips)),
        }

        def made(name: str) -> Path:
            found, count = parts[name]
            where = f"{self.name} {name} {seed}"
            return self.known(
                f"{name}-{seed}-{count}",
                lambda: [self.clip(what, False, f"{where} {number}") for number, what in enumerate(found[:count])],
            )

        return made("train"), made("eval")


# ---- scores ------------------------------------------------------------------------------------------------------------------


def score(model: str, adapter: Path | None, manifest: Path, shared: Path) -> tuple[list[dict], float]:
    """A line for each clip that the model knows the language of: language, speaker, errors and words (Chinese:
    characters), and the text that was found; and the CPU seconds of a window in the encoder, 0 if no states were missing in
    `shared`."""
    import torch
    from evaluate import recognized
    from families import family_of
    from manifest import read_manifests
    from states import States

    import glmasr
    from glmasr.evaluation.scoring import Errors

    # Plain: the states are those of the trainer's modules.
    recognizer = glmasr.load(model, device="cpu", dtype="float32", adapter=adapter, plain=True, progress=False)
    languages = getattr(recognizer.config, "languages", None)
    rows = [row for row in read_manifests([manifest]) if row.language == "en" or languages]
    shared.mkdir(parents=True, exist_ok=True)
    states = States(shared, family_of(recognizer.model, recognizer.tokenizer))
    there, began = len(states.places), time.process_time()
    with torch.inference_mode():
        states.fill(rows, lambda line: None)
    seconds = (time.process_time() - began) / max(1, len(states.places) - there)
    states.serve(recognizer)
    found = recognized(recognizer, rows, language="given" if languages else "auto")
    lines = []
    for row, transcript in zip(rows, found, strict=True):
        errors = Errors.of(transcript.text, row.text, row.language)
        kind = "synthetic" if row.speaker.startswith("flite-") else "person"
        about = {"language": row.language, "speaker": row.speaker, "kind": kind}
        lines.append(about | {"wrong": errors.wrong, "count": errors.count, "said": row.text, "found": transcript.text})
    return lines, seconds if len(states.places) > there else 0.0


def rate(lines: list[dict]) -> float:
    """Errors in per cent of what was said."""
    return 100 * sum(line["wrong"] for line in lines) / max(1, sum(line["count"] for line in lines))


def of(lines: list[dict], **fields: str) -> list[dict]:
    """The lines with these fields."""
    return [line for line in lines if all(line[name] == value for name, value in fields.items())]


# ---- runs --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What is trained."""

    model: str
    way: str
    clips: int
    seed: int

    @property
    def name(self) -> str:
        return f"{Path(self.model).name}-{self.way}-{self.clips}-{self.seed}"


def train(run: Run, data: Data, folder: Path, shared: Path, threads: int, more: list[str]) -> dict:
    """Trains as a user would, but for encoder states that a run before has left in `shared` -> CPU and wall minutes, peak
    memory in MiB, and what the trainer said. Raises UsageError."""
    learned, judged = data.train(run.seed, run.clips)
    command = [sys.executable, str(ROOT / "training" / "train.py"), run.model, "--train", str(learned)]
    command += ["--eval", str(judged), "--out", str(folder), "--seed", str(run.seed), "--threads", str(threads)]
    command += [*WAYS[run.way], *more]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    link(shared, folder)
    there, began = windows(folder), time.monotonic()
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)  # with what its own processes used
        process.returncode = os.waitstatus_to_exitcode(status)
    said = (folder / "log.txt").read_text(encoding="utf-8").strip().splitlines()
    if process.returncode:
        raise UsageError(f"{run.name}: training ended with {process.returncode}: {said[-1] if said else 'not a word'}")
    return {
        "cpu_minutes": (used.ru_utime + used.ru_stime) / 60,
        "wall_minutes": (time.monotonic() - began) / 60,
        "peak_mib": used.ru_maxrss / 1024,
        "windows": windows(folder) - there,  # whose encoder states were computed
        "of_windows": run.clips + judges(run.clips) if windows(folder) else 0,  # none, if the encoder is trained
        "recipe": next((line for line in said if line.startswith("recipe ")), ""),
        "kept": said[-1],
    }


def link(folder: Path, other: Path) -> None:
    """Kept encoder states of a folder are in the other one as well: the same files, to which both add."""
    other.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("states-*"):
        if not (other / path.name).exists():
            os.link(path, other / path.name)


def windows(folder: Path) -> int:
    """Whose encoder states are kept there."""
    return sum(len(path.read_text(encoding="ascii").splitlines()) - 1 for path in folder.glob("states-*.keys"))


def measured(run: Run, data: Data, out: Path, threads: int, more: list[str]) -> dict:
    """A run's result: that of the last time, or a new one."""
    path = out / "runs" / f"{run.name}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    folder = out / "training" / run.name
    shared = out / "states" / Path(run.model).name
    result = asdict(run) | {"options": more} | train(run, data, folder, shared, threads, more)
    link(folder, shared)
    adapter = folder / "adapter" if run.way == "lora" else None
    model = run.model if adapter else str(folder / "model")
    for name, manifest in (("domain", data.test()), ("untouched", data.untouched())):
        result[name], _ = score(model, adapter, manifest, shared)
    write(path, result)
    for gone in (folder / "model", folder / "state.safetensors", *folder.glob("states-*")):  # gigabytes
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)
    return result


def before(model: str, data: Data, out: Path) -> dict:
    """The unchanged model's scores."""
    path = out / "runs" / f"{Path(model).name}-before.json"
    if not path.is_file():
        shared = out / "states" / Path(model).name
        domain, seconds = score(model, None, data.test(), shared)
        untouched, _ = score(model, None, data.untouched(), shared)
        write(path, {"domain": domain, "untouched": untouched, "encoder_seconds": seconds})
    return json.loads(path.read_text(encoding="utf-8"))


def everything(out: Path) -> list[dict]:
    """All results that are there, also those of other commands, in order."""
    paths = [path for path in (out / "runs").glob("*.json") if not path.stem.endswith("-before")]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return sorted(found, key=lambda one: (one["model"], one["clips"], one["way"], one["seed"]))


def write(path: Path, fields: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(json.dumps(fields, ensure_ascii=False, indent=1), encoding="utf-8")
    path.with_suffix(".part").replace(path)


# ---- what came of it ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """Errors before and after, in per cent, and how many of how many."""

    before: float
    after: float
    wrong_before: int
    wrong_after: int
    count: int

    @classmethod
    def of(cls, then: list[dict], now: list[dict]) -> "Change":
        """Of the same clips."""
        wrong = [sum(line["wrong"] for line in lines) for lines in (then, now)]
        return cls(rate(then), rate(now), *wrong, sum(line["count"] for line in then))

    @property
    def points(self) -> float:
        return self.after - self.before

    @property
    def fall(self) -> float:
        """Share of the errors that are gone; below 0 if there are more."""
        return 1 - self.after / self.before if self.before else 0.0


def bars(domain: list[Change], untouched: dict[str, list[Change]]) -> dict[str, tuple[bool, str]]:
    """For each bar whether it is met, and by what: changes of all seeds in the domain, and for each language on the
    untouched set."""
    fall = float(np.mean([change.fall for change in domain]))
    worst = min(change.fall for change in domain)
    found = {
        "errors in the domain fall by a third": (fall >= BARS["fall"], f"{100 * fall:.1f} % of them"),
        "no seed ends worse": (worst >= 0, f"the least fall is {100 * worst:.1f} %"),
    }
    for language, changes in untouched.items():
        points = [change.points for change in changes]
        mean = float(np.mean(points))
        extra = [change.wrong_after - change.wrong_before for change in changes]
        found[f"forgetting at most {BARS['forgetting']} points, {language}"] = (
            mean <= BARS["forgetting"] + 1e-9,
            f"{mean:+.2f} points in the mean ({', '.join(f'{one:+d}' for one in extra)} of {changes[0].count})",
        )
    return found


def interval(then: list[dict], now: list[dict]) -> tuple[float, float]:
    """The change in points that 95 % of the draws of speakers have."""
    from glmasr.evaluation import significance

    wrong = np.array([late["wrong"] - early["wrong"] for early, late in zip(then, now, strict=True)])
    return significance.interval(wrong, np.array([line["count"] for line in then]), [line["speaker"] for line in then])


def rows_of(results: list[dict], baselines: dict[str, dict]) -> list[dict]:
    """Of each run what the table shows."""
    rows = []
    for result in results:
        then = baselines[result["model"]]
        row = {
            name: result[name]
            for name in ("model", "way", "clips", "seed", "cpu_minutes", "wall_minutes", "peak_mib", "recipe", "kept")
        }
        known = result["of_windows"] - result["windows"]
        row["cpu_minutes"] += known * then["encoder_seconds"] / 60
        row["domain"] = Change.of(then["domain"], result["domain"])
        for kind in ("synthetic", "person"):
            row[kind] = Change.of(of(then["domain"], kind=kind), of(result["domain"], kind=kind))
        row["interval"] = interval(then["domain"], result["domain"])
        languages = sorted({line["language"] for line in then["untouched"]})
        pairs = {
            name: (of(then["untouched"], language=name), of(result["untouched"], language=name)) for name in languages
        }
        row["untouched"] = {name: Change.of(*pair) for name, pair in pairs.items()}
        row["untouched_interval"] = {name: interval(*pair) for name, pair in pairs.items()}
        rows.append(row)
    return rows


def cells(row: dict) -> list[str]:
    """Of a run, or of the mean of some."""

    def arrow(change: Change) -> str:
        return f"{change.before:.1f} → {change.after:.1f}"

    untouched = []
    for name, change in row["untouched"].items():
        text = f"{name} {change.before:.2f} → {change.after:.2f} ({change.points:+.2f}"
        if "untouched_interval" in row:  # of a run, not of a mean
            low, high = row["untouched_interval"][name]
            text += f", {low:+.2f} to {high:+.2f}; {change.wrong_after - change.wrong_before:+d}"
        untouched.append(f"{text})")
    return [
        Path(row["model"]).name,
        row["way"],
        str(row["clips"]),
        str(row["seed"]),
        f"{arrow(row['domain'])} ({-100 * row['domain'].fall:+.0f} %)",
        arrow(row["synthetic"]),
        arrow(row["person"]),
        ", ".join(untouched),
        f"{row['cpu_minutes']:.1f}",
        f"{row['wall_minutes']:.1f}",
        f"{row['peak_mib']:.0f}",
    ]


def mean_of(rows: list[dict]) -> dict:
    """Of the seeds of a model, a way and a number of clips."""

    def mean(changes: list[Change]) -> Change:
        after = [change.after for change in changes]
        wrong = round(float(np.mean([change.wrong_after for change in changes])))
        return Change(changes[0].before, float(np.mean(after)), changes[0].wrong_before, wrong, changes[0].count)

    found = {name: rows[0][name] for name in ("model", "way", "clips")} | {"seed": "mean"}
    found |= {name: mean([row[name] for row in rows]) for name in ("domain", "synthetic", "person")}
    found["untouched"] = {name: mean([row["untouched"][name] for row in rows]) for name in rows[0]["untouched"]}
    return found | {
        name: float(np.mean([row[name] for row in rows])) for name in ("cpu_minutes", "wall_minutes", "peak_mib")
    }


HEAD = (
    "model",
    "way",
    "clips",
    "seed",
    "errors in the domain, %",
    "terms by synthesizers",
    "people",
    "untouched, % (points, 95 %; errors)",
    "CPU min",
    "wall min",
    "peak MiB",
)


def markdown(rows: list[dict]) -> str:
    """A table with a row for each run and a mean of the seeds, and the bars."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    verdicts = []
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["way"], row["clips"]), []).append(row)
    for (model, way, clips), some in groups.items():
        lines += [f"| {' | '.join(cells(row))} |" for row in [*some, *([mean_of(some)] if len(some) > 1 else [])]]
        if clips == BARS["clips"]:
            untouched = {name: [row["untouched"][name] for row in some] for name in some[0]["untouched"]}
            for bar, (met, why) in bars([row["domain"] for row in some], untouched).items():
                verdicts.append(
                    f"- {Path(model).name}, {way}, {len(some)} seeds: {bar}: {'met' if met else 'not met'}, {why}"
                )
    recipes = dict.fromkeys(f"- {row['way']}: {row['recipe']}" for row in rows)
    return "\n".join([*lines, "", *verdicts, *recipes])


def as_json(rows: list[dict]) -> list[dict]:
    return json.loads(
        json.dumps(rows, default=lambda change: asdict(change) | {"points": change.points, "fall": change.fall})
    )


# ---- the command ---------------------------------------------------------------------------------------------------------------


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="What follows -- is given to training/train.py."
    )
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", nargs="+", required=True, metavar="DIR")
    parser.add_argument("--people", nargs="+", required=True, metavar="NAME", help="speakers that are trained on")
    parser.add_argument(
        "--others", nargs="+", required=True, metavar="NAME", help="speakers that are tested in the domain"
    )
    parser.add_argument(
        "--untouched", nargs="+", default=[], metavar="NAME", help="default: all others of the manifest"
    )
    parser.add_argument("--clips", nargs="+", type=int, default=[10, 30, 100, 300])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--ways", nargs="+", default=[*WAYS], choices=[*WAYS])
    parser.add_argument("--domain", default="pharmacy", choices=[*DOMAINS])
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="recordings, runs, report.json, report.md"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", default="md", choices=["md", "json"], help="what is printed")
    # TRAP: argparse gives what follows -- to the first positional argument, or to none.
    place = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:place])
    args.more = argv[place + 1 :]
    return args


def main() -> None:
    args = arguments(sys.argv[1:])
    if wrong := [count for count in args.clips if not 1 <= count <= MOST]:
        raise UsageError(f"--clips {wrong[0]}: expected numbers from 1 to {MOST}")
    if program := missing():
        raise UsageError(f"{program} is not on the PATH; get it with apt-get install {program}")
    for model in args.model:
        if not Path(model).is_dir():
            raise UsageError(f"--model {model}: is no folder; expected a checkpoint")
    parts = split(read(args.manifest), args.people, args.others, args.untouched)
    for name, some in asdict(parts).items():
        if not some:
            raise UsageError(f"no clip is left for the part {name!r}; expected other speakers")
    settings = {"domain": args.domain, "parts": asdict(parts), "more": args.more}
    known = args.out / "settings.json"
    if known.is_file() and json.loads(known.read_text(encoding="utf-8")) != settings:
        raise UsageError(
            f"--out {args.out}: has runs with another domain, other people or options; expected another folder"
        )
    write(known, settings)

    from glmasr.evaluation.scoring import check_extra

    check_extra()
    import torch

    torch.set_num_threads(args.threads)
    data, baselines = Data(args.out / "data", args.domain, parts), {}
    for model in args.model:
        baselines[model] = before(model, data, args.out)
        for clips in args.clips:
            for way in args.ways:
                for seed in args.seeds:
                    run = Run(model, way, clips, seed)
                    result = measured(run, data, args.out, args.threads, args.more)
                    print(" ".join(cells(rows_of([result], baselines)[0])), file=sys.stderr, flush=True)
    results = everything(args.out)
    baselines = {result["model"]: before(result["model"], data, args.out) for result in results}
    rows = rows_of(results, baselines)
    about = {
        "date": f"{datetime.date.today()}",
        "torch": torch.__version__,
        "threads": args.threads,
        "options": args.more,
    }
    write(args.out / "report.json", about | {"rows": as_json(rows)})
    (args.out / "report.md").write_text(markdown(rows) + "\n", encoding="utf-8")
    print(json.dumps(as_json(rows), ensure_ascii=False, indent=1) if args.table == "json" else markdown(rows))


if __name__ == "__main__":
    from glmasr.errors import GlmAsrError

    try:
        main()
    except (GlmAsrError, UsageError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on with the next run")
