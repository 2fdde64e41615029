"""What Whisper does around its model, against the code of openai/whisper: the rule for times, fallback, silence."""

import importlib
import itertools
import math
import re
from types import SimpleNamespace

import pytest
import torch
from helpers.devices import Waits

from glmasr.decode import Hypothesis, beam, greedy, sample
from glmasr.rules import Forbid, TimestampRule
from glmasr.transcription.fallback import TEMPERATURES, Limits, compression_ratio, fallback

# ---- the rule for times against ApplyTimestampRules


def histories(rows, length, end, begin, vocabulary, generator):
    """New tokens (rows, length), each row with its own mixture of text, other special tokens and times; in half of the
    rows, as it must be, times don't fall."""
    bounds = torch.tensor([[0, max(1, end)], [end, begin], [begin, vocabulary]])  # first and last + 1 of each kind
    weights = torch.rand(rows, 3, generator=generator) ** 3 + 1e-3
    weights[::5, 1] = 1e-6  # hardly any special tokens
    kind = weights.multinomial(max(1, length), replacement=True, generator=generator)[:, :length]
    low, high = bounds[kind].unbind(-1)
    tokens = low + (torch.rand(rows, length, generator=generator) * (high - low)).long()
    kind = kind.clone()
    for row in range(0, rows, 2):
        times = tokens[row, kind[row] == 2]
        tokens[row, kind[row] == 2] = times.sort().values
    return tokens


def random_logits(rows, begin, vocabulary, generator):
    """Logits (rows, vocabulary) of different sharpness; times and text about equally likely; some forbidden before."""
    scale = torch.tensor([0.1, 1.0, 5.0, 30.0])[torch.randint(4, (rows, 1), generator=generator)]
    logits = scale * torch.randn(rows, vocabulary, generator=generator)
    logits[:, :begin] += torch.randn(rows, 1, generator=generator) * 3 + math.log(vocabulary - begin)
    logits += 20 * torch.randn(rows, 1, generator=generator)
    forbidden = torch.tensor([0.0, 0.0, 0.3, 0.9, 1.0])[torch.randint(5, (rows, 1), generator=generator)]
    logits.masked_fill_(torch.rand(rows, vocabulary, generator=generator) < forbidden, -math.inf)
    logits[::3] = logits[::3].bfloat16().float()  # with exact ties
    return logits


def test_the_rule_is_that_of_openai_whisper():
    decoding = pytest.importorskip("whisper.decoding")
    generator = torch.Generator().manual_seed(0)
    rows, preferred, dead = 200, 0, 0

    def number(low, high):
        return torch.randint(low, high + 1, (), generator=generator).item()

    for group in range(100):
        length, end = group % 13, number(0, 40)
        begin = end + number(1, 9)
        vocabulary = begin + number(1, 60)
        no_timestamps = begin - 1 if group % 2 else number(0, begin - 1)
        latest_first = None if group % 3 == 0 else number(0, vocabulary - begin + 2)
        tokens = histories(rows, length, end, begin, vocabulary, generator)
        prompt = torch.randint(vocabulary, (rows, number(0, 3)), generator=generator)
        logits = random_logits(rows, begin, vocabulary, generator)

        tokenizer = SimpleNamespace(timestamp_begin=begin, eot=end, no_timestamps=no_timestamps)
        expected, found = logits.clone(), logits.clone()
        theirs = decoding.ApplyTimestampRules(tokenizer, prompt.shape[1], latest_first)
        theirs.apply(expected, torch.cat([prompt, tokens], 1))
        TimestampRule(begin, end, no_timestamps, latest_first)(found, tokens)
        assert torch.equal(found, expected), (group, (found != expected).any(1).nonzero().flatten().tolist())
        none_left = (expected[:, :begin] == -math.inf).all(1)
        preferred += (none_left & (logits[:, :begin] > -math.inf).any(1)).sum().item()
        dead += (expected == -math.inf).all(1).sum().item()
    assert 3000 < preferred < 17000 and dead > 1000  # all that can happen did


def test_the_smallest_surplus_of_the_times_counts():
    """At full size, and in log-probabilities as well as logits: one time as likely as the best text, and another time
    that is less likely by a factor of up to e^15 = 3 million."""
    decoding = pytest.importorskip("whisper.decoding")
    end, begin, vocabulary = 50257, 50364, 51865
    gap = torch.arange(10, 15.5, 0.25)
    logits = torch.full((len(gap), vocabulary), -40.0)
    logits[:, 17] = logits[:, begin + 700] = 20.0
    logits[:, begin + 900] = 20.0 - gap
    tokens = torch.tensor([[begin, 5, 6]] * len(gap))
    expected, rule = logits.clone(), TimestampRule(begin, end, begin - 1)
    tokenizer = SimpleNamespace(timestamp_begin=begin, eot=end, no_timestamps=begin - 1)
    decoding.ApplyTimestampRules(tokenizer, 0, None).apply(expected, tokens)
    assert (expected[:, 17] == -math.inf).all()
    for given in (logits.clone(), logits.log_softmax(-1)):
        rule(given, tokens)
        assert torch.equal(given == -math.inf, expected == -math.inf)


# ---- the rule for times in a search

END, SOT, ZH, NO_TIMESTAMPS, BEGIN, VOCABULARY = 10, 11, 12, 13, 14, 34  # text is 0..9, times are 14..33
LATEST_FIRST = 5


class Random:
    """A `Model` whose logits have nothing to do with what it reads; in some rows times are likely, in others text."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def new_cache(self, rows, capacity):
        self.rows = self.recordings = rows
        return self

    def fork(self, beams):
        self.rows *= beams

    def reorder(self, rows):
        pass

    def keep(self, recordings):
        self.rows = self.rows // self.recordings * len(recordings)
        self.recordings = len(recordings)

    def prefill(self, audio, prompt, cache):
        logits = 2 * torch.randn(self.rows, VOCABULARY, generator=self.generator)
        logits[:, :BEGIN] += 1 + 3 * torch.randn(self.rows, 1, generator=self.generator)
        return logits

    def step(self, tokens, cache):
        return self.prefill(None, None, cache)


def searches(rules, count=300, max_new=14):
    """Hypotheses of all searches under the rules, over random logits."""
    arguments, options = (None, [[0]] * count), dict(stop=[END], max_new=max_new, rules=rules)
    found = greedy(Random(0), *arguments, **options)
    for temperature in (0.5, 1.0, 3.0):
        found += sample(Random(1), *arguments, temperature=temperature, seed=1, **options)
    found += sample(Random(2), *arguments, temperature=1.0, seed=2, best_of=3, **options)
    return found + sum(beam(Random(3), *arguments, width=3, **options), [])


def letters(ids):
    """One letter a token: T a time, x text, s another special token."""
    return "".join("T" if i >= BEGIN else "x" if i < END else "s" for i in ids)


def assert_times_hold(ids):
    """The first is within the limit; later ones never fall, and are equal only if nothing is between them."""
    places = [place for place, i in enumerate(ids) if i >= BEGIN]
    assert ids[0] <= BEGIN + LATEST_FIRST
    for a, b in itertools.pairwise(places):
        assert ids[b] >= ids[a] if b == a + 1 else ids[b] > ids[a]


def test_times_come_in_pairs_and_never_fall():
    """With the other special tokens forbidden, as they are in use. The end may come anywhere but first."""
    seen = set()
    for found in searches([Forbid([SOT, ZH], VOCABULARY), TimestampRule(BEGIN, END, NO_TIMESTAMPS, LATEST_FIRST)]):
        written = letters(found.ids)
        assert re.fullmatch("T(x+TT)*(x+T?)?", written), written
        assert_times_hold(found.ids)
        if found.stopped:
            seen.add(re.sub(".*(xTT|xT|x)$", r"\1", written))
    assert seen == {"T", "x", "xT", "xTT"}  # behind the first time, a text, a closing and an opening time the end came


def test_special_tokens_count_as_text_but_may_follow_a_closing_time():
    found = searches([TimestampRule(BEGIN, END, NO_TIMESTAMPS, LATEST_FIRST)])
    for hypothesis in found:
        written = letters(hypothesis.ids)
        assert re.fullmatch("T([xs]+T(T|(?=s)|$))*[xs]*", written), written
        assert NO_TIMESTAMPS not in hypothesis.ids
        assert_times_hold(hypothesis.ids)
    assert any("xTs" in letters(hypothesis.ids) for hypothesis in found)


def test_a_time_is_preferred_exactly_when_all_together_exceed_the_best_text():
    generator = torch.Generator().manual_seed(0)
    before = 2 * torch.randn(500, VOCABULARY, generator=generator, dtype=torch.double)
    before[:, :BEGIN] += 1
    tokens = torch.tensor([[BEGIN + 3, 5, 6]] * len(before))
    after = before.float()
    TimestampRule(BEGIN, END, NO_TIMESTAMPS)(after, tokens)
    before[:, [NO_TIMESTAMPS, *range(BEGIN, BEGIN + 4)]] = -math.inf  # all that is forbidden by this history
    p = before.softmax(-1)
    preferred = p[:, BEGIN:].sum(1) > p[:, :BEGIN].amax(1)
    assert 100 < preferred.sum() < 400
    before[preferred, :BEGIN] = -math.inf
    assert torch.equal(after == -math.inf, before == -math.inf)


@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_the_rule_never_waits_for_the_device(length):
    tokens = torch.randint(VOCABULARY, (4, length), generator=torch.Generator().manual_seed(0))
    with Waits() as waits:
        TimestampRule(BEGIN, END, NO_TIMESTAMPS, LATEST_FIRST)(torch.randn(4, VOCABULARY), tokens)
    assert waits.number == 0


def test_ids_that_cannot_be_those_of_times_are_refused():
    for begin, end, no_timestamps in ((10, 10, 9), (10, -1, 9), (10, 5, 10), (10, 5, -1)):
        with pytest.raises(ValueError, match=f"first time is {begin}, the end {end}, no_timestamps {no_timestamps}"):
            TimestampRule(begin, end, no_timestamps)
    with pytest.raises(ValueError, match="latest_first is -1"):
        TimestampRule(10, 5, 9, -1)


# ---- fallback


def test_only_what_is_not_good_is_tried_again():
    good_from = [0.0, 0.6, 0.2, 7.0]  # the temperature from which on each recording is good
    tried = []

    def attempt(indices, temperature):
        tried.append((temperature, list(indices)))
        return [Hypothesis([index], -temperature, True) for index in indices]

    def good(index, hypothesis):
        assert hypothesis.ids == [index]
        return -hypothesis.logprob >= good_from[index]

    found = fallback(attempt, 4, good)
    assert tried == [(0.0, [0, 1, 2, 3]), (0.2, [1, 2, 3]), (0.4, [1, 3]), (0.6, [1, 3]), (0.8, [3]), (1.0, [3])]
    assert found == [(Hypothesis([i], -t, True), t) for i, t in enumerate([0.0, 0.6, 0.2, 1.0])]
    assert TEMPERATURES == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

    tried.clear()
    assert [t for _, t in fallback(attempt, 3, good, [0.5, 0.6])] == [0.5, 0.6, 0.5]
    assert tried == [(0.5, [0, 1, 2]), (0.6, [1])]
    tried.clear()
    assert fallback(attempt, 0, good) == [] == tried


def test_errors_of_fallback_say_what_is_wrong():
    def attempt(indices, temperature):
        return [Hypothesis([], -1.0, True)]

    with pytest.raises(ValueError, match="temperatures is empty"):
        fallback(attempt, 1, lambda index, hypothesis: True, [])
    with pytest.raises(ValueError, match="count is -1"):
        fallback(attempt, -1, lambda index, hypothesis: True)
    with pytest.raises(ValueError, match="1 hypotheses for 2 recordings"):
        fallback(attempt, 2, lambda index, hypothesis: True)


def test_fallback_over_sampling_is_each_recording_alone():
    rules = [TimestampRule(BEGIN, END, NO_TIMESTAMPS)]

    class Fixed(Random):
        """Each recording has its own logits, which its last token turns."""

        def prefill(self, audio, prompt, cache):
            self.audio = torch.tensor(audio)
            return self.step(self.audio, cache)

        def keep(self, recordings):
            self.audio = self.audio[recordings]

        def step(self, tokens, cache):
            logits = torch.randn(50, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0))
            return 2 * logits[self.audio, tokens]

    def attempt(indices, temperature):
        options = dict(stop=[END], max_new=8, temperature=temperature, seed=3, rules=rules)
        return sample(Fixed(0), indices, [[0]] * len(indices), **options)

    def good(index, hypothesis):
        return sum(hypothesis.ids) % 3 == 0

    together = fallback(attempt, 30, good)
    assert len({temperature for _, temperature in together}) > 3
    for index, (hypothesis, temperature) in enumerate(together):
        alone = fallback(lambda _, t, index=index: attempt([index], t), 1, lambda _, h, index=index: good(index, h))
        assert alone[0][0].ids == hypothesis.ids and alone[0][1] == temperature


# ---- limits against transcribe.py

TEXTS = ["", "a", "three one four one five", "五五五五零一三六", "na " * 9, "na " * 60, "那" * 40, "\U0001f3b5 é\0"]


def test_compression_ratio_is_that_of_openai_whisper():
    utils = pytest.importorskip("whisper.utils")
    for text in TEXTS:
        assert compression_ratio(text) == utils.compression_ratio(text)


def test_limits_decide_as_openai_whisper_does(monkeypatch):
    """Its `transcribe` on one window, with a model that gives the same answer at each temperature: it asks once if the
    answer is good, and writes no segment if it is silent."""
    DecodingResult = pytest.importorskip("whisper").DecodingResult
    module = importlib.import_module("whisper.transcribe")  # in the package a function of the same name hides it
    monkeypatch.setattr(module, "log_mel_spectrogram", lambda *args, **options: torch.zeros(80, 6000))

    class Answers:
        dims, is_multilingual, num_languages = SimpleNamespace(n_audio_ctx=1500, n_text_ctx=448, n_mels=80), False, 99
        device = torch.device("cpu")

        def decode(self, segment, options):
            self.asked += 1
            return DecodingResult(
                audio_features=None, language="en", tokens=[1000, 1001], text=self.text,
                temperature=options.temperature, avg_logprob=self.mean, no_speech_prob=self.no_speech,
                compression_ratio=compression_ratio(self.text),
            )  # fmt: skip

    model, seen = Answers(), set()
    for limits in (Limits(), Limits(compression_ratio(TEXTS[5]), -0.5, 0.2)):
        means = [limits.mean_logprob + d for d in (-0.3, 0.0, 0.3)]
        no_speeches = [limits.no_speech + d for d in (-0.1, 0.0, 0.1)]
        for model.text, model.mean, model.no_speech in itertools.product(TEXTS[2:6:3], means, no_speeches):
            model.asked = 0
            result = module.transcribe(
                model, torch.zeros(16000), temperature=(0.0, 0.2), fp16=False, condition_on_previous_text=False,
                compression_ratio_threshold=limits.compression_ratio, logprob_threshold=limits.mean_logprob,
                no_speech_threshold=limits.no_speech, verbose=None,
            )  # fmt: skip
            hypothesis = Hypothesis([0], 2 * model.mean, True)
            case = (model.text, model.mean, model.no_speech)
            assert (not limits.failed_checks(hypothesis, model.text, model.no_speech)) == (model.asked == 1), case
            assert limits.silent(hypothesis, model.no_speech) == (not result["segments"]), case
            seen.add((model.asked == 1, not result["segments"]))
    assert seen == set(itertools.product((True, False), repeat=2))
    assert (Limits().compression_ratio, Limits().mean_logprob, Limits().no_speech) == (2.4, -1.0, 0.6)
