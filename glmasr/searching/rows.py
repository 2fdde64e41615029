"""The rows of a search: what it keeps of each sequence, and how the next token is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Drawn(NamedTuple):
    """B rows that are drawn token by token."""

    ids: Tensor  # (B, max_new)
    length: Tensor  # (B,) tokens, the stop id included
    logprob: Tensor  # (B,)
    stopped: Tensor  # (B,)
    empty: Tensor  # (B,)
    limit: Tensor  # (B,) tokens at most

    def rows(self, recordings: Sequence[int], best_of: int) -> Drawn:
        """Those of some of the recordings."""
        return Drawn(*(of_recordings(x, recordings, best_of) for x in self))

    def listed(self) -> list[tuple[list[int], int, float, bool, float]]:
        """For each row what makes its hypothesis."""
        return list(
            zip(*(x.tolist() for x in (self.ids, self.length, self.logprob, self.stopped, self.empty)), strict=True)
        )


class Beams(NamedTuple):
    """N sequences for each recording, as tensors: chosen, joined and moved without a copy to the host."""

    ids: Tensor  # (A, N, max_new)
    score: Tensor  # (A, N) what the search compares: sum of log-probabilities, not renormalized after the rules; + bias
    allowed: Tensor  # (A, N) sum of log(share that the rules left), + bias: logprob = score - allowed
    length: Tensor  # (A, N) tokens, the stop id included
    stopped: Tensor  # (A, N) the last token is a stop id
    rank: Tensor  # (A, N) score / length ** length_penalty if the sequence is finished, else -inf

    def pick(self, index: Tensor) -> Beams:
        """index (A, M) into N -> the M chosen sequences of each recording."""
        return Beams(self.ids.take_along_dim(index[..., None], 1), *(x.take_along_dim(index, 1) for x in self[1:]))

    def join(self, other: Beams) -> Beams:
        """Both, for each recording: N + M sequences."""
        return Beams(*(torch.cat(pair, 1) for pair in zip(self, other, strict=True)))


def of_recordings(rows: Tensor, recordings: Sequence[int], width: int) -> Tensor:
    """rows (A * width, ...) -> those of some of the recordings."""
    return rows.view(-1, width, *rows.shape[1:])[list(recordings)].flatten(0, 1)


def gumbel(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Noise (rows, columns) float32: argmax(logits + temperature * noise) is a draw from softmax(logits / temperature).

    The Gumbel-max trick: -log of exponential noise (Maddison et al. 2014, "A* Sampling").
    In float64, because float32 may draw in steps of 2^-24, too coarse for the smallest of 50000 numbers a token. The
    clamp keeps the noise finite: an infinite one would draw ids that are forbidden.
    """
    noise = torch.empty(rows, columns, dtype=torch.float64, device=generator.device)
    return -noise.exponential_(generator=generator).clamp_(min=1e-300).log_().float()


def is_in(tokens: Tensor, ids: Tensor) -> Tensor:
    """tokens (...), ids (n,) -> bool (...). torch.isin may sort, which waits for the device."""
    return (tokens[..., None] == ids).any(-1)
