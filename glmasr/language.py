"""The language option of a model without language tokens: a rule on the vocabulary, and the language of a text by name.

The model recognises Mandarin (zh), Cantonese (yue) and English (en), and decides by itself which one it hears; no prompt for
it was trained. What can be promised is what is written: `forbidden_ids` lists the vocabulary entries that could put a letter
of another script into the text, and a decoder that never picks them never writes one. zh and yue share their scripts, so
the choice between those two forbids nothing.

Unusual: a vocabulary entry is bytes, and may hold a part of a letter. So entries that only BEGIN a foreign letter are
forbidden as well.
"""

from functools import lru_cache

import regex

from .errors import OptionError
from .tokenizer import Tokenizer

LANGUAGES: dict[str, tuple[str, ...] | None] = {     # the scripts that each may be written in; None: all
    "auto": None,
    "zh": ("Han", "Latin"),
    "yue": ("Han", "Latin"),
    "en": ("Latin",),
}
NAMES = {                            # English names of Whisper's languages (openai/whisper, tokenizer.py: LANGUAGES)
    "en": "english", "zh": "chinese", "de": "german", "es": "spanish", "ru": "russian", "ko": "korean", "fr": "french",
    "ja": "japanese", "pt": "portuguese", "tr": "turkish", "pl": "polish", "ca": "catalan", "nl": "dutch",
    "ar": "arabic", "sv": "swedish", "it": "italian", "id": "indonesian", "hi": "hindi", "fi": "finnish",
    "vi": "vietnamese", "he": "hebrew", "uk": "ukrainian", "el": "greek", "ms": "malay", "cs": "czech",
    "ro": "romanian", "da": "danish", "hu": "hungarian", "ta": "tamil", "no": "norwegian", "th": "thai", "ur": "urdu",
    "hr": "croatian", "bg": "bulgarian", "lt": "lithuanian", "la": "latin", "mi": "maori", "ml": "malayalam",
    "cy": "welsh", "sk": "slovak", "te": "telugu", "fa": "persian", "lv": "latvian", "bn": "bengali", "sr": "serbian",
    "az": "azerbaijani", "sl": "slovenian", "kn": "kannada", "et": "estonian", "mk": "macedonian", "br": "breton",
    "eu": "basque", "is": "icelandic", "hy": "armenian", "ne": "nepali", "mn": "mongolian", "bs": "bosnian",
    "kk": "kazakh", "sq": "albanian", "sw": "swahili", "gl": "galician", "mr": "marathi", "pa": "punjabi",
    "si": "sinhala", "km": "khmer", "sn": "shona", "yo": "yoruba", "so": "somali", "af": "afrikaans", "oc": "occitan",
    "ka": "georgian", "be": "belarusian", "tg": "tajik", "sd": "sindhi", "gu": "gujarati", "am": "amharic",
    "yi": "yiddish", "lo": "lao", "uz": "uzbek", "fo": "faroese", "ht": "haitian creole", "ps": "pashto",
    "tk": "turkmen", "nn": "nynorsk", "mt": "maltese", "sa": "sanskrit", "lb": "luxembourgish", "my": "myanmar",
    "bo": "tibetan", "tl": "tagalog", "mg": "malagasy", "as": "assamese", "tt": "tatar", "haw": "hawaiian",
    "ln": "lingala", "ha": "hausa", "ba": "bashkir", "jw": "javanese", "su": "sundanese", "yue": "cantonese",
}
SHARED = ("Common", "Inherited", "Unknown")     # punctuation, digits, emoji, combining marks: of no script
# A squared kana, which is no letter, counts as shared too: it alone would take the prefix F0 9F from all emoji.
EXEMPT = "\U0001f200"


@lru_cache(maxsize=None)
def _foreign(scripts: tuple) -> tuple[regex.Pattern, frozenset[bytes]]:
    """A pattern for the characters of other scripts, and every proper prefix of their UTF-8."""
    own = "".join(rf"\p{{Script={script}}}" for script in scripts)
    shared = "".join(rf"\p{{Script={script}}}" for script in SHARED) + EXEMPT
    # A letter that several scripts share (the long-vowel mark of kana, the micro sign) is not of the language's own.
    pattern = regex.compile(rf"[^{own}{shared}]|(?=\p{{L}})[^{own}]")
    everything = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
    characters = (character.encode() for character in pattern.findall(everything))
    return pattern, frozenset(code[:n] for code in characters for n in range(1, len(code)))


def forbidden_ids(tokenizer: Tokenizer, language: str, vocabulary_size: int) -> list[int]:
    """The ids below `vocabulary_size` that a language forbids, in order. Raises OptionError for an unknown language.

    Forbidden are the letters (Unicode category L) of all scripts but the language's own, and the other characters that
    belong to one such script, as Thai vowel marks do. Forbidden ids are those whose bytes
      (a) contain a forbidden character, or
      (b) end in the beginning of one: a proper prefix of its UTF-8.
    Special tokens (the stop ids among them) and ids without a token have no bytes and are never forbidden.

    No sequence of the other ids spells a forbidden character. Its first byte is a lead byte, which belongs to exactly one
    token of the sequence. Either all its bytes are in that token: (a). Or the token ends before the last of them, and so in
    a proper prefix: (b). What stands in tokens before and after makes no difference: a lead byte never continues a character.

    Nothing more is forbidden: a token that only continues characters stays, and so does a prefix that no forbidden
    character begins with. For zh all of E4 stays (Han and hexagrams); E3 goes, since it begins kana, and with it those Han
    below U+4000 that a vocabulary spells byte by byte.
    """
    if language not in LANGUAGES:
        raise OptionError(f"language {language!r} is unknown; expected one of {', '.join(LANGUAGES)}")
    scripts = LANGUAGES[language]
    if scripts is None:
        return []
    pattern, prefixes = _foreign(scripts)
    forbidden = []
    for id in range(vocabulary_size):
        code = tokenizer.token_bytes(id)
        if any(code[-n:] in prefixes for n in (1, 2, 3)) or pattern.search(code.decode("utf-8", errors="ignore")):
            forbidden.append(id)
    return forbidden


# --- The language of a text ------------------------------------------------------------------------------------------------

_HAN = regex.compile(r"\p{Script=Han}")
_LATIN_WORD = regex.compile(r"\p{Script=Latin}[\p{Script=Latin}\p{M}'’]*")
# Written Cantonese, in traditional and simplified characters. Left out on purpose, because written Mandarin has them too:
# 係 (關係), 咩, 囉, 嘞 (好嘞), 喎, 靚, 仲, 點解 (兩點解決), 邊度 (江邊度假), 而家 (而家庭), and 唔 alone, an interjection.
_CANTONESE = regex.compile(r"[嘅喺咗佢哋冇嚟嗰啲咁嘢㗎噉攞揾搵瞓冚啱睇諗谂嗌喐嘥孭氹啩乜攰]|[係系]咪|鍾意|钟意"
                           r"|唔[係系好知該该會会使同到得駛驶見见想要識识緊紧夠够明啱記记]")


def name_language(text: str) -> str:
    """ "zh", "yue" or "en"; "" for a text with neither Han nor Latin letters.

    One Han character counts as much as one Latin word, so Chinese with some English words is Chinese. Chinese is "yue" with
    at least one mark of written Cantonese in 50 characters. Cantonese speech written down in standard Chinese has none and
    is "zh": nothing in the text tells them apart.
    """
    han, words = len(_HAN.findall(text)), len(_LATIN_WORD.findall(text))
    if not han and not words:
        return ""
    if words > han:
        return "en"
    return "yue" if 50 * len(_CANTONESE.findall(text)) >= han else "zh"


_JOINED = regex.compile(r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Block=CJK_Symbols_and_Punctuation}，。！？；：]")


def spaced(texts: list[str]) -> list[str]:
    """Stretches of text that follow each other, each with the space that stands before it: scripts that are written
    without have none. The first one is taken as if others came before, as Whisper's segments are; `join` is all of them.

    >>> spaced(["八二", "三"]), spaced(["eight two", "three"])
    (['八二', '三'], [' eight two', ' three'])
    """
    found, last = [], ""
    for text in map(str.strip, texts):
        alone = not text or _JOINED.match(text[0]) or last and _JOINED.match(last)
        found.append(text if alone else f" {text}")
        last = text[-1:] or last
    return found


def join(texts: list[str]) -> str:
    """The same as one text.

    >>> join(["八二", "三"]), join(["eight two", "three"])
    ('八二三', 'eight two three')
    """
    return "".join(spaced(texts)).lstrip(" ")
