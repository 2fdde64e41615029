"""Synthetic speech of texts: which sentences are taken, and clips that a trainer reads."""

import json
import shutil
import sys

import numpy as np
import pytest
import soundfile
from helpers.training import FOLDER

LINES = "It was a bright cold day in April.\nWho is there?\nNobody answered him at all.\n"
needs_voices = pytest.mark.skipif(
    not all(map(shutil.which, ("espeak-ng", "flite"))), reason="needs espeak-ng and flite (Debian's packages)"
)


@pytest.fixture
def modules(monkeypatch):
    """modules(name) -> a module of training/."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return __import__


@pytest.fixture
def make(modules, monkeypatch, tmp_path):
    """make(text or None, folder, *options) -> the lines of the manifest."""
    command = modules("make_speech")
    path = tmp_path / "lines.txt"

    def run(text, folder="out", *options):
        if text is not None:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        arguments = ["make_speech.py", path, "--out", tmp_path / folder, "--jobs", 1, *options]
        monkeypatch.setattr(sys, "argv", [*map(str, arguments)])
        command.main()
        manifest = (tmp_path / folder / "manifest.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in manifest.splitlines()]

    return run


@pytest.fixture
def installed(modules, monkeypatch):
    """As if the synthesizers were there: for what is refused before they are used."""
    monkeypatch.setattr(modules("voices"), "need", lambda program, package: None)
    monkeypatch.setattr(modules("voices"), "espeak_variants", lambda: (["f1"], [1.0]))


PROSE = """Title: a header

*** START OF THE PROJECT GUTENBERG EBOOK A BOOK ***

CHAPTER I

Mr. Hale, of St. James's, said _nothing_ to J. B. Smith. "Why?" she
asked. He had paid 3.50 dollars--too much (as he thought!) for a half-
hour.

"Is it?" "It is!" 'Nobody knows,' she said; the rest was silence

*** END OF THE PROJECT GUTENBERG EBOOK A BOOK ***

The licence is not read. It is long.
"""


def test_prose_is_cut_into_sentences(modules):
    sentences = modules("make_speech").sentences_of
    assert sentences(PROSE) == [
        "Mr. Hale, of St. James's, said nothing to J. B. Smith.",
        '"Why?" she asked.',
        "He had paid 3.50 dollars\u2014too much (as he thought!) for a half-hour.",
        '"Is it?"',
        '"It is!"',
    ]


def test_a_text_without_empty_lines_has_a_sentence_a_line(modules):
    assert modules("make_speech").sentences_of(LINES + "no full stop, in  two parts\n\n") == [
        *LINES.splitlines(),
        "no full stop, in two parts",
    ]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "text, message",
    [
        ("今天天氣很好。\nYes.\n", r"lines\.txt: no English sentence of 2 to 45 words"),
        (b"\xff\xfe\x00 not text", r"lines\.txt: can't be read as UTF-8 text"),
        (None, r"lines\.txt: can't be read as UTF-8 text \(.*No such file"),
    ],
)
def test_texts_that_can_not_be_said_are_one_line(make, text, message):
    with pytest.raises(SystemExit, match=message) as caught:
        make(text)
    assert str(caught.value).startswith("error: ") and "\n" not in str(caught.value)


@pytest.mark.usefixtures("installed")
def test_a_folder_with_a_manifest_is_kept(make, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.jsonl").write_text("mine\n")
    with pytest.raises(SystemExit, match="error: .*manifest.jsonl exists; expected a new folder"):
        make(LINES)
    assert (tmp_path / "out" / "manifest.jsonl").read_text() == "mine\n"


@pytest.mark.usefixtures("installed")
def test_what_is_no_folder_is_kept(make, tmp_path):
    (tmp_path / "out").write_text("mine\n")
    with pytest.raises(SystemExit, match="error: --out .*out: Not a directory; expected a new folder"):
        make(LINES)
    assert (tmp_path / "out").read_text() == "mine\n"


@pytest.mark.parametrize("missing", ["espeak-ng", "flite"])
def test_a_missing_synthesizer_is_named_with_its_package(modules, make, monkeypatch, missing):
    which = shutil.which
    monkeypatch.setattr(
        modules("voices").shutil, "which", lambda name: None if name == missing else which(name) or "/usr/bin/" + name
    )
    with pytest.raises(SystemExit, match=f"error: {missing} is not on the PATH: apt-get install {missing}"):
        make(LINES)


@needs_voices
def test_clips_are_read_by_a_trainer_and_the_same_each_time(modules, make, tmp_path, capsys):
    options = ["--clips", 3, "--seconds", 8]
    lines = make(LINES + "今天。\n", "out", *options)
    assert "3 sentences; 1 more are left out" in capsys.readouterr().out
    assert len(lines) == 3
    rows = modules("manifest").read_manifests([tmp_path / "out" / "manifest.jsonl"])
    for line, row in zip(lines, rows, strict=True):
        info = soundfile.info(tmp_path / "out" / line["audio"])
        assert (info.samplerate, info.channels) == (16_000, 1) and info.duration <= 8.0 and row.language == "en"
        assert abs(info.duration - line["seconds"]) < 1e-3
        # Sentences of the text, which follow each other but for those that are too long for the rest.
        left = line["text"]
        for sentence in LINES.splitlines() * 4:
            left = left.replace(sentence, "").strip()
        assert line["text"] and not left
    again = make(None, "again", *options[:1], 1, *options[2:])
    assert again == lines[:1]
    assert (tmp_path / "again" / lines[0]["audio"]).read_bytes() == (tmp_path / "out" / lines[0]["audio"]).read_bytes()


@needs_voices
def test_held_out_voices_are_in_no_training(modules, make):
    speech, voices = modules("make_speech"), modules("voices")
    names = {held: set() for held in (False, True)}
    for held, found in names.items():
        for seed in range(300):
            found.add(speech.Voice(np.random.default_rng(seed), held).name)
    assert not names[False] & names[True]
    assert names[True] == {*voices.HELD_OUT_VARIANTS, *speech.HELD_OUT_FLITE}


@needs_voices
def test_sentences_that_are_all_too_long_are_told(make):
    with pytest.raises(SystemExit, match="error: no sentence is said within 0.2 s; expected longer clips: --seconds"):
        make(LINES, "out", "--clips", 1, "--seconds", 0.2)
