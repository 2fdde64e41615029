"""README.md, pages of docs/ and their Chinese twins: the same sections in the same order, with the same code, figures,
names and links."""

import os
import re
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGLISH = {"README.md": "README.zh.md"} | {
    f"docs/{path.name}": f"docs/zh/{path.name}" for path in sorted((ROOT / "docs/zh").glob("*.md"))
}
TWIN = ENGLISH | {chinese: english for english, chinese in ENGLISH.items()}
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in TWIN}
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
FIGURE = re.compile(r"\d+(?:[.,]\d+)*")


def shared(name: str, link: str) -> str:
    """What a link leads to: of a page with a twin, the English one."""
    if link.startswith("https://"):
        return link
    target = os.path.relpath((ROOT / name).parent / link, ROOT)
    return TWIN[target] if target in ENGLISH.values() else target


def sections(name: str) -> list[dict]:
    """What the languages share, by section. `figures` are those of the text around code and tables; in a table they are
    kept by cell."""
    blocks = FENCED.findall(TEXTS[name])
    found = []
    # TRAP: a comment in code looks like a heading.
    for part in re.split(r"^(?=#+ )", FENCED.sub("@block@", TEXTS[name]), flags=re.MULTILINE)[1:]:
        marks, heading = re.match(r"(#+) (.*)", part).groups()
        text = re.sub(r"\]\(([^)]*)\)", "]", part)
        table = [line for line in text.splitlines() if line.startswith("|")]
        plain = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
        found.append(
            {
                "level": len(marks),
                "heading": heading,
                "code": [blocks.pop(0) for _ in range(part.count("@block@"))],
                "table": [[FIGURE.findall(cell) for cell in row.split("|")] for row in table],
                "figures": set(FIGURE.findall(re.sub(r"`[^`]*`", "", plain))),
                "names": set(re.findall(r"`([^`]+)`", text)),
                "links": {shared(name, link) for link in re.findall(r"\]\(([^)#]+)", part)},
            }
        )
    return found


SECTIONS = {name: sections(name) for name in TWIN}


@pytest.mark.parametrize("english", ENGLISH)
def test_headings(english):
    pairs = list(
        zip_longest(
            *(
                [(section["level"], section["heading"]) for section in SECTIONS[name]]
                for name in (english, ENGLISH[english])
            )
        )
    )
    assert all(one and other and one[0] == other[0] for one, other in pairs), "the headings differ:\n" + "\n".join(
        map(str, pairs)
    )


PAIRS = [(page, *pair) for page in ENGLISH for pair in zip(SECTIONS[page], SECTIONS[ENGLISH[page]])]


@pytest.mark.parametrize(
    "page, english, chinese", [pytest.param(*pair, id=f"{pair[0]}: {pair[1]['heading']}") for pair in PAIRS]
)
def test_section(page, english, chinese):
    where = f"{page}: {english['heading']}; {ENGLISH[page]}: {chinese['heading']}"
    for kind in ("figures", "names", "links"):
        assert english[kind] == chinese[kind], (
            f"{where}: {kind} only in English {sorted(english[kind] - chinese[kind])}, "
            f"only in Chinese {sorted(chinese[kind] - english[kind])}"
        )
    for kind in ("code", "table"):
        for number, (one, other) in enumerate(zip_longest(english[kind], chinese[kind]), 1):
            assert one == other, f"{where}: {kind}, {'block' if kind == 'code' else 'line'} {number}"


@pytest.mark.parametrize("name", TWIN)
def test_links(name):
    assert "README" not in name or f"]({TWIN[name]})" in TEXTS[name].split("\n## ")[0]
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", TEXTS[name]):
        if not target.startswith("https://"):
            path = (ROOT / name).parent / target if target else ROOT / name
            assert path.is_file(), target
            anchors = (
                {
                    re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
                    for heading in re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
                }
                if anchor
                else ()
            )
            assert not anchor or anchor in anchors, f"{target}#{anchor}"
