"""Damaged sound files and checkpoints: each is read, or refused by one of the package's own exceptions, within 2 GiB
and 10 s.

    python -m pytest tests/fuzz                     100 of each sound format and of each file of a checkpoint
    python -m pytest -m fuzz                        20,000 sound files and 20,000 files of checkpoints
    GLMASR_FUZZ_SEED=7 python -m pytest -m fuzz     others; without a seed they are always the same ones

A finding is shown in its smallest form, and its file is kept: the last lines of the failure name it.
"""

import io
import json
import os
import struct
from collections import Counter
from functools import cache

import pytest

pytest.importorskip("resource")
pytest.importorskip("hypothesis", reason="needs the extra [test]")

from hypothesis import HealthCheck, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from mutate import (  # noqa: E402
    PATTERNS,
    REFUSED,
    SOUNDS,
    Base,
    damaged,
    damages,
    fields,
    json_damaged,
    json_damages,
    protobuf,
    sound,
)
from worker import Worker  # noqa: E402

FEW, SOUND_FILES, CHECKPOINT_FILES = 100, 20_000, 20_000
JSON_FILES = [
    "glmasr/config.json",
    "glmasr/processor_config.json",
    "glmasr/generation_config.json",
    "original/config.json",
    "whisper/config.json",
    "whisper/preprocessor_config.json",
    "whisper/generation_config.json",
    "waveform/config.json",
    "shards/model.safetensors.index.json",
    "bpe/tokenizer.json",
    "pieces/added_tokens.json",
]
FILES = [*JSON_FILES, "glmasr/model.safetensors", "whisper/model.safetensors", "pieces/tokenizer.model"]


# ---- whole checkpoints ----------------------------------------------------------------------------------------------------


def checkpoints(folder):
    """The smallest ones of each kind that this package reads, in directories of `folder`."""
    import torch
    from safetensors.torch import load_file, save_file

    from glmasr import weights
    from glmasr.config import (
        CrossDecoderConfig,
        DecoderConfig,
        EncoderConfig,
        EncoderDecoderConfig,
        GlmAsrConfig,
        SinusoidalEncoderConfig,
    )

    torch.manual_seed(0)
    glmasr = GlmAsrConfig(
        EncoderConfig(bands=4, width=8, layers=1, heads=2, key_heads=2, head_size=4, hidden=32, rotary=2),
        DecoderConfig(vocabulary=16, width=4, layers=1, heads=2, key_heads=1, head_size=2, hidden=4, positions=64),
        audio_token=5,
        stop=(1, 3),
        window_seconds=2,
    )
    steer = {
        "start": 2,
        "end": 1,
        "languages": {"zh": 3, "en": 4},
        "tasks": {"transcribe": 5},
        "no_timestamps": 7,
        "window_seconds": 1,
        "suppress": (9,),
        "suppress_first": (1, 8),
    }
    decoder = CrossDecoderConfig(vocabulary=59, width=4, layers=1, heads=2, hidden=4, positions=32)
    whisper = EncoderDecoderConfig(
        SinusoidalEncoderConfig(bands=4, width=4, layers=1, heads=2, hidden=4, positions=50), decoder, **steer
    )
    wave = EncoderDecoderConfig(
        SinusoidalEncoderConfig(
            width=4, layers=1, heads=2, hidden=4, positions=100, convolutions=((4, 10, 10), (4, 16, 16))
        ),
        decoder,
        **steer,
    )
    for name, config in (
        ("glmasr", glmasr),
        ("whisper", whisper),
        ("waveform", wave),
        ("original", glmasr),
        ("shards", glmasr),
    ):
        weights.save(weights.build(config), folder / name, torch.float32)
    file, index = folder / "shards" / "model.safetensors", folder / "shards" / "model.safetensors.index.json"
    tensors = load_file(file)
    file.unlink()
    shards = {name: f"model-{1 + number % 2}.safetensors" for number, name in enumerate(tensors)}
    for shard in set(shards.values()):
        save_file({name: tensors[name] for name in tensors if shards[name] == shard}, folder / "shards" / shard)
    index.write_text(json.dumps({"metadata": {"total_size": 9}, "weight_map": shards}))
    original(folder / "original", glmasr)
    tokenizers(folder)


def original(folder, config):
    """Writes a checkpoint in Transformers format as one of the original format."""
    from safetensors.torch import load_file, save_file

    from glmasr.weights import FORMATS

    tensors, old, new = (
        load_file(folder / "model.safetensors"),
        FORMATS["original"].table,
        FORMATS["transformers"].table,
    )
    names = {theirs.format(0): old[ours].format(0) for ours, theirs in new.items()}
    save_file(
        {f"{names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": tensor for name, tensor in tensors.items()},
        folder / "model.safetensors",
    )
    e, d = config.encoder, config.decoder
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "Glmasr",
                "adapter_type": "mlp",
                "merge_factor": 4,
                "use_rope": True,
                "mlp_adapter_act": "gelu",
                "whisper_config": {
                    "d_model": e.width,
                    "encoder_layers": e.layers,
                    "encoder_attention_heads": e.heads,
                    "encoder_ffn_dim": e.hidden,
                    "num_mel_bins": e.bands,
                    "activation_function": "gelu",
                },
                "lm_config": {
                    "hidden_size": d.width,
                    "num_hidden_layers": d.layers,
                    "num_attention_heads": d.heads,
                    "num_key_value_heads": d.key_heads,
                    "head_dim": d.head_size,
                    "intermediate_size": d.hidden,
                    "vocab_size": d.vocabulary,
                    "max_position_embeddings": d.positions,
                    "rms_norm_eps": d.eps,
                    "rope_theta": d.theta,
                    "hidden_act": "silu",
                    "eos_token_id": list(config.stop),
                },
                "audio_token_id": config.audio_token,
            }
        )
    )
    (folder / "processor_config.json").write_text(
        json.dumps({"feature_extractor": {"chunk_length": config.window_seconds}})
    )


def tokenizers(folder):
    import sentencepiece

    from glmasr.checkpoint.vocabulary import ALPHABET

    merges = [["t", "r"], ["a", "n"], ["tr", "an"], ["Ġ", "tran"]]
    vocabulary = [*ALPHABET, *("".join(pair) for pair in merges)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [
        {"id": len(vocabulary) + number, "content": content, **flags}
        for number, content in enumerate(("<|user|>", "<|assistant|>"))
    ]
    split = {
        "type": "Split",
        "pattern": {"Regex": r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+"},
        "behavior": "Isolated",
        "invert": False,
    }
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    steps = [split, {"type": "Digits", "individual_digits": True}, level]
    (folder / "bpe").mkdir()
    (folder / "bpe" / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": added + [{"id": 256, "content": "tr", **flags, "special": False}],
                "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
                "decoder": level,
                "model": {
                    "type": "BPE",
                    "dropout": None,
                    "unk_token": None,
                    "byte_fallback": False,
                    "ignore_merges": False,
                    "vocab": {token: id for id, token in enumerate(vocabulary)},
                    "merges": merges,
                },
            }
        )
    )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["please transcribe this audio into text", "請將這段音頻轉寫成文字"] * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        minloglevel=2,
        num_threads=1,
        hard_vocab_limit=False,
    )
    (folder / "pieces").mkdir()
    (folder / "pieces" / "tokenizer.model").write_bytes(model.getvalue())
    size = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    (folder / "pieces" / "added_tokens.json").write_text(
        json.dumps({"<|user|>": size, "<|zh|>": size + 1, "<|0.00|>": size + 2})
    )


# ---- strategies: each gives the damaged file and, for the failure, what was done to it ------------------------------------------


@cache
def sound_files(name):
    base = sound(name)
    return st.tuples(damages(base), st.booleans()).map(lambda drawn: (damaged(base, *drawn), drawn))


def json_files(path):
    tree, base = json.loads(path.read_text()), Base(path.read_bytes())
    if "model" in tree:  # the many entries of a vocabulary would hide the rest
        text = json.dumps(tree["model"]["vocab"])
        tree["model"]["vocab"] = {"a": 0}
        whole = lambda made: made.replace('"vocab": {"a": 0}', f'"vocab": {text}', 1)
    else:
        whole = lambda made: made
    tree_wise = json_damages(tree, PATTERNS if "model" in tree else ()).map(
        lambda todo: (whole(json_damaged(tree, todo)).encode(), todo)
    )
    return tree_wise | tree_wise | tree_wise | damages(base).map(lambda todo: (damaged(base, todo), todo))


def safetensors_files(path):
    """Other headers, with the length that they have, and damage anywhere."""
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    tree, base = json.loads(whole[8 : 8 + length]), Base(whole, tuple(fields(0, "length 64", little=True)))

    def header(drawn):
        todo, more, tail = drawn
        text = json_damaged(tree, todo).encode()
        return struct.pack("<Q", max(0, len(text) + more)) + text + whole[8 + length :][:tail], drawn

    more = st.just(0) | st.just(0) | st.sampled_from([-8, -1, 1, 8, 2**31, 2**62])
    tail = st.just(None) | st.just(None) | st.integers(-8, 8)
    sizes = [str(number) for number in (8, 16, 32, 64, 128, 2**24, 2**62)]
    return st.tuples(
        json_damages(tree, [*sizes, '"F64"', '"F16"', '"I64"', '"F8_E4M3"', "[0, 4]", "[16]", "[4, 0]"]), more, tail
    ).map(header) | damages(base).map(lambda todo: (damaged(base, todo), todo))


def model_files(path):
    content = path.read_bytes()
    base = Base(content, tuple(protobuf(content)))
    return damages(base).map(lambda todo: (damaged(base, todo), todo))


# ---- the hunt ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("fuzz")
    checkpoints(made)
    return made


@pytest.fixture(scope="module")
def worker(folder):
    made = Worker(folder)
    yield made
    made.stop()


def hunt(worker, kind, strategy, count, both=True):
    """Tries `count` files. `kind` is what `worker.read` takes; `both`: some have to be read, and some refused."""
    outcomes = Counter()

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @seed(int(os.environ.get("GLMASR_FUZZ_SEED", 0)))
    @given(strategy)
    def attempt(drawn):
        content, done = drawn
        outcome = worker.run(kind, content)
        outcomes[outcome] += 1
        if " " in outcome:
            kept = worker.folder / "finding"
            kept.write_bytes(content)
            raise AssertionError(f"{outcome}\n{kind}, {len(content)} bytes in {kept}, made by {str(done):.500}")

    attempt()
    assert outcomes.total() >= count, "hypothesis has run out of ideas"
    assert len(outcomes) > 1 or not both, f"damage that is always or never noticed tries nothing: {outcomes}"
    print(dict(outcomes))


def strategy_of(file, folder):
    kind = (
        safetensors_files if file.endswith(".safetensors") else model_files if file.endswith(".model") else json_files
    )
    return kind(folder / file)


def share(count, of, among):
    """`count` of a kind, shared by its variants."""
    return -(-count // among.count(of))


@pytest.mark.parametrize("name", [*SOUNDS, *REFUSED])
def test_sound_files(worker, name):
    few = share(FEW, name.split()[0], [other.split()[0] for other in [*SOUNDS, *REFUSED]])
    hunt(worker, "audio", sound_files(name), few, both=False)


@pytest.mark.parametrize("file", FILES)
def test_checkpoint_files(worker, folder, file):
    hunt(
        worker,
        file,
        strategy_of(file, folder),
        share(FEW, file.split("/")[1], [other.split("/")[1] for other in FILES]),
    )


@pytest.mark.fuzz
@pytest.mark.parametrize("name", [*SOUNDS, *REFUSED])
def test_many_sound_files(worker, name):
    hunt(worker, "audio", sound_files(name), -(-SOUND_FILES // len([*SOUNDS, *REFUSED])), both=name not in REFUSED)


@pytest.mark.fuzz
@pytest.mark.parametrize("file", FILES)
def test_many_checkpoint_files(worker, folder, file):
    hunt(worker, file, strategy_of(file, folder), -(-CHECKPOINT_FILES // len(FILES)))


# ---- the hunters themselves ---------------------------------------------------------------------------------------------------


def test_whole_files_are_read(worker, folder):
    assert [name for name in [*SOUNDS, *REFUSED] if worker.run("audio", sound(name).content) != "read"] == REFUSED
    assert {worker.run(file, (folder / file).read_bytes()) for file in FILES} == {"read"}


@pytest.mark.fuzz
def test_what_a_reader_must_not_do_is_found(tmp_path):
    worker = Worker(tmp_path, seconds=1)
    try:
        for fault, finding in (
            ("crash", "died of signal or code -11"),
            ("memory", "MemoryError"),
            ("time", "more than 1 s"),
            ("error", "KeyError"),
        ):
            assert finding in worker.run(fault, b"")
            assert worker.run("audio", sound("WAV PCM_16").content) == "read"  # the next case is tried all the same
    finally:
        worker.stop()
