"""A task that a tiny model learns within seconds: two tones are two words. And untrained Whispers, small enough to be
trained in a test."""

import json
from pathlib import Path

import numpy as np
import soundfile
import torch

from glmasr import weights
from glmasr.checkpoint.vocabulary import ALPHABET
from glmasr.config import CrossDecoderConfig, EncoderDecoderConfig, SinusoidalEncoderConfig
from glmasr.tokenizer import time_token
from helpers import ROOT

FOLDER = ROOT / "training"
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|zh|>", "<|en|>", "<|transcribe|>", "<|startofprev|>"]
SPECIAL += ["<|nospeech|>", "<|notimestamps|>", *(time_token(step * 0.02) for step in range(101))]


def tone(hertz: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Samples (S,) at 16 kHz with a little noise."""
    time = np.arange(int(seconds * 16_000)) / 16_000
    return (0.4 * np.sin(2 * np.pi * hertz * time) + 0.01 * rng.standard_normal(len(time))).astype(np.float32)


def tones(folder: Path, count: int = 8) -> list[dict]:
    """Recordings of "Be" and "So" in a folder, and a line of a manifest for each."""
    rng, lines = np.random.default_rng(0), []
    for number in range(count):
        word, hertz = [("Be", 400), ("So", 1800)][number % 2]
        soundfile.write(folder / f"{number}.wav", tone(hertz, rng.uniform(0.6, 1.2), rng), 16_000)
        lines.append({"audio": f"{number}.wav", "text": word, "language": "en"})
    return lines


def write_manifest(path: Path, lines: list[dict]) -> Path:
    """A manifest of JSON lines."""
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return path


def tiny_whisper(folder: Path, languages: bool = True, seed: int = 0) -> Path:
    """A checkpoint of random weights in float32, with windows of 2 s and a vocabulary of bytes; without `languages` as
    a Whisper for English alone."""
    known = {"zh": 258, "en": 259} if languages else {}
    config = EncoderDecoderConfig(
        SinusoidalEncoderConfig(width=32, layers=2, heads=2, hidden=64, positions=100),
        CrossDecoderConfig(vocabulary=256 + len(SPECIAL), width=32, layers=2, heads=2, hidden=64, positions=64),
        window_seconds=2,
        start=257,
        end=256,
        languages=known,
        tasks={"transcribe": 260} if languages else {},
        several_languages=languages,
        no_timestamps=263,
        latest_first_time=None,
    )
    torch.manual_seed(seed)
    model = weights.build(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and parameter.requires_grad:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    folder.mkdir(parents=True, exist_ok=True)
    weights.save(model, folder, torch.float32)
    step = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    added = [{"id": 256 + i, "content": name, "special": True} for i, name in enumerate(SPECIAL)]
    vocabulary = {character: number for number, character in enumerate(ALPHABET)}
    tokenizer = {
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        "pre_tokenizer": step,
        "decoder": step,
        "added_tokens": added,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder
