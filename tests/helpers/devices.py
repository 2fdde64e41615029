"""What would be slow on a device."""

from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a device: reading one number, or a shape that depends on values."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "masked_select", "unique"))
        return func(*args, **(kwargs or {}))
