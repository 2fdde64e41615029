"""All channels of a recording -> one: their mean, or the louder one of two that are in opposite phase.

Unusual: keeping the first channel only would lose a speaker who was recorded on the second, so all are averaged. But
two in opposite phase would cancel each other out (a plug that is wired the wrong way round): `_Phase` takes one of them
there.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from ..errors import AudioError
from ..observing import stage
from .limits import Warn

LOUDEST = 1000.0  # times full scale; the text of sounds that are so loud is wrong, and soon empty


@stage("read")
def mono(parts: Iterable[np.ndarray], name: str, rate: int, warn: Warn) -> Iterator[Tensor]:
    """Float arrays (samples, channels) at `rate` Hz -> float32 tensors (samples,), the mean of all channels, or one of
    two.

    Raises AudioError for samples that are NaN, infinite or above LOUDEST."""
    read, phase = 0, _Phase(name, rate, warn)
    parts = (np.ascontiguousarray(part, dtype=np.float32) for part in parts)  # native byte order
    for samples in map(torch.from_numpy, phase.mixed(parts)):  # a cast out of range has given infinity
        finite = samples.isfinite()
        if not finite.all():
            first = read + int(finite.logical_not().nonzero()[0])
            raise AudioError(
                f"{name}: sample {first} is NaN or infinite; expected finite floats in -1..1: the file is damaged "
                "or was written by a step that overflowed"
            )
        if samples.abs().max() > LOUDEST:
            first = read + int((samples.abs() > LOUDEST).nonzero()[0])
            raise AudioError(
                f"{name}: sample {first} is {samples[first - read]:g}; expected floats in about -1..1: divide them by "
                "their full scale, 32768 for 16 bits, or record again if the file is damaged"
            )
        read += len(samples)
        yield samples


def _mean(part: np.ndarray) -> np.ndarray:
    """(samples, channels) -> (samples,)"""
    return part @ np.full(part.shape[1], 1 / part.shape[1], dtype=np.float32)  # ten times as fast as mean(axis=1)


class _Phase:
    """Two channels -> one: their mean, but the louder one of them as long as they are in opposite phase.

    The rule, on frames of 0.25 s: two channels cancel each other out where their mean has less than a tenth of the
    power of the louder one. (It has a quarter if the other is silent, half if they have nothing in common, all if they
    are alike; to a tenth it only comes when they are opposite.) They don't where it has more than a fifth. In between,
    and in frames that are quiet beside the loudest so far, nothing is decided. What counts is the slope of the sound
    between 100 and 2000 Hz, about, where voices are: hum and offsets of direct current are often opposite where the
    voice is not.

    It takes 2 s of frames that agree, with none that objects, to change over, and then it is done from the first of
    them on: a tone, a vowel or a chord that reaches two microphones half a wave apart cancels as well, but for no
    longer than it sounds. Where the sound ends before that, or pauses for long, one frame will do if nothing ever
    objected. At most OPEN seconds are held back.
    """

    FRAME, AGREE, OPEN = 0.25, 8, 10.0
    CANCELS, STANDS = 0.1, 0.2  # power of the mean, of that of the louder channel
    QUIET, FAINTEST = 1e-3, 1e-10  # power of a frame, of the loudest so far; and of full scale

    def __init__(self, name: str, rate: int, warn: Warn):
        self.name, self.rate, self.warn = name, rate, warn
        self.fold = max(1, rate // 4000)  # samples whose mean is looked at: about 4000 a second
        self.frame = self.fold * max(2, round(self.FRAME * rate / self.fold))
        self.folding = np.tile(np.eye(2, dtype=np.float32) / self.fold, (self.fold, 1))
        self.channel: int | None = None  # the one that is taken; None: the mean
        self.loudest, self.settled, self.told, self.read = 0.0, False, False, 0
        self.open: list[np.ndarray] = []  # frames that wait until it is clear what becomes of them
        self.against = 0  # how many of them are for a change
        self.power = np.zeros(2)  # of those, in each channel

    def mixed(self, parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Arrays (samples, channels) -> arrays (samples,), in all as many."""
        rest = np.zeros((0, 2), np.float32)
        for part in parts:
            if part.shape[1] != 2:  # after another recording in the same file
                yield from self.closed(rest)
                rest = rest[:0]
                yield _mean(part)
                continue
            part = np.concatenate([rest, part]) if len(rest) else part
            count = len(part) // self.frame
            if count:
                yield from self.frames(part[: count * self.frame].reshape(count, self.frame, 2))
            rest = part[count * self.frame :]
        yield from self.closed(rest)

    def closed(self, rest: np.ndarray) -> Iterator[np.ndarray]:
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

    def frames(self, part: np.ndarray) -> Iterator[np.ndarray]:
        """(frames, samples, 2): as long as nothing speaks against it, all at once."""
        powers, mean = self.powers(part)
        first = 0  # of those that are not given out yet
        for place, (power, mixed) in enumerate(zip(powers, mean, strict=True)):
            verdict = self.verdict(power, mixed)
            if verdict is False:  # it is as it was
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

    def powers(self, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(frames, samples, 2) -> those of the channels (frames, 2), and those of their mean (frames,)."""
        with np.errstate(all="ignore"):  # NaN and infinity are found later
            coarse = part.reshape(len(part), -1, 2 * self.fold) @ self.folding
            coarse = np.diff(coarse, axis=1)
            return np.square(coarse, dtype=np.float64).mean(1), np.square(coarse.mean(2), dtype=np.float64).mean(1)

    def verdict(self, power: np.ndarray, mixed: float) -> bool | None:
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
            self.warn(
                f"{self.name}: its two channels are in opposite phase{since}, so that their mean would be next to "
                f"silence; the {('left', 'right')[self.channel]} one is taken there"
            )

    def give_up(self) -> Iterator[np.ndarray]:
        """What is open is decided with what there is."""
        if self.against and not self.settled:
            self.change()
        yield from self.flush()

    def flush(self) -> Iterator[np.ndarray]:
        held, self.open, self.against, self.power = self.open, [], 0, np.zeros(2)
        if held:
            yield self.taken(np.concatenate(held))

    def taken(self, part: np.ndarray) -> np.ndarray:
        self.read += len(part)
        mean = _mean(part)
        # What is no number is found in the mean of both.
        return (
            mean if self.channel is None or not np.isfinite(mean).all() else np.ascontiguousarray(part[:, self.channel])
        )
