"""Tiny random checkpoints of both families, what damages them, and the names and shapes of the published tensors."""

import json
import struct
from pathlib import Path

import torch

from glmasr import weights
from glmasr.checkpoint.vocabulary import ALPHABET
from glmasr.config import (
    CrossDecoderConfig,
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    GlmAsrConfig,
    SinusoidalEncoderConfig,
)
from glmasr.model import EncoderDecoder, GlmAsr

# ---- GLM-ASR ------------------------------------------------------------------------------------------------------------

WINDOW, LONGEST = 2, 5  # seconds: two whole windows fit, 4 s
SPECIAL = (
    "<|endoftext|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|pad|>",
    "<|begin_of_audio|>",
    "<|end_of_audio|>",
)
# How strongly the random model wants each script: unforbidden, most of what it writes is kana, then Han, then Latin.
HAN = "語零一二三四五六七八九好大"
WISHES = {"いのはをにでときたもこ": 9, HAN: 4, "abcdefghijklmnopqrstuvwxyz": 2, "лжфщ": 4, "가나다라": 4}


def make_tokenizer() -> dict:
    """Every byte, every character of WISHES, and, as trained vocabularies have them, what those characters begin
    with."""
    merges = []
    for character in "".join(WISHES):
        code = "".join(ALPHABET[byte] for byte in character.encode())
        merges += [(code[:n], code[n]) for n in range(1, len(code)) if (code[:n], code[n]) not in merges]
    tokens = [*ALPHABET, *(left + right for left, right in merges)]
    return {
        "added_tokens": [
            {
                "id": len(tokens) + n,
                "content": name,
                "special": True,
                "normalized": False,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
            }
            for n, name in enumerate(SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "vocab": {token: n for n, token in enumerate(tokens)},
            "merges": [list(m) for m in merges],
        },
    }


def make_checkpoint(directory: Path, seed: int = 5) -> Path:
    """A tiny random model in the published format, whose answers depend on what it hears and are not all alike."""
    file = make_tokenizer()
    vocabulary, ids = file["model"]["vocab"], {token["content"]: token["id"] for token in file["added_tokens"]}
    config = GlmAsrConfig(
        encoder=EncoderConfig(bands=80, width=16, layers=1, heads=2, key_heads=2, head_size=8, hidden=64, rotary=4),
        decoder=DecoderConfig(
            vocabulary=len(vocabulary) + len(ids),
            width=24,
            layers=2,
            heads=2,
            key_heads=1,
            head_size=12,
            hidden=32,
            positions=512,
        ),
        audio_token=ids["<|pad|>"],
        stop=(ids["<|endoftext|>"], ids["<|user|>"], ids["<|observation|>"]),
        window_seconds=WINDOW,
        longest_seconds=LONGEST,
    )
    model, generator = GlmAsr(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() > 1:
                weight.copy_((6 if "projector" in name else 2) * noise / weight[0].numel() ** 0.5)
            else:
                weight.copy_(0.1 * noise + ("norm" in name and name.endswith("weight")))
        for characters, strength in WISHES.items():
            for character in characters:
                model.decoder.head.weight[vocabulary["".join(ALPHABET[byte] for byte in character.encode())]] *= (
                    strength
                )
        model.decoder.head.weight[len(vocabulary) :] = 0  # no special token is ever the likeliest
    weights.save(model, directory, torch.float32)
    (directory / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    return directory


# Without a tokenizer, for tests of the weights alone.
TINY = GlmAsrConfig(
    encoder=EncoderConfig(bands=80, width=16, layers=2, heads=2, key_heads=2, head_size=8, hidden=64, rotary=4),
    decoder=DecoderConfig(
        vocabulary=48, width=32, layers=2, heads=4, key_heads=2, head_size=8, hidden=40, positions=512
    ),
    audio_token=5,
    stop=(1, 3, 4),
    window_seconds=2,
)

# ---- the encoder-decoder ------------------------------------------------------------------------------------------------

CONVOLUTIONS = ((6, 10, 5), (8, 8, 4), (8, 16, 16))


def make_encoder_decoder(
    directory,
    convolutions=(),
    width=16,
    layers=(3, 2),
    seed=18,
    loud=1.0,
    languages=("zh", "yue", "en"),
    tasks=("transcribe",),
):
    """A tiny random model of the encoder-decoder family, with the byte-level vocabulary of the other. `loud` says how
    sure it is."""
    file = make_tokenizer()
    end = len(file["model"]["vocab"])
    names = [
        "endoftranscript",
        "startoftranscript",
        *languages,
        *tasks,
        "nospeech",
        "notimestamps",
        *(f"{step / 50:.2f}" for step in range(101)),
    ]
    ids = {name: end + n for n, name in enumerate(names)}
    file["added_tokens"] = [{**file["added_tokens"][0], "id": id, "content": f"<|{name}|>"} for name, id in ids.items()]
    config = EncoderDecoderConfig(
        SinusoidalEncoderConfig(
            width=width, layers=layers[0], heads=2, hidden=24, positions=100, convolutions=convolutions
        ),
        CrossDecoderConfig(
            vocabulary=end + len(names), width=width, layers=layers[1], heads=4, hidden=20, positions=64
        ),
        window_seconds=2,
        start=end + 1,
        end=end,
        languages={name: ids[name] for name in languages},
        tasks={name: ids[name] for name in tasks},
        no_timestamps=ids["notimestamps"],
        suppress=(3, 5),
        suppress_first=(32, end),
    )
    model, generator = EncoderDecoder(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.requires_grad:
                weight.copy_(
                    torch.randn(weight.shape, generator=generator) * (1.0 if weight.dim() > 1 else 0.1)
                    + ("norm" in name and name.endswith("weight"))
                )
        model.decoder.embed.weight *= loud
        model.decoder.embed.weight[end] *= 2  # so that answers end
    weights.save(model, directory, torch.float32)
    (directory / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    return directory


# ---- damage -------------------------------------------------------------------------------------------------------------


def damage(directory, file):
    """Makes one file of a checkpoint unusable in a way that its own format allows or not; returns what the error must
    name."""
    path = directory / file.split(":")[0]
    if file == "model.safetensors:short":
        path.write_bytes(path.read_bytes()[:-8])
    elif file == "tokenizer.json:marker":
        path.write_text(path.read_text(encoding="utf-8").replace("<|begin_of_audio|>", "<|begin|>"), encoding="utf-8")
        return "<\\|begin_of_audio\\|>"
    elif file == "tokenizer.json:other":  # markers whose ids the model does not have
        data = json.loads(path.read_text(encoding="utf-8"))
        for token in data["added_tokens"]:
            token["id"] += 1000
        path.write_text(json.dumps(data), encoding="utf-8")
    elif file == "tokenizer.json:gone":
        path.unlink()
    else:
        path.write_text("{", encoding="utf-8")
    return path.name


def raw(folder, header, data=b"", length=None):
    """Writes a safetensors file from its parts: header a dict, text or bytes; `length` as announced."""
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(first, last, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


# ---- the published tensors ----------------------------------------------------------------------------------------------
# Name -> shape of everything in the published files, `{}` for the layer; "w" and "b" stand for weight and bias.

BLOCK = {
    "q_proj": ("w 1280 1280", "b 1280"),
    "k_proj": ("w 1280 1280",),
    "v_proj": ("w 1280 1280", "b 1280"),
    "out": ("w 1280 1280", "b 1280"),
    "fc1": ("w 5120 1280", "b 5120"),
    "fc2": ("w 1280 5120", "b 1280"),
    "norm 1": ("w 1280", "b 1280"),
    "norm 2": ("w 1280", "b 1280"),
}
LLAMA = {
    "input_layernorm": "2048",
    "post_attention_layernorm": "2048",
    "self_attn.q_proj": "2048 2048",
    "self_attn.k_proj": "512 2048",
    "self_attn.v_proj": "512 2048",
    "self_attn.o_proj": "2048 2048",
    "mlp.gate_proj": "6144 2048",
    "mlp.up_proj": "6144 2048",
    "mlp.down_proj": "2048 6144",
}


def published(tower, block, norm, linears, language, head, dropped=()):
    """The tensors of a published format: name -> shape."""

    def put(module, *leaves):
        for leaf in leaves:
            kind, *shape = leaf.split()
            tensors[f"{module}.{'weight' if kind == 'w' else 'bias'}"] = [int(n) for n in shape]

    tensors = {}
    put(f"{tower}.conv1", "w 1280 128 3", "b 1280")
    put(f"{tower}.conv2", "w 1280 1280 3", "b 1280")
    for layer in range(32):
        for part, leaves in BLOCK.items():
            put(f"{tower}.layers.{layer}.{block[part]}", *leaves)
    put(norm, "w 1280", "b 1280")
    put(linears[0], "w 4096 5120", "b 4096")
    put(linears[1], "w 2048 4096", "b 2048")
    put(f"{language}.embed_tokens", "w 59264 2048")
    for layer in range(28):
        for part, shape in LLAMA.items():
            put(f"{language}.layers.{layer}.{part}", f"w {shape}")
    put(f"{language}.norm", "w 2048")
    put(head, "w 59264 2048")
    return tensors | dict(dropped)


def attention(out):
    return {f"{letter}_proj": f"self_attn.{letter}_proj" for letter in "qkv"} | {"out": f"self_attn.{out}"}


NEW = attention("o_proj") | {
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "norm 1": "input_layernorm",
    "norm 2": "post_attention_layernorm",
}
OLD = attention("out_proj") | {
    "fc1": "fc1",
    "fc2": "fc2",
    "norm 1": "self_attn_layer_norm",
    "norm 2": "final_layer_norm",
}
PUBLISHED = {
    "transformers": published(
        "audio_tower",
        NEW,
        "audio_tower.norm",
        ("multi_modal_projector.linear_1", "multi_modal_projector.linear_2"),
        "language_model.model",
        "language_model.lm_head",
    ),
    "original": published(
        "audio_encoder.whisper",
        OLD,
        "audio_encoder.layer_norm",
        ("audio_encoder.adapting.0", "audio_encoder.adapting.2"),
        "model",
        "lm_head",
        {
            "audio_encoder.proj.weight": [2048, 1280],
            "audio_encoder.proj.bias": [2048],
            "audio_encoder.whisper.embed_positions.weight": [1500, 1280],
            "audio_encoder.audio_bos_eos_token.weight": [2, 2048],
        },
    ),
}
