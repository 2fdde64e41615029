"""A microphone -> its sample rate, and float32 samples (samples, 1), as they come: by the package sounddevice, which is
PortAudio."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np

from ..errors import AudioError
from .limits import Warn, checked_rate

NAME = "the microphone"
AT_ONCE = 0.05  # seconds


def parts(device: str | None, stack: ExitStack, warn: Warn) -> Iterator[tuple[int, np.ndarray]]:
    """(sample rate, float32 array (samples, 1)) of an input device, a number or a part of its name; None: the one that
    the system uses. It never ends; the device is closed with `stack`. Raises AudioError."""
    sounddevice = _library()
    chosen: str | int | None = int(device) if device is not None and device.isdecimal() else device
    try:
        # At its own rate: many devices have no other.
        rate = checked_rate(sounddevice.query_devices(chosen, "input")["default_samplerate"], NAME)
        stream = stack.enter_context(
            sounddevice.InputStream(samplerate=rate, channels=1, dtype="float32", device=chosen)
        )
        while True:
            part, lost = stream.read(round(AT_ONCE * rate))
            if lost:
                warn(f"{NAME}: some sound was lost, for it wasn't taken in time")
            yield rate, np.array(part, np.float32)
    except (sounddevice.PortAudioError, ValueError) as error:
        there = ", ".join(_devices(sounddevice)) or "none"
        raise AudioError(
            f"{NAME}: cannot be used ({error}); expected a number or a name in --input-device, of these: {there}"
        ) from error


def _devices(sounddevice: Any) -> list[str]:
    """Number and name of each that has inputs."""
    return [
        f"{number} {device['name']}"
        for number, device in enumerate(sounddevice.query_devices())
        if device["max_input_channels"] > 0
    ]


def _library() -> Any:
    try:
        import sounddevice
    except ModuleNotFoundError:
        raise AudioError(
            f"{NAME}: needs the package sounddevice: install the extra, pip install '.[mic]'; or pipe its sound, as in "
            "`arecord -f S16_LE -r 16000 | glmasr --live -`"
        ) from None
    except OSError as error:  # PortAudio is a library of its own
        raise AudioError(
            f"{NAME}: sounddevice finds no PortAudio ({error}); install it (Debian: libportaudio2, Fedora: portaudio)"
        ) from None
    return sounddevice
