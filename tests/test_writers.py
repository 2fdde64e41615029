"""What is written: held against parsers of others, against the slow definition of a layout, and against hostile texts
and times."""

import html
import io
import itertools
import json
import math
import os
import random
import re
import socket
import unicodedata
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import soundfile

for package in ("srt", "webvtt", "hypothesis"):
    pytest.importorskip(package, reason="needs the extra [test]")

import srt  # noqa: E402
import webvtt  # noqa: E402
from helpers.files import locked  # noqa: E402
from hypothesis import example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from glmasr import audio
from glmasr.audio_files.formats import FORMATS
from glmasr.errors import AudioError, OptionError, OutputError  # noqa: E402
from glmasr.pipeline import Segment, Transcript, Word  # noqa: E402
from glmasr.writers import output, subtitles
from glmasr.writers.formats import WRITERS, record
from glmasr.writers.line_breaks import (
    ANYWHERE,
    CUE,
    Layout,
    _places,
    cut,
    width,  # noqa: E402
)
from glmasr.writers.output import expand, plan_outputs, write_whole
from glmasr.writers.subtitles import Cue, cues, timed

PAGE = Path(__file__).parents[1] / "docs" / "JSON.md"
NO_START, NO_END = "。，、！？；：”’）》」】…%,.!?;:)]}»", "“‘（《「【([{«"

often = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def transcript(*segments, seconds=None, **more):
    segments = [Segment(*segment) for segment in segments]
    return Transcript(
        "".join(segment.text for segment in segments),
        "zh",
        segments,
        segments[-1].end if seconds is None else seconds,
        **more,
    )


# ---- what is drawn ----------------------------------------------------------------------------------------------------------

HOSTILE = [
    "-->",
    "--->",
    "- >",
    "&lt;",
    "<b>",
    "</",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    "\t",
    " ",
    "\u3000",
    "\u2028",
    "\x0b",
    "\x1c",
    "\x85",
    "\0",
    "\x1b[2J",
    "\x7f",
    "\ud800",
    "\udfff",
    "\ufeff",
    "\u200b",
    "\u0301",
    "[00:01.00]",
    "<00:01.00>",
    "[ar:",
    "WEBVTT",
    "NOTE",
    "STYLE",
    "\n\n2\n00:00:01,000 --> 00:00:02,000\n",
    "7",
    "12:30:45",
    "00:00:01,000",
    "1.2.3",
    '"',
    "start\tend",
    "{\\an8}",
    "👩‍👩‍👧",
    "🇨🇳",
    "ﷺ",
    "한",
    "e\u0301",
    "’",
    "”",
    "（",
    "。",
]
WORDS = [
    "a",
    "of",
    "seven",
    "don't",
    "recognition",
    "GPT-4",
    "3.14",
    "“well”",
    "(so",
    "on)",
    "你好",
    "我们",
    "的",
    "，",
    "。",
    "“",
    "”",
    "《",
    "》",
    "！",
    "……",
    "——",
    "ＡＢＣ",
    "５０％",
    "é",
]
texts = st.one_of(
    st.text(max_size=30),
    st.lists(st.sampled_from(WORDS + [" "]), max_size=40).map("".join),
    st.lists(st.sampled_from(HOSTILE + WORDS), max_size=25).map("".join),
)
times = st.one_of(
    st.floats(),
    st.floats(0, 100),
    st.integers(0, 40).map(lambda tick: tick / 1000),
    st.sampled_from([0.0, -0.0, 0.0004999, 1e308, 1e18, -1.0]),
)
bounded = st.floats(-1, 1e6) | st.sampled_from([math.nan, math.inf])  # what the parsers of others can hold
layouts = st.builds(Layout, st.integers(2, 50), st.integers(1, 4))


@st.composite
def transcripts(draw, times=times, texts=texts):
    """Segments with any times at all."""
    return Transcript("", "zh", draw(st.lists(st.builds(Segment, times, times, texts), max_size=6)), draw(times))


@st.composite
def orderly(draw, texts=texts):
    """Segments as a recognizer makes them, each long enough for its text."""
    points = sorted(draw(st.lists(st.floats(0, 1e4), min_size=2, max_size=8)))
    segments = [Segment(start, end, draw(texts)) for start, end in zip(points, points[1:]) if end - start > 0.2]
    return Transcript("", "zh", segments, points[-1])


def letters(text):
    """A text without what no format keeps: white space, controls, halves of characters, byte order marks."""
    return "".join(c for c in text if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cs") and c != "\ufeff")


def seen(time):
    """A time of the package srt in milliseconds."""
    return round(time.total_seconds() * 1000)


# ---- times ------------------------------------------------------------------------------------------------------------------


@often
@given(transcripts(), layouts)
def test_cues_are_in_order_apart_within_the_recording_and_complete(t, layout):
    shown = list(cues(t, layout))
    edges = [0, *(edge for cue in shown for edge in cue[:2])]
    assert all(type(edge) is int for edge in edges)
    assert all(cue.start < cue.end for cue in shown) and edges == sorted(edges)
    if math.isfinite(t.seconds) and shown:
        assert shown[-1].end / 1000 <= t.seconds
    if 0.001 <= t.seconds < 1e300:
        whole = "".join(segment.text for segment in t.segments)
        assert Counter("".join(letters("".join(cue.lines)) for cue in shown)) == Counter(letters(whole))


@often
@given(orderly(), layouts)
def test_orderly_segments_keep_their_times_to_the_millisecond(t, layout):
    rows, kept = timed(t), [segment for segment in t.segments if letters(segment.text)]
    for (start, end, text), segment in zip(rows, kept, strict=True):
        assert (
            abs(start - 1000 * segment.start) <= 1
            and abs(end - 1000 * segment.end) <= 1
            and letters(text) == letters(segment.text)
        )
        parts = [cue for cue in cues(t, layout) if start <= cue.start < end]
        assert (parts[0].start, parts[-1].end) == (start, end)
        assert "".join(letters("".join(cue.lines)) for cue in parts) == letters(text)
        total, before = sum(width(line) for cue in parts for line in cue.lines), 0
        for cue in parts:  # in proportion to the text; a millisecond each is the least
            assert abs(cue.start - (start + (end - start) * before / max(1, total))) <= len(parts)
            before += sum(map(width, cue.lines))


@pytest.mark.parametrize(
    "segments, seconds, expected",
    [
        ([(0, 1, "a"), (1, 2.0004, "b")], 2.0004, [(0, 1000), (1000, 2000)]),
        ([(0, 30, "a"), (10, 20, "b")], 40, [(0, 10000), (10000, 20000)]),  # overlapping: the first ends earlier
        ([(5, 6, "b"), (1, 2, "a")], 10, [(1000, 2000), (5000, 6000)]),
        ([(-3, 99, "a")], 10, [(0, 10000)]),
        ([(20, 30, "a")], 10, [(9999, 10000)]),
        ([(4, 4, "a"), (4.25, 5, "b")], 9, [(4000, 4250), (4250, 5000)]),  # without a length: as long as there is room
        ([(4, 2, "a")], 9, [(4000, 5000)]),
        ([(math.nan, math.inf, "a"), (math.nan, 3, "b")], 9, [(0, 1), (1, 3000)]),
        ([(0, 5, "a")], math.nan, [(0, 5000)]),
        ([(0, 0.0009, "a")], 0.0009, []),  # no millisecond to show it in
        ([(0, 5, " \n")], 5, []),
        ([(1.0004, 1.0016, "a"), (1.0016, 1.0034, "b")], 9, [(1000, 1002), (1002, 1003)]),
        ([(0, 1.001, "a")], 1.001, [(0, 1001)]),  # 1.001 is a little less than 1001 ms
        ([(0, 8.9996, "a")], 8.9996, [(0, 8999)]),  # rounding up would leave the recording
    ],
)
def test_times_of_odd_segments(segments, seconds, expected):
    assert [(start, end) for start, end, _ in timed(transcript(*segments, seconds=seconds))] == expected


def test_more_segments_than_milliseconds_are_shown_as_one():
    assert timed(transcript((0, 1, "a"), (0, 1, "b"), (0, 1, "c"), seconds=0.002)) == [(0, 2, "a b c")]
    assert len(timed(transcript((0, 1, "a"), (0, 1, "b"), (0, 1, "c"), seconds=0.003))) == 3
    assert list(cues(transcript((0, 0.002, "one two three four five six")), Layout(5, 1))) == [
        Cue(0, 2, ["one", "two", "three", "four", "five", "six"])
    ]


# ---- layout -----------------------------------------------------------------------------------------------------------------


def priced(text, blocks, layout):
    """The price of a layout: what the constants in glmasr/writers/output.py say, line by line."""
    places = {place.start: place for place in _places(re.findall(".", text))}
    total, position = 0.0, 0
    for block, lines in enumerate(blocks):
        for number, line in enumerate(lines):
            start = text.index(line, position)
            if start:
                total += places[start].price * (1 if number else 2) + (0 if number else CUE)
            total += (1 - width(line) / layout.max_line_width) ** 2
            position = start + len(line)
    return total


def all_layouts(text, layout):
    """Every way of cutting a text at its allowed places into lines and cues."""
    places = [place for place in _places(re.findall(".", text)) if place.price <= ANYWHERE]
    for count in range(len(places) + 1):
        for chosen in itertools.combinations(places, count):
            starts, stops = [0, *(place.start for place in chosen)], [*(place.stop for place in chosen), len(text)]
            lines = [text[start:stop] for start, stop in zip(starts, stops)]
            if any(width(line) > layout.max_line_width for line in lines):
                continue
            for kinds in itertools.product((False, True), repeat=count):  # does a cue begin with this line?
                blocks = [[lines[0]]]
                for line, new in zip(lines[1:], kinds):
                    blocks.append([line]) if new else blocks[-1].append(line)
                if all(len(block) <= layout.max_line_count for block in blocks):
                    yield blocks


def test_the_layout_is_the_cheapest_of_all():
    draw = random.Random(7)
    for _ in range(80):
        text = subtitles.clean(
            "".join(
                draw.choice(["one ", "of ", "two, ", "so. ", "你", "好，", "吗？", "（我", "他）", " "])
                for _ in range(draw.randrange(4, 10))
            )
        )
        layout = Layout(draw.randrange(6, 12), draw.randrange(1, 4))
        ways = list(all_layouts(text, layout))
        ways = [way for way in ways if len(way) == 1] or ways  # what fits into one cue is one
        found = cut(text, layout)
        assert found in ways, (text, layout)
        assert priced(text, found, layout) == pytest.approx(min(priced(text, way, layout) for way in ways)), (
            text,
            layout,
        )


@often
@given(orderly(), layouts)
def test_lines_keep_to_the_layout(t, layout):
    for cue in cues(t, layout):
        assert len(cue.lines) <= layout.max_line_count
        for line in cue.lines:
            assert line and line == line.strip() and width(line) <= layout.max_line_width


words = st.sampled_from(
    [
        word + mark
        for word in ("a", "of", "seven", "don't", "x2", "你好", "们", "语音识别", "éa", "iPhone手机")
        for mark in ("", "", "", "，", "。", ",", ".", "”", "！", "）")
    ]
    + ["“", "《", "（", "(so", "…", " ,", " 。", "“ "]
)


@often
@given(st.lists(words, min_size=1, max_size=40), st.integers(0, 2**9), st.integers(24, 44), st.integers(1, 3))
def test_words_and_punctuation_stay_together(parts, spaces, most, count):
    """Only runs of punctuation longer than a line could break this; there are none that long here."""
    text = "".join(
        part + (" " if spaces >> (index % 9) & 1 or part[-1].isascii() else "") for index, part in enumerate(parts)
    )
    text = re.sub(r"([^\w\s]\s*){4,}", "。", text)
    lines = [line for cue in cues(transcript((0, 1000, text)), Layout(most, count)) for line in cue.lines]
    pairs = [(left[-1], right[0]) for left, right in zip(lines, lines[1:])]
    text = subtitles.clean(text)
    pairs += [(text[place.stop - 1], text[place.start]) for place in _places(list(text)) if place.price <= ANYWHERE]
    for left, right in pairs:
        assert right not in NO_START and left not in NO_END
    latin = re.compile(r"[A-Za-zé0-9']+")
    assert [word for line in lines for word in latin.findall(line)] == latin.findall(text)


@pytest.mark.parametrize(
    "text, layout, expected",
    [
        ("今天天气很好，我们去公园散步吧。", Layout(42, 2), [["今天天气很好，我们去公园散步吧。"]]),
        ("今天天气很好，我们去公园散步吧。", Layout(20, 2), [["今天天气很好，", "我们去公园散步吧。"]]),
        ("今天天气很好，我们去公园散步吧。", Layout(20, 1), [["今天天气很好，"], ["我们去公园散步吧。"]]),
        ("他说“今天天气很好”然后走了", Layout(16, 2), [["他说“今天天气", "很好”然后走了"]]),
        (
            "one two three four",
            Layout(12, 2),
            [["one two", "three four"]],
        ),  # not "one two" with a lonely rest, but even
        ("I came. I saw the city of Rome", Layout(24, 2), [["I came.", "I saw the city of Rome"]]),
        ("it was (as he said) fine", Layout(10, 3), [["it was", "(as he", "said) fine"]]),
        ("a" * 25, Layout(10, 3), None),
        ("我用iPhone听", Layout(9, 2), [["我用", "iPhone听"]]),
        ("ＡＢＣＤ你好", Layout(8, 2), [["ＡＢＣＤ", "你好"]]),  # wide Latin letters are a word too
        ("“" * 30, Layout(10, 2), None),  # nowhere to cut, and cut all the same
        ("x" * 42 + " " + "y" * 42, Layout(42, 2), [["x" * 42, "y" * 42]]),  # the space is in no line
        # What fits into one cue is one, also where two would have better lines; the spaces between lines don't count.
        ("一二三。一二三。一二三。一二。", Layout(10, 3), [["一二三。一", "二三。一二", "三。一二。"]]),
        (
            "aaaaaaa. a bbbbb. aaa bbb. aaaaa b. aaaaaa.",
            Layout(10, 4),
            [["aaaaaaa. a", "bbbbb. aaa", "bbb. aaaaa", "b. aaaaaa."]],
        ),
        ("好" * 5 + "👩‍👩‍👧" * 3, Layout(10, 2), [["好" * 4, "好" + "👩‍👩‍👧" * 3]]),
    ],
)
def test_layouts(text, layout, expected):
    found = cut(text, layout)
    assert expected is None or found == expected
    assert "".join(line for lines in found for line in lines) == text.replace(" ", "") or " " in text
    assert all(width(line) <= layout.max_line_width for lines in found for line in lines)


def test_a_word_longer_than_a_line_is_broken_and_no_other():
    lines = [
        line for lines in cut("see https://example.com/recordings/2026 for the rest", Layout(16, 2)) for line in lines
    ]
    assert lines[0].startswith("see") and lines[-1].endswith("for the rest")
    assert "".join(lines).replace(" ", "") == "seehttps://example.com/recordings/2026fortherest"
    assert cut("a" * 10 + "。", Layout(10, 2)) in ([["a" * first, "a" * (10 - first) + "。"]] for first in range(1, 10))
    assert cut("( " + "a" * 9, Layout(10, 2)) == [["(", "a" * 9]]  # the word would fit


@pytest.mark.parametrize(
    "text, columns",
    [
        ("abc", 3),
        ("你好", 4),
        ("，", 2),
        ("ＡＢ", 4),
        ("ｱｲ", 2),
        ("e\u0301", 1),
        ("👩‍👩‍👧", 2),
        ("🇨🇳", 2),
        ("한", 2),
        ("각", 2),
        ("\u200b", 0),
        ("", 0),
    ],
)
def test_width(text, columns):
    assert width(text) == columns


@pytest.mark.parametrize("values", [(1, 2), (42, 0), (42.0, 2), ("42", 2), (None, 2), (-5, 1)])
def test_layouts_out_of_range(values):
    with pytest.raises(OptionError, match="expected an integer of at least"):
        Layout(*values)


# ---- formats ----------------------------------------------------------------------------------------------------------------

LOOKALIKES = str.maketrans("‹{", "<(")


@often
@given(transcripts(bounded), layouts)
@example(
    transcript((0, 9, "one two 7777777 12:30:45")), Layout(8, 4)
)  # a line of digits before one like a time, for srt's parser
@example(transcript((0, 9, "a ---> b ----> c")), Layout())
@example(transcript((0, 400_000, "a")), Layout())  # more than 99 hours
def test_srt(t, layout):
    text, shown = WRITERS["srt"](t, layout), list(cues(t, layout))
    text.encode()
    found = list(srt.parse(text))
    assert [(seen(cue.start), seen(cue.end)) for cue in found] == [cue[:2] for cue in shown]
    assert [cue.index for cue in found] == list(range(1, len(shown) + 1))
    for cue, (_, _, lines, _) in zip(found, shown, strict=True):
        assert letters(cue.content.translate(LOOKALIKES)) == letters(
            re.sub("-{2,}>", "->", "\n".join(lines))
        ).translate(LOOKALIKES)
        assert not re.search(r"</?[a-z]|{\\", cue.content)
        assert all(line.strip() for line in cue.content.split("\n")) and "-->" not in cue.content
    if shown and shown[-1].end < 3_600_000 * 100:
        assert [cue.raw_text for cue in webvtt.from_buffer(io.StringIO(text), format="srt")] == [
            cue.content for cue in found
        ]


@often
@given(transcripts(bounded), layouts)
def test_vtt(t, layout):
    text, shown = WRITERS["vtt"](t, layout), list(cues(t, layout))
    text.encode()
    found = list(webvtt.from_string(text, strict=True))
    assert len(found) == text.count("-->") == len(shown)
    for cue, (start, end, lines, _) in zip(found, shown):
        assert (cue.start_time.in_milliseconds(), cue.end_time.in_milliseconds()) == (start, end)
        assert html.unescape(cue.raw_text).split("\n") == lines
        assert not re.search(r"[<>]|&(?!amp;|lt;|gt;)", cue.raw_text)


@often
@given(transcripts())
def test_tsv(t):
    head, *rows = WRITERS["tsv"](t).split("\n")
    assert head == "start\tend\ttext" and rows.pop() == ""
    assert [(int(start), int(end), text) for start, end, text in (row.split("\t") for row in rows)] == timed(t)


@often
@given(transcripts(), layouts)
@example(transcript((0, 9, "ab cd"), (9.5, 10, "e")), Layout(2, 2))
def test_lrc(t, layout):
    lines = WRITERS["lrc"](t, layout).splitlines()
    tags = [re.fullmatch(r"\[(\d{2,}):([0-5]\d)\.(\d\d)\]([^][<>]*)", line) for line in lines]
    assert all(tags), lines
    at = [60_000 * int(tag[1]) + 1000 * int(tag[2]) + 10 * int(tag[3]) for tag in tags]
    shown = list(cues(t, Layout(layout.max_line_width, 1)))
    assert at == sorted(at) and (not shown or at[-1] <= shown[-1].end)
    assert [time for time, tag in zip(at, tags) if tag[4]] == [cue.start // 10 * 10 for cue in shown]
    assert letters("".join(tag[4] for tag in tags)) == letters(
        "".join("".join(cue.lines) for cue in shown).translate(str.maketrans("[]<>", "［］＜＞"))
    )


def test_lrc_clears_the_screen_in_long_pauses_and_at_the_end():
    assert WRITERS["lrc"](transcript((1, 2, "a"), (3.999, 4, "b"), (6, 71.239, "[c]"))) == (
        "[00:01.00]a\n[00:03.99]b\n[00:04.00]\n[00:06.00]［c］\n[01:11.23]\n"
    )


def test_txt():
    assert WRITERS["txt"](transcript((0, 1, " one\ntwo\t"), (1, 2, ""), (2, 3, "三\0四\ud800"))) == "one two\n三四\n"
    assert WRITERS["txt"](transcript((0, 1, "\x1b[2J\ufeff"))) == "[2J\n"


def test_subtitles_by_hand():
    t = transcript((0.5, 3661.25, "三 < 四 & --> 五"), (3700, 3700.5, "{\\b1}<i>six</i>"), seconds=4000)
    assert WRITERS["srt"](t) == (
        "1\n00:00:00,500 --> 01:01:01,250\n三 < 四 & -> 五\n\n2\n01:01:40,000 --> 01:01:40,500\n(\\b1}‹i>six‹/i>\n"
    )
    assert WRITERS["vtt"](t) == (
        "WEBVTT\n\n00:00:00.500 --> 01:01:01.250\n三 &lt; 四 &amp; --&gt; 五\n\n"
        "01:01:40.000 --> 01:01:40.500\n{\\b1}&lt;i&gt;six&lt;/i&gt;\n"
    )


@pytest.mark.parametrize(
    "format, expected", [("txt", ""), ("srt", ""), ("vtt", "WEBVTT\n"), ("tsv", "start\tend\ttext\n"), ("lrc", "")]
)
def test_nothing_was_said(format, expected):
    for segments in ([], [Segment(0.0, 3.0, "")]):
        assert WRITERS[format](Transcript("", "", segments, 3.0)) == expected
    assert set(WRITERS) == {"txt", "srt", "vtt", "tsv", "json", "lrc"}


# ---- JSON -------------------------------------------------------------------------------------------------------------------


def joined(text):
    """With the two halves of a UTF-16 character as that character, which is what JSON makes of them."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def strictly(text):
    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(text.encode().decode(), parse_constant=refuse)


@often
@given(transcripts(), st.text())
def test_json_keeps_everything_and_is_strict(t, name):
    found = strictly(WRITERS["json"](t, name=name))
    assert list(found) == list(record(t, name)) and found["schema"] == 2 and (found["audio"] or "") == joined(name)
    assert [segment["text"] for segment in found["segments"]] == [joined(segment.text) for segment in t.segments]
    for segment, original in zip(found["segments"], t.segments):
        for key in ("start", "end"):
            assert (segment[key] is None) == (not math.isfinite(getattr(original, key)))
            assert segment[key] is None or (
                math.copysign(1, segment[key]) == 1 and round(segment[key], 3) == segment[key]
            )
            if math.isfinite(t.seconds) and segment[key] is not None:
                assert segment[key] <= max(0, t.seconds)


@often
@given(orderly(st.sampled_from(["one", "二"])))
def test_json_and_tables_agree(t):
    assert [
        (round(1000 * row["start"]), round(1000 * row["end"]), row["text"]) for row in record(t)["segments"]
    ] == timed(t)


def test_json_of_unusual_names_and_numbers():
    t = Transcript("\ud83d\0", "zh", [Segment(math.nan, -math.inf, "\ud83d\0\u2028")], math.inf, ["\udcff"])
    text = WRITERS["json"](t, name=os.fsdecode(b"\xff.wav"))
    found = strictly(text)
    [segment] = found.pop("segments")
    assert (
        found.items()
        >= {
            "schema": 2,
            "audio": "\udcff.wav",
            "text": "\ud83d\0",
            "language": "zh",
            "seconds": None,
            "warnings": ["\udcff"],
        }.items()
    )
    assert (segment["start"], segment["end"], segment["text"]) == (None, None, "\ud83d\0\u2028")


TYPES = {"integer": int, "number": (int, float), "string": str, "boolean": bool, "object": dict, "null": type(None)}
LISTS = {
    "list of segments": dict,
    "list of strings": str,
    "list of numbers": (int, float),
    "list of lists": (list, tuple),
    "list of words": dict,
}


def is_of(value, kind):
    if kind in LISTS:
        return isinstance(value, list) and all(isinstance(entry, LISTS[kind]) for entry in value)
    return isinstance(
        value,
        tuple(
            itertools.chain.from_iterable([t] if isinstance(t, type) else t for t in map(TYPES.get, kind.split(" or ")))
        ),
    )


@pytest.mark.parametrize("part, extra", [(Transcript, ["schema", "audio"]), (Segment, []), (Word, [])])
def test_the_page_describes_each_field(part, extra):
    """A new field of Segment or Transcript is written at once; this asks for its row on the page."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {part.__name__}\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \|$", section, re.MULTILINE))
    assert list(rows) == extra + [field.name for field in fields(part)]
    full = strictly(WRITERS["json"](transcript((0.5, 1, "a"), seconds=2.5, warnings=["w"]), name="n"))
    empty = strictly(WRITERS["json"](transcript((math.nan, math.nan, ""), seconds=math.nan)))
    words = (Word("a", 0.5, 1, 0.9),)
    asked = strictly(WRITERS["json"](Transcript("a", "en", [Segment(0.5, 1, "a", words=words)], 1.0, clips=((0, 1),))))
    for whole in (full, empty, asked):
        values = whole if part is Transcript else whole["segments"][0] if part is Segment else words_of(whole)
        optional = {name for name, kind in rows.items() if kind.endswith(" or absent")}
        assert list(values or rows) == [name for name in rows if name not in optional or whole is asked]
        assert all(is_of(value, rows[name].removesuffix(" or absent")) for name, value in values.items()), values
    assert f"{full['schema']}, of this page" in section or part is not Transcript


def words_of(whole):
    """The first word of the first segment, {} if it has none."""
    return next(iter(whole["segments"][0].get("words", [])), {})


# ---- files: what is read ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in (
        "b.wav",
        "a.MP3",
        "notes.txt",
        ".hidden.wav",
        "._a.MP3",
        "sub/c.flac",
        "sub/deep/d.m4a",
        ".git/e.wav",
        "empty/readme.md",
        "talk [1].wav",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "paths, recursive, expected",
    [
        (["b.wav", "-", "notes.txt"], False, ["b.wav", "-", "notes.txt"]),  # what is named is taken, whatever its name
        (["missing.wav"], False, ["missing.wav"]),  # said by audio.blocks, in its turn
        (["sub"], False, ["sub/c.flac"]),
        (["sub/"], True, ["sub/c.flac", "sub/deep/d.m4a"]),
        (["."], True, ["./a.MP3", "./b.wav", "./talk [1].wav", "./sub/c.flac", "./sub/deep/d.m4a"]),
        (["b.wav", ".", "./b.wav", "sub/../a.MP3", "-", "-"], False, ["b.wav", "./a.MP3", "./talk [1].wav", "-"]),
        (["*.wav"], False, ["b.wav", "talk [1].wav"]),
        (["talk [1].wav"], False, ["talk [1].wav"]),
        (["s*"], False, ["sub/c.flac"]),
        (["**/*.[mf][l4]*"], False, ["sub/c.flac", "sub/deep/d.m4a"]),
        (["b.wa?", "b.wav"], False, ["b.wav"]),
        (["bad\0*.wav"], False, ["bad\0*.wav"]),
        ([], False, []),
    ],
)
def test_expand(folder, paths, recursive, expected):
    assert expand(paths, recursive) == expected


@pytest.mark.parametrize(
    "path, recursive, words",
    [
        ("empty", False, "empty: no audio files are in this folder .* --recursive"),
        ("empty", True, "empty: no audio files are in this folder .* one by one$"),
        ("*.ogg", False, r"\*\.ogg: the pattern matches no file; check the spelling"),
        ("emp*", False, "matches no file"),
    ],
)
def test_expand_finds_nothing(folder, path, recursive, words):
    with pytest.raises(AudioError, match=words):
        expand(["b.wav", path], recursive)


def test_expand_says_which_folder_cannot_be_read(folder, monkeypatch):
    locked(monkeypatch)
    with pytest.raises(AudioError, match="sub/deep: the folder cannot be read .Permission denied."):
        expand(["."], recursive=True)


def test_expand_gives_what_it_can_read(folder, monkeypatch):
    everything = expand(["."], recursive=True)
    locked(monkeypatch)
    for paths in (["."], ["[!n]*", "sub/*", "nothing*"]):
        errors = []
        found = expand(paths, recursive=True, fail=errors.append)
        assert {os.path.normpath(name) for name in found} == {
            os.path.normpath(name) for name in everything if "deep" not in name
        }
        assert [str(error).split(": ")[1].split(" (")[0] for error in errors] == (
            ["the folder cannot be read"]
            if paths == ["."]
            else ["the folder cannot be read"] * 2
            + ["the pattern matches no file; check the spelling and the current directory"]
        )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_expand_leaves_out_what_is_no_file(folder):
    os.mkfifo("pipe.wav")
    os.symlink("nowhere", "link.wav")
    os.symlink("/dev/zero", "endless.wav")
    os.symlink("b.wav", "good.wav")
    with socket.socket(socket.AF_UNIX) as place:
        place.bind("socket.wav")
        expected = {
            "pipe.wav": "is a pipe, a socket or a device",
            "socket.wav": "is a pipe, a socket or a device",
            "link.wav": "cannot be opened (No such file",
            "endless.wav": "is a pipe, a socket or a device",
        }
        for path in (".", "*.wav"):
            errors = []
            assert [os.path.normpath(name) for name in expand([path], fail=errors.append) if "MP3" not in name] == [
                "b.wav",
                "good.wav",
                "talk [1].wav",
            ]
            assert {os.path.normpath(str(error).split(": ")[0]) for error in errors} == set(expected)
            assert all(expected[os.path.normpath(str(error).split(": ")[0])] in str(error) for error in errors)
        assert expand(list(expected)) == list(expected)  # named by itself each is meant
        with pytest.raises(AudioError, match="cannot be opened|is a pipe"):
            expand(["."])


def test_extensions_are_those_of_the_formats_that_are_read(tmp_path):
    for format, extension in (
        ("WAV", "wav"),
        ("RF64", "rf64"),
        ("FLAC", "flac"),
        ("OGG", "ogg"),
        ("MP3", "mp3"),
        ("AIFF", "aif"),
        ("AU", "au"),
        ("CAF", "caf"),
    ):
        assert format in FORMATS and extension in output.EXTENSIONS
        soundfile.write(tmp_path / f"a.{extension}", [0.0] * 4000, 8000, format=format)
        assert len(audio.load(tmp_path / f"a.{extension}")) == pytest.approx(8000, abs=1200)
    assert len(expand([str(tmp_path)])) == 8 and set(FORMATS) - {"WAVEX"} == {
        "WAV",
        "RF64",
        "FLAC",
        "OGG",
        "MP3",
        "AIFF",
        "AU",
        "CAF",
    }


# ---- files: what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inputs, directory, expected",
    [
        (["talk.wav", "x/other.mp3"], "out", ["out/talk", "out/other"]),
        (["talk.wav", "x/other.mp3"], None, ["talk", "x/other"]),
        (["a.wav", "a.mp3", "b.wav"], "out", ["out/a.wav", "out/a.mp3", "out/b"]),
        (["a.wav", "a.mp3"], None, ["a.wav", "a.mp3"]),
        (["x/a.wav", "y/a.wav", "y/b.wav"], "out", ["out/x/a", "out/y/a", "out/b"]),
        (["x/a.wav", "y/a.wav"], None, ["x/a", "y/a"]),
        (
            ["x/a.wav", "x/a.mp3", "y/a.wav", "y/a.mp3"],
            "out",
            ["out/x/a.wav", "out/x/a.mp3", "out/y/a.wav", "out/y/a.mp3"],
        ),
        (["p/x/1/a.wav", "p/y/a.wav"], "out", ["out/x/1/a", "out/y/a"]),
        (["../x/a.wav", "y/a.wav"], "out", None),
        (["-"], "out", ["out/stdin"]),
        (["-"], None, ["stdin"]),
        (["-", "stdin.wav"], "out", ["out/stdin", "out/stdin.wav"]),
        (["A.wav", "a.wav"], "out", ["out/A.wav-1", "out/a.wav-2"]),  # the same file for Windows and macOS
        (["a.wav", "A.wav"], "out", ["out/a.wav-2", "out/A.wav-1"]),  # in any order
        (["caf\u00e9.wav", "cafe\u0301.wav"], None, None),
        (["a.wav.flac", "a.wav", "a.mp3"], "out", None),
        (["x/a.wav/", "b.wav/"], None, ["x/a", "b"]),  # which open as "x/a.wav" does
        (["a.srt"], None, ["a.srt"]),  # "a.srt" is the recording itself
        (["a.srt", "a.srt.srt"], None, None),
        (["noextension", ".wav", "..", "/", ""], "out", None),
        (
            ["talk.wav", "talk.incomplete.wav"],
            "out",
            ["out/talk.wav", "out/talk.incomplete.wav"],
        ),  # "talk.incomplete.srt" would be both
    ],
)
def test_plan_outputs(inputs, directory, expected):
    plan = plan_outputs(inputs, ["srt", "json"], directory)
    assert list(plan) == inputs and all(list(files) == ["srt", "json"] for files in plan.values())
    paths = [path for files in plan.values() for path in files.values()]
    written, read = (
        [unicodedata.normalize("NFC", os.path.abspath(path)).casefold() for path in some] for some in (paths, inputs)
    )
    assert len(set(written)) == len(written) and not set(written) & set(read)
    if directory:
        assert all(os.path.abspath(path).startswith(os.path.abspath(directory) + os.sep) for path in paths)
    if expected:
        assert [str(files["srt"]) for files in plan.values()] == [f"{path}.srt" for path in expected]


names = (
    st.lists(
        st.sampled_from(["a", "A", "a.wav", "a.srt", "b", "x", "-1", "-2", "stdin", ".", "a.wav.srt-1"]),
        min_size=1,
        max_size=3,
    )
    .map("".join)
    .filter(lambda name: name.strip("."))
)
inputs = st.lists(
    st.one_of(st.just("-"), st.tuples(st.sampled_from(["", "x/", "y/", "x/y/", "/x/", "../"]), names).map("".join)),
    max_size=8,
    unique_by=lambda name: os.path.abspath(name) if name != "-" else "-",
)


@often
@given(inputs, st.sampled_from([None, "", "out", "x", "."]), st.randoms(use_true_random=False))
def test_outputs_never_meet(inputs, directory, draw):
    plan = plan_outputs(inputs, ["srt", "wav"], directory)
    assert len(plan) == len(inputs)
    written = [os.path.abspath(path).casefold() for files in plan.values() for path in files.values()]
    read = {os.path.abspath(name).casefold() for name in inputs if name != "-"}
    assert len(set(written)) == 2 * len(inputs) and not read & set(written)
    shuffled = draw.sample(inputs, len(inputs))
    assert plan_outputs(shuffled, ["srt", "wav"], directory) == plan


@pytest.fixture(autouse=True)
def wav_as_a_format(request, monkeypatch):
    """For the test above: a format whose files have the names of recordings."""
    if request.node.name == "test_outputs_never_meet":
        monkeypatch.setitem(WRITERS, "wav", None)


def test_plans_follow_links_of_folders(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    plan = plan_outputs([f"{tmp_path}/real/a.srt"], ["srt"], f"{tmp_path}/link")
    assert plan[f"{tmp_path}/real/a.srt"]["srt"].name == "a.srt.srt"


def test_unknown_formats():
    with pytest.raises(OptionError, match="format is 'doc', expected one of txt, srt, vtt, tsv, json, lrc"):
        plan_outputs(["a.wav"], ["srt", "doc"], "out")


def test_write_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "a.srt"
    for text in ("一\n", "two\r\n", ""):
        write_whole(path, text)
        assert path.read_bytes() == text.encode() and os.listdir(path.parent) == ["a.srt"]


@pytest.mark.skipif(os.name == "nt", reason="no umask on Windows")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "a.txt", "a")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    "error, raised", [(OSError(28, "No space left on device"), OutputError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, step, error, raised):
    path = tmp_path / "a.srt"
    path.write_text("old")

    def fail(*_):
        assert path.read_text() == "old" and len(os.listdir(tmp_path)) == 2
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(raised) as caught:
        write_whole(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.srt"]
    assert raised is KeyboardInterrupt or str(caught.value).startswith(
        f"{path}: cannot be written (No space left on device); make room"
    )


def test_the_text_is_on_the_disk_before_it_replaces_the_old_one(tmp_path, monkeypatch):
    done = []
    for step in ("fsync", "replace"):
        monkeypatch.setattr(
            os, step, lambda *arguments, step=step, real=getattr(os, step): (done.append(step), real(*arguments))
        )
    write_whole(tmp_path / "a.txt", "a")
    assert done == ["fsync", "replace"]


def test_files_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for path in (tmp_path / "file" / "a.srt", tmp_path / "folder", tmp_path / ("a" * 300), Path("/proc/nowhere/a.srt")):
        with pytest.raises(OutputError) as caught:
            write_whole(path, "text")
        assert str(caught.value).startswith(f"{path}: cannot be written (")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and os.listdir(tmp_path / "folder") == ["inner"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        write_whole(tmp_path / "a.txt", "a")


def test_a_text_that_cannot_be_encoded_is_no_half_file(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "a.txt", "a\ud800")
    assert not os.listdir(tmp_path)
