"""Recording of any kind -> mono samples at 16 kHz (S,) -> windows (W, 480000) -> log-mel (W, bands, 3000).

What is unusual here:
- Every recording is read, mixed and resampled in blocks, so memory does not grow with its length; the blocks joined are
  the same samples, to float rounding, as those of one pass over the whole.
- All channels are averaged. Keeping the first one only would lose a speaker who was recorded on the second. But two in opposite
  phase would cancel each other out (a plug that is wired the wrong way round): `_Phase` takes one of them there.
- The resampler has a real anti-alias filter: flat to 7.2 kHz, 80 dB down at 8 kHz, the highest frequency that 16 kHz can hold.
- The log-mel is in float32 on purpose: the models were trained on the rounding of a float32 transform, which shows at the
  bottom of the 80 dB that are kept.
"""

import math
import numbers
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from functools import lru_cache
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .audio_files import ffmpeg, sound_files
from .audio_files.ffmpeg import VALUES
from .audio_files.sound_files import MOST_BYTES, checked_rate, too_long
from .errors import AudioError, OptionError, printable
from .observing import stage

SAMPLE_RATE = 16_000                      # samples a second, of everything behind this stage
FFT_SIZE = 400                            # 25 ms of samples in one frame of the spectrum
HOP = 160                                 # 10 ms between frames: SAMPLE_RATE / HOP = 100 frames a second
BINS = FFT_SIZE // 2 + 1                  # 201 frequencies, SAMPLE_RATE / FFT_SIZE = 40 Hz apart: 0, 40, ... 8000 Hz
WINDOW = 30 * SAMPLE_RATE                 # 480,000 samples, 3000 frames: what the models take at once

LOUDEST = 1000.0                          # times full scale; the text of sounds that are so loud is wrong, and soon empty
MOST_CHANNELS = 255                       # more than any array of microphones that people speak into
MAX_DURATION = 12 * 3600.0                # seconds of a recording, if the caller sets no other limit


# ---- reading ------------------------------------------------------------------------------------------------------------

def warn_printable(warning: str) -> None:
    """`warnings.warn`, which writes to a terminal: the name of a recording is escaped."""
    warnings.warn(printable(warning), stacklevel=2)


def load(source, sample_rate=None, *, track=None, max_duration=MAX_DURATION, warn=warn_printable) -> Tensor:
    """The whole recording -> float32 samples (S,), mono, 16 kHz: `blocks` joined. Arguments and errors as there."""
    return torch.cat(list(blocks(source, sample_rate, track=track, max_duration=max_duration, warn=warn)))


def blocks(source, sample_rate=None, *, seconds=30.0, track: int | str | None = None, max_duration=MAX_DURATION, warn=warn_printable,
           cancelled: Callable[[], bool] | None = None) -> Iterator[Tensor]:
    """Yield a recording as float32 blocks (S,), mono, 16 kHz: each `seconds` long, the last one at most that.

    `source` is one of
    - a path, `"-"` for standard input, bytes, or a binary file object: WAV, FLAC, OGG, MP3, AIFF, AU and CAF are decoded by
      libsndfile, everything else (m4a, mp4, webm, ...) by ffmpeg if it is on the PATH;
    - a float array or tensor (S,), (S, channels) or (channels, S), about -1..1, with its `sample_rate` in Hz. The shorter
      axis is the channels, the second one where both are equal.

    `track` is one of several tracks of sound in a file: its number, from 1, or its language ("eng"). By default it is the one that
    the file calls its default, else the first one, and `warn` is told that there are others.

    Raises AudioError, at the first block for what the header shows and later for what is inside: a recording that is
    missing, empty, not audio, without that track, outside 4..384 kHz, of more than MOST_CHANNELS, longer than `max_duration` seconds
    or MOST_BYTES when decoded, or that holds samples that are NaN, infinite or above LOUDEST. One that breaks off in the middle is read
    up to there, and `warn` is called with a sentence that says so. What counts is what was decoded: a header may claim any length.

    `cancelled` is called now and then, from any thread: between parts that were decoded, and while ffmpeg is silent. Once it says True
    everything is closed, and Cancelled is raised.
    """
    if not 1 <= seconds * SAMPLE_RATE < math.inf:
        raise OptionError(f"seconds is {seconds}; a block needs at least one sample and an end: give, for example, 30.0")
    if not (isinstance(max_duration, numbers.Real) and max_duration > 0):
        raise OptionError(f"max_duration is {max_duration!r}; expected a positive number of seconds: give, for example, "
                          f"{MAX_DURATION:.0f}")
    ffmpeg.check_track(track)
    with ExitStack() as stack:            # closes files and ends ffmpeg, also when the caller stops before the end
        cancelled = cancelled or (lambda: False)
        if isinstance(source, (np.ndarray, Tensor)):
            name, parts = _array(source, sample_rate)
            ffmpeg.only_track(track, name)
        elif sample_rate is not None:
            raise AudioError(f"sample_rate={sample_rate} was given for a {type(source).__name__}; only arrays need it, a file "
                             "states its own: leave it out")
        else:
            name, parts = sound_files.decode(source, track, max_duration, stack, warn, cancelled)
        parts = _limited(sound_files.until(cancelled, parts), name, max_duration)
        yield from _regrouped(_at_16_khz(parts, name, warn), round(seconds * SAMPLE_RATE))


def _at_16_khz(parts, name, warn):
    """(rate, float array (samples, channels)) -> tensors (any,). The rate changes where another recording begins in the same file."""
    for rate, some in groupby(parts, itemgetter(0)):
        samples = _mono(map(itemgetter(1), some), name, rate, warn)
        yield from _resampled(_regrouped(samples, VALUES), rate, SAMPLE_RATE)   # decoders give small parts; long ones are faster here


def _array(source, sample_rate):
    """A float array or tensor in memory -> its name in messages, and (rate, float array (samples, channels))."""
    name = f"the {type(source).__name__} of shape {tuple(source.shape)}"
    if isinstance(source, Tensor):
        floating = source.is_floating_point()
        try:
            array = source.detach().cpu().float().numpy()       # numpy has no bfloat16
        except (RuntimeError, TypeError):
            raise AudioError(f"{name} holds {source.dtype} as {source.layout} on {source.device}, which can't be read; expected a "
                             "dense tensor with its samples in memory: pass `samples.to_dense().float()`") from None
    else:
        array, floating = source, np.issubdtype(source.dtype, np.floating)
    if not floating:
        raise AudioError(f"{name} holds {source.dtype}; expected floats in -1..1: divide by the full scale of the integers, "
                         "for int16 `samples / 32768`")
    if array.ndim not in (1, 2):
        raise AudioError(f"{name} has {array.ndim} axes; expected (samples,), (samples, channels) or (channels, samples)")
    if sample_rate is None:
        raise AudioError(f"{name} comes without sample_rate: pass it in Hz, for example sample_rate=16000")
    if array.ndim == 1:
        array = array[:, None]
    elif array.shape[0] < array.shape[1]:
        array = array.T
    rate, step = checked_rate(sample_rate, name), max(1, VALUES // max(1, array.shape[1]))
    return name, ((rate, array[start:start + step]) for start in range(0, len(array), step))


def _limited(parts, name, max_duration):
    """The same (rate, float array (samples, channels)), up to the limits, and without empty ones."""
    seconds = size = 0
    for rate, part in parts:
        if part.shape[1] > MOST_CHANNELS:
            raise AudioError(f"{name}: {part.shape[1]} channels; expected 1 to {MOST_CHANNELS}: the header is damaged, or this is "
                             "not speech. Keep the channels that people speak on")
        if 0 in part.shape:
            continue
        seconds, size = seconds + Fraction(len(part), rate), size + part.nbytes
        if seconds > max_duration:
            raise too_long(name, max_duration)
        if size > MOST_BYTES:
            raise AudioError(f"{name}: gives more than {MOST_BYTES / 2 ** 30:.0f} GiB of samples; expected at most that: cut the "
                             "recording, or convert it to one channel and 16000 Hz")
        yield rate, part
    if not size:
        raise AudioError(f"{name}: holds no samples (a header only?); expected audio: record or download it again")


@stage("read")
def _mono(parts, name, rate, warn):
    """Float arrays (samples, channels) -> float32 tensors (samples,), the mean of all channels, or one of two, checked."""
    read, phase = 0, _Phase(name, rate, warn)
    parts = (np.ascontiguousarray(part, dtype=np.float32) for part in parts)    # native byte order
    for mono in map(torch.from_numpy, phase.mixed(parts)):                      # a cast out of range has given infinity
        finite = mono.isfinite()
        if not finite.all():
            first = read + int(finite.logical_not().nonzero()[0])
            raise AudioError(f"{name}: sample {first} is NaN or infinite; expected finite floats in -1..1: the file is damaged "
                             "or was written by a step that overflowed")
        if mono.abs().max() > LOUDEST:
            first = read + int((mono.abs() > LOUDEST).nonzero()[0])
            raise AudioError(f"{name}: sample {first} is {mono[first - read]:g}; expected floats in about -1..1: divide them by their "
                             "full scale, 32768 for 16 bits, or record again if the file is damaged")
        read += len(mono)
        yield mono


def _mean(part):
    """(samples, channels) -> (samples,)"""
    return part @ np.full(part.shape[1], 1 / part.shape[1], dtype=np.float32)   # ten times as fast as mean(axis=1)


class _Phase:
    """Two channels -> one: their mean, but the louder one of them as long as they are in opposite phase.

    The rule, on frames of 0.25 s: two channels cancel each other out where their mean has less than a tenth of the power of the louder
    one. (It has a quarter if the other is silent, half if they have nothing in common, all if they are alike; to a tenth it only comes
    when they are opposite.) They don't where it has more than a fifth. In between, and in frames that are quiet beside the loudest so
    far, nothing is decided. What counts is the slope of the sound between 100 and 2000 Hz, about, where voices are: hum and offsets of
    direct current are often opposite where the voice is not.

    It takes 2 s of frames that agree, with none that objects, to change over, and then it is done from the first of them on: a tone, a
    vowel or a chord that reaches two microphones half a wave apart cancels as well, but for no longer than it sounds. Where the
    sound ends before that, or pauses for long, one frame will do if nothing ever objected. At most OPEN seconds are held back.
    """

    FRAME, AGREE, OPEN = 0.25, 8, 10.0
    CANCELS, STANDS = 0.1, 0.2            # power of the mean, of that of the louder channel
    QUIET, FAINTEST = 1e-3, 1e-10         # power of a frame, of the loudest so far; and of full scale

    def __init__(self, name, rate, warn):
        self.name, self.rate, self.warn = name, rate, warn
        self.fold = max(1, rate // 4000)  # samples whose mean is looked at: about 4000 a second
        self.frame = self.fold * max(2, round(self.FRAME * rate / self.fold))
        self.folding = np.tile(np.eye(2, dtype=np.float32) / self.fold, (self.fold, 1))
        self.channel: int | None = None   # the one that is taken; None: the mean
        self.loudest, self.settled, self.told, self.read = 0.0, False, False, 0
        self.open: list[np.ndarray] = []  # frames that wait until it is clear what becomes of them
        self.against = 0                  # how many of them are for a change
        self.power = np.zeros(2)          # of those, in each channel

    def mixed(self, parts):
        """Arrays (samples, channels) -> arrays (samples,), in all as many."""
        rest = np.zeros((0, 2), np.float32)
        for part in parts:
            if part.shape[1] != 2:        # after another recording in the same file
                yield from self.closed(rest)
                rest = rest[:0]
                yield _mean(part)
                continue
            part = np.concatenate([rest, part]) if len(rest) else part
            count = len(part) // self.frame
            if count:
                yield from self.frames(part[:count * self.frame].reshape(count, self.frame, 2))
            rest = part[count * self.frame:]
        yield from self.closed(rest)

    def closed(self, rest):
        """What is left, at the end: less than a frame, and it counts as one."""
        whole = len(rest) // self.fold * self.fold
        if whole > self.fold:
            [power], [mixed] = self.powers(rest[None, :whole])
            verdict = self.verdict(power, mixed)
            self.settled = self.settled or verdict is False
            if verdict:
                self.against, self.power = self.against + 1, self.power + power
        yield from self.give_up()
        if len(rest):
            yield self.taken(rest)

    def frames(self, part):
        """(frames, samples, 2): as long as nothing speaks against it, all at once."""
        powers, mean = self.powers(part)
        first = 0                         # of those that are not given out yet
        for place, (power, mixed) in enumerate(zip(powers, mean, strict=True)):
            verdict = self.verdict(power, mixed)
            if verdict is False:          # it is as it was
                self.settled = True
                yield from self.flush()
            elif verdict or self.open:
                if first < place and not self.open:
                    yield self.taken(part[first:place].reshape(-1, 2))
                self.open.append(part[place])
                first = place + 1
                if verdict:
                    self.against, self.power = self.against + 1, self.power + power
                if self.against == self.AGREE:
                    self.change()
                    yield from self.flush()
                elif len(self.open) * self.FRAME >= self.OPEN:
                    yield from self.give_up()
        if first < len(part):
            yield self.taken(part[first:].reshape(-1, 2))

    def powers(self, part):
        """(frames, samples, 2) -> those of the channels (frames, 2), and those of their mean (frames,)."""
        with np.errstate(all="ignore"):   # NaN and infinity are found behind
            coarse = part.reshape(len(part), -1, 2 * self.fold) @ self.folding
            coarse = np.diff(coarse, axis=1)
            return np.square(coarse, dtype=np.float64).mean(1), np.square(coarse.mean(2), dtype=np.float64).mean(1)

    def verdict(self, power, mixed) -> bool | None:
        """Whether a frame is for a change. None: it says nothing."""
        louder = power.max()
        if not self.FAINTEST < louder < np.inf or louder < self.QUIET * self.loudest:
            return None
        self.loudest = max(self.loudest, louder)
        cancels = True if mixed < self.CANCELS * louder else False if mixed > self.STANDS * louder else None
        return None if cancels is None else cancels == (self.channel is None)

    def change(self) -> None:
        self.channel, self.settled = int(self.power.argmax()) if self.channel is None else None, True
        if self.channel is not None and not self.told:
            self.told = True
            begin = self.read / self.rate
            since = f" from {begin:.1f} s on" if begin >= 1 else ""
            self.warn(f"{self.name}: its two channels are in opposite phase{since}, so that their mean would be next to silence; the "
                      f"{('left', 'right')[self.channel]} one is taken there")

    def give_up(self):
        """What is open is decided with what there is."""
        if self.against and not self.settled:
            self.change()
        yield from self.flush()

    def flush(self):
        held, self.open, self.against, self.power = self.open, [], 0, np.zeros(2)
        if held:
            yield self.taken(np.concatenate(held))

    def taken(self, part):
        self.read += len(part)
        mean = _mean(part)
        # What is no number is found in the mean of both.
        return mean if self.channel is None or not np.isfinite(mean).all() else np.ascontiguousarray(part[:, self.channel])


def _regrouped(parts, length):
    """Tensors (any,) -> the same samples as tensors (length,), the last one shorter."""
    held, count = [], 0
    for part in parts:
        while count + len(part) >= length:
            held.append(part[:length - count])
            part = part[length - count:]
            yield torch.cat(held)
            held, count = [], 0
        if len(part):
            held.append(part)
            count += len(part)
    if held:
        yield torch.cat(held)


# ---- resampling ---------------------------------------------------------------------------------------------------------
# Output m is the convolution of the source with a low-pass kernel, taken at source position m * source / target. With
# source / target = down / up in lowest terms the positions repeat: `up` outputs advance the source by exactly `down` samples.
# So the `up` kernels (phases) form one strided convolution. Phases are taken in groups of about 100 neighbours, which share
# one stretch of the source: a kernel for all phases at once would be mostly zeros (1 GB of them from 15999 Hz).

FLAT = 0.9                                # of the Nyquist frequency is kept: 7.2 of 8 kHz
STOP = 80.0                               # dB down at the Nyquist frequency and above
GROUP = 100                               # outputs of one matrix product, about the reach of the kernel


def resample(samples, source_rate, target_rate=SAMPLE_RATE) -> Tensor:
    """Float samples (S,) at `source_rate` Hz -> float32 (ceil(S * target / source),) at `target_rate` Hz, without delay.

    Flat (0.01 dB) to 90 % of half the lower rate, 80 dB down from half the lower rate on: a Kaiser-windowed sinc (Kaiser 1974;
    the formulas are in Oppenheim and Schafer, "Discrete-Time Signal Processing", section 7.5.3).
    """
    source_rate, target_rate = (checked_rate(rate, "resample") for rate in (source_rate, target_rate))
    samples = samples.float()
    return torch.cat([samples[:0], *_resampled(samples.split(VALUES), source_rate, target_rate)])


@stage("resample")
def _resampled(parts, source_rate, target_rate):
    """`resample` over a stream: tensors (any,) -> tensors (any,)."""
    if source_rate == target_rate:
        yield from parts
        return
    up, down, reach, groups = _phases(source_rate, target_rate)
    pending, read, written = torch.zeros(reach), 0, 0           # silence before the first sample; as much behind the last
    for part in parts:
        read += len(part)
        pending = torch.cat([pending.to(part.device), part])
        periods = (len(pending) - 2 * reach - 1) // down
        if periods > 0:
            yield _convolved(pending, periods, down, groups)
            pending, written = pending[periods * down:], written + periods * up
    left = -(-read * target_rate // source_rate) - written      # of ceil(read * target / source)
    if left > 0:
        periods = -(-left // up)
        silence = pending.new_zeros(max(0, periods * down + 2 * reach + 1 - len(pending)))
        yield _convolved(torch.cat([pending, silence]), periods, down, groups)[:left]


def _convolved(samples, periods, down, groups):
    """(S,) with S >= periods * down + 2 * reach + 1 -> (periods * up,)"""
    outputs = []
    for start, kernel in groups:                                # (G, 1, L)
        stretch = samples[start:start + (periods - 1) * down + kernel.shape[-1]]
        outputs.append(F.conv1d(stretch[None, None], kernel.to(samples.device), stride=down)[0])
    return torch.cat(outputs).T.flatten()                       # groups of (G, periods) -> (up, periods) -> (periods * up,)


@lru_cache(maxsize=2)                     # 0.5 MB for 44.1 kHz, but 60 MB for a prime rate near it
def _phases(source_rate, target_rate):
    """-> up, down, reach (taps either side of a position), and for each group of phases its first sample and kernel (G, 1, L)."""
    divisor = math.gcd(source_rate, target_rate)
    up, down = target_rate // divisor, source_rate // divisor
    repeat = max(1, GROUP // up)                                # 48 kHz has one phase: make a group of a hundred periods
    up, down = up * repeat, down * repeat
    nyquist = min(source_rate, target_rate) / 2
    cutoff = (1 + FLAT) / 2 * nyquist                           # the filter is 6 dB down here
    transition = 2 * math.pi * (1 - FLAT) * nyquist / source_rate               # radians a source sample
    half = (STOP - 7.95) / (2.285 * transition) / 2             # length of the kernel either side, in source samples
    reach = math.ceil(half) + 1

    groups = []
    for phases in torch.arange(up).chunk(-(-up // GROUP)):
        start, end = int(phases[0]) * down // up, int(phases[-1]) * down // up
        taps = torch.arange(start - reach, end + reach + 1, dtype=torch.float64)
        distance = taps - (phases.double() * down / up)[:, None]                # (G, L), in source samples
        kernel = 2 * cutoff / source_rate * torch.sinc(2 * cutoff / source_rate * distance) * _kaiser(distance / half)
        groups.append((start, kernel.float()[:, None]))
    return up, down, reach, groups


def _kaiser(position):
    """Kaiser window at positions -1..1, zero outside; its one parameter gives side lobes of STOP dB."""
    beta = 0.1102 * (STOP - 8.7)
    inside = (1 - position.square()).clamp(min=0).sqrt()
    return torch.special.i0(beta * inside) / torch.special.i0(torch.tensor(beta, dtype=torch.float64)) * (position.abs() <= 1)


# ---- log-mel ------------------------------------------------------------------------------------------------------------

def windows(samples, length=WINDOW) -> Tensor:
    """(S,) -> (W, length), at least one window. TRAP: silence is added here, to the samples: zeros in the log-mel are loud."""
    count = max(1, -(-len(samples) // length))
    return F.pad(samples, (0, count * length - len(samples))).reshape(count, length)


@lru_cache(maxsize=4)
def mel_filters(bands) -> Tensor:
    """Triangular filters (bands, 201) from 0 to 8000 Hz on Slaney's mel scale, float32, rounded once from float64.

    Scale and norm are those of Slaney's Auditory Toolbox (1998): linear up to 1000 Hz, logarithmic above, and every
    triangle of area 1 in Hz. TRAP: with the other scale (2595 log10(1 + f / 700)) or without the norm nothing fails,
    but the model hears another sound. Shared by all callers: do not change in place.
    """
    edges = _mel_to_hertz(torch.linspace(0, _hertz_to_mel(SAMPLE_RATE / 2), bands + 2, dtype=torch.float64))
    low, centre, high = (edges[i:i + bands, None] for i in range(3))
    hertz = torch.arange(BINS, dtype=torch.float64) * SAMPLE_RATE / FFT_SIZE
    rising, falling = (hertz - low) / (centre - low), (high - hertz) / (high - centre)
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (high - low)).float()


def _hertz_to_mel(hertz):
    """Above 1000 Hz; 15 mels are 1000 Hz, and 27 more are a factor of 6.4."""
    return 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _mel_to_hertz(mel):
    return torch.where(mel < 15, mel * 1000 / 15, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))


@stage("log-mel")
def log_mel(samples, bands=128) -> Tensor:
    """Float samples (B, S) or (S,) at 16 kHz -> float32 log-mel (B, bands, S // 160), on the same device.

    As Whisper large-v3 and its published feature extractor compute it: `mel_power`; log10; 8 orders of magnitude below the
    loudest point of the row; about -1..1.
    """
    log = mel_power(samples, bands).clamp(min=1e-10).log10()
    # TRAP: the maximum is that of each row; one for the batch would make a recording depend on its batch mates.
    log = torch.maximum(log, log.amax(dim=(-2, -1), keepdim=True) - 8)
    return (log + 4) / 4


def mel_power(samples, bands=128) -> Tensor:
    """Float samples (B, S) or (S,) at 16 kHz -> float32 energy of mel bands (B, bands, S // 160): the power spectrum of periodic
    Hann frames, centred, mirrored at both ends, through `mel_filters`. AudioError for fewer samples than there are to mirror."""
    samples = torch.atleast_2d(samples).float()
    if samples.shape[-1] <= FFT_SIZE // 2:
        raise AudioError(f"{samples.shape[-1]} samples are too few to mirror at the ends; a log-mel needs more than "
                         f"{FFT_SIZE // 2}: pad with `windows` first")
    hann = torch.hann_window(FFT_SIZE, device=samples.device)
    spectrum = torch.stft(samples, FFT_SIZE, HOP, window=hann, center=True, pad_mode="reflect", return_complex=True)
    power = spectrum[..., :-1].abs().square()                   # TRAP: the last frame is dropped, as in training
    return mel_filters(bands).to(samples.device) @ power
