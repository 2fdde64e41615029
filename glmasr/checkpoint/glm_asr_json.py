"""GLM-ASR's `config.json`, `processor_config.json` and `generation_config.json` <-> GlmAsrConfig.

Two layouts: that of Transformers, with `audio_config` and `text_config`, and the original one of the remote code, with
`whisper_config` and `lm_config` (revision 91967ea, before 2025-12-27), which is read only.
"""

from typing import Any

from ..config import HOP, LARGEST, DecoderConfig, EncoderConfig, GlmAsrConfig, is_integer, is_number
from ..errors import CheckpointError
from .json_file import Json
from .json_values import (
    alignment,
    as_ids,
    check_bands,
    check_known,
    check_required,
    feature_extractor,
    log_mel_settings,
    published_alignment,
    values,
)

# Ours -> theirs.
_ENCODER = {
    "bands": "num_mel_bins",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "key_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "hidden": "intermediate_size",
}
_ORIGINAL_ENCODER = {
    "bands": "num_mel_bins",
    "width": "d_model",
    "layers": "encoder_layers",
    "heads": "encoder_attention_heads",
    "hidden": "encoder_ffn_dim",
}
_DECODER = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "key_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "hidden": "intermediate_size",
    "eps": "rms_norm_eps",
    "positions": "max_position_embeddings",
}

# Keys that change what is computed, with the values that this package computes.
_REQUIRED: dict[str, tuple[object, ...]] = {
    "projector_hidden_act": ("gelu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "rope_scaling": (None,),
    "adapter_type": ("mlp",),
    "use_rope": (True,),
    "merge_factor": (4,),
    "activation_function": ("gelu",),
    "mlp_adapter_act": ("gelu",),
    "quantization_config": (None,),
    "pretraining_tp": (1,),
    "layer_norm_eps": (1e-5,),
    "tie_word_embeddings": (True, False, None),
}
_ACTIVATION = {"audio_config": "gelu", "text_config": "silu", "lm_config": "silu"}  # of `hidden_act`, which both have

# Keys that say nothing about what is computed when transcribing.
_IGNORED = """
    architectures dtype torch_dtype transformers_version initializer_range use_cache attention_dropout model_type
    vocab_size hidden_size bos_token_id eos_token_id pad_token_id partial_rotary_factor rope_parameters rope_theta
    max_position_embeddings tie_word_embeddings num_hidden_layers audio_config text_config audio_token_id _name_or_path
    name_or_path auto_map output_hidden_states output_attentions return_dict chunk_size_feed_forward is_encoder_decoder
    id2label label2id problem_type _attn_implementation _attn_implementation_autoset num_attention_heads
    intermediate_size num_key_value_heads head_dim is_decoder hidden_act
""".split()


def is_original(config: Json) -> bool:
    """Whether a `config.json` has the original layout."""
    return "lm_config" in config or "whisper_config" in config


def from_published(config: Json, processor: Json | None = None, generation: Json | None = None) -> GlmAsrConfig:
    """From the JSON objects of `config.json`, `processor_config.json` and `generation_config.json`.

    Raises CheckpointError.
    """
    processor, generation = processor or {}, generation or {}
    parts = _original(config) if is_original(config) else _transformers(config)
    stop = generation.get("eos_token_id", parts.pop("stop"))
    result = GlmAsrConfig(stop=as_ids(stop), **parts, **_processor(processor), **alignment(generation))
    check_bands("processor_config.json", processor.get("feature_extractor", {}), result.encoder.bands)
    return result


def _transformers(config: Json) -> Json:
    audio, text = _object(config, "audio_config"), _object(config, "text_config")
    tables = {"audio_config": (audio, _ENCODER), "text_config": (text, _DECODER), "config.json": (config, {})}
    for name, (part, table) in tables.items():
        check_known(name, part, [*table.values(), *_REQUIRED, *_IGNORED])
        _check_required(name, part)
    encoder = values(audio, _ENCODER)
    encoder.setdefault("key_heads", encoder.get("heads", EncoderConfig.heads))
    _complete_head_size(encoder, EncoderConfig)
    factor = _rope("audio_config", audio, "partial_rotary_factor", 0.5)
    encoder["rotary"] = int(encoder["head_size"] * factor)
    encoder["theta"] = _rope("audio_config", audio, "rope_theta", 10_000.0)
    # The published file does not say whether the head is tied. The weights do: see `weights.load`.
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    return _parts(config, encoder, _decoder("text_config", text, tied), text)


def _original(config: Json) -> Json:
    audio, text = _object(config, "whisper_config"), _object(config, "lm_config")
    for name, part in (("whisper_config", audio), ("lm_config", text), ("config.json", config)):
        _check_required(name, part)
    encoder = values(audio, _ORIGINAL_ENCODER)
    encoder.setdefault("key_heads", encoder.get("heads", EncoderConfig.heads))
    _complete_head_size(encoder, EncoderConfig)
    encoder["rotary"] = encoder["head_size"] // 2
    return _parts(config, encoder, _decoder("lm_config", text, text.get("tie_word_embeddings", False)), text)


def _decoder(name: str, text: Json, tied: Any) -> Json:
    decoder = values(text, _DECODER)
    _complete_head_size(decoder, DecoderConfig)
    return decoder | {"theta": _rope(name, text, "rope_theta", 10_000.0), "tied": bool(tied)}


def _parts(config: Json, encoder: Json, decoder: Json, text: Json) -> Json:
    return {
        "encoder": EncoderConfig(**encoder),
        "decoder": DecoderConfig(**decoder),
        "audio_token": config.get("audio_token_id", GlmAsrConfig.audio_token),
        "stop": text.get("eos_token_id", config.get("eos_token_id", GlmAsrConfig.stop)),
    }


def _processor(processor: Json) -> Json:
    features = log_mel_settings("processor_config.json", processor.get("feature_extractor", {}))
    found = {
        "window_seconds": features.get("chunk_length"),
        "longest_seconds": processor.get("max_audio_len"),
        "instruction": processor.get("default_transcription_prompt"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _object(config: Json, key: str) -> Json:
    part = config.get(key, {})
    if not isinstance(part, dict):
        raise CheckpointError(f"config.json: {key} is {type(part).__name__}, expected an object")
    return part


def _check_required(name: str, part: Json) -> None:
    activation = {"hidden_act": (_ACTIVATION[name],)} if name in _ACTIVATION else {}
    check_required(name, part, _REQUIRED | activation)


def _complete_head_size(part: Json, default: type[EncoderConfig] | type[DecoderConfig]) -> None:
    """A file without the head size means width / heads; a file without all three, the published one."""
    if "head_size" not in part and ("width" in part or "heads" in part):
        width, heads = part.get("width", default.width), part.get("heads", default.heads)
        if not (is_integer(width) and is_integer(heads) and heads > 0):
            raise CheckpointError(f"width {width!r} and heads {heads!r}: expected positive integers")
        part["head_size"] = width // heads
    size = part.setdefault("head_size", default.head_size)
    if not (is_integer(size) and abs(size) <= LARGEST):  # else it can't be multiplied by a float
        raise CheckpointError(f"head size is {size!r}, expected a positive integer")


def _rope(name: str, part: Json, key: str, default: float) -> float:
    rope = part.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"{name}: rope_parameters is {rope!r}, expected an object")
    kind = rope.get("rope_type", rope.get("type", "default"))  # older files write "type"
    if kind != "default":
        raise CheckpointError(f"{name}: rope_type is {kind!r}; this package computes 'default' only")
    value = rope.get(key, part.get(key, default))
    if not (is_number(value) and value > 0):
        raise CheckpointError(f"{name}: {key} is {value!r}, expected a positive number")
    return float(value)


# -- writing -----------------------------------------------------------------------------------------------------------


def to_published(config: GlmAsrConfig, dtype: str) -> dict[str, Json]:
    """File name -> JSON object, in the layout of Transformers. `dtype`: the name of the weights' type."""
    encoder, decoder = config.encoder, config.decoder
    factor = encoder.rotary / encoder.head_size
    audio = {theirs: getattr(encoder, ours) for ours, theirs in _ENCODER.items()} | {
        "model_type": "glmasr_encoder",
        "hidden_act": "gelu",
        "max_position_embeddings": config.window // HOP // 2,
        "partial_rotary_factor": factor,
        "rope_parameters": {"rope_type": "default", "rope_theta": encoder.theta, "partial_rotary_factor": factor},
    }
    text = {theirs: getattr(decoder, ours) for ours, theirs in _DECODER.items()} | {
        "model_type": "llama",
        "hidden_act": "silu",
        "eos_token_id": list(config.stop),
        "attention_bias": False,
        "mlp_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": decoder.theta},
    }
    model = {
        "architectures": ["GlmAsrForConditionalGeneration"],
        "model_type": "glmasr",
        "audio_config": audio,
        "text_config": text,
        "audio_token_id": config.audio_token,
        "projector_hidden_act": "gelu",
        "hidden_size": decoder.width,
        "vocab_size": decoder.vocabulary,
        "tie_word_embeddings": decoder.tied,
        "dtype": dtype,
    }
    features = feature_extractor(encoder.bands, config) | {"dither": 0.0}
    processor = {
        "processor_class": "GlmAsrProcessor",
        "audio_token": "<|pad|>",
        "max_audio_len": config.longest_seconds,
        "default_transcription_prompt": config.instruction,
        "feature_extractor": features,
    }
    generation: Json = {"eos_token_id": list(config.stop), "pad_token_id": config.stop[0]}
    generation |= published_alignment(config)
    return {"config.json": model, "processor_config.json": processor, "generation_config.json": generation}
