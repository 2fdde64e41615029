"""An assistant: a smaller decoder that drafts what the model writes, from what the model's encoder hears.

It is a student of the model: `training/distill.py --student layers=N --freeze encoder` makes one, and a distil-whisper
is one. `searching.speculative` has the search, which finds what greedy search finds. It helps where a window is decoded
greedily by itself. Batches, beams, samples, and searches that favor hotwords go on as without one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import decode, weights
from ..decode import Hypothesis
from ..decoder import LlamaDecoder
from ..errors import CheckpointError, OptionError
from ..kernels import prepare
from ..kernels.cuda_graphs import GraphedModel
from ..kernels.prepare import Runtime
from ..model import EncoderDecoder, GlmAsr
from ..rules import Rule
from ..searching.favor import Bias
from ..searching.speculative import Ahead, Drafting
from .encoder_decoder import EncoderDecoderFamily
from .glm_asr import GlmAsrFamily

AHEAD = 2  # tokens that are drafted at most
# Of the weights that a token costs: what a draft of two may cost at most. It is right with perhaps 0.6, so two bring
# 1 + 0.6 + 0.36 tokens for a read of three, which takes 1.1 to 1.3 times one of a single token.
LARGEST_SHARE = 1 / 3
# What a student has of its model, of the configuration and of its decoder.
SAME = ("encoder", "start", "end", "stop", "audio_token", "merge", "languages", "tasks", "no_timestamps")
SAME_DECODER = ("vocabulary", "positions")


class Assisted:
    """A `decode.Model` with a student that has its encoder. `greedy` is what the student is for."""

    def __init__(self, model: GlmAsr | EncoderDecoder, student: GlmAsr | EncoderDecoder):
        self.model, self.student = model, student
        self.new_cache, self.prefill, self.step, self.read = model.new_cache, model.prefill, model.step, model.read

    @property
    def device(self) -> torch.device:
        """That of the model."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """That of the model."""
        return self.model.dtype

    def greedy(
        self,
        audio: Any,
        prompts: Sequence[Sequence[int]],
        *,
        stop: Sequence[int],
        max_new: Sequence[int],
        rules: Sequence[Rule],
        bias: Bias | None = None,
    ) -> list[Hypothesis]:
        """As `decode.greedy`, which searches where there are several prompts or there is a bias."""
        heard = self._heard(audio)
        how: dict[str, Any] = {"stop": stop, "max_new": max_new}
        if len(prompts) != 1 or bias is not None or heard is None:
            return decode.greedy(self.model, audio, prompts, rules=rules, bias=bias, **how)
        draft = Drafting(self.student, heard, prompts[0], stop=stop, capacity=max_new[0])
        ahead = Ahead(self, draft, AHEAD)
        return decode.greedy(ahead, audio, prompts, rules=[ahead.exact(rules)], **how)

    def _heard(self, audio: Any) -> Any:
        """What the student's prefill takes: what the model's does, or what the family has put behind that."""
        if isinstance(self.model, GlmAsr):
            return audio
        return audio[self.model.config.decoder.layers :] or None


def load(
    directory: Path, teacher: Path, family: GlmAsrFamily | EncoderDecoderFamily, runtime: Runtime, *, plain: bool
) -> Assisted:
    """The model of a family with the assistant in `directory`; `teacher`: the model's own. Raises CheckpointError, and
    OptionError for a model that can't read several tokens in a step as exactly as one."""
    model = family.model
    if isinstance(model, GraphedModel):
        raise OptionError(
            "an assistant is given, and on a GPU the steps of this model are CUDA graphs of one token each; expected "
            "none, or device 'cpu'"
        )
    if runtime.levels is not None:
        raise OptionError(
            "an assistant is given, and int8 computes several tokens at once less exactly than one; expected none, or "
            "dtype float32 or bfloat16"
        )
    student, _ = prepare.load(directory, device=model.device, dtype=model.dtype, plain=plain)
    if type(student) is not type(model):
        raise CheckpointError(f"{directory}: the assistant is of another family than the model; {_EXPECTED}")
    pairs = [(student.config, model.config, SAME), (student.config.decoder, model.config.decoder, SAME_DECODER)]
    for ours, theirs, names in pairs:
        for name in names:
            if getattr(ours, name, None) != getattr(theirs, name, None):
                raise CheckpointError(f"{directory}: the assistant has another {name} than the model; {_EXPECTED}")
    share = _read(student) / _read(model)
    if share > LARGEST_SHARE:
        raise OptionError(
            f"{directory}: a token of the assistant costs {share:.0%} of what one of the model does, so nothing gets "
            f"faster; expected at most {LARGEST_SHARE:.0%}, which takes a larger model or a smaller student"
        )
    contents = [weights.examine(one, floats=True) for one in (directory, teacher)]
    sources = [weights.TensorSource(one) for one in contents]
    last = f"encoder.blocks.{model.config.encoder.layers - 1}."  # what learns changes all, so the last one says it
    for name in (name for name in contents[0].names if name.startswith((last, "projector."))):
        one, other = (source(name).float() for source in sources)
        if not torch.allclose(one, other, rtol=2**-7, atol=1e-6):  # it may have been saved in bfloat16
            raise CheckpointError(f"{directory}: the encoder of the assistant isn't that of the model; {_EXPECTED}")
    student.encoder = model.encoder
    if isinstance(family, EncoderDecoderFamily) and isinstance(student, EncoderDecoder):
        family.read_also = student.decoder
    return Assisted(model, student)


def _read(model: GlmAsr | EncoderDecoder) -> int:
    """Weights that are read for a token. Of a table only a row is; of an encoder-decoder it is the head as well."""
    decoder = model.decoder
    table = isinstance(decoder, LlamaDecoder) and not decoder.config.tied
    return prepare.num_parameters(decoder) - (decoder.embed.weight.numel() if table else 0)


_EXPECTED = "expected a student of this model, made by training/distill.py --student layers=2 --freeze encoder"
