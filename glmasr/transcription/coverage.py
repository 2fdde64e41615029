"""Is speech lost? Stretches of speech in a window that no text covers, and texts too short for the
speech under them.

A decoder can stop in the middle of a window, jump over a sentence, or write a sentence once that was said three times,
and be sure of what it wrote. What it wrote then doesn't fit the sound: the pipeline has such stretches decoded once
more, by themselves.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher

import regex
from torch import Tensor

from ..alignment.times import pauses as quiet_spans

FRAME = 0.01  # seconds, of each value of `vad.voiced`
AGAIN = 0.5  # seconds of voice without text that are decoded again
REPORTED = 1.0  # seconds of voice without text that are reported; a cough is shorter
SLOW = 6.0  # letters a second of voice; who speaks slowest in 383 recordings of 87 people says 8
USUAL = 13.0  # letters a second of voice; a text with fewer that spans a pause may have jumped over what is beside it
PAUSE = 0.4  # seconds without voice
FAST = 25.0  # letters a second of voice; no speech has more
SAME = 0.95  # of two texts' letters are in both, in order: they say the same
NEAR = 0.15  # seconds from the border of a text, within which a gap may be that tells a word from it
LOUD, WORD = 15.0, 0.1  # dB below the loudest of the window, above which a word is for so many seconds
ALLOWED = 0.5  # seconds of voice that a text needn't cover: breath, laughter, a word drawn out
# Scripts whose signs are syllables, or of which a few make one.
SYLLABLES = ("Hiragana", "Katakana", "Hangul", "Thai", "Lao", "Khmer", "Myanmar")
# How many letters a sign is worth: what is said in the time of so many letters of English.
WORTH = [
    (regex.compile(r"[\p{Script=Han}\p{Nd}]"), 3.0),
    (regex.compile("|".join(rf"\p{{Script={script}}}" for script in SYLLABLES)), 2.0),
    (regex.compile(r"\p{L}"), 1.0),
]


@dataclass(frozen=True)
class Stretch:
    """Frames `first` up to `last` of a window, with so many seconds of voice. `covering`: the number of the segment
    whose text is too short for them; None: no text covers them. `pauses`: frames at which to cut it, if all that speaks
    against the text is that it spans pauses and has few letters; that is no reason to doubt it.
    """

    first: int
    last: int
    voice: float
    covering: int | None = None
    pauses: tuple[int, ...] = ()


def spoken(text: str) -> float:
    """How much is said with a text, in letters of English."""
    amount = 0.0
    for signs, worth in WORTH:
        text, count = signs.subn("", text)
        amount += worth * count
    return amount


def sparse(text: str, voice: float) -> bool:
    """Whether a text is too short for so many seconds of voice."""
    return spoken(text) < SLOW * (voice - ALLOWED)


def pauses(voiced: Tensor) -> list[int]:
    """Frames at which to cut voiced (F,): in the middle of the longest pause that has at least `AGAIN` seconds of voice
    on both sides, and of those that are at least half as long. Pieces that are too short say little to a model, so
    shorter ones stay.
    """
    places, least = voiced.nonzero().flatten(), round(AGAIN / FRAME)
    lengths, cuts, shortest = places.diff().tolist(), [0, len(places)], PAUSE / FRAME
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if lengths[number] <= shortest:
            break
        if all(abs(number + 1 - cut) >= least for cut in cuts):
            shortest = max(shortest, lengths[number] / 2 - 1) if len(cuts) == 2 else shortest
            cuts.append(number + 1)
    return [int(places[cut - 1] + places[cut]) // 2 for cut in sorted(cuts)[1:-1]]


def sounds_on(voiced: Tensor, levels: Tensor, stretch: Stretch) -> bool:
    """Whether a short stretch of voiced (F,) without text is only the end of the word before it, or the start of the
    one after it: what a model hears in that alone is "you" or "Thank you". A word of its own has a gap between itself
    and the text, and is about as loud. `levels` (F,): the loudness of the window, in dB."""
    if stretch.covering is not None or stretch.voice >= REPORTED:
        return False
    count = min(len(voiced), len(levels))
    sounding = voiced[:count].clone()  # TRAP: a detector bridges short gaps
    for begin, end in quiet_spans(levels, FRAME):
        sounding[round(begin / FRAME) : round(end / FRAME)] = False
    first, last = stretch.first, min(stretch.last, count)
    near = round(NEAR / FRAME)
    start, stop = (max(0, first - near) if first else 0), (min(count, last + near) if last < count else count)
    gaps = (~sounding[start:stop]).nonzero().flatten().tolist()
    if not gaps:
        return first > 0 or last < count
    begin = start + gaps[0] if first else 0
    end = start + gaps[-1] if last < count else count
    loud = sounding[begin:end] & (levels[begin:end] > levels.max() - LOUD)
    return float(loud.sum()) * FRAME < WORD


def fits(text: str, voice: float) -> bool:
    """Whether a text is neither too short nor too long for so many seconds of voice."""
    return not sparse(text, voice) and spoken(text) <= FAST * (voice + ALLOWED)


def same(text: str, other: str) -> bool:
    """Whether two texts say the same, but for signs and a few letters."""
    ours, theirs = ([sign for sign in one.lower() if sign.isalnum()] for one in (text, other))
    return bool(SequenceMatcher(None, ours, theirs, autojunk=False).ratio() >= SAME)


def stretches(voiced: Tensor, covered: list[tuple[float, float, str]], least: float = AGAIN) -> Iterator[Stretch]:
    """What is lost, in order: voiced (F,), a bool for each frame of a window; `covered`: seconds from its start, and
    text, of segments in order.
    """
    place = 0
    for number, (start, end, text) in enumerate([*covered, (len(voiced) * FRAME, len(voiced) * FRAME, "")]):
        first, last = (min(len(voiced), max(0, round(seconds / FRAME))) for seconds in (start, end))
        voice = float(voiced[place:first].sum()) * FRAME if first > place else 0.0
        if voice >= least:
            yield Stretch(place, first, voice)
        if number < len(covered):
            voice = float(voiced[first:last].sum()) * FRAME
            if sparse(text, voice):
                yield Stretch(first, last, voice, number)
            elif spoken(text) < USUAL * (voice - ALLOWED) and (cuts := pauses(voiced[first:last])):
                yield Stretch(first, last, voice, number, tuple(first + cut for cut in cuts))
        place = max(place, last)
