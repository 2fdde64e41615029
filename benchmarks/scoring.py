"""Texts as errors are counted: English by Whisper's normalizer; Chinese in characters, simplified, without punctuation, digits as hanzi."""

import unicodedata
from functools import lru_cache

DIGITS = str.maketrans("0123456789", "零一二三四五六七八九")


@lru_cache(None)
def _english():
    from whisper.normalizers import EnglishTextNormalizer
    return EnglishTextNormalizer()


@lru_cache(None)
def _simplified():
    from opencc import OpenCC
    return OpenCC("t2s").convert


def normalised(text: str, language: str) -> str:
    if language == "en":
        return _english()(text)
    text = _simplified()(unicodedata.normalize("NFKC", text)).translate(DIGITS).lower()
    return "".join(letter for letter in text if unicodedata.category(letter)[0] in "LN")
