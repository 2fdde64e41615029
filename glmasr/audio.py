"""Recording of any kind -> mono samples at 16 kHz (S,) -> windows (W, 480000) -> log-mel (W, bands, 3000).

What is unusual here:
- The log-mel is in float32 on purpose: the models were trained on the rounding of a float32 transform, which shows at
  the bottom of the 80 dB that are kept.
- Every recording is read, mixed and resampled in blocks, so memory does not grow with its length; the blocks joined are
  the same samples, to float rounding, as those of one pass over the whole. `audio_files` reads and mixes.
- The resampler has a real anti-alias filter: flat to 7.2 kHz, 80 dB down at 8 kHz, the highest frequency that 16 kHz
  can hold.
"""

import math
import numbers
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .audio_files import reader
from .audio_files.channels import mono
from .audio_files.limits import MAX_DURATION, VALUES, IsCancelled, Warn, checked_rate
from .audio_files.tracks import check_track
from .config import HOP as HOP  # 10 ms between frames: SAMPLE_RATE / HOP = 100 frames a second
from .config import SAMPLE_RATE as SAMPLE_RATE  # samples a second, of everything after this stage
from .errors import AudioError, OptionError, printable
from .observing import stage

FFT_SIZE = 400  # 25 ms of samples in one frame of the spectrum
BINS = FFT_SIZE // 2 + 1  # 201 frequencies, SAMPLE_RATE / FFT_SIZE = 40 Hz apart: 0, 40, ... 8000 Hz
WINDOW = 30 * SAMPLE_RATE  # 480,000 samples, 3000 frames: what the models take at once


# ---- log-mel ---------------------------------------------------------------------------------------------------------


def windows(samples: Tensor, length: int = WINDOW) -> Tensor:
    """(S,) -> (W, length), at least one window.

    TRAP: silence is added here, to the samples: zeros in the log-mel are loud.
    """
    count = max(1, -(-len(samples) // length))
    return F.pad(samples, (0, count * length - len(samples))).reshape(count, length)


@stage("log-mel")
def log_mel(samples: Tensor, bands: int = 128) -> Tensor:
    """Float samples (B, S) or (S,) at 16 kHz -> float32 log-mel (B, bands, S // 160), on the same device.

    As Whisper large-v3 and its published feature extractor compute it: `mel_power`; log10; 8 orders of magnitude below
    the loudest point of the row; about -1..1.
    """
    log = mel_power(samples, bands).clamp(min=1e-10).log10()
    # TRAP: the maximum is that of each row; one for the batch would make a recording depend on its batch mates.
    log = torch.maximum(log, log.amax(dim=(-2, -1), keepdim=True) - 8)
    return (log + 4) / 4


def mel_power(samples: Tensor, bands: int = 128) -> Tensor:
    """Float samples (B, S) or (S,) at 16 kHz -> float32 energy of mel bands (B, bands, S // 160): the power spectrum of
    periodic Hann frames, centered, mirrored at both ends, through `mel_filters`. AudioError for fewer samples than
    there are to mirror.
    """
    samples = (samples.reshape(1, -1) if samples.ndim < 2 else samples).float()
    if samples.shape[-1] <= FFT_SIZE // 2:
        raise AudioError(
            f"{samples.shape[-1]} samples are too few to mirror at the ends; a log-mel needs more than "
            f"{FFT_SIZE // 2}: pad with `windows` first"
        )
    hann = torch.hann_window(FFT_SIZE, device=samples.device)
    spectrum = torch.stft(samples, FFT_SIZE, HOP, window=hann, center=True, pad_mode="reflect", return_complex=True)
    power = spectrum[..., :-1].abs().square()  # TRAP: the last frame is dropped, as in training
    return mel_filters(bands).to(samples.device) @ power


@lru_cache(maxsize=4)
def mel_filters(bands: int) -> Tensor:
    """Triangular filters (bands, 201) from 0 to 8000 Hz on Slaney's mel scale, float32, rounded once from float64.

    Scale and norm are those of Slaney's Auditory Toolbox (1998): linear up to 1000 Hz, logarithmic above, and every
    triangle of area 1 in Hz. TRAP: with the other scale (2595 log10(1 + f / 700)) or without the norm nothing fails,
    but the model gets another sound than it was trained on. Shared by all callers: do not change in place.
    """
    edges = _mel_to_hertz(torch.linspace(0, _hertz_to_mel(SAMPLE_RATE / 2), bands + 2, dtype=torch.float64))
    low, center, high = (edges[i : i + bands, None] for i in range(3))
    hertz = torch.arange(BINS, dtype=torch.float64) * SAMPLE_RATE / FFT_SIZE
    rising, falling = (hertz - low) / (center - low), (high - hertz) / (high - center)
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (high - low)).float()


def _hertz_to_mel(hertz: float) -> float:
    """Above 1000 Hz; 15 mels are 1000 Hz, and 27 more are a factor of 6.4."""
    return 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _mel_to_hertz(mel: Tensor) -> Tensor:
    return torch.where(mel < 15, mel * 1000 / 15, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))


# ---- reading ---------------------------------------------------------------------------------------------------------


def warn_printable(warning: str) -> None:
    """`warnings.warn`, which writes to a terminal: the name of a recording is escaped."""
    warnings.warn(printable(warning), stacklevel=2)


def load(
    source: Any,
    sample_rate: float | None = None,
    *,
    track: int | str | None = None,
    max_duration: float = MAX_DURATION,
    warn: Warn = warn_printable,
) -> Tensor:
    """The whole recording -> float32 samples (S,), mono, 16 kHz: `blocks` joined. Arguments and errors as there."""
    return torch.cat(list(blocks(source, sample_rate, track=track, max_duration=max_duration, warn=warn)))


def blocks(
    source: Any,
    sample_rate: float | None = None,
    *,
    seconds: float = 30.0,
    track: int | str | None = None,
    max_duration: float = MAX_DURATION,
    warn: Warn = warn_printable,
    cancelled: IsCancelled | None = None,
) -> Iterator[Tensor]:
    """Yield a recording as float32 blocks (S,), mono, 16 kHz: each `seconds` long, the last one at most that.

    `source` is one of
    - a path, an address (`https://`, `http://`), `"-"` for standard input, bytes, or a binary file object: WAV, FLAC,
      OGG, MP3, AIFF, AU and CAF are decoded by libsndfile, everything else (m4a, mp4, webm, ...) by ffmpeg if it is on
      the PATH;
    - an array or tensor (S,), (S, channels) or (channels, S), with its `sample_rate` in Hz: floats of about -1..1, or
      int16, int32 or uint8 (whose 128 is silence), which are divided by their full scale (with a warning where int32
      never leaves 16 or 24 bits). The shorter axis is the
      channels, the second one where both are equal;
    - a pair (sample rate, array), as Gradio and scipy.io.wavfile give it;
    - a dict as Hugging Face's datasets have it: {"array": ..., "sampling_rate": ...}, or without an array
      {"bytes": ..., "path": ...}, where bytes count if they aren't None. The array in it, or in a pair, may be a list.

    `track` is one of several tracks of sound in a file: its number, from 1, or its language ("eng"). By default it is
    the one that the file calls its default, else the first one, and `warn` is called to say that there are others.

    Raises AudioError, at the first block for what the header shows and later for what is inside: a recording that is
    missing, empty, not audio, without that track, outside 4..384 kHz, of more than 255 channels, longer than
    `max_duration` seconds or 64 GiB when decoded, or that holds samples that are NaN, infinite or above 1000 times full
    scale. One that breaks off in the middle is read up to there, and `warn` is called with a sentence that says so.
    What counts is what was decoded: a header may claim any length.

    `cancelled` is called now and then, from any thread: between parts that were decoded, and while ffmpeg is silent.
    Once it says True everything is closed, and Cancelled is raised.
    """
    if not 1 <= seconds * SAMPLE_RATE < math.inf:
        raise OptionError(
            f"seconds is {seconds}; a block needs at least one sample and an end: give, for example, 30.0"
        )
    if not (isinstance(max_duration, numbers.Real) and max_duration > 0):
        raise OptionError(
            f"max_duration is {max_duration!r}; expected a positive number of seconds: give, for example, "
            f"{MAX_DURATION:.0f}"
        )
    check_track(track)
    with ExitStack() as stack:  # closes files and ends ffmpeg, also when the caller stops before the end
        name, parts = reader.read(source, sample_rate, track, max_duration, stack, warn, cancelled or (lambda: False))
        # What comes out of a pipe isn't held back until there are 30 s of it.
        yield from blocks_of(parts, name, min(seconds, getattr(source, "seconds", seconds)), warn)


def blocks_of(
    parts: Iterable[tuple[int, np.ndarray]], name: str, seconds: float, warn: Warn = warn_printable
) -> Iterator[Tensor]:
    """(sample rate, float array (samples, channels)) as they come, of a recording called `name` in messages -> float32
    blocks (S,), mono, 16 kHz, each `seconds` long, the last one at most that. The rate changes where another recording
    begins in the same file. Raises AudioError for samples that are NaN, infinite or above 1000 times full scale.
    """

    def at_16_khz() -> Iterator[Tensor]:
        for rate, some in groupby(parts, itemgetter(0)):
            samples = mono(map(itemgetter(1), some), name, rate, warn)
            # Decoders give small parts; long ones are faster here.
            yield from _resampled(_regrouped(samples, min(VALUES, round(seconds * rate))), rate, SAMPLE_RATE)

    yield from _regrouped(at_16_khz(), round(seconds * SAMPLE_RATE))


def _regrouped(parts: Iterable[Tensor], length: int) -> Iterator[Tensor]:
    """Tensors (any,) -> the same samples as tensors (length,), the last one shorter."""
    held: list[Tensor] = []
    count = 0
    for part in parts:
        while count + len(part) >= length:
            held.append(part[: length - count])
            part = part[length - count :]
            yield torch.cat(held)
            held, count = [], 0
        if len(part):
            held.append(part)
            count += len(part)
    if held:
        yield torch.cat(held)


# ---- resampling ------------------------------------------------------------------------------------------------------
# Output m is the convolution of the source with a low-pass kernel, taken at source position m * source / target. With
# source / target = down / up in lowest terms the positions repeat: `up` outputs advance the source by exactly `down`
# samples. So the `up` kernels (phases) form one strided convolution. Phases are taken in groups of about 100 neighbors,
# which share one stretch of the source: a kernel for all phases at once would be mostly zeros (1 GB at 15999 Hz).

FLAT = 0.9  # of the Nyquist frequency is kept: 7.2 of 8 kHz
STOP = 80.0  # dB down at the Nyquist frequency and above
GROUP = 100  # outputs of one matrix product, about the reach of the kernel

Groups = list[tuple[int, Tensor]]  # of each group of phases the first sample and the kernel (G, 1, L)


def resample(samples: Tensor, source_rate: float, target_rate: float = SAMPLE_RATE) -> Tensor:
    """Float samples (S,) at `source_rate` Hz -> float32 (ceil(S * target / source),) at `target_rate`, without delay.

    Flat (0.01 dB) to 90 % of half the lower rate, 80 dB down from half the lower rate on: a Kaiser-windowed sinc
    (Kaiser 1974; the formulas are in Oppenheim and Schafer, "Discrete-Time Signal Processing", section 7.5.3).
    """
    source, target = (checked_rate(rate, "resample") for rate in (source_rate, target_rate))
    samples = samples.float()
    parts = (samples[start : start + VALUES] for start in range(0, len(samples), VALUES))
    return torch.cat([samples[:0], *_resampled(parts, source, target)])


@stage("resample")
def _resampled(parts: Iterable[Tensor], source_rate: int, target_rate: int) -> Iterator[Tensor]:
    """`resample` over a stream: tensors (any,) -> tensors (any,)."""
    resampler = Resampler(source_rate, target_rate)
    yield from map(resampler.feed, parts)
    yield resampler.finish()


class Resampler:
    """`resample` over a stream that comes bit by bit: what is fed, and at its end `finish`, joined are the same."""

    def __init__(self, source_rate: int, target_rate: int = SAMPLE_RATE):
        self.source, self.target = source_rate, target_rate
        self._pending, self._read, self._written = torch.zeros(0), 0, 0
        if source_rate != target_rate:
            self._phases = _phases(source_rate, target_rate)
            self._pending = torch.zeros(self._phases[2])  # silence before the first sample; as much after the last

    def feed(self, samples: Tensor) -> Tensor:
        """The next float samples (S,) -> those (any,) at the target rate that they make certain."""
        if self.source == self.target:
            return samples
        up, down, reach, groups = self._phases
        self._read += len(samples)
        self._pending = torch.cat([self._pending.to(samples.device), samples])
        periods = (len(self._pending) - 2 * reach - 1) // down
        if periods <= 0:
            return samples[:0]
        found = _convolved(self._pending, periods, down, groups)
        self._pending, self._written = self._pending[periods * down :], self._written + periods * up
        return found

    def finish(self) -> Tensor:
        """The rest (any,): there is silence after the last sample."""
        left = -(-self._read * self.target // self.source) - self._written  # of ceil(read * target / source)
        if left <= 0:
            return self._pending[:0]
        up, down, reach, groups = self._phases
        periods = -(-left // up)
        silence = self._pending.new_zeros(max(0, periods * down + 2 * reach + 1 - len(self._pending)))
        return _convolved(torch.cat([self._pending, silence]), periods, down, groups)[:left]


def _convolved(samples: Tensor, periods: int, down: int, groups: Groups) -> Tensor:
    """(S,) with S >= periods * down + 2 * reach + 1 -> (periods * up,)"""
    outputs = []
    for start, kernel in groups:  # (G, 1, L)
        stretch = samples[start : start + (periods - 1) * down + kernel.shape[-1]]
        outputs.append(F.conv1d(stretch[None, None], kernel.to(samples.device), stride=down)[0])
    return torch.cat(outputs).T.flatten()  # groups of (G, periods) -> (up, periods) -> (periods * up,)


@lru_cache(maxsize=2)  # 0.5 MB for 44.1 kHz, but 60 MB for a prime rate near it
def _phases(source_rate: int, target_rate: int) -> tuple[int, int, int, Groups]:
    """-> up, down, reach (taps either side of a position), and the groups of phases."""
    divisor = math.gcd(source_rate, target_rate)
    up, down = target_rate // divisor, source_rate // divisor
    repeat = max(1, GROUP // up)  # 48 kHz has one phase: make a group of a hundred periods
    up, down = up * repeat, down * repeat
    nyquist = min(source_rate, target_rate) / 2
    cutoff = (1 + FLAT) / 2 * nyquist  # the filter is 6 dB down here
    transition = 2 * math.pi * (1 - FLAT) * nyquist / source_rate  # radians a source sample
    half = (STOP - 7.95) / (2.285 * transition) / 2  # length of the kernel either side, in source samples
    reach = math.ceil(half) + 1

    groups: Groups = []
    for phases in torch.arange(up).chunk(-(-up // GROUP)):
        start, end = int(phases[0]) * down // up, int(phases[-1]) * down // up
        taps = torch.arange(start - reach, end + reach + 1, dtype=torch.float64)
        distance = taps - (phases.double() * down / up)[:, None]  # (G, L), in source samples
        kernel = 2 * cutoff / source_rate * torch.sinc(2 * cutoff / source_rate * distance) * _kaiser(distance / half)
        groups.append((start, kernel.float()[:, None]))
    return up, down, reach, groups


def _kaiser(position: Tensor) -> Tensor:
    """Kaiser window at positions -1..1, zero outside; its one parameter gives side lobes of STOP dB."""
    beta = 0.1102 * (STOP - 8.7)
    inside = (1 - position.square()).clamp(min=0).sqrt()
    peak = torch.special.i0(torch.tensor(beta, dtype=torch.float64))
    window: Tensor = torch.special.i0(beta * inside) / peak * (position.abs() <= 1)
    return window
