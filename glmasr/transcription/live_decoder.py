"""What live sessions want decoded -> what is said there: those of several sessions in common batches.

Request, not final -> encode, greedy search after the ids that are committed, words with times -> Heard
Request, final     -> as of a recording: `Recognizer.decode_together` -> Part
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from ..alignment.words import characters, spans
from ..config import EncoderDecoderConfig
from ..decode import Hypothesis
from ..errors import CheckpointError, GlmAsrError, ShortMemoryError, out_of_memory
from ..rules import Rule, StopLoops
from .chunking import Window
from .fallback import Limits
from .families import Family, Job, Piece, RecordingState
from .live_events import Event
from .live_words import Said
from .options import Options
from .results import Part
from .search import search
from .window_decoder import WindowDecoder
from .word_times import timed_words

LOOP = 6  # ids that a loop has at least, all its turns together
PHRASE = 5  # ids that nobody is likely to say twice in a row
TOKENS, TOKENS_A_SECOND = 8, 10  # in an answer, for each second that isn't committed


@dataclass(frozen=True)
class Request:
    """A stretch of sound to decode. `prefix`: ids that its text begins with; `new`: seconds of sound after them.
    `draft`: those that probably follow. `final`: it will get no longer."""

    window: Window
    recording: RecordingState
    options: Options
    prefix: tuple[int, ...] = ()
    new: float = 0.0
    draft: tuple[int, ...] = ()
    final: bool = False


class Recognizer(Protocol):
    """What sessions need of a `pipeline.Recognizer`."""

    windows: WindowDecoder

    @property
    def family(self) -> Family:
        """Its adapter."""

    def check(self, language: str = "auto", options: Options = ...) -> Options:
        """The options with the model's defaults. Raises OptionError."""
        ...

    def decode_together(self, jobs: list[Job], options: Options) -> list[Part | GlmAsrError]:
        """The parts of whole segments."""
        ...


@dataclass(frozen=True)
class Heard:
    """What was heard after the prefix, and in which language; nothing where that can't be right."""

    said: tuple[Said, ...] = ()
    language: str = ""


Course = Generator[Event | Request, Heard | Part | GlmAsrError | None, None]


def run_together(recognizer: Recognizer, courses: Sequence[Course]) -> list[list[Event | GlmAsrError]]:
    """The events of courses of sessions, which decode together."""
    found: list[list[Event | GlmAsrError]] = [[] for _ in courses]
    waiting: dict[int, Request] = {}

    def go_on(index: int, answer: "Heard | Part | GlmAsrError | None" = None) -> None:
        """Up to the next request."""
        try:
            while not isinstance(item := courses[index].send(answer), Request):
                found[index].append(item)
                answer = None
            waiting[index] = item
        except StopIteration:
            pass
        except GlmAsrError as error:
            found[index].append(error)

    for index in range(len(courses)):
        go_on(index)
    while waiting:
        asked, waiting = waiting, {}
        for index, answer in zip(asked, decode(recognizer, list(asked.values())), strict=True):
            go_on(index, answer)
    return found


def raised(found: list[Event | GlmAsrError]) -> list[Event]:
    """The events; raises the error at their end."""
    events = [event for event in found if not isinstance(event, GlmAsrError)]
    for error in found[len(events) :]:
        raise error  # type: ignore[misc]
    return events


def decode(recognizer: Recognizer, requests: Sequence[Request]) -> list[Heard | Part | GlmAsrError]:
    """An answer for each; what can't be decoded is an error for it alone."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, request in enumerate(requests):
        rules = recognizer.family.rules(request.recording.language.requested, request.options)
        length = 0 if request.final else recognizer.family.padded_length(request.window, _quick(request.options))
        groups.setdefault((request.options, request.final, id(rules), length), []).append(index)
    found: dict[int, Heard | Part | GlmAsrError] = {}
    for (options, final, _, length), members in groups.items():
        some = [requests[index] for index in members]
        if final:
            jobs = [Job(request.window, request.recording) for request in some]
            size = recognizer.windows.batch_size(options)
            for start in range(0, len(jobs), size):
                parts = recognizer.decode_together(jobs[start : start + size], options)
                found |= zip(members[start : start + size], parts, strict=True)
        else:
            found |= zip(members, _answered(recognizer, some, length, _quick(options)), strict=True)
    return [found[index] for index in range(len(requests))]


def _quick(options: Options) -> Options:
    """For a text that is soon replaced: greedy, once, without times of its own."""
    return replace(options, timestamps=False, beams=1, temperatures=(0.0,), guards=False, pad_to="speech")


def _answered(
    recognizer: Recognizer, requests: list[Request], length: int, options: Options
) -> list[Heard | GlmAsrError]:
    """As `WindowDecoder.decode` does it: what fails together is decoded one by one."""
    try:
        return list(_heard(recognizer, requests, length, options))
    except CheckpointError as error:
        refused: GlmAsrError = CheckpointError(str(error))  # without the frames, which hold what the batch took
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        refused = ShortMemoryError("the memory of the device doesn't hold one more text; expected fewer sessions")
    if len(requests) == 1:
        return [refused]
    return [one for request in requests for one in _answered(recognizer, [request], length, options)]


@torch.inference_mode()
def _heard(recognizer: Recognizer, requests: list[Request], length: int, options: Options) -> list[Heard]:
    family, windows = recognizer.family, recognizer.windows
    jobs = [Job(request.window, request.recording) for request in requests]
    rules: list[Rule] = [*family.rules(jobs[0].requested, options), StopLoops(family.config.stop[0])]
    encoded = family.encode(jobs, length, options, {job.recording: job.recording.language for job in jobs})
    prompts = encoded.prompts
    known = [_confirmed(family, request, *encoded.rows([index])) for index, request in enumerate(requests)]
    begun = [[*prompt, *ids] for prompt, ids in zip(prompts, known, strict=True)]
    limits = [TOKENS + round(TOKENS_A_SECOND * request.new) for request in requests]
    budgets = [
        min(limit, windows.budget(job.window, len(ids), options))
        for limit, job, ids in zip(limits, jobs, begun, strict=True)
    ]
    bias = windows.biases.find(options.hotwords)
    groups: dict[int, list[int]] = {}
    for index, ids in enumerate(begun):  # learned positions can't be shifted: such prompts are equally long in a batch
        groups.setdefault(len(ids) if isinstance(family.config, EncoderDecoderConfig) else 0, []).append(index)
    found: dict[int, Hypothesis] = {}
    for members in groups.values():
        audio, _ = encoded.rows(members)
        some = [begun[index] for index in members]
        most = [budgets[index] for index in members]
        hypotheses = search(windows.model, audio, some, family.config.stop, most, options, rules, bias=bias)
        found |= zip(members, hypotheses, strict=True)
    heard = []
    for index, request in enumerate(requests):
        hypothesis = found[index]
        ids = unlooped([*known[index], *hypothesis.ids])
        silence = hypothesis.empty if encoded.no_speech is None else encoded.no_speech[index]
        said: tuple[Said, ...] = ()
        if len(ids) > len(request.prefix) and (request.prefix or not Limits().silent(hypothesis, silence)):
            row, [prompt] = encoded.rows([index])
            said = tuple(_grouped(family, request, row, prompt, ids))
        heard.append(Heard(said, encoded.languages[index]))
    return heard


def _confirmed(family: Family, request: Request, audio: Any, prompts: list[list[int]]) -> list[int]:
    """The prefix, and what of the draft greedy search would say again: one pass over all of it is cheaper than a step
    for each. Hotwords change what is said, so with them there is no draft."""
    prefix, draft = list(request.prefix), list(request.draft)
    if not draft or request.options.hotwords:
        return prefix
    best = family.read_again(request.window, audio, prompts[0], [*prefix, *draft]).logits.argmax(-1).tolist()
    count = 0
    while count < len(draft) and best[len(prefix) + count : len(prefix) + count + 1] == [draft[count]]:
        count += 1
    return [*prefix, *draft[:count]]


def unlooped(ids: list[int]) -> list[int]:
    """The ids up to where they repeat themselves until the end, for the second time, or the third if they are few. A
    sound that ends amid a word makes a decoder loop; what it says first is as good as any."""
    for period in range(1, len(ids) // 2 + 1):
        same = 0
        while same < len(ids) - period and ids[-1 - same] == ids[-1 - same - period]:
            same += 1
        if same >= (period if period >= PHRASE else 2 * period) and same + period >= LOOP:
            return ids[: len(ids) - same]
    return ids


def _grouped(family: Family, request: Request, audio: Any, prompt: list[int], ids: list[int]) -> Iterator[Said]:
    """The words of an answer after its prefix; nothing where they can't be found in the sound. Those that share a token
    stay together: a prefix has whole tokens."""
    [words], found = timed_words(family, request.window, audio, prompt, [Piece(0.0, 0.0, "", ids)])
    text, places = characters(ids, family.tokenizer.decoder())
    border = len(request.prefix)
    # Signs after the last word of the prefix go with the word that follows.
    since = next(index for index, place in enumerate(places) if place >= border)
    first, some = border, []
    for word, (_, last) in zip(words, spans(text), strict=True) if found else ():
        if last > since and any(sign.isalnum() for sign in text[since:last]):
            some.append(word)
            if (place := places[last]) == int(place):
                yield Said(text[since:last], tuple(some), tuple(ids[first : int(place)]))
                since, first, some = last, int(place), []
