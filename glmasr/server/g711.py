"""What realtime clients send as sound: 16-bit PCM, or the two codes of telephony, ITU-T G.711 -> samples (S,) int16."""

import numpy as np

from .problems import InvalidValue


def _mu_law(codes: np.ndarray) -> np.ndarray:
    """All bits are inverted; 3 of exponent, 4 of mantissa, and a bias of 33 in units of a 14-bit sample."""
    codes = ~codes & 0xFF
    sizes = (((codes & 0xF) << 3) + 0x84 << (codes >> 4 & 7)) - 0x84
    return np.where(codes & 0x80, -sizes, sizes)


def _a_law(codes: np.ndarray) -> np.ndarray:
    """Every other bit is inverted; without a bias, so the lowest two exponents have the same steps."""
    codes = codes ^ 0x55
    exponents, sizes = codes >> 4 & 7, ((codes & 0xF) << 4) + 8
    sizes = np.where(exponents > 0, sizes + 0x100 << np.maximum(exponents, 1) - 1, sizes)
    return np.where(codes & 0x80, sizes, -sizes)


TABLES = {  # format -> the sample of each code
    "audio/pcmu": _mu_law(np.arange(256)).astype(np.int16),
    "audio/pcma": _a_law(np.arange(256)).astype(np.int16),
}
RATES = {"audio/pcm": 24_000, "audio/pcmu": 8000, "audio/pcma": 8000}


def samples(sound: bytes, kind: str) -> np.ndarray:
    """The samples (S,) of sound in a format of RATES, int16. Raises InvalidValue for half a sample."""
    if kind in TABLES:
        found: np.ndarray = TABLES[kind][np.frombuffer(sound, np.uint8)]
        return found
    if len(sound) % 2:
        raise InvalidValue(
            f"audio has {len(sound)} bytes, an odd number; expected 16-bit samples, two bytes each, little-endian",
            "audio",
        )
    return np.frombuffer(sound, "<i2").astype(np.int16, copy=False)
