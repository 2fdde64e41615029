"""A window that begins in one language and ends in another: where the language changes.

The decoder judges slices of what was encoded as it judges the whole, so nothing is encoded again. A language counts
where slices next to each other are sure of it. Of 2 s even a small model is sure; of one slice in fifty it is wrong.
"""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from ..audio import HOP, SAMPLE_RATE
from . import coverage
from .chunking import Window, loudness, quietest

SLICE, APART = 2.0, 1.0  # seconds: length of a slice, and from one to the next
IN_A_ROW, CERTAIN = 2, 0.9  # so many slices have to be so sure, among all languages of the model


def language_turns(
    window: Window,
    cross: list[tuple[Tensor, Tensor]],
    samples_per_state: int,
    names: list[str],
    detect: Callable[[list[tuple[Tensor, Tensor]]], Tensor],
) -> list[tuple[Window, str]]:
    """A window cut where its language changes, each piece with its own; [] if it doesn't.

    cross   cross keys and values (H, T, D) of each layer
    detect  those of B slices, (B, H, t, D) of each layer -> the probability of each of `names` (B, L)
    """
    size, step = (round(seconds * SAMPLE_RATE / samples_per_state) for seconds in (SLICE, APART))
    states = min(len(window.samples) // samples_per_state, cross[0][0].shape[-2])
    if states < size + step or len(names) < 2:
        return []

    def slices(rows: Tensor) -> Tensor:
        return rows[:, :states].unfold(-2, size, step).permute(1, 0, 3, 2)

    likely, numbers = detect([(slices(key), slices(value)) for key, value in cross]).max(-1)
    found = enumerate(zip(likely.tolist(), numbers.tolist(), strict=True))
    sure = [(place, names[number]) for place, (value, number) in found if value >= CERTAIN]
    if len({name for _, name in sure}) < 2:
        return []
    frames = [round(seconds / coverage.FRAME) for seconds in (SLICE, APART)]
    spoken = window.voiced().float().unfold(0, *frames).mean(-1).tolist()
    spans = turns([(place, name) for place, name in sure if spoken[min(place, len(spoken) - 1)] >= 0.5])
    if len(spans) < 2:
        return []
    levels, cuts = loudness(window.samples), [0]
    for (_, _, last), (_, first, _) in pairwise(spans):  # between the middles of the two slices, where it is quietest
        begin, end = (round((place * APART + SLICE / 2) / coverage.FRAME) for place in (last, first))
        cuts.append((begin + quietest(levels[begin:end])) * HOP)
    cuts.append(len(window.samples))
    return [(window.part(begin, end), name) for (begin, end), (name, _, _) in zip(pairwise(cuts), spans, strict=True)]


def turns(sure: list[tuple[int, str]]) -> list[tuple[str, int, int]]:
    """(number, language) of the slices that are sure of one -> (language, first and last slice) of each stretch of a
    language. A language that too few slices in a row are sure of is left out."""
    runs: list[list[tuple[int, str]]] = []
    for place, name in sure:
        if runs and runs[-1][-1][1] == name and place - runs[-1][-1][0] <= SLICE / APART:
            runs[-1].append((place, name))
        else:
            runs.append([(place, name)])
    found: list[tuple[str, int, int]] = []
    for run in runs:
        if len(run) >= IN_A_ROW:
            (first, name), (last, _) = run[0], run[-1]
            if found and found[-1][0] == name:
                _, first, _ = found.pop()
            found.append((name, first, last))
    return found
