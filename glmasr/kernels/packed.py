"""Linears that are laid out for a CPU's kernels, and products that are made together.

PackedLinear            bfloat16 or float32, laid out for a CPU's kernels (oneDNN) at the first call, not at each
WideLinear              bfloat16 weights, multiplied in float32: for a CPU without instructions for bfloat16
FusedSelfAttention      query, key and value as one linear
FusedSwiGLU             gate and up as one linear
BlockedMLP              the MLP with GELU, some rows at a time
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import MLP, SelfAttention

QUERIES = 512  # whose scores with all keys of a window, 1.5 MB, stay in the processor's cache
FEW = 16  # rows: fewer are multiplied with bfloat16 as it is
BLOCK = 512  # rows of an MLP, at the most


class PackedLinear(nn.Module):
    """x (..., in) -> (..., out), for weights (out, in) of one or more linears that take the same x, and their bias
    (out,) or None.

    Read and laid out when first called: all weights of a large model take seconds. `read`: functions that return the
    weights.
    """

    def __init__(
        self, read: Sequence[Callable[[], Tensor]], shape: tuple[int, int], bias: Tensor | None, dtype: torch.dtype
    ):
        super().__init__()
        self.out_features, self.in_features = shape
        self.read = tuple(read)
        # Neither is a parameter: a tensor that is laid out has no memory that could be saved, moved or cast.
        self.weight = torch.empty(shape, dtype=dtype, device="meta")
        self.bias = None if bias is None else bias.detach()

    def lay_out(self) -> None:
        """Reads the weights and has oneDNN pack them; does nothing the second time."""
        if read := self.read:  # another thread may be laying it out as well: that does no harm
            parts = [part().detach().to(self.weight.dtype) for part in read]
            weight = torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
            self.read = ()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out), in the type of the weights. The first call packs them."""
        self.lay_out()
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


class WideLinear(nn.Linear):
    """A linear of bfloat16 whose products are made in float32, and rounded: PyTorch's own kernel takes eight times as
    long for a window, where a processor has no instructions for bfloat16. For a few rows widening the weight would cost
    more than the product."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out), both bfloat16. Fewer than FEW rows go to PyTorch's own kernel."""
        if x.numel() < FEW * self.in_features:
            return super().forward(x)
        return F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float()).to(x.dtype)


# -- products that are made together -----------------------------------------------------------------------------------


class FusedSelfAttention(SelfAttention):
    """Query, key and value as one linear."""

    def __init__(self, attention: SelfAttention, joined: nn.Module, out: nn.Module):
        nn.Module.__init__(self)
        self.head_size = attention.head_size
        self.sizes = [linear.out_features for linear in (attention.query, attention.key, attention.value)]
        self.joined, self.out = joined, out

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) -> query (B, H, T, K), key and value (B, G, T, K), from a single product."""
        query, key, value = self.joined(x).split(self.sizes, dim=-1)
        return self.split(query), self.split(key), self.split(value)

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """As `SelfAttention.mix`. For an encoder in bfloat16 on a CPU: `attend_by_heads`, or, without instructions for
        bfloat16, in float32."""
        whole = mask is None and query.shape[1:] == key.shape[1:]  # all attend to all, as in an encoder
        if not (whole and query.dtype == torch.bfloat16 and query.device.type == "cpu"):
            return super().mix(query, key, value, mask)
        if attends_by_heads(query.device, query.dtype):
            return attend_by_heads(query, key, value)
        return super().mix(query.float(), key.float(), value.float(), mask).to(query.dtype)  # as `WideLinear`


def attends_by_heads(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `FusedSelfAttention` of an encoder goes by `attend_by_heads`."""
    on_cpu = dtype == torch.bfloat16 and device.type == "cpu"
    return on_cpu and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def attend_by_heads(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k' / sqrt(K)) v, all (B, H, T, K) -> (B, T, H * K), for bfloat16 on a CPU.

    One head and QUERIES rows at a time, as products of bfloat16: twice as fast as PyTorch's kernel, which keeps scores
    in float32. Here they are rounded to bfloat16, as all that is between layers.
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
        """x (..., D) -> (..., D)."""
        gate, up = self.joined(x).chunk(2, dim=-1)
        y: Tensor = self.down(F.silu(gate) * up)
        return y


class BlockedMLP(MLP):
    """An MLP, BLOCK rows at a time. Between its linears lies four times what goes through it: of a batch of windows
    hundreds of MiB, which the system would give and take back in each layer, page by page."""

    def __init__(self, up: nn.Module, down: nn.Module):
        nn.Module.__init__(self)
        self.up, self.down = up, down

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., D)."""
        rows = x.reshape(1, -1, x.shape[-1])
        count = -(-rows.shape[1] // BLOCK)
        if count < 2 or x.shape[-2] == 1:
            return super().forward(x)
        # Parts as equal as can be: int8 takes a single row for a step, and computes it otherwise.
        few = super().forward
        return torch.cat([few(part) for part in rows.tensor_split(count, dim=1)], dim=1).view(x.shape)
