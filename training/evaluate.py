"""Error rates of a model on manifests of recordings.

    python training/evaluate.py MODEL MANIFEST [MANIFEST ...]

A manifest has a JSON object a line: {"audio": path, beside the manifest, "text": what is said, ...}. An error is a word
(Chinese: a character) that was put in, left out or replaced; the rate is errors over words said.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from glmasr import audio, decode, errors, weights                                             # noqa: E402
from glmasr.pipeline import TOKENS_A_SECOND, TOKENS_AT_LEAST, Recogniser              # noqa: E402
from glmasr.tokenizer import Tokenizer                                                # noqa: E402


class TrainingError(Exception):
    """Data or options that can't be used; the message is for the user."""


def read_manifest(path) -> list[dict]:
    """The lines of a manifest, each with `audio` made a full path and with `seconds`. Raises TrainingError."""
    path, rows = Path(path), []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: not readable as a manifest ({error})") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
                row["audio"], row["text"] = str(path.parent / row["audio"]), row["text"].strip()
                row["seconds"] = row.get("seconds") or len(audio.load(row["audio"])) / audio.SAMPLE_RATE
            except (ValueError, TypeError, KeyError, AttributeError):
                raise TrainingError(f'{path}, line {number}: expected {{"audio": "a path beside it", "text": "..."}}, '
                                    f"found {line:.80}") from None
            rows.append(row)
    if not rows:
        raise TrainingError(f"{path}: no recordings in it")
    return rows


def words(text: str) -> list[str]:
    """Words of a text; each Chinese character is one. Letters and digits count, case and punctuation don't."""
    return re.findall(r"[\u3007\u3400-\u9fff]|[^\W_\u3007\u3400-\u9fff]+", text.lower())


def edits(found: list, said: list) -> int:
    """Fewest insertions, deletions and replacements that make `found` of `said` (Levenshtein)."""
    row = list(range(len(said) + 1))
    for i, word in enumerate(found, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(said, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


@torch.inference_mode()
def recognise(model, tokenizer, recordings: list[torch.Tensor], *, beams: int = 1) -> list[str]:
    """The texts of some recordings (S,), as one batch."""
    recogniser, config = Recogniser(model, tokenizer), model.config
    max_new = TOKENS_AT_LEAST + round(TOKENS_A_SECOND * max(map(len, recordings)) / audio.SAMPLE_RATE)      # as the pipeline
    heard = [recogniser.hear(samples) for samples in recordings]
    prompts = [model.prompt(tokenizer, len(rows)) for rows in heard]
    if beams == 1:
        found = decode.greedy(model, heard, prompts, stop=config.stop, max_new=max_new)
    else:
        found = decode.beam(model, heard, prompts, stop=config.stop, max_new=max_new, width=beams)
        found = [hypotheses[0] for hypotheses in found]
    return [tokenizer.decode(best.ids).strip() for best in found]


def evaluate(model, tokenizer, rows: list[dict], *, beams: int = 1, batch: int = 16, show=None, progress: bool = True) -> float:
    """Error rate over the recordings of a manifest. `show(row, text)` is called for each one with an error."""
    wrong = total = 0
    rows = sorted(rows, key=lambda row: row.get("seconds", 0))
    for start in tqdm(range(0, len(rows), batch), disable=not progress, leave=False):
        part = rows[start:start + batch]
        texts = recognise(model, tokenizer, [audio.load(row["audio"]) for row in part], beams=beams)
        for row, text in zip(part, texts):
            errors = edits(words(text), words(row["text"]))
            wrong, total = wrong + errors, total + len(words(row["text"]))
            if errors and show:
                show(row, text)
    return wrong / max(1, total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a model directory, or demo")
    parser.add_argument("manifests", nargs="+", metavar="MANIFEST")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--errors", action="store_true", help="print each recording that was not recognised without errors")
    args = parser.parse_args()
    directory = weights.find(args.model)
    model = weights.load(directory, dtype=args.dtype)
    tokenizer = Tokenizer.read(directory / "tokenizer.json")

    def show(row, text):
        print(f"  {Path(row['audio']).name} ({row.get('speaker', '')}): said {row['text']!r}, found {text!r}")

    print("| manifest | recordings | errors |\n|---|---|---|")
    for path in args.manifests:
        rows = read_manifest(path)
        rate = evaluate(model, tokenizer, rows, beams=args.beams, show=show if args.errors else None)
        print(f"| {Path(path).stem} | {len(rows)} | {100 * rate:.2f} % |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (errors.GlmAsrError, TrainingError) as error:
        sys.exit(f"error: {error}")
