"""benchmarks/gpu.sh without a GPU: its tests and its table on a CPU, over the same static memory, and its limits."""

import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT
from helpers.checkpoints import make_checkpoint

from glmasr import weights
from glmasr.kernels.cuda_graphs import GraphedModel

pytestmark = pytest.mark.skipif(not os.path.exists("/bin/bash"), reason="needs bash")
SCRIPT = ["/bin/bash", str(ROOT / "benchmarks" / "gpu.sh")]


@pytest.mark.slow
def test_the_tests_and_the_table_on_a_cpu():
    options = ["--device", "cpu", "--dtype", "float32", "--rows", "1", "3", "--seconds", "4", "--tokens", "4"]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*SCRIPT, *options], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 10 and "failed" not in done.stdout
    cells = [line[2:-2].split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    table = {name: (float(measured), limit) for name, measured, *_, limit in cells}
    for name in ("load, s", "encoder and projector, 1 x 4 s, ms", "a token, 1 at once, ms", "a token, 3 at once, ms"):
        measured, limit = table[name]
        assert 0 < float(limit.partition(":")[0]) and measured > 0
    assert table["a token, 3 at once, ms"][1] != table["a token, 1 at once, ms"][1]  # four rows of keys and values
    assert any(name.startswith("real-time factor, 3 x 4 s") for name in table) and "peak memory, GiB" in table


def test_without_its_packages_it_says_what_is_missing(tmp_path):
    """And with them in build/gpu it would go on: nothing is fetched."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
    bare.chmod(0o755)
    done = subprocess.run(SCRIPT, env=os.environ | {"PYTHON": str(bare)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(
        r"error: \S+ has no torch numpy .*tqdm pytest pygments; expected them, or .*gpu.sh pack.*\n", done.stderr
    )


def test_what_a_step_reads(tmp_path, monkeypatch):
    """All weights of the decoder once but the table of embeddings, and all keys and values."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    gpu = __import__("gpu")
    model = weights.load(make_checkpoint(tmp_path))
    memory = GraphedModel(model, captured=False).new_cache(3, 300).memory
    decoder = sum(weight.nbytes for name, weight in model.named_parameters() if name.startswith("decoder."))
    assert model.decoder.head.weight is not model.decoder.embed.weight
    expected = decoder - model.decoder.embed.weight.nbytes + memory.bytes
    assert gpu.step_bytes(model, memory.rows, memory.capacity) == expected
    model.decoder.head.weight = model.decoder.embed.weight
    assert gpu.step_bytes(model, memory.rows, memory.capacity) == expected
