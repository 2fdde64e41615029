"""Rows of manifests -> batches without end: shuffled, joined, changed, padded.

For a published model each clip is padded to the whole window, and an epoch is cut into batches of equal size. From
scratch a model finds nothing in long and changed recordings for thousands of steps; --ramp begins with short clean
ones, in which it finds the words within hundreds. And for a part of the steps (--short) a batch is padded to its
longest recording: rotary positions don't mind, and it is several times cheaper. The rest of the steps gets the model
used to the silence of padded windows.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from augment import augment, nothing_said
from families import AFTER, Batch, Changes, Clip, EncoderDecoderFamily, GlmAsrFamily
from manifest import Phrase, Row, TrainingError, samples

from glmasr import audio
from glmasr.errors import GlmAsrError
from glmasr.transcription.language import join

GAPS = 0.15, 0.8  # seconds between recordings that are joined
EDGE = 0.05  # seconds of a joined recording around what is said in it
PAUSE = 0.5  # seconds; a shorter gap doesn't end a phrase, as in make_digits.py
TIMED = 0.5  # of the clips with phrases are learned with times, the others without

Family = GlmAsrFamily | EncoderDecoderFamily


@dataclass
class Joined:
    """Rows of one language, one after the other, with seconds of silence in front of each."""

    parts: list[Row]
    gaps: list[float]
    seconds: float
    language: str


def grouped(
    rows: list[Row | Joined], budget: float, window: float, whole: bool, rng: random.Random
) -> list[list[Row | Joined]]:
    """Batches of about `budget` seconds, padding counted: of recordings of like length, or where all are padded to
    one window of equal counts, so that none is of a single clip."""
    if whole and all(row.seconds <= window for row in rows):
        count = -(-len(rows) // max(1, int(budget / window)))
        rows = rng.sample(rows, len(rows))
        return [rows[first::count] for first in range(count)]

    def cost(row):
        return window * -(-row.seconds // window) if whole else row.seconds + 0.5

    rows = sorted(rows, key=lambda row: row.seconds * rng.uniform(0.8, 1.25))
    batches, batch, longest = [], [], 0.0
    for row in rows:
        longest_now = max(longest, cost(row))
        if batch and longest_now * (len(batch) + 1) > budget:
            batches.append(batch)
            batch, longest_now = [], cost(row)
        batch.append(row)
        longest = longest_now
    batches.append(batch)
    rng.shuffle(batches)
    return batches


def joined(rows: list[Row], share: float, longest: float, rng: random.Random) -> list[Row | Joined]:
    """The rows, a share of them made into longer recordings, as windows of a long one are: together at most `longest`
    seconds."""
    rows = rng.sample(rows, len(rows))
    count = round(share * len(rows))
    found: list[Row | Joined] = list(rows[count:])
    groups: dict[str, Joined] = {}
    for row in rows[:count]:
        group = groups.get(row.language)
        gap = rng.uniform(*GAPS) if group else 0.0
        if group and group.seconds + gap + row.seconds > longest * rng.uniform(0.6, 1.0):
            found.append(groups.pop(row.language))
            group, gap = None, 0.0
        if not group:
            group = groups[row.language] = Joined([], [], 0.0, row.language)
        group.parts.append(row)
        group.gaps.append(gap)
        group.seconds += gap + row.seconds
    return found + list(groups.values())


def read_clip(
    row: Row | Joined, changed: float, silence: float, rng: np.random.Generator, longest: float = np.inf
) -> Clip:
    """The recording of a row, changed with probability `changed`; or, with probability `silence`, no speech. Slowed
    down it has `longest` seconds at most."""
    if silence and rng.random() < silence:
        return Clip(torch.from_numpy(nothing_said(min(row.seconds, 10.0), rng)), "", row.language)
    sounds, phrases, length = [], [], 0
    parts, gaps = (row.parts, row.gaps) if isinstance(row, Joined) else ([row], [0.0])
    for part, gap in zip(parts, gaps, strict=True):
        sound, said = samples(part), part.phrases
        # The gap is the silence that is wanted.
        begin = max(0.0, said[0].start - EDGE) if said and len(parts) > 1 else 0.0
        end = said[-1].end + EDGE if said and len(parts) > 1 else part.seconds
        sound = sound[round(begin * audio.SAMPLE_RATE) : round(end * audio.SAMPLE_RATE)]
        sounds += [np.zeros(round(gap * audio.SAMPLE_RATE), np.float32), sound]
        later = (length + len(sounds[-2])) / audio.SAMPLE_RATE - begin
        length += len(sounds[-2]) + len(sound)
        for phrase in said:
            start, end = later + phrase.start, later + phrase.end
            if len(parts) > 1 and phrases and start - phrases[-1].end < PAUSE:
                phrases[-1] = Phrase(phrases[-1].start, end, join([phrases[-1].text, phrase.text]))
            else:
                phrases.append(Phrase(start, end, phrase.text))
    sound, speed = np.concatenate(sounds), 1.0
    if changed and rng.random() < changed:
        sound, speed = augment(sound, rng, longest)
    return Clip(
        torch.from_numpy(sound),
        join([part.text for part in parts]),
        row.language,
        tuple(Phrase(one.start / speed, one.end / speed, one.text) for one in phrases),
        parts[0].previous,
        parts[0].where,
    )


class Stream(torch.utils.data.IterableDataset):
    """Endless batches, from step `start` on: of each step `accumulate` for each of `processes`, here those of process
    `rank`. Read in a process of its own, so that the next ones are ready in time."""

    def __init__(self, rows: list[Row], family: Family, args, start: int, rank: int = 0, processes: int = 1):
        self.rows, self.family, self.args, self.start = rows, family, args, start
        self.rank, self.processes = rank, processes

    def allowed(self, step: int) -> list[Row]:
        """Short recordings first: to a fresh model a long one says little about which sound is which word."""
        if step >= self.args.ramp:
            return self.rows
        share = 0.1 + 0.9 * step / self.args.ramp
        return sorted(self.rows, key=lambda row: row.seconds)[: max(1, round(share * len(self.rows)))]

    def changes(self, whole: bool, masked: bool) -> Changes:
        """Those of a batch."""
        args = self.args
        after = AFTER if args.pad_to == "speech" else 0.0
        return Changes(whole, after, masked, args.spec_augment, args.misread, args.shift, TIMED, args.previous)

    def __iter__(self) -> Iterator[Batch | TrainingError]:
        """A recording that can't be read any more comes as an error: raised here, it would lose its message."""
        try:
            yield from self.batches()
        except GlmAsrError as error:
            yield TrainingError(f"{error}; it could be read when training began")

    def batches(self) -> Iterator[Batch]:
        """All of them, in order."""
        args, queue, epoch, was_whole = self.args, [], 0, None
        window = self.family.window
        for number in itertools.count():
            step, of_step = divmod(number, args.accumulate * self.processes)
            whole = step >= args.short * args.steps
            # While more recordings come in, a plan is good for 50 steps only.
            if not queue or whole != was_whole or (step < args.ramp and step % 50 == 0 and of_step == 0):
                rng, rows = random.Random(args.seed + epoch), self.allowed(step)
                if step >= args.ramp and args.join:
                    rows = joined(rows, args.join, 0.9 * window, rng)
                queue = grouped(rows, args.batch_seconds, window, whole, rng)
                epoch, was_whole = epoch + 1, whole
            batch = queue.pop()
            if step >= self.start and of_step % self.processes == self.rank:
                changed = (min(1.0, step / args.ramp) if args.ramp else 1.0) * args.augment
                rng = np.random.default_rng(args.seed * 1_000_003 + number)
                longest = [max(window, row.seconds) for row in batch]  # what is longer has several windows anyway
                clips = [
                    read_clip(row, changed, args.silence, rng, most) for row, most in zip(batch, longest, strict=True)
                ]
                yield self.family.collate(clips, self.changes(whole, bool(rng.random() < changed)), rng)


def unchanged(rows: list[Row], family: Family, whole: bool, size: int = 8) -> Iterator[tuple[list[Row], Batch]]:
    """Some rows, `size` at a time, as they are: what a loss is measured on."""
    rng = np.random.default_rng(0)
    changes = Changes(whole=whole, after=AFTER)
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        yield part, family.collate([read_clip(row, 0.0, 0.0, rng) for row in part], changes, rng)
