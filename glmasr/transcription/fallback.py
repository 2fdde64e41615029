"""What to do with an answer that fails the checks: try again at a higher temperature, or take the window for silence.

The best tokens can fall into a loop or be a wild guess. A loop compresses well and a guess has a low log-probability,
so both can be detected without the right text. Sampling gets out of a loop, the more surely the higher the temperature.

The limits and what they mean are those of transcribe.py of openai/whisper; Radford et al. 2022, "Robust Speech
Recognition via Large-Scale Weak Supervision", section 4.5.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..decode import Hypothesis

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def fallback(
    attempt: Callable[[list[int], float], list[Hypothesis]],
    count: int,
    good: Callable[[int, Hypothesis], bool],
    temperatures: Sequence[float] = TEMPERATURES,
) -> list[tuple[Hypothesis, float]]:
    """For each of `count` recordings the first hypothesis that is good, else the last one, and its temperature.

    attempt(indices, temperature): decodes these recordings, which have no good hypothesis yet; one hypothesis for each.
        What a recording gets must not depend on which others are left: `decode.sample` draws so.
    good(index, hypothesis): whether the hypothesis of that recording will do.
    ValueError: no temperatures, count < 0, or an attempt with another number of hypotheses than indices.
    """
    if not temperatures:
        raise ValueError("temperatures is empty; at least one is needed, such as (0.0,)")
    if count < 0:
        raise ValueError(f"count is {count}; it has to be the number of recordings")
    chosen: dict[int, tuple[Hypothesis, float]] = {}
    left = list(range(count))
    for temperature in temperatures:
        if not left:
            break
        found = attempt(left, temperature)
        if len(found) != len(left):
            raise ValueError(f"an attempt gave {len(found)} hypotheses for {len(left)} recordings; one for each is due")
        chosen.update((index, (hypothesis, temperature)) for index, hypothesis in zip(left, found, strict=True))
        left = [index for index in left if not good(index, chosen[index][0])]
    return [chosen[index] for index in range(count)]


def favored(
    attempt: Callable[[list[int], float], list[Hypothesis]],
    plain: Callable[[list[int], float], list[Hypothesis]],
    count: int,
    good: Callable[[int, Hypothesis], bool],
    silent: Callable[[int, Hypothesis], bool],
    known_silent: Sequence[int],
    temperatures: Sequence[float] = TEMPERATURES,
) -> list[tuple[Hypothesis, float]]:
    """`fallback` of a search that favors something: what `attempt` finds at the first temperature, where it passes the
    checks; for all others what `fallback` finds with `plain`, which favors nothing. So no favor outlives a failed
    check, and none is shown to recordings in which nobody speaks.

    known_silent: recordings that are known to be silent before the search. The other arguments as for `fallback`.
    """
    rows = [index for index in range(count) if index not in known_silent]
    tried = zip(rows, attempt(rows, temperatures[0]), strict=True) if rows else ()
    found = {index: (one, temperatures[0]) for index, one in tried if good(index, one) and not silent(index, one)}
    left = [index for index in range(count) if index not in found]
    others = fallback(
        lambda chosen, temperature: plain([left[index] for index in chosen], temperature),
        len(left),
        lambda index, hypothesis: good(left[index], hypothesis),
        temperatures,
    )
    found |= zip(left, others, strict=True)
    return [found[index] for index in range(count)]


def compression_ratio(text: str) -> float:
    """Length of the text in UTF-8 / length after zlib; 1 to 2 for speech, far more for a text that repeats itself."""
    plain = text.encode("utf-8")
    return len(plain) / len(zlib.compress(plain))


@dataclass(frozen=True)
class Limits:
    """What an answer has to keep to.

    compression_ratio: a text that compresses better repeats itself.
    mean_logprob: tokens that are less likely on average are a guess.
    no_speech: if the model says with more than this probability that there is no speech, a guess is silence.
    tones: a text that was found in what sounds like tones has to be surer than this mean log-probability.
    """

    compression_ratio: float = 2.4
    mean_logprob: float = -1.0
    no_speech: float = 0.6
    tones: float = -0.1

    def failed_checks(self, hypothesis: Hypothesis, text: str, no_speech: float) -> tuple[str, ...]:
        """Why to try again: "repeats", "doubtful" (low confidence) or both; empty if there is no reason. `text` is that
        of the hypothesis, stripped and without times; `no_speech` is the probability of silence, 0..1.
        """
        guess = hypothesis.mean_logprob < self.mean_logprob
        if guess and no_speech > self.no_speech:
            return ()  # silence: further attempts would only guess again
        found = {"repeats": compression_ratio(text) > self.compression_ratio, "doubtful": guess}
        return tuple(name for name, holds in found.items() if holds)

    def silent(self, hypothesis: Hypothesis, no_speech: float) -> bool:
        """Whether the window is to be skipped, whatever the text: probably no speech, and the text is a guess."""
        return no_speech > self.no_speech and not hypothesis.mean_logprob > self.mean_logprob
