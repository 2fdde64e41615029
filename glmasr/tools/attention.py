"""What a text attended to in the sound, when each of its tokens was chosen.

Not observed in the search, but computed again: the answer is read once more, all of it in one pass, as for the times of
words (`alignment.reading`).

Unusual:
  - The row of a token is what was attended to when it was CHOSEN, so it is the query of the position before.
  - Most heads don't follow the sound. Those that follow it most steadily are taken, as the alignment heads of Whisper
    are; which ones is a property of the weights, so they are searched for each time.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import audio as sound
from .. import pipeline
from ..alignment.reading import read_cross, read_prompted
from ..config import SAMPLE_RATE
from ..model import EncoderDecoder
from ..transcription import clips
from ..transcription.families import RecordingState
from ..transcription.long_form import Reader
from .explain import Search


@dataclass(frozen=True)
class Reading:
    """The answer, read once more. T tokens, the end included; S columns of sound, each of `seconds`.

    ids         of the T tokens
    attention   (T, S), how much each token attends to each part of the sound; rows add up to 1, however much of
                GLM-ASR's attention is on the prompt and the text before
    heads       (layer, head) of those that were averaged, from 0
    logprobs    (T, V), of every id in place of each token, before the rules
    """

    ids: list[int]
    attention: Tensor
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
    model, answer, prompt = recognizer.model, search.result, search.prompt
    assert answer is not None
    # Which of several stop ids it was, the last step says. At a limit there is none.
    last = next((kept.ids[-1] for step in search.steps for kept in step if kept.ids[:-1] == answer.ids), None)
    end = model.config.stop[0] if last is None else last
    if isinstance(model, EncoderDecoder):
        cross_kv = model.decoder.cross_kv(recognizer.family.encode_windows([samples]))
        found = read_cross(model.decoder, prompt, answer.ids, end, cross_kv, ())
    else:
        rows = recognizer.family.embed(samples)
        tokens = torch.tensor([[*prompt, *answer.ids, end]], device=model.device)
        first = prompt.index(model.config.audio_token)
        sound_rows = slice(first, first + len(rows))
        found = read_prompted(model.decoder, model.embed(tokens, [rows]), len(prompt), sound_rows, ())
    columns = -(-len(samples) // recognizer.family.samples_per_state)  # without the padding
    ids = [*answer.ids, *([end] if answer.stopped else [])]
    attended = found.scores[:, : len(ids), :columns].softmax(-1).mean(0).cpu()
    logprobs = found.logits[: len(ids)].float().log_softmax(-1).cpu()
    return Reading(ids, attended, found.heads, logprobs, recognizer.family.samples_per_state / SAMPLE_RATE)
