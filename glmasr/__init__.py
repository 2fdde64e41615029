"""GLM-ASR in plain PyTorch: speech recognition for Mandarin, Cantonese and English.

import glmasr
recognizer = glmasr.load("demo")
print(recognizer.transcribe("examples/zh.wav").text)
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def uncollected() -> Iterator[None]:
    """For imports of PyTorch: nothing is looked through for garbage meanwhile. It makes half a million objects, hardly
    any of which go again, and each collection looks at all: that takes a sixth of the time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    modules = len(sys.modules)
    try:
        yield
    finally:
        # TRAP: to thaw would undo what a program froze before, and to count that takes as long as it is much
        if len(sys.modules) > modules and not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()  # all are old now: the next collection looks at what is new
        gc.enable()


def __getattr__(name: str) -> Any:
    # Everything else needs torch, which takes a second to import: wait until it is asked for.
    if name in ("load", "Options", "Part", "Recognizer", "Segment", "Transcript", "Word"):
        with uncollected():
            from . import pipeline
        return getattr(pipeline, name)
    raise AttributeError(f"module 'glmasr' has no attribute {name!r}")
