"""The language rule: no sequence of allowed ids spells a letter of another script, and nothing is forbidden beyond
that."""

import random
from itertools import product

import pytest
import regex

from glmasr.checkpoint.vocabulary import ALPHABET
from glmasr.errors import OptionError
from glmasr.tokenizer import Tokenizer
from glmasr.transcription.language import (
    LANGUAGES,
    NAMES,
    alike,
    canonical,
    forbidden_ids,
    join,
    name_language,
    spaced,
    written_in,
)


def foreign(own: str) -> regex.Pattern:
    """What a language is not written in, said here once more: characters of other scripts, and letters that several
    share."""
    shared = r"\p{Script=Common}\p{Script=Inherited}\p{Script=Unknown}\U0001f200"
    return regex.compile(rf"[^{own}{shared}]|(?=\p{{L}})[^{own}]")


FOREIGN = {"zh": foreign(r"\p{Script=Han}\p{Script=Latin}"), "en": foreign(r"\p{Script=Latin}")}
FOREIGN["yue"] = FOREIGN["zh"]
EVERYTHING = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))


class Pieces:
    """Stands in for a tokenizer: the ids are the indices of a list of bytes."""

    def __init__(self, pieces):
        self.pieces = pieces

    def token_bytes(self, id):
        return self.pieces[id] if id < len(self.pieces) else b""


def allowed(pieces, language):
    forbidden = set(forbidden_ids(Pieces(pieces), language, len(pieces)))
    return [piece for number, piece in enumerate(pieces) if number not in forbidden]


def test_single_bytes_spell_no_foreign_letter_and_all_other_characters_of_two_bytes():
    single = [bytes([b]) for b in range(256)]
    for language in FOREIGN:
        stay = allowed(single, language)
        assert b"a" in stay and b"\x80" in stay  # ASCII and continuation bytes stay
        for sequence in product(stay, repeat=2):
            assert not FOREIGN[language].search(b"".join(sequence).decode("utf-8", errors="replace"))
        # Three and four bytes: over all characters instead of all sequences. A character is spelled if its lead byte
        # stays.
        leads = {piece[0] for piece in stay}
        foreign_leads = {character.encode()[0] for character in FOREIGN[language].findall(EVERYTHING)}
        assert not leads & foreign_leads and leads | foreign_leads == set(range(256))


@pytest.mark.parametrize("language", FOREIGN)
def test_no_sequence_of_allowed_pieces_spells_a_foreign_letter(language):
    rng = random.Random(language)
    letters = "aé大好あカ한фяλאبกनԱზ“…，。३👍🏽ー々ぁ𠮷𝐀ɐﬁ\u0301\u200d"
    stream = "".join(rng.choices(letters, k=3000)).encode()
    pieces = {bytes([b]) for b in range(256)}
    for _ in range(4000):  # pieces cut anywhere: halves of letters on either side
        start = rng.randrange(len(stream))
        pieces.add(stream[start : start + rng.randint(1, 6)])
    pieces |= {bytes(rng.choices(range(128, 256), k=rng.randint(1, 4))) for _ in range(500)}
    stay = allowed(sorted(pieces), language)
    assert len(stay) > 300
    for _ in range(3000):
        text = b"".join(rng.choices(stay, k=30)).decode("utf-8", errors="replace")
        assert not FOREIGN[language].search(text)
    # The rule is as narrow as can be: each forbidden piece writes a foreign letter, by itself or with some bytes after
    # it.
    beginnings = {
        code[:n] for code in map(str.encode, FOREIGN[language].findall(EVERYTHING)) for n in range(1, len(code))
    }
    for piece in pieces - set(stay):
        lead = max((i for i, byte in enumerate(piece) if byte >= 0xC0), default=0)
        assert piece[lead:] in beginnings or FOREIGN[language].search(piece.decode("utf-8", errors="replace"))


def test_whole_characters_stay_exactly_if_they_are_not_foreign():
    pieces = [character.encode() for character in EVERYTHING[:0x30000]]
    for language in ("zh", "en"):
        stay = {piece.decode() for piece in allowed(pieces, language)}
        assert stay == set(EVERYTHING[:0x30000]) - set(FOREIGN[language].findall(EVERYTHING[:0x30000]))
        assert set("aÉßŁ ,.!?…“”’，。、！？0９½👍🏽☕\u0301\u200d") <= stay
        assert not set("あカ한фλאกनーµ𝐀") & stay
        assert (set("大家好佢嘅㗎々〇龥") <= stay) == (language == "zh")
    assert not set(regex.findall(r"\p{Han}", EVERYTHING[:0x30000])) & stay


def test_prefixes_stay_if_nothing_foreign_begins_with_them():
    pieces = [
        b"\xe4",
        b"\xe5\xa4",
        b" \xe5\xa4",
        b"\xe3",
        b"\xe3\x80",
        b"\xe3\x81",
        b"\xea",
        b"\xc3",
        b"\xe2\x80",
        b"\xd0",
        b"\xf0\x9f",
        b"\xf0\x9f\x98",
        b"\xf0\xa0",
        b"\xa4\xa7",
        b"\x81",
        b"\xff",
        b"\xe3\x81\x82",
    ]
    assert set(pieces) - set(allowed(pieces, "zh")) == {
        b"\xe3",
        b"\xe3\x80",
        b"\xe3\x81",
        b"\xea",
        b"\xd0",
        b"\xe3\x81\x82",
    }
    assert {b"\xc3", b"\xe2\x80", b"\xf0\x9f\x98", b"\xa4\xa7", b"\x81", b"\xff"} <= set(allowed(pieces, "en"))
    assert not {b"\xe4", b"\xe5\xa4", b"\xf0\xa0"} & set(allowed(pieces, "en"))


def test_special_tokens_and_undefined_ids_are_never_forbidden():
    vocab = {character: number for number, character in enumerate(ALPHABET)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    added = [{"id": 256, "content": "<|конец|>", "special": True}, {"id": 257, "content": "слово"}]
    tokenizer = Tokenizer(
        {
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "added_tokens": added,
        }
    )
    forbidden = forbidden_ids(tokenizer, "en", 300)
    assert forbidden == sorted(set(forbidden)) and 257 in forbidden and not {256, *range(258, 300)} & set(forbidden)
    assert forbidden_ids(tokenizer, "en", 256) == [number for number in forbidden if number < 256]
    assert forbidden_ids(tokenizer, "auto", 300) == []
    assert forbidden_ids(tokenizer, "zh", 300) == forbidden_ids(tokenizer, "yue", 300) != forbidden
    with pytest.raises(OptionError, match="'fr' is unknown; expected one of auto, zh, yue, en"):
        forbidden_ids(tokenizer, "fr", 300)
    assert list(LANGUAGES) == ["auto", "zh", "yue", "en"]


@pytest.mark.parametrize(
    "language, text",
    [
        ("en", "Please transcribe this audio into text."),
        ("en", "The word 你好 means hello."),
        ("en", "café"),
        ("zh", "今天天气不错。"),
        ("zh", "我们用 Python 写 code,然后 commit。"),
        ("zh", "好嘞,咱们走!"),
        ("zh", "唔,我想想。"),
        ("zh", "他們的關係很好,下午兩點解決了。"),
        ("zh", "江边度假,而家庭成员都很开心。"),
        ("yue", "佢哋喺度做緊嘢。"),
        ("yue", "唔该晒"),
        ("yue", "你食咗飯未呀?"),
        ("yue", "我哋 meeting 開咗好耐"),
        ("", ""),
        ("", "123 … 👍"),
        ("", "Привет"),
        ("zh", "他" * 200 + "佢"),
    ],
)
def test_name_language(language, text):
    assert name_language(text) == language


@pytest.mark.parametrize(
    "heard, text, language",
    [
        ("zh", "and her mother embraced her", "en"),
        ("yue", "and her mother embraced her", "en"),
        ("en", "这份倡议书被广泛传播", "zh"),
        ("en", "佢哋喺度做緊嘢", "yue"),
        ("zh", "Thank you", "zh"),
        ("en", "你好", "en"),
        ("zh", "我们用 Python 写 code 然后 commit to main branch now", "zh"),
        ("en", "The phrase 今天天气不错 is Chinese", "en"),
        ("fr", "et sa mère, en l'embrassant", "fr"),
        ("ja", "東京都知事選挙", "ja"),
        ("en", "東京都知事選挙に行きます", "en"),
        ("zh", "12 345", "zh"),
        ("", "今天天气不错", "zh"),
        ("", "", ""),
    ],
)
def test_written_in(heard, text, language):
    assert written_in(text, heard) == language


# ---- names of languages ---------------------------------------------------------------------------------------------------

NAMED = {
    "zh": "zh ZH zh-CN zh_cn zh-TW zh-SG zh-Hans zh-Hant zh-Hans-CN zh_Hant_TW cmn cmn-Hans-CN zh-cmn zho chi chinese Chinese Mandarin 中文 普通话 普通話 国语 國語",
    "yue": "yue YUE yue-HK yue-Hant-HK zh-HK zh-hant-hk zh_HK zh-MO zh-yue zh-yue-HK cantonese Cantonese 粤语 粵語 广东话 廣東話",
    "en": "en EN eng en-US en_GB en-Latn-US en-US-u-ca-gregory English ENGLISH 英语",
    "de": "de deu ger German Deutsch de-1996 de-CH",
    "es": "es spa castilian es-419",
    "my": "myanmar burmese mya bur",
    "ca": "valencian ca-valencia",
    "nl": "flemish dut nl-BE",
    "ps": "pushto pashto",
    "ro": "moldavian moldovan ron rum mo",
    "si": "sinhalese sinhala",
    "lb": "letzeburgesch",
    "pa": "panjabi",
    "no": "no nb nob",
    "nn": "nynorsk nn-NO",
    "jw": "jv jav jw javanese",
    "he": "iw heb",
    "id": "in ind",
    "haw": "haw Hawaiian",
    "ja": "ja-JP 日本語",
    "auto": "auto AUTO",
}


@pytest.mark.parametrize("code, names", NAMED.items())
def test_names_of_languages(code, names):
    assert {name: canonical(name) for name in names.split()} == dict.fromkeys(names.split(), code)


@pytest.mark.parametrize(
    "name",
    [
        "xx",
        "",
        "zh-nan",
        "wuu",
        "en-foo",
        "en--us",
        "en-",
        "-en",
        "english!",
        "en us",
        "zh-CN\0",
        "a" * 10**6,
        None,
        3,
        ["zh"],
        b"zh",
    ],
)
def test_what_is_no_name_of_a_language_stays_as_it_is(name):
    assert canonical(name) is name or canonical(name) == name


def test_spaces_and_forms_of_letters_make_no_difference():
    assert {canonical(name) for name in (" zh ", "ｚｈ", "Haitian  Creole", "haitian creole", "franc\u0327ais")} == {
        "zh",
        "ht",
        "fr",
    }


def test_all_of_openai_whispers_names_and_codes():
    from_whisper = pytest.importorskip("whisper.tokenizer", exc_type=ImportError)
    assert all(canonical(code) == code for code in from_whisper.LANGUAGES)
    assert {name: canonical(name.title()) for name in from_whisper.TO_LANGUAGE_CODE} == from_whisper.TO_LANGUAGE_CODE


def test_close_names_are_pointed_out():
    assert alike("Englsh", LANGUAGES) == " (did you mean english?)" and "cantonese" in alike("cantonse", LANGUAGES)
    assert [alike(name, LANGUAGES) for name in ("xx", "fr", "Frensh", None, "x" * 10**6)] == [
        ""
    ] * 5  # this model knows no French
    assert alike("Frensh", {"fr"}) == " (did you mean french?)"


def test_names_are_those_of_whisper():
    known = pytest.importorskip("transformers.models.whisper.tokenization_whisper").LANGUAGES
    assert NAMES == known and len(NAMES) == 100


STRETCHES = [
    "And so",
    "my fellow",
    "你好",
    "世界。",
    "Hello",
    "สวัสดี",
    "ครับ",
    "안녕",
    "하세요",
    "ありがとう",
    "ok",
    "",
    "  ",
    " 3 ",
    "、",
    "…",
    "(x)",
    "é",
    "👍",
]


@pytest.mark.parametrize("seed", range(20))
def test_stretches_with_their_spaces_are_the_text(seed):
    """Of mixed scripts; and it makes no difference how many come at a time."""
    chance = random.Random(seed)
    texts = chance.choices(STRETCHES, k=chance.randint(0, 12))
    pieces, whole = spaced(texts), join(texts)
    assert "".join(pieces).strip() == whole and [piece.strip() for piece in pieces] == [text.strip() for text in texts]
    cut = chance.randint(0, len(texts))
    assert join([join(texts[:cut]), *texts[cut:]]) == whole
    last = next((text for text in reversed(texts[:cut]) if text.strip()), "")
    assert [*spaced(texts[:cut]), *spaced([last, *texts[cut:]])[1:]] == pieces


@pytest.mark.parametrize(
    "texts, pieces",
    [
        (["And so", "my fellow"], [" And so", " my fellow"]),
        (["你好", "世界"], ["你好", "世界"]),
        (["你好", "OK", "我们"], ["你好", "OK", "我们"]),
        (["안녕", "하세요"], [" 안녕", " 하세요"]),
        (["สวัสดี", "ครับ"], ["สวัสดี", "ครับ"]),
        (["one", "", "two"], [" one", "", " two"]),
        (["好", " ", "two"], ["好", "", "two"]),
        ([], []),
    ],
)
def test_spaces_go_by_the_script(texts, pieces):
    assert spaced(texts) == pieces
