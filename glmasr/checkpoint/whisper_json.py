"""Whisper's `config.json`, `preprocessor_config.json` and `generation_config.json` <-> EncoderDecoderConfig.

The article's system is written in the same layout; with the waveform frontend it has `convolutions` as well.
"""

from typing import Any

from ..config import (
    SAMPLE_RATE,
    Convolution,
    CrossDecoderConfig,
    EncoderDecoderConfig,
    SinusoidalEncoderConfig,
    is_integer,
)
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
    "width": "d_model",
    "layers": "encoder_layers",
    "heads": "encoder_attention_heads",
    "hidden": "encoder_ffn_dim",
    "positions": "max_source_positions",
    "convolutions": "convolutions",
}
_DECODER = {
    "vocabulary": "vocab_size",
    "width": "d_model",
    "layers": "decoder_layers",
    "heads": "decoder_attention_heads",
    "hidden": "decoder_ffn_dim",
    "positions": "max_target_positions",
}

# Of `generation_config.json`: ids that steer the search.
_STEERING = """
    decoder_start_token_id eos_token_id no_timestamps_token_id max_initial_timestamp_index suppress_tokens
    begin_suppress_tokens alignment_heads
""".split()

# Keys that change what is computed, with the values that this package computes.
_REQUIRED: dict[str, tuple[object, ...]] = {
    "activation_function": ("gelu",),
    "scale_embedding": (False,),
    "is_encoder_decoder": (True,),
    "tie_word_embeddings": (True, None),
    "quantization_config": (None,),
}

# Keys that say nothing about what is computed when transcribing.
_IGNORED = """
    _name_or_path architectures model_type dtype torch_dtype transformers_version activation_dropout attention_dropout
    dropout encoder_layerdrop decoder_layerdrop init_std apply_spec_augment mask_feature_length mask_feature_min_masks
    mask_feature_prob mask_time_length mask_time_min_masks mask_time_prob classifier_proj_size use_weighted_layer_sum
    use_cache bos_token_id pad_token_id forced_decoder_ids max_length median_filter_width num_hidden_layers
    lang_ids return_timestamps _attn_implementation_autoset
""".split()

_ENGLISH_WHISPER = 51_864  # vocabulary of Whisper for English alone; the others have more


def from_published(config: Json, processor: Json | None = None, generation: Json | None = None) -> EncoderDecoderConfig:
    """From the JSON objects of `config.json`, `preprocessor_config.json` and `generation_config.json`.

    Raises CheckpointError.
    """
    generation = generation or {}
    check_known("config.json", config, [*_ENCODER.values(), *_DECODER.values(), *_REQUIRED, *_IGNORED, *_STEERING])
    check_required("config.json", config, _REQUIRED)
    features = log_mel_settings("preprocessor_config.json", processor or {})
    encoder, decoder = values(config, _ENCODER), values(config, _DECODER)
    if encoder.get("convolutions"):
        encoder["convolutions"] = _convolutions(encoder["convolutions"])

    # What is missing in generation_config.json was once written into config.json.
    steering = {theirs: generation.get(theirs, config.get(theirs)) for theirs in _STEERING}
    found = {
        "start": steering["decoder_start_token_id"],
        "end": steering["eos_token_id"],
        "window_seconds": features.get("chunk_length"),
    }
    sizes: Json = {name: value for name, value in found.items() if value is not None}
    if "window_seconds" not in sizes and is_integer(encoder.get("positions")):  # `save_pretrained` of the model alone
        seconds = encoder["positions"] * SinusoidalEncoderConfig(**encoder).stride / SAMPLE_RATE
        sizes["window_seconds"] = int(seconds) if seconds.is_integer() else seconds

    several = bool(generation.get("is_multilingual", True))
    languages, tasks = (_table_of_ids(generation, key) if several else {} for key in ("lang_to_id", "task_to_id"))
    result = EncoderDecoderConfig(
        SinusoidalEncoderConfig(**encoder),
        CrossDecoderConfig(**decoder),
        **sizes,
        languages={name.strip("<|>"): number for name, number in languages.items()},
        tasks=tasks,
        several_languages=several,
        no_timestamps=steering["no_timestamps_token_id"],
        latest_first_time=steering["max_initial_timestamp_index"],
        suppress=as_ids(steering["suppress_tokens"] or ()),
        suppress_first=as_ids(steering["begin_suppress_tokens"] or ()),
        **alignment(generation | {"alignment_heads": steering["alignment_heads"]}),
    )
    check_bands("preprocessor_config.json", features, result.encoder.bands)
    return result


def check_steering(config: EncoderDecoderConfig) -> None:
    """TRAP: a Whisper for many languages without these ids would still talk, but wrongly. Raises CheckpointError."""
    size = config.decoder.vocabulary
    ids = {
        "lang_to_id": config.languages,
        "task_to_id": config.tasks,
        "no_timestamps_token_id": config.no_timestamps,
    }
    missing = [key for key, value in ids.items() if not value]
    if missing and config.several_languages and (size > _ENGLISH_WHISPER or config.languages):
        raise CheckpointError(
            f"generation_config.json: {missing[0]} is missing, but the model with its {size} tokens is one for several "
            "languages; get the complete file from where it was published"
        )


def _convolutions(layers: Any) -> tuple[Convolution, ...]:
    def is_layer(layer: Any) -> bool:
        return isinstance(layer, list) and len(layer) == 3 and all(is_integer(n) and 0 < n <= 2**16 for n in layer)

    if not (isinstance(layers, list) and len(layers) <= 32 and all(map(is_layer, layers))):
        raise CheckpointError(
            f"config.json: convolutions is {layers!r:.200}, expected a list of at most 32 [channels, kernel, stride], "
            f"all positive integers up to {2**16}"
        )
    return tuple((channels, kernel, stride) for channels, kernel, stride in layers)


def _table_of_ids(generation: Json, key: str) -> dict[str, int]:
    table = generation.get(key) or {}
    if not isinstance(table, dict) or not all(map(is_integer, table.values())):
        raise CheckpointError(f"generation_config.json: {key} is no table of names and ids")
    return table


# -- writing -----------------------------------------------------------------------------------------------------------


def to_published(config: EncoderDecoderConfig, dtype: str) -> dict[str, Json]:
    """File name -> JSON object, as Whisper's are. `dtype`: the name of the weights' type."""
    encoder, decoder = config.encoder, config.decoder
    sizes = {theirs: getattr(encoder, ours) for ours, theirs in _ENCODER.items()}
    sizes |= {theirs: getattr(decoder, ours) for ours, theirs in _DECODER.items()}
    if not encoder.convolutions:
        del sizes["convolutions"]
    model = sizes | {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper-waveform" if encoder.convolutions else "whisper",
        "activation_function": "gelu",
        "is_encoder_decoder": True,
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "bos_token_id": config.end,
        "eos_token_id": config.end,
        "pad_token_id": config.end,
        "decoder_start_token_id": config.start,
        "dtype": dtype,
    }
    features = feature_extractor(encoder.bands, config) | {"processor_class": "WhisperProcessor"}
    generation = {
        "bos_token_id": config.end,
        "eos_token_id": config.end,
        "pad_token_id": config.end,
        "decoder_start_token_id": config.start,
        "is_multilingual": config.several_languages and bool(config.languages),
        "lang_to_id": {f"<|{name}|>": number for name, number in config.languages.items()},
        "task_to_id": config.tasks,
        "no_timestamps_token_id": config.no_timestamps,
        "max_initial_timestamp_index": config.latest_first_time,
        "max_length": decoder.positions,
        "suppress_tokens": list(config.suppress),
        "begin_suppress_tokens": list(config.suppress_first),
        "return_timestamps": False,
    } | published_alignment(config)
    generation = {key: value for key, value in generation.items() if value is not None}
    return {"config.json": model, "preprocessor_config.json": features, "generation_config.json": generation}
