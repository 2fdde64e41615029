"""What differs between the model families in training: what of a clip goes in, and which tokens are to be learned.

    GlmAsrFamily            prompt with placeholders, then the text and its stop; a recording may have several windows
    EncoderDecoderFamily    <|startoftranscript|>, language, task; then the text, a part of the time with the times of
                            its phrases, perhaps after what was said before

Both give a Batch, and the decoder's states and the encoder's states for it.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from augment import mask_mel, spec_augment
from manifest import Phrase, Row
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from glmasr import audio
from glmasr.config import HOP, STRIDE, TIME_STEP
from glmasr.conv_frontend import audio_rows, conv_frames, mel_frames
from glmasr.model import GlmAsr
from glmasr.tokenizer import SentencePieceTokenizer
from glmasr.transcription.language import alike
from glmasr.transcription.prompts import PREVIOUS
from glmasr.writers.line_breaks import UNSPACED

IGNORE = -100  # a target that has no loss
TIME_SPREAD = 4  # steps of 20 ms: with smoothed targets a time this near is right as well, the less the farther
AFTER = 1.0  # seconds of silence after the longest clip, where not all of a window is encoded


@dataclass
class Clip:
    """A recording as it is used in one step: samples (S,) at 16 kHz, its text, the times of its phrases, and what was
    said before."""

    samples: Tensor
    text: str
    language: str
    phrases: tuple[Phrase, ...] = ()
    previous: str = ""
    where: str = ""  # of its row


@dataclass(frozen=True)
class Changes:
    """How clips are made a batch. As they are here: as a published model was trained, and how a loss is measured."""

    whole: bool = True  # padded to the whole window, else to the longest clip
    after: float = 0.0  # seconds after the longest clip, if not `whole`
    masked: bool = False  # changed bands and stripes, as the demos learn
    spec: bool = False  # SpecAugment
    misread: float = 0.0  # share of the text that the decoder reads wrongly
    shift: float = 0.0  # share of the clips that begin later
    timed: float = 0.0  # share of the clips with phrases that get their times
    previous: float = 0.0  # share of the clips that get what was said before


EXACT = Changes()


class Kept(Protocol):
    """`states.States`, which needs the families."""

    def of(self, windows: Tensor) -> Tensor | None:
        """Padded windows (W, S) -> the encoder's states of them (W, T, D), if they are kept."""


@dataclass
class Batch:
    """Clips as the model takes them."""

    features: Tensor  # (windows, ...) what the frontend takes
    samples: list[list[int]]  # for each recording the samples in each of its windows
    tokens: Tensor  # (B, T) prompt and text
    targets: Tensor  # (B, T) the next token where it is to be learned, else IGNORE
    labels: list[Tensor]  # text ids, for CTC
    where: list[str]  # of the rows
    encoded: bool = False  # whether `features` are the encoder's states already

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return replace(
            self,
            features=self.features.to(device),
            tokens=self.tokens.to(device),
            targets=self.targets.to(device),
            labels=[label.to(device) for label in self.labels],
        )


def family_of(model, tokenizer, times: float = 1.0, smoothing: float = 0.0) -> "GlmAsrFamily | EncoderDecoderFamily":
    """`times`: the weight of a time in the loss, where a word has 1 (GLM-ASR has no times); `smoothing` of the targets:
    with it, times next to the right one are right as well."""
    if isinstance(model, GlmAsr):
        return GlmAsrFamily(model, tokenizer, smoothing)
    return EncoderDecoderFamily(model, tokenizer, times, smoothing)


def misheard(text: Tensor, everything: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """The text as the decoder reads it while it learns: with some wrong words, so that it learns to follow the sound
    even where its own text is wrong. Otherwise one wrong word can begin an answer that never ends."""
    wrong = torch.from_numpy(rng.random(len(text)) < share)
    return torch.where(wrong, everything[torch.from_numpy(rng.integers(0, max(1, len(everything)), len(text)))], text)


def _rows(tokens: list[Tensor], targets: list[Tensor]) -> tuple[Tensor, Tensor]:
    return pad_sequence(tokens, batch_first=True), pad_sequence(targets, batch_first=True, padding_value=IGNORE)


def _changed(mel: Tensor, changes: Changes, counts: list[int], rng: np.random.Generator) -> Tensor:
    """`counts`: samples of sound in each window (B, bands, frames)."""
    if changes.spec:
        mel = spec_augment(mel, [mel_frames(count) for count in counts], rng)
    return mask_mel(mel, rng) if changes.masked else mel


def _kept(states: Kept | None, windows: Tensor, changes: Changes) -> Tensor | None:
    return states.of(windows) if states and not changes.spec and not changes.masked else None


def _plain(tokenizer, text: str) -> list[int]:
    """The ids of a text. Raises ValueError for special tokens in it, which say something else than their letters."""
    ids = tokenizer.encode(text)
    special = {number: name for name, number in tokenizer.special.items()}
    if found := [special[number] for number in ids if number in special]:
        raise ValueError(f"has the special token {found[0]!r} in its text; expected plain text: leave it out")
    return ids


def _check_length(ids: int, prompt: int, positions: int) -> None:
    if prompt + ids > positions:
        raise ValueError(
            f"has a text of {ids} tokens, after a prompt of {prompt}; the model has {positions} positions for both: "
            "cut the clip into shorter ones, or look whether the text is that of this clip"
        )


class GlmAsrFamily:
    """GLM-ASR: the published prompt; learned are the text and the stop that ends a turn."""

    def __init__(self, model, tokenizer, smoothing: float):
        self.model, self.config, self.tokenizer, self.smoothing = model, model.config, tokenizer, smoothing
        self.end = torch.tensor([tokenizer.special.get("<|user|>", self.config.stop[0])])
        self.window = float(self.config.window_seconds)
        self.longest = self.window * self.config.longest_windows  # seconds; several windows in one prompt
        self.described = "GLM-ASR's own prompt; learned are the text and its stop"
        self.states: Kept | None = None

    def prompt(self, counts: list[int]) -> list[int]:
        """For the samples in each window of a recording."""
        return self.model.prompt(self.tokenizer, sum(audio_rows(n, self.config.merge) for n in counts))

    def check(self, row: Row) -> Row:
        """Raises ValueError for what the model can't learn."""
        window, count = self.config.window, round(row.seconds * audio.SAMPLE_RATE)
        counts = [min(window, count - start) for start in range(0, count, window)]
        _check_length(len(_plain(self.tokenizer, row.text)), len(self.prompt(counts)), self.config.decoder.positions)
        return row

    def collate(self, clips: list[Clip], changes: Changes, rng: np.random.Generator) -> Batch:
        """A batch of clips, changed at random."""
        config = self.config
        longest = max(len(clip.samples) for clip in clips) + round(changes.after * audio.SAMPLE_RATE)
        step = HOP * STRIDE
        length = config.window if changes.whole or longest > config.window else -(-longest // step) * step
        counts = [
            [min(length, len(clip.samples) - start) for start in range(0, len(clip.samples), length)] for clip in clips
        ]
        windows = torch.cat([audio.windows(clip.samples, length) for clip in clips])
        texts = [torch.tensor(self.tokenizer.encode(clip.text), dtype=torch.long) for clip in clips]
        tokens, targets, everything = [], [], torch.cat(texts)
        for text, count in zip(texts, counts):
            prompt = torch.tensor(self.prompt(count))
            tokens.append(torch.cat((prompt, misheard(text, everything, changes.misread, rng))))
            targets.append(torch.cat((torch.full((len(prompt) - 1,), IGNORE), text, self.end)))
        features = _kept(self.states, windows, changes)
        encoded = features is not None
        if features is None:
            features = _changed(self.features(windows), changes, [n for count in counts for n in count], rng)
        return Batch(features, counts, *_rows(tokens, targets), texts, [clip.where for clip in clips], encoded)

    def features(self, windows: Tensor) -> Tensor:
        """Samples (B, S), one row a window -> what the frontend takes."""
        return audio.log_mel(windows, self.config.encoder.bands)

    def forward(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """-> the decoder's states (B, T, D), and for each recording the encoder's states (T, D) of its sound."""
        model = self.model
        states = batch.features if batch.encoded else model.encoder(batch.features)
        counts = [count for recording in batch.samples for count in recording]
        audio_embeddings = [
            row[: audio_rows(count, model.config.merge)] for row, count in zip(model.projector(states), counts)
        ]
        spoken = iter([state[: conv_frames(mel_frames(count))] for state, count in zip(states, counts)])
        joined = [torch.cat([next(spoken) for _ in recording]) for recording in batch.samples]
        return model.decoder(model.embed(batch.tokens, audio_embeddings)), joined

    def loss(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """logits (N, V), ids (N,) -> cross-entropy of all, and how many they are."""
        found = F.cross_entropy(logits, targets, label_smoothing=self.smoothing, reduction="sum")
        return found, found.new_tensor(float(len(targets)))

    def weight(self, targets: Tensor) -> float:
        """What `loss` counts of some targets."""
        return float((targets != IGNORE).sum())

    def words(self, batch: Batch) -> Tensor:
        """(B, T), True where a word is to be learned, not the end."""
        return (batch.targets != IGNORE) & (batch.targets != self.end.to(batch.targets.device))

    def places(self, places: Tensor, batch: Batch) -> Tensor:
        """(B, L, encoder states) -> (B, L, T): the same over the tokens. Recordings of several windows get zeros."""
        found = places.new_zeros(*places.shape[:2], batch.tokens.shape[1])
        for row, (samples, tokens) in enumerate(zip(batch.samples, batch.tokens)):
            columns = (tokens == self.config.audio_token).nonzero()[:, 0]
            if len(samples) == 1 and len(columns):
                states = torch.arange(places.shape[-1], device=places.device) // self.config.merge
                found[row].index_add_(1, columns[states.clamp(max=len(columns) - 1)], places[row])
        return found


class EncoderDecoderFamily:
    """Whisper and the article's system. Learned are the language (or <|nospeech|>), the text, its times, the end."""

    def __init__(self, model, tokenizer, times: float, smoothing: float):
        self.model, self.config, self.tokenizer = model, model.config, tokenizer
        self.times, self.smoothing = times, smoothing
        self.window = self.longest = float(self.config.window_seconds)
        self.step = self.config.encoder.stride
        self.states: Kept | None = None
        self.spaced = not isinstance(tokenizer, SentencePieceTokenizer)
        self.described = ", ".join(
            (
                "texts with their leading space" if self.spaced else "texts as the vocabulary has them",
                "language tokens" if self.config.languages else "no language tokens",
                "times where phrases are given" if self.config.no_timestamps is not None else "no times",
            )
        )

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        TRAP: a Whisper's texts begin with a space where their script has any: the loss of the first token of "Be" is 7,
        of " Be" 0.1. Chinese has none, and with one the loss of its first token rises from 1 to 10 (base).
        """
        return self.tokenizer.encode(f" {text}" if self.spaced and text and not UNSPACED.match(text[0]) else text)

    def check(self, row: Row) -> Row:
        """Raises ValueError for what the model can't learn."""
        known = self.config.languages
        if known and row.language not in known:
            some = ", ".join([*known][:8]) + ", ..." * (len(known) > 8)
            if not row.language:
                raise ValueError(f'has no language; add "language" ({some}) to it, or give --language for all')
            way = "; for Cantonese take zh" if row.language == "yue" and "zh" in known else alike(row.language, known)
            raise ValueError(f"has the language {row.language!r}; this model has tokens for {some}{way}")
        if not known and row.language not in ("", "en"):
            raise ValueError(
                f"has the language {row.language!r}, but this model has no language tokens: it is for English alone; "
                "take one for several languages, or leave the language out"
            )
        _plain(self.tokenizer, row.text)
        for timed in (False, True):
            prompt, ids = self.prompt(row.language, timed and bool(row.phrases)), self.ids(row, timed)
            _check_length(len(ids), len(prompt), self.config.decoder.positions)
        return row

    def collate(self, clips: list[Clip], changes: Changes, rng: np.random.Generator) -> Batch:
        """A batch of clips, changed at random."""
        clips = [self.shifted(clip, changes, rng) for clip in clips]
        longest = max(len(clip.samples) for clip in clips) + round(changes.after * audio.SAMPLE_RATE)
        length = self.config.window if changes.whole else min(self.config.window, -(-longest // self.step) * self.step)
        windows = torch.stack([F.pad(clip.samples, (0, length - len(clip.samples))) for clip in clips])
        features = _kept(self.states, windows, changes)
        encoded = features is not None
        if features is None:
            features = self.features(windows)
            if not self.config.encoder.convolutions:
                features = _changed(features, changes, [len(clip.samples) for clip in clips], rng)
        labels = [torch.tensor(self.encode(clip.text), dtype=torch.long) for clip in clips]
        tokens, targets, everything = [], [], torch.cat(labels)
        for clip in clips:
            before = clip.previous if rng.random() < changes.previous else ""
            prompt, answer, learned = self.answer(clip, rng.random() < changes.timed, before)
            is_text = answer < self.config.end  # times are never misread: they say where the sound goes on
            read = misheard(answer, everything, changes.misread, rng) if len(everything) else answer
            tokens.append(torch.cat((prompt, torch.where(is_text, read, answer))))
            targets.append(learned)
        counts = [[len(clip.samples)] for clip in clips]
        return Batch(features, counts, *_rows(tokens, targets), labels, [clip.where for clip in clips], encoded)

    def features(self, windows: Tensor) -> Tensor:
        """Samples (B, S), one row a window -> what the frontend takes."""
        return self.model.features(windows)

    def shifted(self, clip: Clip, changes: Changes, rng: np.random.Generator) -> Clip:
        """Positions are absolute: a part of the clips begins later, or from scratch the end of a window would never be
        learned. Where the batch is padded to its longest clip only, a little later."""
        room = self.config.window - len(clip.samples)
        if rng.random() >= changes.shift or room <= 0:
            return clip
        count = int(rng.uniform(0, room if changes.whole else min(room, audio.SAMPLE_RATE)))
        quiet = clip.samples[:400].std(correction=0) * torch.from_numpy(rng.standard_normal(count)).float()
        later = count / audio.SAMPLE_RATE
        return replace(
            clip,
            samples=torch.cat((quiet, clip.samples)),
            phrases=tuple(Phrase(one.start + later, one.end + later, one.text) for one in clip.phrases),
        )

    def prompt(self, language: str, timed: bool) -> list[int]:
        """<|startoftranscript|>, language and task where there are such tokens, <|notimestamps|>."""
        return self.model.prompt(language or next(iter(self.config.languages), None), timestamps=timed)

    def ids(self, clip: Clip | Row, timed: bool) -> list[int]:
        """The answer without its end: the text, or each phrase between its times."""
        if not (timed and clip.phrases and self.config.no_timestamps is not None):
            return self.encode(clip.text)
        return [
            token
            for one in clip.phrases
            for token in (self.time(one.start), *self.encode(one.text), self.time(one.end))
        ]

    def answer(self, clip: Clip, timed: bool, before: str = "") -> tuple[Tensor, Tensor, Tensor]:
        """Prompt, answer, and the targets for both. `before`: what was said before, of which the last tokens count that
        half of the positions hold, and that leave room for the answer."""
        config = self.config
        timed = timed and bool(clip.phrases) and config.no_timestamps is not None
        prompt, ids = self.prompt(clip.language, timed), self.ids(clip, timed)
        room = min(config.decoder.positions // 2 - 1, config.decoder.positions - len(prompt) - len(ids) - 1)
        said = self.encode(" ".join(before.split()))[-room:] if before and room > 0 else []
        said = [self.tokenizer.special[PREVIOUS], *said] if said else []
        learned = [IGNORE] * (len(said) + len(prompt) - 1) + ids + [config.end]
        if config.languages:
            learned[len(said)] = prompt[1]
        if not clip.text and config.no_timestamps is not None:
            learned[len(said)] = config.no_speech
        return torch.tensor(said + prompt), torch.tensor(ids, dtype=torch.long), torch.tensor(learned)

    def time(self, seconds: float) -> int:
        """The id of a time."""
        steps = round(min(max(0.0, seconds), self.config.window_seconds) / TIME_STEP)
        return self.config.times + steps

    def forward(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """-> the decoder's states (B, T, D), and for each recording the encoder's states (T, D) of its sound."""
        model = self.model
        states = batch.features if batch.encoded else model.encoder(batch.features)
        spoken = [state[: max(1, -(-count // self.step))] for state, (count,) in zip(states, batch.samples)]
        return model.decoder(batch.tokens, model.decoder.cross_kv(states)), spoken

    def loss(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """logits (N, V), ids (N,) -> cross-entropy of all, and the weight of all: that of a word is 1, of a time
        `times`.

        From scratch a time can't be known to 20 ms, so its loss stays high, and would drown that of the words: there it
        weighs less. For the same reason, with smoothed targets, the times next to it are right as well; else each of
        the hundreds of times would have to be learned from its own few examples."""
        config = self.config
        if config.no_timestamps is None:
            found = F.cross_entropy(logits, targets, label_smoothing=self.smoothing, reduction="sum")
            return found, found.new_tensor(float(len(targets)))
        is_time = targets >= config.times
        words = F.cross_entropy(logits[~is_time], targets[~is_time], label_smoothing=self.smoothing, reduction="sum")
        if self.smoothing:
            steps = torch.arange(-TIME_SPREAD, TIME_SPREAD + 1, device=logits.device)
            near = (targets[is_time][:, None] + steps).clamp(config.times, config.decoder.vocabulary - 1)
            share = (TIME_SPREAD + 1.0 - steps.abs()) / (TIME_SPREAD + 1) ** 2
            times = -(logits[is_time].log_softmax(-1).gather(1, near) * share).sum()
        else:
            times = F.cross_entropy(logits[is_time], targets[is_time], reduction="sum")
        return words + self.times * times, (~is_time).sum() + self.times * is_time.sum()

    def weight(self, targets: Tensor) -> float:
        """What `loss` counts of some targets."""
        learned = targets[targets != IGNORE]
        times = 0 if self.config.no_timestamps is None else int((learned >= self.config.times).sum())
        return len(learned) - times + self.times * times

    def words(self, batch: Batch) -> Tensor:
        """(B, T), True where a word of the text is to be learned, not a time, the language or the end."""
        return (batch.targets != IGNORE) & (batch.targets < self.config.end)

    def places(self, places: Tensor, batch: Batch) -> Tensor:
        """(B, L, encoder states): what cross-attention sees."""
        return places
