"""`glmasr-fetch NAME`: a model of a hub -> the hub's cache, where glmasr finds it."""

import sys
from contextlib import suppress
from importlib import import_module

from ..checkpoint import hub
from ..cli import INTERRUPTED, Parser, ended_at_once
from ..errors import GlmAsrError, printable


def main(argv: list[str] | None = None) -> int:
    """`glmasr-fetch`. Exit code: 0 it is there, 1 it can't be fetched, 2 wrong usage, 130 interrupted."""
    parser = Parser(
        prog="glmasr-fetch",
        description="Fetches a model from the hub into its cache, where glmasr finds it, and prints the directory. "
        "What was fetched before an interrupt is kept.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        default=hub.DEFAULT,
        metavar="NAME",
        help=f"{hub.DEFAULT} (default), a Whisper by its short name (tiny to large-v3, turbo), or owner/name of a "
        "model of the hub",
    )
    parser.add_argument(
        "--revision",
        metavar="REV",
        help="commit, branch or tag (default: a pinned commit; of others main, as it is now)",
    )
    parser.add_argument(
        "--hub",
        choices=tuple(hub.HUBS),
        help="where it comes from (default: huggingface, or what GLMASR_HUB says)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    try:
        with ended_at_once(), suppress(ImportError):  # `hub.find` says what is missing
            import_module("huggingface_hub.utils")
        found = str(hub.find(args.model, args.revision, hub=args.hub, progress=not args.quiet, renew=True))
        print(printable(found) if sys.stdout.isatty() else found)  # a program that reads it wants the very name
        return 0
    except GlmAsrError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
