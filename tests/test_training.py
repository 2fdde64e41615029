"""The trainer on a task of seconds: two tones are two words. It learns, resumes, fine-tunes, and refuses bad data."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import glmasr
from glmasr.config import read_config
from glmasr.tokenizer import ALPHABET

TRAIN = [sys.executable, str(Path(__file__).parent.parent / "training" / "train.py")]
SMALL = ["--threads", "1", "--batch-seconds", "12", "--warmup", "5", "--rate", "3e-3", "--mean", "0.8", "--eval-every", "1000"]
SPECIAL = ["<|user|>", "<|assistant|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|pad|>"]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A folder with train.jsonl, and model/ with a configuration and a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("task")
    rng, lines = np.random.default_rng(0), []
    for number in range(24):
        word, hertz = [("a", 400), ("b", 1800)][number % 2]
        time = np.arange(int(rng.uniform(0.6, 1.2) * 16_000)) / 16_000
        soundfile.write(folder / f"{number}.wav", 0.4 * np.sin(2 * np.pi * hertz * time) + 0.01 * rng.standard_normal(len(time)), 16_000)
        lines.append(json.dumps({"audio": f"{number}.wav", "text": word, "speaker": f"s{number % 3}"}))
    (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    model = folder / "model"
    model.mkdir()
    step = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    added = [{"id": 256 + i, "content": name, "special": True} for i, name in enumerate(SPECIAL)]
    vocab = {character: number for number, character in enumerate(ALPHABET)}
    (model / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": []}, "pre_tokenizer": step,
                                                      "decoder": step, "added_tokens": added}), encoding="utf-8")
    audio_config = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "num_mel_bins": 80,
                    "head_dim": 16}
    text_config = {"vocab_size": 261, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                   "num_key_value_heads": 1, "head_dim": 16, "eos_token_id": [256]}
    config = {"model_type": "glmasr", "audio_config": audio_config, "text_config": text_config, "audio_token_id": 260}
    processor = {"feature_extractor": {"chunk_length": 2, "feature_size": 80}, "default_transcription_prompt": "?"}
    for name, values in (("config.json", config), ("processor_config.json", processor)):
        (model / name).write_text(json.dumps(values), encoding="utf-8")
    assert read_config(model).window == 32_000
    return folder


def train(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([*TRAIN, *map(str, arguments)], capture_output=True, text=True, timeout=240)


def test_it_learns_resumes_and_writes_a_checkpoint(task):
    start = [task / "model", "--train", task / "train.jsonl", "--eval", task / "train.jsonl", "--out", task / "run", *SMALL]
    first = train(*start, "--steps", 40)
    assert first.returncode == 0, first.stderr
    assert "24 recordings" in first.stdout and "steps 0 to 40" in first.stdout and "word errors" in first.stderr + first.stdout
    second = train(*start, "--steps", 120)
    assert second.returncode == 0, second.stderr
    assert "steps 40 to 120" in second.stdout
    recogniser = glmasr.load(task / "run" / "model", dtype="float32")
    texts = [recogniser.transcribe(task / f"{number}.wav").text for number in range(24)]
    assert sum(text == "ab"[number % 2] for number, text in enumerate(texts)) >= 22, texts
    tuned = train(task / "run" / "model", "--train", task / "train.jsonl", "--without", "s0", "--out", task / "tuned", *SMALL, "--steps", 2,
                  "--rate", "1e-5")
    assert tuned.returncode == 0 and "16 recordings" in tuned.stdout, tuned.stderr
    before, after = (glmasr.load(task / name / "model", dtype="float32").model.decoder.embed.weight for name in ("run", "tuned"))
    assert 0 < (before - after).abs().max() < 1e-3      # it went on from the weights


@pytest.mark.parametrize("content, message", [
    ("", "no recordings"), ("not json\n", "line 1: expected"), ('{"audio": "0.wav"}\n', "line 1: expected"),
    ('{"audio": "missing.wav", "text": "a"}\n', "no such file"),
])
def test_bad_manifests_are_errors_of_one_line(task, content, message):
    manifest = task / "bad.jsonl"
    manifest.write_text(content, encoding="utf-8")
    done = train(task / "model", "--train", manifest, "--out", task / "never", *SMALL)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
