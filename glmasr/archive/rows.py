"""What is known of a recording: a row of the archive, in Parquet and as a line of JSON.

    id, path, status     "done", or "failed" with an `error`
    text, language, segments (with words, if they were asked for), flags, warnings
    seconds, attempts    of sound; how often it was tried
    source, run          what tells the recording, and model and settings, from others
    worker, took         who recognized it, and in how many seconds of its time

All but the last two are the same whoever recognizes it, and however often the run is interrupted.
"""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from ..transcription.language import join
from ..transcription.results import Transcript
from ..writers.formats import record
from .items import Item

Row = dict[str, Any]
DONE, FAILED = "done", "failed"


def digest(value: Any) -> str:
    """Of what JSON can say."""
    content = json.dumps(value, sort_keys=True).encode()
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def source(item: Item) -> str:
    """What a recording is known by."""
    return digest(asdict(item))


def done(item: Item, run: str, transcript: Transcript, attempts: int, start: float = 0.0) -> Row:
    """The row of a recording that was recognized from second `start` of its file on; times are from the start of the
    file."""
    found = record(transcript)
    return _row(item, run, attempts) | {
        "status": DONE,
        "text": transcript.text,
        "language": transcript.language,
        "segments": [_moved(segment, start) for segment in found["segments"]],
        "flags": sorted({flag for segment in transcript.segments for flag in segment.flags}),
        "warnings": list(map(writable, transcript.warnings)),
        "seconds": round(transcript.seconds, 3),
    }


def failed(item: Item, run: str, error: str, attempts: int) -> Row:
    """The row of one that can't be."""
    return _row(item, run, attempts) | {"status": FAILED, "error": writable(error)}


def _row(item: Item, run: str, attempts: int) -> Row:
    return {
        "id": item.id,
        "path": writable(item.path),
        "status": "",
        "text": "",
        "language": "",
        "segments": [],
        "flags": [],
        "warnings": [],
        "seconds": 0.0,
        "error": "",
        "attempts": attempts,
        "source": source(item),
        "run": run,
        "worker": "",
        "took": 0.0,
    }


def writable(name: str) -> str:
    """TRAP: a name of a file may have bytes that are no UTF-8, for which Python has halves of UTF-16."""
    return name.encode("utf-8", "backslashreplace").decode()


def _moved(segment: dict[str, Any], offset: float) -> dict[str, Any]:
    def at(value: dict[str, Any]) -> dict[str, Any]:
        return {**value, "start": round(value["start"] + offset, 3), "end": round(value["end"] + offset, 3)}

    moved = at(segment)
    return {**moved, "words": [at(word) for word in segment["words"]]} if "words" in segment else moved


def joined(item: Item, run: str, pieces: list[Row]) -> Row:
    """The row of a recording from those of its pieces, in order. One that failed makes it fail."""
    if errors := [piece for piece in pieces if piece["status"] == FAILED]:
        row = failed(item, run, errors[0]["error"], max(piece["attempts"] for piece in pieces))
    else:
        seconds: dict[str, float] = {}
        for piece in pieces:
            seconds[piece["language"]] = seconds.get(piece["language"], 0.0) + piece["seconds"]
        row = _row(item, run, max(piece["attempts"] for piece in pieces)) | {
            "status": DONE,
            "text": join([piece["text"] for piece in pieces]),
            "language": max(seconds, key=lambda name: (bool(name), seconds[name])),
            "segments": [segment for piece in pieces for segment in piece["segments"]],
            "flags": sorted({flag for piece in pieces for flag in piece["flags"]}),
            "warnings": [warning for piece in pieces for warning in piece["warnings"]],
            "seconds": round(sum(piece["seconds"] for piece in pieces), 3),
        }
    workers = dict.fromkeys(piece["worker"] for piece in pieces)
    return row | {"worker": " ".join(workers), "took": round(sum(piece["took"] for piece in pieces), 3)}
