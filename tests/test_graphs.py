"""Decoding over static memory, as CUDA graphs need it, against the plain way: the same ids, whatever moves."""

import pytest
import torch

import glmasr
from glmasr import decode, graphs

EXAMPLES = ["examples/zh.wav", "examples/yue.flac", "examples/en.mp3"]


@pytest.fixture(scope="module")
def pair():
    """The demo, plain, and the same over static memory, with what both heard of the examples."""
    plain, static = (glmasr.load("demo", device="cpu", dtype="float32") for _ in range(2))
    graphs.prepare(static.model, captured=False)
    heard = [plain.hear(glmasr.audio.load(name)) for name in EXAMPLES]
    return plain.model, static.model, heard, [plain.model.prompt(plain.tokenizer, len(rows)) for rows in heard]


@pytest.mark.parametrize("rows", [[0], [0, 1], [2, 0, 1], [1, 0, 0, 2, 1]])
@pytest.mark.parametrize("beams", [1, 2, 5])
def test_the_search_finds_the_same(pair, rows, beams):
    """Prompts of different lengths, rows that leave early, beams that fork and change places."""
    plain, static, heard, prompts = pair
    found = []
    for model in (plain, static):
        how = {"stop": model.config.stop, "max_new": [4 + 9 * row for row in rows]}
        given = model, [heard[row] for row in rows], [prompts[row] for row in rows]
        found.append([[h.ids for h in each] for each in decode.beam(*given, width=beams, **how)] if beams > 1 else
                     [h.ids for h in decode.greedy(*given, **how)])
    assert found[0] == found[1]


def test_a_step_has_one_shape_and_one_place(pair):
    """What a graph needs: from token to token the same memory, and nothing that depends on how many there were."""
    _, model, heard, prompts = pair
    cache = model.new_cache(3, 300)
    assert (cache.memory.rows, cache.memory.capacity) == (4, 512)
    with torch.inference_mode():
        model.prefill(heard[:3], prompts[:3], cache)
        memory, places = cache.memory, None
        for step in range(3):
            logits = model.step(torch.tensor([10, 11, 12]), cache)
            assert logits.shape == (3, model.config.decoder.vocabulary) and cache.memory is memory
            assert memory.mask.shape == (4, 1, 1, 512) and int(memory.mask[:3].sum()) == sum(cache.length - pad for pad in cache.padding.tolist())
            now = [x.data_ptr() for x in (memory.keys, memory.values, memory.tokens, memory.position, memory.padding)]
            assert places in (None, now)
            places = now


def test_memories_are_used_again_and_clean(pair):
    _, model, heard, prompts = pair
    pool = model.new_cache(1, 10).pool
    cache = model.new_cache(1, 200)
    memory = cache.memory
    memory.keys.fill_(float("nan"))
    assert model.new_cache(1, 200).memory is not memory         # it is in use
    del cache
    again = model.new_cache(1, 200)
    assert again.memory is memory and not memory.keys.isnan().any()
    caches = [model.new_cache(1, 200) for _ in range(8)]
    del caches, again
    assert len(pool.free) == graphs.KEPT


def test_a_full_cache_is_an_error(pair):
    _, model, heard, prompts = pair
    cache = model.new_cache(1, len(prompts[0]) + 1)
    with torch.inference_mode():
        model.prefill(heard[:1], prompts[:1], cache)
        model.step(torch.tensor([10]), cache)
        with pytest.raises(ValueError, match="do not fit|does not fit"):
            model.step(torch.tensor([10]), cache)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_captured_on_a_gpu():
    plain, captured = (glmasr.load("demo", device="cuda", dtype="float32", plain=way) for way in (True, False))
    assert captured.how()["steps"] == "captured"
    for name in EXAMPLES:
        for beams in (1, 5):
            assert plain.transcribe(name, beams=beams).text == captured.transcribe(name, beams=beams).text
