"""Error rates of a model on manifests of recordings.

    python training/evaluate.py MODEL MANIFEST [MANIFEST ...] [--language auto] [--timestamps] [--beams 5]

`manifest.py` says what manifests are. An error is a word (Chinese: a character) that was put in, left out or replaced;
the rate is errors over words said.

For models with language tokens and time tokens: `--language auto` lets the model judge the language, and shows what it
took for what; `--timestamps` compares the borders of its segments with the `phrases` of the manifest.
"""

import argparse
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from manifest import Row, TrainingError, read_manifests, samples

from glmasr import errors
from glmasr.pipeline import Options, Recognizer, Transcript, load

WORD = re.compile(r"[\u3007\u3400-\u9fff]|[^\W_\u3007\u3400-\u9fff]+")


def words(text: str) -> list[str]:
    """Words of a text; each Chinese character is one. Letters and digits count, case and punctuation don't."""
    return WORD.findall(text.lower())


def edits(found: list, said: list) -> int:
    """Fewest insertions, deletions and replacements that make `found` of `said` (Levenshtein)."""
    row = list(range(len(said) + 1))
    for i, word in enumerate(found, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(said, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


@dataclass
class Score:
    """What was found on some recordings."""

    wrong: int = 0
    words: int = 0
    detected: Counter = field(
        default_factory=Counter
    )  # (language said, language detected) -> recordings of two words and more
    borders: list[float] = field(default_factory=list)  # seconds between the borders of segments and of phrases
    cut_alike: list[bool] = field(default_factory=list)  # whether there are as many segments as phrases

    @property
    def rate(self) -> float:
        return self.wrong / max(1, self.words)

    def add(self, row: Row, transcript: Transcript) -> int:
        """Counts a recording in; returns its errors."""
        said = words(row.text)
        errors = edits(words(transcript.text), said)
        self.wrong, self.words = self.wrong + errors, self.words + len(said)
        if len(said) >= 2 and row.language:
            self.detected[row.language, transcript.language] += 1
        if row.phrases:
            self.cut_alike.append(len(row.phrases) == len(transcript.segments))
            if self.cut_alike[-1]:
                for phrase, segment in zip(row.phrases, transcript.segments, strict=True):
                    self.borders += [abs(segment.start - phrase.start), abs(segment.end - phrase.end)]
        return errors


PLAIN = Options(beams=1, temperatures=(0.0,), guards=False)


def recognized(
    recognizer: Recognizer,
    rows: list[Row],
    options: Options = PLAIN,
    language: str = "auto",
    batch: int = 16,
    progress: bool = False,
) -> list[Transcript]:
    """Of each row, in their order. `language`: "auto", "given" (as the manifest says), or one for all."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].seconds)
    found: list[Transcript | None] = [None] * len(rows)
    for start in tqdm(range(0, len(rows), batch), disable=not progress, leave=False):
        part = order[start : start + batch]
        languages = [(rows[i].language or "auto") if language == "given" else language for i in part]
        for i, transcript in zip(
            part,
            recognizer.recognize([torch.from_numpy(samples(rows[i])) for i in part], languages, options),
            strict=True,
        ):
            found[i] = transcript
    return found


def evaluate(
    recognizer: Recognizer,
    rows: list[Row],
    options: Options = PLAIN,
    *,
    language: str = "auto",
    show=None,
    progress: bool = True,
) -> Score:
    """Scores the recordings of a manifest. `show(row, text)` is called for each recording with an error."""
    score = Score()
    for row, transcript in zip(rows, recognized(recognizer, rows, options, language, progress=progress), strict=True):
        if score.add(row, transcript) and show:
            show(row, transcript.text)
    return score


def print_languages(detected: Counter) -> None:
    """A table: said in the rows, detected in the columns."""
    said, names = sorted({pair[0] for pair in detected}), sorted({name for pair in detected for name in pair})
    print(
        f"\n| said \\ detected | {' | '.join(name or 'none' for name in names)} | right |\n|{'---|' * (len(names) + 2)}"
    )
    for language in said:
        counts = [detected[language, name] for name in names]
        print(
            f"| {language} | {' | '.join(map(str, counts))} | {100 * detected[language, language] / sum(counts):.1f} % |"
        )
    print(
        f"\nright: {100 * sum(detected[name, name] for name in said) / sum(detected.values()):.2f} % of {sum(detected.values())}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a model directory, demo or demo-article")
    parser.add_argument("manifests", nargs="+", metavar="MANIFEST")
    parser.add_argument("--beams", type=int, default=1, help="width of the search (default 1, greedy)")
    parser.add_argument(
        "--language",
        default="given",
        choices=["given", "auto", "zh", "yue", "en"],
        help="the language that the model gets: what the manifest says (default; for models without language tokens it is auto), or this",
    )
    parser.add_argument("--timestamps", action="store_true", help="with times, and how near they are to the manifest's")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--pad-to",
        default="window",
        choices=["window", "speech"],
        help="what of a window is encoded (default: all of it)",
    )
    parser.add_argument(
        "--errors", action="store_true", help="print each recording that was not recognized without errors"
    )
    args = parser.parse_args()
    recognizer = load(args.model, dtype=args.dtype)
    language = args.language
    if language == "given" and not getattr(recognizer.config, "languages", None):
        language = "auto"
    options = Options(
        timestamps=args.timestamps, beams=args.beams, temperatures=(0.0,), guards=False, pad_to=args.pad_to
    )
    total = Score()

    def show(row, text):
        print(f"  {Path(row.audio).name} ({row.speaker}): said {row.text!r}, found {text!r}")

    times = " cut alike | borders: median | 95th percentile |" if args.timestamps else ""
    print(f"| manifest | recordings | errors |{times}\n|---|---|---|" + "---|" * times.count(" |"))
    for manifest in args.manifests:
        rows = read_manifests([manifest])
        score = evaluate(recognizer, rows, options, language=language, show=show if args.errors else None)
        line = f"| {Path(manifest).stem} | {len(rows)} | {100 * score.rate:.2f} % |"
        if args.timestamps and score.borders:
            middle, far = np.percentile(score.borders, (50, 95))
            line += f" {100 * np.mean(score.cut_alike):.0f} % | {middle:.2f} s | {far:.2f} s |"
        print(line, flush=True)
        total.detected.update(score.detected)
    if language == "auto" and total.detected and getattr(recognizer.config, "languages", None):
        print_languages(total.detected)


if __name__ == "__main__":
    try:
        main()
    except (errors.GlmAsrError, TrainingError) as error:
        sys.exit(f"error: {error}")
