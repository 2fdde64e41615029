"""README.md and its Chinese twin: the same sections in the same order, with the same code, figures, names and links."""

import re
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = "README.md", "README.zh.md"
TWIN = {ENGLISH: CHINESE, CHINESE: ENGLISH}
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in TWIN}
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
FIGURE = re.compile(r"\d+(?:[.,]\d+)*")


def sections(name: str) -> list[dict]:
    """What the languages share, by section. `figures` are those of the text around code and tables; in a table they are kept by cell."""
    blocks = FENCED.findall(TEXTS[name])
    found = []
    # TRAP: a comment in code looks like a heading.
    for part in re.split(r"^(?=#+ )", FENCED.sub("@block@", TEXTS[name]), flags=re.MULTILINE)[1:]:
        marks, heading = re.match(r"(#+) (.*)", part).groups()
        text = re.sub(r"\]\(([^)]*)\)", "]", part)
        table = [line for line in text.splitlines() if line.startswith("|")]
        plain = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
        found.append({"level": len(marks), "heading": heading,
                      "code": [blocks.pop(0) for _ in range(part.count("@block@"))],
                      "table": [[FIGURE.findall(cell) for cell in row.split("|")] for row in table],
                      "figures": set(FIGURE.findall(re.sub(r"`[^`]*`", "", plain))),
                      "names": set(re.findall(r"`([^`]+)`", text)),
                      "links": {link for link in re.findall(r"\]\(([^)#]+)\)", part) if link not in TWIN}})
    return found


SECTIONS = {name: sections(name) for name in TWIN}


def test_headings():
    pairs = list(zip_longest(*([(section["level"], section["heading"]) for section in SECTIONS[name]] for name in TWIN)))
    assert all(one and other and one[0] == other[0] for one, other in pairs), "the headings differ:\n" + "\n".join(map(str, pairs))


@pytest.mark.parametrize("english, chinese", [pytest.param(*pair, id=pair[0]["heading"]) for pair in zip(SECTIONS[ENGLISH], SECTIONS[CHINESE])])
def test_section(english, chinese):
    where = f"{ENGLISH}: {english['heading']}; {CHINESE}: {chinese['heading']}"
    for kind in ("figures", "names", "links"):
        assert english[kind] == chinese[kind], (f"{where}: {kind} only in English {sorted(english[kind] - chinese[kind])}, "
                                                f"only in Chinese {sorted(chinese[kind] - english[kind])}")
    for kind in ("code", "table"):
        for number, (one, other) in enumerate(zip_longest(english[kind], chinese[kind]), 1):
            assert one == other, f"{where}: {kind}, {'block' if kind == 'code' else 'line'} {number}"


@pytest.mark.parametrize("name", TWIN)
def test_links(name):
    assert f"]({TWIN[name]})" in TEXTS[name].split("\n## ")[0]
    anchors = {re.sub(r"[^\w -]", "", section["heading"].lower()).replace(" ", "-") for section in SECTIONS[name]}
    for target in re.findall(r"\]\(([^)]+)\)", TEXTS[name]):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert (ROOT / target).is_file(), target
