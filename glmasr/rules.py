"""Rules of a search: which token may come next, and when a hypothesis has to end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

Rule = Callable[[Tensor, Tensor], None]
"""rule(logits (B, V) float32, new_tokens (B, t) int64): change the logits in place, -inf forbids an id.

A rule sees new tokens only, never the prompt. Logits are defined up to a constant for each row (`beam` passes
log-probabilities): a rule may compare ids of a row with each other, and has to leave at least one of them possible."""


# ---- forbidden ids ---------------------------------------------------------------------------------------------------


class Forbid:
    """Rule: these ids never come. `device` is that of the logits. ValueError for an id outside the vocabulary."""

    def __init__(self, ids: Sequence[int], vocabulary: int, device: torch.device | str | None = None):
        if wrong := [i for i in ids if not 0 <= i < vocabulary]:
            name = type(self).__name__
            raise ValueError(f"{name}: ids {wrong} are outside 0..{vocabulary - 1}; forbid ids of this vocabulary only")
        self.mask = torch.zeros(vocabulary, dtype=torch.bool)
        self.mask[list(ids)] = True
        self.mask = self.mask.to(device)

    def __call__(self, logits: Tensor, new_tokens: Tensor) -> None:
        """Sets the logits (B, V) of the ids to -inf, in place."""
        logits.masked_fill_(self.mask, -math.inf)


class ForbidFirst(Forbid):
    """Rule: these ids are not the first new token (`begin_suppress_tokens` of Whisper). Arguments as for `Forbid`."""

    def __call__(self, logits: Tensor, new_tokens: Tensor) -> None:
        """As `Forbid` while `new_tokens` (B, t) is empty; no change later on."""
        if new_tokens.shape[1] == 0:
            super().__call__(logits, new_tokens)


# ---- times -----------------------------------------------------------------------------------------------------------


class TimestampRule:
    """Rule: a Whisper-like model writes times around its sentences, `<|0.00|> text <|2.40|><|2.40|> text <|5.00|> end`.

    Ids below `end` are text, `end` and the other special tokens lie between text and `begin`, and all ids from `begin`
    (that of <|0.00|>) on are times, 0.02 s apart.

    - The first token is a time, at most `latest_first` steps after <|0.00|>; None is no limit. It opens a sentence.
    - Times come in pairs: after an opening time no second time; after a closing time, which is one that follows
      something else than a time, no text, but the time that opens the next sentence.
    - Times never fall, and a closing time is later than its opening one.
    - A time is preferred: where all times together are more likely than the best other token, it has to be a time.
    - `no_timestamps`, which says that no times are wanted, never comes.

    Not guaranteed: special tokens count as what is not a time, so one between two times makes the second a closing one;
    and `end` may come anywhere but first, after an opening time and after text too.

    Has to be the last of the rules, for it weighs what the others have left. Equal to `ApplyTimestampRules` in
    decoding.py of openai/whisper; Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision",
    section 4.5. ValueError for ids that do not lie so.
    """

    def __init__(self, begin: int, end: int, no_timestamps: int, latest_first: int | None = None):
        if not (0 <= end < begin and 0 <= no_timestamps < begin):
            raise ValueError(
                f"TimestampRule: the first time is {begin}, the end {end}, no_timestamps {no_timestamps}; "
                "both have to be ids below the first time"
            )
        if latest_first is not None and latest_first < 0:
            raise ValueError(f"TimestampRule: latest_first is {latest_first}, expected a number of steps, or None")
        self.begin, self.end, self.no_timestamps, self.latest_first = begin, end, no_timestamps, latest_first

    def __call__(self, logits: Tensor, new_tokens: Tensor) -> None:
        """Sets logits (B, V) to -inf in place, by the new tokens (B, t) of each row; no loop over rows."""
        other, times = logits[:, : self.begin], logits[:, self.begin :]
        if new_tokens.shape[1] == 0:
            other.fill_(-math.inf)
            if self.latest_first is not None:
                times[:, self.latest_first + 1 :].fill_(-math.inf)
            return

        is_time = pad(new_tokens >= self.begin, (1, 0), value=True)  # (B, 1 + t), as if a time came before the first
        before, last = is_time[:, -2:-1], is_time[:, -1:]  # (B, 1)
        opening, closing = last & before, last & ~before

        # The latest time; in a row without one, some token below `begin`, which forbids no time.
        place = torch.arange(1, is_time.shape[1], device=logits.device)
        latest = new_tokens.gather(1, (is_time[:, 1:] * place).argmax(-1, keepdim=True))
        earliest = latest + ~closing - self.begin  # only after a closing time the same may come again
        step = torch.arange(times.shape[1], device=logits.device)

        other[:, self.no_timestamps].fill_(-math.inf)
        other[:, : self.end].masked_fill_(closing, -math.inf)
        times.masked_fill_(opening | (step < earliest), -math.inf)

        # What is added to all logits of a row is added to both sides, so they compare as log-probabilities do: no
        # log-softmax is needed.
        # TRAP: subtract first. `logsumexp(times) > best` rounds a small surplus away where one time is as likely as the
        # best text, and bfloat16 has so few numbers that this happens.
        best = other.amax(-1, keepdim=True)
        other.masked_fill_((times - best).logsumexp(-1, keepdim=True) > 0, -math.inf)


# ---- texts that go into a loop ---------------------------------------------------------------------------------------

LONGEST_PERIOD = 30  # tokens; a longer text that comes again and again is found by how well it compresses
REPEATED = 24  # tokens at least, and four periods: no word is said so often; twelve equal digits are possible


class StopLoops:
    """Rule: a text that has gone into a loop ends there. Has to come after the other rules, for it overrules them.

    Where nothing loops it changes nothing.
    """

    def __init__(self, stop: int):
        self.stop = stop

    def __call__(self, logits: Tensor, new_tokens: Tensor) -> None:
        """In rows whose new tokens (B, t) loop, `stop` gets logit 0 and all others -inf."""
        if new_tokens.shape[1] >= REPEATED:
            looping = _looping(new_tokens)
            logits.masked_fill_(looping[:, None], -math.inf)
            logits[:, self.stop] = logits[:, self.stop].masked_fill(looping, 0.0)


def loops(ids: Sequence[int]) -> bool:
    """Whether the end of `ids` is one sequence of at most 30 tokens again and again: `StopLoops` would stop there."""
    return bool(_looping(torch.tensor([ids], dtype=torch.long))[0]) if ids else False


def _looping(tokens: Tensor) -> Tensor:
    """tokens (B, t) -> bool (B,): for a period of P tokens, whether the last max(24, 4 P) repeat those P before them.

    Of the first P of them nothing is asked, so that max(24, 4 P) - P are compared. All periods at once, without a copy
    to the host, as a rule runs at each token.
    """
    longest = 3 * LONGEST_PERIOD  # tokens that are compared at most
    tokens = tokens[:, -(longest + LONGEST_PERIOD) :]
    # No token is -1: what is too short has no loop.
    tokens = pad(tokens, (longest + LONGEST_PERIOD - tokens.shape[1], 0), value=-1)
    shifted = tokens.unfold(1, longest, 1)  # (B, 31, 90): row 30 - P ends P tokens before the end
    agree = shifted[:, :-1] == shifted[:, -1:]
    run = agree.flip(-1).cumprod(-1).sum(-1)  # (B, 30) how many tokens, from the last one back, agree with those before
    period = torch.arange(LONGEST_PERIOD, 0, -1, device=tokens.device)
    return (run >= (4 * period).clamp(min=REPEATED) - period).any(-1)
