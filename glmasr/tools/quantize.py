"""A checkpoint -> the same with int8 weights, half as large:  glmasr-quantize DIR OUT

OUT is loaded by this package only, and faster than DIR with `--dtype int8`, which makes the same numbers each time.
"""

import sys
from functools import partial
from pathlib import Path

from ..cli import Parser, ended_at_once
from ..errors import GlmAsrError, printable


def quantize_directory(directory: Path, out: Path) -> None:
    """`out`, a new directory, is there when it is complete. Raises CheckpointError, OptionError, OutputError."""
    from .. import weights  # and PyTorch, which takes a second: not before the arguments are right
    from ..kernels import int8
    from . import derived

    derived.check_new(out)
    model = weights.load(directory, dtype=None)  # as stored: nothing is rounded twice
    derived.write(directory, out, partial(weights.save, model, dtype=None, quantize=int8.quantize))


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
