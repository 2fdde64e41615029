"""A checkpoint -> the same with int8 weights, half as large:  glmasr-quantize DIR OUT

OUT is loaded by this package only, and faster than DIR with `--dtype int8`, which makes the same numbers each time.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from safetensors import SafetensorError

from ..cli import Parser, ended_at_once
from ..errors import GlmAsrError, OutputError, printable

# Files that are not copied.
WEIGHTS = set(".safetensors .bin .pt .pth .ckpt .msgpack .h5 .onnx .gguf".split())


def quantize_directory(directory: Path, out: Path) -> None:
    """`out`, a new directory, is there when it is complete. Raises CheckpointError, OptionError, OutputError."""
    from .. import weights  # and PyTorch, which takes a second: not before the arguments are right
    from ..kernels import int8

    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise OutputError(f"{out} is there and not empty; expected a new directory")
    model = weights.load(directory, dtype=None)  # as stored: nothing is rounded twice
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as folder:
            part = Path(folder) / "part"
            weights.save(model, part, None, quantize=int8.quantize)
            for path in directory.iterdir():  # tokenizer, chat template, license; the configuration is written already
                weight_file = path.suffix in WEIGHTS or path.name.endswith(".index.json")
                if path.is_file() and not weight_file and not (part / path.name).exists():
                    shutil.copyfile(path, part / path.name)
            os.replace(part, out)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{out}: {getattr(error, 'strerror', None) or error}") from None


def main() -> int:
    """The command `glmasr-quantize DIR OUT`. -> exit code: 0, or 1 for an error that the user is told."""
    parser = Parser(description="A checkpoint -> the same with int8 weights, half as large.")
    parser.add_argument("directory", type=Path, metavar="DIR", help="a checkpoint, or a name such as demo")
    parser.add_argument(
        "--hub",
        choices=["huggingface", "modelscope"],
        help="where a model comes from that isn't here (default: huggingface, or what GLMASR_HUB says)",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a new directory")
    args = parser.parse_args()
    try:
        with ended_at_once():
            from ..checkpoint.hub import find
        quantize_directory(find(args.directory, hub=args.hub), args.out)
    except GlmAsrError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
