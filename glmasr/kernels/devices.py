"""Which device and type a model runs in, and how much memory is free there."""

from pathlib import Path

import torch

from ..errors import OptionError


def choose_device(device: object) -> torch.device:
    """ "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", ... Raises OptionError."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)  # type: ignore[call-overload]  # which is a TypeError for what can be none
    except (RuntimeError, TypeError):
        raise OptionError(f"device is {device!r}, expected 'auto', 'cpu' or 'cuda'") from None
    assert isinstance(chosen, torch.device)
    if chosen.type not in ("cpu", "cuda"):
        raise OptionError(f"device is {str(chosen)!r}, expected 'auto', 'cpu' or 'cuda'")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(
            "device is 'cuda', but PyTorch finds no GPU; use --device cpu, or install a CUDA build of PyTorch"
        )
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise OptionError(f"device is {str(chosen)!r}, expected cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return chosen


def choose_dtype(dtype: object) -> torch.dtype:
    """ "bfloat16", "float32" or the torch type. Raises OptionError."""
    if dtype in ("float16", "fp16", "half", torch.float16):
        raise OptionError(
            "dtype float16 is refused: models trained in bfloat16, as GLM-ASR was, overflow it (the text becomes "
            "garbage); use bfloat16 or float32"
        )
    types = {
        "bfloat16": torch.bfloat16,
        "float32": torch.float32,
        torch.bfloat16: torch.bfloat16,
        torch.float32: torch.float32,
    }
    if not isinstance(dtype, (str, torch.dtype)) or dtype not in types:
        raise OptionError(f"dtype is {dtype!r}, expected 'auto', 'bfloat16', 'float32' or 'int8'")
    return types[dtype]


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU and on a CPU with instructions for it; float32 on others, which emulate it slowly."""
    if device.type == "cuda":
        return torch.bfloat16
    has_instructions = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if has_instructions() else torch.float32


PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")  # where Linux says how much memory there is


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; 4 GiB where the system doesn't say; in a container, what its limit leaves."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        free = 1024 * _figure(PROC / "meminfo", "MemAvailable:")
    except (OSError, LookupError, ValueError):
        free = 4 * 2**30
    try:  # TRAP: meminfo is that of the whole machine, in a container too
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        return max(0, min(free, limit - used + _figure(CGROUP / "memory.stat", "inactive_file")))
    except (OSError, LookupError, ValueError):  # no container, or one without a limit: "max"
        return free


def _figure(path: Path, name: str) -> int:
    """Of a file of lines that each have a name and a number."""
    return int(dict(line.split()[:2] for line in path.read_text().splitlines())[name])
