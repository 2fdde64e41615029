"""The same model with linears as the machine's kernels want them. The names and interfaces are those of the modules replaced.

    PackedLinear    bfloat16 or float32, laid out for a CPU's kernels (oneDNN) at the first call instead of at each
    WideLinear      bfloat16 weights, multiplied in float32: for a CPU without instructions for bfloat16
    Int8Linear      each row of the weight as 8-bit numbers with a scale: half the bytes, and bytes are what decoding costs

`prepare` replaces the linears of a model in place. Queries, keys and values share one product, as gate and up do: on a GPU that
is all ("joined").
"""

import mmap
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .decoder import SwiGLU
from .errors import OptionError
from .layers import SelfAttention

QUERIES = 512                   # whose scores with all keys of a window, 1.5 MB, stay in the processor's cache
FEW = 16                        # rows: fewer are multiplied with bfloat16 as it is
ROWS = 256                      # rounded to int8 at a time: in float32 they stay in the processor's cache


class PackedLinear(nn.Module):
    """x (..., in) -> (..., out), for weights (out, in) of one or more linears that take the same x, and their bias (out,) or None.

    Read and laid out when first called: all weights of a large model take seconds. `read`: functions that give the weights.
    """

    def __init__(self, read: Sequence[Callable[[], Tensor]], shape: tuple[int, int], bias: Tensor | None, dtype: torch.dtype):
        super().__init__()
        self.out_features, self.in_features = shape
        self.read = tuple(read)
        # Neither is a parameter: a tensor that is laid out has no memory that could be saved, moved or cast.
        self.weight = torch.empty(shape, dtype=dtype, device="meta")
        self.bias = None if bias is None else bias.detach()

    def lay_out(self) -> None:
        if read := self.read:               # another thread may be laying it out as well: that does no harm
            parts = [part().detach().to(self.weight.dtype) for part in read]
            self.weight = torch.ops.mkldnn._reorder_linear_weight(torch.cat(parts) if len(parts) > 1 else parts[0].contiguous(), None)
            self.read = ()

    def forward(self, x: Tensor) -> Tensor:
        self.lay_out()
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class WideLinear(nn.Linear):
    """A linear of bfloat16 whose products are made in float32, and rounded: PyTorch's own kernel takes eight times as long for a window,
    where a processor has no instructions for bfloat16. For a few rows widening the weight would cost more than the product."""

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() < FEW * self.in_features:
            return super().forward(x)
        return F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float()).to(x.dtype)


def check_int8(device: torch.device) -> None:
    """Raises OptionError where Int8Linear can't run."""
    if device.type != "cpu":
        raise OptionError(f"the weights are int8 and the device {str(device)!r}; int8 is for the CPU: expected the device 'cpu' or 'auto', or other weights")
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")):
        raise OptionError("dtype is 'int8', for which this build of PyTorch has no kernel (oneDNN); expected bfloat16 or float32")


def levels() -> int:
    """Steps of x on each side of zero.

    TRAP: processors without VNNI add up pairs of products in 16 bits, and saturate; with half the steps they can't.
    """
    return 127 if getattr(torch.cpu, "_is_vnni_supported", lambda: False)() else 63


def pages(rows: int, columns: int) -> Tensor:
    """int8 (rows, columns), in pages that go back to the system with it. TRAP: the allocator keeps pieces, a tenth of a model in all."""
    return torch.frombuffer(mmap.mmap(-1, rows * columns), dtype=torch.int8).view(rows, columns)


def quantise(weight: Tensor, numbers: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """weight (out, in) -> int8 (out, in), written to `numbers` if given, and the scale (out,) float32 of each row:
    weight = numbers * scale, -127..127."""
    numbers, scales = pages(*weight.shape) if numbers is None else numbers, torch.empty(len(weight))
    for start in range(0, len(weight), ROWS):
        rows = weight[start:start + ROWS].float()
        scale = rows.abs().amax(1).clamp(min=1e-12) / 127
        numbers[start:start + ROWS] = (rows / scale[:, None]).round_()
        scales[start:start + ROWS] = scale
    return numbers, scales


class Int8Linear(nn.Module):
    """x (B, T, in) -> (B, T, out), for what `quantise` gives; (B, in) is B single steps.

    The kernel multiplies 8-bit numbers and adds up exactly, so x has to be rounded too: each of its rows to 8 bits by a scale
    of its own, so that a result doesn't depend on the other rows of its batch. Of a single step (T = 1), where the time goes
    into reading weights, each row is two such numbers, a coarse one and the rest: what is lost is lost in the weights alone.

    TRAP: `onednn.qlinear_pointwise` takes int8 for x too, but then runs a reference kernel that is a thousand times slower.
    """

    def __init__(self, numbers: Tensor, scale: Tensor, bias: Tensor | None):
        super().__init__()
        self.out_features, self.in_features = numbers.shape
        self.levels = levels()
        self.weight = torch.ops.onednn.qlinear_prepack(numbers.contiguous(), None)
        self.scale = scale
        self.zero = torch.zeros(len(scale), dtype=torch.int32)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        product = self._step if x.dim() == 2 or x.shape[-2] == 1 else self._prompt
        y = x.new_empty(*x.shape[:-1], self.out_features)
        for rows, into in zip(x.reshape(-1, self.in_features).split(ROWS), y.view(-1, self.out_features).split(ROWS)):
            scale = rows.abs().amax(1, keepdim=True).float().clamp_(min=1e-12) / self.levels
            found = product(rows / scale).mul_(scale)
            into.copy_(found if self.bias is None else found.add_(self.bias))
        return y

    def _prompt(self, rows: Tensor) -> Tensor:
        return self._multiply(rows.round_())

    def _step(self, rows: Tensor) -> Tensor:
        coarse = rows.round()
        fine = rows.sub_(coarse).mul_(2 * self.levels).round_()         # what is left is at most half a unit
        spare = coarse.new_zeros(-2 * len(coarse) % 4, self.in_features)    # the kernel is a tenth faster with four rows than with two
        coarse, fine = self._multiply(torch.cat((coarse, fine, spare)))[:2 * len(coarse)].chunk(2)
        return coarse.add_(fine, alpha=0.5 / self.levels)

    def _multiply(self, numbers: Tensor) -> Tensor:
        """Whole numbers (M, in) from -levels to levels -> their products with the rows of the weight (M, out), float32."""
        zero = self.levels + 1
        return torch.ops.onednn.qlinear_pointwise(numbers.add_(zero).to(torch.uint8), 1.0, zero, self.weight, self.scale, self.zero,
                                                  None, 1.0, 0, torch.float32, "none", [], "")


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


# -- products that are made together -------------------------------------------------------------------------------------

class FusedSelfAttention(SelfAttention):
    """Query, key and value as one linear."""

    def __init__(self, attention: SelfAttention, joined: nn.Module, out: nn.Module):
        nn.Module.__init__(self)
        self.head_size = attention.head_size
        self.sizes = [linear.out_features for linear in (attention.query, attention.key, attention.value)]
        self.joined, self.out = joined, out

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(self.split(part) for part in self.joined(x).split(self.sizes, dim=-1))

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        whole = mask is None and query.shape[1:] == key.shape[1:]           # all look at all, as in an encoder
        if not (whole and query.dtype == torch.bfloat16 and query.device.type == "cpu"):
            return super().mix(query, key, value, mask)
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return attend_by_heads(query, key, value)
        return super().mix(query.float(), key.float(), value.float(), mask).to(query.dtype)         # as `WideLinear`


def attend_by_heads(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k' / sqrt(K)) v, all (B, H, T, K) -> (B, T, H * K), for bfloat16 on a CPU.

    One head and QUERIES rows at a time, as products of bfloat16: twice as fast as PyTorch's kernel, which keeps scores in float32.
    Here they are rounded to bfloat16, as all that is between layers.
    """
    query = query * query.shape[-1] ** -0.5
    mixed = query.new_empty(query.shape[0], query.shape[2], query.shape[1], query.shape[3])
    for row in range(len(query)):
        for head in range(query.shape[1]):
            keys, values = key[row, head].T, value[row, head]
            for start in range(0, query.shape[2], QUERIES):
                some = slice(start, start + QUERIES)
                mixed[row, some, head] = (query[row, head, some] @ keys).softmax(-1) @ values
    return mixed.flatten(2)


class FusedSwiGLU(nn.Module):
    """Gate and up as one linear."""

    def __init__(self, joined: nn.Module, down: nn.Module):
        super().__init__()
        self.joined, self.down = joined, down

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.joined(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


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
