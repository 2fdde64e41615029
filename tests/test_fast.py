"""The fast pieces against the plain ones: the same names, shapes and numbers; int8 near them, and the same in any
batch."""

import json
import math
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import glmasr
import transcribe
from glmasr import decode, layers, weights
from glmasr.checkpoint import hub, tensor_files
from glmasr.errors import CheckpointError, OptionError
from glmasr.kernels import cuda_graphs, devices, int8, packed, prepare
from glmasr.pipeline import Options
from glmasr.tools.quantize import main, quantize_directory

EXAMPLES = ["examples/zh.wav", "examples/yue.flac", "examples/en.mp3"]
# What not every processor has. The package asks the same, and goes another way (`prepare.choose`, `int8.levels`).
BFLOAT16 = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(
        not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="needs a processor with oneDNN's kernels of bfloat16"
    ),
)
VNNI = pytest.param(
    True,
    marks=pytest.mark.skipif(
        not getattr(torch.cpu, "_is_vnni_supported", lambda: False)(), reason="needs a processor with VNNI"
    ),
)


def prepared(kind, dtype):
    recognizer = glmasr.load("demo", device="cpu", dtype=dtype)
    model = recognizer.model
    prepare.replace_linears(model, kind, dict(model.named_parameters()).__getitem__, torch.device("cpu"), model.dtype)
    return recognizer


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 48), (3, 1, 48), (2, 7, 48), (1, 300, 48)])
def test_packed_linears_are_linears(dtype, bias, shape):
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, generator=generator).to(dtype) for size in ((80, 48), shape))
    bias = torch.randn(80, generator=generator).to(dtype) if bias else None
    linear = packed.PackedLinear(
        [partial(weight.narrow, 0, 0, 50), partial(weight.narrow, 0, 50, 30)], weight.shape, bias, dtype
    )
    assert linear.weight.is_meta and prepare.num_parameters(linear) == 80 * 48 + (80 if bias is not None else 0)
    found = linear(x)
    assert (
        not linear.read
        and not linear.weight.is_meta
        and prepare.num_parameters(linear) == 80 * 48 + (80 if bias is not None else 0)
        and torch.equal(linear(x), found)
    )
    assert (
        found.dtype == dtype
        and found.shape == (*shape[:2], 80)
        and (linear.in_features, linear.out_features) == (48, 80)
    )
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert (found.double() - expected).abs().max() < (1e-5 if dtype == torch.float32 else 0.15)


@pytest.mark.parametrize("rows", [1, packed.FEW, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_wide_linears_are_linears(rows, bias):
    torch.manual_seed(0)
    wide = packed.WideLinear(48, 80, bias=bias, dtype=torch.bfloat16)
    x = torch.randn(2, rows // 2, 48).bfloat16() if rows > 1 else torch.randn(1, 48).bfloat16()
    found, expected = wide(x), F.linear(x.double(), wide.weight.double(), wide.bias.double() if bias else None)
    assert found.dtype == torch.bfloat16 and (found.double() - expected).abs().max() < 0.02


def test_wide_linears_are_for_bfloat16_without_instructions(monkeypatch):
    monkeypatch.setattr(prepare, "LARGE", 1)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    plain, wide = (glmasr.load("demo", device="cpu", dtype="bfloat16", plain=plain) for plain in (True, False))
    assert wide.how()["linears"] == "wide" and any(
        isinstance(module, packed.WideLinear) for module in wide.model.modules()
    )
    assert wide.transcribe(EXAMPLES[0]).text == plain.transcribe(EXAMPLES[0]).text
    assert glmasr.load("demo", device="cpu", dtype="float32").how()["linears"] == "packed"


def test_packed_linears_are_read_at_their_first_use(tmp_path, monkeypatch):
    """A model is loaded without them. Until then the working directory may change; a file that was replaced is a user's
    error."""
    folder, sound = shutil.copytree(hub.BUILT_IN["demo"], tmp_path / "copy"), Path(EXAMPLES[0]).absolute()
    monkeypatch.setattr(prepare, "LARGE", 1)
    monkeypatch.chdir(tmp_path)
    first, second, third = (glmasr.load("copy", device="cpu", dtype="float32") for _ in range(3))
    linears = [module for module in second.model.modules() if isinstance(module, packed.PackedLinear)]
    assert second.runtime.linears == "packed" and linears and all(linear.weight.is_meta for linear in linears)
    unread, options = prepare.unpacked_bytes(second.model), Options(beams=1)
    assert unread == sum(4 * linear.in_features * linear.out_features for linear in linears)
    monkeypatch.setattr(devices, "free_memory", lambda device: 20 * unread)
    before = second.batch_size(options)
    plain = glmasr.load("copy", device="cpu", dtype="float32", plain=True)
    monkeypatch.chdir("/")
    assert first.transcribe(sound).text == plain.transcribe(sound).text
    assert (
        prepare.unpacked_bytes(first.model) == 0 and first.batch_size(options) > before
    )  # that memory is taken, and not free
    shutil.copy(folder / "model.safetensors", tmp_path / "new")
    (tmp_path / "new").replace(folder / "model.safetensors")
    assert first.transcribe(sound).text  # has them
    with pytest.raises(
        glmasr.GlmAsrError, match="model.safetensors is another file than when its model was loaded; load it again"
    ):
        second.transcribe(sound)
    shutil.rmtree(folder)
    with pytest.raises(glmasr.GlmAsrError, match="model.safetensors.*No such file"):
        third.transcribe(sound)


def test_weights_that_memory_does_not_hold(monkeypatch):
    """When they are mapped, at the start or at their first use."""

    def full(*arguments, **options):
        raise RuntimeError("unable to mmap 4515783072 bytes from file <model.safetensors>: Cannot allocate memory (12)")

    monkeypatch.setattr(prepare, "LARGE", 1)
    recognizer = glmasr.load("demo", device="cpu", dtype="float32")
    monkeypatch.setattr(tensor_files, "safe_open", full)
    for act in (lambda: glmasr.load("demo", device="cpu"), lambda: recognizer.transcribe(EXAMPLES[0])):
        with pytest.raises(
            glmasr.ShortMemoryError,
            match="model.safetensors: there is too little memory for the weights: .*expected more, or --dtype int8",
        ):
            act()


def test_int8_is_for_the_cpu_where_there_is_a_gpu_too(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert glmasr.load("demo", dtype="int8").how()["device"] == "cpu"
    with pytest.raises(OptionError, match="int8 and the device 'cuda'.*expected the device 'cpu' or 'auto'"):
        glmasr.load("demo", dtype="int8", device="cuda")


def test_quantized_weights_are_near():
    weight = torch.randn(2500, 64, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 3, 2500)[:, None]
    weight[7] = 0
    numbers, scale = int8.quantize(weight.bfloat16())
    assert numbers.dtype == torch.int8 and numbers.abs().max() == 127 and scale.shape == (2500,)
    error = (numbers.float() * scale[:, None] - weight.bfloat16().float()).abs()
    assert (error <= 0.5001 * scale[:, None]).all() and not error[7].any()


@pytest.mark.parametrize("vnni", [VNNI, False])
@pytest.mark.parametrize("time", [1, 5])
def test_int8_linears_lose_little_beyond_the_weights(time, vnni, monkeypatch):
    """Of a single step only what the weights lost; of several rows at once also what 8 bits of x lose, outliers or
    not."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni, raising=False)
    generator = torch.Generator().manual_seed(2)
    weight, x, bias = (torch.randn(size, generator=generator) for size in ((96, 256), (4, time, 256), (96,)))
    x[1, :, 3] = 40.0
    x[2] = 0
    numbers, scale = int8.quantize(weight)
    found = int8.Int8Linear(numbers, scale, bias)(x)
    exact = F.linear(x.double(), (numbers.double() * scale[:, None].double()), bias.double())
    lost = (found.double() - exact).abs().amax(-1) / x.abs().amax(-1).clamp(min=1e-9)
    assert lost.max() < ((2e-3 if time == 1 else 0.3) * (1 if vnni else 4)) and torch.equal(
        found[2], bias.expand(time, 96)
    )


def test_int8_never_leaves_16_bits_without_vnni(monkeypatch):
    """There pairs of products of x, unsigned, and the weight are added in 16 bits."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False, raising=False)
    assert 2 * (2 * int8.levels() + 1) * 127 < 2**15
    with pytest.raises(glmasr.OptionError, match="for the CPU"):
        int8.check_int8(torch.device("cuda"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(glmasr.OptionError, match="expected bfloat16 or float32"):
        glmasr.load("demo", device="cpu", dtype="int8")


@pytest.mark.parametrize("levels", [63, 127])
def test_int8_numbers_are_bytes_above_zero(levels, monkeypatch):
    linear, given = int8.Int8Linear(*int8.quantize(torch.ones(4, 8)), None), []
    monkeypatch.setattr(torch.ops.onednn, "qlinear_pointwise", lambda x, scale, zero, *_: given.extend((x, zero)))
    linear.levels = levels
    linear._multiply(torch.arange(-levels, levels + 1.0))
    assert given[0].dtype == torch.uint8 and given[1] == levels + 1
    assert given[0].tolist() == [*range(1, 2 * levels + 2)]


@pytest.mark.parametrize("kind", ["plain", "int8"])
def test_an_mlp_in_blocks_is_the_mlp(kind, monkeypatch):
    """To int8 a single row is a step: no block may be one, and steps stay steps."""
    generator, linears = torch.Generator().manual_seed(0), []
    for shape in ((96, 48), (48, 96)):
        linear = torch.nn.Linear(*reversed(shape))
        weight, bias = (
            torch.randn(shape, generator=generator) * shape[1] ** -0.5,
            torch.randn(shape[0], generator=generator),
        )
        linear.load_state_dict({"weight": weight, "bias": bias})
        linears.append(int8.Int8Linear(*int8.quantize(weight), bias) if kind == "int8" else linear)
    whole = layers.MLP(48, 96)
    whole.up, whole.down = linears
    blocked = packed.BlockedMLP(*linears)
    monkeypatch.setattr(packed, "BLOCK", 5)
    for shape in ((1, 11, 48), (2, 8, 48), (6, 1, 48), (4, 48)):
        x = torch.randn(shape, generator=generator)
        with torch.inference_mode():
            found, expected = blocked(x), whole(x)
        assert found.shape == x.shape and (found - expected).abs().max() < 1e-5


def test_what_goes_into_an_encoder_lies_as_the_rest():
    """Else each sum and norm mixes two layouts."""
    frontend = glmasr.load("demo", device="cpu").model.encoder.frontend
    bands = frontend.conv1.in_channels
    assert frontend(torch.randn(2, bands, 40, dtype=frontend.conv1.weight.dtype)).is_contiguous()


@pytest.mark.parametrize("shape", [(9, 1, 128), (9, 5, 128), (9, 128)])
def test_int8_results_do_not_depend_on_batch_mates(shape):
    """Rows without a time axis, as the vocabulary's head gets them, are single steps."""
    generator = torch.Generator().manual_seed(3)
    linear = int8.Int8Linear(*int8.quantize(torch.randn(64, 128, generator=generator)), None)
    x = torch.randn(shape, generator=generator) * torch.logspace(-3, 3, 9).view(9, *[1] * (len(shape) - 1))
    assert torch.equal(linear(x), torch.cat([linear(row[None]) for row in x]))
    assert len(shape) == 3 or torch.equal(linear(x), linear(x[:, None])[:, 0])


@pytest.mark.parametrize("static", [False, True])
def test_int8_logits_do_not_depend_on_batch_mates(static):
    recognizer = prepared("int8", "float32")
    model = recognizer.model
    if static:
        model = cuda_graphs.GraphedModel(model, captured=False)
    rows = recognizer.family.embed(glmasr.audio.load(EXAMPLES[0]))
    prompt, found = model.prompt(recognizer.tokenizer, len(rows)), []
    for count in (1, 3):
        with torch.inference_mode():
            cache = model.new_cache(count, len(prompt) + 1)
            first = model.prefill([rows] * count, [prompt] * count, cache)
            found.append((first[0].clone(), model.step(torch.full((count,), 20), cache)[0].clone()))
    # What is between the linears may add up in another order; a head that rounds x to 8 bits is off by a hundred times
    # as much.
    assert all((alone - among).abs().max() < 1e-3 for alone, among in zip(*found))


def test_weights_that_lie_otherwise_are_counted():
    plain = glmasr.load("demo", device="cpu", dtype="float32").model
    expected = prepare.num_parameters(plain)
    assert expected == sum(parameter.numel() for parameter in plain.parameters()) > 3e6
    for kind in ("packed", "int8", "joined"):  # joined to others, a key has a bias too, of zeros
        zeros = plain.config.encoder.layers * plain.config.encoder.width
        assert prepare.num_parameters(prepared(kind, "float32").model) == expected + zeros


@pytest.mark.parametrize("large, kind", [(True, "packed"), (False, "plain")])
def test_the_choice_goes_by_size(large, kind, monkeypatch):
    model = torch.nn.Linear(10, 10)
    monkeypatch.setattr(prepare, "LARGE", 100 if large else 1000)
    assert prepare.choose(model, torch.device("cpu"), torch.float32) == kind
    assert prepare.choose(model, torch.device("cuda"), torch.float32) == "joined"


def test_bfloat16_is_packed_where_the_kernels_have_it(monkeypatch):
    monkeypatch.setattr(prepare, "LARGE", 1)
    for has, kind in ((True, "packed"), (False, "wide")):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has, raising=False)
        assert prepare.choose(torch.nn.Linear(2, 2), torch.device("cpu"), torch.bfloat16) == kind


@pytest.mark.parametrize("kind", ["packed", "joined", "int8"])
def test_what_lies_otherwise_is_not_saved(kind, tmp_path):
    with pytest.raises(OptionError, match="can't be saved"):
        weights.save(prepared(kind, "float32").model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "kind, dtype, near",
    [
        ("joined", "float32", 1e-4),
        ("packed", "float32", 1e-4),
        pytest.param("packed", "bfloat16", 0.25, marks=BFLOAT16.marks),
        ("int8", "float32", 0.2),
        ("int8", "bfloat16", 0.4),
    ],
)
def test_the_model_stays_the_same(kind, dtype, near):
    """Logits of the first token, whose range is 11 to 12, and the texts. int8 is off by 0.04 to 0.09 in float32."""
    plain, quick = glmasr.load("demo", device="cpu", dtype=dtype), prepared(kind, dtype)
    for name in EXAMPLES:
        samples = glmasr.audio.load(name)
        logits = []
        for recognizer in (plain, quick):
            with torch.inference_mode():
                rows = recognizer.family.embed(samples)
                prompt = recognizer.model.prompt(recognizer.tokenizer, len(rows))
                logits.append(
                    recognizer.model.prefill([rows], [prompt], recognizer.model.new_cache(1, len(prompt))).float()
                )
        assert (logits[0] - logits[1]).abs().max() < near
        assert plain.transcribe(name).text == quick.transcribe(name).text


@pytest.mark.parametrize("kind", ["joined", "packed", "int8"])
def test_ids_do_not_depend_on_the_batch(kind):
    recognizer = prepared(kind, "float32")
    sounds = [glmasr.audio.load(name) for name in EXAMPLES]
    rows = [recognizer.family.embed(sound) for sound in sounds]
    prompts = [recognizer.model.prompt(recognizer.tokenizer, len(heard)) for heard in rows]
    how = {"stop": recognizer.config.stop, "max_new": 30}
    together = decode.greedy(recognizer.model, rows, prompts, **how)
    assert [found.ids for found in together] == [
        decode.greedy(recognizer.model, [heard], [prompt], **how)[0].ids for heard, prompt in zip(rows, prompts)
    ]


# -- int8 files
# ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8") / "demo"
    quantize_directory(hub.BUILT_IN["demo"], folder)
    return folder


def test_int8_files_are_half_as_large_and_give_the_same(quantized):
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (quantized, hub.BUILT_IN["demo"])]
    assert 0.4 < sizes[0] / sizes[1] < 0.6
    stored, made = glmasr.load(quantized), glmasr.load("demo", dtype="int8")
    assert (
        stored.how() == made.how()
        and stored.how()["linears"] == "int8"
        and stored.how()["levels"] == str(int8.levels())
    )
    assert stored.how()["attention"] == ("by heads" if stored.model.dtype == torch.bfloat16 else "plain")
    for name in EXAMPLES:
        assert stored.transcribe(name) == made.transcribe(name)


def test_int8_is_said_on_the_command_line(quantized, capsys):
    assert transcribe.main([EXAMPLES[0], "--model", str(quantized), "--json", "--verbose"]) == 0
    out, err = capsys.readouterr()
    assert "linears int8" in err and json.loads(out)["how"]["linears"] == "int8"
    assert transcribe.main([EXAMPLES[0], "--model", str(quantized), "--dtype", "float32"]) == 2
    out, err = capsys.readouterr()
    assert "holds int8 weights" in err and out == ""


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tensors, name: tensors.pop(name + "_scale"), "needs"),
        (lambda tensors, name: tensors.update({name + "_scale": torch.ones(3)}), "needs"),
        (lambda tensors, name: tensors.update({name + "_scale": tensors[name + "_scale"].double()}), "needs"),
        (
            lambda tensors, name: tensors.update(
                {"audio_tower.norm.weight": tensors["audio_tower.norm.weight"].to(torch.int8)}
            ),
            "expected BF16 or F32",
        ),
        (lambda tensors, name: tensors.update({"audio_tower.norm.weight_scale": torch.ones(192)}), "unexpected"),
    ],
)
def test_damaged_int8_files_are_named_errors(quantized, tmp_path, change, message):
    shutil.copytree(quantized, tmp_path / "bad")
    tensors = load_file(quantized / "model.safetensors")
    change(tensors, "audio_tower.layers.0.mlp.fc1.weight")
    save_file(tensors, tmp_path / "bad" / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        glmasr.load(tmp_path / "bad")


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_scales_are_finite_and_above_zero(quantized, tmp_path, value):
    shutil.copytree(quantized, tmp_path / "bad")
    tensors = load_file(quantized / "model.safetensors")
    tensors["audio_tower.layers.0.mlp.fc1.weight_scale"][3] = value
    save_file(tensors, tmp_path / "bad" / "model.safetensors")
    with pytest.raises(CheckpointError, match="expected numbers above 0"):
        glmasr.load(tmp_path / "bad")


def test_int8_rows_of_an_early_format_keep_their_scales(quantized, tmp_path):
    """Its rotary rows lie as pairs, and their scales with them."""
    shutil.copytree(quantized, tmp_path / "early")
    config, tensors = glmasr.load(quantized).config.encoder, {}
    order = weights._half_split(torch.arange(config.width), config.head_size, config.rotary).argsort()
    for name, tensor in load_file(quantized / "model.safetensors").items():
        if name.startswith("audio_tower.") and (".q_proj." in name or ".k_proj." in name):
            tensor = tensor[order].contiguous()
        tensors[name.replace("self_attn.o_proj", "self_attn.out_proj") if name.startswith("audio_tower.") else name] = (
            tensor
        )
    save_file(tensors, tmp_path / "early" / "model.safetensors")
    assert weights.detect(tensors) == "draft, new names"
    heard = [
        glmasr.load(folder).family.embed(glmasr.audio.load(EXAMPLES[0])) for folder in (quantized, tmp_path / "early")
    ]
    assert torch.equal(*heard)


def test_quantized_files_hold_what_int8_makes_of_the_source(tmp_path):
    """Also of float32, which would lose by going through bfloat16. Weights of another kind beside it stay behind."""
    source = tmp_path / "source"
    shutil.copytree(hub.BUILT_IN["demo"], source)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: x.float() * (1 + 0.001 * torch.randn(x.shape, generator=generator))
        for name, x in load_file(source / "model.safetensors").items()
    }
    save_file(tensors, source / "model.safetensors")
    for name in ("pytorch_model.bin", "consolidated.safetensors", "pytorch_model.bin.index.json"):
        (source / name).write_bytes(b"{}")
    quantize_directory(source, tmp_path / "deep" / "out")
    assert sorted(path.name for path in (tmp_path / "deep" / "out").iterdir()) == sorted(
        path.name for path in hub.BUILT_IN["demo"].iterdir()
    )
    samples = glmasr.audio.load(EXAMPLES[0])
    assert torch.equal(
        glmasr.load(source, dtype="int8").family.embed(samples),
        glmasr.load(tmp_path / "deep" / "out").family.embed(samples),
    )
    stored = load_file(tmp_path / "deep" / "out" / "model.safetensors")
    assert (
        stored["audio_tower.norm.weight"].dtype == torch.float32
        and json.loads((tmp_path / "deep" / "out" / "config.json").read_text())["dtype"] == "float32"
    )


def test_quantizing_needs_a_new_directory(quantized, capsys, monkeypatch, tmp_path):
    for source, out, message in (
        (quantized, quantized, "expected a new directory"),
        (quantized, tmp_path / "again", "holds int8 weights already"),
        ("demo", "/dev/null/out", "error: /dev/null/out: "),
    ):
        monkeypatch.setattr(sys, "argv", ["glmasr-quantize", str(source), str(out)])
        assert main() == 1 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_half_a_model(tmp_path, capsys, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(sys, "argv", ["glmasr-quantize", "demo", str(tmp_path / "out")])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, before[1]))
    try:
        assert main() == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"error: {tmp_path / 'out'}: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


# -- attention
# -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [1, 7, 512, 513, 1500])
def test_attention_by_heads_is_attention(time):
    generator = torch.Generator().manual_seed(time)
    query, key, value = (torch.randn(2, 3, time, 16, generator=generator).bfloat16() for _ in range(3))
    found = packed.attend_by_heads(query, key, value)
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double()).transpose(1, 2).flatten(2)
    plain = (layers.attend(query, key, value).double() - exact).abs().max()
    assert found.shape == (2, time, 48) and (found.double() - exact).abs().max() < max(4 * plain, 0.01)
