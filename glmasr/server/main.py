"""Starts the server: arguments, the log, the private folder.

It runs in `running.py`. At the end the folder with all uploads is removed.
"""

import argparse
import asyncio
import logging
import os
import re
import signal
import sys
import tempfile
from types import TracebackType

from ..cli import Parser, count, device, megabytes, port, refused, seconds
from ..errors import GlmAsrError, OptionError, printable
from .extra import missing
from .private_folder import private_folder
from .signals import block_signals, ends

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def origin(text: str) -> str:
    """The type of an argument that is an origin, scheme://host[:port], or *. Raises ArgumentTypeError."""
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+|\*", text):
        raise refused(text, "an origin such as https://example.org")
    return text


def host(text: str) -> str:
    """The type of an argument that is the name or address of a host, in lower case. Raises ArgumentTypeError."""
    if not re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", text):
        raise refused(text, "the name of a host, without a port")
    return text.lower()


def named_folder(text: str) -> tuple[str, str]:
    """The type of an argument NAME=DIR. Raises ArgumentTypeError."""
    name, _, folder = text.partition("=")
    if not (re.fullmatch(r"[A-Za-z0-9][\w.-]{0,63}", name) and folder):
        raise refused(text, "NAME=DIR, with a name of letters, digits, _, . and -")
    return name, folder


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the server's command line, checked. Wrong usage ends the process, with exit code 2."""
    parser = Parser(description="Recognizes speech: a web page, and an API like OpenAI's.")
    parser.add_argument(
        "--model",
        default="glm-asr-nano-2512",
        metavar="NAME|DIR",
        help="glm-asr-nano-2512 (default), demo, demo-article, a Whisper by its short name (tiny to large-v3, "
        "turbo), a directory, or owner/name of a model of the hub",
    )
    parser.add_argument("--revision", metavar="REV", help="commit, branch or tag of a model of the hub")
    parser.add_argument(
        "--hub",
        choices=["huggingface", "modelscope"],
        help="where the model comes from (default: huggingface, or what GLMASR_HUB says)",
    )
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda, or cuda:1 and so on")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32", "int8"])
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; 0.0.0.0 lets other machines in (default: 127.0.0.1, this machine only)",
    )
    parser.add_argument("--port", type=port, default=7860, help="0 takes a free one (default: 7860)")
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="NAME",
        help="what requests may call the model, such as whisper-1 for clients that know no other; may be repeated",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        type=named_folder,
        default=[],
        metavar="NAME=DIR",
        help="a LoRA in PEFT's format, which requests choose as model=MODEL:NAME; may be repeated. Each takes the "
        "memory of a model",
    )
    parser.add_argument(
        "--queue",
        type=count,
        default=20,
        metavar="N",
        help="recordings that may wait; further ones get status 429 (default: 20)",
    )
    parser.add_argument(
        "--time-limit",
        type=seconds,
        default=600.0,
        metavar="SECONDS",
        help="for a recording, from its upload to its text (default: 600)",
    )
    parser.add_argument(
        "--max-upload", type=megabytes, default=100.0, metavar="MIB", help="size of a file (default: 100)"
    )
    parser.add_argument(
        "--max-duration",
        type=seconds,
        default=4 * 3600.0,
        metavar="SECONDS",
        help="length of a recording (default: 14400, 4 hours)",
    )
    parser.add_argument(
        "--api-key",
        default=os.environ.get("GLMASR_API_KEY", ""),
        metavar="KEY",
        help="requests need it, and so does the page, as the password; better in GLMASR_API_KEY, for everyone on "
        "the machine can read arguments",
    )
    parser.add_argument(
        "--cors",
        action="append",
        type=origin,
        default=[],
        metavar="ORIGIN",
        help="lets pages of this origin call the server from a browser, such as https://example.org; may be "
        "repeated (default: none)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        type=host,
        default=[],
        metavar="NAME",
        help="another name, or address, that requests may call this server by, such as that of a proxy in front "
        "of it; may be repeated (default: of a server at this machine's own address localhost, 127.0.0.1 and "
        "[::1]; else any)",
    )
    parser.add_argument(
        "--most-kept",
        type=megabytes,
        default=1024.0,
        metavar="MIB",
        help="size of all recordings and results that the page keeps while it is open (default: 1024)",
    )
    parser.add_argument("--no-page", action="store_true", help="only the API")
    parser.add_argument("--quiet", action="store_true", help="errors only on standard error")
    args = parser.parse_args(argv)
    names = [name for name, _ in args.adapter]
    if twice := [name for name in names if names.count(name) > 1]:
        parser.error(f"--adapter {twice[0]} is given twice; expected a name for each")
    return args


def allow_files() -> None:
    """As many open files, and so connections, as this user may have."""
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ImportError, ValueError, OSError):  # not on Windows; and some systems say more than they give
        pass


class Escaping(logging.Formatter):
    """TRAP: a message may hold what a client sent, and a terminal obeys control characters."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The log line, with line breaks and other control characters of the message escaped."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, info: ExcInfo) -> str:
        """The traceback, each line escaped on its own: its line breaks stay."""
        return "\n".join(map(printable, super().formatException(info).split("\n")))


def main(argv: list[str] | None = None) -> int:
    """Runs the server. -> exit code: 0, 1 for an error, 2 for a wrong option, 130 for Ctrl-C before it listens."""
    args = arguments(argv)
    start_log(args.quiet)
    for number in ends():
        signal.signal(number, lambda *_: sys.exit(143))  # until the server listens: without it nothing is removed
    block_signals(True)  # until the folder, and the loop, are there to be removed
    allow_files()
    try:
        with private_folder() as folder:
            # Whatever makes temporary files, in this process and in those that it starts, makes them there.
            os.environ.update(
                TMPDIR=folder,
                GRADIO_TEMP_DIR=os.path.join(folder, "page"),
                GRADIO_ANALYTICS_ENABLED="False",
                GRADIO_ANALYTICS_MAX_EVENTS="100",
            )
            tempfile.tempdir = folder
            try:
                from .running import serve
            except ImportError as error:
                raise missing(error) from None
            asyncio.run(serve(args, folder))
    except GlmAsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, OptionError) else 1
    except KeyboardInterrupt:  # while the model is loaded
        return 130
    return 0


def start_log(quiet: bool) -> None:
    """Sends the log to standard error, escaped for terminals; with `quiet`, warnings and errors only."""
    handler = logging.StreamHandler()
    handler.setFormatter(Escaping("%(asctime)s %(levelname)s %(message)s"))
    # Any client could have that logged as often as it likes: that its bytes are no HTTP, that it wants a WebSocket.
    handler.addFilter(lambda record: record.levelno != logging.WARNING or record.name != "uvicorn.error")
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, handlers=[handler])
    for talkative in ("httpx", "httpcore", "python_multipart"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
    # It tells of each connection that can't be taken, a million times.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
