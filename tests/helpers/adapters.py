"""Adapters of the demos with which they write something else."""

from pathlib import Path

import torch

from glmasr import weights
from glmasr.checkpoint import adapter, hub


def lora(folder: Path, strength: float, model: str = "demo") -> str:
    """The folder with an adapter of a built-in model: of its first decoder block's MLP; with a strength of 1 it writes
    nonsense."""
    base = weights.load(hub.find(model))
    generator = torch.Generator().manual_seed(4)
    out, columns = base.decoder.blocks[0].mlp.up.weight.shape
    a, b = torch.randn(2, columns, generator=generator), torch.randn(out, 2, generator=generator)
    adapter.save(folder, {"decoder.blocks.0.mlp.up": adapter.LowRank(a, strength * b, 4.0)}, base.config)
    return str(folder)
