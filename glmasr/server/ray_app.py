"""The server on many machines: replicas behind Ray Serve, with one address and the same API.

    serve run glmasr.server.ray_app:app model=demo replicas=2

Each replica is a server of its own: a queue, a worker process with the model, a folder for uploads. Serve's proxy hands
it whole requests, WebSockets too. So what a replica had when it died ends with an error, and nothing else does.
"""

import contextlib
import io
import os
import tempfile
from typing import Any

import click
from fastapi import FastAPI
from ray import serve

from ..cli import Parser, gpus, positive
from .extra import missing
from .main import arguments, start_log
from .private_folder import private_folder

try:
    from .problems import WorkerDied
    from .request_queue import RUNNING
    from .running import GRACE, api_of, make_queue
except ImportError as error:  # Serve brings some of the packages of the extra [web], and not all
    raise click.UsageError(str(missing(error))) from None

NOT_HERE = {
    "port": "it is Serve's: `serve start --http-port`",
    "most_kept": "there is no page",
    "no_page": "there is never one",
    "quiet": "its log has warnings and errors only",
    "version": "`glmasr-serve --version` tells it",
    "help": "`glmasr-serve --help` tells of the others",
}
SEVERAL = {name for name, value in vars(arguments([])).items() if isinstance(value, list)}  # may be repeated
BESIDE = 100  # requests that a replica has at once beside recordings: short ones, and those that it refuses itself


class Replica:
    """`args` as `main.arguments` returns them."""

    async def __init__(self, args: Any):  # type: ignore[misc]  # Serve awaits it
        start_log(quiet=True)
        self._stack = contextlib.ExitStack()
        self.folder = self._stack.enter_context(private_folder())
        os.environ["TMPDIR"] = tempfile.tempdir = self.folder  # whatever makes temporary files makes them there
        self.queue = make_queue(args)
        await self.queue.start()
        self.api = api_of(self.queue, self.folder, args)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Serve hands requests to."""
        return self.api

    def check_health(self) -> None:
        """Serve asks every few seconds. Raises WorkerDied where no worker can be started."""
        if self.queue.failing:
            raise WorkerDied("no worker can be started")

    def __del__(self) -> None:
        if hasattr(self, "queue"):
            self.queue.end()
        self._stack.close()


def flags(name: str, value: Any) -> list[str]:
    """An option of Serve -> the same of a command line. What may be repeated there is a text with commas, or a list in
    a configuration file: of a key that is repeated Serve keeps the last."""
    values = [value]
    if name in SEVERAL:
        values = value if isinstance(value, list) else str(value).split(",")
    return [f"--{name.replace('_', '-')}={each}" for each in values]


def app(options: dict[str, Any]) -> serve.Application:
    """What `serve run` and `serve deploy` build: `options` are those of glmasr-serve, as of `flags`, and

    replicas   how many (default: 1)
    cpus       cores of each (default: 1)
    gpus       of each, also a part of one (default: 0)

    Raises UsageError, of which `serve run` makes a line and an exit code.
    """
    given = {name.replace("-", "_"): value for name, value in options.items()}
    for name in given.keys() & NOT_HERE.keys():
        raise click.UsageError(f"{name} is not an option behind Ray Serve: {NOT_HERE[name]}")
    parser = Parser("glmasr.server.ray_app:app")
    parser.add_argument("--replicas", type=positive, default=1)
    parser.add_argument("--cpus", type=positive, default=1)
    parser.add_argument("--gpus", type=gpus, default=0.0)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            ours, others = parser.parse_known_args([flag for option in given.items() for flag in flags(*option)])
            args = arguments(others)
    except SystemExit:
        why = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise click.UsageError(f"{why}; expected options of glmasr-serve, or replicas, cpus, gpus") from None
    deployed = serve.deployment(
        serve.ingress()(Replica),
        name="glmasr",
        num_replicas=ours.replicas,
        ray_actor_options={"num_cpus": ours.cpus, "num_gpus": ours.gpus},
        max_ongoing_requests=RUNNING + args.queue + BESIDE,
        max_constructor_retry_count=2,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=GRACE,
    )
    return deployed.bind(args)
