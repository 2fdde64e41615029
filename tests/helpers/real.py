"""How errors are counted, and how the weights get to openai-whisper: benchmarks/real.py, which needs the same."""

from benchmarks.real import Errors, interval, openai_checkpoint, read, words

__all__ = ["Errors", "interval", "openai_checkpoint", "read", "words"]
