"""Whisper as CTranslate2 has it, for faster-whisper: `model.bin`, `config.json`, a tokenizer. It isn't needed itself.

A `model.bin`, little endian; a string is its length as u16, its bytes and a NUL, which the length counts:
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
- Queries, keys and values are one variable, stacked: here three tensors, `.../linear_0/weight[0/3]` to `[2/3]`, each
  its own bytes of the file.
- TRAP: keys have no bias, but their part of the stacked one is there. It must be zero.
- TRAP: 8-bit rows are DIVIDED by their scale, 127 / (largest of the row). Embeddings and convolutions are such rows
  too; here they become float32.
- Variables lie at odd addresses, where no processor likes to compute: they are copied, each when it is wanted.
- Sizes are those of the variables, the names of languages and tasks those of the tokenizer; `config.json` has little
  more than suppressed ids.
"""

import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..config import EncoderDecoderConfig
from ..errors import CheckpointError, TokenizerError
from ..tokenizer import read_special, read_tokenizer
from .json_file import open_file, read_json
from .whisper_json import from_published

FILE = "model.bin"
NEWEST = 6                      # version of the layout
KIND, REVISION = "WhisperSpec", 3
TYPES = ("F32", "I8", "I16", "I32", "F16", "BF16")                  # by their number in the file
TYPE_OF_SIZE = {1: "I8", 2: "I16", 4: "F32"}                        # before version 4
TORCH = {"F32": torch.float32, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "F16": torch.float16,
         "BF16": torch.bfloat16}
MOST_VARIABLES = 100_000        # a large Whisper has 1,300
MOST_AXES = 8
SCALE = "_scale"                # behind the name of an integer weight

# -- names -------------------------------------------------------------------------------------------------------------

_NORM = {"weight": "gamma", "bias": "beta"}
_BLOCK = {"attn.query": "self_attention/linear_0", "attn.key": "self_attention/linear_0",
          "attn.value": "self_attention/linear_0",
          "attn.out": "self_attention/linear_1", "attn_norm": "self_attention/layer_norm", "mlp_norm": "ffn/layer_norm",
          "mlp.up": "ffn/linear_0", "mlp.down": "ffn/linear_1"}
_CROSS = {"cross.query": "attention/linear_0", "cross.key": "attention/linear_1", "cross.value": "attention/linear_1",
          "cross.out": "attention/linear_2", "cross_norm": "attention/layer_norm"}
_PART = {"attn.query": "[0/3]", "attn.key": "[1/3]", "attn.value": "[2/3]", "cross.key": "[0/2]",
         "cross.value": "[1/2]"}
_STACKED = {"self_attention/linear_0": 3, "attention/linear_1": 2}


def _table() -> dict[str, str]:
    """Our parameter -> their variable, or a part of one."""
    table = {"encoder.positions": "encoder/position_encodings/encodings",
             "decoder.positions.weight": "decoder/position_encodings/encodings",
             "decoder.embed.weight": "decoder/embeddings/weight"}
    table |= {f"encoder.frontend.{conv}.{leaf}": f"encoder/{conv}/{leaf}"
              for conv in ("conv1", "conv2") for leaf in _NORM}
    for tower, block in (("encoder", _BLOCK), ("decoder", _BLOCK | _CROSS)):
        modules = {f"{tower}.norm": f"{tower}/layer_norm"}
        modules |= {f"{tower}.blocks.{{}}.{ours}": f"{tower}/layer_{{}}/{theirs}" for ours, theirs in block.items()}
        for ours, theirs in modules.items():
            part = _PART.get(ours.partition("{}.")[2], "")
            for leaf in _NORM:
                if (leaf, ours.endswith(".key")) != ("bias", True):
                    table[f"{ours}.{leaf}"] = f"{theirs}/{_NORM[leaf] if 'norm' in theirs else leaf}{part}"
    return table


TABLE = _table()
HEAD = "decoder/projection/weight"      # the embedding once more
_EMBEDDING = TABLE["decoder.embed.weight"]
_STACK = re.compile(rf"(?:encoder|decoder)/layer_\d+/({'|'.join(_STACKED)})/(weight|bias)")
_KEY_BIAS = re.compile(r"(?:encoder|decoder)/layer_\d+/"
                       r"(?:self_attention/linear_0/bias\[1/3\]|attention/linear_1/bias\[0/2\])")

# Variables without axes, with the values that this package computes; None: whatever it is, it changes nothing.
_MUST = {"decoder/activation": 3, "decoder/pre_norm": 1, "decoder/scale_embeddings": 0}     # 3: GELU, as it is defined
_MAY = {"decoder/alibi": 0, "decoder/start_from_zero_embedding": 0, "decoder/multi_query_attention": 0,
        "decoder/alibi_use_positive_positions": None,
        "decoder/scale_alibi": None, "decoder/alignment_heads": None, "decoder/alignment_layer": None}
_HEADS = ("encoder/num_heads", "decoder/num_heads")


# -- the file ----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Header:
    """A `model.bin` without its data. `variables`: name -> {dtype, shape, data_offsets} as of a safetensors file, but
    offsets count from the start of this one; those without axes have their `value` too. An alias is one more name."""

    path: Path
    version: int
    revision: int
    variables: dict[str, dict]
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
        return struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))[0]

    def string(self, what: str) -> str:
        data = self.take(self.number("H"))
        try:
            text = data.removesuffix(b"\0").decode("utf-8")
        except UnicodeDecodeError:
            text = "\0"
        if not data.endswith(b"\0") or "\0" in text or not text:
            raise self.broken(f"{what} at byte {self.place - len(data)} is {data[:60]!r}, expected UTF-8 with a NUL "
                              "at its end")
        return text

    def header(self) -> Header:
        version = self.number("I")
        if not 1 <= version <= NEWEST:
            raise CheckpointError(
                f"{self.path}: begins with {struct.pack('<I', version)!r}, expected a version from 1 to {NEWEST}: it "
                "is no file of CTranslate2, or a newer one; pickles of PyTorch have such names too, can run any program "
                "when they are opened, and are not read here")
        kind, revision = (self.string("the kind of model"), self.number("I")) if version >= 2 else (KIND, 1)
        if kind != KIND or not 1 <= revision <= REVISION:
            raise CheckpointError(f"{self.path}: holds a {kind}, revision {revision}; this package reads {KIND}, "
                                  f"revisions 1 to {REVISION}")
        variables: dict[str, dict] = {}
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
            if name not in variables:           # so none can stand for itself, or for one behind it
                raise self.broken(f"alias {alias} stands for {name}, which is not in front of it")
            aliases[alias] = name
            variables[alias] = variables[name]
            if (scale := name + SCALE) in variables and alias + SCALE not in variables:         # as CTranslate2 does
                variables[alias + SCALE] = variables[scale]
        if self.place != self.size:
            raise self.broken(f"its variables end at byte {self.place} of {self.size}")
        return Header(self.path, version, revision, variables, aliases)

    def count(self, what: str, most: int) -> int:
        count = self.number("I")
        if count > most:
            raise self.broken(f"{count} {what} are announced, expected at most {most}")
        return count

    def variable(self, name: str, version: int) -> dict:
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
            raise self.broken(f"variable {name} of shape {shape} and type {dtype} has {count} bytes, expected "
                              f"{math.prod(shape) * item}")
        start = self.place
        if start + count > self.size:
            raise self.broken(f"variable {name} lies at bytes {start} to {start + count} of {self.size}")
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + count]}
        if shape:
            self.place += count
            self.file.seek(self.place)
        else:
            entry["value"] = torch.frombuffer(bytearray(self.take(count)), dtype=TORCH[dtype]).item()
        return entry


def tensors(header: Header, floats: bool = False) -> dict[str, dict]:
    """Name -> {dtype, shape, data_offsets} of the tensors in a file, as `TABLE` names them, after checking what this
    package computes with.

    Integers become "F32", by the `scale` of their rows, but for 8-bit weights of linears, which stay as they are with
    their scale as a tensor of its own, unless `floats`. Raises CheckpointError.
    """
    found: dict[str, dict] = {}
    variables = dict(header.variables)
    for name, value in (_MUST | _MAY).items():
        there = variables.pop(name, None)
        if there is None and name in _MUST or there is not None and value is not None and there.get("value") != value:
            found_ = there.get("value", "no number") if there else "missing"
            raise CheckpointError(f"{header.path}: variable {name} is {found_}; this package computes {value} only")
    for name in _HEADS:
        variables.pop(name, None)
    for name, entry in variables.items():
        if name.endswith(SCALE) and variables.get(name.removesuffix(SCALE), {}).get("dtype") in ("I8", "I16"):
            continue                            # goes with its weight
        integers = entry["shape"] and entry["dtype"] in ("I8", "I16")
        scale = _scale(header.path, name, entry, variables) if integers else None
        stacked = _STACK.fullmatch(name)
        count = _STACKED[stacked[1]] if stacked else 1
        if stacked and (not entry["shape"] or entry["shape"][0] % count):
            raise CheckpointError(f"{header.path}: variable {name} has shape {entry['shape']}; expected {count} parts "
                                  "of equal size")
        for part in range(count):
            ours = f"{name}[{part}/{count}]" if stacked else name
            found[ours] = tensor = _cut(entry, part, count)
            if scale is None:
                continue
            rows = scale if not scale["shape"] else _cut(scale, part, count)
            if entry["dtype"] == "I8" and "/linear_" in name and not floats:
                found[ours + SCALE] = rows | {"inverse": True}
            else:
                found[ours] = tensor | {"dtype": "F32", "stored": entry["dtype"], "scale": rows}
    return found


def _scale(path: Path, name: str, entry: dict, variables: dict[str, dict]) -> dict:
    """The scales of a weight of integers: one for each row of 8-bit numbers, one for all of 16."""
    scale = variables.get(name + SCALE)
    expected = entry["shape"][:1] if entry["dtype"] == "I8" else []
    if scale is None or (scale["dtype"], scale["shape"]) != ("F32", expected):
        found = "" if scale is None else f", which is {scale['dtype']} of shape {scale['shape']}"
        raise CheckpointError(f"{path}: variable {name} of shape {entry['shape']} is of type {entry['dtype']} and "
                              f"needs {name}{SCALE}, F32 of shape {expected}{found}")
    return scale


def _cut(entry: dict, part: int, count: int) -> dict:
    """One of `count` equal parts of the rows of a variable."""
    if count == 1:
        return entry
    start, end = entry["data_offsets"]
    size = (end - start) // count
    shape = [entry["shape"][0] // count, *entry["shape"][1:]]
    return entry | {"shape": shape, "data_offsets": [start + part * size, start + (part + 1) * size]}


def ignored(names) -> set[str]:
    """Those of some tensors that this package has no parameter for; `check_values` knows what they must be."""
    return {name for name in names if name == HEAD or _KEY_BIAS.fullmatch(name)}


class Mapped:
    """The tensors of a file, with the interface of `safetensors.safe_open`. Raises OSError, CheckpointError."""

    def __init__(self, path: Path, entries: dict[str, dict]):
        self._path, self._entries = path, entries
        with open_file(path) as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _copy(self, entry: dict) -> Tensor:
        start, end = entry["data_offsets"]
        data = torch.from_numpy(np.frombuffer(self._map, np.uint8, end - start, start).copy())
        return data.view(TORCH[entry.get("stored", entry["dtype"])]).view(entry["shape"])

    def get_tensor(self, name: str) -> Tensor:
        entry = self._entries[name]
        tensor = self._copy(entry)
        if entry.get("inverse"):
            return 1 / tensor
        if "scale" not in entry:
            return tensor
        scale = self._copy(entry["scale"])
        if not 0 < scale.min() <= scale.max() < math.inf:
            raise CheckpointError(f"{self._path}: the scales of {name} hold what no row can be divided by; expected "
                                  "numbers above 0")
        return tensor.float().div_(scale.view(-1, *[1] * (tensor.dim() - 1)))


def check_values(path: Path, entries: dict[str, dict]) -> None:
    """Raises CheckpointError unless what is ignored changes nothing: no bias of keys, the head is the embedding."""
    file = Mapped(path, entries)
    for name in sorted(ignored(entries)):
        if name != HEAD and file.get_tensor(name).any():
            raise CheckpointError(f"{path}: tensor {name} is not zero; keys have no bias in a Whisper")
    head, embedding = entries.get(HEAD), entries.get(_EMBEDDING)
    same = not (head and embedding) or head["data_offsets"] == embedding["data_offsets"]
    if not same and not torch.equal(file.get_tensor(HEAD), file.get_tensor(_EMBEDDING)):
        raise CheckpointError(f"{path}: tensor {HEAD} is another one than {_EMBEDDING}; in a Whisper they are the same")


# -- what the model is made of -----------------------------------------------------------------------------------------

_KEYS = {"alignment_heads", "lang_ids", "suppress_ids", "suppress_ids_begin"}
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
START = "<|startoftranscript|>"
_ENDS = ("<|endoftext|>", "<|endoftranscript|>")
_ONE_LANGUAGE = 51_864          # the vocabulary of a Whisper for English alone


def check_config(config: dict) -> None:
    """Raises CheckpointError unless a `config.json` is one of CTranslate2's for Whisper."""
    unknown = sorted(set(config) - _KEYS)
    if unknown:
        raise CheckpointError(f"config.json: unknown key {unknown[0]!r}; beside {FILE}, CTranslate2 writes "
                              f"{', '.join(sorted(_KEYS))} for a Whisper")
    for key in _KEYS:
        if not isinstance(config.get(key, []), (list, type(None))):
            raise CheckpointError(f"config.json: {key} is {config[key]!r:.60}, expected a list")


def read_config(directory: Path, header: Header) -> EncoderDecoderConfig:
    """The configuration of a directory, as `config_json.read_config` gives it of others. Raises CheckpointError."""
    config = read_json(directory / "config.json")
    try:
        check_config(config)
        features = directory / "preprocessor_config.json"
        processor = read_json(features) if features.is_file() else {}
        sizes = _sizes(header)
        return from_published(sizes, processor, _steering(directory, config, sizes["vocab_size"]))
    except TokenizerError:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from None


def _sizes(header: Header) -> dict:
    """Of the variables, as a config.json of Transformers would say them."""
    def shape(name: str, axes: int) -> list[int]:
        found = header.variables.get(name)
        if found is None or len(found["shape"]) != axes:
            what = f"has shape {found['shape']}" if found else "is missing"
            raise CheckpointError(f"{FILE}: variable {name} {what}, expected {axes} axes")
        return found["shape"]

    def layers(tower: str) -> int:
        return len({found[1] for name in header.variables if (found := re.match(rf"{tower}/layer_(\d+)/", name))})

    heads = [header.variables.get(name, {}).get("value") for name in _HEADS]
    if None in heads:
        raise CheckpointError(f"{FILE}: variable {_HEADS[heads.index(None)]} is missing or no number; convert the "
                              "model again, with a newer CTranslate2")
    width, bands, _ = shape("encoder/conv1/weight", 3)
    vocabulary, _ = shape(_EMBEDDING, 2)
    return {"num_mel_bins": bands, "d_model": width, "vocab_size": vocabulary,
            "encoder_layers": layers("encoder"), "encoder_attention_heads": heads[0],
            "encoder_ffn_dim": shape("encoder/layer_0/ffn/linear_0/weight", 2)[0],
            "max_source_positions": shape("encoder/position_encodings/encodings", 2)[0],
            "decoder_layers": layers("decoder"), "decoder_attention_heads": heads[1],
            "decoder_ffn_dim": shape("decoder/layer_0/ffn/linear_0/weight", 2)[0],
            "max_target_positions": shape("decoder/position_encodings/encodings", 2)[0]}


def _steering(directory: Path, config: dict, vocabulary: int) -> dict:
    """Ids that steer the model, as a generation_config.json of Transformers would say them."""
    special = read_special(directory)
    names = {number: name for name, number in special.items()}
    end = next((name for name in _ENDS if name in special), _ENDS[0])
    for name in (end, START):
        if name not in special:
            raise CheckpointError(f"the vocabulary has no token {name!r}; is this the tokenizer of the model that is "
                                  "loaded?")
    tasks = {name: special[f"<|{name}|>"] for name in ("transcribe", "translate") if f"<|{name}|>" in special}
    no_timestamps = special.get("<|notimestamps|>")
    for name in ("<|nospeech|>", "<|nocaptions|>"):
        if no_timestamps is not None and special.get(name, no_timestamps - 1) != no_timestamps - 1:
            raise CheckpointError(f"the tokenizer has {special[name]} for {name} and {no_timestamps} for "
                                  "<|notimestamps|>, expected neighbours")
    # TRAP: a model for English alone has tokens for languages too, never trained, and `lang_ids` of others.
    ids = [] if vocabulary == _ONE_LANGUAGE else config.get("lang_ids") or sorted(
        number for name, number in special.items()
        if _LANGUAGE.fullmatch(name) and special[START] < number < min(tasks.values(), default=0))
    for number in ids:
        name = names.get(number, "") if isinstance(number, int) else ""
        if not _LANGUAGE.fullmatch(name):
            raise CheckpointError(f"config.json: lang_ids has {number!r:.20}, in the tokenizer {name!r:.60}, expected "
                                  "a language; it is that of another model")
    suppress, suppress_first = config.get("suppress_ids"), config.get("suppress_ids_begin")
    tokenizer = read_tokenizer(directory) if None in (suppress, suppress_first) else None
    return {"decoder_start_token_id": special[START], "eos_token_id": special[end], "is_multilingual": bool(ids),
            "lang_to_id": {names[number].strip("<|>"): number for number in ids}, "task_to_id": tasks,
            "no_timestamps_token_id": no_timestamps,
            "max_initial_timestamp_index": 50,          # of openai/whisper: a second
            "suppress_tokens": not_speech(tokenizer) if suppress is None else suppress,
            "begin_suppress_tokens": [tokenizer.id("Ġ"), special[end]] if suppress_first is None else suppress_first}


def not_speech(tokenizer) -> list[int]:
    """The ids of what nobody says, notes and brackets, and of the special tokens that are no answer (openai/whisper,
    tokenizer.py: non_speech_tokens; decoding.py: _get_suppress_tokens)."""
    notes = "♩♪♫♬♭♮♯"
    marks = [*'"#()*+/:;<=>@[\\]^_`{|}~「」『』', *notes,
             *"<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪".split()]
    found = {tokenizer.encode(text)[0] for text in (" -", " '")}
    for mark in marks:
        for ids in (tokenizer.encode(mark), tokenizer.encode(" " + mark)):
            if len(ids) == 1 or mark in notes:
                found.add(ids[0])
    special = ("transcribe", "translate", "startoftranscript", "startofprev", "startoflm", "nospeech", "nocaptions")
    return sorted(found | {tokenizer.special[f"<|{name}|>"] for name in special if f"<|{name}|>" in tokenizer.special})
