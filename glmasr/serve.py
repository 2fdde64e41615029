"""Starts the server: arguments, the private folder, the desk, the application, and the orderly end.

On SIGTERM (and Ctrl-C, and when the terminal is closed) what runs is finished and answered, who waits is refused, and nothing new is taken in; then the folder with all
uploads is removed. A second signal ends it at once.
"""

import argparse
import asyncio
import logging
import os
import re
import signal
import socket
import sys
import tempfile

from .errors import GlmAsrError, OptionError

HEADERS = 20.0                  # seconds in which a request has to be there, but for its body, after the connection or the answer before
BACKLOG = 64                    # connections that may wait to be taken; a thousand would each be an error where no more files can be open
GRACE = 120.0                   # seconds that running recordings get at the end


def positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


def count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def port(text: str) -> int:
    number = count(text)
    if number > 65535:
        raise ValueError
    return number


def origin(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+|\*", text):
        raise ValueError
    return text


positive.__name__ = "positive number"           # argparse puts it into its message
count.__name__ = "number of 0 or more"
port.__name__ = "number of 0 to 65535"
origin.__name__ = "origin such as https://example.org"


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Recognises speech: a web page, and an API like OpenAI's.")
    parser.add_argument("--model", default="glm-asr-nano-2512", metavar="NAME|DIR", help="glm-asr-nano-2512 (default), demo, demo-article, a directory, or owner/name of a model of the hub")
    parser.add_argument("--revision", metavar="REV", help="commit, branch or tag of a model of the hub")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32", "int8"])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets other machines in (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=port, default=7860, help="0 takes a free one (default: 7860)")
    parser.add_argument("--name", action="append", metavar="NAME", help="what requests may call the model, such as whisper-1 for clients that know no other; may be repeated")
    parser.add_argument("--queue", type=count, default=20, metavar="N", help="recordings that may wait; whoever comes then gets status 429 (default: 20)")
    parser.add_argument("--time-limit", type=positive, default=600.0, metavar="SECONDS", help="for a recording, from its upload to its text (default: 600)")
    parser.add_argument("--max-upload", type=positive, default=100.0, metavar="MIB", help="size of a file (default: 100)")
    parser.add_argument("--max-duration", type=positive, default=4 * 3600.0, metavar="SECONDS", help="length of a recording (default: 14400, 4 hours)")
    parser.add_argument("--api-key", default=os.environ.get("GLMASR_API_KEY", ""), metavar="KEY", help="requests need it, and so does the page, as the password; better in GLMASR_API_KEY, for everybody on the machine can read arguments")
    parser.add_argument("--cors", action="append", type=origin, default=[], metavar="ORIGIN", help="lets pages of this origin call the server from a browser, such as https://example.org; may be repeated (default: none)")
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


async def serve(args: argparse.Namespace, folder: str) -> None:
    """Runs until a signal comes. Raises GlmAsrError where it can't start."""
    try:
        import uvicorn
        from uvicorn.protocols.http.h11_impl import H11Protocol

        from . import api, batching
        if not args.no_page:
            from . import page
    except ImportError as error:
        raise missing(error) from None

    class Patient(H11Protocol):
        """Closes a connection on which no request is made: uvicorn would wait for ever for a client that sends a byte now and then."""

        def connection_made(self, transport):
            super().connection_made(transport)
            self.watch()

        def on_response_complete(self):
            super().on_response_complete()
            self.watch()

        def watch(self):
            last = self.cycle
            if last is None or last.response_complete:          # else the next request is being answered already
                self.loop.call_later(HEADERS, lambda: self.cycle is last and self.transport.close())

    class Server(uvicorn.Server):
        def handle_exit(self, sig, frame):
            # TRAP: uvicorn's own one raises the signal again when all is done, which ends the process before the folder is removed.
            self.force_exit, self.should_exit = self.should_exit, True
            loop.call_soon_threadsafe(desk.close)

        async def shutdown(self, sockets=None):
            if application.state.stop:                  # streams to open pages
                application.state.stop()
            await super().shutdown(sockets)

    hold(False)
    check_address(args.host, args.port)
    loop = asyncio.get_running_loop()
    model = {"name_or_path": args.model, "device": args.device, "dtype": args.dtype, "revision": args.revision, "progress": not args.quiet}
    desk = batching.Desk(model, args.queue, args.time_limit)
    try:
        await desk.start()
        most_bytes = round(args.max_upload * 2 ** 20)
        application = api.make_app(desk, folder, names=tuple(names(args)), key=args.api_key, most_bytes=most_bytes,
                                   max_duration=args.max_duration, origins=tuple(args.cors))
        application.state.stop = tidying = None
        if not args.no_page:
            application.state.stop = page.add(application, desk, names(args)[0], most_bytes=most_bytes, max_duration=args.max_duration)
            tidying = loop.create_task(page.tidy())
        # uvicorn's log names paths, and those of the page hold the names of files.
        config = uvicorn.Config(application, args.host, args.port, http=Patient, ws="none", access_log=False, log_config=None, server_header=False,
                                timeout_graceful_shutdown=int(GRACE), backlog=BACKLOG)
        server = Server(config)
        if catches_hangup():
            loop.add_signal_handler(signal.SIGHUP, server.handle_exit, signal.SIGHUP, None)
        await server.serve()
        if tidying:
            tidying.cancel()
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


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    logging.basicConfig(level=logging.WARNING if args.quiet else logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for talkative in ("httpx", "httpcore", "python_multipart"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)         # it tells of each connection that can't be taken, a million times
    for number in ends():
        signal.signal(number, lambda *_: sys.exit(143))             # until the server listens: without it nothing is removed
    hold(True)                                                      # until the folder, and the loop, are there to be removed
    allow_files()
    try:
        with tempfile.TemporaryDirectory(prefix="glmasr-", ignore_cleanup_errors=True) as folder:       # for this user only
            # Whatever makes temporary files, in this process and in those that it starts, makes them there.
            os.environ.update(TMPDIR=folder, GRADIO_TEMP_DIR=os.path.join(folder, "page"), GRADIO_ANALYTICS_ENABLED="False")
            tempfile.tempdir = folder
            asyncio.run(serve(args, folder))
    except GlmAsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, OptionError) else 1
    except KeyboardInterrupt:                           # while the model is loaded
        return 130
    return 0
