"""What stands in front of an encoder: sound -> (B, T, D).

    MelFrontend         log-mel (B, bands, frames) -> (B, frames / 2, D): two convolutions, 50 states a second
    WaveformFrontend    samples (B, 1, S) -> (B, S / 160, D): a stack of them that learns its own features, 100 a second

Unusual: no position is added here (that is the encoder's affair), and padding is kept as sound.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .config import HOP, Convolution


class MelFrontend(nn.Module):
    """The frontend of Whisper (Radford et al., 2022) and of GLM-ASR."""

    def __init__(self, bands: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv1d(bands, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)

    def forward(self, mel: Tensor) -> Tensor:
        """mel (B, bands, frames) -> (B, frames / 2, D)"""
        x = F.gelu(self.conv1(mel))  # the exact GELU, with erf
        x = F.gelu(self.conv2(x))
        # Laid out anew: what is added to x later would take its layout, and each sum and norm mix two of them.
        return x.transpose(1, 2).contiguous()  # (B, D, T) -> (B, T, D)


class WaveformLayer(nn.Module):
    """x (B, C, T) -> (B, channels, T / stride), for T a multiple of the stride."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int):
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels, kernel, stride, bias=False)
        # TRAP: one group over all channels AND all times: padding after a recording changes every frame of it.
        self.norm = nn.GroupNorm(1, channels)
        left = max(0, kernel - stride) // 2
        self.padding = (
            left,
            max(0, kernel - stride) - left,
        )  # frame t is centered on its own stretch of `stride` samples

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T) -> (B, channels, T / stride): pad, convolve, normalize, SiLU."""
        return F.silu(self.norm(self.conv(F.pad(x, self.padding))))


class WaveformFrontend(nn.Module):
    """The article's feature encoder, for any list of (channels, kernel, stride). A last layer that is not as wide as
    the encoder is followed by a projection without bias."""

    def __init__(self, convolutions: tuple[Convolution, ...], width: int):
        super().__init__()
        channels = [1] + [channels for channels, _, _ in convolutions]
        self.layers = nn.Sequential(
            *(WaveformLayer(before, *layer) for before, layer in zip(channels[:-1], convolutions, strict=True))
        )
        self.project = nn.Linear(channels[-1], width, bias=False) if channels[-1] != width else nn.Identity()

    def forward(self, samples: Tensor) -> Tensor:
        """samples (B, 1, S) -> (B, S / stride, D)"""
        return self.project(self.layers(samples).transpose(1, 2))


def receptive_field(convolutions: tuple[Convolution, ...]) -> int:
    """Samples that a frame is made of, not counting the norms, which see all of them."""
    field, step = 1, 1
    for _, kernel, stride in convolutions:
        field += (kernel - 1) * step
        step *= stride
    return field


def mel_frames(samples: int) -> int:
    """Mel frames that `samples` samples begin: one for each hop of 10 ms, the last one counted when it is begun."""
    return -(-samples // HOP)


def conv_frames(frames: int) -> int:
    """Frames after the two convolutions. The padding of 1 makes an odd count round up."""
    return (frames - 1) // 2 + 1 if frames > 0 else 0


def audio_rows(samples: int, merge: int = 4) -> int:
    """Audio embeddings for `samples` samples: 375 for 30 s; 0 for fewer than 961."""
    return conv_frames(mel_frames(samples)) // merge
