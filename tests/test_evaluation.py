"""What counts as an error, and which differences may be chance: without a model. The command: test_evaluation_command."""

import itertools
import random
import sys

import numpy as np
import pytest

from glmasr.errors import OptionError
from glmasr.evaluation import scoring, significance
from glmasr.evaluation.scoring import Errors, Score, ScoringError, characters, units, words

jiwer = pytest.importorskip("jiwer", reason="needs the extra [eval]")
pytest.importorskip("whisper_normalizer", reason="needs the extra [eval]")

# ---- what counts of a text -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, language, by_word, by_character",
    [
        ("打开 iPhone，好吗？", "zh", ["打", "开", "iphone", "好", "吗"], list("打开iphone好吗")),
        ("臺灣，２０26 年 ＯＫ！", "zh", [*"台湾二零二六年", "ok"], list("台湾二零二六年ok")),
        ("佢哋話：「冇」。", "yue", list("佢哋话冇"), list("佢哋话冇")),
        ("Mr. Brown's colour isn't TWENTY-one!", "en", "mister brown is color is not 21".split(), None),
        ("C'est déjà l'été.", "fr", ["c", "est", "déjà", "l", "été"], list("c est déjà l été")),
        ("今日は、OK！", "ja", list("今日はok"), list("今日はok")),
        ("[noise] (laughs) um", "en", [], []),
        ("，。！", "zh", [], []),
        ("", "en", [], []),
        ("", "und", [], []),
    ],
)
def test_what_counts(text, language, by_word, by_character):
    assert words(text, language) == by_word
    assert characters(text, language) == (list(" ".join(by_word)) if by_character is None else by_character)
    assert units(text, language) == (words if language in ("en", "fr", "und") else characters)(text, language)


@pytest.mark.parametrize(
    "said, found, language, by_word, by_character",
    [
        ("the cat sat", "the bat sat down", "en", Errors(1, 0, 1, 3), Errors(1, 0, 5, 11)),
        ("the cat sat", "", "en", Errors(0, 3, 0, 3), Errors(0, 11, 0, 11)),
        ("", "thank you", "en", Errors(0, 0, 2, 0), Errors(0, 0, 9, 0)),
        ("", "", "zh", Errors(), Errors()),
        ("打开音乐", "打音乐吧", "zh", Errors(0, 1, 1, 4), Errors(0, 1, 1, 4)),
        ("用 iPhone 打", "用 iPhones 打", "zh", Errors(1, 0, 0, 3), Errors(0, 0, 1, 8)),
        ("二十 10", "20 一零", "zh", Errors(1, 0, 0, 4), Errors(1, 0, 0, 4)),  # digits are read one by one
    ],
)
def test_errors_by_hand(said, found, language, by_word, by_character):
    score = Score.of(found, said, language)
    assert (score.words, score.characters) == (by_word, by_character)
    assert Errors.of(found, said, language) == (by_character if language == "zh" else by_word)


@pytest.mark.parametrize("language", ["en", "fr", "zh", "ja"])
def test_counts_and_rates_are_those_of_jiwer(language):
    """Of the normalized texts; the pairs are both texts again, unit by unit."""
    letters = {"zh": "一二三 四五a b", "ja": "今日は x"}.get(language, "abc de")
    source = random.Random(1)
    for _ in range(150):
        said, found = ("".join(source.choices(letters, k=source.randrange(1, 15))) for _ in range(2))
        score = Score.of(found, said, language)
        assert [one for one, _ in score.pairs if one is not None] == units(said, language)
        assert [other for _, other in score.pairs if other is not None] == units(found, language)
        assert Errors.among(score.pairs) == Errors.of(found, said, language)
        if said.strip():
            texts = [" ".join(words(text, language)) for text in (said, found)]
            assert score.words.rate == pytest.approx(jiwer.wer(*texts))
            joiner = "" if language in ("zh", "ja") else " "
            texts = [joiner.join(words(text, language)) for text in (said, found)]
            assert score.characters.rate == pytest.approx(jiwer.cer(*texts))


def test_the_normalizer_is_that_of_openai():
    """But for four words, which whisper-normalizer 0.1.10 and later write out."""
    theirs = pytest.importorskip("whisper.normalizers")
    some = [
        "Mr. Smith's 2nd colour-TV cost $20 million, isn't it?",
        "He'd've gone (laughs) to St. John's [noise] at one oh one",
        "twenty twenty-one, 1,000.50 € and 50 per cent; three and a half",
        "I won't; they can't. Let's analyse the organisation's centre!",
        "Uh, hmm, double seven triple 0 — naïve café ½ ³",
        "",
    ]
    for text in some:
        assert words(text, "en") == theirs.EnglishTextNormalizer()(text).split()
        assert words(text, "de") == theirs.BasicTextNormalizer()(text).split()
        assert words(text, "th") == theirs.BasicTextNormalizer(split_letters=True)(text).split()
    assert words("kinda sorta dunno cause", "en") == "kind of sort of do not know because".split()


def test_a_text_that_cannot_be_normalized_is_an_error():
    for text in ("1" * 5000, "<" * 50_000, "[a" * 20_000):
        with pytest.raises(ScoringError, match="normalized"):
            Score.of(text, "one", "en")
    assert words("[noise] well " * 2000, "en") == ["well"] * 2000  # as an hour may have it


@pytest.mark.parametrize("module, name", scoring.PACKAGES.items())
def test_a_missing_package_is_named_with_the_extra(monkeypatch, module, name):
    scoring.check_extra()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OptionError, match=rf"{name}.*\[eval\]"):
        scoring.check_extra()


# ---- chance ----------------------------------------------------------------------------------------------------------


def test_an_interval_is_the_same_each_time_whatever_the_order():
    source = np.random.default_rng(3)
    wrong, count, groups = source.integers(0, 5, 60), source.integers(5, 20, 60), [f"s{n % 12}" for n in range(60)]
    order = source.permutation(60)
    first = significance.interval(wrong, count, groups)
    assert first == significance.interval(wrong, count, groups)
    assert first == significance.interval(wrong[order], count[order], [groups[n] for n in order])
    assert first[0] < 100 * wrong.sum() / count.sum() < first[1]


def test_an_interval_has_the_truth_95_times_of_100():
    """Clips of a speaker are alike: an interval over clips would have it far less often. With 30 speakers a bootstrap is
    a little too narrow, and 150 tries are off by up to 5 points."""
    source = np.random.default_rng(4)
    within = alone = 0
    for number in range(150):
        rates = source.beta(2, 18, 30)  # of speakers; their mean is a tenth
        wrong, count = source.binomial(20, np.repeat(rates, 5)), np.full(150, 20)
        low, high = significance.interval(wrong, count, [f"s{n // 5}" for n in range(150)])
        within += low <= 10 <= high
        if number < 40:
            low, high = significance.interval(wrong, count, [f"c{n}" for n in range(150)])
            alone += low <= 10 <= high
    assert 0.88 <= within / 150 <= 0.99 and alone / 40 < 0.85


def test_of_many_alike_an_interval_is_1_96_deviations_wide():
    wrong = np.random.default_rng(8).integers(0, 5, 300)
    low, high = significance.interval(wrong, np.full(300, 10), [str(n) for n in range(300)])
    wide = 1.96 * 10 * wrong.std() / 300**0.5
    assert (low, high) == pytest.approx((10 * wrong.mean() - wide, 10 * wrong.mean() + wide), abs=0.05 * wide)


def test_draws_without_words_say_nothing():
    low, high = significance.interval(np.array([1, 3]), np.array([10, 0]), ["a", "b"])
    assert low == 10 and high > 39  # a, and a with b: never b alone, of whom there is no rate
    assert np.isnan(significance.interval(np.array([1, 1]), np.array([0, 0]), ["a", "b"])).all()


def test_exchanges_are_all_tried():
    """By the definition, for few speakers."""
    source = np.random.default_rng(5)
    for count in (1, 2, 5, 9):
        differences = source.integers(-4, 5, count)
        sums = [
            sum(sign * one for sign, one in zip(signs, differences))
            for signs in itertools.product((1, -1), repeat=count)
        ]
        expected = np.mean([abs(one) >= abs(differences.sum()) for one in sums])
        assert significance.exchanged(differences, [str(n) for n in range(count)]) == expected
    assert significance.exchanged(np.zeros(3), ["a", "b", "c"]) == 1
    assert significance.exchanged(np.array([2, 1, 5]), ["a"] * 3) == 1  # of one speaker nothing is known about others


def test_a_difference_is_as_likely_the_other_way_round():
    source = np.random.default_rng(6)
    for count in (5, 12, 40):
        differences, groups = source.integers(-3, 6, count), [str(n) for n in range(count)]
        assert significance.exchanged(differences, groups) == significance.exchanged(-differences, groups)
        drawn = significance.interval(differences, np.full(count, 10), groups)
        again = significance.interval(-differences, np.full(count, 10), groups)
        assert drawn == pytest.approx((-again[1], -again[0]))


def test_chance_is_seldom_called_significant():
    """Of models that are alike at most 5 of 100 pairs, also with few speakers; an interval alone would say it of many
    more. 400 tries are off by up to 3 points."""
    source = np.random.default_rng(7)
    for speakers, limit in ((5, 0.0), (8, 0.08), (30, 0.08)):
        significant = outside = 0
        for _ in range(400 if speakers < 30 else 100):
            differences, groups = np.round(source.normal(0, 10, speakers)), [str(n) for n in range(speakers)]
            significant += significance.exchanged(differences, groups) <= 0.05
            if speakers == 5:
                low, high = significance.interval(differences, np.full(5, 100), groups)
                outside += low > 0 or high < 0
        assert significant / (400 if speakers < 30 else 100) <= limit
        assert outside == 0 or outside / 400 > 0.1
    assert significance.exchanged(np.full(30, 3), [str(n) for n in range(30)]) < 0.001  # and a real one is found
