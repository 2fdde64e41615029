"""The report as tables: the same in Markdown and on the page, which escape the cells each for itself."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import printable
from .results import KINDS, Fields, kind_of

ROWS = 60  # of a table in Markdown; the page has all
LONGEST = 200  # characters of a text of the worst clips
ALL = "all"
NONE = "–"
NAMES = {"en": "English", "zh": "Mandarin", "yue": "Cantonese", "und": "unknown"}
SHORT = {"words": "WER", "characters": "CER"}


@dataclass(frozen=True)
class Table:
    """`notes` are sentences below the title; a table without rows has nothing but these."""

    title: str
    notes: list[str]
    header: list[str]
    rows: list[list[str]]


def tables(report: Fields) -> Iterator[Table]:
    """All of a report but its clips."""
    yield Table("Evaluation", _about(report), [], [])
    yield errors(report)
    if report["comparisons"]:
        yield differences(report)
    yield speed(report)
    if any(model["failures"] or model["error"] for model in report["models"]) or report["unusable"]:
        yield failures(report)
    yield worst(report)
    yield confusions(report)
    yield speakers(report)


def _about(report: Fields) -> list[str]:
    people = f"{report['speakers']} speakers"
    if report["without_speaker"]:
        people += f" ({report['without_speaker']} clips name none, and are drawn each by itself)"
    lines = [f"{report['manifest']}: {report['clips']} clips of {people}."]
    if report["unusable"]:
        lines.append(f"{len(report['unusable'])} lines of the manifest can't be used and count nowhere.")
    if failed := [f"{model['failed']} of {model['name']}" for model in report["models"] if model["failed"]]:
        lines.append(f"Clips that failed count in no rate: {', '.join(failed)}.")
    for model in report["models"]:
        how = ", ".join(f"{name} {value}" for name, value in model["how"].items())
        lines.append(f"{model['name']}: {model['source']}" + (f" ({how})" if how else "") + ".")
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items() if value is not None)
    packages = ", ".join(f"{name} {value}" for name, value in report["packages"].items())
    lines.append(f"{report['date']}, glmasr {report['glmasr']}, {packages}; {report['threads']} threads; {settings}.")
    return lines


def language_name(code: str | None) -> str:
    """
    >>> language_name("zh"), language_name("fr"), language_name(None)
    ('Mandarin', 'fr', 'all')
    """
    return ALL if code is None else NAMES.get(code, code)


def percent(rate: float | None) -> str:
    """
    >>> percent(0.12345), percent(None)
    ('12.35', '–')
    """
    return NONE if rate is None else f"{100 * rate:.2f}"


def _with_interval(errors: Fields) -> str:
    low, high = errors["interval"] or (None, None)
    return percent(errors["rate"]) + ("" if low is None else f" ({percent(low)} to {percent(high)})")


def errors(report: Fields) -> Table:
    """By language and model."""
    header = ["language", "model", "clips", "failed"]
    for kind in KINDS:
        header += [f"{SHORT[kind]}, % (95 %)", kind, "sub.", "del.", "ins."]
    rows = []
    parts = [None, *report["languages"]] if len(report["languages"]) > 1 else report["languages"]
    failed = Counter(
        (one["model"], row["language"]) for row in report["results"] for one in row["models"] if "error" in one
    )
    for part in parts:
        for model in report["models"]:
            known = model["overall"] if part is None else model["languages"].get(part)
            missing = model["failed"] if part is None else failed[model["name"], part]
            cells = [language_name(part), model["name"], str(known["clips"] if known else 0), str(missing)]
            for kind in KINDS:
                if known:
                    counts = [str(known[kind][name]) for name in ("count", "substitutions", "deletions", "insertions")]
                    cells += [_with_interval(known[kind]), *counts]
                else:
                    cells += [NONE] * 5
            rows.append(cells)
    notes = [
        "WER and CER: substituted, deleted and inserted words and characters, as parts of those said, of all clips "
        "together. Of Chinese, CER is what counts, and a word is a Han character or a run of other letters.",
        "In brackets: what 95 % of 10,000 draws of the speakers have (bootstrap); none of one speaker.",
    ]
    if len({frozenset(one["id"] for one in model["failures"]) for model in report["models"]}) > 1:
        notes.append(
            "The models have texts of other clips each, so their rates say little of each other: Differences do."
        )
    return Table("Errors", notes, header, rows)


def differences(report: Fields) -> Table:
    """Each model less the first one."""
    rows = []
    for one in report["comparisons"]:
        low, high = one["interval"] or (None, None)
        rows.append(
            [
                language_name(one["language"]),
                one["model"],
                SHORT[one["kind"]],
                str(one["clips"]),
                str(one["groups"]),
                f"{one['errors'][0]} / {one['errors'][1]}",
                signed(one["difference"]),
                NONE if low is None else f"{signed(low)} to {signed(high)}",
                NONE if one["p"] is None else f"{one['p']:.4f}",
            ]
        )
    first = report["models"][0]["name"]
    notes = [
        f"Each model less {first}, in points, on the clips that both have a text of: below zero it makes fewer errors.",
        "p: the probability of a difference as large, if it were a matter of chance, for each speaker, which model is "
        "which (permutation test).",
    ]
    header = ["language", "model", "rate", "clips", "speakers", f"errors of {first} / of it", "points", "95 %", "p"]
    return Table("Differences", notes, header, rows)


def speed(report: Fields) -> Table:
    """Of the recognition."""
    rows = []
    for model in report["models"]:
        factor = model["real_time_factor"]
        cells = [NONE] * 3 if factor is None else [f"{model['seconds']:.1f}", f"{model['took']:.1f}", f"{factor:.3f}"]
        rows.append([model["name"], str(model["scored"]), str(model["failed"]), *cells])
    header = ["model", "clips scored", "clips failed", "sound, s", "recognition, s", "real-time factor"]
    return Table("Speed", ["Without loading the model and reading the sound."], header, rows)


def signed(rate: float | None) -> str:
    """
    >>> signed(0.0123), signed(-0.5), signed(None)
    ('+1.23', '-50.00', '–')
    """
    return NONE if rate is None else f"{100 * rate:+.2f}"


def failures(report: Fields) -> Table:
    """Lines, clips and models that count nowhere."""
    rows = [["manifest", "", text] for text in report["unusable"]]
    for model in report["models"]:
        if model["error"]:
            rows.append([model["name"], f"all {model['failed']}", model["error"]])
        else:
            rows += [[model["name"], one["id"], one["error"]] for one in model["failures"]]
    return Table("Failures", [], ["of", "clip", "why"], rows)


def worst(report: Fields) -> Table:
    """Of each model, with the beginning of the texts."""
    known = {row["id"]: row for row in report["results"]}
    rows = []
    for model in report["models"]:
        for name in model["worst"]:
            row = known[name]
            one = next(one for one in row["models"] if one["model"] == model["name"])
            errors = one[row["kind"]]
            texts = [text if len(text) <= LONGEST else f"{text[:LONGEST]}…" for text in (row["text"], one["text"])]
            rows.append([model["name"], name, row["speaker"], percent(errors["rate"]), str(errors["errors"]), *texts])
    notes = ["By the rate of what counts for the language." if rows else "None has an error."]
    return Table("Worst clips", notes, ["model", "clip", "speaker", "%", "errors", "said", "recognized"], rows)


def confusions(report: Fields) -> Table:
    """What is taken for what, left out and put in, most often."""
    rows = []
    for model in report["models"]:
        for language, some in model["confusions"].items():
            lists = [
                [f"{said} → {found} ({count})" for said, found, count in some["substituted"]],
                [f"{said} ({count})" for said, count in some["deleted"]],
                [f"{found} ({count})" for found, count in some["inserted"]],
            ]
            if any(lists):
                rows.append([language_name(language), model["name"], *(", ".join(one) or NONE for one in lists)])
    header = ["language", "model", "said → recognized", "deleted", "inserted"]
    return Table("Confusions", ["The most frequent, with how often."], header, rows)


def speakers(report: Fields) -> Table:
    """By language and speaker, side by side."""
    names = [model["name"] for model in report["models"]]
    found: dict[tuple[str, str], dict[str, Fields]] = {}
    for model in report["models"]:
        for row in model["by_speaker"]:
            found.setdefault((row["language"], row["speaker"]), {})[model["name"]] = row
    rows = []
    for (language, speaker), some in found.items():
        kind = kind_of(language)
        cells = [language_name(language), speaker or "(not named)", str(max(row["clips"] for row in some.values()))]
        for name in names:
            row = some.get(name)
            cells.append(
                f"{percent(row[kind]['rate'])} ({row[kind]['errors']} of {row[kind]['count']})" if row else NONE
            )
        rows.append(cells)
    header = ["language", "speaker", "clips", *(f"{name}, %" for name in names)]
    return Table("Speakers", ["Errors by speaker: characters of Chinese, else words."], header, rows)


# ---- Markdown --------------------------------------------------------------------------------------------------------


def to_markdown(report: Fields) -> str:
    """All of a report but its clips; of long tables the first rows."""
    lines: list[str] = []
    for number, table in enumerate(tables(report)):
        lines += [f"{'##' if number else '#'} {table.title}", ""]
        lines += [f"{_cell(note)}\n" if number else f"- {_cell(note)}" for note in table.notes]
        lines += [] if number else [""]
        if table.rows:
            lines += [_row(table.header), "|---" * len(table.header) + "|"]
            lines += [_row(row) for row in table.rows[:ROWS]]
            if len(table.rows) > ROWS:
                lines += ["", f"{len(table.rows) - ROWS} more rows are in report.json and report.html."]
            lines += [""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    """On one line, without a mark of Markdown or HTML, as far as a reader has to know."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", printable(" ".join(text.split())))
