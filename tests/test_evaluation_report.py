"""Manifests, the report, its tables and its page: with texts that nobody recognized."""

import html.parser
import json
import os
import random
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from glmasr.archive.items import Item
from glmasr.errors import OptionError
from glmasr.evaluation import manifest, page, results, subjects, tables
from glmasr.evaluation.manifest import Clip, ManifestError
from glmasr.evaluation.subjects import Hypothesis, HypothesisError, Subject

HOSTILE = [
    "<script>pwned=1</script>",
    "\"><img src=x onerror='pwned=1'>",
    "</style></script><iframe src=javascript:pwned=1>",
    "a & b &lt;i&gt; | [x](javascript:alert(1)) `code` **b**",
    "\x1b]0;owned\x07\u202egnp.exe\u2028",
]


def clip(number, text, language="en", speaker="", **more):
    return Clip(Item(f"c{number}", f"/clips/{number}.wav", language, **more), text, speaker, language)


def subject(name, texts, **more):
    return Subject(name, f"models/{name}", {f"c{number}": Hypothesis(text) for number, text in texts.items()}, **more)


def report(clips, *some, unusable=()):
    about = {"manifest": "clips.jsonl", "settings": {"beams": 1}}
    found = results.report(clips, list(some), list(unusable), about)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


# ---- manifests -------------------------------------------------------------------------------------------------------


def read(path):
    errors = []
    return manifest.read(str(path), lambda error: errors.append(str(error))), errors


@pytest.mark.parametrize(
    "name, content",
    [
        (
            "a.jsonl",
            '{"id": "x", "path": "b/a.wav", "text": "one", "lang": "EN", "speaker": 7, "offset": 1, "duration": 2}\n',
        ),
        (
            "a.json",
            '{"key": "x", "audio": "b/a.wav", "text": "one", "language": "en-GB", "speaker": "7", "offset": 1.0, "duration": "2"}',
        ),
        ("a.tsv", "id\taudio_filepath\ttext\tlanguage\tspeaker\toffset\tduration\nx\tb/a.wav\tone\tEnglish\t7\t1\t2\n"),
        ("a.csv", 'id,path,text,language,speaker,offset,duration\nx,"b/a.wav","one",en,7,1,2\n'),
    ],
)
def test_manifests(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    [found], errors = read(tmp_path / name)
    item = found.item
    assert (item.id, item.path, item.offset, item.duration) == ("x", str(tmp_path / "b/a.wav"), 1.0, 2.0)
    assert (found.text, found.speaker, found.language, errors) == ("one", "7", "en", [])


def test_each_line_that_cannot_be_used_is_named_and_the_others_count(tmp_path):
    lines = [
        "{",
        "[1]",
        "[" * 3000 + "]" * 3000,
        '{"path": "a", "text": "x", "offset": %s}' % ("9" * 5000),
        '{"path": "a", "text": "x", "offset": %s}' % ("9" * 400),
        '{"path": "a"}',
        '{"path": "a", "text": null}',
        '{"path": "a", "text": 5}',
        '{"text": "x"}',
        '{"path": "a", "text": "x", "speaker": ["y"]}',
        '{"path": "a", "text": "half \\ud83d"}',
        '{"path": "a", "text": "x", "speaker": "\\udc80"}',
        '{"path": "a", "text": "%s", "language": "en"}' % ("1" * 5000),
        '{"path": "a", "text": "x", "duration": -1}',
        '{"path": "good", "text": "x"}',
        '{"path": "good", "text": "y"}',
        '{"path": "b", "id": "good\u00e9", "text": ""}',
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found, errors = read(tmp_path / "m.jsonl")
    assert [(one.text, one.language) for one in found] == [("x", "en"), ("", "und")]
    bad = [n for n in range(1, len(lines) + 1) if n not in (15, 17)]
    assert [error.partition(": ")[0] for error in errors] == [f"{tmp_path}/m.jsonl, line {n}" for n in bad]
    assert all("expected" in error or "can't be normalized" in error for error in errors)
    assert "has no text" in errors[5] and "as a line before it has" in errors[-1]


def test_an_empty_cell_of_a_table_says_that_nothing_is_said_and_a_missing_one_does_not(tmp_path):
    (tmp_path / "m.tsv").write_text("path\tspeaker\ttext\na\tp\t\nb\t\tone\nc\tp\n\n", encoding="utf-8")
    found, errors = read(tmp_path / "m.tsv")
    assert [(one.text, one.speaker) for one in found] == [("", "p"), ("one", "")]
    assert len(errors) == 1 and "line 4: has no text" in errors[0]


def test_a_language_that_nobody_names_is_that_of_the_text(tmp_path):
    texts = ["five", "三", "佢哋喺度", "да", ""]
    lines = [
        json.dumps({"path": f"{n}", "text": text, "language": "auto" if n else ""}) for n, text in enumerate(texts)
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    found, _ = read(tmp_path / "m.jsonl")
    assert [one.language for one in found] == ["en", "zh", "yue", "und", "und"]
    assert all(one.item.language == "" for one in found)  # what the model is told: nothing


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("m.jsonl", b"", "no line that can be used"),
        ("m.jsonl", b"\n\n{}\n", "no line that can be used"),
        ("m.jsonl", b'{"path": "\xff"}', "can't be read"),
        ("m.tsv", b"text\nx\n", "no column `path`"),
        ("m.tsv", b"path\ttext\na\t" + b"x" * 200_000, "line 2"),
        ("m.csv", b"path\ttext\na\tx", "no column `path`"),
        ("m.txt", b"a", "is no manifest"),
        ("m.jsonl", None, "can't be read"),
        ("m.parquet", b"PAR1", "."),
    ],
)
def test_a_manifest_with_nothing_usable_is_an_error(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(manifest.GlmAsrError, match=message):
        read(tmp_path / name)


def test_parquet_needs_a_package_that_the_error_names(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "m.parquet").write_bytes(b"PAR1")
    with pytest.raises(ManifestError, match=r"pyarrow.*\[ray\]"):
        read(tmp_path / "m.parquet")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "p.wav")
    lines = [{"path": path, "text": "x"} for path in ("p.wav", "/dev/null", "gone.wav", str(tmp_path))]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, errors = read(tmp_path / "m.jsonl")
    assert len(found) == 2 and all("a pipe or a device" in error for error in errors) and len(errors) == 2


def test_no_password_is_shown(tmp_path):
    (tmp_path / "m.jsonl").write_text(json.dumps({"path": "https://me:secret@example.org/a.wav", "text": "x"}))
    clips, _ = read(tmp_path / "m.jsonl")
    found = report(clips, subject("a", {}))
    for text in (
        json.dumps(found),
        tables.to_markdown(found),
        page.to_html(found, {clips[0].id: page.address(clips[0].item, tmp_path)}),
    ):
        assert "https://***@example.org/a.wav" in text.replace("\\*", "*") and "secret" not in text


# ---- texts of others -------------------------------------------------------------------------------------------------


def test_texts_of_others(tmp_path):
    """Lines by id; what can't be used is named, and what is missing."""
    clips, said, failed = [clip(n, "x") for n in range(5)], [], []
    lines = ['{"id": "c0", "text": "a"}', '{"id": "c0", "text": "b"}', "{", "[]", '{"id": "c1", "text": 1}']
    lines += ['{"id": "c2", "text": "", "status": "failed", "error": "too loud"}', '{"id": "other", "text": "z"}']
    lines += [
        '{"id": "c3", "text": "c", "status": "done", "seconds": 2.5, "took": 0.5}',
        "",
        '{"id": 4, "text": "four"}',
    ]
    (tmp_path / "rows-00000.jsonl").write_text("\n".join(lines), encoding="utf-8-sig")
    for source in (tmp_path, tmp_path / "rows-00000.jsonl"):
        said.clear(), failed.clear()
        found = subjects.read(str(source), "them", clips, said.append, failed.append)
        assert found.of(clips[0]) == Hypothesis("a") and found.of(clips[2]).error == "too loud"
        assert found.of(clips[3]) == Hypothesis("c", "", 2.5, 0.5) and found.of(clips[4]).error == subjects.MISSING
        assert [text.split(": ")[0].rpartition(", ")[2] for text in failed] == [
            "line 2",
            "line 3",
            "line 4",
            "line 5",
            str(source),
        ]
        assert "2 clips of the manifest have no text" in failed[-1] and "2 of its ids are in no line" in said[0]
    with pytest.raises(HypothesisError, match="can't be read"):
        subjects.read(str(tmp_path / "none"), "them", clips, said.append, failed.append)
    (tmp_path / "empty").mkdir()
    with pytest.raises(HypothesisError, match="has no rows"):
        subjects.read(str(tmp_path / "empty"), "them", clips, said.append, failed.append)


def test_columns_have_names_that_tell_them_apart():
    assert subjects.names(["a/base", "b/tiny/", "out/rows.jsonl"]) == {
        "a/base": "base",
        "b/tiny/": "tiny",
        "out/rows.jsonl": "rows.jsonl",
    }
    assert list(subjects.names(["a/base", "b/base", "c"]).values()) == ["a/base", "b/base", "c"]
    with pytest.raises(OptionError, match="named twice"):
        subjects.names(["base", "base"])


# ---- numbers ---------------------------------------------------------------------------------------------------------

CLIPS = [
    clip(0, "the cat sat on the mat", speaker="ann"),  # 6 words
    clip(1, "hello", speaker="ann"),
    clip(2, "good morning", speaker="bob"),
    clip(3, "", speaker="bob"),
    clip(4, "打开音乐", "zh", "mei"),
    clip(5, "一二三四", "zh", "li"),
]
GOOD = {0: "the cat sat on the mat", 1: "hello", 2: "good morning", 3: "", 4: "打开音乐", 5: "1234"}
BAD = {0: "a cat sat on mat", 1: "hello", 2: "good good morning", 3: "thank you", 4: "打音月"}


def test_a_report_by_hand():
    found = report(CLIPS, subject("good", GOOD), subject("bad", BAD))
    good, bad = found["models"]
    assert good["overall"]["words"] == {
        "substitutions": 0, "deletions": 0, "insertions": 0, "count": 17, "errors": 0, "rate": 0.0, "interval": [0.0, 0.0]
    }  # fmt: skip
    english, mandarin = bad["languages"]["en"], bad["languages"]["zh"]
    counts = ("substitutions", "deletions", "insertions", "errors", "count", "rate")
    # a for the, the second the; a good; thank you
    assert [english["words"][name] for name in counts] == [1, 1, 3, 5, 9, pytest.approx(5 / 9, abs=1e-6)]
    # 开 is left out, 乐 became 月; the clip without a text counts nowhere
    assert [mandarin["characters"][name] for name in counts] == [1, 1, 0, 2, 4, 0.5]
    assert mandarin["words"]["count"] == 4 and mandarin["clips"] == 1 and mandarin["characters"]["interval"] is None
    assert bad["overall"]["words"]["rate"] == pytest.approx(7 / 13, abs=1e-6)  # of all together
    assert (bad["scored"], bad["failed"], bad["failures"]) == (5, 1, [{"id": "c5", "error": subjects.MISSING}])
    low, high = english["words"]["interval"]
    assert (low, high) == (pytest.approx(2 / 7, abs=1e-6), pytest.approx(3 / 2, abs=1e-6))  # ann alone, bob alone
    rows = {(row["language"], row["speaker"]): row["words"]["errors"] for row in bad["by_speaker"]}
    assert rows == {("en", "ann"): 2, ("en", "bob"): 3, ("zh", "mei"): 2}
    assert bad["worst"] == ["c3", "c4", "c2", "c0"] and good["worst"] == []
    assert bad["confusions"]["zh"] == {"substituted": [["乐", "月", 1]], "deleted": [["开", 1]], "inserted": []}
    assert bad["confusions"]["en"]["inserted"] == [["good", 1], ["thank", 1], ["you", 1]]
    assert found["clips"] == 6 and found["speakers"] == 4 and found["without_speaker"] == 0


def test_models_are_compared_on_what_both_have_a_text_of():
    more = {n: text for n, text in GOOD.items() if n != 1}
    there, back = (
        report(CLIPS, *pair)["comparisons"]
        for pair in ([subject("a", more), subject("b", BAD)], [subject("b", BAD), subject("a", more)])
    )
    assert [(one["language"], one["kind"], one["clips"], one["groups"]) for one in there] == [
        (None, "words", 4, 3), ("en", "words", 3, 2), ("zh", "characters", 1, 1)
    ]  # fmt: skip
    for one, other in zip(there, back, strict=True):
        assert one["difference"] == -other["difference"] and one["p"] == other["p"]
        if one["interval"]:
            assert one["interval"] == [-value for value in reversed(other["interval"])]
    assert (
        there[0]["errors"] == [0, 7]
        and there[0]["count"] == 12
        and there[0]["difference"] == pytest.approx(7 / 12, abs=1e-6)
    )
    assert there[0]["p"] == 0.25  # three speakers, all the same way: 2 of 8 exchanges are as far from zero
    assert there[2]["p"] is None and there[2]["interval"] is None


def test_rates_of_other_clips_are_not_to_be_compared():
    note = "The models have texts of other clips each"
    assert note in tables.to_markdown(report(CLIPS, subject("good", GOOD), subject("bad", BAD)))
    assert note not in tables.to_markdown(report(CLIPS, subject("a", BAD), subject("b", BAD)))


def test_clips_without_a_speaker_are_drawn_each_by_itself():
    some = [clip(n, "red cat") for n in range(4)]
    found = report(some, subject("a", {0: "red", 1: "red cat", 2: "red", 3: "red cat"}))
    assert found["without_speaker"] == 4 and found["models"][0]["overall"]["groups"] == 4
    assert found["models"][0]["overall"]["words"]["interval"] == [0.0, 0.5]
    assert "drawn each by itself" in tables.to_markdown(found)


def test_where_nothing_is_said_there_is_no_rate():
    found = report(
        [clip(0, "", speaker="a"), clip(1, "?", speaker="b")],
        subject("a", {0: "hi you", 1: ""}),
        subject("b", {0: "", 1: ""}),
    )
    words = found["models"][0]["overall"]["words"]
    assert (words["insertions"], words["count"], words["rate"], words["interval"]) == (2, 0, None, None)
    assert found["comparisons"][0]["difference"] is None and found["comparisons"][0]["p"] == 1
    assert "2 inserted" in page.to_html(found, {}) and "| – | 0 | 0 | 0 | 2 |" in tables.to_markdown(found)


def test_the_real_time_factor_is_of_what_counts():
    some = Subject(
        "a",
        "a",
        {
            "c0": Hypothesis("x", "", 4.0, 1.0),
            "c1": Hypothesis("y", "", 6.0, 1.0),
            "c2": Hypothesis("z", "", 9.0),
            "c3": Hypothesis(error="no"),
        },
    )
    model = report([clip(n, "x") for n in range(4)], some)["models"][0]
    assert (model["seconds"], model["took"], model["real_time_factor"], model["scored"]) == (10, 2, 0.2, 3)
    assert report([clip(0, "x")], subject("a", {0: "x"}))["models"][0]["real_time_factor"] is None


def test_what_all_fail_at_is_still_a_report():
    found = report(CLIPS, Subject("a", "a", error="no such model"), Subject("b", "b"))
    assert [model["failed"] for model in found["models"]] == [6, 6] and found["comparisons"] == []
    assert "no such model" in tables.to_markdown(found) and page.to_html(found, {}).count("Failed: ") == 12


def test_a_text_that_cannot_be_normalized_fails_alone():
    found = report([clip(0, "one"), clip(1, "two")], subject("a", {0: "9" * 6000, 1: "two"}))
    assert found["models"][0]["failed"] == 1 and "normalized" in found["models"][0]["failures"][0]["error"]


# ---- Markdown and the page -------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Elements with their attributes, and the text."""

    def __init__(self, content):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def hostile():
    clips = [Clip(Item(text, f"javascript:{text}", text, 1.5, 2.25), text, text, text) for text in HOSTILE] + [
        Clip(Item("z", "/z.wav"), "one & two", "", "en")
    ]
    some = [
        Subject(
            text,
            text,
            {one.item.id: Hypothesis(text if n else "", "" if n else text) for n, one in enumerate(clips)},
            {"device": text},
        )
        for text in HOSTILE[:2]
    ]
    return clips, report(clips, *some, unusable=HOSTILE)


def test_nothing_of_a_manifest_or_a_text_is_markup(tmp_path):
    clips, found = hostile()
    content = page.to_html(found, {one.id: page.address(one.item, tmp_path) for one in clips})
    seen = Page(content)
    known = {
        "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p", "div", "table", "thead", "tbody", "tr", "th", "td",
        "details", "summary", "b", "i", "span", "audio", "section", "del", "ins",
    }  # fmt: skip
    assert {tag for tag, _ in seen.elements} <= known
    for _, attributes in seen.elements:
        assert not {name for name in attributes if name.startswith("on") or name == "href"}
    assert [tag for tag, _ in seen.elements].count("style") == 1
    policy = next(attributes["content"] for _, attributes in seen.elements if attributes.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "script" not in policy and "http" not in policy
    assert "<script>pwned=1</script>" in seen.text  # as text it is all there
    assert not set("\x1b\x07\u202e\u2028") & set(content)
    for source in (attributes["src"] for tag, attributes in seen.elements if tag == "audio"):
        parts = urlsplit(source)
        assert not parts.scheme and not parts.netloc and not set("<>\"'` ") & set(source)
        assert unquote(parts.path).endswith((".wav", *HOSTILE)) and parts.fragment in ("", "t=1.5,3.75")


def test_markdown_shows_what_was_said_as_it_is():
    _, found = hostile()
    text = tables.to_markdown(found)
    assert not set("\x1b\x07\u202e\u2028") & set(text) and "<script" not in text.replace("\\<", "")
    assert r"\[x\](javascript:alert(1)) \`code\` \*\*b\*\*" in text
    rows = [line for line in text.split("\n") if line.startswith("| ")]
    cells = {line.replace("\\|", "").count("|") for line in rows if "owned" in line or "pwned" in line}
    assert cells <= {15, 10, 8, 6, 5, 7, 4}


def test_an_alignment_has_marks_beside_its_colors():
    seen = Page(page.to_html(report(CLIPS, subject("bad", BAD)), {}))
    marked = [
        (tag, attributes["class"]) for tag, attributes in seen.elements if attributes.get("class") in ("s", "d", "i")
    ]
    assert [marked.count(one) for one in (("span", "s"), ("del", "d"), ("ins", "i"))] == [
        3,
        3,
        4,
    ]  # with one of each that explains them
    style = page.STYLE
    assert all(
        mark in style
        for mark in (
            '.d::before { content: "\\2212"',
            '.i::before { content: "+"',
            '.s ins::before { content: "\\2192"',
            "line-through",
            "prefers-color-scheme: dark",
        )
    )


def test_the_worst_clips_come_first_and_models_side_by_side():
    content = page.to_html(report(CLIPS, subject("good", GOOD), subject("bad", BAD)), {})
    places = [
        content.index(f"<b>c{n}</b>") for n in (3, 4, 2, 0, 5, 1)
    ]  # infinite, 50 % (two errors, one), 33 %, failed, none
    assert places == sorted(places) and content.count(" open>\n<summary>") == page.OPEN
    first = content[places[0] : places[1]]
    assert first.index("<h3>good</h3>") < first.index("<h3>bad</h3>") and "lang=en" in first


@pytest.mark.parametrize(
    "path, offset, duration, expected",
    [
        ("/a/b c.wav", 0.0, None, "../a/b%20c.wav"),
        ("/a/b.wav", 1.5, None, "../a/b.wav#t=1.5"),
        ("/a/b.wav", 0.0, 2.0, "../a/b.wav#t=0,2"),
        ("/a/b.wav", 0.1, 0.2, "../a/b.wav#t=0.1,0.3"),
        ("/out/java script:#?%\"'.wav", 0.0, None, "java%20script%3A%23%3F%25%22%27.wav"),
        ("/a/录音.wav", 0.0, None, "../a/%E5%BD%95%E9%9F%B3.wav"),
        ("/a/\udcff.wav", 0.0, None, "../a/%FF.wav"),
        ("/a/\ud800.wav", 0.0, None, ""),
        ("https://example.org/a.wav", 0.0, None, ""),
        ("s3://bucket/a.wav", 1.0, 2.0, ""),
        ("javascript://x/a.wav", 1.0, 2.0, ""),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX")
def test_a_player_refers_to_the_file(path, offset, duration, expected):
    assert page.address(Item("x", path, offset=offset, duration=duration), Path("/out")) == expected


@pytest.mark.slow
def test_two_thousand_clips_of_two_models():
    """In seconds, on a page that loads no sound before it is asked for."""
    source, vocabulary = random.Random(1), [f"w{n}" for n in range(50)]
    texts = {n: " ".join(source.choices(vocabulary, k=12)) for n in range(2000)}
    clips = [clip(n, text, speaker=f"p{n % 100}") for n, text in texts.items()]
    some = [
        subject(
            name,
            {n: " ".join(w if source.random() > share else "x" for w in text.split()) for n, text in texts.items()},
        )
        for name, share in (("a", 0.1), ("b", 0.2))
    ]
    begun = time.process_time()
    found = report(clips, *some)
    content = page.to_html(found, {one.id: f"{one.id}.wav" for one in clips})
    assert time.process_time() - begun < 20
    assert content.count(" open>\n<summary>") == page.OPEN
    assert content.count("<audio ") == content.count('preload="none"') == 2000 and len(content) < 12_000_000
    assert found["comparisons"][0]["p"] < 0.001 and len(tables.to_markdown(found)) < 50_000
