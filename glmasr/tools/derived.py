"""A checkpoint -> a new directory with other weights, and with all else that is in it."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from ..errors import OutputError

# Files that are not copied.
WEIGHTS = set(".safetensors .bin .pt .pth .ckpt .msgpack .h5 .onnx .gguf".split())
ADAPTER = "adapter_config.json"  # TRAP: where it lies beside a model, Transformers loads the adapter as well


def check_new(out: Path) -> None:
    """Raises OutputError unless it is a directory that can be made, or an empty one."""
    if out.is_symlink() or out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise OutputError(f"{out} is there and not empty; expected a new directory")


def write(directory: Path, out: Path, save: Callable[[Path], None]) -> None:
    """`out`, a new directory, is there when it is complete. `save` writes weights and configuration to the folder that
    it is given; tokenizer, chat template and license come from `directory`. Raises OutputError."""
    try:
        check_new(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as folder:
            part = Path(folder) / "part"
            save(part)
            for path in directory.iterdir():
                other = path.suffix in WEIGHTS or path.name.endswith(".index.json") or path.name == ADAPTER
                if path.is_file() and not other and not (part / path.name).exists():
                    shutil.copyfile(path, part / path.name)
            os.replace(part, out)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{out}: {getattr(error, 'strerror', None) or error}") from None
