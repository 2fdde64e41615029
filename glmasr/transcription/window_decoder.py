"""A batch of windows -> the parts of their recordings: search, checks, retries, and what no text covers.

decode            one batch, or one by one what is too much or has no answer together
  _grouped        what has other rules, or is padded to another length, apart
    _alike        encode; windows in several languages are decoded piece by piece
      _answer     search; an answer that fails the checks is tried again at higher temperatures, then in two halves
        _cover    stretches of speech that no text covers, once more
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from .. import decode
from ..decode import Hypothesis
from ..errors import CheckpointError, GlmAsrError, OptionError, ShortMemoryError, out_of_memory
from ..rules import Rule, StopLoops, loops
from ..searching.favor import Bias
from . import coverage, recovery
from .assistant import Assisted
from .chunking import Window
from .fallback import Limits, compression_ratio, fallback, favored
from .families import EncodedBatch, Family, Job, RecordingState, States
from .hotwords import Hotwords
from .language import join, written_in
from .options import Options
from .prompts import DOUBTED, remembered, sureness
from .recovery import Lost, fuller, halves_of, lacking, lost_stretches, patched
from .results import FLAGS, Part, Segment, Word
from .search import search
from .spelling import Biases
from .word_times import timed_words

TOKENS_A_SECOND, TOKENS_AT_LEAST = 16, 32  # in the answer of a window; fast speech is about 8 tokens a second
UNSURE = -0.4  # mean log-probability; below it, and in a language that isn't sure, the next likely language is compared

Attempt = Callable[[list[int], float], list[Hypothesis]]


class WindowDecoder:
    """`batch_size`: how many windows are decoded together at most; it looks at the free memory."""

    def __init__(self, model: decode.Model, family: Family, batch_size: Callable[[Options], int]):
        self.model, self.family, self.batch_size = model, family, batch_size
        device = getattr(model, "device", "cpu")
        self.biases = Biases(family.tokenizer, family.config.decoder.vocabulary, device)

    def check(self, beams: int, hotwords: Hotwords) -> None:
        """Raises OptionError for what a search can't do."""
        if isinstance(self.model, Assisted) and beams > 1:
            raise OptionError(
                f"beams is {beams}, and an assistant drafts for greedy search; expected beams 1, or no assistant"
            )
        self.biases.find(hotwords)

    def decode(self, jobs: list[Job], options: Options) -> list[Part | GlmAsrError]:
        """The parts of some jobs. What the model can't answer is an error for it alone; so is what memory doesn't
        hold. The languages that were detected are stored with their recordings once all of it has succeeded."""
        try:
            parts, states = self._grouped(jobs, options, {job.recording: job.recording.language for job in jobs})
        except (CheckpointError, ShortMemoryError) as error:
            refused: GlmAsrError = type(error)(str(error))  # without the frames, which hold what the batch took
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            device = getattr(self.model, "device", "cpu")
            refused = ShortMemoryError(
                f"the memory of the device {str(device)!r} doesn't hold one window with these options: "
                f"{str(error).partition(chr(10))[0] or 'MemoryError'}; "
                "expected fewer beams, a smaller max_new_tokens, or more memory"
            )
        else:
            for recording, state in states.items():
                recording.language = state
            return list(parts)
        if len(jobs) == 1:
            return [refused]
        return [part for job in jobs for part in self.decode([job], options)]

    def _again(self, jobs: list[Job], options: Options) -> list[Part]:
        """Parts of windows of this batch, decoded by themselves; what they say of a language is theirs alone."""
        states = {job.recording: job.recording.language for job in jobs}
        return self._grouped(jobs, options, states, nested=True)[0]

    def _grouped(
        self, jobs: list[Job], options: Options, states: States, nested: bool = False
    ) -> tuple[list[Part], States]:
        """The parts, and the languages of the recordings afterwards. `nested`: see `_answer`.

        TRAP: where the first window with speech says the language of those after it, one of another length has to wait
        its turn.
        """
        if options.context and not nested:
            return self._in_turn(jobs, options, states)
        groups: dict[tuple[int, int, int], list[int]] = {}
        turns: dict[RecordingState, tuple[int, int]] = {}  # of each recording: its turn, and the length of its windows
        rules = [self.family.rules(job.requested, options) for job in jobs]
        for index, job in enumerate(jobs):
            length = self.family.padded_length(job.window, options)
            turn, before = turns.get(job.recording, (0, length))
            turn += length != before and self.family.detects_language and job.requested == "auto"
            turns[job.recording] = turn, length
            groups.setdefault((turn, id(rules[index]), length), []).append(index)
        found: dict[int, Part] = {}
        for (_, _, length), members in sorted(groups.items(), key=lambda group: group[0][0]):
            some = [jobs[index] for index in members]
            parts, states = self._alike(some, length, rules[members[0]], options, states, nested)
            found |= zip(members, parts, strict=True)
        return [found[index] for index in range(len(jobs))], states

    def _in_turn(self, jobs: list[Job], options: Options, states: States) -> tuple[list[Part], States]:
        """One by one, each with the text of those before it. That may lead a window astray: what isn't sure in spite of
        it, or is a copy of it, is decoded without it too, and the surer answer stays."""
        parts: list[Part] = []
        for job in jobs:
            length, rules = self.family.padded_length(job.window, options), self.family.rules(job.requested, options)
            [part], after = self._alike([job], length, rules, options, states, False)
            if (context := states[job.recording].context) and sureness(part, context) < DOUBTED:
                alone = states | {job.recording: replace(states[job.recording], context="")}
                [other], then = self._alike([job], length, rules, options, alone, False)
                if sureness(other) >= sureness(part, context):
                    part, after = other, then
            after[job.recording] = replace(after[job.recording], context=remembered(context, part))
            parts, states = [*parts, part], after
        return parts, states

    @torch.inference_mode()
    def _alike(
        self, jobs: list[Job], length: int, rules: list[Rule], options: Options, states: States, nested: bool
    ) -> tuple[list[Part], States]:
        """One batch of windows with the same rules and length."""
        encoded = self.family.encode(jobs, length, options, states)
        pieces = encoded.pieces or [[] for _ in jobs]
        whole = [index for index in range(len(jobs)) if not pieces[index]]
        if len(whole) == len(jobs):
            return self._answer(jobs, encoded, rules, options, nested), encoded.states
        some = [jobs[index] for index in whole]
        answers = iter(self._answer(some, encoded.select(whole), rules, options, nested) if whole else ())
        parts = [
            self._by_language(job, pieces[index], options, nested) if pieces[index] else next(answers)
            for index, job in enumerate(jobs)
        ]
        return parts, encoded.states

    def _by_language(self, job: Job, pieces: list[tuple[Window, str]], options: Options, nested: bool) -> Part:
        """A window in several languages, piece by piece."""
        last = pieces[-1][0]
        jobs = [
            replace(
                job, window=window, recording=RecordingState.of(language), continues=job.continues and window is last
            )
            for window, language in pieces
        ]
        states = {one.recording: one.recording.language for one in jobs}
        parts, _ = self._grouped(jobs, options, states, nested)
        return Part(
            job.window.begin,
            job.window.begin + job.window.seconds,
            parts[0].language,
            [segment for part in parts for segment in part.segments],
            [warning for part in parts for warning in part.warnings],
            any(part.failed for part in parts),
            parts[-1].resume,
            uncovered=tuple(place for part in parts for place in part.uncovered),
        )

    def _answer(
        self, jobs: list[Job], encoded: EncodedBatch, rules: list[Rule], options: Options, nested: bool
    ) -> list[Part]:
        """Searches, retries what fails the checks, and looks for what is missing. `nested`: these are parts of a window
        of the batch, which are not split again."""
        checks = _Checks(self.family, jobs, encoded, options)
        found = self._search(jobs, encoded, rules, checks, options)
        parts: list[Part] = []
        complete: list[int] = []  # the numbers of those that weren't split
        for index, (job, (hypothesis, temperature)) in enumerate(zip(jobs, found, strict=True)):
            failed = checks.failed(index, hypothesis)
            if failed and not nested and job.window.seconds >= recovery.SPLIT_SECONDS:
                # The language that this window was taken for; by now later ones may have said more of the recording.
                recording = RecordingState.of(encoded.languages[index] or "auto")
                split = self._split(replace(job, recording=recording), options)
                text = self.family.text(hypothesis.ids)
                confirmed = coverage.same(text, join([segment.text for segment in split.segments]))
                if not checks.may_repeat(index, hypothesis) or not (confirmed or split.failed or split.uncovered):
                    parts.append(split)
                    continue
                failed = () if confirmed else failed
            parts.append(self._part_of(job, index, hypothesis, temperature, failed, checks))
            complete.append(index)
        return self._cover(jobs, parts, complete, options, nested) if options.guards else parts

    def _search(
        self, jobs: list[Job], encoded: EncodedBatch, rules: list[Rule], checks: "_Checks", options: Options
    ) -> list[tuple[Hypothesis, float]]:
        stop = self.family.config.stop
        budgets = [
            self.budget(job.window, len(prompt), options) for job, prompt in zip(jobs, encoded.prompts, strict=True)
        ]
        guards = [StopLoops(stop[0])] if options.guards else []

        def attempt(chosen: list[int], temperature: float, bias: Bias | None = None) -> list[Hypothesis]:
            limits = [budgets[index] for index in chosen]
            audio = encoded.rows(chosen)
            return search(self.model, *audio, stop, limits, options, [*rules, *guards], temperature, bias)

        schedule, bias = options.temperature_schedule, self.biases.find(options.hotwords)
        if bias is None:
            found = fallback(attempt, len(jobs), checks.good, schedule)
            self._compare_languages(encoded, found, attempt, checks, options)
        else:
            biased = partial(attempt, bias=bias)
            found = favored(biased, attempt, len(jobs), checks.good, checks.silent, checks.known_silent(), schedule)
            self._compare_languages(encoded, found, biased, checks, options)
        return found

    def _compare_languages(
        self,
        encoded: EncodedBatch,
        found: list[tuple[Hypothesis, float]],
        attempt: Attempt,
        checks: "_Checks",
        options: Options,
    ) -> None:
        """Where it isn't sure which language is spoken, nor the text: the text of the next likely one, if that is
        surer."""
        others = encoded.runners_up or []
        unsure = [index for index, other in enumerate(others) if other and found[index][0].mean_logprob < UNSURE]
        if not unsure:
            return
        before = {index: encoded.prompts[index] for index in unsure}
        for index in unsure:
            encoded.prompts[index] = self.family.prompt(others[index], options)
        for index, hypothesis in zip(unsure, attempt(unsure, 0.0), strict=True):
            surer = hypothesis.mean_logprob > found[index][0].mean_logprob
            if surer and not checks.failed(index, hypothesis) and self.family.text(hypothesis.ids):
                found[index], encoded.languages[index] = (hypothesis, 0.0), others[index]
            else:
                encoded.prompts[index] = before[index]

    def _part_of(
        self,
        job: Job,
        index: int,
        hypothesis: Hypothesis,
        temperature: float,
        failed: tuple[str, ...],
        checks: "_Checks",
    ) -> Part:
        """The part that an answer makes; `failed`: the checks that it failed to the end."""
        options, window = checks.options, job.window
        text, language = self.family.text(hypothesis.ids), checks.encoded.languages[index]
        silent = options.guards and checks.silent(index, hypothesis)
        tonal = options.guards and bool(text) and hypothesis.mean_logprob < checks.limits.tones and window.tonal()
        sampled = temperature > options.temperature_schedule[0]
        more = {"tones": tonal, "incomplete": not hypothesis.stopped, "sampled": sampled}
        flags = (*failed, *(name for name, holds in more.items() if holds))
        pieces = [] if silent else self.family.segments(window, hypothesis.ids)
        words: list[tuple[Word, ...]] = [() for _ in pieces]
        if options.words and pieces:
            audio, [prompt] = checks.encoded.rows([index])
            words, found = timed_words(self.family, window, audio, prompt, pieces)
            flags = flags if found else (*flags, "interpolated")
        segments = [
            Segment(
                piece.start,
                piece.end,
                piece.text,
                round(hypothesis.mean_logprob, 4),
                round(compression_ratio(text), 3),
                round(checks.no_speech(index, hypothesis), 4),
                float(temperature),
                flags,
                _segment_language(piece.text, language, job, options),
                said,
            )
            for piece, said in zip(pieces, words, strict=True)
        ]
        part = make_part(window, language, segments, bool(failed), options, () if silent else flags)
        return replace(part, resume=part.end if silent else self.family.resume(window, hypothesis.ids))

    def _cover(
        self, jobs: list[Job], parts: list[Part], complete: list[int], options: Options, nested: bool
    ) -> list[Part]:
        """The parts, with text where there is speech and there was none, or too little of it: such stretches are
        decoded by themselves. What stays without text is reported."""
        lost: list[Lost] = []
        again: list[Job] = []
        for index in complete:
            job = jobs[index]
            parts[index], found = lost_stretches(job, parts[index], index, nested)
            lost += found
            attempts = job.attempts + (not parts[index].segments)
            for one in found:
                for window in one.pieces:
                    state = RecordingState.of(job.requested, parts[index].language, job.window.begin)
                    again.append(Job(window, state, attempts))
        size = self.batch_size(options) if again else 1  # it looks at the free memory
        batches = (again[start : start + size] for start in range(0, len(again), size))
        decoded = (part for batch in batches for part in self._again(batch, options))
        found_again: dict[int, list[tuple[Lost, list[Part]]]] = {}
        for one in lost:
            tries = [next(decoded) for _ in one.pieces]
            tries = fuller(tries, one.stretch.voice) if one.two_ways else tries
            found_again.setdefault(one.part, []).append((one, tries))
        return [patched(part, found_again[index]) if index in found_again else part for index, part in enumerate(parts)]

    def _split(self, job: Job, options: Options) -> Part:
        """The window once more, in two halves."""
        jobs = [replace(job, window=half, continues=False) for half in halves_of(job.window)]
        parts = self._again(jobs, options)
        segments = [replace(segment, flags=(*segment.flags, "split")) for part in parts for segment in part.segments]
        failed = any(part.failed for part in parts) or not segments  # there was a text, and now there is none
        uncovered = tuple(place for part in parts for place in part.uncovered)
        flags = ("split",) if segments else ("dropped",)
        part = make_part(job.window, parts[0].language, segments, failed, options, flags)
        return replace(part, uncovered=uncovered, warnings=[*part.warnings, *map(lacking, uncovered)])

    def budget(self, window: Window, prompt: int, options: Options) -> int:
        """Tokens that an answer may have."""
        budget = options.max_new_tokens or TOKENS_AT_LEAST + round(TOKENS_A_SECOND * window.seconds)
        return max(1, min(budget, self.family.token_limit(prompt)))


class _Checks:
    """Why the answers of a batch can't be right."""

    def __init__(self, family: Family, jobs: list[Job], encoded: EncodedBatch, options: Options):
        self.family, self.jobs, self.encoded, self.options, self.limits = family, jobs, encoded, options, Limits()

    def no_speech(self, index: int, hypothesis: Hypothesis) -> float:
        return hypothesis.empty if self.encoded.no_speech is None else self.encoded.no_speech[index]

    def known_silent(self) -> list[int]:
        """Those in which probably nobody speaks, as far as that is known before the search."""
        known = self.encoded.no_speech or []
        return [index for index, silence in enumerate(known) if silence > self.limits.no_speech]

    def silent(self, index: int, hypothesis: Hypothesis) -> bool:
        return self.limits.silent(hypothesis, self.no_speech(index, hypothesis))

    def failed(self, index: int, hypothesis: Hypothesis) -> tuple[str, ...]:
        """Names of FLAGS."""
        if not self.options.guards or self.silent(index, hypothesis):
            return ()
        text = self.family.text(hypothesis.ids)
        found = self.limits.failed_checks(hypothesis, text, self.no_speech(index, hypothesis))
        return found if "repeats" in found or not loops(hypothesis.ids) else ("repeats", *found)

    def may_repeat(self, index: int, hypothesis: Hypothesis) -> bool:
        """Whether the text repeats itself and may be right: a sentence can be said five times. Sampling is no
        help; halves show it."""
        if self.failed(index, hypothesis) != ("repeats",) or loops(hypothesis.ids):
            return False
        voice = float(self.jobs[index].window.voiced().sum()) * coverage.FRAME
        return coverage.fits(self.family.text(hypothesis.ids), voice)

    def good(self, index: int, hypothesis: Hypothesis) -> bool:
        return not self.failed(index, hypothesis) or self.may_repeat(index, hypothesis)


def make_part(
    window: Window, language: str, segments: list[Segment], failed: bool, options: Options, flags: tuple[str, ...]
) -> Part:
    """`flags`: those of the window, which are reported even if there is no segment to carry them. Where text is missing
    is reported by `lacking`."""
    end = window.begin + window.seconds
    names = dict.fromkeys([*(name for segment in segments for name in segment.flags if name != "uncovered"), *flags])
    hint = "; --max-new-tokens raises it" if options.max_new_tokens else ""
    warnings = [
        f"{window.begin:.1f} s to {end:.1f} s: {FLAGS[name]}{hint if name == 'incomplete' else ''}" for name in names
    ]
    return Part(window.begin, end, language, segments, warnings, failed, resume=end)


def _segment_language(text: str, language: str, job: Job, options: Options) -> str:
    """A window can begin in one language and end in another."""
    if job.requested != "auto" or options.task != "transcribe":
        return language
    written = written_in(text, language)
    return written if not language or written in (options.languages or (written,)) else language
