"""Makes the directory from which `demo-article` is trained: configuration and SentencePiece vocabulary; no weights.

    python training/make_article.py OUT

The article's system in small: hanzi, pinyin and English subwords share one vocabulary, and after its pieces come the
special tokens and the times. The same files come out each time, to the byte.
"""

import argparse
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
from sentencepiece import SentencePieceTrainer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from glmasr.checkpoint.config_json import to_published  # noqa: E402
from glmasr.config import TIME_STEP, CrossDecoderConfig, EncoderDecoderConfig, SinusoidalEncoderConfig  # noqa: E402
from glmasr.tokenizer import SentencePieceTokenizer, time_token  # noqa: E402

PIECES = 700  # 256 of them bytes
WINDOW_SECONDS = 4  # the last time token; twice as many words in a window take several times as long to learn
CONVOLUTIONS = (
    (128, 80, 20),
    (160, 6, 4),
    (192, 4, 2),
)  # frames of 10 ms that see 26 ms, with fewer layers than the preset: learned sooner
SPECIAL = [
    "<|endoftranscript|>",
    "<|startoftranscript|>",
    "<|zh|>",
    "<|yue|>",
    "<|en|>",
    "<|transcribe|>",
    "<|nospeech|>",
    "<|notimestamps|>",
]  # in this order: the model finds <|nospeech|> before <|notimestamps|> and the times after it

HANZI = "零一二三四五六七八九"
WORDS = "zero one two three four five six seven eight nine"
PINYIN = "ling2 yi1 er4 san1 si4 wu3 liu4 qi1 ba1 jiu3"
SENTENCES = [
    ("今天天气很好", "jin1 tian1 tian1 qi4 hen3 hao3"),
    ("我们去公园散步", "wo3 men5 qu4 gong1 yuan2 san4 bu4"),
    ("请问现在几点", "qing3 wen4 xian4 zai4 ji3 dian3"),
    ("他的电话号码是多少", "ta1 de5 dian4 hua4 hao4 ma3 shi4 duo1 shao3"),
    ("她在家里听音乐", "ta1 zai4 jia1 li3 ting1 yin1 yue4"),
    ("这本书很有意思", "zhe4 ben3 shu1 hen3 you3 yi4 si5"),
    ("大家都说中文", "da4 jia1 dou1 shuo1 zhong1 wen2"),
    ("你想喝水吗", "ni3 xiang3 he1 shui3 ma5"),
    ("明天早上见", "ming2 tian1 zao3 shang5 jian4"),
    ("老师和学生不来了", "lao3 shi1 he2 xue2 sheng5 bu4 lai2 le5"),
    ("谢谢", "xie4 xie5"),
]
CANTONESE = "佢哋喺度食嘢，唔該。我嘅電話號碼係幾多？今日冇人嚟。"
ENGLISH = """
a recognizer listens to a short recording and writes down what it hears. the sound is cut into small pieces, and for each of them
the encoder makes a row of numbers. the decoder reads these rows and writes one token after the other, until it comes to the end of
the transcript. where a word is common, it is one token; where it is rare, it is spelled with several. there are three languages
here: mandarin, cantonese and english. the first two are written with the same characters, and so the model is told with a token of
its own which of them it should expect. numbers are read out one digit at a time, as people do on the telephone. when nobody
is speaking, the model should say so and write nothing at all. it can also write the time at which each part begins and ends.
what we have here is a small model that was trained on little data, and it knows nothing but numbers; the larger one would have
learned from many thousands of hours. please call me back tomorrow morning, and don't forget to bring your own book with you.
"""


def corpus() -> list[str]:
    """Lines to learn the pieces from: pinyin with tones and without. What shall be one piece comes often enough to
    win."""
    syllables = [pinyin for _, pinyin in SENTENCES]
    digits, others = ([*lines, *(re.sub("[1-5]", "", line) for line in lines)] for lines in ([PINYIN], syllables))
    return [WORDS, *digits] * 30 + others * 5 + [*"0123456789"] + ENGLISH.split("\n")


def make_model() -> bytes:
    """A SentencePiece model, the content of `tokenizer.model`.

    BPE rather than unigram: its scores are ranks of merges, the same on every machine; those of unigram are floats from
    an iteration. A Chinese character is one piece wherever it stands: as a user-defined symbol it never joins a
    neighbor, nor the space in front. With `add_dummy_prefix` an English word is one piece wherever it stands as well;
    it costs a Chinese text one `▁` at its beginning.
    """
    characters = dict.fromkeys(HANZI + "".join(text for text, _ in SENTENCES) + CANTONESE)
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        user_defined_symbols=list(characters),
        character_coverage=1.0,
        split_by_number=False,  # so that a syllable and its tone are one piece
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=True,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,  # a transcript begins and ends with special tokens, below
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def make_added() -> dict[str, int]:
    """Special token -> id, the content of `added_tokens.json`. None of them is a piece: a text that is encoded by the
    model alone never becomes one, whatever it spells."""
    times = [time_token(step * TIME_STEP) for step in range(round(WINDOW_SECONDS / TIME_STEP) + 1)]
    return {token: id for id, token in enumerate([*SPECIAL, *times], start=PIECES)}


def make_config(tokenizer: SentencePieceTokenizer, waveform: bool = False) -> EncoderDecoderConfig:
    """The article's design in small. With `waveform` the article's convolutions stand in front, instead of the
    log-mel."""
    encoder = SinusoidalEncoderConfig(width=192, layers=6, heads=4, hidden=640, positions=50 * WINDOW_SECONDS)
    if waveform:
        encoder = replace(encoder, positions=100 * WINDOW_SECONDS, convolutions=CONVOLUTIONS)
    name = {token.strip("<|>"): id for token, id in tokenizer.special.items()}
    return EncoderDecoderConfig(
        encoder,
        CrossDecoderConfig(vocabulary=tokenizer.size, width=192, layers=2, heads=4, hidden=384, positions=128),
        window_seconds=WINDOW_SECONDS,
        start=name["startoftranscript"],
        end=name["endoftranscript"],
        languages={language: name[language] for language in ("zh", "yue", "en")},
        tasks={"transcribe": name["transcribe"]},
        no_timestamps=name["notimestamps"],
        latest_first_time=None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--waveform", action="store_true", help="with convolutions on the raw waveform in place of the log-mel"
    )
    args = parser.parse_args()
    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    model, added = make_model(), make_added()
    (out / "tokenizer.model").write_bytes(model)
    tokenizer = SentencePieceTokenizer(model, added)
    config = make_config(tokenizer, args.waveform)
    for name, values in {"added_tokens.json": added, **to_published(config, torch.bfloat16)}.items():
        (out / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{out}: a vocabulary of {tokenizer.size}, ready for training/train.py --from-scratch")


if __name__ == "__main__":
    main()
