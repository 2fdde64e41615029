"""A text that was recognized, read once more in one pass: how likely each token was, and where it looked in the sound.

The queries that count are those of the position before a token: they look at the sound in order to choose it. A fused
kernel doesn't give its weights away, so the scores are computed beside it, of the few heads that are asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..decoder import CrossBlock, CrossDecoder, LlamaBlock, LlamaDecoder
from ..layers import rope_table, rotate

Heads = Sequence[tuple[int, int]]  # (layer, head), from 0


@dataclass(frozen=True)
class Reading:
    """T tokens and the end that follows them, read with S frames of sound.

    scores      (N heads, T + 1, S) float32, before the softmax: of each token and the end, what was looked at to choose
                it
    logprobs    (T,) of each token, given those before it
    """

    scores: Tensor
    logprobs: Tensor


def all_heads(layers: int, heads: int) -> tuple[tuple[int, int], ...]:
    """Every head of a decoder."""
    return tuple((layer, head) for layer in range(layers) for head in range(heads))


def read_cross(
    decoder: CrossDecoder, prompt: list[int], ids: list[int], end: int, cross: list[tuple[Tensor, Tensor]], heads: Heads
) -> Reading:
    """With an encoder-decoder; `cross`: of one recording, each layer's keys and values (1, H, S, K)."""
    tokens = torch.tensor([[*prompt, *ids, end]], device=decoder.embed.weight.device)
    chosen, found = slice(len(prompt) - 1, -1), {}

    def look(layer: int, x: Tensor) -> None:
        if wanted := [head for of, head in heads if of == layer]:
            attention = cast(CrossBlock, decoder.blocks[layer]).cross
            query = attention.split(attention.query(x[:, chosen]))[0]
            key = cross[layer][0][0]
            scores = query[wanted].float() @ key[wanted].float().mT / attention.head_size**0.5
            found.update(zip([(layer, head) for head in wanted], scores, strict=True))

    states = decoder(tokens, cross, look=look)[0, chosen]
    return Reading(torch.stack([found[head] for head in heads]), _logprobs(decoder.head(states[:-1]), ids))


def read_prompted(decoder: LlamaDecoder, x: Tensor, first: int, ids: list[int], sound: slice, heads: Heads) -> Reading:
    """With GLM-ASR; x (1, P, D): the embeddings of prompt, text and stop id, of which the text's begin at `first`, and
    those of the `sound` are audio embeddings. Of all scores of a head, those with the audio embeddings count only."""
    config = decoder.config
    rope = rope_table(torch.arange(x.shape[1], device=x.device), config.head_size, config.theta, x.dtype)
    chosen, found = slice(first - 1, -1), {}

    def look(layer: int, normed: Tensor) -> None:
        if wanted := [head for of, head in heads if of == layer]:
            attention = cast(LlamaBlock, decoder.blocks[layer]).attn
            query, key, _ = attention.project(normed)
            query, key = rotate(query, rope)[0, wanted, chosen], rotate(key, rope)[0, :, sound]
            shared = [head * config.key_heads // config.heads for head in wanted]  # neighbors share a key head
            scores = query.float() @ key[shared].float().mT / config.head_size**0.5
            found.update(zip([(layer, head) for head in wanted], scores, strict=True))

    states = decoder(x, look=look)[0, chosen]
    return Reading(torch.stack([found[head] for head in heads]), _logprobs(decoder.head(states[:-1]), ids))


def _logprobs(logits: Tensor, ids: list[int]) -> Tensor:
    """Logits (T, V) -> (T,) log-probabilities of the ids."""
    return logits.float().log_softmax(-1).gather(-1, torch.tensor(ids, device=logits.device)[:, None])[:, 0]
