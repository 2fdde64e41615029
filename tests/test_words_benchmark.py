"""How benchmarks/words.py knows where words begin and end."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import words  # noqa: E402

RATE = words.RATE


def tone(*levels: tuple[float, float]) -> np.ndarray:
    """Stretches of a tone, as (seconds, level in dB)."""
    parts = [10 ** (level / 20) * np.sin(np.arange(round(seconds * RATE)) * 0.3) for seconds, level in levels]
    return np.concatenate(parts).astype(np.float32)


@pytest.mark.parametrize(
    "levels, expected",
    [
        ([(0.5, -90), (1.0, -3), (0.5, -90)], (True, True)),
        ([(0.5, -90), (0.3, -33), (1.0, -3), (0.5, -90)], (False, True)),  # a breath before
        ([(0.5, -90), (1.0, -3), (0.05, -33), (0.5, -90)], (True, True)),
        ([(0.5, -90), (1.0, -3), (0.3, -33), (0.5, -90)], (True, False)),  # a sound that fades
    ],
)
def test_what_is_uncertain(levels, expected):
    assert words.certain(tone(*levels)) == expected


def test_borders_of_joined_recordings(tmp_path: Path):
    for name, breath in (("one", -90), ("two", -33)):
        soundfile.write(tmp_path / f"{name}.wav", tone((0.5, -90), (0.3, breath), (1.0, -3), (0.5, -90)), RATE)
    table = "path\tlanguage\ttext\tkind\none.wav\ten\tOne.\tdigit\ntwo.wav\ten\ttwo\tdigit\nx.wav\ten\tx\tsentence\n"
    (tmp_path / "table.tsv").write_text(table, encoding="utf-8")
    rows = sorted(words.read(tmp_path / "table.tsv", ["en"], None, "digit"), key=lambda row: row["path"])
    [sound] = words.joined(rows, tmp_path, "digits", 60.0, (0.2, 0.2))
    assert sound.words == ["one", "two"]
    assert sound.begins == {0: pytest.approx(0.25, abs=0.015)}  # a pause, the margin; before "two" there is a breath
    assert sound.ends[0] == pytest.approx(1.25, abs=0.015)
    late = [("one", 0.35, 1.25), ("too", 1.5, 2.5)]
    starts, ends = words.errors(sound, late)
    assert starts == [pytest.approx(0.1, abs=0.015)] and ends == [pytest.approx(0.0, abs=0.015)]  # "two" wasn't found
