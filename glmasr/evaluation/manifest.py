"""A manifest -> clips: recordings, or parts of them, and what is said there.

    clips.jsonl   {"path": "a.wav", "text": "five oh six", "language": "en", "speaker": "p1", "offset": 1}
    clips.tsv     the same as a table with a header; .csv too, and .parquet

The files are those of `glmasr-archive`, and so are `id`, `path` and the others; `text` has to be there as well. An
empty text says that nothing is said.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..archive.items import Item
from ..archive.rows import writable
from ..archive.sources import MANIFESTS, as_item, lines
from ..audio_files.address import scheme, shown
from ..errors import GlmAsrError
from ..transcription.language import canonical, name_language
from . import scoring

UNKNOWN = "und"  # ISO 639: of no known language
FIELDS = ("text", "speaker")


class ManifestError(GlmAsrError):
    """A manifest, or a line of it, can't be used."""


@dataclass(frozen=True)
class Clip:
    """What is said in a recording, or in a part of it.

    text      as in the manifest
    speaker   "" where nobody is named
    language  that it is scored as: the manifest's, that of all clips, or the one that the text is written in
    """

    item: Item
    text: str
    speaker: str
    language: str

    @property
    def id(self) -> str:
        """As it can be shown."""
        return display(self.item.id)

    @property
    def group(self) -> str:
        """Whom it is drawn with: the clips of a speaker; where nobody is named, alone."""
        return f"speaker {self.speaker}" if self.speaker else f"clip {self.item.id}"


def display(name: str) -> str:
    """The name of a file, or an id, as it can be shown: without bytes that are no UTF-8, users and passwords."""
    return shown(writable(name))


def read(source: str, fail: Callable[[ManifestError], None], language: str = "auto") -> list[Clip]:
    """The clips of a manifest; those of no language are scored as `language`. `fail` is told of each line that can't be
    used. Raises ManifestError where none can."""
    if not source.lower().endswith(MANIFESTS):
        raise ManifestError(f"{source}: is no manifest; expected a file that ends in {', '.join(MANIFESTS)}")
    found: dict[str, Clip] = {}
    try:
        for number, fields in lines(source, FIELDS):
            try:
                clip = _clip(fields, source, canonical(language))
                if clip.id in found:
                    raise ValueError(f"has the id {clip.id!r:.200}, as a line before it has; expected an id for each")
            except (ValueError, GlmAsrError) as error:
                fail(ManifestError(f"{source}, line {number}: {error}"))
            else:
                found[clip.id] = clip
    except ImportError:
        raise ManifestError(
            f"{source}: needs the package pyarrow, which is not installed; get it with the extra [ray]:  "
            "pip install -c constraints.txt '.[ray]'"
        ) from None
    except (OSError, ValueError) as error:
        raise ManifestError(f"{source}: can't be read ({error}); expected a manifest in UTF-8") from None
    if not found:
        raise ManifestError(
            f'{source}: has no line that can be used; expected some such as {{"path": "a.wav", "text": "five oh six"}}'
        )
    return list(found.values())


def _clip(fields: Any, source: str, default: str) -> Clip:
    """Raises ValueError, ScoringError."""
    item = as_item(fields, source)
    if (
        not scheme(item.path)
        and os.path.exists(item.path)
        and not (os.path.isfile(item.path) or os.path.isdir(item.path))
    ):
        raise ValueError(f"has the path {item.path!r:.200}, a pipe or a device, which may never end; expected a file")
    text, speaker = fields.get("text"), fields.get("speaker")
    if text is None:
        raise ValueError('has no text; expected what is said there, "" where nothing is')
    if not isinstance(text, str):
        raise ValueError(f"has the text {text!r:.60}; expected what is said there")
    if speaker is None:
        speaker = ""
    if not isinstance(speaker, str | int):
        raise ValueError(f"has the speaker {speaker!r:.60}; expected a name")
    for name, value in (("text", text), ("speaker", str(speaker)), ("language", item.language)):
        if value != writable(value):
            raise ValueError(f"has half a character in its {name}, {value!r:.60}; expected text that UTF-8 can hold")
    language = canonical(item.language)
    if language in ("", "auto"):
        item = replace(item, language="")
        language = default if default != "auto" else name_language(text) or UNKNOWN
    scoring.Score.of("", text, language)
    return Clip(item, text, str(speaker), language)
