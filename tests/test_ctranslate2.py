"""Whisper in CTranslate2's format, in every version and type; what damaged files are answered with."""

import json
import random
import struct
from dataclasses import replace

import pytest
import torch
from helpers import model_bin
from helpers.checkpoints import make_encoder_decoder
from helpers.model_bin import EMBEDDING, HEAD, QUANTIZATIONS, convert, pack, variable
from helpers.sounds import speech

import glmasr
from glmasr import weights
from glmasr.checkpoint import ctranslate2, ctranslate2_whisper
from glmasr.checkpoint.tensor_files import Files
from glmasr.errors import CheckpointError, GlmAsrError, TokenizerError
from glmasr.kernels import prepare
from glmasr.tokenizer import TokenList, read_special, read_tokenizer
from glmasr.tools import check, quantize

KINDS = [kind for kind in QUANTIZATIONS if kind != "int8_float32"]  # which is int8
OLD = [(version, kind) for version in (1, 2, 3) for kind in ("float32", "int8", "int16")]  # which no other types had


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny random Whisper, as Transformers has it."""
    return make_encoder_decoder(tmp_path_factory.mktemp("made") / "source")


@pytest.fixture
def folder(source, tmp_path):
    """The same as faster-whisper has it, for a test to damage."""
    return convert(source, tmp_path / "model")


def parameters(directory, **how):
    return dict(weights.load(directory, **how).named_parameters())


def refused(folder, *words, error=CheckpointError):
    with pytest.raises(error) as caught:
        glmasr.load(folder, device="cpu", dtype="float32")
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000 and all(word in message for word in words), message


def rewrite(folder, change=lambda found: None, kind="float32", source=None, **how):
    """Writes the weights anew, changed in place by `change`."""
    found = model_bin.quantize(model_bin.variables(source), kind)
    change(found)
    (folder / "model.bin").write_bytes(pack(found, **how))


# ---- what is read ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version, kind", [*OLD, *((version, kind) for version in (4, 5, 6) for kind in KINDS)])
def test_every_version_and_type(source, tmp_path, version, kind):
    aliases = {HEAD: EMBEDDING} if version >= 3 else {}
    folder = convert(source, tmp_path / "model", kind, version=version, aliases=aliases)
    ours, theirs = parameters(folder), parameters(source)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        if kind.startswith("int") and name.endswith("weight") and expected.dim() > 1 and "positions" not in name:
            if (
                kind == "int16"
            ):  # one scale for all that is stacked: the largest of a query, key or value is not above 8 here
                assert (ours[name] - expected).abs().max() <= 0.51 * 8 / 2**10, name
            else:
                step = expected.flatten(1).abs().amax(1) / 127
                assert ((ours[name] - expected).flatten(1).abs().amax(1) <= 0.5001 * step).all(), name
        else:
            assert torch.equal(ours[name], expected.to(QUANTIZATIONS[kind]).float()), name
    expected = replace(weights.examine(source).config, alignment_heads=((0, 0),))  # which `convert` adds
    assert weights.examine(folder).config == expected


def test_the_same_texts(source, folder):
    ours, theirs = (glmasr.load(place, device="cpu", dtype="float32") for place in (folder, source))
    for timestamps in (False, True):
        a, b = (
            recognizer.transcribe(speech(3), sample_rate=16_000, timestamps=timestamps) for recognizer in (ours, theirs)
        )
        assert a == b and a.text


def test_half_precision_is_computed_in_another(source, tmp_path):
    folder = convert(source, tmp_path / "model", "float16")
    assert {tensor.dtype for tensor in parameters(folder, dtype=torch.bfloat16).values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in prepare.load(folder, plain=True)[0].parameters()} <= {
        torch.bfloat16,
        torch.float32,
    }
    assert {tensor.dtype for tensor in parameters(folder, dtype=None).values()} == {torch.float16}


@pytest.mark.parametrize("kind", ["int8", "int8_float16", "int8_bfloat16"])
def test_8_bits_stay_8_bits(source, tmp_path, kind):
    folder = convert(source, tmp_path / "model", kind)
    stored = model_bin.quantize(model_bin.variables(source), kind)
    for dtype in ("auto", "int8"):
        model, runtime = prepare.load(folder, device="cpu", dtype=dtype, plain=True)
        assert runtime.linears == "int8"
    numbers = stored["decoder/layer_1/attention/linear_2/weight"]
    assert torch.equal(unpacked(model.decoder.blocks[1].cross.out), numbers)
    attn, stack = model.encoder.blocks[0].attn, stored["encoder/layer_0/self_attention/linear_0/weight"]
    assert torch.equal(unpacked(attn.joined if hasattr(attn, "joined") else attn.query), stack)
    assert glmasr.load(folder).transcribe(speech(1), sample_rate=16_000).how["linears"] == "int8"


def unpacked(linear):
    """The numbers of an Int8Linear, by what it makes of unit vectors."""
    x = torch.eye(linear.in_features)
    with torch.inference_mode():
        bias = linear(torch.zeros(1, linear.in_features)).float()
        return ((linear(x).float() - bias) / linear.scale).T.round().to(torch.int8)


def test_a_model_for_english_alone(source, folder, monkeypatch):
    """TRAP: its lang_ids are wrong, and its tokens for languages mean nothing."""
    vocabulary = weights.examine(folder).config.decoder.vocabulary
    monkeypatch.setattr(ctranslate2_whisper, "_ONE_LANGUAGE", vocabulary)
    put(folder, lang_ids=[1, 2, 3])
    config = weights.examine(folder).config
    assert not config.languages and not config.tasks and not config.several_languages
    assert (
        glmasr.load(folder, device="cpu")
        .transcribe(speech(1), sample_rate=16_000, timestamps=False, guards=False)
        .language
        == "en"
    )


def put(folder, **values):
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


@pytest.mark.parametrize("file", ["vocabulary.json", "vocabulary.txt"])
def test_a_list_of_tokens_in_place_of_a_tokenizer(source, folder, file):
    whole = glmasr.load(folder, device="cpu", dtype="float32")
    tokenizer, size = read_tokenizer(folder), whole.config.decoder.vocabulary
    tokens = sorted(tokenizer._ids, key=tokenizer._ids.get)[:size]
    expected = weights.examine(folder).config
    (folder / file).write_text(
        json.dumps(tokens) if file.endswith("json") else "".join(f"{token}\n" for token in tokens), encoding="utf-8"
    )
    assert read_special(folder) == tokenizer.special
    (folder / "tokenizer.json").unlink()
    found = read_tokenizer(folder)
    assert (
        isinstance(found, TokenList)
        and found.size == size
        and found.special == tokenizer.special == read_special(folder)
    )
    assert all(
        found.decode([number]) == tokenizer.decode([number])
        and found.token_bytes(number) == tokenizer.token_bytes(number)
        for number in range(size)
    )
    assert found.decode([*"好".encode()]) == tokenizer.decode([*"好".encode()]) and found.id("<|zh|>") == tokenizer.id(
        "<|zh|>"
    )
    with pytest.raises(TokenizerError, match="tokenizer.json"):
        found.encode("good")
    put(folder, lang_ids=None)  # which then come from the names
    assert weights.examine(folder).config == expected
    a, b = (
        recognizer.transcribe(speech(3), sample_rate=16_000)
        for recognizer in (glmasr.load(folder, device="cpu", dtype="float32"), whole)
    )
    assert a == b
    put(folder, suppress_ids=None)
    refused(folder, file, "can't say", "tokenizer.json", error=TokenizerError)


def test_what_config_json_leaves_out(folder):
    expected = weights.examine(folder).config
    put(folder, lang_ids=..., alignment_heads=None, suppress_ids=..., suppress_ids_begin=None)
    config = weights.examine(folder).config
    tokenizer = read_tokenizer(folder)
    assert config.languages == expected.languages and config.tasks == expected.tasks
    assert set(config.suppress) >= {tokenizer.id(mark) for mark in "[](){}<>"} | {
        tokenizer.id("<|startoftranscript|>"),
        tokenizer.id("<|transcribe|>"),
    }
    assert not {tokenizer.id(sign) for sign in ".,?!a1"} & set(config.suppress)
    assert config.suppress_first == (tokenizer.id("Ġ"), tokenizer.id("<|endoftranscript|>"))
    put(folder, suppress_ids=[], suppress_ids_begin=[])
    assert weights.examine(folder).config.suppress == () == weights.examine(folder).config.suppress_first


def test_a_head_of_its_own(source, folder):
    """Before version 3 there were no aliases."""
    rewrite(folder, lambda found: found.update({HEAD: found[EMBEDDING].clone()}), source=source, aliases={})
    assert parameters(folder).keys() == parameters(source).keys()
    rewrite(folder, lambda found: found.update({HEAD: found[EMBEDDING] + 1}), source=source, aliases={})
    refused(folder, "model.bin", HEAD, "another one")


def test_aliases_of_other_variables(source, folder):
    """CTranslate2 stores equal variables once."""
    bias = "encoder/layer_1/ffn/layer_norm/beta", "encoder/layer_0/ffn/layer_norm/beta"

    def equal(found):
        found[bias[1]] = found.pop(bias[0])

    rewrite(folder, equal, source=source, aliases={HEAD: EMBEDDING, bias[0]: bias[1]})
    model = parameters(folder)
    assert torch.equal(model["encoder.blocks.1.mlp_norm.bias"], model["encoder.blocks.0.mlp_norm.bias"])
    rewrite(folder, equal, source=source, aliases=[("a", HEAD), (HEAD, "a")])
    refused(folder, "alias a stands for decoder/projection/weight, which is not in front of it")


def test_safetensors_count_where_both_are(source, folder, tmp_path):
    for file in ("model.safetensors", "config.json", "generation_config.json"):
        (folder / file).write_bytes((source / file).read_bytes())
    (folder / "model.bin").write_bytes(b"broken")
    assert parameters(folder).keys() == parameters(source).keys()


def test_quantize_takes_it(source, tmp_path):
    folder = convert(source, tmp_path / "model", "float16")
    quantize.quantize_directory(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "model.bin").exists()
    assert glmasr.load(tmp_path / "out", device="cpu").config == glmasr.load(folder, device="cpu").config


def test_the_report(source, tmp_path, capsys):
    assert check.main([str(convert(source, tmp_path / "model", "int8_float16"))]) == 0
    said = capsys.readouterr().out
    assert (
        "whisper, CTranslate2: model.bin" in said
        and "tensors I8" in said
        and "tensors F16" in said
        and "overflows" not in said
    )
    assert "decoder/layer_0/attention/linear_1/bias[0/2]" in said and said.endswith("this package can run it\n")
    (tmp_path / "model" / "model.bin").write_bytes((tmp_path / "model" / "model.bin").read_bytes()[:-9])
    assert check.main([str(tmp_path / "model")]) == 1 and "not downloaded whole" in capsys.readouterr().out


def test_only_the_header_is_read(folder, source):
    """3 GB that are not there: nothing of them is read before it is clear that nobody wants them."""
    hole = model_bin.string("hole") + struct.pack("<BIBI", 1, 750_000_000, 0, 3_000_000_000)
    with open(folder / "model.bin", "wb") as file:
        file.write(pack(model_bin.variables(source), version=6, more=[hole], aliases={})[:-4])
        file.seek(3_000_000_000, 1)
        file.write(struct.pack("<I", 0))
    refused(folder, "tensor hole is unexpected")


# ---- what is refused ------------------------------------------------------------------------------------------------------


def drop(name):
    return lambda found: found.pop(name)


def shape(name, *sizes):
    return lambda found: found.update({name: torch.zeros(sizes)})


def number(name, value, dtype=torch.int8):
    return lambda found: found.update({name: torch.tensor(value, dtype=dtype)})


QKV, CROSS = "encoder/layer_0/self_attention/linear_0", "decoder/layer_0/attention/linear_1"


@pytest.mark.parametrize(
    "change, how, words",
    [
        (drop("decoder/layer_norm/beta"), {}, ["tensor decoder/layer_norm/beta is missing"]),
        (drop(f"{QKV}/weight"), {}, [f"tensor {QKV}/weight[0/3] is missing"]),
        (drop("encoder/num_heads"), {}, ["encoder/num_heads", "convert the model again"]),
        (drop("encoder/conv1/weight"), {}, ["encoder/conv1/weight", "is missing"]),
        (drop("decoder/activation"), {}, ["decoder/activation is missing", "3 only"]),
        (number("decoder/activation", 1), {}, ["decoder/activation is 1", "3 only"]),
        (number("decoder/pre_norm", 0), {}, ["decoder/pre_norm is 0"]),
        (number("decoder/alibi", 1), {}, ["decoder/alibi is 1", "0 only"]),
        (number("decoder/shiny", 1), {}, ["tensor decoder/shiny is unexpected"]),
        (number("encoder/num_heads", -2, torch.int16), {}, ["heads is -2"]),
        (number("encoder/num_heads", 3, torch.int16), {}, ["an even multiple of the number of heads, 3"]),
        (number("encoder/num_heads", 0.5, torch.float32), {}, ["heads is 0.5"]),
        (shape("encoder/num_heads", 2), {}, ["encoder/num_heads is missing or no number"]),
        (shape("decoder/pre_norm", 1), {}, ["decoder/pre_norm is no number"]),
        (
            shape("decoder/layer_norm/beta", 7),
            {},
            ["decoder/layer_norm/beta has shape [7]; the other tensors ask for [16]"],
        ),
        (shape(f"{QKV}/weight", 47, 16), {}, [f"{QKV}/weight has shape [47, 16]", "3 parts"]),
        (shape(f"{QKV}/weight", 0, 16), {}, [f"{QKV}/weight[0/3] has shape [0, 16]"]),
        (shape("encoder/conv1/weight", 16, 80), {}, ["encoder/conv1/weight has shape [16, 80], expected 3 axes"]),
        (shape("decoder/embeddings/weight", 0, 16), {}, ["vocabulary is 0"]),
        (shape("encoder/layer_7/ffn/linear_0/weight", 2, 2), {}, ["tensor encoder/layer_3/"]),
        (shape("encoder/layer_999999999/x", 2, 2), {}, ["tensor encoder/layer_3/"]),
        (lambda found: found[f"{QKV}/bias"][16:32].fill_(0.1), {}, [f"{QKV}/bias[1/3] is not zero"]),
        (lambda found: found[f"{CROSS}/bias"][3:4].fill_(float("nan")), {}, [f"{CROSS}/bias[0/2] is not zero"]),
        (
            lambda found: found.update({f"{QKV}/weight": torch.zeros(48, 16, dtype=torch.int32)}),
            {},
            [f"{QKV}/weight[0/3] is of type I32"],
        ),
        (shape(f"{QKV}/weight_scale", 48), {}, [f"tensor {QKV}/weight_scale is unexpected"]),
        (drop(f"{QKV}/weight_scale"), {"kind": "int8"}, [f"{QKV}/weight", "needs", "F32 of shape [48]"]),
        (shape(f"{QKV}/weight_scale", 47), {"kind": "int8"}, [f"{QKV}/weight", "needs", "which is F32 of shape [47]"]),
        (
            lambda found: found[f"{QKV}/weight_scale"].fill_(0),
            {"kind": "int8"},
            [f"scales of {QKV}/weight[0/3]", "above 0"],
        ),
        (
            lambda found: found["decoder/embeddings/weight_scale"].fill_(float("nan")),
            {"kind": "int8"},
            ["scales of decoder/embeddings/weight"],
        ),
        (drop(f"{QKV}/weight_scale"), {"kind": "int16"}, [f"{QKV}/weight", "needs", "F32 of shape []"]),
        (number(f"{QKV}/weight_scale", -1.0, torch.float32), {"kind": "int16"}, [f"scales of {QKV}/weight[0/3]"]),
        (number(EMBEDDING, 1), {}, [EMBEDDING, "expected 2 axes"]),
    ],
)
def test_other_variables(source, folder, change, how, words):
    rewrite(folder, change, source=source, **how)
    refused(folder, str(folder), *words)


def of(*parts, aliases=b"\0\0\0\0"):
    """A file of version 6 with one or more variables, or what is said to be some."""
    return (
        struct.pack("<I", 6)
        + model_bin.string("WhisperSpec")
        + struct.pack("<II", 3, len(parts))
        + b"".join(parts)
        + aliases
    )


ONE = variable("a", [2], 1, b"xx")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", ["ends at byte 0"]),
        (b"\6\0\0", ["ends at byte 3, expected at least 4"]),
        (b"PK\3\4" + bytes(100), ["b'PK\\x03\\x04'", "pickles of PyTorch", "not read here"]),
        (b"\x80\2}q\0." + bytes(100), ["pickles of PyTorch"]),
        (struct.pack("<I", 7), ["a version from 1 to 6"]),
        (struct.pack("<I", 0), ["a version from 1 to 6"]),
        (struct.pack("<I", 6) + b"\xff\xffWhisper", ["ends at byte 13, expected at least 65541"]),
        (
            struct.pack("<I", 6) + model_bin.string("TransformerSpec") + struct.pack("<II", 7, 0),
            ["holds a TransformerSpec, revision 7"],
        ),
        (
            struct.pack("<I", 6) + model_bin.string("WhisperSpec") + struct.pack("<II", 4, 0),
            ["WhisperSpec, revision 4"],
        ),
        (
            struct.pack("<I", 6) + model_bin.string(b"WhisperSpec") + struct.pack("<II", 3, 0),
            ["expected UTF-8 with a NUL at its end"],
        ),
        (
            struct.pack("<I", 6) + model_bin.string("WhisperSpec") + struct.pack("<II", 3, 2**32 - 1),
            ["4294967295 variables are announced"],
        ),
        (of(variable(b"", [2], 1, b"xx")), ["the name of variable 0"]),
        (of(variable(b"\0", [2], 1, b"xx")), ["the name of variable 0"]),
        (of(variable(b"a\0b\0", [2], 1, b"xx")), ["the name of variable 0"]),
        (of(variable(b"\xff\0", [2], 1, b"xx")), ["expected UTF-8"]),
        (of(ONE, ONE), ["variable a is there twice"]),
        (of(variable("a", [1] * 9, 1, b"x")), ["9 axes, expected at most 8"]),
        (of(variable("a", [2], 6, b"xx")), ["of type 6, expected 0 to 5"]),
        (of(variable("a", [3], 1, b"xx")), ["shape [3] and type I8 has 2 bytes, expected 3"]),
        (of(variable("a", [2**32 - 1] * 8, 1, b"xx")), ["has 2 bytes"]),
        (of(variable("a", [2**31, 2**31, 4], 1, b"")), ["has 0 bytes", str(2**64)]),  # 0, where products are of 64 bits
        (of(variable("a", [100], 1, b"xx", announced=100)), ["lies at bytes", "to 140 of 46"]),
        (of(variable("a", [2**32 - 1], 1, b"xx", announced=2**32 - 1)), ["lies at bytes"]),
        (of(ONE) + b"x", ["its variables end at byte"]),
        (of(ONE, aliases=b""), ["it ends at byte"]),
        (of(ONE, aliases=struct.pack("<I", 2**32 - 1)), ["4294967295 aliases"]),
        (
            of(ONE, aliases=struct.pack("<I", 1) + model_bin.string("a") + model_bin.string("a")),
            ["alias a is there twice, or a variable"],
        ),
        (
            of(ONE, aliases=struct.pack("<I", 1) + model_bin.string("b") + model_bin.string("b")),
            ["alias b stands for b, which is not in front of it"],
        ),
        (
            of(
                ONE,
                aliases=struct.pack("<I", 2)
                + model_bin.string("b")
                + model_bin.string("c")
                + model_bin.string("c")
                + model_bin.string("b"),
            ),
            ["alias b stands for c"],
        ),
        (
            of(ONE, aliases=struct.pack("<I", 2) + 2 * (model_bin.string("b") + model_bin.string("a"))),
            ["alias b is there twice"],
        ),
        (of(ONE), ["variable decoder/activation is missing"]),
        (
            struct.pack("<II", 1, 1) + model_bin.string("a") + struct.pack("<BIBI", 1, 2, 3, 2) + b"xxxxxx",
            ["of type 3, expected 1, 2 or 4 bytes"],
        ),
    ],
)
def test_damaged_files(folder, content, words):
    (folder / "model.bin").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        ctranslate2_whisper.tensors(ctranslate2.read_header(folder / "model.bin"))
    assert all(word in str(caught.value) for word in ["model.bin", *words]), caught.value
    refused(folder)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"shiny": 1}, ["unknown key 'shiny'"]),
        ({"model_type": "whisper"}, ["unknown key 'model_type'"]),
        ({"lang_ids": 5}, ["lang_ids is 5, expected a list"]),
        ({"suppress_ids": {}}, ["suppress_ids is {}"]),
        ({"suppress_ids": [10**9]}, ["suppress: id 1000000000"]),
        ({"suppress_ids": ["a"]}, ["suppress: id 'a'"]),
        ({"lang_ids": [7]}, ["lang_ids has 7", "another model"]),
        ({"lang_ids": [[]]}, ["lang_ids has []"]),
        ({"lang_ids": ["zh"]}, ["lang_ids has 'zh'"]),
    ],
)
def test_other_configurations(folder, values, words):
    put(folder, **values)
    refused(folder, "config.json" if "suppress" not in words[0] or "{}" in words[0] else str(folder), *words)


def test_other_tokenizers(folder):
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for old, new, words in [
        ("<|startoftranscript|>", "<|begin|>", ["no token '<|startoftranscript|>'"]),
        ("<|endoftranscript|>", "<|over|>", ["no token '<|endoftext|>'"]),
        ("<|nospeech|>", "<|none|>", None),
    ]:
        (folder / "tokenizer.json").write_text(json.dumps(data).replace(old, new), encoding="utf-8")
        refused(folder, *words) if words else glmasr.load(folder, device="cpu")
    names = {token["content"]: token for token in data["added_tokens"]}
    names["<|nospeech|>"]["id"], names["<|en|>"]["id"] = names["<|en|>"]["id"], names["<|nospeech|>"]["id"]
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    refused(folder, "<|nospeech|>", "neighbors")
    (folder / "tokenizer.json").unlink()
    refused(folder, "tokenizer.json", "vocabulary.json", error=TokenizerError)
    for content, words in [("{}", ["a list of"]), ("[1]", ["a list of"]), ("[", ["not valid JSON"])]:
        (folder / "vocabulary.json").write_text(content)
        refused(folder, "vocabulary.json", *words, error=TokenizerError)
    (folder / "vocabulary.json").unlink()
    (folder / "vocabulary.txt").write_bytes(b"\xff\n")
    refused(folder, "vocabulary.txt", "not UTF-8", error=TokenizerError)


def test_another_file_since(source, folder):
    """Weights that are read later come from the file that was checked."""
    contents = weights.examine(folder)
    files = Files(contents.headers)
    name = contents.names["decoder.norm.weight"]
    before = files.read(folder / "model.bin", name)
    assert torch.equal(before, parameters(source)["decoder.norm.weight"])
    files = Files(contents.headers)
    (folder / "model.bin").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="another file"):
        files.read(folder / "model.bin", name)


@pytest.mark.slow
def test_damage_at_random(source, folder):
    """Whatever a file has become, it is loaded or refused with one line."""
    whole, random_ = (folder / "model.bin").read_bytes(), random.Random(5)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(random_.choice((1, 1, 3))):
            place = random_.randrange(len(data)) if random_.random() < 0.2 else random_.randrange(400)
            data[place] = random_.randrange(256)
        if random_.random() < 0.1:
            data = data[: random_.randrange(len(data))]
        (folder / "model.bin").write_bytes(data)
        try:
            weights.load(folder)
        except GlmAsrError as error:
            assert "\n" not in str(error)
