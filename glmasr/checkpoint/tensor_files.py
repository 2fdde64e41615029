"""The files of a checkpoint that hold weights: which there are, what is in them, and the tensors as mapped pages."""

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, cast

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError, ShortMemoryError, out_of_memory
from . import ctranslate2
from .ctranslate2 import Entry
from .json_file import open_file, parse_json, read_json

_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = {"F64", "F32", "F16", "BF16"}
_LONGEST_HEADER = 20_000_000  # bytes
WHOLE, INDEX = (
    "model.safetensors",
    "model.safetensors.index.json",
)  # the weights in one file, or the list of their files
_MOST_VALUES = 100_000_000  # bytes of memory that a header takes: those of 100,000 tensors
_MOST_AXES = 32


def read_header(path: Path) -> dict[str, Entry]:
    """Tensor name -> {dtype, shape, data_offsets} of a safetensors file, after checking that the file can hold them.

    Layout: 8 bytes of header length, little endian; that much JSON; the data. Raises CheckpointError.
    """

    def broken(why: str) -> CheckpointError:
        return CheckpointError(f"{path}: {why}; the file is damaged or was not downloaded whole")

    try:
        size = path.stat().st_size
        with open_file(path) as file:
            start = file.read(8)
            if len(start) < 8:
                raise broken(f"{size} bytes are no safetensors file")
            length = struct.unpack("<Q", start)[0]
            if length > min(size - 8, _LONGEST_HEADER):
                raise broken(f"a header of {length} bytes is announced in a file of {size} bytes")
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    try:
        header = parse_json(text, _MOST_VALUES)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise broken(f"its header is not valid JSON ({error})") from None
    if not isinstance(header, dict):
        raise broken("its header is not a JSON object")
    header.pop("__metadata__", None)
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(item[1])):
        first, last = _offsets(entry)
        shape, dtype = (
            entry.get("shape") if isinstance(entry, dict) else None,
            entry.get("dtype") if isinstance(entry, dict) else None,
        )
        if isinstance(shape, list) and len(shape) > _MOST_AXES:
            raise broken(f"tensor {name} has {len(shape)} axes; expected at most {_MOST_AXES}")
        if (
            not isinstance(dtype, str)
            or dtype not in _SIZES
            or not isinstance(shape, list)
            or not all(_is_size(n) and n >= 0 for n in shape)
        ):
            raise broken(f"tensor {name} has dtype {dtype!r} and shape {shape!r}")
        count = _SIZES[dtype]
        for n in shape:
            count *= n
        if first != end or last - first != count:
            raise broken(
                f"tensor {name} of shape {shape} and type {dtype} lies at bytes {first} to {last}; "
                f"expected {end} to {end + count}"
            )
        end = last
    if 8 + length + end != size:
        raise broken(f"its tensors end at byte {8 + length + end} of {size}")
    return cast(dict[str, Entry], header)


def _offsets(entry: object) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_size, offsets)):
        return offsets[0], offsets[1]
    return (-1, -1)


def _is_size(value: object) -> bool:
    # TRAP: products of numbers of thousands of digits take minutes, and Python refuses to write them.
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def weight_files(directory: Path) -> list[Path]:
    """The files with the weights of a checkpoint directory: one, or the shards that its index names."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory")
    index = directory / INDEX
    if (directory / WHOLE).is_file():
        return [directory / WHOLE]
    if index.is_file():
        files = shards(index)
        for name in files:
            if not os.path.isfile(directory / name):  # also False for a name that no file can have
                raise CheckpointError(
                    f"{directory / name}: no such file, but {index.name} names it; the download is not complete"
                )
        return [directory / name for name in files]
    if (directory / ctranslate2.FILE).is_file():
        return [directory / ctranslate2.FILE]
    unsafe = pickles(path.name for path in directory.iterdir())
    if unsafe:
        raise CheckpointError(
            f"{directory}: found {unsafe[0]}, a pickle, which can run any program when it is opened; "
            f"this package reads {WHOLE} only"
        )
    raise CheckpointError(f"{directory}: neither {WHOLE} nor {INDEX} is there")


def check_files(directory: Path) -> None:
    """Raises CheckpointError unless all files with weights are there, each as long as its tensors."""
    for path in weight_files(directory):
        ctranslate2.read_header(path) if path.name == ctranslate2.FILE else read_header(path)


def shards(index: Path) -> list[str]:
    """The names of the files that an index spreads the tensors over; each lies beside it. Raises CheckpointError."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index}: weight_map is missing or is no table of tensors and files")
    files = sorted(set(names.values()))
    for name in files:
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{index}: it names {name!r:.200}, which is not a file beside it")
    return files


def pickles(names: Iterable[str]) -> list[str]:
    """Those of some file names that are weights this package doesn't open. `model.bin` it does, but not as a pickle."""
    return sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")) and name != ctranslate2.FILE)


class _Opened(Protocol):
    def get_tensor(self, name: str) -> Tensor: ...


class Files:
    """Tensors of files, as mapped pages (of CTranslate2's: as a copy): a mapping for each file that lasts as long as
    any of its tensors, or with `apart` one for each tensor, that goes with it.

    TRAP: a tensor may be wanted hours after its file was found, from another working directory, or when another file
    has its name.
    """

    def __init__(self, headers: dict[Path, dict[str, Entry]], apart: bool = False):
        self._found = {path: (path.absolute(), _identity(path)) for path in headers}
        self._headers, self._apart = headers, apart
        self._mapped: dict[Path, _Opened] = {}

    def read(self, path: Path, name: str) -> Tensor:
        """Raises CheckpointError, ShortMemoryError."""
        try:
            file = self._mapped.get(path) or self._map(path)
            return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: {error}") from None
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise ShortMemoryError(
                f"{path}: there is too little memory for the weights: {error}; expected more, or --dtype int8"
            ) from None

    def _map(self, path: Path) -> _Opened:
        absolute, identity = self._found[path]
        if _identity(absolute) != identity:
            raise CheckpointError(f"{path} is another file than when its model was loaded; load it again")
        file: _Opened
        if path.name == ctranslate2.FILE:
            file = ctranslate2.Mapped(absolute, self._headers[path])
        else:
            file = safe_open(absolute, framework="pt")
        if not self._apart:
            self._mapped[path] = file
        return file


def _identity(path: Path) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
