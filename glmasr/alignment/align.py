"""Attention of tokens to frames of sound -> a path through both -> the frame at which each token begins.

    scores (N heads, T tokens, S frames) -> agreement (T, S) -> starts (T,), the path
                                         -> shares (T, S)    -> refined (T,), within the stretches between pauses

In short, where `cost` is the negative of the agreement, and `total[t, s]` the least cost of reaching
frame s with token t:

    total[t, s] = cost[t, s] + min(total[t-1, s-1], total[t-1, s], total[t, s-1])

It knows heads, tokens and frames, but neither family of models. The path is dynamic time warping (Sakoe and Chiba 1978)
over the attention of a few heads that follow the sound, as in openai/whisper, timing.py. Two things are added: a pause
is where a word ends, and where exactly a token begins between two pauses is decided by how it shares each frame with
its neighbors; that is more exact, but doesn't say to which word a pause belongs.
"""

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

WIDTH = 7  # frames of the median filter
AMID = 20.0  # cost of a pause amid a word: as much as ten frames at a wrong token

Path = NDArray[np.int64]


def agreement(scores: Tensor, smooth: float = 0.0, width: int = WIDTH) -> Tensor:
    """Scores (N, T, S) before the softmax, of frames that hold sound -> (T, S) float32: how much more than the other
    tokens each looks at a frame, in standard deviations, in the mean of the heads. `smooth`: see `smoothed`.

    TRAP: frames of padding have to be cut off before, or the softmax gives them a share.
    """
    weights = smoothed(scores.float().softmax(-1), smooth)
    std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    return median_filter((weights - mean) / std.clamp(min=1e-12), width).mean(0)


def shares(scores: Tensor, smooth: float = 0.0) -> Tensor:
    """The same scores -> (T, S) float32: which part of all that looks at a frame is each token's; columns add up to
    1."""
    weights = smoothed(scores.float().softmax(-1).mean(0), smooth)
    return weights / weights.sum(0, keepdim=True).clamp(min=1e-30)


def smoothed(x: Tensor, deviation: float) -> Tensor:
    """x (..., S), each spread over its neighbors by a Gaussian of this standard deviation in frames. A head may look at
    the middle of a word only; then the border to the next is amid the two."""
    if not deviation:
        return x
    reach = math.ceil(4 * deviation)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device) / deviation).square())
    return F.conv1d(x.reshape(-1, 1, x.shape[-1]), (kernel / kernel.sum())[None, None], padding=reach).reshape(x.shape)


def median_filter(x: Tensor, width: int) -> Tensor:
    """x (..., S) -> the median of `width` (odd) frames around each; mirrored at the ends. Too few frames stay as they
    are."""
    side = width // 2
    if x.shape[-1] <= side:
        return x
    padded = F.pad(x.reshape(-1, 1, x.shape[-1]), (side, side), mode="reflect").reshape(*x.shape[:-1], -1)
    return padded.unfold(-1, width, 1).sort(-1).values[..., side]


def delayed(x: Tensor, frames: int) -> Tensor:
    """x (..., S), later by so many frames; what was first stands in for what comes before it."""
    frames = min(frames, x.shape[-1] - 1)
    return torch.cat((x[..., :1].expand(*x.shape[:-1], frames), x[..., : x.shape[-1] - frames]), -1)


def starts(score: Tensor, breaks: Collection[int] = (), begins: Sequence[bool] = (), amid: float = AMID) -> Path:
    """Agreement (T, S) -> (T,): the frame at which the best path comes to each token; they never fall. The path goes
    from the first token and frame to the last ones; with each step it goes on by a token, a frame, or both.

    breaks    frames before which there was a pause. There the path goes on to a token that `begins` a word, or is of
              none, or pays the cost `amid`
    """
    cost = -score.double().cpu().numpy().T
    frames, tokens = cost.shape
    total, entered = np.empty_like(cost), np.empty_like(cost)
    goes_on = np.zeros(cost.shape, dtype=bool)  # to this token with this frame
    never = np.full(1, np.inf)
    for frame in range(frames):
        stays = total[frame - 1] if frame else np.append(0.0, np.full(tokens - 1, np.inf))
        both = np.append(never, total[frame - 1, :-1]) if frame else np.full(tokens, np.inf)
        if frame in breaks:
            stays, both = stays + amid, np.where(begins, both, np.inf)
        goes_on[frame] = both <= stays
        entered[frame] = np.minimum(both, stays)
        # The frame can be shared by several tokens: the path comes to one of them, k, and goes on from token to token,
        # min over k of entered[k] + cost[k..t]. As differences of running sums, that is one running minimum.
        sums = np.cumsum(cost[frame])
        total[frame] = sums + np.minimum.accumulate(entered[frame] - (sums - cost[frame]))
    found = np.zeros(tokens, dtype=np.int64)
    token, frame = tokens - 1, frames - 1
    while frame >= 0:
        found[token] = frame  # what is written last is the first frame
        if token and total[frame, token - 1] < entered[frame, token]:
            token -= 1
        else:
            token, frame = token - int(goes_on[frame, token]), frame - 1
    return found


def refined(share: Tensor, coarse: Path, breaks: Collection[int] = ()) -> Path:
    """Shares (T, S) and the path -> (T,): a path that has the same tokens between the same breaks."""
    found = coarse.copy()
    for first, last in pairwise(sorted({0, *breaks, share.shape[1]})):
        tokens = np.flatnonzero((coarse >= first) & (coarse < last))
        if not len(tokens):
            continue
        before = int(tokens[0] > 0 and coarse[tokens[0]] > first)  # a token that goes on from the stretch before
        part = share[tokens[0] - before : tokens[-1] + 1, first:last]
        part = part / part.sum(0, keepdim=True).clamp(min=1e-12)
        found[tokens] = first + starts(part)[before:]
    return found
