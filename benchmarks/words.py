"""How exact are the times of words? Starts and ends against borders that are known.

    pip install -c constraints.txt '.[bench]'
    python benchmarks/words.py MANIFEST --model DIR [--labels DIR] [--peers] [--kinds utterance join60 join300 ...]

utterance   a recording alone; known are the start of its first word and the end of its last
join60      recordings of one language, joined to a minute with pauses of 0.6 to 1.5 s; known as above, of each of them
join300     the same, joined to five minutes
noisy60     join60 with pink noise 10 dB below the speech
synth60     sentences of the manifest, spoken by espeak-ng, which tells when each word begins; where it is installed
digits      recordings of single words, which have `digit` in a column `kind` of the table, joined to a minute with pauses of
            0.15 to 0.5 s: what the demos know (--model demo --kinds digits --beams 1)
labels      TextGrids that were labelled by hand, each beside a recording of its name, in the directory of --labels

MANIFEST is a table as in tests/speech: path, language, text, separated by tabs. Where a recording's speech begins and
ends is measured on its loudness, before it is joined with others. It counts only where the loudness tells: where a breath,
a click or a fading sound makes a threshold 10 dB higher say something else, nothing is known. A border counts if its
word was recognized. For comparison: openai-whisper and faster-whisper with the same weights and beams (--peers), and the words of our segments
spread evenly over their letters.

Prints a table in Markdown.
"""

import argparse
import csv
import ctypes
import datetime
import difflib
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

RATE = 16_000
PAUSES = (0.6, 1.5)  # seconds between the recordings of a join
DIGIT_PAUSES = (0.05, 0.4)  # the same between single words; the margins come on top
CERTAIN = 0.1  # seconds by which the thresholds may differ about where speech begins or ends
MARGIN = 0.05  # seconds around a recording's speech that are joined with it
ROOM = 10 ** (-60 / 20)  # level of the noise in the pauses: rooms are never silent
KINDS = ("utterance", "join60", "join300", "noisy60", "synth60", "digits", "labels")

PEERS = ("openai-whisper", "faster-whisper")

Timed = tuple[str, float, float]  # a word, from when to when


@dataclass
class Sound:
    """Samples, the words that are said in them, as they are compared, and of some when they begin and end."""

    kind: str
    language: str
    samples: np.ndarray
    words: list[str]
    begins: dict[int, float]
    ends: dict[int, float]
    text: str = ""


# ---- what is compared ------------------------------------------------------------------------------------------------


def units(text: str, language: str) -> list[str]:
    """The words of a text without signs; of Chinese the characters, simplified."""
    if language != "en":
        text = simplified(text)
        return re.findall(r"[\u3400-\u9fff]|[a-z0-9]+", text.lower())
    return [word for each in text.lower().split() if (word := re.sub(r"[^\w]", "", each))]


def simplified(text: str) -> str:
    from opencc import OpenCC

    return _CONVERTERS.setdefault("t2s", OpenCC("t2s")).convert(text)


_CONVERTERS: dict = {}


def split(words: list[Timed], language: str) -> list[Timed]:
    """Words of a recognizer as they are compared; one of several characters is cut evenly."""
    found = []
    for text, start, end in words:
        parts = units(text, language)
        for number, part in enumerate(parts):
            step = (end - start) / len(parts)
            found.append((part, start + step * number, start + step * (number + 1)))
    return found


# ---- sounds whose borders are known ----------------------------------------------------------------------------------


def speech_span(samples: np.ndarray, below: float = 35.0) -> tuple[int, int]:
    """The samples between which there is speech: so many dB below the loudest 10 ms, and 8 dB above the quietest."""
    levels = np.array([np.square(samples[at : at + 160]).mean() for at in range(0, len(samples) - 160, 80)])
    decibels = 10 * np.log10(levels + 1e-12)
    loud = np.flatnonzero(decibels > max(decibels.max() - below, np.percentile(decibels, 5) + 8))
    return int(loud[0]) * 80, int(loud[-1]) * 80 + 160


def certain(samples: np.ndarray) -> tuple[bool, bool]:
    """Whether it is certain where the speech of a recording begins, and where it ends."""
    soft, loud = speech_span(samples), speech_span(samples, 25.0)
    return loud[0] - soft[0] <= CERTAIN * RATE, soft[1] - loud[1] <= CERTAIN * RATE


def read(manifest: Path, languages: list[str], most: int | None, kind: str = "sentence") -> list[dict]:
    with open(manifest, encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    rows = [row for row in rows if row["language"] in languages and row.get("kind", "sentence") == kind]
    random.Random(1).shuffle(rows)
    return rows[:most]


def faded(samples: np.ndarray) -> tuple[np.ndarray, int, int]:
    """A recording from just before its speech to just after, and where that is in it."""
    samples = samples / max(1e-4, float(np.abs(samples).max())) * 0.5
    first, last = speech_span(samples)
    start, stop = max(0, first - round(MARGIN * RATE)), min(len(samples), last + round(MARGIN * RATE))
    cut = samples[start:stop].copy()
    ramp = np.linspace(0, 1, min(320, len(cut) // 2), dtype=np.float32)
    cut[: len(ramp)] *= ramp
    cut[len(cut) - len(ramp) :] *= ramp[::-1]
    return cut, first - start, last - start


def joined(
    rows: list[dict], folder: Path, kind: str, seconds: float, pauses: tuple[float, float] = PAUSES
) -> list[Sound]:
    """Recordings of one language, joined to this length and more; 0: each alone."""
    from glmasr import audio

    draw, noise, found = random.Random(2), np.random.default_rng(2), []
    pieces: list[np.ndarray] = []
    sound = Sound(kind, rows[0]["language"], np.zeros(0), [], {}, {})
    place = 0

    def pause() -> None:
        nonlocal place
        length = round(draw.uniform(*pauses) * RATE)
        pieces.append(noise.normal(0, ROOM, length).astype(np.float32))
        place += length

    for row in rows:
        recording = np.asarray(audio.load(folder / row["path"]))
        begins, ends = certain(recording)
        samples, first, last = faded(recording)
        pause()
        if begins:
            sound.begins[len(sound.words)] = (place + first) / RATE
        sound.words += units(row["text"], row["language"])
        sound.text += f"{row['text']} "
        if ends:
            sound.ends[len(sound.words) - 1] = (place + last) / RATE
        pieces.append(samples)
        place += len(samples)
        if place > seconds * RATE or row is rows[-1]:
            pause()
            sound.samples = np.concatenate(pieces)
            found.append(sound)
            pieces, place, sound = [], 0, Sound(kind, row["language"], np.zeros(0), [], {}, {})
    return found


def noisy(sound: Sound) -> Sound:
    """With pink noise, 10 dB below the speech."""
    spectrum = np.fft.rfft(np.random.default_rng(3).standard_normal(len(sound.samples)))
    shaped = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 20)), len(sound.samples))
    loud = np.abs(sound.samples) > 0.01
    level = np.sqrt(np.square(sound.samples[loud]).mean()) * 10 ** (-10 / 20)
    samples = sound.samples + shaped / np.sqrt(np.square(shaped).mean()) * level
    return Sound("noisy60", sound.language, samples.astype(np.float32), sound.words, sound.begins, sound.ends)


def labelled(folder: Path) -> list[Sound]:
    """TextGrids, long or short, with a tier named `word`, beside recordings."""
    from glmasr import audio

    found = []
    for path in sorted(folder.rglob("*.TextGrid")):
        recordings = [p for p in folder.parent.rglob("*") if p.stem == path.stem.split("__")[-1].removesuffix("_words")]
        recordings = [p for p in recordings if p.suffix in (".wav", ".flac", ".mp3")]
        if not recordings:
            continue
        sound = Sound("labels", "en", np.asarray(audio.load(recordings[0])), [], {}, {})
        for start, end, text in intervals(path.read_text(encoding="utf-8")):
            for word in units(text, "en"):
                sound.begins[len(sound.words)], sound.ends[len(sound.words)] = start, end
                sound.words.append(word)
        found.append(sound)
    return found


def intervals(grid: str) -> list[Timed]:
    """(start, end, text) of the tier `word` of a TextGrid."""
    values = re.findall(r'"(?:[^"]|"")*"|(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w\]])', grid)
    tier = next(place for place, value in enumerate(values) if value.lower() in ('"word"', '"words"'))
    found, place = [], tier + 4  # after its name: start, end, count
    for _ in range(int(values[tier + 3])):
        found.append((float(values[place]), float(values[place + 1]), values[place + 2].strip('"')))
        place += 3
    return found


def synthesized(rows: list[dict], seconds: float = 60) -> list[Sound]:
    """Sentences spoken by espeak-ng, with the start of each word, and the ends of last words."""
    from glmasr import audio

    try:
        speak = Espeak()
    except OSError:
        print("espeak-ng is not installed: no synth60", file=sys.stderr)
        return []
    draw, noise, found = random.Random(4), np.random.default_rng(4), []
    pieces: list[np.ndarray] = []
    sound, place = Sound("synth60", "en", np.zeros(0), [], {}, {}), 0
    for number, row in enumerate(rows):
        samples, words = speak(row["text"], ("en-us", "en-us+m3", "en-us+f3")[number % 3], draw.choice((140, 160, 180)))
        samples = np.asarray(audio.load(samples, sample_rate=speak.rate))
        first, last = speech_span(samples)
        quiet = round(draw.uniform(0.3, 1.2) * RATE)
        pieces += [noise.normal(0, ROOM, quiet).astype(np.float32), samples / np.abs(samples).max() * 0.5]
        place += quiet
        for index, (text, start) in enumerate(words):
            for word in units(text, "en")[:1]:
                sound.begins[len(sound.words)] = place / RATE + (start if index else first / RATE)
                sound.words.append(word)
        if certain(samples)[1]:
            sound.ends[len(sound.words) - 1] = (place + last) / RATE
        place += len(samples)
        if place > seconds * RATE or row is rows[-1]:
            sound.samples = np.concatenate([*pieces, noise.normal(0, ROOM, RATE // 2)]).astype(np.float32)
            found.append(sound)
            pieces, sound, place = [], Sound("synth60", "en", np.zeros(0), [], {}, {}), 0
    return found


class Espeak:
    """The library of espeak-ng. Raises OSError where it isn't installed."""

    class Event(ctypes.Structure):
        _fields_ = [
            ("type", ctypes.c_int),
            ("message", ctypes.c_uint),
            ("place", ctypes.c_int),
            ("length", ctypes.c_int),
            ("milliseconds", ctypes.c_int),
            ("sample", ctypes.c_int),
            ("user", ctypes.c_void_p),
            ("name", ctypes.c_char * 8),
        ]

    def __init__(self):
        self.library = ctypes.CDLL("libespeak-ng.so.1")
        self.rate = self.library.espeak_Initialize(1, 0, None, 0)  # 1: samples are given back, in blocks
        self.blocks, self.words = [], []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(self.Event))
        self.callback = kind(self.note)  # kept, or it is freed
        self.library.espeak_SetSynthCallback(self.callback)

    def note(self, samples, count, events) -> int:
        if count > 0:
            self.blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        number = 0
        while events[number].type:  # 0 ends the list
            if events[number].type == 1:  # a word
                self.words.append((events[number].place - 1, events[number].length, events[number].sample))
            number += 1
        return 0

    def __call__(self, text: str, voice: str, speed: int) -> tuple[np.ndarray, list[tuple[str, float]]]:
        self.blocks, self.words = [], []
        self.library.espeak_SetVoiceByName(voice.encode())
        self.library.espeak_SetParameter(1, speed, 0)
        data = text.encode()
        self.library.espeak_Synth(data, len(data) + 1, 0, 1, 0, 1, None, None)
        self.library.espeak_Synchronize()
        samples = np.concatenate(self.blocks).astype(np.float32) / 2**15
        words = [(text[place : place + length], sample / self.rate) for place, length, sample in self.words]
        return samples, [(word, start) for word, start in words if word.strip()]


# ---- those that recognize --------------------------------------------------------------------------------------------

Recognize = Callable[[np.ndarray, str], tuple[list[Timed], list[Timed]]]  # words; and words spread evenly, or []


def ours(args, timed: bool = True) -> Recognize:
    import torch

    import glmasr

    torch.set_num_threads(args.threads)
    recognizer = glmasr.load(args.model, device="cpu", dtype=args.dtype)

    def recognize(samples: np.ndarray, language: str) -> tuple[list[Timed], list[Timed]]:
        found = recognizer.transcribe(
            samples,
            language,
            sample_rate=RATE,
            beams=args.beams,
            timestamps=recognizer.timed(glmasr.Options()) or None,
            words=timed,
        )
        words = [(word.text, word.start, word.end) for segment in found.segments for word in segment.words]
        return words, [each for segment in found.segments for each in spread(segment, language)]

    return recognize


def spread(segment, language: str) -> list[Timed]:
    """Its words, each as long as its letters say."""
    letters = max(1, sum(len(word.text) for word in segment.words))
    found, place = [], segment.start
    for word in segment.words:
        end = place + (segment.end - segment.start) * len(word.text) / letters
        found.append((word.text, place, end))
        place = end
    return found


def openai_whisper(args, checkpoint: str) -> Recognize:
    import torch
    import whisper

    torch.set_num_threads(args.threads)
    model = whisper.load_model(checkpoint, device="cpu")
    model.set_alignment_heads(whisper._ALIGNMENT_HEADS[args.heads]) if args.heads else None

    def recognize(samples: np.ndarray, language: str) -> tuple[list[Timed], list[Timed]]:
        known = model.transcribe(
            samples, language=language, beam_size=args.beams, best_of=5, fp16=False, word_timestamps=True
        )
        return [(w["word"], w["start"], w["end"]) for s in known["segments"] for w in s["words"]], []

    return recognize


def faster_whisper(args, checkpoint: str) -> Recognize:
    from faster_whisper import WhisperModel

    model = WhisperModel(str(args.model), device="cpu", compute_type="float32", cpu_threads=args.threads)

    def recognize(samples: np.ndarray, language: str) -> tuple[list[Timed], list[Timed]]:
        segments, _ = model.transcribe(samples, language=language, beam_size=args.beams, word_timestamps=True)
        return [(w.word, w.start, w.end) for segment in segments for w in segment.words or []], []

    return recognize


# ---- the table -------------------------------------------------------------------------------------------------------


def errors(sound: Sound, words: list[Timed]) -> tuple[list[float], list[float]]:
    """Seconds by which starts and ends of the known borders are late."""
    found = split(words, sound.language)
    matcher = difflib.SequenceMatcher(None, sound.words, [word for word, _, _ in found], autojunk=False)
    starts, ends = [], []
    for mine, theirs, count in matcher.get_matching_blocks():
        for number in range(count):
            if mine + number in sound.begins:
                starts.append(found[theirs + number][1] - sound.begins[mine + number])
            if mine + number in sound.ends:
                ends.append(found[theirs + number][2] - sound.ends[mine + number])
    return starts, ends


def row(name: str, kind: str, language: str, which: str, values: list[float], borders: int) -> str:
    late = 1000 * np.array(values)
    away = np.abs(late)
    shares = " | ".join(f"{100 * (away <= limit).mean():.0f} %" for limit in (50, 100, 200))
    return (
        f"| {kind} {language} | {name} | {which} | {len(late)} of {borders} | {away.mean():.0f} | "
        f"{np.median(away):.0f} | {np.median(late):+.0f} | {shares} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--languages", default="en,zh")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--most", type=int, help="recordings of each language")
    parser.add_argument("--labels", type=Path, metavar="DIR")
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="these as well; without a name, all of them")
    parser.add_argument("--cost", action="store_true", help="recognize without words as well, to tell what they cost")
    parser.add_argument("--heads", metavar="NAME", help="openai-whisper's alignment heads are those of this name")
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    sounds: list[Sound] = []
    for language in args.languages.split(","):
        rows = read(args.manifest, [language], args.most)
        digits = read(args.manifest, [language], args.most, "digit")
        lengths = {"utterance": 0.0, "join60": 60.0, "join300": 300.0}
        for kind in args.kinds:
            if kind == "digits" and digits:
                sounds += joined(digits, args.manifest.parent, kind, 60.0, DIGIT_PAUSES)
            elif kind == "labels" and args.labels and language == "en":
                sounds += labelled(args.labels)
            elif not rows:
                continue
            elif kind in lengths:
                sounds += joined(rows, args.manifest.parent, kind, lengths[kind])
            elif kind == "noisy60":
                sounds += map(noisy, joined(rows, args.manifest.parent, "join60", 60.0))
            elif kind == "synth60" and language == "en":
                sounds += synthesized(rows)

    with tempfile.TemporaryDirectory() as folder:
        recognizers: dict[str, Recognize] = {"glmasr": ours(args)}
        if args.cost:
            recognizers["glmasr without words"] = ours(args, timed=False)
        if args.peers is not None:
            import torch
            from real import openai_checkpoint

            from glmasr import weights

            checkpoint = f"{folder}/openai.pt"
            torch.save(openai_checkpoint(weights.load(args.model)), checkpoint)
            for name, made in zip(PEERS, (openai_whisper, faster_whisper), strict=True):
                if name in (args.peers or PEERS):
                    recognizers[name] = made(args, checkpoint)
        known: dict[tuple[str, str, str, str], list[float]] = {}
        borders: dict[tuple[str, str, str], int] = {}
        seconds = dict.fromkeys(recognizers, 0.0)
        for number, sound in enumerate(sounds):
            for which, places in (("start", sound.begins), ("end", sound.ends)):
                key = sound.kind, sound.language, which
                borders[key] = borders.get(key, 0) + len(places)
            for name, recognize in recognizers.items():
                begun = time.process_time()
                words, even = recognize(sound.samples, sound.language)
                seconds[name] += time.process_time() - begun
                for who, what in ((name, words), *((("evenly spread", even),) if even else ())):
                    for which, late in zip(("start", "end"), errors(sound, what), strict=True):
                        known.setdefault((sound.kind, sound.language, which, who), []).extend(late)
            print(f"\r{number + 1} of {len(sounds)}", end="", file=sys.stderr, flush=True)
    print("", file=sys.stderr)
    print("| sound | | border | found | mean, ms | median, ms | late in the median | within 50 ms | 100 ms | 200 ms |")
    print("|---" * 10 + "|")
    for (kind, language, which, name), values in sorted(known.items()):
        if values:
            print(row(name, kind, language, which, values, borders[kind, language, which]))
    from real import machine

    total = sum(len(sound.samples) for sound in sounds) / RATE
    times = ", ".join(f"{name} {value / total:.3f}" for name, value in seconds.items())
    print(
        f"\n{total:.0f} s of sound; seconds of a processor for each {times}. {machine()}, {args.threads} threads, {datetime.date.today()}."
    )


if __name__ == "__main__":
    main()
