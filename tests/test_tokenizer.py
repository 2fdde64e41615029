"""The tokenizer against the `tokenizers` library, on vocabularies that the library trains here, and each named
error."""

import copy
import itertools
import json
import random
import time

import pytest
from helpers.vocabularies import BYTES, SENTENCES, complete, random_text

from glmasr.checkpoint.pre_tokenizers import compile_pattern
from glmasr.checkpoint.vocabulary import ALPHABET
from glmasr.errors import TokenizerError
from glmasr.tokenizer import Merges, Tokenizer

GLM4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


PRE_TOKENIZERS = {
    "glm4": sequence(split(GLM4), BYTES),
    "gpt2": {**BYTES, "use_regex": True},
    "llama3": sequence(split(LLAMA3), BYTES),
    "none": BYTES,
    "gpt4o": sequence(split(GPT4O), BYTES),
    "prefix": {**BYTES, "use_regex": True, "add_prefix_space": True},
    "digits": sequence({"type": "Digits", "individual_digits": True}, BYTES),
}


@pytest.fixture(scope="module")
def trained():
    """A file for each pre-tokenizer, as the library writes it."""
    library = pytest.importorskip("tokenizers")
    files = {}
    for name, pre_tokenizer in PRE_TOKENIZERS.items():
        empty = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "vocab": {}, "merges": []},
        }
        oracle = library.Tokenizer.from_str(json.dumps(empty))
        trainer = library.trainers.BpeTrainer(
            vocab_size=700, show_progress=False, initial_alphabet=ALPHABET, max_token_length=24
        )
        oracle.train_from_iterator(SENTENCES * 3, trainer)
        data = json.loads(oracle.to_str())
        assert len(data["model"]["merges"]) > 300
        files[name] = complete(data)
    return files


def both(data):
    library = pytest.importorskip("tokenizers")
    return Tokenizer(copy.deepcopy(data)), library.Tokenizer.from_str(json.dumps(data))


def check(data, texts):
    ours, oracle = both(data)
    for text in texts:
        ids = oracle.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids, repr(text)
        for skip in (True, False):
            assert ours.decode(ids, skip_special=skip) == oracle.decode(ids, skip_special_tokens=skip), repr(text)


def variants(data):
    """The changes of a file that published files differ by."""
    pairs, strings = copy.deepcopy(data), copy.deepcopy(data)
    split_merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in data["model"]["merges"]]
    pairs["model"]["merges"] = split_merges
    strings["model"]["merges"] = [" ".join(merge) for merge in split_merges]
    whole = copy.deepcopy(pairs)
    whole["model"]["ignore_merges"] = True
    whole["model"]["merges"] = (
        split_merges[::2] + split_merges[1::2]
    )  # an order in which many whole words are no longer reached
    return {"pairs": pairs, "strings": strings, "ignore_merges": whole}


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_equals_the_library(trained, name):
    rng = random.Random(name)
    texts = ["", " ", "\n", *SENTENCES, *(random_text(rng) for _ in range(500))]
    for data in variants(trained[name]).values():
        check(data, texts + [random_text(rng) for _ in range(400)])


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_normalizers_equal_the_library(trained, form):
    rng = random.Random(form)
    for name in ("glm4", "none"):
        check({**trained[name], "normalizer": {"type": form}}, SENTENCES + [random_text(rng) for _ in range(400)])
    both_forms = {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": form}]}
    check({**trained["gpt2"], "normalizer": both_forms}, [random_text(rng) for _ in range(200)])


def test_special_token_that_a_normalizer_rewrites_is_still_skipped():
    # The library (0.23) looks the rewritten text up among the special tokens, does not find it and lets the token into
    # the transcript.
    token = {"id": 262, "content": "<½>", "special": True, "normalized": True}
    tokenizer = Tokenizer(small(added_tokens=[token], normalizer={"type": "NFKC"}))
    assert tokenizer.encode("low<½>") == [257, 262]
    assert tokenizer.decode([257, 262]) == "low" and tokenizer.decode([262], skip_special=False) == "<1\u20442>"


@pytest.mark.parametrize("behavior", ["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"])
def test_split_behaviors_equal_the_library(trained, behavior):
    rng = random.Random(behavior)
    texts = ["".join(rng.choices("ab .1\n大", k=rng.randint(0, 12))) for _ in range(150)]
    for invert in (False, True):
        for kind, pattern in (
            ("Regex", r"\s+|\p{N}"),
            ("Regex", r"\p{N}*"),
            ("String", " "),
            ("String", "a."),
            ("Regex", "a"),
        ):
            check({**trained["none"], "pre_tokenizer": sequence(split(pattern, behavior, invert, kind), BYTES)}, texts)


def test_digits_and_steps_after_the_bytes_equal_the_library(trained):
    rng = random.Random(5)
    texts = [random_text(rng) for _ in range(150)]
    for individual in (False, True):
        digits = {"type": "Digits", "individual_digits": individual}
        for order in (
            sequence(digits, BYTES),
            sequence(BYTES, digits),
            sequence(sequence(digits), {**BYTES, "add_prefix_space": True}),
        ):
            check({**trained["gpt2"], "pre_tokenizer": order}, texts)


def test_decode_of_broken_bytes_equals_the_library(trained):
    rng = random.Random(6)
    ours, oracle = both(trained["glm4"])
    bytes_only = [ours.id(character) for character in ALPHABET]
    for _ in range(2000):
        ids = [
            rng.choice(bytes_only) if rng.random() < 0.6 else rng.randrange(ours.size + 5)
            for _ in range(rng.randint(0, 12))
        ]
        for skip in (True, False):
            assert ours.decode(ids, skip_special=skip) == oracle.decode(ids, skip_special_tokens=skip), ids


def test_merge_that_is_reached_by_two_ways_equals_the_library():
    # "abc" is made of ab+c and of a+bc, with different ranks.
    vocab = {character: number for number, character in enumerate(ALPHABET)}
    vocab.update({token: 256 + number for number, token in enumerate(["bc", "ab", "abc", "aa", "aaa", "aabc", "cab"])})
    merges = ["b c", "a a", "a abc", "a bc", "c ab", "a b", "ab c", "aa a"]
    data = {
        "added_tokens": [],
        "pre_tokenizer": BYTES,
        "decoder": BYTES,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
    rng = random.Random(7)
    check(data, ["".join(rng.choices("abc", k=rng.randint(0, 14))) for _ in range(1500)])


def merged_slowly(merges, ids):
    """As the docstring of `Merges` says it."""
    while pairs := [
        (merges.rank[pair], place) for place, pair in enumerate(itertools.pairwise(ids)) if pair in merges.rank
    ]:
        earliest, place = min(pairs)
        ids = [*ids[:place], merges.joint[earliest], *ids[place + 2 :]]
    return ids


def test_merges_equal_their_definition():
    """Ranks in any order, as no training gives them: a joint token may make a pair that is listed before its own."""
    rng = random.Random(9)
    for _ in range(1000):
        tokens = {"a": 0, "b": 1}
        for _ in range(rng.randint(1, 12)):
            tokens.setdefault("".join(rng.choices(list(tokens), k=2)), len(tokens))
        pairs = [(a, b) for a in tokens for b in tokens if a + b in tokens]
        rng.shuffle(pairs)
        merges = Merges(
            {(tokens[a], tokens[b]): place for place, (a, b) in enumerate(pairs)}, [tokens[a + b] for a, b in pairs]
        )
        ids = rng.choices(range(2), k=rng.randint(0, 30))
        before = [*ids]
        assert merges.apply(ids) == merged_slowly(merges, ids) and ids == before


def test_long_pieces_equal_the_library(trained):
    rng = random.Random(8)
    check(trained["none"], ["a" * 200_000, " " * 100_000 + "x", "".join(rng.choices("th e大家", k=50_000)), "é" * 1000])
    check(trained["glm4"], ["a" * 200_000, " " * 100_000 + "x", "\n" * 50_000, "1" * 50_000])


# --- Without the library -------------------------------------------------------------------------------------------------


def small(**changes):
    """All bytes, a few merges, two added tokens. Changes are laid over the file, those named model_* over its model."""
    vocab = {character: number for number, character in enumerate(ALPHABET)}
    vocab.update({"lo": 256, "low": 257, "er": 258, "Ġlow": 259, "å¤§": 260, "å¤": 261})
    model = {
        "type": "BPE",
        "vocab": vocab,
        "merges": ["l o", "lo w", "e r", "Ġ low", "å ¤", "å¤ §"],
        "unk_token": None,
        "fuse_unk": False,
        "dropout": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": None,
        "byte_fallback": False,
    }
    data = {
        "added_tokens": [{"id": 264, "content": "<|user|>", "special": True}, {"id": 262, "content": "<x>"}],
        "normalizer": None,
        "pre_tokenizer": {**BYTES, "use_regex": True},
        "decoder": BYTES,
        "model": model,
    }
    for key, value in changes.items():
        if key.startswith("model_"):
            model[key[6:]] = value
        else:
            data[key] = value
    return data


def test_ids_bytes_and_size():
    tokenizer = Tokenizer(small())
    assert tokenizer.encode("lower low大<|user|><x>") == [257, 258, 259, 260, 264, 262]
    assert tokenizer.size == 265 and tokenizer.special == {"<|user|>": 264}
    assert tokenizer.id("<|user|>") == 264 and tokenizer.id("Ġlow") == 259
    assert [tokenizer.token_bytes(i) for i in (259, 261, 262, 263, 264, 10**6)] == [
        b" low",
        "大".encode()[:2],
        b"<x>",
        b"",
        b"",
        b"",
    ]
    assert (
        tokenizer.decode([257, 264, 262]) == "low<x>"
        and tokenizer.decode([257, 264, 263], skip_special=False) == "low<|user|>"
    )
    assert tokenizer.decode([261]) == "\ufffd"


def test_every_single_byte_is_its_own_token_and_text_survives():
    tokenizer = Tokenizer(small())
    assert sorted(tokenizer.token_bytes(i) for i in range(256)) == [bytes([b]) for b in range(256)]
    rng = random.Random(1)
    for text in SENTENCES + [random_text(rng) for _ in range(300)]:
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


def test_incremental_decoding_joins_to_decode_and_holds_back_half_characters():
    tokenizer = Tokenizer(small())
    rng = random.Random(2)
    for _ in range(1000):
        ids = [
            rng.choice([rng.randrange(tokenizer.size), 261, tokenizer.id("§"), rng.randrange(256)])
            for _ in range(rng.randint(0, 15))
        ]
        decoder = tokenizer.decoder()
        assert "".join([decoder.feed(i) for i in ids] + [decoder.finish()]) == tokenizer.decode(ids)
    for text in SENTENCES:
        decoder, shown = tokenizer.decoder(), ""
        for number in tokenizer.encode(text):
            shown += decoder.feed(number)
            assert text.startswith(shown)
        assert shown == text and decoder.finish() == ""
    decoder = tokenizer.decoder()
    assert [decoder.feed(261), decoder.feed(tokenizer.id("§")), decoder.feed(261), decoder.finish()] == [
        "",
        "大",
        "",
        "\ufffd",
    ]


def test_does_not_change_the_data_it_is_given():
    data = small()
    before = copy.deepcopy(data)
    Tokenizer(data).encode("lower")
    assert data == before


def test_options_without_effect_are_accepted():
    plain = Tokenizer(small())
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|user|>", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    }
    for change in (
        {"post_processor": template},
        {"truncation": {"max_length": 2}},
        {"padding": {"pad_id": 0}},
        {"model_unk_token": "a"},
        {"model_fuse_unk": True},
        {"decoder": {"type": "Sequence", "decoders": [BYTES]}},
        {"model_dropout": 0.0},
    ):
        assert Tokenizer(small(**change)).encode("a lower low") == plain.encode("a lower low")


ALPHABET_ONLY = {character: number for number, character in enumerate(ALPHABET)}
DAMAGED = {
    "empty merges": ({"model_merges": []}, "merges is empty"),
    "merge of an unknown token": ({"model_merges": ["l o", "q zz"]}, "needs the token 'zz'"),
    "merge into an unknown token": ({"model_merges": ["l o", "q z"]}, "needs the token 'qz'"),
    "merge of three": ({"model_merges": ["l o w"]}, "merge 0"),
    "merge of one": ({"model_merges": [["l"]]}, "merge 0"),
    "merge of numbers": ({"model_merges": [[1, 2]]}, "merge 0"),
    "duplicate id": ({"model_vocab": {**ALPHABET_ONLY, "lo": 5}, "model_merges": ["l o"]}, "share the id 5"),
    "negative id": ({"model_vocab": {**ALPHABET_ONLY, "lo": -1}, "model_merges": ["l o"]}, "has the id -1"),
    "fractional id": ({"model_vocab": {**ALPHABET_ONLY, "lo": 256.0}, "model_merges": ["l o"]}, "has the id 256.0"),
    "boolean id": ({"model_vocab": {**ALPHABET_ONLY, "lo": True}, "model_merges": ["l o"]}, "has the id True"),
    "text id": ({"model_vocab": {**ALPHABET_ONLY, "lo": "256"}, "model_merges": ["l o"]}, "has the id '256'"),
    "absurd id": ({"model_vocab": {**ALPHABET_ONLY, "lo": 2**40}, "model_merges": ["l o"]}, "has the id 1099511627776"),
    "empty vocabulary": ({"model_vocab": {}, "model_merges": [], "added_tokens": []}, "vocabulary is empty"),
    "vocabulary of another kind": ({"model_vocab": [["a", -1.0]]}, "model.vocab"),
    "model of another kind": ({"model": {"type": "Unigram", "vocab": []}}, "model.type is 'Unigram'"),
    "no merges": ({"model": {"type": "BPE", "vocab": {}}}, "has no 'merges'"),
    "model is a list": ({"model": []}, "tokenizer.json.model"),
    "prefix": ({"model_continuing_subword_prefix": "##"}, "continuing_subword_prefix"),
    "suffix": ({"model_end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
    "byte fallback": ({"model_byte_fallback": True}, "byte_fallback"),
    "dropout": ({"model_dropout": 0.1}, "dropout"),
    "unknown token needed": ({"model_unk_token": "<unk>", "model_vocab": {"a": 0}, "model_merges": []}, "unk_token"),
    "normalizer": ({"normalizer": {"type": "BertNormalizer"}}, "normalizer 'BertNormalizer'"),
    "inner normalizer": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Strip"}]}},
        r"normalizers\[0\] 'Strip'",
    ),
    "pre-tokenizer": ({"pre_tokenizer": sequence(BYTES, {"type": "Whitespace"})}, r"pretokenizers\[1\] 'Whitespace'"),
    "no bytes": ({"pre_tokenizer": None}, "exactly one ByteLevel"),
    "bytes twice": ({"pre_tokenizer": sequence(BYTES, BYTES)}, "exactly one ByteLevel"),
    "behavior": ({"pre_tokenizer": sequence(split("a", "Sideways"), BYTES)}, "Sideways"),
    "pattern": ({"pre_tokenizer": sequence({**split("a"), "pattern": {"Glob": "*"}}, BYTES)}, "pattern"),
    "regular expression": ({"pre_tokenizer": sequence(split(r"\bword"), BYTES)}, "regular expression"),
    "flag": ({"pre_tokenizer": {**BYTES, "use_regex": "yes"}}, "use_regex"),
    "no decoder": ({"decoder": None}, "decoder is None"),
    "decoder": ({"decoder": {"type": "Metaspace"}}, "decoder is 'Metaspace'"),
    "two decoders": ({"decoder": {"type": "Sequence", "decoders": [BYTES, BYTES]}}, "decoder is 'Sequence'"),
    "added token on a taken id": ({"added_tokens": [{"id": 65, "content": "<new>"}]}, "already pairs"),
    "added token with a second id": ({"added_tokens": [{"id": 300, "content": "low"}]}, "already pairs"),
    "two added tokens with one id": (
        {"added_tokens": [{"id": 300, "content": "<p>"}, {"id": 300, "content": "<q>"}]},
        "already pairs",
    ),
    "added token twice": ({"added_tokens": [{"id": 300, "content": "<p>"}, {"id": 300, "content": "<p>"}]}, "twice"),
    "added token without id": ({"added_tokens": [{"content": "<p>"}]}, "has no 'id'"),
    "added token with an absurd id": ({"added_tokens": [{"id": -3, "content": "<p>"}]}, "has the id -3"),
    "empty added token": ({"added_tokens": [{"id": 300, "content": ""}]}, "empty"),
    "added tokens are text": ({"added_tokens": ["<p>"]}, r"added_tokens\[0\] is str"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_named_errors(name):
    changes, message = DAMAGED[name]
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(small(**changes))


@pytest.mark.parametrize(
    "pattern",
    [
        r"\w+",
        "^a",
        "a$",
        "(?i)a",
        "(?i:ss)",
        "(?i:)",
        "[a&&b]",
        "[[a]]",
        "a{2}?",
        "a{2}+",
        r"\h",
        "a**",
        "[z-a]",
        "(a",
        "a)",
        "[",
        r"\p{Foo}",
    ],
)
def test_regular_expressions_that_could_mean_something_else_are_refused(pattern):
    with pytest.raises(TokenizerError, match="regular expression"):
        compile_pattern(pattern)


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("a{10000}", None),
        ("a{25001}", "200008 characters"),
        ("(a{2,200}){100}", "300000 characters"),
        ("a{9999999999999999999999}", "characters"),
        ("a{99}" * 900, "characters"),
        ("(?:%s){9999}" % ("[a-c]" * 900), "45095490 characters"),
        ("a" * 5001, "has 5001 characters"),
        ("(" * 2500 + ")" * 2500, "is damaged"),
    ],
)
def test_regular_expressions_that_would_take_all_memory_are_refused(pattern, message):
    if message is None:
        assert compile_pattern(pattern).search("a" * 10_000)
        return
    with pytest.raises(TokenizerError, match=message):
        compile_pattern(pattern)


def test_the_time_of_all_steps_together_is_limited(monkeypatch):
    """Each piece of the second step takes less than is allowed."""
    monkeypatch.setattr("glmasr.checkpoint.pre_tokenizers.MATCHING", 0.3)
    slow = Tokenizer(small(pre_tokenizer=sequence(split("x"), split("(?:a|b|aa|ab)+c"), {**BYTES, "use_regex": False})))
    start = time.process_time()
    with pytest.raises(TokenizerError, match="takes more than 0.3 s"):
        slow.encode(("ab" * 10 + " cx") * 1000)
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"added_tokens": [{"id": 300, "content": "x" * 1001}]},
            r"added_tokens\[0\] has 1001 characters; expected at most 1000",
        ),
        ({"added_tokens": [{"id": 300, "content": "x"}] * 100_001}, "100001 added_tokens; expected at most 100000"),
        ({"pre_tokenizer": sequence(*[BYTES] * 21)}, "pretokenizers are 21 steps; expected at most 20"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 21}},
            "normalizers are 21 steps; expected at most 20",
        ),
        (
            {"pre_tokenizer": sequence(split("x" * 5001, kind="String"), BYTES)},
            r"expected .* of at most 5000 characters",
        ),
    ],
)
def test_more_than_any_published_file_has(change, message):
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(small(**change))


def test_a_regular_expression_that_takes_years(monkeypatch):
    monkeypatch.setattr("glmasr.checkpoint.pre_tokenizers.MATCHING", 0.1)
    slow = Tokenizer(small(pre_tokenizer=sequence(split("(?:a|b|aa|ab)+c"), {**BYTES, "use_regex": False})))
    with pytest.raises(TokenizerError, match="takes more than 0.1 s"):
        slow.encode("ab" * 100 + " c")


def test_steps_inside_of_each_other_without_end(tmp_path):
    path, text = tmp_path / "tokenizer.json", json.dumps(small(normalizer="HERE"))
    for depth in (5, 2000, 20_000):
        path.write_text(
            text.replace('"HERE"', '{"type": "Sequence", "normalizers": [' * depth + "]}" * depth), encoding="utf-8"
        )
        if depth == 5:
            assert Tokenizer.read(path).encode("low") == [257]
            continue
        with pytest.raises(TokenizerError):
            Tokenizer.read(path)


def test_errors_in_use():
    tokenizer = Tokenizer(small())
    with pytest.raises(TokenizerError, match="<nothing>"):
        tokenizer.id("<nothing>")
    with pytest.raises(TokenizerError, match="-1 is not a token id"):
        tokenizer.decode([-1])
    with pytest.raises(TokenizerError, match="surrogate U\\+DC80"):
        tokenizer.encode("a b\udc80")
    incomplete = Tokenizer(small(model_vocab={"a": 0, "b": 1, "ab": 2}, model_merges=["a b"]))
    assert incomplete.encode("ab") == [2]
    with pytest.raises(TokenizerError, match="no token for the byte"):
        incomplete.encode("abc")


def test_read(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(TokenizerError, match="cannot read"):
        Tokenizer.read(path)
    path.write_text(json.dumps(small(), ensure_ascii=False), encoding="utf-8")
    assert Tokenizer.read(path).encode("low") == [257]
    whole = path.read_bytes()
    for content, message in (
        (whole[:-20], "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff" + whole, "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b"[]", "expected an object"),
        (b'{"model": 1, "model": 2}', "'model' twice"),
        (b"{}", "has no 'model'"),
    ):
        path.write_bytes(content)
        with pytest.raises(TokenizerError, match=message):
            Tokenizer.read(path)


def test_an_added_token_inside_the_white_space_that_another_took_in_is_dropped_as_in_the_library():
    library = pytest.importorskip("tokenizers")
    reference = library.Tokenizer(
        library.models.BPE(vocab={character: i for i, character in enumerate(ALPHABET)}, merges=[])
    )
    reference.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.decoder = library.decoders.ByteLevel()
    reference.add_tokens(
        [library.AddedToken(text, lstrip=True, rstrip=True, normalized=False) for text in ("\n", "\t", "<x>")]
    )
    ours, rng = Tokenizer(json.loads(reference.to_str())), random.Random(0)
    for text in ("b\n \t\nb", *("".join(rng.choices("ab \n\t<x>", k=12)) for _ in range(500))):
        assert ours.encode(text) == reference.encode(text).ids, repr(text)
