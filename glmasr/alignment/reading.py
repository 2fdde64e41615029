"""A text that was recognized, read once more in one pass: how likely each token was, and where it looked in the sound.

The queries that count are those of the position before a token: they look at the sound in order to choose it. A fused
kernel doesn't give its weights away, so the scores are computed beside it, of the few heads that are asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..decoder import CrossBlock, CrossDecoder, LlamaBlock, LlamaDecoder
from ..layers import rope_table, rotate
from .heads import HEADS, steadiness

Heads = Sequence[tuple[int, int]]  # (layer, head), from 0


@dataclass(frozen=True)
class Reading:
    """T tokens and the end that follows them, read with S frames of sound.

    heads       (layer, head) of those that were asked for, or the steadiest
    scores      (N heads, T + 1, S) float32, before the softmax: of each token and the end, what was looked at to choose
                it
    logits      (T + 1, V) of all ids in place of each token and the end, given those before it
    """

    heads: list[tuple[int, int]]
    scores: Tensor
    logits: Tensor


class _Kept:
    """The scores of the heads that are wanted; where none are named, of the steadiest so far, and of no others: those
    of all heads of a large model with an hour of sound would fill any memory."""

    def __init__(self, wanted: Heads):
        self.wanted = wanted
        self.found: dict[tuple[int, int], Tensor] = {}
        self.steady: dict[tuple[int, int], float] = {}

    def take(self, layer: int, heads: int, score: Callable[[int], Tensor]) -> None:
        """`score`: the scores (T + 1, S) of a head of this layer, which has so many heads."""
        for head in [head for of, head in self.wanted if of == layer] if self.wanted else range(heads):
            scores = score(head)
            self.found[layer, head] = scores
            if self.wanted:
                continue
            self.steady[layer, head] = float(steadiness(scores.softmax(-1)[None])[0])
            if len(self.steady) > HEADS:
                worst = min(self.steady, key=lambda one: self.steady[one])
                del self.steady[worst], self.found[worst]

    def reading(self, logits: Tensor) -> Reading:
        """In the order of the heads that were wanted; else the steadiest first."""
        heads = list(self.wanted) or sorted(self.found, key=lambda head: -self.steady[head])
        return Reading(heads, torch.stack([self.found[head] for head in heads]), logits)


def all_heads(layers: int, heads: int) -> tuple[tuple[int, int], ...]:
    """Every head of a decoder."""
    return tuple((layer, head) for layer in range(layers) for head in range(heads))


def read_cross(
    decoder: CrossDecoder, prompt: list[int], ids: list[int], end: int, cross: list[tuple[Tensor, Tensor]], heads: Heads
) -> Reading:
    """With an encoder-decoder; `cross`: of one recording, each layer's keys and values (1, H, S, K)."""
    tokens = torch.tensor([[*prompt, *ids, end]], device=decoder.embed.weight.device)
    chosen, kept = slice(len(prompt) - 1, -1), _Kept(heads)

    def look(layer: int, x: Tensor) -> None:
        if heads and all(of != layer for of, _ in heads):
            return
        attention = cast(CrossBlock, decoder.blocks[layer]).cross
        query, key = attention.split(attention.query(x[:, chosen]))[0], cross[layer][0][0]
        scale = attention.head_size**-0.5
        kept.take(layer, len(query), lambda head: query[head].float() @ key[head].float().mT * scale)

    states = decoder(tokens, cross, look=look)[0, chosen]
    return kept.reading(decoder.head(states))


def read_prompted(decoder: LlamaDecoder, x: Tensor, first: int, sound: slice, heads: Heads) -> Reading:
    """With GLM-ASR; x (1, P, D): the embeddings of prompt, text and stop id, of which the text's begin at `first`, and
    those of the `sound` are audio embeddings. Of all scores of a head, those with the audio embeddings count only."""
    config = decoder.config
    rope = rope_table(torch.arange(x.shape[1], device=x.device), config.head_size, config.theta, x.dtype)
    chosen, kept = slice(first - 1, -1), _Kept(heads)
    shared, scale = config.heads // config.key_heads, config.head_size**-0.5  # neighbors share a key head

    def look(layer: int, normed: Tensor) -> None:
        if heads and all(of != layer for of, _ in heads):
            return
        query, key, _ = cast(LlamaBlock, decoder.blocks[layer]).attn.project(normed)
        query, key = rotate(query, rope)[0, :, chosen], rotate(key, rope)[0, :, sound]
        kept.take(layer, config.heads, lambda head: query[head].float() @ key[head // shared].float().mT * scale)

    states = decoder(x, look=look)[0, chosen]
    return kept.reading(decoder.head(states))
