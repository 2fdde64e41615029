"""A worker: a recognizer, to which batches come, and which makes rows of them.

Unusual: two batches are in a worker at a time, each in a thread of its own: while one is recognized, the sound of the
next is fetched and decoded. So the model doesn't wait, and no samples travel between processes.
"""

import contextlib
import os
import socket
import tempfile
import threading
import time
from pathlib import Path

import torch
from torch import Tensor

from .. import audio
from ..audio_files.address import shown
from ..config import SAMPLE_RATE
from ..errors import AudioError, GlmAsrError
from ..pipeline import Recognizer
from ..transcription.chunking import loudness, quietest
from ..transcription.clips import clipped
from ..transcription.options import Options
from ..transcription.results import Transcript
from . import rows
from .rows import Row
from .storage import Copying, needs_copy
from .work import AROUND, Piece

SHORT_BY = 0.5  # seconds that a recording may be shorter than its manifest says without a word
WIDTH = round(2 * AROUND * SAMPLE_RATE)  # samples around a planned border
EDGE = 25  # frames, 0.25 s, at its ends, of which it isn't known what is beyond
PAUSE = 1.0  # seconds before the second try, twice that before the third


class Worker:
    """`run`, `options` and `language` go for all rows; an item may have a language of its own."""

    def __init__(
        self,
        recognizer: Recognizer,
        run: str,
        language: str,
        options: Options,
        retries: int,
        timeout: float,
    ):
        self.recognizer = recognizer
        self.run, self.language, self.options = run, language, options
        self.retries, self.timeout = retries, timeout
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._lock = threading.Lock()

    def __call__(self, batch: list[Piece]) -> list[Row]:
        """A row for each piece."""
        found: dict[int, Row] = {}
        heard: dict[int, tuple[Tensor, float, list[str], int]] = {}
        for index, piece in enumerate(batch):
            try:
                heard[index] = self._sound(piece)
            except GlmAsrError as error:
                attempts = getattr(error, "attempts", 1)
                found[index] = rows.failed(piece.item, self.run, str(error), attempts)
        with self._lock:
            begun = time.monotonic()
            transcripts = self._recognized([batch[index] for index in heard], [sound for sound, *_ in heard.values()])
            took = time.monotonic() - begun
        everything = sum(len(samples) for samples, *_ in heard.values()) or 1
        for (index, (samples, start, warnings, attempts)), transcript in zip(heard.items(), transcripts, strict=True):
            item = batch[index].item
            if isinstance(transcript, GlmAsrError):
                found[index] = rows.failed(item, self.run, str(transcript), attempts)
            else:
                if start:  # of a piece, whose times are counted from its own start
                    transcript.warnings[:] = [f"(from {start:.2f} s on) {warning}" for warning in transcript.warnings]
                transcript.warnings[:0] = warnings
                found[index] = rows.done(item, self.run, transcript, attempts, start)
            found[index]["took"] = round(took * len(samples) / everything, 3)
        for row in found.values():
            row["worker"] = self.name
        return [found[index] for index in range(len(batch))]

    def _recognized(self, batch: list[Piece], sounds: list[Tensor]) -> list[Transcript | GlmAsrError]:
        """Together; if that fails one by one, so that each has its own error."""
        languages = [piece.item.language or self.language for piece in batch]
        try:
            return list(self.recognizer.recognize(sounds, languages, self.options)) if batch else []
        except GlmAsrError as error:
            if len(batch) == 1:
                return [error]
        except Exception as error:  # a defect of this package: it costs a recording, and not the run
            if len(batch) == 1:
                return [GlmAsrError(f"{type(error).__name__}: {error}")]
        alone = (self._recognized([piece], [sound]) for piece, sound in zip(batch, sounds, strict=True))
        return [found for some in alone for found in some]

    def _sound(self, piece: Piece) -> tuple[Tensor, float, list[str], int]:
        """Its samples (S,), the second of the file at which they begin, warnings, and how often it was tried. What can
        be better another time is tried again. Raises AudioError, StorageError, whose `attempts` says how often."""
        for attempt in range(1, self.retries + 2):
            warnings: list[str] = []
            try:
                with contextlib.ExitStack() as stack:
                    # Only what needs one has a folder: it stays where its worker is killed.
                    copied = needs_copy(piece.item)
                    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()) if copied else ".")
                    path = Copying(piece.item, folder, self.timeout).wait()
                    try:
                        return *self._read(path, piece, warnings), warnings, attempt
                    except AudioError as error:  # of a copy, which has another name
                        name = piece.item.id if piece.item.where else shown(piece.item.path)
                        raise AudioError(str(error).replace(str(path), name)) from error
            except GlmAsrError as error:
                error.attempts = attempt  # type: ignore[attr-defined]
                if not getattr(error, "again", False) or attempt > self.retries:
                    raise
                time.sleep(PAUSE * attempt)
        raise AssertionError("unreachable")

    def _read(self, path: Path, piece: Piece, warnings: list[str]) -> tuple[Tensor, float]:
        """The samples of a piece, and the second of the file at which they begin."""
        item, options = piece.item, self.options
        first = item.offset + max(0.0, piece.start - AROUND)
        end = piece.end + AROUND if piece.end is not None else item.duration
        last = None if end is None else item.offset + end
        blocks = audio.blocks(path, max_duration=options.max_duration, track=options.track, warn=warnings.append)
        heard = [torch.zeros(0)]
        try:
            for _, parts in clipped(blocks, [(first, last)], _ignore):
                heard.extend(parts)
        except AudioError as error:
            if not (piece.start and "beyond its end" in str(error)):
                raise
        samples = torch.cat(heard)
        complete = last is None or len(samples) >= round(last * SAMPLE_RATE) - round(first * SAMPLE_RATE)
        if not complete and piece.end is None and item.duration is not None:
            lacking = last - first - len(samples) / SAMPLE_RATE if last is not None else 0.0
            if lacking > SHORT_BY:
                warnings.append(f"it ends {lacking:.1f} s before the end that the manifest says")
        # A file that is shorter than it says may end around a border: then all of it belongs to the piece before.
        begin = _border(samples[:WIDTH]) if piece.start else 0
        stop = len(samples) - WIDTH + _border(samples[-WIDTH:]) if piece.end is not None and complete else len(samples)
        if piece.start and len(samples) < WIDTH:
            begin = stop
        return samples[begin:stop], first + begin / SAMPLE_RATE


def _border(around: Tensor) -> int:
    """Where to cut, in the sound on both sides of a planned border."""
    if len(around) < WIDTH:
        return 0
    return (EDGE + quietest(loudness(around)[EDGE:-EDGE])) * audio.HOP


def _ignore(warning: str) -> None:
    """That a clip goes beyond the end is said above, where it matters."""
