"""From a recording to a Transcript, with a tiny random checkpoint: what does not depend on how well a model hears."""

import doctest
import inspect
import io
import json
import re
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import regex
import soundfile
import torch
from helpers import ROOT
from helpers.checkpoints import WINDOW, damage, make_checkpoint
from helpers.sounds import RATE, melody

import glmasr
from glmasr import pipeline
from glmasr.checkpoint.config_json import read_config
from glmasr.decode import Hypothesis
from glmasr.transcription import window_decoder
from glmasr.transcription.language import forbidden_ids, join
from glmasr.writers.formats import WRITERS

FOREIGN = {
    "zh": r"(?=\p{L})[^\p{Han}\p{Latin}]",
    "yue": r"(?=\p{L})[^\p{Han}\p{Latin}]",
    "en": r"(?=\p{L})[^\p{Latin}]",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def recognizer(checkpoint):
    return glmasr.load(checkpoint, device="cpu", dtype="float32")


@pytest.fixture
def copy(checkpoint, tmp_path):
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


@pytest.fixture
def says(recognizer, monkeypatch):
    """says(text): from now on that is what the search finds."""

    def let(text):
        found = Hypothesis(recognizer.tokenizer.encode(text), -1.0, True)
        monkeypatch.setattr(window_decoder.decode, "greedy", lambda *args, **more: [found])

    return let


# ---- the package and load -----------------------------------------------------------------------------------------------


def test_importing_the_package_does_not_import_torch():
    program = (
        "import sys, glmasr; glmasr.GlmAsrError; assert not {'torch', 'numpy', 'soundfile'} & set(sys.modules); "
        "assert set(glmasr.__all__) >= {'load', 'Recognizer', 'Transcript'}; "
        "assert not hasattr(glmasr, 'nothing'); print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_signatures():
    defaults = {name: parameter.default for name, parameter in inspect.signature(glmasr.load).parameters.items()}
    assert list(defaults.items())[:3] == [("name_or_path", "glm-asr-nano-2512"), ("device", "auto"), ("dtype", "auto")]
    parameters = inspect.signature(glmasr.Recognizer.transcribe).parameters
    assert list(parameters)[:3] == ["self", "audio", "language"] and parameters["language"].default == "auto"
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in list(parameters)[3:])


def test_load(checkpoint, recognizer):
    assert isinstance(recognizer, glmasr.Recognizer)
    assert recognizer.config is recognizer.model.config and recognizer.config == read_config(checkpoint)
    assert recognizer.tokenizer.decode(recognizer.tokenizer.encode("零 one")) == "零 one"
    assert recognizer.model.device.type == "cpu" and recognizer.model.dtype == torch.float32
    assert glmasr.load(str(checkpoint), device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16
    assert glmasr.load(checkpoint).model.dtype in (torch.bfloat16, torch.float32)
    with pytest.raises(TypeError):
        glmasr.load(checkpoint, "cpu")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "float16"}, "overflow"),
        ({"dtype": "int4"}, "int4"),
        ({"device": "toaster"}, "toaster"),
        ({"device": "cuda"}, "cuda"),
    ],
)
def test_load_refuses_options(checkpoint, options, message):
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(glmasr.OptionError, match=message):
        glmasr.load(checkpoint, **options)


def test_load_without_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(glmasr.CheckpointError) as caught:
        glmasr.load()
    assert len(str(caught.value).splitlines()) == 1 and "--model demo" in str(caught.value)
    with pytest.raises(glmasr.OptionError):  # said before 4.5 GB are fetched
        glmasr.load(dtype="float16")
    with pytest.raises(glmasr.CheckpointError, match="no such directory"):
        glmasr.load(tmp_path / "nothing")
    with pytest.raises(glmasr.CheckpointError, match="config.json"):
        glmasr.load(tmp_path)


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "processor_config.json",
        "generation_config.json",
        "model.safetensors",
        "model.safetensors:short",
        "tokenizer.json",
        "tokenizer.json:gone",
        "tokenizer.json:marker",
        "tokenizer.json:other",
    ],
)
def test_damaged_checkpoint_is_an_error_of_one_line(copy, file):
    with pytest.raises(glmasr.CheckpointError, match=damage(copy, file)) as caught:
        glmasr.load(copy)
    assert "\n" not in str(caught.value)


# ---- what transcribe takes ----------------------------------------------------------------------------------------------


def test_one_sound_in_every_form_gives_one_text(recognizer, tmp_path):
    sound = melody(1.5)
    path = tmp_path / "sound.wav"
    soundfile.write(path, sound, RATE, subtype="FLOAT")
    expected = recognizer.transcribe(sound, sample_rate=RATE, max_new_tokens=12)
    assert (
        expected.text != recognizer.transcribe(melody(1.5, seed=1), sample_rate=RATE, max_new_tokens=12).text
    )  # it does listen
    stereo = np.stack([sound, sound], axis=1)
    with open(path, "rb") as file:
        forms = {
            "str": str(path),
            "Path": path,
            "bytes": path.read_bytes(),
            "BytesIO": io.BytesIO(path.read_bytes()),
            "file": file,
        }
        found = {name: recognizer.transcribe(form, max_new_tokens=12) for name, form in forms.items()}
    arrays = {
        "float64": sound.astype(np.float64),
        "column": sound[:, None],
        "stereo": stereo,
        "channels first": stereo.T,
        "torch": torch.from_numpy(sound),
        "torch stereo": torch.from_numpy(stereo),
    }
    found |= {name: recognizer.transcribe(array, sample_rate=RATE, max_new_tokens=12) for name, array in arrays.items()}
    for name, transcript in found.items():
        assert transcript == expected, name


def test_all_channels_are_heard(recognizer):
    left, right = melody(1), melody(1, seed=1)
    both = recognizer.transcribe(np.stack([left, right], axis=1), sample_rate=RATE, max_new_tokens=12)
    assert both == recognizer.transcribe((left + right) / 2, sample_rate=RATE, max_new_tokens=12)
    assert both.text != recognizer.transcribe(left, sample_rate=RATE, max_new_tokens=12).text


def test_another_sample_rate(recognizer):
    transcript = recognizer.transcribe(np.zeros(44_100, np.float32), sample_rate=44_100, max_new_tokens=3)
    assert transcript.seconds == 1.0


@pytest.mark.parametrize(
    "audio, options, error",
    [
        (np.zeros(800, np.float32), {}, glmasr.AudioError),  # no sample rate
        (torch.zeros(800), {"sample_rate": 0}, glmasr.AudioError),
        (np.zeros(800, np.int64), {"sample_rate": RATE}, glmasr.AudioError),
        (np.zeros((2, 2, 2), np.float32), {"sample_rate": RATE}, glmasr.AudioError),
        (np.full(800, np.nan, np.float32), {"sample_rate": RATE}, glmasr.AudioError),
        (np.zeros(0, np.float32), {"sample_rate": RATE}, glmasr.AudioError),
        ("nothing.wav", {}, glmasr.AudioError),
        ("nothing.wav", {"sample_rate": RATE}, glmasr.AudioError),
        (b"", {}, glmasr.AudioError),
        (io.StringIO("text"), {}, glmasr.AudioError),
        (None, {}, glmasr.AudioError),
        (torch.zeros(800), {"sample_rate": RATE, "language": "xx"}, glmasr.OptionError),
        (torch.zeros(800), {"sample_rate": RATE, "language": None}, glmasr.OptionError),
        (torch.zeros(800), {"sample_rate": RATE, "beams": 0}, glmasr.OptionError),
        (torch.zeros(800), {"sample_rate": RATE, "beams": 2.0}, glmasr.OptionError),
        (torch.zeros(800), {"sample_rate": RATE, "beams": 2, "length_penalty": float("nan")}, glmasr.OptionError),
        (torch.zeros(800), {"sample_rate": RATE, "beams": 2, "length_penalty": "long"}, glmasr.OptionError),
        (torch.zeros(800), {"sample_rate": RATE, "max_new_tokens": 0}, glmasr.OptionError),
        (torch.zeros(800), {"sample_rate": RATE, "max_new_tokens": "3"}, glmasr.OptionError),
        (torch.zeros(800), {"sample_rate": RATE, "max_new_tokens": 10**12}, glmasr.OptionError),
    ],
)
def test_what_cannot_be_used_is_an_error_of_the_package(recognizer, audio, options, error):
    with pytest.raises(error) as caught:
        recognizer.transcribe(audio, **options)
    assert isinstance(caught.value, glmasr.GlmAsrError) and str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("samples", [1, 2, 159, 160, 201, 800, 960, 961, WINDOW * RATE, WINDOW * RATE + 1])
def test_any_length(recognizer, samples):
    transcript = recognizer.transcribe(melody(3)[:samples], sample_rate=RATE, max_new_tokens=3, guards=False)
    assert transcript.seconds == samples / RATE and transcript.text
    assert all(0.0 <= s.start <= s.end <= round(samples / RATE, 3) for s in transcript.segments)
    assert join([s.text for s in transcript.segments]) == transcript.text


def test_padding_of_a_short_recording_is_silence(recognizer):
    short = melody(0.05)
    padded = np.concatenate([short, np.zeros(961 - len(short), np.float32)])
    assert (
        recognizer.transcribe(short, sample_rate=RATE, max_new_tokens=9).text
        == recognizer.transcribe(padded, sample_rate=RATE, max_new_tokens=9).text
    )


def test_hear_gives_the_rows_of_all_windows(recognizer):
    sound = torch.from_numpy(melody(3.3))
    rows = recognizer.family.embed(sound)
    first, second = recognizer.family.embed(sound[: WINDOW * RATE]), recognizer.family.embed(sound[WINDOW * RATE :])
    assert rows.shape == (25 + 16, recognizer.config.decoder.width)  # a row is 80 ms
    torch.testing.assert_close(rows, torch.cat([first, second]), rtol=0, atol=1e-5)


# ---- what it says -------------------------------------------------------------------------------------------------------


def test_transcript(recognizer, says):
    says(" 零一 ok \n")
    noise = 0.1 * torch.randn(
        RATE // 2, generator=torch.Generator().manual_seed(0)
    )  # a text in a melody would be doubted
    transcript = recognizer.transcribe(noise, sample_rate=RATE)
    count = len(recognizer.tokenizer.encode(" 零一 ok \n")) + 1
    segment = glmasr.Segment(
        0.0,
        0.5,
        "零一 ok",
        mean_logprob=round(-1.0 / count, 4),
        compression_ratio=round(9 / len(zlib.compress("零一 ok".encode())), 3),
        language="zh",
    )
    assert transcript == glmasr.Transcript(
        "零一 ok", "zh", [segment], 0.5, [], decoded_seconds=0.5, how=recognizer.how()
    )


def test_no_rounding_makes_more_heard_than_there_is():
    for seconds in (0.0005, 0.0006, 1.0009):
        transcript = glmasr.Transcript.of(
            [pipeline.Part(0.0, seconds, "", [], []), pipeline.Part(seconds, seconds, "", [], [])]
        )
        assert (
            max(transcript.decoded_seconds, transcript.no_speech_seconds) <= transcript.seconds == seconds
            and transcript.skipped_seconds == 0
        )


@pytest.mark.parametrize(
    "text, language", [("零一二", "zh"), ("唔係呀，佢哋喺度", "yue"), ("one two", "en"), ("1 2 3", ""), ("", "")]
)
def test_auto_names_the_language(recognizer, says, text, language):
    says(text)
    transcript = recognizer.transcribe(melody(0.5), sample_rate=RATE)
    assert (transcript.text, transcript.language, len(transcript.segments)) == (text, language, bool(text))
    assert recognizer.transcribe(melody(0.5), "yue", sample_rate=RATE).language == "yue"  # as asked for
    assert recognizer.transcribe(melody(0.5), "zh-HK", sample_rate=RATE).language == "yue"


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("language", FOREIGN)
def test_language_forbids_letters(recognizer, monkeypatch, language, beams):
    emitted = []
    for name in ("greedy", "beam"):
        search = getattr(window_decoder.decode, name)
        monkeypatch.setattr(
            window_decoder.decode,
            name,
            lambda *args, search=search, **more: emitted.append(search(*args, **more)) or emitted[-1],
        )
    forbidden = set(forbidden_ids(recognizer.tokenizer, language, recognizer.config.decoder.vocabulary))
    options = {"sample_rate": RATE, "beams": beams, "max_new_tokens": 30}
    for seed in range(3):
        free = recognizer.transcribe(melody(1, seed), "auto", **options)
        assert regex.search(FOREIGN[language], free.text), (
            "the model does not want forbidden letters: the test shows nothing"
        )
        bound = recognizer.transcribe(melody(1, seed), language, **options)
        assert bound.language == language and regex.search(r"\p{Latin}" if language == "en" else r"\p{Han}", bound.text)
        assert not regex.search(FOREIGN[language], bound.text)
        found = emitted[-1][0] if beams > 1 else emitted[-1]
        assert found and not any(forbidden & set(hypothesis.ids) for hypothesis in found)


def test_beams(recognizer, monkeypatch):
    calls, search = [], window_decoder.decode.beam
    monkeypatch.setattr(
        window_decoder.decode, "beam", lambda *args, **more: calls.append(more) or search(*args, **more)
    )
    for beams, penalty in ((1, 1.0), (2, 1.0), (5, 0.8)):
        transcript = recognizer.transcribe(
            melody(1), sample_rate=RATE, beams=beams, length_penalty=penalty, max_new_tokens=10
        )
        assert transcript.text and transcript.segments[0].end == 1.0
    assert [(more["width"], more["length_penalty"]) for more in calls] == [
        (2, 1.0),
        (5, 0.8),
    ]  # one beam is greedy search


# ---- what it warns of ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 2])
def test_token_limit(recognizer, beams):
    transcript = recognizer.transcribe(melody(1), sample_rate=RATE, beams=beams, max_new_tokens=7, guards=False)
    assert transcript.warnings == [
        "0.0 s to 1.0 s: the limit of tokens was reached, so the text is incomplete; --max-new-tokens raises it"
    ]
    assert transcript.segments[0].flags == ("incomplete",)


def test_default_token_limit_grows_with_the_recording(recognizer, monkeypatch):
    limits, search = [], window_decoder.decode.greedy
    monkeypatch.setattr(
        window_decoder.decode, "greedy", lambda *args, **more: limits.append(more["max_new"]) or search(*args, **more)
    )
    for seconds in (0.5, 2.0):
        warnings = recognizer.transcribe(melody(seconds), sample_rate=RATE, guards=False).warnings
        assert limits[-1] == [32 + round(16 * seconds)] and len(warnings) == 1 and "incomplete" in warnings[0]


def test_a_stop_id_ends_the_text_without_a_warning(copy, recognizer, monkeypatch):
    ids = []
    search = window_decoder.decode.greedy
    monkeypatch.setattr(
        window_decoder.decode,
        "greedy",
        lambda *args, **more: ids.append(search(*args, **more)[0].ids) or search(*args, **more),
    )
    recognizer.transcribe(melody(1), sample_rate=RATE, max_new_tokens=20)
    last = next(n for n in range(19, 0, -1) if ids[0].index(ids[0][n]) == n)  # an id that was not there before
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, ids[0][last]]}))
    stopping = glmasr.load(copy, device="cpu", dtype="float32")
    transcript = stopping.transcribe(melody(1), sample_rate=RATE, max_new_tokens=20)
    assert transcript.warnings == [] and ids[-1] == ids[0][:last]
    assert transcript.text == recognizer.tokenizer.decode(ids[0][:last]).strip()
    # Enough is exactly enough: the stop id counts.
    assert stopping.transcribe(melody(1), sample_rate=RATE, max_new_tokens=last + 1).warnings == []
    assert len(stopping.transcribe(melody(1), sample_rate=RATE, max_new_tokens=last).warnings) == 1


def test_an_empty_answer(recognizer, monkeypatch):
    config = recognizer.config
    monkeypatch.setattr(recognizer.model, "config", replace(config, stop=tuple(range(config.decoder.vocabulary))))
    transcript = recognizer.transcribe(melody(1), sample_rate=RATE)
    assert (transcript.text, transcript.language, transcript.segments, transcript.seconds, transcript.warnings) == (
        "",
        "",
        [],
        1.0,
        [],
    )


def test_more_than_the_model_takes(recognizer):
    """Only whole windows count, as Transformers cuts: of 5 s with windows of 2 s, 4 s."""
    sound = melody(6.5)
    options = {"sample_rate": RATE, "max_new_tokens": 9, "long": "whole", "guards": False}
    whole = recognizer.transcribe(sound[: 4 * RATE], **options)
    assert not any("left out" in warning for warning in whole.warnings)
    longer = recognizer.transcribe(sound, **options)
    assert (longer.text, longer.seconds, longer.decoded_seconds, longer.segments) == (
        whole.text,
        6.5,
        4.0,
        whole.segments,
    )
    (warning,) = (warning for warning in longer.warnings if "left out" in warning)
    assert "4 s" in warning and "2 whole windows" in warning and "2.5 s" in warning
    assert any("left out" in warning for warning in recognizer.transcribe(sound[: 5 * RATE], **options).warnings)


def test_a_recording_that_breaks_off(recognizer, tmp_path):
    path = tmp_path / "torn.flac"
    soundfile.write(path, melody(3), RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    transcript = recognizer.transcribe(path, max_new_tokens=9)
    assert 0 < transcript.seconds < 3 and transcript.text
    assert transcript.segments[0].end == transcript.seconds
    assert any("breaks off" in warning for warning in transcript.warnings)


def test_calls_do_not_influence_each_other(recognizer):
    first = recognizer.transcribe(melody(1), sample_rate=RATE, max_new_tokens=9)
    recognizer.transcribe(melody(2, seed=1), "en", sample_rate=RATE, beams=2, max_new_tokens=9)
    again = recognizer.transcribe(melody(1), sample_rate=RATE, max_new_tokens=9)
    assert again == first and again.warnings is not first.warnings


@pytest.mark.parametrize(
    "options, message",
    [
        ({"language": ["zh"]}, "language is"),
        ({"length_penalty": 10**400}, "length_penalty is"),
        ({"beams": 10**7}, "beams is"),
    ],
)
def test_absurd_arguments_are_named(recognizer, options, message):
    with pytest.raises(glmasr.OptionError, match=message):
        recognizer.transcribe(np.zeros(16_000, np.float32), sample_rate=16_000, **options)


# ---- the public interface ------------------------------------------------------------------------------------------------


def test_a_list_of_recordings_gives_what_each_gives_alone(recognizer):
    sounds = [melody(seconds) for seconds in (0.5, 2.5, 1.0)]
    alone = [recognizer.transcribe(samples, sample_rate=RATE, max_new_tokens=8) for samples in sounds]
    calls = []
    found = recognizer.transcribe(sounds, sample_rate=RATE, max_new_tokens=8, progress=lambda *call: calls.append(call))
    assert found == alone and isinstance(found, list) and recognizer.transcribe([]) == []
    assert [done for done, _ in calls] == sorted(done for done, _ in calls) and calls[-1] == (4.0, None)


def test_a_bad_recording_of_a_list_loses_nothing_of_the_others(recognizer):
    sounds = [melody(0.5), np.full(800, np.nan, np.float32), melody(1.0)]
    with pytest.raises(glmasr.AudioError, match="NaN") as caught:
        recognizer.transcribe(sounds, sample_rate=RATE, max_new_tokens=8)
    alone = [recognizer.transcribe(sounds[index], sample_rate=RATE, max_new_tokens=8) for index in (0, 2)]
    assert caught.value.transcripts == [alone[0], None, alone[1]] and glmasr.AudioError("x").transcripts == ()


def test_progress_knows_how_long_a_file_is(recognizer, tmp_path):
    soundfile.write(tmp_path / "a.wav", melody(2.5), RATE)
    calls = []
    recognizer.transcribe(tmp_path / "a.wav", max_new_tokens=4, progress=lambda *call: calls.append(call))
    assert calls[-1] == (2.5, 2.5) and len(calls) > 2


def test_what_they_say_of_themselves(recognizer):
    assert re.fullmatch(r"<Recognizer GlmAsr, [0-9.]+ M parameters, float32 on cpu, plain>", repr(recognizer))
    transcript = glmasr.Transcript("x" * 100, "", [], 2.0)
    assert repr(transcript) == f"<Transcript without a language, 2.0 s, 0 segments: '{'x' * 57}...'>"


@pytest.mark.parametrize("form", WRITERS)
def test_a_transcript_saves_itself(tmp_path, form):
    transcript = glmasr.Transcript("one 二", "zh", [glmasr.Segment(0.2, 1.0, "one 二")], 1.5)
    transcript.save(tmp_path / "new" / f"talk.{form.upper()}")
    assert (tmp_path / "new" / f"talk.{form.upper()}").read_text(encoding="utf-8") == WRITERS[form](transcript)
    assert (
        transcript.to_srt() == WRITERS["srt"](transcript)
        and json.loads(WRITERS["json"](transcript)) == transcript.to_dict()
    )


def test_a_name_that_says_no_format(tmp_path):
    with pytest.raises(glmasr.OptionError, match=r"talk.doc.*expected a name that ends in one of \.txt, \.srt"):
        glmasr.Transcript("", "", [], 1.0).save(tmp_path / "talk.doc")
    with pytest.raises(glmasr.OutputError):
        (tmp_path / "a").write_text("")
        glmasr.Transcript("", "", [], 1.0).save(tmp_path / "a" / "b.txt")


def test_the_examples_in_docstrings():
    from glmasr.transcription import results

    assert doctest.testmod(results).attempted >= 3 and doctest.testmod(results).failed == 0
