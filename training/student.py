"""How a student is made of a teacher: fewer layers, perhaps narrower ones, and all of the teacher's weights that fit.

    layers=2                decoder layers; the rest is the teacher's
    encoder=3,decoder=2     layers of both
    CONFIG                  the name of a preset, a config.json or a folder with one: widths may differ

Layer j of n is the teacher's layer j * (N - 1) / (n - 1) of N, rounded: spread evenly, the first and the last kept (Shleifer
and Rush, 2020; Gandhi et al., 2023). A single layer is the first. What the teacher has in another shape begins at random.
"""

import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import start
import torch
from manifest import TrainingError
from torch import Tensor

from glmasr.checkpoint.config_json import read_config, to_published
from glmasr.config import PRESETS, EncoderDecoderConfig, GlmAsrConfig
from glmasr.errors import CheckpointError
from glmasr.tokenizer import Vocabulary, read_tokenizer, tokenizer_file

AnyConfig = GlmAsrConfig | EncoderDecoderConfig
PARTS = ("encoder", "decoder")
STEERING = ("start", "end", "audio_token", "stop")  # ids that two configurations of one tokenizer have in common
EXAMPLES = "expected layers=2, encoder=3,decoder=2, a preset (" + ", ".join(PRESETS) + "), or a config.json"


# -- which layers ------------------------------------------------------------------------------------------------------


def evenly(count: int, teacher: int) -> list[int]:
    """The teacher's layers that a student of `count` gets, from 0.

    >>> evenly(2, 6), evenly(3, 6), evenly(1, 6), evenly(4, 32)
    ([0, 5], [0, 3, 5], [0], [0, 10, 21, 31])
    """
    if count == 1:
        return [0]
    return [(2 * j * (teacher - 1) + count - 1) // (2 * (count - 1)) for j in range(count)]


def config_of(spec: str, teacher: AnyConfig, tokenizer: Vocabulary) -> AnyConfig:
    """The configuration of a student. Prompt, search and special tokens are the teacher's. Raises TrainingError."""
    if "=" in spec and not Path(spec).exists():
        wanted = _layers(spec)
        parts = {part: replace(getattr(teacher, part), layers=count) for part, count in wanted.items()}
        given = replace(teacher, alignment_heads=(), **parts)
    else:
        given = _given(spec, teacher, tokenizer)
    for part in PARTS:
        layers, most = getattr(given, part).layers, getattr(teacher, part).layers
        if layers > most:
            raise TrainingError(
                f"--student {spec}: {layers} {part} layers; the teacher has {most}: expected at most as many"
            )
    same = given.decoder == replace(teacher.decoder, layers=given.decoder.layers)
    kept = {layer: j for j, layer in enumerate(evenly(given.decoder.layers, teacher.decoder.layers))} if same else {}
    heads = tuple((kept[layer], head) for layer, head in teacher.alignment_heads if layer in kept)
    own = {"encoder": given.encoder, "decoder": given.decoder, "alignment_heads": heads}
    if not heads:  # no file has a lead without them, and what is read there has to be the same student
        own["alignment_lead"] = type(teacher).alignment_lead
    return replace(teacher, **own, **({"merge": given.merge} if isinstance(given, GlmAsrConfig) else {}))


def _layers(spec: str) -> dict[str, int]:
    """Part -> layers."""
    found: dict[str, int] = {}
    for item in spec.split(","):
        match = re.fullmatch(r"\s*(layers|encoder|decoder)=(\d{1,4})\s*", item)
        part = "" if match is None else match[1].replace("layers", "decoder")
        if match is None or part in found or int(match[2]) < 1:
            raise TrainingError(f"--student {spec}: {item!r} says no number of layers; {EXAMPLES}")
        found[part] = int(match[2])
    return found


def _given(spec: str, teacher: AnyConfig, tokenizer: Vocabulary) -> AnyConfig:
    path = Path(spec)
    if spec in PRESETS:
        given = PRESETS[spec]
    elif path.is_dir():
        given = read_config(path)
    elif path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            shutil.copyfile(path, Path(folder) / "config.json")
            try:
                given = read_config(folder)
            except CheckpointError as error:
                raise TrainingError(f"--student {str(error).replace(folder, spec)}") from None
    else:
        raise TrainingError(f"--student {spec}: neither a preset nor a file; {EXAMPLES}")
    if type(given) is not type(teacher):
        kinds = {GlmAsrConfig: "GLM-ASR", EncoderDecoderConfig: "an encoder-decoder"}
        raise TrainingError(
            f"--student {spec}: is {kinds[type(given)]}, the teacher {kinds[type(teacher)]}; expected the same, whose "
            "answers have the same tokens"
        )
    if given.window != teacher.window:
        raise TrainingError(
            f"--student {spec}: a window of {given.window_seconds:g} s; expected the teacher's {teacher.window_seconds:g} s"
        )
    _same_tokenizer(spec, given, teacher, tokenizer)
    return given


def _same_tokenizer(spec: str, given: AnyConfig, teacher: AnyConfig, tokenizer: Vocabulary) -> None:
    """Raises TrainingError if ids don't mean the same to both."""
    way = "; logits of the one say nothing about the other's: expected a student of the teacher's tokenizer"
    ours, theirs = given.decoder.vocabulary, teacher.decoder.vocabulary
    if ours != theirs:
        raise TrainingError(
            f"--student {spec}: another tokenizer, of {ours} tokens, where the teacher has {theirs}{way}"
        )
    for name in STEERING:
        ours, theirs = getattr(given, name, None), getattr(teacher, name, None)
        if ours != theirs:
            raise TrainingError(f"--student {spec}: another tokenizer: {name} is {ours}, the teacher's {theirs}{way}")
    if Path(spec).is_dir() and tokenizer_file(spec):
        other = read_tokenizer(spec)
        if other.special != tokenizer.special or other.size != tokenizer.size:
            raise TrainingError(f"--student {spec}: another tokenizer, with other special tokens{way}")
        for number in range(other.size):
            if other.decode([number]) != tokenizer.decode([number]):
                raise TrainingError(
                    f"--student {spec}: another tokenizer: token {number} is {other.decode([number])!r}, the teacher's "
                    f"{tokenizer.decode([number])!r}{way}"
                )


# -- its weights -------------------------------------------------------------------------------------------------------


def made(
    directory: Path,
    teacher: start.AnyModel,
    config: AnyConfig,
    dtype: torch.dtype,
    out: Path,
    say: Callable[[str], None],
) -> None:
    """Writes a student of `config` to `out`, a checkpoint with the tokenizer of the teacher's `directory`; says what it
    has of the teacher, and what of it begins at random. Raises TrainingError."""
    with tempfile.TemporaryDirectory() as folder:
        for name, values in to_published(config, dtype).items():
            (Path(folder) / name).write_text(json.dumps(values), encoding="utf-8")
        model = start.fresh(Path(folder), torch.device("cpu"))
    fresh = copy(teacher, model)
    for line in described(teacher, model, fresh):
        say(line)
    start.save(model, out, directory, dtype)


@torch.no_grad()
def copy(teacher: start.AnyModel, student: start.AnyModel) -> list[str]:
    """Copies what fits; returns the names of the student's other parameters."""
    theirs = dict(teacher.named_parameters())
    fresh = []
    for name, parameter in student.named_parameters():
        source = theirs.get(_source(name, teacher.config, student.config))
        if source is not None and source.shape == parameter.shape and _alike(name, teacher.config, student.config):
            parameter.copy_(source)
        elif parameter.requires_grad:  # else a sinusoid, which is computed
            fresh.append(name)
    return fresh


def _source(name: str, teacher: AnyConfig, student: AnyConfig) -> str:
    """The name of the teacher's parameter that becomes a student's."""
    match = re.fullmatch(r"(encoder|decoder)\.blocks\.(\d+)\.(.*)", name)
    if match:
        part, number, rest = match.groups()
        layer = evenly(getattr(student, part).layers, getattr(teacher, part).layers)[int(number)]
        return f"{part}.blocks.{layer}.{rest}"
    if name == "decoder.head.weight" and getattr(teacher.decoder, "tied", False):
        return "decoder.embed.weight"
    return name


def _alike(name: str, teacher: AnyConfig, student: AnyConfig) -> bool:
    """TRAP: attention of the same width, but with other heads, has weights of the same shape that mean something else."""
    if ".attn." not in name and ".cross." not in name:
        return True
    ours, theirs = (getattr(config, name.partition(".")[0]) for config in (student, teacher))
    return ours.heads == theirs.heads and getattr(ours, "key_heads", 0) == getattr(theirs, "key_heads", 0)


def described(teacher: start.AnyModel, student: start.AnyModel, fresh: list[str]) -> list[str]:
    """What a student has of its teacher."""

    def millions(tensors: list[Tensor]) -> str:
        return f"{sum(x.numel() for x in tensors) / 1e6:.2f} M"

    layers = []
    for part in PARTS:
        count, most = getattr(student.config, part).layers, getattr(teacher.config, part).layers
        blocks = {name for name, _ in student.named_parameters() if name.startswith(f"{part}.blocks.")}
        kept = f"{part} layers {', '.join(map(str, evenly(count, most)))} of {most}"
        layers.append(kept if blocks - {*fresh} else f"no {part} layer, for none fits")
    ours = dict(student.named_parameters())
    said = [
        f"student: {millions([*ours.values()])} parameters, of the teacher's {millions([*teacher.parameters()])}; "
        f"{'; '.join(layers)}"
    ]
    if fresh:
        names = Counter(re.sub(r"\.\d+\.", ".{}.", name, count=1) for name in fresh)
        listed = ", ".join(name + f" x {count}" * (count > 1) for name, count in names.items())
        said.append(
            f"at random, for the teacher has nothing of their shape: {len(fresh)} tensors, "
            f"{millions([ours[name] for name in fresh])} parameters: {listed}"
        )
    return said
