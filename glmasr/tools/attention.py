"""What a text attended to in the sound, when each of its tokens was chosen.

Not observed in the search, but computed again: the answer is read once more, all of it in one pass, and hooks on the
attention modules note what goes into them.

Unusual:
  - The row of a token is what was attended to when it was CHOSEN, so it is the query of the position before.
  - Most heads don't follow the sound. Those that follow it most steadily are taken, as the alignment heads of Whisper
    are; which ones is a property of the weights, so they are searched for each time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import audio as sound
from .. import pipeline
from ..alignment.heads import steadiest
from ..config import HOP, SAMPLE_RATE
from ..layers import CrossAttention, SelfAttention, rotate
from ..model import EncoderDecoder
from ..transcription import clips
from ..transcription.families import RecordingState
from ..transcription.long_form import Reader
from .explain import Search


@dataclass(frozen=True)
class Reading:
    """The answer, read once more. T tokens, the end included; S columns of sound, each of `seconds`.

    ids         of the T tokens
    attention   (T, S), how much each token attends to each part of the sound; rows add up to 1
    share       of these heads' attention, how much is on sound; the rest is on the prompt and the text before
    heads       (layer, head) of those that were averaged, from 0
    logprobs    (T, V), of every id in place of each token, before the rules
    """

    ids: list[int]
    attention: Tensor
    share: float
    heads: list[tuple[int, int]]
    logprobs: Tensor
    seconds: float


def first_window(recognizer: Any, recording: Any, options: pipeline.Options) -> tuple[Tensor, float]:
    """Samples (S,) of the first window of a recording that isn't silent, cut as `recognizer` cuts it, and the second at
    which it begins. `options` as `recognizer.check` returns them. No samples where all is silent. Raises AudioError."""
    blocks = sound.blocks(recording, track=options.track, max_duration=options.max_duration, warn=lambda _: None)
    begin, stretch = next(clips.clipped(blocks, options.clips, lambda _: None))
    reader = Reader(stretch, recognizer.config.window, begin)
    if options.long == "whole":
        return reader.take(recognizer.config.longest_windows * recognizer.config.window), begin / sound.SAMPLE_RATE
    if options.long == "seek":
        return reader.peek(recognizer.config.window), begin / sound.SAMPLE_RATE
    job = next(recognizer.jobs(reader, RecordingState.of("auto"), options), None)
    return (job.window.samples, job.window.begin) if job else (torch.zeros(0), 0.0)


@torch.inference_mode()
def read_again(recognizer: Any, samples: Tensor, search: Search) -> Reading:
    """The answer of a search in these samples (S,), all of it in one pass."""
    model, answer = recognizer.model, search.result
    assert answer is not None
    # Which of several stop ids it was, the last step says. At a limit there is none.
    last = next((kept.ids[-1] for step in search.steps for kept in step if kept.ids[:-1] == answer.ids), None)
    ids = [*answer.ids, *([model.config.stop[0] if last is None else last] if answer.stopped else [])]
    if isinstance(model, EncoderDecoder):
        tokens = torch.tensor([search.prompt + ids], device=model.device)
        seconds = recognizer.family.samples_per_state / SAMPLE_RATE
        cross_kv = model.decoder.cross_kv(recognizer.family.encode_windows([samples]))
        columns = slice(0, -(-len(samples) // recognizer.family.samples_per_state))
        with noted((block.cross for block in model.decoder.blocks), crossed) as weights:
            states = model.decoder(tokens, cross_kv)
    else:
        rows = recognizer.family.embed(samples)
        prompt = search.prompt
        tokens = torch.tensor([prompt + ids], device=model.device)
        seconds = HOP * model.encoder.frontend.conv2.stride[0] * model.config.merge / SAMPLE_RATE
        first = prompt.index(model.config.audio_token)
        columns = slice(first, first + len(rows))
        with noted((block.attn for block in model.decoder.blocks), causal) as weights:
            states = model.decoder(model.embed(tokens, [rows]))
    choosing = slice(tokens.shape[1] - len(ids) - 1, tokens.shape[1] - 1)  # the positions that chose the ids
    attended = torch.stack(weights)[:, :, choosing, columns].float().cpu()  # (layers, H, T, S)
    numbers = steadiest(attended.flatten(0, 1))
    heads = [divmod(number, attended.shape[1]) for number in numbers]
    chosen = torch.stack([attended[layer, head] for layer, head in heads]).mean(0)
    share = float(chosen.sum(-1).mean())
    logprobs = model.decoder.head(states[0, choosing]).float().log_softmax(-1).cpu()
    return Reading(ids, chosen / chosen.sum(-1, keepdim=True).clamp(min=1e-9), share, heads, logprobs, seconds)


@contextmanager
def noted(modules: Iterator[Any], weights: Callable[..., Tensor]) -> Iterator[list[Tensor]]:
    """While the `with` block lasts, `weights` of what goes into each of these modules, in the order of their runs."""
    found: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        found.append(weights(module, *args))

    handles = [module.register_forward_pre_hook(note) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def crossed(module: CrossAttention, x: Tensor, key: Tensor, _value: Tensor) -> Tensor:
    """The weights (H, T, S) of a cross-attention, for the arguments of its `forward` with one row."""
    query = module.split(module.query(x))
    scores: Tensor = query @ key.mT / module.head_size**0.5
    return scores[0].float().softmax(-1)


def causal(module: SelfAttention, x: Tensor, rope: Any, _cache: Any, _layer: int, mask: Tensor) -> Tensor:
    """The weights (H, T, T) of a self-attention without a cache, for the arguments of its `forward` with one row."""
    query, key, _ = module.project(x)
    query, key = rotate(query, rope), rotate(key, rope)
    key = key.repeat_interleave(
        query.shape[1] // key.shape[1], dim=1
    )  # query heads that share a key head are neighbors
    scores: Tensor = query @ key.mT / module.head_size**0.5
    return scores.float().masked_fill(~mask, -torch.inf)[0].softmax(-1)
