"""All workers of a Ray cluster: pieces -> rows, in as many rounds as it takes.

Rows come back to this process, which alone writes them: so each is written once, whatever happens to workers. What a
killed worker had begun doesn't come back, and is tried again in the next round, each piece by itself: so one that kills
whoever recognizes it is found, and costs the others nothing.
"""

import importlib.util
import logging
import os
import re
import socket
from collections.abc import Iterator
from typing import Any

from ..errors import GlmAsrError, OptionError
from . import rounds, rows
from .rounds import Key, MakeWorker, Pool
from .rows import Row
from .work import Piece, batches

STORE = 256 * 2**20  # bytes of the object store of a cluster in this process: only texts are in it
AT_ONCE = 2  # batches in a worker: one is recognized, the sound of the other is read
PATIENCE = 10.0  # seconds for a cluster to take a connection
KILLED = "the worker that recognized it died, {count} times: it may need more memory than there is, or be damaged"


class ClusterError(GlmAsrError):
    """There is no cluster, or it can't do the work."""


def check_extra() -> None:
    """Raises OptionError unless the packages of the extra [ray] are there."""
    for name in ("ray", "pyarrow", "fsspec"):
        if importlib.util.find_spec(name) is None:
            raise OptionError(
                f"an archive needs the extra [ray], of which {name} is missing; pip install -c constraints.txt '.[ray]'"
            )


class Cluster:
    """Ray, on this machine ("local") or at an address, until `close`.

    workers   actors; None: one for each GPU, or on CPUs for every `cpus` cores
    gpus      of each worker; None: 1 where there are any
    """

    def __init__(self, address: str, workers: int | None, gpus: float | None, cpus: int | None):
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it tells of each worker that died, and so do we
        check_reachable(address)
        import ray  # reads the environment

        self._ray = ray
        self._round = rounds.there if address.startswith("ray://") else rounds.here
        how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        if address == "local":
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            how |= {"num_cpus": max(cores, workers or 1), "object_store_memory": STORE, "include_dashboard": False}
        try:
            ray.init(address=address, ignore_reinit_error=False, **how)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
            raise no_cluster(address, str(error)) from error
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
        left = {rounds.key(piece): piece for piece in pieces}

        def found(some: list[list[Piece]], at_once: int, tries: int) -> Iterator[Row]:
            for place, row in self._rows(some, make, at_once) if some else ():
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
                if rounds.key(piece) in left:
                    yield from found([[piece]], 1, tries)
        for place, piece in left.items():
            yield {**rows.failed(piece.item, run, KILLED.format(count=last), last), "_key": place}

    def _rows(self, some: list[list[Piece]], make: MakeWorker, at_once: int) -> Iterator[tuple[Key, Row]]:
        try:
            for found in self._round(some, make, Pool(self.workers, self.cpus, self.gpus, at_once)):
                yield from found
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            raise ClusterError(f"the workers can't go on: {str(error).strip().splitlines()[-1]}") from error

    def close(self) -> None:
        """Ends Ray, or leaves the cluster."""
        self._ray.shutdown()


def check_reachable(address: str) -> None:
    """Raises ClusterError unless somebody takes a connection there, for which Ray itself waits for minutes."""
    if address in ("local", "auto"):
        return
    place = re.fullmatch(r"(?:ray://)?(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})", address)
    if place is None:
        raise OptionError(f"--address is {address!r}, expected local, auto, HOST:6379 or ray://HOST:10001")
    try:
        socket.create_connection((place["host"].strip("[]"), int(place["port"])), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise no_cluster(address, getattr(error, "strerror", None) or str(error)) from None


def no_cluster(address: str, reason: str) -> ClusterError:
    """What to say where there is none, by the first words of Ray, which has many."""
    token = "oken" in reason or "Unauthenticated" in reason or "connect" in reason
    return ClusterError(
        f"no cluster at {address} ({reason.strip().splitlines()[0][:200] if reason.strip() else 'no reason given'}); "
        "`ray start --head` begins one"
        + (", and where it asks for a token, RAY_AUTH_MODE=token in the environment is needed, too" if token else "")
    )
