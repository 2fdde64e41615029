"""What is trained: a model with its weights, or with random ones, and which of its parameters are learned."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import lora
import torch
import torch.nn.functional as F
from manifest import TrainingError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glmasr import audio, weights
from glmasr.checkpoint import adapter, ctranslate2, hub
from glmasr.checkpoint.config_json import read_config
from glmasr.conv_frontend import WaveformFrontend
from glmasr.errors import OutputError
from glmasr.kernels import devices
from glmasr.model import EncoderDecoder, GlmAsr

PARTS = {  # of a model, for --freeze -> how the names of its parameters begin
    "encoder": ("encoder.",),
    "frontend": ("encoder.frontend.",),
    "projector": ("projector.",),
    "decoder": ("decoder.",),
    "embedding": ("decoder.embed.", "decoder.positions."),
}
BESIDE = (  # files of a checkpoint that aren't made from its configuration
    "tokenizer.json",
    "tokenizer.model",
    "added_tokens.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "normalizer.json",
    "vocab.json",
    "merges.txt",
)

AnyModel = GlmAsr | EncoderDecoder


# -- weights -----------------------------------------------------------------------------------------------------------


def has_weights(directory: Path) -> bool:
    """Whether a checkpoint directory holds more than a configuration and a tokenizer."""
    return (directory / ctranslate2.FILE).is_file() or any(directory.glob("model*.safetensors*"))


def own_dtype(directory: Path) -> torch.dtype:
    """The type to save in: bfloat16 where the weights are so, or are to be made; else float32, for the small steps of
    fine-tuning are lost in the rounding of float16 and int8."""
    if not has_weights(directory):
        return torch.bfloat16
    headers = weights.examine(directory).headers.values()
    types = {entry["dtype"] for header in headers for entry in header.values() if len(entry["shape"]) > 1}
    return torch.bfloat16 if types == {"BF16"} else torch.float32


def called(model: str) -> str:
    """What others call a model that was given as MODEL: a directory as it is, one of the hub as "owner/name"."""
    found = hub.local(model)
    return model if isinstance(found, Path) else found.repository


def load(directory: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> AnyModel:
    """The model of a directory, in memory of its own: what is mapped may be the file to be written. A `model.bin` of
    CTranslate2, also of int8, becomes the floats that it stands for."""
    model = weights.load(directory, device=device, dtype=dtype)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def fresh(directory: Path, device: torch.device) -> AnyModel:
    """A model of a configuration with random weights, so that a signal keeps its size on its way."""
    model = weights.build(read_config(directory)).to(device)
    for parameter in model.parameters():
        if parameter.dim() == 2 and parameter.requires_grad:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    for name, module in model.decoder.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)
    if isinstance(getattr(model.encoder, "frontend", None), WaveformFrontend):
        begin_as_waves(model.encoder.frontend.layers[0].conv.weight)
    for blocks in (model.encoder.blocks, model.decoder.blocks):
        for block in blocks:  # what is added to the residual starts small, so that depth doesn't blow it up
            for layer in (block.attn.out, block.mlp.down, *([block.cross.out] if hasattr(block, "cross") else [])):
                layer.weight.data /= (2 * len(blocks)) ** 0.5
    return model


@torch.no_grad()
def begin_as_waves(weight: Tensor) -> None:
    """Filters (C, 1, kernel) become short waves, evenly spaced on the mel scale, in four phases a quarter turn apart
    (as SincNet's, Ravanelli and Bengio, 2018): after SiLU the four together say how loud a frequency is, whatever its
    phase. Random filters learned nothing in 600 steps."""
    channels, _, kernel = weight.shape
    bands = -(-channels // 4)
    mel = torch.linspace(100, 2800, bands)  # 65 Hz to 7.7 kHz
    frequency = 700 * (10 ** (mel / 2595) - 1)
    time = (torch.arange(kernel) - (kernel - 1) / 2) / audio.SAMPLE_RATE
    phase = torch.arange(4)[:, None] * torch.pi / 2
    waves = torch.cos(2 * torch.pi * frequency[:, None, None] * time + phase) * torch.hann_window(kernel + 2)[1:-1]
    louder = 1 + frequency / 500  # speech has little at high frequencies
    weight.copy_((waves * louder[:, None, None]).flatten(0, 1)[:channels, None] / kernel)


def save(model: AnyModel, out: Path, beside: Path, dtype: torch.dtype) -> None:
    """A complete checkpoint in `out`, with the tokenizer of `beside`, for this package and for Transformers. Raises
    TrainingError."""
    with _replaced(out) as part:
        weights.save(model, part, dtype)
        for name in BESIDE:
            if (beside / name).is_file():
                shutil.copyfile(beside / name, part / name)


def save_adapter(model: AnyModel, out: Path, base: str, dropout: float) -> None:
    """The model's adapter in `out`, in PEFT's format, which `glmasr.load(base, adapter=out)` and peft on Transformers'
    model read. Raises TrainingError."""
    with _replaced(out) as part:
        adapter.save(part, lora.changes(model), model.config, base=base, dropout=dropout)


@contextmanager
def _replaced(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when it is whole: until then the old one is there. Raises TrainingError."""
    part, old = out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.old")
    try:
        for folder in (part, old):
            shutil.rmtree(folder, ignore_errors=True)
        yield part
        if out.exists():
            out.rename(old)
        part.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError, OutputError) as error:
        raise TrainingError(f"{out}: can't be written ({error}); expected a folder with enough room") from None


# -- what is learned ---------------------------------------------------------------------------------------------------


def choose(model: AnyModel, frozen: Sequence[str] = (), adapters: lora.Settings | None = None) -> list[nn.Parameter]:
    """Marks the parameters that are learned, and returns them: all but those of `frozen` PARTS, and sinusoids. With
    `adapters` these are put in, outside of those parts, and only they are learned. Raises TrainingError."""
    starts = beginnings(model, frozen)
    if adapters:
        return lora.add(model, adapters, starts)
    if isinstance(model, EncoderDecoder):
        starts += ("encoder.positions",)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(starts or "-"))
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not learned:
        raise TrainingError(f"--freeze {' '.join(frozen)} leaves nothing to learn; leave a part out")
    return learned


def beginnings(model: AnyModel, parts: Sequence[str]) -> tuple[str, ...]:
    """How the names of the parameters in some PARTS begin. Raises TrainingError for those that the model hasn't."""
    names = [name for name, _ in model.named_parameters()]
    known = [part for part, starts in PARTS.items() if any(name.startswith(starts) for name in names)]
    for part in parts:
        if part not in known:
            raise TrainingError(f"--freeze {part}: this model has {', '.join(known)}")
    return tuple(start for part in parts for start in PARTS[part])


def compact(model: AnyModel, dtype: torch.dtype, wide: bool = False) -> None:
    """Frozen parameters in the type of their own file, if that is `dtype`: half of the memory, not a bit less. If products
    are float32 (`wide`), those of linears alone, which become float32 for each product."""
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}  # tied heads
    for module in model.modules():
        linear = isinstance(module, nn.Linear) and id(module.weight) not in embedded
        frozen = [parameter for parameter in module.parameters(recurse=False) if not parameter.requires_grad]
        for parameter in frozen:
            parameter.data = parameter.data.to(torch.float32 if wide and not linear else dtype)
        if wide and linear and frozen and dtype != torch.float32:
            module.forward = partial(_Widened.apply, module.weight, module.bias)


class _Widened(torch.autograd.Function):
    """A frozen linear of which no float32 is kept for the way back."""

    @staticmethod
    def forward(ctx, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype), bias if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, None, Tensor]:
        (weight,) = ctx.saved_tensors
        return None, None, gradient @ weight.to(gradient.dtype)


def widens(args, device: torch.device) -> bool:
    """Whether products are float32 though bfloat16 was asked for: a CPU without instructions for it takes 6 to
    60 times as long over it (measured on an AMD EPYC with AVX2)."""
    return args.dtype == "bfloat16" and devices.fast_dtype(device) != torch.bfloat16


class Checkpointed:
    """A block that keeps nothing but what goes in."""

    def __init__(self, block: nn.Module):
        self.block = block

    def __call__(self, *args) -> Tensor:
        return checkpoint(self.block, *args, use_reentrant=False)

    def __getattr__(self, name: str):
        return getattr(self.block, name)


class CheckpointedBlocks(nn.ModuleList):
    """Blocks of which training keeps what goes in, and computes the rest again on the way back (Chen et al., 2016). The
    parameters keep their names."""

    def __iter__(self) -> Iterator:
        blocks = super().__iter__()
        return map(Checkpointed, blocks) if self.training and torch.is_grad_enabled() else blocks


def checkpoint_activations(model: AnyModel) -> None:
    """From now on, in both towers."""
    for tower in (model.encoder, model.decoder):
        tower.blocks = CheckpointedBlocks(tower.blocks)


@contextmanager
def exchanged(model: AnyModel, others: dict[str, Tensor], dtype: torch.dtype) -> Iterator[None]:
    """Within it the learned parameters are what will be saved: rounded to `dtype`, and those of `others` if it has any.
    Meanwhile their own values are in the memory of the CPU."""
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if dtype == torch.float32 and not others:
        yield
        return
    kept = {}
    with torch.no_grad():
        for name, parameter in learned.items():
            kept[name] = parameter.detach().to("cpu", copy=True)
            parameter.copy_(others.get(name, parameter).to(dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in learned.items():
                parameter.copy_(kept[name])
