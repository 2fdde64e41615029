"""Words of a window's text, with times: the text is read once more with the sound, and aligned with it.

    ids -> Family.read_again -> scores of attention -> alignment.times -> words

Words are attached where a window is decoded. Segments take their times from them where they are given away: until then
the times that the model wrote say what is covered.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from ..alignment.times import in_order, pauses, word_times
from ..alignment.words import Spelled, spell
from ..audio import HOP, SAMPLE_RATE
from .chunking import Window, loudness
from .families import Family, Piece
from .results import Segment, Word


@torch.inference_mode()
def timed_words(
    family: Family, window: Window, audio: Any, prompt: list[int], pieces: list[Piece]
) -> tuple[list[tuple[Word, ...]], bool]:
    """The words of each piece of a window's text; and whether they were found in the sound. `audio` and `prompt`: those
    that the text was decoded with."""
    place, texts, found = 0, [], []
    for piece in pieces:
        text, spelled = spell(piece.ids, family.tokenizer.decoder())
        spelled = [replace(word, begins=place + word.begins, ends=place + word.ends) for word in spelled]
        place += len(piece.ids)
        texts.append((text, spelled))
        found += spelled
    if not found:  # nothing but punctuation
        return [() for _ in pieces], True
    ids = [number for piece in pieces for number in piece.ids]
    reading = family.read_again(window, audio, prompt, ids)
    each = torch.tensor(ids, device=reading.logits.device)[: len(reading.logits) - 1, None]
    probabilities = reading.logits[:-1].float().softmax(-1).gather(-1, each)[:, 0].tolist()
    silent = pauses(loudness(window.samples), HOP / SAMPLE_RATE)
    frame, lead = family.samples_per_state / SAMPLE_RATE, family.config.alignment_lead
    timed = word_times(found, reading.scores, frame, lead, silent, window.seconds)
    spans = iter(timed.spans)

    def made(text: str, word: Spelled) -> Word:
        begin, end = (round(window.begin + seconds, 3) for seconds in next(spans))
        tokens = probabilities[int(word.begins) : max(int(word.begins) + 1, math.ceil(word.ends))]
        probability = sum(tokens) / max(1, len(tokens))  # none: it is beyond what the model could read again
        return Word(text[word.first : word.last], begin, end, round(probability, 4))

    return [tuple(made(text, word) for word in spelled) for text, spelled in texts], timed.found


def timed_by_words(segments: list[Segment], begin: float, end: float) -> list[Segment]:
    """The segments of a stretch of a recording, from `begin` to `end` in seconds, each from its first word to its last;
    those without words as they are. Words that were found in different windows may overlap; here they no longer do."""
    said = [segment for segment in segments if segment.words]
    spans = iter(in_order([(word.start, word.end) for segment in said for word in segment.words], begin, end))

    def moved(word: Word) -> Word:
        start, end = next(spans)
        return replace(word, start=round(start, 3), end=round(end, 3))

    found = []
    for segment in segments:
        if segment.words:
            words = tuple(map(moved, segment.words))
            segment = replace(segment, start=words[0].start, end=words[-1].end, words=words)
        found.append(segment)
    return found


def with_text(segment: Segment, convert: Callable[[str], str]) -> Segment:
    """The segment with its text converted, and its words, which share the new text as they shared the old."""
    text = convert(segment.text)
    if text == segment.text:
        return segment
    return replace(segment, text=text, words=tuple(_converted(segment, text, convert)))


def _converted(segment: Segment, text: str, convert: Callable[[str], str]) -> Iterator[Word]:
    place = 0
    for word in segment.words:
        at = segment.text.find(word.text, place)
        place = at + len(word.text) if at >= 0 else place
        # What a character becomes may depend on its neighbors, so it is taken from the whole text where it can be.
        whole = at >= 0 and len(text) == len(segment.text)
        yield replace(word, text=text[at:place] if whole else convert(word.text))
