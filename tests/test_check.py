"""`glmasr-check`: its report of good, damaged and foreign directories."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import PUBLISHED, TINY, make_checkpoint, make_encoder_decoder, make_tokenizer
from safetensors.torch import load_file, save_file

from glmasr.checkpoint import hub
from glmasr.model import GlmAsr
from glmasr.tools import check
from glmasr.tools.quantize import quantize_directory
from glmasr.weights import FORMATS, save, their_name

KEY = "language_model.model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("made") / "model")


@pytest.fixture
def folder(made, tmp_path):
    """A checkpoint directory that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "model"))


@pytest.fixture
def report(capsys):
    """report(DIR, ...) -> exit code, title -> text."""

    def run(*arguments):
        code = check.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert err == "" and out.replace("\n", "").isprintable()
        return code, {line[:12].strip(): line[12:] for line in out.splitlines()}

    return run


def test_weights_of_8_bits(report, folder, tmp_path):
    quantize_directory(folder, tmp_path / "int8")
    code, said = report(tmp_path / "int8")
    assert (
        code == 0 and said["verdict"] == "this package can run it" and said["left over"] == said["misshapen"] == "none"
    )
    assert re.search(r"\d+ tensors I8", said["dtype"]) and said["parameters"] == report(folder)[1]["parameters"]


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_good_one(report, folder):
    code, said = report(folder)
    tensors = load_file(folder / "model.safetensors")
    assert code == 0 and list(said) == [
        "directory",
        "format",
        "family",
        "parameters",
        "dtype",
        "missing",
        "left over",
        "misshapen",
        "ignored",
        "tokenizer",
        "probes",
        "verdict",
    ]
    total = f"{sum(tensor.numel() for tensor in tensors.values()):,}"
    assert said["parameters"] == f"{total} of {total}" and said["dtype"] == f"{len(tensors)} tensors F32"
    assert said["format"].startswith("transformers: model.safetensors, ") and said["family"].startswith(
        "GLM-ASR: 1 encoder layers 16 wide, 2 decoder"
    )
    assert said["missing"] == said["left over"] == said["misshapen"] == said["ignored"] == "none"
    assert said["tokenizer"].startswith("byte-level BPE, 310 ids") and said["verdict"] == "this package can run it"


@pytest.mark.parametrize("name", [name for name, path in hub.BUILT_IN.items() if path.is_dir()])
def test_the_demos(report, name):
    code, said = report(name)
    assert code == 0 and said["verdict"] == "this package can run it" and "BF16" in said["dtype"]


def test_what_is_missing_left_over_and_misshapen(report, folder):
    rewrite(
        folder,
        lambda tensors: (
            tensors.pop(KEY),
            tensors.update({f"extra.{n}\x1b[2J": torch.zeros(2) for n in range(9)}),
            tensors.update({"audio_tower.norm.bias": torch.zeros(3)}),
        ),
    )
    code, said = report(folder)
    assert (
        code == 1
        and said["missing"] == f"1: {KEY}"
        and said["left over"].startswith("9: extra.0\\x1b[2J, ")
        and said["left over"].endswith("and 4 more")
    )
    assert (
        said["misshapen"] == "1: audio_tower.norm.bias has shape [3]; config.json asks for [16]"
        and said["verdict"] == "this package can't run it"
    )


def test_the_original_format(report, folder):
    tensors = load_file(folder / "model.safetensors")
    back = {theirs: ours for ours, theirs in FORMATS["transformers"].table.items()}

    def renamed(name):
        module, leaf = name.rsplit(".", 1)
        number = next((part for part in module.split(".") if part.isdigit() and ".layers." in module), None)
        ours = (
            back[module.replace(f".{number}.", ".{}.", 1) if number else module].replace("{}", number or "")
            + "."
            + leaf
        )
        return their_name(FORMATS["original"].table, ours)

    save_file(
        {renamed(name): tensor for name, tensor in tensors.items()} | {"audio_encoder.proj.bias": torch.zeros(2)},
        folder / "model.safetensors",
    )
    code, said = report(folder)
    assert code == 0 and said["format"].startswith("original: ") and said["ignored"] == "1: audio_encoder.proj.bias"


@pytest.mark.parametrize("dtype, word", [(torch.float16, "F16"), (torch.bfloat16, "BF16")])
def test_types(report, folder, dtype, word):
    rewrite(folder, lambda tensors: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()}))
    code, said = report(folder)
    assert code == 0 and said["dtype"].endswith(f"tensors {word}") and ("" in said) == (word == "F16")


def test_damaged_files(report, folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    code, said = report(folder)
    assert (
        code == 1
        and "not downloaded whole" in said["weights"]
        and said["tokenizer"].startswith("byte-level")
        and "format" not in said
    )
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "tokenizer.json").write_text("{")
    code, said = report(folder)
    assert code == 1 and "not valid JSON" in said["tokenizer"] and said["missing"] == "none"
    (folder / "tokenizer.json").unlink()
    assert report(folder)[0] == 1
    (folder / "config.json").unlink()
    assert report(folder)[0] == 1


def test_a_tokenizer_of_another_model(report, folder):
    file = make_tokenizer()
    for token in file["added_tokens"]:
        token["id"] += 1000
    (folder / "tokenizer.json").write_text(json.dumps(file))
    code, said = report(folder)
    assert code == 1 and "another model" in said["load"]


def test_the_probes(report, tmp_path):
    """A tokenizer of the 256 bytes, with two of them where the published one has them, and the other probes as added
    tokens."""
    save(
        GlmAsr(
            replace(
                TINY,
                audio_token=59_260,
                stop=(59_246, 59_253, 59_255),
                decoder=replace(TINY.decoder, vocabulary=59_264, width=4, layers=1),
            )
        ),
        tmp_path,
    )
    file, fixed = make_tokenizer(), {"Ċ": check.PROBES["\n"], "?": check.PROBES["?"]}
    letters = [letter for letter in file["model"]["vocab"] if len(letter) == 1 and letter not in fixed]
    file["model"] |= {"vocab": fixed | {letter: 30_000 + number for number, letter in enumerate(letters)}, "merges": []}
    file["added_tokens"] = [
        {"id": id, "content": text, "special": text.startswith("<|"), "normalized": False}
        for text, id in check.PROBES.items()
        if text not in ("\n", "?")
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    code, said = report(tmp_path)
    assert (
        code == 0
        and said["probes"]
        == f"{len(check.PROBES)} of {len(check.PROBES)} texts have the ids of the published tokenizer"
    )
    next(token for token in file["added_tokens"] if token["content"] == " audio")["id"] = 77
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    code, said = report(tmp_path)
    assert code == 1 and said["probes"] == "1: ' audio' is [77], expected 14812"


def test_the_probes_are_in_the_published_vocabulary():
    assert max(check.PROBES.values()) < PUBLISHED["transformers"]["language_model.lm_head.weight"][0] == 59_264


def test_names(report, capsys, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("nothing", "glm-asr-nano-2512", folder / "config.json"):
        assert check.main([str(name)]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and len(err.splitlines()) == 1
    snapshot = tmp_path / "hub" / "models--somebody--else" / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    assert report("somebody/else", "--revision", "0" * 40)[0] == 0
    assert report(tmp_path)[0] == 1  # a directory of something else
    with pytest.raises(SystemExit) as leave:
        check.main([])
    assert leave.value.code == 2


def test_whisper(report, tmp_path):
    make_encoder_decoder(tmp_path)
    code, said = report(tmp_path)
    assert code == 0 and said["format"].startswith("whisper") and said["family"].startswith("encoder-decoder")
