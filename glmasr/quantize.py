"""A checkpoint -> the same with int8 weights, half as large:  glmasr-quantize DIR OUT

OUT is loaded by this package only, and faster than DIR with `--dtype int8`, which makes the same numbers each time.
"""

import argparse
import shutil
import sys
from pathlib import Path

from .errors import GlmAsrError, OutputError


def quantise_directory(directory: Path, out: Path) -> None:
    """Raises CheckpointError, OptionError, OutputError."""
    from . import weights
    if out.exists() and out.resolve() == directory.resolve():
        raise OutputError(f"{out} is the checkpoint itself; expected another directory to write to")
    model = weights.load(directory, device="cpu", dtype="bfloat16")
    try:
        weights.save(model, out, int8=True)
        for path in directory.iterdir():                        # tokenizer, chat template, licence; the configuration is written already
            if path.is_file() and not path.name.startswith("model") and not (out / path.name).exists():
                shutil.copyfile(path, out / path.name)
    except OSError as error:
        raise OutputError(f"{out}: {error.strerror}") from None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DIR", help="a checkpoint, or a name such as demo")
    parser.add_argument("out", type=Path, metavar="OUT")
    args = parser.parse_args()
    try:
        from .hub import find
        quantise_directory(find(args.directory), args.out)
    except GlmAsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
