"""What differs between the model families in training: what of a clip goes in, and which tokens are to be learned.

    GlmAsrFamily            prompt with placeholders, then the text; a recording may have several windows
    EncoderDecoderFamily    <|startoftranscript|>, language, task; then the text, half of the time with the times of its
                            phrases

Both give a Batch, and the decoder's states and the encoder's states for it.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from augment import mask_mel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from glmasr import audio
from glmasr.config import HOP, STRIDE, TIME_STEP
from glmasr.conv_frontend import audio_rows, conv_frames, mel_frames
from glmasr.model import GlmAsr

IGNORE = -100  # a target that has no loss
SMOOTHING = 0.05  # of the labels
TIME_WEIGHT = (
    0.2  # of a time in the loss, where a word has 1; more is right once the words are known (train.py --times)
)
TIME_SPREAD = 4  # steps of 20 ms: a time this near is right as well, the less the farther


@dataclass
class Clip:
    """A recording as it is used in one step: samples (S,) at 16 kHz, its text, and (start, end, text) of its phrases, in
    seconds."""

    samples: Tensor
    text: str
    language: str
    phrases: list[tuple[float, float, str]]


@dataclass
class Batch:
    features: Tensor  # (windows, ...) what the frontend takes
    samples: list[list[int]]  # for each recording the samples in each of its windows
    tokens: Tensor  # (B, T) prompt and text
    targets: Tensor  # (B, T) the next token where it is to be learned, else IGNORE
    labels: list[Tensor]  # text ids, for CTC

    def to(self, device: torch.device) -> "Batch":
        return replace(
            self,
            features=self.features.to(device),
            tokens=self.tokens.to(device),
            targets=self.targets.to(device),
            labels=[label.to(device) for label in self.labels],
        )


def family_of(model, tokenizer, times: float = TIME_WEIGHT) -> "GlmAsrFamily | EncoderDecoderFamily":
    """`times`: the weight of a time in the loss, where a word has 1; GLM-ASR has no times."""
    return (
        GlmAsrFamily(model, tokenizer) if isinstance(model, GlmAsr) else EncoderDecoderFamily(model, tokenizer, times)
    )


def misheard(text: Tensor, everything: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """The text as the decoder reads it while it learns: with some wrong words, so that it learns to follow the sound
    even where its own text is wrong. Otherwise one wrong word can begin an answer that never ends."""
    wrong = torch.from_numpy(rng.random(len(text)) < share)
    return torch.where(wrong, everything[torch.from_numpy(rng.integers(0, max(1, len(everything)), len(text)))], text)


def _rows(tokens: list[Tensor], targets: list[Tensor]) -> tuple[Tensor, Tensor]:
    return pad_sequence(tokens, batch_first=True), pad_sequence(targets, batch_first=True, padding_value=IGNORE)


class GlmAsrFamily:
    longest = float("inf")  # seconds; a long recording has several windows

    def __init__(self, model, tokenizer):
        self.model, self.config, self.tokenizer = model, model.config, tokenizer
        self.end = torch.tensor([tokenizer.special.get("<|user|>", self.config.stop[0])])

    def collate(self, clips: list[Clip], whole: bool, masked: bool, misread: float, rng: np.random.Generator) -> Batch:
        config = self.config
        longest = max(len(clip.samples) for clip in clips)
        step = HOP * STRIDE
        length = config.window if whole or longest > config.window else -(-longest // step) * step
        counts = [
            [min(length, len(clip.samples) - start) for start in range(0, len(clip.samples), length)] for clip in clips
        ]
        mel = audio.log_mel(torch.cat([audio.windows(clip.samples, length) for clip in clips]), config.encoder.bands)
        texts = [torch.tensor(self.tokenizer.encode(clip.text), dtype=torch.long) for clip in clips]
        tokens, targets, everything = [], [], torch.cat(texts)
        for text, count in zip(texts, counts):
            prompt = torch.tensor(self.model.prompt(self.tokenizer, sum(audio_rows(n, config.merge) for n in count)))
            tokens.append(torch.cat((prompt, misheard(text, everything, misread, rng))))
            targets.append(torch.cat((torch.full((len(prompt) - 1,), IGNORE), text, self.end)))
        return Batch(mask_mel(mel, rng) if masked else mel, counts, *_rows(tokens, targets), texts)

    def forward(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """-> the decoder's states (B, T, D), and for each recording the encoder's states (T, D) of its sound."""
        model = self.model
        states = model.encoder(batch.features)
        counts = [count for recording in batch.samples for count in recording]
        audio_embeddings = [
            row[: audio_rows(count, model.config.merge)] for row, count in zip(model.projector(states), counts)
        ]
        spoken = iter([state[: conv_frames(mel_frames(count))] for state, count in zip(states, counts)])
        joined = [torch.cat([next(spoken) for _ in recording]) for recording in batch.samples]
        return model.decoder(model.embed(batch.tokens, audio_embeddings)), joined

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits (N, V), ids (N,) -> cross-entropy."""
        return F.cross_entropy(logits, targets, label_smoothing=SMOOTHING)

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
    def __init__(self, model, tokenizer, times: float):
        self.model, self.config, self.tokenizer, self.times = model, model.config, tokenizer, times
        self.longest = self.config.window_seconds
        self.step = self.config.encoder.stride

    def collate(self, clips: list[Clip], whole: bool, masked: bool, misread: float, rng: np.random.Generator) -> Batch:
        clips = [self.shifted(clip, whole, rng) for clip in clips]
        longest = max(len(clip.samples) for clip in clips)
        length = self.config.window if whole else -(-longest // self.step) * self.step
        windows = torch.stack([F.pad(clip.samples, (0, length - len(clip.samples))) for clip in clips])
        features = self.model.features(windows)
        if masked and not self.config.encoder.convolutions:
            features = mask_mel(features, rng)
        labels = [torch.tensor(self.tokenizer.encode(clip.text), dtype=torch.long) for clip in clips]
        tokens, targets, everything = [], [], torch.cat(labels)
        for clip in clips:
            prompt, answer, learned = self.answer(clip, rng.random() < 0.5)
            is_text = answer < self.config.end  # times are never misread: they say where the sound goes on
            tokens.append(torch.cat((prompt, torch.where(is_text, misheard(answer, everything, misread, rng), answer))))
            targets.append(learned)
        return Batch(features, [[len(clip.samples)] for clip in clips], *_rows(tokens, targets), labels)

    def shifted(self, clip: Clip, whole: bool, rng: np.random.Generator) -> Clip:
        """Positions are absolute: a part of the clips begins later, or the end of a window would never be learned. Where
        the batch is padded to its longest clip only, a little later."""
        room = self.config.window - len(clip.samples)
        if rng.random() > 0.3 or room <= 0:
            return clip
        count = int(rng.uniform(0, room if whole else min(room, audio.SAMPLE_RATE)))
        quiet = clip.samples[:400].std(correction=0) * torch.from_numpy(rng.standard_normal(count)).float()
        later = count / audio.SAMPLE_RATE
        return replace(
            clip,
            samples=torch.cat((quiet, clip.samples)),
            phrases=[(start + later, end + later, text) for start, end, text in clip.phrases],
        )

    def answer(self, clip: Clip, timestamps: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Prompt, answer, and the targets for both. Learned are the language (or <|nospeech|>), the text, its
        times, the end."""
        config = self.config
        timestamps &= bool(clip.phrases) and config.no_timestamps is not None
        language = clip.language or next(iter(config.languages))
        prompt = [config.start] + ([config.languages[language], config.tasks["transcribe"]] if config.languages else [])
        if not timestamps and config.no_timestamps is not None:
            prompt.append(config.no_timestamps)
        if timestamps:
            ids = []
            for start, end, text in clip.phrases:
                ids += [self.time(start), *self.tokenizer.encode(text), self.time(end)]
        else:
            ids = self.tokenizer.encode(clip.text)
        learned = [IGNORE] * (len(prompt) - 1) + ids + [config.end]
        if config.languages:
            learned[0] = prompt[1] if clip.text else config.no_speech
        return torch.tensor(prompt), torch.tensor(ids, dtype=torch.long), torch.tensor(learned)

    def time(self, seconds: float) -> int:
        steps = round(min(max(0.0, seconds), self.config.window_seconds) / TIME_STEP)
        return self.config.times + steps

    def forward(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """-> the decoder's states (B, T, D), and for each recording the encoder's states (T, D) of its sound."""
        model = self.model
        states = model.encoder(batch.features)
        spoken = [state[: max(1, -(-count // self.step))] for state, (count,) in zip(states, batch.samples)]
        return model.decoder(batch.tokens, model.decoder.cross_kv(states)), spoken

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits (N, V), ids (N,) -> cross-entropy, in which a time weighs less than a word: it can't be known to 20
        ms, so its loss stays high, and would drown that of the words. For the same reason the times next to it are
        right as well; else each of the hundreds of times would have to be learned from its own few examples."""
        config = self.config
        if config.no_timestamps is None:
            return F.cross_entropy(logits, targets, label_smoothing=SMOOTHING)
        is_time = targets >= config.times
        words = F.cross_entropy(logits[~is_time], targets[~is_time], label_smoothing=SMOOTHING, reduction="sum")
        steps = torch.arange(-TIME_SPREAD, TIME_SPREAD + 1, device=logits.device)
        near = (targets[is_time][:, None] + steps).clamp(config.times, config.decoder.vocabulary - 1)
        share = (TIME_SPREAD + 1.0 - steps.abs()) / (TIME_SPREAD + 1) ** 2
        times = -(logits[is_time].log_softmax(-1).gather(1, near) * share).sum()
        return (words + self.times * times) / ((~is_time).sum() + self.times * is_time.sum())

    def words(self, batch: Batch) -> Tensor:
        """(B, T), True where a word of the text is to be learned, not a time, the language or the end."""
        return (batch.targets != IGNORE) & (batch.targets < self.config.end)

    def places(self, places: Tensor, batch: Batch) -> Tensor:
        """(B, L, encoder states): what cross-attention sees."""
        return places
