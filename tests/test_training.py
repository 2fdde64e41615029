"""The trainer on a task of seconds: two tones are two words. It learns, resumes, fine-tunes, and refuses bad data."""

import itertools
import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import glmasr
from glmasr import weights
from glmasr.checkpoint.config_json import read_config, to_published
from glmasr.checkpoint.vocabulary import ALPHABET
from glmasr.config import CrossDecoderConfig, EncoderDecoderConfig, SinusoidalEncoderConfig
from glmasr.encoder import sinusoids
from glmasr.tokenizer import time_token

TRAIN = [sys.executable, str(Path(__file__).parent.parent / "training" / "train.py")]
SMALL = [
    "--threads",
    "1",
    "--batch-seconds",
    "12",
    "--warmup",
    "5",
    "--rate",
    "3e-3",
    "--mean",
    "0.8",
    "--eval-every",
    "1000",
]
SPECIAL = ["<|user|>", "<|assistant|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|pad|>"]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A folder with train.jsonl, and model/ with a configuration and a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("task")
    rng, lines = np.random.default_rng(0), []
    for number in range(24):
        word, hertz = [("a", 400), ("b", 1800)][number % 2]
        time = np.arange(int(rng.uniform(0.6, 1.2) * 16_000)) / 16_000
        soundfile.write(
            folder / f"{number}.wav",
            0.4 * np.sin(2 * np.pi * hertz * time) + 0.01 * rng.standard_normal(len(time)),
            16_000,
        )
        lines.append(json.dumps({"audio": f"{number}.wav", "text": word, "speaker": f"s{number % 3}"}))
    (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    model = folder / "model"
    model.mkdir()
    step = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    added = [{"id": 256 + i, "content": name, "special": True} for i, name in enumerate(SPECIAL)]
    vocab = {character: number for number, character in enumerate(ALPHABET)}
    (model / "tokenizer.json").write_text(
        json.dumps(
            {
                "model": {"type": "BPE", "vocab": vocab, "merges": []},
                "pre_tokenizer": step,
                "decoder": step,
                "added_tokens": added,
            }
        ),
        encoding="utf-8",
    )
    audio_config = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_mel_bins": 80,
        "head_dim": 16,
    }
    text_config = {
        "vocab_size": 261,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "eos_token_id": [256],
    }
    config = {"model_type": "glmasr", "audio_config": audio_config, "text_config": text_config, "audio_token_id": 260}
    processor = {"feature_extractor": {"chunk_length": 2, "feature_size": 80}, "default_transcription_prompt": "?"}
    for name, values in (("config.json", config), ("processor_config.json", processor)):
        (model / name).write_text(json.dumps(values), encoding="utf-8")
    assert read_config(model).window == 32_000
    return folder


@pytest.fixture(scope="module", params=["mel", "waveform"])
def article(request, task):
    """A directory of the encoder-decoder family, and a manifest with languages and phrases."""
    names = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        "<|zh|>",
        "<|en|>",
        "<|transcribe|>",
        "<|nospeech|>",
        "<|notimestamps|>",
    ]
    names += [time_token(step * 0.02) for step in range(101)]
    convolutions = ((8, 10, 5), (16, 8, 4), (24, 8, 8)) if request.param == "waveform" else ()
    config = EncoderDecoderConfig(
        SinusoidalEncoderConfig(
            width=32, layers=1, heads=2, hidden=64, positions=200 if convolutions else 100, convolutions=convolutions
        ),
        CrossDecoderConfig(vocabulary=256 + len(names), width=32, layers=1, heads=2, hidden=64, positions=32),
        window_seconds=2,
        start=257,
        end=256,
        languages={"zh": 258, "en": 259},
        tasks={"transcribe": 260},
        no_timestamps=262,
        latest_first_time=None,
    )
    folder = task / request.param
    folder.mkdir()
    for name, values in to_published(config, "bfloat16").items():
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    data = json.loads((task / "model" / "tokenizer.json").read_text())
    data["added_tokens"] = [{"id": 256 + i, "content": name, "special": True} for i, name in enumerate(names)]
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    rows = [json.loads(line) for line in (task / "train.jsonl").read_text().splitlines()]
    for row in rows:
        seconds = soundfile.info(task / row["audio"]).duration
        row |= {
            "language": {"a": "zh", "b": "en"}[row["text"]],
            "phrases": [{"start": 0.0, "end": seconds, "text": row["text"]}],
        }
    (task / "article.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def train(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([*TRAIN, *map(str, arguments)], capture_output=True, text=True, timeout=240)


@pytest.fixture
def trained(monkeypatch, capsys):
    """trained(*arguments) -> standard output of the trainer, in this process: it starts at once."""
    monkeypatch.syspath_prepend(str(Path(TRAIN[1]).parent))
    import train as trainer

    def run(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", [TRAIN[1], *map(str, arguments)])
        trainer.main()
        return capsys.readouterr().out

    run.errors = trainer.TrainingError, glmasr.GlmAsrError
    return run


def test_a_few_steps_change_all_weights_and_are_resumed(task, trained, tmp_path):
    """Whether it learns by them is told by the slow tests."""
    start = [
        task / "model",
        "--train",
        task / "train.jsonl",
        "--eval",
        task / "train.jsonl",
        "--out",
        tmp_path / "run",
        *SMALL,
    ]
    assert re.search("24 recordings.*steps 0 to 3\n", trained(*start, "--steps", 3))
    first = glmasr.load(tmp_path / "run" / "model", dtype="float32").model
    assert "steps 3 to 5\n" in trained(*start, "--steps", 5)
    second = glmasr.load(tmp_path / "run" / "model", dtype="float32").model
    for (name, before), after in zip(first.named_parameters(), second.parameters(), strict=True):
        assert after.isfinite().all() and not torch.equal(before, after), name
    said = trained(
        tmp_path / "run" / "model",
        "--train",
        task / "train.jsonl",
        "--without",
        "s0",
        "--freeze",
        "encoder",
        "--out",
        tmp_path / "tuned",
        *SMALL,
        "--steps",
        1,
        "--rate",
        "1e-5",
    )
    tuned = glmasr.load(tmp_path / "tuned" / "model", dtype="float32").model
    assert "16 recordings" in said and 0 < (tuned.decoder.embed.weight - second.decoder.embed.weight).abs().max() < 1e-3


def test_a_few_steps_of_the_encoder_decoder(task, article, trained, tmp_path):
    said = trained(
        article,
        "--train",
        task / "article.jsonl",
        "--eval",
        task / "article.jsonl",
        "--out",
        tmp_path / "run",
        *SMALL,
        "--silence",
        "0.1",
        "--steps",
        2,
    )
    recognizer = glmasr.load(tmp_path / "run" / "model", dtype="float32")
    assert "steps 0 to 2\n" in said and recognizer.config.languages == {"zh": 258, "en": 259}
    positions = recognizer.model.encoder.positions
    assert torch.equal(positions, sinusoids(*positions.shape).bfloat16().float())  # not learned


@pytest.mark.slow
def test_it_learns_resumes_and_writes_a_checkpoint(task):
    start = [
        task / "model",
        "--train",
        task / "train.jsonl",
        "--eval",
        task / "train.jsonl",
        "--out",
        task / "run",
        *SMALL,
    ]
    first = train(*start, "--steps", 40)
    assert first.returncode == 0, first.stderr
    assert (
        "24 recordings" in first.stdout
        and "steps 0 to 40" in first.stdout
        and "word errors" in first.stderr + first.stdout
    )
    second = train(*start, "--steps", 120)
    assert second.returncode == 0, second.stderr
    assert "steps 40 to 120" in second.stdout
    recognizer = glmasr.load(task / "run" / "model", dtype="float32")
    texts = [recognizer.transcribe(task / f"{number}.wav").text for number in range(24)]
    assert sum(text == "ab"[number % 2] for number, text in enumerate(texts)) >= 22, texts
    tuned = train(
        task / "run" / "model",
        "--train",
        task / "train.jsonl",
        "--without",
        "s0",
        "--out",
        task / "tuned",
        *SMALL,
        "--steps",
        2,
        "--rate",
        "1e-5",
        "--freeze",
        "nothing",
    )
    assert tuned.returncode == 0 and "16 recordings" in tuned.stdout, tuned.stderr
    before, after = (
        glmasr.load(task / name / "model", dtype="float32").model.decoder.embed.weight for name in ("run", "tuned")
    )
    assert 0 < (before - after).abs().max() < 1e-3  # it went on from the weights


@pytest.mark.slow
def test_the_encoder_decoder_learns_text_language_and_times(task, article):
    run = task / f"{article.name}-run"
    done = train(
        article,
        "--train",
        task / "article.jsonl",
        "--eval",
        task / "article.jsonl",
        "--out",
        run,
        *SMALL,
        "--silence",
        "0.1",
        "--steps",
        150,
    )
    assert done.returncode == 0 and "word errors" in done.stdout + done.stderr, done.stderr
    assert json.loads((run / "model" / "config.json").read_text())["model_type"].startswith("whisper")
    lines = subprocess.run(
        [
            sys.executable,
            str(Path(TRAIN[1]).parent / "evaluate.py"),
            run / "model",
            task / "article.jsonl",
            "--language",
            "auto",
            "--timestamps",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    _, _, _, errors, alike, median, far, _ = lines[2].split("|")
    assert float(errors.strip(" %")) <= 10 and float(alike.strip(" %")) >= 90 and float(median.strip(" s")) < 0.3
    recognizer = glmasr.load(run / "model", dtype="float32")
    transcripts = [recognizer.transcribe(task / f"{number}.wav") for number in range(24)]
    right = sum((t.text, t.language) == (("a", "zh"), ("b", "en"))[number % 2] for number, t in enumerate(transcripts))
    assert right >= 22, transcripts
    positions = recognizer.model.encoder.positions
    assert torch.equal(positions, sinusoids(*positions.shape).bfloat16().float())  # not learned


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "no recordings"),
        ("not json\n", "line 1: is no JSON .*expected"),
        ('{"audio": "0.wav"}\n', "line 1: has no text; expected"),
        ('{"audio": "missing.wav", "text": "a"}\n', "no such file"),
    ],
)
def test_bad_manifests_are_errors_of_one_line(task, trained, content, message):
    manifest = task / "bad.jsonl"
    manifest.write_text(content, encoding="utf-8")
    with pytest.raises(trained.errors, match=message) as caught:
        trained(task / "model", "--train", manifest, "--out", task / "never", *SMALL)
    assert "\n" not in str(caught.value) and not (task / "never").exists()


def test_an_error_ends_the_trainer(task, monkeypatch, capsys):
    """`test_fine_tuning.py` has it in a process of its own."""
    monkeypatch.syspath_prepend(str(Path(TRAIN[1]).parent))
    import train as trainer

    arguments = [task / "model", "--train", task / "nothing.jsonl", "--out", task / "never", *SMALL]
    monkeypatch.setattr(sys, "argv", [TRAIN[1], *map(str, arguments)])
    assert trainer.ended(trainer.main, "") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1


def test_joined_recordings(task, monkeypatch):
    """What `--join` makes: nothing is lost, one language each, not too long, and the phrases are where the sounds
    are."""
    monkeypatch.syspath_prepend(str(Path(TRAIN[1]).parent))
    import batches
    import manifest

    rows = [
        replace(
            row,
            language=("zh", "en")[number % 2],
            phrases=(manifest.Phrase(0.1, row.seconds - 0.1, row.text),),
        )
        for number, row in enumerate(manifest.read_manifests([task / "train.jsonl"]))
    ]
    found = batches.joined(rows, 0.75, 4.0, random.Random(0))
    parts = [part.audio for row in found for part in getattr(row, "parts", [row])]
    assert sorted(parts) == sorted(row.audio for row in rows) and max(row.seconds for row in found) <= 4.0
    longest = max(found, key=lambda row: len(getattr(row, "parts", [row])))
    assert len(longest.parts) > 2 and len({part.language for part in longest.parts}) == 1
    clip = batches.read_clip(longest, 0.0, 0.0, np.random.default_rng(0))
    cut = sum(2 * (0.1 - batches.EDGE) for _ in longest.parts)  # silent for 0.1 s at both ends, as its phrases say
    assert abs(len(clip.samples) / 16_000 - (longest.seconds - cut)) < 0.002 and clip.language == longest.language
    assert clip.text.replace(" ", "") == "".join(part.text for part in longest.parts)
    assert "".join(phrase.text for phrase in clip.phrases).replace(" ", "") == clip.text.replace(" ", "")
    for phrase in clip.phrases:
        assert clip.samples[round(phrase.start * 16_000) : round(phrase.end * 16_000)].abs().mean() > 0.1
    for one, other in zip(clip.phrases, clip.phrases[1:]):
        assert other.start - one.end >= batches.PAUSE


def test_where_ctc_hears_each_word(monkeypatch):
    """`Labels.places` against the sum over all paths; a word said twice has two places, and an impossible text none."""
    monkeypatch.syspath_prepend(str(Path(TRAIN[1]).parent))
    import auxiliary

    labels, texts, lengths = auxiliary.Labels(8, [[5, 6, 7]], 10), [[5, 5, 6], [], [7], [5, 6, 7, 5]], [6, 5, 4, 3]
    log_probs = torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    found = labels.places(log_probs, lengths, [torch.tensor(text, dtype=torch.long) for text in texts])
    wanted = torch.zeros(4, 4, 6)
    for row, (text, length) in enumerate(zip(texts, lengths)):
        total = 0.0
        for path in itertools.product(range(len(text) + 1), repeat=length):
            if [word for word, _ in itertools.groupby(path) if word] == list(range(1, len(text) + 1)):
                chance = np.prod(
                    [
                        log_probs[t, row, labels.label[text[word - 1]] if word else 0].exp().item()
                        for t, word in enumerate(path)
                    ]
                )
                total += chance
                for t, word in enumerate(path):
                    wanted[row, word - 1, t] += chance if word else 0.0
        wanted[row] /= max(total, 1e-30)
    assert wanted[0].sum() > 3 and wanted[3].sum() == 0
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_time_next_to_the_right_one_is_nearly_right(article, monkeypatch):
    """Its loss grows with the distance, far ones are all alike, and `times` weighs times against words."""
    monkeypatch.syspath_prepend(str(Path(TRAIN[1]).parent))
    import families

    config = read_config(article)
    model = weights.build(config)

    def loss(token: int, target: int, times: float = 1.0) -> float:
        logits = torch.zeros(2, config.decoder.vocabulary)
        logits[0, token], logits[1, 65] = 12.0, 12.0  # a time, and a word that is right
        total, weight = families.family_of(model, None, times, 0.05).loss(logits, torch.tensor([target, 65]))
        return (total / weight).item()

    first = config.times
    losses = [loss(first + 20 + step, first + 20) for step in range(8)]
    assert (
        losses[:6] == sorted(losses[:6])
        and losses[1] - losses[0] < losses[5] / 4
        and losses[6] == pytest.approx(losses[5], abs=1e-5)
    )
    assert loss(first + 100, first) == pytest.approx(loss(first + 50, first), abs=1e-5)  # at the border too
    word = loss(first + 50, first, 0.0)
    time = 2 * loss(first + 50, first) - word
    assert loss(first + 50, first, 0.25) == pytest.approx((word + 0.25 * time) / 1.25, rel=1e-4) and time > 10 > word


def test_a_waveform_frontend_begins_as_waves(monkeypatch):
    """What the first filters let through rises evenly on the mel scale; the four phases of one tell its loudness,
    whatever its phase."""
    monkeypatch.syspath_prepend(str(Path(TRAIN[1]).parent))
    import start

    weight = torch.empty(32, 1, 80)
    start.begin_as_waves(weight)
    spectra = torch.fft.rfft(weight[:, 0], 16_000).abs()  # one bin is 1 Hz
    loudest = spectra.argmax(1).view(8, 4).float()[1:]  # the first is too slow for 5 ms
    assert (loudest.amax(1) - loudest.amin(1) < 20).all()
    mel = 2595 * torch.log10(1 + loudest.mean(1) / 700)
    assert (mel.diff() > 200).all() and mel[-1] > 2700
    turns = torch.arange(0, 6.28, 0.1)
    waves = torch.cos(2 * torch.pi * loudest[3, 0] / 16_000 * torch.arange(80) + turns[:, None])
    loudness = torch.relu(waves @ weight[16:20, 0].T).pow(2).sum(1)  # of the fifth frequency
    assert loudness.min() > 0.95 * loudness.max()
