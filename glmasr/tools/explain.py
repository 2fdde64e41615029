"""What happens to a recording, for people who came to learn: stages, shapes, parameters, times, what the search kept.

    with observed(recognizer) as run:
        recognizer.transcribe("talk.wav")
    print(report(run))                          # of `explain_report`

Nothing is computed here that the pipeline doesn't compute: it runs as always. While the `with` block lasts, an observer
sees the functions that are marked as stages (`observing`), and hooks on the model's modules note what comes out of
them, in this thread only. Afterwards they are gone.

Unusual:
  - Times and parameters add up. A moment belongs to the innermost stage at work; a parameter to the stage that used it
    first, so a tied head has none, and the keys and values of cross-attention are not among those of the blocks they
    lie in.
  - The search is watched through what it offers: one more rule before all others, one after them, and `watch`.
  - On a GPU the clock waits for a stage's work to be done, so an explained run is slower than a plain one.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import isgeneratorfunction, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import decode
from ..conv_frontend import MelFrontend, WaveformFrontend
from ..decoder import CrossDecoder, LlamaDecoder
from ..encoder import RotaryEncoder, SinusoidalEncoder
from ..kernels import prepare
from ..observing import observed_by, observing
from ..pipeline import Recognizer

# Modules whose parts are stages. Every other module is a stage itself, and the blocks of a list are one together.
CONTAINERS = (
    RotaryEncoder,
    SinusoidalEncoder,
    MelFrontend,
    WaveformFrontend,
    nn.Sequential,
    LlamaDecoder,
    CrossDecoder,
)
# Stages that are not taken apart, although others run in them.
WHOLE = {"language", "step"}


# -- what was observed -------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """A stage of the way: where its code is, of how many blocks it is made, how often they ran, their first result."""

    where: str
    blocks: int = 1
    calls: int = 0
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Kept:
    """A sequence that a search has: its new ids, the stop id included, and what the search compares, a sum of
    log-probabilities."""

    ids: list[int]
    score: float


@dataclass
class Search:
    """A search, as far as its first recording or window is concerned. `before` and `after` are the log-probabilities
    (V,) of the first token without the rules and with them; `steps` says for each step what was kept, the best first.
    """

    audio: Tensor  # of the first recording: audio embeddings, or cross keys of the first layer
    prompt: list[int]
    beams: int
    temperature: float
    steps: list[list[Kept]] = field(default_factory=list)
    before: Tensor = field(init=False)  # from its first step on
    after: Tensor = field(init=False)
    result: decode.Hypothesis = field(init=False)  # once it has ended

    def first_rule(self, logits: Tensor, new_tokens: Tensor) -> None:
        """A `decode.Rule` that changes nothing, as `last_rule`."""
        if new_tokens.shape[1] == 0:
            self.before = logits[0].log_softmax(-1).cpu()

    def last_rule(self, logits: Tensor, new_tokens: Tensor) -> None:
        """A `decode.Rule` that changes nothing: records `after` at the first token."""
        if new_tokens.shape[1] == 0:
            self.after = logits[0].log_softmax(-1).cpu()

    def watch(self, recordings: list[int], ids: Tensor, score: Tensor, length: Tensor, stopped: Tensor) -> None:
        """A `decode.Watch` of the first recording. What ended in an earlier step is left out; the search may go on for
        others."""
        if recordings[0] != 0:
            return
        step = len(self.steps) + 1
        rows = zip(ids[0].tolist(), score[0].tolist(), length[0].tolist(), strict=True)
        kept = [Kept(row[:count], value) for row, value, count in rows if count == step and value > -math.inf]
        if kept:
            self.steps.append(sorted(kept, key=lambda sequence: -sequence.score))


class Observation:
    """What was noted of one recording.

    stages          by name, in the order in which they first gave something
    parameters      of a stage, without those that a stage before used
    seconds         of a stage, without those of stages within
    searches        in their order
    detected        probability of each language of an encoder-decoder, and of no speech
    rate, windows   of the recording: samples a second, and windows of the model
    """

    def __init__(self, recognizer: Recognizer):
        self.recognizer = recognizer
        self.stages: dict[str, Stage] = {}
        self.parameters: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}
        self.searches: list[Search] = []
        self.detected: tuple[dict[str, float], float] | None = None
        self.rate, self.windows = 0, 0
        self._used: set[Tensor] = set()
        self._open: list[str] = []  # stages at work, the innermost last
        self._since = 0.0

    @property
    def attempts(self) -> list[Search]:
        """The searches in the first window: more than one where a text failed the checks. The last one counts."""
        found = self.searches[:1]
        for search in self.searches[1:]:
            if search.temperature <= found[-1].temperature or not torch.equal(search.audio, found[0].audio):
                break
            found.append(search)
        return found

    # -- the stages that are functions

    def call(self, name: str, function: Callable[..., Any], /, *args: Any, **more: Any) -> Any:
        """As `observing.Observer` says: runs the function as the stage `name`."""
        if name == "search":
            return self._search(function, *args, **more)
        if name == "resample":
            rates = signature(function).bind(*args, **more).arguments
            self.rate = rates["source_rate"]
            if self.rate == rates["target_rate"]:  # the samples only pass, and there is no such stage
                return function(*args, **more)
        if name == "samples" and not args[0].config.encoder.convolutions:  # the log-mel is a stage of its own
            return function(*args, **more)
        if name in ("log-mel", "samples"):
            windows = next(value for value in args if isinstance(value, Tensor))  # (S,) or (B, S)
            self.note("windows", "", windows)
            self.windows += windows.numel() // windows.shape[-1]
        if isgeneratorfunction(function):
            return self._each(name, function, *args, **more)
        result = self._timed(name, function, *args, **more)
        if name == "language" and self.detected is None:
            languages, no_speech = result
            named = zip(args[0].config.languages, languages[0].tolist(), strict=True)
            self.detected = dict(named), float(no_speech[0])
        return result

    def _timed(self, name: str, function: Callable[..., Any], /, *args: Any, **more: Any) -> Any:
        self.begin(name)
        result = function(*args, **more)
        self.end(name, _where(function), result)
        return result

    def _each(self, name: str, function: Callable[..., Any], /, *args: Any, **more: Any) -> Iterator[Tensor]:
        """As `_timed`, for a generator of samples; the stage's shape is that of all of them."""
        parts = function(*args, **more)
        while True:
            self.begin(name)
            part = next(parts, None)
            self.end(name, _where(function))
            stage = self.stages[name]
            stage.calls = 1
            if part is None:
                return
            stage.shape, stage.dtype = (sum(stage.shape or ()) + len(part),), part.dtype
            yield part

    def _search(self, function: Callable[..., Any], /, model: Any, audio: Any, prompt: Any, **more: Any) -> Any:
        """`decode.sample` or `decode.beam`."""
        first = (
            audio[0][0][0] if isinstance(audio[0], tuple) else audio[0]
        )  # cross keys of the first layer; else embeddings
        search = Search(first, prompt[0], more.get("width", 1), more.get("temperature", 0.0))
        self.searches.append(search)
        more |= {"rules": [search.first_rule, *more.get("rules", ()), search.last_rule], "watch": search.watch}
        found = self._timed("search", function, model, audio, prompt, **more)
        search.result = found[0][0] if isinstance(found[0], list) else found[0]
        return found

    # -- time and parameters

    @property
    def at_work(self) -> str:
        """The innermost stage at work, also within one that is not taken apart."""
        return self._open[-1]

    def begin(self, name: str) -> None:
        """A stage begins. Time until now goes to the stage around it, if any."""
        if not self._open:
            self._since = time.perf_counter()
        elif WHOLE.isdisjoint(self._open):
            self._tick(self.at_work)
        self._open.append(name)

    def end(self, name: str, where: str, result: Any = None, blocks: int = 1) -> None:
        """The innermost stage ends with `result`, from so many `blocks`; not recorded within a stage of WHOLE."""
        self._open.pop()
        if WHOLE.isdisjoint(self._open):
            self._tick(name)
            self.note(name, where, result, blocks).calls += 1

    def note(self, name: str, where: str, result: Any = None, blocks: int = 1) -> Stage:
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
        if self.recognizer.model.device.type == "cuda":
            torch.cuda.synchronize(self.recognizer.model.device)
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


# -- observing ---------------------------------------------------------------------------------------------------------


@contextmanager
def observed(recognizer: Recognizer) -> Iterator[Observation]:
    """Notes how `recognizer` recognizes one recording within the `with` block."""
    run = Observation(recognizer)
    with ExitStack() as stack:  # takes everything back, whatever happens
        for handle in _hooks(run, recognizer.model):
            stack.callback(handle.remove)
        stack.enter_context(observing(run))
        yield run


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


def _use_own(run: Observation, container: nn.Module, path: str, *_: Any) -> None:
    if not observed_by(run):
        return
    for name, parameter in container.named_parameters(recurse=False):
        run.note(path + name, _file(container), parameter)
        run.use(path + name, parameter)


def _stage_hooks(
    run: Observation, module: nn.Module, name: str, container: nn.Module, blocks: int = 1
) -> Iterator[RemovableHandle]:
    ours = type(module).__module__.startswith(__package__.partition(".")[0])
    where = f"{_file(module if ours else container)}, {f'{blocks} x ' if blocks > 1 else ''}{type(module).__name__}"

    def begin(*_: Any) -> None:
        if observed_by(run):
            run.begin(name)

    def end(_module: nn.Module, _args: Any, result: Any) -> None:
        if observed_by(run):
            run.end(name, where, result, blocks)

    yield module.register_forward_pre_hook(begin)
    yield module.register_forward_hook(end)
    seen: dict[nn.Module, RemovableHandle] = {}

    def use(part: nn.Module, _args: Any) -> None:
        if not observed_by(run):
            return
        for parameter in prepare.weights_of(part):
            run.use(run.at_work, parameter)
        seen[part].remove()  # once is enough, and these are many

    for part in module.modules():
        seen[part] = part.register_forward_pre_hook(use)
        yield seen[part]


def _file(module: nn.Module) -> str:
    return f"{type(module).__module__.split('.')[-1]}.py"


def _where(function: Callable[..., Any]) -> str:
    return f"{function.__module__.split('.')[-1]}.py, {function.__qualname__}"
