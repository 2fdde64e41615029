"""LoRA in PEFT's format: read, written, merged, against peft on Transformers' models; and what can't be used."""

import json
import math
import os
import re
import shutil
import sys
import time

import pytest
import torch
from helpers import ROOT
from helpers.checkpoints import make_checkpoint, make_encoder_decoder
from helpers.logits import NEAR, logits, their_logits, transformers_model
from safetensors.torch import load_file, save_file

import glmasr
import transcribe
from glmasr import weights
from glmasr.checkpoint import adapter as adapters
from glmasr.checkpoint import hub
from glmasr.checkpoint.adapter import CONFIG, WEIGHTS, LowRank
from glmasr.checkpoint.tensor_names import FORMATS, their_name
from glmasr.config import EncoderDecoderConfig
from glmasr.errors import CheckpointError, OptionError
from glmasr.kernels import prepare
from glmasr.tools import journal, merge
from glmasr.tools.quantize import quantize_directory

MAKE = {"GLM-ASR": make_checkpoint, "encoder-decoder": make_encoder_decoder}


@pytest.fixture(scope="module", params=MAKE)
def base(request, tmp_path_factory):
    """A tiny random checkpoint of each family, whose logits are about 10 at most: for 1e-4 float32 has room then."""
    folder = MAKE[request.param](tmp_path_factory.mktemp("base"))
    if request.param == "GLM-ASR":
        model = weights.load(folder)
        model.decoder.head.weight.mul_(0.1)
        weights.save(model, folder, torch.float32)
    return folder


def changes(model, seed=3, rank=4):
    """A LoRA of all linears but the head, of other ranks and alphas here and there, and strong enough to be seen."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for number, ours in enumerate(sorted(weights.linear_weights(model) - {"decoder.head.weight"})):
        out, columns = model.get_parameter(ours).shape
        some = rank + number % 2 * (number % 3)
        a, b = (torch.randn(shape, generator=generator) for shape in ((some, columns), (out, some)))
        found[ours.removesuffix(".weight")] = LowRank(a / columns**0.5, 0.3 * b, 8.0 if number % 5 else 6.0)
    return found


@pytest.fixture(scope="module")
def lora(base, tmp_path_factory):
    """An adapter of it."""
    model = weights.load(base)
    folder = tmp_path_factory.mktemp("lora")
    adapters.save(folder, changes(model), model.config, base="a-model", dropout=0.1)
    return folder


# ---- the same as peft ---------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_peft_on_transformers_model_gives_the_same_logits(base, lora):
    peft = pytest.importorskip("peft")
    before, prompt, mel = logits(weights.load(base))
    theirs = transformers_model(base)
    assert (their_logits(theirs, prompt, mel) - before).abs().max() < NEAR
    wrapped = peft.PeftModel.from_pretrained(theirs, lora)
    ours, _, _ = logits(weights.load(base, adapter=lora))
    assert (ours - before).abs().max() > 1  # or equality would mean little
    assert (their_logits(wrapped, prompt, mel) - ours).abs().max() < NEAR
    loaded = {name for name, _ in wrapped.named_parameters() if ".lora_" in name}
    assert len(loaded) == len(load_file(lora / WEIGHTS))  # none was put anywhere else


TARGETS = {
    "some": {"target_modules": ["q_proj", "v_proj", "fc1"]},
    "patterns": {
        "target_modules": ["k_proj", "o_proj", "out_proj", "up_proj"],
        "rank_pattern": {r".*layers\.0.*k_proj": 3, "up_proj": 5},
        "alpha_pattern": {"^model.+0.self_attn.k_proj": 5, "k_proj": 9},
    },
    "convolutions": {"target_modules": ["conv1", "conv2"]},
    "square root": {"target_modules": "all-linear", "use_rslora": True},
    "whole modules": {"target_modules": ["v_proj"], "modules_to_save": ["norm", "layer_norm", "fc2", "linear_2"]},
}


@pytest.mark.parametrize("kind", TARGETS)
@torch.inference_mode()
def test_what_peft_saves_is_read(base, kind, tmp_path):
    peft = pytest.importorskip("peft")
    theirs = transformers_model(base)
    if kind == "convolutions" and hasattr(theirs.config, "encoder_layers"):
        pytest.skip("Transformers asks them for their stride, which peft's have not")
    settings = {"r": 4, "lora_alpha": 7} | TARGETS[kind]
    torch.manual_seed(5)
    wrapped = peft.get_peft_model(theirs, peft.LoraConfig(**settings)).eval()
    for name, weight in wrapped.named_parameters():
        if weight.requires_grad:
            weight.add_((0.1 if ".lora_" in name else 0.03) * torch.randn_like(weight))
    wrapped.save_pretrained(tmp_path / "adapter")
    before, prompt, mel = logits(weights.load(base))
    ours, _, _ = logits(weights.load(base, adapter=tmp_path / "adapter"))
    assert (ours - before).abs().max() > 0.1
    assert (their_logits(wrapped, prompt, mel) - ours).abs().max() < NEAR


@torch.inference_mode()
def test_names_of_older_transformers_are_read(base, lora, tmp_path):
    """Before 5.14 GLM-ASR's modules were called as its files are; and a `WhisperModel` has no prefix."""
    state = load_file(lora / WEIGHTS)
    older = {
        name.replace("base_model.model.model.language_model.", "base_model.model.language_model.model.").replace(
            "base_model.model.model.", "base_model.model."
        ): tensor
        for name, tensor in state.items()
    }
    assert set(older) != set(state)
    (tmp_path / CONFIG).write_text(
        (lora / CONFIG).read_text().replace("model.language_model.", "language_model.model.").replace('"model.', '"')
        if "language_model" in (lora / CONFIG).read_text()
        else (lora / CONFIG).read_text().replace('"model.', '"')
    )
    save_file(older, tmp_path / WEIGHTS)
    wanted, found = (logits(weights.load(base, adapter=folder))[0] for folder in (lora, tmp_path))
    assert (wanted - found).abs().max() == 0


# ---- where the weights go -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_the_original_layout_takes_the_same_adapter(base, lora, tmp_path):
    """There the rows of queries and keys lie in another order, and those of the adapter in Transformers'."""
    if isinstance(weights.load(base).config, EncoderDecoderConfig):
        pytest.skip("of GLM-ASR")
    model, draft = weights.load(base), tmp_path / "draft"
    shutil.copytree(base, draft)
    state = {}
    for ours, tensor in model.named_parameters():
        theirs = their_name(FORMATS["draft"].table, ours)
        if re.match(r"encoder\..*\.attn\.(query|key)\.", ours):
            rotary, size = model.config.encoder.rotary, model.config.encoder.head_size
            order = [*range(0, rotary, 2), *range(1, rotary, 2), *range(rotary, size)]
            heads = tensor.view(-1, size, *tensor.shape[1:])
            tensor = torch.empty_like(heads).index_copy_(1, torch.tensor(order), heads).flatten(0, 1)
        state[theirs] = tensor.detach().clone()
    save_file(state, draft / "model.safetensors")
    wanted, found = (logits(weights.load(folder, adapter=lora))[0] for folder in (base, draft))
    assert torch.equal(wanted, found)


@pytest.mark.parametrize("kind", ["joined", "packed", "wide", "int8"])
@torch.inference_mode()
def test_the_faster_modules_have_it(base, lora, kind, monkeypatch):
    """Equal to those of a plain model with the weights of both: as the adapter is in them before they are laid out."""
    if kind == "packed" and not torch.backends.mkldnn.is_available():
        pytest.skip("needs oneDNN")
    monkeypatch.setattr(prepare, "choose", lambda *_: kind)
    plain, _ = prepare.load(base, device="cpu", dtype="float32", plain=True, adapter=lora)
    fast, runtime = prepare.load(base, device="cpu", dtype="int8" if kind == "int8" else "float32", adapter=lora)
    assert runtime.linears == kind and runtime.also()["adapter"] == lora.name
    without, _ = prepare.load(base, device="cpu", dtype="float32", plain=True)
    before, wanted, found = (logits(model)[0] for model in (without, plain, fast))
    assert (found - wanted).abs().max() < (0.3 * (before - wanted).abs().max() if kind == "int8" else NEAR)


def test_the_pipeline_says_which_one(base, lora):
    recognizer = glmasr.load(base, adapter=lora, device="cpu")
    assert recognizer.how()["adapter"] == lora.name and "adapter" not in glmasr.load(base, device="cpu").how()


def test_a_run_goes_on_with_the_same_adapter_only(base, lora, tmp_path):
    other = tmp_path / lora.name
    shutil.copytree(lora, other)
    seen = []
    for folder in (None, lora, other, lora):
        recognizer = glmasr.load(base, adapter=folder, device="cpu")
        options = recognizer.check("auto", glmasr.Options())
        seen.append(journal.fingerprint("", base, recognizer, "auto", options))
    assert seen[1] == seen[2] == seen[3] != seen[0]  # known by its content
    state = load_file(other / WEIGHTS)
    next(iter(state.values()))[0, 0] += 1
    save_file(state, other / WEIGHTS)
    recognizer = glmasr.load(base, adapter=other, device="cpu")
    assert journal.fingerprint("", base, recognizer, "auto", recognizer.check("auto", glmasr.Options())) != seen[1]


# ---- merged -------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_a_merged_checkpoint_is_equal_here_and_in_transformers(base, lora, tmp_path, monkeypatch, capsys):
    out = tmp_path / "merged"
    monkeypatch.setattr(sys, "argv", ["glmasr-merge", str(base), str(lora), str(out)])
    assert merge.main() == 0, capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {path.name for path in base.iterdir()}
    wanted, prompt, mel = logits(weights.load(base, adapter=lora))
    found, _, _ = logits(weights.load(out))
    assert (wanted - found).abs().max() < 1e-5
    glmasr.load(out, device="cpu")
    assert merge.main() == 1 and "not empty" in capsys.readouterr().err
    assert (their_logits(transformers_model(out), prompt, mel) - wanted).abs().max() < NEAR


def test_what_fails_leaves_nothing(base, lora, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    monkeypatch.setattr(sys, "argv", ["glmasr-merge", str(base), str(lora), str(tmp_path / "folder" / "out")])
    assert merge.main() == 1 and "No space left" in capsys.readouterr().err
    assert not list((tmp_path / "folder").iterdir())


# ---- what can't be used -------------------------------------------------------------------------------------------------


def change(folder, **fields):
    content = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(content | fields))


def with_tensors(folder, make):
    state = load_file(folder / WEIGHTS)
    make(state)
    save_file(state, folder / WEIGHTS)


def first(state, end=".lora_A.weight"):
    return next(name for name in sorted(state) if name.endswith(end))


def rename(state, there, here):
    name = first(state)
    state[name.replace(there, here)] = state.pop(name)


BROKEN = {
    "no folder": (lambda folder: shutil.rmtree(folder), "no such directory"),
    "a file": (lambda folder: (shutil.rmtree(folder), folder.write_text("")), "no such directory"),
    "empty": (lambda folder: [path.unlink() for path in folder.iterdir()], "adapter_config.json is missing"),
    "a whole model": (
        lambda folder: ((folder / CONFIG).rename(folder / "config.json"), (folder / WEIGHTS).unlink()),
        "give it as --model",
    ),
    "a pickle": (
        lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"),
        "save it again with safetensors",
    ),
    "no JSON": (lambda folder: (folder / CONFIG).write_text("{"), "JSON"),
    "a list": (lambda folder: (folder / CONFIG).write_text("[]"), "expected a JSON object"),
    "cut off": (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8]), "damaged"),
    "a long header": (lambda folder: (folder / WEIGHTS).write_bytes(b"\xff" * 64), "damaged"),
    "a pipe": (lambda folder: ((folder / WEIGHTS).unlink(), os.mkfifo(folder / WEIGHTS)), "is missing"),
    "another kind": (lambda folder: change(folder, peft_type="IA3"), "'IA3', expected 'LORA'"),
    "DoRA": (lambda folder: change(folder, use_dora=True), "'use_dora' is True"),
    "a key of tomorrow": (lambda folder: change(folder, use_tomorrows=1), "'use_tomorrows' is 1"),
    "biases": (lambda folder: change(folder, bias="all"), "bias is 'all'"),
    "PiSSA": (lambda folder: change(folder, init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
    "turned": (lambda folder: change(folder, fan_in_fan_out=True), "'fan_in_fan_out' is True"),
    "rank 0": (lambda folder: change(folder, r=0), "r is 0, expected a positive integer"),
    "another rank": (lambda folder: change(folder, r=7, rank_pattern={}), "as its rank is 7"),
    "alpha": (lambda folder: change(folder, lora_alpha="8"), "lora_alpha is '8', expected a number"),
    "alpha NaN": (lambda folder: change(folder, lora_alpha=float("nan")), "lora_alpha is nan"),
    "no pattern": (lambda folder: change(folder, rank_pattern={"(": 3}), "names of modules"),
    "patterns": (lambda folder: change(folder, alpha_pattern=[1]), "names of modules"),
    "a slow pattern": (lambda folder: change(folder, alpha_pattern={r"(.*?,?){12}p\d": 3}), "too long"),
    "a rank of the pattern": (
        lambda folder: change(folder, rank_pattern={"self_attn.q_proj": "x"}),
        "rank_pattern is 'x'",
    ),
    "B alone": (lambda folder: with_tensors(folder, lambda state: state.pop(first(state))), "is there without"),
    "a scale": (lambda folder: change(folder, use_rslora="no"), "use_rslora is 'no'"),
    "two names": (
        lambda folder: with_tensors(
            folder,
            lambda state: state.update(
                {
                    name.replace("base_model.model.model.", "base_model.model."): state[name].clone()
                    for name in (first(state), first(state, ".lora_B.weight"))
                }
            ),
        ),
        "changes a weight twice",
    ),
    "LoRA and whole": (
        lambda folder: with_tensors(
            folder,
            lambda state: state.update(
                {
                    first(state).replace(".lora_A", ""): torch.zeros(
                        state[first(state, "_B.weight")].shape[0], state[first(state)].shape[1]
                    )
                }
            ),
        ),
        "changes a weight twice",
    ),
    "nothing": (lambda folder: with_tensors(folder, lambda state: state.clear()), "no LoRA"),
    "other names": (
        lambda folder: with_tensors(folder, lambda state: rename(state, "layers.0", "layers.99")),
        "has no place in the model",
    ),
    "no prefix": (
        lambda folder: with_tensors(folder, lambda state: rename(state, "base_model.model.", "")),
        "has no place in the model",
    ),
    "magnitudes": (
        lambda folder: with_tensors(folder, lambda state: rename(state, "lora_A.weight", "lora_magnitude_vector")),
        "has no place in the model",
    ),
    "another width": (
        lambda folder: with_tensors(folder, lambda state: state.update({first(state): torch.zeros(4, 99)})),
        "trained on, a-model, alone",
    ),
    "integers": (
        lambda folder: with_tensors(folder, lambda state: state.update({first(state): state[first(state)].int()})),
        "is of type I32",
    ),
    "not finite": (
        lambda folder: with_tensors(folder, lambda state: state[first(state)].fill_(math.inf)),
        "not finite",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_used_is_one_line(base, lora, kind, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "adapter"
    shutil.copytree(lora, folder)
    damage, says = BROKEN[kind]
    damage(folder)
    begun = time.monotonic()
    monkeypatch.setattr(sys, "argv", ["glmasr-merge", str(base), str(folder), str(tmp_path / "out")])
    assert merge.main() == 1
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1 and says in err, err
    assert not (tmp_path / "out").exists() and time.monotonic() - begun < 5


def test_an_adapter_of_the_other_family_is_refused(lora, base, tmp_path):
    kind = isinstance(weights.load(base).config, EncoderDecoderConfig)
    other = (make_checkpoint if kind else make_encoder_decoder)(tmp_path / "other")
    with pytest.raises(CheckpointError, match="give that one as --model, or another adapter"):
        glmasr.load(other, adapter=lora)


def test_an_adapter_is_no_model(lora):
    with pytest.raises(CheckpointError, match="that is an adapter; give it as --adapter, and its base as --model"):
        glmasr.load(lora)


def test_int8_weights_take_none(base, lora, tmp_path):
    quantize_directory(base, tmp_path / "int8")
    with pytest.raises(OptionError, match="to which no adapter can be added; expected the directory"):
        glmasr.load(tmp_path / "int8", adapter=lora)


def test_the_head_of_a_tied_model_stays(tmp_path):
    """Of an encoder-decoder it is the embedding, which peft would part from it."""
    folder = make_encoder_decoder(tmp_path / "base")
    model = weights.load(folder)
    adapters.save(tmp_path / "lora", changes(model), model.config)
    with_tensors(
        tmp_path / "lora",
        lambda state: state.update(
            {"base_model.model.model.decoder.embed_tokens.weight": model.decoder.embed.weight.detach().clone()}
        ),
    )
    with pytest.raises(CheckpointError, match="is also the head"):
        weights.load(folder, adapter=tmp_path / "lora")


@pytest.fixture(scope="module")
def demo_loras(tmp_path_factory):
    """Two adapters of the demo: one without effect, and one with which it writes nonsense."""
    model, folder = weights.load(hub.find("demo")), tmp_path_factory.mktemp("loras")
    for name, strength in (("still", 0), ("wild", 1)):
        some = {name: LowRank(one.a, one.b * strength, one.alpha) for name, one in changes(model).items()}
        adapters.save(folder / name, some, model.config)
    return folder


def test_an_evaluation_has_a_column_for_each(demo_loras, tmp_path, capsys):
    pytest.importorskip("jiwer", reason="needs the extra [eval]")
    from glmasr.evaluation import main as evaluation

    line = {"path": str(ROOT / "examples" / "zh.wav"), "text": "三一四一五九二六", "language": "zh"}
    (tmp_path / "m.jsonl").write_text(json.dumps(line))
    arguments = [str(tmp_path / "m.jsonl"), "--adapter", str(demo_loras / "still"), str(demo_loras / "wild")]
    assert evaluation.main([*arguments, "--model", "demo", "--out", str(tmp_path / "out")]) == 0
    models = json.loads((tmp_path / "out" / "report.json").read_text())["models"]
    assert [model["name"] for model in models] == ["demo", "still", "wild"]
    errors = [model["languages"]["zh"]["characters"]["errors"] for model in models]
    assert errors[:2] == [0, 0] and errors[2] > 0
    assert [model["how"].get("adapter") for model in models] == [None, "still", "wild"]
    with pytest.raises(SystemExit):
        evaluation.main([*arguments, "--hypotheses", "x"])
    assert "--adapter goes with --model" in capsys.readouterr().err


def test_an_archive_is_of_one_adapter(demo_loras, tmp_path):
    from glmasr.archive import main as archive
    from glmasr.tools.console import Messages

    def settings(*more):
        args = archive.arguments(["clips.jsonl", "--model", "demo", "--out", str(tmp_path / "out"), *more])
        return archive.Archive(args, Messages(True)).settings()[0], archive.MakeWorker(args, "", glmasr.Options(), 1)

    (without, plain), (still, adapted), (wild, _) = (
        settings(),
        settings("--adapter", str(demo_loras / "still")),
        settings("--adapter", str(demo_loras / "wild")),
    )
    assert "adapter" not in without and without != still != wild != without
    before = torch.get_num_threads()
    try:
        assert (plain().recognizer.runtime.adapter, adapted().recognizer.runtime.adapter) == (
            None,
            demo_loras / "still",
        )
    finally:
        torch.set_num_threads(before)


def test_the_command_line_takes_one(demo_loras, tmp_path, capsys):
    """An adapter without effect gives the text of the demo; a folder that is none, one line."""
    arguments = [str(ROOT / "examples" / "zh.wav"), "--model", "demo", "--quiet", "--adapter"]
    for folder, code, said in ((demo_loras / "still", 0, "三一四一五九二六\n"), (tmp_path / "none", 1, "")):
        assert transcribe.main([*arguments, str(folder)]) == code
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == (said, code), err
