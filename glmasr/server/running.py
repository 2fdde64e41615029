"""Runs the server, from the loading of the model to the orderly end.

On SIGTERM (and Ctrl-C, and when the terminal is closed) what runs is finished and answered, what waits is refused, and
nothing new is taken in. What isn't finished after GRACE seconds is given up. A second signal ends it at once.
"""

import argparse
import asyncio
import importlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from ..checkpoint.built_in import BUILT_IN, DEMO
from . import connections
from .addresses import check_address, known_hosts, model_names
from .api import make_app
from .extra import missing
from .request_queue import RequestQueue
from .signals import block_signals, catches_hangup

BACKLOG = 64  # connections that may wait to be taken; a thousand would each be an error where no more files can be open
GRACE = 20.0  # seconds that running recordings get at the end
LAST = 6.0  # seconds until the process ends after that, whatever is under way


async def serve(args: argparse.Namespace, folder: str) -> None:
    """Runs until a signal comes. Raises GlmAsrError where it can't start.

    args     as `main.arguments` returns them
    folder   private, for uploads
    """
    if not args.no_page and importlib.util.find_spec("gradio") is None:
        raise missing(ModuleNotFoundError(name="gradio"))
    block_signals(False)
    check_address(args.host, args.port)
    loop = asyncio.get_running_loop()
    queue = make_queue(args)
    try:
        loading = loop.create_task(queue.start())
        await asyncio.sleep(0)  # the worker begins; Gradio, which takes as long, is imported meanwhile
        if not args.no_page:
            import_page()
        await loading
        if args.model in BUILT_IN:
            logging.info("%s: %s", args.model, DEMO)
        app = api_of(queue, folder, args)
        tasks, end_page = add_page(app, queue, args) if not args.no_page else ([], None)
        # uvicorn's log names paths, and those of the page hold the names of files.
        config = uvicorn.Config(
            app,
            args.host,
            args.port,
            http=connections.Connection,
            ws=connections.Socket,
            ws_max_size=connections.MESSAGE,
            ws_per_message_deflate=False,  # a message says its size
            # TRAP: the answer to a ping waits behind sound that is not yet heard; an idle session ends by itself.
            ws_ping_interval=None,
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=int(GRACE + LAST / 2),
            backlog=BACKLOG,
        )
        server = Server(config, queue, folder, end_page)
        tasks.append(loop.create_task(connections.watch(server.server_state.connections)))
        if catches_hangup():
            loop.add_signal_handler(signal.SIGHUP, server.handle_exit, signal.SIGHUP, None)
        await server.serve()
        for task in tasks:
            task.cancel()
    finally:
        queue.end()


def make_queue(args: argparse.Namespace) -> RequestQueue:
    """The queue in front of the worker, which isn't started yet; `args` as of `serve`."""
    model = {name: getattr(args, name) for name in ("device", "dtype", "revision", "hub")}
    model |= {"name_or_path": args.model, "progress": not args.quiet, "adapters": dict(args.adapter)}
    return RequestQueue(model, args.queue, args.time_limit)


def api_of(queue: RequestQueue, folder: str, args: argparse.Namespace) -> FastAPI:
    """The routes for programs; `args` and `folder` as of `serve`."""
    return make_app(
        queue,
        folder,
        names=tuple(model_names(args.model, args.name)),
        adapters=tuple(dict(args.adapter)),
        key=args.api_key,
        most_bytes=most_bytes(args),
        max_duration=args.max_duration,
        hosts=known_hosts(args.host, args.port, args.allow_host),
        origins=tuple(args.cors),
    )


def most_bytes(args: argparse.Namespace) -> int:
    """The size in bytes that an upload may have; `--max-upload` is in MiB."""
    return round(float(args.max_upload) * 2**20)


def import_page() -> None:
    """Imports the page, and Gradio with it. Raises OptionError where a package is missing."""
    try:
        importlib.import_module(".page", __package__)
    except ImportError as error:
        raise missing(error) from None


def add_page(
    app: FastAPI, queue: RequestQueue, args: argparse.Namespace
) -> tuple[list[asyncio.Task[None]], Callable[[], None]]:
    """-> what tidies up after the page, and a function that ends the streams to open pages."""
    from . import page, sessions, uploads  # Gradio takes seconds to import: `import_page`

    kept = uploads.Uploads(Path(os.environ["GRADIO_TEMP_DIR"]), round(args.most_kept * 2**20))
    name = model_names(args.model, [])[0]
    end = page.add(app, queue, kept, name, most_bytes=most_bytes(args), max_duration=args.max_duration)
    return [asyncio.ensure_future(sessions.tidy(app, kept))], end


class Server(uvicorn.Server):
    """uvicorn's, with an end in time. `end_page`: ends the streams to open pages."""

    def __init__(self, config: uvicorn.Config, queue: RequestQueue, folder: str, end_page: Callable[[], None] | None):
        super().__init__(config)
        self.queue, self.folder, self.end_page = queue, folder, end_page
        self.loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal closes the queue and gives what runs GRACE + LAST seconds; the second exits at once."""
        # TRAP: uvicorn's own one raises the signal again when all is done, which ends the process before the folder is
        # removed.
        if self.should_exit:
            self.end_at_once(128 + sig)
        self.should_exit = True
        self.loop.call_soon_threadsafe(self.queue.close)
        last = threading.Timer(GRACE + LAST, self.end_at_once, [128 + sig])  # also where the event loop is blocked
        last.daemon = True
        last.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits GRACE seconds for running recordings, refuses the rest, and aborts connections that stay open."""
        if self.end_page:
            self.end_page()
        self.loop.call_later(GRACE, self.queue.give_up)
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def end_at_once(self, code: int) -> None:
        """Kills the worker, removes the folder of uploads, and exits with `code` without waiting for anything."""
        if self.queue.process is not None:
            self.queue.process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(code)
