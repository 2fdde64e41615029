"""Speculative decoding: greedy search of one recording, whose model reads several tokens in a step.

    ahead = Ahead(model, draft)
    [hypothesis] = decode.greedy(ahead, audio, [prompt], rules=[ahead.exact(rules)], ...)

A step of a large model takes as long as its weights take to be read, for one token about as for a few. So something
cheap, the draft, says which tokens probably follow, and the model reads them all at once: what it says after each is
there before the search asks for it. The search itself doesn't change. It chooses token by token, by all rules and
limits; where it chooses another than the drafted one, the cache is cut back to what was chosen. Leviathan, Kalman and
Matias 2023, "Fast Inference from Transformers via Speculative Decoding".

TRAP: a product of several rows adds up in another order than that of one row, so its logits differ in their last bits,
and with them the choice between two tokens that are as likely as each other. `Ahead.exact` finds such choices, and has
what was chosen so far read once more, token by token: in float32 the ids are those of greedy search.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..observing import stage
from ..rules import Rule

ROUNDING = 2.0**-15  # of the largest logit: twenty times what was measured between two logits, in float32


class Cache(Protocol):
    """Keys and values of one row, as of `layers.Cache`."""

    length: int

    @property
    def capacity(self) -> int:
        """Tokens that it can hold."""

    def cut(self, length: int) -> None:
        """Forgets the tokens after the first `length`."""


class Reader(Protocol):
    """What is asked of a model, beside `decode.Model`."""

    @property
    def device(self) -> torch.device:
        """Where its logits are."""

    @property
    def dtype(self) -> torch.dtype:
        """That of its weights."""

    def new_cache(self, rows: int, capacity: int) -> Any:
        """An empty `Cache`."""

    def prefill(self, audio: Any, prompt: Sequence[Sequence[int]], cache: Any) -> Tensor:
        """-> logits (1, V) of the first token."""

    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        """tokens (1,) -> logits (1, V)."""

    def read(self, tokens: Tensor, cache: Any) -> Tensor:
        """tokens (1, T) -> the logits after each of them (1, T, V)."""


class Draft(Protocol):
    """What says which tokens probably follow, for one search."""

    def propose(self, ids: Sequence[int], most: int) -> list[int]:
        """After the new tokens `ids`, the last of which wasn't there before: up to `most` more, or none."""


class Ahead:
    """A `decode.Model` for one search of one recording, that reads ahead. A new one for each search.

    reads     how often the model read; a search without a draft reads once for each token but the last
    drafted   tokens that were read ahead;  agreed  those of them that were chosen
    repeated  tokens that were read once more, for a choice that was close
    """

    def __init__(self, model: Reader, draft: Draft, most: int):
        self.model, self.draft, self.most = model, draft, most
        self.reads = self.drafted = self.agreed = self.repeated = 0
        self._ids: list[int] = []  # the tokens that the search has chosen
        self._ahead: list[int] = []  # what was read after them, and isn't chosen yet
        self._logits = torch.empty(0)  # (T, V), after the last chosen token and after each of those
        self._alone = 0  # tokens, the first ones, whose keys and values were computed in steps of one
        self._start = 0  # slots of the prompt
        self._cache: Cache

    @property
    def device(self) -> torch.device:
        """That of the model."""
        return self.model.device

    def new_cache(self, rows: int, capacity: int) -> Any:
        """As of the model. ValueError for more rows than one."""
        if rows != 1:
            raise ValueError(f"{rows} recordings; what reads ahead decodes one at a time")
        return self.model.new_cache(rows, capacity)

    def prefill(self, audio: Any, prompt: Sequence[Sequence[int]], cache: Any) -> Tensor:
        """As of the model."""
        logits = self.model.prefill(audio, prompt, cache)
        self._cache, self._start = cache, cache.length
        return logits

    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        """tokens (1,) -> logits (1, V), perhaps of an earlier read."""
        token = int(tokens)
        self._ids.append(token)
        if self._ahead and self._ahead[0] == token:
            del self._ahead[0]
            self._logits = self._logits[1:]
            self.agreed += 1
            return self._logits[:1]
        done = len(self._ids) - 1
        cache.cut(self._start + done)
        # The last token that the limit allows is never read.
        room = cache.capacity - cache.length - 2
        self._ahead = self.draft.propose(self._ids, min(self.most, room)) if room > 0 else []
        if not self._ahead:
            self._alone += self._alone == done
            self._logits = self.model.step(tokens, cache)
        else:
            self._logits = self._read([token, *self._ahead])
            self.drafted += len(self._ahead)
        self.reads += 1
        return self._logits[:1]

    def _read(self, tokens: list[int]) -> Tensor:
        return self.model.read(torch.tensor([tokens], device=self.model.device), self._cache)[0]

    def exact(self, rules: Sequence[Rule]) -> Rule:
        """The rules as one, which sees to it that what is chosen doesn't hang on rounding; in float32 only."""

        def rule(logits: Tensor, new_tokens: Tensor) -> None:
            given = logits.clone()
            _apply(rules, logits, new_tokens)
            if self._alone == len(self._ids) or self.model.dtype != torch.float32:
                return
            # Were the token that wins a little less likely, would another one win?
            best = logits.argmax(-1, keepdim=True)
            doubt = given.scatter_add(-1, best, -ROUNDING * given.abs().amax(-1, keepdim=True))
            _apply(rules, doubt, new_tokens)
            if not torch.equal(doubt.argmax(-1, keepdim=True), best):
                logits.copy_(self._read_again())
                _apply(rules, logits, new_tokens)

        return rule

    def _read_again(self) -> Tensor:
        """The logits (1, V) after what was chosen, as greedy search has them: in steps of one token."""
        self._cache.cut(self._start + self._alone)
        logits = self._logits[:1]
        for token in self._ids[self._alone :]:
            logits = self.model.step(torch.tensor([token], device=self.model.device), self._cache)
        self.repeated += len(self._ids) - self._alone
        self._alone, self._ahead, self._logits = len(self._ids), [], logits
        return logits


def _apply(rules: Sequence[Rule], logits: Tensor, new_tokens: Tensor) -> None:
    for rule in rules:
        rule(logits, new_tokens)


class Drafting:
    """A `Draft` by a smaller model of the same vocabulary, which reads what was chosen and goes on greedily.

    stop    ids that end a text: nothing is drafted after them, nor are they themselves
    sure    probability of a drafted token below which it, and what would follow, isn't proposed
    """

    def __init__(
        self,
        model: Reader,
        audio: Any,
        prompt: Sequence[int],
        *,
        stop: Sequence[int],
        capacity: int,
        sure: float = 0.5,
    ):
        self.model, self.stop, self.sure = model, set(stop), sure
        self._cache = model.new_cache(1, len(prompt) + capacity)
        model.prefill(audio, [list(prompt)], self._cache)
        self._start = self._cache.length
        self._known: list[int] = []  # the tokens in the cache

    @stage("draft")
    def propose(self, ids: Sequence[int], most: int) -> list[int]:
        """What it would write itself after `ids`, as far as it is sure."""
        same = 0
        while same < min(len(self._known), len(ids) - 1) and self._known[same] == ids[same]:
            same += 1
        self._cache.cut(self._start + same)
        logits = self.model.read(torch.tensor([ids[same:]], device=self.model.device), self._cache)[:, -1]
        self._known = list(ids)
        found: list[int] = []
        while True:
            probability, token = logits.float().softmax(-1).max(-1)
            if probability.item() < self.sure or (number := int(token)) in self.stop:
                return found
            found.append(number)
            if len(found) == most:
                return found
            logits = self.model.step(token, self._cache)
            self._known.append(number)
