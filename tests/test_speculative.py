"""Speculative decoding against greedy search: the same ids, whatever the draft says and however close a choice is."""

import json
import random
import shutil

import pytest
import torch
from helpers.checkpoints import make_checkpoint, make_encoder_decoder
from safetensors.torch import load_file, save_file

import glmasr
from glmasr import decode
from glmasr.config import (
    CrossDecoderConfig,
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    GlmAsrConfig,
    SinusoidalEncoderConfig,
)
from glmasr.errors import CheckpointError, OptionError
from glmasr.kernels.cuda_graphs import GraphedModel
from glmasr.rules import Forbid, ForbidFirst, StopLoops, TimestampRule
from glmasr.searching import speculative
from glmasr.searching.speculative import Ahead, Drafting
from glmasr.transcription import assistant
from glmasr.weights import build

V, STOP = 60, (3, 7)
PROMPT = {"glm-asr": [5, 59, 59, 59, 8], "encoder-decoder": [5, 6, 8]}


def make(family, seed, layers=2):
    """A random model of 60 tokens, and what it hears."""
    torch.manual_seed(seed)
    if family == "glm-asr":
        encoder = EncoderConfig(width=8, layers=1, heads=1, key_heads=1, head_size=8, hidden=32, rotary=4)
        decoder = DecoderConfig(vocabulary=V, width=24, layers=layers, heads=4, key_heads=2, head_size=8, hidden=32)
        model, heard = build(GlmAsrConfig(encoder, decoder, audio_token=59, stop=STOP)), [torch.randn(3, 24)]
    else:
        encoder = SinusoidalEncoderConfig(width=24, layers=1, heads=2, hidden=8)
        decoder = CrossDecoderConfig(vocabulary=V, width=24, layers=layers, heads=2, hidden=32, positions=64)
        ids = {"start": 5, "end": 3, "languages": {}, "tasks": {}, "no_timestamps": 29}
        model, heard = build(EncoderDecoderConfig(encoder, decoder, **ids)), torch.randn(1, 11, 24)
    model.decoder.requires_grad_(False)
    for parameter in model.decoder.parameters():
        parameter.copy_(0.6 * torch.randn_like(parameter))
    return model.eval(), heard


class Told:
    """A draft that knows a text, or another, or what comes into its mind."""

    def __init__(self, text, kind, seed=0):
        self.text, self.kind, self.random = [*text, 9, 9, 9, 9, 9], kind, random.Random(seed)

    def propose(self, ids, most):
        right = self.text[len(ids) : len(ids) + most]
        if self.kind == "right":
            return right
        if self.kind == "wrong":
            return [(token + 1) % V for token in right]
        return [token if self.random.random() < 0.7 else self.random.randrange(V) for token in right][
            : self.random.randrange(most + 1)
        ]


def rules_of(family, kind):
    if kind == "none":
        return []
    rules = [ForbidFirst([8, 12], V), Forbid([*range(40, 50), 29], V)]
    if family == "encoder-decoder" and kind == "times":
        rules.append(TimestampRule(begin=30, end=3, no_timestamps=29, latest_first=20))
    return [*rules, StopLoops(3)]


def watched(model, heard, family, max_new, rules):
    """The hypothesis of greedy search, and what a watcher saw after each token."""
    seen = []

    def watch(recordings, ids, score, length, stopped):
        count = int(length[0, 0])
        seen.append((recordings, ids[0, 0, :count].tolist(), score[0, 0].item(), stopped[0, 0].item()))

    how = {"stop": STOP, "max_new": max_new, "rules": rules, "watch": watch}
    [found] = decode.greedy(model, heard, [PROMPT[family]], **how)
    return found, seen


@pytest.mark.parametrize("family", PROMPT)
@pytest.mark.parametrize("kind", ["none", "some", "times"])
@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 60), marks=pytest.mark.slow)], ids=["few", "many"])
def test_whatever_is_drafted_the_search_finds_the_same(family, kind, seeds):
    """Ids, log-probabilities, the probability of silence, stops and limits, and all that a watcher sees."""
    lengths, stopped = [], []
    for seed in seeds:
        model, heard = make(family, seed)
        rules, max_new = rules_of(family, kind), 1 + (7 * seed) % 40
        expected, seen = watched(model, heard, family, max_new, rules)
        text = [*expected.ids, *STOP[:1]]
        lengths.append(len(expected.ids))
        stopped.append(expected.stopped)
        for draft in ("right", "wrong", "random"):
            for most in (1, 6):
                ahead = Ahead(model, Told(text, draft, seed), most)
                found, also = watched(ahead, heard, family, max_new, [ahead.exact(rules)])
                assert (found.ids, found.stopped) == (expected.ids, expected.stopped)
                assert found.logprob == pytest.approx(expected.logprob, abs=1e-3) and found.empty == expected.empty
                assert [(a, b, d) for a, b, _, d in also] == [(a, b, d) for a, b, _, d in seen]
                assert [c for *_, c, _ in also] == pytest.approx([c for *_, c, _ in seen], abs=1e-3)
                tokens = len(expected.ids) + expected.stopped
                if draft == "right":  # all are read in as few steps as there can be
                    assert ahead.reads <= -(-(tokens - 1) // (most + 1)) + ahead.repeated
                if draft == "wrong":
                    assert ahead.agreed == 0 and ahead.reads == tokens - 1
    if len(seeds) > 10:
        assert max(lengths) > 20 and any(stopped) and not all(stopped)


@pytest.mark.parametrize("family", PROMPT)
def test_an_assistant_drafts_and_the_search_finds_the_same(family):
    """The model itself agrees with all; another one with some, which it has to forget again."""
    agreed = {"itself": 0, "another": 0}
    for seed in range(3):
        model, heard = make(family, seed)
        other, _ = make(family, seed, layers=1)
        with torch.no_grad():
            for name, parameter in other.decoder.named_parameters():
                parameter.copy_(dict(model.decoder.named_parameters())[name])
        how = {"stop": STOP, "max_new": 30}
        [expected] = decode.greedy(model, heard, [PROMPT[family]], **how)
        for name, small in (("itself", model), ("another", other)):
            with torch.inference_mode():
                draft = Drafting(small, heard, PROMPT[family], stop=STOP, capacity=30, sure=0.0)
            ahead = Ahead(model, draft, 4)
            [found] = decode.greedy(ahead, heard, [PROMPT[family]], rules=[ahead.exact([])], **how)
            assert found.ids == expected.ids
            agreed[name] += ahead.agreed
            if name == "itself":
                assert ahead.agreed == ahead.drafted or ahead.repeated
    assert agreed["itself"] > agreed["another"] > 0


class Rough:
    """A model whose reads of several tokens are off, as far as rounding may be, and in which choices are close."""

    def __init__(self, model, seed):
        self.model, self.dtype, self.device, self.new_cache = model, model.dtype, model.device, model.new_cache
        self.generator = torch.Generator().manual_seed(seed)

    def twins(self, logits):
        """Every odd token is as likely as the even one before it, but for the last bits."""
        return logits[..., torch.arange(V) // 2 * 2] + 1e-6 * torch.arange(V) % 3

    def prefill(self, audio, prompt, cache):
        return self.twins(self.model.prefill(audio, prompt, cache))

    def step(self, tokens, cache):
        return self.twins(self.model.step(tokens, cache))

    def read(self, tokens, cache):
        logits = self.twins(self.model.read(tokens, cache))
        noise = 2 * torch.rand(logits.shape, generator=self.generator) - 1
        return logits + 0.45 * speculative.ROUNDING * logits.abs().amax(-1, keepdim=True) * noise


@pytest.mark.parametrize("family", PROMPT)
def test_a_close_choice_is_made_by_the_numbers_of_greedy_search(family):
    differ = repeated = 0
    for seed in range(4):
        model, heard = make(family, seed)
        model = Rough(model, seed)
        how = {"stop": STOP, "max_new": 30}
        [expected] = decode.greedy(model, heard, [PROMPT[family]], **how)
        for exact in (True, False):
            ahead = Ahead(model, Told(expected.ids, "random"), 4)
            rules = [ahead.exact([])] if exact else []
            [found] = decode.greedy(ahead, heard, [PROMPT[family]], rules=rules, **how)
            if exact:
                assert found.ids == expected.ids
                repeated += ahead.repeated
            else:
                differ += found.ids != expected.ids
    assert repeated and differ


def test_a_time_that_is_hardly_preferred_is_a_close_choice():
    """All times together against the best text: no two tokens are close to each other."""
    rules = [TimestampRule(begin=30, end=3, no_timestamps=29)]
    logits = torch.full((1, V), -20.0)
    logits[0, 10], logits[0, 40:50] = 5.0, 5.0 - torch.tensor(10.0).log() + 1e-5
    read = []

    class One:
        dtype, device = torch.float32, torch.device("cpu")

        def new_cache(self, rows, capacity):
            return type("Cache", (), {"length": 1, "capacity": capacity, "cut": lambda self, length: None})()

        def prefill(self, audio, prompt, cache):
            return torch.eye(V)[[33]] * 9.0

        def read(self, tokens, cache):
            return logits.expand(1, tokens.shape[1], V)

        def step(self, tokens, cache):
            read.append(tokens.tolist())
            return logits - 2e-5 * (torch.arange(V) >= 40)

    ahead = Ahead(One(), Told([33, 40, 41], "right"), 1)
    [found] = decode.greedy(ahead, None, [[1]], stop=STOP, max_new=3, rules=[ahead.exact(rules)])
    assert read[0] == [33] and found.ids[:2] == [33, 10]


def test_several_recordings_are_not_read_ahead():
    model, _ = make("glm-asr", 0)
    with pytest.raises(ValueError, match="decodes one at a time"):
        Ahead(model, Told([], "right"), 2).new_cache(2, 10)


# ---- an assistant of a recognizer ---------------------------------------------------------------------------------------

MAKERS = {"glm-asr": make_checkpoint, "encoder-decoder": make_encoder_decoder}


@pytest.fixture(scope="module", params=MAKERS)
def folders(request, tmp_path_factory):
    """A model and a student that has its encoder and the first of its two decoder layers."""
    teacher, student = tmp_path_factory.mktemp("teacher"), tmp_path_factory.mktemp("student") / "small"
    MAKERS[request.param](teacher)
    shutil.copytree(teacher, student)
    config = json.loads((student / "config.json").read_text())
    part, name = (config["text_config"], "num_hidden_layers") if "text_config" in config else (config, "decoder_layers")
    assert part[name] == 2
    part[name] = 1
    (student / "config.json").write_text(json.dumps(config))
    tensors = load_file(student / "model.safetensors")
    second = ("language_model.model.layers.1.", "language_model.layers.1.", "model.decoder.layers.1.")
    kept = {name: x for name, x in tensors.items() if not name.startswith(second)}
    assert len(kept) < len(tensors)
    save_file(kept, student / "model.safetensors", {"format": "pt"})
    return request.param, teacher, student


@pytest.fixture
def cheap(monkeypatch):
    """Even the student of a tiny model is taken for one that costs little."""
    monkeypatch.setattr(assistant, "LARGEST_SHARE", 2.0)


@pytest.fixture
def drafts(monkeypatch):
    """What was drafted and agreed with in each search that read ahead."""
    made = []

    class Watched(Ahead):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(assistant, "Ahead", Watched)
    return made


def sounds(count):
    torch.manual_seed(5)
    return [0.1 * torch.randn(20_000 + 3_000 * number).numpy() for number in range(count)]


def loaded(folder, **more):
    return glmasr.load(folder, device="cpu", dtype="float32", **more)


@pytest.mark.parametrize("plain", [True, False])
def test_with_an_assistant_the_transcript_is_that_without(folders, cheap, drafts, plain):
    _, teacher, student = folders
    alone, both = loaded(teacher, plain=plain), loaded(teacher, plain=plain, assistant=student)
    assert both.how()["assistant"] == "small" and "assistant" not in alone.how()
    how = {"sample_rate": 16_000, "beams": 1, "language": "en", "temperatures": (0.0,)}
    for sound in sounds(3):
        expected, found = (recognizer.transcribe(sound, **how) for recognizer in (alone, both))
        assert [part.text for part in found.segments] == [part.text for part in expected.segments]
        logprobs = [[part.mean_logprob for part in one.segments] for one in (found, expected)]
        assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-3)
    assert drafts and sum(one.drafted for one in drafts) > 0


def test_what_an_assistant_is_not_for_goes_on_without(folders, cheap, drafts):
    """Several windows at once, samples, and hotwords."""
    _, teacher, student = folders
    alone, both = loaded(teacher), loaded(teacher, assistant=student)
    how = {"sample_rate": 16_000, "beams": 1, "language": "en"}
    for more in ({"temperatures": (0.4,)}, {"hotwords": ["Kowloon Tong"], "temperatures": (0.0,)}):
        expected, found = (one.transcribe(sounds(1)[0], **how, **more).text for one in (alone, both))
        assert found == expected
    expected, found = ([t.text for t in one.transcribe(sounds(3), **how)] for one in (alone, both))
    assert found == expected and not [one for one in drafts if one.reads == 0 and one.drafted]


def test_beams_and_an_assistant_are_refused(folders, cheap):
    _, teacher, student = folders
    recognizer = loaded(teacher, assistant=student)
    with pytest.raises(OptionError, match="beams is 5, and an assistant drafts for greedy search; expected beams 1"):
        recognizer.transcribe(sounds(1)[0], sample_rate=16_000, beams=5)


def test_an_assistant_that_does_not_fit_is_refused(folders, cheap, tmp_path, monkeypatch):
    family, teacher, student = folders
    with pytest.raises(OptionError, match="int8 computes several tokens at once less exactly than one"):
        glmasr.load(teacher, device="cpu", dtype="int8", assistant=student)
    other = MAKERS[{"glm-asr": "encoder-decoder", "encoder-decoder": "glm-asr"}[family]](tmp_path)
    with pytest.raises(CheckpointError, match="of another family than the model; expected a student of this model"):
        loaded(teacher, assistant=other)
    shutil.copytree(student, tmp_path / "heard")
    tensors = load_file(student / "model.safetensors")
    tensors = {name: 1.1 * x if ".layers." in name else x for name, x in tensors.items()}
    save_file(tensors, tmp_path / "heard" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="the encoder of the assistant isn't that of the model"):
        loaded(teacher, assistant=tmp_path / "heard")
    monkeypatch.setattr(assistant, "LARGEST_SHARE", 0.1)
    with pytest.raises(OptionError, match=r"a token of the assistant costs \d\d% of what one of the model does"):
        loaded(teacher, assistant=student)


def test_steps_that_are_captured_read_one_token_each(folders, cheap, monkeypatch):
    family, teacher, student = folders
    recognizer = loaded(teacher)
    if family == "glm-asr":
        recognizer.family.model = GraphedModel(recognizer.model, captured=False)
        with pytest.raises(OptionError, match="CUDA graphs of one token each; expected none, or device 'cpu'"):
            assistant.load(student, teacher, recognizer.family, recognizer.runtime, plain=False)
