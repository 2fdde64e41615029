"""Speech that no text covers: which stretches of a window are decoded once more, and what is made of what was found
there."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from ..audio import HOP
from . import coverage
from .chunking import Window, loudness
from .families import Job
from .language import join
from .results import FLAGS, Part, Segment

# seconds of voice without text that are decoded as they are, and in halves: a decoder that jumped once may again
TWO_WAYS = 6.0
SHORTER = 0.5  # seconds by which a stretch has to be shorter than its window to be decoded by itself
SPLIT_SECONDS = 2.0  # a shorter window or stretch is not split for another try


@dataclass(frozen=True)
class Lost:
    """A stretch of the part with this number, its window, and the windows to decode; with `two_ways` the first is the
    stretch as it is, and the others are its halves."""

    part: int
    stretch: coverage.Stretch
    window: Window
    pieces: list[Window]
    two_ways: bool = False


def lost_stretches(job: Job, part: Part, number: int, nested: bool) -> tuple[Part, list[Lost]]:
    """The stretches of a part that have no text, or too little; and the part, which in a recording that continues may
    end before one at its end. `nested`: the window is itself such a stretch, or a half."""
    window, lost = job.window, []
    voiced = window.voiced()
    covered = [(segment.start - window.begin, segment.end - window.begin, segment.text) for segment in part.segments]
    attempts = job.attempts + (not covered)
    before = part
    for stretch in coverage.stretches(voiced, covered):
        start = window.begin + stretch.first * coverage.FRAME
        if job.continues and before.start < before.resume < before.end and start > before.resume - coverage.FRAME:
            continue  # it is decoded again with what follows
        piece = window.part(stretch.first * HOP, min(stretch.last * HOP, len(window.samples)))
        at_the_end = 0 < stretch.first and stretch.last == len(voiced)
        if job.continues and stretch.covering is None and at_the_end:
            part = replace(part, resume=piece.begin)
            continue
        if stretch.covering is None and coverage.sounds_on(voiced, loudness(window.samples), stretch):
            continue
        # Each try is shorter than the one before it, so there is an end to them.
        two_ways, pieces = False, []
        if stretch.pauses:
            cuts = [(cut - stretch.first) * HOP for cut in (stretch.first, *stretch.pauses)]
            pieces = [piece.part(first, last) for first, last in pairwise([*cuts, len(piece.samples)])]
        elif piece.seconds <= window.seconds - SHORTER:
            # Within what is decoded again it would double the work at each step.
            two_ways = not nested and stretch.covering is None and stretch.voice >= TWO_WAYS
            pieces = [piece, *halves_of(piece)] if two_ways else [piece]
        elif attempts <= 1 and piece.seconds >= SPLIT_SECONDS:
            pieces = halves_of(piece)
        lost.append(Lost(number, stretch, piece, pieces, two_ways))
    return part, lost


def halves_of(window: Window) -> list[Window]:
    """A window as two, cut at the quietest place of its middle third."""
    half = window.middle_cut()
    return [window.part(0, half), window.part(half, len(window.samples))]


def fuller(tries: list[Part], voice: float) -> list[Part]:
    """Of a stretch as it is, and of its halves: the halves where both have text that can be right, and it has none, or
    says less."""
    [whole], halves = tries[:1], tries[1:]
    text, other = (join([segment.text for part in parts for segment in part.segments]) for parts in ([whole], halves))
    says_more = coverage.spoken(other) > coverage.spoken(text) + coverage.SLOW * coverage.AGAIN
    wanted = whole.failed or not coverage.fits(text, voice) or says_more
    good = coverage.fits(other, voice) and all(part.segments and not part.failed for part in halves)
    return halves if wanted and good else [whole]


def lacking(place: tuple[float, float]) -> str:
    """The warning of a place without text, from `start` to `end` in seconds."""
    return f"{place[0]:.1f} s to {place[1]:.1f} s: {FLAGS['uncovered']}"


def without_text(window: Window, segments: list[Segment]) -> Iterator[tuple[float, float]]:
    """The places of a window, in seconds of the recording, with speech long enough to be reported and none of these
    segments."""
    covered = sorted((segment.start - window.begin, segment.end - window.begin, segment.text) for segment in segments)
    for stretch in coverage.stretches(window.voiced(), covered, coverage.REPORTED):
        if stretch.covering is None:
            first, last = (
                window.begin + min(frame * coverage.FRAME, window.seconds) for frame in (stretch.first, stretch.last)
            )
            yield round(first, 3), round(last, 3)


def patched(part: Part, found: list[tuple[Lost, list[Part]]]) -> Part:
    """A part with what was found in stretches of it, each with the parts that came of it."""
    kept: dict[int | None, Segment] = dict(enumerate(part.segments))
    added: list[Segment] = []
    uncovered, warnings = list(part.uncovered), list(part.warnings)
    for lost, tries in found:
        stretch, window = lost.stretch, lost.window
        if stretch.pauses and not all(one.segments and not one.failed for one in tries):
            continue  # the text wasn't doubted, and what is between pauses may be in it
        text = join([segment.text for one in tries for segment in one.segments])
        if stretch.covering is not None or not coverage.fits(text, stretch.voice):
            tries = [one for one in tries if not one.failed]  # a doubtful text is better than none, and its flags tell
        if stretch.voice < coverage.REPORTED:  # a cough: where it is no word, a model soon finds one
            tries = [one for one in tries if not any(segment.flags for segment in one.segments)]
        new = [segment for one in tries for segment in one.segments]
        old = kept.get(stretch.covering)
        more = sum(coverage.spoken(segment.text) for segment in new) - (coverage.spoken(old.text) if old else 0)
        if more > (coverage.SLOW * coverage.AGAIN if stretch.pauses else 0):
            kept.pop(stretch.covering, None)
            added += new
            uncovered += [place for one in tries for place in one.uncovered]
            warnings += [warning for one in tries for warning in one.warnings]
            for place in without_text(window, new):  # a half that failed, or a gap on both sides of a cut
                if not any(place[0] < end and start < place[1] for start, end in uncovered):
                    uncovered.append(place)
                    warnings.append(lacking(place))
        elif stretch.voice >= coverage.REPORTED and not stretch.pauses:
            if old:
                kept[stretch.covering] = replace(old, flags=(*old.flags, "uncovered"))
            uncovered.append((round(window.begin, 3), round(window.begin + window.seconds, 3)))
            warnings.append(lacking(uncovered[-1]))
    segments = sorted([*kept.values(), *added], key=lambda segment: (segment.start, segment.end))
    return replace(part, segments=segments, uncovered=tuple(sorted(uncovered)), warnings=warnings)
