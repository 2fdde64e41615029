"""The same model with linears as the machine's kernels want them. The names and interfaces are those of the modules replaced.

`prepare` replaces the linears of a model in place. Queries, keys and values share one product, as gate and up do: on a GPU that
is all ("joined"). `packed` and `int8` have the modules.
"""

from functools import partial

import torch
from torch import Tensor, nn

from ..decoder import SwiGLU
from ..layers import SelfAttention
from .int8 import Int8Linear, pages, quantise
from .packed import FusedSelfAttention, FusedSwiGLU, PackedLinear, WideLinear


def own(module: nn.Module) -> list[Tensor]:
    """The weights of a module itself: parameters, or what lies as a kernel wants it."""
    laid_out = (module.weight, module.bias) if isinstance(module, (PackedLinear, Int8Linear)) else ()
    return [*module.parameters(recurse=False), *(x for x in laid_out if x is not None)]


def count(module: nn.Module) -> int:
    """Numbers in the weights of a module and all within, each weight once."""
    return sum({id(x): x.numel() for part in module.modules() for x in own(part)}.values())


def lay_out(model: nn.Module) -> None:
    """Everything that a first call would do: afterwards the model has its memory."""
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.lay_out()


def to_come(model: nn.Module) -> int:
    """Bytes that a model's linears will take when they are laid out."""
    return sum(module.weight.nbytes for module in model.modules() if isinstance(module, PackedLinear) and module.read)


# -- replacing -----------------------------------------------------------------------------------------------------------

LARGE = 50_000_000              # parameters; a smaller model lies in the processor's cache, and gains nothing


def choose(model: nn.Module, device: torch.device, dtype: torch.dtype) -> str:
    """What is faster: "joined" on a GPU; for a large model on a CPU for which PyTorch has oneDNN "packed", or "wide" where bfloat16 is asked
    for and the CPU has no instructions for it; else "plain"."""
    if device.type == "cuda":
        return "joined"
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or sum(p.numel() for p in model.parameters()) < LARGE:
        return "plain"
    return "packed" if dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported() else "wide"


def prepare(model: nn.Module, kind: str, device: torch.device, dtype: torch.dtype) -> None:
    """Replaces the linears of a model, in place: "joined", "packed", "wide" or "int8". They give `dtype`, on `device`.

    Each weight is let go before the next is laid out, so that there are never two copies of a model in memory.
    """
    def make(*linears: nn.Linear) -> nn.Module:
        return _linear(kind, device, dtype, *linears)

    for name, child in reversed(list(model.named_children())):      # the vocabulary first: it needs the most memory meanwhile
        if isinstance(child, SelfAttention):
            setattr(model, name, FusedSelfAttention(child, make(child.query, child.key, child.value), make(child.out)))
        elif isinstance(child, SwiGLU):
            setattr(model, name, FusedSwiGLU(make(child.gate, child.up), make(child.down)))
        elif isinstance(child, nn.Linear):
            setattr(model, name, make(child))
        else:
            prepare(child, kind, device, dtype)


def _scale(linear: nn.Linear, weight: Tensor, numbers: Tensor) -> Tensor:
    """Writes a linear's weight, which files may hold as int8 already, to `numbers`."""
    if weight.dtype != torch.int8:
        return quantise(weight, numbers)[1]
    numbers.copy_(weight)
    return linear.scale


def _linear(kind: str, device: torch.device, dtype: torch.dtype, *linears: nn.Linear) -> nn.Module:
    """One linear for several that take the same x."""
    bias = None
    if any(linear.bias is not None for linear in linears):
        bias = torch.cat([torch.zeros(linear.out_features, dtype=dtype, device=device) if linear.bias is None else linear.bias for linear in linears])
    # `weights.load` leaves a way to read a weight, which it hasn't read.
    read = [getattr(linear, "read", partial(getattr, linear, "weight")) for linear in linears]
    if kind == "packed":
        return PackedLinear(read, (sum(linear.out_features for linear in linears), linears[0].in_features), bias, dtype)
    if kind == "int8":
        numbers = pages(sum(linear.out_features for linear in linears), linears[0].in_features)
        parts = zip(linears, read, numbers.split([linear.out_features for linear in linears]))
        return Int8Linear(numbers, torch.cat([_scale(linear, part(), rows) for linear, part, rows in parts]), bias)
    weight = torch.cat([part().to(device, dtype) for part in read])
    joined = (WideLinear if kind == "wide" else nn.Linear)(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    joined.weight, joined.bias = nn.Parameter(weight, requires_grad=False), None if bias is None else nn.Parameter(bias, requires_grad=False)
    return joined
