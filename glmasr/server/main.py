"""Starts the server: arguments, the private folder, the desk, the application, and the orderly end.

On SIGTERM (and Ctrl-C, and when the terminal is closed) what runs is finished and answered, who waits is refused, and nothing new is taken in;
then the folder with all uploads is removed. What isn't finished after GRACE seconds is given up. A second signal ends it at once.
"""

import argparse
import asyncio
import importlib.util
import ipaddress
import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..cli import Parser, count, megabytes, port, refused, seconds
from ..errors import GlmAsrError, OptionError, printable

BACKLOG = 64                    # connections that may wait to be taken; a thousand would each be an error where no more files can be open
GRACE = 20.0                    # seconds that running recordings get at the end
LAST = 6.0                      # seconds until the process ends after that, whatever is under way
FOLDER = "glmasr-server-"


def origin(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+|\*", text):
        raise refused(text, "an origin such as https://example.org")
    return text


def host(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", text):
        raise refused(text, "the name of a host, without a port")
    return text.lower()


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Recognises speech: a web page, and an API like OpenAI's.")
    parser.add_argument("--model", default="glm-asr-nano-2512", metavar="NAME|DIR", help="glm-asr-nano-2512 (default), demo, demo-article, a Whisper by its short name (tiny to large-v3, turbo), a directory, or owner/name of a model of the hub")
    parser.add_argument("--revision", metavar="REV", help="commit, branch or tag of a model of the hub")
    parser.add_argument("--hub", choices=["huggingface", "modelscope"], help="where the model comes from (default: huggingface, or what GLMASR_HUB says)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32", "int8"])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets other machines in (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=port, default=7860, help="0 takes a free one (default: 7860)")
    parser.add_argument("--name", action="append", metavar="NAME", help="what requests may call the model, such as whisper-1 for clients that know no other; may be repeated")
    parser.add_argument("--queue", type=count, default=20, metavar="N", help="recordings that may wait; whoever comes then gets status 429 (default: 20)")
    parser.add_argument("--time-limit", type=seconds, default=600.0, metavar="SECONDS", help="for a recording, from its upload to its text (default: 600)")
    parser.add_argument("--max-upload", type=megabytes, default=100.0, metavar="MIB", help="size of a file (default: 100)")
    parser.add_argument("--max-duration", type=seconds, default=4 * 3600.0, metavar="SECONDS", help="length of a recording (default: 14400, 4 hours)")
    parser.add_argument("--api-key", default=os.environ.get("GLMASR_API_KEY", ""), metavar="KEY", help="requests need it, and so does the page, as the password; better in GLMASR_API_KEY, for everybody on the machine can read arguments")
    parser.add_argument("--cors", action="append", type=origin, default=[], metavar="ORIGIN", help="lets pages of this origin call the server from a browser, such as https://example.org; may be repeated (default: none)")
    parser.add_argument("--allow-host", action="append", type=host, default=[], metavar="NAME", help="another name, or address, that requests may call this server by, such as that of a proxy in front of it; may be repeated (default: of a server at this machine's own address localhost, 127.0.0.1 and [::1]; else any)")
    parser.add_argument("--most-kept", type=megabytes, default=1024.0, metavar="MIB", help="size of all recordings and results that the page keeps while it is open (default: 1024)")
    parser.add_argument("--no-page", action="store_true", help="only the API")
    parser.add_argument("--quiet", action="store_true", help="errors only on standard error")
    return parser.parse_args(argv)


def missing(error: ImportError) -> OptionError:
    return OptionError(f"the server needs the package {error.name or error}, which is not installed; get it with the extra [web]:  "
                       "pip install -c constraints.txt '.[web]'")


def check_address(host: str, port: int) -> None:
    """Raises OptionError where nobody can listen: before a model is loaded, or even fetched, for it."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
    except (OSError, UnicodeError) as error:
        raise OptionError(f"nobody can listen at --host {host} --port {port}: {getattr(error, 'strerror', None) or error}; expected an address of "
                          "this machine and a free port") from None


def names(args: argparse.Namespace) -> list[str]:
    """What requests may call the model; the first one is its name. A path stays here."""
    first = os.path.basename(os.path.normpath(args.model)) or args.model
    whole = [args.model] if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", args.model) else []
    return list(dict.fromkeys([first, *whole, *(args.name or [])]))


def known_hosts(args: argparse.Namespace) -> frozenset[str] | None:
    """What `Host` of a request may say: None, anything, where other machines are let in and no names are given."""
    own = args.host.lower()
    with suppress(ValueError):
        address = ipaddress.ip_address(own)
        own = f"[{address}]" if address.version == 6 else str(address)
        if not (address.is_loopback or args.allow_host):
            return None
    if own != "localhost" and not re.match(r"[\d\[]", own) and not args.allow_host:
        places = {place[4][0] for place in socket.getaddrinfo(own, args.port, type=socket.SOCK_STREAM)}
        if not all(ipaddress.ip_address(place.partition("%")[0]).is_loopback for place in places):
            return None
    return frozenset({"localhost", "127.0.0.1", "[::1]", own, *args.allow_host})


async def serve(args: argparse.Namespace, folder: str) -> None:
    """Runs until a signal comes. Raises GlmAsrError where it can't start."""
    try:
        import uvicorn

        from ..checkpoint import hub
        from . import api, connections, request_queue
        if not args.no_page and importlib.util.find_spec("gradio") is None:
            raise ModuleNotFoundError(name="gradio")
    except ImportError as error:
        raise missing(error) from None

    class Server(uvicorn.Server):
        def handle_exit(self, sig, frame):
            # TRAP: uvicorn's own one raises the signal again when all is done, which ends the process before the folder is removed.
            if self.should_exit:
                end_at_once(128 + sig)
            self.should_exit = True
            loop.call_soon_threadsafe(desk.close)
            last = threading.Timer(GRACE + LAST, end_at_once, [128 + sig])      # also where the event loop is blocked
            last.daemon = True
            last.start()

        async def shutdown(self, sockets=None):
            if application.state.stop:                  # streams to open pages
                application.state.stop()
            loop.call_later(GRACE, desk.give_up)
            await super().shutdown(sockets)
            for connection in list(self.server_state.connections):
                connection.transport.abort()

    def end_at_once(code: int) -> None:
        if desk.process is not None:
            desk.process.kill()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(code)

    hold(False)
    check_address(args.host, args.port)
    loop = asyncio.get_running_loop()
    model = {"name_or_path": args.model, "device": args.device, "dtype": args.dtype, "revision": args.revision, "hub": args.hub, "progress": not args.quiet}
    desk = request_queue.Desk(model, args.queue, args.time_limit)
    try:
        loading = loop.create_task(desk.start())
        await asyncio.sleep(0)                          # the worker begins; Gradio, which takes as long, is imported meanwhile
        if not args.no_page:
            try:
                from . import page, uploads
            except ImportError as error:
                raise missing(error) from None
        await loading
        if args.model in hub.BUILT_IN:
            logging.info("%s: %s", args.model, hub.DEMO)
        most_bytes = round(args.max_upload * 2 ** 20)
        application = api.make_app(desk, folder, names=tuple(names(args)), key=args.api_key, most_bytes=most_bytes,
                                   max_duration=args.max_duration, hosts=known_hosts(args), origins=tuple(args.cors))
        application.state.stop = None
        tasks = []
        if not args.no_page:
            kept = uploads.Uploads(Path(os.environ["GRADIO_TEMP_DIR"]), round(args.most_kept * 2 ** 20))
            application.state.stop = page.add(application, desk, kept, names(args)[0], most_bytes=most_bytes, max_duration=args.max_duration)
            tasks.append(loop.create_task(page.tidy(application, kept)))
        # uvicorn's log names paths, and those of the page hold the names of files.
        config = uvicorn.Config(application, args.host, args.port, http=connections.Connection, ws="none", access_log=False, log_config=None,
                                server_header=False, timeout_graceful_shutdown=int(GRACE + LAST / 2), backlog=BACKLOG)
        server = Server(config)
        tasks.append(loop.create_task(connections.watch(server.server_state.connections)))
        if catches_hangup():
            loop.add_signal_handler(signal.SIGHUP, server.handle_exit, signal.SIGHUP, None)
        await server.serve()
        for task in tasks:
            task.cancel()
    finally:
        desk.end()


def catches_hangup() -> bool:
    """The terminal may be closed: not where it can't, or under `nohup`."""
    return hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def ends() -> set[int]:
    """The signals, besides Ctrl-C, that end the server."""
    return {signal.SIGTERM, *([signal.SIGHUP] if catches_hangup() else [])}


def hold(wait: bool) -> None:
    """Lets the signals wait, or come."""
    if hasattr(signal, "pthread_sigmask"):              # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK if wait else signal.SIG_UNBLOCK, ends())


def allow_files() -> None:
    """As many open files, and so connections, as this user may have."""
    try:
        import resource
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ImportError, ValueError, OSError):      # not on Windows; and some systems say more than they give
        pass


class Escaping(logging.Formatter):
    """TRAP: a message may hold what a client sent, and a terminal obeys control characters."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, info) -> str:
        return "\n".join(map(printable, super().formatException(info).split("\n")))


@contextmanager
def private_folder() -> Iterator[str]:
    """A new folder for this user only, which is removed at the end. Those that killed servers left behind are removed first."""
    remove_leftovers()
    with tempfile.TemporaryDirectory(prefix=FOLDER, ignore_cleanup_errors=True) as folder, lock(folder):
        yield folder


@contextmanager
def lock(folder: str) -> Iterator[None]:
    """Holds a lock while this process lives."""
    try:
        import fcntl
    except ImportError:                                 # Windows, where leftovers stay until the system removes them
        yield
        return
    # It gets its name when it is locked: no other server finds it open.
    with open(os.path.join(folder, "lock.new"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.rename(file.name, os.path.join(folder, "lock"))
        yield


def remove_leftovers() -> None:
    try:
        import fcntl
    except ImportError:
        return
    for path in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        with suppress(OSError):                         # of another user, still locked, or just gone
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            if (path / "lock").exists():
                with open(path / "lock") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            elif time.time() - path.stat().st_mtime > 60:               # killed before it had one
                shutil.rmtree(path)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    handler = logging.StreamHandler()
    handler.setFormatter(Escaping("%(asctime)s %(levelname)s %(message)s"))
    # Any client could have that logged as often as it likes: that its bytes are no HTTP, that it wants a WebSocket.
    handler.addFilter(lambda record: record.levelno != logging.WARNING or record.name != "uvicorn.error")
    logging.basicConfig(level=logging.WARNING if args.quiet else logging.INFO, handlers=[handler])
    for talkative in ("httpx", "httpcore", "python_multipart"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)         # it tells of each connection that can't be taken, a million times
    for number in ends():
        signal.signal(number, lambda *_: sys.exit(143))             # until the server listens: without it nothing is removed
    hold(True)                                                      # until the folder, and the loop, are there to be removed
    allow_files()
    try:
        with private_folder() as folder:
            # Whatever makes temporary files, in this process and in those that it starts, makes them there.
            os.environ.update(TMPDIR=folder, GRADIO_TEMP_DIR=os.path.join(folder, "page"), GRADIO_ANALYTICS_ENABLED="False",
                              GRADIO_ANALYTICS_MAX_EVENTS="100")
            tempfile.tempdir = folder
            asyncio.run(serve(args, folder))
    except GlmAsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, OptionError) else 1
    except KeyboardInterrupt:                           # while the model is loaded
        return 130
    return 0
