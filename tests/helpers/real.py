"""How errors are counted, and how the weights get to openai-whisper: what benchmarks/real.py has, or uses as well."""

from benchmarks.real import Clip, Errors, Subject, interval, openai_checkpoint, read, table
from glmasr.evaluation.scoring import units

__all__ = ["Clip", "Errors", "Subject", "interval", "openai_checkpoint", "read", "table", "units"]
