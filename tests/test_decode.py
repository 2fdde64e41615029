"""The searches against slow, obvious definitions: every sequence enumerated, and Transformers' `generate`."""

import itertools
import math
import random
import sys

import pytest
import torch
from helpers.devices import Waits

from glmasr import decode
from glmasr.decode import beam, greedy, sample
from glmasr.rules import Forbid, ForbidFirst

STOP = (1, 3, 4)


class History:
    """A cache that is nothing but the tokens of each row: a wrong fork or reorder changes what the model says next."""

    def __init__(self, rows, capacity):
        self.capacity = capacity
        self.beams, self.rows = 1, [None] * rows  # (recording, tokens, length of the prompt)

    def begin(self, audio, prompt):
        assert len(self.rows) == len(prompt) == len(audio)
        self.rows = [(recording, list(ids), len(ids)) for recording, ids in zip(audio, prompt, strict=True)]
        self.longest = max(map(len, prompt))

    def append(self, tokens):
        assert tokens.dtype == torch.long and tokens.shape == (len(self.rows),)
        self.rows = [(r, ids + [token], n) for (r, ids, n), token in zip(self.rows, tokens.tolist(), strict=True)]
        assert all(self.longest + len(ids) - n <= self.capacity for _, ids, n in self.rows)

    def fork(self, beams):
        self.rows, self.beams = [row for row in self.rows for _ in range(beams)], beams

    def keep(self, recordings):
        groups = [self.rows[first : first + self.beams] for first in range(0, len(self.rows), self.beams)]
        self.rows = [row for number in recordings.tolist() for row in groups[number]]

    def reorder(self, rows):
        assert rows.dtype == torch.long and rows.shape == (len(self.rows),)
        before, self.rows = self.rows, [self.rows[i] for i in rows.tolist()]
        assert [r for r, _, _ in before] == [r for r, _, _ in self.rows], "a beam went to another recording"


class Recomputing:
    """A `Model` without state: `next_logits(recording, tokens)` -> (V,)."""

    def __init__(self):
        self.prefills, self.steps, self.capacity = 0, 0, None

    def new_cache(self, rows, capacity):
        self.capacity = capacity
        return History(rows, capacity)

    def prefill(self, audio, prompt, cache):
        self.prefills += 1
        cache.begin(audio, prompt)
        return self.all_logits(cache)

    def step(self, tokens, cache):
        self.steps += 1
        cache.append(tokens)
        return self.all_logits(cache)

    def all_logits(self, cache):
        return torch.stack([self.next_logits(recording, ids) for recording, ids, _ in cache.rows])


class Markov(Recomputing):
    """Logits from a table by recording and the last two tokens; sharper with the length, or loops would tie exactly."""

    def __init__(self, seed, vocabulary=5, recordings=3, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = 2 * torch.randn(recordings, vocabulary, vocabulary, vocabulary, generator=generator)
        self.table = table.to(dtype)

    def next_logits(self, recording, ids):
        return self.table[recording, ids[-2], ids[-1]] * (1 + 0.07 * len(ids))


class Llama(Recomputing):
    """A tiny Transformers model that recomputes everything; the recording is its first token."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def all_logits(self, cache):
        return self.model(torch.tensor([ids for _, ids, _ in cache.rows])).logits[:, -1]


def close(found, expected):
    assert [(h.ids, h.stopped) for h in found] == [(h.ids, h.stopped) for h in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


def logprob_of(model, recording, prompt, tokens, forbidden=()):
    """Sum of log p of the tokens, in double precision: of the softmax before, and after, ids are forbidden."""
    ids, before, after = list(prompt), 0.0, 0.0
    for token in tokens:
        logits = model.next_logits(recording, ids).double()
        before += logits.log_softmax(-1)[token].item()
        logits = logits.clone()
        logits[list(forbidden)] = -math.inf
        after += logits.log_softmax(-1)[token].item()
        ids.append(token)
    return before, after


def every_sequence(vocabulary, stop, max_new):
    """All that a search may return: it ends with its only stop id, or has max_new tokens."""
    for length in range(1, max_new + 1):
        for tokens in itertools.product(range(vocabulary), repeat=length):
            if not set(tokens[:-1]) & set(stop) and (tokens[-1] in stop or length == max_new):
                yield tokens


# ---- greedy


def test_greedy_is_the_obvious_loop():
    for seed in range(20):
        model = Markov(seed)
        [found] = greedy(model, [1], [[0, 2]], stop=[1, 3], max_new=7)
        ids = [0, 2]
        while len(ids) < 9 and not (len(ids) > 2 and ids[-1] in (1, 3)):
            ids.append(model.next_logits(1, ids).argmax().item())
        new = ids[2:]
        assert found.stopped == (new[-1] in (1, 3))
        assert found.ids == (new[:-1] if found.stopped else new)
        assert found.logprob == pytest.approx(logprob_of(model, 1, [0, 2], new)[0], abs=1e-4)
        assert found.mean_logprob == pytest.approx(found.logprob / (len(found.ids) + 1))
        assert model.prefills == 1 and model.steps == len(new) - 1 and model.capacity == 2 + 7


def test_without_stop_ids_every_row_has_max_new_tokens():
    options = dict(stop=[], max_new=6)
    for found in [*greedy(Markov(0), [0], [[0, 2]], **options), *beam(Markov(0), [0], [[0, 2]], width=3, **options)[0]]:
        assert len(found.ids) == 6 and not found.stopped


# ---- sampling


class Table(Recomputing):
    """Logits from the last token alone, (V, V); remembers the tokens of all rows, those of the last step excepted."""

    def __init__(self, table):
        super().__init__()
        self.table, self.drawn = table, []

    def next_logits(self, recording, ids):
        return self.table[ids[-1]]

    def step(self, tokens, cache):
        self.drawn.append(tokens)
        return super().step(tokens, cache)


def assert_drawn_from(p, counts):
    """Pearson's chi-square of counts (..., n) against p (..., n), each row a distribution. Fails 1 seed in 1000."""
    possible, expected = p > 0, p * counts.sum(-1, keepdim=True)
    assert not counts[~possible].any() and expected[possible].min() > 5
    statistic = ((counts - expected) ** 2 / expected)[possible].sum().item()
    freedom = possible.sum().item() - p[..., 0].numel()
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3  # Wilson and Hilferty, 1931
    assert statistic < limit, (statistic, limit)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_softmax(temperature):
    V, forbidden = 5, 3
    model = Table(0.7 * torch.randn(V, V, generator=torch.Generator().manual_seed(0)))
    options = dict(stop=[], max_new=200, temperature=temperature, seed=1, rules=[Forbid([forbidden], V)])
    sample(model, [0], [[0]], best_of=60, **options)
    drawn = torch.stack(model.drawn)  # (steps, rows)
    counts = torch.zeros(V, V, dtype=torch.double)
    ones = torch.ones(drawn[1:].numel(), dtype=torch.double)
    counts.index_put_((drawn[:-1].flatten(), drawn[1:].flatten()), ones, accumulate=True)
    logits = model.table.double() / temperature
    logits[:, forbidden] = -math.inf
    before = [i for i in range(V) if i != forbidden]
    assert_drawn_from(logits.softmax(-1)[before], counts[before])


def test_candidates_are_drawn_independently():
    V = 4
    model = Table(torch.tensor([[0.0, 1.0, 0.5, -0.5]]).expand(V, V))
    sample(model, [0], [[0]], stop=[], max_new=2000, temperature=1.0, seed=1, best_of=2)
    first, second = torch.stack(model.drawn).T
    p = model.table[0].double().softmax(-1)
    counts = torch.bincount(first * V + second, minlength=V * V).double()
    assert_drawn_from((p[:, None] * p).flatten(), counts)


@pytest.mark.parametrize("best_of", [1, 3])
def test_a_draw_does_not_depend_on_the_rest_of_the_batch(best_of):
    prompts, different = [[0, 2], [4, 4, 0, 2], [2, 0]], 0
    for seed in range(20):
        model = Markov(seed, vocabulary=7)
        options = dict(stop=STOP, max_new=9, temperature=1.0, best_of=best_of)
        together = sample(model, [0, 1, 2], prompts, seed=seed, **options)
        close(together, [sample(model, [i], [prompts[i]], seed=seed, **options)[0] for i in range(3)])
        close([together[2], together[0]], sample(model, [2, 0], [prompts[2], prompts[0]], seed=seed, **options))
        other = sample(model, [0, 1, 2], prompts, seed=seed + 1, **options)
        different += sum(a.ids != b.ids for a, b in zip(together, other, strict=True))
    assert different > 20


def test_sampling_ends_and_counts_as_greedy_does():
    stop, ended = 1, 0
    for seed in range(30):
        model = Markov(seed)
        options = dict(stop=[stop], max_new=5, temperature=1.5, seed=seed, rules=[Forbid([0], 5)])
        [found] = sample(model, [1], [[0, 2]], **options)
        new = found.ids + [stop] * found.stopped
        assert not {0, stop} & set(found.ids) and (found.stopped or len(new) == 5)
        assert model.prefills == 1 and model.steps == len(new) - 1 and model.capacity == 2 + 5
        # the temperature has no part in it, the rules do
        assert found.logprob == pytest.approx(logprob_of(model, 1, [0, 2], new, [0])[1], abs=1e-4)
        ended += found.stopped
    assert 5 < ended < 25


def test_cold_sampling_is_greedy():
    for seed in range(30):
        arguments, options = ([0, 1, 2], [[0, 2], [4, 4, 0], [2, 0]]), dict(stop=[1, 3], max_new=8)
        expected = greedy(Markov(seed), *arguments, **options)
        assert sample(Markov(seed), *arguments, temperature=0.0, seed=seed, **options) == expected
        close(sample(Markov(seed), *arguments, temperature=1e-6, seed=seed, best_of=2, **options), expected)


def test_best_of_is_the_choice_of_openai_whisper(monkeypatch):
    ranker = pytest.importorskip("whisper.decoding").MaximumLikelihoodRanker(None)
    candidates, by_mean = [], 0
    make = decode._hypothesis
    monkeypatch.setattr(decode, "_hypothesis", lambda *row: candidates.append(make(*row)) or candidates[-1])
    options = dict(stop=[1, 3], max_new=6, temperature=1.0, rules=[ForbidFirst([1, 3], 5)])
    for seed in range(40):
        candidates.clear()
        [found] = sample(Markov(seed), [0], [[0, 2]], seed=seed, best_of=4, **options)
        [best] = ranker.rank(*([[getattr(h, name) for h in candidates]] for name in ("ids", "logprob")))
        assert len(candidates) == 4 and found == candidates[best]
        by_mean += found != max(candidates, key=lambda h: h.mean_logprob)
    assert by_mean  # the stop id's place in the length matters in these examples
    model = Table(torch.tensor([[0.0, 9.0]] * 2))
    [found] = sample(model, [0], [[0]], stop=[1], max_new=3, temperature=1.0, seed=0, best_of=3)
    assert (found.ids, found.stopped) == ([], True)  # nothing at all has a rank too


def test_no_noise_makes_an_impossible_id_possible():
    class Zeros(torch.overrides.TorchFunctionMode):
        """The worst exponential noise there is."""

        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            return result.zero_() if function is torch.Tensor.exponential_ else result

    with Zeros():
        model, rules = Table(torch.zeros(4, 4)), [Forbid([0, 3], 4)]
        [found] = sample(model, [0], [[0]], stop=[], max_new=3, temperature=1.0, seed=0, rules=rules)
    assert not {0, 3} & set(found.ids) and math.isfinite(found.logprob)


# ---- beam against enumeration


@pytest.mark.parametrize("penalty", [-0.5, 0.0, 0.6, 1.0, 1.4])
@pytest.mark.parametrize("forbidden", [(), (0, 1)])
def test_a_very_wide_beam_is_exhaustive(penalty, forbidden):
    max_new, stop, prompt = 4, (1, 3), [4, 2]
    for seed in range(4):
        model, ranked = Markov(seed), []
        for tokens in every_sequence(5, stop, max_new):
            if not set(tokens) & set(forbidden):
                score, logprob = logprob_of(model, 2, prompt, tokens, forbidden)
                ranked.append((score / len(tokens) ** penalty, tokens, logprob))
        ranked.sort(reverse=True)
        rules = [Forbid(forbidden, 5)]
        [found] = beam(
            model, [2], [prompt], stop=stop, max_new=max_new, width=5**max_new, length_penalty=penalty, rules=rules
        )
        assert len(found) == len(ranked)
        assert [tuple(h.ids) for h in found[:40]] == [t[:-1] if t[-1] in stop else t for _, t, _ in ranked[:40]]
        assert [h.logprob for h in found] == pytest.approx([logprob for _, _, logprob in ranked], abs=1e-3)


# ---- batches, widths, prefill


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_width_one_is_greedy(dtype):
    for seed in range(60):
        arguments = [0, 1, 2], [[0, 2], [4, 4, 0], [2, 0]]
        options = dict(stop=[1, 3], max_new=8)
        found = beam(Markov(seed, dtype=dtype), *arguments, width=1, length_penalty=1.4, **options)
        assert all(len(hypotheses) == 1 for hypotheses in found)
        close([best for [best] in found], greedy(Markov(seed, dtype=dtype), *arguments, **options))


@pytest.mark.parametrize("width", [1, 2, 5])
def test_batch_is_single(width):
    prompts = [[0, 2], [4, 4, 0, 2], [2, 0]]
    for seed in range(25):
        model = Markov(seed, vocabulary=7)
        options = dict(stop=STOP, max_new=9)
        together = greedy(model, [0, 1, 2], prompts, **options)
        close(together, [greedy(model, [i], [prompts[i]], **options)[0] for i in range(3)])
        for found, i in zip(beam(model, [0, 1, 2], prompts, width=width, **options), range(3), strict=True):
            close(found, beam(model, [i], [prompts[i]], width=width, **options)[0])


@pytest.mark.parametrize("width", [1, 4])
def test_one_prefill_and_no_step_too_many(width):
    model = Markov(0)
    beam(model, [0, 1], [[0, 2], [2, 2, 2]], stop=[1], max_new=6, width=width)
    assert model.prefills == 1 and model.steps <= 5 and model.capacity == 3 + 6
    for search in (greedy, beam):
        model = Markov(0)
        search(model, [0], [[0, 2]], stop=[1], max_new=1, **({"width": width} if search is beam else {}))
        assert (model.prefills, model.steps) == (1, 0)


@pytest.mark.parametrize("width", [None, "sample", 1, 4])
def test_at_most_one_wait_for_the_device_in_a_step(width, monkeypatch):
    """And when a recording leaves, one for each thing that is known of it."""
    copies, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(
        torch.Tensor, "tolist", lambda x: copies.append(sys._getframe(1).f_code.co_filename) or tolist(x)
    )
    model, options = Markov(3), dict(stop=[1, 3], max_new=6, rules=[Forbid([0], 5)])
    with Waits() as waits:
        if width is None:
            greedy(model, [0, 1], [[0, 2], [2, 2, 2]], **options)
        elif width == "sample":
            sample(model, [0, 1], [[0, 2], [2, 2, 2]], temperature=1.0, seed=0, best_of=3, **options)
        else:
            beam(model, [0, 1], [[0, 2], [2, 2, 2]], width=width, **options)
    copied = copies.count(decode.__file__) + waits.number
    assert model.steps + 1 <= copied <= model.steps + 1 + 2 * 7


def test_beam_returns_distinct_sorted_hypotheses():
    for seed in range(10):
        [found] = beam(Markov(seed), [0], [[0, 2]], stop=[1, 3], max_new=6, width=8, length_penalty=0.0)
        assert len(found) == 8 == len({(tuple(h.ids), h.logprob) for h in found})
        assert [h.logprob for h in found] == sorted((h.logprob for h in found), reverse=True)


def test_the_models_logits_are_not_written_to():
    for search in (greedy, lambda *a, **k: beam(*a, width=1, **k)):
        model = Markov(0)
        model.all_logits = lambda cache, model=model: model.table[0, 0, 2][None]
        before = model.table.clone()
        search(model, [0], [[0, 2]], stop=[1], max_new=4, rules=[Forbid([0, 1], 5)])
        assert torch.equal(model.table, before)


# ---- rules


@pytest.mark.parametrize("width", [1, 2, 5])
def test_forbidden_ids_never_come(width):
    rules = [Forbid([0, 5], 7), Forbid([4], 7)]
    for seed in range(20):
        options = dict(stop=STOP, max_new=8, rules=rules)
        [alone] = greedy(Markov(seed, 7), [0], [[0, 2]], **options)
        [beams] = beam(Markov(seed, 7), [0], [[0, 2]], width=width, **options)
        for found in [alone, *beams]:
            assert not {0, 4, 5} & set(found.ids)
            assert math.isfinite(found.logprob)
        if width == 1:
            close(beams, [alone])


def test_all_but_one_forbidden():
    only = [Forbid([i for i in range(7) if i != 6], 7)]
    for found in (
        greedy(Markov(0, 7), [0], [[0, 2]], stop=STOP, max_new=5, rules=only),
        beam(Markov(0, 7), [0], [[0, 2]], stop=STOP, max_new=5, width=4, rules=only)[0],
    ):
        [best] = found  # one sequence is possible, so there is one hypothesis, whatever the width
        assert (best.ids, best.stopped) == ([6] * 5, False)
        assert best.logprob == pytest.approx(0.0, abs=1e-4)  # what is forbidden has no share in the probability
    only = [Forbid([i for i in range(7) if i != 3], 7)]
    [[best]] = beam(Markov(0, 7), [0], [[0, 2]], stop=STOP, max_new=5, width=4, rules=only)
    assert (best.ids, best.stopped, best.mean_logprob) == ([], True, pytest.approx(0.0, abs=1e-4))


@pytest.mark.parametrize("width", [None, 1, 3])
def test_rules_see_the_new_tokens_of_their_row(width):
    seen, model = [], Markov(5, 7)
    prefill = model.prefill
    caches = []
    model.prefill = lambda audio, prompt, cache: (caches.append(cache), prefill(audio, prompt, cache))[1]

    def rule(logits, new_tokens):
        assert logits.dtype == torch.float32 and new_tokens.dtype == torch.long
        assert new_tokens.tolist() == [ids[n:] for _, ids, n in caches[0].rows]
        seen.append(new_tokens.shape[1])

    options = dict(stop=STOP, max_new=6, rules=[rule])
    if width is None:
        greedy(model, [0, 1], [[0, 2], [2, 2, 0]], **options)
    else:
        beam(model, [0, 1], [[0, 2], [2, 2, 0]], width=width, **options)
    assert seen == list(range(len(seen))) and len(seen) == model.steps + 1


def test_ids_forbidden_first_come_later():
    later = 0
    for seed in range(20):
        model, rules = Markov(seed), [ForbidFirst([0, 2], 5)]
        for found in greedy(model, [0, 1, 2], [[0, 2]] * 3, stop=[1], max_new=6, rules=rules):
            assert found.ids[:1] not in ([0], [2])
            later += bool({0, 2} & set(found.ids))
    assert later > 10


# ---- errors


def test_errors_say_what_is_wrong():
    model, options = Markov(0), dict(stop=[1], max_new=3)
    with pytest.raises(ValueError, match="width is 0"):
        beam(model, [0], [[0, 2]], width=0, **options)
    for search in (greedy, lambda *a, **k: beam(*a, width=2, **k)):
        with pytest.raises(ValueError, match="max_new is 0"):
            search(model, [0], [[0, 2]], stop=[1], max_new=0)
        with pytest.raises(ValueError, match="prompt is empty"):
            search(model, [], [], **options)
        with pytest.raises(ValueError, match="the rules left no token"):
            search(model, [0], [[0, 2]], rules=[Forbid(range(5), 5)], **options)
    assert model.prefills == 2
    model.table.fill_(math.nan)
    for search in (greedy, lambda *a, **k: beam(*a, width=2, **k)):
        with pytest.raises(ValueError, match="logits are not finite"):
            search(model, [0], [[0, 2]], **options)
    for wrong in ([-1], [5]):
        for rule in (Forbid, ForbidFirst):
            with pytest.raises(ValueError, match=f"^{rule.__name__}: .*outside 0..4"):
                rule(wrong, 5)
    for temperature in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature is"):
            sample(model, [0], [[0, 2]], temperature=temperature, seed=0, **options)
    for best_of, temperature in ((0, 1.0), (2, 0.0)):
        with pytest.raises(ValueError, match=f"best_of is {best_of}"):
            sample(model, [0], [[0, 2]], temperature=temperature, seed=0, best_of=best_of, **options)
    with pytest.raises(ValueError, match="logits are not finite"):
        sample(model, [0], [[0, 2]], temperature=1.0, seed=0, **options)


# ---- beam against Transformers


@pytest.fixture(scope="module")
def llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.4, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(40))  # makes chosen ids likely
    return model


def randomize(model, seed, likely=()):
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            weight.data.normal_(0.0, 0.4, generator=generator)
    model.lm_head.bias.data.zero_()[list(likely)] = 4.0


def generate(model, prompt, stop, max_new, **options):
    """What Transformers finds: for each returned sequence the new tokens up to, and without, the first stop id."""
    prompt = torch.tensor(prompt)
    found = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=max_new,
        eos_token_id=list(stop), pad_token_id=stop[0], **options,
    )  # fmt: skip
    rows = found[:, prompt.shape[1] :].tolist()
    return [list(itertools.takewhile(lambda token: token not in stop, row)) for row in rows]


SETTINGS = list(itertools.product((2, 5, 8), (0.6, 1.0, 1.4), (1, 3, 8, 14)))  # width, length penalty, max_new


@pytest.mark.parametrize("chunk", [0, *(pytest.param(chunk, marks=pytest.mark.slow) for chunk in (1, 2, 3))])
def test_beam_is_transformers_beam(llama, chunk):
    ended = 0
    for seed in range(chunk * 70, chunk * 70 + 70):
        width, penalty, max_new = SETTINGS[seed % len(SETTINGS)]
        pick = random.Random(seed)
        stop = pick.sample(range(40), 3)
        randomize(llama, seed, likely=stop if seed % 3 == 0 else ())  # then stop ids crowd the candidates
        prompt = [[pick.randrange(40) for _ in range(3)] for _ in range(2)]
        expected = generate(
            llama, prompt, stop, max_new,
            num_beams=width, num_return_sequences=width, length_penalty=penalty, early_stopping=False,
        )  # fmt: skip
        model = Llama(llama)
        found = beam(model, [0, 1], prompt, stop=stop, max_new=max_new, width=width, length_penalty=penalty)
        assert [h.ids for hypotheses in found for h in hypotheses] == expected, (seed, width, penalty, max_new)
        ended += sum(h.stopped for hypotheses in found for h in hypotheses)
    assert ended > 50  # the stop ids matter in these examples


def test_greedy_is_transformers_greedy(llama):
    for seed in range(30):
        randomize(llama, seed)
        found = greedy(Llama(llama), [0, 1], [[5, 6, 7], [8, 9, 10]], stop=(1, 2, 3), max_new=12)
        assert [h.ids for h in found] == generate(llama, [[5, 6, 7], [8, 9, 10]], (1, 2, 3), 12)


@pytest.mark.parametrize("width", [2, 5])
def test_forbidden_ids_are_transformers_suppressed_tokens(llama, width):
    forbidden = list(range(6, 30))
    for seed in range(20):
        randomize(llama, seed)
        expected = generate(
            llama, [[5, 31, 32]], (1, 2, 3), 8, num_beams=width, early_stopping=False, suppress_tokens=forbidden
        )
        model, rules = Llama(llama), [Forbid(forbidden, 40)]
        [found] = beam(model, [0], [[5, 31, 32]], stop=(1, 2, 3), max_new=8, width=width, rules=rules)
        assert found[0].ids == expected[0]
