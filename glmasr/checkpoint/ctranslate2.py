"""A `model.bin`, as CTranslate2 writes it for faster-whisper: header, variables, data. CTranslate2 itself isn't needed.

Little endian; a string is its length as u16, its bytes and a NUL, which the length counts:
    u32 version of this layout, 1 to 6
    string kind of model, u32 revision of it                        from version 2 on
    u32 number of variables, and of each:
        string name, u8 number of axes, u32 for each of them
        u8 type, u32 number of bytes                                from version 4 on
        or u8 bytes of an item, u32 number of items                 before
        the data
    u32 number of aliases, and of each: string alias, string name   from version 3 on

Unusual:
- It is no pickle, though PyTorch gives its pickles such names. What doesn't begin with a version is read no further.
- Variables lie at odd addresses, where no processor likes to compute: they are copied, each when it is wanted.

`ctranslate2_whisper` knows what the variables mean.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypedDict

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError
from .json_file import open_file

FILE = "model.bin"
NEWEST = 6  # version of the layout
KIND, REVISION = "WhisperSpec", 3
TYPES = ("F32", "I8", "I16", "I32", "F16", "BF16")  # by their number in the file
TYPE_OF_SIZE = {1: "I8", 2: "I16", 4: "F32"}  # before version 4
TORCH = {
    "F32": torch.float32,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
MOST_VARIABLES = 100_000  # a large Whisper has 1,300
MOST_AXES = 8
SCALE = "_scale"  # after the name of an integer weight


class Entry(TypedDict, total=False):
    """A tensor of a file, as the header of a safetensors file describes it, and what `model.bin` has beyond that."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]  # its first byte, and the one after its last
    value: float  # of a variable without axes
    stored: str  # the type in the file, where that is integers and `dtype` what they stand for
    scale: "Entry"  # what the rows of such integers are divided by
    inverse: bool  # 1 / x is wanted of what is stored


@dataclass(frozen=True)
class Header:
    """A `model.bin` without its data. `variables`: name -> {dtype, shape, data_offsets} as of a safetensors file, but
    offsets count from the start of this one; those without axes have their `value` too. An alias is one more name."""

    path: Path
    version: int
    revision: int
    variables: dict[str, Entry]
    aliases: dict[str, str]


def read_header(path: Path) -> Header:
    """After checking that the file can hold what it announces. Raises CheckpointError."""
    try:
        with open_file(path) as file:
            return _Reader(path, file).header()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None


class _Reader:
    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file, self.size, self.place = path, file, path.stat().st_size, 0

    def broken(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {why}; the file is damaged or was not downloaded whole")

    def take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) < count:
            raise self.broken(f"it ends at byte {self.place + len(data)}, expected at least {self.place + count}")
        self.place += count
        return data

    def number(self, kind: str) -> int:
        number: int = struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))[0]
        return number

    def string(self, what: str) -> str:
        data = self.take(self.number("H"))
        try:
            text = data.removesuffix(b"\0").decode("utf-8")
        except UnicodeDecodeError:
            text = "\0"
        if not data.endswith(b"\0") or "\0" in text or not text:
            raise self.broken(
                f"{what} at byte {self.place - len(data)} is {data[:60]!r}, expected UTF-8 with a NUL at its end"
            )
        return text

    def header(self) -> Header:
        version = self.number("I")
        if not 1 <= version <= NEWEST:
            raise CheckpointError(
                f"{self.path}: begins with {struct.pack('<I', version)!r}, expected a version from 1 to {NEWEST}: it "
                "is no file of CTranslate2, or a newer one; pickles of PyTorch have such names too, can run any "
                "program when they are opened, and are not read here"
            )
        kind, revision = (self.string("the kind of model"), self.number("I")) if version >= 2 else (KIND, 1)
        if kind != KIND or not 1 <= revision <= REVISION:
            raise CheckpointError(
                f"{self.path}: holds a {kind}, revision {revision}; this package reads {KIND}, "
                f"revisions 1 to {REVISION}"
            )
        variables: dict[str, Entry] = {}
        for number in range(self.count("variables", MOST_VARIABLES)):
            name = self.string(f"the name of variable {number}")
            if name in variables:
                raise self.broken(f"variable {name} is there twice")
            variables[name] = self.variable(name, version)
        aliases: dict[str, str] = {}
        for number in range(self.count("aliases", MOST_VARIABLES) if version >= 3 else 0):
            alias, name = self.string(f"alias {number}"), self.string(f"what alias {number} stands for")
            if alias in variables:
                raise self.broken(f"alias {alias} is there twice, or a variable")
            if name not in variables:  # so none can stand for itself, or for a later one
                raise self.broken(f"alias {alias} stands for {name}, which is not in front of it")
            aliases[alias] = name
            variables[alias] = variables[name]
            if (scale := name + SCALE) in variables and alias + SCALE not in variables:  # as CTranslate2 does
                variables[alias + SCALE] = variables[scale]
        if self.place != self.size:
            raise self.broken(f"its variables end at byte {self.place} of {self.size}")
        return Header(self.path, version, revision, variables, aliases)

    def count(self, what: str, most: int) -> int:
        count = self.number("I")
        if count > most:
            raise self.broken(f"{count} {what} are announced, expected at most {most}")
        return count

    def variable(self, name: str, version: int) -> Entry:
        axes = self.number("B")
        if axes > MOST_AXES:
            raise self.broken(f"variable {name} has {axes} axes, expected at most {MOST_AXES}")
        shape = [self.number("I") for _ in range(axes)]
        number = self.number("B")
        dtype = (TYPES[number] if number < len(TYPES) else None) if version >= 4 else TYPE_OF_SIZE.get(number)
        if dtype is None:
            expected = f"0 to {len(TYPES) - 1}" if version >= 4 else "1, 2 or 4 bytes"
            raise self.broken(f"variable {name} is of type {number}, expected {expected}")
        item = TORCH[dtype].itemsize
        count = self.number("I") * (1 if version >= 4 else item)
        if count != math.prod(shape) * item:
            raise self.broken(
                f"variable {name} of shape {shape} and type {dtype} has {count} bytes, expected "
                f"{math.prod(shape) * item}"
            )
        start = self.place
        if start + count > self.size:
            raise self.broken(f"variable {name} lies at bytes {start} to {start + count} of {self.size}")
        entry: Entry = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + count]}
        if shape:
            self.place += count
            self.file.seek(self.place)
        else:
            entry["value"] = torch.frombuffer(bytearray(self.take(count)), dtype=TORCH[dtype]).item()
        return entry


class Mapped:
    """The tensors of a file, with the interface of `safetensors.safe_open`. Raises OSError, CheckpointError."""

    def __init__(self, path: Path, entries: dict[str, Entry]):
        self._path, self._entries = path, entries
        with open_file(path) as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _copy(self, entry: Entry) -> Tensor:
        start, end = entry["data_offsets"]
        data = torch.from_numpy(np.frombuffer(self._map, np.uint8, end - start, start).copy())
        return data.view(TORCH[entry.get("stored", entry["dtype"])]).view(entry["shape"])

    def get_tensor(self, name: str) -> Tensor:
        """A copy of the tensor, dequantized to float32 if it has scales. CheckpointError for scales <= 0 or inf."""
        entry = self._entries[name]
        tensor = self._copy(entry)
        if entry.get("inverse"):
            return 1 / tensor
        if "scale" not in entry:
            return tensor
        scale = self._copy(entry["scale"])
        if not 0 < scale.min() <= scale.max() < math.inf:
            raise CheckpointError(
                f"{self._path}: the scales of {name} hold what no row can be divided by; expected numbers above 0"
            )
        return tensor.float().div_(scale.view(-1, *[1] * (tensor.dim() - 1)))
