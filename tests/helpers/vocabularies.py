"""Texts that are hard for a tokenizer, and added tokens."""

import unicodedata

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SENTENCES = [
    "The quick brown fox doesn't jump; it's 12345.67 metres, they'll say — “so what?”\n",
    "Où est l'été à Zürich? Größe, naïve café, Łódź, ñandú, Ångström.\r\n",
    "请把这段语音转写成文字。大家好,今天天气不错,我们去公园散步吧!",
    "佢哋喺度做緊嘢,唔該晒。",
    "こんにちは、世界。カタカナとひらがな。",
    "안녕하세요, 세계! 한국어 문장입니다.",
    "مرحبا بالعالم، كيف حالك؟ ١٢٣",
    "שלום עולם, מה שלומך?",
    "สวัสดีชาวโลก ภาษาไทย",
    "नमस्ते दुनिया, कैसे हो? १२३",
    "Привет, мир! Как дела? Ёлка.",
    "Γειά σου Κόσμε, ὦ ἄνδρες",
    "👨‍👩‍👧‍👦 👍🏽 🏳️‍🌈 ☕️ 🇨🇳",
    "e\u0301 a\u030a\u0323 \u1100\u1161\u11a8 \ufb01 \u2126 \u212b Ⅷ ½ ²",
    "tab\tnewline\n\n\n  spaces   \u3000\u00a0\u2003\u0085\u180e\u200b\x1c\x1f\x00\x07\u2028\ufeff",
    "I'M HERE, YOU'LL SEE 'ſ 'S 'd",
    "𝐀𝟙 𠮷野家 🀄 \U0010fffd",
    "def f(x):\n    return x ** 2  # ok\n",
]
ADDED = [
    {"content": "<|endoftext|>", "special": True},
    {"content": "<|user|>", "special": True},
    {"content": "<|大|>", "special": True},
    {"content": "<|user|>\n", "special": True},
    {"content": "<l>", "lstrip": True, "special": True},
    {"content": "<r>", "rstrip": True},
    {"content": "<lr>", "lstrip": True, "rstrip": True},
    {"content": "word", "single_word": True},
    {"content": "été", "single_word": True, "normalized": True},
    {"content": "Å", "normalized": True, "rstrip": True},
    {"content": "½x", "normalized": True},
    {"content": "<|n|>", "normalized": True, "special": True},
    {"content": "é"},
    {"content": "   ", "lstrip": False},
    {"content": "a b", "normalized": True, "lstrip": True},
]
_RANGES = [
    (0, 0x80),
    (0x80, 0x250),
    (0x300, 0x370),
    (0x370, 0x600),
    (0x900, 0x980),
    (0xE00, 0xE80),
    (0x1100, 0x1200),
    (0x2000, 0x2100),
    (0x3000, 0x3100),
    (0x4E00, 0x9FA6),
    (0xAC00, 0xD7A4),
    (0xF900, 0x10000),
    (0x1F300, 0x1F700),
    (0x1D400, 0x1D800),
    (0x20000, 0x20100),
]
# Only what this Python's Unicode knows: newer characters differ between any two libraries.
CHARACTERS = [[c for c in map(chr, range(*r)) if unicodedata.category(c) not in ("Cn", "Cs")] for r in _RANGES]


def random_text(rng):
    parts = []
    for _ in range(rng.randint(0, 8)):
        kind = rng.random()
        if kind < 0.35:
            sentence = rng.choice(SENTENCES)
            start = rng.randrange(len(sentence))
            parts.append(sentence[start : start + rng.randint(1, 12)])
        elif kind < 0.65:
            script = rng.choice(CHARACTERS)
            parts.append("".join(rng.choices(script, k=rng.randint(1, 6))))
        elif kind < 0.8:
            parts.append(rng.choice(ADDED)["content"])
        else:
            parts.append(
                rng.choice(
                    [
                        " ",
                        "  ",
                        "\n",
                        " \n ",
                        "\t",
                        "\u3000",
                        "'s",
                        "'RE",
                        "_",
                        "12",
                        "1234",
                        "\u200d",
                        "e\u0301",
                        "A\u030a",
                        "½",
                        "½x",
                        "\x1f",
                    ]
                )
            )
    return "".join(parts)


def complete(data, added=ADDED):
    """A trained file plus added tokens, with the ids that the library gives them: the next free ones, or those of the
    base token."""
    vocab, tokens, free = data["model"]["vocab"], [], len(data["model"]["vocab"])
    for token in added:
        number = vocab.get(token["content"])
        if number is None:
            number, free = free, free + 1
        tokens.append(
            {
                "id": number,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": False,
                **token,
            }
        )
    return {**data, "added_tokens": tokens}
