"""A stream of samples -> windows that a model takes: cut where it is quiet, silent stretches left out.

    blocks (any,) -> frames of 10 ms, each with a loudness -> Window, Window, ...

A cut goes through the quietest point of the last third of a window, so that it doesn't go through a word. There is no voice
detector: what is left out is silent, below -80 dB, or in a recording of a whisper 55 dB below the loudest of it so far.
Everything else is for the model to judge; what sounds like tones is only pointed out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .audio import HOP, SAMPLE_RATE, mel_power

SILENT = -80.0                  # dB; a frame below this is silent, as pauses of digital recordings are
DISTANCE = 55.0                 # dB below the loudest frame so far; nothing nearer is silent, however low it is
LOWEST = -100.0                 # dB; below this everything is silent, whatever the distance
FULL_SCALE = 25.9               # dB: the energy of all mel bands for a sine of full scale at 1 kHz
MARGIN = 0.2                    # seconds of silence that stay at both ends of what is heard
TONES_FFT = 1024                # 64 ms of samples: long enough to tell the partials of a voice from each other
TONES_LOUD = 25.0               # dB below the loudest frame; those nearer are looked at
FEW = 0.07                      # of the frequencies that are within 40 dB of the strongest, in the median; a voice has more
STEADY = 0.93                   # cosine of amplitudes 50 ms apart, in the median; those of a voice move
NEAR, FAR = 11, 41              # frames over which loudness is averaged to find a cut: a gap between words, a pause


@dataclass(frozen=True)
class Window:
    """Samples (S,) of a recording, of which `start` lie before them."""

    start: int
    samples: Tensor

    @property
    def begin(self) -> float:
        """Seconds from the start of the recording."""
        return self.start / SAMPLE_RATE

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE

    def sounding(self) -> tuple[float, float]:
        """Seconds, from the start of the recording, between which there is sound; all of the window if there is none."""
        levels = loudness(self.samples)
        first, last = above(levels, max(levels.max().item() - DISTANCE, LOWEST))
        if last == 0:
            return self.begin, self.begin + self.seconds
        return self.begin + first * HOP / SAMPLE_RATE, self.begin + min(last * HOP, len(self.samples)) / SAMPLE_RATE

    def tonal(self) -> bool:
        """Whether this sounds like a tone, a hum or a tune more than like a voice: it has few partials, or they don't move."""
        samples = F.pad(self.samples, (0, max(0, TONES_FFT - len(self.samples))))
        amplitudes = torch.stft(samples, TONES_FFT, HOP, window=torch.hann_window(TONES_FFT), return_complex=True).abs()[3:]    # without 0 Hz
        energy = amplitudes.square().sum(0)
        loud = energy >= energy.max() * 10 ** (-TONES_LOUD / 10)
        strong = amplitudes > amplitudes.amax(0) / 100
        if strong[:, loud].float().mean(0).median() < FEW:
            return True
        apart = 50 * SAMPLE_RATE // 1000 // HOP
        shapes = F.normalize(amplitudes, dim=0)
        alike = (shapes[:, apart:] * shapes[:, :-apart]).sum(0)[loud[apart:] & loud[:-apart]]
        return len(alike) > 0 and bool(alike.median() > STEADY)

    def cut_point(self) -> int:
        """The sample in the middle third at which to cut this window in two."""
        levels = loudness(self.samples)
        third = len(levels) // 3
        return (third + quietest(levels[third:len(levels) - third])) * HOP

    def part(self, first: int, last: int) -> "Window":
        """The samples from `first` up to `last` of this window."""
        return Window(self.start + first, self.samples[first:last])


def loudness(samples: Tensor) -> Tensor:
    """Samples (S,) -> dB of each 10 ms (ceil(S / 160),): the energy of all mel bands, 0 dB for a sine of full scale at 1 kHz."""
    frames = -(-len(samples) // HOP)
    padded = F.pad(samples, (0, max(frames * HOP, 3 * HOP) - len(samples)))
    power = mel_power(padded, 80)[0].sum(0)[:frames]
    return 10 * power.clamp(min=1e-12).log10() - FULL_SCALE


def quietest(levels: Tensor) -> int:
    """The frame at which to cut, for the loudness (F,) of frames: the middle of the longest quiet gap, as it were."""
    smooth = sum(_average(levels, min(width, len(levels) // 2 * 2 - 1)) for width in (NEAR, FAR))
    return int(smooth.argmin())


def _average(levels: Tensor, width: int) -> Tensor:
    """The mean of `width` (odd) frames around each; at the ends of those that there are."""
    if width < 3:
        return levels
    return F.avg_pool1d(levels[None, None], width, stride=1, padding=width // 2, count_include_pad=False)[0, 0]


def cut(blocks: Iterable[Tensor], length: int) -> Iterator[Window]:
    """Windows of at most `length` samples, in order, that leave out silence only. It doesn't matter how long the blocks are.

    Samples are kept until they are given away, `length` and a block of them at most.
    """
    buffer, start, loudest = torch.zeros(0), 0, -torch.inf
    blocks, more = iter(blocks), True
    while True:
        while more and len(buffer) < length:
            block = next(blocks, None)
            more = block is not None
            buffer = torch.cat((buffer, block)) if more else buffer
        if not len(buffer):
            return
        part = buffer[:length]
        levels = loudness(part)
        loudest = max(loudest, levels.max().item())
        first, last = sounding(levels, loudest)
        if last == 0:                                       # all of it is silent
            taken = len(part)
        elif first > 0 and more:                            # begin with the sound, then look again
            taken = min(first * HOP, len(part))
        else:
            whole = len(buffer) <= length and not more
            taken = len(part) if whole else cut_point(levels) * HOP
            heard = part[:taken]
            first, last = sounding(levels[:-(-taken // HOP)], loudest)
            if last:
                yield Window(start, heard).part(first * HOP, min(last * HOP, taken))
        buffer, start = buffer[taken:], start + taken


def cut_point(levels: Tensor) -> int:
    """The frame, in the last third of the frames, at which a window ends."""
    from_frame = len(levels) * 2 // 3
    return from_frame + quietest(levels[from_frame:])


def sounding(levels: Tensor, loudest: float, margin: int = round(MARGIN * SAMPLE_RATE / HOP)) -> tuple[int, int]:
    """The first frame and the one behind the last that are not silent, with a margin of frames; (0, 0) if all are."""
    first, last = above(levels, max(min(SILENT, loudest - DISTANCE), LOWEST))
    return (max(0, first - margin), min(len(levels), last + margin)) if last else (0, 0)


def above(levels: Tensor, threshold: float) -> tuple[int, int]:
    """The first frame that is louder, and the one behind the last; (0, 0) if none is."""
    places = (levels > threshold).nonzero()
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
