"""The search that the options ask for."""

from typing import Any

from .. import decode
from ..decode import Hypothesis
from ..errors import CheckpointError
from ..rules import Rule
from ..searching.favor import Bias
from .assistant import Assisted
from .options import Options

BEST_OF = 5  # samples of a window at temperatures above 0; the likeliest counts


def search(
    model: decode.Model,
    audio: object,
    prompts: list[list[int]],
    stop: tuple[int, ...],
    budgets: list[int],
    options: Options,
    rules: list[Rule],
    temperature: float = 0.0,
    bias: Bias | None = None,
) -> list[Hypothesis]:
    """The best hypothesis for each prompt. Above temperature 0 it is drawn, not searched."""
    common: dict[str, Any] = {"stop": stop, "max_new": budgets, "rules": rules, "bias": bias}
    try:
        if temperature > 0:
            return decode.sample(model, audio, prompts, temperature=temperature, seed=0, best_of=BEST_OF, **common)
        if options.beams in (None, 1):
            if isinstance(model, Assisted):
                return model.greedy(audio, prompts, **common)
            return decode.greedy(model, audio, prompts, **common)
        width, penalty = options.beams or 1, options.length_penalty
        found = decode.beam(model, audio, prompts, width=width, length_penalty=penalty, **common)
        return [hypotheses[0] for hypotheses in found]
    except ValueError as error:  # the arguments were checked, so what is left is numbers that are not finite
        raise CheckpointError(f"the model gives no usable answer: {error}") from error
