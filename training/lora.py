"""Adapters of low rank beside linears that stay as they are (LoRA; Hu et al., 2021): put into a model by peft, and read
out of it for `glmasr.checkpoint.adapter`, which saves them as peft would.

Linears are asked for by Transformers' names, as in peft's own `target_modules`: a name is that of a module or the end of
it, so `q_proj` is one in each attention, and `self_attn.q_proj` not that of cross-attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from manifest import TrainingError
from torch import nn

from glmasr.checkpoint.adapter import LowRank
from glmasr.checkpoint.tensor_names import FORMATS, their_name
from glmasr.config import EncoderDecoderConfig

DEFAULT = ("decoder",)  # of whisper tiny.en, with q_proj and v_proj alone less was learned and more forgotten
PARTS = ("encoder", "projector", "decoder")  # of a model: all of the linears in it
EVERY = "all"
HEAD = "decoder.head"  # never: whoever ties it to the embedding would change that as well


@dataclass(frozen=True)
class Settings:
    """What adapters are asked for. `targets`: names of Transformers, PARTS, or EVERY."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]

    @classmethod
    def of(cls, args) -> "Settings | None":
        """None where none are asked for."""
        if not args.lora:
            return None
        alpha = 2.0 * args.lora if args.lora_alpha is None else args.lora_alpha
        names = [name for some in args.lora_targets or DEFAULT for name in some.split(",") if name]
        if not names:
            raise TrainingError(f"--lora-targets {' '.join(args.lora_targets)!r}: names nothing; expected some linears")
        return cls(args.lora, alpha, args.lora_dropout or 0.0, tuple(dict.fromkeys(names)))

    def __str__(self) -> str:
        return f"LoRA of rank {self.rank} at {', '.join(self.targets)}, alpha {self.alpha:g}, dropout {self.dropout:g}"


def linears(model: nn.Module) -> dict[str, str]:
    """Our name of each linear that can have an adapter -> Transformers'."""
    table = FORMATS["whisper" if isinstance(model.config, EncoderDecoderConfig) else "transformers in memory"].table
    return {
        ours: their_name(table, f"{ours}.weight").removesuffix(".weight")
        for ours, module in model.named_modules()
        if isinstance(module, nn.Linear) and ours != HEAD
    }


def chosen(model: nn.Module, settings: Settings, frozen: Sequence[str] = ()) -> list[str]:
    """Our names of the linears that get an adapter: none where a name begins with one of `frozen`. Raises
    TrainingError."""
    there, found = linears(model), []
    for target in settings.targets:
        fitting = [
            ours
            for ours, theirs in there.items()
            if target == EVERY
            or target in PARTS
            and ours.startswith(f"{target}.")
            or f".{theirs}".endswith(f".{target}")
        ]
        if not fitting:
            ends = dict.fromkeys(theirs.rpartition(".")[2] for theirs in there.values())
            parts = [part for part in PARTS if any(ours.startswith(f"{part}.") for ours in there)]
            raise TrainingError(
                f"--lora-targets {target}: no linear of this model is called so; expected some of {', '.join(ends)}, "
                f"or {', '.join(parts)} or {EVERY}"
            )
        found += fitting
    found = [ours for ours in dict.fromkeys(found) if not ours.startswith(tuple(frozen) or "-")]
    if not found:
        raise TrainingError("--freeze leaves nothing for --lora to adapt; leave a part out, or choose other targets")
    narrow = min(found, key=lambda ours: min(model.get_submodule(ours).weight.shape))
    if settings.rank > (most := min(model.get_submodule(narrow).weight.shape)):
        raise TrainingError(
            f"--lora {settings.rank}: {there[narrow]} itself has a rank of {most} at most; expected a smaller number"
        )
    return found


def add(model: nn.Module, settings: Settings, frozen: Sequence[str] = ()) -> list[nn.Parameter]:
    """Puts adapters into a model, float32, of which nothing else is learned, and returns their parameters. It computes
    as before until the first step. Raises TrainingError."""
    names = chosen(model, settings, frozen)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise TrainingError(
            f"--lora needs the package {error.name or error}, which is not installed; get it with the extra [train]:  "
            "pip install 'glmasr[train]'"
        ) from None
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=names)
    inject_adapter_in_model(config, model)
    for module in adapted(model).values():
        module.cast_input_dtype_enabled = False  # autocast does it, without a copy of x in float32
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.data = parameter.data.float()
    return learned


def adapted(model: nn.Module) -> dict[str, nn.Module]:
    """Our name -> peft's module that took the place of a linear."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def changes(model: nn.Module) -> dict[str, LowRank]:
    """What `add` put into a model, as it is now."""
    return {
        name: LowRank(
            module.lora_A["default"].weight, module.lora_B["default"].weight, float(module.lora_alpha["default"])
        )
        for name, module in adapted(model).items()
    }
