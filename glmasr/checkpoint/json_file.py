"""JSON files of a checkpoint, within bounds: their size, the memory of their values, their depth; no key twice."""

import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CheckpointError

Json = dict[str, Any]  # an object of a JSON file

LARGEST_CONFIG = 5_000_000  # bytes of a configuration or of an index of weights: published ones have a hundredth of it
MOST_VALUES = 50_000_000  # bytes of memory that its values take, as `parse_json` estimates them
DEEPEST = 64  # objects and lists inside of each other


def open_file(path: Path) -> BinaryIO:
    """A regular file of a checkpoint or a cache, to read its bytes.

    Raises OSError, also for what is no file (a pipe, a device).
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # TRAP: to open a pipe waits, and a device may have no end
        raise OSError("it is a directory, a pipe or a device, expected a file")
    return open(path, "rb")


def read_file(path: Path, largest: int = LARGEST_CONFIG) -> bytes:
    """The bytes of a small file of a checkpoint or a cache.

    Raises OSError, as `open_file`, and for more than `largest` bytes.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            raise OSError(f"{size} bytes, expected at most {largest}")
        return file.read(largest)


def read_json(path: Path) -> Json:
    """The JSON object in a file. Raises CheckpointError naming the file."""
    try:
        data = parse_json(read_file(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; a checkpoint directory needs it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


# About the most bytes of memory that one more of these means, measured: a value, a list, an object, a key. As
# `[0],[0],[0]` a file takes thirty times its size.
_COSTS = {b",": 80, b"[": 40, b"{": 64, b":": 80}


def parse_json(data: bytes, most: int = MOST_VALUES) -> Any:
    """What a JSON text in UTF-8 says.

    Raises ValueError and RecursionError, also where a key is twice in an object, more than DEEPEST are inside of each
    other, or the values would take more than `most` bytes of memory; that is found out without making them.
    """
    size = sum(cost * data.count(mark) for mark, cost in _COSTS.items())
    if size > most:
        raise ValueError(
            f"so many values that they take {size / 1e6:.0f} MB of memory, expected at most {most / 1e6:.0f}"
        )
    text = data.decode("utf-8")
    del data  # up to 36 MB
    found = json.loads(text, object_pairs_hook=_unique)
    level, depth = list(_containers([found])), 0
    while level := [inner for outer in level for inner in _containers(_inside(outer))]:
        depth += 1
        if depth == DEEPEST:  # TRAP: as deep as `json` allows, it could not even be quoted
            raise ValueError(f"more than {DEEPEST} lists and objects inside of each other")
    return found


def _inside(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _containers(values: Iterable[Any]) -> Iterator[Any]:
    return (value for value in values if isinstance(value, (dict, list)))


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    """Of `json.loads`, which would take the last of two equal keys. Raises ValueError."""
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"{key!r:.60} twice in one object")
            seen.add(key)
    return result
