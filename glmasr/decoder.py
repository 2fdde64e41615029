"""Embeddings (B, T, D) -> states (B, T, D) -> logits (B, V): the Llama decoder.

Grouped-query attention (several query heads share a key head), RMSNorm, SwiGLU, rotary positions over the whole head, no
biases. It doesn't know about sound: audio rows come to it as embeddings, laid over the placeholders of the prompt.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DecoderConfig
from .layers import Cache, SelfAttention, causal_mask, rope_table


class RMSNorm(nn.Module):
    """x / rms(x) * weight. The square mean is taken in float32, the product with the weight in the model's type."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class LlamaBlock(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.attn_norm = RMSNorm(config.width, config.eps)
        self.attn = SelfAttention(config.width, config.heads, config.key_heads, config.head_size, bias=False)
        self.mlp_norm = RMSNorm(config.width, config.eps)
        self.mlp = SwiGLU(config.width, config.hidden)

    def forward(self, x: Tensor, rope, cache: Cache | None, layer: int, mask: Tensor | None, last: bool = False) -> Tensor:
        x = x + self.attn(self.attn_norm(x), rope, cache, layer, mask)
        if last:
            x = x[:, -1:]
        x = x + self.mlp(self.mlp_norm(x))
        return x


class LlamaDecoder(nn.Module):
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
        weight = self.embed.weight
        return Cache(self.config.layers, rows, self.config.key_heads, capacity, self.config.head_size,
                     dtype=weight.dtype, device=weight.device)

    def forward(self, x: Tensor, cache: Cache | None = None, *, last: bool = False) -> Tensor:
        """Embeddings (B, T, D) -> normed states (B, T, D). Without a cache (training) the T tokens see each other only.

        With `last`, only the state of the last position is wanted, (B, 1, D). Then the others are done once the last block
        has put their keys and values into the cache, and its MLP, a 28th of a prompt's work, is spared them.
        """
        if cache is not None:
            positions = cache.begin(x.shape[1])
            mask = cache.mask
        else:
            positions = torch.arange(x.shape[1], device=x.device)
            mask = causal_mask(positions, x.shape[1])
        rope = rope_table(positions, self.config.head_size, self.config.theta, x.dtype)
        for layer, block in enumerate(self.blocks):
            x = block(x, rope, cache, layer, mask, last and layer == len(self.blocks) - 1)
        return self.norm(x)
