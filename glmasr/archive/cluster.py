"""Batches -> rows, on all workers of a Ray cluster.

    batches -> a dataset with a block for each -> map_batches(Recognize), an actor for each worker -> rows

Rows come back to this process, which alone writes them: so each is written once, whatever happens to workers. What a
killed worker had begun doesn't come back, and is tried again in the next round, each piece by itself: so one that kills
whoever recognizes it is found, and costs the others nothing.
"""

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from ..errors import GlmAsrError, OptionError
from . import rows
from .items import Item
from .rows import Row
from .work import Piece, batches
from .worker import Worker

STORE = 256 * 2**20  # bytes of the object store of a cluster in this process: only texts are in it
DEATHS = 5  # of workers that begin, one after the other, after which there is no use in going on
AT_ONCE = 2  # batches in a worker: one is recognized, the sound of the other is read
KILLED = "the worker that recognized it died, {count} times: it may need more memory than there is, or be damaged"

MakeWorker = Callable[[], Worker]


class ClusterError(GlmAsrError):
    """There is no cluster, or it can't do the work."""


def check_extra() -> None:
    """Raises OptionError unless the packages of the extra [ray] are there."""
    for name in ("ray", "pyarrow", "fsspec"):
        if importlib.util.find_spec(name) is None:
            raise OptionError(
                f"an archive needs the extra [ray], of which {name} is missing; pip install -c constraints.txt '.[ray]'"
            )


class Recognize:
    """What an actor of Ray Data runs: a block of pieces as lines of JSON -> a block of rows as lines of JSON."""

    def __init__(self, make: MakeWorker):
        self.worker = make()

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """One batch: {"piece": [...]} -> {"row": [...]}, with the number of each piece."""
        some = [_piece(json.loads(line)) for line in block["piece"]]
        found = self.worker(some)
        lines = [json.dumps([key(piece), row]) for piece, row in zip(some, found, strict=True)]
        return {"row": lines}


def key(piece: Piece) -> list[Any]:
    """What tells a piece from all others."""
    return [piece.item.id, piece.number]


def _piece(fields: dict[str, Any]) -> Piece:
    item = dict(fields["item"])
    where = item["where"]
    return Piece(**{**fields, "item": Item(**{**item, "where": tuple(where) if where else None})})


class Cluster:
    """Ray, on this machine ("local") or at an address, until `close`.

    workers   actors; None: one for each GPU, or on CPUs for every `cpus` cores
    gpus      of each worker; None: 1 where there are any
    """

    def __init__(self, address: str, workers: int | None, gpus: float | None, cpus: int | None):
        import ray
        import ray.data

        self._ray = ray
        how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        if address == "local":
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            how |= {"num_cpus": max(cores, workers or 1), "object_store_memory": STORE, "include_dashboard": False}
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it tells of each worker that died, and so do we
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        try:
            ray.init(address=address, ignore_reinit_error=False, **how)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            raise ClusterError(
                f"no cluster at {address} ({error}); expected auto, local or ray://HOST:10001: `ray start --head` "
                "begins one"
            ) from error
        there = ray.cluster_resources()
        self.gpus = float("GPU" in there) if gpus is None else gpus
        if there.get("GPU", 0) < self.gpus:
            raise ClusterError(f"{gpus:g} GPUs for a worker, and the cluster has {there.get('GPU', 0):g} in all")
        cores = int(there.get("CPU", 1))
        if self.gpus:
            self.workers = workers or max(1, int(there["GPU"] / self.gpus))
            self.cpus = cpus or max(1, cores // self.workers)
        else:
            self.workers = workers or max(1, cores // (cpus or cores))
            self.cpus = cpus or max(1, cores // self.workers)
        if self.workers * self.cpus > cores:
            raise ClusterError(
                f"{self.workers} workers of {self.cpus} cores, and the cluster has {cores}: fewer of --workers or "
                "--cpus-per-worker"
            )

    def rows(self, pieces: list[Piece], make: MakeWorker, seconds: float, retries: int, run: str) -> Iterator[Row]:
        """The row of each piece, as they come, once; in batches of about so many seconds."""
        left = {tuple(key(piece)): piece for piece in pieces}

        def found(some: list[list[Piece]], at_once: int, tries: int) -> Iterator[Row]:
            for place, row in self._round(some, make, at_once) if some else ():
                if left.pop(place, None) is not None:
                    row["attempts"] = max(row["attempts"], tries)
                    yield {**row, "_key": place}

        # What was sent to a worker that died is missing, whether it was begun or not: so there is a round in which each
        # worker has one piece at a time, and what is missing then is recognized by a worker of its own.
        for tries, at_once in ((1, AT_ONCE), (2, 1)):
            some = batches(left.values(), seconds) if tries == 1 else [[piece] for piece in left.values()]
            yield from found(some, at_once, tries)
        last = 2 + max(1, retries)
        for piece in list(left.values()):
            for tries in range(3, last + 1):
                if tuple(key(piece)) in left:
                    yield from found([[piece]], 1, tries)
        for place, piece in left.items():
            yield {**rows.failed(piece.item, run, KILLED.format(count=last), last), "_key": place}

    def _round(self, some: list[list[Piece]], make: MakeWorker, at_once: int) -> Iterator[tuple[tuple[str, int], Row]]:
        import pyarrow as pa

        data = self._ray.data
        context = data.DataContext.get_current()
        context.max_errored_blocks = -1  # a block whose worker died is missing, and that is all
        context.max_consecutive_actor_init_deaths = DEATHS
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        blocks = [pa.table({"piece": [json.dumps(asdict(piece)) for piece in batch]}) for batch in some]
        workers = min(self.workers, len(blocks))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # what stands for them is to come
            heard = data.from_arrow(blocks).map_batches(
                Recognize,
                fn_constructor_args=(make,),
                batch_size=None,
                compute=data.ActorPoolStrategy(
                    size=workers, max_tasks_in_flight_per_actor=at_once if at_once == 1 else 2 * at_once
                ),
                num_cpus=self.cpus,
                num_gpus=self.gpus or None,
                max_concurrency=at_once,
                max_restarts=-1,
                max_task_retries=0,
            )
        try:
            for found in heard.iter_rows():
                place, row = json.loads(found["row"])
                yield (place[0], place[1]), row
        except self._ray.exceptions.RayError as error:
            raise ClusterError(f"the workers can't go on: {str(error).strip().splitlines()[-1]}") from error

    def close(self) -> None:
        """Ends Ray, or leaves the cluster."""
        self._ray.shutdown()
