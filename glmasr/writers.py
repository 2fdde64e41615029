"""Transcript -> text in the formats of subtitle players, tables and programs; and the files that hold it.

    WRITERS["srt"](transcript, Layout(max_line_width=42, max_line_count=2))
    plan_outputs(expand(["talks"]), ["srt", "json"], "out")

What is unusual here:
- Times become whole milliseconds once, in `timed`, and are put in order there. Everything behind computes in integers, so no
  rounding can make cues overlap or run beyond the recording.
- Lines and cues are found together, as the cheapest way to cut a text, in the manner of Knuth and Plass ("Breaking paragraphs
  into lines", 1981): filling line after line would leave a single word or character in the last one.
- A width is counted in columns: Chinese characters take two. Chinese has no spaces, so a line may end behind any of its
  characters, but punctuation is not torn from the word that it belongs to.
"""

import glob
import html
import json
import math
import os
import secrets
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import regex

from .errors import AudioError, OptionError, OutputError

if TYPE_CHECKING:                         # needs torch, which takes a second to import
    from .pipeline import Transcript

SCHEMA = 1                                # of the JSON; docs/JSON.md says when it changes
UNTIMED = 1000                            # ms that a segment whose end is not behind its start is shown, if there is room
JOURNAL = ".jsonl"
PAUSE = 2000                              # ms without a cue, after which LRC takes the last line off the screen


# ---- times: whole milliseconds --------------------------------------------------------------------------------------------

def timed(transcript: "Transcript") -> list[tuple[int, int, str]]:
    """The segments that have a text, as (start, end, text): in milliseconds, the text on one line.

    0 <= start < end <= the next start, and the last end is not beyond the recording, whatever the segments say. Where two
    overlap, the first ends when the second starts. A time that is not finite is taken from its neighbour.
    """
    found, last = [], 0
    for segment in transcript.segments:
        start = _milliseconds(segment.start, last)
        last = end = _milliseconds(segment.end, start)
        if text := _clean(segment.text):
            found.append((start, end if end > start else start + UNTIMED, text))
    found.sort(key=itemgetter(0))
    limit = _length(transcript)
    if len(found) > limit:                # not even a millisecond for each: one for all
        found = [(*found[0][:2], " ".join(text for _, _, text in found))][:limit]
    starts = _apart([start for start, _, _ in found], limit)
    return [(start, min(max(end, start + 1), following), text)
            for start, following, (_, end, text) in zip(starts, [*starts, limit][1:], found, strict=True)]


def _length(transcript: "Transcript") -> int:
    """Milliseconds of the recording, rounded down; without a finite length, those up to the end of the last segment."""
    known = _milliseconds(transcript.seconds, -1)
    if known < 0:
        return max((_milliseconds(segment.end, 0) for segment in transcript.segments), default=0)
    return max(0, known - (known / 1000 > transcript.seconds))


def _milliseconds(seconds: float, unknown: int) -> int:
    return max(0, round(1000 * seconds)) if math.isfinite(1000 * seconds) else unknown


def _apart(times: list[int], end: int) -> list[int]:
    """The times, in order, moved so that each is a millisecond or more behind the one before, and the last before `end`."""
    rising = accumulate(times, lambda before, time: max(before + 1, time))
    return [min(time, end - len(times) + index) for index, time in enumerate(rising)]


# ---- text: columns, lines, cues -------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Layout:
    """The shape of subtitles: at most `max_line_count` lines at a time, of at most `max_line_width` columns. A Chinese
    character takes two columns. Raises OptionError for a value out of range."""

    max_line_width: int = 42
    max_line_count: int = 2

    def __post_init__(self):
        for name, least in (("max_line_width", 2), ("max_line_count", 1)):      # two columns: a Chinese character
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise OptionError(f"{name} is {value!r}, expected an integer of at least {least}")


class Cue(NamedTuple):
    """What is shown at a time: from `start` to `end`, in milliseconds."""

    start: int
    end: int
    lines: list[str]


def cues(transcript: "Transcript", layout: Layout = Layout()) -> Iterator[Cue]:
    """The subtitles of a recording: those of a segment share its time in proportion to their width. Times as in `timed`."""
    for start, end, text in timed(transcript):
        blocks = _cut(text, layout)
        if len(blocks) > end - start:     # not even a millisecond for each: one for all
            blocks = [sum(blocks, [])]
        before = [0, *accumulate(sum(map(width, lines)) for lines in blocks)]
        starts = _apart([start + (end - start) * columns // max(1, before[-1]) for columns in before[:-1]], end)
        yield from map(Cue, starts, [*starts, end][1:], blocks)


_DROPPED = regex.compile(r"(?!\s)[\p{Cc}\p{Cs}\ufeff]")         # controls, halves of UTF-16 characters, byte order marks


def _clean(text: str) -> str:
    """The text on one line, without what no format can hold."""
    return " ".join(_DROPPED.sub("", text).split())


def width(text: str) -> int:
    """Columns that a text takes: 2 for wide East Asian characters and emoji, 0 for marks on top of others, else 1."""
    return sum(map(_columns, regex.findall(r"\X", text)))


@lru_cache(maxsize=10_000)
def _columns(cluster: str) -> int:
    """`width` of what a reader sees as one character, such as a letter with its accents."""
    wide = [unicodedata.east_asian_width(character) in "WF" for character in cluster if unicodedata.category(character) not in ("Mn", "Me", "Cf")]
    return min(2, len(wide) + sum(wide))


# The price of ending a line: behind a sentence, behind a clause, between words, and between two Chinese characters, which may
# be one word. Ending a cue costs twice as much, and CUE for the change of the picture. A line that leaves the share s of its
# width empty costs s * s. Set by eye, on subtitles of talks.
SENTENCE, CLAUSE, WORD, ANYWHERE = 0.0, 0.25, 0.5, 1.0
CUE = 1.0
# Only within what is longer than a line: before punctuation behind a space, beside a mark, within a word, before punctuation.
BARE, MARK, LETTERS, TORN = 10.0, 20.0, 100.0, 1000.0

_SENTENCE_MARKS, _CLAUSE_MARKS = set("。｡．！？.!?"), set("，、､；：,;:…—–")
_OPENING = regex.compile(r"[\p{Ps}\p{Pi}]")
_ENDING = regex.compile(r"[\p{Pe}\p{Pf}\"'＂＇]")               # what may stand between a sentence's mark and its end
_CLOSING = regex.compile(r"[\p{Pe}\p{Pf}。｡．！？.!?，、､；：,;:…·・～％%‰℃]")
_QUOTE = regex.compile(r"[\"'＂＇]")                            # opening or closing, nobody knows: stays with both neighbours
_WORD = regex.compile(r"[\p{Latin}\p{Nd}]")


class Break(NamedTuple):
    """A place to cut: the line is clusters[:stop], the next one clusters[start:]; a space between them belongs to neither."""

    stop: int
    start: int
    price: float


def _cut(text: str, layout: Layout) -> list[list[str]]:
    """A clean text -> its cues, each a list of lines. What fits into one cue becomes one."""
    clusters = regex.findall(r"\X", text)
    before = [0, *accumulate(map(_columns, clusters))]          # columns of all clusters before this one
    if before[-1] <= layout.max_line_width:
        return [[text]]
    breaks = _breaks(clusters, before, layout.max_line_width)
    path = _cheapest(breaks, before, layout, several=False) or _cheapest(breaks, before, layout, several=True)
    blocks: list[list[str]] = []
    for (left, lines), (right, _) in zip(path, path[1:]):
        if lines == 0:
            blocks.append([])
        if left < right:
            blocks[-1].append("".join(clusters[breaks[left].start:breaks[right].stop]))
    return blocks


def _cheapest(breaks: list[Break], before: list[int], layout: Layout, several: bool) -> list[tuple[int, int]]:
    """The cheapest way through the text: steps (index of a break, lines of the cue so far), where 0 lines begin a cue. [] if
    there is no way; but with `several` cues there is."""
    most, count = layout.max_line_width, layout.max_line_count
    if not several and before[-1] >= (most + 1) * count:        # with the spaces between the lines
        return []
    ways: list[dict[int, tuple]] = [{0: (0.0, None)}]           # at each break, by lines: the cost, and the step before
    for right in range(1, len(breaks)):
        here: dict[int, tuple] = {}
        end = before[breaks[right].stop]
        for left in reversed(range(right)):
            _, start, price = breaks[left]
            empty = 1 - (end - before[start]) / most
            if empty < 0:
                break
            for lines, (cost, _) in ways[left].items():
                if lines < count:
                    cost += empty * empty + (price if lines else 0)
                    if lines + 1 not in here or cost < here[lines + 1][0]:
                        here[lines + 1] = cost, (left, lines)
        if several and here:
            lines = min(here, key=here.get)
            here[0] = here[lines][0] + 2 * breaks[right].price + CUE, (right, lines)
        ways.append(here)
    if not ways[-1]:
        return []
    step = len(breaks) - 1, min(ways[-1], key=ways[-1].get)
    path = [step]
    while step := ways[step[0]][step[1]][1]:
        path.append(step)
    return path[::-1]


def _breaks(clusters: list[str], before: list[int], most: int) -> list[Break]:
    """The places where the text may be cut, its start and its end among them. Those where it should not be are added where it
    must be: in a stretch that is wider than `most`."""
    breaks, spare = [Break(0, 0, 0.0)], []
    for place in [*_places(clusters), Break(len(clusters), len(clusters), 0.0)]:
        if place.price > ANYWHERE:
            spare.append(place)
            continue
        if before[place.stop] - before[breaks[-1].start] > most:
            breaks += spare
        breaks.append(place)
        spare = []
    return breaks


def _places(clusters: list[str]) -> Iterator[Break]:
    """All places between two characters, with their prices."""
    pause = None
    for start in range(1, len(clusters)):
        left, right = clusters[start - 1], clusters[start]
        if left in _SENTENCE_MARKS:
            pause = SENTENCE
        elif left in _CLAUSE_MARKS:
            pause = CLAUSE
        elif left != " " and not _ENDING.match(left):
            pause = None
        if right == " ":
            continue
        spaced = left == " "
        stop = start - 1 if spaced else start
        left = clusters[stop - 1]
        divisible = _divisible(left), _divisible(right)
        if _CLOSING.match(right) or _OPENING.match(left):
            price = BARE if spaced else TORN
        elif not spaced and (_QUOTE.match(left) or _QUOTE.match(right)):
            price = MARK
        elif not spaced and not any(divisible):
            price = LETTERS if left.isalnum() and right.isalnum() else MARK
        elif pause is not None:
            price = pause
        elif spaced:
            price = CLAUSE if all(divisible) else WORD          # a space in Chinese text is a pause
        else:
            price = ANYWHERE if all(divisible) else WORD
        yield Break(stop, start, price)


def _divisible(cluster: str) -> bool:
    """Of a script without spaces, so that a line may end before and behind it. The wide forms of Latin letters are not."""
    return _columns(cluster) == 2 and not _WORD.match(cluster)


# ---- formats --------------------------------------------------------------------------------------------------------------
# All have the same arguments, for the table: the transcript, the layout of subtitles, the name of the recording.

def as_txt(transcript: "Transcript", layout: Layout = Layout(), name: str = "") -> str:
    """One line for each segment."""
    return "".join(f"{text}\n" for segment in transcript.segments if (text := _clean(segment.text)))


# TRAP: SRT has no escapes. An arrow makes a line of times for most players; what looks like a tag is not shown. A line of digits
# before one that begins like a time is the head of a cue for the PyPI package srt, without any arrow: those two are joined.
_ARROW = regex.compile(r"-{2,}>")
_TAG = regex.compile(r"<(?=/?[a-zA-Z])|\{(?=\\)")
_HEAD = regex.compile(r"\n(-?[0-9]+\.?[0-9]*)\n(?=[0-9]+[,.:，．。：][0-9])")


def as_srt(transcript: "Transcript", layout: Layout = Layout(), name: str = "") -> str:
    """SubRip: numbered cues. --> becomes ->, <b> becomes ‹b>, {\\b1} becomes (\\b1}."""
    blocks = []
    for number, cue in enumerate(cues(transcript, layout), 1):
        text = _HEAD.sub(r"\n\1 ", _ARROW.sub("->", "\n".join(cue.lines)))
        text = _TAG.sub(lambda tag: "‹" if tag[0] == "<" else "(", text)
        blocks.append(f"{number}\n{_stamp(cue.start, ',')} --> {_stamp(cue.end, ',')}\n{text}\n")
    return "\n".join(blocks)


def as_vtt(transcript: "Transcript", layout: Layout = Layout(), name: str = "") -> str:
    """WebVTT (https://www.w3.org/TR/webvtt1/), with &, < and > as entities, and so no arrow in a text."""
    blocks = ["WEBVTT\n", *([f"NOTE incomplete: the recording goes on behind {_stamp(_length(transcript), '.')}\n"] if transcript.incomplete else [])]
    for cue in cues(transcript, layout):
        text = html.escape("\n".join(cue.lines), quote=False)
        blocks.append(f"{_stamp(cue.start, '.')} --> {_stamp(cue.end, '.')}\n{text}\n")
    return "\n".join(blocks)


def as_tsv(transcript: "Transcript", layout: Layout = Layout(), name: str = "") -> str:
    """A table of segments with openai-whisper's columns: start and end in milliseconds, text. Quotes in it mean nothing special."""
    return "".join(["start\tend\ttext\n", *(f"{start}\t{end}\t{text}\n" for start, end, text in timed(transcript))])


_BRACKETS = str.maketrans("[]<>", "［］＜＞")                  # LRC has no escapes, and these would begin a tag


def as_lrc(transcript: "Transcript", layout: Layout = Layout(), name: str = "") -> str:
    """Lyrics: a line each with its start, and an empty one where nothing follows for a while; in hundredths, rounded down."""
    shown = list(cues(transcript, replace(layout, max_line_count=1)))
    lines = []
    for cue, following in zip(shown, [*(cue.start for cue in shown), math.inf][1:], strict=True):
        lines.append((cue.start, " ".join(cue.lines).translate(_BRACKETS)))
        if following - cue.end >= PAUSE:
            lines.append((cue.end, ""))
    return "".join(f"[{time // 60_000:02d}:{time // 1000 % 60:02d}.{time // 10 % 100:02d}]{text}\n" for time, text in lines)


def as_json(transcript: "Transcript", layout: Layout = Layout(), name: str = "") -> str:
    """`record`, as indented JSON (RFC 8259)."""
    text = json.dumps(record(transcript, name), ensure_ascii=False, allow_nan=False, indent=2)
    # Half a UTF-16 character, which may stand in the name of a file, can be escaped in JSON but not written in UTF-8.
    return regex.sub(r"\p{Cs}", lambda half: f"\\u{ord(half[0]):04x}", text) + "\n"


def record(transcript: "Transcript", name: str = "") -> dict[str, Any]:
    """All that is known of a transcript, as docs/JSON.md describes it: dictionaries, lists, strings, numbers that are finite."""
    fields = asdict(transcript)
    limit = _length(transcript)
    for segment in fields["segments"]:
        for key in ("start", "end"):
            if math.isfinite(segment[key]):
                segment[key] = min(_milliseconds(segment[key], limit), limit) / 1000
    return _finite({"schema": SCHEMA, "audio": name or None, **fields})


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


WRITERS: dict[str, Callable[..., str]] = {"txt": as_txt, "srt": as_srt, "vtt": as_vtt, "tsv": as_tsv, "json": as_json, "lrc": as_lrc}
TIMED = {"srt", "vtt", "tsv", "lrc"}            # formats that are made of cues


# ---- files ----------------------------------------------------------------------------------------------------------------

# What is taken for a recording in a folder: the formats that `glmasr.audio` reads itself, and those that ffmpeg does.
# Left out is .ts, which is a program far more often than a film.
EXTENSIONS = frozenset(
    "wav wave rf64 flac ogg oga opus mp3 mp2 aif aiff aifc au snd caf "
    "m4a m4b mp4 m4v mov 3gp 3g2 aac ac3 eac3 dts amr ape wma wmv asf avi flv mkv mka webm mpc mpg mpeg mts m2ts ogv "
    "ra rm tak tta voc w64 wv".split())


def _refuse(error: AudioError) -> None:
    raise error


def expand(paths: Iterable[str], recursive: bool = False, fail: Callable[[AudioError], None] = _refuse) -> list[str]:
    """The recordings that some paths name, each once, where it is named first.

    A folder stands for the audio files in it, by name (and with `recursive`, for those in its folders), in order; hidden ones
    are left out. A pattern (`*`, `?`, `[...]`, and `**` for any depth) stands for what it matches, for shells that leave that
    to the program. Everything else stays as it is: "-", and also what is not there, which `audio.blocks` will say.

    A folder without an audio file, one that can't be read, a pattern that matches nothing, and what lies in a folder or matches a
    pattern but is no file are each an AudioError. It is raised, or `fail` is called with it, and the recordings that were found are
    given all the same.
    """
    found: dict[str, str] = {}
    for path in paths:
        for name in _expanded(path, recursive, fail):
            found.setdefault(name if name == "-" else os.path.normcase(os.path.abspath(name)), name)
    return list(found.values())


def _expanded(path: str, recursive: bool, fail: Callable[[AudioError], None]) -> list[str]:
    errors: list[AudioError] = []
    if os.path.isdir(path):
        files = list(_audio_files(path, recursive, errors))
        nothing = ("no audio files are in this folder (.wav, .mp3, .flac, ...); name them one by one"
                   + ("" if recursive else ", or search its folders as well with --recursive"))
    # TRAP: a file can be called "talk [1].wav".
    elif set("*?[").isdisjoint(path) or os.path.lexists(path) or "\0" in path:
        return [path]
    else:
        matches = sorted(glob.glob(path, recursive=True))
        files = [file for match in matches
                 for file in (_audio_files(match, recursive, errors) if os.path.isdir(match) else _only_files([match], errors))]
        nothing = f"the pattern matches no file; check the spelling and the current directory ({os.getcwd()})"
    if not (files or errors):
        errors = [AudioError(f"{path}: {nothing}")]
    for error in errors:
        fail(error)
    return files


def _audio_files(folder: str, recursive: bool, errors: list[AudioError]) -> Iterator[str]:
    """`errors` gets one for each folder that can't be read."""
    def refuse(error):
        errors.append(AudioError(f"{error.filename}: the folder cannot be read ({error.strerror}); check its permissions"))

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        # Hidden: macOS leaves "._talk.wav" beside "talk.wav", and it is no sound.
        found = (name for name in sorted(names) if not name.startswith(".") and os.path.splitext(name)[1][1:].lower() in EXTENSIONS)
        yield from _only_files((os.path.join(place, name) for name in found), errors)


def _only_files(paths: Iterable[str], errors: list[AudioError]) -> Iterator[str]:
    """TRAP: to open a pipe waits for whoever writes into it. One that is named by itself, such as a shell's <(command), is meant so."""
    for path in paths:
        try:
            if stat.S_ISREG(os.stat(path).st_mode):
                yield path
            else:
                errors.append(AudioError(f"{path}: is a pipe, a socket or a device; expected an audio file: if a pipe is meant, name it by itself"))
        except OSError as error:          # a link to what is not there
            errors.append(AudioError(f"{path}: cannot be opened ({error.strerror}); expected an audio file: if it is a link, mend or remove it"))


def plan_outputs(inputs: list[str], formats: Iterable[str], output_dir: str | os.PathLike | None = None) -> dict[str, dict[str, Path]]:
    """{input: {format: file}}: where the results go, in `output_dir`, or without one beside each input. "-" is called stdin.

    A file is named after its input: `talk.wav` makes `talk.srt`. Inputs that would share a name get the first of these that
    tells them apart: `talk.wav.srt`, `monday/talk.srt` (the folders below those that all inputs have in common),
    `monday/talk.wav.srt`, `monday/talk.wav-2.srt`. The order of the inputs makes no difference. Names that differ in case only
    are the same, as they are on Windows and macOS. No output has the name of an input, and nobody's `incomplete` output that of another's.

    Raises OptionError for a format that is not in WRITERS.
    """
    formats = list(formats)
    for format in formats:
        if format not in WRITERS:
            raise OptionError(f"format is {format!r}, expected one of {', '.join(WRITERS)}")
    real = cache(os.path.realpath)

    def identity(path: str | Path) -> str:
        folder, name = os.path.split(path)
        return unicodedata.normalize("NFC", os.path.join(real(folder), name)).casefold()

    places = {name: Path(os.path.abspath(name)) for name in inputs if name != "-"}
    common = len(os.path.commonprefix([place.parent.parts for place in places.values()]))
    numbers = {name: number for number, name in enumerate(sorted(inputs), 1)}

    def claimed(paths: Iterable[Path]) -> set[str]:
        return {identity(claim) for path in paths for claim in (path, incomplete(path), incomplete(path).with_suffix(JOURNAL))}

    def files(name: str, attempt: int) -> dict[str, Path]:
        place = places.get(name, Path("stdin"))
        top, inner = Path(name).parent, ""          # of "talk.wav/" too, which opens as "talk.wav" does
        if output_dir is not None:
            # TRAP: on Windows the first part may be a drive, and to join it would lead out of the folder.
            top, inner = output_dir, os.path.join("", *place.parent.parts[max(1, common):])
        stem, whole = os.path.splitext(place.name)[0], os.path.join(inner, place.name)
        choices = [stem, place.name, os.path.join(inner, stem), whole]
        chosen = choices[attempt] if attempt < 4 else whole + f"-{numbers[name]}" * (attempt - 3)
        return {format: Path(top, f"{chosen}.{format}") for format in formats}

    attempts = dict.fromkeys(inputs, 0)
    while True:
        plan = {name: files(name, attempt) for name, attempt in attempts.items()}
        uses = Counter(map(identity, places))
        claims = {name: claimed(paths.values()) for name, paths in plan.items()}
        uses.update(claim for some in claims.values() for claim in some)
        clashing = [name for name, some in claims.items() if any(uses[claim] > 1 for claim in some)]
        if not clashing:
            return plan
        for name in clashing:
            attempts[name] += 1


def incomplete(path: Path) -> Path:
    """Where the result of a recording goes that was stopped in the middle: beside the whole one, which nobody can take it for.

    >>> incomplete(Path("talks/monday.srt")).name
    'monday.incomplete.srt'
    """
    return path.with_name(f"{path.stem}.incomplete{path.suffix}")


def journal(outputs: dict[str, Path]) -> Path:
    """Where `glmasr.journal` keeps what was recognised so far: one file for all formats, `monday.incomplete.jsonl`."""
    return incomplete(next(iter(outputs.values()))).with_suffix(JOURNAL)


def prepare(folder: str | os.PathLike) -> None:
    """Makes the folder that results go into. Raises OutputError where it can't be made or written to."""
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"{folder}: is a file; expected a folder for the results: name another one") from None
    except (OSError, ValueError) as error:
        raise OutputError(f"{str(folder)!r}: can't be made ({error}); name another folder for the results") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: you may not write there; expected a folder for the results: name another one, or ask for permission")


def write_whole(path: str | os.PathLike, text: str) -> None:
    """Writes a file, in UTF-8, whole or not at all: what was there before stays until all of the new text is on the disk.
    Folders on the way are made. Raises OutputError, and leaves nothing behind."""
    path, data = Path(path), text.encode()
    part = path.parent / f".{secrets.token_hex(8)}.part"        # in the same folder: a file system can't rename into another
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:             # Ctrl-C too
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); make room, check the permissions of its folder "
                          "and the length of its name, or name another one") from error
