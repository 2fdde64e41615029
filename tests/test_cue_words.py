"""What is written where words have times: cues that can be read, and the formats that show each word; held against
parsers of others, against all ways to cut a short text, and against hostile times."""

import html
import io
import itertools
import json
import math
import random
import re
import unicodedata
from dataclasses import replace

import pytest

for package in ("srt", "webvtt", "hypothesis"):
    pytest.importorskip(package, reason="needs the extra [test]")

import srt
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st

from glmasr.errors import OptionError
from glmasr.pipeline import Segment, Transcript, Word
from glmasr.transcription.language import join
from glmasr.writers import cue_words as cw
from glmasr.writers.formats import WRITERS, record
from glmasr.writers.line_breaks import Layout, ends_clause, ends_sentence, reading_time, width
from glmasr.writers.subtitles import cues, timed, timed_words

often = settings(max_examples=60, deadline=None, derandomize=True, database=None)

ENGLISH = "a of the seven don't recognition people, well, GPT-4 yes. again. <b> --> (so on) “quite”".split()
CHINESE = ["今", "天", "好，", "吧。", "我", "们", "《书》", "？”"]


def letters(text):
    """A text without what no format keeps."""
    return "".join(c for c in text if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cs") and c != "\ufeff")


def said(words, start=0.0, pauses=(), length=0.3, spaced=True):
    """A segment of words that last `length` seconds each; `pauses`: {number of a word: seconds before it}."""
    pauses, found, time = dict(pauses), [], start
    for number, word in enumerate(words):
        time += pauses.get(number, 0.0)
        found.append(Word(word, round(time, 3), round(time + length, 3), 0.9))
        time += length
    return Segment(found[0].start, found[-1].end, (" " if spaced else "").join(words), words=tuple(found))


def transcript(*segments, seconds=None):
    text = join([segment.text for segment in segments])
    return Transcript(text, "en", list(segments), segments[-1].end + 5 if seconds is None else seconds)


@st.composite
def speech(draw):
    """As a recognizer makes it: sentences cut into segments anywhere, fast and slow, some without words."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    chinese, segments, time = rng.random() < 0.4, [], rng.random()
    for _ in range(rng.randrange(1, 7)):
        words, spans = [], []
        for _ in range(rng.randrange(1, 25)):
            words.append(rng.choice(CHINESE if chinese else ENGLISH))
            time += rng.choice([0, 0, 0, 0, 0.04, 0.15, 0.4, 1.2, 3.0])
            length = rng.choice([0.02, 0.1, 0.2, 0.3, 0.6])
            spans.append((round(time, 3), round(time + length, 3)))
            time += length
        timed_words = tuple(Word(word, *span, 0.5) for word, span in zip(words, spans))
        text = ("" if chinese else " ").join(words)
        segments.append(Segment(spans[0][0], spans[-1][1], text, words=timed_words if rng.random() < 0.8 else ()))
    return Transcript("", "zh", segments, time + rng.choice([0.0, 0.3, 4.0]))


wild = st.floats() | st.floats(-1, 30) | st.sampled_from([math.nan, math.inf, -math.inf, 1e308])


@st.composite
def hostile(draw):
    """Any times at all, and words that may not be in the text."""
    texts = st.lists(
        st.sampled_from([*ENGLISH, *CHINESE, "", "\n", "\0x", "e\u0301", "&lt;", "[00:01.00]"]), max_size=8
    )
    segments = []
    for words in draw(st.lists(texts, max_size=4)):
        found = [Word(word, draw(wild), draw(wild), 0.5) for word in words]
        text = " ".join(draw(st.permutations(words)) if draw(st.booleans()) else words)
        segments.append(Segment(draw(wild), draw(wild), text, words=tuple(found)))
    return Transcript("", "zh", segments, draw(wild))


layouts = st.builds(Layout, st.integers(4, 50), st.integers(1, 3), st.none() | st.integers(1, 5))


# ---- what holds for all transcripts ----------------------------------------------------------------------------------------


@often
@given(speech() | hostile(), layouts)
def test_cues_are_apart_in_order_within_the_recording_and_complete(t, layout):
    shown = list(cues(t, layout))
    edges = [0, *(edge for cue in shown for edge in cue[:2])]
    assert all(type(edge) is int for edge in edges) and edges == sorted(edges)
    assert all(cue.start < cue.end and cue.lines for cue in shown)
    if math.isfinite(t.seconds) and shown:
        assert shown[-1].end / 1000 <= t.seconds
    for cue in shown:
        starts = [word.start for word in cue.words]
        assert all(cue.start <= start < cue.end for start in starts) and starts == sorted(set(starts))
        assert not cue.words or letters("".join(cue.lines)) == letters("".join(word.text for word in cue.words))
    if 0.1 <= t.seconds < 1e300:
        whole = "".join(segment.text for segment in t.segments)
        assert sorted("".join(letters("".join(cue.lines)) for cue in shown)) == sorted(letters(whole))


def test_a_pause_of_any_length_can_be_squared():
    segment = Segment(0.0, 1e200, "so on", words=(Word("so", 0.0, 0.5, 0.9), Word("on", 1e199, 1e200, 0.9)))
    assert " ".join(" ".join(cue.lines) for cue in cues(transcript(segment, seconds=1e200), Layout())) == "so on"


@often
@given(speech() | hostile())
def test_rows_of_words_are_in_order_and_none_is_without_length(t):
    rows = list(timed_words(t))
    edges = [0, *(edge for row in rows for edge in row[:2])]
    assert edges == sorted(edges) and all(start < end for start, end, _ in rows)
    assert "".join(letters(text) for *_, text in rows) == "".join(letters(text) for *_, text in timed(t))


@often
@given(speech())
def test_words_of_a_recognizer_keep_their_times(t):
    expected = [
        (round(1000 * row.start), round(1000 * row.end), row.text)
        for segment in t.segments
        for row in segment.words or [segment]
    ]
    limit = math.floor(1000 * t.seconds)
    assert [row for row in timed_words(t)] == [(start, min(end, limit), text) for start, end, text in expected]
    head, *rows = WRITERS["tsv"](t).splitlines()
    assert head == "start\tend\ttext"
    assert [tuple(row.split("\t")) for row in rows] == [(str(a), str(b), text) for a, b, text in timed_words(t)]


@often
@given(speech())
def test_no_cue_is_too_long_and_no_gap_flickers(t):
    shown = list(cues(t))
    for cue, following in zip(shown, [*shown[1:], None]):
        if cue.words:
            assert cue.end - cue.start <= cw.MOST
        if following and (cue.words or following.words):
            assert not 0 < following.start - cue.end < cw.GAP


@often
@given(speech())
def test_a_cue_is_short_or_fast_only_where_there_is_no_pause_left(t):
    shown = list(cues(t))
    for cue, following in zip(shown, [*shown[1:], None]):
        length = cue.end - cue.start
        need = max(cw.LEAST, reading_time(" ".join(cue.lines)))
        if cue.words and length < min(need, cw.SPOKEN) - 1:
            assert cue.end == (following.start if following else math.floor(1000 * t.seconds))


@often
@given(speech())
def test_segments_without_words_are_as_they_were(t):
    plain = list(cues(replace(t, segments=[replace(segment, words=()) for segment in t.segments])))
    shown = list(cues(t))
    assert {tuple(cue.lines) for cue in shown if not cue.words} <= {tuple(cue.lines) for cue in plain}
    if not any(segment.words for segment in t.segments):
        assert shown == plain
    starts = {row[0] for row, segment in zip(timed(t), t.segments) if not segment.words}
    assert starts <= {cue.start for cue in shown}


# ---- the cheapest way ------------------------------------------------------------------------------------------------------


def price(words, first, last, layout, leads, after):
    """Of a cue, as the comments in cue_words.py say it; None: it may not be."""
    group = words[first:last]
    pauses = [right.start - left.end for left, right in zip(group, group[1:])]
    if len(group) > 1:
        lines, used = 1, 0
        for word in group:
            used += (word.space if used else 0) + width(word.text)
            if used > layout.max_line_width:
                lines, used = lines + 1, width(word.text)
        spoken = group[-1].start + min(cw.TAIL, group[-1].end - group[-1].start) - group[0].start
        if lines > layout.max_line_count or max(pauses) >= cw.APART or spoken > cw.SPOKEN:
            return None
        if any(width(word.text) > layout.max_line_width for word in group):
            return None
    until = words[last].start if last < len(words) else after
    room = until - group[0].start + leads[first]
    need = sum(reading_time(word.text) + reading_time(" ") * word.space for word in group)
    cost = cw.CUE + cw.PAUSE * sum((pause / 1000) ** 2 for pause in pauses)
    cost += cw.PERIOD * sum(ends_sentence(word.text) for word in group[:-1])
    if last < len(words) and not ends_sentence(group[-1].text):
        pause = words[last].start - group[-1].end
        binding = "a of the and because".split()  # of the words that are drawn here
        mark = cw.BOUND if group[-1].text in binding else cw.PHRASE if words[last].text in binding else cw.WORD
        mark = cw.CLAUSE if ends_clause(group[-1].text) else mark
        cost += mark * max(0, 1 - pause / cw.LONG_PAUSE)
    cost += cw.SHORT * (2 - room / cw.LEAST) if room < cw.LEAST else 0
    cost += cw.HURRY + cw.FAST * (need / room - 1) if need > room else 0
    if len(group) == 1:
        alone = ends_sentence(group[0].text) and (first == 0 or ends_sentence(words[first - 1].text))
        cost += cw.ORPHAN / (4 if alone else 1)
    return cost


def test_the_cues_are_the_cheapest_of_all():
    rng = random.Random(5)
    for _ in range(60):
        words, time = [], rng.randrange(500)
        for number in range(rng.randrange(1, 10)):
            time += rng.choice([0, 0, 30, 200, 700, 2500])
            length = rng.choice([20, 150, 300, 900, 3000])
            words.append(cw.TimedWord(time, time + length, rng.choice([*ENGLISH, *CHINESE]), number > 0))
            time += length
        layout, after = Layout(rng.randrange(12, 40), rng.randrange(1, 3)), time + rng.choice([0, 50, 2000])
        leads = cw._leads(words, 0)
        best = math.inf
        for cuts in itertools.product((0, 1), repeat=len(words) - 1):
            edges = [0, *(place for place, cut in enumerate(cuts, 1) if cut), len(words)]
            prices = [price(words, a, b, layout, leads, after) for a, b in itertools.pairwise(edges)]
            best = best if None in prices else min(best, sum(prices))
        groups = cw.grouped(words, layout, leads, after)
        assert [word for group in groups for word in group] == words
        edges = [0, *itertools.accumulate(map(len, groups))]
        prices = [price(words, a, b, layout, leads, after) for a, b in itertools.pairwise(edges)]
        assert sum(prices) == pytest.approx(best)


# ---- each promise by hand --------------------------------------------------------------------------------------------------


def texts(t, layout=Layout()):
    return [" ".join(cue.lines) for cue in cues(t, layout)]


def test_a_sentence_that_was_cut_in_two_is_one_again():
    first = said("Thank you. We meet at the old".split())
    second = said("bridge by noon.".split(), start=first.end + 0.05)
    assert texts(transcript(first, second)) == ["Thank you. We meet at the old bridge by noon."]
    first, second = said("我们中午在老", spaced=False), said("桥上见。", start=2.0, spaced=False)
    assert texts(transcript(first, second)) == ["我们中午在老桥上见。"]


def test_cues_end_with_a_sentence_or_a_clause():
    words = (
        "When the first train of the morning comes in from the coast, the whole station wakes up. "
        "Porters, who have slept on the benches, get to their feet. Nobody hurries, because nobody has to."
    ).split()
    found = texts(transcript(said(words, length=0.4)))
    assert len(found) > 2 and all(text[-1] in ".," for text in found)


def test_a_pause_is_a_border_where_there_is_no_punctuation():
    words = "turn left at the church and then go on until you see a garden with a red gate".split()
    found = texts(transcript(said(words, pauses={5: 0.9}, length=0.4)), Layout(30, 2))
    assert found[0] == "turn left at the church"


def test_a_short_answer_stays_for_a_second_and_comes_a_little_earlier():
    before, answer = said("Are you coming with us tonight?".split()), said(["Yes."], start=5.0, length=0.2)
    after = said("Then let us go to the station now.".split(), start=5.6)
    [_, cue, _] = cues(transcript(before, answer, after), Layout(36, 1))
    assert cue.lines == ["Yes."] and 4500 <= cue.start < 5000 and cue.end - cue.start >= 1000


def test_what_is_said_fast_stays_into_the_pause_after_it():
    fast = said("an extraordinarily complicated international organization".split(), length=0.15)
    slow = said("That was fast.".split(), start=fast.end + 3.0)
    cue = next(cues(transcript(fast, slow)))
    assert cue.end - cue.start >= reading_time(" ".join(cue.lines)) - 1


def test_no_word_is_left_alone():
    for count in range(14, 40):
        words = ["word"] * (count - 1) + ["ends."]
        assert all(len(cue.words) > 1 for cue in cues(transcript(said(words))))
        assert all(len(cue.words) > 1 for cue in cues(transcript(said("好" * count, spaced=False, length=0.15))))
    assert texts(transcript(said("We stop. Now.".split()))) == ["We stop. Now."]


def test_a_word_that_never_ends_is_taken_down():
    t = transcript(Segment(0, 60, "Ah.", words=(Word("Ah.", 0, 60, 0.5),)))
    [cue] = cues(t)
    assert 1000 <= cue.end - cue.start <= cw.MOST


def test_short_gaps_are_closed_and_long_ones_are_not():
    words = "One sentence is here today. Another sentence follows it now. A third one comes later on.".split()
    shown = list(cues(transcript(said(words, pauses={5: 0.09, 10: 1.9}, length=0.45)), Layout(34, 1)))
    assert [" ".join(cue.lines)[-1] for cue in shown] == ["."] * 3
    assert shown[0].end == shown[1].start and shown[2].start - shown[1].end >= cw.GAP


def test_lines_are_broken_at_phrases():
    [cue] = cues(transcript(said("He opened the door, and there was nobody in the room.".split())))
    assert cue.lines == ["He opened the door,", "and there was nobody in the room."]


def test_a_word_longer_than_a_cue_is_broken_all_the_same():
    shown = list(cues(transcript(said(["x" * 50, "y"], length=2.0)), Layout(10, 2)))
    assert "".join("".join(cue.lines) for cue in shown) == "x" * 50 + "y"
    assert all(width(line) <= 10 for cue in shown for line in cue.lines)


# ---- so many words a cue ---------------------------------------------------------------------------------------------------


def test_words_per_cue():
    t = transcript(said("one two three four five".split(), pauses={4: 3.0}))
    assert texts(t, Layout(words_per_cue=2)) == ["one two", "three four", "five"]
    assert [cue[:2] for cue in cues(t, Layout(words_per_cue=1))][:2] == [(0, 300), (300, 600)]
    assert texts(t, Layout(9, 1, words_per_cue=3)) == ["one two", "three", "four", "five"]  # a line holds no more
    assert texts(t, Layout(words_per_cue=9)) == ["one two three four", "five"]  # not across a long pause
    assert t.to_srt(words_per_cue=5).count("-->") == 2
    for wrong in (0, -1, 1.5, "2"):
        with pytest.raises(OptionError, match="words_per_cue"):
            Layout(words_per_cue=wrong)


@often
@given(speech(), st.integers(1, 6))
def test_no_cue_has_more_words_than_asked_for(t, count):
    for cue in cues(t, Layout(words_per_cue=count)):
        assert len(cue.words) <= count


# ---- formats ---------------------------------------------------------------------------------------------------------------

TAG = re.compile(r"<(\d\d+):(\d\d):(\d\d)\.(\d{3})>")


@often
@given(speech(), layouts)
def test_vtt_has_a_time_before_each_word(t, layout):
    text, shown = WRITERS["vtt"](t, layout), list(cues(t, layout))
    found = list(webvtt.from_string(text, strict=True))
    assert len(found) == len(shown) == text.count("-->")
    for cue, known in zip(found, shown):
        assert html.unescape(TAG.sub("", cue.raw_text)).split("\n") == known.lines
        times = [((int(h) * 60 + int(m)) * 60 + int(s)) * 1000 + int(ms) for h, m, s, ms in TAG.findall(cue.raw_text)]
        assert times == [word.start for word in known.words if word.start > known.start]
        assert all(known.start < time < known.end for time in times)  # as the standard wants it
        assert not re.search(r"[<>]|&(?!amp;|lt;|gt;)", TAG.sub("", cue.raw_text))


@often
@given(speech(), layouts)
def test_srt_has_no_tags(t, layout):
    found = list(srt.parse(WRITERS["srt"](t, layout)))
    assert [(round(cue.start.total_seconds() * 1000), round(cue.end.total_seconds() * 1000)) for cue in found] == [
        cue[:2] for cue in cues(t, layout)
    ]
    assert not any(TAG.search(cue.content) for cue in found)
    webvtt.from_buffer(io.StringIO(WRITERS["srt"](t, layout)), format="srt")


@often
@given(speech(), layouts)
def test_lrc_has_a_time_before_each_word_and_after_the_last(t, layout):
    lines = [line for line in WRITERS["lrc"](t, layout).splitlines() if not re.fullmatch(r"\[[\d:.]+\]", line)]
    shown = list(cues(t, replace(layout, max_line_count=1)))
    for line, cue in zip(lines, shown, strict=True):
        assert re.fullmatch(r"\[\d\d+:\d\d\.\d\d\](?:<\d\d+:\d\d\.\d\d>|[^][<>])*", line)
        times = [60000 * int(m) + 10 * int(s + c) for m, s, c in re.findall(r"<(\d+):(\d\d)\.(\d\d)>", line)]
        starts = [word.start // 10 * 10 for word in cue.words]
        assert times[:-1] == starts and times == sorted(times) and len(times) == (len(starts) + 1 if starts else 0)
        assert not times or times[-1] <= cue.end


def test_words_by_hand():
    t = transcript(said("a <b> & c.".split(), start=1.0, length=0.5), seconds=3.0)
    assert WRITERS["vtt"](t) == (
        "WEBVTT\n\n00:00:01.000 --> 00:00:03.000\na <00:00:01.500>&lt;b&gt; <00:00:02.000>&amp; <00:00:02.500>c.\n"
    )
    assert WRITERS["lrc"](t).splitlines()[0] == (
        "[00:01.00]<00:01.00>a <00:01.50>＜b＞ <00:02.00>& <00:02.50>c.<00:03.00>"
    )
    assert WRITERS["tsv"](t) == "start\tend\ttext\n1000\t1500\ta\n1500\t2000\t<b>\n2000\t2500\t&\n2500\t3000\tc.\n"
    assert WRITERS["txt"](t) == "a <b> & c.\n"


@often
@given(hostile())
def test_json_of_words_is_strict_and_within_the_recording(t):
    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(WRITERS["json"](t), parse_constant=refuse)
    for segment, original in zip(found["segments"], t.segments, strict=True):
        assert len(segment.get("words", [])) == len(original.words)
        for word, known in zip(segment.get("words", []), original.words):
            assert list(word) == ["text", "start", "end", "probability"] and word["text"] == known.text
            for key in ("start", "end"):
                assert (word[key] is None) == (not math.isfinite(getattr(known, key)))
                if word[key] is not None:
                    assert round(word[key], 3) == word[key] and 0 <= word[key]
                    assert not math.isfinite(t.seconds) or word[key] <= max(0, t.seconds)


def test_without_words_there_is_nothing_of_them():
    t = transcript(Segment(0.5, 1.7, "Good morning."))
    assert "words" not in record(t)["segments"][0] and "clips" not in record(t)
    assert "<" not in WRITERS["vtt"](t) + WRITERS["lrc"](t)
