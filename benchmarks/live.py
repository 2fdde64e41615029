"""How soon is there text, while somebody speaks, and what does it cost? On recordings that come at their own pace.

    pip install -c constraints.txt '.[bench,vad]'
    python benchmarks/live.py MANIFEST --model DIR [--languages en,zh] [--steps 0.5 1 2] [--sessions 1 4]

MANIFEST is a table as in tests/speech; recordings of one language are joined to a minute and more, with pauses of 0.6 to
1.5 s; single digits, which the demos know, with 0.15 to 0.5 s (--digits). Sound comes in pieces of 0.1 s by a simulated
clock, which runs on by the time that decoding takes: so a text that was computed for two seconds is two seconds late.
--real waits as long as the sound takes. --hour feeds an hour.

wait            seconds of sound from the end of a word until it is committed: the lag on a machine that takes no time
lag             from the end of a word to when it is committed
first           from the start of a segment's first word until some text of it is there
revised         committed words that the segment at the end doesn't have
errors          of all text, as glmasr-eval counts them, less those of the same recordings offline, in points
baseline        LocalAgreement-2: everything that isn't committed sentences is decoded at each step; what two texts
                agree on is committed (Machacek et al. 2023)

Prints a table in Markdown.
"""

import argparse
import datetime
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from words import DIGIT_PAUSES, PAUSES, joined, read, units  # noqa: E402

import glmasr  # noqa: E402
from glmasr.evaluation.scoring import Errors  # noqa: E402
from glmasr.transcription.live import feed_together, run_together  # noqa: E402
from glmasr.transcription.live_events import Committed, Notice, Tentative  # noqa: E402

RATE = 16_000
PIECE = 1600  # samples that are fed at a time
TRIM = 15.0  # seconds that the baseline decodes again at most
PROMPT = 200  # characters before them that it reads

Said = tuple[str, float, float]  # text, start, end


@dataclass
class Course:
    """What came of a stream: committed words, with the second at which they were and that of the sound fed so far; and
    what is known of segments."""

    committed: list[tuple[glmasr.Word, float, float]] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    revised: int = 0
    notices: list[str] = field(default_factory=list)
    shown: float | None = None
    open: list[str] = field(default_factory=list)

    def take(self, event: object, now: float, fed: float) -> None:
        if isinstance(event, Tentative | Committed) and self.shown is None and event.text.strip():
            self.shown = now
        if isinstance(event, Committed):
            self.committed += [(word, now, fed) for word in event.words]
            self.open += [word.text for word in event.words]
        elif isinstance(event, glmasr.Segment):
            self.texts.append(event.text)
            self.revised += self.open != [word.text for word in event.words]
            if event.words and self.shown is not None:
                self.firsts.append(self.shown - event.words[0].start)
            self.open, self.shown = [], None
        elif isinstance(event, Notice):
            self.notices.append(event.text)


class Clock:
    """Seconds since the start: `spend` runs something and lets the time pass that it takes."""

    def __init__(self, real: bool, cpu: bool):
        self.real, self.measure, self.now, self.spent = real, time.process_time if cpu else time.perf_counter, 0.0, 0.0
        self.begun = time.perf_counter()

    def wait_until(self, second: float) -> None:
        if self.real:
            time.sleep(max(0.0, second - (time.perf_counter() - self.begun)))
            self.now = time.perf_counter() - self.begun
        self.now = max(self.now, second)

    def spend(self, work: Callable[[], list]) -> list:
        start = self.measure()
        found = work()
        taken = self.measure() - start
        self.spent += taken
        self.now = time.perf_counter() - self.begun if self.real else self.now + taken
        return found


def policy(
    recognizer: glmasr.Recognizer, language: str, streams: list[torch.Tensor], step: float, clock: Clock
) -> list:
    """Sessions of this package, which decode together."""
    sessions, courses = [recognizer.live(language, step=step) for _ in streams], [Course() for _ in streams]
    place, longest = 0, max(map(len, streams))
    while place < longest:
        clock.wait_until((place + PIECE) / RATE)
        behind = clock.now - (place + PIECE) / RATE
        fed = [
            (session, stream[place : place + PIECE], behind) for session, stream in zip(sessions, streams, strict=True)
        ]
        found = clock.spend(lambda fed=fed: feed_together(fed))
        place += PIECE
        take(courses, found, clock.now, place / RATE)
    found = clock.spend(lambda: run_together(recognizer, [session.finishing() for session in sessions]))
    take(courses, found, clock.now, place / RATE)
    return courses


def take(courses: list[Course], found: list[list], now: float, fed: float) -> None:
    for course, events in zip(courses, found, strict=True):
        for event in events:
            course.take(event, now, fed)


def baseline(
    recognizer: glmasr.Recognizer, language: str, streams: list[torch.Tensor], step: float, clock: Clock
) -> list:
    """LocalAgreement-2, of one stream."""
    [stream], course = streams, Course()
    begin, place, before, said = 0.0, 0, [], []

    def decode() -> list[Said]:
        text = " ".join(word for word, _, end in said if end <= begin)[-PROMPT:]
        prompt = {"prompt": text} if "<|startofprev|>" in recognizer.tokenizer.special else {}
        samples = stream[round(begin * RATE) : place]
        found = recognizer.transcribe(samples, language, sample_rate=RATE, words=True, beams=1, vad="off", **prompt)
        words = [word for segment in found.segments for word in segment.words]
        last = said[-1][2] if said else 0.0
        return [(w.text, w.start + begin, w.end + begin) for w in words if w.end + begin > last + 0.1]

    while place < len(stream):
        place = min(len(stream), place + round(step * RATE))
        clock.wait_until(place / RATE)
        if clock.now - place / RATE > step:  # it has fallen behind: what has come in the meantime is taken at once
            place = min(len(stream), round(clock.now * RATE))
        words = clock.spend(decode)
        count = 0
        while count < min(len(before), len(words)) and units(before[count][0], language) == units(
            words[count][0], language
        ):
            count += 1
        if place == len(stream):
            count = len(words)
        course.committed += [(glmasr.Word(*word, 1.0), clock.now, place / RATE) for word in words[:count]]
        said, before = said + words[:count], words[count:]
        if place / RATE - begin > TRIM and said:
            ends = [end for word, _, end in said if word[-1] in ".!?。！？"]
            begin = max([begin, *ends]) if ends and max(ends) > begin else said[-1][2]
    course.texts = [" ".join(word for word, _, _ in said)]
    return [course]


def measured(name: str, args, recognizer, sounds, offline, step: float, count: int, run) -> str:
    lags, waits, firsts, wrong, said, revised, seconds, spent, slow = [], [], [], 0, 0, 0, 0.0, 0.0, 0
    for start in range(0, len(sounds), count):
        some = [sounds[(start + number) % len(sounds)] for number in range(count)]
        clock = Clock(args.real, args.cpu_time)
        streams = [torch.from_numpy(np.asarray(sound.samples, dtype=np.float32)) for sound in some]
        for sound, course in zip(some, run(recognizer, some[0].language, streams, step, clock), strict=True):
            lags += [at - word.end for word, at, _ in course.committed]
            waits += [fed - word.end for word, _, fed in course.committed]
            firsts += course.firsts
            revised += course.revised
            slow += any("too slow" in notice for notice in course.notices)
            found = Errors.of(" ".join(course.texts), sound.text, sound.language)
            wrong += found.wrong - offline[id(sound)]
            said += found.count
            seconds += len(sound.samples) / RATE
        spent += clock.spent
    lags = np.array(lags or [0.0])
    first = f"{np.median(firsts):.2f}" if firsts else ""
    note = f" ({slow} widened)" if slow else ""
    return (
        f"| {Path(args.model).name} | {sounds[0].language} | {name} | {step:g} | {count} | {first} | {np.mean(waits or [0.0]):.2f} | {lags.mean():.2f} | "
        f"{np.percentile(lags, 95):.2f} | {revised} | {100 * wrong / said:+.2f} | {spent / seconds:.2f}{note} |"
    )


def hour(recognizer: glmasr.Recognizer, language: str, stream: torch.Tensor, args) -> Iterable[str]:
    """An hour of it: lag and memory of each tenth."""
    clock, session, course, place = (
        Clock(False, args.cpu_time),
        recognizer.live(language, step=args.steps[0]),
        Course(),
        0,
    )
    yield "| minutes | words | mean lag, s | memory, MiB |"
    yield "|---|---|---|---|"
    for tenth in range(1, 11):
        course.committed.clear()
        while place < tenth * 360 * RATE:
            at = place % len(stream)
            clock.wait_until((place + PIECE) / RATE)
            behind = clock.now - (place + PIECE) / RATE
            found = clock.spend(lambda at=at, behind=behind: session.feed(stream[at : at + PIECE], behind))
            place += PIECE
            take([course], [found], clock.now, place / RATE)
        lags = [at - word.end for word, at, _ in course.committed]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        yield f"| {6 * tenth} | {len(lags)} | {np.mean(lags or [0.0]):.2f} | {memory:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--languages", default="en")
    parser.add_argument(
        "--digits", action="store_true", help="recordings with `digit` in a column `kind`, as words.py joins them"
    )
    parser.add_argument("--steps", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    parser.add_argument("--sessions", type=int, nargs="+", default=[1])
    parser.add_argument("--most", type=int, help="recordings of each language")
    parser.add_argument("--baseline", action="store_true")
    parser.add_argument("--hour", action="store_true")
    parser.add_argument("--real", action="store_true", help="wait as long as the sound takes")
    parser.add_argument("--cpu-time", action="store_true", help="the clock runs on by CPU time: on a busy machine")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recognizer = glmasr.load(args.model, device="cpu", dtype=args.dtype)
    how = recognizer.how()
    print(f"{datetime.date.today()}, {args.threads} threads, {how['dtype']}, {how['linears']}\n")
    head = "model | language | policy | step, s | sessions | first, s | wait, s | mean lag, s | 95 % lag, s | revised | errors, points | CPU time / time"
    if not args.hour:
        print(f"| {head} |\n|{'---|' * (head.count('|') + 1)}")
    for language in args.languages.split(","):
        rows = read(args.manifest, [language], args.most, "digit" if args.digits else "sentence")
        sounds = joined(rows, args.manifest.parent, "join60", 60.0, DIGIT_PAUSES if args.digits else PAUSES)
        if args.hour:
            stream = torch.from_numpy(np.concatenate([sound.samples for sound in sounds]).astype(np.float32))
            stream = stream[: len(stream) // PIECE * PIECE]
            print("\n".join(hour(recognizer, language, stream, args)), flush=True)
            continue
        offline = {
            id(sound): Errors.of(
                recognizer.transcribe(sound.samples, language, sample_rate=RATE).text, sound.text, language
            ).wrong
            for sound in sounds
        }
        for step in args.steps:
            for count in args.sessions:
                print(measured("committed prefix", args, recognizer, sounds, offline, step, count, policy), flush=True)
            if args.baseline:
                print(measured("LocalAgreement-2", args, recognizer, sounds, offline, step, 1, baseline), flush=True)


if __name__ == "__main__":
    main()
