"""Clips that are longer than a window -> clips that fit, cut at quiet points between their phrases, or where the model
finds parts of the text; what can't be cut is named and counted, never dropped in silence."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from manifest import Phrase, Row, samples

from glmasr.audio import SAMPLE_RATE
from glmasr.config import HOP
from glmasr.transcription.chunking import loudness, quietest
from glmasr.transcription.language import join

LATE = 2 / 3  # of a window: from there on the longest pause is looked for
NAMED = 10  # clips that are named one by one


def fitted(
    rows: list[Row], window: float, longest: float, find: Callable[[Row], Row] | None = None
) -> tuple[list[Row], list[str]]:
    """The rows, each of at most `longest` seconds, and what is to be said about them. Those with phrases are cut so
    that their pieces fit a `window`; those without are left as they are up to `longest`, several windows of one prompt;
    of longer ones `find` may give a row with phrases that it has found, which are no times to learn."""
    found: list[Row] = []
    several, cut, guessed, left_out = 0, 0, 0, []
    for row in rows:
        pieces = [row] if row.seconds <= window else pieces_of(row, window)
        if not pieces and row.seconds > longest and find and not row.phrases:
            pieces = [replace(piece, phrases=()) for piece in pieces_of(find(row), window)]
            guessed += bool(pieces)
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
        by_model = f", {guessed} of them where the model finds their text" if guessed else ""
        said.append(f"{cut} clips longer than the window of {window:g} s are cut at quiet points{by_model}")
    if several:
        said.append(f"{several} clips longer than {window:g} s are several windows of one prompt")
    if left_out:
        named = [f"{row.where} ({row.seconds:.1f} s)" for row in left_out[:NAMED]]
        more = [f"and {len(left_out) - NAMED} more"] if len(left_out) > NAMED else []
        seconds = sum(row.seconds for row in left_out)
        said.append(
            f"LEFT OUT: {len(left_out)} clips, {seconds:.0f} s, longer than {longest:g} s and nothing tells where to "
            f"cut their texts: {', '.join(named + more)}; cut them, or say in `phrases` when what is said"
        )
    return found, said


def pieces_of(row: Row, window: float) -> list[Row]:
    """A row as pieces of at most `window` seconds, each of whole phrases: it is cut in the longest pause of the last
    third of a window, else in the last one. [] if that can't be."""
    phrases = row.phrases
    if not phrases or join([phrase.text for phrase in phrases]).split() != row.text.split():
        return []
    sound = torch.from_numpy(samples(row))
    pauses = [other.start - one.end for one, other in pairwise(phrases)]  # below 0 they overlap
    ends, count = [0.0], [0]  # of pieces: in seconds, in phrases
    while row.seconds - ends[-1] > window:
        first, last = ends[-1], ends[-1] + window
        fit = [i for i in range(count[-1], len(pauses)) if pauses[i] >= 0 and phrases[i + 1].start <= last]
        if not fit:
            return []
        late = [i for i in fit if phrases[i].end >= first + LATE * window]
        index = max(late, key=lambda i: pauses[i]) if late else fit[-1]
        ends.append(_quietest(sound, phrases[index], phrases[index + 1]))
        count.append(index + 1)
    pieces, before = [], row.previous
    for (begin, end), (first, last) in zip(
        pairwise([*ends, row.seconds]), pairwise([*count, len(phrases)]), strict=True
    ):
        group = phrases[first:last]
        moved = tuple(Phrase(max(0.0, one.start - begin), one.end - begin, one.text) for one in group)
        text = join([one.text for one in group])
        pieces.append(
            replace(row, offset=row.offset + begin, seconds=end - begin, text=text, phrases=moved, previous=before)
        )
        before = text
    return pieces


def _quietest(sound: torch.Tensor, one: Phrase, other: Phrase) -> float:
    """The quietest second between two phrases."""
    first, last = round(one.end * SAMPLE_RATE), round(other.start * SAMPLE_RATE)
    if last - first <= 4 * HOP:
        return (one.end + other.start) / 2
    return one.end + quietest(loudness(sound[first:last])) * HOP / SAMPLE_RATE
