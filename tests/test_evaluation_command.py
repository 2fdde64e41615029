"""`glmasr-eval`, with the demos."""

import json
import sys

import pytest
from helpers import ROOT

from glmasr.evaluation import main as command
from glmasr.evaluation import subjects
from glmasr.transcription.options import Options

EN, ZH, YUE = (ROOT / "examples" / name for name in ("en.mp3", "zh.wav", "yue.flac"))
TEXTS = json.loads((ROOT / "examples" / "texts.json").read_text(encoding="utf-8"))
LINES = [
    {"id": "en", "path": str(EN), "text": "Five five five zero one three six", "language": "en", "speaker": "a"},
    {"id": "zh", "path": str(ZH), "text": "三一四一五九二六", "language": "zh", "speaker": "b"},
    {"id": "part", "path": str(EN), "text": "nothing", "language": "en", "offset": 0.5, "duration": 1},
]


def write(path, lines):
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def run(capsys, *arguments):
    """(exit code, standard output, standard error)"""
    code = command.main(list(map(str, arguments)))
    return code, *capsys.readouterr()


def report(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_models_side_by_side_and_texts_of_others(tmp_path, capsys):
    manifest = write(tmp_path / "m.jsonl", LINES)
    write(
        tmp_path / "them.jsonl",
        [{"id": "en", "text": "555"}, {"id": "zh", "text": "三一四"}, {"id": "part", "text": "nothing"}],
    )
    code, out, err = run(
        capsys,
        manifest,
        "--model",
        "demo",
        "demo-article",
        "--hypotheses",
        tmp_path / "them.jsonl",
        "--out",
        tmp_path / "out",
    )
    found = report(tmp_path / "out")
    assert code == 0 and out == (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "3 clips" in err and "Traceback" not in err
    assert [model["name"] for model in found["models"]] == ["demo", "demo-article", "them.jsonl"]
    for model in found["models"][:2]:
        assert (
            model["languages"]["zh"]["characters"]["errors"] == 0
            and model["languages"]["zh"]["characters"]["count"] == 8
        )
        assert model["real_time_factor"] > 0 and model["seconds"] == pytest.approx(
            7.05, abs=0.1
        )  # of the clips, not the files
        assert model["how"]["device"] == "cpu"
    texts = {row["id"]: [one["text"] for one in row["models"]] for row in found["results"]}
    assert texts["en"][0] == "five five five zero one three six" and texts["part"] == [
        "five five",
        "five five",
        "nothing",
    ]
    assert found["models"][2]["languages"]["zh"]["characters"]["deletions"] == 5
    assert {one["model"] for one in found["comparisons"]} == {"demo-article", "them.jsonl"}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "en.mp3#t=0.5,1.5" in page and page.count("<h3>demo-article</h3>") == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json", "report.md"]


def test_a_clip_that_is_longer_than_its_file_has_a_warning(tmp_path, capsys):
    manifest = write(tmp_path / "m.jsonl", [LINES[0] | {"offset": 1, "duration": 30}, LINES[1]])
    code, _, _ = run(capsys, manifest, "--model", "demo", "--out", tmp_path / "out")
    warnings = [row["models"][0]["warnings"] for row in report(tmp_path / "out")["results"]]
    assert code == 0 and "before the end that the manifest says" in warnings[0][0] and warnings[1] == []
    assert "before the end that the manifest says" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_what_fails_is_named_and_counted_and_the_others_have_their_scores(tmp_path, capsys):
    (tmp_path / "empty.wav").write_bytes(b"")
    lines = [*LINES, {"path": "empty.wav", "text": "x", "speaker": "c"}, {"path": "gone.wav", "text": "x"}]
    lines += [{"path": str(EN), "id": "late", "offset": 60, "text": "x", "language": "en"}]
    lines += [
        {"path": str(EN), "id": "fr", "text": "cinq", "language": "fr"},
        {"path": "no-text.wav"},
        {"id": "zh", "path": "b", "text": "x"},
    ]
    lines += [{"path": "half \ud800.wav", "text": "x"}]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    code, out, err = run(capsys, manifest, "--model", "demo", "no-such/", "--out", tmp_path / "out", "--quiet")
    found = report(tmp_path / "out")
    demo, none = found["models"]
    assert code == 1 and (demo["scored"], demo["failed"]) == (3, 5) and (none["scored"], none["failed"]) == (0, 8)
    assert {one["id"] for one in demo["failures"]} >= {str(tmp_path / "empty.wav"), "late", "fr"}
    assert none["error"] and all(one["error"] == none["error"] for one in none["failures"])
    assert len(found["unusable"]) == 2 and "line 8: has no text" in err and "line 9: has the id 'zh'" in err
    for name in ("empty.wav", "gone.wav", "60", "fr", "no-such"):
        assert name in err and name in out
    assert "Traceback" not in err and all(line.startswith("error: ") for line in err.splitlines())


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["m.jsonl"], 2, "there is nothing to evaluate"),
        (["m.jsonl", "--model", "demo", "--beams", "0"], 2, "positive integer"),
        (["m.jsonl", "--model", "demo", "--beams", "1000"], 2, "at most 64"),
        (["m.jsonl", "--model", "demo", "demo"], 2, "named twice"),
        (["m.jsonl", "--model", "demo", "--hotwords", "a:x:"], 2, ""),
        (["m.jsonl", "--model", "demo", "--vad", "on"], 2, "invalid choice"),
        (["m.jsonl", "--model", "demo", "--lang", "klingon"], 2, "--lang is 'klingon', expected auto"),
        (["none.jsonl", "--model", "demo"], 1, "can't be read"),
        (["nothing.jsonl", "--model", "demo"], 1, "no line that can be used"),
        (["m.jsonl", "--hypotheses", "none.jsonl"], 1, "can't be read"),
        (["m.jsonl", "--model", "demo", "--out", "m.jsonl"], 1, "is a file"),
        (["--model", "demo", "m.jsonl"], 2, "MANIFEST"),
    ],
)
def test_wrong_usage(tmp_path, capsys, monkeypatch, arguments, code, message):
    """Nothing is written."""
    write(tmp_path / "m.jsonl", LINES[:1])
    (tmp_path / "nothing.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    try:
        found, out, err = run(capsys, *arguments)
    except SystemExit as leave:
        found, (out, err) = leave.code, capsys.readouterr()
    assert found == code and message in err and out == "" and "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.jsonl", "nothing.jsonl"]


def test_the_extra_is_asked_for_before_anything_is_done(tmp_path, capsys, monkeypatch):
    manifest = write(tmp_path / "m.jsonl", LINES)
    monkeypatch.setitem(sys.modules, "jiwer", None)
    code, out, err = run(capsys, manifest, "--model", "demo", "--out", tmp_path / "out")
    assert code == 2 and "[eval]" in err and out == "" and not (tmp_path / "out").exists()


def test_ctrl_c_writes_nothing(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(subjects, "load", interrupted)
    code, out, err = run(capsys, write(tmp_path / "m.jsonl", LINES), "--model", "demo", "--out", tmp_path / "out")
    assert code == 130 and out == "" and "interrupted" in err and list((tmp_path / "out").iterdir()) == []


def test_the_language_of_a_manifest_or_of_the_command(tmp_path, capsys, monkeypatch):
    """The model is told that of the line, or of --lang; scores go by the line's."""
    told = []

    class Stub:
        def how(self, options):
            return {}

        def check(self, language, options):
            return options

        def recognize(self, sounds, languages, options):
            told.extend(languages)
            raise subjects.GlmAsrError("not now")

    monkeypatch.setattr(subjects, "load", lambda *_, **__: Stub())
    lines = [{**LINES[0]}, {**LINES[1], "language": "zh-CN"}, {**LINES[2], "language": ""}]
    manifest = write(tmp_path / "m.jsonl", lines)
    for extra, expected in (
        ([], {"en", "zh-CN", "auto"}),
        (["--lang", "yue"], {"yue"}),
        (["--lang", "auto"], {"auto"}),
    ):
        told.clear()
        code, out, err = run(capsys, manifest, "--model", "demo", "--out", tmp_path / "out", *extra)
        assert code == 1 and set(told) == expected and err.count("not now") == 3
        scored = [row["language"] for row in report(tmp_path / "out")["results"]]
        assert scored == ["en", "zh", "yue" if "yue" in expected else "en"]  # the last one names none


def test_options_reach_the_recognition(tmp_path):
    (tmp_path / "names.txt").write_text("Kowloon Tong\n", encoding="utf-8")
    arguments = [
        "m",
        "--model",
        "x",
        "--beams",
        "3",
        "--vad",
        "off",
        "--pad-to",
        "speech",
        "--hotwords",
        str(tmp_path / "names.txt"),
    ]
    found = command.options(command.arguments(arguments))
    assert (found.beams, found.vad, found.pad_to) == (3, "off", "speech") and "Kowloon Tong" in str(found.hotwords)
    assert command.options(command.arguments(["m", "--model", "x"])) == Options()
    args = command.arguments(["m", "--model", "a", "b", "--model", "c", "--hypotheses", "d"])
    assert (args.model, args.hypotheses, args.lang) == (["a", "b", "c"], ["d"], None)


def test_standard_output_that_cannot_hold_the_texts(tmp_path, monkeypatch, capsysbinary):
    import io

    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    write(tmp_path / "h.jsonl", [{"id": "zh", "text": "三"}])
    assert command.main([str(write(tmp_path / "m.jsonl", LINES[1:2])), "--hypotheses", str(tmp_path / "h.jsonl")]) == 0
    output.flush()
    assert b"\\u4e09" in output.buffer.getvalue()


def test_the_rows_of_an_archive(tmp_path, capsys):
    """Made from the same manifest, their ids are the same."""
    rows = [{"id": line["id"], "status": "done", "text": line["text"], "seconds": 2.0, "took": 0.5} for line in LINES]
    (tmp_path / "archive").mkdir()
    write(tmp_path / "archive" / "rows-00000.jsonl", rows[:2])
    write(tmp_path / "archive" / "rows-00001.jsonl", rows[2:])
    code, _, _ = run(
        capsys, write(tmp_path / "m.jsonl", LINES), "--hypotheses", tmp_path / "archive", "--out", tmp_path / "out"
    )
    [model] = report(tmp_path / "out")["models"]
    assert code == 0 and model["overall"]["words"]["errors"] == 0 and model["real_time_factor"] == 0.25
