"""The network against two oracles: Transformers, stage by stage, and slow, obvious definitions of its parts."""

import itertools
import json
import re
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from glmasr import audio as sound
from glmasr import weights
from glmasr.config import DecoderConfig, EncoderConfig, GlmAsrConfig
from glmasr.conv_frontend import audio_rows
from glmasr.decode import beam, greedy
from glmasr.layers import Cache, attend, causal_mask, rope_table, rotate
from glmasr.model import GlmAsr
from glmasr.tokenizer import Tokenizer

NEAR = 1e-4  # greatest difference to Transformers, at every stage
EXACT = 2e-5  # float32 rounding between two orders of the same sums


# ---- a tiny tokenizer and processor -------------------------------------------------------------------------------------

SPECIAL = (
    "<|endoftext|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|pad|>",
    "<|begin_of_audio|>",
    "<|end_of_audio|>",
)
MERGES = (("t", "r"), ("tr", "an"), ("a", "n"), ("Ġ", "t"), ("Ġ", "a"), ("e", "a"))
VOCABULARY = 288
CHAT = (
    "{% for message in messages %}<|{{ message.role }}|>{{ '\n' }}{% for part in message.content %}"
    "{% if part.type == 'audio' %}<|begin_of_audio|><|pad|><|end_of_audio|><|user|>{{ '\n' }}{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{{ '\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    tokenizers = pytest.importorskip("tokenizers")
    names = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()) + [
        left + right for left, right in (MERGES[2], *MERGES)
    ]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(names))}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, [MERGES[2], *(m for m in MERGES if m != MERGES[2])])
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


# ---- tiny models --------------------------------------------------------------------------------------------------------


def _case(window, tied, rotary, audio, text, theta=10_000.0):
    rope = {"rope_type": "default", "rope_theta": theta}
    return SimpleNamespace(
        window=window,
        tied=tied,
        audio={"rope_parameters": rope | {"partial_rotary_factor": rotary}, **audio},
        text={"rope_parameters": rope, "max_position_embeddings": 4096, **text},
    )


def _audio(bands, width, layers, heads, key_heads, **more):
    return {
        "num_mel_bins": bands,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        **more,
    }


def _text(width, hidden, layers, heads, key_heads, **more):
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        **more,
    }


CASES = {
    "as published, small": _case(
        30, False, 0.5, _audio(128, 40, 2, 5, 5, head_dim=8), _text(32, 96, 2, 4, 1, head_dim=8)
    ),
    "quarter rotary, tied": _case(4, True, 0.25, _audio(80, 48, 3, 6, 2, head_dim=16), _text(64, 80, 3, 8, 4)),
    "full rotary, one key head": _case(2, False, 1.0, _audio(80, 64, 2, 4, 1), _text(32, 64, 4, 4, 4)),
    "odd widths, tied": _case(
        10, True, 0.5, _audio(128, 36, 2, 2, 2, head_dim=24), _text(48, 100, 2, 6, 2, head_dim=10), 500.0
    ),
    "two key heads of four": _case(
        8, False, 1.0, _audio(128, 24, 4, 4, 2), _text(64, 72, 2, 2, 1, rms_norm_eps=1e-6), 1e6
    ),
    "many small heads": _case(6, True, 0.25, _audio(80, 96, 1, 12, 12), _text(96, 64, 1, 12, 3, head_dim=4)),
}


@pytest.fixture(scope="module", params=CASES)
def tiny(request, reference, tokenizer_file, tmp_path_factory):
    """Both implementations of one random model, loaded from the same files, and Transformers' processor for it."""
    transformers = pytest.importorskip("transformers")
    case = CASES[request.param]
    tokenizer = Tokenizer.read(tokenizer_file)
    stop = [tokenizer.id(name) for name in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    theirs = reference(
        case.audio,
        case.text | {"vocab_size": VOCABULARY, "eos_token_id": stop},
        seed=list(CASES).index(request.param),
        tie_word_embeddings=case.tied,
        audio_token_id=tokenizer.id("<|pad|>"),
    )
    directory = tmp_path_factory.mktemp("tiny")
    theirs.save_pretrained(directory)
    extractor = transformers.WhisperFeatureExtractor(feature_size=case.audio["num_mel_bins"], chunk_length=case.window)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), pad_token="<|endoftext|>")
    processor = transformers.GlmAsrProcessor(extractor, fast, chat_template=CHAT)
    processor.save_pretrained(directory)
    model = weights.load(directory)
    return SimpleNamespace(
        theirs=theirs, ours=model, processor=processor, tokenizer=tokenizer, config=model.config, stop=stop
    )


def recording(samples, seed=0):
    """(S,) float32: a gliding tone in noise that comes and goes, and a stretch of silence."""
    noise = np.random.default_rng(seed)
    time = np.arange(samples) / sound.SAMPLE_RATE
    wave = 0.3 * np.sin(2 * np.pi * (300 + 90 * np.sin(3 * time)) * time) * (np.sin(5 * time) > -0.3)
    wave += 0.05 * noise.standard_normal(samples) * (np.sin(1.7 * time) > -0.6)
    return wave.astype(np.float32)


def heard(model, samples):
    """The package's way from samples (S,) to the rows of all windows."""
    window = model.config.window
    mel = sound.log_mel(sound.windows(torch.from_numpy(samples), window), model.config.encoder.bands)
    counts = [min(window, len(samples) - start) for start in range(0, len(samples), window)]
    return mel, model.encode(mel, counts)


@contextmanager
def observed(modules):
    """name -> what went into (name + " <") and came out of each module."""
    seen, hooks = {}, []
    for name, module in modules.items():

        def look(module, inputs, output, name=name):
            seen[name] = output[0] if isinstance(output, tuple) else output
            if inputs:
                seen[name + " <"] = inputs[0]

        hooks.append(module.register_forward_hook(look))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _stages(conv1, conv2, blocks, norm, projector, decoder_blocks, decoder_norm):
    return (
        {"conv1": conv1, "conv2": conv2, "encoder norm": norm, "projector": projector, "decoder norm": decoder_norm}
        | {f"encoder {n}": block for n, block in enumerate(blocks)}
        | {f"decoder {n}": block for n, block in enumerate(decoder_blocks)}
    )


def stages(tiny):
    tower, language, ours = tiny.theirs.model.audio_tower, tiny.theirs.model.language_model, tiny.ours
    theirs = _stages(
        tower.conv1,
        tower.conv2,
        tower.layers,
        tower.norm,
        tiny.theirs.model.multi_modal_projector,
        language.layers,
        language.norm,
    )
    return theirs, _stages(
        ours.encoder.frontend.conv1,
        ours.encoder.frontend.conv2,
        ours.encoder.blocks,
        ours.encoder.norm,
        ours.projector,
        ours.decoder.blocks,
        ours.decoder.norm,
    )


def difference(a, b):
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).abs().max()) if a.numel() else 0.0


# ---- stage by stage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", ["0.1 s", "odd", "window - 1", "window + 1", "2.4 windows", "3 windows"])
@torch.inference_mode()
def test_every_stage_is_transformers(tiny, length):
    window = tiny.config.window
    samples = recording(
        {
            "0.1 s": 1600,
            "odd": 12_347,
            "window - 1": window - 1,
            "window + 1": window + 1,
            "2.4 windows": int(2.4 * window) | 1,
            "3 windows": 3 * window,
        }[length]
    )
    inputs = tiny.processor.apply_transcription_request(samples)
    their_modules, our_modules = stages(tiny)
    assert set(their_modules) == set(our_modules)

    with observed(their_modules) as theirs:
        logits = tiny.theirs(**inputs).logits
    with observed(our_modules) as ours:
        mel, rows = heard(tiny.ours, samples)
        prompt = tiny.ours.prompt(tiny.tokenizer, sum(map(len, rows)))
        tiny.ours.decoder(tiny.ours.embed(torch.tensor([prompt]), rows), tiny.ours.new_cache(1, len(prompt)))
    # What the search calls leaves out the last block's MLP for all positions but the last.
    last = tiny.ours.prefill(rows, [prompt], tiny.ours.new_cache(1, len(prompt)))

    assert prompt == inputs["input_ids"][0].tolist()
    assert sum(map(len, rows)) == audio_rows(len(samples))
    assert difference(inputs["input_features"], mel) < 1e-5
    # What went into a stage is compared too: into conv2 and the first block behind the GELUs, into the decoder the
    # audio rows in their places.
    wanted = [name for name in theirs if name in our_modules] + ["conv2 <", "encoder 0 <", "decoder 0 <"]
    differences = {name: difference(theirs[name].float(), ours[name]) for name in wanted}
    differences["logits of all positions"] = difference(logits, tiny.ours.decoder.head(ours["decoder norm"]))
    differences["last logits"] = difference(logits[:, -1], last)
    assert len(differences) == len(our_modules) + 5
    assert max(differences.values()) < NEAR, differences
    assert logits.std(dim=1).mean() > 0.1  # positions differ, or equality would mean little


@torch.inference_mode()
def test_fifty_greedy_steps_are_transformers(tiny):
    samples = recording(tiny.config.window + 7_001, seed=1)
    inputs = tiny.processor.apply_transcription_request(samples)
    found = tiny.theirs.generate(**inputs, do_sample=False, max_new_tokens=50, pad_token_id=0)
    expected = found[0, inputs["input_ids"].shape[1] :].tolist()
    assert len(expected) == 50 and len(set(expected)) > 5

    _, rows = heard(tiny.ours, samples)
    prompt = [tiny.ours.prompt(tiny.tokenizer, sum(map(len, rows)))]
    [hypothesis] = greedy(tiny.ours, rows, prompt, stop=(), max_new=50)
    assert hypothesis.ids == expected and not hypothesis.stopped

    # The logits of every step, with the whole text recomputed at once by Transformers.
    whole = torch.cat([inputs["input_ids"], torch.tensor([expected])], 1)
    logits = tiny.theirs(**{**inputs, "input_ids": whole, "attention_mask": torch.ones_like(whole)}).logits[
        :, len(prompt[0]) - 1 :
    ]
    cache = tiny.ours.new_cache(1, len(prompt[0]) + 50)
    steps = [tiny.ours.prefill(rows, prompt, cache)]
    steps += [tiny.ours.step(torch.tensor([token]), cache) for token in expected]
    assert difference(logits, torch.stack(steps, 1)) < NEAR


@torch.inference_mode()
def test_a_ragged_batch_with_three_stop_ids_is_transformers(tiny):
    window = tiny.config.window
    recordings = [recording(n, seed) for seed, n in enumerate((9_000, window, window // 2 + 3))]
    inputs = tiny.processor.apply_transcription_request(recordings)
    free = tiny.theirs.generate(**inputs, do_sample=False, max_new_tokens=50, pad_token_id=0)[
        :, inputs["input_ids"].shape[1] :
    ].tolist()
    stop = [free[0][9], free[1][25], free[2][-1]]  # ids that come, so that rows end at different times
    found = tiny.theirs.generate(**inputs, do_sample=False, max_new_tokens=50, pad_token_id=stop[0], eos_token_id=stop)
    expected = [
        list(itertools.takewhile(lambda token: token not in stop, row))
        for row in found[:, inputs["input_ids"].shape[1] :].tolist()
    ]
    rows = [heard(tiny.ours, samples)[1] for samples in recordings]
    prompt = [tiny.ours.prompt(tiny.tokenizer, sum(map(len, r))) for r in rows]
    found = greedy(tiny.ours, [r for each in rows for r in each], prompt, stop=stop, max_new=50)
    assert [h.ids for h in found] == expected
    assert any(h.stopped for h in found)


# ---- beam search on whole models ----------------------------------------------------------------------------------------

STOP = (1, 3, 4)
SMALL = 40  # a small vocabulary, in which stop ids come often


def _beam_models(seed, reference, tmp_path):
    """Both implementations of one random model."""
    audio = _audio(80, 24, 1, 3, 3) | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    }
    theirs = reference(
        audio,
        _text(24, 48, 2, 4, 2, head_dim=8) | {"vocab_size": SMALL, "eos_token_id": list(STOP)},
        seed=seed,
        tie_word_embeddings=False,
        audio_token_id=5,
    )
    theirs.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": {"chunk_length": 2}}))
    return theirs, weights.load(tmp_path)


def _inputs(model, recordings):
    """What both need: Transformers' inputs, and the package's rows and prompts."""
    mels, rows = zip(*[heard(model, samples) for samples in recordings])
    prompt = [[7, 8] + [5] * sum(map(len, each)) + [9, 10, 11 + n] for n, each in enumerate(rows)]
    longest, window = max(map(len, prompt)), model.config.window
    counts = [min(window, len(samples) - start) for samples in recordings for start in range(0, len(samples), window)]
    inputs = {
        "input_ids": torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompt]),
        "attention_mask": torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompt]),
        "input_features": torch.cat(mels),
        "input_features_mask": torch.stack([torch.arange(window // 160) < -(-count // 160) for count in counts]).long(),
    }
    return inputs, [row for each in rows for row in each], prompt


def _generate(model, inputs, **options):
    """The new ids of each sequence that Transformers finds, up to and without the first stop id."""
    found = model.generate(
        **inputs,
        do_sample=False,
        early_stopping=False,
        max_new_tokens=16,
        eos_token_id=list(STOP),
        pad_token_id=STOP[0],
        **options,
    )
    return [
        list(itertools.takewhile(lambda token: token not in STOP, row))
        for row in found[:, inputs["input_ids"].shape[1] :].tolist()
    ]


@pytest.mark.parametrize("seed", range(3))
def test_beam_search_is_transformers(seed, reference, tmp_path):
    theirs, ours = _beam_models(seed, reference, tmp_path)
    inputs, rows, prompt = _inputs(ours, [recording(n, seed) for n in (8_000, 21_333)])
    stopped = set()
    for width, penalty in itertools.product((2, 5, 8), (0.6, 1.0, 1.4)):
        expected = _generate(theirs, inputs, num_beams=width, num_return_sequences=width, length_penalty=penalty)
        results = beam(ours, rows, prompt, stop=STOP, max_new=16, width=width, length_penalty=penalty)
        assert [h.ids for hypotheses in results for h in hypotheses] == expected, (width, penalty)
        stopped |= {h.stopped for hypotheses in results for h in hypotheses}
    assert True in stopped  # stop ids matter in these examples


@pytest.mark.parametrize("width", [2, 5])
def test_beam_search_over_several_windows(width, reference, tmp_path, monkeypatch):
    """Transformers 5.23 repeats the windows of a recording 1 1 2 2 for two beams, not 1 2 1 2, so that a beam hears one
    window twice and another not at all. Put in order, its beams are those of this package."""
    theirs, ours = _beam_models(0, reference, tmp_path)
    inputs, rows, prompt = _inputs(ours, [recording(80_000, 3)])
    assert len(inputs["input_features"]) == 3
    expand = theirs._expand_inputs_for_generation

    def in_order(expand_size=1, **arguments):
        ids, values = expand(expand_size=expand_size, **arguments)
        for name in ("input_features", "input_features_mask"):
            values[name] = inputs[name].repeat(expand_size, *[1] * (inputs[name].dim() - 1))
        return ids, values

    monkeypatch.setattr(theirs, "_expand_inputs_for_generation", in_order)
    expected = _generate(theirs, inputs, num_beams=width, num_return_sequences=width)
    [hypotheses] = beam(ours, rows, prompt, stop=STOP, max_new=16, width=width)
    assert [h.ids for h in hypotheses] == expected


# ---- published facts ----------------------------------------------------------------------------------------------------


class PublishedPrompt:
    """As much of the published vocabulary as the prompt needs."""

    ids = {
        "<|user|>": 59253,
        "<|assistant|>": 59254,
        "<|begin_of_audio|>": 59261,
        "<|end_of_audio|>": 59262,
        "\n": 10,
        "Please": 14215,
        " trans": 1700,
        "cribe": 8091,
        " this": 643,
        " audio": 14812,
        " into": 1636,
        " text": 2815,
    }

    def encode(self, text):
        pieces = re.findall("|".join(map(re.escape, self.ids)), text)
        assert "".join(pieces) == text
        return [self.ids[piece] for piece in pieces]


@pytest.mark.parametrize("rows", [0, 1, 375])
def test_the_prompt_is_the_published_one(rows):
    with torch.device("meta"):
        model = GlmAsr(GlmAsrConfig(encoder=EncoderConfig(layers=1), decoder=DecoderConfig(layers=1)))
    assert model.prompt(PublishedPrompt(), rows) == (
        [59253, 10, 59261] + [59260] * rows + [59262, 59253, 10, 14215, 1700, 8091, 643, 14812, 1636, 2815, 59254, 10]
    )


@pytest.mark.parametrize(
    "samples, rows",
    [
        (0, 0),
        (160, 0),
        (960, 0),
        (961, 1),
        (1600, 1),
        (480_000, 375),
        (480_001, 375),
        (960_000, 750),
        (169_600, 132),
        (96_000, 75),
    ],
)
def test_rows_for_a_recording(samples, rows):
    assert audio_rows(samples) == rows


def test_rows_of_windows_add_up():
    """The processor counts the whole recording, the model each window: the sums agree for every length."""
    window = 32_000
    for samples in range(1, 3 * window, 37):
        parts = [min(window, samples - start) for start in range(0, samples, window)]
        assert sum(map(audio_rows, parts)) == audio_rows(samples), samples


# ---- slow, obvious definitions ------------------------------------------------------------------------------------------


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size, head", [(8, 8), (4, 8), (2, 8), (6, 10)])
def test_rotate_is_multiplication_by_complex_numbers(size, head):
    """Dims i and i + size/2 are the real and imaginary part of number i, which is turned by position *
    theta^(-2i/size)."""
    positions, theta = torch.tensor([0, 1, 2, 17, 4095]), 500.0
    x = numbers(2, 3, len(positions), head)
    value = torch.complex(x[..., : size // 2].double(), x[..., size // 2 : size].double())
    angle = positions[:, None].double() * theta ** (-2 * torch.arange(size // 2).double() / size)
    turned = value * torch.polar(torch.ones_like(angle), angle)
    expected = torch.cat([turned.real, turned.imag, x[..., size:].double()], -1).float()
    assert (
        difference(rotate(x, rope_table(positions, size, theta, torch.float32)), expected) < 1e-3
    )  # float32 angles up to 4095
    few = slice(0, 3)
    assert (
        difference(rotate(x, rope_table(positions, size, theta, torch.float32))[:, :, few], expected[:, :, few]) < 1e-6
    )


@pytest.mark.parametrize("heads, key_heads", [(4, 4), (4, 2), (6, 2), (4, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_attend_is_naive_attention(heads, key_heads, masked):
    batch, time, slots, size = 2, 5, 9, 4
    query, key, value = (
        numbers(batch, heads, time, size),
        numbers(batch, key_heads, slots, size, seed=1),
        numbers(batch, key_heads, slots, size, seed=2),
    )
    mask = causal_mask(torch.arange(4, 9), slots, torch.tensor([0, 2])) if masked else None
    expected = torch.zeros(batch, time, heads, size)
    for b, h, t in itertools.product(range(batch), range(heads), range(time)):
        g = h // (heads // key_heads)
        score = torch.stack([query[b, h, t] @ key[b, g, s] / size**0.5 for s in range(slots)])
        if masked:
            score[~mask[b, 0, t]] = -torch.inf
        weight = score.exp() / score.exp().sum()
        expected[b, t, h] = sum(weight[s] * value[b, g, s] for s in range(slots))
    assert difference(attend(query, key, value, mask), expected.flatten(2)) < 1e-5


@pytest.mark.parametrize(
    "start, count, padding", [(0, 6, None), (4, 3, None), (0, 6, [0, 3, 5]), (5, 2, [0, 3, 5]), (6, 1, [1, 0, 6])]
)
def test_causal_mask_by_brute_force(start, count, padding):
    positions, slots = torch.arange(start, start + count), start + count
    mask = causal_mask(positions, slots, None if padding is None else torch.tensor(padding))
    assert mask.dtype == torch.bool and mask.shape == (1 if padding is None else 3, 1, count, slots)
    for row, left in enumerate(padding or [0]):
        for t in range(count):
            for slot in range(slots):
                sees = left <= slot <= start + t or slot == start + t
                assert bool(mask[row, 0, t, slot]) == sees


# ---- the cache ----------------------------------------------------------------------------------------------------------

SLIGHT = GlmAsrConfig(
    encoder=EncoderConfig(bands=80, width=16, layers=1, heads=2, key_heads=2, head_size=8, hidden=64, rotary=4),
    decoder=DecoderConfig(vocabulary=50, width=24, layers=3, heads=6, key_heads=2, head_size=6, hidden=40),
    audio_token=5,
    stop=(1, 3, 4),
    window_seconds=2,
)


@pytest.fixture(scope="module")
def model(randomize):
    return randomize(GlmAsr(SLIGHT), seed=3).requires_grad_(False)


def recomputed(model, audio, ids):
    """The logits behind every token of one text, without a cache."""
    return model.decoder.head(model.decoder(model.embed(torch.tensor([ids]), audio)))[0]


def material(rows, before=2, after=3, seed=0):
    """A prompt with `rows` placeholders, and the audio rows for them."""
    draw = np.random.default_rng(seed).integers(6, 50, before + after).tolist()
    return draw[:before] + [5] * rows + draw[before:], [numbers(rows, SLIGHT.decoder.width, seed=seed + 50)]


def test_cached_equals_uncached(model):
    prompt, rows = material(7)
    answer = [9, 8, 30, 30, 31, 6, 44, 2]
    cache = model.new_cache(1, len(prompt) + len(answer))
    steps = [model.prefill(rows, [prompt], cache)] + [model.step(torch.tensor([token]), cache) for token in answer]
    assert difference(torch.cat(steps), recomputed(model, rows, prompt + answer)[len(prompt) - 1 :]) < EXACT
    assert cache.length == cache.capacity


def test_chunks_on_a_filled_cache_equal_one_forward(model):
    ids = np.random.default_rng(1).integers(6, 50, 17).tolist()
    expected = recomputed(model, [torch.zeros(0, SLIGHT.decoder.width)], ids)
    for cuts in ([1, 16], [5, 5, 7], [8, 1, 1, 7], [17]):
        cache = model.new_cache(1, 20)
        parts = [
            model.decoder.head(model.decoder(model.decoder.embed(part[None]), cache))[0]
            for part in torch.tensor(ids).split(cuts)
        ]
        assert difference(torch.cat(parts), expected) < EXACT


def test_a_ragged_batch_equals_its_rows_alone(model):
    prompts, audio = zip(*[material(rows, before, seed=rows) for rows, before in ((3, 2), (11, 4), (0, 1), (6, 9))])
    answer = torch.tensor([[7, 9, 11, 13], [20, 21, 22, 23], [30, 30, 30, 30], [49, 6, 49, 6]])
    cache = model.new_cache(4, max(map(len, prompts)) + 4)
    steps = [model.prefill([r for each in audio for r in each], list(prompts), cache)]
    steps += [model.step(tokens, cache) for tokens in answer.T]
    assert all(step.isfinite().all() for step in steps)
    for row, (prompt, rows) in enumerate(zip(prompts, audio)):
        expected = recomputed(model, rows, prompt + answer[row].tolist())[len(prompt) - 1 :]
        assert difference(torch.stack(steps, 1)[row], expected) < EXACT


@pytest.mark.parametrize("ragged", [False, True])
def test_fork_and_reorder_equal_recomputation(model, ragged):
    """Beams that part, die and multiply: after each reorder the cache is that of the text each beam now has."""
    random = np.random.default_rng(4)
    materials = [material(4, seed=1), material(9 if ragged else 4, seed=2)]
    width, texts = 3, []
    cache = model.new_cache(2, 40)
    model.prefill([rows for _, audio in materials for rows in audio], [prompt for prompt, _ in materials], cache)
    cache.fork(width)
    assert cache.keys.shape[1] == cache.values.shape[1] == 2 * width
    texts = [[] for _ in range(2 * width)]
    for _ in range(8):
        order = [recording * width + int(beam) for recording in range(2) for beam in random.integers(0, width, width)]
        cache.reorder(torch.tensor(order))
        tokens = random.integers(6, 50, 2 * width).tolist()
        texts = [texts[source] + [token] for source, token in zip(order, tokens)]
        logits = model.step(torch.tensor(tokens), cache)
        for row, text in enumerate(texts):
            prompt, rows = materials[row // width]
            assert difference(logits[row], recomputed(model, rows, prompt + text)[-1]) < EXACT


def test_fork_into_one_changes_nothing(model):
    prompt, rows = material(4)
    cache = model.new_cache(1, 20)
    model.prefill(rows, [prompt], cache)
    before = cache.keys.clone()
    cache.fork(1)
    assert torch.equal(cache.keys, before)


def test_a_full_cache_refuses_more_and_stays_whole(model):
    prompt, rows = material(4)
    cache = model.new_cache(1, len(prompt) + 1)
    model.prefill(rows, [prompt], cache)
    with pytest.raises(ValueError, match=f"holds {len(prompt) + 1} tokens; {len(prompt)} \\+ 2 do not fit"):
        cache.begin(2)
    logits = model.step(torch.tensor([9]), cache)  # one more still fits, and the refusal left no trace
    assert difference(logits[0], recomputed(model, rows, prompt + [9])[-1]) < EXACT
    with pytest.raises(ValueError):
        model.step(torch.tensor([9]), cache)


def test_cache_positions():
    cache = Cache(1, 1, 1, 8, 2, dtype=torch.float32, device="cpu")
    assert cache.begin(3).tolist() == [0, 1, 2] and cache.mask is not None
    assert cache.begin(1).tolist() == [3] and cache.mask is None
    assert cache.begin(2).tolist() == [4, 5] and cache.mask.shape == (1, 1, 2, 6)


def test_placeholders_and_audio_rows_have_to_agree(model):
    prompt, rows = material(4)
    with pytest.raises(ValueError, match="4 placeholders for 3 audio embeddings"):
        model.prefill([rows[0][:3]], [prompt], model.new_cache(1, 20))


@torch.inference_mode()
def test_padding_of_a_window_is_heard(model):
    """Rows are dropped after the encoder, not samples before it: silence behind a recording is part of what it attends
    to."""
    mel = sound.log_mel(sound.windows(torch.from_numpy(recording(16_000)), SLIGHT.window), 80)
    whole, part = model.encode(mel, [32_000])[0], model.encode(mel, [16_000])[0]
    assert len(whole) == 25 and len(part) == 12 and torch.equal(whole[:12], part)
    short = model.projector(model.encoder(mel[:, :, :96]))[0]
    assert difference(short, part) > 1e-2


def test_batches_of_windows_equal_single_windows(model):
    mel = sound.log_mel(sound.windows(torch.from_numpy(recording(3 * 32_000)), SLIGHT.window), 80)
    together = torch.stack(model.encode(mel, [32_000] * 3))
    assert difference(together, torch.cat([model.projector(model.encoder(one[None])) for one in mel])) < EXACT


def test_modules_hold_no_state():
    """Nothing but parameters: no buffer that a meta device would lose, no position that a second recording would
    find."""
    with torch.device("meta"):
        assert not list(GlmAsr(SLIGHT).buffers())
    assert isinstance(GlmAsr(SLIGHT).decoder.embed, nn.Embedding)
