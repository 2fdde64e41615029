"""What benchmarks/adapt.py takes for training and for its tests, and how it judges."""

import random
import sys
from pathlib import Path

import pytest
from helpers import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import adapt  # noqa: E402
import domains  # noqa: E402
from adapt import Change, Person  # noqa: E402


def people(**texts: tuple[str, ...]) -> list[Person]:
    """Speaker -> what he says."""
    return [
        Person(f"{name}-{number}.wav", "zh" if name == "chen" else "en", text, name)
        for name, some in texts.items()
        for number, text in enumerate(some)
    ]


ROWS = people(
    ann=("Ask her to bring these things.", "One."),
    bob=("Two.", "Ask her, to bring these things"),
    cid=("Three.", "one"),
    dora=("Four.",),
    chen=("四",),
)


def test_people_and_texts_of_the_parts_differ():
    parts = adapt.split(ROWS, ["ann"], ["bob"], [])
    assert [row.text for row in parts.train] == ["Ask her to bring these things.", "One."]
    assert [row.text for row in parts.test] == ["Two."]  # the other text was trained on
    assert [row.text for row in parts.untouched] == ["Three.", "Four.", "四"]
    assert [row.speaker for row in adapt.split(ROWS, ["ann"], ["bob"], ["dora"]).untouched] == ["dora"]


@pytest.mark.parametrize(
    "lists, message",
    [
        ((["eve"], ["bob"], []), "eve: no clip of the manifest is of such a speaker; expected some of ann, bob, "),
        ((["ann"], ["bob", "ann"], []), "ann: expected each speaker in one part only"),
        ((["ann"], ["bob"], ["bob"]), "bob: expected each speaker in one part only"),
    ],
)
def test_speakers_that_cannot_be(lists, message):
    with pytest.raises(adapt.UsageError, match=f"^{message}"):
        adapt.split(ROWS, *lists)


def test_a_manifest_that_cannot_be_read(tmp_path: Path):
    path = tmp_path / "some.tsv"
    path.write_text("path\ttext\na.wav\tone\n", encoding="utf-8")
    with pytest.raises(
        adapt.UsageError, match="expected a table with tabs and a header: path, language, text, speaker"
    ):
        adapt.read(path)
    path.write_text("path\tlanguage\ttext\tspeaker\na.wav\ten\tLOUD WORDS\tann\n", encoding="utf-8")
    assert adapt.read(path) == [Person(str(tmp_path / "a.wav"), "en", "loud words", "ann")]


@pytest.mark.parametrize("name", domains.DOMAINS)
def test_sentences_of_a_domain(name):
    domain = domains.DOMAINS[name]
    assert not set(domain.train) & set(domain.test) and not set(domain.flite[0]) & set(domain.flite[1])
    tested = domains.sentences(domain, True, random.Random("test"), adapt.TESTED)
    assert len(set(tested)) == adapt.TESTED
    said = {}
    for seed in (1, 2):
        learned, judged = said[seed] = adapt.texts_of(domain, seed)
        assert (len(learned), len(judged)) == (adapt.MOST, adapt.judges(adapt.MOST))
        assert not set(learned) & {*judged, *tested} and not set(judged) & set(tested)
        for some in (learned[:100], tested):  # every term is learned and tested
            assert all(any(term in text for text in some) for term in domain.terms)
    assert said[1] != said[2] and said[1] == adapt.texts_of(domain, 1)


def test_domains_have_nothing_in_common():
    one, two = domains.DOMAINS.values()
    assert not set(one.terms) & set(two.terms) and not {*one.train, *one.test} & {*two.train, *two.test}


def test_every_fourth_clip_is_of_a_person():
    assert adapt.mixed(["a", "b", "c", "d", "e", "f"], ["X", "Y"], 8) == ["a", "b", "c", "X", "d", "e", "f", "Y"]
    assert adapt.mixed(["a", "b", "c", "d", "e"], ["X"], 6) == ["a", "b", "c", "X", "d", "e"]


def lines(*wrong: int, count: int = 100) -> list[dict]:
    """Of one speaker for each clip."""
    return [{"wrong": one, "count": count, "speaker": str(number)} for number, one in enumerate(wrong)]


def test_changes():
    change = Change.of(lines(30, 60), lines(10, 20))
    assert (change.before, change.after, change.wrong_before, change.wrong_after) == (45.0, 15.0, 90, 30)
    assert change.count == 200 and change.points == -30 and change.fall == pytest.approx(2 / 3)
    assert Change.of(lines(0), lines(1)).fall == 0  # of no errors none can go
    low, high = adapt.interval(lines(30, 60), lines(10, 20))
    assert (low, high) == (-40, -20)


def verdicts(after: list[int], untouched: list[int]) -> list[bool]:
    """Of seeds that begin with 300 errors of 1000 in the domain, and with 50 of 1000 elsewhere."""
    domain = [Change.of(lines(300, count=1000), lines(one, count=1000)) for one in after]
    others = [Change.of(lines(50, count=1000), lines(one, count=1000)) for one in untouched]
    return [met for met, _ in adapt.bars(domain, {"en": others}).values()]


@pytest.mark.parametrize(
    "after, untouched, expected",
    [
        ([200, 200, 200], [52, 52, 52], [True, True, True]),  # a third, and 0.2 points: both just so
        ([201, 200, 200], [52, 52, 52], [False, True, True]),
        ([0, 0, 301], [52, 52, 52], [True, False, True]),  # the mean can't hide it
        ([200, 200, 300], [50, 50, 57], [False, True, False]),
        ([100, 100, 100], [40, 50, 66], [True, True, True]),  # in the mean; what each has is told
    ],
)
def test_bars(after, untouched, expected):
    assert verdicts(after, untouched) == expected


def test_table():
    def scored(wrong: int, other: int) -> dict:
        about = {"language": "en", "kind": "synthetic"}
        return {
            "domain": [line | about for line in lines(wrong, 10)],
            "untouched": [line | about for line in lines(other)],
        }

    about = {
        "model": "some/base",
        "way": "lora",
        "clips": 100,
        "cpu_minutes": 2.0,
        "wall_minutes": 3.0,
        "peak_mib": 900.0,
        "windows": 20,
        "of_windows": 120,  # the states of 100 were known
    }
    results = [
        about | {"seed": seed, "kept": "", "recipe": "recipe published"} | scored(wrong, 5)
        for seed, wrong in ((1, 10), (2, 20))
    ]
    text = adapt.markdown(adapt.rows_of(results, {"some/base": scored(50, 5) | {"encoder_seconds": 0.6}}))
    assert "| base | lora | 100 | 1 | 30.0 → 10.0 (-67 %) |" in text
    assert "| base | lora | 100 | mean | 30.0 → 12.5 (-58 %) |" in text
    assert "| en 5.00 → 5.00 (+0.00, +0.00 to +0.00; +0) | 3.0 | 3.0 | 900 |" in text
    assert "base, lora, 2 seeds: errors in the domain fall by a third: met, 58.3 % of them" in text
    assert "forgetting at most 0.2 points, en: met, +0.00 points in the mean (+0, +0 of 100)" in text
    assert text.count("- lora: recipe published") == 1


def test_options_of_the_trainer():
    ours = ["m.tsv", "--model", "base", "--people", "ann", "--others", "bob", "--out", "out"]
    assert adapt.arguments(ours).more == []
    assert adapt.arguments([*ours, "--", "--rate", "1e-5"]).more == ["--rate", "1e-5"]
    assert adapt.arguments(ours).manifest == Path("m.tsv")
