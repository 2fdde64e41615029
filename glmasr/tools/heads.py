"""Finds the heads of a decoder that follow the sound, for the times of words: `python -m glmasr.tools.heads`.

    python -m glmasr.tools.heads MODEL RECORDING... [--write]

No labels are needed. Each recording is recognized alone, then several are joined to a window, whose text is those of
its recordings: so it is known when the first word of each begins. Heads are added one by one, each time the one with
which first words come nearest to that, as long as that helps; then the lead is chosen by the same. Candidates are those
of whose attention the most lies in the recording that a token is of. Published Whispers say which heads to take; other
models are to be calibrated once, on a minute of speech or more.
"""

import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import audio as sound
from ..alignment.times import token_seconds
from ..alignment.words import Spelled, spell
from ..cli import Parser
from ..config import EncoderDecoderConfig
from ..errors import GlmAsrError, OptionError, printable
from ..pipeline import Recognizer, load
from ..transcription.chunking import Window
from ..transcription.families import Job, RecordingState
from ..transcription.search import search
from ..writers.output import write_whole

GAP = 0.05  # seconds between two recordings
AROUND = 0.1  # seconds around a recording that count as it
CANDIDATES, MOST = 32, 8  # heads
HELPS = 0.98  # the error with one more head, as a part of that without it
LEADS = [step / 50 for step in range(1, 13)]  # seconds: 0.02 to 0.24


@dataclass(frozen=True)
class Clip:
    """A recording: its samples (S,), without the silence around it, and the ids of its text, without times."""

    samples: Tensor
    language: str
    ids: list[int]


@dataclass(frozen=True)
class Join:
    """Clips in one window, read again: scores (N, T + 1, S) of all heads, and for each clip its first token, the one
    after its last, and the seconds at which it begins and ends."""

    scores: Tensor
    words: list[Spelled]
    clips: list[tuple[int, int, float, float]]


def recognized(recognizer: Recognizer, path: str) -> Clip | None:
    """None where nothing is recognized, or the recording doesn't fit a window."""
    window = Window(0, sound.load(path))
    begin, end = (round(second * sound.SAMPLE_RATE) for second in window.sound_span())
    window = Window(0, window.samples[begin:end])
    if len(window.samples) > recognizer.config.window:
        return None
    ids, language = _decoded(recognizer, window)
    return Clip(window.samples, language, ids) if ids else None


def _decoded(recognizer: Recognizer, window: Window) -> tuple[list[int], str]:
    family, options = recognizer.family, recognizer.check()
    job = Job(window, RecordingState.of("auto"))
    length = family.padded_length(window, options)
    encoded = family.encode([job], length, options, {job.recording: job.recording.language})
    limit = min(family.token_limit(len(encoded.prompts[0])), 200)
    rules = family.rules("auto", options)
    audio, prompts = encoded.rows([0])
    [answer] = search(recognizer.model, audio, prompts, family.config.stop, [limit], options, rules)
    return [number for piece in family.segments(window, answer.ids) for number in piece.ids], encoded.languages[0]


def joined(recognizer: Recognizer, clips: list[Clip]) -> Join:
    """Clips of one language, which fit a window together."""
    family, options = recognizer.family, recognizer.check()
    gap, noise = round(GAP * sound.SAMPLE_RATE), torch.Generator().manual_seed(0)
    pieces: list[Tensor] = []
    places: list[tuple[int, int, float, float]] = []
    ids: list[int] = []
    words: list[Spelled] = []
    for clip in clips:
        pieces.append(1e-3 * torch.randn(gap, generator=noise))
        begin = sum(map(len, pieces)) / sound.SAMPLE_RATE
        pieces.append(clip.samples / clip.samples.abs().max().clamp(min=1e-4) / 2)
        places.append((len(ids), len(ids) + len(clip.ids), begin, begin + len(clip.samples) / sound.SAMPLE_RATE))
        _, spelled = spell(clip.ids, recognizer.tokenizer.decoder())
        words += [Spelled(w.first, w.last, len(ids) + w.begins, len(ids) + w.ends) for w in spelled]
        ids += clip.ids
    window = Window(0, torch.cat(pieces))
    job = Job(window, RecordingState.of(clips[0].language or "auto"))
    length = family.padded_length(window, options)
    encoded = family.encode([job], length, options, {job.recording: job.recording.language})
    audio, [prompt] = encoded.rows([0])
    return Join(family.read_again(window, audio, prompt, ids, every_head=True).scores, words, places)


def joins(recognizer: Recognizer, clips: list[Clip]) -> list[Join]:
    """The clips of each language, in order, as many to a join as fit a window."""
    found, room = [], recognizer.config.window / sound.SAMPLE_RATE
    for _, alike in itertools.groupby(sorted(clips, key=lambda clip: clip.language), key=lambda clip: clip.language):
        some: list[Clip] = []
        seconds = 0.0
        for clip in alike:
            length = GAP + len(clip.samples) / sound.SAMPLE_RATE
            if some and seconds + length > room:
                if len(some) > 1:
                    found.append(joined(recognizer, some))
                some, seconds = [], 0.0
            some.append(clip)
            seconds += length
        if len(some) > 1:
            found.append(joined(recognizer, some))
    return found


def masses(join: Join, frame: float) -> Tensor:
    """(N,): how much of what each head looks at lies in the recording that a token is of, in the mean of tokens."""
    weights = join.scores.float().softmax(-1)
    middles = (torch.arange(weights.shape[-1], device=weights.device) + 0.5) * frame
    found = []
    for first, last, begin, end in join.clips:
        inside = (middles >= begin - AROUND) & (middles <= end + AROUND)
        found.append(weights[:, first:last, inside].sum(-1))
    return torch.cat(found, 1).mean(1)


def calibrate(recognizer: Recognizer, recordings: list[str]) -> tuple[list[tuple[int, int]], float, float]:
    """(layer, head) of the heads to take, the best first; their lead in seconds; and how far, in seconds, they are from
    where first words begin, in the mean. Raises AudioError, and OptionError where too little is recognized."""
    clips = [clip for path in recordings if (clip := recognized(recognizer, path))]
    found = joins(recognizer, clips)
    if not found:
        raise OptionError(
            f"of {len(recordings)} recordings {len(clips)} have a text and fit a window; expected at least two of one "
            "language that fit a window together"
        )
    frame = recognizer.family.samples_per_state / sound.SAMPLE_RATE
    mass = torch.stack([masses(join, frame) for join in found]).mean(0)
    left = mass.topk(min(CANDIDATES, len(mass))).indices.tolist()

    def away(heads: list[int], lead: float = EncoderDecoderConfig.alignment_lead) -> float:
        """Seconds, in the mean, between first words and where they begin."""
        late = []
        for join in found:
            seconds = token_seconds(join.words, join.scores[heads], frame, lead, [])
            late += [abs(seconds[first] - begin) for first, _, begin, _ in join.clips[1:]]
        return sum(late) / len(late)

    chosen: list[int] = []
    error = float("inf")
    while left and len(chosen) < MOST:
        best = min(left, key=lambda head: away([*chosen, head]))
        if (found_error := away([*chosen, best])) > HELPS * error:
            break
        chosen, error = [*chosen, best], found_error
        left.remove(best)
    lead = min(LEADS, key=lambda lead: away(chosen, lead))
    heads = recognizer.config.decoder.heads
    return [divmod(number, heads) for number in chosen], lead, away(chosen, lead)


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code."""
    parser = Parser(prog="python -m glmasr.tools.heads", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", metavar="NAME|DIR")
    parser.add_argument("recordings", nargs="+", metavar="RECORDING")
    write = "put them into the model's generation_config.json (DIR only)"
    parser.add_argument("--write", action="store_true", help=write)
    args = parser.parse_args(argv)
    try:
        path = Path(args.model) / "generation_config.json"
        if args.write and not Path(args.model).is_dir():
            raise OptionError(f"--write: {args.model!r} is no directory; expected that of a checkpoint")
        recognizer = load(args.model, device="cpu", dtype="float32", plain=True)
        heads, lead, error = calibrate(recognizer, args.recordings)
        found = {"alignment_heads": list(map(list, heads)), "alignment_lead": lead}
        print(json.dumps(found))
        print(f"first words begin {1000 * error:.0f} ms from where they do, in the mean", file=sys.stderr)
        if args.write:
            known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            write_whole(path, json.dumps(known | found, indent=2) + "\n")
    except (GlmAsrError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
