"""Decoding over static memory, as CUDA graphs need it, against the plain way: the same ids, whatever moves."""

import pytest
import torch

import glmasr
from glmasr import decode, weights
from glmasr.kernels import cuda_graphs
from glmasr.kernels.prepare import Runtime
from glmasr.pipeline import Recognizer

EXAMPLES = ["examples/zh.wav", "examples/yue.flac", "examples/en.mp3"]


@pytest.fixture(scope="module")
def pair():
    """The demo, plain, and the same over static memory, with what both heard of the examples."""
    plain, static = (glmasr.load("demo", device="cpu", dtype="float32") for _ in range(2))
    heard = [plain.family.embed(glmasr.audio.load(name)) for name in EXAMPLES]
    return (
        plain.model,
        cuda_graphs.GraphedModel(static.model, captured=False),
        heard,
        [plain.model.prompt(plain.tokenizer, len(rows)) for rows in heard],
    )


@pytest.mark.parametrize("rows", [[0], [0, 1], [2, 0, 1], [1, 0, 0, 2, 1]])
@pytest.mark.parametrize("beams", [1, 2, 5])
def test_the_search_finds_the_same(pair, rows, beams):
    """Prompts of different lengths, rows that leave early, beams that fork and change places."""
    plain, static, heard, prompts = pair
    found = []
    for model in (plain, static):
        how = {"stop": model.config.stop, "max_new": [4 + 9 * row for row in rows]}
        given = model, [heard[row] for row in rows], [prompts[row] for row in rows]
        found.append(
            [[h.ids for h in each] for each in decode.beam(*given, width=beams, **how)]
            if beams > 1
            else [h.ids for h in decode.greedy(*given, **how)]
        )
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
            assert memory.mask.shape == (4, 1, 1, 512) and int(memory.mask[:3].sum()) == sum(
                cache.length - pad for pad in cache.padding.tolist()
            )
            now = [x.data_ptr() for x in (memory.keys, memory.values, memory.tokens, memory.position, memory.padding)]
            assert places in (None, now)
            places = now


def test_memories_are_used_again_and_clean(pair):
    _, model, heard, prompts = pair
    pool = model.new_cache(1, 10).pool
    cache = model.new_cache(1, 200)
    memory = cache.memory
    memory.keys.fill_(float("nan"))
    assert model.new_cache(1, 200).memory is not memory  # it is in use
    del cache
    again = model.new_cache(1, 200)
    assert again.memory is memory and not memory.keys.isnan().any()
    caches = [model.new_cache(1, 200) for _ in range(cuda_graphs.KEPT + 2)]
    del caches, again
    assert len(pool.free) == cuda_graphs.KEPT


def test_no_slot_of_a_memory_that_is_used_again_stays_hidden(pair):
    """Of a shorter prompt in a batch the slots at the left are hidden. Who is there next has a whole prompt, and sees
    all of it."""
    plain, static, heard, prompts = pair
    order = sorted(range(3), key=lambda row: len(prompts[row]))
    short, longest = order[0], order[-1]
    assert len(prompts[short]) < len(prompts[longest])
    how = {"stop": (), "max_new": 5}
    alone = decode.greedy(plain, [heard[longest]] * 2, [prompts[longest]] * 2, **how)
    memories = []
    for rows in ([short, longest], [longest, longest]):
        cache = static.new_cache(2, 400)
        memories.append(cache.memory)
        with torch.inference_mode():
            logits = static.prefill([heard[row] for row in rows], [prompts[row] for row in rows], cache)
            padding, found = cache.padding.tolist(), [logits.argmax(-1)]
            for _ in range(4):
                found.append(static.step(found[-1], cache).argmax(-1))
        del cache
        assert padding == [len(prompts[longest]) - len(prompts[row]) for row in rows]
    assert memories[0] is memories[1] and torch.stack(found, 1).tolist() == [hypothesis.ids for hypothesis in alone]


def test_a_full_cache_is_an_error(pair):
    _, model, heard, prompts = pair
    cache = model.new_cache(1, len(prompts[0]) + 1)
    with torch.inference_mode():
        model.prefill(heard[:1], prompts[:1], cache)
        model.step(torch.tensor([10]), cache)
        with pytest.raises(ValueError, match="do not fit|does not fit"):
            model.step(torch.tensor([10]), cache)


@pytest.fixture
def captures(monkeypatch):
    """A capture that runs as it is told; returns how often each was replayed."""
    counts = []

    class Graph:
        def __init__(self, run, device):
            self.run, self.number = run, len(counts)
            counts.append(0)
            run()

        def replay(self):
            counts[self.number] += 1
            self.run()

    monkeypatch.setattr(cuda_graphs, "capture", Graph)
    return counts


def test_captured_steps_and_encoder_give_the_same(captures):
    plain, below = (glmasr.load("demo", device="cpu", dtype="float32") for _ in range(2))
    captured = Recognizer(
        cuda_graphs.GraphedModel(below.model, captured=True), below.tokenizer, Runtime(steps="captured")
    )
    assert captured.how()["steps"] == "captured"
    for name in EXAMPLES:
        assert plain.transcribe(name).text == captured.transcribe(name).text
        assert [part.segments for part in plain.stream(name)] == [part.segments for part in captured.stream(name)]
    assert len(captures) == 2 and captures[0] == 2 * len(EXAMPLES) and captures[1] > 30  # the encoder, and the step
    with pytest.raises(glmasr.OptionError, match="Captured, GraphedModel"):
        weights.save(captured.model, "nowhere")


def test_the_shapes_that_came_last_are_kept(captures):
    module = cuda_graphs.Captured(torch.nn.ReLU(), frames=6)
    for size in (1, *range(2, cuda_graphs.SHAPES + 1), 1, 100, 1):  # the 1 is used again, so the 2 goes
        x = torch.rand(size, 6)
        given = x.clone()
        found = module(x)
        assert torch.equal(found, given) and torch.equal(x, given)
        assert not torch.equal(module(2 * x), found)  # a result is not written over
    assert (
        len(captures) == cuda_graphs.SHAPES + 1
        and (2, 6) not in module._graphs
        and len(module._graphs) == cuda_graphs.SHAPES
    )
    module(torch.rand(2, 6))
    assert len(captures) == cuda_graphs.SHAPES + 2
    assert (
        torch.equal(module(-torch.ones(2, 5)), torch.zeros(2, 5)) and len(captures) == cuda_graphs.SHAPES + 2
    )  # another length


def test_a_second_batch_captures_nothing(captures):
    """Its rows leave one by one, through memories of 8, 4, 2 and 1 rows: those are kept."""
    model = cuda_graphs.GraphedModel(glmasr.load("demo", device="cpu", dtype="float32").model, captured=True)
    how = {"stop": (), "max_new": list(range(3, 11))}
    heard, prompts = [torch.zeros(4, model.config.decoder.width)] * 8, [[1, *[model.config.audio_token] * 4, 2]] * 8
    first = [found.ids for found in decode.greedy(model, heard, prompts, **how)]
    assert len(captures) == 4
    assert [found.ids for found in decode.greedy(model, heard, prompts, **how)] == first and [
        len(ids) for ids in first
    ] == how["max_new"]
    assert len(captures) == 4


def test_rows_that_leave_stay_in_place_while_the_size_is_the_same(pair):
    _, model, heard, prompts = pair
    cache = model.new_cache(3, 300)
    with torch.inference_mode():
        model.prefill(heard[:3], prompts[:3], cache)
        memory, kept = (
            cache.memory,
            [x[:, [2, 0], :, : cache.length].clone() for x in (cache.memory.keys, cache.memory.values)],
        )
        padding = cache.padding[[2, 0]]
        cache.keep(torch.tensor([2, 0, 1]))
        assert cache.memory is memory  # 3 rows are in a memory of 4
        cache.keep(torch.tensor([0, 1]))
        assert cache.memory is not memory and cache.memory.rows == 2 and torch.equal(cache.padding, padding)
        for x, y in zip((cache.memory.keys, cache.memory.values), kept, strict=True):
            assert torch.equal(x[:, :2, :, : cache.length], y)


def test_memories_that_are_kept_have_a_limit(pair):
    _, model, _, _ = pair
    pool = cuda_graphs.Pool(model.model, captured=False)
    memories = [pool.take(rows, 256) for rows in (1, 2, 4)]
    pool.most = sum(memory.bytes for memory in memories[1:])
    for memory in memories:
        pool.give(memory)
    assert pool.free == memories[:0:-1]  # the one of 4 rows, then that of 2; the first one went


def test_memories_serve_within_inference_mode_and_without(pair):
    _, model, heard, prompts = pair
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            cache = model.new_cache(1, 700)
            model.prefill(heard[:1], prompts[:1], cache)
            model.step(torch.tensor([10]), cache)
            del cache
    assert model.new_cache(1, 700).memory.rows == 1
