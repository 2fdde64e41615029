"""What a bias does in a search: it says which tokens are chosen, and changes no probability, no limit and no rule.

It is added after the rules, to the scores that are compared and to nothing else: -inf stays -inf, so what is forbidden
never comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .rows import of_recordings

SILENT = 0.5  # who says nothing with more than this probability isn't talked into a first token


class Bias(Protocol):
    """What favors some sequences of tokens, such as `automaton.Automaton`."""

    def start(self, rows: int) -> Tensor:
        """The states (B,) of rows without a new token."""

    def scores(self, states: Tensor) -> Tensor:
        """(B, V): what each next token adds to the score of its sequence, or takes back."""

    def step(self, states: Tensor, tokens: Tensor) -> Tensor:
        """states, tokens (...) -> the states behind these tokens."""

    def final(self, states: Tensor) -> Tensor:
        """(...): what the end adds, or takes back; 0 behind a stop id."""


class FavoredRows:
    """The B rows of `decode.sample`: their states, and what each has earned. `empty` (B,): the probability of silence,
    once, before the first token; who is silent is never favored."""

    def __init__(self, bias: Bias, rows: int):
        self.bias, self.states = bias, bias.start(rows)
        self._earned = torch.zeros(rows, device=self.states.device)
        self._extra, self._silent = self._earned, torch.zeros_like(self.states, dtype=torch.bool)

    def scores(self, empty: Tensor | None) -> Tensor:
        """(B, V), to be added to the logits."""
        if empty is not None:
            self._silent = empty > SILENT
        self._extra = self.bias.scores(self.states).masked_fill_(self._silent[:, None], 0.0)
        return self._extra

    def follow(self, token: Tensor, over: Tensor) -> None:
        """The tokens (B,) that were chosen; a row that is over earns nothing any more."""
        self._earned = self._earned + self._extra.gather(-1, token[:, None])[:, 0].masked_fill(over, 0.0)
        self.states = torch.where(over, self.states, self.bias.step(self.states, token))

    def earned(self, place: int, best_of: int) -> list[float]:
        """Of each row of a recording that ends now."""
        total = self._earned + self.bias.final(self.states).masked_fill(self._silent, 0.0)
        found: list[float] = of_recordings(total, [place], best_of).tolist()
        return found

    def keep(self, recordings: Sequence[int], best_of: int) -> None:
        """The rows of these recordings stay."""
        rows = (self.states, self._earned, self._silent)
        self.states, self._earned, self._silent = (of_recordings(x, recordings, best_of) for x in rows)


class FavoredBeams:
    """The A recordings of `decode.beam`, W beams each: their states (A, W). `empty` (A,): as of `FavoredRows`."""

    def __init__(self, bias: Bias, recordings: int, width: int):
        self.bias, self.states = bias, bias.start(recordings * width).view(recordings, width)
        self._extra = self._candidates = self.states
        self._silent = torch.zeros(recordings, 1, dtype=torch.bool, device=self.states.device)

    def scores(self, empty: Tensor | None) -> Tensor:
        """(A, W, V), to be added to the scores."""
        if empty is not None:
            self._silent = (empty > SILENT)[:, None]
        extra = self.bias.scores(self.states.flatten()).view(*self.states.shape, -1)
        self._extra = extra.masked_fill_(self._silent[..., None], 0.0)
        return self._extra

    def earned(self, flat: Tensor) -> Tensor:
        """flat (A, N) into W * V -> what these candidates earn by their last token (A, N)."""
        return self._extra.flatten(1).gather(1, flat)

    def follow(self, parent: Tensor, token: Tensor) -> Tensor:
        """parent, token (A, N) of the candidates -> what each earns if it ends there (A, N)."""
        self._candidates = self.bias.step(self.states.gather(1, parent), token)
        return self.bias.final(self._candidates).masked_fill(self._silent, 0.0)

    def pick(self, index: Tensor) -> None:
        """index (A, W) into the candidates: the next beams."""
        self.states = self._candidates.gather(1, index)

    def keep(self, recordings: Tensor) -> None:
        """The beams of these recordings (M,) stay."""
        self.states, self._silent = self.states[recordings], self._silent[recordings]
