"""Published safetensors, and CTranslate2's `model.bin`, -> the modules of this package, and back.

The names are data: one table for each published layout, our module on the left, theirs on the right, `{}` for the layer.
Every tensor of a file is used once or ignored by name; anything else is an error that names the tensor.

Loading builds the model on the meta device (shapes without memory) and puts the file's own pages into it: the weights are
mapped, not copied, so a 4.5 GB checkpoint is there at once and needs no second 4.5 GB.
"""

import json
import math
import os
import re
import struct
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import ctranslate2, fast, graphs
from .config import EncoderDecoderConfig, GlmAsrConfig, open_file, parse_json, read_config, read_json
from .errors import CheckpointError, OptionError, ShortMemoryError, out_of_memory
from .model import EncoderDecoder, GlmAsr

# -- name tables -------------------------------------------------------------------------------------------------------

_ATTENTION = {"attn.query": "self_attn.q_proj", "attn.key": "self_attn.k_proj", "attn.value": "self_attn.v_proj",
              "attn.out": "self_attn.o_proj"}
_NORMS = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_LLAMA_BLOCK = _ATTENTION | _NORMS | {"mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}
_ENCODER_BLOCK = _ATTENTION | _NORMS | {"mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
_WHISPER_BLOCK = _ATTENTION | {"attn.out": "self_attn.out_proj", "attn_norm": "self_attn_layer_norm",
                               "mlp_norm": "final_layer_norm", "mlp.up": "fc1", "mlp.down": "fc2"}
_CROSS_BLOCK = _WHISPER_BLOCK | {"cross_norm": "encoder_attn_layer_norm", "cross.query": "encoder_attn.q_proj",
                                 "cross.key": "encoder_attn.k_proj", "cross.value": "encoder_attn.v_proj", "cross.out": "encoder_attn.out_proj"}


def _table(tower: str, block: dict, norm: str, projector: tuple[str, str], language: str, head: str) -> dict[str, str]:
    return ({"encoder.frontend.conv1": f"{tower}.conv1", "encoder.frontend.conv2": f"{tower}.conv2", "encoder.norm": norm}
            | {f"encoder.blocks.{{}}.{ours}": f"{tower}.layers.{{}}.{theirs}" for ours, theirs in block.items()}
            | {"projector.up": projector[0], "projector.down": projector[1]}
            | {"decoder.embed": f"{language}.embed_tokens", "decoder.norm": f"{language}.norm", "decoder.head": head}
            | {f"decoder.blocks.{{}}.{ours}": f"{language}.layers.{{}}.{theirs}" for ours, theirs in _LLAMA_BLOCK.items()})


def _whisper_table(prefix: str) -> dict[str, str]:
    # `frontend.layers` and `frontend.project` are the waveform frontend, whose names are ours: nobody has published one.
    table = ({"encoder.frontend.conv1": "encoder.conv1", "encoder.frontend.conv2": "encoder.conv2",
              "encoder.frontend.layers.{}.conv": "encoder.frontend.{}.conv", "encoder.frontend.layers.{}.norm": "encoder.frontend.{}.norm",
              "encoder.frontend.project": "encoder.frontend.project", "encoder.positions": "encoder.embed_positions.weight",
              "encoder.norm": "encoder.layer_norm", "decoder.embed": "decoder.embed_tokens",
              "decoder.positions": "decoder.embed_positions", "decoder.norm": "decoder.layer_norm"}
             | {f"encoder.blocks.{{}}.{ours}": f"encoder.layers.{{}}.{theirs}" for ours, theirs in _WHISPER_BLOCK.items()}
             | {f"decoder.blocks.{{}}.{ours}": f"decoder.layers.{{}}.{theirs}" for ours, theirs in _CROSS_BLOCK.items()})
    return {ours: prefix + theirs for ours, theirs in table.items()}


@dataclass(frozen=True)
class Format:
    table: dict[str, str]
    ignored: tuple[str, ...] = ()
    interleaved: bool = False       # the encoder's rotary dims lie as pairs (0, 1), (2, 3), ...: see `_half_split`


_LINEARS = ("multi_modal_projector.linear_1", "multi_modal_projector.linear_2")

FORMATS = {
    # What Transformers writes, and what zai-org published from 2025-12-27 on.
    "transformers": Format(_table("audio_tower", _ENCODER_BLOCK, "audio_tower.norm", _LINEARS, "language_model.model",
                                  "language_model.lm_head")),
    # The names that Transformers >= 5.14 uses in memory: a state_dict() that somebody saved himself.
    "transformers in memory": Format(_table("model.audio_tower", _ENCODER_BLOCK, "model.audio_tower.norm",
                                            tuple(f"model.{name}" for name in _LINEARS), "model.language_model", "lm_head")),
    # The remote-code format, revision 91967ea. The ignored tensors were left over from its training.
    "original": Format(_table("audio_encoder.whisper", _WHISPER_BLOCK, "audio_encoder.layer_norm",
                              ("audio_encoder.adapting.0", "audio_encoder.adapting.2"), "model", "lm_head"),
                       ignored=("audio_encoder.proj.weight", "audio_encoder.proj.bias",
                                "audio_encoder.whisper.embed_positions.weight", "audio_encoder.audio_bos_eos_token.weight"),
                       interleaved=True),
    # Early converters renamed the original's tensors and left their values as they were: still interleaved.
    "draft": Format(_table("audio_tower", _WHISPER_BLOCK, "audio_tower.layer_norm", _LINEARS, "language_model.model",
                           "language_model.lm_head"),
                    ignored=("audio_tower.embed_positions.weight",), interleaved=True),
    "draft, new names": Format(_table("audio_tower", _ENCODER_BLOCK | {"attn.out": "self_attn.out_proj"}, "audio_tower.norm",
                                      _LINEARS, "language_model.model", "language_model.lm_head"),
                               ignored=("audio_tower.embed_positions.weight",), interleaved=True),
    # Whisper as Transformers writes it. The head is always the embedding; some files hold it once more.
    "whisper": Format(_whisper_table("model."), ignored=("proj_out.weight",)),
    "whisper, no prefix": Format(_whisper_table(""), ignored=("proj_out.weight",)),         # a saved `WhisperModel`
    # For faster-whisper. `ctranslate2.ignored` says what is ignored.
    "whisper, CTranslate2": Format(ctranslate2.TABLE),
}


def detect(names) -> str:
    """Which of FORMATS a set of tensor names is."""
    if any(name.startswith(("encoder/", "decoder/")) for name in names):
        return "whisper, CTranslate2"
    if any(".encoder_attn." in name for name in names):
        return "whisper" if any(name.startswith("model.") for name in names) else "whisper, no prefix"
    if any(name.startswith("audio_encoder.") for name in names):
        return "original"
    if any(name.startswith("model.audio_tower.") for name in names):
        return "transformers in memory"
    if any(name.startswith("audio_tower.") and ".out_proj." in name for name in names):
        return "draft" if any(".self_attn_layer_norm." in name for name in names) else "draft, new names"
    return "transformers"


def their_name(table: dict[str, str], ours: str) -> str:
    """`encoder.blocks.3.attn.query.bias` -> `audio_tower.layers.3.self_attn.q_proj.bias`, and the like."""
    layer = re.search(r"\.(\d+)\.", ours)
    numbers = layer.groups() if layer else ()
    ours = ours.replace(layer[0], ".{}.", 1) if layer else ours
    if ours in table:                       # a parameter that is named by itself, not by its module
        return table[ours].format(*numbers)
    module, leaf = ours.rsplit(".", 1)
    return table[module].format(*numbers) + "." + leaf


def _half_split(tensor: Tensor, head_size: int, rotary: int) -> Tensor:
    """Rows (heads * K, ...) of an interleaved query or key projection -> the half-split order that `layers.rotate` wants:
    of each head the even rotary rows, then the odd ones, then the rest."""
    order = [*range(0, rotary, 2), *range(1, rotary, 2), *range(rotary, head_size)]
    return tensor.unflatten(0, (-1, head_size))[:, order].flatten(0, 1)


# -- files -------------------------------------------------------------------------------------------------------------

_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_FLOATS = {"F64", "F32", "F16", "BF16"}
_LONGEST_HEADER = 20_000_000     # bytes
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"      # the weights in one file, or the list of their files
_MOST_VALUES = 100_000_000      # bytes of memory that a header takes: those of 100,000 tensors
_MOST_AXES = 32


def read_header(path: Path) -> dict[str, dict]:
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
        shape, dtype = entry.get("shape") if isinstance(entry, dict) else None, entry.get("dtype") if isinstance(entry, dict) else None
        if isinstance(shape, list) and len(shape) > _MOST_AXES:
            raise broken(f"tensor {name} has {len(shape)} axes; expected at most {_MOST_AXES}")
        if (not isinstance(dtype, str) or dtype not in _SIZES or not isinstance(shape, list)
                or not all(_is_size(n) and n >= 0 for n in shape)):
            raise broken(f"tensor {name} has dtype {dtype!r} and shape {shape!r}")
        count = _SIZES[dtype]
        for n in shape:
            count *= n
        if first != end or last - first != count:
            raise broken(f"tensor {name} of shape {shape} and type {dtype} lies at bytes {first} to {last}; expected {end} to {end + count}")
        end = last
    if 8 + length + end != size:
        raise broken(f"its tensors end at byte {8 + length + end} of {size}")
    return header


def _offsets(entry) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_size, offsets)):
        return tuple(offsets)
    return (-1, -1)


def _is_size(value) -> bool:
    # TRAP: products of numbers of thousands of digits take minutes, and Python refuses to write them.
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2 ** 63


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
            if not os.path.isfile(directory / name):            # also False for a name that no file can have
                raise CheckpointError(f"{directory / name}: no such file, but {index.name} names it; the download is not complete")
        return [directory / name for name in files]
    if (directory / ctranslate2.FILE).is_file():
        return [directory / ctranslate2.FILE]
    unsafe = pickles(path.name for path in directory.iterdir())
    if unsafe:
        raise CheckpointError(f"{directory}: found {unsafe[0]}, a pickle, which can run any program when it is opened; "
                              f"this package reads {WHOLE} only")
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


def pickles(names) -> list[str]:
    """Those of some file names that are weights which this package doesn't open. A `model.bin` it does, but as no pickle."""
    return sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")) and name != ctranslate2.FILE)


# -- loading -----------------------------------------------------------------------------------------------------------

def build(config: GlmAsrConfig | EncoderDecoderConfig) -> GlmAsr | EncoderDecoder:
    """The model of a configuration, with random weights."""
    return GlmAsr(config) if isinstance(config, GlmAsrConfig) else EncoderDecoder(config)


def linear_weights(model: nn.Module) -> set[str]:
    """The weights of linears, by our names: those that `fast` lays out anew, or rounds to int8."""
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}


SCALE = "_scale"                # behind the name of an int8 weight: the float32 scales of its rows


@dataclass(frozen=True)
class Contents:
    """What a checkpoint directory holds, without the weights themselves."""

    config: GlmAsrConfig | EncoderDecoderConfig
    format: str                             # one of FORMATS
    headers: dict[Path, dict[str, dict]]    # file -> `read_header` of it, or `ctranslate2.tensors`
    where: dict[str, Path]                  # their tensor -> the file that it is in
    names: dict[str, str]                   # our parameter -> their tensor
    model: GlmAsr | EncoderDecoder          # on the meta device: shapes without memory

    @property
    def missing(self) -> list[str]:
        return [theirs for theirs in self.names.values() if theirs not in self.where]

    @property
    def left_over(self) -> list[str]:
        scales = {f"{theirs}{SCALE}" for theirs in self.names.values() if self.is_int8(theirs)}
        return sorted(set(self.where) - set(self.names.values()) - self.ignored - scales)

    @property
    def ignored(self) -> set[str]:
        return set(FORMATS[self.format].ignored) | (ctranslate2.ignored(self.where) if self.is_ctranslate2 else set())

    @property
    def is_ctranslate2(self) -> bool:
        return FORMATS[self.format].table is ctranslate2.TABLE

    def is_int8(self, theirs: str) -> bool:
        return (self.entry(theirs) or {}).get("dtype") == "I8"

    @property
    def misshapen(self) -> dict[str, str]:
        """Their tensor -> what is wrong with its shape or type."""
        found, linears = {}, linear_weights(self.model)
        for ours, parameter in self.model.named_parameters():
            theirs = self.names[ours]
            entry = self.entry(theirs)
            if entry and tuple(entry["shape"]) != tuple(parameter.shape):
                asked = "the other tensors ask" if self.is_ctranslate2 else "config.json asks"
                found[theirs] = f"has shape {entry['shape']}; {asked} for {list(parameter.shape)}"
            elif entry and entry["dtype"] == "I8" and ours in linears:
                scale = self.entry(theirs + SCALE) or {}
                if (scale.get("dtype"), scale.get("shape")) != ("F32", entry["shape"][:1]):
                    found[theirs] = f"is of type I8 and needs {theirs}{SCALE}, F32 of shape {entry['shape'][:1]}"
            elif entry and entry["dtype"] not in _FLOATS:
                found[theirs] = f"is of type {entry['dtype']}, expected BF16 or F32"
        return found

    def entry(self, theirs: str) -> dict | None:
        return self.headers[self.where[theirs]][theirs] if theirs in self.where else None


def examine(directory, floats: bool = False) -> Contents:
    """What a checkpoint directory holds. Raises CheckpointError for damaged files, and for files that don't belong together.

    floats  integers of CTranslate2 are taken for the float32 that they stand for
    """
    directory = Path(directory)
    if (directory / ctranslate2.FILE).is_file() and weight_files(directory)[0].name == ctranslate2.FILE:
        header = ctranslate2.read_header(directory / ctranslate2.FILE)
        config, headers = ctranslate2.read_config(directory, header), {header.path: ctranslate2.tensors(header, floats)}
    else:
        config = read_config(directory)
        headers = {path: read_header(path) for path in weight_files(directory)}
    where = {name: path for path, header in headers.items() for name in header}
    if len(where) < sum(map(len, headers.values())):
        twice = next(name for name in where if sum(name in header for header in headers.values()) > 1)
        raise CheckpointError(f"{directory}: tensor {twice} is in several files")
    format = detect(where)
    if format.startswith("whisper") != isinstance(config, EncoderDecoderConfig):
        raise CheckpointError(f"{directory}: config.json describes a {type(config).__name__.removesuffix('Config')}, but the tensors' names "
                              f"are those of the format {format!r}; they belong to different models")
    if isinstance(config, GlmAsrConfig):
        # A tied model is saved without its head, whatever config.json says; a head that is there counts.
        tied = their_name(FORMATS[format].table, "decoder.head.weight") not in where
        config = replace(config, decoder=replace(config.decoder, tied=tied))
    layers = config.encoder.layers + config.decoder.layers
    if layers > len(where):                                     # building a thousand layers takes seconds
        raise CheckpointError(f"{directory}: config.json asks for {layers} layers, but there are {len(where)} tensors only")
    with torch.device("meta"), _NoInit():
        model = build(config)
    names = {ours: their_name(FORMATS[format].table, ours) for ours, _ in model.named_parameters()}
    return Contents(config, format, headers, where, names, model)


def load(directory, *, device="auto", dtype="auto", plain: bool = True, stored: bool = False) -> GlmAsr | EncoderDecoder:
    """The model of a checkpoint directory, ready to run. Raises CheckpointError, OptionError.

    device  "auto" (a GPU where there is one and dtype isn't int8), "cpu", "cuda", "cuda:1", ...
    dtype   "auto" (bfloat16 where it is fast, else float32; int8 where the files hold it), "bfloat16", "float32" or the torch type;
            "int8": linears with weights of 8 bits, on the CPU
    plain   the modules as they are to be read; else the faster ones of `fast` and `graphs`, where they pay. `model.linears` and
            `model.steps` say what was taken
    stored  each tensor in its own type instead, to be saved again and not to run
    """
    if dtype not in ("auto", "int8"):
        dtype = choose_dtype(dtype)
    contents = examine(directory, floats=dtype not in ("auto", "int8"))
    _compare(contents)
    if contents.is_ctranslate2:
        for path, entries in contents.headers.items():
            ctranslate2.check_values(path, entries)
    model, config, kind, where = contents.model, contents.config, FORMATS[contents.format], contents.where
    if any(map(contents.is_int8, contents.names.values())):
        if stored:
            raise CheckpointError(f"{directory} holds int8 weights already; expected the directory that they were made from")
        if dtype not in ("auto", "int8"):
            raise OptionError(f"{directory} holds int8 weights, and dtype is {dtype}; expected 'int8' or 'auto', or the directory that they were made from")
        dtype = "int8"
    device = choose_device("cpu" if (device, dtype) == ("auto", "int8") else device)
    if dtype == "int8":
        fast.check_int8(device)
    floats = None if stored else fast_dtype(device) if dtype in ("auto", "int8") else dtype
    linears = "int8" if dtype == "int8" else "plain" if plain else fast.choose(model, device, floats)
    later = linear_weights(model) if linears != "plain" else set()   # weights that are read one by one, when they are laid out
    kept, apart, state = Files(contents.headers), Files(contents.headers, apart=True), {}

    def read(ours: str, theirs: str, files: Files) -> Tensor:
        tensor = files.read(where[theirs], theirs)
        pairs = kind.interleaved and re.search(r"^encoder\..*\.attn\.(query|key)\.", ours)
        return _half_split(tensor, config.encoder.head_size, config.encoder.rotary) if pairs else tensor

    for ours, theirs in contents.names.items():
        module = model.get_submodule(ours.rpartition(".")[0])
        if contents.is_int8(theirs):
            module.scale = read(ours, theirs + SCALE, kept)
            if not 0 < module.scale.min() <= module.scale.max() < math.inf:
                raise CheckpointError(f"{where[theirs]}: tensor {theirs}{SCALE} holds what no row can be multiplied by; expected numbers above 0")
        if ours in later:
            module.read = partial(read, ours, theirs, apart)
        else:
            state[ours] = read(ours, theirs, kept).to(device, floats)   # the mapped pages themselves, if nothing changes
    model.requires_grad_(False).load_state_dict(state, strict=False, assign=True)   # `_compare` was stricter; only a tied head is not in it
    if isinstance(model, GlmAsr):
        model.decoder.tie()
    if linears != "plain":
        fast.prepare(model, linears, device, floats)
    model.linears = linears
    if device.type == "cuda" and not plain and isinstance(model, GlmAsr):
        graphs.prepare(model, captured=True)
    return model.eval()


class Files:
    """Tensors of files, as mapped pages (of CTranslate2's: as a copy): a mapping for each file that lasts as long as any of its tensors,
    or with `apart` one for each tensor, that goes with it.

    TRAP: a tensor may be wanted hours after its file was found, from another working directory, or when another file has its name.
    """

    def __init__(self, headers: dict[Path, dict[str, dict]], apart: bool = False):
        self._found = {path: (path.absolute(), _identity(path)) for path in headers}
        self._headers, self._apart, self._mapped = headers, apart, {}

    def read(self, path: Path, name: str) -> Tensor:
        try:
            file = self._mapped.get(path) or self._map(path)
            return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: {error}") from None
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise ShortMemoryError(f"{path}: there is too little memory for the weights: {error}; expected more, or --dtype int8") from None

    def _map(self, path: Path):
        absolute, identity = self._found[path]
        if _identity(absolute) != identity:
            raise CheckpointError(f"{path} is another file than when its model was loaded; load it again")
        file = ctranslate2.Mapped(absolute, self._headers[path]) if path.name == ctranslate2.FILE else safe_open(absolute, framework="pt")
        if not self._apart:
            self._mapped[path] = file
        return file


def _identity(path: Path) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class _NoInit(TorchFunctionMode):
    """Leaves out random initial values. TRAP: on the meta device a `normal_` imports PyTorch's compiler: a second, 60 MB."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (Tensor.normal_, Tensor.uniform_) or getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def _compare(contents: Contents) -> None:
    """Raises CheckpointError unless every tensor that the model wants is there in its shape, and nothing else is."""
    if contents.missing:
        files = list(contents.headers)
        place = files[0] if len(files) == 1 else files[0].parent / INDEX
        raise CheckpointError(f"{place}: tensor {contents.missing[0]} is missing")
    for name, wrong in contents.misshapen.items():
        raise CheckpointError(f"{contents.where[name]}: tensor {name} {wrong}")
    for name in contents.left_over:
        raise CheckpointError(f"{contents.where[name]}: tensor {name} is unexpected; the model that "
                              f"{'the others make' if contents.is_ctranslate2 else 'config.json describes'} has none of that name")


def choose_device(device) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise OptionError(f"device is {device!r}, expected 'auto', 'cpu' or 'cuda'") from None
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"device is {str(device)!r}, expected 'auto', 'cpu' or 'cuda'")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OptionError("device is 'cuda', but PyTorch finds no GPU; use --device cpu, or install a CUDA build of PyTorch")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(f"device is {str(device)!r}, expected cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return device


def choose_dtype(dtype) -> torch.dtype:
    if dtype in ("float16", "fp16", "half", torch.float16):
        raise OptionError("dtype float16 is refused: models trained in bfloat16, as GLM-ASR was, overflow it (the text becomes garbage); "
                          "use bfloat16 or float32")
    types = {"bfloat16": torch.bfloat16, "float32": torch.float32, torch.bfloat16: torch.bfloat16, torch.float32: torch.float32}
    if not isinstance(dtype, (str, torch.dtype)) or dtype not in types:
        raise OptionError(f"dtype is {dtype!r}, expected 'auto', 'bfloat16', 'float32' or 'int8'")
    return types[dtype]


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU and on a CPU with instructions for it; float32 on others, where bfloat16 is emulated and slow."""
    if device.type == "cuda":
        return torch.bfloat16
    has_instructions = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if has_instructions() else torch.float32


PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")     # where Linux says how much memory there is


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken on a device; where the system doesn't say, 4 GiB. In a container, what its limit leaves."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        free = 1024 * _figure(PROC / "meminfo", "MemAvailable:")
    except (OSError, LookupError, ValueError):
        free = 4 * 2 ** 30
    try:                                                # TRAP: meminfo is that of the whole machine, in a container too
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        return max(0, min(free, limit - used + _figure(CGROUP / "memory.stat", "inactive_file")))
    except (OSError, LookupError, ValueError):          # no container, or one without a limit: "max"
        return free


def _figure(path: Path, name: str) -> int:
    """Of a file of lines that each have a name and a number."""
    return int(dict(line.split()[:2] for line in path.read_text().splitlines())[name])


# -- saving ------------------------------------------------------------------------------------------------------------

def save(model: GlmAsr | EncoderDecoder, directory, dtype: torch.dtype | None = torch.bfloat16, *, int8: bool = False) -> None:
    """Writes the model as Transformers would: `model.safetensors`, `config.json`, `generation_config.json` and
    what the processor wants. The tokenizer's files are the caller's. With `dtype` None each tensor keeps its type.

    With `int8` the weights of linears are written as int8 numbers, and beside each its scales: this package alone reads that.
    Raises OptionError for a model with the faster modules.
    """
    with torch.device("meta"), _NoInit():
        plain = build(model.config)
    if dict(plain.named_parameters()).keys() != dict(model.named_parameters()).keys():
        raise OptionError(f"the model's linears are {model.linears!r} and its steps {model.steps!r}, whose weights can't be saved; "
                          "expected one that was loaded with plain=True, and not as int8")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    table = FORMATS["transformers" if isinstance(model, GlmAsr) else "whisper"].table
    linears = linear_weights(model) if int8 else set()
    state = {}
    for ours, parameter in model.named_parameters():
        theirs = their_name(table, ours)
        if ours in linears:
            state[theirs], state[theirs + SCALE] = fast.quantise(parameter.detach().cpu())
        else:
            state[theirs] = parameter.detach().to("cpu", dtype).contiguous()
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)      # save_file leaves it to the owner alone
    for name, values in model.config.to_published(dtype or model.dtype).items():
        (directory / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
