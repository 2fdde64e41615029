"""From logits to ids: greedy and beam search, sampling. Knows ids, logits and a cache, not audio, text or architecture.

Letters: A recordings, W width (beams for each recording), B = A * W rows, V vocabulary, t new tokens so far.

All are the same loop: the model says how likely each next token is, rules forbid some, the search chooses, the choice
goes back into the model. For one recording, greedy search is

    logits, ids = model.prefill(audio, [prompt], cache), []
    while len(ids) < max_new:
        for rule in rules: rule(logits, torch.tensor([ids]))
        token = logits.argmax(-1)                # (1,)
        if token.item() in stop: break
        ids.append(token.item())
        logits = model.step(token, cache)

The rest is about batches and other choices. Sampling draws the token, which gets out of loops that the best one falls
into. Beam search keeps the W best beginnings of each recording: the best first token need not begin the best sentence.

Unusual: `beam` finds the ids that `generate(num_beams=W, do_sample=False, early_stopping=False)` of Transformers 5.23
finds, oddities included; each is marked TRAP. Finished recordings leave once they are a quarter of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .observing import stage
from .rules import Rule
from .searching.favor import Bias, FavoredBeams, FavoredRows
from .searching.rows import Beams, Drawn, gumbel, is_in

Watch = Callable[[list[int], Tensor, Tensor, Tensor, Tensor], None]
"""watch(recordings, ids (A, N, max_new), score (A, N), length (A, N), stopped (A, N)): called after each step with what
is kept of the A recordings that are still in the batch, named by their places in `prompt`: N sequences of each, those
that go on and those that ended before or now. `length` says how many of the ids are tokens, the stop id included; a
score of -inf is an empty place. The search goes on writing into these tensors: a watcher copies what it keeps."""


class Cache(Protocol):
    """What the model remembers, one row for each sequence that it continues."""

    def fork(self, beams: int) -> None:
        """Rows A -> A * beams, in place: each row is repeated `beams` times, the copies next to each other."""

    def reorder(self, rows: Tensor) -> None:
        """rows (B,) int64: row i becomes what row rows[i] was, in place. Only slots after the prompt have to move."""

    def keep(self, recordings: Tensor) -> None:
        """recordings (M,) int64, in order: all rows of the others go, in place."""


class Model(Protocol):
    """What a search needs of a recognizer. Logits are those of the next token, in any floating-point type."""

    def new_cache(self, rows: int, capacity: int) -> Cache:
        """An empty cache for `rows` sequences of up to `capacity` tokens, prompt included."""

    def prefill(self, audio: Any, prompt: Sequence[Sequence[int]], cache: Any) -> Tensor:
        """A recordings and their prompts (the lengths may differ) -> logits (A, V). `cache`: one of `new_cache`."""

    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        """tokens (B,) int64, one more of each row -> logits (B, V)."""


@dataclass(frozen=True)
class Hypothesis:
    """What was recognized.

    ids: the new tokens, without the stop id.
    logprob: sum over `ids`, and the stop id if there is one, of log p(token | what is before it), where p is the
        softmax of the logits after the rules: what is forbidden has no share in p. The same for all searches, and for
        every temperature.
    stopped: True: a stop id ended it; False: the limit of `max_new` tokens did.
    empty: the probability that there is nothing to write: that of the stop ids as the first token.
    """

    ids: list[int]
    logprob: float
    stopped: bool
    empty: float = 0.0

    @property
    def mean_logprob(self) -> float:
        """`logprob` for each token; the stop id counts, even if the limit came first (as openai/whisper)."""
        return self.logprob / (len(self.ids) + 1)


def greedy(
    model: Model,
    audio: Any,
    prompt: Sequence[Sequence[int]],
    *,
    stop: Sequence[int],
    max_new: int | Sequence[int],
    rules: Sequence[Rule] = (),
    bias: Bias | None = None,
    watch: Watch | None = None,
) -> list[Hypothesis]:
    """The best next token, again and again, until it is a stop id or `max_new` tokens are there (a stop id counts; one
    limit for all, or one for each recording).

    `audio` goes to `model.prefill` untouched. One hypothesis for each of the A prompts. On a tie the lower id wins.
    ValueError: max_new < 1, no prompt, or a step that left no possible token.
    """
    common: dict[str, Any] = {"stop": stop, "max_new": max_new, "rules": rules, "bias": bias, "watch": watch}
    return sample(model, audio, prompt, temperature=0.0, seed=0, **common)


@stage("search")
@torch.inference_mode()
def sample(
    model: Model,
    audio: Any,
    prompt: Sequence[Sequence[int]],
    *,
    stop: Sequence[int],
    max_new: int | Sequence[int],
    temperature: float,
    seed: int,
    rules: Sequence[Rule] = (),
    best_of: int = 1,
    bias: Bias | None = None,
    watch: Watch | None = None,
) -> list[Hypothesis]:
    """Each next token is drawn from softmax(logits after the rules / temperature); temperature 0 is greedy search.

    With `best_of` > 1 so many sequences of each recording are drawn, and that with the highest `logprob / len(ids)` is
    its hypothesis, as of MaximumLikelihoodRanker in decoding.py of openai/whisper (`mean_logprob` counts the stop id,
    this doesn't). One hypothesis for each of the A prompts; prefill runs once for each. With a `bias` the draw is from
    softmax((logits + what the bias adds) / temperature), and what was earned counts as if it were in `logprob`.

    The same `seed` draws the same, on the same kind of device. A recording draws the same alone and among others,
    wherever it stands, because all recordings share their random numbers: a recording that comes twice in a batch has
    the same hypothesis twice. For another draw give another seed.

    ValueError: as for `greedy`; a temperature below 0 or not finite; best_of < 1, or > 1 at temperature 0.
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it has to be 0 (greedy search) or a finite number above")
    if best_of < 1 or best_of > 1 and temperature == 0:
        raise ValueError(f"best_of is {best_of}; it has to be at least 1, and 1 at temperature 0: all draws are alike")
    logits, cache, limits = _prefill(model, audio, prompt, max_new, best_of)
    B, V, device = *logits.shape, logits.device
    stop_ids = torch.tensor(sorted(set(stop)), dtype=torch.long, device=device)
    state = Drawn(
        ids=torch.zeros(B, max(limits), dtype=torch.long, device=device),
        length=torch.zeros(B, dtype=torch.long, device=device),
        logprob=torch.zeros(B, device=device),
        stopped=torch.zeros(B, dtype=torch.bool, device=device),
        empty=torch.zeros(B, device=device),
        limit=torch.tensor(limits, device=device).repeat_interleave(best_of),
    )
    generator = torch.Generator(device).manual_seed(seed)
    batch = list(range(len(prompt)))  # the recordings that are still in it, by their place in `prompt`
    result: list[Any] = [None] * len(prompt)
    favored = None if bias is None else FavoredRows(bias, B)

    for t in range(max(limits)):
        ids, length, logprob, stopped, empty, limit = state
        logits = logits.to(torch.float32, copy=True)  # rules write, and the model may still own its logits
        for rule in rules:
            rule(logits, ids[:, :t])
        if t == 0:
            empty += logits.softmax(-1)[:, stop_ids].sum(-1)
        noisy = logits
        if favored is not None:
            noisy = logits + favored.scores(empty if t == 0 else None)
        if temperature > 0:
            noisy = noisy + temperature * gumbel(best_of, V, generator).repeat(len(batch), 1)
        token = noisy.argmax(-1)
        chosen = logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]
        ids[:, t] = token
        over = stopped | (limit <= t)  # a finished row goes on until it leaves, and counts no more
        length += ~over
        logprob += chosen.masked_fill(over, 0.0)
        stopped |= is_in(token, stop_ids) & ~over
        if favored is not None:
            favored.follow(token, over)
        if watch is not None:
            watch(batch, *(x.view(-1, best_of, *x.shape[1:]) for x in (ids, logprob, length, stopped)))

        gone, staying = _leaving((stopped | (limit <= t + 1)).view(-1, best_of).all(1))
        for place in gone:
            drawn = [_hypothesis(*row) for row in state.rows([place], best_of).listed()]
            earned = [0.0] * best_of if favored is None else favored.earned(place, best_of)
            scores = [(h.logprob + extra) / max(1, len(h.ids)) for h, extra in zip(drawn, earned, strict=True)]
            result[batch[place]] = drawn[scores.index(max(scores))]
        if not staying:
            return result
        if gone:
            token = token.view(-1, best_of)[staying].flatten()
            batch, state = [batch[place] for place in staying], state.rows(staying, best_of)
            if favored is not None:
                favored.keep(staying, best_of)
            cache.keep(torch.tensor(staying, device=device))
        logits = _step(model, token, cache)
    raise AssertionError("a recording outlived its limit")


def _leaving(done: Tensor) -> tuple[list[int], list[int]]:
    """done (A,) -> the places of those that leave now, and of those that stay. None leave before a quarter is done."""
    flags = done.tolist()
    leaving = [place for place, end in enumerate(flags) if end]
    if 4 * len(leaving) < len(flags):
        return [], list(range(len(flags)))
    return leaving, [place for place, end in enumerate(flags) if not end]


@stage("search")
@torch.inference_mode()
def beam(
    model: Model,
    audio: Any,
    prompt: Sequence[Sequence[int]],
    *,
    stop: Sequence[int],
    max_new: int | Sequence[int],
    width: int,
    length_penalty: float = 1.0,
    rules: Sequence[Rule] = (),
    bias: Bias | None = None,
    watch: Watch | None = None,
) -> list[list[Hypothesis]]:
    """The `width` best beginnings of each recording grow together; those that end are ranked by

        score / length ** length_penalty          (above 0 favors long, below 0 short, 0 compares plain sums)

    with `length` the number of new tokens, the stop id included, the prompt not. One list for each of the A prompts,
    best first, at most `width` long (less only if fewer sequences are possible), never empty. Prefill runs once for
    each recording, whatever the width. Width 1 is greedy search, but for the choice between exactly equal tokens. With
    a `bias` what was earned counts in `score`, and not in `Hypothesis.logprob`.
    ValueError: width < 1, max_new < 1, no prompt, or a recording whose every sequence the rules forbid.
    """
    if width < 1:
        raise ValueError(f"width is {width}; a beam search needs at least 1 beam (1 is greedy search)")
    logits, cache, limits = _prefill(model, audio, prompt, max_new, width)
    A, device = len(prompt), logits.device
    stop_ids = torch.tensor(sorted(set(stop)), dtype=torch.long, device=device)

    minus_inf = torch.full((A, width), -math.inf, device=device)
    finished = Beams(  # the best so far, sorted by rank; rank -inf is an empty place
        ids=torch.zeros(A, width, max(limits), dtype=torch.long, device=device),
        score=minus_inf,
        allowed=torch.zeros_like(minus_inf),
        length=torch.zeros_like(minus_inf, dtype=torch.long),
        stopped=torch.zeros_like(minus_inf, dtype=torch.bool),
        rank=minus_inf,
    )
    # All beams begin alike, so only the first may have children at first: score -inf is a beam that does not exist.
    only_first = minus_inf.clone()
    only_first[:, 0] = 0.0
    running = finished._replace(score=only_first)
    done = torch.zeros(A, dtype=torch.bool, device=device)
    favored = None if bias is None else FavoredBeams(bias, A, width)
    limit = torch.tensor(limits, device=device)
    batch = list(range(A))  # the recordings that are still in it, by their place in `prompt`
    result: list[Any] = [None] * A

    for t in range(1, max(limits) + 1):
        # 1. How likely is each next token of each beam?
        # TRAP: the log-softmax comes before the rules and is not repeated after them, as in the reference: a beam whose
        # likely ids were forbidden loses rank. `Hypothesis.logprob` is renormalized, by way of `allowed`.
        logp = logits.float().log_softmax(-1)
        for rule in rules:
            rule(logp, running.ids.flatten(0, 1)[:, : t - 1])
        if t == 1:
            empty = logp.softmax(-1)[::width, stop_ids].sum(-1)
        A, V = len(batch), logp.shape[-1]
        allowed = running.allowed + logp.logsumexp(-1).view(A, width)
        total = running.score[..., None] + logp.view(A, width, V)
        if favored is not None:
            total += favored.scores(empty if t == 1 else None)

        # 2. The best candidates over all beams of a recording. Each beam can offer every stop id, so that
        # width * (1 + number of stop ids) candidates always hold `width` that can go on.
        score, flat = total.flatten(1).topk(width * (1 + len(stop_ids)))
        parent, token = flat // V, flat % V  # (A, N)
        candidates = running._replace(allowed=allowed).pick(parent)
        candidates.ids[..., t - 1] = token
        is_stop = is_in(token, stop_ids)
        candidates = candidates._replace(score=score, stopped=is_stop, length=candidates.length + 1)
        at_end = score
        if favored is not None:
            candidates = candidates._replace(allowed=candidates.allowed + favored.earned(flat))
            at_end = score + favored.follow(parent, token)

        # 3. Which candidates are finished, and are they among the best finished ones?
        # TRAP: a stop id counts only in one of the first `width` candidates; farther down the sequence is dropped.
        # TRAP: at the limit, sequences without a stop id are finished too and may win against stopped ones.
        ends = is_stop | (limit == t)[:, None]
        ended = ends & (torch.arange(ends.shape[1], device=device) < width) & ~done[:, None]
        rank = (at_end / t**length_penalty).masked_fill(~ended, -math.inf)
        merged = finished.join(candidates._replace(rank=rank))
        finished = merged.pick(merged.rank.topk(width).indices)

        # 4. The best candidates that go on are the next beams.
        best = score.masked_fill(ends, -math.inf).topk(width)
        running = candidates.pick(best.indices)._replace(score=best.values)
        if favored is not None:
            favored.pick(best.indices)

        # 5. A recording is done when no beam can push a finished sequence out.
        # TRAP: the reference asks whether the best beam, if it ended now at no cost, would beat the worst of `width`
        # finished sequences. With length_penalty > 0 a beam may still gain by growing: an estimate, not a bound.
        done = done | (running.score[:, 0] / t**length_penalty <= finished.rank[:, -1]) | (limit == t)
        if watch is not None:
            going_on = running._replace(score=running.score.masked_fill(done[:, None], -math.inf))
            complete = finished._replace(score=finished.score.masked_fill(finished.rank.isneginf(), -math.inf))
            kept = going_on.join(complete)
            watch(batch, kept.ids, kept.score, kept.length, kept.stopped)

        # 6. Those that are done leave; the others take over what their parents had in the cache.
        gone, staying = _leaving(done)
        for place in gone:
            result[batch[place]] = _ranked(finished, empty, place)
        if not staying:
            return result
        if width > 1:
            first_row = torch.arange(0, A * width, width, device=device)[:, None]  # of each recording
            cache.reorder((first_row + parent.take_along_dim(best.indices, 1)).flatten())
        if gone:
            batch, chosen = [batch[place] for place in staying], torch.tensor(staying, device=device)
            running, finished = (Beams(*(x[chosen] for x in beams)) for beams in (running, finished))
            done, limit, empty = done[chosen], limit[chosen], empty[chosen]
            if favored is not None:
                favored.keep(chosen)
            cache.keep(chosen)
        logits = _step(model, running.ids[..., t - 1].flatten(), cache)
    raise AssertionError("a recording outlived its limit")


def _ranked(finished: Beams, empty: Tensor, place: int) -> list[Hypothesis]:
    """The finished sequences of one recording, best first."""
    kept = finished._replace(score=finished.score - finished.allowed)
    ids, logprob, _, length, stopped, rank = (x[place].tolist() for x in kept)
    silent = float(empty[place])
    places = [n for n in range(len(rank)) if n == 0 or rank[n] > -math.inf]
    return [_hypothesis(ids[n], length[n], logprob[n], stopped[n], silent) for n in places]


def _prefill(
    model: Model, audio: Any, prompt: Sequence[Sequence[int]], max_new: int | Sequence[int], width: int
) -> tuple[Tensor, Cache, list[int]]:
    """Reads the A prompts and continues each in `width` rows -> logits (B, V) of the first new token, the cache, and
    the most new tokens of each recording."""
    if not prompt:
        raise ValueError("prompt is empty; it has to be a list with the ids of one prompt for each recording")
    limits = [max_new] * len(prompt) if isinstance(max_new, int) else list(max_new)
    if len(limits) != len(prompt) or min(limits) < 1:
        raise ValueError(f"max_new is {max_new}; expected 1 or more, for each of {len(prompt)} recordings")
    cache = model.new_cache(len(prompt), max(map(len, prompt)) + max(limits))
    logits = model.prefill(audio, prompt, cache)
    if width > 1:
        cache.fork(width)
        logits = logits.repeat_interleave(width, 0)  # (A, V) -> (B, V)
    return logits, cache, limits


@stage("step")
def _step(model: Model, tokens: Tensor, cache: Cache) -> Tensor:
    return model.step(tokens, cache)


def _hypothesis(ids: list[int], length: int, logprob: float, stopped: bool, empty: float) -> Hypothesis:
    if not math.isfinite(logprob):
        why = "the rules left no token (let them leave one in each row), or the logits are not finite (try float32)"
        raise ValueError(f"the log-probability of a result is {logprob}, not a finite number: {why}")
    return Hypothesis(ids[: length - stopped], logprob, stopped, empty)
