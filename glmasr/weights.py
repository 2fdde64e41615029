"""Published safetensors, and CTranslate2's `model.bin`, -> the modules of this package, and back.

The names are data: one table for each published layout, our module on the left, theirs on the right, `{}` for the layer.
Every tensor of a file is used once or ignored by name; anything else is an error that names the tensor.

Loading builds the model on the meta device (shapes without memory) and puts the file's own pages into it: the weights are
mapped, not copied, so a 4.5 GB checkpoint is there at once and needs no second 4.5 GB.
"""

import json
import math
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .checkpoint import ctranslate2
from .checkpoint.config_json import read_config, to_published
from .checkpoint.tensor_files import _FLOATS, INDEX, Files, read_header, weight_files
from .config import EncoderDecoderConfig, GlmAsrConfig
from .errors import CheckpointError, OptionError
from .kernels import cuda_graphs, int8, prepare
from .kernels.devices import choose_device, choose_dtype, fast_dtype
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
        int8.check_int8(device)
    floats = None if stored else fast_dtype(device) if dtype in ("auto", "int8") else dtype
    linears = "int8" if dtype == "int8" else "plain" if plain else prepare.choose(model, device, floats)
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
        prepare.prepare(model, linears, device, floats)
    model.linears = linears
    if device.type == "cuda" and not plain and isinstance(model, GlmAsr):
        cuda_graphs.prepare(model, captured=True)
    return model.eval()


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
            state[theirs], state[theirs + SCALE] = int8.quantise(parameter.detach().cpu())
        else:
            state[theirs] = parameter.detach().to("cpu", dtype).contiguous()
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)      # save_file leaves it to the owner alone
    for name, values in to_published(model.config, dtype or model.dtype).items():
        (directory / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
