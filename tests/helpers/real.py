"""How errors are counted, and how the weights get to openai-whisper: benchmarks/real.py, which needs the same."""

from benchmarks.real import Errors, openai_checkpoint

__all__ = ["Errors", "openai_checkpoint"]
