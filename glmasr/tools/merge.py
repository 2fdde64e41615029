"""A checkpoint and an adapter -> a checkpoint without one:  glmasr-merge BASE ADAPTER OUT

OUT is a directory as Transformers writes it, which both load. Its weights are float32 unless `--dtype` says otherwise:
as bfloat16 a small change of a large weight is rounded away, and the text may be another one.
"""

import sys
from functools import partial
from pathlib import Path

from ..cli import Parser, ended_at_once
from ..errors import GlmAsrError, printable

DTYPES = ("float32", "bfloat16")


def merge(base: Path, adapter: Path, out: Path, dtype: str = "float32") -> None:
    """Writes the checkpoint of `base` with the adapter in its weights. `out`, a new directory, is there when it is
    complete. Raises CheckpointError, OptionError, OutputError."""
    import torch  # which takes a second: not before the arguments are right

    from .. import weights
    from . import derived

    derived.check_new(out)
    model = weights.load(base, dtype=getattr(torch, dtype), adapter=adapter)
    derived.write(base, out, partial(weights.save, model, dtype=None))


def main() -> int:
    """The command `glmasr-merge BASE ADAPTER OUT`. -> exit code: 0, or 1 for an error that the user is told."""
    parser = Parser(
        description="A checkpoint and an adapter -> a checkpoint without one, which Transformers loads, too."
    )
    parser.add_argument("base", type=Path, metavar="BASE", help="a checkpoint, or a name such as demo")
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="a folder that peft or glmasr wrote")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new directory")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the weights (default: float32)")
    parser.add_argument(
        "--hub",
        choices=["huggingface", "modelscope"],
        help="where a model comes from that isn't here (default: huggingface, or what GLMASR_HUB says)",
    )
    args = parser.parse_args()
    try:
        with ended_at_once():
            from ..checkpoint.hub import find
        merge(find(args.base, hub=args.hub), args.adapter, args.out, args.dtype)
    except GlmAsrError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
