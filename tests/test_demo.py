"""The demo checkpoint inside the package: it recognizes the examples, and Transformers loads it as it is and agrees."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import glmasr
from glmasr import audio, decode
from glmasr.checkpoint import hub

EXAMPLES = Path(__file__).parent.parent / "examples"
TEXTS = json.loads((EXAMPLES / "texts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def demo():
    return glmasr.load("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def published():
    """(processor, {dtype: model}) as Transformers loads the folder."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = pytest.importorskip("transformers")
    return (
        transformers.AutoProcessor.from_pretrained(hub.BUILT_IN["demo"]),
        {
            dtype: transformers.GlmAsrForConditionalGeneration.from_pretrained(hub.BUILT_IN["demo"], dtype=dtype).eval()
            for dtype in (torch.float32, torch.bfloat16)
        },
    )


@pytest.mark.parametrize("name", TEXTS)
def test_the_examples_are_recognized(demo, name):
    said = TEXTS[name]
    transcript = demo.transcribe(EXAMPLES / name)
    assert transcript.text == said["text"]
    assert not transcript.warnings
    # Nothing in a string of digits tells written Cantonese from Mandarin.
    assert transcript.language == {"yue": "zh"}.get(said["language"], said["language"])
    assert demo.transcribe(EXAMPLES / name, said["language"]).text == said["text"]
    assert demo.transcribe(EXAMPLES / name, beams=5).text == said["text"]


def test_the_language_rule_keeps_its_letters(demo):
    """English letters only, from Mandarin speech; and Mandarin speech is still written with --lang yue."""
    text = demo.transcribe(EXAMPLES / "zh.wav", "en").text
    assert text and all(
        letter.isascii() or letter == "\ufffd" for letter in text
    )  # no answer is likely, so it is sampled
    assert demo.transcribe(EXAMPLES / "zh.wav", "yue").text == TEXTS["zh.wav"]["text"]


def theirs(published, dtype, samples, max_new, **options) -> tuple[list[int], list[int]]:
    """(prompt ids, answer ids without the stop) of Transformers for samples at 16 kHz."""
    processor, models = published
    inputs = processor.apply_transcription_request(samples)
    inputs["input_features"] = inputs["input_features"].to(dtype)
    ids = models[dtype].generate(**inputs, do_sample=False, max_new_tokens=max_new, **options)[0].tolist()
    prompt, answer = ids[: inputs["input_ids"].shape[1]], ids[inputs["input_ids"].shape[1] :]
    stop = set(models[dtype].generation_config.eos_token_id)
    return prompt, answer[: next((i for i, token in enumerate(answer) if token in stop), len(answer))]


def ours(recognizer, samples, max_new, beams=1) -> tuple[list[int], list[int]]:
    heard = recognizer.family.embed(torch.from_numpy(samples))
    prompt = recognizer.model.prompt(recognizer.tokenizer, len(heard))
    search = {"stop": recognizer.config.stop, "max_new": max_new}
    if beams == 1:
        return prompt, decode.greedy(recognizer.model, [heard], [prompt], **search)[0].ids
    return prompt, decode.beam(recognizer.model, [heard], [prompt], width=beams, **search)[0][0].ids


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("beams", [1, 5])
def test_transformers_gives_the_same_ids(demo, published, name, beams):
    samples = audio.load(EXAMPLES / name).numpy()
    assert ours(demo, samples, 40, beams) == theirs(published, torch.float32, samples, 40, num_beams=beams)


@pytest.mark.parametrize("name", TEXTS)
def test_transformers_gives_the_same_ids_in_bfloat16(published, name):
    samples = audio.load(EXAMPLES / name).numpy()
    recognizer = glmasr.load("demo", device="cpu", dtype="bfloat16")
    assert ours(recognizer, samples, 40) == theirs(published, torch.bfloat16, samples, 40)


def test_transformers_gives_the_same_ids_for_a_recording_of_four_windows(demo, published):
    parts = [audio.load(EXAMPLES / name).numpy() for name in TEXTS]
    samples = np.concatenate([np.concatenate((part, np.zeros(4000, np.float32))) for part in parts])
    assert 3 * demo.config.window < len(samples) < 4 * demo.config.window
    assert ours(demo, samples, 60) == theirs(published, torch.float32, samples, 60)


def test_the_folder_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in hub.BUILT_IN["demo"].iterdir()}
    assert set(files) == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) <= 8_000_000
