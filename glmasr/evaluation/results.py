"""Clips and what was made of them -> the report: what report.json holds, and the other files show.

What counts: a clip that a subject has a text of. One that failed is in none of its scores, and is counted and named;
two subjects are compared on the clips that both have a text of. Rates are errors over what was said, of all clips
together, and not the mean of rates.
"""

import datetime
import platform
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from .. import __version__
from . import significance
from .manifest import Clip, display
from .scoring import Errors, Score, ScoringError, by_characters
from .subjects import Hypothesis, Subject

SCHEMA = 1
MOST = 20  # rows of a confusion list
WORST = 10  # clips
KINDS = ("words", "characters")
PACKAGES = ("torch", "jiwer", "whisper-normalizer", "OpenCC")

Fields = dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """A clip that has a text, and its errors."""

    clip: Clip
    hypothesis: Hypothesis
    score: Score

    @property
    def errors(self) -> Errors:
        """Those that count for its language."""
        return self.score.characters if by_characters(self.clip.language) else self.score.words

    @property
    def badness(self) -> tuple[float, int, str]:
        """To sort by: the worst first. Where nothing is said, any word is infinitely many."""
        rate = self.errors.rate
        return (
            -(rate if rate is not None else float("inf") if self.errors.wrong else 0),
            -self.errors.wrong,
            self.clip.id,
        )


def report(clips: list[Clip], subjects: list[Subject], unusable: list[str], about: Fields) -> Fields:
    """What JSON can say. `about` is what else is to be known: manifest, settings; `unusable`: lines of the manifest."""
    scored, failures = zip(*(_scored(clips, subject) for subject in subjects), strict=True)
    return {
        "schema": SCHEMA,
        "glmasr": __version__,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **about,
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "clips": len(clips),
        "speakers": len({clip.speaker for clip in clips} - {""}),
        "without_speaker": sum(not clip.speaker for clip in clips),
        "languages": languages(clips),
        "unusable": unusable,
        "models": [
            _model(subject, some, failed) for subject, some, failed in zip(subjects, scored, failures, strict=True)
        ],
        "comparisons": [
            comparison
            for subject, some in list(zip(subjects, scored, strict=True))[1:]
            for comparison in compared(subjects[0].name, scored[0], subject.name, some)
        ],
        "results": _results(clips, subjects, scored, failures),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # its module came with another package
        return ""


def languages(clips: Iterable[Clip]) -> list[str]:
    """Those that are scored, the most frequent first."""
    return [name for name, _ in Counter(clip.language for clip in clips).most_common()]


def _scored(clips: list[Clip], subject: Subject) -> tuple[dict[str, Scored], dict[str, str]]:
    """By id: the clips that count, and why others don't."""
    scored: dict[str, Scored] = {}
    failures: dict[str, str] = {}
    for clip in clips:
        hypothesis = subject.of(clip)
        error = hypothesis.error
        if not error:
            try:
                scored[clip.id] = Scored(clip, hypothesis, Score.of(hypothesis.text, clip.text, clip.language))
            except ScoringError as reason:
                error = str(reason)
        if error:
            failures[clip.id] = error
    return scored, failures


# ---- a model ---------------------------------------------------------------------------------------------------------


def _model(subject: Subject, scored: dict[str, Scored], failures: dict[str, str]) -> Fields:
    some = list(scored.values())
    timed = [(one.hypothesis.seconds, one.hypothesis.took) for one in some]
    known = [(seconds, took) for seconds, took in timed if seconds and took]
    seconds, took = (sum(column) for column in zip(*known, strict=True)) if known else (0.0, 0.0)
    worst = sorted((one for one in some if one.errors.wrong), key=lambda one: one.badness)
    return {
        "name": subject.name,
        "source": display(subject.source),
        "how": subject.how,
        "error": subject.error,
        "scored": len(some),
        "failed": len(failures),
        "seconds": round(seconds, 3),
        "took": round(took, 3),
        "real_time_factor": round(took / seconds, 4) if seconds else None,
        "overall": measured(some),
        "languages": {name: measured(_of(some, name)) for name in languages(one.clip for one in some)},
        "by_speaker": _by_speaker(some),
        "confusions": {name: confusions(_of(some, name)) for name in languages(one.clip for one in some)},
        "worst": [one.clip.id for one in worst[:WORST]],
        "failures": [{"id": name, "error": error} for name, error in failures.items()],
    }


def _of(some: list[Scored], language: str) -> list[Scored]:
    return [one for one in some if one.clip.language == language]


def measured(some: list[Scored]) -> Fields:
    """Errors by words and by characters, with the interval over speakers."""
    groups = [one.clip.group for one in some]
    return {"clips": len(some), "groups": len(set(groups))} | {
        kind: _errors([getattr(one.score, kind) for one in some], groups) for kind in KINDS
    }


def _errors(errors: list[Errors], groups: list[str] | None = None) -> Fields:
    total = sum(errors, Errors())
    found: Fields = {**asdict(total), "errors": total.wrong, "rate": _rounded(total.rate)}
    if groups is not None:
        found["interval"] = _interval([one.wrong for one in errors], [one.count for one in errors], groups)
    return found


def _interval(wrong: list[int], count: list[int], groups: list[str]) -> list[float] | None:
    """As parts of 1; None where nothing is known of others: of one speaker, and without words."""
    if len(set(groups)) < 2 or not sum(count):
        return None
    low, high = significance.interval(np.array(wrong), np.array(count), groups)
    return [round(low / 100, 6), round(high / 100, 6)]


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 6)


def _by_speaker(some: list[Scored]) -> list[Fields]:
    """By language and speaker, of whom most words are wrong first."""
    parts: dict[tuple[str, str], list[Scored]] = {}
    for one in some:
        parts.setdefault((one.clip.language, one.clip.speaker), []).append(one)
    found = [
        {"language": language, "speaker": speaker, "clips": len(part)}
        | {kind: _errors([getattr(one.score, kind) for one in part]) for kind in KINDS}
        for (language, speaker), part in parts.items()
    ]
    return sorted(
        found, key=lambda row: (row["language"], -(row[kind_of(row["language"])]["rate"] or 0), row["speaker"])
    )


def kind_of(language: str | None) -> str:
    """Of the errors that count for a language; of all together those of words."""
    return "characters" if language is not None and by_characters(language) else "words"


def confusions(some: list[Scored]) -> Fields:
    """The most frequent errors: what was taken for what, left out, put in, each with how often."""
    counts = Counter(pair for one in some for pair in one.score.pairs if pair[0] != pair[1])

    def top(fits: Callable[[str | None, str | None], bool]) -> list[tuple[str | None, str | None, int]]:
        some = [(said, found, count) for (said, found), count in counts.items() if fits(said, found)]
        return sorted(some, key=lambda row: (-row[2], row[0] or "", row[1] or ""))[:MOST]

    return {
        "substituted": [list(row) for row in top(lambda said, found: None not in (said, found))],
        "deleted": [[said, count] for said, _, count in top(lambda said, found: found is None)],
        "inserted": [[found, count] for _, found, count in top(lambda said, found: said is None)],
    }


# ---- two models, side by side ----------------------------------------------------------------------------------------


def compared(first: str, base: dict[str, Scored], name: str, other: dict[str, Scored]) -> list[Fields]:
    """A model less the first one, on the clips that both have a text of: of all, then of each language."""
    both = [(one, other[clip_id]) for clip_id, one in base.items() if clip_id in other]
    found = languages(one.clip for one, _ in both)
    parts = [None, *found] if len(found) > 1 else found
    return [
        _difference(first, name, part, [pair for pair in both if part in (None, pair[0].clip.language)])
        for part in parts
    ]


def _difference(first: str, name: str, language: str | None, pairs: list[tuple[Scored, Scored]]) -> Fields:
    kind = kind_of(language)
    groups = [one.clip.group for one, _ in pairs]
    errors = [(getattr(one.score, kind), getattr(other.score, kind)) for one, other in pairs]
    more, count = [other.wrong - one.wrong for one, other in errors], [one.count for one, _ in errors]
    enough = len(set(groups)) > 1
    return {
        "model": name,
        "baseline": first,
        "language": language,
        "kind": kind,
        "clips": len(pairs),
        "groups": len(set(groups)),
        "errors": [sum(one.wrong for one, _ in errors), sum(other.wrong for _, other in errors)],
        "count": sum(count),
        "difference": _rounded(sum(more) / sum(count)) if sum(count) else None,
        "interval": _interval(more, count, groups),
        "p": round(significance.exchanged(np.array(more), groups), 5) if enough else None,
    }


# ---- clips -----------------------------------------------------------------------------------------------------------


def _results(
    clips: list[Clip],
    subjects: list[Subject],
    scored: tuple[dict[str, Scored], ...],
    failures: tuple[dict[str, str], ...],
) -> list[Fields]:
    """Each clip with what each model made of it, in order of the manifest."""
    found = []
    for clip in clips:
        item = clip.item
        models = [
            {"model": subject.name, **(_one(some[clip.id]) if clip.id in some else {"error": failed[clip.id]})}
            for subject, some, failed in zip(subjects, scored, failures, strict=True)
        ]
        found.append(
            {
                "id": clip.id,
                "path": display(item.path),
                "offset": item.offset,
                "duration": item.duration,
                "language": clip.language,
                "speaker": clip.speaker,
                "text": clip.text,
                "kind": kind_of(clip.language),
                "models": models,
            }
        )
    return found


def _one(one: Scored) -> Fields:
    return {
        "text": one.hypothesis.text,
        "seconds": one.hypothesis.seconds,
        "took": one.hypothesis.took,
        "warnings": list(one.hypothesis.warnings),
        **{kind: _errors([getattr(one.score, kind)]) for kind in KINDS},
        "alignment": [[mark(said, found), said, found] for said, found in one.score.pairs],
    }


def mark(said: str | None, found: str | None) -> str:
    """Of a pair of an alignment: "=", "S", "D" or "I"."""
    return "D" if found is None else "I" if said is None else "=" if said == found else "S"
