"""The two recognizers, each its parts as one model, with the interface that the search drives:

    encode(...) -> audio                prompt(...) -> ids
    new_cache(rows, capacity)           prefill(audio, prompt, cache) -> logits         step(tokens, cache) -> logits

`GlmAsr`, as published under that name: the decoder is a chat model, which reads a prompt whose placeholders `<|pad|>`
were replaced by audio embeddings, and writes the transcript as the answer. There is no cross-attention.

`EncoderDecoder`, as the article describes it, and Whisper (Radford et al., 2022): the decoder attends to the encoder
states through cross-attention; its prompt is three or four special tokens that say language and task. It can write
times.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from . import audio as sound
from .config import EncoderDecoderConfig, GlmAsrConfig
from .conv_frontend import audio_rows
from .decoder import CrossDecoder, LlamaDecoder
from .encoder import Projector, RotaryEncoder, SinusoidalEncoder
from .errors import OptionError
from .layers import Cache, LayerCache, PromptCache
from .observing import stage
from .rules import Forbid, ForbidFirst, Rule, TimestampRule


class TextEncoder(Protocol):
    """What a prompt asks of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text in which special tokens such as `<|user|>` count as such."""


class GlmAsr(nn.Module):
    """GLM-ASR as published: an audio encoder, a projector, and a Llama that reads the audio inside a chat prompt."""

    def __init__(self, config: GlmAsrConfig):
        super().__init__()
        self.config = config
        self.encoder = RotaryEncoder(config.encoder)
        self.projector = Projector(config.merge, config.encoder.width, config.decoder.width)
        self.decoder = LlamaDecoder(config.decoder)

    @property
    def device(self) -> torch.device:
        """The device of the weights; inputs are moved to it."""
        return self.decoder.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the decoder's weights, and so of embeddings, keys and values."""
        return self.decoder.embed.weight.dtype

    @stage("audio embeddings")
    def encode(self, mel: Tensor, samples: Sequence[int]) -> list[Tensor]:
        """Windows of log-mel (B, bands, frames) -> the audio embeddings (N, D) of each window.

        `samples` says how much of each window is recording.
        """
        return self.project(self.encoder(mel.to(self.device, self.dtype)), samples)

    def project(self, states: Tensor, samples: Sequence[int]) -> list[Tensor]:
        """Encoder states of windows (B, T, D) -> the audio embeddings (N, D) of each window.

        The rows of a window's padding are dropped, AFTER the encoder saw the padding.
        """
        rows = self.projector(states)
        return [window[: audio_rows(count, self.config.merge)] for window, count in zip(rows, samples, strict=True)]

    def prompt(self, tokenizer: TextEncoder, rows: int, instruction: str | None = None) -> list[int]:
        """The ids of the prompt that the model was trained with, for `rows` audio embeddings; with another
        `instruction`, one that it was not trained with.

        TRAP: the second `<|user|>` after the audio. Other ports leave it out, or the instruction, and the model drifts
        or repeats itself.
        """
        before = tokenizer.encode("<|user|>\n<|begin_of_audio|>")
        asked = self.config.instruction if instruction is None else instruction
        after = tokenizer.encode(f"<|end_of_audio|><|user|>\n{asked}<|assistant|>\n")
        return before + [self.config.audio_token] * rows + after

    def embed(self, tokens: Tensor, audio: list[Tensor]) -> Tensor:
        """Token ids (B, T) -> embeddings (B, T, D), with audio embeddings in place of the placeholders, in order."""
        x = self.decoder.embed(tokens)
        embeddings = torch.cat(audio).to(x.dtype)
        places = tokens == self.config.audio_token
        if x.device.type != "cuda" and int(places.sum()) != len(embeddings):
            raise ValueError(f"{int(places.sum())} placeholders for {len(embeddings)} audio embeddings")
        return x.masked_scatter(places[..., None], embeddings)

    def new_cache(self, rows: int, capacity: int) -> Cache:
        """An empty cache of up to `capacity` tokens, prompt and audio embeddings included, for each row."""
        return self.decoder.new_cache(rows, capacity)

    def prefill(self, audio: list[Tensor], prompt: Sequence[Sequence[int]], cache: PromptCache) -> Tensor:
        """Reads the prompts of A recordings with their audio embeddings; returns the logits (A, V) of the first token.

        Prompts of different lengths are padded at the left. Rotary attention sees differences of positions only, so a
        shifted prompt needs nothing more than a mask over the padding.
        """
        longest = max(map(len, prompt))
        padding = [longest - len(ids) for ids in prompt]
        # A padding id must not be the placeholder; what it is otherwise doesn't matter, it is masked.
        filler = 0 if self.config.audio_token else 1
        tokens = torch.tensor(
            [[filler] * pad + list(ids) for pad, ids in zip(padding, prompt, strict=True)], device=self.device
        )
        if any(padding):
            cache.pad(torch.tensor(padding, device=self.device))
        states = self.decoder(self.embed(tokens, audio), cache, last=True)
        return self.decoder.head(states[:, 0])

    def step(self, tokens: Tensor, cache: LayerCache) -> Tensor:
        """One token for each row, (B,) -> logits of the next, (B, V)."""
        return self.read(tokens[:, None], cache)[:, -1]

    def read(self, tokens: Tensor, cache: LayerCache) -> Tensor:
        """T tokens of each row, (B, T) -> the logits after each of them (B, T, V)."""
        return self.decoder.head(self.decoder(self.decoder.embed(tokens), cache))


NO_TIMES = "this model has no time tokens (no_timestamps_token_id in generation_config.json)"


class EncoderDecoder(nn.Module):
    """The article's system and Whisper: an audio encoder, and a decoder that reads it through cross-attention."""

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__()
        self.config = config
        self.encoder = SinusoidalEncoder(config.encoder)
        self.decoder = CrossDecoder(config.decoder)

    @property
    def device(self) -> torch.device:
        """The device of the weights; inputs are moved to it."""
        return self.decoder.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights; features are cast to it."""
        return self.decoder.embed.weight.dtype

    @stage("samples")
    def features(self, windows: Tensor) -> Tensor:
        """Samples (B, S), one row a window -> what the frontend takes: log-mel (B, bands, frames), or the
        samples (B, 1, S)."""
        if not self.config.encoder.convolutions:
            return sound.log_mel(windows, self.config.encoder.bands)
        # Loudness is no information. The log-mel is relative to the loudest band of a window; samples are made so here.
        peak = windows.abs().amax(dim=1, keepdim=True)
        return (windows / peak.clamp(min=1e-4))[:, None]

    def encode(self, features: Tensor) -> Tensor:
        """Features of windows (B, ...) -> encoder states (B, T, D)."""
        return self.encoder(features.to(self.device, self.dtype))

    def prompt(self, language: str | None = None, task: str = "transcribe", timestamps: bool = False) -> list[int]:
        """<|startoftranscript|><|zh|><|transcribe|><|notimestamps|>, the last one only without `timestamps`.

        A checkpoint for one language has no tokens for language and task, and is asked for neither. Raises
        OptionError.
        """
        config = self.config
        ids = [config.start]
        if config.languages:
            for kind, name, known in (("language", language, config.languages), ("task", task, config.tasks)):
                if not isinstance(name, str) or name not in known:
                    some = [*known][:10] + ["..."] * (len(known) > 10)
                    raise OptionError(f"{kind} is {name!r}; this model has tokens for {', '.join(some)} only")
                ids.append(known[name])
        elif task != "transcribe":
            raise OptionError(f"task is {task!r}; this model supports 'transcribe' only")
        if config.no_timestamps is None:
            if timestamps:
                raise OptionError(NO_TIMES)
            return ids
        return ids if timestamps else [*ids, config.no_timestamps]

    def rules(self, timestamps: bool = False) -> list[Rule]:
        """What this checkpoint never writes, what it doesn't begin with, and the order of times."""
        config, vocabulary = self.config, self.config.decoder.vocabulary
        rules: list[Rule] = []
        if config.suppress_first:
            rules.append(ForbidFirst(config.suppress_first, vocabulary, self.device))
        if config.suppress:
            rules.append(Forbid(config.suppress, vocabulary, self.device))
        if timestamps:
            if config.no_timestamps is None:
                raise OptionError(NO_TIMES)
            rules.append(
                TimestampRule(
                    begin=config.times,
                    end=config.end,
                    no_timestamps=config.no_timestamps,
                    latest_first=config.latest_first_time,
                )
            )
        return rules

    def new_cache(self, rows: int, capacity: int) -> Cache:
        """An empty cache of up to `capacity` tokens for each row; `prefill` puts the cross keys and values into it."""
        return self.decoder.new_cache(rows, capacity)

    def prefill(
        self, audio: Tensor | list[tuple[Tensor, Tensor]], prompt: Sequence[Sequence[int]], cache: Cache
    ) -> Tensor:
        """Reads the prompts for encoder states (A, T, D), or for what `decoder.cross_kv` made of them, which can serve
        several searches; returns the logits (A, V) of the first answer token.

        Learned positions can't be shifted, so the prompts of a batch are equally long. ValueError if they aren't.
        """
        if len({len(ids) for ids in prompt}) != 1:
            raise ValueError(
                f"prompts of {sorted({len(ids) for ids in prompt})} tokens in one batch; expected equal lengths"
            )
        cache.cross = self.decoder.cross_kv(audio) if isinstance(audio, Tensor) else audio
        tokens = torch.tensor([list(ids) for ids in prompt], device=self.device)
        return self.decoder.head(self.decoder(tokens, cache.cross, cache)[:, -1])

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """One token for each row, (B,) -> logits of the next, (B, V)."""
        return self.read(tokens[:, None], cache)[:, -1]

    def read(self, tokens: Tensor, cache: Cache) -> Tensor:
        """T tokens of each row, (B, T) -> the logits after each of them (B, T, V)."""
        return self.decoder.head(self.decoder(tokens, cache.cross, cache))

    @stage("language")
    @torch.inference_mode()
    def detect_language(self, audio: Tensor | list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Encoder states (A, T, D), or what `decoder.cross_kv` made of them -> the probability of each language of
        `config.languages` (A, L), and of no speech (A,).

        One throw-away step after <|startoftranscript|>. The languages are normalized among themselves; the probability
        of no speech is relative to all tokens (openai/whisper, decoding.py: detect_language, no_speech_prob).
        """
        A = len(audio) if isinstance(audio, Tensor) else len(audio[0][0])
        logits = self.prefill(audio, [[self.config.start]] * A, self.new_cache(A, 1)).float()
        languages = logits[:, list(self.config.languages.values())].softmax(-1)
        if self.config.no_timestamps is None:
            return languages, languages.new_zeros(A)
        return languages, logits.softmax(-1)[:, self.config.no_speech]
