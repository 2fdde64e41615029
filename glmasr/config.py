"""What a model is made of, as frozen data.

    GlmAsrConfig            the published GLM-ASR-Nano-2512, whose values are its defaults
    EncoderDecoderConfig    the article's system, whose values are its defaults, and Whisper

Each checks its values when it is made: one that this package can't compute with is a CheckpointError that names it.
`checkpoint/config_json.py` reads and writes the published files.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any, TypeGuard

from .errors import CheckpointError

SAMPLE_RATE = 16_000  # samples a second, of everything after reading a recording
HOP = 160  # samples between two mel frames: 10 ms, SAMPLE_RATE / HOP = 100 frames a second
STRIDE = 2 * 4  # mel frames for each audio embedding of GLM-ASR: convolution stride 2, then 4 states stacked


# -- GLM-ASR -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncoderConfig:
    """The audio encoder: two convolutions, then pre-norm blocks with rotary positions."""

    bands: int = 128  # mel bands that go in
    width: int = 1280
    layers: int = 32
    heads: int = 20
    key_heads: int = 20
    head_size: int = 64
    hidden: int = 5120  # width inside the MLP
    rotary: int = 32  # leading dims of each head that RoPE turns; the others carry no position
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
    positions: int = 8192  # longest prompt and answer together
    tied: bool = False  # the vocabulary head is the embedding


@dataclass(frozen=True)
class GlmAsrConfig:
    """GLM-ASR as published: encoder, projector, decoder, and the settings of prompt and search."""

    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    merge: int = 4  # encoder states stacked into one audio embedding
    audio_token: int = 59_260  # `<|pad|>`: the placeholder that an audio embedding replaces, NOT padding
    stop: tuple[int, ...] = (59_246, 59_253, 59_255)
    window_seconds: int = 30
    longest_seconds: int = 655  # as published; what counts is the whole windows in it: 21, or 630 s
    instruction: str = "Please transcribe this audio into text"
    beams: int = 1  # of a search, if the caller doesn't say: the published model is used greedily
    alignment_heads: tuple[tuple[int, int], ...] = ()  # (layer, head) of the decoder that follow the sound, from 0
    alignment_lead: float = 0.06  # seconds by which they look at a sound too soon

    def __post_init__(self) -> None:
        check(self)

    @property
    def window(self) -> int:
        """Samples in a window."""
        return self.window_seconds * SAMPLE_RATE

    @property
    def longest_windows(self) -> int:
        """Windows in one prompt at most, for `--long whole`: whole ones that fit into `longest_seconds`."""
        return self.longest_seconds // self.window_seconds


# -- the article's system and Whisper ----------------------------------------------------------------------------------

Convolution = tuple[int, int, int]  # channels, kernel, stride

# Of the article's raw-waveform frontend, in front of any width: 160 samples, 10 ms, from frame to frame, and each is
# made of 385 samples, 24 ms. The article gives the scheme and the stride; these numbers are ours.
CONVOLUTIONS: tuple[Convolution, ...] = ((512, 10, 5), (512, 8, 4), (512, 4, 2), (512, 4, 2), (512, 3, 2))
TIME_STEP = 0.02  # seconds from one time token to the next


def total_stride(convolutions: tuple[Convolution, ...]) -> int:
    """Samples between two frames: 160, 10 ms, for the article's."""
    return math.prod(stride for _, _, stride in convolutions)


@dataclass(frozen=True)
class SinusoidalEncoderConfig:
    """The audio encoder: a frontend, sinusoids, pre-norm blocks."""

    bands: int = 80  # mel bands that go in; with `convolutions` there are none, and samples go in
    width: int = 1024
    layers: int = 12
    heads: int = 16
    hidden: int = 4096  # width inside the MLP
    positions: int = 1500  # states of a window
    convolutions: tuple[Convolution, ...] = ()
    eps: float = 1e-5

    @property
    def stride(self) -> int:
        """Samples between two states."""
        return total_stride(self.convolutions) if self.convolutions else 2 * HOP

    @property
    def head_size(self) -> int:
        """K, the width of each head."""
        return self.width // self.heads

    @property
    def key_heads(self) -> int:
        """G. It equals H: no key head is shared by several query heads."""
        return self.heads


@dataclass(frozen=True)
class CrossDecoderConfig:
    """The text decoder with cross-attention."""

    vocabulary: int = 51_865
    width: int = 1024
    layers: int = 6
    heads: int = 16
    hidden: int = 4096
    positions: int = 448  # longest prompt and answer together
    eps: float = 1e-5

    @property
    def head_size(self) -> int:
        """K, the width of each head, in self-attention and cross-attention."""
        return self.width // self.heads


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """Encoder, decoder with cross-attention, and the special tokens that steer it. The ids are those of the article's
    vocabulary: 50,356 pieces of text, eight special tokens, and the times <|0.00|> to <|30.00|>."""

    encoder: SinusoidalEncoderConfig = SinusoidalEncoderConfig()
    decoder: CrossDecoderConfig = CrossDecoderConfig()
    window_seconds: float = 30
    start: int = 50_357  # <|startoftranscript|>
    end: int = 50_356  # <|endoftranscript|>, in Whisper <|endoftext|>
    languages: dict[str, int] = field(default_factory=lambda: {"zh": 50_358, "yue": 50_359, "en": 50_360})
    tasks: dict[str, int] = field(default_factory=lambda: {"transcribe": 50_361})
    several_languages: bool = True  # False: the files say that it was trained for one
    no_timestamps: int | None = 50_363  # the id before it is <|nospeech|>, the ids after it are the times
    suppress: tuple[int, ...] = ()  # ids that never come
    suppress_first: tuple[int, ...] = ()  # ids that don't come first
    latest_first_time: int | None = 50  # in time steps: speech begins within the first second
    beams: int = 5
    alignment_heads: tuple[tuple[int, int], ...] = ()  # (layer, head) of cross-attention that follow the sound, from 0
    alignment_lead: float = 0.06  # seconds by which they look at a sound too soon

    def __post_init__(self) -> None:
        check_encoder_decoder(self)

    @property
    def window(self) -> int:
        """Samples in a window."""
        return round(self.window_seconds * SAMPLE_RATE)

    @property
    def stop(self) -> tuple[int, ...]:
        """The ids that end an answer, a single one here; named as in `GlmAsrConfig`."""
        return (self.end,)

    @property
    def times(self) -> int:
        """The id of <|0.00|>, of a model that has times."""
        assert self.no_timestamps is not None
        return self.no_timestamps + 1

    @property
    def no_speech(self) -> int:
        """The id of <|nospeech|>, of a model that has times."""
        assert self.no_timestamps is not None
        return self.no_timestamps - 1


# -- checks ------------------------------------------------------------------------------------------------------------

LARGEST = 2**24  # no width, count or vocabulary of these families comes near it: absurd values stop here
LONGEST_WINDOW = 600  # seconds; each recording is padded to whole windows
_MAY_BE_ZERO = ("audio_token", "rotary", "start", "end")


def is_integer(value: object) -> TypeGuard[int]:
    """TRAP: in Python a bool is an int; in a JSON file it is something else."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is an int or a float, and finite. A bool is not a number here, nor is anything of 1e300 or more."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def check(config: GlmAsrConfig) -> None:
    """Raises CheckpointError for a configuration that no memory holds or that the formulas do not allow."""
    _check_numbers(config)
    encoder, decoder = config.encoder, config.decoder
    for name, part in (("encoder", encoder), ("decoder", decoder)):
        if part.heads % part.key_heads:
            raise CheckpointError(f"{name}: {part.heads} heads can't share {part.key_heads} key heads evenly")
    if encoder.rotary % 2 or encoder.rotary > encoder.head_size or decoder.head_size % 2:
        raise CheckpointError(
            f"rotary dims {encoder.rotary} of {encoder.head_size}, {decoder.head_size}: expected even numbers, "
            "within the head"
        )
    if encoder.hidden != config.merge * encoder.width:
        raise CheckpointError(
            f"encoder: hidden {encoder.hidden} is not {config.merge} x width {encoder.width}; the projector "
            f"stacks {config.merge} states"
        )
    frames = config.window // HOP
    if frames % STRIDE:
        raise CheckpointError(
            f"window of {config.window_seconds} s: {frames} mel frames are not a multiple of {STRIDE}"
        )
    if config.longest_windows < 1:
        raise CheckpointError(
            f"longest recording {config.longest_seconds} s is shorter than a window of {config.window_seconds} s"
        )
    if not isinstance(config.instruction, str):
        raise CheckpointError(f"default_transcription_prompt is {config.instruction!r}, expected a text")
    if not config.stop or not all(is_integer(stop) and 0 <= stop < decoder.vocabulary for stop in config.stop):
        raise CheckpointError(
            f"eos_token_id is {list(config.stop)!r}, expected ids below the vocabulary size {decoder.vocabulary}"
        )
    if config.audio_token >= decoder.vocabulary:
        raise CheckpointError(
            f"audio_token_id {config.audio_token} is not below the vocabulary size {decoder.vocabulary}"
        )


def check_encoder_decoder(config: EncoderDecoderConfig) -> None:
    """Raises CheckpointError for a configuration that no memory holds or that the formulas do not allow."""
    _check_numbers(config)
    encoder, decoder = config.encoder, config.decoder
    for name, part in (("encoder", encoder), ("decoder", decoder)):
        if part.width % part.heads or part.width < 4 or part.width % 2:
            raise CheckpointError(
                f"{name}: width {part.width}, expected an even multiple of the number of heads, {part.heads}"
            )
    if encoder.width != decoder.width:
        raise CheckpointError(f"encoder and decoder are {encoder.width} and {decoder.width} wide, expected the same")
    if encoder.positions * encoder.stride != config.window:
        raise CheckpointError(
            f"a window of {config.window_seconds} s gives {config.window / encoder.stride:g} states, but the encoder "
            f"has {encoder.positions} positions (max_source_positions)"
        )
    special = {
        "start": (config.start,),
        "end": (config.end,),
        "languages": tuple(config.languages.values()),
        "tasks": tuple(config.tasks.values()),
        "no_timestamps": () if config.no_timestamps is None else (config.no_timestamps,),
        "suppress": config.suppress,
        "suppress_first": config.suppress_first,
    }
    for name, ids in special.items():
        for number in ids:
            if not (is_integer(number) and 0 <= number < decoder.vocabulary):
                raise CheckpointError(
                    f"{name}: id {number!r}, expected one below the vocabulary size {decoder.vocabulary}"
                )
    if config.no_timestamps is not None and not (config.no_timestamps >= 1 and config.end < config.times):
        raise CheckpointError(
            f"no_timestamps_token_id is {config.no_timestamps} and eos_token_id {config.end}; expected ids in the "
            "order end, no speech, no timestamps, times"
        )
    latest = config.latest_first_time
    if latest is not None and not (is_integer(latest) and 0 <= latest <= LARGEST):
        raise CheckpointError(f"max_initial_timestamp_index is {latest!r}, expected a positive integer")


def _check_numbers(config: GlmAsrConfig | EncoderDecoderConfig) -> None:
    """Raises CheckpointError for values that no memory holds."""
    decoder = config.decoder
    if not (is_number(config.alignment_lead) and 0 < config.alignment_lead <= 1):
        raise CheckpointError(f"alignment_lead is {config.alignment_lead!r}, expected seconds, above 0 and at most 1")
    for pair in config.alignment_heads:
        good = len(pair) == 2 and all(map(is_integer, pair)) and 0 <= pair[0] < decoder.layers
        if not (good and 0 <= pair[1] < decoder.heads):
            raise CheckpointError(
                f"alignment_heads has {list(pair)!r}, expected a layer below {decoder.layers} and a head below "
                f"{decoder.heads}"
            )
    parts: dict[str, Any] = {"encoder": config.encoder, "decoder": decoder, "model": config}
    for name, part in parts.items():
        for entry in fields(part):
            value = getattr(part, entry.name)
            if entry.type is int and not (is_integer(value) and 0 <= value <= LARGEST):
                raise CheckpointError(f"{name}: {entry.name} is {value!r}, expected an integer from 0 to {LARGEST}")
            if entry.type is int and value == 0 and entry.name not in _MAY_BE_ZERO:
                raise CheckpointError(f"{name}: {entry.name} is 0, expected at least 1")
            if entry.type is float and not (is_number(value) and value > 0):
                raise CheckpointError(f"{name}: {entry.name} is {value!r}, expected a positive number")
        if getattr(part, "layers", 0) > 1000:
            raise CheckpointError(f"{name}: {part.layers} layers, expected at most 1000")
        if name != "model" and part.heads * part.head_size > LARGEST:
            raise CheckpointError(f"{name}: {part.heads} heads of {part.head_size}, expected at most {LARGEST} in all")
    if config.window_seconds > LONGEST_WINDOW:
        raise CheckpointError(
            f"a window of {config.window_seconds} s (chunk_length), expected at most {LONGEST_WINDOW} s"
        )


PRESETS: dict[str, GlmAsrConfig | EncoderDecoderConfig] = {
    "glm-asr-nano-2512": GlmAsrConfig(),
    "article": EncoderDecoderConfig(),
    "article-waveform": EncoderDecoderConfig(SinusoidalEncoderConfig(positions=3000, convolutions=CONVOLUTIONS)),
    # Students of 277 M parameters each. That of GLM-ASR is narrower too, for its teacher's embedding alone has 121 M.
    "glm-asr-student": GlmAsrConfig(
        EncoderConfig(width=768, layers=12, heads=12, key_heads=12, hidden=3072),
        DecoderConfig(width=1024, layers=10, heads=8, key_heads=2, hidden=3072, tied=True),
    ),
    "article-student": EncoderDecoderConfig(decoder=CrossDecoderConfig(layers=4)),
}
