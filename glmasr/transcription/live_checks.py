"""What a live session is given: samples and options, checked."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..audio_files import reader
from ..audio_files.channels import mono
from ..config import SAMPLE_RATE, is_number
from ..errors import AudioError, OptionError
from .options import Options

STEPS, PAUSES, PADDINGS = (0.1, 30.0), (0.1, 10.0), (0.0, 5.0)  # seconds


def checked(samples: Any) -> Tensor:
    """Samples (S,) as floats. Raises AudioError."""
    if not isinstance(samples, np.ndarray | Tensor):
        raise AudioError(
            f"samples are a {type(samples).__name__}; expected a tensor or an array, such as np.array(...)"
        )
    if samples.ndim != 1:
        raise AudioError(
            f"samples have the shape {tuple(samples.shape)}; expected (S,), one channel: take the mean of several"
        )
    name, parts = reader.read_array(samples, SAMPLE_RATE, _ignore)
    return torch.cat([torch.zeros(0), *mono((part for _, part in parts), name, SAMPLE_RATE, _ignore)])


def _ignore(warning: str) -> None:
    """What `reader` warns of concerns whole recordings."""


def check(options: Options, step: float, pause: float | None, padding: float, threshold: float) -> None:
    """Raises OptionError."""
    ranges = (
        ("step", step, STEPS),
        ("pause", PAUSES[0] if pause is None else pause, PAUSES),
        ("padding", padding, PADDINGS),
    )
    for name, value, (least, most) in ranges:
        if not (is_number(value) and least <= value <= most):
            raise OptionError(f"{name} is {value!r}, expected seconds from {least:g} to {most:g}")
    if not (is_number(threshold) and 0 < threshold < 1):
        raise OptionError(f"threshold is {threshold!r}, expected a probability of speech between 0 and 1")
    whole = Options()
    for name in ("clips", "track", "long", "context", "task"):
        if getattr(options, name) != getattr(whole, name):
            raise OptionError(f"{name} is {getattr(options, name)!r}, which a live session doesn't have; leave it out")
