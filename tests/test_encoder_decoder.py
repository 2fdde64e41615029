"""The article's system and Whisper: against Transformers stage by stage, and against slow, obvious definitions."""

import json
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from glmasr import decode, weights
from glmasr.checkpoint.config_json import read_config
from glmasr.checkpoint.whisper_json import from_published
from glmasr.config import (
    CONVOLUTIONS,
    PRESETS,
    CrossDecoderConfig,
    EncoderDecoderConfig,
    SinusoidalEncoderConfig,
    total_stride,
)
from glmasr.conv_frontend import WaveformFrontend, receptive_field
from glmasr.encoder import sinusoids
from glmasr.errors import CheckpointError, OptionError
from glmasr.layers import multiply
from glmasr.model import EncoderDecoder

NEAR = 1e-4  # greatest difference to Transformers, at every stage
PIECES = 60  # of text; the special tokens follow, then the times


# ---- tiny models --------------------------------------------------------------------------------------------------------


def _case(
    bands=80,
    width=32,
    layers=(2, 2),
    heads=(2, 4),
    hidden=(64, 48),
    window=2,
    positions=64,
    suppress=(3, 5),
    first=(7, PIECES),
    latest=50,
):
    return SimpleNamespace(**locals())


CASES = {
    "small": _case(),
    "128 bands": _case(bands=128, width=48, heads=(3, 6), hidden=(96, 192)),
    "one layer": _case(layers=(1, 1), heads=(1, 1), window=1),
    "deep decoder": _case(layers=(1, 4), width=24, heads=(4, 2), positions=100),
    "deep encoder": _case(layers=(4, 1), width=40, heads=(5, 2), hidden=(32, 160), window=3),
    "nothing forbidden": _case(width=64, heads=(8, 4), suppress=(), first=(), latest=None),
    "times from the start": _case(latest=1, heads=(4, 1)),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request, randomize, tmp_path_factory):
    """(theirs, ours, case): a tiny random Whisper of Transformers, and what this package makes of its saved
    directory."""
    transformers = pytest.importorskip("transformers")
    case, folder = CASES[request.param], tmp_path_factory.mktemp("whisper")
    end = PIECES
    config = transformers.WhisperConfig(
        num_mel_bins=case.bands,
        d_model=case.width,
        encoder_layers=case.layers[0],
        decoder_layers=case.layers[1],
        encoder_attention_heads=case.heads[0],
        decoder_attention_heads=case.heads[1],
        encoder_ffn_dim=case.hidden[0],
        decoder_ffn_dim=case.hidden[1],
        vocab_size=PIECES + 9 + 50 * case.window + 1,
        max_source_positions=50 * case.window,
        max_target_positions=case.positions,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=end + 1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = transformers.WhisperForConditionalGeneration(config).float()
    kept = model.model.encoder.embed_positions.weight.clone()
    randomize(model, sorted(CASES).index(request.param))
    model.model.encoder.embed_positions.weight.data.copy_(kept)
    generation = model.generation_config
    generation.lang_to_id = {"<|zh|>": end + 2, "<|yue|>": end + 3, "<|en|>": end + 4}
    generation.task_to_id = {"translate": end + 5, "transcribe": end + 6}
    generation.no_timestamps_token_id, generation.is_multilingual = end + 8, True
    generation.suppress_tokens, generation.begin_suppress_tokens = list(case.suppress) or None, list(case.first) or None
    generation.max_initial_timestamp_index = case.latest
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"feature_size": case.bands, "chunk_length": case.window})
    )
    return model, weights.load(folder), case


def features(case, rows=2, seed=0):
    return torch.randn(rows, case.bands, 100 * case.window, generator=torch.Generator().manual_seed(seed))


def near(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < NEAR


# ---- parity -------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_every_stage_equals_transformers(pair):
    theirs, ours, case = pair
    mel = features(case)
    tokens = torch.randint(0, ours.config.decoder.vocabulary, (2, 12), generator=torch.Generator().manual_seed(1))
    expected = theirs(input_features=mel, decoder_input_ids=tokens, output_hidden_states=True)

    seen = {}
    for name, module in ours.named_modules():
        if isinstance(module, (nn.Conv1d, type(ours.encoder.blocks[0]), type(ours.decoder.blocks[0]))):
            module.register_forward_hook(lambda _module, _args, output, name=name: seen.update({name: output}))
    states = ours.encode(mel)
    hidden = ours.decoder(tokens, ours.decoder.cross_kv(states))

    conv1 = theirs.model.encoder.conv1(mel)
    near(seen["encoder.frontend.conv1"], conv1)
    near(seen["encoder.frontend.conv2"], theirs.model.encoder.conv2(F.gelu(conv1)))
    for layer in range(case.layers[0] - 1):  # behind the last layer Transformers shows the normed states only
        near(seen[f"encoder.blocks.{layer}"], expected.encoder_hidden_states[layer + 1])
    near(states, expected.encoder_last_hidden_state)
    for layer in range(case.layers[1] - 1):
        near(seen[f"decoder.blocks.{layer}"], expected.decoder_hidden_states[layer + 1])
    near(hidden, expected.decoder_hidden_states[-1])
    near(ours.decoder.head(hidden), expected.logits)


@torch.inference_mode()
def generated(theirs, mel, prompt, timestamps, **more):
    """New ids of each row, by the search of Transformers with the logits processors that its Whisper uses."""
    from transformers import GenerationMixin, LogitsProcessorList
    from transformers.generation import (
        SuppressTokensAtBeginLogitsProcessor,
        SuppressTokensLogitsProcessor,
        WhisperTimeStampLogitsProcessor,
    )

    config = theirs.generation_config
    processors = LogitsProcessorList()
    if config.begin_suppress_tokens:
        processors.append(
            SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, begin_index=len(prompt[0]))
        )
    if config.suppress_tokens:
        processors.append(SuppressTokensLogitsProcessor(config.suppress_tokens))
    if timestamps:
        processors.append(WhisperTimeStampLogitsProcessor(config, begin_index=len(prompt[0])))
    found = GenerationMixin.generate(
        theirs,
        input_features=mel,
        decoder_input_ids=torch.tensor(prompt),
        logits_processor=processors,
        do_sample=False,
        generation_config=plain(config),
        **more,
    )
    return [[*row, PIECES][: [*row, PIECES].index(PIECES)] for row in found[:, len(prompt[0]) :].tolist()]


def plain(config):
    """Only the ids: what else the configuration says would be done twice."""
    from transformers import GenerationConfig

    return GenerationConfig(
        eos_token_id=config.eos_token_id,
        pad_token_id=config.eos_token_id,
        bos_token_id=config.bos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
    )


@pytest.mark.parametrize("timestamps", [False, True])
def test_greedy_ids_equal_transformers(pair, timestamps):
    theirs, ours, case = pair
    for language, seed in (("zh", 0), ("en", 1)):
        mel, prompt = features(case, rows=3, seed=seed), [ours.prompt(language, timestamps=timestamps)] * 3
        found = decode.greedy(
            ours, ours.encode(mel), prompt, stop=ours.config.stop, max_new=50, rules=ours.rules(timestamps)
        )
        assert [hypothesis.ids for hypothesis in found] == generated(theirs, mel, prompt, timestamps, max_new_tokens=50)


@pytest.mark.parametrize("timestamps", [False, True])
def test_ids_of_five_beams_equal_transformers(pair, timestamps):
    theirs, ours, case = pair
    mel, prompt = features(case, rows=3, seed=2), [ours.prompt("yue", timestamps=timestamps)] * 3
    found = decode.beam(
        ours, ours.encode(mel), prompt, stop=ours.config.stop, max_new=30, width=5, rules=ours.rules(timestamps)
    )
    expected = generated(theirs, mel, prompt, timestamps, max_new_tokens=30, num_beams=5)
    assert [hypotheses[0].ids for hypotheses in found] == expected


def test_the_judged_language_equals_transformers(pair):
    theirs, ours, case = pair
    mel = features(case, rows=8, seed=3)
    likely, no_speech = ours.detect_language(ours.encode(mel))
    assert all(
        torch.equal(x, y)
        for x, y in zip(ours.detect_language(ours.decoder.cross_kv(ours.encode(mel))), (likely, no_speech))
    )
    ids = torch.tensor(list(ours.config.languages.values()))
    assert ids[likely.argmax(-1)].tolist() == theirs.detect_language(mel).tolist()
    with torch.inference_mode():
        logits = theirs(input_features=mel, decoder_input_ids=torch.full((8, 1), ours.config.start)).logits[:, 0]
    assert torch.allclose(likely, logits[:, ids].softmax(-1), atol=1e-5)
    assert torch.allclose(no_speech, logits.softmax(-1)[:, PIECES + 7], atol=1e-5)


# ---- the search's interface ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_cached_equals_uncached(pair):
    _, ours, case = pair
    states, tokens = (
        ours.encode(features(case)),
        torch.randint(0, PIECES, (2, 10), generator=torch.Generator().manual_seed(4)),
    )
    whole = ours.decoder.head(ours.decoder(tokens, ours.decoder.cross_kv(states)))
    cache = ours.new_cache(2, 10)
    near(ours.prefill(states, tokens[:, :4].tolist(), cache), whole[:, 3])
    for place in range(4, 10):
        near(ours.step(tokens[:, place], cache), whole[:, place])


@torch.inference_mode()
def test_reordered_beams_equal_recomputation_and_share_what_was_heard(pair):
    _, ours, case = pair
    states, prompt = ours.encode(features(case)), [ours.prompt("zh"), ours.prompt("en")]
    cache = ours.new_cache(2, 12)
    ours.prefill(states, prompt, cache)
    heard = [tensor.data_ptr() for layer in cache.cross for tensor in layer]
    cache.fork(3)
    generator = torch.Generator().manual_seed(5)
    rows = [list(ids) for ids in prompt for _ in range(3)]
    for _ in range(4):
        tokens = torch.randint(0, PIECES, (6,), generator=generator)
        logits = ours.step(tokens, cache)
        rows = [[*row, token] for row, token in zip(rows, tokens.tolist())]
        expected = ours.decoder.head(
            ours.decoder(torch.tensor(rows), ours.decoder.cross_kv(states.repeat_interleave(3, 0)))
        )[:, -1]
        near(logits, expected)
        parents = torch.cat(
            [torch.randint(0, 3, (3,), generator=generator), 3 + torch.randint(0, 3, (3,), generator=generator)]
        )
        cache.reorder(parents)
        rows = [list(rows[parent]) for parent in parents]
    assert [tensor.data_ptr() for layer in cache.cross for tensor in layer] == heard
    assert all(len(tensor) == 2 for layer in cache.cross for tensor in layer)


def test_a_batch_with_different_languages_gives_what_each_alone_gives(pair):
    _, ours, case = pair
    states = ours.encode(features(case, rows=3, seed=6))
    prompts = [ours.prompt(language) for language in ("zh", "yue", "en")]
    together = decode.greedy(ours, states, prompts, stop=ours.config.stop, max_new=20, rules=ours.rules())
    alone = [
        decode.greedy(ours, states[i : i + 1], [prompts[i]], stop=ours.config.stop, max_new=20, rules=ours.rules())[0]
        for i in range(3)
    ]
    assert [hypothesis.ids for hypothesis in together] == [hypothesis.ids for hypothesis in alone]


@pytest.mark.parametrize("shape", [(), (1,), (2,), (1, 5), (16,), (17,), (3, 7), (0,)])
def test_a_product_of_any_number_of_rows(shape):
    x, weight = torch.randn(*shape, 24, requires_grad=True), torch.randn(301, 24)
    y = multiply(x, weight)
    assert y.is_contiguous()
    torch.testing.assert_close(y, F.linear(x, weight), rtol=0, atol=2e-5)
    [slope] = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, weight.sum(0).expand_as(x), rtol=0, atol=1e-4)


def test_prompts():
    model = EncoderDecoder.__new__(EncoderDecoder)
    nn.Module.__init__(model)
    model.config = PRESETS["article"]
    config = model.config
    assert model.prompt("yue") == [
        config.start,
        config.languages["yue"],
        config.tasks["transcribe"],
        config.no_timestamps,
    ]
    assert model.prompt("zh", timestamps=True) == [config.start, config.languages["zh"], config.tasks["transcribe"]]
    for wrong in ({"language": "de"}, {"language": "zh", "task": "translate"}, {"language": None}):
        with pytest.raises(OptionError, match="has tokens for"):
            model.prompt(**wrong)
    model.config = EncoderDecoderConfig(languages={}, tasks={})  # such as whisper-tiny.en
    assert model.prompt() == [config.start, config.no_timestamps] and model.prompt("en", timestamps=True) == [
        config.start
    ]
    with pytest.raises(OptionError, match="supports 'transcribe' only"):
        model.prompt(task="translate")
    with pytest.raises(ValueError, match="equal lengths"):
        model.prefill(torch.zeros(2, 1, 1), [[1], [1, 2]], None)


# ---- the waveform frontend ----------------------------------------------------------------------------------------------


def test_the_default_frontend_makes_100_frames_a_second_of_about_25_ms_each():
    assert total_stride(CONVOLUTIONS) == 160
    assert 0.022 < receptive_field(CONVOLUTIONS) / 16_000 < 0.028
    with torch.inference_mode():
        assert WaveformFrontend(tuple((8, kernel, stride) for _, kernel, stride in CONVOLUTIONS), 24)(
            torch.randn(1, 1, 16_000)
        ).shape == (1, 100, 24)


@pytest.mark.parametrize(
    "convolutions", [((4, 10, 5), (6, 8, 4), (8, 4, 2)), ((5, 3, 3),), ((4, 2, 4), (4, 5, 1)), CONVOLUTIONS[:2]]
)
def test_what_a_frame_sees(convolutions):
    """The gradient of a frame reaches as many samples as `receptive_field` says, around the frame's own stretch. Norms,
    which see everything, are left out."""
    frontend = WaveformFrontend(convolutions, 8)
    for layer in frontend.layers:
        layer.norm = nn.Identity()
    stride, field = total_stride(convolutions), receptive_field(convolutions)
    samples = torch.randn(1, 1, 40 * stride, requires_grad=True)
    out = frontend(samples)
    assert out.shape[1] == 40
    out[0, 20].sum().backward()
    touched = samples.grad[0, 0].nonzero()[:, 0]
    middle = 20.5 * stride
    assert touched[-1] - touched[0] < field
    # A kernel shorter than its stride leaves samples out, so the span may be shorter than the field.
    assert field - (touched[-1] - touched[0] + 1) < stride
    assert abs((touched[0] + touched[-1] + 1) / 2 - middle) <= max(2.0, stride / 2)


@torch.inference_mode()
def test_the_waveform_frontend_against_its_definition():
    convolutions = ((6, 10, 5), (5, 4, 2))
    frontend, x = WaveformFrontend(convolutions, 9), torch.randn(2, 1, 400)
    expected = []
    for row in x.double().numpy():
        for (channels, kernel, stride), layer in zip(convolutions, frontend.layers):
            weight = layer.conv.weight.double().numpy()
            left = (kernel - stride) // 2
            row = np.pad(row, ((0, 0), (left, kernel - stride - left)))
            frames = (row.shape[1] - kernel) // stride + 1
            row = np.stack(
                [np.tensordot(weight, row[:, t * stride : t * stride + kernel], axes=2) for t in range(frames)], axis=1
            )
            row = (row - row.mean()) / np.sqrt(row.var() + 1e-5)
            row = row / (1 + np.exp(-row))
        expected.append(frontend.project.weight.double().numpy() @ row)
    assert np.abs(frontend(x).double().numpy() - np.stack(expected).transpose(0, 2, 1)).max() < 1e-5


def test_the_sinusoids_are_those_of_whisper():
    for length, width in ((50, 32), (1500, 384)):
        table = sinusoids(length, width)
        for position, place in ((0, 0), (7, 3), (length - 1, width // 2 - 1), (11, width // 2), (5, width - 1)):
            i = place % (width // 2)
            angle = position * math.exp(-math.log(10_000) * i / (width // 2 - 1))
            assert abs(table[position, place] - (math.sin(angle) if place < width // 2 else math.cos(angle))) < 1e-4


# ---- the article's presets ----------------------------------------------------------------------------------------------


def test_the_article_has_the_parameters_that_its_numbers_give():
    """d_model 1024, 12 encoder and 6 decoder layers, 16 heads, vocabulary 51865; four times the width in each MLP."""
    width, hidden, bands, vocabulary = 1024, 4096, 80, 51_865
    norm = 2 * width
    attention = 4 * width * width + 3 * width  # the key has no bias
    mlp = 2 * width * hidden + hidden + width
    encoder = (
        (3 * bands * width + width)
        + (3 * width * width + width)
        + 1500 * width
        + 12 * (2 * norm + attention + mlp)
        + norm
    )
    decoder = vocabulary * width + 448 * width + 6 * (3 * norm + 2 * attention + mlp) + norm
    with torch.device("meta"):
        models = {name: EncoderDecoder(PRESETS[name]) for name in ("article", "article-waveform")}
    count = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert count["article"] == encoder + decoder == 310_412_288
    stack = 512 * 10 + 512 * 512 * (8 + 4 + 4 + 3) + 5 * 2 * 512 + 512 * width
    assert (
        count["article-waveform"] == encoder + decoder - 3 * (bands + width) * width - 2 * width + 1500 * width + stack
    )


def small(convolutions):
    encoder = SinusoidalEncoderConfig(
        width=32, layers=2, heads=4, hidden=64, positions=200 if convolutions else 100, convolutions=convolutions
    )
    return EncoderDecoderConfig(
        encoder, CrossDecoderConfig(vocabulary=51_865, width=32, layers=1, heads=2, hidden=64), window_seconds=2
    )


@pytest.fixture
def all_cores():
    """For a model that is large enough to gain by them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "config, steps",
    [
        pytest.param(small(()), 3, id="small"),
        pytest.param(small(((16, 10, 5), (16, 8, 4), (16, 4, 2), (16, 4, 2), (16, 3, 2))), 3, id="small, waveform"),
        *(pytest.param(PRESETS[name], 2, id=name, marks=pytest.mark.slow) for name in ("article", "article-waveform")),
    ],
)
def test_the_article_trains_saves_loads_and_decodes(request, tmp_path, config, steps):
    if config in PRESETS.values():
        request.getfixturevalue("all_cores")
    torch.manual_seed(0)
    model = EncoderDecoder(config)
    rows = 2 if config.window_seconds < 30 else 1
    windows, tokens = torch.randn(rows, config.window), torch.tensor([[*model.prompt("zh"), 5, 6, config.end]] * rows)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2 / config.encoder.width)
    losses = []
    for _ in range(steps):
        hidden = model.decoder(tokens[:, :-1], model.decoder.cross_kv(model.encode(model.features(windows))))
        loss = F.cross_entropy(model.decoder.head(hidden).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    weights.save(model, tmp_path, torch.float32)
    again = weights.load(tmp_path)
    assert again.config == config and read_config(tmp_path) == config
    expected = model.eval().state_dict()
    assert expected.keys() == again.state_dict().keys()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())
    found = [
        decode.greedy(
            m,
            m.encode(m.features(windows)),
            [m.prompt("en", timestamps=True)] * rows,
            stop=config.stop,
            max_new=8,
            rules=m.rules(True),
        )
        for m in (model, again)
    ]
    assert found[0] == found[1]


# ---- files --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    encoder = SinusoidalEncoderConfig(width=16, layers=1, heads=2, hidden=16, positions=50)
    config = EncoderDecoderConfig(
        encoder,
        CrossDecoderConfig(vocabulary=90, width=16, layers=1, heads=2, hidden=16, positions=40),
        window_seconds=1,
        start=31,
        end=30,
        languages={"zh": 32, "en": 33},
        tasks={"transcribe": 34},
        no_timestamps=36,
        suppress=(1, 2),
    )
    weights.save(EncoderDecoder(config), tmp_path, torch.float32)
    return tmp_path


def change(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    "name, values, message",
    [
        ("config.json", {"activation_function": "relu"}, "activation_function is 'relu'"),
        ("config.json", {"scale_embedding": True}, "scale_embedding is True"),
        ("config.json", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ("config.json", {"surprise": 1}, "unknown key 'surprise'"),
        ("config.json", {"model_type": "bart"}, "model_type is 'bart'"),
        ("config.json", {"d_model": 0}, "width is 0"),
        ("config.json", {"d_model": 10**9}, "width is 1000000000"),
        ("config.json", {"encoder_attention_heads": 3}, "multiple of the number of heads"),
        ("config.json", {"encoder_layers": 10**6}, "1000000 layers"),
        ("config.json", {"encoder_layers": 999}, "1000 layers, but there are 50 tensors"),
        ("config.json", {"encoder_layers": 2}, "tensor model.encoder.layers.1.* is missing"),
        ("config.json", {"max_source_positions": 1500}, "has 1500 positions"),
        ("config.json", {"vocab_size": 20}, "below the vocabulary size 20"),
        ("config.json", {"vocab_size": 91}, "has shape \\[90, 16\\]"),
        ("config.json", {"convolutions": [[1, 2]]}, "convolutions is"),
        ("config.json", {"convolutions": [[16, 1, 1]] * 33}, "at most 32"),
        ("config.json", {"convolutions": [[16, 2**17, 320]]}, "up to 65536"),
        ("preprocessor_config.json", {"chunk_length": 601}, "at most 600 s"),
        ("preprocessor_config.json", {"feature_size": 128}, "feature_size is 128"),
        ("preprocessor_config.json", {"hop_length": 100}, "hop_length is 100"),
        ("generation_config.json", {"lang_to_id": {"<|zh|>": 400}}, "id 400"),
        ("generation_config.json", {"lang_to_id": [1]}, "lang_to_id is no table"),
        ("generation_config.json", {"no_timestamps_token_id": -1}, "id -1"),
        ("generation_config.json", {"no_timestamps_token_id": 0}, "expected ids in the order"),
        ("generation_config.json", {"eos_token_id": 80}, "expected ids in the order"),
        ("generation_config.json", {"suppress_tokens": [-1]}, "id -1"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(folder, name, values, message):
    change(folder, name, **values)
    with pytest.raises(CheckpointError, match=message) as error:
        weights.load(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_tensors_of_the_other_family_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "glmasr"}))
    with pytest.raises(CheckpointError, match="belong to different models"):
        weights.load(folder)
    (folder / "config.json").write_text(json.dumps(config))
    weights.load(folder)


def test_names_without_prefix_and_a_head_that_is_there_again(folder):
    from safetensors.torch import load_file, save_file

    path, expected = folder / "model.safetensors", weights.load(folder).state_dict()
    tensors = load_file(path)
    for changed in (
        {**tensors, "proj_out.weight": tensors["model.decoder.embed_tokens.weight"].clone()},
        {name.removeprefix("model."): value for name, value in tensors.items()},
    ):
        save_file(changed, path)
        found = weights.load(folder).state_dict()
        assert found.keys() == expected.keys() and all(
            torch.equal(value, expected[name]) for name, value in found.items()
        )


def test_the_published_sizes_have_the_published_tensors():
    """Names and shapes of openai/whisper-tiny to large-v3 and turbo in Transformers' format, from their few numbers
    alone."""
    sizes = {
        "tiny": (80, 384, 4, 4, 6, 51_865),
        "base": (80, 512, 6, 6, 8, 51_865),
        "small": (80, 768, 12, 12, 12, 51_865),
        "medium": (80, 1024, 24, 24, 16, 51_865),
        "large-v2": (80, 1280, 32, 32, 20, 51_865),
        "large-v3": (128, 1280, 32, 32, 20, 51_866),
        "large-v3-turbo": (128, 1280, 32, 4, 20, 51_866),
    }
    parameters = {
        "tiny": 37_760_640,
        "base": 72_593_920,
        "small": 241_734_912,
        "medium": 763_857_920,
        "large-v2": 1_543_304_960,
        "large-v3": 1_543_490_560,
        "large-v3-turbo": 808_878_080,
    }
    table = weights.FORMATS["whisper"].table
    for name, (bands, width, encoder, decoder, heads, vocabulary) in sizes.items():
        config = from_published(
            {
                "model_type": "whisper",
                "num_mel_bins": bands,
                "d_model": width,
                "encoder_layers": encoder,
                "decoder_layers": decoder,
                "encoder_attention_heads": heads,
                "decoder_attention_heads": heads,
                "encoder_ffn_dim": 4 * width,
                "decoder_ffn_dim": 4 * width,
                "vocab_size": vocabulary,
                "decoder_start_token_id": 50_258,
                "eos_token_id": 50_257,
            }
        )
        with torch.device("meta"):
            model = EncoderDecoder(config)
        names = {weights.their_name(table, ours): tuple(p.shape) for ours, p in model.named_parameters()}
        # Two convolutions and positions, 15 tensors a layer, 24 with cross-attention, two final norms and the
        # embedding.
        assert len(names) == 5 + 15 * encoder + 2 + 2 + 24 * decoder + 2
        assert names["model.decoder.embed_tokens.weight"] == (vocabulary, width)
        assert names["model.encoder.conv1.weight"] == (width, bands, 3)
        assert sum(p.numel() for p in model.parameters()) == parameters[name]
