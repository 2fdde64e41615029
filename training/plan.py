"""The memory of a training, told before it is taken: weights, gradients, optimizer, activations.

Activations are not estimated but counted: the forward pass of a batch runs on fake tensors, which have a shape and a
type but no memory, and everything is added up that autograd would keep for the way back. So a model of any size is
planned within seconds on any machine, and without its weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lora
import start
import torch
import torch.nn.functional as F
from options import BATCH, completed
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from glmasr import weights
from glmasr.checkpoint import hub
from glmasr.checkpoint.config_json import read_config
from glmasr.config import HOP, PRESETS, EncoderDecoderConfig, GlmAsrConfig
from glmasr.conv_frontend import audio_rows
from glmasr.errors import ShortMemoryError
from glmasr.kernels import devices
from glmasr.model import GlmAsr

GIB = 2**30
TEXT = 100  # tokens, if no manifest says more: a sentence of 15 s has 50
MANY = 2**30  # clips
CHAT, STEERING = 25, 4  # tokens of a prompt: GLM-ASR's around the audio embeddings, Whisper's
MOMENTS = 2  # of AdamW, for each learned weight


@dataclass(frozen=True)
class Plan:
    """Bytes, and how many weights are learned."""

    weights: int
    gradients: int
    optimizer: int  # with the running mean
    activations: int
    learned: int

    @property
    def total(self) -> int:
        """All of it. The peak is a little lower, for activations go while gradients come; what the libraries
        themselves take comes on top."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        parts = ("weights", "gradients", "optimizer", "activations", "total")
        said = ", ".join(f"{name} {getattr(self, name) / GIB:.2f}" for name in parts)
        return f"memory in GiB: {said}; {self.learned / 1e6:.1f} M weights are learned"


def windows(config: GlmAsrConfig | EncoderDecoderConfig, args, clips: int) -> int:
    """Windows of a batch, of so many clips in all."""
    return max(1, min(clips, int(args.batch_seconds / config.window_seconds)))


def of(
    config: GlmAsrConfig | EncoderDecoderConfig,
    args,
    dtype: torch.dtype,
    text: int = TEXT,
    clips: int = MANY,
    wide: bool = False,
) -> Plan:
    """The plan of a training of a model of this configuration. `dtype`: of its own weights; `text`: tokens of the
    longest text; `clips`: to train on; `wide`: products are float32 in any case."""
    count = windows(config, args, clips)
    with FakeTensorMode(), torch.random.fork_rng(devices=[]):
        model = weights.build(config).train()
        settings = lora.Settings.of(args)
        learned = _adapted(model, settings, args.freeze) if settings else start.choose(model, args.freeze)
        if args.dtype == "bfloat16":
            start.compact(model, dtype, wide)
        before = config.decoder.positions // 2 * bool(args.previous)
        tokens = text + (CHAT if isinstance(config, GlmAsrConfig) else before + STEERING)
        half = args.dtype == "bfloat16" and not wide
        activations = _activations(model, count, text, tokens, half, args)
        held = sum(p.numel() * p.element_size() for p in model.parameters())
    number = sum(p.numel() for p in learned)
    held += 4 * number * bool(args.retain)  # as they were
    copies = MOMENTS + bool(args.mean)
    return Plan(held, 4 * number, 4 * copies * number, activations, number)


def tell(args) -> None:
    """Prints the plan for the given options. Raises TrainingError, GlmAsrError."""
    directory, config = None, PRESETS.get(args.model)
    if config is None:
        directory = Path(args.model) if Path(args.model).is_dir() else hub.find(args.model)
        has_weights = start.has_weights(directory)
        config = weights.examine(directory).config if has_weights else read_config(directory)
    completed(args, directory is None or start.has_weights(directory) and not args.from_scratch)
    args.batch_seconds = args.batch_seconds or BATCH
    plan = of(config, args, torch.bfloat16 if directory is None else start.own_dtype(directory))
    print(
        f"{plan}; a batch of {windows(config, args, MANY)} windows of {config.window_seconds:g} s with {TEXT} tokens each"
    )


def check(plan: Plan, device: torch.device, processes: int = 1) -> None:
    """Raises ShortMemoryError for more than a device has free, beside the weights, which are there by now. Processes on
    a CPU share its memory."""
    needed, free = plan.total - plan.weights, devices.free_memory(device)
    needed *= processes if device.type == "cpu" else 1
    if needed > free:
        raise ShortMemoryError(
            f"{plan}; on {device} {free / GIB:.1f} are free beside the weights. Expected less: --freeze encoder, "
            "--checkpoint, or a smaller --batch-seconds with --accumulate"
        )


# -- activations -------------------------------------------------------------------------------------------------------


class _Kept:
    """Adds up what autograd keeps: each piece of memory once, parameters not at all."""

    def __init__(self, model: nn.Module):
        self.bytes = 0
        self._seen = {p.untyped_storage()._cdata: p.untyped_storage() for p in model.parameters()}

    def add(self, tensor: Tensor) -> Tensor:
        """What a saved tensor is packed as."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage  # held, or another could get its address
            self.bytes += storage.nbytes()
        return tensor

    def counting(self):
        """Within it the forward pass is counted."""
        return saved_tensors_hooks(self.add, lambda tensor: tensor)


class _Counted:
    """A block of which is counted apart what it keeps, and what goes in."""

    def __init__(self, block: nn.Module, inside: list[int], inputs: list[int]):
        self.block, self.inside, self.inputs = block, inside, inputs

    def __call__(self, x: Tensor, *args) -> Tensor:
        kept = _Kept(self.block)
        kept.add(x)
        learned = x.requires_grad or any(p.requires_grad for p in self.block.parameters())
        self.inputs.append(kept.bytes if learned else 0)
        kept.bytes = 0
        with kept.counting():
            result = self.block(x, *args)
        self.inside.append(kept.bytes)
        return result

    def __getattr__(self, name: str):
        return getattr(self.block, name)


class _CountedBlocks(nn.ModuleList):
    inside: list[int]
    inputs: list[int]

    def __iter__(self) -> Iterator:
        return (_Counted(block, self.inside, self.inputs) for block in super().__iter__())


def _activations(model: start.AnyModel, count: int, text: int, tokens: int, half: bool, args) -> int:
    inside: list[int] = []
    inputs: list[int] = []
    for tower in (model.encoder, model.decoder):
        tower.blocks = _CountedBlocks(tower.blocks)
        tower.blocks.inside, tower.blocks.inputs = inside, inputs
    kept = _Kept(model)
    with kept.counting(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        _forward(model, count, text, tokens, args.retain)
    if args.checkpoint:  # one block at a time is there again, on the way back
        return kept.bytes + sum(inputs) + max(inside)
    return kept.bytes + sum(inputs) + sum(inside)


def _forward(model: start.AnyModel, count: int, text: int, tokens: int, retain: float) -> Tensor:
    """The loss of a batch of windows, each with so many tokens, of which those of a text are learned, as `families`
    computes it."""
    config = model.config
    ids = torch.zeros(count, tokens, dtype=torch.long)
    if isinstance(model, GlmAsr):
        mel = torch.empty(count, config.encoder.bands, config.window // HOP)
        sound = model.projector(model.encoder(mel))[:, : audio_rows(config.window, config.merge)]
        words = model.decoder.embed(ids)
        hidden = model.decoder(torch.cat((sound.to(words.dtype), words), dim=1))
    else:
        raw = bool(config.encoder.convolutions)
        shape = (1, config.window) if raw else (config.encoder.bands, config.window // HOP)
        states = model.encoder(torch.empty(count, *shape))
        ids = ids[:, : config.decoder.positions]
        hidden = model.decoder(ids, model.decoder.cross_kv(states))
    answers = hidden[:, -text:].flatten(0, 1)
    logits = model.decoder.head(answers).float()
    loss = F.cross_entropy(logits, torch.zeros(len(answers), dtype=torch.long))
    if retain:
        loss = loss + F.kl_div(logits.log_softmax(-1), torch.empty_like(logits), log_target=True, reduction="sum")
    return loss


# -- adapters ----------------------------------------------------------------------------------------------------------


class _Adapted(nn.Module):
    """In place of peft's module, which fake tensors can't be put into: it keeps the same."""

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.up(self.down(x))


def _adapted(model: start.AnyModel, settings: lora.Settings, frozen: list[str]) -> list[nn.Parameter]:
    """As `lora.add`."""
    model.requires_grad_(False)
    found: list[nn.Parameter] = []
    for name in lora.chosen(model, settings, start.beginnings(model, frozen)):
        adapted = _Adapted(model.get_submodule(name), settings.rank)
        model.set_submodule(name, adapted)
        found += [adapted.down.weight, adapted.up.weight]
    return found
