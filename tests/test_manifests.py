"""What the trainer reads: every fault of a manifest with its line and the way out, all at once; other people's names and
formats; parts of files; clips longer than a window."""

import json
import os
import re

import numpy as np
import pytest
import soundfile
from helpers.training import FOLDER, tone, write_manifest


@pytest.fixture
def manifest(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import manifest

    return manifest


@pytest.fixture
def folder(tmp_path):
    """With a.wav, 1.2 s, and silent.wav."""
    soundfile.write(tmp_path / "a.wav", tone(400, 1.2, np.random.default_rng(0)), 16_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000, np.float32), 16_000)
    (tmp_path / "text.wav").write_text("no sound at all")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    return tmp_path


GOOD = '{"audio": "a.wav", "text": "one"}'
FAULTS = [
    ("not json", "is no JSON"),
    ("[1]" * 3, "is no JSON"),
    ("[" * 100_000, "is no JSON"),
    ('"a.wav"', "expected {"),
    ('{"text": "one"}', "has no recording"),
    ('{"audio": 3, "text": "one"}', "the path 3"),
    ('{"audio": "a.wav"}', "has no text"),
    ('{"audio": "a.wav", "text": null}', "has no text"),
    ('{"audio": "a.wav", "text": ["one"]}', "the text ['one']"),
    ('{"audio": "a.wav", "text": "one", "language": 7}', "the language 7"),
    ('{"audio": "missing.wav", "text": "one"}', "relative to the manifest"),
    ('{"audio": "text.wav", "text": "one"}', "text.wav"),
    ('{"audio": "silent.wav", "text": "one"}', "is silent"),
    ('{"audio": "a.wav", "text": "one", "offset": -1}', "the offset -1"),
    ('{"audio": "a.wav", "text": "one", "offset": NaN}', "the offset nan"),
    ('{"audio": "a.wav", "text": "one", "offset": true}', "the offset True"),
    ('{"audio": "a.wav", "text": "one", "offset": 5}', "ends at 1.20 s"),
    ('{"audio": "a.wav", "text": "one", "offset": 1, "duration": 2}', "ends at 1.20 s"),
    ('{"audio": "a.wav", "text": "one", "duration": "long"}', "the duration 'long'"),
    ('{"audio": "a.wav", "text": "one", "duration": 0}', "the duration 0"),
    ('{"audio": "a.wav", "text": "%s"}' % ("one " * 60), "can't be said"),
    ('{"audio": "folder", "text": "one"}', "is no file"),
    ('{"audio": "pipe.wav", "text": "one"}', "is no file"),
    ('{"audio": "\\ud800.wav", "text": "one"}', "no such file"),
    ('{"audio": "a.wav", "text": "one", "offset": %s}' % ("1" * 5000), "line 3: "),
    ('{"audio": "a.wav", "text": "one \\ud83d"}', "half a character in its text"),
    ('{"audio": "a.wav", "phrases": [{"start": 0, "end": 1, "text": "\\ude00"}]}', "half a character in its phrases"),
    ('{"audio": "a.wav", "text": "one", "phrases": "one"}', "the phrases 'one'"),
    ('{"audio": "a.wav", "text": "one", "phrases": [{"start": 1, "end": 0.5, "text": "one"}]}', "from 1.0 to 0.5 s"),
    ('{"audio": "a.wav", "text": "one", "phrases": [{"start": 0, "end": 9, "text": "one"}]}', "ends at 9 s"),
]


@pytest.mark.parametrize("line, message", FAULTS, ids=[message for _, message in FAULTS])
def test_a_fault_is_told_with_its_line(manifest, folder, line, message):
    (folder / "m.jsonl").write_text(f"{GOOD}\n\n{line}\n{GOOD}\n", encoding="utf-8")
    with pytest.raises(manifest.TrainingError, match=re.escape("m.jsonl, line 3: ")) as caught:
        manifest.read_manifests([folder / "m.jsonl"])
    assert message in str(caught.value) and str(caught.value).count("\n") == 0


def test_all_faults_are_told_at_once(manifest, folder):
    (folder / "m.jsonl").write_text("\n".join(line for line, _ in FAULTS), encoding="utf-8")
    (folder / "n.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(manifest.TrainingError) as caught:
        manifest.read_manifests([folder / "m.jsonl", folder / "n.jsonl", folder / "missing.jsonl", folder / "x.txt"])
    said = str(caught.value)
    told = sorted(map(int, re.findall(r"m\.jsonl, line (\d+)", said)))
    assert told == list(range(1, len(FAULTS) + 1)) and said.startswith(f"{len(FAULTS) + 3} faults")
    assert (
        "n.jsonl: no recordings" in said and "missing.jsonl: No such file" in said and "x.txt: is no manifest" in said
    )


def test_a_hostile_name_does_not_reach_the_terminal(manifest, folder):
    write_manifest(folder / "m.jsonl", [{"audio": "\x1b[2Jx.wav", "text": "one"}])
    with pytest.raises(manifest.TrainingError) as caught:
        manifest.read_manifests([folder / "m.jsonl"])
    assert "\x1b" not in str(caught.value) and "\\x1b" in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_read(manifest, folder, encoding):
    (folder / "m.jsonl").write_text(
        '{"audio": "a.wav", "text": "一\u2028二", "language": "Chinese"}\n', encoding=encoding
    )
    (row,) = manifest.read_manifests([folder / "m.jsonl"])
    assert (row.text, row.language, row.where[-6:]) == ("一 二", "zh", "line 1")


def test_another_encoding_is_told_by_line(manifest, folder):
    (folder / "m.jsonl").write_bytes(f"{GOOD}\n".encode() + '{"audio": "a.wav", "text": "中文"}'.encode("gbk"))
    with pytest.raises(manifest.TrainingError, match="line 2 is no UTF-8.*save the file as UTF-8"):
        manifest.read_manifests([folder / "m.jsonl"])


def test_names_and_formats_of_others(manifest, folder):
    """NeMo's, Hugging Face's audiofolder, Common Voice's."""
    line = {"audio_filepath": "a.wav", "duration": 1.2, "text": "one  two", "lang": "english", "offset": 0}
    write_manifest(folder / "nemo.json", [line])
    for name in ("csv", "jsonl"):
        (folder / name / "sub").mkdir(parents=True)
        (folder / name / "sub" / "a.wav").write_bytes((folder / "a.wav").read_bytes())
    (folder / "csv" / "metadata.csv").write_text(
        'file_name,transcription,language\nsub/a.wav,"one\ntwo",en\n', encoding="utf-8-sig"
    )
    write_manifest(
        folder / "jsonl" / "metadata.jsonl", [{"file_name": "sub/a.wav", "text": "one two", "language": "en-US"}]
    )
    (folder / "voice.tsv").write_text('client_id\tpath\tsentence\nme\ta.wav\tone "two\n', encoding="utf-8")
    paths = [folder / "nemo.json", folder / "csv", folder / "csv" / "metadata.csv", folder / "jsonl"]
    for row in manifest.read_manifests(paths):
        assert (row.text, row.language, row.seconds) == ("one two", "en", 1.2)
    (row,) = manifest.read_manifests([folder / "voice.tsv"], language="German")
    assert (row.text, row.speaker, row.language) == ('one "two', "me", "de")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("m.csv", "a.wav,one\n", "expected the names of columns"),
        ("m.tsv", "path\ttext\na.wav\tone\tmore\n", "line 2: has more columns"),
        ("m.tsv", "path\ttext\na.wav\n", "line 2: has no text"),
        ("m.csv", "path,text,text\na.wav,one,two\n", "two columns 'text'"),  # not the last one without a word
        ("m.csv", 'path,text\na.wav,"' + "x" * 200_000, "line 2: .*is a quote missing"),
        ("m.csv", 'path,text\na.wav,"one\na.wav,two\n', "line 2: .*is a quote missing"),  # not "one a.wav,two"
        ("m.csv", 'path,text\na.wav,"on"e\na.wav,two\n', "line 2: .*is a quote missing"),
        ("m.jsonl", "[\n" + GOOD + "\n]", "is one JSON list"),
        ("m.parquet", "PAR1", "Parquet|pyarrow"),
    ],
)
def test_tables_are_checked_too(manifest, folder, name, content, message):
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(manifest.TrainingError, match=message):
        manifest.read_manifests([folder / name])


def test_a_speaker_whom_nobody_knows_is_told_of(manifest, folder):
    write_manifest(folder / "m.jsonl", [{"audio": "a.wav", "text": "one", "speaker": "ann*3"}])
    (said,) = manifest.strangers(manifest.read_manifests([folder / "m.jsonl"]), {"without": ["ann"], "twice": ["anne"]})
    assert said == "--twice anne: no recording is of a speaker of this name"


def test_a_folder_without_metadata_says_what_it_needs(manifest, folder):
    with pytest.raises(manifest.TrainingError, match="metadata.jsonl or metadata.csv"):
        manifest.read_manifests([folder])


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_a_part_of_a_file(manifest, folder, rate):
    """`offset` and `duration` take these samples, and nothing before them matters."""
    whole = np.random.default_rng(0).uniform(-0.3, 0.3, 5 * rate).astype(np.float32)
    soundfile.write(folder / "long.wav", whole, rate, subtype="FLOAT")
    write_manifest(folder / "m.jsonl", [{"audio": "long.wav", "text": "one", "offset": 1.5, "duration": 0.5}])
    (row,) = manifest.read_manifests([folder / "m.jsonl"])
    found = manifest.samples(row)
    wanted = manifest.audio.load(whole[: 3 * rate], rate).numpy()[24_000:32_000]
    assert row.seconds == 0.5 and len(found) == 8000
    np.testing.assert_allclose(found[400:-400], wanted[400:-400], atol=1e-4)  # ends are resampled from silence


def test_what_was_said_before_is_that_of_the_clip_before(manifest, folder):
    soundfile.write(folder / "long.wav", tone(400, 6, np.random.default_rng(0)), 16_000)
    lines = [{"audio": "long.wav", "text": word, "offset": 2 * i, "duration": 2} for i, word in enumerate("abc")]
    write_manifest(folder / "m.jsonl", [lines[2], lines[0], lines[1], json.loads(GOOD)])
    rows = manifest.read_manifests([folder / "m.jsonl"])
    assert [(row.text, row.previous) for row in rows] == [("c", "b"), ("a", ""), ("b", "a"), ("one", "")]


# ---- longer than a window --------------------------------------------------------------------------------------------


@pytest.fixture
def speech(manifest, folder):
    """A row of 9 s: tones of a second with pauses, of which the quietest point is known."""
    rng = np.random.default_rng(0)
    sound = 0.003 * rng.standard_normal(9 * 16_000).astype(np.float32)
    phrases = []
    for number in range(6):
        start = 1.5 * number
        sound[round(start * 16_000) : round((start + 1) * 16_000)] += tone(300 + 100 * number, 1, rng)
        sound[round((start + 1.3) * 16_000) : round((start + 1.4) * 16_000)] = 0  # not the middle of the pause
        phrases.append({"start": start, "end": start + 1, "text": f"w{number}"})
    soundfile.write(folder / "long.wav", sound, 16_000)
    line = {"audio": "long.wav", "text": " ".join(f"w{i}" for i in range(6))}
    write_manifest(folder / "with.jsonl", [line | {"phrases": phrases}])
    write_manifest(folder / "without.jsonl", [line, json.loads(GOOD)])
    import long_clips

    return (
        long_clips,
        manifest.read_manifests([folder / "with.jsonl"]),
        manifest.read_manifests([folder / "without.jsonl"]),
    )


def test_a_long_clip_is_cut_at_quiet_points(manifest, speech):
    long_clips, rows, _ = speech
    pieces, said = long_clips.fitted(rows, 4.0, 4.0)
    assert "1 clips longer than the window of 4 s are cut" in said[0] and len(pieces) == 3
    assert [piece.text for piece in pieces] == ["w0 w1", "w2 w3", "w4 w5"]
    assert [piece.previous for piece in pieces] == ["", "w0 w1", "w2 w3"]
    assert all(piece.seconds <= 4.0 for piece in pieces)
    for piece in pieces[1:]:
        assert (piece.offset - 1.3) % 1.5 < 0.1  # the stretch without noise
    whole = manifest.samples(rows[0])
    np.testing.assert_array_equal(np.concatenate([manifest.samples(piece) for piece in pieces]), whole)
    for piece in pieces:
        for phrase in piece.phrases:
            found = whole[round((piece.offset + phrase.start) * 16_000) : round((piece.offset + phrase.end) * 16_000)]
            assert np.abs(found).mean() > 0.1


def test_a_long_clip_without_times_is_named_and_counted(speech):
    long_clips, _, rows = speech
    kept, said = long_clips.fitted(rows, 4.0, 4.0)
    assert [row.text for row in kept] == ["one"]
    assert "LEFT OUT: 1 clips, 9 s" in said[0] and "without.jsonl, line 1 (9.0 s)" in said[0] and "`phrases`" in said[0]
    kept, said = long_clips.fitted(rows, 4.0, 20.0)  # GLM-ASR takes several windows
    assert len(kept) == 2 and "1 clips longer than 4 s are several windows" in said[0]


def test_phrases_that_overlap_or_say_something_else_are_no_place_to_cut(speech):
    from dataclasses import replace

    long_clips, (row,), _ = speech
    first, second, *rest = row.phrases
    longer = [replace(one, end=one.start + 1.6) for one in row.phrases]
    assert long_clips.pieces_of(replace(row, phrases=tuple(longer)), 4.0) == []
    assert long_clips.pieces_of(replace(row, text=f"{row.text} more"), 4.0) == []
    # The longest pause of the last third of a window, rather than the last one that fits.
    fewer = (first, second, *(replace(one, end=one.start + 1.4) for one in rest[:-1]), rest[-1])
    pieces = long_clips.pieces_of(replace(row, phrases=fewer), 5.0)
    assert [piece.text for piece in pieces] == ["w0 w1 w2", "w3 w4 w5"]
    pieces = long_clips.pieces_of(replace(row, phrases=(*fewer[:2], replace(fewer[2], end=4.45), *fewer[3:])), 6.0)
    assert [piece.text for piece in pieces] == ["w0 w1 w2 w3", "w4 w5"]
    # Where two overlap there is no cut, but elsewhere there are.
    some = (first, replace(second, start=0.9), *rest)
    pieces = long_clips.pieces_of(replace(row, phrases=some), 4.0)
    assert [piece.text for piece in pieces] == ["w0 w1", "w2 w3", "w4 w5"]


def test_the_model_tells_where_to_cut_a_text(speech):
    """Where two words on each side are as the text has them, and there is time between them; the parts are the text."""
    import anchors

    text = 'One two, three four. "Five six" seven eight nine ten'
    heard = [(word, i, i + 0.5) for i, word in enumerate("one two three four fife six seven eight nine ten".split())]
    found = anchors.phrases(text, 10.0, heard)
    assert [phrase.text for phrase in found] == ["One two,", 'three four. "Five six" seven', "eight", "nine ten"]
    assert [(phrase.start, phrase.end) for phrase in found] == [(0.0, 1.5), (2, 6.5), (7, 7.5), (8, 10.0)]
    joined = [(word, i, i + 1.2) for i, word in enumerate("one two three four".split())]  # words run into each other
    assert len(anchors.phrases("One two three four", 5.0, joined)) == 1
    assert anchors.phrases(text, 10.0, [("other", 0, 1)] * 10) == ()
    assert [
        one.text for one in anchors.phrases("今天天气", 4.0, [(c, i, i + 0.5) for i, c in enumerate("今天天气")])
    ] == ["今天", "天气"]


def test_a_long_clip_without_times_is_cut_where_the_model_finds_its_text(manifest, speech):
    """And has no times to learn, for they are the model's own."""
    long_clips, rows, without = speech
    pieces, said = long_clips.fitted(without, 4.0, 4.0, lambda row: rows[0])
    assert [piece.text for piece in pieces] == ["w0 w1", "w2 w3", "w4 w5", "one"] and not any(p.phrases for p in pieces)
    assert said == [
        "1 clips longer than the window of 4 s are cut at quiet points, 1 of them where the model finds their text"
    ]
    _, said = long_clips.fitted(without, 4.0, 4.0, lambda row: row)
    assert "LEFT OUT: 1 clips" in said[0]
