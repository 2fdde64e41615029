"""Values of the published configurations, taken over or refused: what the layouts of all families have in common.

A key that this package does not know, or a value that it cannot compute with, is an error that names it: a model that
is computed differently from how it was trained would still talk, only wrongly.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ..config import HOP, SAMPLE_RATE, EncoderDecoderConfig, GlmAsrConfig
from ..errors import CheckpointError
from .json_file import Json

MOST_HEADS = 10_000
LEAD = EncoderDecoderConfig.alignment_lead  # which goes without saying


def check_known(name: str, part: Json, known: Iterable[str]) -> None:
    """Raises CheckpointError for a key of `part` that is not in `known`. `name`: the file, as the message calls it."""
    unknown = sorted(set(part).difference(known))
    if unknown:
        raise CheckpointError(
            f"{name}: unknown key {unknown[0]!r}; this package can't tell whether it changes the model"
        )


def check_required(name: str, part: Json, required: Mapping[str, tuple[object, ...]]) -> None:
    """`required`: keys that change what is computed, with the values that this package computes."""
    for key, allowed in required.items():
        # TRAP: 1 == True, so the type counts too.
        if key in part and not any(
            part[key] == value and isinstance(part[key], bool) == isinstance(value, bool) for value in allowed
        ):
            raise CheckpointError(
                f"{name}: {key} is {part[key]!r}; this package computes {' or '.join(map(repr, allowed))} only"
            )


def values(part: Json, table: Mapping[str, str]) -> Json:
    """By our names, those that a file has. `table`: ours -> theirs. What a file leaves out has the published value."""
    return {ours: part[theirs] for ours, theirs in table.items() if part.get(theirs) is not None}


def as_ids(value: Any) -> tuple[int, ...]:
    """One id, or a list of them. They are checked where the configuration is made."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def alignment(generation: Json) -> Json:
    """Of a `generation_config.json`, by our names: (layer, head) of the heads that follow the sound, as Whispers have
    them, and the lead of those of this package's own; nothing of what it doesn't say. Ranges are checked where the
    configuration is made."""
    found = generation.get("alignment_heads") or []
    good = isinstance(found, list) and len(found) <= MOST_HEADS
    if not (good and all(isinstance(pair, list) and len(pair) == 2 for pair in found)):
        raise CheckpointError(
            f"alignment_heads is {found!r:.100}, expected a list of at most {MOST_HEADS} pairs [layer, head]"
        )
    heads = {"alignment_heads": tuple((layer, head) for layer, head in found)}
    lead = generation.get("alignment_lead")
    return heads | ({} if lead is None else {"alignment_lead": lead})


def published_alignment(config: GlmAsrConfig | EncoderDecoderConfig) -> Json:
    """The same for a `generation_config.json`."""
    if not config.alignment_heads:
        return {}
    heads: Json = {"alignment_heads": list(map(list, config.alignment_heads))}
    return heads | ({} if config.alignment_lead == LEAD else {"alignment_lead": config.alignment_lead})


def log_mel_settings(name: str, features: Any) -> Json:
    """The settings of the log-mel, after checking that they are those of `audio.log_mel`."""
    if not isinstance(features, dict):
        raise CheckpointError(f"{name}: feature_extractor is {features!r}, expected an object")
    for key, value in {"sampling_rate": SAMPLE_RATE, "hop_length": HOP, "n_fft": 400, "dither": 0.0}.items():
        if features.get(key, value) != value:
            raise CheckpointError(f"{name}: {key} is {features[key]!r}, expected {value}")
    return features


def check_bands(name: str, features: Json, bands: int) -> None:
    """Raises CheckpointError if the log-mel settings have another number of bands than the encoder takes."""
    found = features.get("feature_size", bands)
    if found != bands:
        raise CheckpointError(f"{name}: feature_size is {found!r}, but the encoder takes {bands} bands")


def feature_extractor(bands: int, config: GlmAsrConfig | EncoderDecoderConfig) -> Json:
    """The feature extractor of Transformers that computes `audio.log_mel`."""
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": bands,
        "chunk_length": config.window_seconds,
        "n_samples": config.window,
        "nb_max_frames": config.window // HOP,
        "sampling_rate": SAMPLE_RATE,
        "hop_length": HOP,
        "n_fft": 400,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
