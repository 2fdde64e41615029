"""The report as a page: one file, without a program in it and without the network; the worst clips come first.

All that is in a manifest or in a text goes through `_text`, and all names of files through `address`. Should something
slip through all the same, the page's own policy (CSP) lets no program run and nothing be fetched but the clips.

An error is known by its mark, not by its color alone: - left out, + put in, and one that is crossed out -> another.
"""

import html
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from ..archive.items import Item
from ..audio_files.address import scheme
from ..errors import printable
from .results import Fields
from .tables import Table, language_name, percent, tables

OPEN = 5  # of the worst clips
NOT_SHOWN = ("Worst clips",)  # tables that the clips themselves replace
FOLDED = ("Confusions", "Speakers")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; media-src 'self' file:; base-uri 'none'; form-action 'none'"
STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --back: #fff; --box: #f6f8fa;
  --s: #8a4600; --s-back: #fff1d6; --d: #b3001e; --d-back: #ffe5e8; --i: #00559e; --i-back: #ddeeff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9ba5b0; --line: #3d444d; --back: #0d1117;
  --box: #161b22; --s: #ffc266; --s-back: #3d2b00; --d: #ff9aa6; --d-back: #4b1018; --i: #8cc8ff; --i-back: #0b2e4f; } }
body { font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 1rem auto;
  max-width: 75rem; padding: 0 1rem; }
h1, h2 { line-height: 1.2; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid var(--line); padding: .25rem .5rem; text-align: start; vertical-align: top; }
th { background: var(--box); }
summary { cursor: pointer; overflow-wrap: anywhere; }
.clip { border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0; padding: .5rem .75rem; }
.clip audio { display: block; margin: .5rem 0; max-width: 100%; }
.models { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.models section { background: var(--box); border-radius: .4rem; padding: .5rem .75rem; overflow-wrap: anywhere; }
.models h3 { font-size: 1rem; margin: 0; }
.models p, .said { margin: .25rem 0; overflow-wrap: anywhere; }
.soft { color: var(--soft); }
.aligned { line-height: 2; }
.s, .d, .i { border-radius: .2rem; padding: .1rem .2rem; margin: 0 .05rem; }
.s { color: var(--s); background: var(--s-back); border-bottom: 2px solid; }
.d { color: var(--d); background: var(--d-back); }
.i { color: var(--i); background: var(--i-back); border-bottom: 2px dotted; }
del { text-decoration: line-through; }
ins { text-decoration: none; }
.d::before { content: "\\2212"; display: inline-block; padding-inline-end: .15rem; }
.i::before { content: "+"; }
.s ins::before { content: "\\2192"; }
"""


def address(item: Item, folder: Path) -> str:
    """What the player of a clip refers to, from a page in `folder`: a relative address, or that of a file, with the
    part of the file that the clip is. "" for what is not on this machine, or can't be named.

    >>> address(Item("a", "/clips/a #1 \\".wav", offset=1.5, duration=2.25), Path("/clips/out"))
    '../a%20%231%20%22.wav#t=1.5,3.75'
    """
    if scheme(item.path):
        return ""
    path = os.path.abspath(item.path)
    try:
        relative = os.path.relpath(path, os.path.abspath(folder))
        # A colon is escaped, too: of the file javascript:x nobody makes another kind of address.
        found = quote(os.fsencode(relative.replace(os.sep, "/")), safe="/")
    except UnicodeEncodeError:  # half a character that no file system has
        return ""
    except ValueError:  # another drive of Windows
        found = Path(path).as_uri()
    if item.offset or item.duration is not None:
        found += f"#t={_seconds(item.offset)}"
        found += f",{_seconds(item.offset + item.duration)}" if item.duration is not None else ""
    return found


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


def to_html(report: Fields, addresses: dict[str, str]) -> str:
    """The page of a report; `addresses` are those of the clips' players, by id."""
    return "".join(_parts(report, addresses))


def _parts(report: Fields, addresses: dict[str, str]) -> Iterator[str]:
    title = _text(f"Evaluation: {', '.join(model['name'] for model in report['models'])}")
    yield (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
    )
    for number, table in enumerate(tables(report)):
        if table.title not in NOT_SHOWN:
            yield _table(table, 2 if number else 1)
    yield (
        "<h2>Clips</h2>\n<p>The worst first. The texts are as they are compared: "
        f"{_pair('S', 'said', 'recognized')} substituted, {_pair('D', 'said', '')} deleted, "
        f"{_pair('I', '', 'recognized')} inserted.</p>\n"
    )
    rows = sorted(enumerate(report["results"]), key=lambda pair: _badness(pair[1]), reverse=True)
    for place, (number, row) in enumerate(rows):
        yield _clip(row, number, addresses.get(row["id"], ""), place < OPEN and _badness(row)[1] > 0)
    yield "</main>\n</body>\n</html>\n"


def _badness(row: Fields) -> tuple[float, int]:
    """The highest rate of a model, and its errors; infinite for a text where nothing is said. Clips that failed, which
    have a table of their own, come before those without an error."""
    found = []
    for one in row["models"]:
        errors = one.get(row["kind"]) or {"rate": 0.0, "errors": 1}
        rate = errors["rate"] if errors["rate"] is not None else float("inf") if errors["errors"] else 0.0
        found.append((rate, errors["errors"]))
    return max(found)


def _table(table: Table, level: int) -> str:
    notes = "".join(f"<p>{_text(note)}</p>\n" for note in table.notes)
    rows = "".join(f"<tr>{''.join(f'<td dir=auto>{_text(cell)}</td>' for cell in row)}</tr>\n" for row in table.rows)
    header = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in table.header)
    body = f"<table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>"
    region = f'<div class="wide" role="region" aria-label="{_text(table.title)}" tabindex="0">{body}</div>\n'
    shown = notes + (region if table.rows else "")
    if table.title in FOLDED:
        shown = f"<details><summary>{len(table.rows)} rows</summary>\n{shown}</details>\n"
    return f"<h{level}>{_text(table.title)}</h{level}>\n{shown}"


def _clip(row: Fields, number: int, player: str, opened: bool) -> str:
    about = [_text(language_name(row["language"])), *([_text(row["speaker"])] if row["speaker"] else [])]
    rates = [f"{_text(one['model'])} {_rate(one.get(row['kind']))}" for one in row["models"]]
    head = f"<b>{_text(row['id'])}</b> <span class=soft>{' · '.join(about)}</span> {' · '.join(rates)}"
    audio = (
        f'<audio controls preload="none" aria-label="{_text(row["id"])}" src="{html.escape(player)}"></audio>'
        if player
        else ""
    )
    language = row["language"] if re.fullmatch("[a-z]{2,3}", row["language"]) else "und"
    models = "".join(_model(one, row["kind"], language) for one in row["models"])
    return (
        f'<details class="clip" id="clip-{number}"{" open" if opened else ""}>\n<summary>{head}</summary>\n{audio}\n'
        f"<p class=said>Said: <span lang={language} dir=auto>{_text(row['text']) or _nothing()}</span></p>\n"
        f'<div class="models">{models}</div>\n</details>\n'
    )


def _rate(errors: Fields | None) -> str:
    if errors is None:
        return "failed"
    return f"{percent(errors['rate'])} %" if errors["rate"] is not None else f"{errors['errors']} inserted"


def _model(one: Fields, kind: str, language: str) -> str:
    name = f"<h3>{_text(one['model'])}</h3>"
    if "error" in one:
        return f"<section>{name}<p>Failed: {_text(one['error'])}</p></section>\n"
    errors = one[kind]
    pairs = ("" if kind == "characters" else " ").join(_pair(mark, *pair) for mark, *pair in one["alignment"])
    counts = " · ".join(f"{errors[label]} {label}" for label in ("substitutions", "deletions", "insertions"))
    written = _text(one["text"]) or _nothing()
    warnings = "".join(f"<p class=soft>Warning: {_text(warning)}</p>\n" for warning in one["warnings"])
    return (
        f"<section>{name}<p class=soft>{errors['errors']} of {errors['count']} {kind}: {counts}</p>\n"
        f'<p class="aligned" lang={language} dir=auto>{pairs or _nothing()}</p>\n'
        f"<p class=soft>As written: <span lang={language} dir=auto>{written}</span></p>\n{warnings}</section>\n"
    )


def _pair(mark: str, said: str | None, found: str | None) -> str:
    """A unit of an alignment."""
    if mark == "S":
        return f'<span class="s" title="substituted"><del>{_text(said)}</del><ins>{_text(found)}</ins></span>'
    if mark == "D":
        return f'<del class="d" title="deleted">{_text(said)}</del>'
    if mark == "I":
        return f'<ins class="i" title="inserted">{_text(found)}</ins>'
    return _text(said)


def _nothing() -> str:
    return "<i>nothing</i>"


def _text(text: str | None) -> str:
    """Of whatever origin, as HTML, in an element or in quotes."""
    return html.escape(printable(text or ""))
