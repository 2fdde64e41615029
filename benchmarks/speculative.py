"""Speculative decoding: tokens a second with and without a draft, windows one by one, greedy, turn about.

    python benchmarks/speculative.py MODEL RECORDING... --assistant STUDENT --language en
    python benchmarks/speculative.py MODEL RECORDING... --agree 0.6 0.8 --assistant STUDENT --tokens 24
    python benchmarks/speculative.py MODEL --transcript talk.txt --most 1 2

First what a read of several tokens costs beside one of a single token. Then, for the same windows:

    greedy      one token a step
    n-grams     what followed the last tokens where they stood before in the recording, or in --hotwords, is drafted
    assistant   STUDENT drafts: a student that has MODEL's encoder
    agree A     STUDENT drafts, and what it says is replaced: by the right token with probability A, else by another.
                That shows what a draft of that quality would bring to a model of random weights

--transcript: of a long text only the n-grams are counted, 75 words at a time, about a window; without what it costs.

With one thread, times are those of the processor, so that what else runs on the machine counts less; encoder and prefill
aren't in them, for they are the same. `agreed` are the drafted tokens that were right, `repeated` those that were read
once more because a choice was close. Ids that differ from those of greedy search are counted: in float32 there are none.
"""

import argparse
import itertools
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import glmasr  # noqa: E402
from glmasr import audio as sound  # noqa: E402
from glmasr import decode  # noqa: E402
from glmasr.cli import positive  # noqa: E402
from glmasr.rules import StopLoops  # noqa: E402
from glmasr.searching.speculative import Ahead, Drafting  # noqa: E402
from glmasr.transcription import assistant as assistants  # noqa: E402
from glmasr.transcription import hotwords  # noqa: E402
from glmasr.transcription.families import RecordingState  # noqa: E402
from glmasr.transcription.long_form import Reader  # noqa: E402

READS = (1, 2, 3, 4, 5, 8)  # tokens
LONGEST = 4  # tokens that are looked for
WINDOW_WORDS = 75  # of a transcript


class NGrams:
    """A `Draft`: of the longest of the last tokens, at least `least`, that stood before, what followed the last time."""

    def __init__(self, texts: Sequence[Sequence[int]], least: int):
        self.least, self.past, self.next = least, [], {}
        for text in texts:
            self.restart()
            self._add(text)
        self.restart()

    def restart(self) -> None:
        """Another text follows."""
        self._add([-1])  # no token is -1: nothing goes on from text to text
        self.begin = len(self.past)

    def _add(self, ids: Sequence[int]) -> None:
        for token in ids:
            self.past.append(token)
            for length in range(self.least, LONGEST + 1):
                self.next[tuple(self.past[-length - 1 : -1])] = len(self.past) - 1

    def propose(self, ids: Sequence[int], most: int) -> list[int]:
        self._add(ids[len(self.past) - self.begin :])
        for length in range(min(LONGEST, len(ids)), self.least - 1, -1):
            if place := self.next.get(tuple(ids[-length:])):
                found = self.past[place : place + most]
                return found[: found.index(-1)] if -1 in found else found
        return []


class Agreeing:
    """A `Draft` that takes as long as another one, and is right as often as it is told."""

    def __init__(self, draft: Drafting, text: Sequence[int], share: float):
        self.draft, self.text, self.share, self.random = draft, text, share, random.Random(len(text))

    def propose(self, ids: Sequence[int], most: int) -> list[int]:
        right = self.text[len(ids) : len(ids) + most]
        self.draft.propose(ids, len(right)) if right else None
        return [token if self.random.random() < self.share else abs(token - 1) for token in right]


def windows(recognizer: glmasr.Recognizer, args: argparse.Namespace) -> list[dict]:
    """What a search of each window takes."""
    options = recognizer.check(args.language, glmasr.Options(beams=1, pad_to=args.pad_to, batch_size=1))
    family, found = recognizer.family, []
    for name in args.recordings:
        state, before = RecordingState.of(args.language), len(found)
        for job in recognizer.jobs(Reader([sound.load(name)], recognizer.config.window), state, options):
            states = {job.recording: job.recording.language}
            encoded = family.encode([job], family.padded_length(job.window, options), options, states)
            limit = min(args.tokens or 2**31, recognizer.windows.budget(job.window, len(encoded.prompts[0]), options))
            rules = [*family.rules(args.language, options), StopLoops(recognizer.config.stop[0])]
            found.append({"audio": encoded.audio, "prompt": encoded.prompts[0], "limit": limit, "rules": rules})
            found[-1]["before"] = found[before:-1]
    return found


class Timed:
    """A model that takes the time after its prefill."""

    def __init__(self, model, clock: Callable[[], float]):
        self.model, self.clock, self.since = model, clock, 0.0
        self.new_cache, self.step = model.new_cache, model.step

    def prefill(self, audio, prompt, cache):
        logits = self.model.prefill(audio, prompt, cache)
        self.since = self.clock()
        return logits


def costs(model, one: dict, clock: Callable[[], float]) -> None:
    """Prints what reads of several tokens take."""
    cache = model.new_cache(1, len(one["prompt"]) + 64)
    model.prefill(one["audio"], [one["prompt"]], cache)
    start, taken = cache.length, {count: [] for count in READS}
    for turn in range(6):
        for count in READS:
            cache.cut(start + 20)
            since = clock()
            model.read(torch.full((1, count), 10), cache)
            taken[count].append(clock() - since)
    first = statistics.median(taken[1][1:])
    print("| tokens in a read | ms | beside one |\n|---|---|---|")
    for count in READS:
        median = statistics.median(taken[count][1:])  # the first one lays weights out
        print(f"| {count} | {1000 * median:.1f} | {median / first:.2f} |")
    print()


def count_ngrams(text: str, encode: Callable[[str], list[int]], least: int, most: int) -> str:
    """What n-grams would bring to a transcript: cells of a table."""
    words = text.split()
    draft = NGrams([], least)
    tokens = reads = drafting = agreed = 0
    for place in range(0, len(words), WINDOW_WORDS):
        ids = encode(" " + " ".join(words[place : place + WINDOW_WORDS]))
        draft.restart()
        done = 1
        while done < len(ids):
            ahead = draft.propose(ids[:done], most)
            right = 0
            while right < len(ahead) and ids[done + right : done + right + 1] == [ahead[right]]:
                right += 1
            done, reads, drafting, agreed = done + right + 1, reads + 1, drafting + bool(ahead), agreed + right
        tokens += len(ids)
    return f"| n-grams of {least}, {most} ahead | {tokens} | {reads} | {drafting} | {agreed} |"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("recordings", nargs="*")
    parser.add_argument("--assistant", metavar="STUDENT")
    parser.add_argument("--agree", type=float, nargs="+", default=[], metavar="SHARE")
    parser.add_argument("--transcript", metavar="FILE")
    parser.add_argument("--hotwords", metavar="FILE|NAME,...")
    parser.add_argument("--language", default="en")
    parser.add_argument("--most", type=positive, nargs="+", default=[4], help="tokens that are drafted at most")
    parser.add_argument("--least", type=positive, nargs="*", default=[1, 2, 3], help="tokens of the n-grams")
    parser.add_argument("--sure", type=float, default=0.5, help="of the assistant: see `Drafting`")
    parser.add_argument("--tokens", type=positive, help="of a window at most")
    parser.add_argument("--pad-to", choices=["window", "speech"], default="window")
    parser.add_argument("--turns", type=positive, default=3)
    parser.add_argument("--threads", type=positive, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    assistants.LARGEST_SHARE = math.inf  # also what makes nothing faster is measured
    clock = time.process_time if args.threads == 1 else time.perf_counter
    recognizer = glmasr.load(args.model, device="cpu", dtype="float32", assistant=args.assistant)
    if args.transcript:
        text = Path(args.transcript).read_text(encoding="utf-8")
        print("| | tokens | reads | with a draft | agreed |\n|---|---|---|---|---|")
        for least, most in itertools.product(args.least, args.most):
            print(count_ngrams(text, recognizer.tokenizer.encode, least, most))
        return
    if not args.recordings:
        parser.error("expected recordings, or --transcript")
    assisted, stop = recognizer.windows.model, recognizer.config.stop
    model = assisted.model if isinstance(assisted, assistants.Assisted) else assisted
    searches = windows(recognizer, args)
    costs(model, searches[0], clock)

    phrases = []
    for phrase, _ in hotwords.read(args.hotwords) if args.hotwords else ():
        phrases += [recognizer.tokenizer.encode(" " + phrase), recognizer.tokenizer.encode(phrase)]

    def student(one: dict, sure: float) -> Drafting:
        heard = assisted._heard(one["audio"])
        return Drafting(assisted.student, heard, one["prompt"], stop=stop, capacity=one["limit"], sure=sure)

    def ngrams(one: dict, least: int) -> NGrams:
        return NGrams([*phrases, *(other["ids"] for other in one["before"])], least)

    ways: dict[str, tuple[Callable | None, int]] = {"greedy": (None, 0)}
    for most in args.most:
        if not args.agree:
            ways |= {f"n-grams of {n}, {most} ahead": (lambda one, n=n: ngrams(one, n), most) for n in args.least}
        if args.assistant and not args.agree:
            ways[f"assistant, {most} ahead"] = (lambda one: student(one, args.sure), most)
        for share in args.agree:
            drafts = lambda one, share=share: Agreeing(student(one, 0.0), [*one["ids"], *stop], share)  # noqa: E731
            ways[f"agree {share:g}, {most} ahead"] = (drafts, most)

    taken = {name: [0.0] * args.turns for name in ways}
    counted = {name: [0] * 5 for name in ways}  # tokens, reads, drafted, agreed, repeated
    different = dict.fromkeys(ways, 0)
    for turn in range(args.turns):
        for one in searches:
            for name, (draft, most) in ways.items():
                timed = Timed(model, clock)
                ahead = Ahead(timed, draft(one), most) if draft else None
                if ahead:
                    timed.read, timed.dtype, timed.device = model.read, model.dtype, model.device
                how = {"stop": stop, "max_new": one["limit"], "rules": one["rules"]}
                if ahead:
                    how["rules"] = [ahead.exact(one["rules"])]
                [found] = decode.greedy(ahead or timed, one["audio"], [one["prompt"]], **how)
                taken[name][turn] += clock() - timed.since
                if turn == 0:
                    one.setdefault("ids", found.ids)
                    tokens = len(found.ids) + found.stopped
                    more = (
                        (ahead.reads, ahead.drafted, ahead.agreed, ahead.repeated) if ahead else (tokens - 1, 0, 0, 0)
                    )
                    counted[name] = [a + b for a, b in zip(counted[name], (tokens, *more), strict=True)]
                    different[name] += found.ids != one["ids"]
    print(f"{len(searches)} windows, {counted['greedy'][0]} tokens, {args.turns} turns\n")
    print("| | tokens/s | beside greedy | reads | drafted | agreed | repeated | windows with other ids |")
    print("|---|---|---|---|---|---|---|---|")
    for name in ways:
        tokens, *counts = counted[name]
        speeds = [tokens / seconds for seconds in taken[name]]
        ratios = [a / b for a, b in zip(taken["greedy"], taken[name], strict=True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        cells = [f"{statistics.median(speeds):.1f}", ratio, *map(str, counts), str(different[name])]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
