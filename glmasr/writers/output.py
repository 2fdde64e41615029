"""Which recordings some paths name, and the files that their results go into: named without clashes, written whole or
not at all."""

import glob
import os
import secrets
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

from ..audio_files.address import is_address, local_name, scheme
from ..errors import AudioError, OptionError, OutputError
from .formats import WRITERS

JOURNAL = ".jsonl"

# What is taken for a recording in a folder: the formats that `glmasr.audio` reads itself, and those that ffmpeg does.
# Left out is .ts, which is a program far more often than a film.
EXTENSIONS = frozenset(
    "wav wave rf64 flac ogg oga opus mp3 mp2 aif aiff aifc au snd caf "
    "m4a m4b mp4 m4v mov 3gp 3g2 aac ac3 eac3 dts amr ape wma wmv asf avi flv mkv mka webm mpc mpg mpeg mts m2ts ogv "
    "ra rm tak tta voc w64 wv".split()
)


def _refuse(error: AudioError) -> None:
    raise error


def expand(paths: Iterable[str], recursive: bool = False, fail: Callable[[AudioError], None] = _refuse) -> list[str]:
    """The recordings that some paths name, each once, where it is named first.

    A folder stands for the audio files in it, by name (and with `recursive`, for those in its folders), in order;
    hidden ones are left out. A pattern (`*`, `?`, `[...]`, and `**` for any depth) stands for what it matches, for
    shells that leave that to the program. Everything else stays as it is: "-", and also what is not there, which
    `audio.blocks` will say.

    A folder without an audio file, one that can't be read, a pattern that matches nothing, and what lies in a folder or
    matches a pattern but is no file are each an AudioError. It is raised, or `fail` is called with it, and the
    recordings that were found are given all the same.
    """
    found: dict[str, str] = {}
    for path in paths:
        for name in _expanded(path, recursive, fail):
            found.setdefault(name if name == "-" or is_address(name) else os.path.normcase(os.path.abspath(name)), name)
    return list(found.values())


def _expanded(path: str, recursive: bool, fail: Callable[[AudioError], None]) -> list[str]:
    errors: list[AudioError] = []
    if os.path.isdir(path):
        files = list(_audio_files(path, recursive, errors))
        nothing = "no audio files are in this folder (.wav, .mp3, .flac, ...); name them one by one" + (
            "" if recursive else ", or search its folders as well with --recursive"
        )
    # TRAP: a file can be called "talk [1].wav".
    elif scheme(path) or set("*?[").isdisjoint(path) or os.path.lexists(path) or "\0" in path:
        return [path]
    else:
        matches = sorted(glob.glob(path, recursive=True))
        files = []
        for match in matches:
            is_folder = os.path.isdir(match)
            files += _audio_files(match, recursive, errors) if is_folder else _only_files([match], errors)
        nothing = f"the pattern matches no file; check the spelling and the current directory ({os.getcwd()})"
    if not (files or errors):
        errors = [AudioError(f"{path}: {nothing}")]
    for error in errors:
        fail(error)
    return files


def _audio_files(folder: str, recursive: bool, errors: list[AudioError]) -> Iterator[str]:
    """`errors` gets one for each folder that can't be read."""

    def refuse(error: OSError) -> None:
        reason = f"the folder cannot be read ({error.strerror}); check its permissions"
        errors.append(AudioError(f"{error.filename}: {reason}"))

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        # Hidden: macOS leaves "._talk.wav" beside "talk.wav", and it is no sound.
        shown = (name for name in sorted(names) if not name.startswith("."))
        sounds = (name for name in shown if os.path.splitext(name)[1][1:].lower() in EXTENSIONS)
        yield from _only_files((os.path.join(place, name) for name in sounds), errors)


def _only_files(paths: Iterable[str], errors: list[AudioError]) -> Iterator[str]:
    """TRAP: to open a pipe waits for whoever writes into it. One that is named by itself, such as a shell's <(command),
    is meant so."""
    for path in paths:
        try:
            if stat.S_ISREG(os.stat(path).st_mode):
                yield path
            else:
                reason = (
                    "is a pipe, a socket or a device; expected an audio file: if a pipe is meant, name it by itself"
                )
                errors.append(AudioError(f"{path}: {reason}"))
        except OSError as error:  # a link to what is not there
            reason = f"cannot be opened ({error.strerror}); expected an audio file: if it is a link, mend or remove it"
            errors.append(AudioError(f"{path}: {reason}"))


def plan_outputs(
    inputs: list[str], formats: Iterable[str], output_dir: str | os.PathLike[str] | None = None
) -> dict[str, dict[str, Path]]:
    """{input: {format: file}}: where the results go, in `output_dir`, or without one beside each input. "-" is called
    stdin; a recording on the web goes into the current folder, by the last part of its address.

    A file is named after its input: `talk.wav` makes `talk.srt`. Inputs that would share a name get the first of these
    that tells them apart: `talk.wav.srt`, `monday/talk.srt` (the folders below those that all inputs have in common),
    `monday/talk.wav.srt`, `monday/talk.wav-2.srt`. The order of the inputs makes no difference. Names that differ in
    case only are the same, as they are on Windows and macOS. No output has the name of an input, and no `incomplete`
    output the name of another one.

    Raises OptionError for a format that is not in WRITERS.
    """
    formats = list(formats)
    for name in formats:
        if name not in WRITERS:
            raise OptionError(f"format is {name!r}, expected one of {', '.join(WRITERS)}")
    real = cache(os.path.realpath)

    def identity(path: str | Path) -> str:
        folder, name = os.path.split(path)
        return unicodedata.normalize("NFC", os.path.join(real(folder), name)).casefold()

    local = {name: local_name(name) for name in inputs}
    places = {name: Path(os.path.abspath(local[name])) for name in inputs if name != "-"}
    common = len(os.path.commonprefix([place.parent.parts for place in places.values()]))
    numbers = {name: number for number, name in enumerate(sorted(inputs), 1)}

    def claimed(paths: Iterable[Path]) -> set[str]:
        claims = ((path, incomplete(path), incomplete(path).with_suffix(JOURNAL)) for path in paths)
        return {identity(claim) for each in claims for claim in each}

    def files(name: str, attempt: int) -> dict[str, Path]:
        place = places.get(name, Path("stdin"))
        top, inner = str(Path(local[name]).parent), ""  # of "talk.wav/" too, which opens as "talk.wav" does
        if output_dir is not None:
            # TRAP: on Windows the first part may be a drive, and to join it would lead out of the folder.
            top, inner = os.fspath(output_dir), os.path.join("", *place.parent.parts[max(1, common) :])
        stem, whole = os.path.splitext(place.name)[0], os.path.join(inner, place.name)
        choices = [stem, place.name, os.path.join(inner, stem), whole]
        chosen = choices[attempt] if attempt < 4 else whole + f"-{numbers[name]}" * (attempt - 3)
        return {form: Path(top, f"{chosen}.{form}") for form in formats}

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
    """Where the result of a recording goes that was stopped in the middle: beside the whole one, for which it can't be
    taken.

    >>> incomplete(Path("talks/monday.srt")).name
    'monday.incomplete.srt'
    """
    return path.with_name(f"{path.stem}.incomplete{path.suffix}")


def journal(outputs: dict[str, Path]) -> Path:
    """Where `Journal` keeps what was recognized so far: one file for all formats, `monday.incomplete.jsonl`."""
    return incomplete(next(iter(outputs.values()))).with_suffix(JOURNAL)


def prepare(folder: str | os.PathLike[str]) -> None:
    """Makes the folder that results go into. Raises OutputError where it can't be made or written to."""
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"{folder}: is a file; expected a folder for the results: name another one") from None
    except (OSError, ValueError) as error:
        raise OutputError(f"{str(folder)!r}: can't be made ({error}); name another folder for the results") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        expected = "expected a folder for the results: name another one, or ask for permission"
        raise OutputError(f"{folder}: you may not write there; {expected}")


def write_whole(path: str | os.PathLike[str], text: str | bytes) -> None:
    """Writes a file, a text in UTF-8, whole or not at all: what was there before stays until all of the new text is on
    the disk. Folders on the way are made. Raises OutputError, and leaves nothing behind."""
    path, data = Path(path), text if isinstance(text, bytes) else text.encode()
    part = path.parent / f".{secrets.token_hex(8)}.part"  # in the same folder: a file system can't rename into another
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:  # Ctrl-C too
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); make room, check the permissions of its folder "
            "and the length of its name, or name another one"
        ) from error
