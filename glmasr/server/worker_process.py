"""Where the worker process begins. The server's own process imports this, and so neither the worker nor PyTorch: it
needs neither, and is ready sooner and smaller."""

from multiprocessing.connection import Connection
from typing import Any

from .. import uncollected


def begin(pipe: "Connection[Any, Any]", model: dict[str, Any]) -> None:
    """What `worker.work` does with the same arguments."""
    with uncollected():
        from . import worker

    worker.work(pipe, model)
