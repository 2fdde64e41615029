"""GLM-ASR in plain PyTorch: speech recognition for Mandarin, Cantonese and English.

import glmasr
recognizer = glmasr.load("demo")
print(recognizer.transcribe("examples/zh.wav").text)
"""

from typing import Any

from .errors import AudioError, CheckpointError, GlmAsrError, OptionError, OutputError, ShortMemoryError, TokenizerError

__version__ = "0.2.0"
__all__ = [
    "AudioError",
    "CheckpointError",
    "GlmAsrError",
    "OptionError",
    "Options",
    "OutputError",
    "Part",
    "Recognizer",
    "Segment",
    "ShortMemoryError",
    "TokenizerError",
    "Transcript",
    "Word",
    "load",
]


def __getattr__(name: str) -> Any:
    # Everything else needs torch, which takes a second to import: wait until it is asked for.
    if name in ("load", "Options", "Part", "Recognizer", "Segment", "Transcript", "Word"):
        from . import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'glmasr' has no attribute {name!r}")
