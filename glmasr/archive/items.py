"""A recording of an archive, or a part of one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """A recording, or a part of one: `duration` seconds from `offset` on, None: to its end.

    where    of a recording in a tar file: at which byte it begins, and how many it has
    version  of the file: its size, and when it was changed, as far as the storage says
    """

    id: str
    path: str
    language: str = ""
    offset: float = 0.0
    duration: float | None = None
    where: tuple[int, int] | None = None
    version: str = ""
