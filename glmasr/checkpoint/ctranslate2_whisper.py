"""Whisper as CTranslate2 has it: the variables of a `model.bin` -> tensors and configuration of our model.

Unusual:
- Queries, keys and values are one variable, stacked: here three tensors, `.../linear_0/weight[0/3]` to `[2/3]`, each
  its own bytes of the file.
- TRAP: keys have no bias, but their part of the stacked one is there. It must be zero.
- TRAP: 8-bit rows are DIVIDED by their scale, 127 / (largest of the row). Embeddings and convolutions are such rows
  too; here they become float32.
- Sizes are those of the variables, the names of languages and tasks those of the tokenizer; `config.json` has little
  more than suppressed ids.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from ..config import EncoderDecoderConfig
from ..errors import CheckpointError, TokenizerError
from .ctranslate2 import FILE, SCALE, Entry, Header, Mapped
from .json_file import read_json
from .whisper_json import from_published

# -- names -------------------------------------------------------------------------------------------------------------

_NORM = {"weight": "gamma", "bias": "beta"}
_BLOCK = {
    "attn.query": "self_attention/linear_0",
    "attn.key": "self_attention/linear_0",
    "attn.value": "self_attention/linear_0",
    "attn.out": "self_attention/linear_1",
    "attn_norm": "self_attention/layer_norm",
    "mlp_norm": "ffn/layer_norm",
    "mlp.up": "ffn/linear_0",
    "mlp.down": "ffn/linear_1",
}
_CROSS = {
    "cross.query": "attention/linear_0",
    "cross.key": "attention/linear_1",
    "cross.value": "attention/linear_1",
    "cross.out": "attention/linear_2",
    "cross_norm": "attention/layer_norm",
}
_PART = {
    "attn.query": "[0/3]",
    "attn.key": "[1/3]",
    "attn.value": "[2/3]",
    "cross.key": "[0/2]",
    "cross.value": "[1/2]",
}
_STACKED = {"self_attention/linear_0": 3, "attention/linear_1": 2}


def _table() -> dict[str, str]:
    """Our parameter -> their variable, or a part of one."""
    table = {
        "encoder.positions": "encoder/position_encodings/encodings",
        "decoder.positions.weight": "decoder/position_encodings/encodings",
        "decoder.embed.weight": "decoder/embeddings/weight",
    }
    table |= {
        f"encoder.frontend.{conv}.{leaf}": f"encoder/{conv}/{leaf}" for conv in ("conv1", "conv2") for leaf in _NORM
    }
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
HEAD = "decoder/projection/weight"  # the embedding once more
_EMBEDDING = TABLE["decoder.embed.weight"]
_STACK = re.compile(rf"(?:encoder|decoder)/layer_\d+/({'|'.join(_STACKED)})/(weight|bias)")
_KEY_BIAS = re.compile(
    r"(?:encoder|decoder)/layer_\d+/"
    r"(?:self_attention/linear_0/bias\[1/3\]|attention/linear_1/bias\[0/2\])"
)

# Variables without axes, with the values that this package computes; None: whatever it is, it changes nothing.
_MUST = {"decoder/activation": 3, "decoder/pre_norm": 1, "decoder/scale_embeddings": 0}  # 3: GELU, as it is defined
_MAY = {
    "decoder/alibi": 0,
    "decoder/start_from_zero_embedding": 0,
    "decoder/multi_query_attention": 0,
    "decoder/alibi_use_positive_positions": None,
    "decoder/scale_alibi": None,
    "decoder/alignment_heads": None,
    "decoder/alignment_layer": None,
}
_HEADS = ("encoder/num_heads", "decoder/num_heads")


# -- variables -> tensors ----------------------------------------------------------------------------------------------


def tensors(header: Header, floats: bool = False) -> dict[str, Entry]:
    """Name -> {dtype, shape, data_offsets} of the tensors in a file, as `TABLE` names them, after checking what this
    package computes with.

    Integers become "F32", by the `scale` of their rows, but for 8-bit weights of linears, which stay as they are with
    their scale as a tensor of its own, unless `floats`. Raises CheckpointError.
    """
    found: dict[str, Entry] = {}
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
            continue  # goes with its weight
        integers = entry["shape"] and entry["dtype"] in ("I8", "I16")
        scale = _scale(header.path, name, entry, variables) if integers else None
        stacked = _STACK.fullmatch(name)
        count = _STACKED[stacked[1]] if stacked else 1
        if stacked and (not entry["shape"] or entry["shape"][0] % count):
            raise CheckpointError(
                f"{header.path}: variable {name} has shape {entry['shape']}; expected {count} parts of equal size"
            )
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


def _scale(path: Path, name: str, entry: Entry, variables: dict[str, Entry]) -> Entry:
    """The scales of a weight of integers: one for each row of 8-bit numbers, one for all of 16."""
    scale = variables.get(name + SCALE)
    expected = entry["shape"][:1] if entry["dtype"] == "I8" else []
    if scale is None or (scale["dtype"], scale["shape"]) != ("F32", expected):
        found = "" if scale is None else f", which is {scale['dtype']} of shape {scale['shape']}"
        raise CheckpointError(
            f"{path}: variable {name} of shape {entry['shape']} is of type {entry['dtype']} and "
            f"needs {name}{SCALE}, F32 of shape {expected}{found}"
        )
    return scale


def _cut(entry: Entry, part: int, count: int) -> Entry:
    """One of `count` equal parts of the rows of a variable."""
    if count == 1:
        return entry
    start, end = entry["data_offsets"]
    size = (end - start) // count
    shape = [entry["shape"][0] // count, *entry["shape"][1:]]
    return entry | {"shape": shape, "data_offsets": [start + part * size, start + (part + 1) * size]}


def ignored(names: Iterable[str]) -> set[str]:
    """Those of some tensors that this package has no parameter for; `check_values` checks their values."""
    return {name for name in names if name == HEAD or _KEY_BIAS.fullmatch(name)}


def check_values(path: Path, entries: dict[str, Entry]) -> None:
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
_ONE_LANGUAGE = 51_864  # the vocabulary of a Whisper for English alone


def check_config(config: dict[str, Any]) -> None:
    """Raises CheckpointError unless a `config.json` is one of CTranslate2's for Whisper."""
    unknown = sorted(set(config) - _KEYS)
    if unknown:
        raise CheckpointError(
            f"config.json: unknown key {unknown[0]!r}; beside {FILE}, CTranslate2 writes "
            f"{', '.join(sorted(_KEYS))} for a Whisper"
        )
    for key in _KEYS:
        if not isinstance(config.get(key, []), (list, type(None))):
            raise CheckpointError(f"config.json: {key} is {config[key]!r:.60}, expected a list")


class Vocabulary(Protocol):
    """What is asked of a tokenizer here."""

    @property
    def special(self) -> Mapping[str, int]:
        """Special token -> id; languages and tasks are found among them."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, to find those that Whisper suppresses."""

    def id(self, token: str) -> int:
        """The id of a token. Raises TokenizerError if there is none."""


def read_config(
    directory: Path, header: Header, special: Callable[[], Mapping[str, int]], tokenizer: Callable[[], Vocabulary]
) -> EncoderDecoderConfig:
    """The configuration of a directory, as `config.read_config` returns it for others. Raises CheckpointError.

    special     reads the special tokens and their ids
    tokenizer   reads the whole tokenizer, which takes a second: only where `config.json` leaves suppressed ids out
    """
    config = read_json(directory / "config.json")
    try:
        check_config(config)
        features = directory / "preprocessor_config.json"
        processor = read_json(features) if features.is_file() else {}
        sizes = _sizes(header)
        return from_published(sizes, processor, _steering(config, sizes["vocab_size"], special(), tokenizer))
    except TokenizerError:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from None


def _sizes(header: Header) -> dict[str, Any]:
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
        raise CheckpointError(
            f"{FILE}: variable {_HEADS[heads.index(None)]} is missing or no number; convert the "
            "model again, with a newer CTranslate2"
        )
    width, bands, _ = shape("encoder/conv1/weight", 3)
    vocabulary, _ = shape(_EMBEDDING, 2)
    return {
        "num_mel_bins": bands,
        "d_model": width,
        "vocab_size": vocabulary,
        "encoder_layers": layers("encoder"),
        "encoder_attention_heads": heads[0],
        "encoder_ffn_dim": shape("encoder/layer_0/ffn/linear_0/weight", 2)[0],
        "max_source_positions": shape("encoder/position_encodings/encodings", 2)[0],
        "decoder_layers": layers("decoder"),
        "decoder_attention_heads": heads[1],
        "decoder_ffn_dim": shape("decoder/layer_0/ffn/linear_0/weight", 2)[0],
        "max_target_positions": shape("decoder/position_encodings/encodings", 2)[0],
    }


def _steering(
    config: dict[str, Any], vocabulary: int, special: Mapping[str, int], tokenizer: Callable[[], Vocabulary]
) -> dict[str, Any]:
    """Ids that steer the model, as a generation_config.json of Transformers would say them."""
    names = {number: name for name, number in special.items()}
    end = next((name for name in _ENDS if name in special), _ENDS[0])
    for name in (end, START):
        if name not in special:
            raise CheckpointError(
                f"the vocabulary has no token {name!r}; is this the tokenizer of the model that is loaded?"
            )
    tasks = {name: special[f"<|{name}|>"] for name in ("transcribe", "translate") if f"<|{name}|>" in special}
    no_timestamps = special.get("<|notimestamps|>")
    for name in ("<|nospeech|>", "<|nocaptions|>"):
        if no_timestamps is not None and special.get(name, no_timestamps - 1) != no_timestamps - 1:
            raise CheckpointError(
                f"the tokenizer has {special[name]} for {name} and {no_timestamps} for "
                "<|notimestamps|>, expected neighbors"
            )
    # TRAP: a model for English alone has tokens for languages too, never trained, and `lang_ids` of others.
    ids = (
        []
        if vocabulary == _ONE_LANGUAGE
        else config.get("lang_ids")
        or sorted(
            number
            for name, number in special.items()
            if _LANGUAGE.fullmatch(name) and special[START] < number < min(tasks.values(), default=0)
        )
    )
    for number in ids:
        name = names.get(number, "") if isinstance(number, int) else ""
        if not _LANGUAGE.fullmatch(name):
            raise CheckpointError(
                f"config.json: lang_ids has {number!r:.20}, in the tokenizer {name!r:.60}, expected "
                "a language; it is that of another model"
            )
    suppress, suppress_first = config.get("suppress_ids"), config.get("suppress_ids_begin")
    if suppress is None or suppress_first is None:
        whole = tokenizer()
        suppress = not_speech(whole) if suppress is None else suppress
        suppress_first = [whole.id("Ġ"), special[end]] if suppress_first is None else suppress_first
    return {
        "decoder_start_token_id": special[START],
        "eos_token_id": special[end],
        "is_multilingual": bool(ids),
        "lang_to_id": {names[number].strip("<|>"): number for number in ids},
        "task_to_id": tasks,
        "no_timestamps_token_id": no_timestamps,
        "max_initial_timestamp_index": 50,  # of openai/whisper: a second
        "suppress_tokens": suppress,
        "alignment_heads": config.get("alignment_heads"),
        "begin_suppress_tokens": suppress_first,
    }


def not_speech(tokenizer: Vocabulary) -> list[int]:
    """The ids of what isn't speech, notes and brackets, and of the special tokens that are no answer (openai/whisper,
    tokenizer.py: non_speech_tokens; decoding.py: _get_suppress_tokens)."""
    notes = "♩♪♫♬♭♮♯"
    marks = [
        *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
        *notes,
        *"<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪".split(),
    ]
    found = {tokenizer.encode(text)[0] for text in (" -", " '")}
    for mark in marks:
        for ids in (tokenizer.encode(mark), tokenizer.encode(" " + mark)):
            if len(ids) == 1 or mark in notes:
                found.add(ids[0])
    special = ("transcribe", "translate", "startoftranscript", "startofprev", "startoflm", "nospeech", "nocaptions")
    return sorted(found | {tokenizer.special[f"<|{name}|>"] for name in special if f"<|{name}|>" in tokenizer.special})
