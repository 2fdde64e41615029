"""The tracks of sound in a file, and which of them is read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import AudioError, OptionError


@dataclass(frozen=True)
class Track:
    """A stream of sound in a file. `index`: its number among all streams, from 0."""

    index: int
    language: str = ""  # three letters, "" where the file doesn't say
    default: bool = False


# What people call a language, and what files call it (ISO 639-1, and 639-2 in both of its ways).
CALLED = (
    {"zh", "chi", "zho", "cmn"},
    {"yue"},
    {"en", "eng"},
    {"de", "ger", "deu"},
    {"fr", "fre", "fra"},
    {"es", "spa"},
    {"it", "ita"},
    {"ja", "jpn"},
    {"ko", "kor"},
    {"pt", "por"},
    {"ru", "rus"},
    {"nl", "dut", "nld"},
    {"ar", "ara"},
    {"hi", "hin"},
    {"vi", "vie"},
)


def check_track(track: object) -> None:
    """Raises OptionError for what no track can be called."""
    if track is None or isinstance(track, int) and not isinstance(track, bool) and track >= 1:
        return
    if not (isinstance(track, str) and re.fullmatch("[A-Za-z]{2,3}", track)):
        raise OptionError(
            f"track is {track!r}, expected a number from 1 on, or a language of two or three letters such as 'eng'"
        )


def only_track(track: int | str | None, name: str) -> None:
    """Raises AudioError if another track is asked for than the first one of a recording that has one."""
    if track not in (None, 1):
        raise AudioError(
            f"{name}: has no track {track}; it has one track, whose language it doesn't state: leave the track out"
        )


def listing(tracks: Sequence[Track]) -> str:
    """The tracks by number, for a message: "1 (eng, default), 2 (fra)"."""

    def described(number: int, track: Track) -> str:
        remarks = ", ".join(filter(None, (track.language, "default" if track.default else "")))
        return f"{number} ({remarks})" if remarks else str(number)

    shown = [described(number, track) for number, track in enumerate(tracks[:20], 1)]
    return ", ".join(shown + ["..."] * (len(tracks) > 20))


def choose(tracks: Sequence[Track], track: int | str | None, name: str) -> int:
    """Which of the tracks is read, from 0: the one that was asked for, the default one, the first one. Raises
    AudioError.
    """
    if track is None:
        return next((place for place, one in enumerate(tracks) if one.default), 0)
    if isinstance(track, int):
        fitting = [track - 1] if track <= len(tracks) else []
    else:
        names = next((names for names in CALLED if track.lower() in names), {track.lower()})
        fitting = [place for place, one in enumerate(tracks) if names & set(one.language.lower().split(","))]
    if not fitting:
        raise AudioError(
            f"{name}: has no track {track}; expected one of {listing(tracks)}: choose one of these, or leave the track "
            "out"
        )
    return fitting[0]
