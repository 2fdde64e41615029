"""One round: batches of pieces -> rows, by Ray Data, an actor for each worker.

    batches -> a dataset with a block for each -> map_batches(Recognize), an actor for each worker -> rows

What a worker had when it died is missing from the rows, and nothing else is.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from .items import Item
from .rows import Row
from .work import Piece
from .worker import Worker

DEATHS = 5  # of workers that begin, one after the other, after which there is no use in going on

MakeWorker = Callable[[], Worker]
Key = tuple[str, int]


@dataclass(frozen=True)
class Pool:
    """`workers` with so many cores and GPUs each, and `at_once` batches in each of them: while one is recognized, the
    sound of the other is read."""

    workers: int
    cpus: int
    gpus: float
    at_once: int


class Recognize:
    """What an actor of Ray Data runs: a block of pieces as lines of JSON -> a block of rows as lines of JSON."""

    def __init__(self, make: MakeWorker):
        self.worker = make()

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """One batch: {"piece": [...]} -> {"row": [...]}, with the key of each piece."""
        some = [_piece(json.loads(line)) for line in block["piece"]]
        found = self.worker(some)
        lines = [json.dumps([key(piece), row]) for piece, row in zip(some, found, strict=True)]
        return {"row": lines}


def key(piece: Piece) -> Key:
    """What tells a piece from all others."""
    return piece.item.id, piece.number


def _piece(fields: dict[str, Any]) -> Piece:
    item = dict(fields["item"])
    where = item["where"]
    return Piece(**{**fields, "item": Item(**{**item, "where": tuple(where) if where else None})})


def here(some: list[list[Piece]], make: MakeWorker, pool: Pool) -> Iterator[list[tuple[Key, Row]]]:
    """The rows of some batches, as they come, by a process that belongs to the cluster. Raises RayError."""
    import pyarrow as pa
    from ray import data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it tells of each block whose worker died; so do we
    context = data.DataContext.get_current()
    context.max_errored_blocks = -1  # a block whose worker died is missing, and that is all
    context.max_consecutive_actor_init_deaths = DEATHS
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    blocks = [pa.table({"piece": [json.dumps(asdict(piece)) for piece in batch]}) for batch in some]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # what stands for them is to come
        heard = data.from_arrow(blocks).map_batches(
            Recognize,
            fn_constructor_args=(make,),
            batch_size=None,
            compute=data.ActorPoolStrategy(
                size=min(pool.workers, len(blocks)),
                max_tasks_in_flight_per_actor=1 if pool.at_once == 1 else 2 * pool.at_once,
            ),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus or None,
            max_concurrency=pool.at_once,
            max_restarts=-1,
            max_task_retries=0,
        )
    for block in heard.iter_batches(batch_size=None, prefetch_batches=0):
        yield [((name, number), row) for (name, number), row in map(json.loads, block["row"])]


class Onsite:
    """An actor that runs a round where the cluster is. TRAP: through Ray's client (ray://) a dataset can't be read."""

    def __init__(self, some: list[list[Piece]], make: MakeWorker, pool: Pool):
        self._rows = here(some, make, pool)

    def take(self) -> list[tuple[Key, Row]] | None:
        """The next ones; None: there are no more."""
        return next(self._rows, None)


def there(some: list[list[Piece]], make: MakeWorker, pool: Pool) -> Iterator[list[tuple[Key, Row]]]:
    """As `here`, by a process that is a client of the cluster."""
    import ray

    actor = ray.remote(num_cpus=0)(Onsite).remote(some, make, pool)
    while (found := ray.get(actor.take.remote())) is not None:
        yield found
