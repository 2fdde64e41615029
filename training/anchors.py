"""When the parts of a long text are said, found out by the model itself: what it recognizes has times, and where it
agrees with the text for some words, the text has them too."""

import re
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import pairwise

from evaluate import WORD
from manifest import Phrase, Row, samples

from glmasr.audio import SAMPLE_RATE
from glmasr.pipeline import Recognizer

AGREED = 4  # words in a row, two on each side of a cut, that text and recognition have in common
PAUSE = 0.1  # seconds between the two words at a cut: aligned borders are not more exact
ENOUGH = 0.5  # share of the words in common; with fewer the text is another's
Said = tuple[str, float, float]  # a word, and from which second to which


def with_phrases(row: Row, recognizer: Recognizer) -> Row:
    """The row with phrases between which it can be cut; without any where recognition and text have too little in
    common."""
    language = (row.language or "auto") if getattr(recognizer.config, "languages", None) else "auto"
    transcript = recognizer.transcribe(
        samples(row), language, sample_rate=SAMPLE_RATE, beams=1, temperatures=(0.0,), guards=False, words=True
    )
    heard = [
        (word, one.start, one.end)
        for segment in transcript.segments
        for one in segment.words
        for word in WORD.findall(one.text.lower())
    ]
    return replace(row, phrases=phrases(row.text, row.seconds, heard))


def phrases(text: str, seconds: float, heard: list[Said]) -> tuple[Phrase, ...]:
    """The text in parts, each from the end of a word to the start of the next; () if it has too little in common with
    what was heard."""
    places = list(WORD.finditer(text.lower()))
    if len(text.lower()) != len(text):  # a capital of two characters: the places are those of another text
        return ()
    said = [place[0] for place in places]
    blocks = SequenceMatcher(None, said, [word for word, _, _ in heard], autojunk=False).get_matching_blocks()
    if sum(block.size for block in blocks) < ENOUGH * max(1, len(said)):
        return ()
    cuts = [(0, 0.0, 0.0)]  # where in the text; when the word before ends, when the next begins
    for block in blocks:
        for step in range(AGREED // 2, block.size - AGREED // 2 + 1):
            end, start = heard[block.b + step - 1][2], heard[block.b + step][1]
            if start - end >= PAUSE:
                cuts.append((_before(text, places[block.a + step].start()), end, start))
    cuts.append((len(text), seconds, seconds))
    return tuple(
        Phrase(start, end, part)
        for (first, _, start), (last, end, _) in pairwise(cuts)
        if (part := text[first:last].strip()) and start < end
    )


def _before(text: str, place: int) -> int:
    """Where what belongs to the word at a place begins: after the space before it, with an opening quote."""
    opening = re.search(r"[\"'“‘«(\[¿¡《「『（]*$", text[:place])
    return opening.start() if opening else place
