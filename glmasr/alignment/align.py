"""Attention of tokens to frames of sound -> a path through both -> the frame at which each token begins.

    attention (N heads, T tokens, S frames) -> agreement (T, S) -> path -> starts (T,)

In short, where `cost` is the negative of what `agreement` gives, and `total[t, s]` the least cost of reaching s with t:

    total[t, s] = cost[t, s] + min(total[t-1, s-1], total[t-1, s], total[t, s-1])

It knows heads, tokens and frames, but neither family of models. The method is that of openai/whisper, timing.py:
dynamic time warping (Sakoe and Chiba 1978) over the attention of a few heads that follow the sound.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

WIDTH = 7  # frames of the median filter


def agreement(scores: Tensor, width: int = WIDTH) -> Tensor:
    """Scores (N, T, S) before the softmax, of frames that hold sound -> (T, S) float32: how much more than the other
    tokens each looks at a frame, in standard deviations, in the mean of the heads.

    TRAP: frames of padding have to be cut off before, or the softmax gives them a share.
    """
    weights = scores.float().softmax(-1)
    std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    return median_filter((weights - mean) / std.clamp(min=1e-12), width).mean(0)


def median_filter(x: Tensor, width: int) -> Tensor:
    """x (..., S) -> the median of `width` (odd) frames around each; mirrored at the ends. Too few frames stay as they
    are."""
    side = width // 2
    if x.shape[-1] <= side:
        return x
    padded = F.pad(x.reshape(-1, 1, x.shape[-1]), (side, side), mode="reflect").reshape(*x.shape[:-1], -1)
    return padded.unfold(-1, width, 1).sort(-1).values[..., side]


def starts(score: Tensor) -> NDArray[np.int64]:
    """Agreement (T, S) -> (T,): the frame at which the best path comes to each token; they never fall. The path goes
    from the first token and frame to the last ones; with each step it goes on by a token, a frame, or both."""
    cost = -score.double().cpu().numpy()
    tokens, frames = cost.shape
    total = np.full((tokens + 1, frames + 1), np.inf)
    total[0, 0] = 0.0
    for token in range(tokens):
        # What a frame costs if the path comes to it from the token before, at frame k, and goes on along the row:
        # min over k of entered[k] + cost[k..s]. As differences of running sums, that is one running minimum.
        entered = np.minimum(total[token, :-1], total[token, 1:])
        sums = np.cumsum(cost[token])
        total[token + 1, 1:] = sums + np.minimum.accumulate(entered - (sums - cost[token]))
    found = np.zeros(tokens, dtype=np.int64)
    token, frame = tokens, frames
    while token > 0:
        found[token - 1] = frame - 1  # the last that is written is the first frame of its row
        diagonal, above, left = total[token - 1, frame - 1], total[token - 1, frame], total[token, frame - 1]
        if diagonal <= above and diagonal <= left:
            token, frame = token - 1, frame - 1
        elif above <= left:
            token -= 1
        else:
            frame -= 1
    return found
