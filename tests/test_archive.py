"""Archives, without Ray: sources, pieces, batches, rows, shards, the report. With it: tests/test_ray_archive.py."""

import contextlib
import gzip
import io
import json
import os
import socket
import tarfile
import tempfile
import time

import numpy as np
import pytest
import soundfile
import torch
from helpers import ROOT

import glmasr
from glmasr import audio
from glmasr.archive import cluster, main, progress, rows, shards, sources, storage, work
from glmasr.archive.items import Item
from glmasr.archive.report import Report, cause
from glmasr.archive.worker import AROUND, WIDTH, Worker
from glmasr.errors import OptionError, OutputError

RATE = 16_000


@pytest.fixture(scope="module")
def recognizer():
    return glmasr.load("demo", device="cpu")


@pytest.fixture
def worker(recognizer):
    return Worker(recognizer, "run", "auto", glmasr.Options(beams=1), 1, 5.0)


def read(*names):
    errors = []
    found = sources.read([str(name) for name in names], lambda error: errors.append(str(error)))
    return found, errors


# ---- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", '{"id": "x", "path": "b/a.wav", "language": "zh", "offset": 1.5, "duration": 2}\n\n'),
        ("a.json", '{"utt_id": "x", "audio_filepath": "b/a.wav", "lang": "zh", "offset": 1.5, "duration": 2.0}'),
        ("a.tsv", 'id\tpath\tlanguage\toffset\tduration\tmore\nx\tb/a.wav\tzh\t1.5\t2\t"\n'),
        ("a.csv", 'id,path,language,offset,duration\nx,"b/a.wav",zh,1.5,2\n'),
    ],
)
def test_manifests(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert read(tmp_path / name) == ([Item("x", str(tmp_path / "b/a.wav"), "zh", 1.5, 2.0)], [])


def test_lines_that_cannot_be_used_are_named_and_the_others_count(tmp_path):
    lines = ["{", "[1]", "{}", '{"path": 3}', '{"path": "a", "offset": "x"}', '{"path": "a", "duration": 0}']
    lines += ['{"path": "a", "offset": -1}', '{"path": "a", "language": 1}', '{"path": "a", "id": ""}', '{"path": "a"}']
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    found, errors = read(tmp_path / "m.jsonl")
    assert [item.path for item in found] == [str(tmp_path / "a")]
    assert [error.partition(": ")[0] for error in errors] == [f"{tmp_path}/m.jsonl, line {n}" for n in range(1, 10)]
    assert all("; expected" in error for error in errors)


def test_one_id_for_two_recordings_is_refused(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"path": "a", "id": "x"}\n{"path": "b", "id": "x"}\n')
    with pytest.raises(OptionError, match="the id 'x' is that of two recordings"):
        read(tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_text('{"path": "a", "id": "x"}\n{"path": "a", "id": "x"}\n')
    assert len(read(tmp_path / "m.jsonl")[0]) == 1


def test_parts_of_a_recording_have_ids_of_their_own(tmp_path):
    (tmp_path / "m.jsonl").write_text("".join(f'{{"path": "/a", "offset": {n}, "duration": 1}}\n' for n in range(3)))
    assert [item.id for item in read(tmp_path / "m.jsonl")[0]] == ["/a@0+1", "/a@1+1", "/a@2+1"]


def test_folders_patterns_and_what_is_not_there(tmp_path):
    for name in ("b.wav", "in/a.mp3", "in/note.txt", ".hidden.wav", "in/.x/c.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [item.path for item in read(tmp_path)[0]] == [str(tmp_path / "b.wav"), str(tmp_path / "in/a.mp3")]
    assert [item.path for item in read(tmp_path / "*.wav", tmp_path / "b.wav")[0]] == [str(tmp_path / "b.wav")]
    (tmp_path / "none").mkdir()
    found, errors = read(tmp_path / "none", tmp_path / "*.flac", tmp_path / "no.jsonl", tmp_path / "a.tar.gz")
    assert not found and len(errors) == 4 and "a plain .tar" in errors[3]
    (tmp_path / "t.tsv").write_text("name\ta\n")
    assert "has no column `path`" in read(tmp_path / "t.tsv")[1][0]
    (tmp_path / "t.csv").write_text('path,id\na.wav,"one\nb.wav,two\n')  # not one recording, of the id "one b.wav,two"
    assert "t.csv, line 2: is no line of a table" in read(tmp_path / "t.csv")[1][0]


def test_a_tar_file(tmp_path, worker):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (
            ("x/1.mp3", (ROOT / "examples" / "en.mp3").read_bytes()),
            ("x/1.json", b'{"language": "en"}'),
            ("x/1.txt", b"five"),
            ("x/2.wav", b"RIFF"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    found, errors = read(tmp_path / "a.tar")
    assert [(item.id, item.language) for item in found] == [
        (f"{tmp_path}/a.tar#x/1.mp3", "en"),
        (f"{tmp_path}/a.tar#x/2.wav", ""),
    ]
    first, second = worker([work.Piece(item) for item in found])
    assert first["text"] == "five five five zero one three six" and first["id"] == found[0].id
    assert (
        second["status"] == "failed"
        and "a.tar#x/2.wav" in second["error"]
        and tempfile.gettempdir() not in second["error"].replace(str(tmp_path), "")
    )


def test_patterns_of_folders_manifests_and_tar_files(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_bytes(b"")
    (tmp_path / "m.jsonl").write_text('{"path": "b.wav", "offset": null}')
    pack(tmp_path / "t.tar", {"c.wav": b"1", "d.wav": b"2"})
    found, errors = read(tmp_path / "[imt]*")
    names = ["in/a.wav", "b.wav", "t.tar#c.wav", "t.tar#d.wav"]
    assert [item.id for item in found] == [f"{tmp_path}/{name}" for name in names] and not errors
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe("/patterns/t.tar", (tmp_path / "t.tar").read_bytes())
    assert len(read("memory://patterns/*.tar")[0]) == 2
    assert "there is no recording" in read("")[1][0]


def test_what_a_storage_raises_is_told(monkeypatch):
    def refuse(*_):
        raise RuntimeError  # as packages of storages have their own, without a word

    monkeypatch.setattr(storage, "expanded", refuse)
    assert read("s3://me:secret@bucket/") == ([], ["s3://***@bucket/: can't be read (RuntimeError)"])


def pack(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_damaged_tar_files_cost_what_is_damaged(tmp_path, worker):
    sound = (ROOT / "examples" / "zh.wav").read_bytes()
    pack(tmp_path / "a.tar", {"1.wav": sound, "1.json": b"{", "2.wav": sound, "2.json": b'{"language": "zh"}'})
    found, errors = read(tmp_path / "a.tar")
    assert [item.language for item in found] == ["", "zh"] and "a.tar#1.json: is no JSON" in errors[0]
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[: found[1].where[0] + 5000])
    found, errors = read(tmp_path / "cut.tar")
    assert len(found) == 2 and "cut.tar: is no plain tar file, or is damaged" in errors[-1]
    whole, cut = worker([work.Piece(item) for item in found])
    assert whole["status"] == "done" and cut["error"].endswith("ends within the recording)")
    (tmp_path / "a.tar").write_bytes(b"x" * 5000)
    (tmp_path / "b.tar").write_bytes(gzip.compress(content))
    (tmp_path / "c.wav").write_bytes(b"")
    found, errors = read(tmp_path)  # those beside them count
    assert len(found) == 3 and len(errors) == 4


def test_names_that_are_no_text(tmp_path, worker):
    """Bytes of a file system that are no UTF-8, and halves of UTF-16 in JSON."""
    pytest.importorskip("pyarrow")
    (tmp_path / "m.jsonl").write_text('{"path": "gone\\ud800.wav", "id": "half \\ud800"}')
    names = [tmp_path / "m.jsonl"]
    with contextlib.suppress(OSError):  # systems that have no such names
        (tmp_path / "bad\udcff.wav").write_bytes(b"RIFF")
        names.append(tmp_path / "bad*.wav")
    items, _ = read(*names)
    found = shards.Shards(tmp_path / "out", {})
    found.add(worker([work.Piece(item) for item in items]))
    assert shards.unfinished(found.known, {item.id: rows.source(item) for item in items}, False) == ([], set())
    found.close()


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path, worker):
    if not hasattr(os, "mkfifo"):
        pytest.skip("there are no named pipes")
    os.mkfifo(tmp_path / "a.wav")
    [row] = worker([work.Piece(item) for item in read(tmp_path)[0]])
    assert "is a pipe; expected a file" in row["error"] and row["attempts"] == 1


def test_paths_are_whole_for_workers_that_are_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"")
    [item] = read("a.wav")[0]
    assert (item.id, item.path) == ("a.wav", str(tmp_path / "a.wav"))


def test_a_changed_file_is_another_one(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"1")
    [before], _ = read(path)
    assert read(path)[0] == [before]
    path.write_bytes(b"12")
    assert rows.source(read(path)[0][0]) != rows.source(before)


def test_addresses_that_nobody_knows():
    pytest.importorskip("fsspec")
    found, errors = read("nothing://bucket/a.jsonl")
    assert not found and "nothing" in errors[0]


def test_a_storage_that_is_silent(tmp_path, monkeypatch):
    import threading

    release = threading.Event()

    class Silent(io.BytesIO):
        def read(self, count=-1):
            release.wait(10)
            return b""

    from contextlib import contextmanager

    monkeypatch.setattr(storage, "opened", contextmanager(lambda path: iter([Silent()])))
    with pytest.raises(storage.StorageError, match="nothing came for 0.1 s") as caught:
        storage.Copying(Item("a", "memory://a.wav"), tmp_path, 0.1).wait()
    assert caught.value.again
    release.set()


# ---- pieces and batches ----------------------------------------------------------------------------------------------


def test_pieces_of_long_recordings_and_batches_of_about_the_same_seconds():
    some = work.pieces([Item("a", "/no", duration=100.0), Item("b", "/no", duration=7000.0), Item("c", "/no")], 1800.0)
    assert [(piece.item.id, piece.number, piece.count, piece.start, piece.end) for piece in some] == [
        ("a", 0, 1, 0.0, None),
        *(("b", n, 4, 1750.0 * n, 1750.0 * (n + 1) if n < 3 else None) for n in range(4)),
        ("c", 0, 1, 0.0, None),
    ]
    short = [work.Piece(Item(str(n), "/no"), seconds=10.0 + n) for n in range(9)]
    grouped = work.batches([*some, *short], 60.0)
    assert sorted(len(batch) for batch in grouped) == [1, 1, 1, 1, 1, 2, 4, 4] or sum(map(len, grouped)) == 15
    assert all(sum(piece.seconds for piece in batch) <= 60 or len(batch) == 1 for batch in grouped)
    assert [batch[0].seconds for batch in grouped] == sorted((batch[0].seconds for batch in grouped), reverse=True)


def test_a_header_or_a_manifest_that_says_too_much(monkeypatch):
    """A length of centuries doesn't make pieces without end."""
    monkeypatch.setattr(work, "stated_duration", lambda path: 1e15)
    assert len(work.pieces([Item("a", "/no"), Item("b", "/no", duration=1e15)], 1800.0)) == 48


@pytest.fixture
def talk(tmp_path):
    """Three minutes with tones and pauses."""
    noise = np.random.default_rng(0).normal(0, 0.1, 180 * RATE).astype(np.float32)
    quiet = (np.arange(len(noise)) // (RATE // 2)) % 7 == 3
    path = tmp_path / "talk.wav"
    soundfile.write(path, np.where(quiet, noise / 1000, noise), RATE)
    return path


@pytest.mark.parametrize("claimed", [180.0, 200.0, 185.0])
def test_pieces_are_the_whole_recording(worker, talk, monkeypatch, claimed):
    """Also of a file that is shorter than its header says."""
    monkeypatch.setattr(work, "stated_duration", lambda path: claimed)
    some = work.pieces([Item("a", str(talk), offset=2.0)], 50.0)
    assert len(some) == 4
    whole = audio.load(talk)[2 * RATE :]
    place, cuts = 0, []
    for piece in some:
        samples, start, warnings, _ = worker._sound(piece)
        assert len(samples) == 0 or round((start - 2.0) * RATE) == place
        torch.testing.assert_close(samples, whole[place : place + len(samples)], rtol=0, atol=0)
        place += len(samples)
        cuts.append(place)
        assert not warnings
    assert place == len(whole)
    assert all(whole[cut - 80 : cut + 80].abs().max() < 0.01 for cut in cuts[:2])
    assert all(abs(cut / RATE - piece.end) <= AROUND for cut, piece in zip(cuts[:2], some, strict=False))
    assert WIDTH == 30 * RATE


def test_a_recording_in_pieces_has_times_of_the_whole(worker, talk, monkeypatch):
    digits = audio.load(ROOT / "examples" / "en.mp3").numpy()
    samples = np.concatenate([np.concatenate([digits, np.zeros(2 * RATE, np.float32)])] * 24)
    soundfile.write(talk, samples, RATE)
    item = Item("a", str(talk), "en")
    some = work.pieces([item], 60.0)
    found = worker(some)
    assert len(some) == 2 and [row["status"] for row in found] == ["done"] * 2
    row = rows.joined(item, "run", found)
    assert row["text"].split() == ("five five five zero one three six " * 24).split()
    starts = [segment["start"] for segment in row["segments"]]
    assert (
        starts == sorted(starts) and starts[-1] > 120 and row["seconds"] == pytest.approx(len(samples) / RATE, abs=0.01)
    )


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_a_recording_that_fails_leaves_the_others(worker, tmp_path):
    names = [str(ROOT / "examples" / "en.mp3"), str(tmp_path / "gone.wav"), str(ROOT / "README.md")]
    good, gone, text = worker([work.Piece(Item(name, name)) for name in names])
    assert good["status"] == "done" and good["text"] and good["attempts"] == 1 and good["run"] == "run"
    assert (
        gone["status"] == text["status"] == "failed" and "no such file" in gone["error"] and names[2] in text["error"]
    )


def test_what_fails_together_is_recognized_one_by_one(worker, monkeypatch):
    recognize = worker.recognizer.recognize

    def defect(sounds, languages, options):
        if any(len(sound) > 2.8 * RATE for sound in sounds):
            raise ZeroDivisionError("of ours")
        return recognize(sounds, languages, options)

    monkeypatch.setattr(worker.recognizer, "recognize", defect)
    names = [str(ROOT / "examples" / name) for name in ("en.mp3", "zh.wav")]
    long, short = worker([work.Piece(Item(name, name)) for name in names])
    assert long["error"] == "ZeroDivisionError: of ours" and short["status"] == "done"


def test_a_storage_that_answers_the_second_time(worker, monkeypatch):
    monkeypatch.setattr("glmasr.archive.worker.PAUSE", 0.0)
    calls = []

    class Copying:
        def __init__(self, item, folder, timeout):
            calls.append(item)

        def wait(self):
            if len(calls) == 1:
                raise storage.StorageError("busy")
            return ROOT / "examples" / "en.mp3"

    monkeypatch.setattr("glmasr.archive.worker.Copying", Copying)
    [row] = worker([work.Piece(Item("a", "s3://a.mp3"))])
    assert row["status"] == "done" and row["attempts"] == 2


def test_a_manifest_that_says_more_than_there_is(worker):
    name = str(ROOT / "examples" / "en.mp3")
    [row] = worker([work.Piece(Item(name, name, "en", 1.0, 30.0))])
    assert row["status"] == "done" and "before the end that the manifest says" in row["warnings"][0]
    assert row["segments"][0]["start"] >= 1.0


def test_what_is_to_be_done():
    known = {"a": ("1", "done"), "b": ("1", "failed"), "c": ("1", "done")}
    wanted = {"a": "1", "b": "1", "c": "2", "d": "1"}
    assert shards.unfinished(known, wanted, False) == (["c", "d"], {"c"})
    assert shards.unfinished(known, wanted, True) == (["b", "c", "d"], {"b", "c"})


def row(name, **more):
    return rows.failed(Item(name, f"/{name}"), "run", "broken", 1) | more


def test_shards_are_whole_and_hold_each_row_once(tmp_path):
    pytest.importorskip("pyarrow")
    out = tmp_path / "out"
    found = shards.Shards(out, {"model": "m"})
    found.add([row("a"), row("b")])
    found.add([row("c\udcff".encode("utf-8", "backslashreplace").decode())])
    with pytest.raises(ValueError, match="is there already"):
        found.add([row("a")])
    with pytest.raises(OutputError, match="another process is at work"):
        shards.Shards(out, {"model": "m"})
    found.close()
    (out / "rows-00002.jsonl").write_text("torn")  # of a run that was killed before the other file was there
    found = shards.Shards(out, {"model": "m"})
    assert len(found.known) == 3 and not (out / "rows-00002.jsonl").exists()
    found.drop({"a"})
    found.add([row("a")])
    found.drop({"c\\udcff"})
    assert sorted(path.name for path in out.glob("rows*")) == [
        f"rows-0000{n}.{form}" for n in (0, 2) for form in ("jsonl", "parquet")
    ]
    assert [one["id"] for path in found.files() for one in shards.rows(path)] == ["b", "a"]
    assert [json.loads(line)["id"] for line in (out / "rows-00002.jsonl").read_text().splitlines()] == ["a"]
    found.close()
    with pytest.raises(OptionError, match="differs in model"):
        shards.Shards(out, {"model": "n"})


def test_shards_that_are_damaged_or_others(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    found = shards.Shards(tmp_path, {"model": "m"})
    found.add([row(str(number)) for number in range(500)])
    found.close()
    path = tmp_path / "rows-00000.parquet"
    whole = path.read_bytes()
    (tmp_path / "rows-00000 (copy).parquet").write_bytes(whole)
    (tmp_path / "rows-all.jsonl").write_bytes(b"")
    (tmp_path / ".0123456789abcdef.part").write_bytes(b"")  # of a run that was killed
    found = shards.Shards(tmp_path, {"model": "m"})
    assert len(found.known) == 500 and not list(tmp_path.glob(".*.part"))
    assert (tmp_path / "rows-all.jsonl").exists()
    found.close()
    start = parquet.ParquetFile(path).metadata.row_group(0).column(0).dictionary_page_offset
    for damaged in (b"", whole[:1000], whole[: start + 30] + bytes(300) + whole[start + 330 :]):
        path.write_bytes(damaged)
        with pytest.raises(OutputError, match="rows-00000.parquet: is damaged .*; remove it"):
            shards.Shards(tmp_path, {"model": "m"})
    path.unlink()
    for text in ("[1]", "3", "{"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(OutputError, match="run.json: is damaged"):
            shards.Shards(tmp_path, {"model": "m"})


def test_a_full_disk_leaves_nothing_torn(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    found = shards.Shards(tmp_path, {})
    found.add([row("a")])

    def full(path, content):
        raise OutputError(f"{path}: cannot be written (no space)")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_whole", full)
        with pytest.raises(OutputError, match="no space"):
            found.add([row("b")])
    assert set(found.known) == {"a"}
    found.add([row("b")])
    found.close()


def test_the_report():
    report = Report(planned=3, seconds=10.0, workers=2)
    report.add(row("a", status="done", seconds=30.0, worker="w", took=5.0))
    report.add(row("b", error="/b: is empty (0 bytes); expected sound"))
    report.add(row("c", error="/c: is empty (12 bytes); expected sound"))
    found = report.to_dict()
    assert (found["recordings"], found["left"]) == (3, 0)
    assert (found["done"], found["failed"], found["times_as_fast_as_sound"], found["utilisation"]) == (1, 2, 3.0, 0.25)
    assert found["failures"] == [{"cause": "is empty (N bytes)", "count": 2, "example": "b"}]
    assert "| 2 | is empty (N bytes) | b |" in report.to_markdown() and cause("", "x") == "no reason was given"


def test_how_far_it_is(monkeypatch):
    """Lines where there is no terminal: one a minute."""
    clock, said = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    report = Report()
    shown = progress.Progress(36_000.0, report, said.append, True)
    for moment in (30.0, 59.0, 61.0, 100.0, 130.0):
        clock[0] = moment
        shown.add(720.0)
    assert said == [
        "0.60 of 10.00 h, 35.4 x as fast as sound, 15:55 left",
        "1.00 of 10.00 h, 27.7 x as fast as sound, 19:30 left",
    ]
    report.add(row("b", error="/b: is empty (0 bytes); expected sound"))
    assert shown.text().endswith("19:30 left, 1 failed (1 is empty (N bytes))")
    shown.add(1e9)
    assert shown.text().startswith("10.00 of 10.00 h") and "00:00 left" in shown.text()
    progress.Progress(0.0, report, said.append, False).add(10.0)
    assert len(said) == 2


def test_warnings_of_a_piece_say_from_where_they_count(worker, talk, monkeypatch):
    soundfile.write(talk, np.random.default_rng(1).normal(0, 0.05, 130 * RATE), RATE)
    first, second = work.pieces([Item("a", str(talk))], 60.0)
    recognize = worker.recognizer.recognize

    def warning(*arguments):
        for transcript in recognize(*arguments):
            transcript.warnings.append("at 1 s: something")
            yield transcript

    monkeypatch.setattr(worker.recognizer, "recognize", warning)
    found = worker([first, second])
    assert found[0]["warnings"][-1] == "at 1 s: something"
    start = float(found[1]["warnings"][-1].removeprefix("(from ").split()[0])
    assert 50 < start < 80 and found[1]["warnings"][-1].endswith("s on) at 1 s: something")


@pytest.mark.parametrize(
    "nodes, workers, gpus, cpus, expected",
    [
        ([(2, 0)], None, 0, None, (1, 2)),
        ([(1, 0), (1, 0)], None, 0, None, (2, 1)),
        ([(4, 0)], 3, 0, None, (3, 1)),
        ([(4, 0)], None, 0, 2, (2, 2)),
        ([(16, 8), (16, 8)], None, 0.5, None, (32, 1)),
        ([(64, 0), (2, 0)], None, 0, None, (2, 32)),
    ],
)
def test_each_worker_fits_on_a_machine(nodes, workers, gpus, cpus, expected):
    assert cluster.shared_out(nodes, workers, gpus, cpus) == expected


@pytest.mark.parametrize("workers, gpus, cpus", [(3, 0, None), (1, 0, 3), (None, 0, 3), (None, 1, None), (2, 0, 2)])
def test_workers_that_fit_on_no_machine(workers, gpus, cpus):
    with pytest.raises(OptionError, match="there is no room for . with . cores .*the machines have 2 cores; fewer of"):
        cluster.shared_out([(2, 0)], workers, gpus, cpus)


@pytest.mark.parametrize("address", ["ray://", "somewhere", "ray://a:b", "a b:1", "127.0.0.1:"])
def test_addresses_that_are_none(address):
    with pytest.raises(OptionError, match="expected local, auto, HOST:6379 or ray://HOST:10001"):
        cluster.check_reachable(address)


def test_a_cluster_that_is_not_there_is_told_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for name in (address, f"ray://{address}", "127.0.0.1:99999"):
        with pytest.raises(cluster.ClusterError, match=f"no cluster at {name} .*ray start --head"):
            cluster.check_reachable(name)
    cluster.check_reachable("local")


@pytest.mark.parametrize("wrong", [["--split-seconds", "10"], ["--gpus-per-worker", "-1"], ["--retries", "-1"], []])
def test_wrong_usage(capsys, wrong):
    with pytest.raises(SystemExit) as caught:
        main.main(["a", *(["--out", "b"] if wrong else []), *wrong])
    assert caught.value.code == 2 and "usage" in capsys.readouterr().err
