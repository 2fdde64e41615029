"""The encoder's states of the clips, computed once and kept in the folder of the run, where the encoder isn't learned and
a clip is the same in every step. Steps, losses and the greedy texts in between then take them from there.

    states-....bin      the states (T, D) of one window after the other, as the encoder gives them
    states-....keys     their shape and type, then the key of each window, written when its states are

A window is known by its samples, whatever its row is called: one that has changed is computed anew. The names of the files
change with the encoder, so a student whose encoder is its teacher's takes the teacher's states.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from batches import Family
from manifest import Row, TrainingError, samples
from torch import Tensor
from tqdm import tqdm

from glmasr import audio
from glmasr.model import EncoderDecoder, GlmAsr
from glmasr.pipeline import Recognizer

GIB = 2**30
CHANGES = ("augment", "spec_augment", "shift", "silence", "join")  # options that change what the encoder hears


class States:
    """What the encoder of a family's model makes of windows, kept in a folder:

        states = States(folder, family)
        states.fill(rows, print)                        # computes what is missing; within autocast, if steps are
        family.states = states                          # batches have states instead of features from now on
        states.serve(recognizer)                        # which recognizes clips of up to a window from them

    `half`: whether it computes within autocast to bfloat16, which gives other states."""

    def __init__(self, folder: Path, family: Family, half: bool = False):
        self.family, self.model = family, family.model
        self.path = folder / f"states-{fingerprint(self.model, half)}.bin"
        self.keys = self.path.with_suffix(".keys")
        self.read()

    def read(self) -> None:
        """What is in the files. What a process that was killed has left half-written doesn't count."""
        self.shape, self.dtype = (0, 0), torch.float32
        self.places: dict[str, int] = {}
        self.__dict__.pop("_table", None)
        try:
            *lines, _ = self.keys.read_text(encoding="ascii").split("\n")  # after the last whole line
            length, width, kind = lines[0].split()
            self.shape, self.dtype = (int(length), int(width)), getattr(torch, kind)
            count = self.path.stat().st_size // self.window_bytes
        except (OSError, ValueError, IndexError, AttributeError, ZeroDivisionError):
            return
        self.places = {name: place for place, name in enumerate(lines[1 : count + 1])}

    @property
    def window_bytes(self) -> int:
        """Bytes of the states of a window."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    # -- written -------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def fill(self, rows: Iterable[Row], say: Callable[[str], None]) -> None:
        """Computes the states of some rows that aren't there yet; says first what that takes. Raises TrainingError if the
        disk has no room, AudioError."""
        missing: dict[str, tuple[Row, int]] = {}
        for row in rows:
            for number, window in enumerate(self._windows(row)):
                if (name := key(window)) not in self.places:
                    missing[name] = row, number
        if not missing:
            return
        folder = self.path.parent
        first = self._encoded(*next(iter(missing.values())))
        if self.shape != first.shape or self.dtype != first.dtype:  # none is there
            self.shape, self.dtype, self.places = (first.shape[0], first.shape[1]), first.dtype, {}
        size, free = len(missing) * self.window_bytes, shutil.disk_usage(folder).free
        said = f"{len(missing)} windows take {size / GIB:.2f} GiB in {self.path}; {free / GIB:.2f} are free"
        if size > free:
            raise TrainingError(
                f"the encoder's states of {said}. Expected more room, or --no-keep-states: then each step computes them"
            )
        say(f"the encoder's states are computed once: those of {said}")
        try:
            self._write(missing)
        except OSError as error:
            raise TrainingError(
                f"{self.path}: can't be written ({error}); expected a folder with enough room, or --no-keep-states"
            ) from None
        self.read()

    def _write(self, missing: dict[str, tuple[Row, int]]) -> None:
        lines = [f"{self.shape[0]} {self.shape[1]} {str(self.dtype).removeprefix('torch.')}", *self.places]
        self.keys.write_text("\n".join([*lines, ""]), encoding="ascii")
        with open(self.path, "ab") as file, open(self.keys, "a", encoding="ascii") as keys:
            file.truncate(len(self.places) * self.window_bytes)
            for name, place in tqdm(missing.items(), desc="encoder", mininterval=10):
                file.write(self._encoded(*place).cpu().contiguous().view(torch.uint8).numpy().data)
                file.flush()
                os.fsync(file.fileno())  # or after a failure of the machine there could be a key without states
                keys.write(f"{name}\n")
                keys.flush()

    def _windows(self, row: Row) -> Tensor:
        """(W, S), padded."""
        return audio.windows(torch.from_numpy(samples(row)), self.model.config.window)

    def _encoded(self, row: Row, number: int) -> Tensor:
        """The states (T, D) of a window of a row."""
        return self.model.encoder(self.family.features(self._windows(row)[number, None]).to(self.model.device))[0]

    # -- read ----------------------------------------------------------------------------------------------------------

    def of(self, windows: Sequence[Tensor] | Tensor) -> Tensor | None:
        """Padded windows of samples (S,) -> their states (W, T, D), in the memory of the CPU; None if one isn't kept."""
        places = [self.places.get(key(window), -1) for window in windows]
        return None if -1 in places else self._table[torch.tensor(places)]

    @cached_property
    def _table(self) -> Tensor:
        """(windows, T, D), mapped where it is first used."""
        with torch.inference_mode(False):
            count = len(self.places) * self.shape[0] * self.shape[1]
            found = torch.from_file(str(self.path), shared=False, size=count, dtype=self.dtype)
            return found.view(-1, *self.shape)

    def __getstate__(self) -> dict:
        """What is sent to other processes is without the mapped file, and the model."""
        return {name: value for name, value in vars(self).items() if name not in ("_table", "model", "family")}

    def serve(self, recognizer: Recognizer) -> None:
        """From now on it takes kept states where there are any."""
        model, family = recognizer.model, recognizer.family
        computed, window = family.encode_windows, model.config.window

        def of_glm_asr(windows: list[Tensor], counts: list[int]) -> list[Tensor]:
            states = self.of(windows)
            return computed(windows, counts) if states is None else model.project(states.to(model.device), counts)

        def of_encoder_decoder(windows: list[Tensor], length: int | None = None) -> Tensor:
            whole = length in (None, window)
            padded = [F.pad(samples, (0, window - len(samples))) for samples in windows] if whole else []
            states = self.of(padded) if whole else None
            return computed(windows, length) if states is None else states.to(model.device)

        setattr(family, "encode_windows", of_glm_asr if isinstance(model, GlmAsr) else of_encoder_decoder)


def key(window: Tensor) -> str:
    """Of the samples (S,) of a window."""
    return hashlib.blake2b(window.contiguous().numpy().data, digest_size=16).hexdigest()


def fingerprint(model: GlmAsr | EncoderDecoder, half: bool = False) -> str:
    """Of all that a window's states depend on: the encoder, the length that it is padded to, and the type of products."""
    found = hashlib.blake2b(repr((model.config.encoder, model.config.window, half)).encode(), digest_size=8)
    for parameter in model.encoder.parameters():
        found.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def objection(args, model: GlmAsr | EncoderDecoder) -> str:
    """Why the states of a clip aren't the same in every step; "" if they are."""
    if any(parameter.requires_grad for parameter in model.encoder.parameters()):
        return "the encoder is learned; expected --freeze encoder"
    if args.short:
        return "clips are padded to the longest of a batch; expected --pad-to window"
    changed = [f"--{name.replace('_', '-')}" for name in CHANGES if getattr(args, name)]
    return f"{', '.join(changed)} changes clips; expected none of them" if changed else ""
