"""Names, shapes, formats and files of checkpoints; what a damaged one is answered with; that weights are mapped, not
copied."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import PUBLISHED, TINY, entry, raw
from safetensors.torch import load_file, save_file

from glmasr import weights
from glmasr.checkpoint.config_json import read_config, to_published
from glmasr.checkpoint.glm_asr_json import from_published
from glmasr.checkpoint.tensor_files import read_header
from glmasr.config import GlmAsrConfig
from glmasr.errors import CheckpointError, OptionError
from glmasr.kernels import devices, prepare
from glmasr.model import GlmAsr
from glmasr.weights import FORMATS, detect, load, save, their_name

# ---- the published tensors ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published_model():
    with torch.device("meta"):
        return GlmAsr(GlmAsrConfig())


@pytest.mark.parametrize("kind, count", [("transformers", 745), ("original", 749)])
def test_the_published_config_reaches_every_published_tensor(published_model, kind, count):
    theirs, format = PUBLISHED[kind], FORMATS[kind]
    assert len(theirs) == count and detect(theirs) == kind
    reached = {
        their_name(format.table, ours): list(weight.shape) for ours, weight in published_model.named_parameters()
    }
    ignored = {name: theirs[name] for name in format.ignored}
    assert len(reached) == 745 and not set(reached) & set(ignored)
    assert reached | ignored == theirs


def test_the_published_model_has_the_published_size(published_model):
    assert sum(weight.numel() for weight in published_model.parameters()) == 2_257_843_200
    assert sum(math.prod(shape) for shape in PUBLISHED["transformers"].values()) == 2_257_843_200


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if not kind.startswith("whisper")])
def test_every_table_is_a_bijection(published_model, kind):
    table = FORMATS[kind].table
    names = [name for name, _ in published_model.named_parameters()]
    theirs = [their_name(table, name) for name in names]
    assert len(set(theirs)) == len(names) and len(set(table.values())) == len(table)
    used = {name.rsplit(".", 1)[0] for name in names}
    used = {".".join("{}" if part.isdigit() else part for part in name.split(".")) for name in used}
    assert used == set(table)  # no row that nothing uses
    assert detect(theirs) == kind


# ---- tiny checkpoints ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(randomize):
    return randomize(GlmAsr(TINY), seed=1).requires_grad_(False)


@pytest.fixture
def folder(tiny, tmp_path):
    """A checkpoint directory that a test may damage."""
    save(tiny, tmp_path / "model", torch.float32)
    return tmp_path / "model"


def loaded(folder, dtype=torch.float32):
    return load(folder, dtype=dtype)


@torch.inference_mode()
def logits(model, seed=0):
    """What a model says after one window of sound."""
    generator = torch.Generator().manual_seed(seed)
    rows = model.encode(torch.randn(1, model.config.encoder.bands, 200, generator=generator), [32_000])
    prompt = [7, 8] + [model.config.audio_token] * 25 + [9, 10]
    return model.prefill(rows, [prompt], model.new_cache(1, 40)).float()


def same(a, b):
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def rename(folder, kind, extra=(), dtype=None):
    """Rewrites a checkpoint in Transformers format as one of another format; interleaves the encoder's heads where that
    has them so."""
    tensors, format, config = load_file(folder / "model.safetensors"), FORMATS[kind], read_config(folder)
    with torch.device("meta"):
        names = [name for name, _ in GlmAsr(config).named_parameters()]
    renamed = {}
    for ours in names:
        tensor = tensors[their_name(FORMATS["transformers"].table, ours)]
        if format.interleaved and ours.startswith("encoder.") and (".query." in ours or ".key." in ours):
            tensor = interleaved(tensor, config.encoder.head_size, config.encoder.rotary)
        renamed[their_name(format.table, ours)] = tensor.to(dtype or tensor.dtype)
    save_file(renamed | dict(extra), folder / "model.safetensors")


def interleaved(tensor, head_size, rotary):
    """Rotary row i of a head goes to 2i, row rotary/2 + i to 2i + 1: the order of the original model, where pairs are
    neighbors."""
    result = tensor.clone()
    for head in range(0, len(tensor), head_size):
        for i in range(rotary // 2):
            result[head + 2 * i] = tensor[head + i]
            result[head + 2 * i + 1] = tensor[head + rotary // 2 + i]
    return result


def test_interleaving_as_published():
    """new = old[0, 2, .., 30, 1, 3, .., 31, 32 .. 63] in each head of 64 rows."""
    old = torch.arange(1280.0)[:, None]
    new = weights._half_split(old, 64, 32)
    assert new[64:128, 0].int().tolist() == [64 + n for n in (*range(0, 32, 2), *range(1, 32, 2), *range(32, 64))]
    assert torch.equal(interleaved(new, 64, 32), old)
    assert torch.equal(weights._half_split(old[:, 0], 64, 32), new[:, 0])  # a bias


# ---- formats ------------------------------------------------------------------------------------------------------------


def test_save_and_load_are_inverse(tiny, folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
    ]
    model = loaded(folder)
    assert model.config == tiny.config and same(model, tiny)
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())
    assert torch.equal(logits(model), logits(tiny))


def test_a_saved_bfloat16_model_is_rounded_once(tiny, tmp_path):
    save(tiny, tmp_path)
    model = loaded(tmp_path, torch.bfloat16)
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(model.parameters(), tiny.parameters(), strict=True))
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_what_save_wrote(tiny, tmp_path, tied):
    transformers = pytest.importorskip("transformers")
    model = tiny
    if tied:
        model = GlmAsr(replace(TINY, decoder=replace(TINY.decoder, tied=True)))
        model.load_state_dict(
            {name: weight for name, weight in tiny.state_dict().items() if name != "decoder.head.weight"}, strict=False
        )
    save(model, tmp_path, torch.float32)
    theirs, report = transformers.GlmAsrForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert theirs.config.text_config.eos_token_id == [1, 3, 4] == theirs.generation_config.eos_token_id
    assert theirs.model.audio_tower.rotary_emb.inv_freq.shape == (TINY.encoder.rotary // 2,)
    generator = torch.Generator().manual_seed(0)
    found = theirs(
        input_ids=torch.tensor([[7, 8] + [5] * 25 + [9, 10]]),
        input_features=torch.randn(1, 80, 200, generator=generator),
        input_features_mask=torch.ones(1, 200, dtype=torch.long),
    ).logits[:, -1]
    assert (found - logits(model)).abs().max() < 1e-4
    again = loaded(tmp_path)
    assert again.config == model.config and same(again, model)
    extractor = transformers.WhisperFeatureExtractor.from_dict(
        json.loads((tmp_path / "processor_config.json").read_text())["feature_extractor"]
    )
    assert (extractor.feature_size, extractor.n_samples, extractor.nb_max_frames) == (80, 32_000, 200)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if not kind.startswith("whisper")])
@pytest.mark.parametrize("tied", [False, True])
def test_every_format_gives_the_same_model(reference, tmp_path, kind, tied):
    theirs = reference(
        {
            "num_mel_bins": 80,
            "hidden_size": 24,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        },
        {
            "vocab_size": 48,
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "eos_token_id": [1, 3, 4],
        },
        seed=7,
        tie_word_embeddings=tied,
        audio_token_id=5,
    )
    theirs.save_pretrained(tmp_path)
    if kind == "transformers in memory":  # not made by the table: Transformers' own state_dict
        state = {
            name: weight.contiguous()
            for name, weight in theirs.state_dict().items()
            if not (tied and name == "lm_head.weight")
        }
        save_file(state, tmp_path / "model.safetensors")
    elif kind != "transformers":
        rename(tmp_path, kind, {name: torch.ones(3, 5) for name in FORMATS[kind].ignored})
    assert (their_name(FORMATS[kind].table, "decoder.head.weight") in load_file(tmp_path / "model.safetensors")) != tied
    model = loaded(tmp_path)
    assert model.config.decoder.tied == tied
    assert (model.decoder.head.weight is model.decoder.embed.weight) == tied
    generator = torch.Generator().manual_seed(0)
    expected = (
        theirs(
            input_ids=torch.tensor([[7, 8] + [5] * 25 + [9, 10]]),
            input_features=torch.randn(1, 80, 200, generator=generator),
            input_features_mask=torch.ones(1, 200, dtype=torch.long),
        )
        .logits[:, -1]
        .detach()
    )
    assert (logits(model) - expected).abs().max() < 1e-4


def test_draft_names_are_detected(folder):
    for kind in ("draft", "draft, new names"):
        names = {their_name(FORMATS[kind].table, name) for name, _ in GlmAsr(TINY).named_parameters()}
        assert detect(names) == kind


def test_the_configuration_of_the_original_format(randomize, tmp_path):
    """`config.json` as revision 91967ea has it: narrow, but with the published vocabulary, which its placeholder is
    fixed in."""
    config = replace(
        TINY,
        audio_token=59_260,
        stop=(59_246, 59_253, 59_255),
        window_seconds=30,
        decoder=replace(TINY.decoder, vocabulary=59_264, width=8, layers=1),
    )
    model = randomize(GlmAsr(config), seed=2)
    save(model, tmp_path, torch.float32)
    rename(tmp_path, "original", {name: torch.zeros(2) for name in FORMATS["original"].ignored})
    for name in ("processor_config.json", "generation_config.json"):
        (tmp_path / name).unlink()
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["GlmasrModel"],
                "model_type": "Glmasr",
                "adapter_type": "mlp",
                "merge_factor": 4,
                "mlp_adapter_act": "gelu",
                "use_rope": True,
                "max_whisper_length": 1500,
                "max_length": 65536,
                "spec_aug": False,
                "lm_config": {
                    "model_type": "llama",
                    "vocab_size": 59264,
                    "hidden_size": 8,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                    "head_dim": 8,
                    "intermediate_size": 40,
                    "max_position_embeddings": 512,
                    "rms_norm_eps": 1e-5,
                    "rope_theta": 10000.0,
                    "eos_token_id": [59246, 59253, 59255],
                    "hidden_act": "silu",
                },
                "whisper_config": {
                    "model_type": "whisper",
                    "num_mel_bins": 80,
                    "d_model": 16,
                    "encoder_layers": 2,
                    "encoder_attention_heads": 2,
                    "encoder_ffn_dim": 64,
                    "activation_function": "gelu",
                    "decoder_layers": 4,
                    "vocab_size": 51866,
                },
            }
        )
    )
    assert loaded(tmp_path).config == config
    assert same(loaded(tmp_path), model)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("asked", [torch.float32, torch.bfloat16])
def test_stored_and_asked_types(tiny, folder, stored, asked):
    rename(folder, "transformers", dtype=stored)
    model = loaded(folder, asked)
    for a, b in zip(model.parameters(), tiny.parameters(), strict=True):
        assert a.dtype == asked and torch.equal(a, b.to(stored).to(asked))
    assert model.dtype == asked


def test_shards(tiny, folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = [names[:10], names[10:11], names[11:]]
    index = {}
    for n, part in enumerate(parts, 1):
        file = f"model-{n:05}-of-00003.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    )
    assert same(loaded(folder), tiny)


def test_a_head_that_is_there_counts_whatever_the_config_says(tiny, folder):
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    assert same(loaded(folder), tiny) and not loaded(folder).config.decoder.tied


# ---- mapped, not copied -------------------------------------------------------------------------------------------------


def mapped_at(address):
    """The file that is mapped at an address of this process, or ''."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        (
            span,
            *_,
        ) = line.split()
        first, last = (int(number, 16) for number in span.split("-"))
        if first <= address < last:
            return line.split(maxsplit=5)[5] if len(line.split()) > 5 else ""
    return ""


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs /proc")
@pytest.mark.parametrize("kind", ["transformers", "original"])
def test_weights_are_the_pages_of_the_file(tiny, folder, kind):
    save(tiny, folder)
    rename(folder, kind)
    model = loaded(folder, torch.bfloat16)
    copied = {
        name
        for name, weight in model.named_parameters()
        if mapped_at(weight.data_ptr()) != str(folder / "model.safetensors")
    }
    # Only what is permuted has to be copied.
    assert copied == {
        name
        for name, _ in model.named_parameters()
        if FORMATS[kind].interleaved and name.startswith("encoder.blocks.") and (".query." in name or ".key." in name)
    }


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_a_large_checkpoint_takes_no_private_memory(folder, tmp_path):
    """160 MB of bfloat16 weights: private memory (RssAnon) hardly grows, so there is no second copy."""
    config = replace(TINY, decoder=replace(TINY.decoder, vocabulary=40_000, width=1000, heads=4, head_size=4, hidden=8))
    with torch.device("meta"):
        names = {
            their_name(FORMATS["transformers"].table, ours): weight.shape
            for ours, weight in GlmAsr(config).named_parameters()
        }
    save_file(
        {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in names.items()},
        tmp_path / "model.safetensors",
    )
    for name, values in to_published(config, torch.bfloat16).items():
        (tmp_path / name).write_text(json.dumps(values))
    program = """
import sys
import torch
from glmasr.weights import load
def private():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon:")) // 1024
modules = len(sys.modules)
load(sys.argv[2], dtype=torch.bfloat16)       # what the first model imports is none of its weights
assert len(sys.modules) - modules < 300, "loading imports a part of PyTorch that takes a second: see weights._NoInit"
before = private()
model = load(sys.argv[1], dtype=torch.bfloat16)
total = sum(float(weight.sum()) for weight in model.parameters())       # every page is touched
print(private() - before, total)
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(folder)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    megabytes, total = run.stdout.split()
    assert float(total) == 0 and int(megabytes) < 16, run.stdout


# ---- damaged files ------------------------------------------------------------------------------------------------------


def refused(folder, *words, error=CheckpointError, **options):
    """`load` fails with one line that has all the words."""
    with pytest.raises(error) as caught:
        prepare.load(folder, **{"device": "cpu", "dtype": "float32", "plain": True} | options)
    message = str(caught.value)
    assert "\n" not in message, message
    assert all(word in message for word in words), message
    return message


def rewrite(folder, change):
    """Applies `change` to the tensors of a checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


FILE = "model.safetensors"
KEY = "audio_tower.layers.1.self_attn.k_proj.weight"


def test_missing_unexpected_and_misshapen_tensors(folder):
    rewrite(folder, lambda tensors: tensors.update({"audio_tower.extra.weight": torch.zeros(2)}))
    refused(folder, FILE, "audio_tower.extra.weight", "unexpected")
    rewrite(
        folder, lambda tensors: (tensors.pop("audio_tower.extra.weight"), tensors.update({KEY: torch.zeros(16, 15)}))
    )
    refused(folder, FILE, KEY, "[16, 15]", "[16, 16]")
    rewrite(folder, lambda tensors: tensors.pop(KEY))
    refused(folder, str(folder), KEY, "missing")


def test_a_bias_of_a_key_is_unexpected(folder):
    rewrite(folder, lambda tensors: tensors.update({KEY.replace("weight", "bias"): torch.zeros(16)}))
    refused(folder, FILE, KEY.replace("weight", "bias"), "unexpected")


def test_another_model_under_the_right_config(folder):
    save_file({"bert.embeddings.weight": torch.zeros(2)}, folder / FILE)
    refused(folder, "asks for", "1 tensors only")
    save_file({f"bert.layer.{number}.weight": torch.zeros(2) for number in range(50)}, folder / FILE)
    refused(folder, "audio_tower.conv1.weight", "missing")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_integer_weights_are_refused(folder, dtype):
    rewrite(folder, lambda tensors: tensors.update({KEY: torch.zeros(16, 16, dtype=dtype)}))
    refused(folder, FILE, KEY, "is of type I8 and needs" if dtype == torch.int8 else "expected BF16 or F32")


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, -1, -1000])
def test_truncated_files(folder, keep):
    whole = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(whole[:keep])
    refused(folder, FILE, "damaged or was not downloaded whole")


def test_data_behind_the_tensors(folder):
    (folder / FILE).write_bytes((folder / FILE).read_bytes() + b"\0")
    refused(folder, FILE, "damaged or was not downloaded whole")


@pytest.mark.parametrize("length", [0, 3, 2**63, 2**64 - 1, 10**9])
def test_bad_header_lengths(folder, length):
    raw(folder, {"a": {}}, length=length)
    refused(folder, FILE, "damaged")


@pytest.mark.parametrize(
    "header", ["", "nonsense", "[1]", "3", "null", b"\xff\xfe{}", '{"a":', "[" * 200_000, "<!DOCTYPE html>"]
)
def test_headers_that_are_no_json_object(folder, header):
    raw(folder, header)
    refused(folder, FILE, "header", "damaged")


def test_a_git_lfs_pointer(folder):
    (folder / FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4515700000\n")
    refused(folder, FILE, "was not downloaded whole")


@pytest.mark.parametrize(
    "header",
    [
        pytest.param('{"a": %s, "a": %s}' % ((json.dumps(entry(0, 8, [2])),) * 2), id="a name twice"),
        pytest.param({"a": entry(4, 12, [2])}, id="a gap at the start"),
        pytest.param({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, id="a gap"),
        pytest.param({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, id="an overlap"),
        pytest.param({"a": entry(0, 8, [2]), "b": entry(0, 8, [2])}, id="the same place"),
        pytest.param({"a": entry(0, 8, [3])}, id="too few bytes"),
        pytest.param({"a": entry(8, 0, [2])}, id="backwards"),
        pytest.param({"a": entry(-8, 0, [2])}, id="negative"),
        pytest.param({"a": entry(0.0, 8.0, [2])}, id="offsets that are no integers"),
        pytest.param({"a": entry(0, 8, [-2, -1])}, id="a negative shape"),
        pytest.param({"a": entry(0, 8, [2.0])}, id="a shape that is no integer"),
        pytest.param({"a": entry(0, 8, [True, 2])}, id="a shape of booleans"),
        pytest.param({"a": entry(0, 8, "2")}, id="a shape that is text"),
        pytest.param({"a": entry(0, 8, [2], "F31")}, id="an unknown type"),
        pytest.param({"a": entry(0, 8, [2], ["F32"])}, id="a type that is a list"),
        pytest.param({"a": entry(0, 8, [2], None)}, id="no type"),
        pytest.param({"a": {"dtype": "F32", "shape": [2]}}, id="no offsets"),
        pytest.param({"a": [1, 2]}, id="no object"),
        pytest.param({"a": entry(0, 2**70, [2**68])}, id="larger than any file"),
        pytest.param(
            '{"a": {"dtype": "U8", "shape": [1%s, 1%s], "data_offsets": [0, 4]}}' % (("0" * 4000,) * 2),
            id="a shape of thousands of digits",
        ),
        pytest.param(
            '{"a": {"dtype": "U8", "shape": [%s], "data_offsets": [0, %s]}}' % (("9" * 4300,) * 2),
            id="an offset of thousands of digits",
        ),
        pytest.param({"a": entry(0, 10**4000, [2])}, id="another one"),
        pytest.param(
            '{"a": {"dtype": "U8", "shape": [%s], "data_offsets": [0, 4]}}' % ", ".join(["9" * 4000] * 2000),
            id="a shape that would take minutes",
        ),
        pytest.param({"a": entry(0, 4, [1] * 33)}, id="33 axes"),
        pytest.param({"a": entry(0, 0, [0]), "b": entry(0, 4, [1])}, id="an empty tensor and a short end"),
    ],
)
def test_headers_that_make_no_sense(folder, header):
    raw(
        folder,
        header,
        b"\0" * 8 if "short end" in str(header) else b"\0" * 12 if '"b"' in json.dumps(header) else b"\0" * 8,
    )
    message = refused(folder, FILE, "damaged")
    assert re.search("tensor [ab] (of shape|has) |'a' twice in one object|its tensors end at byte ", message)


@pytest.mark.slow
def test_a_header_of_too_many_tensors(folder):
    raw(folder, {f"t{number}": entry(0, 0, [0]) for number in range(200_000)}, b"")
    refused(
        folder,
        FILE,
        "its header is not valid JSON (so many values that they take ",
        " MB of memory, expected at most 100)",
    )
    raw(folder, {f"t{number}": entry(0, 0, [1, 1, 1, 0]) for number in range(20_000)}, b"")
    assert len(read_header(folder / FILE)) == 20_000


@pytest.mark.parametrize("digits", [4301, 100_000])
def test_a_header_with_numbers_that_python_does_not_read(folder, digits):
    raw(folder, '{"a": {"dtype": "U8", "shape": [%s], "data_offsets": [0, 4]}}' % ("9" * digits))
    refused(folder, FILE, "not valid JSON", "damaged")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "model.safetensors.index.json"])
def test_configurations_that_are_no_files_or_huge(folder, name):
    (folder / FILE).unlink()
    (folder / name).write_bytes(b"")
    os.truncate(folder / name, 3 * 2**30)  # sparse
    refused(folder, str(folder / name), "3221225472 bytes, expected at most 5000000")
    (folder / name).unlink()
    if name == "config.json":
        os.mkfifo(folder / name)
        refused(folder, str(folder / name), "a pipe or a device, expected a file")
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")
        refused(folder, str(folder / name), "a pipe or a device, expected a file")


def test_an_unreadable_file(folder):
    (folder / FILE).unlink()
    (folder / FILE).mkdir()
    refused(folder, str(folder))


@pytest.mark.parametrize(
    "index, words",
    [
        ({"weight_map": {"a": "../model.safetensors"}}, ("'../model.safetensors'",)),
        ({"weight_map": {"a": "/etc/passwd"}}, ("'/etc/passwd'",)),
        ({"weight_map": {"a": ".."}}, ("'..'",)),
        ({"weight_map": {"a": ""}}, ("''",)),
        ({"weight_map": {"a": "x" * 5000}}, ("no such file",)),
        ({"weight_map": {"a": "語" * 100}}, ("no such file",)),
        ({"weight_map": {"a": "x\0"}}, ("no such file",)),
        ({"weight_map": {"a": "other.safetensors"}}, ("other.safetensors", "no such file")),
        ({"weight_map": {"a": 3}}, ("weight_map",)),
        ({"weight_map": {}}, ("weight_map",)),
        ({"weight_map": ["a"]}, ("weight_map",)),
        ({}, ("weight_map",)),
        ([], ("expected a JSON object",)),
    ],
)
def test_damaged_indexes(folder, index, words):
    (folder / FILE).unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, str(folder), *words)


def test_a_tensor_in_two_shards(folder):
    tensors = load_file(folder / FILE)
    (folder / FILE).unlink()
    save_file(tensors, folder / "one.safetensors")
    save_file({KEY: tensors[KEY]}, folder / "two.safetensors")
    index = dict.fromkeys(tensors, "one.safetensors") | {KEY: "two.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    refused(folder, KEY, "several files")


def test_pickles_are_not_opened(folder):
    (folder / FILE).unlink()
    refused(folder, str(folder), "neither model.safetensors nor model.safetensors.index.json")
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    refused(folder, "pytorch_model.bin", "pickle", "model.safetensors only")


def test_no_directory_and_no_config(tmp_path):
    refused(tmp_path / "nowhere", str(tmp_path / "nowhere"))
    refused(tmp_path, "config.json", "no such file")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", str(tmp_path / "file"))


# ---- configurations that are refused ------------------------------------------------------------------------------------

NAN, INFINITY = float("nan"), float("inf")
REFUSED = [
    ("config.json", "model_type", "bart", "bart"),
    ("config.json", "model_type", None, "model_type"),
    ("config.json", "model_type", ["glmasr"], "model_type"),
    ("config.json", "shiny_new_key", 1, "shiny_new_key"),
    ("audio_config", "shiny_new_key", 1, "shiny_new_key"),
    ("text_config", "shiny_new_key", 1, "shiny_new_key"),
    ("config.json", "audio_config", 3, "audio_config"),
    ("config.json", "text_config", None, "text_config"),
    ("config.json", "projector_hidden_act", "relu", "relu"),
    ("config.json", "quantization_config", {"bits": 4}, "quantization_config"),
    ("audio_config", "hidden_act", "relu", "relu"),
    ("audio_config", "hidden_act", "silu", "silu"),
    ("text_config", "hidden_act", "gelu", "gelu"),
    ("text_config", "hidden_act", ["silu"], "hidden_act"),
    ("text_config", "attention_bias", True, "attention_bias"),
    ("text_config", "mlp_bias", True, "mlp_bias"),
    ("text_config", "rope_scaling", {"type": "linear", "factor": 2}, "rope_scaling"),
    ("text_config", "rope_parameters", {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4}, "llama3"),
    ("audio_config", "rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}, "yarn"),
    ("audio_config", "rope_parameters", 7, "rope_parameters"),
    ("text_config", "rope_parameters", "default", "rope_parameters"),
    ("text_config", "rope_parameters", {"rope_theta": NAN}, "rope_theta"),
    ("text_config", "rope_parameters", {"rope_theta": "1e4"}, "rope_theta"),
    ("text_config", "rope_parameters", {"rope_theta": 0}, "rope_theta"),
    ("text_config", "rope_parameters", {"rope_theta": True}, "rope_theta"),
    ("audio_config", "rope_parameters", {"partial_rotary_factor": 1.5}, "rotary"),
    ("audio_config", "rope_parameters", {"partial_rotary_factor": -0.5}, "partial_rotary_factor"),
    ("audio_config", "rope_parameters", {"partial_rotary_factor": INFINITY}, "partial_rotary_factor"),
    ("audio_config", "rope_parameters", {"partial_rotary_factor": 1e300}, "rotary"),
    ("audio_config", "rope_parameters", {"partial_rotary_factor": 0.4}, "rotary"),
    ("audio_config", "num_hidden_layers", 0, "layers"),
    ("text_config", "num_hidden_layers", 0, "layers"),
    ("text_config", "num_hidden_layers", 10**9, "layers"),
    ("text_config", "num_hidden_layers", 2000, "layers"),
    ("audio_config", "num_hidden_layers", 10**30, "layers"),
    ("audio_config", "num_attention_heads", -2, "heads"),
    ("text_config", "num_attention_heads", 0, "heads"),
    ("text_config", "num_attention_heads", -4, "heads"),
    ("text_config", "num_key_value_heads", 3, "key heads"),
    ("text_config", "num_key_value_heads", 0, "key_heads"),
    ("audio_config", "hidden_size", "16", "'16'"),
    ("text_config", "hidden_size", NAN, "nan"),
    ("text_config", "hidden_size", True, "True"),
    ("text_config", "hidden_size", 32.0, "32.0"),
    ("text_config", "hidden_size", [32], "[32]"),
    ("text_config", "vocab_size", 10**12, "vocabulary"),
    ("text_config", "head_dim", "8", "'8'"),
    ("text_config", "head_dim", 7, "even"),
    ("text_config", "head_dim", -8, "head_size"),
    ("text_config", "rms_norm_eps", NAN, "eps"),
    ("text_config", "rms_norm_eps", "1e-5", "eps"),
    ("text_config", "rms_norm_eps", 0, "eps"),
    ("text_config", "rms_norm_eps", True, "eps"),
    ("text_config", "head_dim", 10**400, "head size"),
    ("text_config", "head_dim", -(10**400), "head size"),
    ("text_config", "head_dim", 2**23, "heads of"),
    ("audio_config", "intermediate_size", 32, "hidden"),
    ("audio_config", "num_mel_bins", 0, "bands"),
    ("audio_config", "num_mel_bins", 1.5, "bands"),
    ("config.json", "audio_token_id", 48, "audio_token"),
    ("config.json", "audio_token_id", -1, "audio_token"),
    ("config.json", "audio_token_id", "<|pad|>", "audio_token"),
    ("config.json", "tie_word_embeddings", "no", "tie_word_embeddings"),
    ("config.json", "tie_word_embeddings", 7, "tie_word_embeddings"),
    ("generation_config.json", "eos_token_id", [1, 48], "eos_token_id"),
    ("generation_config.json", "eos_token_id", "1", "eos_token_id"),
    ("generation_config.json", "eos_token_id", [True], "eos_token_id"),
    ("generation_config.json", "eos_token_id", [], "eos_token_id"),
    ("generation_config.json", "eos_token_id", {"a": 1}, "eos_token_id"),
    ("processor_config.json", "max_audio_len", "655", "longest_seconds"),
    ("processor_config.json", "max_audio_len", 1, "shorter"),
    ("processor_config.json", "default_transcription_prompt", 3, "default_transcription_prompt"),
    ("processor_config.json", "feature_extractor", [], "feature_extractor"),
    ("feature_extractor", "sampling_rate", 8000, "sampling_rate"),
    ("feature_extractor", "hop_length", 100, "hop_length"),
    ("feature_extractor", "n_fft", 512, "n_fft"),
    ("feature_extractor", "dither", 0.1, "dither"),
    ("feature_extractor", "chunk_length", 0, "window_seconds"),
    ("feature_extractor", "chunk_length", 2.5, "window_seconds"),
    ("feature_extractor", "chunk_length", 602, "at most 600 s"),
    ("feature_extractor", "chunk_length", 3, "multiple"),
    ("feature_extractor", "feature_size", 128, "feature_size"),
]


@pytest.mark.parametrize(
    "where, key, value, word", [pytest.param(*row, id=" ".join(map(str, row[:3]))[:60]) for row in REFUSED]
)
def test_configurations_that_are_refused(folder, where, key, value, word):
    file = {"feature_extractor": "processor_config.json"}.get(
        where, where if where.endswith(".json") else "config.json"
    )
    data = json.loads((folder / file).read_text())
    (data if where == file else data[where])[key] = value
    (folder / file).write_text(json.dumps(data))
    with pytest.raises(CheckpointError) as caught:
        read_config(folder)
    message = str(caught.value)
    assert message.startswith(str(folder)) and "\n" not in message and word in message, message


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\ufeff", "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "generation_config.json"])
def test_configurations_that_are_no_json(folder, name, text):
    (folder / name).write_text(text)
    refused(folder, str(folder / name))


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "generation_config.json"])
def test_a_key_twice(folder, name):
    text = (folder / name).read_text()
    (folder / name).write_text(text.replace("{", '{"a": {"b": 1, "b": 1}, ', 1))
    refused(folder, str(folder / name), "'b' twice")


def test_more_layers_than_tensors_are_refused_before_they_are_built(folder, monkeypatch):
    data = json.loads((folder / "config.json").read_text())
    data["text_config"]["num_hidden_layers"] = 1000
    (folder / "config.json").write_text(json.dumps(data))
    monkeypatch.setattr(weights, "build", lambda config: pytest.fail("was built"))
    refused(folder, str(folder), "1002 layers")


def test_what_a_terminal_would_obey_and_endless_text_do_not_come_into_messages(folder):
    rewrite(folder, lambda tensors: tensors.update({"\x1b[2J" + "x" * 3000: torch.zeros(2)}))
    message = refused(folder, "\\x1b[2Jxxx", "xxx ... xxx")
    assert message.isprintable() and len(message) < 1100


def test_configurations_that_are_no_text(folder):
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    refused(folder, "config.json")


def test_the_published_files_give_the_defaults():
    """In short, but with every key that the published files have."""
    audio = {
        "attention_dropout": 0.0,
        "head_dim": 64,
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "initializer_range": 0.02,
        "intermediate_size": 5120,
        "max_position_embeddings": 1500,
        "model_type": "glmasr_encoder",
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "num_key_value_heads": 20,
        "num_mel_bins": 128,
        "partial_rotary_factor": 0.5,
        "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 10000.0, "rope_type": "default"},
    }
    text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "eos_token_id": [59246, 59253, 59255],
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 6144,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "use_cache": True,
        "vocab_size": 59264,
    }
    config = {
        "architectures": ["GlmAsrForConditionalGeneration"],
        "audio_config": audio,
        "audio_token_id": 59260,
        "dtype": "bfloat16",
        "hidden_size": 2048,
        "model_type": "glmasr",
        "projector_hidden_act": "gelu",
        "text_config": text,
        "transformers_version": "5.0.0.dev0",
        "vocab_size": 59264,
    }
    assert from_published(config) == GlmAsrConfig()
    assert from_published({"model_type": "glmasr"}) == GlmAsrConfig()
    original = {
        "model_type": "Glmasr",
        "adapter_type": "mlp",
        "merge_factor": 4,
        "use_rope": True,
        "lm_config": text,
        "whisper_config": {
            "num_mel_bins": 128,
            "d_model": 1280,
            "encoder_layers": 32,
            "encoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "activation_function": "gelu",
        },
    }
    assert from_published(original) == GlmAsrConfig()


@pytest.mark.parametrize("key, value", [("use_rope", False), ("adapter_type", "qformer"), ("merge_factor", 2)])
def test_original_variants_that_are_refused(key, value):
    with pytest.raises(CheckpointError, match=key):
        from_published({"lm_config": {}, "whisper_config": {}, key: value})


# ---- device and type ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "fp16", "half", torch.float16])
def test_float16_is_refused_with_the_reason(folder, dtype):
    refused(folder, "float16", "overflow", "bfloat16 or float32", error=OptionError, dtype=dtype)


@pytest.mark.parametrize("dtype", ["", None, torch.int64, torch.float64, 16, ["bfloat16"]])
def test_unknown_types(folder, dtype):
    refused(folder, repr(dtype), "'bfloat16'", error=OptionError, dtype=dtype)


@pytest.mark.parametrize("device", ["toaster", "", 3.5, None, "cpu:x", "meta", "mps"])
def test_unknown_devices(folder, device):
    refused(folder, "device", error=OptionError, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(folder):
    refused(folder, "'cuda'", "--device cpu", error=OptionError, device="cuda")
    assert prepare.load(folder, plain=True)[0].device == torch.device("cpu")


def test_the_type_that_auto_chooses(folder):
    model, _ = prepare.load(folder, device="cpu", plain=True)
    assert model.dtype == devices.fast_dtype(torch.device("cpu")) and model.dtype in (torch.bfloat16, torch.float32)


def test_a_scaled_rope_is_refused_in_both_spellings():
    for key in ("type", "rope_type"):
        for part in ("audio_config", "text_config"):
            with pytest.raises(CheckpointError, match="rope_type is 'linear'"):
                from_published({"model_type": "glmasr", part: {"rope_parameters": {key: "linear", "factor": 4.0}}})


def test_free_memory(tmp_path, monkeypatch):
    """In a container what its limit leaves; where nothing is said, 4 GiB."""
    monkeypatch.setattr(devices, "PROC", tmp_path)
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    cpu, gib = torch.device("cpu"), 2**30
    assert devices.free_memory(cpu) == 4 * gib
    (tmp_path / "meminfo").write_text(f"MemTotal: 67108864 kB\nMemAvailable: {48 * 2**20} kB\nHugePages_Total: 0\n")
    assert devices.free_memory(cpu) == 48 * gib
    for name, text in (
        ("current", f"{6 * gib}\n"),
        ("stat", f"anon {gib}\ninactive_file {gib}\nfile {5 * gib}\n"),
        ("max", "max\n"),
    ):
        (tmp_path / f"memory.{name}").write_text(text)
    assert devices.free_memory(cpu) == 48 * gib  # a container without a limit
    for limit, free in ((8, 3), (64, 48), (2, 0)):
        (tmp_path / "memory.max").write_text(f"{limit * gib}\n")
        assert devices.free_memory(cpu) == free * gib
