"""States of a frozen encoder, computed once: steps, losses and texts are what they are without, nothing is computed twice,
and nothing half-written is trusted."""

import json
import re
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest
import soundfile
import torch
from helpers import ROOT
from helpers.training import FOLDER, write_manifest

from glmasr import weights
from glmasr.tokenizer import read_tokenizer

CHECKPOINTS = ROOT / "glmasr" / "checkpoints"
FAMILIES = ["demo", "demo-article"]
CLIPS = json.loads((ROOT / "examples" / "texts.json").read_text(encoding="utf-8"))
FAST = [
    "--threads",
    "1",
    "--batch-seconds",
    "16",
    "--steps",
    "2",
    "--rate",
    "1e-3",
    "--keep",
    "last",
    "--eval-every",
    "2",
]


@pytest.fixture
def modules(monkeypatch):
    """modules(name) -> a module of training/."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return __import__


@pytest.fixture
def manifest(tmp_path):
    """The examples, of which one is longer than a window of `demo`: that takes several in one prompt."""
    return write_manifest(
        tmp_path / "train.jsonl",
        [{"audio": str(ROOT / "examples" / name), **what} for name, what in CLIPS.items()],
    )


@pytest.fixture
def train(modules, manifest, monkeypatch, capsys, tmp_path):
    """train(model, *options) -> what it printed; `train.encoded` is how many windows went through the encoder."""
    trainer = modules("train")
    make = trainer.Run

    class Counting(make):
        def __init__(self, *given):
            super().__init__(*given)
            self.model.encoder.register_forward_hook(lambda module, given, found: counted(len(given[0])))

    def counted(count):
        run.encoded += count

    def run(model, *options) -> str:
        run.encoded = 0
        arguments = [CHECKPOINTS / model, "--train", manifest, "--eval", manifest, *FAST, "--freeze", "encoder"]
        arguments += ["--accept-errors", "--out", tmp_path / "run", *options]
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        monkeypatch.setattr(trainer, "Run", Counting)
        trainer.main()
        return capsys.readouterr().out

    run.error = trainer.TrainingError
    return run


@pytest.fixture
def kept(modules, manifest, tmp_path):
    """kept(name) -> (new States of a demo, rows)."""
    rows = modules("manifest").read_manifests([manifest])

    def make(name):
        model = weights.load(CHECKPOINTS / name, dtype=torch.float32)
        family = modules("families").family_of(model, read_tokenizer(CHECKPOINTS / name))
        return modules("states").States(tmp_path, family), rows

    return make


def scores_of(said: str) -> list[float]:
    return [
        float(number)
        for line in re.findall("^(?:before|step).*", said, re.M)
        for number in re.findall(r"\d+\.\d+", line)
    ]


@pytest.mark.parametrize("name", [pytest.param("demo", marks=pytest.mark.slow), "demo-article"])
def test_a_run_is_the_same_with_and_without(train, tmp_path, name):
    """Weights after two steps, losses and errors before and after; and the encoder sees each window once."""
    without = train(name, "--no-keep-states", "--out", tmp_path / "without")
    every_time = train.encoded
    said = train(name)
    windows = int(re.search(r"computed once: those of (\d+) windows take 0\.\d+ GiB in \S*run/states-", said)[1])
    assert train.encoded == windows + 1 and windows >= len(CLIPS)  # and one for their size
    assert every_time > 5 * windows
    assert "computed once" not in without and not [*(tmp_path / "without").glob("states-*")]
    assert len(scores_of(said)) > 8
    np.testing.assert_allclose(scores_of(said), scores_of(without), atol=2e-3)
    one, two = (dict(weights.load(tmp_path / run / "model").named_parameters()) for run in ("run", "without"))
    old = dict(weights.load(CHECKPOINTS / name, dtype=torch.float32).named_parameters())
    moved = max(float((one[key] - old[key]).abs().max()) for key in one)
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=0.02 * moved, rtol=0)
    assert "computed once" not in train(name, "--steps", 3) and train.encoded == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_a_steps_losses_are_the_same(modules, kept, name):
    """Bit for bit where the encoder has one window at a time, as when they were computed."""
    states, rows = kept(name)
    family, batches = states.family, modules("batches")
    with torch.inference_mode():
        computed = [family.forward(batch) for _, batch in batches.unchanged(rows, family, True, size=1)]
        states.fill(rows, lambda line: None)
        family.states = states
        found = [(batch.encoded, family.forward(batch)) for _, batch in batches.unchanged(rows, family, True, size=1)]
        many = next(batches.unchanged(rows, family, True))[1]
    assert all(encoded for encoded, _ in found) and many.encoded
    for (hidden, spoken), (_, (hidden_again, spoken_again)) in zip(computed, found, strict=True):
        torch.testing.assert_close(hidden_again, hidden, atol=1e-5, rtol=1e-5)
        assert [x.shape for x in spoken] == [x.shape for x in spoken_again]
    changed = modules("families").Changes(spec=True)
    clips = [batches.read_clip(row, 0.0, 0.0, np.random.default_rng(0)) for row in rows]
    assert not family.collate(clips, changed, np.random.default_rng(0)).encoded


def test_what_is_half_written_is_computed_again(modules, kept):
    """Cut off in the middle of the states of a window, or of its key; and a whole file is taken as it is."""
    states, rows = kept("demo-article")
    said = []
    states.fill(rows, said.append)
    whole, keys = states.path.read_bytes(), states.keys.read_text()
    count = len(states.places)
    assert len(said) == 1 and len(whole) == count * states.window_bytes and keys.count("\n") == count + 1
    for data, lines in (
        (whole[:-7], keys),
        (whole, keys[:-7]),
        (whole + b"half of the next", keys),
        (whole, keys + "half"),
        (b"", keys),
        (whole, ""),
        (whole, "not a header\n"),
    ):
        states.path.write_bytes(data)
        states.keys.write_text(lines)
        again, _ = kept("demo-article")
        assert len(again.places) <= count
        again.fill(rows, said.append)
        assert len(again.places) == count and again.path.read_bytes()[: len(whole)] == whole, (len(data), lines[-20:])
    kept("demo-article")[0].fill(rows, lambda line: pytest.fail(line))


def test_a_recording_that_changed_is_computed_anew(modules, kept, tmp_path):
    """Though its row is the same; another row of the same sound isn't."""
    states, rows = kept("demo-article")
    rng, tone = np.random.default_rng(0), tmp_path / "tone.wav"
    row = modules("manifest").Row(str(tone), "one", "en", seconds=1.0, where="line 1")
    soundfile.write(tone, rng.normal(0, 0.1, 16_000), 16_000)
    states.fill([row], lambda line: None)
    assert len(states.places) == 1
    soundfile.write(tone, rng.normal(0, 0.1, 16_000), 16_000)
    assert states.of(states._windows(row)) is None
    states.fill([row, modules("manifest").Row(str(tone), "two", "en")], lambda line: None)
    assert len(states.places) == 2
    features = states.family.features(states._windows(row))
    with torch.inference_mode():
        torch.testing.assert_close(states.of(states._windows(row)), states.model.encoder(features), atol=0, rtol=0)


def test_only_what_the_states_depend_on_changes_their_name(modules, kept):
    name, states = modules("states").fingerprint, kept("demo-article")[0]
    model = states.model
    before = name(model)
    assert before != name(model, half=True) != name(kept("demo")[0].model)
    with torch.no_grad():
        model.decoder.embed.weight.add_(1)
        assert name(model) == before
        model.encoder.norm.bias[0] += 1e-6
    assert name(model) != before


def test_a_disk_without_room_is_told_before_anything_is_written(train, modules, monkeypatch, tmp_path):
    room = namedtuple("Usage", "total used free")
    monkeypatch.setattr(modules("states").shutil, "disk_usage", lambda folder: room(10**6, 10**6 - 1, 1))
    with pytest.raises(train.error, match=r"windows take 0\.\d+ GiB in .*; 0\.00 are free.*--no-keep-states") as caught:
        train("demo-article")
    assert "\n" not in str(caught.value) and not [*(tmp_path / "run").iterdir()]


def test_a_disk_that_is_full_meanwhile(modules, kept, monkeypatch):
    states, rows = kept("demo-article")

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(modules("states").os, "fsync", full)
    with pytest.raises(modules("manifest").TrainingError, match=r"states-\w+.bin: .*No space left.*--no-keep-states"):
        states.fill(rows, lambda line: None)
    assert not kept("demo-article")[0].places  # of none it is known that it is whole


@pytest.mark.parametrize(
    "options, message",
    [
        (["--freeze", "nothing"], "the encoder is learned; expected --freeze encoder"),
        (["--freeze", "frontend"], "the encoder is learned; expected --freeze encoder"),
        (["--freeze", "encoder", "--pad-to", "speech"], "padded to the longest of a batch; expected --pad-to window"),
        (["--freeze", "encoder", "--augment", "--shift", "0.1"], "--augment, --shift changes clips"),
        (["--freeze", "encoder", "--spec-augment"], "--spec-augment changes clips"),
        ([], ""),
    ],
)
def test_where_states_differ_from_step_to_step_none_are_kept(modules, options, message):
    args = modules("options").completed(modules("options").parser().parse_args(["m", *options]), has_weights=True)
    model = weights.load(CHECKPOINTS / "demo-article")
    modules("start").choose(model, args.freeze)
    found = modules("states").objection(args, model)
    assert message in found and bool(message) == bool(found)


def test_states_that_can_not_be_kept_are_an_error(train):
    with pytest.raises(train.error, match="--keep-states: .*--spec-augment changes clips; expected none of them"):
        train("demo-article", "--keep-states", "--spec-augment")


@pytest.mark.slow
def test_an_adapter_of_the_decoder_takes_them_too(train):
    pytest.importorskip("peft")
    assert "computed once" in train("demo", "--lora", 4, "--steps", 1)


def test_a_students_run_takes_them_too(modules, manifest, monkeypatch, capsys, tmp_path):
    arguments = ["distill.py", CHECKPOINTS / "demo-article", "--student", "layers=1", "--train", manifest, *FAST]
    arguments += ["--freeze", "encoder", "--out", tmp_path / "run"]
    monkeypatch.setattr(sys, "argv", [*map(str, arguments)])
    modules("distill").main()
    assert re.search("computed once.*states-", capsys.readouterr().out)


@pytest.mark.slow
def test_two_processes_share_them(manifest, tmp_path):
    """One writes, both read: the steps of one process with twice the batches."""
    common = [CHECKPOINTS / "demo-article", "--train", manifest, "--eval", manifest, *FAST, "--freeze", "encoder"]
    common += ["--batch-seconds", 8]
    alone = [sys.executable, FOLDER / "train.py", *common, "--out", tmp_path / "one", "--accumulate", 2]
    together = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    together += [FOLDER / "train.py", *common, "--out", tmp_path / "two"]
    found = []
    for command in (alone, together):
        run = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=240)
        assert run.returncode == 0, run.stderr
        assert run.stdout.count("computed once") == 1
        found.append(scores_of(run.stdout))
    np.testing.assert_allclose(found[0], found[1], atol=2e-3)
    one, two = ([path.read_bytes() for path in (tmp_path / run).glob("states-*.bin")] for run in ("one", "two"))
    assert one == two and len(one) == 1
