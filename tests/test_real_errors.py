"""What benchmarks/real.py counts, and over what it draws: without a model."""

import numpy as np
import pytest
from helpers.real import Errors, interval, read, words


def test_chinese_is_compared_by_characters():
    pytest.importorskip("opencc")
    assert words("臺灣，２０26 年 ＯＫ！", "zh") == list("台湾二零二六年ok")
    assert words("佢哋話：「冇」。", "yue") == words("佢哋话冇", "yue")


def test_english_is_compared_by_words():
    pytest.importorskip("whisper.normalizers")
    assert words("Mr. Brown's colour isn't TWENTY-one!", "en") == "mister brown is color is not 21".split()


def test_errors_add_up():
    pytest.importorskip("jiwer")
    one, other = Errors.of("一二四四四", "一二三四", "zh"), Errors.of("一", "一二", "zh")
    assert (one, other) == (Errors(1, 0, 1, 4), Errors(0, 1, 0, 2)) and (one + other).percent == 50
    assert Errors.of("", "一二", "zh") == Errors(0, 2, 0, 2)


def test_the_interval_is_one_over_speakers():
    """Recordings of one speaker are drawn together: of one speaker nothing is known about others, however many they are."""
    wrong, count = np.array([1, 0] * 50), np.full(100, 10)
    assert interval(wrong, count, ["a"] * 100) == (5, 5)
    low, high = interval(wrong, count, ["a", "b"] * 50)
    assert (low, high) == (0, 10)
    low, high = interval(wrong, count, [str(number) for number in range(100)])
    deviation = 100 * wrong.std() / 10 / 100 ** 0.5
    assert (low, high) == pytest.approx((5 - 1.96 * deviation, 5 + 1.96 * deviation), abs=0.1)


def test_as_many_speakers_as_there_are(tmp_path):
    rows = [("a", "en"), ("a", "en"), ("b", "en"), ("c", "zh"), ("b", "en"), ("d", "yue")]
    lines = ["path\tlanguage\ttext\tspeaker\tkind"] + [f'{n}.wav\t{language}\t"{n}\t{speaker}\t{"phrase" if n == 4 else "sentence"}'
                                                     for n, (speaker, language) in enumerate(rows)]
    (tmp_path / "manifest.tsv").write_text("\n".join(lines), encoding="utf-8")
    chosen = read(tmp_path / "manifest.tsv", None, ["zh", "en"], 3)
    assert [(clip.path.name, clip.text) for clip in chosen] == [(f"{n}.wav", f'"{n}') for n in (3, 0, 2, 1)]
    assert [clip.path.name for clip in read(tmp_path / "manifest.tsv", "sentence", ["en"], None)] == ["0.wav", "2.wav", "1.wav"]
    with pytest.raises(SystemExit, match="no recording in zh of the kind 'command'"):
        read(tmp_path / "manifest.tsv", "command", ["zh"], None)
