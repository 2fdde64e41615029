"""Several processes, one for each GPU, that learn one model: started by torchrun, each takes its part of every step.

    torchrun --nproc-per-node 2 training/train.py ...

Without torchrun there is one process, and nothing here does anything. On CPUs they talk through gloo, on GPUs through
NCCL.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

PATIENCE = timedelta(hours=12)  # one may read manifests, or save, while the others wait


@dataclass(frozen=True)
class Processes:
    """Which process this is, of how many."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that prints and saves."""
        return self.rank == 0

    def summed(self, values: Iterable[float]) -> list[float]:
        """The sums of some numbers over all processes."""
        total = torch.tensor(list(values), dtype=torch.float64)
        if self.count > 1:
            total = total.to(_device())
            distributed.all_reduce(total)
        return total.tolist()

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Each gradient becomes the sum of those of all processes."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:  # TRAP: all have to take part, or the others wait for ever
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)

    def shared(self, value: Any) -> Any:
        """What the first process has."""
        if self.count == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, device=_device())
        return values[0]

    def gathered(self, value: Any) -> list[Any]:
        """What each process has."""
        values = [value]
        if self.count > 1:
            values = [None] * self.count
            distributed.all_gather_object(values, value)
        return values

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """All get the values of the first process."""
        if self.count > 1:
            with torch.no_grad():
                for tensor in tensors:
                    distributed.broadcast(tensor, 0)


def _device() -> torch.device:
    gpu = distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")


def start(device: torch.device) -> tuple[Processes, torch.device]:
    """This process among those of torchrun, and its device."""
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        return Processes(), device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return Processes(distributed.get_rank(), distributed.get_world_size()), device


def end() -> None:
    """Lets the others go."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
