"""Makes the directory from which the demo checkpoint is trained: configuration, tokenizer, chat template; no weights.

    python training/make_demo.py OUT

The published design in small: nothing differs from GLM-ASR-Nano-2512 but the sizes and a window of 4 s: twice as many
words in a window take several times as long to learn.
"""

import argparse
import json
import sys
from pathlib import Path

try:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
except ImportError:
    sys.exit("training/make_demo.py needs the package tokenizers: pip install '.[train]'")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from glmasr.checkpoint.config_json import to_published  # noqa: E402
from glmasr.config import DecoderConfig, EncoderConfig, GlmAsrConfig  # noqa: E402
from training.published import SPECIAL, SPLIT, TEMPLATE  # noqa: E402

WORDS = "zero one two three four five six seven eight nine"
HANZI = "零一二三四五六七八九"


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE whose merges make each digit, and each word of the instruction, one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [WORDS, *WORDS.split(), *HANZI, GlmAsrConfig().instruction]
    trainer = trainers.BpeTrainer(
        vocab_size=4096, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def make_config(tokenizer: Tokenizer) -> GlmAsrConfig:
    return GlmAsrConfig(
        encoder=EncoderConfig(
            bands=128, width=192, layers=6, heads=4, key_heads=4, head_size=48, hidden=768, rotary=24
        ),
        decoder=DecoderConfig(
            vocabulary=tokenizer.get_vocab_size(),
            width=128,
            layers=2,
            heads=4,
            key_heads=2,
            head_size=32,
            hidden=384,
            positions=1024,
        ),
        audio_token=tokenizer.token_to_id("<|pad|>"),
        stop=tuple(tokenizer.token_to_id(name) for name in ("<|endoftext|>", "<|user|>", "<|observation|>")),
        window_seconds=4,
        longest_seconds=60,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
    }
    for name, values in {"tokenizer_config.json": settings, **to_published(make_config(tokenizer), "bfloat16")}.items():
        (out / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{out}: a vocabulary of {tokenizer.get_vocab_size()}, ready for training/train.py --from-scratch")


if __name__ == "__main__":
    main()
