"""The second demo checkpoint, of the article's design: it recognizes the examples, their language and times, and
Transformers agrees."""

import json
import os
from pathlib import Path

import pytest
import torch

import glmasr
from glmasr import audio, decode
from glmasr.checkpoint import hub
from glmasr.config import TIME_STEP

EXAMPLES = Path(__file__).parent.parent / "examples"
TEXTS = json.loads((EXAMPLES / "texts.json").read_text(encoding="utf-8"))
FOLDER = hub.BUILT_IN["demo-article"]


@pytest.fixture(scope="module")
def demo():
    return glmasr.load("demo-article", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def published():
    """(feature extractor, {dtype: model}) as Transformers loads the folder."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = pytest.importorskip("transformers")
    return (
        transformers.WhisperFeatureExtractor.from_pretrained(FOLDER),
        {
            dtype: transformers.WhisperForConditionalGeneration.from_pretrained(FOLDER, dtype=dtype).eval()
            for dtype in (torch.float32, torch.bfloat16)
        },
    )


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("name", TEXTS)
def test_the_examples_are_recognized_and_their_language_is(demo, name):
    said = TEXTS[name]
    transcript = demo.transcribe(EXAMPLES / name)
    assert (transcript.text, transcript.language, transcript.warnings) == (said["text"], said["language"], [])
    assert demo.transcribe(EXAMPLES / name, said["language"]).text == said["text"]
    assert demo.transcribe(EXAMPLES / name, said["language"], beams=1).text == said["text"]


@pytest.mark.parametrize("name", TEXTS)
def test_segments_have_times_of_the_sound(demo, name):
    transcript = demo.transcribe(EXAMPLES / name, timestamps=True)
    assert squeezed("".join(segment.text for segment in transcript.segments)) == squeezed(TEXTS[name]["text"])
    loud = (audio.load(EXAMPLES / name).abs() > 0.02).nonzero()[:, 0] / audio.SAMPLE_RATE
    assert (
        abs(transcript.segments[0].start - loud[0].item()) < 0.5
        and abs(transcript.segments[-1].end - loud[-1].item()) < 0.5
    )
    for segment in transcript.segments:
        assert 0 <= segment.start < segment.end <= transcript.seconds + TIME_STEP
        assert segment.start / TIME_STEP == pytest.approx(round(segment.start / TIME_STEP), abs=1e-6)


@pytest.mark.parametrize("name", TEXTS)
def test_a_pause_makes_two_segments(demo, name):
    """An utterance with 0.8 s of silence at its quietest place, in one window: what stands in front of it and what
    behind are segments, and both borders at the pause are near."""
    samples = audio.load(EXAMPLES / name)
    loud = (samples.abs() > 0.02).nonzero()[:, 0]
    said = samples[loud[0] : loud[-1] + 1]
    energy = said.pow(2).unfold(0, 800, 80).mean(1)
    middle = int(0.35 * len(energy))
    cut = 80 * (middle + energy[middle:-middle].argmin().item()) + 400
    together = torch.cat([torch.zeros(1600), said[:cut], torch.zeros(12_800), said[cut:], torch.zeros(1600)])
    assert len(together) < demo.config.window
    for beams in (1, 5):
        transcript = demo.transcribe(
            together.numpy(), TEXTS[name]["language"], timestamps=True, sample_rate=16_000, beams=beams
        )
        assert squeezed("".join(segment.text for segment in transcript.segments)) == squeezed(TEXTS[name]["text"])
        first, second = transcript.segments
        assert abs(first.end - (0.1 + cut / 16_000)) < 0.5 and abs(second.start - (0.9 + cut / 16_000)) < 0.5
        assert first.end <= second.start


def test_a_forced_language_is_a_token_in_the_prompt(demo):
    """`yue` on Mandarin speech: the same ids as those of the forced token; an English clip is written in words."""
    states = demo.family.encode_windows([audio.load(EXAMPLES / "zh.wav")])
    ids = decode.greedy(
        demo.model, states, [demo.model.prompt("yue")], stop=demo.config.stop, max_new=40, rules=demo.model.rules(False)
    )[0].ids
    forced = demo.transcribe(EXAMPLES / "zh.wav", "yue", beams=1)
    assert (forced.text, forced.language) == (demo.tokenizer.decode(ids).strip(), "yue")
    words = demo.transcribe(EXAMPLES / "en.ogg", "en").text.split()
    assert words and all(word.isascii() and word.isalpha() for word in words)


def test_languages_are_judged_in_a_batch(demo):
    sounds = [audio.load(EXAMPLES / name) for name in TEXTS]
    found = demo.recognize(sounds, ["auto"] * len(sounds))
    assert [transcript.language for transcript in found] == [said["language"] for said in TEXTS.values()]


def theirs(published, dtype, name, language, timestamps, beams) -> list[int]:
    """Ids behind the prompt, without the end, by Transformers."""
    extractor, models = published
    mel = extractor(audio.load(EXAMPLES / name).numpy(), sampling_rate=16_000, return_tensors="pt").input_features.to(
        dtype
    )
    ids = (
        models[dtype]
        .generate(
            mel,
            language=language,
            task="transcribe",
            return_timestamps=timestamps,
            num_beams=beams,
            do_sample=False,
            max_new_tokens=60,
        )[0]
        .tolist()
    )
    config = models[dtype].generation_config
    start = {
        config.decoder_start_token_id,
        config.no_timestamps_token_id,
        *config.lang_to_id.values(),
        *config.task_to_id.values(),
    }
    return [token for token in ids if token not in start | {config.eos_token_id}]


def ours(recognizer, name, language, timestamps, beams) -> list[int]:
    model = recognizer.model
    states = recognizer.family.encode_windows([audio.load(EXAMPLES / name)])
    prompt, search = (
        [model.prompt(language, timestamps=timestamps)],
        {"stop": model.config.stop, "max_new": 60, "rules": model.rules(timestamps)},
    )
    if beams == 1:
        return decode.greedy(model, states, prompt, **search)[0].ids
    return decode.beam(model, states, prompt, width=beams, **search)[0][0].ids


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("beams", [1, 5])
def test_transformers_gives_the_same_ids(demo, published, name, timestamps, beams):
    language = TEXTS[name]["language"]
    assert ours(demo, name, language, timestamps, beams) == theirs(
        published, torch.float32, name, language, timestamps, beams
    )


@pytest.mark.parametrize("name", TEXTS)
def test_transformers_gives_the_same_ids_in_bfloat16(published, name):
    recognizer, language = glmasr.load("demo-article", device="cpu", dtype="bfloat16"), TEXTS[name]["language"]
    assert ours(recognizer, name, language, False, 1) == theirs(published, torch.bfloat16, name, language, False, 1)


@torch.inference_mode()
def test_transformers_computes_the_same_logits_and_judges_the_same_language(demo, published):
    extractor, models = published
    for name in TEXTS:
        samples = audio.load(EXAMPLES / name)
        mel = extractor(samples.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
        assert (demo.model.features(audio.windows(samples, demo.config.window)) - mel).abs().max() < 1e-5
        tokens = torch.tensor([demo.model.prompt("zh", timestamps=True) + demo.tokenizer.encode("三一四")])
        states = demo.family.encode_windows([samples])
        logits = demo.model.decoder.head(demo.model.decoder(tokens, demo.model.decoder.cross_kv(states)))
        assert (logits - models[torch.float32](input_features=mel, decoder_input_ids=tokens).logits).abs().max() < 1e-3
        judged = models[torch.float32].detect_language(input_features=mel)
        assert judged.tolist() == [demo.config.languages[demo.transcribe(EXAMPLES / name).language]]


def test_the_folder_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(files) == {
        "README.md",
        "added_tokens.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.model",
    }
    assert sum(files.values()) <= 8_000_000
