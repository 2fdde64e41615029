"""What a recording may be, whatever it comes from: limits of rate, channels, length and size, and the checks that name
them.
"""

import math
import numbers
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from ..errors import AudioError, Cancelled

VALUES = 2**20  # samples x channels decoded at once: 4 MiB of float32, whatever a header claims
MOST_BYTES = 2**36  # of decoded samples; 12 hours of 8 channels at 48 kHz are as many
MAX_DURATION = 12 * 3600.0  # seconds of a recording, if the caller sets no other limit
MOST_CHANNELS = 255  # more than any array of microphones that people speak into
LOWEST_RATE, HIGHEST_RATE = 4_000, 384_000  # Hz; outside of it a header is damaged or forged, or the sound is no speech
ODD_RATE = 50_000  # Hz; above it only whole hundreds: the kernels of others take seconds and 300 MB

Warn = Callable[[str], None]  # is called with a sentence that says what was lost
IsCancelled = Callable[[], bool]  # is asked now and then, from any thread; once it says True, Cancelled is raised
Item = TypeVar("Item")


def until(cancelled: IsCancelled, parts: Iterable[Item]) -> Iterator[Item]:
    """The parts, as long as `cancelled()` is false; then Cancelled."""
    for part in parts:
        if cancelled():
            raise Cancelled
        yield part


def checked_rate(rate: object, name: str) -> int:
    """A sample rate in Hz as an int. Raises AudioError, with the name of the recording, for one that no recording of
    speech has.
    """
    if not (isinstance(rate, numbers.Real) and math.isfinite(rate) and float(rate).is_integer()):
        raise AudioError(f"{name}: sample rate {rate!r}; expected a whole number of Hz")
    hertz = int(float(rate))
    if not LOWEST_RATE <= hertz <= HIGHEST_RATE:
        raise AudioError(
            f"{name}: sample rate {rate} Hz; expected {LOWEST_RATE} to {HIGHEST_RATE}: the header is damaged, or "
            "this is not speech. Convert it to 16000 Hz if it is"
        )
    if hertz > ODD_RATE and hertz % 100:
        raise AudioError(
            f"{name}: sample rate {rate} Hz; expected whole hundreds above {ODD_RATE}: the header is damaged, or was "
            "made up. Convert it to 16000 Hz"
        )
    return hertz


def too_long(name: str, max_duration: float) -> AudioError:
    """The error of a recording that is longer than `max_duration` seconds."""
    return AudioError(
        f"{name}: is longer than {max_duration:g} s (max_duration); expected at most that: cut the recording, or raise "
        "the limit with --max-duration"
    )
