"""The logits of a model of the package and of Transformers' model of the same checkpoint, for the same sound and tokens."""

import json

import numpy as np
import pytest
import torch

import glmasr
from glmasr.config import EncoderDecoderConfig

NEAR = 1e-4  # of logits


def logits(model, samples=12_000, count=6):
    """(count, V) of a model of the package, which is told the tokens; and the tokens, and the mel."""
    sound = torch.from_numpy(np.random.default_rng(1).standard_normal(samples).astype(np.float32) * 0.1)
    window = model.config.window
    mel = glmasr.audio.log_mel(glmasr.audio.windows(sound, window), model.config.encoder.bands)
    if isinstance(model.config, EncoderDecoderConfig):
        rows = model.encode(mel)
        prompt = [model.config.start, *range(40, 40 + count)]
    else:
        rows = model.encode(mel, [samples])
        placeholders = [model.config.audio_token] * len(rows[0])
        prompt = [70, *placeholders, *range(40, 40 + count)]
    found = []
    for end in range(len(prompt) - count, len(prompt)):
        cache = model.new_cache(1, 64)
        found.append(model.prefill(rows, [prompt[:end]], cache)[0])
    return torch.stack(found), prompt, mel


def their_logits(theirs, prompt, mel, count=6):
    """The same of Transformers' model."""
    if hasattr(theirs.config, "encoder_layers"):
        found = theirs(input_features=mel, decoder_input_ids=torch.tensor([prompt])).logits
    else:
        mask = torch.zeros(mel.shape[0], mel.shape[2], dtype=torch.long)
        mask[:, : 12_000 // 160] = 1
        found = theirs(input_ids=torch.tensor([prompt]), input_features=mel, input_features_mask=mask).logits
    return found[0, -count - 1 : -1]


def transformers_model(folder):
    transformers = pytest.importorskip("transformers")
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()
