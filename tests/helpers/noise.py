"""Sounds in which nobody speaks: benchmarks/noise.py, which measures what models write there."""

from benchmarks.noise import SOUNDS, sound

__all__ = ["SOUNDS", "sound"]
