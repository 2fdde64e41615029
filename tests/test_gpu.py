"""What is captured on a GPU gives what the plain steps give, and its memory comes back:  python -m pytest -m gpu

benchmarks/gpu.sh runs them. With GLMASR_GPU_TESTS=cpu they run on a CPU over the same static memory, without graphs."""

import gc
import os

import pytest
import torch
from helpers import ROOT

import glmasr
from glmasr import audio, decode
from glmasr.kernels.cuda_graphs import KEPT, GraphedModel, Memory
from glmasr.kernels.prepare import Runtime
from glmasr.pipeline import Recognizer

DEVICE = os.environ.get("GLMASR_GPU_TESTS", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU"),
]
EXAMPLES = [str(ROOT / "examples" / name) for name in ("zh.wav", "yue.flac", "en.mp3")]
NEAR = 1e-3  # of logits of 10 and more in float32: kernels of other shapes sum in another order


def load(**options):
    """The demo in float32 as a GPU has it."""
    recognizer = glmasr.load("demo", device=DEVICE, dtype="float32", **options)
    if DEVICE == "cpu" and not options:
        model = GraphedModel(recognizer.model, captured=False)
        recognizer = Recognizer(model, recognizer.tokenizer, Runtime(steps="captured"))
    return recognizer


@pytest.fixture(scope="module")
def pair():
    """The plain recognizer and the captured one."""
    plain, captured = load(plain=True), load()
    assert captured.how()["steps"] == "captured" and isinstance(captured.model, GraphedModel)
    return plain, captured


@pytest.fixture(scope="module")
def heard(pair):
    """Embeddings and prompts of the examples."""
    plain, _ = pair
    rows = [plain.family.embed(audio.load(name)) for name in EXAMPLES]
    return rows, [plain.model.prompt(plain.tokenizer, len(each)) for each in rows]


@pytest.mark.parametrize("rows", [1, 3, 8])
@torch.inference_mode()
def test_captured_steps_are_the_plain_steps(pair, heard, rows):
    embeddings, prompts = ([each[row % 3] for row in range(rows)] for each in heard)
    found = []
    for recognizer in pair:
        model = recognizer.model
        cache = model.new_cache(rows, 400)
        logits = model.prefill(embeddings, prompts, cache)
        steps = [logits.clone()]
        for step in range(30):
            tokens = torch.arange(rows, device=logits.device) + 10 + 7 * step
            steps.append(model.step(tokens, cache).clone())
        found.append(torch.stack(steps))
    assert (found[0] - found[1]).abs().max() < NEAR


@pytest.mark.parametrize("beams", [1, 5])
def test_the_ids_are_equal(pair, heard, beams):
    """Prompts of different lengths, beams that fork and change places, rows that leave a batch one by one."""
    embeddings, prompts = ([each[row % 3] for row in range(8)] for each in heard)
    found = []
    for recognizer in pair:
        given = recognizer.model, embeddings, prompts
        how = {"stop": recognizer.config.stop, "max_new": list(range(2, 18, 2))}
        if beams == 1:
            found.append([each.ids for each in decode.greedy(*given, **how)])
        else:
            found.append([[one.ids for one in each] for each in decode.beam(*given, width=beams, **how)])
    assert found[0] == found[1] and len(found[0]) == 8


@pytest.mark.parametrize("beams", [1, 5])
def test_the_texts_are_equal(pair, beams):
    plain, captured = pair
    texts = [[one.text for one in each.transcribe(EXAMPLES, beams=beams)] for each in (plain, captured)]
    assert texts[0] == texts[1] and all(texts[0])


def test_memory_is_used_again(pair, heard):
    """The same batch once more takes no more: its memories, and their graphs, are those of the first time."""
    _, captured = pair
    pool = captured.model.pool
    embeddings, prompts = ([each[row % 3] for row in range(8)] for each in heard)
    taken = []
    for _ in range(3):
        decode.greedy(captured.model, embeddings, prompts, stop=(), max_new=list(range(3, 11)))
        taken.append((sorted(id(memory) for memory in pool.free), in_use()))
    assert taken[1] == taken[2] and 4 <= len(pool.free) <= KEPT


def test_memory_returns():
    """A model that is gone leaves nothing, graphs and static memory included."""
    gone, before_all = [], len(memories())
    for _ in range(2):  # the first time libraries keep something for themselves
        before = in_use()
        recognizer = load()
        recognizer.transcribe(EXAMPLES)
        assert DEVICE == "cpu" or in_use() > before
        del recognizer
        gone.append(in_use() - before)
    assert abs(gone[1]) < 2**20 and len(memories()) == before_all


def memories():
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is Memory]


def in_use() -> int:
    """Bytes of the GPU that tensors and graphs hold; 0 on a CPU."""
    gc.collect()
    if DEVICE == "cpu":
        return 0
    torch._C._cuda_clearCublasWorkspaces()  # they belong to streams
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


def test_log_mel_stays_on_its_device():
    rows = audio.load(EXAMPLES[0])[None]
    mel = audio.log_mel(rows.to(DEVICE))
    assert mel.device.type == DEVICE and (mel.cpu() - audio.log_mel(rows)).abs().max() < 2e-3
