"""What happens to a recording, for people who came to learn: stages, shapes, parameters, times, and what the search kept.

    with observed(recogniser) as run:
        recogniser.transcribe("talk.wav")
    print(report(run))

Nothing is computed here that the pipeline doesn't compute: it runs as always, and while the `with` block lasts, hooks on the
model's modules, and wrappers around the few functions that are no modules, note what comes out. Afterwards they are gone.

Unusual:
  - Times and parameters add up. A moment belongs to the innermost stage at work; a parameter to the stage that used it first,
    so a tied head has none, and the keys and values of cross-attention are not among those of the blocks they lie in.
  - The search is watched through what it offers: one more rule before all others, one behind them, and `watch`.
  - On a GPU the clock waits for a stage's work to be done, so an explained run is slower than a plain one.
"""

import math
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import audio as sound
from .. import decode, pipeline
from ..audio_files import reader
from ..conv_frontend import MelFrontend, WaveformFrontend
from ..decoder import CrossDecoder, LlamaDecoder
from ..encoder import RotaryEncoder, SinusoidalEncoder
from ..kernels import prepare
from ..model import EncoderDecoder
from ..pipeline import Recogniser
from ..transcription import window_decoder
from ..transcription.fallback import Limits

# Modules whose parts are stages. Every other module is a stage itself, and the blocks of a list are one together.
CONTAINERS = (RotaryEncoder, SinusoidalEncoder, MelFrontend, WaveformFrontend, nn.Sequential, LlamaDecoder, CrossDecoder)
# Stages that are not taken apart, although others run in them.
WHOLE = {"language", "step"}

WIDTH = 110                     # columns of a report
LIKELIEST = 5                   # first tokens in it
TOKENS, STEPS = 24, 10          # steps in it of a search without beams and of one with them; the last step is besides
ABREAST = 3                     # beams in it


# -- what was observed -------------------------------------------------------------------------------------------------

@dataclass
class Stage:
    """A stage of the way: where its code is, of how many blocks it is made, how often they ran, and their first result."""

    where: str
    blocks: int = 1
    calls: int = 0
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Kept:
    """A sequence that a search has: its new ids, the stop id included, and what the search compares, a sum of log-probabilities."""

    ids: list[int]
    score: float


@dataclass
class Search:
    """A search, as far as its first recording or window is concerned. `before` and `after` are the log-probabilities (V,) of
    the first token without the rules and with them; `steps` says for each step what was kept, the best first."""

    heard: Tensor
    prompt: list[int]
    options: pipeline.Options
    temperature: float
    before: Tensor | None = None
    after: Tensor | None = None
    steps: list[list[Kept]] = field(default_factory=list)
    result: decode.Hypothesis | None = None

    def first_rule(self, logits: Tensor, new_tokens: Tensor) -> None:
        """A `decode.Rule` that changes nothing, as `last_rule`."""
        if new_tokens.shape[1] == 0:
            self.before = logits[0].log_softmax(-1).cpu()

    def last_rule(self, logits: Tensor, new_tokens: Tensor) -> None:
        if new_tokens.shape[1] == 0:
            self.after = logits[0].log_softmax(-1).cpu()

    def watch(self, recordings: list[int], ids: Tensor, score: Tensor, length: Tensor, stopped: Tensor) -> None:
        """A `decode.Watch` of the first recording. What ended in an earlier step is left out; the search may go on for others."""
        if recordings[0] != 0:
            return
        step = len(self.steps) + 1
        rows = zip(ids[0].tolist(), score[0].tolist(), length[0].tolist())
        kept = [Kept(row[:count], value) for row, value, count in rows if count == step and value > -math.inf]
        if kept:
            self.steps.append(sorted(kept, key=lambda sequence: -sequence.score))


class Observation:
    """What was noted of one recording.

    stages          by name, in the order in which they first gave something
    parameters      of a stage, without those that a stage before used
    seconds         of a stage, without those of stages within
    searches        in their order
    judged          probability of each language of an encoder-decoder, and that nobody speaks
    rate, windows   of the recording: samples a second, and windows of the model
    """

    def __init__(self, recogniser: Recogniser):
        self.recogniser = recogniser
        self.stages: dict[str, Stage] = {}
        self.parameters: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.searches: list[Search] = []
        self.judged: tuple[dict[str, float], float] | None = None
        self.rate = self.windows = 0
        self._used: set[Tensor] = set()
        self._open: list[str] = []              # stages at work, the innermost last
        self._since = 0.0

    @property
    def attempts(self) -> list[Search]:
        """The searches in the first window: more than one where a text couldn't be right. The last one counts."""
        found = self.searches[:1]
        for search in self.searches[1:]:
            if search.temperature <= found[-1].temperature or not torch.equal(search.heard, found[0].heard):
                break
            found.append(search)
        return found

    @property
    def at_work(self) -> str:
        """The innermost stage at work, also within one that is not taken apart."""
        return self._open[-1]

    def begin(self, name: str) -> None:
        if not self._open:
            self._since = time.perf_counter()
        elif WHOLE.isdisjoint(self._open):
            self._tick(self.at_work)
        self._open.append(name)

    def end(self, name: str, where: str, result=None, blocks: int = 1) -> None:
        self._open.pop()
        if WHOLE.isdisjoint(self._open):
            self._tick(name)
            self.note(name, where, result, blocks).calls += 1

    def note(self, name: str, where: str, result=None, blocks: int = 1) -> Stage:
        """The stage of that name, new if there is none. Of a nested result the first tensor counts."""
        stage = self.stages.setdefault(name, Stage(where, blocks))
        while isinstance(result, (list, tuple)) and result:
            result = result[0]
        if stage.shape is None and isinstance(result, Tensor):
            stage.shape, stage.dtype = tuple(result.shape), result.dtype
        return stage

    def use(self, name: str, parameter: Tensor) -> None:
        """A stage uses a parameter, which belongs to it if none did before."""
        if parameter not in self._used:
            self.parameters[name] += parameter.numel()
            self._used.add(parameter)

    def _tick(self, name: str) -> None:
        """The time since the last tick was that of the stage `name`."""
        if self.recogniser.model.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name] += now - self._since
        self._since = now


# -- observing ---------------------------------------------------------------------------------------------------------

@contextmanager
def observed(recogniser: Recogniser) -> Iterator[Observation]:
    """Notes how `recogniser` recognises one recording within the `with` block.

    TRAP: meanwhile functions of `audio`, `decode` and `pipeline` are replaced, for every recogniser and every thread.
    """
    run, model = Observation(recogniser), recogniser.model
    with ExitStack() as stack:                  # takes everything back, whatever happens
        def wrap(owner, name: str, wrapper: Callable, *args) -> None:
            before, own = getattr(owner, name), name in vars(owner)
            # What stands in front of a method is an attribute of the object, and goes.
            stack.callback(*(setattr, owner, name, before) if own else (delattr, owner, name))
            setattr(owner, name, wrapper(run, before, *args))

        wrap(recogniser, "transcribe", _timed, "everything else")
        wrap(reader, "read", _timed, "read")
        wrap(sound, "mono", _each, "read")
        wrap(sound, "_resampled", _resampled)
        wrap(sound, "log_mel", _heard, "log-mel")
        wrap(window_decoder, "search", _search)
        for name in ("greedy", "sample", "beam"):
            wrap(decode, name, lambda run, search: partial(search, watch=lambda *kept: run.searches[-1].watch(*kept)))
        wrap(model, "step", _timed, "step")
        if isinstance(model, EncoderDecoder):
            if model.config.encoder.convolutions:
                wrap(model, "features", _heard, "samples")
            wrap(model, "judge", _judged)
            wrap(model.decoder, "hear", _timed, "decoder.hear")
            wrap(model.decoder, "head", _timed, "decoder.head")
        else:
            wrap(model, "encode", _timed, "audio rows")
        for handle in _hooks(run, model):
            stack.callback(handle.remove)
        yield run


def _where(function: Callable) -> str:
    return f"{function.__module__.split('.')[-1]}.py, {function.__qualname__}"


def _timed(run: Observation, function: Callable, name: str) -> Callable:
    """The function, as the stage `name`."""
    def timed(*args, **more):
        run.begin(name)
        result = function(*args, **more)
        run.end(name, _where(function), result)
        return result
    return timed


def _each(run: Observation, function: Callable, name: str) -> Callable:
    """As `_timed`, for a generator of samples; the stage's shape is that of all of them."""
    def each(*args):
        parts = function(*args)
        while True:
            run.begin(name)
            part = next(parts, None)
            run.end(name, _where(function))
            stage = run.stages[name]
            stage.calls = 1
            if part is None:
                return
            stage.shape, stage.dtype = (sum(stage.shape or ()) + len(part),), part.dtype
            yield part
    return each


def _resampled(run: Observation, function: Callable) -> Callable:
    def resampled(parts, source_rate: int, target_rate: int):
        run.rate = source_rate
        # At the right rate the samples only pass, and there is no such stage.
        return (function if source_rate == target_rate else _each(run, function, "resample"))(parts, source_rate, target_rate)
    return resampled


def _heard(run: Observation, function: Callable, name: str) -> Callable:
    """As `_timed`, for a function of windows (S,) or (B, S)."""
    def heard(samples: Tensor, *args):
        run.note("windows", "", samples)
        run.windows += samples.numel() // samples.shape[-1]
        return _timed(run, function, name)(samples, *args)
    return heard


def _judged(run: Observation, function: Callable) -> Callable:
    def judged(states: Tensor):
        languages, no_speech = _timed(run, function, "language")(states)
        if run.judged is None:
            run.judged = dict(zip(run.recogniser.config.languages, languages[0].tolist())), float(no_speech[0])
        return languages, no_speech
    return judged


def _search(run: Observation, function: Callable) -> Callable:
    def search(model, audio, prompts, stop, budgets, options, rules, temperature=0.0):
        first = audio[0][0][0] if isinstance(audio[0], tuple) else audio[0]     # keys of the first layer; else audio rows
        seen = Search(first, prompts[0], options, temperature)
        run.searches.append(seen)
        rules = [seen.first_rule, *rules, seen.last_rule]
        found = _timed(run, function, "search")(model, audio, prompts, stop, budgets, options, rules, temperature)
        seen.result = found[0]
        return found
    return search


def _hooks(run: Observation, container: nn.Module, path: str = "") -> Iterator[RemovableHandle]:
    """Makes stages of the modules in a container, and notes which stage uses which parameters."""
    for name, child in container.named_children():
        if isinstance(child, CONTAINERS):
            yield from _hooks(run, child, f"{path}{name}.")
        elif isinstance(child, nn.ModuleList):
            # What the container itself has is added to what its blocks take: `SinusoidalEncoder.positions`.
            yield child[0].register_forward_pre_hook(partial(_use_own, run, container, path))
            for block in child:
                yield from _stage_hooks(run, block, path + name, container, len(child))
        elif prepare.num_parameters(child):
            yield from _stage_hooks(run, child, path + name, container)


def _use_own(run: Observation, container: nn.Module, path: str, *_) -> None:
    for name, parameter in container.named_parameters(recurse=False):
        run.note(path + name, _file(container), parameter)
        run.use(path + name, parameter)


def _stage_hooks(run: Observation, module: nn.Module, name: str, container: nn.Module, blocks: int = 1) -> Iterator[RemovableHandle]:
    ours = type(module).__module__.startswith(__package__)
    where = f"{_file(module if ours else container)}, {f'{blocks} x ' if blocks > 1 else ''}{type(module).__name__}"
    yield module.register_forward_pre_hook(lambda *_: run.begin(name))
    yield module.register_forward_hook(lambda _module, _args, result: run.end(name, where, result, blocks))
    seen = {}

    def use(part: nn.Module, _args) -> None:
        for parameter in prepare.weights_of(part):
            run.use(run.at_work, parameter)
        seen[part].remove()                     # once is enough, and these are many

    for part in module.modules():
        seen[part] = part.register_forward_pre_hook(use)
        yield seen[part]


def _file(module: nn.Module) -> str:
    return f"{type(module).__module__.split('.')[-1]}.py"


# -- telling -----------------------------------------------------------------------------------------------------------

def report(run: Observation) -> str:
    """What was observed, on a screen."""
    if not run.searches:
        return "\n".join([*_stages(run), "", "all of it is silent: nothing was heard, and no text searched for"])
    search, tokenizer = run.attempts[-1], run.recogniser.tokenizer
    lines = _stages(run) + ["", *_prompt(tokenizer, search)]
    if run.judged:
        likely = sorted(run.judged[0].items(), key=lambda item: -item[1])[:3]
        cells = [f"{name} {value:.3f}" for name, value in likely] + [f"that nobody speaks {run.judged[1]:.3f}"]
        lines.append("judged: " + ", ".join(cells))
    return "\n".join([*lines, *_first_token(tokenizer, search), *_kept(tokenizer, search), *_results(run)])


def _stages(run: Observation) -> list[str]:
    model, config, seconds = run.recogniser.model, run.recogniser.config, run.seconds
    table = [("stage", "shape", "type", "parameters", "ms", "")]
    for name, stage in run.stages.items():
        notes = {"read": f"{sum(stage.shape or ()) / (run.rate or 1):.2f} s at {run.rate} Hz", "windows": f"{run.windows} of {config.window_seconds} s",
                 "step": f"{1000 * seconds[name] / max(1, stage.calls):.2f} ms each", "search": "decode.py: rules and choices", "everything else": "pipeline.py"}
        times, shape = stage.calls // stage.blocks, str(stage.shape or "").replace(",)", ")")
        table.append((name, f"{times} x {shape}" if shape and times > 1 else shape, _dtype(stage.dtype),
                      f"{run.parameters[name]:,}" if run.parameters[name] else "", f"{1000 * seconds[name]:.2f}" if stage.calls else "",
                      notes.get(name, stage.where)))
    total = prepare.num_parameters(model)
    table.append(("together", "", "", f"{total:,}", f"{1000 * sum(seconds.values()):.2f}", ""))
    widths = [max(map(len, column)) for column in zip(*table)]
    head = f"{type(model).__name__}: {total:,} parameters in {_dtype(model.dtype)} on {model.device}"
    linears = run.recogniser.runtime.linears
    if linears != "plain":
        head += f", linears {linears}"
    elif (faster := prepare.choose(model, model.device, model.dtype)) != "plain":
        head += f"; these are the modules as they are to be read, without --explain linears are {faster}, and faster"
    return [head] + ["  ".join(cell.rjust(width) if place in (3, 4) else cell.ljust(width)
                                   for place, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in table]


def _dtype(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.") if dtype else ""


def _prompt(tokenizer, search: Search) -> list[str]:
    cells = []
    for id, run in groupby(search.prompt):
        count = len(list(run))
        cells += [f"{id} {token_text(tokenizer, id)} x {count}"] if count > 2 else [f"{id} {token_text(tokenizer, id)}"] * count
    return [f"prompt of {len(search.prompt)} tokens", *_flowed(cells)]


def _first_token(tokenizer, search: Search) -> list[str]:
    forbidden = int(search.after.isneginf().sum() - search.before.isneginf().sum())
    values, ids = search.after.topk(min(LIKELIEST, len(search.after)))
    head = f"first token, the likeliest of {len(search.after)}" + (f", of which the rules forbid {forbidden}" if forbidden else "")
    wish = int(search.before.argmax())
    if search.after[wish].isneginf():
        head += f", such as {_chance(tokenizer, wish, search.before[wish])}"
    return [head, *_flowed([_chance(tokenizer, id, value) for id, value in zip(ids.tolist(), values) if value > -math.inf])]


def _chance(tokenizer, id: int, logprob: float) -> str:
    return f"{id} {token_text(tokenizer, id)} {math.exp(logprob):.4f}"


def _kept(tokenizer, search: Search) -> list[str]:
    if max(map(len, search.steps)) == 1:
        # A score is a sum; what the step added to it is the token's own.
        before = [0.0, *(kept.score for [kept] in search.steps)]
        cells = [f"{number:>3}: {_chance(tokenizer, kept.ids[-1], kept.score - since)}"
                 for number, ([kept], since) in enumerate(zip(search.steps, before), 1)]
        cells = _folded(cells, TOKENS)
        width = max(map(_columns, cells))
        return ["greedy search: the token of each step, and its probability", *_flowed([_filled(cell, width) for cell in cells])]
    lines = []
    for number, step in enumerate(search.steps, 1):
        cells = [f"{kept.score:8.3f} {_tail(f'{spelled(tokenizer, kept.ids)!r}', 24)}" for kept in step[:ABREAST]]
        lines.append(f"{number:>3}:" + "".join(_filled(cell, 35) for cell in cells).rstrip())
    how = f"search with {search.options.beams} beams" if search.temperature == 0 else f"sampling at temperature {search.temperature}"
    return [f"{how}: the best {ABREAST} of what was kept in each step, with sums of log-probabilities", *_folded(lines, STEPS)]


def _results(run: Observation) -> list[str]:
    lines = []
    for search in run.attempts:
        result = search.result
        at = f"at temperature {search.temperature}: " if len(run.attempts) > 1 else ""
        lines.append(f"{at}{len(result.ids)} tokens, mean log-probability {result.mean_logprob:.3f}, ended by "
                     + ("a stop token" if result.stopped else "the limit"))
    if run.judged and Limits().silent(result, run.judged[1]):
        lines.append("taken for silence, so it is left out")
    if others := len(run.searches) - len(run.attempts):
        lines.append(f"not shown: {others} more {'search' if others == 1 else 'searches'}, in other windows or in the halves of this one")
    return lines


# -- ids and columns ---------------------------------------------------------------------------------------------------

def spelled(tokenizer, ids: list[int]) -> str:
    """The text of ids with special tokens; bytes that are only part of a character as <0xE4>."""
    names = {id: name for name, id in tokenizer.special.items()}
    code = b"".join(names[id].encode() if id in names else tokenizer.token_bytes(id) for id in ids)
    return "".join(f"<0x{ord(letter) - 0xDC00:02X}>" if 0xDC80 <= ord(letter) <= 0xDCFF else letter
                   for letter in code.decode("utf-8", "surrogateescape"))


def token_text(tokenizer, id: int) -> str:
    """A special token as it is, any other in quotes."""
    text = spelled(tokenizer, [id])
    return text if id in tokenizer.special.values() else repr(text)


def _columns(text: str) -> int:
    """Columns of a terminal: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else not unicodedata.combining(letter) for letter in text)


def _filled(text: str, width: int) -> str:
    return text + " " * (width - _columns(text))


def _tail(text: str, width: int) -> str:
    """The end of a text that is too wide."""
    if _columns(text) <= width:
        return text
    while _columns(text) > width - 3:
        text = text[1:]
    return "..." + text


def _flowed(cells: list[str]) -> list[str]:
    """Cells one after the other, as many on a line as fit."""
    lines = [" "]
    for cell in cells:
        if _columns(lines[-1]) + 2 + _columns(cell) > WIDTH and lines[-1].strip():
            lines.append(" ")
        lines[-1] += "  " + cell
    return [line.rstrip() for line in lines]


def _folded(lines: list[str], limit: int) -> list[str]:
    """The first ones and the last, where that makes it shorter."""
    left_out = len(lines) - limit - 1
    return lines if left_out < 2 else [*lines[:limit], f"... {left_out} more steps", lines[-1]]
