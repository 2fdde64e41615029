"""What tensors of published files are called: a table for each layout, our module on the left, theirs on the right.

`{}` is the number of the layer. Every tensor of a file is used once, or ignored by name.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from . import ctranslate2_whisper

_ATTENTION = {
    "attn.query": "self_attn.q_proj",
    "attn.key": "self_attn.k_proj",
    "attn.value": "self_attn.v_proj",
    "attn.out": "self_attn.o_proj",
}
_NORMS = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_LLAMA_BLOCK = _ATTENTION | _NORMS | {"mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}
_ENCODER_BLOCK = _ATTENTION | _NORMS | {"mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
_WHISPER_BLOCK = _ATTENTION | {
    "attn.out": "self_attn.out_proj",
    "attn_norm": "self_attn_layer_norm",
    "mlp_norm": "final_layer_norm",
    "mlp.up": "fc1",
    "mlp.down": "fc2",
}
_CROSS_BLOCK = _WHISPER_BLOCK | {
    "cross_norm": "encoder_attn_layer_norm",
    "cross.query": "encoder_attn.q_proj",
    "cross.key": "encoder_attn.k_proj",
    "cross.value": "encoder_attn.v_proj",
    "cross.out": "encoder_attn.out_proj",
}


def _table(
    tower: str, block: dict[str, str], norm: str, projector: tuple[str, ...], language: str, head: str
) -> dict[str, str]:
    return (
        {"encoder.frontend.conv1": f"{tower}.conv1", "encoder.frontend.conv2": f"{tower}.conv2", "encoder.norm": norm}
        | {f"encoder.blocks.{{}}.{ours}": f"{tower}.layers.{{}}.{theirs}" for ours, theirs in block.items()}
        | {"projector.up": projector[0], "projector.down": projector[1]}
        | {"decoder.embed": f"{language}.embed_tokens", "decoder.norm": f"{language}.norm", "decoder.head": head}
        | {f"decoder.blocks.{{}}.{ours}": f"{language}.layers.{{}}.{theirs}" for ours, theirs in _LLAMA_BLOCK.items()}
    )


def _whisper_table(prefix: str) -> dict[str, str]:
    # `frontend.layers` and `frontend.project` are the waveform frontend, whose names are ours: none is published.
    table = (
        {
            "encoder.frontend.conv1": "encoder.conv1",
            "encoder.frontend.conv2": "encoder.conv2",
            "encoder.frontend.layers.{}.conv": "encoder.frontend.{}.conv",
            "encoder.frontend.layers.{}.norm": "encoder.frontend.{}.norm",
            "encoder.frontend.project": "encoder.frontend.project",
            "encoder.positions": "encoder.embed_positions.weight",
            "encoder.norm": "encoder.layer_norm",
            "decoder.embed": "decoder.embed_tokens",
            "decoder.positions": "decoder.embed_positions",
            "decoder.norm": "decoder.layer_norm",
        }
        | {f"encoder.blocks.{{}}.{ours}": f"encoder.layers.{{}}.{theirs}" for ours, theirs in _WHISPER_BLOCK.items()}
        | {f"decoder.blocks.{{}}.{ours}": f"decoder.layers.{{}}.{theirs}" for ours, theirs in _CROSS_BLOCK.items()}
    )
    return {ours: prefix + theirs for ours, theirs in table.items()}


@dataclass(frozen=True)
class Format:
    """A layout of published files. `table`: our names -> theirs; `ignored`: those of theirs that aren't used."""

    table: dict[str, str]
    ignored: tuple[str, ...] = ()
    interleaved: bool = False  # the encoder's rotary dims lie as pairs (0, 1), (2, 3), ...: see `_half_split`


_LINEARS = ("multi_modal_projector.linear_1", "multi_modal_projector.linear_2")

FORMATS = {
    # What Transformers writes, and what zai-org published from 2025-12-27 on.
    "transformers": Format(
        _table(
            "audio_tower",
            _ENCODER_BLOCK,
            "audio_tower.norm",
            _LINEARS,
            "language_model.model",
            "language_model.lm_head",
        )
    ),
    # The names that Transformers >= 5.14 uses in memory: a state_dict() that a user saved.
    "transformers in memory": Format(
        _table(
            "model.audio_tower",
            _ENCODER_BLOCK,
            "model.audio_tower.norm",
            tuple(f"model.{name}" for name in _LINEARS),
            "model.language_model",
            "lm_head",
        )
    ),
    # The remote-code format, revision 91967ea. The ignored tensors were left over from its training.
    "original": Format(
        _table(
            "audio_encoder.whisper",
            _WHISPER_BLOCK,
            "audio_encoder.layer_norm",
            ("audio_encoder.adapting.0", "audio_encoder.adapting.2"),
            "model",
            "lm_head",
        ),
        ignored=(
            "audio_encoder.proj.weight",
            "audio_encoder.proj.bias",
            "audio_encoder.whisper.embed_positions.weight",
            "audio_encoder.audio_bos_eos_token.weight",
        ),
        interleaved=True,
    ),
    # Early converters renamed the original's tensors and left their values as they were: still interleaved.
    "draft": Format(
        _table(
            "audio_tower",
            _WHISPER_BLOCK,
            "audio_tower.layer_norm",
            _LINEARS,
            "language_model.model",
            "language_model.lm_head",
        ),
        ignored=("audio_tower.embed_positions.weight",),
        interleaved=True,
    ),
    "draft, new names": Format(
        _table(
            "audio_tower",
            _ENCODER_BLOCK | {"attn.out": "self_attn.out_proj"},
            "audio_tower.norm",
            _LINEARS,
            "language_model.model",
            "language_model.lm_head",
        ),
        ignored=("audio_tower.embed_positions.weight",),
        interleaved=True,
    ),
    # Whisper as Transformers writes it. The head is always the embedding; some files hold it once more.
    "whisper": Format(_whisper_table("model."), ignored=("proj_out.weight",)),
    "whisper, no prefix": Format(_whisper_table(""), ignored=("proj_out.weight",)),  # a saved `WhisperModel`
    # For faster-whisper. `ctranslate2_whisper.ignored` says what is ignored.
    "whisper, CTranslate2": Format(ctranslate2_whisper.TABLE),
}


def detect(names: Collection[str]) -> str:
    """Which of FORMATS a set of tensor names is."""
    if any(name.startswith(("encoder/", "decoder/")) for name in names):
        return "whisper, CTranslate2"
    if any(".encoder_attn." in name for name in names):
        return "whisper" if any(name.startswith("model.") for name in names) else "whisper, no prefix"
    if any(name.startswith("audio_encoder.") for name in names):
        return "original"
    if any(name.startswith("model.audio_tower.") for name in names):
        return "transformers in memory"
    if any(name.startswith("audio_tower.") and ".out_proj." in name for name in names):
        return "draft" if any(".self_attn_layer_norm." in name for name in names) else "draft, new names"
    return "transformers"


def their_name(table: dict[str, str], ours: str) -> str:
    """`encoder.blocks.3.attn.query.bias` -> `audio_tower.layers.3.self_attn.q_proj.bias`, and the like."""
    layer = re.search(r"\.(\d+)\.", ours)
    numbers = layer.groups() if layer else ()
    ours = ours.replace(layer[0], ".{}.", 1) if layer else ours
    if ours in table:  # a parameter that is named by itself, not by its module
        return table[ours].format(*numbers)
    module, leaf = ours.rsplit(".", 1)
    return table[module].format(*numbers) + "." + leaf
