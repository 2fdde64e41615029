"""A checkpoint -> its model as fast as this machine computes it, and what it runs on.

    model, runtime = prepare.load(directory)

The modules in the way have the names and interfaces of those that they replace. Queries, keys and values share one
product, as gate and up do: on a GPU that is all ("joined"). `packed` and `int8` have the linears for a CPU,
`cuda_graphs` the steps for a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import weights
from ..checkpoint.ctranslate2 import SCALE
from ..decoder import SwiGLU
from ..errors import printable
from ..layers import MLP, SelfAttention
from ..model import EncoderDecoder, GlmAsr
from . import devices, int8
from .cuda_graphs import GraphedModel
from .int8 import Int8Linear
from .packed import BlockedMLP, FusedSelfAttention, FusedSwiGLU, PackedLinear, WideLinear, attends_by_heads

LARGE = 50_000_000  # parameters; a smaller model lies in the processor's cache, and gains nothing


@dataclass(frozen=True)
class Runtime:
    """What a model is computed with. The defaults are those of the plain modules."""

    linears: str = "plain"  # "plain", "joined", "packed", "wide" or "int8": see `choose`
    attention: str = "plain"  # of the encoder: "plain" or "by heads", see `packed.attend_by_heads`
    steps: str = "plain"  # "plain", "static" or "captured": see `cuda_graphs`
    levels: int | None = None  # of int8: of the numbers that weights are multiplied with, see `int8.levels`
    adapter: Path | None = None  # the folder of the LoRA that is in the weights
    assistant: Path | None = None  # the folder of the model that drafts

    def also(self) -> dict[str, str]:
        """What only some models have, by name."""
        levels = {} if self.levels is None else {"levels": str(self.levels)}
        folders = {"adapter": self.adapter, "assistant": self.assistant}
        return levels | {name: printable(folder.name) for name, folder in folders.items() if folder is not None}


def load(
    directory: str | Path,
    *,
    device: object = "auto",
    dtype: object = "auto",
    plain: bool = False,
    adapter: str | Path | None = None,
) -> tuple[GlmAsr | EncoderDecoder | GraphedModel, Runtime]:
    """The model of a checkpoint directory, ready to run. Raises CheckpointError, OptionError.

    device   "auto" (a GPU where there is one and dtype isn't int8), "cpu", "cuda", "cuda:1", ...
    dtype    "auto" (bfloat16 where it is fast, else float32; int8 where the files hold it), "bfloat16", "float32" or
             the torch type; "int8": linears with weights of 8 bits, on the CPU
    plain    the modules as they are to be read; else the faster ones, where they pay
    adapter  the folder of a LoRA, which is added to the weights
    """
    floats = None if dtype in ("auto", "int8") else devices.choose_dtype(dtype)
    contents = weights.examine(directory, floats=floats is not None)
    weights.compare(contents)
    if floats is not None:
        weights.refuse_int8(contents, floats)
    in_int8 = dtype == "int8" or contents.has_int8
    place = devices.choose_device("cpu" if in_int8 and device == "auto" else device)
    if in_int8:
        int8.check_int8(place)
    floats = floats or devices.fast_dtype(place)
    added = weights.adapted(contents, adapter)
    linears = "int8" if in_int8 else "plain" if plain else choose(contents.model, place, floats)

    if linears == "plain":
        model = weights.assign(contents, weights.TensorSource(contents, adapter=added), place, floats)
    else:
        later = weights.linear_weights(contents.model)  # they are read one by one, when they are laid out
        apart = weights.TensorSource(contents, apart=True, adapter=added)
        model = weights.assign(contents, weights.TensorSource(contents, adapter=added), place, floats, without=later)
        replace_linears(model, linears, apart, place, floats)
    attention = "by heads" if linears != "plain" and attends_by_heads(place, floats) else "plain"
    runtime = Runtime(linears, attention, levels=int8.levels() if in_int8 else None)
    if adapter is not None:
        runtime = replace(runtime, adapter=Path(adapter).absolute())
    if place.type == "cuda" and not plain and isinstance(model, GlmAsr):
        return GraphedModel(model, captured=True), replace(runtime, steps="captured")
    return model, runtime


def choose(model: nn.Module, device: torch.device, dtype: torch.dtype) -> str:
    """Which linears are faster: "joined" on a GPU; for a large model on a CPU for which PyTorch has oneDNN "packed", or
    "wide" where bfloat16 is asked for and the CPU has no instructions for it; else "plain"."""
    if device.type == "cuda":
        return "joined"
    large = sum(parameter.numel() for parameter in model.parameters()) >= LARGE
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or not large:
        return "plain"
    return "packed" if dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported() else "wide"


# -- replacing ---------------------------------------------------------------------------------------------------------

Source = Callable[[str], Tensor]
"""The name of a weight in the plain model -> the weight: `weights.TensorSource`."""


def replace_linears(
    model: nn.Module, kind: str, source: Source, device: torch.device, dtype: torch.dtype, path: str = ""
) -> None:
    """Replaces the linears of a model, in place: "joined", "packed", "wide" or "int8". They output `dtype` on `device`.

    Their weights come from `source`, those of the linears themselves may be on the meta device; biases are there
    already. Each weight is let go before the next is laid out, so that there are never two copies of a model in memory.
    """

    def make(*names: str) -> nn.Module:
        return _linear(kind, {path + name: model.get_submodule(name) for name in names}, source, device, dtype)

    # The vocabulary first: it needs the most memory meanwhile.
    for name, child in reversed(list(model.named_children())):
        if isinstance(child, SelfAttention):
            joined = make(f"{name}.query", f"{name}.key", f"{name}.value")
            setattr(model, name, FusedSelfAttention(child, joined, make(f"{name}.out")))
        elif isinstance(child, SwiGLU):
            setattr(model, name, FusedSwiGLU(make(f"{name}.gate", f"{name}.up"), make(f"{name}.down")))
        elif isinstance(child, MLP) and device.type == "cpu":
            setattr(model, name, BlockedMLP(make(f"{name}.up"), make(f"{name}.down")))
        elif isinstance(child, nn.Linear):
            setattr(model, name, make(name))
        else:
            replace_linears(child, kind, source, device, dtype, f"{path}{name}.")


def _linear(
    kind: str, linears: dict[str, nn.Module], source: Source, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """One linear for several, by name, that take the same x."""
    parts = [linear for linear in linears.values() if isinstance(linear, nn.Linear)]
    sizes, columns = [linear.out_features for linear in parts], parts[0].in_features
    bias = None
    if any(linear.bias is not None for linear in parts):
        zeros = partial(torch.zeros, dtype=dtype, device=device)
        bias = torch.cat([zeros(linear.out_features) if linear.bias is None else linear.bias for linear in parts])
    names = [f"{name}.weight" for name in linears]
    if kind == "packed":
        return PackedLinear([partial(source, name) for name in names], (sum(sizes), columns), bias, dtype)
    if kind == "int8":
        numbers = int8.pages(sum(sizes), columns)
        scales = [_as_int8(source, name, rows) for name, rows in zip(names, numbers.split(sizes), strict=True)]
        return Int8Linear(numbers, torch.cat(scales), bias)
    weight = torch.cat([source(name).to(device, dtype) for name in names])
    make = WideLinear if kind == "wide" else nn.Linear
    joined = make(columns, sum(sizes), bias=bias is not None, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        joined.bias = nn.Parameter(bias, requires_grad=False)
    return joined


def _as_int8(source: Source, name: str, numbers: Tensor) -> Tensor:
    """Writes a weight, which files may hold as int8 already, to `numbers`; returns the scales of its rows."""
    weight = source(name)
    if weight.dtype != torch.int8:
        return int8.quantize(weight, numbers)[1]
    numbers.copy_(weight)
    return source(name + SCALE)


# -- what lies in a model ----------------------------------------------------------------------------------------------


def weights_of(module: nn.Module) -> list[Tensor]:
    """The weights of a module itself: parameters, or what lies as a kernel wants it."""
    laid_out = (module.weight, module.bias) if isinstance(module, (PackedLinear, Int8Linear)) else ()
    return [*module.parameters(recurse=False), *(x for x in laid_out if x is not None)]


def num_parameters(module: nn.Module) -> int:
    """Numbers in the weights of a module and all within, each weight once."""
    return sum({id(x): x.numel() for part in module.modules() for x in weights_of(part)}.values())


def lay_out(model: nn.Module) -> None:
    """Everything that a first call would do: afterwards the model has its memory."""
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.lay_out()


def unpacked_bytes(model: nn.Module) -> int:
    """Bytes that a model's linears will take when they are laid out."""
    return sum(module.weight.nbytes for module in model.modules() if isinstance(module, PackedLinear) and module.read)
