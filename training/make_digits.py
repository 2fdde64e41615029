"""Make the demo's training data: utterances of one to twelve connected digits in Mandarin, Cantonese and English, from
many speakers.

    python training/make_digits.py OUT --recorded-en DIR --recorded-zh DIR... --recorded-yue DIR...
        --hold-out-speaker NAME...

writes OUT/audio/*/*.wav (mono, 16 kHz, 16 bits), OUT/train.jsonl and OUT/eval_*.jsonl. A line is
    {"audio", "text", "language", "speaker", "seconds", "phrases": [{"start", "end", "text"}]}
where phrases are the digits between pauses of half a second and more.

Utterance number n depends on --seed, --faces and n only: a run that was cut short goes on where it was, a larger --count
adds to what is there, and any prefix of train.jsonl has the same proportions. What a trainer can do cheaply on the fly
(gain, noise, speed) is left to it.
"""

import argparse
import json
import math
import multiprocessing
from dataclasses import dataclass, replace
from pathlib import Path

import disguises
import numpy as np
import soundfile
import voices
from channels import band, through_channel
from disguises import Disguise, analyze
from tqdm import tqdm
from voices import ACCENTS, RATE, espeak, text_of

LANGUAGES = {"en": 0.36, "zh": 0.32, "yue": 0.32}
SOURCES = {
    "en": {"recorded": 0.45, "espeak": 0.20, "espeak_joined": 0.10, "flite": 0.15, "festival": 0.10},
    "zh": {"recorded": 0.50, "espeak": 0.36, "espeak_joined": 0.14},
    "yue": {"recorded": 0.50, "espeak": 0.36, "espeak_joined": 0.14},
}
REPETITIVE = 0.12
LONG_SHARE = 0.05  # half of these become longer than USUAL_SECONDS
PAUSE = 0.5  # seconds; a gap this long ends a phrase
USUAL_SECONDS = 9.5
LONGEST_SECONDS = 18.0
FACES = {"recorded": 1.0, "espeak_joined": 0.24}  # imagined speakers of single digits in a language, of --faces
HANZI_SHARE = {"cmn": 0.15, "yue": 0.4}  # of espeak-ng's connected speech, read from hanzi: see voices.ACCENTS
FESTIVAL_PHRASES = 250  # for each voice
PEAK = 10 ** (-3 / 20)
NOISE = 10 ** (-40 / 20)


@dataclass
class Plan:
    """What an utterance shall be like. `hurry` < 1 makes sounds and gaps shorter; it falls until the utterance is short
    enough."""

    language: str
    digits: list
    style: str
    is_long: bool
    hurry: float

    @property
    def longest_run(self):
        """The most digits that a synthesizer says in one go."""
        return 2 if self.is_long else 8


def pick(rng, table):
    """A key of {key: weight}."""
    weights = np.array(list(table.values()))
    return list(table)[rng.choice(len(table), p=weights / weights.sum())]


def draw_plan(rng, language):
    """Random length and style: digits run together, spoken one after the other, or set apart."""
    is_long = bool(rng.random() < LONG_SHARE)
    lengths = np.arange(1, 13)
    weights = np.where(lengths <= 3, 1.4, 1.0)
    count = rng.integers(9, 13) if is_long else rng.choice(lengths, p=weights / weights.sum())
    style = "slow" if is_long else pick(rng, {"connected": 0.35, "close": 0.4, "apart": 0.25})
    # Equal neighbors run into each other and get lost: an eighth of the utterances has two different digits only.
    usable = rng.choice(10, 2, replace=False) if rng.random() < REPETITIVE else np.arange(10)
    return Plan(language, [int(d) for d in rng.choice(usable, count)], style, is_long, 1.0)


def draw_gaps(rng, plan, count):
    """Seconds of silence (negative: overlap) before each clip but the first; now and then a pause that ends a
    phrase."""
    low, high = {"connected": (-0.03, 0.03), "close": (0.0, 0.18), "apart": (0.1, 0.47), "slow": (0.25, 0.47)}[
        plan.style
    ]
    gaps = rng.uniform(low, high, count) * plan.hurry
    share = 0.35 if plan.is_long else min(0.35, rng.choice([0.0, 0.0, 1.0, 1.5]) / max(1, count))
    pauses = rng.random(count) < share
    return np.where(pauses, PAUSE + 0.05 + rng.uniform(0, 1.0, count) * plan.hurry, gaps)


def split(rng, digits, longest):
    """Cut a list of digits into runs of random length."""
    runs = []
    while digits:
        size = int(rng.integers(1, longest + 1))
        runs.append(digits[:size])
        digits = digits[size:]
    return runs


def separators(rng, count):
    """What stands between `count` written digits: mostly spaces, commas in some utterances."""
    commas = rng.choice([0.0, 0.2, 0.6])
    return [", " if rng.random() < commas else " " for _ in range(count - 1)]


# --- sources: each returns ([(audio, digits)], speaker) ---


def recorded_face(seed, language, number):
    """An imagined speaker: one recorded speaker, disguised (but for a part of the English ones): (name, {digit: [audio,
    ...]})."""
    rng = np.random.default_rng([seed, 1, *language.encode(), number])
    bank = BANKS["recorded"][language]
    speaker = sorted(bank)[number % len(bank)]
    sounds = {}
    for digit, paths in bank[speaker].items():
        chosen = rng.permutation(len(paths))[:2]
        sounds[digit] = [disguises.recorded(paths[i]) for i in chosen]
    if language == "en" and rng.random() < 0.4:  # see voices.FOREIGN
        foreign = [disguises.begin_like(zero, six, rng) for (_, zero), (_, six) in zip(sounds[0], sounds[6])]
        sounds[0] = [(disguises.plain(sound), sound) for sound in foreign]
    if rng.random() < (0.25 if language == "en" else 0.02):
        return speaker, disguises.undisguised(sounds)
    return f"{speaker}*{number}", disguises.disguised(rng, sounds)


def espeak_face(seed, language, number):
    """An imagined speaker made of the single digits of one espeak-ng voice, mostly disguised: (name, {digit:
    [audio]})."""
    rng = np.random.default_rng([seed, 2, *language.encode(), number])
    accent, variant = draw_espeak(rng, language)
    rate, pitch = int(rng.integers(110, 200)), int(rng.integers(15, 85))
    audio = {digit: espeak([digit], [], accent, variant, rate, pitch) for digit in range(10)}
    if rng.random() < 0.3:
        return f"espeak-{accent}-{variant}", {digit: [sound] for digit, sound in audio.items()}
    sounds = {digit: [(sound, analyze(sound))] for digit, sound in audio.items()}
    return f"espeak-{accent}-{variant}*{number}", disguises.disguised(rng, sounds)


def make_face(job):
    """(seed, kind, language, number) -> ((kind, language), face), where a face is (name, {digit: [audio, ...]})."""
    seed, kind, language, number = job
    name, takes = (recorded_face if kind == "recorded" else espeak_face)(seed, language, number)
    takes = {digit: [audio.astype(np.float32) for audio in some] for digit, some in takes.items()}
    return (kind, language), (name, takes)


def from_face(rng, plan, kind):
    """Digits of one imagined speaker of a kind."""
    faces = BANKS["faces"][kind, plan.language]
    name, takes = faces[rng.integers(len(faces))]
    return [(takes[d][rng.integers(len(takes[d]))], [d]) for d in plan.digits], name


def from_recorded(rng, plan):
    """Joined takes of an imagined speaker made of a recorded one."""
    return from_face(rng, plan, "recorded")


def from_espeak_joined(rng, plan):
    """Joined single digits of an espeak-ng voice: as in the recorded ones, so that the joins say nothing about the
    source."""
    return from_face(rng, plan, "espeak_joined")


def disguise(rng, plan, sounds):
    """Render all sounds as one random imagined speaker, with a falling pitch over the utterance in half of the
    cases."""
    speaker = replace(Disguise.draw(rng, sounds), pace=math.exp(rng.uniform(math.log(0.8), math.log(1.25))))
    fall = rng.uniform(0.0, 0.3) * (rng.random() < 0.5)
    lifts = np.exp(fall * np.linspace(0.5, -0.5, len(sounds)) + rng.normal(0, 0.03, len(sounds)))
    return [speaker.render(sound, rng, lift, plan.hurry) for sound, lift in zip(sounds, lifts)]


def perhaps_disguised(rng, plan, clips, chance):
    """Disguise a share of the synthetic utterances: formants move, and the voice is less of a machine's."""
    if rng.random() >= chance:
        return clips, ""
    audio = disguise(rng, plan, [analyze(clip) for clip, _ in clips])
    return [(sound, digits) for sound, (_, digits) in zip(audio, clips)], "*"


def draw_espeak(rng, language):
    """(accent, variant) for training."""
    names, weights = voices.espeak_variants()
    accents = (*ACCENTS[language], *(voices.FOREIGN if language == "en" else ()))
    return str(rng.choice(accents)), str(rng.choice(names, p=weights))


def from_espeak(rng, plan):
    """Connected speech of one espeak-ng voice at a random rate and pitch."""
    accent, variant = draw_espeak(rng, plan.language)
    rate = int(np.clip(rng.uniform(90, 140 if plan.is_long else 260) / plan.hurry, 80, 400))
    pitch = int(rng.integers(10, 91))
    runs = split(rng, plan.digits, plan.longest_run)
    hanzi = accent in HANZI_SHARE and rng.random() < HANZI_SHARE[accent]
    clips = [(espeak(run, separators(rng, len(run)), accent, variant, rate, pitch, hanzi), run) for run in runs]
    clips, mark = perhaps_disguised(rng, plan, clips, 0.35)
    return clips, f"espeak-{accent}-{variant}{mark}"


def from_flite(rng, plan):
    """Connected speech of one flite voice at a random rate."""
    voice = str(rng.choice(voices.FLITE_VOICES))
    stretch = rng.uniform(0.65, 1.5) * plan.hurry
    clips = [
        (voices.flite(run, separators(rng, len(run)), voice, stretch), run)
        for run in split(rng, plan.digits, plan.longest_run)
    ]
    clips, mark = perhaps_disguised(rng, plan, clips, 0.6)
    return clips, f"flite-{voice}{mark}"


def from_festival(rng, plan):
    """Ready phrases of one festival voice, which replace the plan's digits."""
    voice = pick(rng, {name: 1.0 for name in voices.FESTIVAL_VOICES})
    clips, room = [], len(plan.digits)
    while room > 0:
        fitting = [path for path in BANKS["festival"][voice] if len(path.stem.rsplit("_", 1)[1]) <= room]
        clips.append(voices.festival_clip(fitting[rng.integers(len(fitting))]))
        room -= len(clips[-1][1])
    clips, mark = perhaps_disguised(rng, plan, clips, 0.7)
    return clips, f"festival-{voice}{mark}"


# --- utterances ---


def join(clips, gaps, lead, tail, language):
    """Lay clips one after the other. Returns audio and the phrases with their times."""
    starts, place = [], lead
    for (audio, _), gap in zip(clips, [0.0, *gaps]):
        starts.append(place + gap)
        place = starts[-1] + len(audio) / RATE
    out = np.zeros(math.ceil((place + tail) * RATE) + 1)
    phrases = []
    for start, gap, (audio, digits) in zip(starts, [PAUSE, *gaps], clips):
        first = max(0, round(start * RATE))
        out[first : first + len(audio)] += audio[: len(out) - first]
        if gap >= PAUSE:
            phrases.append({"start": round(start, 3), "digits": []})
        phrases[-1]["digits"] += digits
        phrases[-1]["end"] = round(start + len(audio) / RATE, 3)
    phrases = [{"start": p["start"], "end": p["end"], "text": text_of(p["digits"], language)} for p in phrases]
    return out, phrases


def save(out, name, audio, phrases, language, speaker):
    """Write the file at a peak of -3 dB; returns its manifest line."""
    path = out / "audio" / f"{name}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio * (PEAK / (np.abs(audio).max() + 1e-9)), RATE, subtype="PCM_16")
    text = (" " if language == "en" else "").join(phrase["text"] for phrase in phrases)
    return {
        "audio": str(path.relative_to(out)),
        "text": text,
        "language": language,
        "speaker": speaker,
        "seconds": round(len(audio) / RATE, 3),
        "phrases": phrases,
    }


def make_training(job):
    """(out, seed, number) -> manifest line of one training utterance."""
    out, seed, number = job
    rng = np.random.default_rng([seed, number])
    language = pick(rng, LANGUAGES)
    source = globals()[f"from_{pick(rng, SOURCES[language])}"]
    plan = draw_plan(rng, language)
    limit = LONGEST_SECONDS if plan.is_long else USUAL_SECONDS
    lead, tail = rng.uniform(0, 0.6, 2) * (rng.random(2) < 0.8)
    while True:
        clips, speaker = source(rng, plan)
        clips = [(audio * 10 ** (rng.normal(0, 3) / 20), digits) for audio, digits in clips]
        audio, phrases = join(clips, draw_gaps(rng, plan, len(clips) - 1), lead, tail, language)
        if len(audio) <= limit * RATE:
            break
        plan.hurry *= max(0.6, 0.9 * limit * RATE / len(audio))
    return save(
        out, f"train/{number // 1000:03d}/{number:06d}", through_channel(audio, rng), phrases, language, speaker
    )


BANKS = {}  # set before the worker processes fork: recorded takes, festival phrases, imagined speakers


# --- evaluation sets ---


def held_out_espeak(rng, language, count):
    """Ten unseen variants, utterances of 1-12 digits, at ordinary rates and about the default pitch."""
    for number in range(count):
        variant, accent = voices.HELD_OUT_VARIANTS[number * 10 // count], str(rng.choice(ACCENTS[language]))
        digits = [int(d) for d in rng.integers(0, 10, number % 12 + 1)]
        rate, pitch = int(rng.integers(130, 201)), int(rng.integers(40, 61))
        clips = [
            (espeak(run, separators(rng, len(run)), accent, variant, rate, pitch), run) for run in split(rng, digits, 8)
        ]
        yield clips, rng.uniform(0.1, 0.3, len(clips) - 1), f"espeak-{accent}-{variant}"


def held_out_phrases(rng, language, count):
    """Ten unseen variants: two or three phrases of one to four digits, 0.7 s to 1.5 s apart."""
    for number in range(count):
        variant, accent = voices.HELD_OUT_VARIANTS[number * 10 // count], str(rng.choice(ACCENTS[language]))
        phrases = [[int(d) for d in rng.integers(0, 10, rng.integers(1, 5))] for _ in range(2 + number % 2)]
        rate, pitch = int(rng.integers(130, 201)), int(rng.integers(40, 61))
        clips = [
            (espeak(phrase, separators(rng, len(phrase)), accent, variant, rate, pitch), phrase) for phrase in phrases
        ]
        yield clips, rng.uniform(0.7, 1.5, len(clips) - 1), f"espeak-{accent}-{variant}"


def held_out_recorded(rng, bank, count, longest, widest):
    """Unmodified takes of held-out people, 0.05 s to `widest` s apart."""
    for number in range(count):
        speaker = sorted(bank)[number % len(bank)]
        digits = [int(d) for d in rng.integers(0, 10, rng.integers(1, longest + 1))]
        clips = [(voices.read(str(rng.choice(bank[speaker][d]))), [d]) for d in digits]
        yield clips, rng.uniform(0.05, widest, len(clips) - 1), speaker


def noisy(audio, rng):
    """White noise 40 dB below full scale on speech with a peak of -3 dB, then the band of 8 kHz sampling."""
    audio = audio * (PEAK / np.abs(audio).max())
    return band(audio + rng.normal(0, NOISE, len(audio)), 0, 3900)


def write_evaluation(job):
    """(out, seed, name, language, bank or None, count): write eval_{name}_{language} and its noisy twin."""
    out, seed, name, language, bank, count = job
    rng = np.random.default_rng([seed, *name.encode(), *language.encode()])
    if bank is None:
        utterances = (held_out_phrases if name == "phrases" else held_out_espeak)(rng, language, count)
    else:
        utterances = held_out_recorded(rng, bank, count, *((12, 0.3) if language == "en" else (8, 0.4)))
    lines = {"": [], "noisy_": []}
    for number, (clips, gaps, speaker) in enumerate(utterances):
        audio, phrases = join(clips, gaps, *rng.uniform(0.1, 0.4, 2), language)
        for kind, sound in (("", audio), ("noisy_", noisy(audio, rng))):
            lines[kind].append(
                save(out, f"eval_{kind}{name}_{language}/{number:03d}", sound, phrases, language, speaker)
            )
    for kind, some in lines.items():
        path = out / f"eval_{kind}{name}_{language}.jsonl"
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in some), encoding="utf-8")


# --- command line ---


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder to write")
    folders = {"nargs": "+", "required": True, "metavar": "DIR"}
    parser.add_argument("--recorded-en", **folders, help="folders of recorded English digits")
    parser.add_argument("--recorded-zh", **folders, help="folders of recorded Mandarin digits")
    parser.add_argument("--recorded-yue", **folders, help="folders of recorded Cantonese digits")
    parser.add_argument(
        "--hold-out-speaker", nargs="*", default=[], metavar="NAME", help="recorded speakers for evaluation only"
    )
    parser.add_argument(
        "--evaluate-speaker",
        nargs="*",
        default=[],
        metavar="NAME",
        help="recorded speakers for evaluation AND training: leave them out with train.py --without to measure",
    )
    parser.add_argument("--count", type=int, default=22000, help="training utterances")
    parser.add_argument(
        "--eval-count",
        type=int,
        default=120,
        help="utterances of an evaluation set, half as many of some (default 120)",
    )
    parser.add_argument("--faces", type=int, default=500, help="imagined speakers made of recorded ones, in a language")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    return parser.parse_args()


def recorded_banks(args):
    """({language: training speakers}, {language: speakers to evaluate})."""
    train, held, wanted = {}, {}, {*args.hold_out_speaker, *args.evaluate_speaker}
    for language in LANGUAGES:
        speakers = voices.recorded_takes(getattr(args, f"recorded_{language}"))
        held[language] = {name: takes for name, takes in speakers.items() if name in wanted}
        train[language] = {name: takes for name, takes in speakers.items() if name not in args.hold_out_speaker}
        if not train[language]:
            raise SystemExit(f"error: no recorded {language} speaker is left for training: hold out fewer")
    unknown = wanted - {name for speakers in held.values() for name in speakers}
    if unknown:
        raise SystemExit(f"error: no recorded speaker is called {', '.join(sorted(unknown))}")
    return train, held


def check_settings(args):
    """Refuse to go on with a folder that was made with other settings; they are kept beside the data."""
    path = args.out / "settings.json"
    names = {
        language: [Path(folder).name for folder in getattr(args, f"recorded_{language}")] for language in LANGUAGES
    }
    settings = {
        "seed": args.seed,
        "faces": args.faces,
        "hold_out_speakers": sorted(args.hold_out_speaker),
        "recorded": names,
    }
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise SystemExit(f"error: {path} has other settings than this command: name a new folder, or remove this one")
    args.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def make_festival(job):
    """(folder, voice, seed) -> (voice, paths)."""
    folder, voice, seed = job
    return voice, voices.festival_phrases(
        folder, voice, FESTIVAL_PHRASES, np.random.default_rng([seed, *voice.encode()])
    )


def main():
    args = arguments()
    for program, package in (("espeak-ng", "espeak-ng"), ("flite", "flite"), ("festival", "festival")):
        voices.need(program, package)
    voices.espeak_variants()
    BANKS["recorded"], held = recorded_banks(args)
    check_settings(args)
    half = max(1, args.eval_count // 2)
    evaluations = [
        (args.out, args.seed, name, language, None, count)
        for name, count in (("espeak", args.eval_count), ("phrases", half))
        for language in LANGUAGES
    ]
    evaluations += [
        (args.out, args.seed, "recorded", language, bank, args.eval_count if language == "en" else half)
        for language, bank in held.items()
        if bank
    ]
    with multiprocessing.get_context("fork").Pool(args.jobs) as pool:
        phrases = pool.imap(
            make_festival, [(args.out.resolve() / "festival", voice, args.seed) for voice in voices.FESTIVAL_VOICES]
        )
        BANKS["festival"] = dict(tqdm(phrases, "festival phrases", len(voices.FESTIVAL_VOICES)))
        list(tqdm(pool.imap(write_evaluation, evaluations), "evaluation sets", len(evaluations)))
    manifest = args.out / "train.jsonl"
    manifest.touch()
    lines = [line for line in manifest.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")][
        : args.count
    ]
    manifest.write_text("".join(lines), encoding="utf-8")  # drops half a line of a run that was cut short
    faces = [
        (args.seed, kind, language, number)
        for kind, share in FACES.items()
        for language in LANGUAGES
        for number in range(max(1, round(share * args.faces)))
    ]
    BANKS["faces"] = {(kind, language): [] for kind in FACES for language in LANGUAGES}
    with multiprocessing.get_context("fork").Pool(args.jobs) as pool:
        for key, face in tqdm(pool.imap(make_face, faces, 8), "imagined speakers", len(faces)):
            BANKS["faces"][key].append(face)
    jobs = [(args.out, args.seed, number) for number in range(len(lines), args.count)]
    with multiprocessing.get_context("fork").Pool(args.jobs) as pool, manifest.open("a", encoding="utf-8") as file:
        for line in tqdm(pool.imap(make_training, jobs, 8), "utterances", len(jobs)):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
