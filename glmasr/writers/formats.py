"""Transcript -> text in the formats of subtitle players, tables and programs.

    WRITERS["srt"](transcript, Layout(max_line_width=42, max_line_count=2))

All writers have the same arguments, for the table: the transcript, the layout of subtitles, the name of the recording.
"""

import html
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import regex

from ..audio_files.address import shown
from .line_breaks import DEFAULT, Layout
from .subtitles import Cue, Transcript, clean, cues, length, milliseconds, tagged, timed_words

SCHEMA = 2  # of the JSON; docs/JSON.md says when it changes
PAUSE = 2000  # ms without a cue, after which LRC takes the last line off the screen


def as_txt(transcript: Transcript, layout: Layout = DEFAULT, name: str = "") -> str:
    """One line for each segment."""
    return "".join(f"{text}\n" for segment in transcript.segments if (text := clean(segment.text)))


# TRAP: SRT has no escapes. An arrow makes a line of times for most players; what looks like a tag is not shown. A line
# of digits before one that begins like a time is the head of a cue for the PyPI package srt, without any arrow: those
# two are joined.
_ARROW = regex.compile(r"-{2,}>")
_TAG = regex.compile(r"<(?=/?[a-zA-Z])|\{(?=\\)")
_HEAD = regex.compile(r"\n(-?[0-9]+\.?[0-9]*)\n(?=[0-9]+[,.:，．。：][0-9])")


def as_srt(transcript: Transcript, layout: Layout = DEFAULT, name: str = "") -> str:
    """SubRip: numbered cues. --> becomes ->, <b> becomes ‹b>, {\\b1} becomes (\\b1}."""
    blocks = []
    for number, cue in enumerate(cues(transcript, layout), 1):
        text = _HEAD.sub(r"\n\1 ", _ARROW.sub("->", "\n".join(cue.lines)))
        text = _TAG.sub(lambda tag: "‹" if tag[0] == "<" else "(", text)
        blocks.append(f"{number}\n{_stamp(cue.start, ',')} --> {_stamp(cue.end, ',')}\n{text}\n")
    return "\n".join(blocks)


def as_vtt(transcript: Transcript, layout: Layout = DEFAULT, name: str = "") -> str:
    """WebVTT (https://www.w3.org/TR/webvtt1/), with &, < and > as entities, and so no arrow in a text. Before each word
    that has a time there is a tag with it, but for one that is said when its cue appears."""
    blocks = ["WEBVTT\n"]
    if transcript.incomplete:
        blocks.append(f"NOTE incomplete: the recording goes on after {_stamp(length(transcript), '.')}\n")
    for cue in cues(transcript, layout):
        text = "".join(
            f"<{_stamp(start or 0, '.')}>" * ((start or 0) > cue.start) + html.escape(stretch, quote=False)
            for start, stretch in tagged(cue)
        )
        blocks.append(f"{_stamp(cue.start, '.')} --> {_stamp(cue.end, '.')}\n{text}\n")
    return "\n".join(blocks)


def as_tsv(transcript: Transcript, layout: Layout = DEFAULT, name: str = "") -> str:
    """A table of segments, or of words where they have times, with openai-whisper's columns: start and end in
    milliseconds, text. Quotes in it mean nothing special."""
    rows = (f"{start}\t{end}\t{text}\n" for start, end, text in timed_words(transcript))
    return "".join(["start\tend\ttext\n", *rows])


_BRACKETS = str.maketrans("[]<>", "［］＜＞")  # LRC has no escapes, and these would begin a tag


def as_lrc(transcript: Transcript, layout: Layout = DEFAULT, name: str = "") -> str:
    """Lyrics: a line each with its start, and an empty one where nothing follows for a while; in hundredths, rounded
    down. Words that have times are between tags of the enhanced format, each with its start, and the end of the
    last."""
    shown = list(cues(transcript, replace(layout, max_line_count=1)))
    lines = []
    for cue, following in zip(shown, [*(cue.start for cue in shown), math.inf][1:], strict=True):
        lines.append(f"[{_hundredths(cue.start)}]{_sung(cue)}\n")
        if following - cue.end >= PAUSE:
            lines.append(f"[{_hundredths(cue.end)}]\n")
    return "".join(lines)


def _sung(cue: Cue) -> str:
    """The line of a cue."""
    text = "".join(
        f"<{_hundredths(start or 0)}>" * (start is not None) + stretch.replace("\n", " ").translate(_BRACKETS)
        for start, stretch in tagged(cue)
    )
    return text + (f"<{_hundredths(min(cue.words[-1].end, cue.end))}>" if cue.words else "")


def _hundredths(time: int) -> str:
    """Milliseconds -> 00:00.00"""
    return f"{time // 60_000:02d}:{time // 1000 % 60:02d}.{time // 10 % 100:02d}"


def as_json(transcript: Transcript, layout: Layout = DEFAULT, name: str = "") -> str:
    """`record`, as indented JSON (RFC 8259)."""
    text = json.dumps(record(transcript, name), ensure_ascii=False, allow_nan=False, indent=2)
    # Half a UTF-16 character, which may stand in the name of a file, can be escaped in JSON but not written in UTF-8.
    escaped: str = regex.sub(r"\p{Cs}", lambda half: f"\\u{ord(half[0]):04x}", text)
    return escaped + "\n"


def record(transcript: Any, name: str = "") -> dict[str, Any]:
    """All that is known of a transcript, as docs/JSON.md describes it: dictionaries, lists, strings, numbers that are
    finite."""
    fields = asdict(transcript)
    if not fields.get("clips"):
        fields.pop("clips", None)
    limit = length(transcript)
    for segment in fields["segments"]:
        for timed in (segment, *segment.get("words", ())):
            for key in ("start", "end"):
                if math.isfinite(timed[key]):
                    timed[key] = min(milliseconds(timed[key], limit), limit) / 1000
        if not segment.get("words"):
            segment.pop("words", None)
    return {key: _finite(value) for key, value in {"schema": SCHEMA, "audio": shown(name) or None, **fields}.items()}


def _finite(value: Any) -> Any:
    """NaN and infinity, which JSON does not have, as None."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _stamp(time: int, point: str) -> str:
    """Milliseconds -> 00:00:00,000"""
    return f"{time // 3_600_000:02d}:{time // 60_000 % 60:02d}:{time // 1000 % 60:02d}{point}{time % 1000:03d}"


WRITERS: dict[str, Callable[..., str]] = {
    "txt": as_txt,
    "srt": as_srt,
    "vtt": as_vtt,
    "tsv": as_tsv,
    "json": as_json,
    "lrc": as_lrc,
}
TIMED = {"srt", "vtt", "tsv", "lrc"}  # formats that are made of cues
