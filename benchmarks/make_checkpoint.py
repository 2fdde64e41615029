"""Makes a checkpoint of the published size and format with random weights, for measuring and for comparing with
Transformers.

    python benchmarks/make_checkpoint.py OUT                4.5 GB, GLM-ASR-Nano-2512 with other numbers in it
    python benchmarks/make_checkpoint.py OUT --layers 2     0.8 GB, full width, two layers each in encoder and decoder
    python benchmarks/make_checkpoint.py OUT --small        65 MB, narrow as well: for trying out the other scripts

It writes nonsense, and takes as long over it as the published weights. Only one tensor is in memory at a time.
"""

import argparse
import json
import math
import struct
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from glmasr.checkpoint.config_json import to_published  # noqa: E402
from glmasr.checkpoint.vocabulary import ALPHABET  # noqa: E402
from glmasr.config import DecoderConfig, EncoderConfig, GlmAsrConfig  # noqa: E402
from glmasr.model import GlmAsr  # noqa: E402
from glmasr.weights import FORMATS, their_name  # noqa: E402
from training.published import SPECIAL, SPLIT, TEMPLATE  # noqa: E402

# The pieces of the prompt and their published ids. A byte's id is the byte, so "\n" is 10.
PIECES = {"Please": 14215, "Ġtrans": 1700, "cribe": 8091, "Ġthis": 643, "Ġaudio": 14812, "Ġinto": 1636, "Ġtext": 2815}
SMALL = GlmAsrConfig(
    encoder=EncoderConfig(width=128, layers=2, heads=2, key_heads=2, hidden=512),
    decoder=DecoderConfig(width=256, layers=2, heads=4, key_heads=2, head_size=64, hidden=768),
)


# -- weights
# -------------------------------------------------------------------------------------------------------------


def scale(name: str, shape: torch.Size, config: GlmAsrConfig) -> float:
    """Standard deviation of a parameter's noise.

    A matrix keeps the size of what goes through it, and the 2 * layers branches that are added to the residual stream
    are as large together as what they are added to: activations stay near 1 at any depth, as far as bfloat16 is
    concerned.
    """
    if len(shape) == 1:
        return 0.1  # biases around 0, norms around 1
    if name == "decoder.embed.weight":
        return 1.0  # a table: nothing is summed
    layers = config.encoder.layers if name.startswith("encoder") else config.decoder.layers
    added = name.endswith((".attn.out.weight", ".mlp.down.weight"))
    return math.prod(shape[1:]) ** -0.5 * ((2 * layers) ** -0.5 if added else 1.0)


def write_weights(path: Path, config: GlmAsrConfig, seed: int) -> None:
    """A safetensors file, tensor by tensor: 8 bytes of header length, the header, the numbers."""
    with torch.device("meta"):
        model = GlmAsr(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * shape.numel()
        header[their_name(FORMATS["transformers"].table, name)] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8 bytes
    generator = torch.Generator().manual_seed(seed)
    with open(path, "wb") as file, tqdm(total=end, unit="B", unit_scale=True, desc=path.name) as progress:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            noise = torch.randn(shape, generator=generator).mul_(scale(name, shape, config))
            if len(shape) == 1 and "norm" in name and name.endswith("weight"):
                noise += 1
            file.write(noise.bfloat16().flatten().view(torch.uint8).numpy().data)
            progress.update(2 * shape.numel())


# -- tokenizer
# -----------------------------------------------------------------------------------------------------------


def make_tokenizer(config: GlmAsrConfig) -> dict:
    """A `tokenizer.json` of the published size, in which the prompt and the special tokens have their published ids."""
    size = config.stop[0]  # the special tokens follow the 59,246 others
    vocabulary = {character: byte for byte, character in enumerate(ALPHABET)} | PIECES
    merges = {}  # from the left, character by character: a table as ordered set
    for piece in PIECES:
        merges |= {(piece[:end], piece[end]): None for end in range(1, len(piece))}
    free = iter(sorted(set(range(size)) - set(vocabulary.values())))
    for left, right in merges:
        if left + right not in vocabulary:
            vocabulary[left + right] = next(free)
    vocabulary |= {f"Ġword{number}": number for number in free}
    added = [*SPECIAL, *(f"<|{number}|>" for number in range(size + len(SPECIAL), config.decoder.vocabulary))]
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "post_processor": None,
        "added_tokens": [
            {
                "id": number,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, name in enumerate(added, size)
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
            "merges": [list(pair) for pair in merges],
        },
    }


# -- the directory
# -------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--layers", type=int, metavar="N", help="this many layers in the encoder and in the decoder, at full width"
    )
    size.add_argument("--small", action="store_true", help="two narrow layers in each")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = SMALL if args.small else GlmAsrConfig()
    if args.layers:
        config = replace(
            config,
            encoder=replace(config.encoder, layers=args.layers),
            decoder=replace(config.decoder, layers=args.layers),
        )

    args.out.mkdir(parents=True, exist_ok=True)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.decoder.positions,
    }
    files = {
        "tokenizer.json": make_tokenizer(config),
        "tokenizer_config.json": settings,
        **to_published(config, "bfloat16"),
    }
    for name, values in files.items():
        (args.out / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (args.out / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    write_weights(args.out / "model.safetensors", config, args.seed)


if __name__ == "__main__":
    main()
