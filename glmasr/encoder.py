"""Log-mel (B, bands, frames) -> audio states (B, T, D), and of GLM-ASR -> rows for the decoder (B, T / 4, its width).

    SinusoidalEncoder   Whisper's and the article's: sinusoids are added to the frontend's output
    RotaryEncoder       GLM-ASR's: the same blocks, but rotary positions in each attention instead

Unusual:
  - RoPE turns only the first half of each head; positions start at 0 in each window.
  - There is no attention mask: a window's zero padding is sound like any other, so leaving it out changes the result.
  - Query, value and output have biases, the key has none.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import EncoderConfig, SinusoidalEncoderConfig
from .conv_frontend import MelFrontend, WaveformFrontend
from .layers import MLP, Rope, SelfAttention, rope_table


class EncoderBlock(nn.Module):
    """Self-attention without a mask, then the MLP, each after a LayerNorm and added to x (B, T, D)."""

    def __init__(self, config: EncoderConfig | SinusoidalEncoderConfig):
        super().__init__()
        self.attn_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.attn = SelfAttention(config.width, config.heads, config.key_heads, config.head_size, bias=True)
        self.mlp_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = MLP(config.width, config.hidden)

    def forward(self, x: Tensor, rope: Rope | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D). Every position attends to all, padding included. No `rope`: not rotary."""
        x = x + self.attn(self.attn_norm(x), rope)
        x = x + self.mlp(self.mlp_norm(x))
        return x


class RotaryEncoder(nn.Module):
    """GLM-ASR's audio encoder: log-mel (B, bands, frames) -> states (B, frames / 2, D), with rotary positions."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.frontend = MelFrontend(config.bands, config.width)
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


def sinusoids(length: int, width: int) -> Tensor:
    """(length, width): sines in the first half, cosines in the second, of position / 10000^(i / (width/2 - 1)). Not
    quite the ones of Vaswani et al. (2017): those alternate, and divide by width/2."""
    rates = 10_000.0 ** -(torch.arange(width // 2) / (width // 2 - 1))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class SinusoidalEncoder(nn.Module):
    """Whisper's and the article's audio encoder: log-mel or samples -> states (B, T, D), with sinusoids added once."""

    def __init__(self, config: SinusoidalEncoderConfig):
        super().__init__()
        self.config = config
        self.frontend = (
            WaveformFrontend(config.convolutions, config.width)
            if config.convolutions
            else MelFrontend(config.bands, config.width)
        )
        # Not learned, but published files hold them, rounded as the other weights: they are loaded, not computed.
        self.positions = nn.Parameter(sinusoids(config.positions, config.width), requires_grad=False)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, features: Tensor) -> Tensor:
        """features: mel (B, bands, frames) or samples (B, 1, S), one row a window -> (B, T, D)."""
        x = self.frontend(features)
        x = x + self.positions[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Projector(nn.Module):
    """Stacks `merge` neighboring states and maps them to the decoder's width: (B, T, D) -> (B, T / merge, width)."""

    def __init__(self, merge: int, width: int, decoder_width: int):
        super().__init__()
        self.merge = merge
        self.up = nn.Linear(merge * width, 2 * decoder_width)
        self.down = nn.Linear(2 * decoder_width, decoder_width)

    def forward(self, states: Tensor) -> Tensor:
        """Encoder states (B, T, D), T a multiple of `merge` -> audio embeddings (B, T / merge, width)."""
        x = states.unflatten(1, (-1, self.merge)).flatten(2)  # (B, T, D) -> (B, T / merge, merge * D)
        return self.down(F.gelu(self.up(x)))
