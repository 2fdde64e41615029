"""A LoRA in PEFT's format, `adapter_config.json` and `adapter_model.safetensors` <-> changes of weights.

Of a linear W (out, in) a LoRA has two thin matrices, A (rank, in) and B (out, rank): the linear computes with
W + alpha / rank * B A. Here that sum is made once, in float32, when W is read: before it is laid out for a kernel or
rounded to int8. So nothing else has to know of adapters, and a model with one is as fast as without.

PEFT has many other kinds of adapters, and its configuration more keys with each release. What changes the numbers in a
way that isn't computed here is an error that names it, and so is a key that isn't known, unless it says "off".
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import EncoderDecoderConfig, GlmAsrConfig, is_integer, is_number
from ..errors import CheckpointError, OutputError
from .ctranslate2 import Entry
from .json_file import Json, read_json
from .tensor_files import FLOATS, Files, read_header
from .tensor_names import FORMATS, their_name

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EXPECTED = f"expected a folder with {CONFIG} and {WEIGHTS}, as peft saves an adapter"
PREFIX = "base_model.model."  # of all names: the modules that PEFT has put around the model

# Keys that say nothing about what is computed, or that are checked by the names and shapes of the tensors.
_IGNORED = set(
    """
    task_type auto_mapping peft_version base_model_name_or_path revision inference_mode target_modules exclude_modules
    lora_dropout modules_to_save layers_to_transform layers_pattern megatron_core qalora_group_size eva_config
    r lora_alpha rank_pattern alpha_pattern
    """.split()
)
# What these have to say. TRAP: some ways to begin, such as "pissa", change the weights of the base, too, and the
# adapter is a change of those.
_REQUIRED: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_rslora": (False, True, None),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}
_MOST_PATTERNS, _LONGEST_PATTERN, _MATCHING = 2000, 500, 0.1  # the last one in seconds, for one name


@dataclass(frozen=True)
class LowRank:
    """The LoRA of a module: its weight W gets alpha / rank * B A.

    a, b   (rank, in) and (out, rank); of a convolution (rank, in, kernel) and (out, rank, 1)
    """

    a: Tensor
    b: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Rows of `a`."""
        return self.a.shape[0]

    def added_to(self, weight: Tensor) -> Tensor:
        """W + alpha / rank * B A, float32."""
        a, b = self.a.flatten(1).float(), self.b.flatten(1).float()
        return weight.float() + (b @ a).mul_(self.alpha / self.rank).view(weight.shape)


class Adapter:
    """An adapter that fits a model: `adapter(name, weight)` is what a weight of the base becomes.

    Raises CheckpointError for a folder that can't be used, or that belongs to another model.
    """

    def __init__(self, directory: str | Path, model: nn.Module, config: GlmAsrConfig | EncoderDecoderConfig):
        """`model`: the base, which may be on the meta device."""
        self.directory = Path(directory)
        path = self.directory / WEIGHTS
        self._config = _read_config(self.directory)
        header = read_header(path)
        self._files, self._path = Files({path: header}), path
        base = _Base.of(model, config)
        self.changes: dict[str, LowRank] = {}  # by our name of the weight
        self._whole: dict[str, str] = {}  # of `modules_to_save`: our name -> theirs
        places = {theirs: self._place(theirs, header[theirs], base) for theirs in header}
        parts = {(ours, theirs.partition(".lora_")[2]) for theirs, ours in places.items()}  # "A.weight", or "" for all
        if len(parts) < len(places) or any((ours, "") in parts for ours, part in parts if part):
            raise CheckpointError(f"{path}: it changes a weight twice, by several names; {EXPECTED}")
        for theirs, ours in places.items():
            if ".lora_" not in theirs:
                self._whole[ours] = theirs
            elif ours not in self.changes:
                self.changes[ours] = self._pair(theirs, header, base.shapes[ours])
        if not self.changes:
            raise CheckpointError(f"{path}: there is no LoRA in it, of {len(header)} tensors; {EXPECTED}")

    def __call__(self, ours: str, weight: Tensor) -> Tensor:
        """A weight of the base, by our name -> with the adapter. Raises CheckpointError."""
        if ours in self._whole:
            return self._files.read(self._path, self._whole[ours])
        return self.changes[ours].added_to(weight) if ours in self.changes else weight

    def _place(self, theirs: str, entry: Entry, base: "_Base") -> str:
        """Our name of the weight that a tensor changes, or takes the place of."""
        name = theirs.removeprefix(PREFIX)
        module, low_rank, end = name.partition(".lora_")
        ours = base.names.get(f"{module}.weight" if low_rank else name)
        if name == theirs or ours is None or low_rank and end not in ("A.weight", "B.weight"):
            raise self._refused(theirs, "has no place in the model", "LoRA of its linears and convolutions")
        if entry["dtype"] not in FLOATS:
            raise self._refused(theirs, f"is of type {entry['dtype']}", "BF16 or F32")
        if low_rank and ours not in base.changeable:
            raise self._refused(theirs, "changes what is neither linear nor convolution", "LoRA of those")
        if not low_rank and entry["shape"] != base.shapes[ours]:
            raise self._refused(theirs, f"has shape {entry['shape']}", f"{base.shapes[ours]}, as the model's")
        if ours == "decoder.embed.weight" and base.tied:
            raise self._refused(theirs, "is also the head of this model", "an adapter that leaves it as it is")
        return ours

    def _pair(self, theirs: str, header: dict[str, Entry], shape: list[int]) -> LowRank:
        """The A and B that one of the two names belongs to, for a weight of this shape."""
        start = theirs[: theirs.index(".lora_")]
        module = start.removeprefix(PREFIX)
        rank = self._config.rank(module)
        wanted = {
            f"{start}.lora_A.weight": [rank, *shape[1:]],
            f"{start}.lora_B.weight": [shape[0], rank, *(1 for _ in shape[2:])],
        }
        for name, size in wanted.items():
            if name not in header:
                raise self._refused(theirs, f"is there without {name}", "both")
            if header[name]["shape"] != size:
                raise self._refused(name, f"has shape {header[name]['shape']}", f"{size}, as its rank is {rank}")
        a, b = (self._files.read(self._path, name) for name in wanted)
        if not (a.isfinite().all() and b.isfinite().all()):
            raise CheckpointError(
                f"{self._path}: {start} has numbers that are not finite; expected another state of the training, from "
                "before it failed"
            )
        return LowRank(a, b, self._config.alpha(module, rank))

    def _refused(self, theirs: str, wrong: str, expected: str) -> CheckpointError:
        base = f", {self._config.base}," if self._config.base else ""
        return CheckpointError(
            f"{self._path}: tensor {theirs} {wrong}; expected {expected}. An adapter goes with the model that it was "
            f"trained on{base} alone: give that one as --model, or another adapter"
        )


@dataclass(frozen=True)
class _Base:
    """What of a model can be changed."""

    names: dict[str, str]  # of Transformers -> ours
    shapes: dict[str, list[int]]  # by our names
    changeable: set[str]  # weights of linears and convolutions, by our names
    tied: bool

    @classmethod
    def of(cls, model: nn.Module, config: GlmAsrConfig | EncoderDecoderConfig) -> "_Base":
        shapes = {ours: list(weight.shape) for ours, weight in model.named_parameters()}
        names = {their_name(table, ours): ours for table in _tables(config) for ours in shapes}
        linears = (name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv1d)))
        changeable = {f"{name}.weight" for name in linears} & set(shapes)
        return cls(names, shapes, changeable, "decoder.head.weight" not in shapes)


def _tables(config: GlmAsrConfig | EncoderDecoderConfig) -> list[dict[str, str]]:
    """Names of Transformers' modules: today's first, which `save` writes."""
    several = ("transformers in memory", "transformers"), ("whisper", "whisper, no prefix")
    return [FORMATS[name].table for name in several[isinstance(config, EncoderDecoderConfig)]]


# -- adapter_config.json -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Config:
    """What is used of it. Of the patterns, which are regular expressions, the first that a module's name ends with
    counts."""

    path: Path
    base: str
    default_rank: int
    default_alpha: float
    square_root: bool
    ranks: list[tuple[Any, int]]
    alphas: list[tuple[Any, float]]

    def rank(self, module: str) -> int:
        """Of a module, by Transformers' name of it."""
        return int(self._first(self.ranks, module, self.default_rank))

    def alpha(self, module: str, rank: int) -> float:
        """So that alpha / rank is what B A is multiplied by."""
        alpha = float(self._first(self.alphas, module, self.default_alpha))
        return alpha * math.sqrt(rank) if self.square_root else alpha

    def _first(self, patterns: list[tuple[Any, Any]], module: str, default: Any) -> Any:
        try:
            return next((value for pattern, value in patterns if pattern.match(module, timeout=_MATCHING)), default)
        except TimeoutError:
            raise CheckpointError(
                f"{self.path}: a pattern takes too long to compare; expected names of modules"
            ) from None


def _read_config(directory: Path) -> _Config:
    """Raises CheckpointError."""
    path = directory / CONFIG
    if not os.path.isdir(directory):
        raise CheckpointError(f"{directory}: no such directory; {EXPECTED}")
    if not os.path.isfile(path) and os.path.isfile(directory / "config.json"):
        raise CheckpointError(f"{directory}: that is a whole model; give it as --model, or {EXPECTED}")
    if not os.path.isfile(path) or not os.path.isfile(directory / WEIGHTS):
        missing = WEIGHTS if os.path.isfile(path) else CONFIG
        pickle = os.path.isfile(directory / "adapter_model.bin") and missing == WEIGHTS
        more = "; adapter_model.bin, a pickle, is not opened: save it again with safetensors" if pickle else ""
        raise CheckpointError(f"{directory}: {missing} is missing; {EXPECTED}{more}")
    config = read_json(path)
    for key, allowed in _REQUIRED.items():
        value = config.get(key, allowed[0])
        if not any(value is known or isinstance(value, str) and value == known for known in allowed):
            raise CheckpointError(
                f"{path}: {key} is {value!r:.100}, expected {' or '.join(map(repr, allowed))}; with anything else the "
                "adapter is of a kind that this package doesn't compute: merge it with peft, and load what that saves"
            )
    for key, value in config.items():
        if value and key not in _IGNORED and key not in _REQUIRED:
            raise CheckpointError(
                f"{path}: {key!r:.100} is {value!r:.100}, and this package computes plain LoRA only; merge the adapter "
                "with peft, and load what that saves"
            )
    base = config.get("base_model_name_or_path")
    return _Config(
        path,
        base if isinstance(base, str) else "",
        _rank(path, "r", config.get("r", 8)),
        _alpha(path, "lora_alpha", config.get("lora_alpha", 8)),
        config.get("use_rslora") is True,
        _patterns(path, config, "rank_pattern", _rank),
        _patterns(path, config, "alpha_pattern", _alpha),
    )


def _rank(path: Path, key: str, value: object) -> int:
    if not is_integer(value) or not 0 < value < 2**31:
        raise CheckpointError(f"{path}: {key} is {value!r:.100}, expected a positive integer")
    return value


def _alpha(path: Path, key: str, value: object) -> float:
    if not is_number(value):
        raise CheckpointError(f"{path}: {key} is {value!r:.100}, expected a number")
    return float(value)


def _patterns(path: Path, config: Json, key: str, checked: Any) -> list[tuple[Any, Any]]:
    """Patterns and their values. TRAP: peft matches them with `re`, which a hostile one keeps busy for ever."""
    found = config.get(key) or {}
    if not isinstance(found, dict) or len(found) > _MOST_PATTERNS or any(len(one) > _LONGEST_PATTERN for one in found):
        raise CheckpointError(
            f"{path}: {key} is {found!r:.100}, expected at most {_MOST_PATTERNS} names of modules, each with a number"
        )
    try:
        return [(regex.compile(rf"(.*\.)?({one})$"), checked(path, key, value)) for one, value in found.items()]
    except (regex.error, RecursionError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: {key} has a pattern that is none ({error}); expected names of modules"
        ) from None


# -- writing -----------------------------------------------------------------------------------------------------------


def save(
    directory: str | Path,
    changes: Mapping[str, LowRank],
    config: GlmAsrConfig | EncoderDecoderConfig,
    *,
    base: str = "",
    dropout: float = 0.0,
) -> None:
    """Writes an adapter as peft would, with Transformers' names: `PeftModel.from_pretrained` loads it.

    changes   our module, such as "decoder.blocks.0.attn.query" -> its LoRA
    config    of the base model
    base      what it is called: a model of the hub, or a directory
    dropout   of the training, which others may continue

    The configuration comes last, so that what is stopped before isn't taken for an adapter. Raises OutputError.
    """
    table = _tables(config)[0]
    names = {ours: their_name(table, f"{ours}.weight").removesuffix(".weight") for ours in changes}
    rank, ranks = _most([change.rank for change in changes.values()]), {}
    alpha, alphas = _most([change.alpha for change in changes.values()]), {}
    state: dict[str, Tensor] = {}
    for ours, change in changes.items():
        for letter, tensor in (("A", change.a), ("B", change.b)):
            state[f"{PREFIX}{names[ours]}.lora_{letter}.weight"] = tensor.detach().cpu().clone().contiguous()
        if change.rank != rank:
            ranks[names[ours]] = change.rank
        if change.alpha != alpha:
            alphas[names[ours]] = change.alpha
    whisper = isinstance(config, EncoderDecoderConfig)
    kind, module = ("Whisper", "whisper") if whisper else ("GlmAsr", "glmasr")
    fields = {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": {
            "base_model_class": f"{kind}ForConditionalGeneration",
            "parent_library": f"transformers.models.{module}.modeling_{module}",
        },
        "base_model_name_or_path": base or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": sorted(names.values()),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).unlink(missing_ok=True)
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / WEIGHTS).chmod(0o644)  # save_file leaves it to the owner alone
        (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{folder}: {getattr(error, 'strerror', None) or error}") from None


def _most(values: Iterable[Any]) -> Any:
    """The most frequent one; the others are written as patterns."""
    some = list(values)
    return max(some, key=some.count)
