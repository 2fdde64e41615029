"""Ids or embeddings -> states (B, T, D) -> logits (B, V): the two text decoders.

LlamaDecoder    GLM-ASR's: grouped-query attention (several query heads share a key head), RMSNorm, SwiGLU, rotary
                positions over the whole head, no biases. It knows nothing of audio: audio embeddings take the place of
                placeholders in its prompt.
CrossDecoder    Whisper's and the article's: each block attends to the text so far, then to the encoder states.
                LayerNorm, GELU, learned positions, biases (but for keys); the head is the embedding.
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import CrossDecoderConfig, DecoderConfig
from .layers import MLP, Cache, CrossAttention, LayerCache, Rope, SelfAttention, causal_mask, multiply, rope_table
from .observing import stage

Look = Callable[[int, Tensor], None]
"""look(layer, x (B, T, D)): called with what each layer's attention to the sound is given; the alignment takes it."""

# -- GLM-ASR -----------------------------------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    """x / rms(x) * weight. The square mean is taken in float32, the product with the weight in the model's type."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., D), in the type of x."""
        x32 = x.float()
        return self.weight * (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class SwiGLU(nn.Module):
    """The gated MLP, down(silu(gate(x)) * up(x)), on x (..., D) without biases (Shazeer, 2020)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., D)."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class LlamaBlock(nn.Module):
    """Self-attention, then SwiGLU, each after an RMSNorm and added to x (B, T, D); with `last`, -> (B, 1, D)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.attn_norm = RMSNorm(config.width, config.eps)
        self.attn = SelfAttention(config.width, config.heads, config.key_heads, config.head_size, bias=False)
        self.mlp_norm = RMSNorm(config.width, config.eps)
        self.mlp = SwiGLU(config.width, config.hidden)

    def forward(
        self,
        x: Tensor,
        rope: Rope,
        cache: LayerCache | None,
        layer: int,
        mask: Tensor | None,
        last: bool = False,
        look: Look | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D). With `last` -> (B, 1, D): the MLP skips positions that nothing reads."""
        normed = self.attn_norm(x)
        if look is not None:
            look(layer, normed)
        x = x + self.attn(normed, rope, cache, layer, mask)
        if last:
            x = x[:, -1:]
        x = x + self.mlp(self.mlp_norm(x))
        return x


class LlamaDecoder(nn.Module):
    """GLM-ASR's text decoder: embeddings (B, T, D) -> states (B, T, D); its `head` makes them logits (..., V)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(LlamaBlock(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.eps)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.tie()

    def tie(self) -> None:
        """Makes the head the embedding, where the configuration says so. To be repeated when weights were replaced."""
        if self.config.tied:
            self.head.weight = self.embed.weight

    def new_cache(self, rows: int, capacity: int) -> Cache:
        """An empty cache of up to `capacity` tokens for each row, with the dtype and device of the weights."""
        weight = self.embed.weight
        return Cache(
            self.config.layers,
            rows,
            self.config.key_heads,
            capacity,
            self.config.head_size,
            dtype=weight.dtype,
            device=weight.device,
        )

    def forward(
        self, x: Tensor, cache: LayerCache | None = None, *, last: bool = False, look: Look | None = None
    ) -> Tensor:
        """Embeddings (B, T, D) -> normed states (B, T, D). Without a cache (training) the T tokens see each other only.

        With `last`, only the state of the last position is wanted, (B, 1, D). Then the others are done once the last
        block has put their keys and values into the cache, and its MLP, a 28th of a prompt's work, is spared them.
        """
        if cache is not None:
            positions = cache.begin(x.shape[1])
            mask = cache.mask
        else:
            positions = torch.arange(x.shape[1], device=x.device)
            mask = causal_mask(positions, x.shape[1])
        rope = rope_table(positions, self.config.head_size, self.config.theta, x.dtype)
        for layer, block in enumerate(self.blocks):
            x = block(x, rope, cache, layer, mask, last and layer == len(self.blocks) - 1, look)
        return self.norm(x)


# -- the article's system and Whisper ----------------------------------------------------------------------------------


class CrossBlock(nn.Module):
    """Self-attention, cross-attention, then the MLP, each after a LayerNorm and added to x (B, T, D)."""

    def __init__(self, config: CrossDecoderConfig):
        super().__init__()
        self.attn_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.attn = SelfAttention(config.width, config.heads, config.heads, config.head_size, bias=True)
        self.cross_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.cross = CrossAttention(config.width, config.heads, config.heads, config.head_size, bias=True)
        self.mlp_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = MLP(config.width, config.hidden)

    def forward(
        self,
        x: Tensor,
        cross_kv: tuple[Tensor, Tensor],
        cache: LayerCache | None,
        layer: int,
        mask: Tensor | None,
        look: Look | None = None,
    ) -> Tensor:
        """x (B, T, D), `cross_kv` of this layer, (A, H, S, K) each -> (B, T, D); B is A, or A * beams."""
        x = x + self.attn(self.attn_norm(x), None, cache, layer, mask)
        normed = self.cross_norm(x)
        if look is not None:
            look(layer, normed)
        x = x + self.cross(normed, *cross_kv)
        x = x + self.mlp(self.mlp_norm(x))
        return x


class CrossDecoder(nn.Module):
    """Whisper's and the article's text decoder: ids (B, T) and cross keys and values -> states (B, T, D)."""

    def __init__(self, config: CrossDecoderConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.positions, config.width)
        self.blocks = nn.ModuleList(CrossBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=config.eps)

    def new_cache(self, rows: int, capacity: int) -> Cache:
        """An empty cache of up to `capacity` tokens for each row; its `cross` is for the caller to fill."""
        weight = self.embed.weight
        return Cache(
            self.config.layers,
            rows,
            self.config.heads,
            capacity,
            self.config.head_size,
            dtype=weight.dtype,
            device=weight.device,
        )

    @stage("decoder.cross_kv")
    def cross_kv(self, states: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Encoder states (A, S, D) -> for each layer the keys and values (A, H, S, K) of its cross-attention."""
        return [cast(CrossBlock, block).cross.project(states) for block in self.blocks]

    def forward(
        self,
        tokens: Tensor,
        cross_kv: list[tuple[Tensor, Tensor]],
        cache: LayerCache | None = None,
        *,
        look: Look | None = None,
    ) -> Tensor:
        """Ids (B, T), `cross_kv` of A recordings -> normed states (B, T, D); B is A, or A * beams.

        Without a cache (training) the T tokens see each other only. IndexError beyond the positions that were learned.
        """
        if cache is not None:
            positions = cache.begin(tokens.shape[1])
            mask = cache.mask
        else:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            mask = causal_mask(positions, tokens.shape[1])
        x = self.embed(tokens) + self.positions(positions)
        for layer, block in enumerate(self.blocks):
            x = block(x, cross_kv[layer], cache, layer, mask, look)
        return self.norm(x)

    @stage("decoder.head")
    def head(self, x: Tensor) -> Tensor:
        """States (..., D) -> logits (..., V), with the weight of the embedding."""
        return multiply(x, self.embed.weight)
