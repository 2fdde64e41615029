"""Listed phrases as an automaton over token ids (Aho and Corasick 1975), for a search that favors them.

A phrase is a sequence of ids with a bonus. A hypothesis has earned

    the bonuses of all phrases that stand in it, from one word border to the next    + what is on loan,

where the loan is a part of the bonus of the longest beginning of a phrase that its last tokens are. It grows with each
token that goes on, so that a search follows a phrase before it is complete, and is taken back where the phrase breaks
off, which includes the end of the text. So at the end nothing is left but the bonuses of whole phrases. A beginning of
many phrases says little: where N phrases go on, the loan is smaller by log N, the share of one among them.

For B rows:  states = start(B);  scores(states) is what each next token would add (B, V);  step(states, tokens) follows
the tokens that were chosen;  final(states) is what the end would add.

How it is kept: the nodes are numbered level by level and, within a level, by (node before, token); so the sorted keys
`node * V + token` of all arcs are the whole tree, and the arc at place i leads to node i + 2. Node 0 is the root where
a word may begin, and node 1 the root inside of a word, where only tokens that begin a word themselves lead on. All
other missing arcs follow the fail arcs: the node of the longest proper suffix.

Unusual: the end of a word is seen a token late. The loan of a phrase that has been written becomes its bonus if the
next token begins a word, and is taken back if it doesn't: "Tong" is not in "Tongue".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FIRST = 0.5  # of a bonus is on loan after the first token of a phrase, even if many are to come; see docs/HOTWORDS.md
BORDER, INSIDE = 0, 1  # the roots
ROOTS = 2


@dataclass(frozen=True)
class Borders:
    """Of each id of a vocabulary (V,): whether it begins a word, or what isn't one, such as punctuation and characters
    of scripts without spaces; whether what comes after it does in any case; and whether it is special, so that no
    phrase goes on behind it."""

    begins: np.ndarray
    ends: np.ndarray
    special: np.ndarray


class Spelling(NamedTuple):
    """A phrase as ids. `word`: it ends in a letter of a script with spaces, so what follows has to begin a word."""

    ids: tuple[int, ...]
    bonus: float
    word: bool


class Automaton:
    """Not changed once it is made. ValueError: no spellings, an empty one, or ids outside the vocabulary."""

    def __init__(self, spellings: Sequence[Spelling], borders: Borders, device: torch.device | str = "cpu"):
        V = len(borders.begins)
        unique: dict[tuple[int, ...], Spelling] = {}
        for one in spellings:
            if one.ids not in unique or unique[one.ids].bonus < one.bonus:
                unique[one.ids] = one
        kept = list(unique.values())
        if not kept or any(not one.ids or min(one.ids) < 0 or max(one.ids) >= V for one in kept):
            raise ValueError(f"expected spellings of ids from 0 to {V - 1}, at least one, and none without an id")
        tree = _Tree(kept, borders)
        self.size, self._vocabulary = len(tree.token), V

        def put(values: np.ndarray, dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device, dtype)

        self._keys = put(tree.keys, torch.long)
        self._token = put(tree.token, torch.long)
        self._first, self._count = put(tree.first, torch.long), put(tree.count, torch.long)  # arcs of a node
        self._fail, self._root = put(tree.fail, torch.long), put(tree.root, torch.long)
        self._loan, self._gain = put(tree.loan, torch.float32), put(tree.gain, torch.float32)
        self._word_gain = put(tree.word_gain, torch.float32)
        self._root_next = put(tree.root_next, torch.long)  # (2, V)
        self._root_loan = self._loan[self._root_next]  # (2, V)
        self._begins = put(borders.begins | borders.special, torch.float32)
        self._special = put(borders.special, torch.bool)

    def start(self, rows: int) -> Tensor:
        """The states (B,) of rows without a token."""
        return torch.full((rows,), BORDER, dtype=torch.long, device=self._keys.device)

    def _chain(self, states: Tensor) -> list[Tensor]:
        """The states and what their fail arcs lead to, up to the roots, which are not in it."""
        chain = []
        while bool((states >= ROOTS).any()):
            chain.append(states)
            states = self._fail[states]  # a root's is itself
        return chain

    def scores(self, states: Tensor) -> Tensor:
        """states (B,) -> (B, V): what each next token adds to a hypothesis, or takes back."""
        bonus = self._root_loan[self._root[states]]
        for some in reversed(self._chain(states)):  # the longest match last: it counts
            count = torch.where(some < ROOTS, 0, self._count[some])
            rows = torch.repeat_interleave(count)
            inner = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[rows]
            arcs = self._first[some][rows] + inner
            bonus[rows, self._token[arcs + ROOTS]] = self._loan[arcs + ROOTS]
        pending = self._word_gain[states]
        if bool(pending.any()):
            bonus += pending[:, None] * self._begins
        return bonus.add_((self._gain[states] - self._loan[states])[:, None])

    def step(self, states: Tensor, tokens: Tensor) -> Tensor:
        """states, tokens (...) -> the states after these tokens."""
        found = self._root_next[self._root[states], tokens]
        for some in reversed(self._chain(states)):
            key = some * self._vocabulary + tokens
            place = torch.searchsorted(self._keys, key).clamp_(max=len(self._keys) - 1)
            hit = (self._keys[place] == key) & (some >= ROOTS)
            found = torch.where(hit, place + ROOTS, found)
        return found

    def final(self, states: Tensor) -> Tensor:
        """states (...) -> what the end of the text adds, or takes back. 0 after a special token, such as a stop id."""
        return self._gain[states] + self._word_gain[states] - self._loan[states]


class _Tree:
    """The arrays of an automaton, N nodes: built level by level, without a loop over phrases."""

    def __init__(self, spellings: list[Spelling], borders: Borders):
        V, P = len(borders.begins), len(spellings)
        lengths = np.array([len(one.ids) for one in spellings])
        bonus = np.array([one.bonus for one in spellings])
        word = np.array([one.word for one in spellings], dtype=bool)
        ids = np.zeros((P, lengths.max()), dtype=np.int64)
        every = (number for one in spellings for number in one.ids)
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.fromiter(every, dtype=np.int64)

        # The nodes, and what is on loan in each.
        node = np.zeros(P, dtype=np.int64)
        total = lengths.sum() + ROOTS
        loan, gain, word_gain = (np.zeros(total, dtype=np.float64) for _ in range(3))
        keys, levels, size = [], [], ROOTS
        for depth in range(ids.shape[1]):
            alive = lengths > depth
            key = node[alive] * V + ids[alive, depth]
            level, inverse, shared = np.unique(key, return_inverse=True, return_counts=True)
            node[alive] = size + inverse
            ends = lengths == depth + 1
            share = FIRST + (1 - FIRST) * depth / np.maximum(lengths - 1, 1)
            some = np.maximum(0.0, (share * bonus)[alive] - np.log(shared[inverse]))
            np.maximum.at(loan, node[alive], np.where(ends[alive], bonus[alive], some))
            np.add.at(gain, node[ends & ~word], bonus[ends & ~word])
            np.add.at(word_gain, node[ends & word], bonus[ends & word])
            keys.append(level)
            levels.append(np.arange(size, size + len(level)))
            size += len(level)
        self.keys = np.concatenate(keys)
        self.loan, self.gain, self.word_gain = loan[:size], gain[:size], word_gain[:size]
        before = np.concatenate([np.zeros(ROOTS, dtype=np.int64), self.keys // V])
        self.token = np.concatenate([np.zeros(ROOTS, dtype=np.int64), self.keys % V])
        self.first = np.searchsorted(self.keys, np.arange(size) * V)
        self.count = np.searchsorted(self.keys, (np.arange(size) + 1) * V) - self.first

        # Where the roots lead: a token that ends inside of a word leads to the root there.
        outside = borders.ends | borders.special
        away = np.where(outside, BORDER, INSIDE)
        self.root_next = np.stack([away, away])
        tokens = self.token[levels[0]]
        self.root_next[BORDER, tokens] = levels[0]
        free = borders.begins[tokens]
        self.root_next[INSIDE, tokens[free]] = levels[0][free]

        # The fail arcs, and along them what shorter matches earn at the same place.
        self.fail = np.zeros(size, dtype=np.int64)
        self.fail[INSIDE] = INSIDE
        self.root = np.concatenate([[BORDER, INSIDE], away[self.token[ROOTS:]]])
        for depth, here in enumerate(levels):
            tokens = self.token[here]
            if depth == 0:
                self.fail[here] = away[tokens]
            else:
                self.fail[here] = self._goto(self.fail[before[here]], tokens, V)
            for values in (self.gain, self.word_gain):
                values[here] += values[self.fail[here]]
            self.loan[here] = np.maximum(self.loan[here], self.loan[self.fail[here]])

    def _goto(self, states: np.ndarray, tokens: np.ndarray, V: int) -> np.ndarray:
        found = np.full(len(states), -1)
        while (left := np.flatnonzero(found < 0)).size:
            some = states[left]
            at_root = some < ROOTS
            key = some * V + tokens[left]
            place = np.searchsorted(self.keys, key).clip(max=len(self.keys) - 1)
            hit = ~at_root & (self.keys[place] == key)
            reached = np.where(hit, place + ROOTS, self.root_next[np.where(at_root, some, 0), tokens[left]])
            found[left] = np.where(at_root | hit, reached, -1)
            states[left] = self.fail[some]
        return found
