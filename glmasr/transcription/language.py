"""The language option of a model without language tokens: a rule on the vocabulary; names of languages; the language of
a text by name.

The model recognizes Mandarin (zh), Cantonese (yue) and English (en), and detects by itself which one is spoken; no
prompt for it was trained. What can be promised is what is written: `forbidden_ids` lists the vocabulary entries that
could put a letter of another script into the text, and a decoder that never picks them never writes one. zh and yue
share their scripts, so the choice between those two forbids nothing.

Unusual: a vocabulary entry is bytes, and may hold a part of a letter. So entries that only BEGIN a foreign letter are
forbidden as well.
"""

import difflib
import unicodedata
from collections.abc import Collection, Iterable
from functools import cache
from typing import Any

import regex

from ..errors import OptionError
from ..tokenizer import SentencePieceTokenizer, Tokenizer, TokenList
from ..writers.line_breaks import UNSPACED

AnyTokenizer = Tokenizer | SentencePieceTokenizer | TokenList

LANGUAGES: dict[str, tuple[str, ...] | None] = {  # the scripts that each may be written in; None: all
    "auto": None,
    "zh": ("Han", "Latin"),
    "yue": ("Han", "Latin"),
    "en": ("Latin",),
}
SHARED = ("Common", "Inherited", "Unknown")  # punctuation, digits, emoji, combining marks: of no script
# A squared kana, which is no letter, counts as shared too: it alone would take the prefix F0 9F from all emoji.
EXEMPT = "\U0001f200"


@cache
def _foreign(scripts: tuple[str, ...]) -> tuple[Any, frozenset[bytes]]:
    """A pattern (of `regex`) for the characters of other scripts, and every proper prefix of their UTF-8."""
    own = "".join(rf"\p{{Script={script}}}" for script in scripts)
    shared = "".join(rf"\p{{Script={script}}}" for script in SHARED) + EXEMPT
    # A letter that several scripts share (the long-vowel mark of kana, the micro sign) is not of the language's own.
    pattern = regex.compile(rf"[^{own}{shared}]|(?=\p{{L}})[^{own}]")
    everything = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
    characters = (character.encode() for character in pattern.findall(everything))
    return pattern, frozenset(code[:n] for code in characters for n in range(1, len(code)))


def forbidden_ids(tokenizer: AnyTokenizer, language: str, vocabulary_size: int) -> list[int]:
    """The ids below `vocabulary_size` that a language forbids, in order. Raises OptionError for an unknown language.

    Forbidden are the letters (Unicode category L) of all scripts but the language's own, and the other characters that
    belong to one such script, as Thai vowel marks do. Forbidden ids are those whose bytes
      (a) contain a forbidden character, or
      (b) end in the beginning of one: a proper prefix of its UTF-8.
    Special tokens (the stop ids among them) and ids without a token have no bytes and are never forbidden.

    No sequence of the other ids spells a forbidden character. Its first byte is a lead byte, which belongs to exactly
    one token of the sequence. Either all its bytes are in that token: (a). Or the token ends before the last of them,
    and so in a proper prefix: (b). What stands in tokens before and after makes no difference: a lead byte never
    continues a character.

    Nothing more is forbidden: a token that only continues characters stays, and so does a prefix that no forbidden
    character begins with. For zh all of E4 stays (Han and hexagrams); E3 goes, since it begins kana, and with it those
    Han below U+4000 that a vocabulary spells byte by byte.
    """
    if language not in LANGUAGES:
        raise OptionError(f"language {language!r} is unknown; expected one of {', '.join(LANGUAGES)}")
    scripts = LANGUAGES[language]
    if scripts is None:
        return []
    pattern, prefixes = _foreign(scripts)
    forbidden = []
    for token in range(vocabulary_size):
        code = tokenizer.token_bytes(token)
        if any(code[-n:] in prefixes for n in (1, 2, 3)) or pattern.search(code.decode("utf-8", errors="ignore")):
            forbidden.append(token)
    return forbidden


# ---- names of languages ----------------------------------------------------------------------------------------------

# Whisper's code: the other codes of ISO 639-1, -2 and -3 / its names in English, and in the language itself.
_NAMES = """
af: afr / afrikaans
am: amh / amharic, አማርኛ
ar: ara arb / arabic, العربية
as: asm / assamese, অসমীয়া
az: aze azj / azerbaijani, azeri, azərbaycan dili
ba: bak / bashkir, башҡорт теле
be: bel / belarusian, беларуская
bg: bul / bulgarian, български
bn: ben / bengali, bangla, বাংলা
bo: bod tib / tibetan, 藏语, 藏文, བོད་སྐད
br: bre / breton, brezhoneg
bs: bos / bosnian, bosanski
ca: cat / catalan, valencian, català
cs: ces cze / czech, čeština
cy: cym wel / welsh, cymraeg
da: dan / danish, dansk
de: deu ger / german, deutsch, 德语
el: ell gre / greek, ελληνικά
en: eng / english, 英语, 英文
es: spa / spanish, castilian, español, castellano, 西班牙语
et: est ekk / estonian, eesti
eu: eus baq / basque, euskara
fa: fas per pes / persian, farsi, فارسی
fi: fin / finnish, suomi
fo: fao / faroese, føroyskt
fr: fra fre / french, français, 法语
gl: glg / galician, galego
gu: guj / gujarati, ગુજરાતી
ha: hau / hausa
haw: / hawaiian, ʻōlelo hawaiʻi
he: heb iw / hebrew, עברית
hi: hin / hindi, हिन्दी, हिंदी
hr: hrv / croatian, hrvatski
ht: hat / haitian creole, haitian, kreyòl ayisyen
hu: hun / hungarian, magyar
hy: hye arm / armenian, հայերեն
id: ind in / indonesian, bahasa indonesia
is: isl ice / icelandic, íslenska
it: ita / italian, italiano
ja: jpn / japanese, 日本語, 日语
jw: jv jav / javanese, basa jawa
ka: kat geo / georgian, ქართული
kk: kaz / kazakh, қазақша
km: khm / khmer, cambodian, ខ្មែរ
kn: kan / kannada, ಕನ್ನಡ
ko: kor / korean, 한국어, 韩语
la: lat / latin, latina
lb: ltz / luxembourgish, letzeburgesch, lëtzebuergesch
ln: lin / lingala
lo: lao / lao, ລາວ
lt: lit / lithuanian, lietuvių
lv: lav lvs / latvian, latviešu
mg: mlg plt / malagasy
mi: mri mao / maori, māori
mk: mkd mac / macedonian, македонски
ml: mal / malayalam, മലയാളം
mn: mon khk / mongolian, монгол
mr: mar / marathi, मराठी
ms: msa may zsm / malay, bahasa melayu
mt: mlt / maltese, malti
my: mya bur / myanmar, burmese, မြန်မာ
ne: nep npi / nepali, नेपाली
nl: nld dut / dutch, flemish, nederlands, vlaams
nn: nno / nynorsk
no: nor nb nob / norwegian, norsk, bokmål
oc: oci / occitan
pa: pan / punjabi, panjabi, ਪੰਜਾਬੀ
pl: pol / polish, polski
ps: pus pbt / pashto, pushto, پښتو
pt: por / portuguese, português, 葡萄牙语
ro: ron rum mo mol / romanian, moldavian, moldovan, română
ru: rus / russian, русский, 俄语
sa: san / sanskrit
sd: snd / sindhi, سنڌي
si: sin / sinhala, sinhalese, සිංහල
sk: slk slo / slovak, slovenčina
sl: slv / slovenian, slovene, slovenščina
sn: sna / shona
so: som / somali, soomaali
sq: sqi alb als / albanian, shqip
sr: srp / serbian, српски, srpski
su: sun / sundanese, basa sunda
sv: swe / swedish, svenska
sw: swa swh / swahili, kiswahili
ta: tam / tamil, தமிழ்
te: tel / telugu, తెలుగు
tg: tgk / tajik, тоҷикӣ
th: tha / thai, ไทย
tk: tuk / turkmen
tl: tgl fil / tagalog, filipino
tr: tur / turkish, türkçe
tt: tat / tatar, татарча
uk: ukr / ukrainian, українська
ur: urd / urdu, اردو
uz: uzb uzn / uzbek, oʻzbekcha
vi: vie / vietnamese, tiếng việt
yi: yid ydd ji / yiddish, ייִדיש
yo: yor / yoruba, yorùbá
yue: / cantonese, 粤语, 粵語, 广东话, 廣東話, 白话, 廣州話, 广州话
zh: zho chi cmn / chinese, mandarin, 中文, 汉语, 漢語, 普通话, 普通話, 国语, 國語, 华语, 華語
"""
NAMES = dict(regex.findall(r"(\w+):.* / ([^,\n]+)", _NAMES))  # code -> English name, as openai/whisper has it
_CANTONESE_REGIONS = ("hk", "mo")  # whose Chinese is Cantonese when it is spoken
# BCP 47: language, extended language, script, region, variants, extensions.
_TAG = regex.compile(
    r"([a-z]{2,3})(?:-([a-z]{3}))?(?:-[a-z]{4})?(?:-([a-z]{2}|\d{3}))?"
    r"(?:-(?:[a-z0-9]{5,8}|\d[a-z0-9]{3}))*(?:-[a-z0-9](?:-[a-z0-9]{2,8})+)*"
)


def _plain(name: str) -> str:
    """In small letters, composed, with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", "-").split())


@cache
def _codes_and_names() -> tuple[dict[str, str], dict[str, str]]:
    """(codes, names) -> Whisper's code."""
    codes: dict[str, str] = {}
    names: dict[str, str] = {}
    for code, others, named in regex.findall(r"(\w+):(.*) / (.*)", _NAMES):
        codes |= dict.fromkeys((code, *others.split()), code)
        names |= dict.fromkeys(map(_plain, named.split(", ")), code)
    return codes, names


def canonical(name: str) -> str:
    """The code that models have for a language: that of ISO 639-1 where there is one, as Whisper has it, or "auto". A
    name that is none of a language is given back as it is: the model says what it knows.

    name    a code of ISO 639-1, -2 or -3, a tag of BCP 47 (large or small letters, "-" or "_"), a name in English or
            in the language itself.
            Chinese of Hong Kong and Macao is Cantonese, any other is Mandarin.

    >>> [canonical(name) for name in ("EN", "zh-CN", "zh_Hant_TW", "zh-HK", "cmn", "chinese", "廣東話")]
    ['en', 'zh', 'zh', 'yue', 'zh', 'zh', 'yue']
    >>> [canonical(name) for name in ("English", "ger", "pt-BR", "Auto", "dothraki")]
    ['en', 'de', 'pt', 'auto', 'dothraki']
    """
    if not isinstance(name, str) or len(name) > 100:
        return name
    codes, names = _codes_and_names()
    plain = _plain(name)
    if plain == "auto" or plain in names:
        return names.get(plain, "auto")
    tag = _TAG.fullmatch(plain)
    if not tag or tag[1] not in codes:
        return name
    code, extended, region = codes[tag[1]], tag[2], tag[3]
    if extended:  # such as zh-yue; zh-nan is neither Mandarin nor Cantonese
        return codes[extended] if code == "zh" and extended in ("cmn", "yue") else name
    return "yue" if code == "zh" and tag[1] != "cmn" and region in _CANTONESE_REGIONS else code


def listed(names: object) -> tuple[str, ...]:
    """Names of languages, given as several, or as one text with commas between them. Raises OptionError.

    >>> listed("zh, en"), listed(["zh"]), listed(None)
    (('zh', 'en'), ('zh',), ())
    """
    if isinstance(names, str):
        return tuple(name for name in map(str.strip, names.split(",")) if name)
    if names is None or isinstance(names, Iterable):
        found = tuple(names or ())
        if all(isinstance(name, str) for name in found):
            return found
    raise OptionError(
        f"languages is {names!r}, expected names of languages, such as ('zh', 'yue', 'en') or 'zh,yue,en'"
    )


def alike(name: str, known: Collection[str]) -> str:
    """What may have been meant by a name that is none of those `known`, for a message: "" or " (did you mean ...?)"."""
    codes, names = _codes_and_names()
    if not isinstance(name, str) or len(name) > 100 or canonical(name) in codes.values():
        return ""
    candidates = [other for other, code in (names | codes).items() if code in known]
    close = difflib.get_close_matches(_plain(name), candidates, 3, 0.75)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


# ---- the language of a text ------------------------------------------------------------------------------------------

SENTENCE = 4  # words or characters: fewer may be a name within another language
_LETTER = regex.compile(r"\p{L}")
_HAN = regex.compile(r"\p{Script=Han}")
_LATIN_WORD = regex.compile(r"\p{Script=Latin}[\p{Script=Latin}\p{M}'’]*")
# Written Cantonese, in traditional and simplified characters. Left out on purpose, because written Mandarin has them
# too: 係 (關係), 咩, 囉, 嘞 (好嘞), 喎, 靚, 仲, 點解 (兩點解決), 邊度 (江邊度假), 而家 (而家庭), and 唔 alone, an
# interjection.
_CANTONESE = regex.compile(
    r"[嘅喺咗佢哋冇嚟嗰啲咁嘢㗎噉攞揾搵瞓冚啱睇諗谂嗌喐嘥孭氹啩乜攰]|[係系]咪|鍾意|钟意"
    r"|唔[係系好知該该會会使同到得駛驶見见想要識识緊紧夠够明啱記记]"
)


def name_language(text: str) -> str:
    """ "zh", "yue" or "en"; "" for a text with neither Han nor Latin letters.

    One Han character counts as much as one Latin word, so Chinese with some English words is Chinese. Chinese is "yue"
    with at least one mark of written Cantonese in 50 characters. Cantonese speech written down in standard Chinese has
    none and is "zh": nothing in the text tells them apart.
    """
    han, words = len(_HAN.findall(text)), len(_LATIN_WORD.findall(text))
    if not han and not words:
        return ""
    if words > han:
        return "en"
    return "yue" if 50 * len(_CANTONESE.findall(text)) >= han else "zh"


def written_in(text: str, detected: str) -> str:
    """The language of a text: the one that was detected. Where none was, or where it can't be, the text tells: of "zh",
    "yue" and "en", a whole sentence in the letters of the other. (Among those who write Latin letters, nothing tells
    English from German.)

    >>> written_in("Turn left at the church.", "zh"), written_in("请在教堂左转", "en")
    ('en', 'zh')
    >>> written_in("OK", "zh"), written_in("打开 iPhone", "en")
    ('zh', 'en')
    """
    han, words = _HAN.findall(text), _LATIN_WORD.findall(text)
    own = words if detected in ("zh", "yue") else han if detected == "en" else []
    foreign = len(own) >= SENTENCE and len(_LETTER.findall(text)) == len(_LETTER.findall("".join(own)))
    return name_language(text) if foreign or not detected else detected


def spaced(texts: list[str]) -> list[str]:
    """Stretches of text that follow each other, each with the space that stands before it: scripts that are written
    without have none. The first one is taken as if others came before, as Whisper's segments are; `join` is all of
    them.

    >>> spaced(["八二", "三"]), spaced(["eight two", "three"])
    (['八二', '三'], [' eight two', ' three'])
    """
    found, last = [], ""
    for text in map(str.strip, texts):
        alone = not text or UNSPACED.match(text[0]) or last and UNSPACED.match(last)
        found.append(text if alone else f" {text}")
        last = text[-1:] or last
    return found


def join(texts: list[str]) -> str:
    """The same as one text.

    >>> join(["八二", "三"]), join(["eight two", "three"])
    ('八二三', 'eight two three')
    """
    return "".join(spaced(texts)).lstrip(" ")
