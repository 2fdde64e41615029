"""How good a model is: its loss on some rows, and its errors on the recordings that it is judged by. Before the first
step both say whether texts and recordings belong together at all."""

import random
from dataclasses import dataclass

import torch
from batches import Family, unchanged
from evaluate import edits, recognized, words
from families import IGNORE
from manifest import Row
from parallel import Processes

from glmasr.pipeline import Options, Recognizer

IMPOSSIBLE = 0.85  # word errors of a model with weights that something is wrong with
MIXED = 0.5  # share of the recordings whose text fits another line better, from which on the lines are mixed up
CERTAIN = 4  # such recordings at least


@dataclass(frozen=True)
class Score:
    """What was found: the loss a token of clips that are trained on, and of those that the model is judged by; errors in
    so many words of the latter."""

    train: float = float("nan")
    loss: float = float("nan")
    errors: int = 0
    words: int = 0

    @classmethod
    def of(cls, text: str) -> "Score":
        """From what `text` gave."""
        train, loss, errors, words = text.split()
        return cls(float(train), float(loss), int(errors), int(words))

    @property
    def text(self) -> str:
        """All of it, for `of`."""
        return f"{self.train!r} {self.loss!r} {self.errors} {self.words}"

    @property
    def rate(self) -> float:
        """Errors a word."""
        return self.errors / max(1, self.words)

    def better(self, other: "Score", unchanged: "Score") -> bool:
        """A lower loss, but not with more errors than the unchanged model made. Of a few hundred words the errors themselves
        rise and fall by chance: by them a state was kept from the middle of a run, though the later ones were better on other
        recordings. No text can be more wrong than none: then the loss alone counts, and where none was decoded."""
        ours, theirs = (min(score.rate, 1.0) if score.words else 1.0 for score in (self, unchanged))
        return ours <= theirs and self.loss < other.loss

    def __str__(self) -> str:
        judged = [] if self.loss != self.loss else [f"eval loss {self.loss:.3f}"]
        judged += [f"word errors {100 * self.rate:.2f} %"] * bool(self.words)
        return ", ".join([f"train loss {self.train:.3f}", *judged])


def sample(rows: list[Row], count: int) -> list[Row]:
    """The same `count` rows each time, from all over."""
    return rows if len(rows) <= count else random.Random(0).sample(rows, count)


@torch.inference_mode()
def losses(family: Family, rows: list[Row], whole: bool) -> list[tuple[float, float]]:
    """For each row the loss of its answer and the tokens that it is of. To be called within autocast."""
    found, device = [], family.model.device
    for _, batch in unchanged(rows, family, whole):
        batch = batch.to(device)
        hidden, _ = family.forward(batch)
        for states, targets in zip(hidden, batch.targets, strict=True):
            learned = targets != IGNORE
            loss, weight = family.loss(family.model.decoder.head(states[learned]).float(), targets[learned])
            found.append((loss.item(), weight.item()))
    return found


def loss(family: Family, rows: list[Row], whole: bool, processes: Processes) -> tuple[float, list[tuple[float, Row]]]:
    """The mean loss a token, and this process's rows with theirs, the worst first."""
    mine = [row for row in rows[processes.rank :: processes.count] if row.seconds <= family.longest]
    found = losses(family, mine, whole)
    total, tokens = processes.summed((sum(x for x, _ in found), sum(n for _, n in found)))
    each = [(x / max(1.0, n), row) for (x, n), row in zip(found, mine, strict=True)]
    return total / max(1.0, tokens), sorted(each, key=lambda pair: -pair[0])


def texts(recognizer: Recognizer, rows: list[Row], options: Options) -> list[str]:
    """What the model makes of some recordings."""
    language = "given" if getattr(recognizer.config, "languages", None) else "auto"
    return [transcript.text for transcript in recognized(recognizer, rows, options, language)]


def errors(rows: list[Row], found: list[str], processes: Processes) -> tuple[int, int]:
    """(errors, words) of all processes."""
    wrong = sum(edits(words(text), words(row.text)) for row, text in zip(rows, found, strict=True))
    both = processes.summed((wrong, sum(len(words(row.text)) for row in rows)))
    return int(both[0]), int(both[1])


def mixed_up(rows: list[Row], found: list[str]) -> list[tuple[Row, Row]]:
    """Rows whose recording fits the text of another row far better than its own, with that row: of each other row one,
    for a model may write the same whatever it hears."""
    pairs: dict[int, tuple[Row, Row]] = {}
    said = [words(row.text) for row in rows]
    for index, text in enumerate(found):
        heard = words(text)
        distance = [edits(heard, other) / max(1, len(other)) for other in said]
        nearest = min(range(len(rows)), key=lambda i: distance[i])
        if len(heard) > 1 and distance[nearest] < 0.5 < distance[index]:
            pairs.setdefault(nearest, (rows[index], rows[nearest]))
    return list(pairs.values())


def objection(rows: list[Row], found: list[str], score: Score) -> str:
    """Why the errors of a model that was trained can't be right; "" if they may be."""
    pairs = mixed_up(rows, found)
    examples = [(row, text) for row, text in zip(rows, found, strict=True) if row.text][:3]
    shown = "".join(
        f"\n  {row.where}: the text is {row.text[:60]!r}, found was {text[:60]!r}" for row, text in examples
    )
    if len(pairs) >= max(CERTAIN, MIXED * len(rows)):
        row, other = pairs[0]
        return (
            f"{len(pairs)} of {len(rows)} recordings fit the text of another line better: that of {row.where} fits "
            f"{other.where}. Texts and recordings seem to be mixed up, or shifted by a line{shown}"
        )
    if score.rate >= IMPOSSIBLE:
        return (
            f"the model makes {100 * score.rate:.0f} % errors before it is trained, which can't be right: do the texts "
            "belong to these recordings, is the language right, are offsets seconds, is it the right model? If it is "
            f"right, for the model doesn't know the language, --accept-errors trains it nevertheless{shown}"
        )
    return ""
