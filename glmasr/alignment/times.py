"""Scores of a text's tokens with the sound, and its loudness -> when each word begins and ends.

    loudness (F,) -> pauses; scores without what lies in them -> the path -> the second of each token
    -> words, which begin and end at the pauses beside them -> in order, each with some length

A decoder looks at a pause before it goes on, and where it has nothing else to look at. So the attention of a word next
to a pause is spread over it, and plain alignment is off by half of it. But the sound itself says where a pause is.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import align
from .words import Spelled

Span = tuple[float, float]  # seconds

LEAST = 0.02  # seconds that a word has at least
# Loudness, in dB above the quiet tenth of the frames, as a share of what the loud twentieth is above it.
QUIET, AT_LEAST = 0.3, 7.0  # a pause is below; at least so many dB
EDGE, EDGE_AT_LEAST = 0.18, 4.0  # a pause begins and ends where it is below this
BELOW_SPEECH = 15.0  # dB that a pause is below the loud twentieth, at least
SHORTEST_PAUSE, JOINED = 0.08, 0.04  # seconds; those that are less than this apart are one
BREAK = 0.2  # seconds of a pause within which no word goes on
NEAR = 0.25  # seconds from a pause within which a border between two words belongs to it
MORE_SOON = 0.02  # seconds by which a decoder looks at what follows a pause sooner than at other sounds
SMOOTH, SMOOTH_LONG = 0.1, 2.0  # seconds, and at least so many frames, over which looks are smoothed for the path
SMOOTH_WITHIN, SMOOTH_WITHIN_LONG = 1.0, 2.0  # frames, within a stretch; of frames that are
LONG = 0.04  # seconds or longer
INTRO, INTRO_TIMES = 0.8, 4.0  # seconds of a first word, and times as long as others, that are too many for one
COLLAPSED = 1 / 3  # of the words without a length: the text couldn't be found in the sound


@dataclass(frozen=True)
class Timed:
    """`spans`: (begin, end) of each word. `found`: whether they were found in the sound; else they are estimates."""

    spans: list[Span]
    found: bool


def pauses(levels: Tensor, step: float) -> list[Span]:
    """Loudness (F,) in dB of frames of `step` seconds -> from when to when it is too quiet for speech."""
    if len(levels) < 3:
        return []
    smooth = F.avg_pool1d(levels[None, None].float(), 3, 1, 1, count_include_pad=False)[0, 0]
    low, high = (float(torch.quantile(smooth, share)) for share in (0.1, 0.95))
    limit = min(low + max(AT_LEAST, QUIET * (high - low)), high - BELOW_SPEECH)
    edge = min(low + max(EDGE_AT_LEAST, EDGE * (high - low)), limit)
    frames = len(smooth)
    borders = np.flatnonzero(np.diff(np.concatenate(([0], (smooth < limit).int().numpy(), [0]))))
    found: list[Span] = []
    for first, last in borders.reshape(-1, 2).tolist():
        certain = (smooth[first:last] < edge).nonzero().flatten().tolist()
        if certain:  # but at the ends of the sound there is nothing that fades
            first, last = first + certain[0] if first else 0, first + certain[-1] + 1 if last < frames else last
        begin, end = first * step, last * step
        if found and begin - found[-1][1] <= JOINED:
            begin = found.pop()[0]
        found.append((begin, end))
    return [(begin, end) for begin, end in found if end - begin >= SHORTEST_PAUSE]


def word_times(
    words: Sequence[Spelled], scores: Tensor, frame: float, lead: float, silent: Sequence[Span], last: float
) -> Timed:
    """The times of words in a sound of `last` seconds.

    scores    (N, T + 1, S), of the T tokens and the end with S frames, `frame` seconds each
    lead      seconds by which the heads look at a sound too soon
    silent    the pauses, in order
    """
    seconds = _undivided(token_seconds(words, scores, frame, lead, silent), words, silent)
    spans = [(_at(seconds, word.begins, silent), _at(seconds, word.ends, silent)) for word in words]
    spans = [(begin, max(begin, end)) for begin, end in spans]
    spans = _behind_the_intro(_beside_pauses(spans, silent, last), silent)
    lost = sum(end - begin < LEAST / 2 for begin, end in spans)
    if lost > max(1, COLLAPSED * len(spans)):
        return Timed(in_order(_spread(words, silent, last), 0.0, last), False)
    return Timed(in_order(spans, 0.0, last), True)


def token_seconds(
    words: Sequence[Spelled], scores: Tensor, frame: float, lead: float, silent: Sequence[Span]
) -> list[float]:
    """The second at which each token begins, and the end (T + 1,)."""
    frames = scores.shape[-1]
    heard, breaks = torch.ones(frames, dtype=torch.bool), []
    for begin, end in silent:
        # Half a frame stays on both sides: a frame at the edge holds some of a word. But at the start there is none.
        first, last = int(np.ceil(begin / frame + 0.5)) if begin > 0.0 else 0, int(end / frame - 0.5)
        heard[first : max(first, last)] = False
        if end - begin >= BREAK:
            breaks.append(max(first, last))
    places = heard.nonzero().flatten()
    if len(places) < 2:
        places = torch.arange(frames)
    edges = set(torch.searchsorted(places, torch.tensor(breaks)).tolist()) - {0, len(places)} if breaks else set()
    tokens = scores.shape[1]
    amid = {token for word in words for token in range(int(word.begins) + 1, math.ceil(word.ends))}
    amid -= {int(word.begins) for word in words} | {tokens - 1}  # which is the end
    begins = [token not in amid for token in range(tokens)]
    within = SMOOTH_WITHIN if frame < LONG else SMOOTH_WITHIN_LONG
    coarse = align.agreement(scores, max(SMOOTH / frame, SMOOTH_LONG))
    coarse = align.delayed(coarse, round((lead + MORE_SOON) / frame))[:, places]
    fine = align.delayed(align.shares(scores, within), round(lead / frame))[:, places]
    path = align.refined(fine, _closed(align.starts(coarse, edges, begins), words, edges), edges)
    return [float(place) * frame for place in places.numpy()[path]]


def _closed(path: align.Path, words: Sequence[Spelled], edges: Collection[int]) -> align.Path:
    """The path with each full stop before the pause. Its attention may be behind that, and has to be allowed there, or
    it takes its word along; but what sounds there is the next word, unless that begins after a further pause."""
    found = path.copy()
    end = len(path) - 1
    firsts = [*(min(int(word.begins), end) for word in words), end]  # words may be beyond what was read
    for word, first in zip(words, firsts[1:], strict=True):
        for mark in range(math.ceil(word.ends), first):
            following = min((edge for edge in edges if edge > path[mark]), default=math.inf)
            alone = not mark or path[mark - 1] < path[mark]  # else the word itself begins behind the pause
            if alone and path[mark] in edges and path[first] < following:
                found[mark:first], found[first] = path[mark] - 1, path[mark]
                break
    return found


def _undivided(seconds: Sequence[float], words: Sequence[Spelled], silent: Sequence[Span]) -> list[float]:
    """The seconds of tokens, none of several words on both sides of a long pause: it is where more of it sounds."""
    found = list(seconds)
    for token in sorted({int(word.ends) for word in words if word.ends != int(word.ends)}):
        for begin, end in silent:
            if token + 1 < len(found) and end - begin >= BREAK and found[token] < begin and end < found[token + 1]:
                if begin - found[token] < found[token + 1] - end:
                    found[token] = end
                else:
                    found[token + 1] = begin
    return found


def _at(seconds: Sequence[float], place: float, silent: Sequence[Span]) -> float:
    """The second of a place among tokens: 2.5 is the middle of the third. A place beyond them is the end. What is
    silent doesn't count: a pause after a token of two characters is not half of the first one."""
    token = min(int(place), len(seconds) - 1)
    share = place - int(place)
    if not share:
        return seconds[token]
    return _along(_sounding(seconds[token], seconds[min(token + 1, len(seconds) - 1)], silent), share)


def _sounding(first: float, last: float, silent: Sequence[Span]) -> list[Span]:
    """What of a span isn't silent; the whole of it if nothing is left."""
    edges = [first, *(min(max(second, first), last) for span in silent for second in span), last]
    found = [(begin, end) for begin, end in zip(edges[::2], edges[1::2], strict=True) if end > begin]
    return found or [(first, last)]


def _along(sounding: Sequence[Span], share: float) -> float:
    """The second at which this share of the spans is over."""
    left = share * sum(end - begin for begin, end in sounding)
    for begin, end in sounding:
        if left <= end - begin:
            return begin + left
        left -= end - begin
    return sounding[-1][1]


def _beside_pauses(spans: list[Span], silent: Sequence[Span], last: float) -> list[Span]:
    """The border nearest to each pause moves to it: one word ends when it begins, the next begins when it ends. Then
    what still goes on over a long pause is cut."""
    begins, ends = [begin for begin, _ in spans], [end for _, end in spans]
    ends = [min(end, following) for end, following in zip(ends, [*begins[1:], float("inf")], strict=True)]
    count = len(spans)
    beside: dict[int, list[Span]] = {}  # the pauses of the border after each word
    for begin, end in silent:

        def away(word: int, begin: float = begin, end: float = end) -> tuple[float, float]:
            """How far the border after this word is from the pause; among those that touch it, which does so most."""
            left = ends[word] if word >= 0 else min(begin, begins[0])
            right = begins[word + 1] if word + 1 < count else max(end, left)
            touched = min(right, end) - max(left, begin)
            return max(0.0, -touched), -touched

        if begin <= 0.0 or end >= last:  # before the first word, or after the last one
            word = -1 if begin <= 0.0 else count - 1
        else:
            word = min(range(-1, count), key=away)
            if away(word)[0] > NEAR:
                continue
        beside.setdefault(word, []).append((begin, end))
    for word, near in beside.items():
        left = ends[word] if word >= 0 else 0.0
        right = begins[word + 1] if word + 1 < count else last
        first, then = min(
            combinations_with_replacement(range(len(near)), 2),
            key=lambda pair: abs(near[pair[0]][0] - left) + abs(near[pair[1]][1] - right),
        )
        # What sounds between two pauses is a breath, of no word; but after a short one, the "t" of a last "night".
        long = (begin for begin, end in near[first:then] if end - begin >= BREAK)
        begin, end = next(long, near[then][0]), near[then][1]
        if word >= 0 and begin > begins[word] + LEAST:
            ends[word] = begin
        if word + 1 < count and end < ends[word + 1] - LEAST:
            begins[word + 1] = end
    for begin, end in silent:
        for word in range(count):
            if end - begin >= BREAK and begins[word] < begin and end < ends[word]:
                if begin - begins[word] >= min(3 * LEAST, ends[word] - end):
                    ends[word] = begin
                else:
                    begins[word] = end
    return list(zip(begins, ends, strict=True))


def _behind_the_intro(spans: list[Span], silent: Sequence[Span]) -> list[Span]:
    """A first word that is much longer than others, up to a long pause, is said behind it: what sounds before has no
    text, such as music, or speech that wasn't recognized."""
    if len(spans) < 3:
        return spans
    (begin, end), (following, last) = spans[:2]
    usual = float(np.median([last - first for first, last in spans]))
    breaks = any(first <= end + LEAST and following - LEAST <= last for first, last in silent if last - first >= BREAK)
    if breaks and end - begin > max(INTRO, INTRO_TIMES * usual):
        middle = (following + last) / 2
        return [(following, middle), (middle, last), *spans[2:]]
    return spans


def _spread(words: Sequence[Spelled], silent: Sequence[Span], last: float) -> list[Span]:
    """The words over what isn't silent, each as long as its letters say."""
    sounding = _sounding(0.0, last, silent)
    letters = sum(word.last - word.first for word in words)
    spans, done = [], 0
    for word in words:
        begin, done = done, done + word.last - word.first
        spans.append((_along(sounding, begin / letters), _along(sounding, done / letters)))
    return spans


def in_order(spans: Sequence[Span], first: float, last: float, least: float = LEAST) -> list[Span]:
    """The spans, moved as little as it takes so that each lasts `least` seconds, none begins before the one before has
    ended, and all lie between `first` and `last`. Where there is too little room for that, all share it."""
    least = min(least, max(0.0, last - first) / max(1, len(spans)))
    found, place = [], first
    for begin, end in spans:
        begin = max(begin, place)
        place = max(end, begin + least)
        found.append((begin, place))
    place = last
    for number in reversed(range(len(found))):  # what was pushed beyond the end goes back
        begin, end = found[number]
        end = min(end, place)
        place = begin = min(begin, end - least)
        found[number] = begin, end
    return found
