"""A writer for CTranslate2's `model.bin`, in every version of its layout and every type: see
`glmasr/checkpoint/ctranslate2.py` for the former."""

import json
import shutil
import struct
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

NUMBERS = {torch.float32: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.float16: 4, torch.bfloat16: 5}
QUANTIZATIONS = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.float32,
    "int8_float32": torch.float32,
    "int8_float16": torch.float16,
    "int8_bfloat16": torch.bfloat16,
    "int16": torch.float32,
}  # -> the type of what isn't quantized
HEAD, EMBEDDING = "decoder/projection/weight", "decoder/embeddings/weight"


def variables(folder: Path) -> dict[str, Tensor]:
    """Of a Whisper as Transformers writes it, what CTranslate2's converter makes of it."""
    theirs, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    found = {
        "decoder/activation": torch.tensor(3, dtype=torch.int8),
        "decoder/alibi": torch.tensor(0, dtype=torch.int8),
        "decoder/alignment_heads": torch.tensor(1, dtype=torch.int16),
        "decoder/alignment_layer": torch.tensor(-1, dtype=torch.int16),
        "decoder/pre_norm": torch.tensor(1, dtype=torch.int8),
        "decoder/scale_embeddings": torch.tensor(0, dtype=torch.int8),
        "decoder/start_from_zero_embedding": torch.tensor(0, dtype=torch.int8),
        EMBEDDING: theirs["model.decoder.embed_tokens.weight"],
    }

    def norm(name, source):
        found[f"{name}/gamma"], found[f"{name}/beta"] = theirs[f"{source}.weight"], theirs[f"{source}.bias"]

    def linear(name, *sources):
        weights = [theirs[f"{source}.weight"] for source in sources]
        found[f"{name}/weight"] = torch.cat(weights)
        found[f"{name}/bias"] = torch.cat(
            [theirs.get(f"{source}.bias", torch.zeros(len(weight))) for source, weight in zip(sources, weights)]
        )

    for tower in ("encoder", "decoder"):
        found[f"{tower}/num_heads"] = torch.tensor(config[f"{tower}_attention_heads"], dtype=torch.int16)
        found[f"{tower}/position_encodings/encodings"] = theirs[f"model.{tower}.embed_positions.weight"]
        norm(f"{tower}/layer_norm", f"model.{tower}.layer_norm")
        for layer in range(config[f"{tower}_layers"]):
            name, source = f"{tower}/layer_{layer}", f"model.{tower}.layers.{layer}"
            linear(f"{name}/self_attention/linear_0", *(f"{source}.self_attn.{letter}_proj" for letter in "qkv"))
            linear(f"{name}/self_attention/linear_1", f"{source}.self_attn.out_proj")
            norm(f"{name}/self_attention/layer_norm", f"{source}.self_attn_layer_norm")
            if tower == "decoder":
                linear(f"{name}/attention/linear_0", f"{source}.encoder_attn.q_proj")
                linear(f"{name}/attention/linear_1", f"{source}.encoder_attn.k_proj", f"{source}.encoder_attn.v_proj")
                linear(f"{name}/attention/linear_2", f"{source}.encoder_attn.out_proj")
                norm(f"{name}/attention/layer_norm", f"{source}.encoder_attn_layer_norm")
            linear(f"{name}/ffn/linear_0", f"{source}.fc1")
            linear(f"{name}/ffn/linear_1", f"{source}.fc2")
            norm(f"{name}/ffn/layer_norm", f"{source}.final_layer_norm")
    for conv in ("conv1", "conv2"):
        found[f"encoder/{conv}/weight"], found[f"encoder/{conv}/bias"] = (
            theirs[f"model.encoder.{conv}.{leaf}"] for leaf in ("weight", "bias")
        )
    return found


def quantize(found: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """As ctranslate2/specs/model_spec.py, `_quantize`: linears, convolutions and embeddings; all others in the type
    that goes with it."""
    result = {}
    for name, tensor in found.items():
        if kind.startswith("int") and name.endswith("/weight"):
            rows = tensor.flatten(1)
            if kind == "int16":
                scale = 2**10 / rows.abs().max()
                result[name] = (tensor * scale).round().clamp(-(2**15), 2**15 - 1).to(torch.int16)
            else:
                scale = 127 / torch.where(rows.abs().amax(1) == 0, 127.0, rows.abs().amax(1))
                result[name] = (rows * scale[:, None]).round().to(torch.int8).view(tensor.shape)
            result[f"{name}_scale"] = scale.float()
        else:
            result[name] = tensor.to(QUANTIZATIONS[kind]) if tensor.dim() else tensor
    return result


def string(text) -> bytes:
    data = text if isinstance(text, bytes) else text.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def content(tensor: Tensor) -> bytes:
    return (
        tensor.contiguous().view(torch.uint8).numpy().tobytes()
        if tensor.dim()
        else bytes(tensor[None].view(torch.uint8).tolist())
    )


def variable(name, shape, number: int, data: bytes, announced: int | None = None) -> bytes:
    """Of version 4 on."""
    return (
        string(name)
        + struct.pack(f"<B{len(shape)}IBI", len(shape), *shape, number, len(data) if announced is None else announced)
        + data
    )


def pack(
    found: dict[str, Tensor],
    aliases={HEAD: EMBEDDING},
    version: int = 6,
    kind: str = "WhisperSpec",
    revision: int = 3,
    more=(),
    count=None,
) -> bytes:
    """The file. `more`: variables as `variable` gives them, behind the others; `count`: what is announced."""
    parts = [struct.pack("<I", version)]
    if version >= 2:
        parts += [string(kind), struct.pack("<I", revision)]
    parts.append(struct.pack("<I", len(found) + len(more) if count is None else count))
    for name, tensor in sorted(found.items()):
        data = content(tensor)
        if version >= 4:
            parts.append(variable(name, tensor.shape, NUMBERS[tensor.dtype], data))
        else:
            item = tensor.element_size()
            parts.append(
                string(name)
                + struct.pack(f"<B{tensor.dim()}IBI", tensor.dim(), *tensor.shape, item, len(data) // item)
                + data
            )
    parts += more
    if version >= 3:
        aliases = list(aliases.items()) if isinstance(aliases, dict) else list(aliases)
        parts += [struct.pack("<I", len(aliases)), *(string(alias) + string(name) for alias, name in aliases)]
    return b"".join(parts)


def convert(source: Path, out: Path, kind: str = "float32", **how) -> Path:
    """A directory as faster-whisper has it, from one as Transformers has it."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.bin").write_bytes(pack(quantize(variables(source), kind), **how))
    generation = json.loads((source / "generation_config.json").read_text())
    (out / "config.json").write_text(
        json.dumps(
            {
                "alignment_heads": [[0, 0]],
                "lang_ids": sorted(generation.get("lang_to_id", {}).values()),
                "suppress_ids": generation["suppress_tokens"],
                "suppress_ids_begin": generation["begin_suppress_tokens"],
            }
        )
    )
    shutil.copy(source / "tokenizer.json", out)
    shutil.copy(source / "preprocessor_config.json", out)
    return out
