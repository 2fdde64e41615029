"""What a model is made of, as frozen data.

    GlmAsrConfig            the published GLM-ASR-Nano-2512, whose values are its defaults
    EncoderDecoderConfig    the article's system, whose values are its defaults, and Whisper

`read_config(directory)` takes the values from the files of a checkpoint, in any of the published layouts:
  GLM-ASR, Transformers   `audio_config`, `text_config`       + `processor_config.json`, `generation_config.json`
  GLM-ASR, original       `whisper_config`, `lm_config`       (revision 91967ea, before 2025-12-27)
  Whisper                 `d_model`, `encoder_layers`, ...    + `preprocessor_config.json`, `generation_config.json`
A key that this code does not know, or a value that it cannot compute with, is an error that names it: a model that is
computed differently from how it was trained would still talk, only wrongly.
"""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path

from .checkpoint.json_file import read_json
from .errors import CheckpointError

SAMPLE_RATE = 16_000
HOP = 160                       # samples between two mel frames: 10 ms
STRIDE = 2 * 4                  # mel frames for each row that the decoder hears: conv stride 2, then 4 states stacked


# -- GLM-ASR -----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class EncoderConfig:
    """The audio encoder: two convolutions, then pre-norm blocks with rotary positions."""

    bands: int = 128            # mel bands that go in
    width: int = 1280
    layers: int = 32
    heads: int = 20
    key_heads: int = 20
    head_size: int = 64
    hidden: int = 5120          # width inside the MLP
    rotary: int = 32            # leading dims of each head that RoPE turns; the others carry no position
    theta: float = 10_000.0
    eps: float = 1e-5


@dataclass(frozen=True)
class DecoderConfig:
    """The text decoder: Llama."""

    vocabulary: int = 59_264
    width: int = 2048
    layers: int = 28
    heads: int = 16
    key_heads: int = 4
    head_size: int = 128
    hidden: int = 6144
    theta: float = 10_000.0
    eps: float = 1e-5
    positions: int = 8192       # longest prompt and answer together
    tied: bool = False          # the vocabulary head is the embedding


@dataclass(frozen=True)
class GlmAsrConfig:
    """GLM-ASR as published: encoder, projector, decoder, and what the prompt and the search need to know."""

    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    merge: int = 4                              # encoder states stacked into one row for the decoder
    audio_token: int = 59_260                   # `<|pad|>`: the placeholder that an audio row replaces, NOT padding
    stop: tuple[int, ...] = (59_246, 59_253, 59_255)
    window_seconds: int = 30
    longest_seconds: int = 655                  # as published; what counts is the whole windows in it: 21, or 630 s
    instruction: str = "Please transcribe this audio into text"
    beams: int = 1                              # of a search, if the caller doesn't say: the published model is used greedily

    def __post_init__(self) -> None:
        check(self)

    @property
    def window(self) -> int:
        """Samples in a window."""
        return self.window_seconds * SAMPLE_RATE

    @property
    def longest_windows(self) -> int:
        return self.longest_seconds // self.window_seconds

    @classmethod
    def published(cls, config: dict, processor: dict = {}, generation: dict = {}) -> "GlmAsrConfig":
        """From the JSON objects of `config.json`, `processor_config.json` and `generation_config.json`."""
        parts = _original(config) if _is_original(config) else _transformers(config)
        stop = generation.get("eos_token_id", parts.pop("stop"))
        result = cls(stop=_ids(stop), **parts, **_processor(processor))
        bands = processor.get("feature_extractor", {}).get("feature_size", result.encoder.bands)
        if bands != result.encoder.bands:
            raise CheckpointError(f"processor_config.json: feature_size is {bands!r}, but the encoder hears {result.encoder.bands} bands")
        return result

    def to_published(self, dtype) -> dict[str, dict]:
        """File name -> JSON object, as the Transformers format has them; `read` gives this configuration again."""
        encoder, decoder = self.encoder, self.decoder
        audio = {theirs: getattr(encoder, ours) for ours, theirs in _ENCODER.items()} | {
            "model_type": "glmasr_encoder", "hidden_act": "gelu", "max_position_embeddings": self.window // HOP // 2,
            "partial_rotary_factor": encoder.rotary / encoder.head_size,
            "rope_parameters": {"rope_type": "default", "rope_theta": encoder.theta,
                                "partial_rotary_factor": encoder.rotary / encoder.head_size}}
        text = {theirs: getattr(decoder, ours) for ours, theirs in _DECODER.items()} | {
            "model_type": "llama", "hidden_act": "silu", "eos_token_id": list(self.stop), "attention_bias": False,
            "mlp_bias": False, "rope_parameters": {"rope_type": "default", "rope_theta": decoder.theta}}
        config = {"architectures": ["GlmAsrForConditionalGeneration"], "model_type": "glmasr", "audio_config": audio,
                  "text_config": text, "audio_token_id": self.audio_token, "projector_hidden_act": "gelu",
                  "hidden_size": decoder.width, "vocab_size": decoder.vocabulary, "tie_word_embeddings": decoder.tied,
                  "dtype": str(dtype).removeprefix("torch.")}
        processor = {"processor_class": "GlmAsrProcessor", "audio_token": "<|pad|>", "max_audio_len": self.longest_seconds,
                     "default_transcription_prompt": self.instruction,
                     "feature_extractor": {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": encoder.bands,
                                           "chunk_length": self.window_seconds, "n_samples": self.window,
                                           "nb_max_frames": self.window // HOP, "sampling_rate": SAMPLE_RATE, "hop_length": HOP,
                                           "n_fft": 400, "dither": 0.0, "padding_side": "right", "padding_value": 0.0,
                                           "return_attention_mask": False}}
        generation = {"eos_token_id": list(self.stop), "pad_token_id": self.stop[0]}
        return {"config.json": config, "processor_config.json": processor, "generation_config.json": generation}


# -- the article's system and Whisper ----------------------------------------------------------------------------------

Convolution = tuple[int, int, int]          # channels, kernel, stride

# Of the article's raw-waveform frontend, in front of any width: 160 samples, 10 ms, from frame to frame, and each is made
# of 385 samples, 24 ms. The article gives the scheme and the stride; these numbers are ours.
CONVOLUTIONS: tuple[Convolution, ...] = ((512, 10, 5), (512, 8, 4), (512, 4, 2), (512, 4, 2), (512, 3, 2))
TIME_STEP = 0.02                            # seconds from one time token to the next


def total_stride(convolutions: tuple[Convolution, ...]) -> int:
    """Samples between two frames: 160, 10 ms, for the article's."""
    return math.prod(stride for _, _, stride in convolutions)


@dataclass(frozen=True)
class SinusoidalEncoderConfig:
    """The audio encoder: a frontend, sinusoids, pre-norm blocks."""

    bands: int = 80             # mel bands that go in; with `convolutions` there are none, and samples go in
    width: int = 1024
    layers: int = 12
    heads: int = 16
    hidden: int = 4096          # width inside the MLP
    positions: int = 1500       # states of a window
    convolutions: tuple[Convolution, ...] = ()
    eps: float = 1e-5

    @property
    def stride(self) -> int:
        """Samples between two states."""
        return total_stride(self.convolutions) if self.convolutions else 2 * HOP

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def key_heads(self) -> int:
        return self.heads


@dataclass(frozen=True)
class CrossDecoderConfig:
    """The text decoder with cross-attention."""

    vocabulary: int = 51_865
    width: int = 1024
    layers: int = 6
    heads: int = 16
    hidden: int = 4096
    positions: int = 448        # longest prompt and answer together
    eps: float = 1e-5

    @property
    def head_size(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """Encoder, decoder with cross-attention, and the special tokens that steer it. The ids are those of the article's
    vocabulary: 50,356 pieces of text, eight special tokens, and the times <|0.00|> to <|30.00|>."""

    encoder: SinusoidalEncoderConfig = SinusoidalEncoderConfig()
    decoder: CrossDecoderConfig = CrossDecoderConfig()
    window_seconds: float = 30
    start: int = 50_357                         # <|startoftranscript|>
    end: int = 50_356                           # <|endoftranscript|>, in Whisper <|endoftext|>
    languages: dict[str, int] = field(default_factory=lambda: {"zh": 50_358, "yue": 50_359, "en": 50_360})
    tasks: dict[str, int] = field(default_factory=lambda: {"transcribe": 50_361})
    several_languages: bool = True              # False: the files say that it was trained for one
    no_timestamps: int | None = 50_363          # the id before it says that nobody speaks, the ids behind it are the times
    suppress: tuple[int, ...] = ()              # ids that never come
    suppress_first: tuple[int, ...] = ()        # ids that don't come first
    latest_first_time: int | None = 50          # in time steps: speech begins within the first second
    beams: int = 5

    def __post_init__(self) -> None:
        check_encoder_decoder(self)

    @property
    def window(self) -> int:
        """Samples in a window."""
        return round(self.window_seconds * SAMPLE_RATE)

    @property
    def stop(self) -> tuple[int, ...]:
        return (self.end,)

    @property
    def times(self) -> int:
        """The id of <|0.00|>."""
        return self.no_timestamps + 1

    @property
    def no_speech(self) -> int:
        return self.no_timestamps - 1

    @classmethod
    def published(cls, config: dict, processor: dict = {}, generation: dict = {}) -> "EncoderDecoderConfig":
        """From the JSON objects of `config.json`, `preprocessor_config.json` and `generation_config.json`."""
        unknown = sorted(set(config) - set(_SOUND.values()) - set(_TEXT.values()) - set(_WHISPER_MUST) - _WHISPER_IGNORED)
        if unknown:
            raise CheckpointError(f"config.json: unknown key {unknown[0]!r}; this package can't tell whether it changes the model")
        _require("config.json", config, _WHISPER_MUST)
        features = _features("preprocessor_config.json", processor)
        encoder, decoder = _values(config, _SOUND), _values(config, _TEXT)
        if encoder.get("convolutions"):
            encoder["convolutions"] = _convolutions(encoder["convolutions"])
        # What is missing in generation_config.json was once written into config.json.
        steer = {theirs: generation.get(theirs, config.get(theirs)) for theirs in _STEER}
        found = {"start": steer["decoder_start_token_id"], "end": steer["eos_token_id"], "window_seconds": features.get("chunk_length")}
        found = {name: value for name, value in found.items() if value is not None}
        several = bool(generation.get("is_multilingual", True))
        languages, tasks = (_table_of_ids(generation, key) if several else {} for key in ("lang_to_id", "task_to_id"))
        if "window_seconds" not in found and _is_integer(encoder.get("positions")):     # `save_pretrained` of the model alone
            seconds = encoder["positions"] * SinusoidalEncoderConfig(**encoder).stride / SAMPLE_RATE
            found["window_seconds"] = int(seconds) if seconds.is_integer() else seconds
        result = cls(SinusoidalEncoderConfig(**encoder), CrossDecoderConfig(**decoder), **found,
                     languages={name.strip("<|>"): number for name, number in languages.items()}, tasks=tasks, several_languages=several,
                     no_timestamps=steer["no_timestamps_token_id"], latest_first_time=steer["max_initial_timestamp_index"],
                     suppress=_ids(steer["suppress_tokens"] or ()), suppress_first=_ids(steer["begin_suppress_tokens"] or ()))
        bands = features.get("feature_size", result.encoder.bands)
        if bands != result.encoder.bands:
            raise CheckpointError(f"preprocessor_config.json: feature_size is {bands!r}, but the encoder hears {result.encoder.bands} bands")
        return result

    def to_published(self, dtype) -> dict[str, dict]:
        """File name -> JSON object, as Whisper's are; `read_config` gives this configuration again."""
        encoder, decoder = self.encoder, self.decoder
        kind = "whisper-waveform" if encoder.convolutions else "whisper"
        config = {theirs: getattr(encoder, ours) for ours, theirs in _SOUND.items()} | {
            theirs: getattr(decoder, ours) for ours, theirs in _TEXT.items()} | {
            "architectures": ["WhisperForConditionalGeneration"], "model_type": kind, "activation_function": "gelu",
            "is_encoder_decoder": True, "scale_embedding": False, "tie_word_embeddings": True, "bos_token_id": self.end,
            "eos_token_id": self.end, "pad_token_id": self.end, "decoder_start_token_id": self.start,
            "dtype": str(dtype).removeprefix("torch.")}
        if not encoder.convolutions:
            del config["convolutions"]
        features = {"feature_extractor_type": "WhisperFeatureExtractor", "processor_class": "WhisperProcessor",
                    "feature_size": encoder.bands, "chunk_length": self.window_seconds, "n_samples": self.window,
                    "nb_max_frames": self.window // HOP, "sampling_rate": SAMPLE_RATE, "hop_length": HOP, "n_fft": 400,
                    "padding_side": "right", "padding_value": 0.0, "return_attention_mask": False}
        generation = {"bos_token_id": self.end, "eos_token_id": self.end, "pad_token_id": self.end,
                      "decoder_start_token_id": self.start, "is_multilingual": self.several_languages and bool(self.languages),
                      "lang_to_id": {f"<|{name}|>": number for name, number in self.languages.items()},
                      "task_to_id": self.tasks, "no_timestamps_token_id": self.no_timestamps,
                      "max_initial_timestamp_index": self.latest_first_time, "max_length": decoder.positions,
                      "suppress_tokens": list(self.suppress), "begin_suppress_tokens": list(self.suppress_first),
                      "return_timestamps": False}
        generation = {key: value for key, value in generation.items() if value is not None}
        return {"config.json": config, "preprocessor_config.json": features, "generation_config.json": generation}


# -- the published layouts ---------------------------------------------------------------------------------------------

def read_config(directory) -> "GlmAsrConfig | EncoderDecoderConfig":
    """The configuration of a checkpoint directory. Raises CheckpointError."""
    directory = Path(directory)
    config = read_json(directory / "config.json")
    kind = config.get("model_type")
    if kind == "glmasr" or _is_original(config):
        family, processor = GlmAsrConfig, "processor_config.json"
    elif kind in ("whisper", "whisper-waveform"):
        family, processor = EncoderDecoderConfig, "preprocessor_config.json"
    else:
        raise CheckpointError(f"{directory}: config.json: model_type is {kind!r}; this package runs 'glmasr' (GLM-ASR, in Transformers "
                              "or original format) and 'whisper' (Whisper and the article's system)")
    optional = [read_json(directory / name) if (directory / name).is_file() else {} for name in (processor, "generation_config.json")]
    if family is EncoderDecoderConfig and not optional[0] and (directory / "processor_config.json").is_file():     # Transformers >= 5
        optional[0] = read_json(directory / "processor_config.json").get("feature_extractor", {})
    try:
        return family.published(config, *optional)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from None


def _is_original(config: dict) -> bool:
    return "lm_config" in config or "whisper_config" in config


# Ours -> theirs. What a file leaves out has the published value.
_ENCODER = {"bands": "num_mel_bins", "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
            "key_heads": "num_key_value_heads", "head_size": "head_dim", "hidden": "intermediate_size"}
_SOUND = {"bands": "num_mel_bins", "width": "d_model", "layers": "encoder_layers", "heads": "encoder_attention_heads",
          "hidden": "encoder_ffn_dim", "positions": "max_source_positions", "convolutions": "convolutions"}
_TEXT = {"vocabulary": "vocab_size", "width": "d_model", "layers": "decoder_layers", "heads": "decoder_attention_heads",
         "hidden": "decoder_ffn_dim", "positions": "max_target_positions"}
_ENGLISH_WHISPER = 51_864       # vocabulary of Whisper for English alone; the others have more
_STEER = ("decoder_start_token_id", "eos_token_id", "no_timestamps_token_id", "max_initial_timestamp_index", "suppress_tokens",
          "begin_suppress_tokens")
_WHISPER = {"bands": "num_mel_bins", "width": "d_model", "layers": "encoder_layers", "heads": "encoder_attention_heads",
            "hidden": "encoder_ffn_dim"}
_DECODER = {"vocabulary": "vocab_size", "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
            "key_heads": "num_key_value_heads", "head_size": "head_dim", "hidden": "intermediate_size", "eps": "rms_norm_eps",
            "positions": "max_position_embeddings"}

# Keys that change what is computed, with the values that this code computes.
_MUST = {"projector_hidden_act": ("gelu",), "attention_bias": (False,), "mlp_bias": (False,),
         "rope_scaling": (None,), "adapter_type": ("mlp",), "use_rope": (True,), "merge_factor": (4,),
         "activation_function": ("gelu",), "mlp_adapter_act": ("gelu",), "quantization_config": (None,),
         "pretraining_tp": (1,), "layer_norm_eps": (1e-5,), "tie_word_embeddings": (True, False, None)}
_ACTIVATION = {"audio_config": "gelu", "text_config": "silu", "lm_config": "silu"}     # of `hidden_act`, which both parts have

_WHISPER_MUST = {"activation_function": ("gelu",), "scale_embedding": (False,), "is_encoder_decoder": (True,),
                 "tie_word_embeddings": (True, None), "quantization_config": (None,)}
_WHISPER_IGNORED = {*_STEER, "_name_or_path", "architectures", "model_type", "dtype", "torch_dtype", "transformers_version",
                    "activation_dropout", "attention_dropout", "dropout", "encoder_layerdrop", "decoder_layerdrop", "init_std",
                    "apply_spec_augment", "mask_feature_length", "mask_feature_min_masks", "mask_feature_prob", "mask_time_length",
                    "mask_time_min_masks", "mask_time_prob", "classifier_proj_size", "use_weighted_layer_sum", "use_cache",
                    "bos_token_id", "pad_token_id", "forced_decoder_ids", "max_length", "median_filter_width", "num_hidden_layers",
                    "alignment_heads", "lang_ids", "return_timestamps", "_attn_implementation_autoset"}

# Keys that say nothing about what is computed when transcribing.
_IGNORED = {"architectures", "dtype", "torch_dtype", "transformers_version", "initializer_range", "use_cache",
            "attention_dropout", "model_type", "vocab_size", "hidden_size", "bos_token_id", "eos_token_id", "pad_token_id",
            "partial_rotary_factor", "rope_parameters", "rope_theta", "max_position_embeddings", "tie_word_embeddings",
            "num_hidden_layers", "audio_config", "text_config", "audio_token_id", "_name_or_path", "name_or_path", "auto_map",
            "output_hidden_states", "output_attentions", "return_dict", "chunk_size_feed_forward", "is_encoder_decoder",
            "id2label", "label2id", "problem_type", "_attn_implementation", "_attn_implementation_autoset",
            "num_attention_heads", "intermediate_size", "num_key_value_heads", "head_dim", "is_decoder", "hidden_act"}


def _transformers(config: dict) -> dict:
    audio, text = _object(config, "audio_config"), _object(config, "text_config")
    for name, part, table in (("audio_config", audio, _ENCODER), ("text_config", text, _DECODER), ("config.json", config, {})):
        unknown = sorted(set(part) - set(table.values()) - set(_MUST) - _IGNORED)
        if unknown:
            raise CheckpointError(f"{name}: unknown key {unknown[0]!r}; this package can't tell whether it changes the model")
        _require(name, part)
    encoder = _values(audio, _ENCODER)
    encoder.setdefault("key_heads", encoder.get("heads", EncoderConfig.heads))
    _head_size(encoder, EncoderConfig)
    factor = _rope("audio_config", audio, "partial_rotary_factor", 0.5)
    encoder |= {"rotary": int(encoder["head_size"] * factor), "theta": _rope("audio_config", audio, "rope_theta", 10_000.0)}
    decoder = _values(text, _DECODER)
    _head_size(decoder, DecoderConfig)
    decoder["theta"] = _rope("text_config", text, "rope_theta", 10_000.0)
    # The published file does not say whether the head is tied. The weights do: see `weights.load`.
    decoder["tied"] = bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
    return {"encoder": EncoderConfig(**encoder), "decoder": DecoderConfig(**decoder),
            "audio_token": config.get("audio_token_id", GlmAsrConfig.audio_token),
            "stop": text.get("eos_token_id", config.get("eos_token_id", GlmAsrConfig.stop))}


def _original(config: dict) -> dict:
    audio, text = _object(config, "whisper_config"), _object(config, "lm_config")
    for name, part in (("whisper_config", audio), ("lm_config", text), ("config.json", config)):
        _require(name, part)
    encoder = _values(audio, _WHISPER)
    encoder.setdefault("key_heads", encoder.get("heads", EncoderConfig.heads))
    _head_size(encoder, EncoderConfig)
    encoder["rotary"] = encoder["head_size"] // 2
    decoder = _values(text, _DECODER)
    _head_size(decoder, DecoderConfig)
    decoder |= {"theta": _rope("lm_config", text, "rope_theta", 10_000.0), "tied": bool(text.get("tie_word_embeddings", False))}
    return {"encoder": EncoderConfig(**encoder), "decoder": DecoderConfig(**decoder),
            "audio_token": config.get("audio_token_id", GlmAsrConfig.audio_token), "stop": text.get("eos_token_id", config.get("eos_token_id", GlmAsrConfig.stop))}


def _processor(processor: dict) -> dict:
    features = _features("processor_config.json", processor.get("feature_extractor", {}))
    found = {"window_seconds": features.get("chunk_length"), "longest_seconds": processor.get("max_audio_len"),
             "instruction": processor.get("default_transcription_prompt")}
    return {name: value for name, value in found.items() if value is not None}


def _features(name: str, features) -> dict:
    """The settings of the log-mel, after checking that they are those of `audio.log_mel`."""
    if not isinstance(features, dict):
        raise CheckpointError(f"{name}: feature_extractor is {features!r}, expected an object")
    for key, value in {"sampling_rate": SAMPLE_RATE, "hop_length": HOP, "n_fft": 400, "dither": 0.0}.items():
        if features.get(key, value) != value:
            raise CheckpointError(f"{name}: {key} is {features[key]!r}, expected {value}")
    return features


def _convolutions(layers) -> tuple[Convolution, ...]:
    if not (isinstance(layers, list) and len(layers) <= 32
            and all(isinstance(layer, list) and len(layer) == 3 and all(_is_integer(n) and 0 < n <= 2 ** 16 for n in layer) for layer in layers)):
        raise CheckpointError(f"config.json: convolutions is {layers!r:.200}, expected a list of at most 32 [channels, kernel, stride], all positive "
                              f"integers up to {2 ** 16}")
    return tuple(map(tuple, layers))


def _table_of_ids(generation: dict, key: str) -> dict[str, int]:
    table = generation.get(key) or {}
    if not isinstance(table, dict) or not all(_is_integer(number) for number in table.values()):
        raise CheckpointError(f"generation_config.json: {key} is no table of names and ids")
    return table


def _object(config: dict, key: str) -> dict:
    part = config.get(key, {})
    if not isinstance(part, dict):
        raise CheckpointError(f"config.json: {key} is {type(part).__name__}, expected an object")
    return part


def _require(name: str, part: dict, must: dict | None = None) -> None:
    must = must or _MUST | ({"hidden_act": (_ACTIVATION[name],)} if name in _ACTIVATION else {})
    for key, allowed in must.items():
        # TRAP: 1 == True, so the type counts too.
        if key in part and not any(part[key] == value and isinstance(part[key], bool) == isinstance(value, bool) for value in allowed):
            raise CheckpointError(f"{name}: {key} is {part[key]!r}; this package computes {' or '.join(map(repr, allowed))} only")


def _values(part: dict, table: dict) -> dict:
    return {ours: part[theirs] for ours, theirs in table.items() if part.get(theirs) is not None}


def _head_size(values: dict, default: type) -> None:
    """A file that leaves the head size out means width / heads; a file that leaves all three out, the published one."""
    if "head_size" not in values and ("width" in values or "heads" in values):
        width, heads = values.get("width", default.width), values.get("heads", default.heads)
        if not (_is_integer(width) and _is_integer(heads) and heads > 0):
            raise CheckpointError(f"width {width!r} and heads {heads!r}: expected positive integers")
        values["head_size"] = width // heads
    values.setdefault("head_size", default.head_size)
    if not (_is_integer(values["head_size"]) and abs(values["head_size"]) <= _LARGEST):     # else it can't be multiplied by a float
        raise CheckpointError(f"head size is {values['head_size']!r}, expected a positive integer")


def _rope(name: str, part: dict, key: str, default: float) -> float:
    rope = part.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"{name}: rope_parameters is {rope!r}, expected an object")
    kind = rope.get("rope_type", rope.get("type", "default"))       # older files write "type"
    if kind != "default":
        raise CheckpointError(f"{name}: rope_type is {kind!r}; this package computes 'default' only")
    value = rope.get(key, part.get(key, default))
    if not (_is_number(value) and value > 0):
        raise CheckpointError(f"{name}: {key} is {value!r}, expected a positive number")
    return float(value)


def _ids(value) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


# -- checks ------------------------------------------------------------------------------------------------------------

_LARGEST = 2 ** 24              # no width, count or vocabulary of this family comes near it: absurd values stop here
_LONGEST_WINDOW = 600           # seconds; each recording is padded to whole windows
_MAY_BE_ZERO = ("audio_token", "rotary", "start", "end")


def _check_numbers(config) -> None:
    """Raises CheckpointError for values that no memory holds."""
    for name, part in (("encoder", config.encoder), ("decoder", config.decoder), ("model", config)):
        for entry in fields(part):
            value = getattr(part, entry.name)
            if entry.type in (int, "int") and not (_is_integer(value) and 0 <= value <= _LARGEST):
                raise CheckpointError(f"{name}: {entry.name} is {value!r}, expected an integer from 0 to {_LARGEST}")
            if entry.type in (int, "int") and value == 0 and entry.name not in _MAY_BE_ZERO:
                raise CheckpointError(f"{name}: {entry.name} is 0, expected at least 1")
            if entry.type in (float, "float") and not (_is_number(value) and value > 0):
                raise CheckpointError(f"{name}: {entry.name} is {value!r}, expected a positive number")
        if getattr(part, "layers", 0) > 1000:
            raise CheckpointError(f"{name}: {part.layers} layers, expected at most 1000")
        if name != "model" and part.heads * part.head_size > _LARGEST:
            raise CheckpointError(f"{name}: {part.heads} heads of {part.head_size}, expected at most {_LARGEST} in all")
    if config.window_seconds > _LONGEST_WINDOW:
        raise CheckpointError(f"a window of {config.window_seconds} s (chunk_length), expected at most {_LONGEST_WINDOW} s")


def check_encoder_decoder(config: EncoderDecoderConfig) -> None:
    """Raises CheckpointError for a configuration that no memory holds or that the formulas do not allow."""
    _check_numbers(config)
    encoder, decoder = config.encoder, config.decoder
    for name, part in (("encoder", encoder), ("decoder", decoder)):
        if part.width % part.heads or part.width < 4 or part.width % 2:
            raise CheckpointError(f"{name}: width {part.width}, expected an even multiple of the number of heads, {part.heads}")
    if encoder.width != decoder.width:
        raise CheckpointError(f"encoder and decoder are {encoder.width} and {decoder.width} wide, expected the same")
    if encoder.positions * encoder.stride != config.window:
        raise CheckpointError(f"a window of {config.window_seconds} s gives {config.window / encoder.stride:g} states, but the encoder has "
                              f"{encoder.positions} positions (max_source_positions)")
    special = {"start": (config.start,), "end": (config.end,), "languages": config.languages.values(), "tasks": config.tasks.values(),
               "no_timestamps": () if config.no_timestamps is None else (config.no_timestamps,),
               "suppress": config.suppress, "suppress_first": config.suppress_first}
    for name, ids in special.items():
        for number in ids:
            if not (_is_integer(number) and 0 <= number < decoder.vocabulary):
                raise CheckpointError(f"{name}: id {number!r}, expected one below the vocabulary size {decoder.vocabulary}")
    if config.no_timestamps is not None and not (config.no_timestamps >= 1 and config.end < config.times):
        raise CheckpointError(f"no_timestamps_token_id is {config.no_timestamps} and eos_token_id {config.end}; expected ids in the order "
                              "end, no speech, no timestamps, times")
    if config.latest_first_time is not None and not (_is_integer(config.latest_first_time) and 0 <= config.latest_first_time <= _LARGEST):
        raise CheckpointError(f"max_initial_timestamp_index is {config.latest_first_time!r}, expected a positive integer")


def check_steering(config: EncoderDecoderConfig) -> None:
    """TRAP: a Whisper for many languages without these ids would still talk, but wrongly. Raises CheckpointError."""
    size = config.decoder.vocabulary
    ids = {"lang_to_id": config.languages, "task_to_id": config.tasks, "no_timestamps_token_id": config.no_timestamps}
    missing = [key for key, value in ids.items() if not value]
    if missing and config.several_languages and (size > _ENGLISH_WHISPER or config.languages):
        raise CheckpointError(f"generation_config.json: {missing[0]} is missing, but the model with its {size} tokens is one for several languages; "
                              "get the complete file from where it was published")


def check(config: GlmAsrConfig) -> None:
    """Raises CheckpointError for a configuration that no memory holds or that the formulas do not allow."""
    _check_numbers(config)
    encoder, decoder = config.encoder, config.decoder
    for name, part in (("encoder", encoder), ("decoder", decoder)):
        if part.heads % part.key_heads:
            raise CheckpointError(f"{name}: {part.heads} heads can't share {part.key_heads} key heads evenly")
    if encoder.rotary % 2 or encoder.rotary > encoder.head_size or decoder.head_size % 2:
        raise CheckpointError(f"rotary dims {encoder.rotary} of {encoder.head_size}, {decoder.head_size}: expected even numbers, "
                              "within the head")
    if encoder.hidden != config.merge * encoder.width:
        raise CheckpointError(f"encoder: hidden {encoder.hidden} is not {config.merge} x width {encoder.width}; the projector "
                              f"stacks {config.merge} states")
    if config.window // HOP % STRIDE:
        raise CheckpointError(f"window of {config.window_seconds} s: {config.window // HOP} mel frames are not a multiple of {STRIDE}")
    if config.longest_windows < 1:
        raise CheckpointError(f"longest recording {config.longest_seconds} s is shorter than a window of {config.window_seconds} s")
    if not isinstance(config.instruction, str):
        raise CheckpointError(f"default_transcription_prompt is {config.instruction!r}, expected a text")
    if not config.stop or not all(_is_integer(stop) and 0 <= stop < decoder.vocabulary for stop in config.stop):
        raise CheckpointError(f"eos_token_id is {list(config.stop)!r}, expected ids below the vocabulary size {decoder.vocabulary}")
    if config.audio_token >= decoder.vocabulary:
        raise CheckpointError(f"audio_token_id {config.audio_token} is not below the vocabulary size {decoder.vocabulary}")


def _is_integer(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


PRESETS = {
    "glm-asr-nano-2512": GlmAsrConfig(),
    "article": EncoderDecoderConfig(),
    "article-waveform": EncoderDecoderConfig(SinusoidalEncoderConfig(positions=3000, convolutions=CONVOLUTIONS)),
}
