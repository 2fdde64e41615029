"""Int8Linear: each row of the weight as 8-bit numbers with a scale: half the bytes, which are what decoding costs."""

import mmap

import torch
from torch import Tensor, nn

from ..errors import OptionError

ROWS = 256  # rounded to int8 at a time: in float32 they stay in the processor's cache


def check_int8(device: torch.device) -> None:
    """Raises OptionError where Int8Linear can't run."""
    if device.type != "cpu":
        raise OptionError(
            f"the weights are int8 and the device {str(device)!r}; int8 is for the CPU: expected the device 'cpu' or "
            "'auto', or other weights"
        )
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")):
        raise OptionError(
            "dtype is 'int8', for which this build of PyTorch has no kernel (oneDNN); expected bfloat16 or float32"
        )


def levels() -> int:
    """Steps of x on each side of zero.

    TRAP: processors without VNNI add up pairs of products in 16 bits, and saturate; with half the steps they can't.
    """
    return 127 if getattr(torch.cpu, "_is_vnni_supported", lambda: False)() else 63


def pages(rows: int, columns: int) -> Tensor:
    """int8 (rows, columns), in pages that go back to the system with it.

    TRAP: the allocator keeps pieces, a tenth of a model in all.
    """
    return torch.frombuffer(mmap.mmap(-1, rows * columns), dtype=torch.int8).view(rows, columns)


def quantize(weight: Tensor, numbers: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """weight (out, in) -> int8 (out, in), written to `numbers` if given, and the scale (out,) float32 of each row:
    weight = numbers * scale, -127..127."""
    numbers, scales = pages(*weight.shape) if numbers is None else numbers, torch.empty(len(weight))
    for start in range(0, len(weight), ROWS):
        rows = weight[start : start + ROWS].float()
        scale = rows.abs().amax(1).clamp(min=1e-12) / 127
        numbers[start : start + ROWS] = (rows / scale[:, None]).round_()
        scales[start : start + ROWS] = scale
    return numbers, scales


class Int8Linear(nn.Module):
    """x (B, T, in) -> (B, T, out), for the output of `quantize`; (B, in) is B single steps.

    The kernel multiplies 8-bit numbers and adds up exactly, so x has to be rounded too: each of its rows to 8 bits by a
    scale of its own, so that a result doesn't depend on the other rows of its batch. Of a single step (T = 1), where
    the time goes into reading weights, each row is two such numbers, a coarse one and the rest: what is lost is lost in
    the weights alone.

    TRAP: `onednn.qlinear_pointwise` takes int8 for x too, but then runs a reference kernel that is a thousand times
    slower.
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
        """x (..., in) -> (..., out) in the type of x, ROWS at a time to bound the memory for float32 products."""
        product = self._step if x.dim() == 2 or x.shape[-2] == 1 else self._prompt
        y = x.new_empty(*x.shape[:-1], self.out_features)
        pieces = x.reshape(-1, self.in_features).split(ROWS), y.view(-1, self.out_features).split(ROWS)
        for rows, into in zip(*pieces, strict=True):
            scale = rows.abs().amax(1, keepdim=True).float().clamp_(min=1e-12) / self.levels
            found = product(rows / scale)
            if self.bias is None:
                torch.mul(found, scale, out=into)
            else:
                torch.add(found.mul_(scale), self.bias, out=into)
        return y

    def _prompt(self, rows: Tensor) -> Tensor:
        return self._multiply(rows.round_())

    def _step(self, rows: Tensor) -> Tensor:
        coarse = rows.round()
        fine = rows.sub_(coarse).mul_(2 * self.levels).round_()  # what is left is at most half a unit
        # The kernel is a tenth faster with four rows than with two.
        spare = coarse.new_zeros(-2 * len(coarse) % 4, self.in_features)
        coarse, fine = self._multiply(torch.cat((coarse, fine, spare)))[: 2 * len(coarse)].chunk(2)
        return coarse.add_(fine, alpha=0.5 / self.levels)

    def _multiply(self, numbers: Tensor) -> Tensor:
        """Whole numbers (M, in) from -levels to levels -> float32 products with the rows of the weight (M, out).

        TRAP: float to uint8 takes PyTorch five times as long as float to int8, and a tenth of the whole. The sum of
        bytes is the same modulo 256.
        """
        zero = self.levels + 1
        x = numbers.to(torch.int8).view(torch.uint8).add_(zero)
        weight = self.weight, self.scale, self.zero
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            x, 1.0, zero, *weight, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return y
