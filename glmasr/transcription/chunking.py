"""A stream of samples -> windows that a model takes: cut where there is no speech, or where it is quiet.

    blocks (any,) -> frames of 32 ms, each with a probability of speech -> Window, Window, ...
    blocks (any,) -> frames of 10 ms, each with a loudness -> Window, Window, ...

With voice activity detection (VAD) what isn't speech is left out, but for pauses within what is said; a cut goes
through the longest pause of the last third of a window. Without one it goes through the quietest point there, and what
is left out is silent: below -80 dB, or in a recording of a whisper 55 dB below the loudest of it so far. Everything
else is for the model to judge; what sounds like tones is only pointed out.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ..audio import mel_power
from ..config import HOP, SAMPLE_RATE
from .options import UNTIL
from .vad import CHUNK, SHORTEST, spans, voiced

SILENT = -80.0  # dB; a frame below this is silent, as pauses of digital recordings are
DISTANCE = 55.0  # dB below the loudest frame so far; nothing nearer is silent, however low it is
LOWEST = -100.0  # dB; below this everything is silent, whatever the distance
FULL_SCALE = 25.9  # dB: the energy of all mel bands for a sine of full scale at 1 kHz
MARGIN = 0.2  # seconds of silence that stay at both ends of the sound
TONES_FFT = 1024  # 64 ms of samples: long enough to tell the partials of a voice from each other
TONES_LOUD = 25.0  # dB below the loudest frame; those nearer are looked at
MIN_PARTIALS = 0.07  # of the frequencies that are within 40 dB of the strongest, in the median; a voice has more
MAX_SIMILARITY = 0.93  # cosine of amplitudes 50 ms apart, in the median; those of a voice move
SHORT, LONG = 11, 41  # frames over which loudness is averaged to find a cut: a gap between words, a pause
# Of speech, in frames of 32 ms.
AROUND_SPEECH = 10  # that are kept before and after it, 0.32 s: a detector misses soft beginnings
PAUSE = 94  # 3 s: a longer pause ends a window; shorter ones stay, for the model makes more of whole sentences


@dataclass(frozen=True)
class Window:
    """Samples (S,) of a recording, of which `start` lie before them. `speech`: (first sample, the one after the last)
    of each stretch that is spoken, where a detector has run.
    """

    start: int
    samples: Tensor
    speech: tuple[tuple[int, int], ...] | None = None

    @property
    def begin(self) -> float:
        """Seconds from the start of the recording."""
        return self.start / SAMPLE_RATE

    @property
    def seconds(self) -> float:
        """Length of the samples, without padding."""
        return len(self.samples) / SAMPLE_RATE

    def sound_span(self) -> tuple[float, float]:
        """Seconds, from the start of the recording, between which there is speech, or sound; all of the window
        if there is none.
        """
        if self.speech:
            return self.begin + self.speech[0][0] / SAMPLE_RATE, self.begin + self.speech[-1][1] / SAMPLE_RATE
        levels = loudness(self.samples)
        first, last = above(levels, max(levels.max().item() - DISTANCE, LOWEST))
        if last == 0:
            return self.begin, self.begin + self.seconds
        return self.begin + first * HOP / SAMPLE_RATE, self.begin + min(last * HOP, len(self.samples)) / SAMPLE_RATE

    def tonal(self) -> bool:
        """Whether this sounds like a tone, a hum or a tune more than like a voice: it has few partials, or they don't
        move.
        """
        samples = F.pad(self.samples, (0, max(0, TONES_FFT - len(self.samples))))
        spectrum = torch.stft(samples, TONES_FFT, HOP, window=torch.hann_window(TONES_FFT), return_complex=True)
        amplitudes = spectrum.abs()[3:]  # without 0 Hz
        energy = amplitudes.square().sum(0)
        loud = energy >= energy.max() * 10 ** (-TONES_LOUD / 10)
        strong = amplitudes > amplitudes.amax(0) / 100
        if strong[:, loud].float().mean(0).median() < MIN_PARTIALS:
            return True
        apart = 50 * SAMPLE_RATE // 1000 // HOP
        shapes = F.normalize(amplitudes, dim=0)
        alike = (shapes[:, apart:] * shapes[:, :-apart]).sum(0)[loud[apart:] & loud[:-apart]]
        return len(alike) > 0 and bool(alike.median() > MAX_SIMILARITY)

    def voiced(self) -> Tensor:
        """For each 10 ms (ceil(S / 160),), bool: whether it is speech."""
        if self.speech is None:
            return voiced(self.samples)
        found = torch.zeros(-(-len(self.samples) // HOP), dtype=torch.bool)
        for first, last in self.speech:
            found[first // HOP : last // HOP] = True
        return found

    def middle_cut(self) -> int:
        """The sample in the middle third at which to cut this window in two."""
        levels = loudness(self.samples)
        third = len(levels) // 3
        return (third + quietest(levels[third : len(levels) - third])) * HOP

    def part(self, first: int, last: int) -> "Window":
        """The samples from `first` up to `last` of this window."""
        speech = self.speech and tuple(
            (max(0, begin - first), min(end, last) - first)
            for begin, end in self.speech
            if begin < last and end > first
        )
        return Window(self.start + first, self.samples[first:last], speech)


def loudness(samples: Tensor) -> Tensor:
    """Samples (S,) -> dB of each 10 ms (ceil(S / 160),): the energy of all mel bands, 0 dB for a sine of full scale at
    1 kHz.
    """
    frames = -(-len(samples) // HOP)
    padded = F.pad(samples, (0, max(frames * HOP, 3 * HOP) - len(samples)))
    power = mel_power(padded, 80)[0].sum(0)[:frames]
    return 10 * power.clamp(min=1e-12).log10() - FULL_SCALE


def quietest(levels: Tensor) -> int:
    """The frame at which to cut, for the loudness (F,) of frames: favors the middle of a long pause."""
    short, long = (_average(levels, min(width, len(levels) // 2 * 2 - 1)) for width in (SHORT, LONG))
    return int((short + long).argmin())


def _average(levels: Tensor, width: int) -> Tensor:
    """The mean of `width` (odd) frames around each; at the ends of those that there are."""
    if width < 3:
        return levels
    return F.avg_pool1d(levels[None, None], width, stride=1, padding=width // 2, count_include_pad=False)[0, 0]


def cut(blocks: Iterable[Tensor], length: int, detector: Callable[..., Tensor] | None = None) -> Iterator[Window]:
    """Windows of at most `length` samples, in order. It doesn't matter how long the blocks are.

    With a `detector`, a `vad.VoiceActivity` or what is called like one, they leave out all that isn't speech, but for
    margins and pauses. Without one they leave out silence; then a recording that fits one window, and isn't silent, is
    given as it is.

    Samples are kept until they are given away, `length` and a block of them at most.
    """
    return _by_loudness(iter(blocks), length) if detector is None else _by_speech(iter(blocks), length, detector)


def _by_speech(blocks: Iterator[Tensor], length: int, detector: Callable[..., Tensor]) -> Iterator[Window]:
    buffer, start, probabilities, more, inside = torch.zeros(0), 0, torch.zeros(0), True, False
    frames = length // CHUNK
    while True:
        while more and len(buffer) <= length:
            following = next(blocks, None)
            more = following is not None
            block = torch.zeros(0) if following is None else following
            probabilities = torch.cat((probabilities, detector(block, last=not more)))
            buffer = torch.cat((buffer, block))
        if not len(buffer):
            return
        known = probabilities[:frames] if more else probabilities
        speech = spans(known, inside=inside)
        if not speech:  # but at the end some may begin
            taken = max(1, frames - AROUND_SPEECH - SHORTEST) if more else len(known)
            inside = False
        elif speech[0][0] > AROUND_SPEECH:  # begin with the speech, then look again
            taken = speech[0][0] - AROUND_SPEECH
            inside = False
        else:
            known_end = len(known) - SHORTEST if more else len(known)  # after it speech may begin
            pauses = list(pairwise([*(frame for span in speech for frame in span), known_end]))[1::2]
            # How many stretches come before the first long pause; 0: there is none.
            long = next((number for number, (first, last) in enumerate(pauses, 1) if last - first > PAUSE), 0)
            long = long or (0 if more else len(speech))
            if long:
                taken, inside = min(speech[long - 1][1] + AROUND_SPEECH, len(known)), False
            else:
                taken, inside = _cut_speech(pauses, buffer[: frames * CHUNK])
            # A weak stretch of speech may go on there.
            inside = inside or taken < len(known) and bool(known[taken] >= UNTIL)
            spoken = [(first, min(last, taken)) for first, last in speech if first < taken]
            end = min(spoken[-1][1] + AROUND_SPEECH, taken) * CHUNK
            samples = buffer[:end]
            places = tuple((first * CHUNK, min(last * CHUNK, len(samples))) for first, last in spoken)
            yield Window(start, samples, places)
        buffer, probabilities, start = buffer[taken * CHUNK :], probabilities[taken:], start + taken * CHUNK


def _cut_speech(pauses: list[tuple[int, int]], samples: Tensor) -> tuple[int, bool]:
    """The frame of 32 ms, in the last third of the samples (S,), at which a window ends: amid the longest of the
    pauses, else where it is quietest; and whether that is amid speech.
    """
    frames = len(samples) // CHUNK
    ends = [(max(first, frames * 2 // 3), last) for first, last in pauses if last > frames * 2 // 3]
    first, last = max(ends, key=lambda pause: pause[1] - pause[0], default=(0, 0))
    if last - first > 1:
        return (first + last) // 2, False
    return last_cut_frame(loudness(samples)) * HOP // CHUNK, True


def _by_loudness(blocks: Iterator[Tensor], length: int) -> Iterator[Window]:
    buffer, start, loudest, more = torch.zeros(0), 0, -torch.inf, True
    while True:
        while more and len(buffer) <= length:
            block = next(blocks, None)
            more = block is not None
            buffer = buffer if block is None else torch.cat((buffer, block))
        if not len(buffer):
            return
        part = buffer[:length]
        levels = loudness(part)
        loudest = max(loudest, levels.max().item())
        first, last = sound_frames(levels, loudest)
        if last == 0:  # all of it is silent
            taken = len(part)
        elif start == 0 and not more:  # all of the recording
            taken = len(part)
            yield Window(0, part)
        elif first > 0 and more:  # begin with the sound, then look again
            taken = min(first * HOP, len(part))
        else:
            taken = last_cut_frame(levels) * HOP if more else len(part)
            piece = part[:taken]
            first, last = sound_frames(levels[: -(-taken // HOP)], loudest)
            if last:
                yield Window(start, piece).part(first * HOP, min(last * HOP, taken))
        buffer, start = buffer[taken:], start + taken


def last_cut_frame(levels: Tensor) -> int:
    """The frame, in the last third of the frames, at which a window ends."""
    from_frame = len(levels) * 2 // 3
    return from_frame + quietest(levels[from_frame:])


def sound_frames(levels: Tensor, loudest: float, margin: int = round(MARGIN * SAMPLE_RATE / HOP)) -> tuple[int, int]:
    """The first frame and the one after the last that are not silent, with a margin of frames; (0, 0) if all are."""
    first, last = above(levels, max(min(SILENT, loudest - DISTANCE), LOWEST))
    return (max(0, first - margin), min(len(levels), last + margin)) if last else (0, 0)


def above(levels: Tensor, threshold: float) -> tuple[int, int]:
    """The first frame that is louder, and the one after the last; (0, 0) if none is."""
    places = (levels > threshold).nonzero()
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
