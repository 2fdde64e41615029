"""Log-mel (B, bands, frames) -> (B, frames / 2, D): two convolutions in front of the encoder, the second with stride 2.

Unusual: no position is added here (rotary positions come in each attention), and padding frames are kept as sound.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .config import HOP, EncoderConfig


class MelFrontend(nn.Module):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.conv1 = nn.Conv1d(config.bands, config.width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, kernel_size=3, stride=2, padding=1)

    def forward(self, mel: Tensor) -> Tensor:
        x = F.gelu(self.conv1(mel))     # the exact GELU, with erf
        x = F.gelu(self.conv2(x))
        return x.transpose(1, 2)        # (B, D, T) -> (B, T, D)


def mel_frames(samples: int) -> int:
    """Mel frames that `samples` samples begin: one for each hop of 10 ms, the last one counted when it is begun."""
    return -(-samples // HOP)


def conv_frames(frames: int) -> int:
    """Frames behind the two convolutions. The padding of 1 makes an odd count round up."""
    return (frames - 1) // 2 + 1 if frames > 0 else 0


def audio_rows(samples: int, merge: int = 4) -> int:
    """Rows that the decoder hears for `samples` samples: 375 for 30 s; 0 for fewer than 961."""
    return conv_frames(mel_frames(samples)) // merge
