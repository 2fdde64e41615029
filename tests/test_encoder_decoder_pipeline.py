"""Recording -> Transcript with the encoder-decoder: windows, languages, times, other tries, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import glmasr
from glmasr import pipeline, weights
from glmasr.checkpoint.vocabulary import ALPHABET
from glmasr.config import CrossDecoderConfig, EncoderDecoderConfig, SinusoidalEncoderConfig
from glmasr.decode import Hypothesis
from glmasr.errors import CheckpointError, OptionError
from glmasr.model import EncoderDecoder
from glmasr.pipeline import Options
from glmasr.tokenizer import time_token
from glmasr.transcription import chunking, code_switching, coverage, recovery, window_decoder

NAMES = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|zh|>",
    "<|yue|>",
    "<|en|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|nospeech|>",
    "<|notimestamps|>",
]
SECONDS = 2
TIMES = 256 + len(NAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, randomize):
    folder = tmp_path_factory.mktemp("whisper")
    names = NAMES + [time_token(step * 0.02) for step in range(50 * SECONDS + 1)]
    config = EncoderDecoderConfig(
        SinusoidalEncoderConfig(width=32, layers=2, heads=4, hidden=64, positions=50 * SECONDS),
        CrossDecoderConfig(vocabulary=256 + len(names), width=32, layers=2, heads=4, hidden=64, positions=80),
        window_seconds=SECONDS,
        start=257,
        end=256,
        languages={"zh": 258, "yue": 259, "en": 260},
        tasks={"translate": 261, "transcribe": 262},
        no_timestamps=264,
    )
    model = EncoderDecoder(config)
    positions = model.encoder.positions.clone()
    randomize(model, 3)
    model.encoder.positions.data.copy_(positions)
    weights.save(model, folder, torch.float32)
    step = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {
                "model": {
                    "type": "BPE",
                    "vocab": {character: number for number, character in enumerate(ALPHABET)},
                    "merges": [],
                },
                "pre_tokenizer": step,
                "decoder": step,
                "added_tokens": [
                    {"id": 256 + i, "content": name, "special": i < len(NAMES)} for i, name in enumerate(names)
                ],
            }
        )
    )
    return folder


@pytest.fixture(scope="module")
def recognizer(folder):
    return glmasr.load(folder, device="cpu", dtype="float32")


def sound(seconds, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * 16_000)).astype(np.float32)


def talk(stretches, seed=0):
    """Stretches of 1.5 s of sound, each with 0.3 s of silence behind it: one fills a window."""
    return np.concatenate(
        [part for n in range(stretches) for part in (sound(1.5, seed + n), np.zeros(4800, np.float32))]
    )


def at(seconds):
    return TIMES + round(seconds / 0.02)


def answering(monkeypatch, answers):
    """The search gives these hypotheses, one batch after the other; returns what it was asked for."""
    asked, left = [], list(answers)

    def search(model, audio, prompts, stop, budgets, options, rules, temperature=0.0, bias=None):
        asked.append(
            {
                "rows": len(prompts),
                "prompts": prompts,
                "budget": max(budgets),
                "temperature": temperature,
                "rules": rules,
            }
        )
        return [left.pop(0) for _ in prompts]

    monkeypatch.setattr(window_decoder, "search", search)
    return asked


def said(*ids, logprob=-0.1, stopped=True):
    return Hypothesis(
        [i for part in ids for i in (part.encode() if isinstance(part, str) else [part])], logprob, stopped
    )


@pytest.mark.parametrize(
    "ids, expected",
    [
        ([at(0.1), " hi", at(0.5)], [(0.1, 0.5, "hi")]),
        ([at(0), " a", at(0.5), at(0.7), " b", at(1.48)], [(0, 0.5, "a"), (0.7, 1.48, "b")]),
        ([at(0), " a", at(0.5), at(0.5), " b"], [(0, 0.5, "a"), (0.5, 1.5, "b")]),  # no end: that of the sound
        ([" a"], [(0, 1.5, "a")]),
        ([], []),
        ([at(0)], []),
        ([at(0.2), at(0.4)], []),
        ([at(0), "  ", at(1)], []),
        ([at(1.0), " a", at(2.0)], [(1.0, 1.5, "a")]),  # never beyond the sound
        ([at(1.0), " a", at(0.4)], [(1.0, 1.0, "a")]),  # never backwards
    ],
)
def test_segments_are_what_stands_between_times(recognizer, monkeypatch, ids, expected):
    answering(monkeypatch, [said(*ids)])
    transcript = recognizer.transcribe(sound(1.5), "en", sample_rate=16_000, timestamps=True)
    assert [(s.start, s.end, s.text) for s in transcript.segments] == expected
    assert transcript.text == " ".join(text for _, _, text in expected)


def test_windows_are_decoded_for_themselves_and_joined(recognizer, monkeypatch):
    asked = answering(monkeypatch, [said(at(0.1), f" w{n}", at(1.0)) for n in range(11)])
    transcript = recognizer.transcribe(talk(11), "en", sample_rate=16_000, timestamps=True, batch_size=8)
    assert transcript.text == " ".join(f"w{n}" for n in range(11))
    # A window begins 0.15 s before its stretch: a cut goes through the middle of the silence.
    assert [s.start for s in transcript.segments] == [
        0.1,
        *(pytest.approx(1.8 * n - 0.15 + 0.1, abs=0.12) for n in range(1, 11)),
    ]
    assert [call["rows"] for call in asked] == [8, 3] and transcript.seconds == pytest.approx(11 * 1.8)
    assert 11 * 1.5 < transcript.decoded_seconds < 11 * 1.8


def test_hanzi_are_joined_without_spaces(recognizer, monkeypatch):
    answering(monkeypatch, [said("八二"), said("三")])
    assert recognizer.transcribe(talk(2), "zh", sample_rate=16_000).text == "八二三"


def test_languages_are_given_or_judged_also_in_a_batch(recognizer, monkeypatch):
    config = recognizer.config
    # The windows of the second recording, which is the longest, come last.
    likely = torch.tensor([[0.1, 0.2, 0.7], [0.9, 0.1, 0.0], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1]])
    monkeypatch.setattr(
        EncoderDecoder,
        "detect_language",
        lambda self, audio: (likely[: len(audio[0][0])], torch.tensor([0.0, 0.2, 0.9, 0.1])[: len(audio[0][0])]),
    )
    asked = answering(monkeypatch, [said("x") for _ in range(4)])
    recordings = [torch.from_numpy(samples) for samples in (sound(1), talk(2), sound(1))]
    transcripts = recognizer.recognize(recordings, ["auto", "auto", "zh"])
    # The second recording's first window is silent, so its second one says what language it is.
    assert [t.language for t in transcripts] == ["en", "yue", "zh"]
    assert [prompt[1] for prompt in asked[0]["prompts"]] == [
        config.languages[name] for name in ("en", "zh", "zh", "yue")
    ]


@pytest.mark.parametrize(
    "how, languages",
    [
        ({}, ["zh", "en"]),
        ({"language": "zh"}, ["zh", "zh"]),
        ({"task": "translate"}, ["zh", "zh"]),
        ({"languages": ("zh", "yue")}, ["zh", "zh"]),
    ],
    ids=["auto", "told", "translated", "among others"],
)
def test_a_window_in_two_languages(recognizer, monkeypatch, how, languages):
    """What isn't written in the language that was heard is in another, unless it was asked for."""
    monkeypatch.setattr(
        EncoderDecoder, "detect_language", lambda self, audio: (torch.tensor([[0.9, 0.1, 0.0]]), torch.tensor([0.0]))
    )
    monkeypatch.setattr(EncoderDecoder, "prompt", lambda self, *asked: [0])
    answering(monkeypatch, [said(at(0), "一二三四五", at(0.5), at(0.5), " one two three four", at(1.0))])
    transcript = recognizer.transcribe(talk(1), sample_rate=16_000, timestamps=True, **how)
    assert [segment.language for segment in transcript.segments] == languages


@pytest.mark.parametrize(
    "name, code", [("zh-HK", "yue"), ("Cantonese", "yue"), ("zh_Hans_CN", "zh"), ("ENG", "en"), ("english", "en")]
)
def test_other_names_of_a_language_are_the_same_token(recognizer, monkeypatch, name, code):
    asked = answering(monkeypatch, [said("x")])
    transcript = recognizer.transcribe(sound(1), name, sample_rate=16_000)
    assert transcript.language == code and asked[0]["prompts"][0][1] == recognizer.config.languages[code]
    answering(monkeypatch, [said("x")])
    assert [t.language for t in recognizer.recognize([torch.from_numpy(sound(1))], [name])] == [code]


def test_a_whisper_without_cantonese_says_what_to_take(recognizer):
    """TRAP: before large-v3 there is no token for it. Mandarin in its place would be another text, without a word."""
    old = pipeline.Recognizer(
        EncoderDecoder(replace(recognizer.config, languages={"en": 260, "zh": 258})).eval(), recognizer.tokenizer
    )
    for name in ("yue", "zh-HK", "cantonese"):
        with pytest.raises(
            OptionError, match=f"language is '{name}'; this model has tokens for zh, en, .* for Cantonese take zh"
        ):
            old.check(name)
    with pytest.raises(OptionError, match="did you mean english"):
        old.check("Englisch")


def test_seeking_goes_on_where_the_last_complete_sentence_ended(recognizer, monkeypatch):
    """As openai-whisper: a pair of times says that another sentence begins there; a single one at the end, that nothing
    follows."""
    starts = []
    monkeypatch.setattr(
        EncoderDecoder, "detect_language", lambda self, audio: (torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([0.0]))
    )
    encode = recognizer.family.encode_windows
    monkeypatch.setattr(
        recognizer.family,
        "encode_windows",
        lambda windows, length: starts.append(len(windows[0]) / 16_000) or encode(windows, length),
    )
    answering(
        monkeypatch,
        [
            said(at(0.0), "a", at(0.5), at(0.5)),
            said(at(0.0), "b", at(1.0), at(1.2), "c"),
            said(at(0.0), "d", at(1.5)),
            said("e"),
            said(at(0.0), "f", at(1.0)),
        ],
    )
    parts = list(recognizer.stream(sound(6.5), "zh", Options(timestamps=True, long="seek"), sample_rate=16_000))
    found = [
        (part.start, part.end, [(segment.start, segment.end, segment.text) for segment in part.segments])
        for part in parts[:-1]
    ]
    assert found == [
        (0.0, 0.5, [(0.0, 0.5, "a")]),
        (0.5, 1.5, [(0.5, 1.5, "b")]),
        (1.5, 3.5, [(1.5, 3.0, "d")]),
        (3.5, 5.5, [(3.5, 5.5, "e")]),
        (5.5, 6.5, [(5.5, 6.5, "f")]),
    ]
    assert starts == [2.0, 2.0, 2.0, 2.0, 1.0]


def test_a_silent_recording_has_a_language_still(recognizer, monkeypatch):
    monkeypatch.setattr(
        EncoderDecoder, "detect_language", lambda self, audio: (torch.tensor([[0.2, 0.2, 0.6]]), torch.tensor([0.99]))
    )
    answering(monkeypatch, [said("x", logprob=-5.0)])
    transcript = recognizer.transcribe(sound(1), sample_rate=16_000)
    assert (transcript.text, transcript.segments, transcript.language, transcript.warnings) == ("", [], "en", [])


def test_batch_equals_single(recognizer):
    """With the real search: what a recording gets doesn't depend on the others."""
    recordings = [torch.from_numpy(sound(seconds, seed)) for seed, seconds in enumerate((0.7, 2.0, 3.1, 1.2))]
    for options in (Options(max_new_tokens=20), Options(max_new_tokens=20, timestamps=True, beams=3)):
        together = recognizer.recognize(recordings, ["zh", "auto", "en", "auto"], options)
        alone = [
            recognizer.recognize([samples], [language], options)[0]
            for samples, language in zip(recordings, ["zh", "auto", "en", "auto"])
        ]
        assert together == alone


def test_another_try_where_a_text_cannot_be_right(recognizer, monkeypatch):
    loop, guess, fine = said("ha" * 30), said("abc", logprob=-9.0), said("fine")
    asked = answering(monkeypatch, [loop, fine, guess, fine])
    transcript = recognizer.transcribe(talk(2), "en", sample_rate=16_000)
    assert transcript.text == "fine fine"
    assert [(call["rows"], call["temperature"]) for call in asked] == [(2, 0.0), (1, 0.2), (1, 0.4)]
    asked = answering(monkeypatch, [loop])
    assert recognizer.transcribe(sound(1), "en", sample_rate=16_000, temperatures=(0.0,)).text == "ha" * 30


def test_the_defaults_of_the_family(recognizer, monkeypatch):
    widths = []
    beam = window_decoder.decode.beam
    monkeypatch.setattr(
        window_decoder.decode, "beam", lambda *args, **more: widths.append(more["width"]) or beam(*args, **more)
    )
    recognizer.transcribe(sound(1), "zh", sample_rate=16_000, max_new_tokens=5, temperatures=(0.0,))
    assert widths == [5]


def test_the_answer_stays_within_the_learned_positions(recognizer, monkeypatch):
    asked = answering(monkeypatch, [said("x"), said("x", stopped=False)])
    recognizer.transcribe(sound(2), "zh", sample_rate=16_000)
    assert asked[0]["budget"] == 32 + 2 * 16
    transcript = recognizer.transcribe(sound(2), "zh", sample_rate=16_000, max_new_tokens=80)
    assert asked[1]["budget"] == 80 - 3 and "limit of tokens" in transcript.warnings[0]


def test_time_tokens_are_no_text(recognizer, monkeypatch):
    answering(monkeypatch, [said("a", at(0.4), "b")])  # without --timestamps nothing forbids them
    transcript = recognizer.transcribe(sound(1), "en", sample_rate=16_000)
    assert "<|" not in transcript.text


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"language": "de"}, "language is 'de'; this model has tokens for zh, yue, en, and 'auto'"),
        ({"language": None}, "language is None"),
        ({"task": "summarize"}, "task is 'summarize'"),
        ({"beams": 0}, "beams is 0"),
        ({"max_new_tokens": 81}, "at most 80"),
        ({"temperatures": ()}, "temperatures is"),
        ({"temperatures": (-1.0,)}, "temperatures is"),
    ],
)
def test_what_the_model_cannot_do_is_said_before_anything_is_read(recognizer, arguments, message):
    with pytest.raises(OptionError, match=message):
        recognizer.transcribe("no such file", **arguments)


def test_translate_is_another_token(recognizer, monkeypatch):
    asked = answering(monkeypatch, [said("x")])
    recognizer.transcribe(sound(1), "zh", sample_rate=16_000, task="translate")
    assert asked[0]["prompts"][0][2] == 261


def test_glm_asr_has_neither_times_nor_tasks(folder):
    demo = glmasr.load("demo")
    for arguments, message in (
        ({"timestamps": True}, "no time tokens"),
        ({"task": "translate"}, "supports 'transcribe' only"),
    ):
        with pytest.raises(OptionError, match=message):
            demo.transcribe("no such file", **arguments)


def test_the_tokenizer_of_another_model_is_refused(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = json.loads((tmp_path / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(
        json.dumps({**data, "lang_to_id": {"<|zh|>": 259, "<|yue|>": 258}})
    )
    with pytest.raises(CheckpointError, match="another model"):
        glmasr.load(tmp_path)


@pytest.mark.parametrize("key", ["lang_to_id", "task_to_id", "no_timestamps_token_id"])
def test_a_file_that_lost_its_steering_ids(folder, tmp_path, key):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = json.loads((tmp_path / "generation_config.json").read_text())
    lost = {name: value for name, value in data.items() if name != key}
    weights.load(tmp_path)  # its numbers can be looked at
    if key == "lang_to_id":  # what is left looks like a model for one language, but for its size
        (tmp_path / "generation_config.json").write_text(json.dumps(lost))
        assert glmasr.load(tmp_path).config.languages == {}
        return
    (tmp_path / "generation_config.json").write_text(json.dumps(lost))
    with pytest.raises(CheckpointError, match=f"{key} is missing"):
        glmasr.load(tmp_path)


def test_what_was_heard_is_projected_once(recognizer, monkeypatch):
    """Whatever is done with a window: judging its language, searching, trying again."""
    calls, hear = [], recognizer.model.decoder.cross_kv
    monkeypatch.setattr(recognizer.model.decoder, "cross_kv", lambda states: calls.append(len(states)) or hear(states))
    recognizer.recognize(
        [torch.from_numpy(sound(1)), torch.from_numpy(sound(1))],
        ["auto", "zh"],
        Options(max_new_tokens=20, temperatures=(0.0, 0.5, 1.0)),
    )
    assert calls[0] == 2 and sum(calls) <= 2 + 2 * 2  # both together; the halves of what wouldn't do, again


def test_a_model_of_one_language_needs_no_language(recognizer, monkeypatch):
    model = EncoderDecoder(replace(recognizer.config, languages={}, tasks={}))
    model.load_state_dict(recognizer.model.state_dict())
    single = pipeline.Recognizer(model, recognizer.tokenizer)
    asked = answering(monkeypatch, [said(" one two"), said(" 5, 5, 0")])
    transcript = single.transcribe(sound(1), sample_rate=16_000)
    assert asked[0]["prompts"] == [[257]] and transcript.language == "en"
    assert [segment.language for segment in single.transcribe(sound(1), sample_rate=16_000).segments] == [
        "en"
    ]  # digits don't tell
    with pytest.raises(OptionError, match="supports one language only"):
        single.transcribe(sound(1), "zh", sample_rate=16_000)


def test_the_command_line(folder, tmp_path, capsys):
    import soundfile

    import transcribe

    soundfile.write(tmp_path / "a.wav", sound(1.0), 16_000)
    assert (
        transcribe.main(
            [str(tmp_path / "a.wav"), "--model", str(folder), "--max-new-tokens", "6", "--dtype", "float32"]
        )
        == 0
    )
    assert "language " in capsys.readouterr().err
    arguments = [
        str(tmp_path / "a.wav"),
        "--model",
        str(folder),
        "--lang",
        "zh",
        "--timestamps",
        "--max-new-tokens",
        "9",
        "--dtype",
        "float32",
    ]
    assert transcribe.main(arguments) == 0
    plain = capsys.readouterr().out
    assert transcribe.main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert plain.rstrip("\n") == "\n".join(
        f"[00:{s['start']:05.2f} --> 00:{s['end']:05.2f}] {s['text']}" for s in record["segments"]
    )
    assert [transcribe.clock(seconds) for seconds in (0, 59.999, 61.5, 3600, 7325.25)] == [
        "00:00.00",
        "01:00.00",
        "01:01.50",
        "1:00:00.00",
        "2:02:05.25",
    ]


def test_files_of_cues_show_the_times_that_the_model_writes(folder, tmp_path, monkeypatch):
    import soundfile

    import transcribe

    soundfile.write(tmp_path / "a.wav", sound(1.9), 16_000)
    for options, cues in (([], 2), (["--no-timestamps"], 1), (["--timestamps"], 2)):
        answering(
            monkeypatch, [said(at(0), LONG, at(0.9), at(0.9), LONG, at(1.9))] if cues == 2 else [said(f"{LONG} {LONG}")]
        )
        out = tmp_path / str(len(options)) / "".join(options)
        assert (
            transcribe.main(
                [
                    str(tmp_path / "a.wav"),
                    "--model",
                    str(folder),
                    "--format",
                    "srt,txt",
                    "--output-dir",
                    str(out),
                    "--quiet",
                    *options,
                ]
            )
            == 0
        )
        assert (out / "a.srt").read_text(encoding="utf-8").count("-->") == cues


def test_recordings_padded_to_different_lengths_share_nothing(recognizer):
    """What is heard to other lengths is decoded apart: each as if it were alone."""
    recordings = [torch.from_numpy(sound(seconds, number)) for number, seconds in enumerate((0.3, 1.5, 0.4, 1.9, 0.5))]
    options = Options(pad_to="speech", max_new_tokens=6, guards=False)
    shapes, encode = [], recognizer.model.encode
    recognizer.model.encode = lambda features: shapes.append(tuple(features.shape[::2])) or encode(features)
    try:
        together = recognizer.recognize(recordings, ["zh"] * 5, options)
    finally:
        del recognizer.model.encode
    assert together == [recognizer.recognize([samples], ["zh"], options)[0] for samples in recordings]
    assert {frames for _, frames in shapes} == {160, 200} and len(shapes) < 5 == sum(rows for rows, _ in shapes)


def test_a_model_that_was_saved_without_its_processor(folder, tmp_path):
    """`save_pretrained` of Transformers writes no window length with the model, and the processor's settings
    elsewhere."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    assert glmasr.load(tmp_path).config.window_seconds == SECONDS
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"feature_extractor": {**settings, "feature_size": 128}})
    )
    with pytest.raises(CheckpointError, match="feature_size is 128"):
        glmasr.load(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": settings}))
    assert glmasr.load(tmp_path).config.window_seconds == SECONDS


def test_a_window_of_less_than_a_second(tmp_path):
    config = EncoderDecoderConfig(
        SinusoidalEncoderConfig(width=16, layers=1, heads=2, hidden=32, positions=30),
        CrossDecoderConfig(vocabulary=90, width=16, layers=1, heads=2, hidden=32, positions=20),
        window_seconds=0.6,
        start=71,
        end=70,
        languages={},
        tasks={},
        no_timestamps=None,
        several_languages=False,
    )
    weights.save(EncoderDecoder(config), tmp_path)
    assert weights.load(tmp_path).config == config
    (tmp_path / "preprocessor_config.json").unlink()
    model = weights.load(tmp_path)
    assert model.config.window == 9600 and model.encode(model.features(torch.zeros(1, 9600))).shape == (1, 30, 16)


def test_one_language_without_a_token_may_be_named(recognizer):
    one = pipeline.Recognizer(
        EncoderDecoder(replace(recognizer.config, languages={}, tasks={}, several_languages=False)).eval(),
        recognizer.tokenizer,
    )
    assert one.family.rules("en", Options()) is one.family.rules("auto", Options())
    with pytest.raises(OptionError, match="expected 'auto' or 'en'"):
        one.family.rules("zh", Options())
    with pytest.raises(OptionError, match="has tokens for zh, yue, en, and 'auto'"):
        recognizer.family.rules("ja", Options())
    with pytest.raises(OptionError, match="goes by the model's time tokens"):
        recognizer.check("zh", Options(long="seek", timestamps=False))


# ---- speech without text (windows of 2 s) ---------------------------------------------------------------------------------


@pytest.fixture
def all_voice(monkeypatch):
    """Whatever sounds is a voice."""
    monkeypatch.setattr(chunking, "voiced", lambda samples: torch.from_numpy(np.abs(samples.numpy()[::160]) >= 0))


LONG = "many words, quickly said"


def test_decoding_goes_on_where_the_last_time_is(recognizer, monkeypatch, all_voice):
    asked = answering(monkeypatch, [said(at(0), LONG, at(0.8)), said(at(0), "the rest", at(1.2))])
    found = recognizer.transcribe(sound(2), "en", sample_rate=16_000, timestamps=True)
    assert [(segment.start, segment.end, segment.text) for segment in found.segments] == [
        (0.0, 0.8, LONG),
        (0.8, 2.0, "the rest"),
    ]
    assert len(asked) == 2 and not found.uncovered and not found.warnings


def test_what_stays_without_text_is_told(recognizer, monkeypatch, all_voice):
    answering(monkeypatch, [said(at(0), LONG, at(0.8)), said(at(0), at(0))])
    found = recognizer.transcribe(sound(2), "en", sample_rate=16_000)
    assert found.text == LONG and found.uncovered == [(0.8, 2.0)]
    assert found.warnings == ["0.8 s to 2.0 s: there is speech here, and no text, or too little"]


def test_text_too_short_for_its_speech_is_told_and_flagged(recognizer, monkeypatch, all_voice):
    monkeypatch.setattr(coverage, "SLOW", 10.0)
    monkeypatch.setattr(recovery, "SPLIT_SECONDS", 9.0)
    answering(monkeypatch, [said(at(0), "x", at(2))])
    found = recognizer.transcribe(sound(2), "en", sample_rate=16_000, timestamps=True)
    assert [segment.flags for segment in found.segments] == [("uncovered",)] and found.uncovered == [(0.0, 2.0)]


def test_a_longer_text_of_the_halves_is_taken(recognizer, monkeypatch, all_voice):
    monkeypatch.setattr(coverage, "SLOW", 10.0)
    answering(monkeypatch, [said(at(0), "x", at(2)), said(at(0), LONG, at(1)), said(at(0), LONG, at(1))])
    found = recognizer.transcribe(sound(2), "en", sample_rate=16_000)
    assert found.text == f"{LONG} {LONG}" and not found.uncovered


def test_what_was_said_before_a_pause_and_jumped_over(recognizer, monkeypatch):
    monkeypatch.setattr(chunking, "voiced", lambda samples: torch.from_numpy(np.abs(samples.numpy()[::160]) > 0.001))
    monkeypatch.setattr(coverage, "PAUSE", 0.3)
    monkeypatch.setattr(coverage, "USUAL", 30.0)
    samples = sound(2)
    samples[9600:17600] = 0  # 0.6 to 1.1 s
    answering(monkeypatch, [said(at(0), LONG, at(2)), said(at(0), "before it", at(0.6)), said(at(0), LONG, at(1))])
    found = recognizer.transcribe(samples, "en", sample_rate=16_000, timestamps=True)
    assert [segment.text for segment in found.segments] == ["before it", LONG] and not found.warnings
    answering(
        monkeypatch, [said(at(0), LONG, at(2)), said(at(0), "many words", at(0.6)), said(at(0), "quickly said", at(1))]
    )
    found = recognizer.transcribe(samples, "en", sample_rate=16_000, timestamps=True)  # no more than was there
    assert [(segment.text, segment.flags) for segment in found.segments] == [(LONG, ())] and not found.uncovered


def test_all_that_is_found_in_several_stretches_is_kept(recognizer, monkeypatch, all_voice):
    """Two texts were too short, and behind each there are two."""
    monkeypatch.setattr(coverage, "SLOW", 10.0)
    two = [said(at(0), f"{LONG} {n}", at(0.5), at(0.5), f"{LONG} {n + 1}", at(1)) for n in (0, 2)]
    answering(monkeypatch, [said(at(0), "x", at(1), at(1), "y", at(2)), *two])
    found = recognizer.transcribe(sound(2), "en", sample_rate=16_000)
    assert found.text == " ".join(f"{LONG} {n}" for n in range(4))


def test_no_text_at_all_is_tried_in_halves_once(recognizer, monkeypatch, all_voice):
    asked = answering(monkeypatch, [said(at(0), at(0)) for _ in range(3)])
    found = recognizer.transcribe(sound(2), "en", sample_rate=16_000)
    assert found.text == "" and found.uncovered == [(0.0, 2.0)] and sum(call["rows"] for call in asked) == 3


def repeats(first, last, count):
    """A sentence again and again, with its times."""
    step = (last - first) / count
    return said(
        *(part for n in range(count) for part in (at(first + n * step), " ha ha so", at(first + (n + 1) * step)))
    )


def test_what_somebody_says_again_and_again_is_right_if_the_halves_say_so(recognizer, monkeypatch, all_voice):
    asked = answering(monkeypatch, [repeats(0, 2, 8), repeats(0, 1, 4), repeats(0, 1, 4)])
    found = recognizer.transcribe(sound(2), "en", sample_rate=16_000, timestamps=True)
    assert [segment.flags for segment in found.segments] == [()] * 8 and not found.warnings
    assert [call["temperature"] for call in asked] == [0.0, 0.0]  # nothing was drawn


def test_repeats_where_there_was_no_text(recognizer, monkeypatch, all_voice):
    """Nothing is drawn, and nothing is lost: it is told that they are doubtful."""
    asked = answering(monkeypatch, [said(at(0), LONG, at(0.6)), repeats(0, 1.4, 6), *[said("drawn")] * 6])
    found = recognizer.transcribe(sound(2), "en", sample_rate=16_000)
    assert (
        found.text == " ".join([LONG, *["ha ha so"] * 6])
        and [segment.flags for segment in found.segments] == [(), ("repeats",)]
        and len(asked) == 2
        and not found.uncovered
    )


def test_repeats_that_the_halves_contradict(recognizer, monkeypatch, all_voice):
    answering(monkeypatch, [repeats(0, 2, 8), said(at(0), LONG, at(1)), said(at(0), LONG, at(1))])
    found = recognizer.transcribe(sound(2), "en", sample_rate=16_000)
    assert found.text == f"{LONG} {LONG}" and found.segments[0].flags == ("split",)
    answering(monkeypatch, [repeats(0, 2, 8), said(at(0), at(0)), said(at(0), LONG, at(1))])  # half of it would be lost
    found = recognizer.transcribe(sound(2), "en", sample_rate=16_000)
    assert found.text == " ".join(["ha ha so"] * 8) and found.segments[0].flags == ("repeats",)


def test_nothing_is_decoded_again_without_guards_or_voice(recognizer, monkeypatch, all_voice):
    answering(monkeypatch, [said(at(0), LONG, at(0.8)) for _ in range(2)])  # another search would find no answer left
    recognizer.transcribe(sound(2), "en", sample_rate=16_000, guards=False)
    monkeypatch.setattr(chunking, "voiced", lambda samples: torch.zeros(len(samples) // 160, dtype=torch.bool))
    found = recognizer.transcribe(sound(2), "en", sample_rate=16_000)
    assert found.text == LONG and not found.uncovered


def test_seeking_goes_on_at_the_last_time_where_somebody_speaks_behind_it(recognizer, monkeypatch, all_voice):
    answering(monkeypatch, [said(at(0), LONG, at(1.4)), said(at(0), LONG, at(1.6))])
    parts = list(recognizer.stream(sound(3), "en", Options(timestamps=True, long="seek"), sample_rate=16_000))
    assert [(part.start, part.end) for part in parts[:-1]] == [(0.0, 1.4), (1.4, 3.0)]


@pytest.mark.parametrize("timestamps", [True, None])
def test_seeking_loses_nothing_where_times_are_hidden(recognizer, monkeypatch, all_voice, timestamps):
    answering(monkeypatch, [said(at(0), LONG, at(1.4)), said(at(0), "the rest of it", at(1.6))])
    found = recognizer.transcribe(sound(3), "en", sample_rate=16_000, timestamps=timestamps, long="seek")
    assert found.text == f"{LONG} the rest of it" and found.segments[-1].end == 3.0


def test_seeking_tells_of_nothing_that_is_heard_again(recognizer, monkeypatch, all_voice):
    asked = answering(
        monkeypatch, [said(at(0), LONG, at(0.8), at(0.8), "x"), said(at(0), LONG, at(2.0)), said(at(0), LONG, at(0.2))]
    )
    found = recognizer.transcribe(sound(3), "en", sample_rate=16_000, timestamps=True, long="seek")
    assert len(asked) == 3 and not found.uncovered and not found.warnings


def test_an_error_while_seeking_is_the_recordings_own(recognizer, monkeypatch):
    def search(*arguments, **options):
        raise CheckpointError("the model gives no usable answer")

    monkeypatch.setattr(window_decoder, "search", search)
    with pytest.raises(CheckpointError, match="no usable answer"):
        recognizer.transcribe(sound(3), "en", sample_rate=16_000, timestamps=True, long="seek")


def test_halves_of_a_window_leave_nothing_to_the_next_one(recognizer, monkeypatch, all_voice):
    monkeypatch.setattr(recovery, "SHORTER", 0.1)
    loops = [said("ha" * 40) for _ in range(6)]
    answering(
        monkeypatch,
        [
            *loops,
            said(at(0), LONG, at(0.2)),
            said(at(0), LONG, at(1)),
            said(at(0), "what came next", at(0.6)),
            said(at(0), LONG, at(1)),
        ],
    )
    found = recognizer.transcribe(sound(3), "en", sample_rate=16_000, timestamps=True, long="seek")
    assert [segment.start for segment in found.segments if segment.text == "what came next"] == [0.2]


def test_a_half_without_text_is_told(recognizer, monkeypatch, all_voice):
    """The other one has more than there was before."""
    loops = [said("ha" * 30) for _ in range(6)]
    answering(monkeypatch, [said(at(0), at(0)), said(at(0), LONG, at(1)), *loops])
    found = recognizer.transcribe(sound(2), "en", sample_rate=16_000)
    [(start, end)] = found.uncovered
    assert found.text == LONG and start == pytest.approx(1, abs=0.2) and end == 2 and len(found.warnings) == 1


def pausing(monkeypatch, seconds):
    """What isn't silent is a voice, silence of so many seconds a pause, and a text across one has few letters."""
    monkeypatch.setattr(chunking, "voiced", lambda samples: torch.from_numpy(np.abs(samples.numpy()[::160]) > 0.001))
    for name, value in (("AGAIN", 0.3), ("PAUSE", seconds), ("USUAL", 40.0)):
        monkeypatch.setattr(coverage, name, value)


def test_nothing_between_pauses_is_dropped(recognizer, monkeypatch):
    """The text wasn't doubted: it stays unless each piece has some."""
    pausing(monkeypatch, 0.3)
    samples = sound(2)
    samples[19_200:25_600] = 0  # 1.2 to 1.6 s
    answering(
        monkeypatch,
        [said(at(0), "this is it, yes", at(2)), said(at(0), "this is it, is it not", at(1.3)), said(at(0), at(0))],
    )
    assert recognizer.transcribe(samples, "en", sample_rate=16_000).text == "this is it, yes"
    answering(
        monkeypatch,
        [
            said(at(0), "this is it, yes", at(2)),
            said(at(0), "this is it, is it not", at(1.3)),
            said(at(0), "yes", at(0.5)),
        ],
    )
    assert recognizer.transcribe(samples, "en", sample_rate=16_000).text == "this is it, is it not yes"


def test_a_text_is_cut_at_the_longest_pause_first(recognizer, monkeypatch):
    """Short pieces have no context: a model makes less of them than of a sentence."""
    pausing(monkeypatch, 0.1)
    samples = sound(2)
    samples[8_000:10_400] = samples[19_200:25_600] = 0  # 0.5 to 0.65 s, 1.2 to 1.6 s
    asked = answering(
        monkeypatch,
        [
            said(at(0), "so be it, is it not", at(2)),
            said(at(0), "this is it, is it not, for it must be it as it was, is it", at(1.3)),
            said(at(0), "so be it, is it not", at(0.5)),
        ],
    )
    assert (
        recognizer.transcribe(samples, "en", sample_rate=16_000).text
        == "this is it, is it not, for it must be it as it was, is it so be it, is it not"
    )
    assert [call["rows"] for call in asked] == [1, 2]


@pytest.mark.parametrize(
    "halves, expected",
    [
        (
            [said(at(0), "so it said much more", at(0.5)), said(at(0), "than it had done before", at(0.5))],
            "so it said much more than it had done before",
        ),
        ([said(at(0), "so it said", at(0.5)), said(at(0), "than it had", at(0.5))], "it went on, and on and on"),
        (
            [said(at(0), "so it said much more, than it had done before", at(0.5)), said(at(0), at(0))],
            "it went on, and on and on",
        ),
        (
            [
                said(at(0), "many more words than anybody could say in half a second", at(0.5)),
                said(at(0), "than it had done before", at(0.5)),
            ],
            "it went on, and on and on",
        ),
    ],
    ids=["more", "less", "one has none", "too much"],
)
def test_a_long_loss_is_decoded_in_two_ways(recognizer, monkeypatch, all_voice, halves, expected):
    """A decoder that jumped once may jump again, and be sure of what it wrote."""
    monkeypatch.setattr(recovery, "TWO_WAYS", 1.0)
    answering(monkeypatch, [said(at(0), LONG, at(0.8)), said(at(0), "it went on, and on and on", at(1.2)), *halves])
    assert recognizer.transcribe(sound(2), "en", sample_rate=16_000, timestamps=True).text == f"{LONG} {expected}"


def test_what_is_decoded_again_is_not_decoded_in_two_ways(recognizer, monkeypatch, all_voice):
    """Else the work would double at each step, for a song of which no try says more than a word."""
    monkeypatch.setattr(recovery, "TWO_WAYS", 0.5)
    monkeypatch.setattr(recovery, "SHORTER", 0.05)
    asked = answering(monkeypatch, [said(at(0), "la la la la la", at(0.1))] * 99)
    recognizer.transcribe(sound(2), "en", sample_rate=16_000)
    assert sum(call["rows"] for call in asked) < 40


def judging(monkeypatch, rows):
    """Probabilities of zh, yue and en, one row for each window."""
    left = list(rows)
    monkeypatch.setattr(
        EncoderDecoder,
        "detect_language",
        lambda self, audio: (torch.tensor([left.pop(0) for _ in audio[0][0]]), torch.zeros(len(audio[0][0]))),
    )


@pytest.mark.parametrize(
    "sure, expected",
    [
        ([(0, "zh"), (1, "zh"), (4, "en"), (5, "en")], [("zh", 0, 1), ("en", 4, 5)]),
        ([(0, "zh"), (2, "zh")], [("zh", 0, 2)]),
        ([(0, "zh"), (3, "zh")], []),
        ([(0, "zh"), (1, "zh"), (2, "cy"), (3, "zh"), (4, "zh")], [("zh", 0, 4)]),
        ([(0, "zh"), (1, "zh"), (9, "zh"), (10, "zh")], [("zh", 0, 10)]),
        ([], []),
    ],
)
def test_turns(sure, expected):
    assert code_switching.turns(sure) == expected


def in_turns(monkeypatch, slices):
    """A window of 2 s is judged in nine slices of 0.4 s, 0.2 s apart; all of it is taken for the language of the first
    slice."""
    monkeypatch.setattr(code_switching, "SLICE", 0.4)
    monkeypatch.setattr(code_switching, "APART", 0.2)
    rows = {"z": [0.96, 0.02, 0.02], "e": [0.02, 0.02, 0.96], "?": [0.5, 0.0, 0.5]}

    def judge(self, audio):
        count = len(audio[0][0])
        signs = (
            slices[0] * count if count <= 3 else [slices[place * len(slices) // count] for place in range(count)]
        )  # windows, or slices
        return torch.tensor([rows[sign] for sign in signs]), torch.zeros(count)

    monkeypatch.setattr(EncoderDecoder, "detect_language", judge)


def test_a_window_is_cut_where_the_language_changes(recognizer, monkeypatch, all_voice):
    in_turns(monkeypatch, "zzz??eeee")
    samples = sound(2)
    samples[14_400:16_000] = 0  # 0.9 to 1 s
    asked = answering(monkeypatch, [said(at(0), "一二三四五六七", at(0.9)), said(at(0), LONG, at(1.0))])
    found = recognizer.transcribe(samples, sample_rate=16_000, timestamps=True)
    assert [(segment.start, segment.language, segment.text) for segment in found.segments] == [
        (0.0, "zh", "一二三四五六七"),
        (pytest.approx(0.95, abs=0.05), "en", LONG),
    ]
    assert [prompt[1] for call in asked for prompt in call["prompts"]] == [258, 260]
    assert not found.warnings and not found.uncovered


@pytest.mark.parametrize(
    "slices, how",
    [
        ("zzzzezzzz", {}),
        ("zzzz?????", {}),
        ("zzze???e?", {}),
        ("zzz??eeee", {"language": "zh"}),
        ("zzz??eeee", {"languages": ("zh", "yue")}),
        ("zzz??eeee", {"guards": False}),
    ],
    ids=["one slice", "unsure", "two that are far apart", "told", "among others", "no guards"],
)
def test_a_window_stays_whole(recognizer, monkeypatch, all_voice, slices, how):
    in_turns(monkeypatch, slices)
    answering(monkeypatch, [said(at(0), LONG, at(2))])
    assert recognizer.transcribe(sound(2), sample_rate=16_000, **how).text == LONG


def test_windows_in_several_languages_are_the_same_in_a_batch(recognizer, monkeypatch, all_voice):
    """The others of the batch are searched by themselves, and what follows goes by the last language."""
    found = []
    for size in (1, 3):
        in_turns(monkeypatch, "zzz??eeee")
        monkeypatch.setattr(
            window_decoder,
            "search",
            lambda model, audio, prompts, *rest, **how: [
                said(at(0), f"{prompt[1]} 一二三四五六七八九", at(2)) for prompt in prompts
            ],
        )
        found.append(recognizer.transcribe(sound(5), sample_rate=16_000, batch_size=size, timestamps=True))
    assert found[0].segments == found[1].segments and {segment.language for segment in found[0].segments} == {
        "zh",
        "en",
    }
    assert all(segment.text.startswith({"zh": "258", "en": "260"}[segment.language]) for segment in found[0].segments)


def test_seeking_goes_on_behind_the_last_sentence_of_a_window_in_several_languages(recognizer, monkeypatch, all_voice):
    in_turns(monkeypatch, "zzz??eeee")
    answering(
        monkeypatch,
        [
            said(at(0), "一二三四五六七", at(0.9)),
            said(at(0), LONG, at(0.6), at(0.6), "and then"),
            said(at(0), "一二三四五", at(0.8)),
            said(at(0), LONG, at(1.0)),
        ],
    )
    parts = list(recognizer.stream(sound(3.3), options=Options(timestamps=True, long="seek"), sample_rate=16_000))
    assert (
        parts[0].segments[-1].text == LONG
        and parts[0].end == pytest.approx(parts[0].segments[-1].end) == pytest.approx(parts[1].start)
        and parts[0].end < 2
    )
    assert "and then" not in "".join(segment.text for part in parts for segment in part.segments)


@pytest.mark.parametrize("other", [said(logprob=-0.1), said("ha" * 30, logprob=-0.1)])
def test_a_surer_text_in_another_language_has_to_be_one(recognizer, monkeypatch, other):
    judging(monkeypatch, [[0.4, 0.0, 0.6]])
    answering(monkeypatch, [said("hello there", logprob=-6.0), other])
    assert recognizer.transcribe(sound(1), sample_rate=16_000).text == "hello there"


def test_languages_that_are_compared_are_the_same_in_a_batch(recognizer, monkeypatch):
    rows, found = [[0.4, 0.0, 0.6], [0.45, 0.0, 0.55]], []
    for size, answers in ((1, ["aaa", "bbb", "ccc"]), (2, ["aaa", "ccc", "bbb"])):
        judging(monkeypatch, rows)
        asked = answering(monkeypatch, [said(text, logprob=-3.0 if text == "aaa" else -0.1) for text in answers])
        found.append(
            [
                segment.language
                for segment in recognizer.transcribe(talk(2), sample_rate=16_000, batch_size=size).segments
            ]
        )
        assert sum(call["rows"] for call in asked) == 3
    assert found[0] == found[1] == ["zh", "en"]


def test_a_whisper_without_cantonese_chooses_among_the_others(recognizer):
    old = pipeline.Recognizer(
        EncoderDecoder(replace(recognizer.config, languages={"en": 260, "zh": 258})).eval(), recognizer.tokenizer
    )
    assert old.check("auto", Options(languages=("zh-CN", "yue", "en"))).languages == ("zh", "en")
    for wrong in (("yue",), ("zh", "xx")):
        with pytest.raises(OptionError, match="language is"):
            old.check("auto", Options(languages=wrong))


def test_names_of_auto(recognizer):
    with pytest.raises(OptionError, match="expected names of languages"):
        recognizer.transcribe(sound(1), sample_rate=16_000, languages=["Auto"])
    recognizer.check("Auto", Options(languages=("zh",)))


@pytest.mark.parametrize(
    "languages, expected",
    [("zh", ("zh",)), ("zh,yue, en", ("zh", "yue", "en")), (["zh"], ("zh",)), (iter(("en",)), ("en",)), (None, ())],
)
def test_languages_of_auto_as_a_text(recognizer, monkeypatch, languages, expected):
    """A text is no list of letters."""
    asked, check = [], recognizer.check
    monkeypatch.setattr(recognizer, "check", lambda *arguments: asked.append(check(*arguments)) or asked[-1])
    recognizer.transcribe(sound(1), sample_rate=16_000, languages=languages, max_new_tokens=1)
    assert asked[0].languages == expected
    for wrong in (7, ["zh", 7], b"zh"):
        with pytest.raises(OptionError, match="expected names of languages, such as"):
            recognizer.transcribe(sound(1), sample_rate=16_000, languages=wrong)


def test_times_are_written_and_not_shown(recognizer, monkeypatch, all_voice):
    asked = answering(
        monkeypatch, [said(at(0), LONG, at(0.8), at(0.8), LONG, at(2.0)) for _ in range(2)] + [said(f"{LONG} {LONG}")]
    )
    hidden, shown, none = (
        recognizer.transcribe(sound(2), "en", sample_rate=16_000, timestamps=value) for value in (None, True, False)
    )
    assert [len(found.segments) for found in (hidden, shown, none)] == [
        1,
        2,
        1,
    ] and hidden.text == shown.text == none.text == f"{LONG} {LONG}"
    assert [len(call["prompts"][0]) for call in asked] == [3, 3, 4]
