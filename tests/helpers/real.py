"""How errors are counted, and how the weights get to openai-whisper: benchmarks/real.py, which needs the same."""

from benchmarks.real import Clip, Errors, Subject, interval, openai_checkpoint, read, table, words

__all__ = ["Clip", "Errors", "Subject", "interval", "openai_checkpoint", "read", "table", "words"]
