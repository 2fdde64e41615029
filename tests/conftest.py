"""Tiny random GLM-ASR models, made by Transformers itself, and seeded weights that leave no part of a model without
effect."""

import gc
import os

gc.disable()  # until all modules are imported, which takes twice as long with it: see `pytest_collection_finish`
os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of Transformers: no test needs the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

pytest.register_assert_rewrite("helpers")


def pytest_collection_finish() -> None:
    """What was imported stays: no collection has to look at it again."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Libraries that count their objects at the end of the process find them gone."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch  # not above: of several processes, the one that runs no tests needs none of it

    torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other


@pytest.fixture(scope="session")
def randomize():
    """randomize(model, seed): weights of about unit gain, keys and queries with more, so that attention is sharp and a
    wrong rotation, mask or head shows; biases and norms that are not at their neutral values."""

    import torch

    def fill(model, seed):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in sorted(model.named_parameters()):
                noise = torch.randn(weight.shape, generator=generator)
                if weight.dim() == 1:
                    noise = 0.2 * noise + (1 if "norm" in name and name.endswith("weight") else 0)
                else:
                    sharp = any(part in name for part in ("q_proj", "k_proj", "query", "key"))
                    noise *= (2.0 if sharp else 1.2) / weight[0].numel() ** 0.5
                weight.copy_(noise)
        return model.eval()

    return fill


@pytest.fixture(scope="session")
def reference(randomize):
    """reference(audio, text, seed, **top) -> GlmAsrForConditionalGeneration in float32 with random weights.

    It has no end ids of its own: a test gives them to `generate`.
    """
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "GlmAsrForConditionalGeneration"):
        pytest.skip("this Transformers has no GLM-ASR")

    def build(audio, text, seed=0, **top):
        config = transformers.GlmAsrConfig(
            audio_config={"model_type": "glmasr_encoder", **audio}, text_config={"model_type": "llama", **text}, **top
        )
        model = randomize(transformers.GlmAsrForConditionalGeneration(config).float(), seed)
        model.generation_config.eos_token_id = None
        return model

    return build
