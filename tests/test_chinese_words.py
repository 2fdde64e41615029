"""Words of Chinese by a dictionary."""

import sys

import pytest

import glmasr
import transcribe
from glmasr import audio
from glmasr.alignment.words import spans
from glmasr.errors import OptionError
from glmasr.transcription.chinese_words import joined, joiner
from glmasr.transcription.options import Options


def segment(text: str, words: list[str], language: str = "zh") -> glmasr.Segment:
    """Each word takes a second, and is less certain than the one before."""
    timed = tuple(glmasr.Word(word, at, at + 1.0, 1.0 - 0.1 * at) for at, word in enumerate(words))
    return glmasr.Segment(0, len(words), text, language=language, words=timed)


def cut(text: str) -> list[str]:
    """A dictionary of three words."""
    found: list[str] = []
    for sign in text:
        known = found and found[-1] + sign in {"北京", "大学", "iP", "京。"}
        found = [*found[:-1], found[-1] + sign] if known else [*found, sign]
    return found


def test_characters_of_a_word_become_one_with_the_time_of_all():
    found = joined(segment("去北京大学。", ["去", "北", "京", "大", "学。"]), cut)
    assert [word.text for word in found.words] == ["去", "北京", "大学。"]
    assert [(word.start, word.end) for word in found.words] == [(0, 1), (1, 3), (3, 5)]
    assert [word.probability for word in found.words] == [1.0, 0.85, 0.65]
    assert found.text == "去北京大学。" and joined(found, cut) == found


@pytest.mark.parametrize(
    "text, words",
    [
        ("北 京", ["北", "京"]),
        ("北，京", ["北，", "京"]),
        ("“北”京", ["“北”", "京"]),
        ("2京", ["2", "京"]),
        ("iP", ["i", "P"]),
        ("北京", ["北"]),
        ("x", ["北", "京"]),  # words that aren't the text's
    ],
)
def test_what_stands_apart_stays_apart(text, words):
    assert [word.text for word in joined(segment(text, words), cut).words] == words


def test_japanese_is_left_as_it_is():
    assert len(joined(segment("北京", ["北", "京"], "ja"), cut).words) == 2
    assert len(joined(segment("北京", ["北", "京"], "yue"), cut).words) == 1


@pytest.mark.parametrize("text", ["我来到北京，语音识别！", "我來到北京，語音識別！"])
def test_words_of_the_dictionary(text):
    pytest.importorskip("rjieba")
    pytest.importorskip("opencc")
    found = joiner("dictionary")(segment(text, [text[first:last] for first, last in spans(text)]))
    assert [word.text for word in found.words] == [text[0], text[1:3], text[3:6], text[6:8], text[8:]]


def test_nothing_asked_nothing_changed():
    asked = segment("北京", ["北", "京"])
    assert joiner("character")(asked) is asked


@pytest.mark.parametrize("kind", ["Dictionary", "", 3, None])
def test_unknown_kinds(kind):
    with pytest.raises(OptionError, match="zh_words is .*, expected 'character' or 'dictionary'"):
        Options(zh_words=kind).check(100)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(OptionError, match=r"needs the package rjieba.*\[zh\]"):
        glmasr.load("demo").transcribe("examples/zh.wav", words=True, zh_words="dictionary")


def test_a_recording(monkeypatch):
    """Of the digits of the demo the dictionary here has "一四"."""
    found = {}
    for kind in ("character", "dictionary"):
        if kind == "dictionary":
            pytest.importorskip("rjieba")
            pytest.importorskip("opencc")
            monkeypatch.setattr("rjieba.cut", lambda text, hmm: text.replace("一四", " 一四 ").split())
        found[kind] = glmasr.load("demo").transcribe("examples/zh.wav", "zh", words=True, zh_words=kind).segments[0]
    one, four = (word for word in found["character"].words[1:3])
    joined_word = next(word for word in found["dictionary"].words if word.text == "一四")
    assert (joined_word.start, joined_word.end) == (one.start, four.end)
    assert found["dictionary"].text == found["character"].text


def test_live(monkeypatch):
    """Half of a word may be certain before the other half is heard, so only the segment has words of the dictionary."""
    pytest.importorskip("rjieba")
    pytest.importorskip("opencc")
    monkeypatch.setattr("rjieba.cut", lambda text, hmm: [text[at : at + 4] for at in range(0, len(text), 4)])
    demo, samples, found = glmasr.load("demo"), audio.load("examples/zh.wav"), {}
    for kind in ("character", "dictionary"):
        session = demo.live("zh", step=0.3, vad="off", words=True, zh_words=kind)
        found[kind] = [event for at in range(0, len(samples), 800) for event in session.feed(samples[at : at + 800])]
        found[kind] += session.finish()
    assert found["character"][:-1] == found["dictionary"][:-1]
    plain, segment = found["character"][-1], found["dictionary"][-1]
    assert segment.text == plain.text and [len(word.text) for word in segment.words] == [4, 4]


def test_the_command_line(capsys):
    with pytest.raises(SystemExit):
        transcribe.arguments(["a.wav", "--zh-words", "dictionary"])
    assert "goes with --words" in capsys.readouterr().err
    assert transcribe.arguments(["a.wav", "--words", "--zh-words", "dictionary"]).zh_words == "dictionary"
