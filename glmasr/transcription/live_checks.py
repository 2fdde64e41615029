"""What a live session is asked for, checked."""

from ..config import is_number
from ..errors import OptionError
from .options import Options

STEPS, PAUSES, PADDINGS = (0.1, 30.0), (0.1, 10.0), (0.0, 5.0)  # seconds


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
