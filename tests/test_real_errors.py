"""What benchmarks/real.py counts, and over what it draws: without a model."""

import numpy as np
import pytest
from helpers.real import Clip, Errors, Subject, interval, read, table, units


def test_chinese_is_compared_by_characters():
    pytest.importorskip("opencc")
    assert units("臺灣，２０26 年 ＯＫ！", "zh") == list("台湾二零二六年ok")
    assert units("佢哋話：「冇」。", "yue") == units("佢哋话冇", "yue")


def test_english_is_compared_by_words():
    pytest.importorskip("whisper_normalizer")
    assert units("Mr. Brown's colour isn't TWENTY-one!", "en") == "mister brown is color is not 21".split()


def test_errors_add_up():
    pytest.importorskip("jiwer")
    one, other = Errors.of("一二四四四", "一二三四", "zh"), Errors.of("一", "一二", "zh")
    assert (one, other) == (Errors(1, 0, 1, 4), Errors(0, 1, 0, 2)) and (one + other).percent == 50
    assert Errors.of("", "一二", "zh") == Errors(0, 2, 0, 2)


def test_the_interval_is_one_over_speakers():
    """Recordings of one speaker are drawn together: of one speaker nothing is known about others, however many they
    are."""
    wrong, count = np.array([1, 0] * 50), np.full(100, 10)
    assert interval(wrong, count, ["a"] * 100) == (5, 5)
    low, high = interval(wrong, count, ["a", "b"] * 50)
    assert (low, high) == (0, 10)
    low, high = interval(wrong, count, [str(number) for number in range(100)])
    deviation = 100 * wrong.std() / 10 / 100**0.5
    assert (low, high) == pytest.approx((5 - 1.96 * deviation, 5 + 1.96 * deviation), abs=0.1)


def test_as_many_speakers_as_there_are(tmp_path):
    rows = [("a", "en"), ("a", "en"), ("b", "en"), ("c", "zh"), ("b", "en"), ("d", "yue")]
    lines = ["path\tlanguage\ttext\tspeaker\tkind"] + [
        f'{n}.wav\t{language}\t"{n}\t{speaker}\t{"phrase" if n == 4 else "sentence"}'
        for n, (speaker, language) in enumerate(rows)
    ]
    (tmp_path / "manifest.tsv").write_text("\n".join(lines), encoding="utf-8")
    chosen = read(tmp_path / "manifest.tsv", None, ["zh", "en"], 3)
    assert [(clip.path.name, clip.text) for clip in chosen] == [(f"{n}.wav", f'"{n}') for n in (3, 0, 2, 1)]
    assert [clip.path.name for clip in read(tmp_path / "manifest.tsv", "sentence", ["en"], None)] == [
        "0.wav",
        "2.wav",
        "1.wav",
    ]
    with pytest.raises(SystemExit, match="no recording in zh of the kind 'command'"):
        read(tmp_path / "manifest.tsv", "command", ["zh"], None)


def test_the_table(tmp_path):
    """Of the language that is asked for alone; who makes fewer errors by more than the interval is named."""
    for package in ("jiwer", "opencc"):
        pytest.importorskip(package)
    clips = [Clip(tmp_path, "zh", "一二三四", f"speaker {number}") for number in range(20)] + [
        Clip(tmp_path, "en", "one", "other")
    ]
    sounds = [np.zeros(32000, dtype=np.float32)] * len(clips)

    def subject(name, text):
        return Subject(name, None, [(text, 0.5)] * 20 + [("two", 9.0)], 123.4)

    lines, better = table(
        [subject("glmasr float32", "一二三五"), subject("worse", "一"), subject("better", "一二三四")],
        clips,
        sounds,
        "zh",
    )
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines.splitlines() if line.startswith("| ")]
    assert cells[1] == ["glmasr float32", "25.00 (25.00-25.00)", "20", "0", "0", "", "0.250", "123"]
    assert cells[2] == ["worse", "75.00 (75.00-75.00)", "0", "60", "0", "-50.00 (-50.00 to -50.00)", "0.250", "123"]
    assert cells[3] == ["better", "0.00 (0.00-0.00)", "0", "0", "0", "+25.00 (+25.00 to +25.00)", "0.250", "123"]
    assert better == ["better"] and "20 recordings of 20 speakers, 40 s of sound, 80 characters." in lines
