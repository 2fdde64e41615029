"""SentencePiece against the `sentencepiece` library, on models that it trains here; Whisper's `tokenizer.json`; time
tokens; make_article."""

import functools
import io
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from helpers.vocabularies import BYTES, SENTENCES, complete, random_text

from glmasr.checkpoint.vocabulary import ALPHABET
from glmasr.errors import TokenizerError
from glmasr.tokenizer import SentencePieceTokenizer, Tokenizer, read_tokenizer, time_token
from glmasr.transcription.language import forbidden_ids

ROOT = Path(__file__).parent.parent
NAMES = ["<|endoftranscript|>", "<|zh|>", "<|語|>", "<|0.00|>", "<|0.02|>"]
LINES = [*SENTENCES, *["the quick brown fox jumps over the lazy dog"] * 5]
MODELS = {
    f"{kind}{', bytes' * fallback}{', dummy' * dummy}": {
        "model_type": kind,
        "byte_fallback": fallback,
        "add_dummy_prefix": dummy,
    }
    for kind in ("unigram", "bpe", "char")
    for fallback in (False, True)
    for dummy in (False, True)
} | {
    "all spaces count": {"model_type": "bpe", "byte_fallback": True, "remove_extra_whitespaces": False},
    "all spaces count, no dummy": {
        "model_type": "unigram",
        "byte_fallback": True,
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
    },
    "identity": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"},
    "dummy behind": {"model_type": "bpe", "treat_whitespace_as_suffix": True},
    "own symbols": {
        "model_type": "unigram",
        "user_defined_symbols": ["quick", "▁fox", "大家"],
        "control_symbols": ["<c>", "▁c"],
        "unk_surface": "▁?",
    },
}


@functools.cache
def train(name: str = "bpe, bytes, dummy", **options) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        minloglevel=2,
        num_threads=1,
        **{"vocab_size": 700, "hard_vocab_limit": False, "character_coverage": 0.99, **MODELS[name], **options},
    )
    return model.getvalue()


def pair(name: str = "bpe, bytes, dummy") -> tuple[SentencePieceTokenizer, sentencepiece.SentencePieceProcessor]:
    library = sentencepiece.SentencePieceProcessor(model_proto=train(name))
    size = library.get_piece_size()
    return SentencePieceTokenizer(train(name), {token: size + number for number, token in enumerate(NAMES)}), library


def whole(text: str) -> str:
    """Half a character is one U+FFFD here, and one for each byte in the library."""
    return re.sub("\ufffd+", "\ufffd", text)


# --- Against the library ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_library(name):
    ours, library = pair(name)
    rng = random.Random(name)
    snippets = ["<0xE4>", "<unk>", "<s>", "▁", " ", "  ", "quick", "<c>", "\0", "\r\n"]
    for text in [
        "",
        " ",
        "   a",
        *SENTENCES,
        *(random_text(rng) + rng.choice(snippets) + random_text(rng) for _ in range(300)),
    ]:
        ids = library.encode(text)
        assert ours.encode(text) == ids, repr(text)
        assert ours.decode(ids) == ours.decode(ids, skip_special=False) == library.decode(ids), repr(text)
    pieces = range(library.get_piece_size())
    heads = [id for id in pieces if library.id_to_piece(id).startswith("▁")]
    shown = [id for id in pieces if not library.is_control(id)]
    control = [id for id in pieces if library.is_control(id)]
    for _ in range(1500):
        ids = [rng.choice(rng.choice([heads or shown, shown])) for _ in range(rng.randint(0, 8))]
        text = whole(library.decode(ids))
        with_control = [id for some in ids for id in [some, *rng.choices(control, k=rng.randint(0, 1))]]
        assert whole(ours.decode(ids)) == whole(ours.decode(with_control)) == text, ids


@pytest.mark.parametrize("name", ["bpe, bytes, dummy", "unigram", "all spaces count", "all spaces count, no dummy"])
def test_special_tokens_in_a_text(name):
    ours, library = pair(name)
    rng = random.Random(name)
    for _ in range(300):
        names, texts = (
            rng.choices(NAMES, k=4),
            [rng.choice(["", " "]) + rng.choice(["", random_text(rng)]) for _ in range(5)],
        )
        expected, shown = library.encode(texts[0]), library.decode(library.encode(texts[0]))
        for special, text in zip(names, texts[1:]):
            expected += [ours.special[special], *library.encode(text)]
            shown += special + library.decode(library.encode(text))
        assert ours.encode(texts[0] + "".join(map("".join, zip(names, texts[1:])))) == expected, (names, texts)
        assert ours.decode(expected, skip_special=False) == shown
        assert ours.decode(expected) == library.decode([id for id in expected if id < library.get_piece_size()])


def test_the_longest_special_token_counts():
    model, tokens = added(lambda tokens, size: {"<p>": size, "<p>x": size + 1})
    assert SentencePieceTokenizer(model, tokens).encode("<p>x<p>") == [tokens["<p>x"], tokens["<p>"]]


def test_text_survives_with_its_special_tokens():
    model, (tokenizer, _) = train("all spaces count", normalization_rule_name="identity"), pair("all spaces count")
    ours, rng = (
        SentencePieceTokenizer(model, {name: number for number, name in enumerate(NAMES, tokenizer.size - len(NAMES))}),
        random.Random(1),
    )
    for _ in range(500):
        text = random_text(rng) + rng.choice(NAMES) + rng.choice(["", " ", "  "]) + random_text(rng)
        assert ours.decode(ours.encode(text), skip_special=False) == text


def test_incremental_decoding_joins_to_decode_and_holds_back_half_characters():
    for name in ("bpe, bytes, dummy", "unigram, bytes", "all spaces count"):
        ours, library = pair(name)
        rng = random.Random(name)
        of_bytes = [id for id in range(library.get_piece_size()) if library.is_byte(id)]
        spaces = [id for id in range(library.get_piece_size()) if library.id_to_piece(id).startswith("▁")]
        for _ in range(1000):
            ids = [
                rng.choice([rng.randrange(ours.size + 3), rng.choice(of_bytes), rng.choice(spaces)])
                for _ in range(rng.randint(0, 15))
            ]
            decoder = ours.decoder()
            assert "".join([decoder.feed(id) for id in ids] + [decoder.finish()]) == ours.decode(ids)
        for text in ("𠮷野家 ♥ ☃", "▁", "Ü 大家"):
            decoder, shown, final = ours.decoder(), "", ours.decode(ours.encode(text))
            for id in ours.encode(text):
                shown += decoder.feed(id)
                assert final.startswith(shown)
            assert shown == final and decoder.finish() == ""
    byte = pair()[0].id
    decoder = pair()[0].decoder()
    assert [decoder.feed(byte(f"<0x{code:02X}>")) for code in "雪".encode() + b"\xe9"] == [
        "",
        "",
        "雪",
        "",
    ] and decoder.finish() == "\ufffd"


# --- Ids, bytes and errors -------------------------------------------------------------------------------------------------


def test_ids_bytes_and_size():
    ours, library = pair()
    size = library.get_piece_size()
    assert ours.size == size + len(NAMES) and ours.special == {name: size + number for number, name in enumerate(NAMES)}
    assert ours.id("<|zh|>") == size + 1 and ours.id("▁the") == library.piece_to_id("▁the") and ours.id("<s>") == 1
    names = ["▁the", "<0xE5>", "<s>", "<unk>", "<|zh|>"]
    assert [ours.token_bytes(ours.id(name)) for name in names] == [b" the", b"\xe5", b"", " \u2047 ".encode(), b""]
    assert ours.token_bytes(ours.size) == b"" and ours.decode([ours.size, 10**9]) == ""
    for use in (lambda: ours.token_bytes(-1), lambda: ours.decode([-1])):
        with pytest.raises(TokenizerError, match="-1 is not a token id"):
            use()
    with pytest.raises(TokenizerError, match="<nothing>"):
        ours.id("<nothing>")
    with pytest.raises(TokenizerError, match="surrogate U\\+DC80"):
        ours.encode("a b\udc80")


def test_unknown_characters_become_unk_without_byte_fallback():
    ours, library = pair("bpe, dummy")
    ids = ours.encode("the☃☃fox")
    assert ids.count(library.unk_id()) == 1 and ours.decode(ids) == "the \u2047 fox"
    ours, library = pair()
    assert library.unk_id() not in ours.encode("the☃fox") and ours.decode(ours.encode("the☃fox")) == "the☃fox"
    ours, library = pair("own symbols")
    assert ours.token_bytes(library.unk_id()).decode() == ours.decode([library.unk_id()]) == "▁?"


def test_language_rule_works_on_pieces():
    ours, library = pair()
    forbidden = set(forbidden_ids(ours, "zh", ours.size))
    assert {ours.id("<0xE3>"), ours.id("カ")} <= forbidden
    assert not {ours.id("▁the"), ours.id("大"), ours.id("<0xE5>"), ours.id("<|zh|>")} & forbidden
    assert forbidden < set(range(library.get_piece_size()))


def added(change=lambda tokens, size: tokens) -> tuple[bytes, object]:
    _, library = pair()
    size = library.get_piece_size()
    return train(), change({"<p>": size, "<q>": size + 1}, size)


DAMAGED = {
    "no object": (lambda tokens, size: list(tokens), "added_tokens.json is list"),
    "id of a piece": (lambda tokens, size: {**tokens, "<q>": 5}, "'<q>' has the id 5, expected"),
    "one id twice": (lambda tokens, size: {**tokens, "<q>": size}, "expected"),
    "a gap": (
        lambda tokens, size: {**tokens, "<q>": size + 2},
        "has the id .*, expected .* special tokens follow the .* pieces",
    ),
    "a gap before": (lambda tokens, size: {token: id + 1 for token, id in tokens.items()}, "'<p>' has the id"),
    "negative": (lambda tokens, size: {**tokens, "<q>": -1}, "has the id -1"),
    "text": (lambda tokens, size: {**tokens, "<q>": "7"}, "has the id '7'"),
    "boolean": (lambda tokens, size: {**tokens, "<q>": True}, "has the id True"),
    "a fraction": (lambda tokens, size: {**tokens, "<q>": size + 1.0}, "has the id"),
    "absurd": (lambda tokens, size: {**tokens, "<q>": 2**70}, "has the id"),
    "nothing": (lambda tokens, size: {**tokens, "<q>": None}, "has the id None"),
    "empty": (lambda tokens, size: {**tokens, "": size + 2}, "'' is empty"),
    "a piece": (lambda tokens, size: {**tokens, "▁the": size + 2}, "'▁the' is empty or a piece"),
    "no character": (lambda tokens, size: {**tokens, "\ud800": size + 2}, "lone surrogate"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_special_tokens(name):
    change, message = DAMAGED[name]
    with pytest.raises(TokenizerError, match=message):
        SentencePieceTokenizer(*added(change))


def test_special_tokens_may_stand_in_any_order():
    model, tokens = added(lambda tokens, size: dict(reversed(tokens.items())))
    assert SentencePieceTokenizer(model, tokens).encode("<p><q>") == [tokens["<p>"], tokens["<q>"]]
    assert SentencePieceTokenizer(model, {}).special == {}


def test_damaged_models(tmp_path):
    model = train(unk_surface="[nothing]")
    the = "▁the".encode()
    broken = {
        "empty": b"",
        "cut": model[:-7],
        "text": b"{}",
        "zeros": bytes(64),
        "only a head": model[:40],
        "a piece is no text": model.replace(the, b"\xff\xfe\xfdthe"),
        "unk is no text": model.replace(b"[nothing]", b"\xff" * 9),
        "a piece twice": model.replace(b"\x01a", b"\x01e"),
        "byte": model.replace(b"<0x41>", b"<0xZZ>"),
        "another unk": model.replace(b"<unk>", b"<0x41>"),
    }
    for name, data in broken.items():
        assert data != model, name
        with pytest.raises(
            TokenizerError, match="tokenizer.model is damaged or no SentencePiece model: .*download it again"
        ):
            SentencePieceTokenizer(data, {})
    rules = tmp_path / "rules.tsv"
    rules.write_text("68\t48\n", encoding="utf-8")  # h -> H in what is decoded
    with pytest.raises(TokenizerError, match="denormalizer"):
        SentencePieceTokenizer(train(denormalization_rule_tsv=str(rules)), {})


def test_no_damage_gives_anything_but_a_tokenizer_error(capfd):
    model, rng, read = train("unigram, bytes, dummy", normalization_rule_name="identity"), random.Random(0), 0
    for _ in range(1500):
        data = bytearray(model)
        for _ in range(rng.choice([1, 1, 3, 20])):
            at = rng.randrange(len(data))
            data[at : at + rng.choice([0, 1, 1, 1, 9])] = rng.randbytes(1)
        try:
            ours = SentencePieceTokenizer(bytes(data), {})
            read += 1
        except TokenizerError as error:
            assert str(error)
            continue
        assert all(0 <= id < ours.size for id in ours.encode("The quick 大家 ☃"))
        ours.decode(rng.choices(range(ours.size), k=20))
    assert 20 < read < 1500 and capfd.readouterr().err == ""


def write(folder, model=None, tokens=None):
    folder.mkdir(exist_ok=True)
    good_model, good_tokens = added()
    (folder / "tokenizer.model").write_bytes(good_model if model is None else model)
    (folder / "added_tokens.json").write_text(json.dumps(good_tokens) if tokens is None else tokens, encoding="utf-8")
    return folder / "tokenizer.model"


def test_read_names_the_file(tmp_path):
    path = write(tmp_path / "good")
    assert SentencePieceTokenizer.read(path).encode("<q>") == [added()[1]["<q>"]]
    assert SentencePieceTokenizer.read(str(path)).decode(pair()[1].encode("the fox")) == "the fox"
    for model, tokens, message in (
        (b"x", None, "bad.*tokenizer.model is damaged"),
        (None, "{", "bad/added_tokens.json' is not valid JSON"),
        (None, '{"<p>": 1, "<p>": 2}', "'<p>' twice"),
        (None, "[]", "bad.*added_tokens.json is list"),
        (None, '{"<p>": 1}', "bad.*added_tokens.json: '<p>' has the id 1"),
    ):
        with pytest.raises(TokenizerError, match=message):
            SentencePieceTokenizer.read(write(tmp_path / "bad", model, tokens))
    (tmp_path / "bad" / "added_tokens.json").unlink()
    with pytest.raises(TokenizerError, match="cannot read .*bad/added_tokens.json"):
        SentencePieceTokenizer.read(tmp_path / "bad" / "tokenizer.model")
    with pytest.raises(TokenizerError, match="cannot read .*nowhere/tokenizer.model"):
        SentencePieceTokenizer.read(tmp_path / "nowhere" / "tokenizer.model")


def test_read_tokenizer_takes_what_is_there(tmp_path):
    write(tmp_path)
    assert isinstance(read_tokenizer(tmp_path), SentencePieceTokenizer)
    (tmp_path / "tokenizer.json").write_text(json.dumps(whisper()), encoding="utf-8")
    assert isinstance(read_tokenizer(str(tmp_path)), Tokenizer)
    for folder in (tmp_path / "nowhere", ROOT / "tests"):
        with pytest.raises(TokenizerError, match=f"{folder.name}' has neither tokenizer.json .* nor tokenizer.model"):
            read_tokenizer(folder)


# --- Whisper's tokenizer.json -------------------------------------------------------------------------------------------------


@functools.cache
def whisper() -> dict:
    """As Whisper's are: 107 special tokens, of which the first is a base token as well, and 1501 times that are neither
    special nor raw."""
    languages = [f"<|l{number}|>" for number in range(99)]
    names = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *languages,
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nocaptions|>",
        "<|notimestamps|>",
    ]
    times = [time_token(step * 0.02) for step in range(1501)]
    vocab = {
        token: id for id, token in enumerate([*ALPHABET, "Ġt", "Ġa", "he", "in", "å¤", "å¤§", "Ġthe", "<|endoftext|>"])
    }
    flags = [{"content": name, "special": True} for name in names] + [
        {"content": name, "normalized": True} for name in times
    ]
    template = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names[1:3]] + [
        {"Sequence": {"id": "A", "type_id": 0}}
    ]
    ids = {
        name: {"id": name, "ids": [number], "tokens": [name]}
        for number, name in enumerate(names[1:3], start=len(vocab))
    }
    return complete(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {**BYTES, "use_regex": True},
            "decoder": {**BYTES, "add_prefix_space": True, "use_regex": True},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": template,
                "pair": template,
                "special_tokens": ids,
            },
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": vocab,
                "merges": ["Ġ t", "Ġ a", "h e", "i n", "å ¤", "å¤ §", "Ġt he"],
            },
        },
        flags,
    )


def test_whisper_equals_the_library():
    library = pytest.importorskip("tokenizers").Tokenizer.from_str(json.dumps(whisper()))
    ours, rng = Tokenizer(whisper()), random.Random(0)
    assert len(whisper()["added_tokens"]) == 1608 and len(ours.special) == 107 and ours.size == library.get_vocab_size()
    assert ours.id("<|30.00|>") == ours.size - 1 == ours.id("<|notimestamps|>") + 1501
    names = [token["content"] for token in whisper()["added_tokens"]]
    for _ in range(1000):
        text = "".join(
            rng.choice([random_text(rng), rng.choice(names), " the 大", "<|0.0", "<|0.01|>"])
            for _ in range(rng.randint(0, 6))
        )
        ids = library.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids, repr(text)
        for skip in (True, False):
            assert ours.decode(ids, skip_special=skip) == library.decode(ids, skip_special_tokens=skip)


# --- Time tokens ------------------------------------------------------------------------------------------------------------


def test_time_tokens():
    for step in range(1501):
        token = f"<|{step * 2 // 100}.{step * 2 % 100:02d}|>"
        assert time_token(step * 0.02) == time_token(step / 50) == time_token(sum([0.02] * step)) == token
        assert time_token(step * 0.02 + 0.009) == time_token(abs(step * 0.02 - 0.009)) == token
    for seconds in (-0.02, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="is not a time"):
            time_token(seconds)


# --- training/make_article.py --------------------------------------------------------------------------------------------------


def make_article(folder, seed="0"):
    done = subprocess.run(
        [sys.executable, ROOT / "training" / "make_article.py", folder],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": seed},
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def article(tmp_path_factory):
    folder = tmp_path_factory.mktemp("article") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "training"))
        patch.setattr(sys, "argv", ["make_article.py", str(folder)])
        __import__("make_article").main()
    return folder


@pytest.mark.slow
def test_article_is_made_the_same_each_time(article, tmp_path):
    first, second = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (article, make_article(tmp_path / "again", "1"))
    )
    assert first == second and {"tokenizer.model", "added_tokens.json"} <= set(first)


def test_article_has_digits_in_one_piece(article):
    ours = read_tokenizer(article)
    library = sentencepiece.SentencePieceProcessor(model_file=str(article / "tokenizer.model"))
    pieces = lambda text: [library.id_to_piece(id) for id in ours.encode(text)]
    words, pinyin = (
        "zero one two three four five six seven eight nine".split(),
        "ling2 yi1 er4 san1 si4 wu3 liu4 qi1 ba1 jiu3".split(),
    )
    rng = random.Random(0)
    for _ in range(300):
        digits = rng.choices(range(10), k=rng.randint(1, 12))
        for text, expected in (
            ("".join("零一二三四五六七八九"[digit] for digit in digits), None),
            *(
                (" ".join(spelled[digit] for digit in digits), ["▁" + spelled[digit] for digit in digits])
                for spelled in (words, pinyin, [syllable[:-1] for syllable in pinyin])
            ),
        ):
            assert pieces(text) == (expected or ["▁", *text])  # Chinese: one token a digit, and the space in front
            for spaced in (text, f" {text}", f" {text} "):
                assert ours.encode(spaced) == ours.encode(text) and ours.decode(ours.encode(spaced)) == text


def test_article_spells_everything_and_special_tokens_only_as_asked(article):
    ours = read_tokenizer(article)
    library = sentencepiece.SentencePieceProcessor(model_file=str(article / "tokenizer.model"))
    size = library.get_piece_size()
    assert 400 <= size <= 700 and not any(
        library.id_to_piece(id).startswith("<|") or library.is_control(id) for id in range(size)
    )
    rng = random.Random(0)
    for text in SENTENCES + [random_text(rng) for _ in range(300)]:
        text = re.sub(" +", " ", text).strip(" ")
        assert ours.decode(ours.encode(text), skip_special=False) == text and library.unk_id() not in ours.encode(text)
    assert not set(library.encode("<|zh|><|0.00|>")) & set(ours.special.values())
    names = [
        "<|endoftranscript|>",
        "<|startoftranscript|>",
        "<|zh|>",
        "<|yue|>",
        "<|en|>",
        "<|transcribe|>",
        "<|nospeech|>",
        "<|notimestamps|>",
    ]
    times = [time_token(step * 0.02) for step in range(201)]
    assert list(ours.special) == names + times and times[-1] == "<|4.00|>"
    assert ours.encode("".join(names + times)) == list(range(size, ours.size))
