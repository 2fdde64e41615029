"""Training of adapters: only they are learned, they are saved as peft would save them, and they give the same logits
here, in peft on Transformers' model, and in the trainer itself."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.checkpoints import make_checkpoint
from helpers.logits import NEAR, logits, their_logits, transformers_model
from helpers.training import FOLDER, tiny_whisper, tones, write_manifest
from safetensors.torch import load_file

from glmasr import weights
from glmasr.checkpoint.adapter import CONFIG, WEIGHTS

peft = pytest.importorskip("peft")
FAST = ["--threads", "1", "--batch-seconds", "8", "--freeze", "nothing", "--retain", "0"]
FAMILIES = ["glm-asr", "whisper"]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A folder with glm-asr/, whisper/, both also in bfloat16, and train.jsonl, eval.jsonl of tones."""
    folder = tmp_path_factory.mktemp("task")
    (folder / "glm-asr").mkdir()
    model = weights.load(make_checkpoint(folder / "glm-asr"))
    model.decoder.head.weight.mul_(0.1)  # logits of about 10 at most: for 1e-4 float32 has room then
    weights.save(model, folder / "glm-asr", torch.float32)
    tiny_whisper(folder / "whisper")
    for name in FAMILIES:
        half = folder / f"{name} bfloat16"
        half.mkdir()
        weights.save(weights.load(folder / name), half, torch.bfloat16)
        (half / "tokenizer.json").write_bytes((folder / name / "tokenizer.json").read_bytes())
    lines = tones(folder, 12)
    write_manifest(folder / "train.jsonl", lines[:8])
    write_manifest(folder / "eval.jsonl", lines[8:])
    return folder


@pytest.fixture
def train(task, monkeypatch, capsys, tmp_path):
    """train(model, *options) -> what it printed, with an adapter of rank 4; `train.run` is the Run, in `train.out`.
    `judged`: with other recordings to judge it by, which takes longer than its steps."""
    monkeypatch.syspath_prepend(str(FOLDER))
    trainer = __import__("train")
    make = trainer.Run

    def run(model, *options, judged: bool = False) -> str:
        arguments = [task / model, "--train", task / "train.jsonl", *FAST]
        arguments += ["--eval", task / "eval.jsonl", "--accept-errors"] if judged else []
        arguments += ["--out", run.out, "--lora", 4, "--steps", 2, "--rate", "3e-2", "--keep", "last", *options]
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])

        def kept(*given):
            run.run = make(*given)
            return run.run

        monkeypatch.setattr(trainer, "Run", kept)
        trainer.main()
        return capsys.readouterr().out

    run.out, run.error = tmp_path / "run", trainer.TrainingError
    return run


def saved(train) -> dict[str, torch.Tensor]:
    return load_file(train.out / "adapter" / WEIGHTS)


def batch_of(run):
    """All of its clips."""
    read, exact = __import__("batches").read_clip, __import__("families").EXACT
    clips = [read(row, 0.0, 0.0, np.random.default_rng(0)) for row in run.rows]
    return run.family.collate(clips, exact, np.random.default_rng(0))


# ---- the same everywhere ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--lora-targets", "all", "--lora-alpha", 6, "--lora-dropout", 0.1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_on_transformers_model_gives_the_trainers_logits(task, train, family, options):
    files = {path: path.read_bytes() for path in (task / family).iterdir()}
    said = train(family, *options, judged=True)
    assert said.startswith("recipe published; on: padding to the whole window, LoRA of rank 4 at ")
    assert "rate 0.03" in said.splitlines()[0]
    there = {path.name for path in train.out.iterdir()}
    assert {name for name in there if not name.startswith("states-")} == {"adapter", "state.safetensors"}
    assert files == {path: path.read_bytes() for path in (task / family).iterdir()}
    learned = train.run.model.eval()
    with torch.inference_mode():
        before, prompt, mel = logits(weights.load(task / family))
        wanted, _, _ = logits(learned)
        ours, _, _ = logits(weights.load(task / family, adapter=train.out / "adapter"))
        wrapped = peft.PeftModel.from_pretrained(transformers_model(task / family), train.out / "adapter")
        theirs = their_logits(wrapped, prompt, mel)
    assert (wanted - before).abs().max() > 0.05  # or equality would mean little
    assert (ours - wanted).abs().max() < NEAR
    assert (theirs - wanted).abs().max() < NEAR
    assert {name for name, _ in wrapped.named_parameters() if ".lora_" in name} == {
        name.replace(".weight", ".default.weight") for name in saved(train)
    }
    config = json.loads((train.out / "adapter" / CONFIG).read_text())
    asked = (6, 0.1) if options else (8, 0)
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, *asked)
    assert config["base_model_name_or_path"] == str(task / family)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_adapter_is_learned(task, train, family):
    train(family, "--ctc", 0.1)
    base = weights.load(task / family)
    for name, parameter in train.run.model.named_parameters():
        if ".lora_" in name:
            assert parameter.requires_grad and parameter.dtype == torch.float32 and parameter.any()
        else:
            assert torch.equal(parameter, base.get_parameter(name.replace(".base_layer", "")))
    decoder = {"whisper": "model.decoder.layers.", "glm-asr": "model.language_model.layers."}[family]
    assert all(name.startswith(f"base_model.model.{decoder}") for name in saved(train))


def test_it_learns(train):
    said = train("whisper", "--lora-targets", "all", "--steps", 30, "--eval-every", 30, "--rate", "1e-2", judged=True)
    before, after = (float(re.search(f"^{when}.*eval loss ([0-9.]+)", said, re.M)[1]) for when in ("before:", "kept"))
    assert after < before / 2, said


def test_an_unchanged_model_may_be_the_best(task, train, monkeypatch):
    monkeypatch.setattr(__import__("scores").Score, "better", lambda *_: False)
    said = train("whisper", "--keep", "best", judged=True)
    assert "kept, of step 0" in said
    with torch.inference_mode():
        before, _, _ = logits(weights.load(task / "whisper"))
        after, _, _ = logits(weights.load(task / "whisper", adapter=train.out / "adapter"))
    assert torch.equal(before, after)


# ---- which linears ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family, options, expected",
    [
        ("glm-asr", ("--freeze", "encoder"), 2 * 7),
        ("glm-asr", ("--freeze", "encoder", "--lora-targets", "q_proj,v_proj"), 2 * 2),
        ("glm-asr", ("--lora-targets", "decoder"), 2 * 7),
        ("glm-asr", ("--lora-targets", "all"), 6 + 2 + 2 * 7),
        ("glm-asr", ("--lora-targets", "o_proj,gate_proj", "projector"), 1 + 2 + 2 * 2),
        ("whisper", ("--freeze", "encoder"), 2 * 10),
        ("whisper", ("--freeze", "encoder", "--lora-targets", "q_proj,v_proj"), 2 * 4),
        ("whisper", ("--lora-targets", "fc1", "encoder_attn.k_proj"), 4 + 2),
        ("whisper", ("--lora-targets", "self_attn.q_proj"), 4),
        ("whisper", ("--lora-targets", "model.decoder.layers.1.fc2"), 1),
        ("whisper", ("--lora-targets", "all", "fc1"), 2 * 6 + 2 * 10),
    ],
)
def test_linears_are_called_as_in_transformers(train, family, options, expected):
    train(family, "--steps", 1, *options)
    tensors = saved(train)
    assert len(tensors) == 2 * expected
    assert all(shape[0] == 4 for name, shape in ((n, x.shape) for n, x in tensors.items()) if "lora_A" in name)
    if "--freeze" in options:
        assert all("decoder" in name or "language_model" in name for name in tensors)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ("--lora-targets", "q_proj,query"),
            "--lora-targets query: no linear.*q_proj, .*fc1.*or encoder, decoder or all",
        ),
        (("--lora-targets", "proj"), "--lora-targets proj: no linear"),
        (("--lora-targets", ","), "--lora-targets ',': names nothing"),
        (("--lora-targets", "proj_out"), "no linear"),  # it is the embedding
        (("--lora-targets", "projector"), "no linear"),
        (("--lora-targets", "decoder", "--freeze", "decoder"), "--freeze leaves nothing for --lora"),
        (("--freeze", "ears"), "--freeze ears: this model has"),
        (("--lora", 33), "self_attn.* itself has a rank of 32 at most"),
        (("--from-scratch",), "adapts a model that has weights"),
        (("--guide", 0.5), "--guide looks at weights without their adapter"),
        (("--save-dtype", "bfloat16"), "an adapter is saved in float32"),
        (("--lora", 0), "expected a whole number from 1 on"),
        (("--seed", -1), "expected a whole number from 0"),
        (("--lora-dropout", 1), "expected a number from 0 to below 1"),
    ],
)
def test_what_cannot_be_is_refused(train, options, message, capsys):
    with pytest.raises((train.error, SystemExit)) as caught:
        train("whisper", *options)
    said = str(caught.value) if caught.type is train.error else capsys.readouterr().err
    assert re.search(message, said) and not train.out.exists()


def test_what_is_said_of_no_adapter_is_refused(task, train, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", str(task / "whisper"), "--plan", "--lora-alpha", "3"])
    with pytest.raises(train.error, match="expected it too"):
        __import__("train").main()


def test_without_peft_the_extra_is_named(train, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(train.error, match=r"needs the package peft.*extra \[train\]"):
        train("whisper")


# ---- the run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_stays_in_bfloat16(task, train, monkeypatch, family, fast):
    """With all that saves memory; the adapter is float32, and so are products where the device is faster at them."""
    monkeypatch.setattr("glmasr.kernels.devices.fast_dtype", lambda device: fast)
    said = train(f"{family} bfloat16", "--dtype", "bfloat16", "--checkpoint", "--accumulate", 2)
    assert ("products in float32, for this CPU" in said) == (fast == torch.float32)
    for name, parameter in train.run.model.named_parameters():
        half = ".lora_" not in name and ("norm" not in name or fast == torch.bfloat16)
        assert parameter.dtype == (torch.bfloat16 if half else torch.float32) or "blocks" not in name, name
    tensors = saved(train)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(tensor.any() and (tensor != tensor.bfloat16()).any() for tensor in tensors.values())
    weights.load(task / f"{family} bfloat16", adapter=train.out / "adapter")


def test_it_goes_on_with_the_same_adapter_only(train):
    train("whisper")
    before = saved(train)
    assert "steps 2 to 3" in train("whisper", "--steps", 3, "--rate", "1e-12")
    for name, tensor in saved(train).items():
        torch.testing.assert_close(tensor, before[name], atol=1e-9, rtol=0)
    with pytest.raises(train.error, match="is of a run with LoRA of rank 4 at decoder, alpha 8.*alpha 9"):
        train("whisper", "--steps", 4, "--lora-alpha", 9)
    with pytest.raises(train.error, match="state of another run"):
        train("whisper", "--steps", 4, "--lora-targets", "all")


def test_a_part_of_it_can_be_kept(task, train):
    """Half of what is added to each weight, whatever its two matrices are."""
    found = []
    for blend in (1, 0.5):
        train("whisper", "--blend", blend)
        found.append(weights.load(task / "whisper", adapter=train.out / "adapter"))
        train.out = train.out.with_name("other")
    base = weights.load(task / "whisper")
    whole, half = ({name: p - base.get_parameter(name) for name, p in model.named_parameters()} for model in found)
    for name in whole:
        torch.testing.assert_close(half[name], whole[name] / 2, atol=1e-6, rtol=1e-4)
    assert max(float(x.abs().max()) for x in whole.values()) > 1e-3


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batches(task, train, tmp_path):
    options = ["--steps", 2, "--batch-seconds", 4]
    train("whisper", *options, "--accumulate", 2, judged=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    command += [FOLDER / "train.py", task / "whisper", "--train", task / "train.jsonl", *FAST, "--lora", 4]
    command += [
        "--accept-errors",
        "--eval",
        task / "eval.jsonl",
        "--rate",
        "3e-2",
        "--keep",
        "last",
        "--out",
        tmp_path / "two",
        *options,
    ]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    two = load_file(tmp_path / "two" / "adapter" / WEIGHTS)
    for name, tensor in saved(train).items():
        torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=1e-3)
    assert max(tensor.abs().max() for name, tensor in two.items() if "lora_B" in name) > 1e-2


@pytest.mark.parametrize("options", [(), ("--freeze", "encoder", "--lora-targets", "all")])
def test_the_plan_is_what_is_kept(train, options):
    """Though it counts with modules that aren't peft's: within a tenth, and exact for weights and optimizer."""
    train("whisper", "--batch-seconds", 16, *options)
    run, plan, batch = train.run, __import__("plan"), batch_of(train.run)
    steps, counted = run.steps(None), plan._Kept(run.model.train())
    with counted.counting():
        steps.losses(batch)
    found = plan.of(run.model.config, run.args, torch.float32, batch.tokens.shape[1] - plan.STEERING)
    learned = sum(p.numel() for p in run.learned)
    held = sum(p.numel() * 4 for p in run.model.parameters())
    assert (found.weights, found.gradients, found.optimizer) == (held, 4 * learned, 8 * learned)
    assert 0.9 < found.activations / counted.bytes < 1.1


@pytest.mark.parametrize("family", FAMILIES)
def test_small_weights_have_the_same_gradients(train, monkeypatch, family):
    """Frozen weights that are widened for each product, against the same model in float32."""
    monkeypatch.setattr("glmasr.kernels.devices.fast_dtype", lambda device: torch.float32)
    runs, found = [], []
    for number, dtype in enumerate(("float32", "bfloat16")):
        train.out = train.out.with_name(str(number))
        train(f"{family} bfloat16", "--dtype", dtype, "--lora-targets", "all", "--steps", 1)
        runs.append(train.run)
    for run in runs:
        with torch.no_grad():
            for ours, first in zip(run.learned, runs[0].learned, strict=True):
                ours.copy_(first)
        loss = run.steps(None).losses(batch_of(run))[0]
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in run.learned)])
    for ours, first in zip(*found, strict=True):
        torch.testing.assert_close(ours, first, atol=1e-4, rtol=1e-4)
    assert min(gradient.abs().max() for gradient in found[0]) > 1e-3
