"""GLM-ASR as a family: the sound goes into the prompt, there are no language tokens and no times."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..alignment.reading import Reading, all_heads, read_prompted
from ..audio import HOP, log_mel, windows
from ..config import GlmAsrConfig
from ..errors import CheckpointError, OptionError
from ..kernels.cuda_graphs import GraphedModel
from ..model import GlmAsr
from ..rules import Forbid, Rule
from .chunking import Window
from .families import EncodedBatch, Job, Piece, States, padded_to_speech, readable, whole_text
from .language import LANGUAGES, AnyTokenizer, alike, canonical, forbidden_ids
from .options import Options
from .prompts import plain_ids

SHORTEST = 961  # samples; fewer make no embedding, and are padded with silence up to here
ENCODER_BATCH = {"cpu": 1, "cuda": 16}  # windows that are encoded at a time; a CPU has enough to do with one
MARKERS = ("<|user|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|assistant|>")  # special tokens of the prompt
PAD_STEP = 10_240  # samples, 0.64 s, to a multiple of which a window is padded
UNLIMITED = 2**31


class GlmAsrFamily:
    """The `Family` of a `GlmAsr`: windows of samples -> audio embeddings and prompts; ids -> a segment for each."""

    long_form: tuple[str, ...] = ("cut", "whole")
    detects_language = False

    def __init__(self, model: GlmAsr | GraphedModel, tokenizer: AnyTokenizer):
        self.model = model
        self.tokenizer = tokenizer
        self._rules: dict[tuple[str, ...], list[Rule]] = {}

    @property
    def config(self) -> GlmAsrConfig:
        """The model's configuration, with or without CUDA graphs."""
        return self.model.config

    @property
    def languages(self) -> tuple[str, ...]:
        """All of LANGUAGES but "auto": they act by forbidden scripts, as there are no language tokens."""
        return tuple(name for name in LANGUAGES if name != "auto")

    @property
    def samples_per_state(self) -> int:
        """Samples per audio embedding, which is made of `merge` encoder states."""
        return HOP * 2 * self.config.merge  # the second convolution halves the frames

    def check_tokenizer(self) -> None:
        """TRAP: with the tokenizer of another model the prompt has ids that mean something else, or nothing."""
        for name in MARKERS:
            self.tokenizer.id(name)
        prompt = self.model.prompt(self.tokenizer, 1)
        if max(prompt) >= self.config.decoder.vocabulary or prompt.count(self.config.audio_token) > 1:
            raise CheckpointError(
                f"its ids don't fit config.json (a vocabulary of {self.config.decoder.vocabulary}, audio token "
                f"{self.config.audio_token}); it is that of another model"
            )

    def timed(self, options: Options) -> bool:
        """False: the vocabulary has no time tokens."""
        return False

    def rules(self, language: str, options: Options) -> list[Rule]:
        """The checkpoint has no language tokens: letters that the language isn't written in are forbidden."""
        asked, language = language, canonical(language)
        if not isinstance(language, str) or language not in LANGUAGES:
            expected = f"expected one of {', '.join(LANGUAGES)}{alike(asked, LANGUAGES)}"
            raise OptionError(f"language is {asked!r}, {expected}")
        if options.task != "transcribe":
            raise OptionError(f"task is {options.task!r}; this model supports 'transcribe' only")
        if options.prompt or options.context:
            raise OptionError(
                f"{'prompt' if options.prompt else 'context'} is given, but GLM-ASR was trained with one prompt only "
                "and takes no text beside the audio; for names take hotwords"
            )
        self.instruction(options)
        if options.timestamps:
            raise OptionError(
                "this model has no time tokens; models of the encoder-decoder family have "
                "(--model demo-article, or Whisper)"
            )
        among = options.languages if language == "auto" and options.languages else (language,)
        if among not in self._rules:
            size = self.config.decoder.vocabulary
            # Of several languages, letters that none of them is written in.
            ids = sorted(set.intersection(*(set(forbidden_ids(self.tokenizer, name, size)) for name in among)))
            self._rules[among] = [Forbid(ids, size, self.model.device)] if ids else []
        return self._rules[among]

    def padded_length(self, window: Window, options: Options) -> int:
        """A full window, as in training and for long jobs; with `pad_to` "speech", a multiple of PAD_STEP."""
        full = self.config.window
        if options.pad_to == "window" or len(window.samples) > full:
            return full
        return padded_to_speech(window, full, PAD_STEP)

    def encode(self, jobs: list[Job], length: int, options: Options, states: States) -> EncodedBatch:
        """Prompts depend on the number of audio embeddings only. No language is detected: a requested one acts through
        `rules`."""
        full = self.config.window
        samples = [job.window.samples for job in jobs]
        audio = self.embed_all([each if len(each) > full else each[:length] for each in samples], length)
        instruction = self.instruction(options)
        prompts = [self.model.prompt(self.tokenizer, len(rows), instruction) for rows in audio]
        languages = ["" if job.requested == "auto" else job.requested for job in jobs]
        return EncodedBatch(audio, prompts, languages, states=states)

    def instruction(self, options: Options) -> str | None:
        """What replaces the one that the model was trained with. Raises OptionError for special tokens in it."""
        if not options.instruction:
            return None
        plain_ids(self.tokenizer, options.instruction, "instruction")
        return options.instruction

    def prompt(self, language: str, options: Options) -> list[int]:
        """Raises NotImplementedError: `runners_up` is None in this family, so nothing calls it."""
        raise NotImplementedError("it depends on the sound, not on the language")

    @torch.inference_mode()
    def embed(self, samples: Tensor, window: int | None = None) -> Tensor:
        """Samples (S,) at 16 kHz -> audio embeddings (N, D), those of all windows one after the other. Windows are
        padded up to `window` samples; by default as published."""
        return self.embed_all([samples], window or self.config.window)[0]

    def embed_all(self, recordings: list[Tensor], window: int) -> list[Tensor]:
        """`embed` for several recordings, as many windows at a time as the machine has a use for: memory doesn't grow
        with them."""
        parts: list[Tensor] = []
        lengths: list[int] = []
        counts: list[int] = []
        for samples in recordings:
            samples = F.pad(samples, (0, max(0, SHORTEST - len(samples))))
            parts += windows(samples, window)
            starts = range(0, len(samples), window)
            lengths += [min(window, len(samples) - start) for start in starts]
            counts.append(len(starts))
        embedded: list[Tensor] = []
        while len(embedded) < len(parts):
            # Powers of two: few shapes, each of which may be a graph.
            rows = min(ENCODER_BATCH.get(self.model.device.type, 1), 1 << (len(parts) - len(embedded)).bit_length() - 1)
            some = slice(len(embedded), len(embedded) + rows)
            embedded += self.encode_windows(parts[some], lengths[some])
        rest = iter(embedded)
        return [torch.cat([next(rest) for _ in range(count)]) for count in counts]

    def encode_windows(self, windows: list[Tensor], samples: list[int]) -> list[Tensor]:
        """Padded windows (S,), with how many of their samples are recording -> the audio embeddings (N, D) of each."""
        mel = log_mel(torch.stack(windows).to(self.model.device), self.config.encoder.bands)
        return self.model.encode(mel, samples)

    def token_limit(self, prompt: int) -> int:
        """No limit. TRAP: the model's `positions` are none, as in Transformers: rotary positions go on beyond."""
        return UNLIMITED

    def text(self, ids: list[int]) -> str:
        """The decoded text, stripped; there are no time tokens to remove."""
        return readable(self.tokenizer.decode(ids))

    def segments(self, window: Window, ids: list[int]) -> list[Piece]:
        """A single piece over the window's `sound_span`; [] without text."""
        return whole_text(window, self.text(ids), ids)

    @torch.inference_mode()
    def read_again(
        self, window: Window, audio: list[Tensor], prompt: list[int], ids: list[int], every_head: bool = False
    ) -> Reading:
        """With the whole prompt, as it is what the text's keys are in; the audio embeddings are made already."""
        config, model = self.config, self.model.model if isinstance(self.model, GraphedModel) else self.model
        heads = all_heads(config.decoder.layers, config.decoder.heads) if every_head else config.alignment_heads
        tokens = torch.tensor([[*prompt, *ids, config.stop[0]]], device=model.device)
        first = prompt.index(config.audio_token)
        sound = slice(first, first + len(audio[0]))
        return read_prompted(model.decoder, model.embed(tokens, audio), len(prompt), sound, heads)

    def resume(self, window: Window, ids: list[int]) -> float:
        """The end of the window: without times it isn't known where a sentence ends."""
        return window.begin + window.seconds
