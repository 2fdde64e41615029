"""Rules of a search: which token may come next, and when a hypothesis has to end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

Rule = Callable[[Tensor, Tensor], None]


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
        logits.masked_fill_(self.mask, -math.inf)


class ForbidFirst(Forbid):
    """Rule: these ids are not the first new token (`begin_suppress_tokens` of Whisper). Arguments as for `Forbid`."""

    def __call__(self, logits: Tensor, new_tokens: Tensor) -> None:
        if new_tokens.shape[1] == 0:
            super().__call__(logits, new_tokens)


class TimestampRule:
    """Rule: a Whisper-like model writes times around its sentences, `<|0.00|> text <|2.40|><|2.40|> text <|5.00|> end`.

    Ids below `end` are text, `end` and the other special tokens lie between text and `begin`, and all ids from `begin`
    (that of <|0.00|>) on are times, 0.02 s apart.

    - The first token is a time, at most `latest_first` steps after <|0.00|>; None is no limit. It opens a sentence.
    - Times come in pairs: behind an opening time no second time; behind a closing time, which is one that follows
      something else than a time, no text, but the time that opens the next sentence.
    - Times never fall, and a closing time is later than its opening one.
    - A time is preferred: where all times together are more likely than the best other token, it has to be a time.
    - `no_timestamps`, which says that no times are wanted, never comes.

    Not guaranteed: special tokens count as what is not a time, so one between two times makes the second a closing one;
    and `end` may come anywhere but first, behind an opening time and behind text too.

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
        earliest = latest + ~closing - self.begin  # only behind a closing time the same may come again
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


LONGEST_PERIOD = 30             # tokens; a longer text that comes again and again is found by how well it compresses
REPEATED = 24                   # tokens at least, and four periods: nobody says one word so often; twelve equal digits are possible


def _repeated(period: int) -> int:
    """How many tokens have to agree with the one `period` before them for a loop."""
    return max(REPEATED, 4 * period) - period


def loops(ids: Sequence[int]) -> bool:
    """Whether the end of `ids` is one sequence of at most 30 tokens again and again: `StopLoops` would stop there."""
    return bool(_looping(torch.tensor([ids], dtype=torch.long))[0]) if ids else False


@cache
def _grid(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For all periods at once, as a rule runs at each token: the places (N,) of the last N tokens among N + LONGEST_PERIOD, for each
    period the places before them (P, N), and which of them it doesn't ask for (P, N)."""
    periods = torch.arange(1, LONGEST_PERIOD + 1, device=device)[:, None]
    counts = torch.tensor([_repeated(period) for period in range(1, LONGEST_PERIOD + 1)], device=device)[:, None]
    size = _repeated(LONGEST_PERIOD)
    last = torch.arange(LONGEST_PERIOD, LONGEST_PERIOD + size, device=device)
    return last, last - periods, last < LONGEST_PERIOD + size - counts


def _looping(tokens: Tensor) -> Tensor:
    """tokens (B, t) -> bool (B,)."""
    last, before, free = _grid(tokens.device)
    size = len(last) + LONGEST_PERIOD
    tokens = pad(tokens[:, -size:], (max(0, size - tokens.shape[1]), 0), value=-1)     # no token is -1: what is too short has no loop
    return ((tokens[:, None, last] == tokens[:, before]) | free).all(-1).any(-1)


class StopLoops:
    """Rule: a text that has gone into a loop ends there. Has to come behind the other rules, for it overrules them.

    Where nothing loops it changes nothing.
    """

    def __init__(self, stop: int):
        self.stop = stop

    def __call__(self, logits: Tensor, new_tokens: Tensor) -> None:
        if new_tokens.shape[1] >= REPEATED:
            _end(logits, _looping(new_tokens), self.stop)


def _end(logits: Tensor, rows: Tensor, stop: int) -> None:
    """Leaves nothing but the stop id in some rows."""
    logits.masked_fill_(rows[:, None], -math.inf)
    logits[:, stop] = logits[:, stop].masked_fill(rows, 0.0)
