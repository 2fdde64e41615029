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
        there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        nodes = [(int(node.get("CPU", 0)), node.get("GPU", 0.0)) for node in there]
        self.gpus = float(any(has for _, has in nodes)) if gpus is None else gpus
        self.workers, self.cpus = shared_out(nodes, workers, self.gpus, cpus)

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


def shared_out(nodes: list[tuple[int, float]], workers: int | None, gpus: float, cpus: int | None) -> tuple[int, int]:
    """Cores and GPUs of each node, what was asked for -> workers, and cores of each. TRAP: a worker is on one node; for
    one that fits on none, Ray waits for ever. Raises OptionError.

    >>> shared_out([(2, 0), (2, 0)], None, 0, None), shared_out([(2, 0), (2, 0)], 1, 0, None)
    ((2, 2), (1, 2))
    >>> shared_out([(2, 0), (16, 4)], None, 1, None), shared_out([(0, 0), (8, 0)], 3, 0, None)
    ((4, 4), (3, 2))
    """

    def room(cores: int) -> int:
        return sum(min(cpus // cores, int(has / gpus)) if gpus else cpus // cores for cpus, has in nodes)

    wanted = workers or max(1, sum(int(has / gpus) for _, has in nodes) if gpus else sum(has > 0 for has, _ in nodes))
    most = max((has for has, _ in nodes), default=0)
    cores = cpus or next((number for number in range(most, 1, -1) if room(number) >= wanted), 1)
    chosen = workers or max(1, room(cores))
    if room(cores) < chosen:
        machines = ", ".join(f"{has} cores" + (f" and {of:g} GPUs" if of else "") for has, of in nodes[:8])
        raise OptionError(
            f"there is no room for {chosen} with {cores} cores" + (f" and {gpus:g} GPUs" if gpus else "") + " each: "
            f"the machines have {machines}; fewer of --workers, --cpus-per-worker or --gpus-per-worker"
        )
    return chosen, cores


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
