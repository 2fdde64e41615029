"""Log-mel (B, bands, frames) -> audio states (B, T, D) -> rows for the decoder (B, T / 4, width of the decoder).

A Whisper encoder whose sinusoids were replaced by rotary positions. Unusual:
  - RoPE turns only the first half of each head; positions start at 0 in each window.
  - There is no attention mask: a window's zero padding is sound like any other, so leaving it out changes the result.
  - Query, value and output have biases, the key has none.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import EncoderConfig
from .conv_frontend import MelFrontend
from .layers import SelfAttention, rope_table


class EncoderMLP(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class EncoderBlock(nn.Module):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.attn_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.attn = SelfAttention(config.width, config.heads, config.key_heads, config.head_size, bias=True)
        self.mlp_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = EncoderMLP(config.width, config.hidden)

    def forward(self, x: Tensor, rope) -> Tensor:
        x = x + self.attn(self.attn_norm(x), rope)
        x = x + self.mlp(self.mlp_norm(x))
        return x


class AudioEncoder(nn.Module):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.frontend = MelFrontend(config)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, mel: Tensor) -> Tensor:
        """mel (B, bands, frames), one row a window -> (B, frames / 2, D)."""
        x = self.frontend(mel)
        positions = torch.arange(x.shape[1], device=x.device)
        rope = rope_table(positions, self.config.rotary, self.config.theta, x.dtype)
        for block in self.blocks:
            x = block(x, rope)
        return self.norm(x)


class Projector(nn.Module):
    """Stacks `merge` neighbouring states and maps them to the decoder's width: (B, T, D) -> (B, T / merge, width)."""

    def __init__(self, merge: int, width: int, decoder_width: int):
        super().__init__()
        self.merge = merge
        self.up = nn.Linear(merge * width, 2 * decoder_width)
        self.down = nn.Linear(2 * decoder_width, decoder_width)

    def forward(self, states: Tensor) -> Tensor:
        x = states.unflatten(1, (-1, self.merge)).flatten(2)    # (B, T, D) -> (B, T / merge, merge * D)
        return self.down(F.gelu(self.up(x)))
