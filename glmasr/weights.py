"""Published safetensors, and CTranslate2's `model.bin`, -> the modules of this package, and back.

`checkpoint.tensor_names` has the names, as data. Every tensor of a file is used once or ignored by name; anything else
is an error that names the tensor.

Loading builds the model on the meta device (shapes without memory) and puts the file's own pages into it: the weights
are mapped, not copied, so a 4.5 GB checkpoint is there at once and needs no second 4.5 GB. The modules are the plain
ones; `kernels.prepare.load` has the faster ones.
"""

import json
import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .checkpoint import ctranslate2, ctranslate2_whisper
from .checkpoint.adapter import CONFIG as ADAPTER
from .checkpoint.adapter import Adapter
from .checkpoint.config_json import read_config, to_published
from .checkpoint.ctranslate2 import SCALE, Entry
from .checkpoint.tensor_files import FLOATS, INDEX, Files, read_header, weight_files
from .checkpoint.tensor_names import FORMATS, detect, their_name
from .config import EncoderDecoderConfig, GlmAsrConfig
from .errors import CheckpointError, OptionError
from .model import EncoderDecoder, GlmAsr
from .tokenizer import read_special, read_tokenizer

# -- loading -----------------------------------------------------------------------------------------------------------


def load(
    directory: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    adapter: str | Path | None = None,
) -> GlmAsr | EncoderDecoder:
    """The model of a checkpoint directory, of the plain modules, ready to run. Raises CheckpointError, OptionError.

    dtype    None: each tensor in its own type, to be saved again and not to run
    adapter  the folder of a LoRA, which is added to the weights: see `checkpoint.adapter`
    """
    # What the files hold, by their headers. Integers of CTranslate2 are taken for the floats that they stand for.
    contents = examine(directory, floats=dtype is not None)

    # Every tensor that the model wants is there in its shape and type, and nothing else is.
    compare(contents)
    refuse_int8(contents, dtype)

    return assign(contents, TensorSource(contents, adapter=adapted(contents, adapter)), device, dtype)


def adapted(contents: "Contents", adapter: str | Path | None) -> Adapter | None:
    """The adapter in a folder, for this model. Raises CheckpointError, OptionError."""
    if adapter is None:
        return None
    if contents.has_int8:
        raise OptionError(
            f"{contents.directory} holds int8 weights, to which no adapter can be added; expected the directory that "
            "they were made from (and --dtype int8), or of faster-whisper's --dtype float32"
        )
    return Adapter(adapter, contents.model, contents.config)


def assign(
    contents: "Contents",
    source: Callable[[str], Tensor],
    device: torch.device | str,
    dtype: torch.dtype | None,
    without: Collection[str] = (),
) -> GlmAsr | EncoderDecoder:
    """The model, with the tensors that `source` returns for its parameters. Those `without` stay on the meta device."""
    # Built on the meta device: shapes without memory.
    model = contents.model

    # Read. What neither changes its type nor its device stays the mapped pages themselves.
    state = {ours: source(ours).to(device, dtype) for ours in contents.names if ours not in without}

    # Assign. `compare` was stricter than `strict`; only a tied head is not in `state`, and what is left out.
    model.requires_grad_(False).load_state_dict(state, strict=False, assign=True)
    if isinstance(model, GlmAsr):
        model.decoder.tie()
    return model.eval()


class TensorSource:
    """The tensors of a checkpoint by OUR names, each read when it is asked for: `source("decoder.embed.weight")`.

    They come as the file has them, in its type, on the CPU: as mapped pages where they lie as we want them. An int8
    weight has the scales of its rows beside it, as `name + SCALE`, float32. With `apart` each tensor has a mapping of
    its own, which goes with it: so a model can be laid out weight by weight, and never be in memory twice. Those that
    an `adapter` changes are float32.

    Raises CheckpointError for a file that is another one by now, ShortMemoryError.
    """

    def __init__(self, contents: "Contents", *, apart: bool = False, adapter: Adapter | None = None):
        # Not the contents themselves: they have the model, whose modules may hold this.
        self._files, self._where, self._adapter = Files(contents.headers, apart), contents.where, adapter
        self._scales = Files(contents.headers)  # small: not worth a mapping for each
        tied_head = {"decoder.head.weight": contents.names["decoder.embed.weight"]}
        self._names = tied_head | contents.names
        self._heads: tuple[int, int] | None = None  # size of a head, and how many rows of it are interleaved
        if FORMATS[contents.format].interleaved and isinstance(contents.config, GlmAsrConfig):
            self._heads = contents.config.encoder.head_size, contents.config.encoder.rotary

    def __call__(self, ours: str) -> Tensor:
        """A tensor, or the scales of `name + SCALE`; queries and keys with the half-split layout of `layers.rotate`."""
        parameter = ours.removesuffix(SCALE)
        theirs = self._names[parameter] + ours.removeprefix(parameter)
        path = self._where[theirs]
        tensor = (self._files if ours == parameter else self._scales).read(path, theirs)
        if ours != parameter and not 0 < tensor.min() <= tensor.max() < math.inf:
            raise CheckpointError(
                f"{path}: tensor {theirs} holds what no row can be multiplied by; expected numbers above 0"
            )
        if self._heads and _ROTATED.match(ours):
            tensor = _half_split(tensor, *self._heads)
        return self._adapter(ours, tensor) if self._adapter else tensor  # its rows are in our order already


_ROTATED = re.compile(r"encoder\..*\.attn\.(query|key)\.")


# -- what a directory holds --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contents:
    """What a checkpoint directory holds, without the weights themselves."""

    directory: Path
    config: GlmAsrConfig | EncoderDecoderConfig
    format: str  # one of FORMATS
    headers: dict[Path, dict[str, Entry]]  # file -> `read_header` of it, or `ctranslate2_whisper.tensors`
    where: dict[str, Path]  # their tensor -> the file that it is in
    names: dict[str, str]  # our parameter -> their tensor
    model: GlmAsr | EncoderDecoder  # on the meta device: shapes without memory

    @property
    def missing(self) -> list[str]:
        """Names of tensors that parameters need and no file has."""
        return [theirs for theirs in self.names.values() if theirs not in self.where]

    @property
    def left_over(self) -> list[str]:
        """Names of tensors that are neither used nor ignored, sorted."""
        scales = {f"{theirs}{SCALE}" for theirs in self.names.values() if self.is_int8(theirs)}
        return sorted(set(self.where) - set(self.names.values()) - self.ignored - scales)

    @property
    def ignored(self) -> set[str]:
        """Names of tensors that may be present and are not used."""
        return set(FORMATS[self.format].ignored) | (
            ctranslate2_whisper.ignored(self.where) if self.is_ctranslate2 else set()
        )

    @property
    def is_ctranslate2(self) -> bool:
        """Whether the weights are a CTranslate2 `model.bin`."""
        return FORMATS[self.format].table is ctranslate2_whisper.TABLE

    def is_int8(self, theirs: str) -> bool:
        """Whether a tensor, by their name, is present and int8."""
        entry = self.entry(theirs)
        return entry is not None and entry["dtype"] == "I8"

    @property
    def has_int8(self) -> bool:
        """Whether any parameter is stored as int8."""
        return any(map(self.is_int8, self.names.values()))

    @property
    def misshapen(self) -> dict[str, str]:
        """Their tensor -> what is wrong with its shape or type."""
        found: dict[str, str] = {}
        linears = linear_weights(self.model)
        for ours, parameter in self.model.named_parameters():
            theirs = self.names[ours]
            entry = self.entry(theirs)
            if entry and tuple(entry["shape"]) != tuple(parameter.shape):
                asked = "the other tensors ask" if self.is_ctranslate2 else "config.json asks"
                found[theirs] = f"has shape {entry['shape']}; {asked} for {list(parameter.shape)}"
            elif entry and entry["dtype"] == "I8" and ours in linears:
                scale: Entry = self.entry(theirs + SCALE) or {}
                if (scale.get("dtype"), scale.get("shape")) != ("F32", entry["shape"][:1]):
                    found[theirs] = f"is of type I8 and needs {theirs}{SCALE}, F32 of shape {entry['shape'][:1]}"
            elif entry and entry["dtype"] not in FLOATS:
                found[theirs] = f"is of type {entry['dtype']}, expected BF16 or F32"
        return found

    def entry(self, theirs: str) -> Entry | None:
        """The header entry of a tensor, by their name; None if it is missing."""
        return self.headers[self.where[theirs]][theirs] if theirs in self.where else None


def examine(directory: str | Path, floats: bool = False) -> Contents:
    """What a checkpoint directory holds. Raises CheckpointError for damaged files, and for files that don't belong
    together.

    floats  integers of CTranslate2 are taken for the float32 that they stand for
    """
    directory = Path(directory)
    if (directory / ctranslate2.FILE).is_file() and weight_files(directory)[0].name == ctranslate2.FILE:
        header = ctranslate2.read_header(directory / ctranslate2.FILE)
        tokenizer = partial(read_special, directory), partial(read_tokenizer, directory)
        config: GlmAsrConfig | EncoderDecoderConfig = ctranslate2_whisper.read_config(directory, header, *tokenizer)
        headers = {header.path: ctranslate2_whisper.tensors(header, floats)}
    else:
        if (directory / ADAPTER).is_file() and not (directory / "config.json").is_file():
            raise CheckpointError(f"{directory}: that is an adapter; give it as --adapter, and its base as --model")
        config = read_config(directory)
        headers = {path: read_header(path) for path in weight_files(directory)}
    where = {name: path for path, header in headers.items() for name in header}
    if len(where) < sum(map(len, headers.values())):
        twice = next(name for name in where if sum(name in header for header in headers.values()) > 1)
        raise CheckpointError(f"{directory}: tensor {twice} is in several files")
    layout = detect(where)
    if layout.startswith("whisper") != isinstance(config, EncoderDecoderConfig):
        raise CheckpointError(
            f"{directory}: config.json describes a {type(config).__name__.removesuffix('Config')}, but the tensors' "
            f"names are those of the format {layout!r}; they belong to different models"
        )
    if isinstance(config, GlmAsrConfig):
        # A tied model is saved without its head, whatever config.json says; a head that is there counts.
        tied = their_name(FORMATS[layout].table, "decoder.head.weight") not in where
        config = replace(config, decoder=replace(config.decoder, tied=tied))
    layers = config.encoder.layers + config.decoder.layers
    if layers > len(where):  # building a thousand layers takes seconds
        raise CheckpointError(
            f"{directory}: config.json asks for {layers} layers, but there are {len(where)} tensors only"
        )
    with torch.device("meta"), _NoInit():
        model = build(config)
    names = {ours: their_name(FORMATS[layout].table, ours) for ours, _ in model.named_parameters()}
    return Contents(directory, config, layout, headers, where, names, model)


def compare(contents: Contents) -> None:
    """Raises CheckpointError unless every tensor that the model wants is there in its shape, and nothing else is."""
    if contents.missing:
        files = list(contents.headers)
        place = files[0] if len(files) == 1 else files[0].parent / INDEX
        raise CheckpointError(f"{place}: tensor {contents.missing[0]} is missing")
    for name, wrong in contents.misshapen.items():
        raise CheckpointError(f"{contents.where[name]}: tensor {name} {wrong}")
    for name in contents.left_over:
        described = "the others make" if contents.is_ctranslate2 else "config.json describes"
        raise CheckpointError(
            f"{contents.where[name]}: tensor {name} is unexpected; the model that {described} has none of that name"
        )
    if contents.is_ctranslate2:
        for path, entries in contents.headers.items():
            ctranslate2_whisper.check_values(path, entries)


def refuse_int8(contents: Contents, dtype: torch.dtype | None) -> None:
    """Plain modules can't have int8 weights. Raises OptionError if some are; for `dtype` None CheckpointError."""
    if not contents.has_int8:
        return
    if dtype is None:
        raise CheckpointError(
            f"{contents.directory} holds int8 weights already; expected the directory that they were made from"
        )
    raise OptionError(
        f"{contents.directory} holds int8 weights, and dtype is {dtype}; expected 'int8' or 'auto', or the directory "
        "that they were made from"
    )


def build(config: GlmAsrConfig | EncoderDecoderConfig) -> GlmAsr | EncoderDecoder:
    """The model of a configuration, with random weights."""
    return GlmAsr(config) if isinstance(config, GlmAsrConfig) else EncoderDecoder(config)


def linear_weights(model: nn.Module) -> set[str]:
    """The weights of linears, by our names: those that `kernels` lays out anew, or rounds to int8."""
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _half_split(tensor: Tensor, head_size: int, rotary: int) -> Tensor:
    """Rows (heads * K, ...) of an interleaved query or key projection -> the half-split order that `layers.rotate`
    wants: of each head the even rotary rows, then the odd ones, then the rest."""
    order = [*range(0, rotary, 2), *range(1, rotary, 2), *range(rotary, head_size)]
    return tensor.view(-1, head_size, *tensor.shape[1:])[:, order].flatten(0, 1)


class _NoInit(TorchFunctionMode):
    """Leaves out random initial values.

    TRAP: on the meta device a `normal_` imports PyTorch's compiler: a second, 60 MB.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (Tensor.normal_, Tensor.uniform_) or getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


# -- saving ------------------------------------------------------------------------------------------------------------


def save(
    model: GlmAsr | EncoderDecoder,
    directory: str | Path,
    dtype: torch.dtype | None = torch.bfloat16,
    *,
    quantize: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
) -> None:
    """Writes the model as Transformers would: `model.safetensors`, `config.json`, `generation_config.json` and
    what the processor wants. The tokenizer's files are the caller's. With `dtype` None each tensor keeps its type.

    With `quantize` (`kernels.int8.quantize`) the weights of linears are written as the int8 numbers it returns, and
    beside each its scales: this package alone reads that. Raises OptionError for a model with the faster modules.
    """
    with torch.device("meta"), _NoInit():
        plain = build(model.config)
    if dict(plain.named_parameters()).keys() != dict(model.named_parameters()).keys():
        known = {type(module).__name__ for module in plain.modules()}
        faster = sorted({type(module).__name__ for module in model.modules()} - known)
        raise OptionError(
            f"the model has {', '.join(faster)} in place of plain modules, and its weights can't be saved; "
            "expected one that was loaded with plain=True, and not as int8"
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    table = FORMATS["transformers" if isinstance(model, GlmAsr) else "whisper"].table
    linears = linear_weights(model)
    state: dict[str, Tensor] = {}
    for ours, parameter in model.named_parameters():
        theirs = their_name(table, ours)
        if quantize is not None and ours in linears:
            state[theirs], state[theirs + SCALE] = quantize(parameter.detach().cpu())
        else:
            state[theirs] = parameter.detach().to("cpu", dtype).contiguous()
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)  # save_file leaves it to the owner alone
    for name, values in to_published(model.config, dtype or model.dtype).items():
        (directory / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
