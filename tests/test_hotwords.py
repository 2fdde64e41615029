"""Hotwords: the automaton against a naive count of phrases, the searches that it steers, and what may be listed."""

import json
import math
import random

import numpy as np
import pytest
import torch
from helpers.checkpoints import make_checkpoint, make_encoder_decoder, make_tokenizer

from glmasr import Options, load
from glmasr.decode import Hypothesis, beam, greedy, sample
from glmasr.errors import OptionError
from glmasr.rules import Forbid, StopLoops
from glmasr.searching.automaton import FIRST, Automaton, Borders, Spelling
from glmasr.tokenizer import Tokenizer
from glmasr.transcription import fallback, hotwords, spelling

STOP = 1


# ---- the automaton -------------------------------------------------------------------------------------------------------


def random_borders(rng, vocabulary):
    begins, ends = (np.array([rng.random() < 0.5 for _ in range(vocabulary)]) for _ in range(2))
    special = np.zeros(vocabulary, dtype=bool)
    special[STOP] = True
    begins[STOP] = ends[STOP] = False  # it is special, which is enough
    return Borders(begins, ends, special)


def random_spellings(rng, vocabulary, count, longest=4):
    ordinary = [number for number in range(vocabulary) if number != STOP]
    return [
        Spelling(
            tuple(rng.choices(ordinary, k=rng.randint(1, longest))), rng.choice([1.0, 2.0, 3.5]), rng.random() < 0.5
        )
        for _ in range(count)
    ]


def earned(spellings, borders, ids):
    """What the whole phrases in `ids` earn, counted one by one."""
    best = {}
    for one in spellings:
        if one.ids not in best or best[one.ids].bonus < one.bonus:
            best[one.ids] = one
    total = 0.0
    for phrase in best.values():
        for start in range(len(ids) - len(phrase.ids) + 1):
            end = start + len(phrase.ids)
            if tuple(ids[start:end]) != phrase.ids:
                continue
            before, after = ids[start - 1] if start else None, ids[end] if end < len(ids) else None
            at_border = before is None or borders.special[before] or borders.ends[before]
            begins = borders.begins[phrase.ids[0]] or at_border
            ends = not phrase.word or after is None or borders.special[after] or borders.begins[after]
            total += phrase.bonus * (begins and ends)
    return total


def followed(automaton, ids):
    """What the automaton adds for each of the ids, and for the end."""
    states, steps = automaton.start(1), []
    for number in ids:
        steps.append(automaton.scores(states)[0, number].item())
        states = automaton.step(states, torch.tensor([number]))
    return [*steps, automaton.final(states).item()]


@pytest.mark.parametrize("seed", range(12))
def test_what_is_earned_is_the_sum_over_whole_phrases(seed):
    rng = random.Random(seed)
    vocabulary = rng.choice([5, 7])
    borders = random_borders(rng, vocabulary)
    spellings = random_spellings(rng, vocabulary, rng.choice([1, 3, 12, 40]))
    automaton = Automaton(spellings, borders)
    for _ in range(40):
        ids = rng.choices(range(vocabulary), k=rng.randint(0, 12))
        assert sum(followed(automaton, ids)) == pytest.approx(earned(spellings, borders, ids), abs=1e-4), ids


def test_rows_and_single_tokens_agree():
    """The row of all next tokens, several states at once, and a step of candidates (A, N)."""
    rng = random.Random(3)
    borders = random_borders(rng, 6)
    automaton = Automaton(random_spellings(rng, 6, 30), borders)
    states = automaton.start(8)
    for _ in range(6):
        tokens = torch.tensor(rng.choices(range(6), k=8))
        rows = automaton.scores(states)
        alone = torch.cat([automaton.scores(state[None]) for state in states])
        assert rows.shape == (8, 6) and torch.equal(rows, alone)
        after = automaton.step(states, tokens)
        assert torch.equal(automaton.step(states.view(2, 4), tokens.view(2, 4)).flatten(), after)
        assert after.dtype == torch.long
        states = after


def plain_borders(vocabulary=9):
    """Ids below 5 begin words, all others go on in them; a word may end behind each."""
    begins = np.arange(vocabulary) < 5
    special = np.arange(vocabulary) == STOP
    return Borders(begins, np.zeros(vocabulary, dtype=bool), special)


def test_a_phrase_is_followed_before_it_is_complete_and_breaking_off_takes_all_back():
    automaton = Automaton([Spelling((2, 6, 7), 4.0, True)], plain_borders())
    first, second, third, end = followed(automaton, [2, 6, 7])
    assert first == 4 * FIRST and first + second + third == 4 and 0 < second == third and end == 0
    assert sum(followed(automaton, [2, 6])[:-1]) > 0 == sum(followed(automaton, [2, 6]))
    broken = followed(automaton, [2, 6, 8, 0])
    assert broken[2] == -(broken[0] + broken[1]) and broken[3:] == [0, 0]
    assert sum(followed(automaton, [2, 6, STOP])[:3]) == 0  # the stop id too


def test_a_phrase_begins_and_ends_with_words():
    automaton = Automaton([Spelling((6, 7), 4.0, True), Spelling((2, 7), 1.0, True)], plain_borders())
    assert sum(followed(automaton, [6, 7])) == 4  # at the beginning of the text
    assert sum(followed(automaton, [0, 6, 7])) == 0  # in a word
    assert sum(followed(automaton, [STOP, 6, 7])) == 4  # behind a time, say
    assert sum(followed(automaton, [2, 7])) == sum(followed(automaton, [8, 2, 7, 0])) == 1
    assert sum(followed(automaton, [2, 7, 8])) == 0  # the word goes on
    anywhere = Automaton([Spelling((2, 7), 1.0, False)], plain_borders())
    assert sum(followed(anywhere, [2, 7, 8])) == 1


def test_of_equal_spellings_the_best_counts():
    automaton = Automaton([Spelling((2,), 1.0, True), Spelling((2,), 3.0, True)], plain_borders())
    assert sum(followed(automaton, [2])) == 3


@pytest.mark.parametrize("spellings", [[], [Spelling((), 1.0, True)], [Spelling((9,), 1.0, True)]])
def test_no_automaton_of_nothing(spellings):
    with pytest.raises(ValueError, match="expected spellings"):
        Automaton(spellings, plain_borders())


# ---- the searches --------------------------------------------------------------------------------------------------------


class Cache:
    def __init__(self, rows, capacity):
        self.rows = torch.zeros(rows, 0, dtype=torch.long)

    def fork(self, beams):
        self.rows = self.rows.repeat_interleave(beams, 0)

    def reorder(self, rows):
        self.rows = self.rows[rows]

    def keep(self, recordings):
        width = len(self.rows) // self.recordings
        self.rows = self.rows.view(self.recordings, width, -1)[recordings].flatten(0, 1)
        self.recordings = len(recordings)


class Stub:
    """The logits follow from the last token and the recording, table (A, V, V)."""

    def __init__(self, table):
        self.table = table

    def new_cache(self, rows, capacity):
        return Cache(rows, capacity)

    def prefill(self, audio, prompt, cache):
        cache.rows = torch.tensor([[recording, ids[-1]] for recording, ids in zip(audio, prompt, strict=True)])
        cache.recordings = len(audio)
        return self.table[cache.rows[:, 0], cache.rows[:, 1]]

    def step(self, tokens, cache):
        cache.rows = torch.stack([cache.rows[:, 0], tokens], 1)
        return self.table[cache.rows[:, 0], tokens]


def random_stub(seed, vocabulary=9, recordings=3):
    generator = torch.Generator().manual_seed(seed)
    return Stub(torch.randn(recordings, vocabulary, vocabulary, generator=generator))


def logprob_of(model, recording, ids, stopped):
    total, last = 0.0, 0
    for number in [*ids, *[STOP] * stopped]:
        total += model.table[recording, last].log_softmax(-1)[number].item()
        last = number
    return total


SEARCHES = {
    "greedy": lambda *args, **more: greedy(*args, **more),
    "beam": lambda *args, **more: [found[0] for found in beam(*args, width=3, **more)],
    "sample": lambda *args, **more: sample(*args, temperature=0.7, seed=3, best_of=3, **more),
}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("seed", range(4))
def test_probabilities_are_those_of_the_model(search, seed):
    rng = random.Random(seed)
    model, borders = random_stub(seed), plain_borders()
    bias = Automaton(random_spellings(rng, 9, 6), borders)
    found = SEARCHES[search](model, [0, 1, 2], [[0]] * 3, stop=[STOP], max_new=[5, 8, 6], bias=bias)
    for recording, one in enumerate(found):
        assert one.logprob == pytest.approx(logprob_of(model, recording, one.ids, one.stopped), abs=1e-4)
        empty = model.table[recording, 0].softmax(-1)[STOP].item()
        assert one.empty == pytest.approx(empty, abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_a_wide_beam_finds_the_best_of_all_sequences(seed):
    """Wide enough to keep all: the best by the sum of log-probabilities and whole phrases, and alone as among others."""
    rng = random.Random(seed)
    vocabulary, longest = 4, 3
    model = random_stub(seed, vocabulary, 2)
    borders = Borders(np.arange(4) != 3, np.arange(4) == 2, np.arange(4) == STOP)
    spellings = random_spellings(rng, vocabulary, 4, 3)
    bias = Automaton(spellings, borders)
    options = dict(stop=[STOP], max_new=longest, bias=bias, width=vocabulary**longest, length_penalty=0.0)
    found = beam(model, [0, 1], [[0], [0]], **options)
    for recording in range(2):
        empty = model.table[recording, 0].softmax(-1)[STOP] > 0.5
        everything = [()]
        scores = {}
        for _ in range(longest):
            everything = [(*ids, number) for ids in everything for number in range(vocabulary)]
            for ids in everything:
                stopped = ids[-1] == STOP
                if STOP not in ids[:-1] and (stopped or len(ids) == longest):
                    plain = ids[: len(ids) - stopped]
                    scores[ids] = logprob_of(model, recording, plain, stopped) + earned(spellings, borders, list(ids))
        best = max(scores, key=scores.get)
        if not empty:
            assert (*found[recording][0].ids, *[STOP] * found[recording][0].stopped) == best
        [alone] = beam(model, [recording], [[0]], **options)
        assert [one.ids for one in alone] == [one.ids for one in found[recording]]


@pytest.mark.parametrize("search", SEARCHES)
def test_without_a_list_nothing_changes(search):
    model = random_stub(7)
    arguments = (model, [0, 1, 2], [[0]] * 3)
    plain = SEARCHES[search](*arguments, stop=[STOP], max_new=8)
    assert SEARCHES[search](*arguments, stop=[STOP], max_new=8, bias=None) == plain


def name_or_other():
    """After 0 it says 2 6 (a common word) rather than 3 7 (a name), then stops."""
    table = torch.full((1, 9, 9), -9.0)
    table[0, 0, [2, 3]] = torch.tensor([2.0, 1.0])
    table[0, 2, 6] = table[0, 3, 7] = table[0, 6, STOP] = table[0, 7, STOP] = 5.0
    return Stub(table)


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_a_bonus_decides_between_two_readings(search):
    arguments = dict(stop=[STOP], max_new=5)
    run = lambda **more: SEARCHES[search](name_or_other(), [0], [[0]], **arguments, **more)[0]  # noqa: E731
    assert run().ids == [2, 6]
    bias = Automaton([Spelling((3, 7), 4.0, True)], plain_borders())
    assert run(bias=bias).ids == [3, 7]
    assert run(bias=Automaton([Spelling((3, 7), 0.5, True)], plain_borders())).ids == [2, 6]  # too little
    assert run(bias=Automaton([Spelling((3, 8), 1.5, True)], plain_borders())).ids == [2, 6]  # another name
    forbidden = run(bias=bias, rules=[Forbid([7], 9)])
    assert 7 not in forbidden.ids and math.isfinite(forbidden.logprob)


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_silence_is_not_talked_into(search):
    table = torch.zeros(1, 9, 9)
    table[0, 0, STOP] = 4.0  # 0.87 of the probability
    bias = Automaton([Spelling((2,), 9.0, True)], plain_borders())
    [found] = SEARCHES[search](Stub(table), [0], [[0]], stop=[STOP], max_new=4, bias=bias)
    assert found.ids == [] and found.empty > 0.8


def test_a_loop_ends_whatever_is_listed():
    table = torch.zeros(1, 9, 9)
    table[0, :, 2] = 5.0
    bias = Automaton([Spelling((2,), 9.0, True)], plain_borders())
    [found] = greedy(Stub(table), [0], [[0]], stop=[STOP], max_new=200, bias=bias, rules=[StopLoops(STOP)])
    assert found.stopped and len(found.ids) < 60


def test_an_answer_that_fails_a_check_is_found_without_favor():
    """Each recording's answer is its own: good with favor, failed with favor, silent before it or after."""
    one = dict(logprob=-1.0, stopped=True)
    asked = []

    def attempt(name):
        def run(chosen, temperature):
            asked.append((name, chosen, temperature))
            return [Hypothesis([index, name == "favored"], **one) for index in chosen]

        return run

    found = fallback.favored(
        attempt("favored"),
        attempt("plain"),
        4,
        good=lambda index, hypothesis: index != 1 or not hypothesis.ids[1],
        silent=lambda index, hypothesis: index == 3,
        known_silent=[2],
        temperatures=(0.0, 0.4),
    )
    assert [hypothesis.ids for hypothesis, _ in found] == [[0, True], [1, False], [2, False], [3, False]]
    assert asked == [("favored", [0, 1, 3], 0.0), ("plain", [1, 2, 3], 0.0)]


# ---- what may be listed --------------------------------------------------------------------------------------------------


def test_phrases_and_weights():
    given = ["GLM-ASR", " Kowloon  Tong:2", "张小明：1.5", ("Re:Zero", 3), "GLM-ASR:0.5"]
    assert hotwords.parse(given) == (("GLM-ASR", 1.0), ("Kowloon Tong", 2.0), ("张小明", 1.5), ("Re:Zero", 3.0))
    assert hotwords.parse(hotwords.parse(given)) == hotwords.parse(given)
    assert hotwords.parse([]) == ()
    unseen = ["\ufeffKowloon\u200b Tong\x00:2", "Mün\u00adchen", "\u202aGLM-ASR\u202c"]
    assert hotwords.parse(unseen) == (("Kowloon Tong", 2.0), ("München", 1.0), ("GLM-ASR", 1.0))
    assert hotwords.parse(["نمی\u200cدانم"]) == (("نمی\u200cدانم", 1.0),)  # there it shapes the letters


@pytest.mark.parametrize(
    "given, message",
    [
        ("Kowloon", "hotwords is 'Kowloon', expected a list"),
        (3, "hotwords is 3, expected a list"),
        (["Kowloon:two"], "weight of 'Kowloon' is 'two', expected a number.*add a weight: 'Kowloon:two:1'"),
        (["Kowloon:0"], "weight of 'Kowloon' is 0.0, expected a number from 0.1 to 10"),
        (["Act 12:30"], "is 30.0, expected a number from 0.1 to 10; where the colon .* add a weight: 'Act 12:30:1'"),
        ([("Kowloon", 30)], "is 30, expected a number from 0.1 to 10$"),
        ({"Kowloon": 2}, "hotwords is {'Kowloon': 2}, expected a list .* pairs"),
        (b"Kowloon", "hotwords is b'Kowloon', expected a list"),
        (["Kowloon:nan"], "is nan, expected"),
        ([("Kowloon", "2")], "is '2', expected a number"),
        ([("Kowloon", True)], "is True, expected a number"),
        ([3], "3 is neither a phrase nor a pair"),
        ([("a", 1, 2)], "neither a phrase nor a pair"),
        ([" "], "empty phrase"),
        ([":2"], "empty phrase"),
        (["x" * 101], "has 101 characters, expected at most 100"),
        (["a"], "'a' is too short.*two letters"),
        (["张"], "too short"),
        ([f"name{n}" for n in range(10_001)], "more than 10,000 phrases"),
    ],
)
def test_what_may_not_be_listed(given, message):
    with pytest.raises(OptionError, match=message):
        hotwords.parse(given)
    with pytest.raises(OptionError, match=message):
        Options(hotwords=given).check(100)


def test_short_phrases_have_less_of_the_bonus():
    shares = [spelling._share(phrase) for phrase in ("AI", "Tong", "Kowloon", "小明", "张小明", "Kowloon Tong Road")]
    assert shares == pytest.approx([1 / 3, 2 / 3, 1, 2 / 3, 1, 1])


def test_lists_on_the_command_line(tmp_path):
    assert hotwords.read("GLM-ASR, 张小明，李四、 Kowloon Tong:2,") == hotwords.parse(
        ["GLM-ASR", "张小明", "李四", "Kowloon Tong:2"]
    )
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeff# people\n\nKowloon, Tong:2\r\n  张小明\n".encode())
    assert hotwords.read(str(file)) == (("Kowloon, Tong", 2.0), ("张小明", 1.0))
    file.write_bytes(b"Kowloon\n\xff\xfe")
    with pytest.raises(OptionError, match=r"names.txt is not UTF-8 \(line 2"):
        hotwords.read(str(file))
    file.write_bytes(b"# nothing\n")
    with pytest.raises(OptionError, match="has no phrase"):
        hotwords.read(str(file))
    assert hotwords.read("name " * 900 + "x" if False else "a b" + ", c d" * 2000) == (("a b", 1.0), ("c d", 1.0))


def test_variants():
    assert set(spelling.variants("Kowloon Tong")) == {"Kowloon Tong", "kowloon tong"}
    assert set(spelling.variants("nasa")) == {"nasa", "Nasa", "NASA"}
    assert set(spelling.variants("o'neil's bar")) == {"o'neil's bar", "O'neil's Bar"}


def test_variants_of_chinese():
    pytest.importorskip("opencc")
    assert set(spelling.variants("张小龙")) == {"张小龙", "張小龍"}
    assert set(spelling.variants("張小龍")) == {"张小龙", "張小龍"}


# ---- with a model --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(make_tokenizer())


def test_borders_of_a_vocabulary(tokenizer):
    edges = spelling.borders(tokenizer, tokenizer.size + 3)

    def of(text):
        [number] = tokenizer.encode(text)
        return bool(edges.begins[number]), bool(edges.ends[number])

    assert of("a") == of("л") == (False, False)
    assert of(" ") == of("-") == of("語") == of("가") == (True, True)
    assert edges.special[tokenizer.special["<|user|>"]] and edges.special[-3:].all()
    lead, rest = "語".encode()[:1], "語".encode()[2:]
    by_bytes = {tokenizer.token_bytes(number): number for number in range(tokenizer.size)}
    assert edges.begins[by_bytes[lead]] and not edges.begins[by_bytes[rest]] and edges.ends[by_bytes[rest]]


def test_all_that_a_tokenizer_makes_of_a_phrase(tokenizer):
    automaton = spelling.automaton((("good", 1.0), ("一二", 2.0)), tokenizer, tokenizer.size)
    bonus = spelling.BONUS
    for text, expected in {
        "good": 2 / 3,
        "a good": 2 / 3,
        "a good, b": 2 / 3,
        "一good一": 2 / 3,
        "agood": 0,
        "goods": 0,
        "goo d": 0,
        "a Good": 2 / 3 * spelling.OTHER_CASE,
        "a一二b": 4 / 3,
        "三一二一二": 8 / 3,
        "一 二": 0,
    }.items():
        ids = tokenizer.encode(text)
        assert sum(followed(automaton, ids)) == pytest.approx(bonus * expected, abs=1e-4), text


def test_special_tokens_are_no_phrase(tokenizer):
    for phrase in ("<|user|>", "good <|user|>"):
        with pytest.raises(OptionError, match="nothing that this model's vocabulary writes"):
            spelling.automaton(((phrase, 1.0),), tokenizer, tokenizer.size)


def noise(seconds=1.5, seed=0):
    generator = np.random.default_rng(seed)
    return (0.3 * generator.standard_normal(round(16000 * seconds))).astype(np.float32)


@pytest.fixture(scope="module", params=["glm-asr", "encoder-decoder"])
def recognizer(request, tmp_path_factory):
    make = make_checkpoint if request.param == "glm-asr" else make_encoder_decoder
    return load(make(tmp_path_factory.mktemp(request.param)), device="cpu", dtype="float32")


@pytest.mark.parametrize("beams", [1, 3])
def test_a_listed_word_comes_more_often(recognizer, beams):
    """These models are random: whatever is favored enough is written."""
    options = dict(sample_rate=16000, beams=beams, guards=False, max_new_tokens=12, timestamps=False)
    if "encoder" not in type(recognizer.config).__name__.lower() and beams > 1:
        options.pop("timestamps")
    plain = recognizer.transcribe(noise(), **options).text
    again = recognizer.transcribe(noise(), **options, hotwords=[]).text
    listed = recognizer.transcribe(noise(), **options, hotwords=["一二三:10"]).text
    assert plain == again and plain.count("一二三") <= listed.count("一二三")
    assert listed != plain


def test_a_phrase_that_the_model_cannot_write(recognizer):
    with pytest.raises(OptionError, match="nothing that this model's vocabulary writes"):
        recognizer.check(options=Options(hotwords=("<|endoftext|><|endoftranscript|><|user|>ab",)))


def test_lists_are_kept(recognizer):
    biases = recognizer.windows.biases
    first = biases.find(("good", "better"))
    assert biases.find((("good", 1.0), ("better", 1))) is first and biases.find(()) is None
    for n in range(6):
        biases.find((f"name {n}",))
    assert len(biases._kept) == 4 and biases.find(("good", "better")) is not first


def test_a_journal_knows_the_list():
    from glmasr.tools.journal import _list_digest

    assert _list_digest(()) == "" != _list_digest((("a b", 1.0),)) != _list_digest((("a b", 2.0),))
    assert json.dumps(_list_digest((("张小明", 1.0),)))


def test_a_folder_and_a_missing_file_are_no_names(tmp_path):
    with pytest.raises(OptionError, match="is a folder"):
        hotwords.read(str(tmp_path))
    with pytest.raises(OptionError, match="no file"):
        hotwords.read(str(tmp_path / "names.txt"))
    with pytest.raises(OptionError, match="expected names"):
        hotwords.read("")
