"""A recording, whatever it is given as -> its name in messages, and its samples, block by block and within limits.

A path, a pipe or bytes becomes a file that decoders can seek in; an array in memory becomes blocks of floats.
"""

import io
import numbers
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import AudioError
from . import sound_files, web
from .address import is_address, scheme, shown
from .limits import MOST_BYTES, MOST_CHANNELS, VALUES, IsCancelled, Warn, checked_rate, too_long, until
from .pipe import Pipe, piped
from .spool import spooled
from .tracks import only_track

Part = tuple[int, np.ndarray]  # sample rate in Hz, float array (samples, channels)

# What stands for 0, and how much for 1, in samples that are integers.
SCALES = {"int16": (0, 2**15), "int32": (0, 2**31), "uint8": (2**7, 2**7)}


def read(
    source: Any,
    sample_rate: float | None,
    track: int | str | None,
    max_duration: float,
    stack: ExitStack,
    warn: Warn,
    cancelled: IsCancelled,
) -> tuple[str, Iterator[Part]]:
    """source -> its name in messages, and its parts. Arguments and errors are those of `audio.blocks`; what is opened
    is closed with `stack`.
    """
    source, sample_rate = _unpacked(source, sample_rate)
    if isinstance(source, np.ndarray | Tensor):
        name, parts = read_array(source, sample_rate, warn)
        only_track(track, name)
    elif sample_rate is not None:
        raise AudioError(
            f"sample_rate={sample_rate} was given for a {type(source).__name__}; only arrays need it, a file "
            "states its own: leave it out"
        )
    elif isinstance(source := piped(source), Pipe):
        name, parts = source.name, source.parts(track, max_duration, stack, warn, cancelled)
    else:
        path, name = _as_file(source, max_duration, stack, cancelled)
        parts = sound_files.decode(path, name, track, max_duration, stack, warn, cancelled)
    return name, _limited(until(cancelled, parts), name, max_duration)


def may_wait(source: Any) -> bool:
    """Whether reading may block: standard input, a pipe, an address, a file object that is not in memory."""
    if isinstance(source, str | os.PathLike):
        if isinstance(source, str) and is_address(source):
            return True
        return source == "-" or os.path.exists(source) and not os.path.isfile(source)
    return hasattr(source, "read") and not isinstance(source, io.BytesIO)


def _limited(parts: Iterable[Part], name: str, max_duration: float) -> Iterator[Part]:
    """The same parts, up to the limits, and without empty ones."""
    seconds, size = Fraction(0), 0
    for rate, part in parts:
        if part.shape[1] > MOST_CHANNELS:
            raise AudioError(
                f"{name}: {part.shape[1]} channels; expected 1 to {MOST_CHANNELS}: the header is damaged, or this is "
                "not speech. Keep the channels that people speak on"
            )
        if 0 in part.shape:
            continue
        seconds, size = seconds + Fraction(len(part), rate), size + part.nbytes
        if seconds > max_duration:
            raise too_long(name, max_duration)
        if size > MOST_BYTES:
            raise AudioError(
                f"{name}: gives more than {MOST_BYTES / 2**30:.0f} GiB of samples; expected at most that: cut the "
                "recording, or convert it to one channel and 16000 Hz"
            )
        yield rate, part
    if not size:
        raise AudioError(f"{name}: holds no samples (a header only?); expected audio: record or download it again")


# ---- an array in memory ----------------------------------------------------------------------------------------------


def _unpacked(source: Any, sample_rate: float | None) -> tuple[Any, float | None]:
    """A pair (sample rate, array), or what Hugging Face's datasets give for a recording -> source, sample rate. In both
    a list of numbers counts as an array."""
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], np.ndarray | Tensor | list):
        rate, source = source[0], _as_array(source[1], "the second of a pair")
    elif isinstance(source, dict) and source.get("array") is not None:
        rate, source = source.get("sampling_rate"), _as_array(source["array"], "'array' of the dict")
    elif isinstance(source, dict) and source.get("array") is None:
        content, path = source.get("bytes"), source.get("path")
        if content is None and path is None:
            raise AudioError(
                "a dict without a recording; expected 'array' and 'sampling_rate', or else 'bytes' or 'path', as "
                "Hugging Face's datasets have them"
            )
        return path if content is None else content, sample_rate
    else:
        return source, sample_rate
    if sample_rate is not None:
        raise AudioError(
            f"sample_rate={sample_rate} was given for an array that comes with a rate, {rate}: leave it out"
        )
    return source, rate


def _as_array(source: Any, what: str) -> np.ndarray | Tensor:
    """An array, a tensor, or the array that a list of numbers makes."""
    if isinstance(source, np.ndarray | Tensor):
        return source
    if isinstance(source, list | tuple):
        try:
            array = np.asarray(source)
        except ValueError:  # of different lengths
            array = np.zeros(0, object)
        if not source or array.dtype.kind in "iuf":
            return array
    raise AudioError(
        f"{what} is a {type(source).__name__} {'of something else' if isinstance(source, list | tuple) else ''}; "
        "expected an array, a tensor, or a list of numbers, or of as many numbers for each channel"
    )


def read_array(source: np.ndarray | Tensor, sample_rate: object, warn: Warn) -> tuple[str, Iterator[Part]]:
    """An array or tensor in memory -> its name in messages, and its parts."""
    name = f"the {type(source).__name__} of shape {tuple(source.shape)}"
    array = _in_memory(source, name) if isinstance(source, Tensor) else source
    kind = array.dtype.newbyteorder("=").name
    if kind not in SCALES and not np.issubdtype(array.dtype, np.floating):
        raise AudioError(
            f"{name} holds {source.dtype}; expected floats in -1..1, or {', '.join(SCALES)}: divide other integers by "
            "their full scale"
        )
    if array.ndim not in (1, 2):
        raise AudioError(
            f"{name} has {array.ndim} axes; expected (samples,), (samples, channels) or (channels, samples)"
        )
    if sample_rate is None:
        raise AudioError(f"{name} comes without sample_rate: pass it in Hz, for example sample_rate=16000")
    if array.ndim == 1:
        array = array[:, None]
    elif array.shape[0] < array.shape[1]:
        array = array.T
    if kind == "int32" and array.size:
        _check_scale(name, int(array.min()), int(array.max()), warn)
    rate, step = checked_rate(sample_rate, name), max(1, VALUES // max(1, array.shape[1]))
    parts = (array[start : start + step] for start in range(0, len(array), step))
    if kind in SCALES:
        zero, full = SCALES[kind]
        parts = ((part.astype(np.float32) - zero) / full for part in parts)
    return name, ((rate, part) for part in parts)


def _check_scale(name: str, lowest: int, highest: int, warn: Warn) -> None:
    """Warns of int32 that holds samples of 16 or 24 bits as they are: by its full scale they are next to silence."""
    bits = next((bits for bits in (16, 24) if -(2 ** (bits - 1)) <= lowest and highest < 2 ** (bits - 1)), None)
    if bits and (lowest or highest):
        warn(
            f"{name} holds int32 from {lowest} to {highest}, which is within {bits} bits; it is divided by 2^31, so "
            f"that it is next to silence. If its full scale is 2^{bits - 1}, pass `array / 2**{bits - 1}`"
        )


def _in_memory(source: Tensor, name: str) -> np.ndarray:
    """A tensor as an array; numpy has no floats of 8 bits and no bfloat16, so those of any size become float32."""
    try:
        array: np.ndarray = (source.float() if source.is_floating_point() else source).detach().cpu().numpy()
        return array
    except (RuntimeError, TypeError):
        raise AudioError(
            f"{name} holds {source.dtype} as {source.layout} on {source.device}, which can't be read; expected a "
            "dense tensor with its samples in memory: pass `samples.to_dense().float()`"
        ) from None


# ---- a file, whatever it comes from ----------------------------------------------------------------------------------


def _as_file(source: Any, max_duration: float, stack: ExitStack, cancelled: IsCancelled) -> tuple[str, str]:
    """source -> (path, name in messages). What is not a regular file yet becomes a temporary one: decoders have to
    seek.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return spooled(io.BytesIO(source), "the recording in memory", max_duration, stack, cancelled)
    if isinstance(source, str) and source == "-":
        if sys.stdin is None:
            raise AudioError("standard input: is closed; expected a recording: pipe one into it, or name a file")
        return spooled(getattr(sys.stdin, "buffer", sys.stdin), "standard input", max_duration, stack, cancelled)
    if isinstance(source, str) and is_address(source):
        answer = web.opened(source, stack)
        return spooled(answer, shown(source), max_duration, stack, cancelled, answer.stated)
    if hasattr(source, "read"):
        return spooled(source, str(getattr(source, "name", "the file object")), max_duration, stack, cancelled)
    if not isinstance(source, str | os.PathLike):
        way = ""
        if isinstance(source, list | numbers.Real):
            way = "; make an array of numbers: np.asarray(samples, np.float32), with its sample_rate"
        elif isinstance(source, Iterable) and not isinstance(source, dict):
            way = "; several recordings are a list: list(recordings)"
        raise AudioError(
            f"a recording cannot be a {type(source).__name__}; expected a path, '-', bytes, a binary file object, "
            "an array with its sample_rate, a pair (sample rate, array), or a dict as Hugging Face's datasets have "
            f"it{way}"
        )
    name = os.fsdecode(source)
    if not name:
        raise AudioError("the name of the recording is empty; expected a file, or '-' for standard input")
    if "\0" in name:
        raise AudioError(f"{name!r}: cannot be opened: no file has a NUL in its name; check how the name was made")
    try:
        path = Path(name)
        if path.is_fifo():  # where a `Pipe` can't be
            return spooled(stack.enter_context(open(path, "rb")), name, max_duration, stack, cancelled)
        if path.is_dir():
            raise AudioError(f"{name}: is a directory; expected an audio file: name the files in it")
        if scheme(name) and not path.exists():
            raise AudioError(
                f"{shown(name)}: {scheme(name)}:// is not read; expected an address that begins with https:// or "
                "http://, or the name of a file"
            )
        if not path.exists():
            raise AudioError(f"{name}: no such file; check the spelling and the current directory ({os.getcwd()})")
        if not path.is_file():
            raise AudioError(f"{name}: is a device or a socket; expected an audio file, or '-' for standard input")
        if path.stat().st_size == 0:
            raise AudioError(f"{name}: the file is empty (0 bytes); expected audio: record or download it again")
        with open(path, "rb"):  # tells a lack of permission from a bad format
            return os.path.abspath(path), name
    except OSError as error:
        raise AudioError(f"{name}: cannot be opened ({error}); check the name and its permissions") from error
