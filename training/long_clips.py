"""Clips that are longer than a window -> clips that fit, cut at quiet points between their phrases; what can't be cut is
named and counted, never dropped in silence."""

from dataclasses import replace

import torch
from manifest import Phrase, Row, samples

from glmasr.audio import SAMPLE_RATE
from glmasr.config import HOP
from glmasr.transcription.chunking import loudness, quietest
from glmasr.transcription.language import join

NAMED = 10  # clips that are named one by one


def fitted(rows: list[Row], window: float, longest: float) -> tuple[list[Row], list[str]]:
    """The rows, each of at most `longest` seconds, and what is to be said about them. Those with phrases are cut so
    that their pieces fit a `window`; those without are left as they are up to `longest`, several windows of one prompt.
    """
    found: list[Row] = []
    several, cut, left_out = 0, 0, []
    for row in rows:
        pieces = [row] if row.seconds <= window else pieces_of(row, window)
        if pieces:
            cut += len(pieces) > 1
            found += pieces
        elif row.seconds <= longest:
            several += 1
            found.append(row)
        else:
            left_out.append(row)
    said = []
    if cut:
        said.append(f"{cut} clips longer than the window of {window:g} s are cut at quiet points between their phrases")
    if several:
        said.append(f"{several} clips longer than {window:g} s are several windows of one prompt")
    if left_out:
        named = [f"{row.where} ({row.seconds:.1f} s)" for row in left_out[:NAMED]]
        more = [f"and {len(left_out) - NAMED} more"] if len(left_out) > NAMED else []
        seconds = sum(row.seconds for row in left_out)
        said.append(
            f"LEFT OUT: {len(left_out)} clips, {seconds:.0f} s, longer than {longest:g} s and without phrases to cut "
            f"them at: {', '.join(named + more)}; cut them, or say in `phrases` when what is said"
        )
    return found, said


def pieces_of(row: Row, window: float) -> list[Row]:
    """A row as pieces of at most `window` seconds, each of whole phrases; [] if that can't be."""
    phrases, ends = row.phrases, [0.0]
    if not phrases or join([phrase.text for phrase in phrases]).split() != row.text.split():
        return []
    sound = torch.from_numpy(samples(row))
    borders = [_border(sound, one, other) for one, other in zip(phrases, phrases[1:])] + [row.seconds]
    groups: list[list[Phrase]] = [[]]
    for phrase, border, following in zip(phrases, borders, [*borders[1:], None]):
        groups[-1].append(phrase)
        last = following is None
        if last or border is not None and _next(borders, border) - ends[-1] > window:
            end = row.seconds if last else border
            if end - ends[-1] > window:
                return []
            ends.append(end)
            if not last:
                groups.append([])
    pieces, before = [], row.previous
    for group, begin, end in zip(groups, ends, ends[1:]):
        moved = tuple(Phrase(max(0.0, one.start - begin), one.end - begin, one.text) for one in group)
        text = join([one.text for one in group])
        pieces.append(
            replace(row, offset=row.offset + begin, seconds=end - begin, text=text, phrases=moved, previous=before)
        )
        before = text
    return pieces


def _next(borders: list[float | None], border: float) -> float:
    """The border after one at which can be cut."""
    return next(other for other in borders if other is not None and other > border)


def _border(sound: torch.Tensor, one: Phrase, other: Phrase) -> float | None:
    """The quietest second between two phrases; None where the second begins before the first has ended."""
    if other.start < one.end:
        return None
    first, last = round(one.end * SAMPLE_RATE), round(other.start * SAMPLE_RATE)
    if last - first <= 4 * HOP:
        return (one.end + other.start) / 2
    return one.end + quietest(loudness(sound[first:last])) * HOP / SAMPLE_RATE
