"""What hostile files cost: each is refused, by its name, in a process that holds at most 512 MiB, PyTorch included."""

import json
import os
import struct
import subprocess
import sys

import pytest
from helpers import ROOT

pytest.importorskip("resource")
MOST_MEMORY = 512 * 2**20
PATIENCE = 10.0  # seconds; each takes less than 2 where the machine has nothing else to do

PROGRAM = """
import sys, time
import torch                    # which the commands need anyway
from pathlib import Path
from glmasr import GlmAsrError, audio, tokenizer
from glmasr.checkpoint import config_json, hub, hub_cache, tensor_files
from glmasr.writers import output
for expression in sys.argv[1:]:
    try:
        open("/proc/self/clear_refs", "w").write("5")           # the peak begins anew
    except OSError:
        pass
    start = time.perf_counter()
    try:
        outcome = repr(eval(expression))
    except GlmAsrError as error:
        outcome = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start
    try:                        # TRAP: the number of `getrusage` may be that of whoever started this process
        peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    except OSError:
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(seconds, peak, outcome, end="\f")
"""


def tokenizer(pattern) -> bytes:
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return json.dumps(
        {
            "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
            "decoder": level,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [step, level]},
        }
    ).encode()


def layer3() -> bytes:
    from helpers.sounds import bytes_of, speech

    return bytes_of(speech(3), format="MP3", subtype="MPEG_LAYER_III")


def header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def pipe(path):
    os.mkfifo(path)


def zero(path):
    path.symlink_to("/dev/zero")


READ = {name: f"tokenizer.Tokenizer.read('{name}')" for name in ("tokenizer.json",)} | {
    "config.json": "config_json.read_config(Path('.'))",
    "model.safetensors.index.json": "tensor_files.weight_files(Path('.'))",
    "model.safetensors": "tensor_files.read_header(Path('model.safetensors'))",
    "cache/models--a--b/refs/main": "hub_cache.check_whole(hub.local('a/b', 'main'))",
    "folder/x.wav": "output.expand(['folder'])",
    "a.mp3": "len(audio.load('a.mp3', warn=print))",
}
# file -> what it is, how it is made, a part of what comes of it
ROWS = [
    (
        "tokenizer.json",
        "a pattern of 50 KB, 9999 times",
        lambda: tokenizer("(?:" + "[a-c]" * 10_000 + "){9999}"),
        "TokenizerError: tokenizer.json: the regular expression",
    ),
    (
        "tokenizer.json",
        "a pattern of 4.5 KB, 9999 times",
        lambda: tokenizer("(?:" + "[a-c]" * 900 + "){9999}"),
        "TokenizerError: tokenizer.json: the regular expression",
    ),
    (
        "tokenizer.json",
        "48 MB of lists",
        lambda: b"[" + b"[]," * 16_000_000 + b"0]",
        "TokenizerError: cannot read the tokenizer file 'tokenizer.json': 48000003 bytes",
    ),
    (
        "tokenizer.json",
        "36 MB of lists",
        lambda: b"[" + b"[]," * 11_999_999 + b"0]",
        "TokenizerError: 'tokenizer.json' is not valid JSON: so many values",
    ),
    (
        "tokenizer.json",
        "4 MB of brackets",
        lambda: b"[" * 2_000_000 + b"]" * 2_000_000,
        "TokenizerError: 'tokenizer.json' is not valid JSON: ",
    ),
    (
        "config.json",
        "48 MB of lists",
        lambda: b"[" + b"[]," * 16_000_000 + b"0]",
        "CheckpointError: config.json: not readable as JSON (48000003 bytes",
    ),
    (
        "config.json",
        "5 MB of objects",
        lambda: b"[" + b"{}," * 1_600_000 + b"0]",
        "CheckpointError: config.json: not readable as JSON (so many values",
    ),
    (
        "model.safetensors.index.json",
        "5 MB of keys",
        lambda: b"{" + b",".join(b'"%d":0' % number for number in range(400_000)) + b"}",
        "CheckpointError: model.safetensors.index.json: not readable as JSON (so many values",
    ),
    (
        "model.safetensors",
        "a header of 19 MB",
        lambda: header(b"[" + b"{}," * 6_000_000 + b"0]"),
        "CheckpointError: model.safetensors: its header is not valid JSON",
    ),
    ("cache/models--a--b/refs/main", "a pipe", pipe, "CheckpointError: a/b at revision main is not in the cache"),
    (
        "cache/models--a--b/refs/main",
        "a link to /dev/zero",
        zero,
        "CheckpointError: a/b at revision main is not in the cache",
    ),
    ("folder/x.wav", "a pipe", pipe, "AudioError: folder/x.wav: is a pipe"),
    (
        "a.mp3",
        "200 KB of odd tags",
        lambda: layer3()[:5000] + b"ID3\4\0\0\0\0\0\x01x" * 19_000 + layer3()[5000:],
        "bytes between its frames are no sound",
    ),
]


# To import PyTorch takes seconds: in the ordinary run one of a kind is tried, all in one process.
ORDINARY = {"a pattern of 50 KB, 9999 times", "5 MB of objects", "a link to /dev/zero", "200 KB of odd tags"}


def check_costs(folder, rows):
    """Reads the files of some rows, one after the other in one process."""
    for file, _, make, _ in rows:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path) if make in (pipe, zero) else path.write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(READ[file] for file, *_ in rows)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_CACHE": "cache", "PATH": ""},
    )
    assert (done.returncode, done.stderr) == (0, "")
    for (file, what, _, outcome), said in zip(rows, done.stdout.split("\f")[:-1], strict=True):
        seconds, peak, _ = said.splitlines()[-1].split(" ", 2)
        print(f"{file}: {what}: {float(seconds):.2f} s, {int(peak) / 2**20:.0f} MiB")
        assert outcome in said and float(seconds) < PATIENCE and int(peak) < MOST_MEMORY, said


def test_hostile_files_cost_little(tmp_path):
    check_costs(tmp_path, [row for row in ROWS if row[1] in ORDINARY])


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row[1] not in ORDINARY], ids=lambda row: f"{row[0]}: {row[1]}")
def test_a_hostile_file_costs_little(tmp_path, row):
    check_costs(tmp_path, [row])
