"""Which heads of a decoder follow the sound. Most look at something else; those that go along with it most steadily do.

A published Whisper says which of its heads do. For other weights they are looked for in each text, without labels.
"""

import torch
from torch import Tensor

HEADS = 4  # that are averaged


def steadiest(weights: Tensor, count: int = HEADS) -> list[int]:
    """Of attention weights (N heads, T tokens, S frames) the numbers of the heads that go along with the sound most
    steadily, the steadiest first."""
    found: list[int] = steadiness(weights).topk(min(count, len(weights))).indices.tolist()
    return found


def steadiness(weights: Tensor) -> Tensor:
    """Attention weights (N heads, T tokens, S frames) -> (N,): 1 for a head that goes from left to right along the
    sound, less the less it does. The middle of what a token looks at grows with its place in the text, and little lies
    far from it."""
    _, tokens, frames = weights.shape
    share = weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)
    places = torch.linspace(0, 1, frames, device=weights.device) if frames > 1 else weights.new_zeros(1)
    middle = share @ places  # (N, T)
    spread = (share @ places.square() - middle.square()).clamp(min=0).sqrt().mean(-1)
    along = torch.linspace(-1, 1, tokens, device=weights.device) if tokens > 1 else weights.new_zeros(1)
    away = middle - middle.mean(-1, keepdim=True)
    steady = (away @ along) / (away.norm(dim=-1) * along.norm()).clamp(min=1e-9)
    score: Tensor = steady - 2 * spread
    return score
