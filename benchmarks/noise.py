"""What a model writes where there is no speech, with and without voice activity detection, and what is flagged that is
right.

    python benchmarks/noise.py MODEL tests/speech/manifest.tsv [--stretches 200] [--clips N] [--vad auto] [--peer 20]
    [--dtype int8]

Stretches without speech are made: silence, noise, hum, street, music, keyboard; 5 to 90 s, at five levels; every other
one around a recording of the manifest (tab-separated: path, language, text). A text counts as invented where no flag
marks it as doubtful: any text of a stretch alone; around speech a segment outside of it, or more than two words
more than the recording has alone. Of recordings alone, whose language the model is given, the text counts as right with
at most a fifth of words wrong; flagged wrongly are those that are right and have a flag or a warning. A second table
has how many recordings in English and Mandarin the model knows as such. --peer: openai-whisper, same weights and beams,
on so many of the stretches alone; CPU time of both.
"""

import argparse
import csv
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "training")]

RATE = 16_000
LEVELS = (-70, -60, -50, -40, -30)  # dB of full scale, root of the mean square
EXTRA_WORDS, WRONG = 2, 0.2
NEAR = 0.5  # seconds around speech in which a segment may begin and end


# ---- sounds without speech: (samples, generator) -> (S,), of any level ---------------------------------------------------


def colored(count: int, rng: np.random.Generator, slope: float) -> np.ndarray:
    """Noise whose power falls with that power of the frequency: 0 white, 1 pink, 2 brown; above 20 Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    return np.fft.irfft(spectrum / np.maximum(np.arange(len(spectrum)), 20 * count / RATE) ** (slope / 2), count)


def unit(samples: np.ndarray) -> np.ndarray:
    return samples / max(np.sqrt(np.square(samples).mean()), 1e-9)


def hum(count: int, rng: np.random.Generator) -> np.ndarray:
    at, mains = np.arange(count) / RATE, rng.choice([50, 60])
    tones = sum(
        height * np.sin(2 * np.pi * mains * number * at + rng.uniform(0, 6))
        for number, height in ((1, 1), (2, 0.5), (3, 0.4), (5, 0.2), (7, 0.1))
    )
    return unit(tones) + 0.02 * rng.standard_normal(count)


def street(count: int, rng: np.random.Generator) -> np.ndarray:
    """Rumble that swells, and cars that pass: hiss, and engines whose pitch falls."""
    at = np.arange(count) / RATE
    samples, hiss = (
        0.5 * unit(colored(count, rng, 2)) * (1 + 0.5 * np.sin(0.6 * at + rng.uniform(0, 6))),
        unit(colored(count, rng, 1)),
    )
    for passing in np.arange(rng.uniform(0, 4), count / RATE, rng.uniform(4, 9)):
        near = np.exp(-(((at - passing) / 1.2) ** 2))
        samples += near * (2 * hiss + 0.4 * np.sin(2 * np.pi * np.cumsum(90 - 25 * np.tanh(at - passing)) / RATE))
    return samples


def note(pitch: int, seconds: float, struck: bool) -> np.ndarray:
    at = np.arange(round(seconds * RATE)) / RATE
    shape = (
        np.minimum(1, at / 0.005) * np.exp(-3 * at / seconds)
        if struck
        else np.minimum(1, at / 0.05) * np.minimum(1, (seconds - at) / 0.1)
    )
    return shape * sum(
        np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * number * at) / number for number in range(1, 7)
    )


def music(count: int, rng: np.random.Generator) -> np.ndarray:
    """Chords, a melody and drums."""
    samples, beat, root, struck = (
        np.zeros(count + 8 * RATE),
        rng.uniform(0.35, 0.7),
        rng.integers(40, 52),
        rng.random(2) < 0.5,
    )

    def add(place: float, sound: np.ndarray) -> None:
        samples[round(place * RATE) : round(place * RATE) + len(sound)] += sound

    for bar, place in enumerate(np.arange(0, count / RATE, 4 * beat)):
        chord = root + (0, 5, 7, 0, 9, 5, 7, 0)[bar % 8]
        for step in (0, 4, 7):
            add(place, 0.3 * note(chord + step, 4 * beat, struck[0]))
        for number in range(4):
            if rng.random() < 0.85:
                add(place + number * beat, 0.5 * note(root + 24 + rng.choice([0, 2, 4, 5, 7, 9, 11]), beat, struck[1]))
            add(
                place + number * beat,
                0.3 * rng.standard_normal(2000) * np.exp(-np.arange(2000) / (300 if number % 2 else 80)),
            )
    return samples[:count]


def keyboard(count: int, rng: np.random.Generator) -> np.ndarray:
    samples = 0.003 * rng.standard_normal(count)
    for place in rng.integers(0, count - 800, round(6 * count / RATE)):
        samples[place : place + 400] += (
            rng.uniform(0.3, 1) * rng.standard_normal(400) * np.exp(-np.arange(400) / rng.uniform(20, 80))
        )
    return samples


SOUNDS: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "silence": lambda count, rng: np.zeros(count),
    "white noise": lambda count, rng: colored(count, rng, 0),
    "pink noise": lambda count, rng: colored(count, rng, 1),
    "brown noise": lambda count, rng: colored(count, rng, 2),
    "hum": hum,
    "street": street,
    "music": music,
    "keyboard": keyboard,
}


def sound(name: str, seconds: float, level: float, seed: int = 0) -> np.ndarray:
    """Float32 samples (S,) at 16 kHz, their mean square at `level` dB of full scale."""
    rng = np.random.default_rng([seed, *name.encode()])
    return (unit(SOUNDS[name](round(seconds * RATE), rng)) * 10 ** (level / 20)).clip(-1, 1).astype(np.float32)


@dataclass(frozen=True)
class Stretch:
    """A recording: `samples` (S,), with the recording `clip` of a manifest from `begin` to `end` seconds, or None."""

    name: str
    samples: np.ndarray
    clip: dict | None
    begin: float
    end: float


def stretches(count: int, clips: list[dict]) -> Iterator[Stretch]:
    """Every other one around speech, which is at least 20 dB louder than what is around it."""
    names = list(SOUNDS)
    for number in range(count):
        rng, name, clip = (
            np.random.default_rng([number]),
            names[number // 2 % len(names)],
            clips[number % len(clips)] if number % 2 else None,
        )
        level, seconds = LEVELS[number // 2 // len(names) % len(LEVELS)], rng.uniform(5, 90)
        if clip is None:
            yield Stretch(name, sound(name, seconds, level, number), None, 0.0, 0.0)
            continue
        speech = clip["samples"] / max(np.abs(clip["samples"]).max(), 1e-9) * 0.5
        begin = rng.uniform(0.2, 0.8) * seconds
        samples = sound(name, seconds + len(speech) / RATE, min(level, -40), number)
        first = round(begin * RATE)
        samples[first : first + len(speech)] += speech
        yield Stretch(name, samples, clip, begin, begin + len(speech) / RATE)


def read_manifest(path: Path) -> list[dict]:
    from glmasr import audio

    with open(path, encoding="utf-8") as file:
        return [
            row | {"samples": audio.load(path.parent / row["path"]).numpy()}
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]


# ---- what is written there -----------------------------------------------------------------------------------------------------


def invented(stretch: Stretch, transcript, alone: int) -> bool:
    """`alone`: how many words its recording has by itself."""
    from evaluate import words

    plain = [segment for segment in transcript.segments if segment.text and not segment.flags]
    if stretch.clip is None:
        return bool(plain)
    outside = any(segment.end < stretch.begin - NEAR or segment.start > stretch.end + NEAR for segment in plain)
    return outside or len(words(" ".join(segment.text for segment in plain))) > alone + EXTRA_WORDS


def openai(model):
    """The same weights in openai-whisper."""
    from real import openai_checkpoint
    from whisper.model import ModelDimensions, Whisper

    checkpoint = openai_checkpoint(model)
    theirs = Whisper(ModelDimensions(**checkpoint["dims"]))
    theirs.load_state_dict(checkpoint["model_state_dict"])
    return theirs.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--stretches", type=int, default=200)
    parser.add_argument("--clips", type=int, help="of the manifest, evenly spread (default: all)")
    parser.add_argument("--beams", type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--languages",
        nargs="+",
        default=["en", "zh", "yue"],
        choices=["en", "zh", "yue"],
        help="of the manifest's recordings",
    )
    parser.add_argument("--vad", nargs="+", default=["auto", "off"], choices=["auto", "off"])
    parser.add_argument("--peer", type=int, default=0, metavar="N")
    args = parser.parse_args()

    import torch
    from evaluate import edits, words

    import glmasr
    from glmasr.pipeline import Options
    from glmasr.transcription.chinese_script import converter

    simplified = converter("simplified")
    recognizer = glmasr.load(args.model, device="cpu", dtype=args.dtype)
    languages = getattr(recognizer.config, "languages", {"zh": 0, "yue": 0, "en": 0})
    known = {"en": "en" if languages else "auto"} | {
        name: name if name in languages else "zh" for name in ("zh", "yue") if languages
    }
    clips = [
        clip
        for clip in read_manifest(args.manifest)
        if clip["language"] in known and clip["language"] in args.languages
    ]
    if args.clips:
        clips = [clips[len(clips) * number // args.clips] for number in range(args.clips)]

    def recognize(samples, language: str, vad: str, languages: tuple[str, ...] = ()):
        began = time.process_time()
        options = Options(vad=vad, beams=args.beams, languages=languages)
        transcript = glmasr.pipeline.Transcript.of(
            list(recognizer.stream(samples, language, options, sample_rate=RATE))
        )
        return transcript, time.process_time() - began

    print(
        "| voice activity detection | stretches | text without a flag | of them around speech | CPU seconds of an hour alone | recordings | right | "
        "flagged though right |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for vad in args.vad:
        alone, right, wrongly = {}, 0, []
        for clip in clips:
            transcript, _ = recognize(clip["samples"], known[clip["language"]], vad)
            said, found = words(simplified(clip["text"])), words(simplified(transcript.text))
            alone[clip["path"]] = len(found)
            if edits(found, said) <= WRONG * len(said):
                right += 1
                wrongly += [clip["path"]] * bool(
                    transcript.warnings or any(segment.flags for segment in transcript.segments)
                )
        texts, spent, seconds = [], 0.0, 0.0
        for stretch in stretches(args.stretches, clips):
            clip = stretch.clip
            transcript, took = recognize(stretch.samples, known[clip["language"]] if clip else "auto", vad)
            if invented(stretch, transcript, alone[clip["path"]] if clip else 0):
                texts.append((stretch.name, stretch.clip is not None, transcript.text))
            if stretch.clip is None:
                spent, seconds = spent + took, seconds + len(stretch.samples) / RATE
        print(
            f"| {vad} | {args.stretches} | {len(texts)} ({100 * len(texts) / args.stretches:.1f} %) | {sum(around for _, around, _ in texts)} | "
            f"{3600 * spent / seconds:.0f} | {len(clips)} | {right} | {len(wrongly)} ({100 * len(wrongly) / max(right, 1):.1f} %) |",
            flush=True,
        )
        for (name, around), times in Counter((name, around) for name, around, _ in texts).items():
            print(f"    {name}{' around speech' if around else ''}: {times}", file=sys.stderr)
        for name, around, text in texts:
            print(f"    {name}{' around speech' if around else ''}: {text[:100]!r}", file=sys.stderr)
        for path in wrongly:
            print(f"    flagged: {path}", file=sys.stderr)
    sure = [clip for clip in clips if clip["language"] in ("en", "zh")]
    if languages and "en" in languages:
        among = ("zh", "yue", "en")
        print(f"\n| recordings in English and Mandarin | known as such | among {', '.join(among)} |\n|---|---|---|")
        found = {}
        for some in ((), among):
            wrong = [
                (clip["path"], transcript.language)
                for clip in sure
                if (transcript := recognize(clip["samples"], "auto", args.vad[0], some)[0]).language != clip["language"]
            ]
            found[some] = f"{len(sure) - len(wrong)} ({100 - 100 * len(wrong) / len(sure):.1f} %)"
            print(f"    {'among ' if some else ''}{', '.join(some)} wrong: {wrong}", file=sys.stderr)
        print(f"| {len(sure)} | {found[()]} | {found[among]} |", flush=True)
    if args.peer:
        alone = [stretch for stretch in stretches(args.stretches, clips) if stretch.clip is None]
        alone = [alone[len(alone) * number // args.peer] for number in range(args.peer)]
        seconds, peer, spent = sum(len(stretch.samples) for stretch in alone) / RATE, openai(recognizer.model), {}
        for vad in args.vad:
            spent[f"glmasr, `--vad {vad}`"] = sum(recognize(stretch.samples, "auto", vad)[1] for stretch in alone)
        began = time.process_time()
        with torch.inference_mode():
            for stretch in alone:
                peer.transcribe(stretch.samples, beam_size=args.beams or 5, best_of=5, fp16=False)
        spent["openai-whisper"] = time.process_time() - began
        print(f"\n| CPU seconds of an hour without speech, {len(alone)} stretches | |\n|---|---|")
        for name, took in spent.items():
            print(f"| {name} | {3600 * took / seconds:.0f} |")


if __name__ == "__main__":
    main()
