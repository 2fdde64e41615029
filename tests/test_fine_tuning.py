"""Training of a model that has weights: it reads and learns what it was trained with, nothing helps it unasked, what is
on is printed; it is measured before and after, and the best is kept."""

import json
import os
import re
import socket
import subprocess
import sys
from datetime import timedelta

import numpy as np
import pytest
import torch
from helpers import model_bin
from helpers.training import FOLDER, SPECIAL, tiny_whisper, tones, write_manifest

import glmasr
from glmasr import weights
from glmasr.errors import GlmAsrError, ShortMemoryError
from glmasr.tokenizer import read_tokenizer

ID = {name: 256 + number for number, name in enumerate(SPECIAL)}
FAST = ["--threads", "1", "--batch-seconds", "8", "--steps", "3", "--freeze", "nothing", "--retain", "0"]
FAST += ["--eval-every", "100"]  # after the last step only


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A folder with whisper/ for two languages, whisper.en/, and train.jsonl, eval.jsonl of tones."""
    folder = tmp_path_factory.mktemp("task")
    tiny_whisper(folder / "whisper")
    tiny_whisper(folder / "whisper.en", languages=False)
    lines = tones(folder, 12)
    write_manifest(folder / "train.jsonl", lines[:8])
    write_manifest(folder / "eval.jsonl", lines[8:])
    return folder


@pytest.fixture
def modules(monkeypatch):
    """modules(name) -> a module of training/."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return __import__


@pytest.fixture
def train(task, modules, monkeypatch, capsys, tmp_path):
    """train(model, *options) -> what it printed; the run is in tmp_path / "run"."""
    trainer = modules("train")

    def run(model, *options, judged: bool = True) -> str:
        arguments = [task / model, "--train", task / "train.jsonl", "--out", tmp_path / "run", *FAST]
        arguments += ["--eval", task / "eval.jsonl", "--accept-errors"] if judged else []
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, [*arguments, *options])])
        trainer.main()
        return capsys.readouterr().out

    run.error = trainer.TrainingError
    return run


def parameters(folder) -> dict[str, torch.Tensor]:
    return dict(weights.load(folder).named_parameters())


@pytest.mark.parametrize(
    "option, value, expected",
    [
        ("--steps", "1.5", "a whole number from 1 on"),
        ("--patience", "-1", "a whole number from 0 on"),
        ("--rate", "0", "a number above 0"),
        ("--retain", "inf", "a number from 0 on"),
        ("--blend", "half", "a number from 0 to 1"),
        ("--lora-dropout", "1", "a number from 0 to below 1"),
        ("--seed", str(2**63), "a whole number from 0 to 2^63 - 1"),
    ],
)
def test_a_number_that_can_not_be_is_named_with_what_is_expected(modules, capsys, option, value, expected):
    with pytest.raises(SystemExit):
        modules("options").parser().parse_args(["m", option, value])
    assert f"argument {option}: {value}, expected {expected}" in capsys.readouterr().err


# ---- what is read and learned ----------------------------------------------------------------------------------------


def answer(task, modules, model, text, language="en", timed=False, before="", phrases=()):
    """(ids that the decoder reads, targets) of a clip."""
    families, manifest = modules("families"), modules("manifest")
    family = families.family_of(weights.load(task / model), read_tokenizer(task / model))
    phrases = tuple(manifest.Phrase(*phrase) for phrase in phrases)
    clip = families.Clip(torch.zeros(16_000), text, language, phrases)
    prompt, ids, learned = family.answer(clip, timed, before)
    return [*prompt.tolist(), *ids.tolist()], learned.tolist()


def test_a_whispers_text_begins_with_a_space_after_its_own_prompt(task, modules):
    """As Whisper was trained: all but the prompt is learned, the language as well, which is judged by the same logits."""
    start, text, none = ID["<|startoftranscript|>"], list(b" Be"), -100
    read, learned = answer(task, modules, "whisper", "Be")
    assert read == [start, ID["<|en|>"], ID["<|transcribe|>"], ID["<|notimestamps|>"], *_ids(task, " Be")]
    assert learned == [ID["<|en|>"], none, none, *_ids(task, " Be"), ID["<|endoftext|>"]]
    read, learned = answer(task, modules, "whisper.en", "Be", "")
    assert read == [start, ID["<|notimestamps|>"], *_ids(task, " Be")]
    assert learned == [none, *_ids(task, " Be"), ID["<|endoftext|>"]] and len(text) == len(_ids(task, " Be"))


def _ids(task, text):
    return read_tokenizer(task / "whisper").encode(text)


def test_chinese_begins_without_a_space(task, modules):
    """Measured with Whisper base on 8 clips: the first token's loss is 1.2 without and 9.7 with it."""
    read, _ = answer(task, modules, "whisper", "不", "zh")
    assert read[4:] == _ids(task, "不")


def test_times_and_what_was_said_before(task, modules):
    phrases = [(0.1, 0.5, "Be"), (0.5, 0.92, "so")]
    read, learned = answer(task, modules, "whisper.en", "Be so", "", True, "what was", phrases)
    times = [ID[f"<|{time}|>"] for time in ("0.10", "0.50", "0.50", "0.92")]
    said = [times[0], *_ids(task, " Be"), times[1], times[2], *_ids(task, " so"), times[3]]
    before = [ID["<|startofprev|>"], *_ids(task, " what was")]
    assert read == [*before, ID["<|startoftranscript|>"], *said]
    assert learned == [-100] * len(before) + said + [ID["<|endoftext|>"]]
    read, _ = answer(task, modules, "whisper.en", "Be", "", False, "x" * 500)
    assert read.index(ID["<|startoftranscript|>"]) == 32 and len(read) < 64  # half of the positions
    read, _ = answer(task, modules, "whisper.en", "b" * 50, "", False, "x" * 500)
    assert len(read) == 64  # as much as the answer leaves


def test_no_text_teaches_that_nobody_speaks(task, modules):
    for model in ("whisper", "whisper.en"):
        _, learned = answer(task, modules, model, "")
        assert learned[0] == ID["<|nospeech|>"] and learned[-1] == ID["<|endoftext|>"]


def test_clips_are_padded_to_the_whole_window(task, modules):
    """In every step, as they were; what is learned begins nowhere else, and nothing is changed."""
    options, families, batches = modules("options"), modules("families"), modules("batches")
    model = weights.load(task / "whisper")
    family = families.family_of(model, read_tokenizer(task / "whisper"))
    rows = modules("manifest").read_manifests([task / "train.jsonl"])
    args = options.completed(options.parser().parse_args(["m", "--batch-seconds", "4"]), has_weights=True)
    options.paced(args, rows, family.window)
    stream = iter(batches.Stream(rows, family, args, 0))
    seen = []
    for _ in range(8):
        batch = next(stream)
        assert batch.features.shape == (2, 80, 200)
        for mel, (count,) in zip(batch.features, batch.samples):
            assert (mel[:, count // 160 + 4 :] == mel.min()).all()  # silence after the sound
            seen.append(count)
    assert sorted(seen[:8]) == sorted(seen[8:]) == sorted(round(row.seconds * 16_000) for row in rows)


def test_glm_asr_has_its_own_prompt_and_learns_answer_and_stop(modules):
    families = modules("families")
    recognizer = glmasr.load("demo", plain=True, dtype="float32")
    family = families.family_of(recognizer.model, recognizer.tokenizer)
    batch = family.collate(
        [families.Clip(torch.zeros(16_000), "one two", "en")], families.EXACT, np.random.default_rng(0)
    )
    rows = 12  # embeddings of a second
    assert batch.features.shape[-1] == 400  # the demo's window of 4 s
    prompt = recognizer.model.prompt(recognizer.tokenizer, rows)
    text = recognizer.tokenizer.encode("one two")
    assert batch.tokens[0].tolist() == prompt + text
    assert batch.targets[0].tolist() == [-100] * (len(prompt) - 1) + text + [recognizer.tokenizer.id("<|user|>")]


def test_glm_asr_takes_several_windows_in_one_prompt(modules):
    """6 s for windows of 4 s: all placeholders in front of one answer."""
    families = modules("families")
    recognizer = glmasr.load("demo", plain=True, dtype="float32")
    family = families.family_of(recognizer.model, recognizer.tokenizer)
    clips = [families.Clip(torch.zeros(count), "one", "en") for count in (96_000, 16_000)]
    batch = family.collate(clips, families.EXACT, np.random.default_rng(0))
    assert batch.features.shape[0] == 3 and batch.samples == [[64_000, 32_000], [16_000]]
    assert (batch.tokens == recognizer.config.audio_token).sum(1).tolist() == [75, 12]
    hidden, _ = family.forward(batch)
    assert hidden.isfinite().all()


# ---- faults that only the model knows --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, line, message",
    [
        ("whisper", {"language": "french"}, "line 2: has the language 'fr'; this model has tokens for zh, en"),
        ("whisper", {"language": "yue"}, "line 2: has the language 'yue'.*for Cantonese take zh"),
        ("whisper", {"language": "englisch"}, "line 2: has the language 'englisch'.*did you mean english"),
        ("whisper", {"language": ""}, "line 2: has no language.*--language"),
        ("whisper.en", {"language": "zh"}, "line 2: has the language 'zh', but this model .* English alone"),
        ("whisper", {"text": "b" * 62}, "line 2: has a text of 63 tokens, after a prompt of 4; .* 64 positions"),
        ("whisper", {"text": "a<|endoftext|>"}, "line 2: has the special token '<|endoftext|>'"),
    ],
)
def test_a_fault_for_this_model_is_told_with_its_line(task, train, tmp_path, model, line, message):
    lines = tones(tmp_path, 3)
    lines[1] |= line
    if not lines[1]["language"]:
        del lines[1]["language"]
    write_manifest(tmp_path / "m.jsonl", lines)
    with pytest.raises(train.error, match=message):
        train(model, "--train", tmp_path / "m.jsonl")
    assert not (tmp_path / "run").exists()


def test_the_longest_text_that_fits_and_language_for_all(task, train, tmp_path):
    """`english` is a language; one position less is enough."""
    lines = tones(tmp_path, 4)
    lines[0]["text"] = "b" * 59
    lines[1]["language"] = "English"
    del lines[2]["language"]
    write_manifest(tmp_path / "m.jsonl", lines)
    assert "4 recordings" in train("whisper", "--train", tmp_path / "m.jsonl", "--language", "en", "--steps", 1)


def test_clips_up_to_a_whole_window_are_trained_on(task, train, tmp_path):
    """1.95 s of 2 s: nothing vanishes, even where recordings are slowed down."""
    import soundfile
    from helpers.training import tone

    lines = tones(tmp_path, 4)
    soundfile.write(tmp_path / "1.wav", tone(400, 1.95, np.random.default_rng(0)), 16_000)
    write_manifest(tmp_path / "m.jsonl", lines)
    said = train("whisper", "--train", tmp_path / "m.jsonl", "--augment", "--steps", 2)
    assert "4 recordings" in said and "LEFT OUT" not in said
    soundfile.write(tmp_path / "1.wav", tone(400, 2.2, np.random.default_rng(0)), 16_000)
    said = train("whisper", "--train", tmp_path / "m.jsonl", "--out", tmp_path / "other", "--steps", 1)
    assert "LEFT OUT: 1 clips, 2 s, longer than 2 s" in said and "m.jsonl, line 2 (2.2 s)" in said


# ---- the run ---------------------------------------------------------------------------------------------------------


def test_what_is_on_is_printed_first_and_before_and_after(train, tmp_path):
    said = train("whisper.en", "--rate", "1e-3", "--eval-every", 1)
    first, *lines = said.splitlines()
    assert first.startswith(
        "recipe published; on: padding to the whole window; off: CTC loss, attention guide, misread"
    )
    assert "short padding" in first and "leading space, no language tokens" in first
    assert any(re.match(r"memory in GiB: weights 0\.\d+, gradients", line) for line in lines)
    measured = r"train loss \d+\.\d+, eval loss \d+\.\d+, word errors \d+\.\d+ %"
    assert any(re.match(f"before: eval: {measured}", line) for line in lines)
    assert sum(bool(re.match(f"step [1-3]: eval: {measured}", line)) for line in lines) == 3
    assert re.match(f"before: {measured}", lines[-2]) and re.match(f"kept, of step [0-3]: {measured}", lines[-1])


def test_what_is_asked_for_is_on(train):
    first = train("whisper", "--ctc", 0.1, "--guide", 0.2, "--spec-augment", "--pad-to", "speech", "--steps", 1)
    assert "CTC loss x 0.1, attention guide x 0.2" in first and "SpecAugment" in first.split("off:")[0]
    assert "padding to the longest clip of a batch" in first


@pytest.mark.parametrize("model", ["whisper", "whisper.en"])
def test_a_whole_checkpoint_comes_out(train, tmp_path, model):
    """In float32, for the steps are smaller than bfloat16 can tell; Transformers reads it and computes the same."""
    transformers = pytest.importorskip("transformers")
    train(model, "--keep", "last", "--rate", "1e-3")
    ours = weights.load(tmp_path / "run" / "model")
    assert {x.dtype for x in weights.load(tmp_path / "run" / "model", dtype=None).parameters()} == {torch.float32}
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "run" / "model").eval()
    mel, ids = torch.randn(2, 80, 200), torch.randint(0, 256, (2, 9))
    with torch.inference_mode():
        expected = theirs(mel, decoder_input_ids=ids).logits
        found = ours.decoder.head(ours.decoder(ids, ours.decoder.cross_kv(ours.encode(mel))))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    glmasr.load(tmp_path / "run" / "model").transcribe(np.zeros(16_000, np.float32), sample_rate=16_000)


def test_weights_are_saved_in_the_type_that_is_asked_for(task, train, tmp_path):
    train("whisper", "--save-dtype", "bfloat16", "--steps", 1)
    saved = weights.load(tmp_path / "run" / "model", dtype=None)
    assert {x.dtype for x in saved.parameters()} == {torch.bfloat16}


def test_a_directory_of_ctranslate2_is_trained_on(task, train, tmp_path):
    folder = tmp_path / "ctranslate2"
    model_bin.convert(task / "whisper", folder, "float16")
    train(folder, "--keep", "last")
    old, new = parameters(folder), parameters(tmp_path / "run" / "model")
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == set(old) - {"encoder.positions"}


def test_the_best_is_kept_and_the_unchanged_model_may_be(task, train, tmp_path):
    """Steps that make it worse leave RUN/model as the model was."""
    said = train("whisper", "--rate", 5.0, "--warmup", 0, "--schedule", "cosine", "--eval-every", 1)
    assert "kept, of step 0" in said and "the unchanged model, for none was better" in said
    old, new = parameters(task / "whisper"), parameters(tmp_path / "run" / "model")
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_what_is_kept_can_be_a_blend(task, train, tmp_path):
    """A quarter of the way from the unchanged model to what was learned; training itself goes its own way."""
    for blend in (1, 0.25):
        options = ("--keep", "last", "--rate", "1e-2", "--out", tmp_path / str(blend))
        said = train("whisper", "--blend", blend, *options)
        assert ("75% of the weights as they were" in said) == (blend < 1)
    old, whole, part = map(parameters, (task / "whisper", tmp_path / "1" / "model", tmp_path / "0.25" / "model"))
    for name in old:
        torch.testing.assert_close(part[name], old[name] + (whole[name] - old[name]) / 4, atol=1e-6, rtol=1e-4)
    name = "decoder.blocks.0.mlp.up.weight"
    assert (whole[name] - old[name]).abs().max() > 0.01
    with pytest.raises(train.error, match="--blend holds on to weights"):
        train("whisper", "--from-scratch", "--blend", 0.5)


def test_it_goes_on_with_the_same_clips_and_what_was_kept(task, train, tmp_path):
    """Other clips aren't taken for those that it was measured by, and nothing is said to be kept that isn't there."""
    train("whisper", "--steps", 1)
    kept = tmp_path / "run" / "model"
    kept.rename(tmp_path / "run" / "model.old")  # as where a process is killed while it replaces it
    assert "all 1 steps are done" in train("whisper", "--steps", 1) and kept.is_dir()
    write_manifest(task / "fewer.jsonl", [json.loads(line) for line in open(task / "train.jsonl")][1:])
    for option in ("--train", "--eval"):
        with pytest.raises(train.error, match="other clips or texts in --train or --eval"):
            train("whisper", "--steps", 2, option, task / "fewer.jsonl")
    kept.rename(tmp_path / "elsewhere")
    with pytest.raises(train.error, match="run/model: is missing"):
        train("whisper", "--steps", 2)


def test_it_stops_when_nothing_is_gained(train):
    said = train("whisper", "--rate", 5.0, "--warmup", 0, "--eval-every", 1, "--steps", 30, "--patience", 2)
    assert "stopped: 2 evaluations without a gain" in said and "step 10:" not in said


def test_it_learns_and_says_so(train, tmp_path):
    said = train("whisper", "--rate", "3e-3", "--steps", 40, "--eval-every", 20)
    before, after = (float(re.search(f"^{when}.*loss ([0-9.]+)", said, re.M)[1]) for when in ("before: eval", "kept"))
    assert after < before / 3, said


@pytest.mark.parametrize("option", ["accept", "refuse"])
def test_impossible_errors_are_refused_with_a_hint(task, train, modules, monkeypatch, tmp_path, option):
    arguments = [task / "whisper", "--train", task / "train.jsonl", "--eval", task / "eval.jsonl", *FAST]
    arguments += ["--out", tmp_path / "run"] + ["--accept-errors"] * (option == "accept")
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    if option == "accept":
        modules("train").main()
    else:
        with pytest.raises(
            train.error, match="can't be right.*--accept-errors.*\n  .*eval.jsonl, line 1: the text is 'Be'"
        ):
            modules("train").main()
    assert (tmp_path / "run" / "model").exists() == (option == "accept")


def test_texts_that_belong_to_other_lines_are_found(modules):
    scores, manifest = modules("scores"), modules("manifest")
    said = [
        "turn left at the church",
        "six spoons of snow peas",
        "a slab of blue cheese",
        "they took a look",
        "so it is",
    ]
    rows = [manifest.Row("a.wav", text, where=f"line {i + 1}") for i, text in enumerate(said)]
    fine = scores.objection(rows, [text.replace("of", "off") for text in said], scores.Score(1.0, 1.0, 2, 20))
    shifted = scores.objection(rows, said[1:] + said[:1], scores.Score(1.0, 1.0, 19, 20))
    assert not fine and "5 of 5 recordings fit the text of another line better: that of line 1 fits line 2" in shifted
    assert "can't be right" in scores.objection(rows, ["", "", "", "", ""], scores.Score(1.0, 1.0, 20, 20))
    assert not scores.objection(rows, ["so it was"] * 5, scores.Score(1.0, 1.0, 16, 20))  # bad, but possible


def test_texts_of_other_recordings_are_told_by_their_loss(train, task, modules, monkeypatch, tmp_path):
    """A model that knows its recordings is shown others' texts; of five tokens two are then wrong."""
    monkeypatch.setattr(modules("train"), "STRANGE", 1.0)
    train("whisper", "--rate", "3e-3", "--steps", 60, "--eval-every", 60)
    lines = [json.loads(line) for line in (task / "train.jsonl").read_text().splitlines()]
    said = {"Be": "So", "So": "Be"}
    lines = [line | {"audio": str(task / line["audio"])} for line in lines]
    write_manifest(tmp_path / "one.jsonl", [*lines[1:], lines[0] | {"text": said[lines[0]["text"]]}])
    write_manifest(tmp_path / "all.jsonl", [line | {"text": said[line["text"]]} for line in lines])
    options = ("--steps", 1, "--accept-errors", "--out", tmp_path / "again")
    found = train(tmp_path / "run" / "model", "--train", tmp_path / "one.jsonl", *options)
    assert re.search(r"belong together: the highest losses are of \S*one.jsonl, line 8 ", found)
    found = train(tmp_path / "run" / "model", "--train", tmp_path / "all.jsonl", *options[:-1], tmp_path / "third")
    assert re.search(r"^train loss [\d.]+ is what texts of other recordings have", found, re.M)


def test_a_recording_that_vanishes_is_an_error_of_one_line(task, train, modules, monkeypatch, tmp_path):
    write_manifest(tmp_path / "m.jsonl", tones(tmp_path, 4))
    scores = modules("scores")
    judge = scores.loss
    monkeypatch.setattr(scores, "loss", lambda *args: [judge(*args), (tmp_path / "2.wav").unlink(missing_ok=True)][0])
    with pytest.raises(train.error, match="2.wav.*it could be read when training began") as caught:
        train("whisper", "--train", tmp_path / "m.jsonl", judged=False)
    assert "\n" not in str(caught.value)


def test_an_old_checkpoint_stays_until_the_new_one_is_whole(task, modules, monkeypatch, tmp_path):
    start = modules("start")
    model = weights.load(task / "whisper")
    start.save(model, tmp_path / "model", task / "whisper", torch.float32)
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def full(*_):
        (tmp_path / "model.part").mkdir()
        (tmp_path / "model.part" / "model.safetensors").write_bytes(b"a part")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(start.weights, "save", full)
        with pytest.raises(start.TrainingError, match="No space left.*enough room"):
            start.save(model, tmp_path / "model", task / "whisper", torch.float32)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    start.save(model, tmp_path / "model", tmp_path / "model", torch.float32)  # onto itself
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and "tokenizer.json" in before
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}


def test_only_the_same_run_is_gone_on_with(train):
    before = re.search("^before: train loss.*", train("whisper"), re.M)[0]
    again = train("whisper", "--steps", 5)
    assert "steps 3 to 5" in again and "before: eval" not in again
    assert re.search("^before: train loss.*", again, re.M)[0] == before  # of the unchanged model still
    with pytest.raises(train.error, match="state of another run"):
        train("whisper", "--freeze", "encoder", "--steps", 7)


@pytest.mark.parametrize(
    "clips, options, batch, epoch, steps, every",
    [
        (1, [], 60, 1, 20, 2),  # the fewest steps
        (10, [], 75, 5, 20, 4),  # no epoch is a batch of all, and one of the rest
        (30, [], 225, 5, 20, 4),
        (100, [], 240, 13, 39, 7),
        (1000, [], 240, 125, 300, 60),  # the most
        (1000, ["--epochs", "6"], 240, 125, 750, 125),
        (100, ["--epochs", "0.5"], 240, 13, 6, 1),
        (100, ["--steps", "24", "--batch-seconds", "60"], 60, 50, 24, 4),
        (100, ["--accumulate", "2"], 240, 7, 21, 4),
        (10, ["--pad-to", "speech"], 13.75, 5, 20, 4),
        (100, ["--recipe", "scratch"], 80, 8, 8000, 1000),
        (100, ["--recipe", "scratch", "--epochs", "2"], 80, 8, 16, 1000),
    ],
)
def test_steps_follow_the_data(modules, clips, options, batch, epoch, steps, every):
    """Clips of 5 s in windows of 30 s."""
    module, row = modules("options"), modules("manifest").Row("a.wav", "so", seconds=5.0)
    args = module.completed(module.parser().parse_args(["m", *options]), has_weights=True)
    assert module.paced(args, [row] * clips, 30.0) == epoch
    assert (args.batch_seconds, args.steps, args.eval_every) == (batch, steps, every)


def test_a_run_that_is_gone_on_with_keeps_its_steps(train, monkeypatch, tmp_path):
    """What is asked for counts; other clips are refused."""
    monkeypatch.setattr(sys.modules[__name__], "FAST", ["--threads", "1", "--eval-every", "100"])
    lines = tones(tmp_path, 12)
    few, many = (write_manifest(tmp_path / f"{count}.jsonl", lines[:count]) for count in (3, 12))
    assert "an epoch has 2 steps; steps 0 to 4\n" in train("whisper", "--train", few, "--epochs", 2)
    assert "an epoch has 2 steps; steps 4 to 4\n" in train("whisper", "--train", few)
    assert "an epoch has 2 steps; steps 4 to 6\n" in train("whisper", "--train", few, "--epochs", 3)
    with pytest.raises(train.error, match="other clips or texts"):
        train("whisper", "--train", many)
    with pytest.raises(train.error, match="--steps and --epochs both say how long"):
        train("whisper", "--steps", 3, "--epochs", 1)


# ---- what is learned -------------------------------------------------------------------------------------------------


def test_frozen_parts_stay(task, train, tmp_path):
    train("whisper", "--freeze", "encoder", "--keep", "last", "--dtype", "bfloat16")
    old, new = parameters(task / "whisper"), parameters(tmp_path / "run" / "model")
    same = {name.split(".")[0] for name in old if torch.equal(old[name], new[name])}
    assert same == {"encoder"}
    with pytest.raises(train.error, match="--freeze ears: this model has encoder, frontend, decoder, embedding"):
        train("whisper", "--freeze", "ears")
    with pytest.raises(train.error, match="leaves nothing to learn"):
        train("whisper", "--freeze", "encoder", "decoder")


def test_bfloat16_has_float32_masters(task, train, tmp_path):
    """Steps far below the rounding of bfloat16 are not lost."""
    train("whisper", "--dtype", "bfloat16", "--rate", "1e-6", "--warmup", 0, "--keep", "last", "--decay", 0)
    old, new = parameters(task / "whisper"), parameters(tmp_path / "run" / "model")
    for name in ("encoder.blocks.0.mlp.up.weight", "decoder.blocks.1.cross.out.weight"):
        change = (new[name] - old[name]).abs()
        assert 0 < change.max() < 1e-5 and (change > 0).float().mean() > 0.9
        assert torch.equal(old[name].bfloat16(), new[name].bfloat16()) or change.max() < 1e-5


@pytest.fixture
def setup(task, modules):
    """setup(*options) -> (a trainer's steps, and a function clips -> batch)."""
    options, families, start, steps = map(modules, ("options", "families", "start", "steps"))
    rows = modules("manifest").read_manifests([task / "train.jsonl"])
    read = modules("batches").read_clip

    def make(*arguments):
        args = options.completed(
            options.parser().parse_args(["m", "--freeze", "nothing", "--retain", "0", *map(str, arguments)]),
            has_weights=True,
        )
        model = start.load(task / "whisper", torch.device("cpu")).train()
        family = families.family_of(model, read_tokenizer(task / "whisper"))
        options.paced(args, rows, family.window)
        if args.checkpoint:
            start.checkpoint_activations(model)
        made = steps.Steps(family, start.choose(model, args.freeze), None, args, modules("parallel").Processes())

        def batch(first, last):
            clips = [read(row, 0.0, 0.0, np.random.default_rng(0)) for row in rows[first:last]]
            return family.collate(clips, families.EXACT, np.random.default_rng(0))

        return made, batch

    return make


def moments(steps) -> list[torch.Tensor]:
    """What AdamW keeps of the first gradient, in proportion to it."""
    return [state["exp_avg"] for state in steps.optimizer.state.values()]


def test_accumulated_batches_are_one_batch(setup):
    """Although they differ in clips and tokens."""
    one, batch = setup()
    one.step(0, iter([batch(0, 8)]))
    several, batch = setup("--accumulate", 3)
    several.step(0, iter([batch(0, 1), batch(1, 5), batch(5, 8)]))
    for a, b in zip(moments(one), moments(several), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)
    assert max(a.abs().max() for a in moments(one)) > 1e-3


def test_what_was_right_is_held_to_the_unchanged_model(setup):
    """Nothing pulls before the first step; afterwards what is added is the divergence at the positions that were right."""
    plain, batch = setup()
    held, _ = setup("--retain", 2, "--rate", 0.01)
    some = batch(0, 8)
    assert torch.equal(held.losses(some)[0], plain.losses(some)[0])
    answers = some.targets != -100

    def logits():
        return held.model.decoder.head(held.family.forward(some)[0][answers]).log_softmax(-1)

    with torch.no_grad():
        embedding = held.model.decoder.embed.weight
        embedding.add_(torch.randn_like(embedding), alpha=0.1)
        before = held.before.model.decoder
        first = before.head(held.before.forward(some)[0][answers]).log_softmax(-1)
        now, right = logits(), first.argmax(-1) == some.targets[answers]
        expected = (first.exp() * (first - now)).sum(-1)
        moved = held.moved(now, some.targets[answers], some)
        torch.testing.assert_close(moved, expected[right].sum())
        everything = held.moved(now, first.argmax(-1), some)  # as if it had been right everywhere
        torch.testing.assert_close(everything, expected.sum())
    assert expected.sum() > 0.01


@pytest.mark.parametrize("options", [(), ("--freeze", "encoder")])
def test_what_is_frozen_has_no_copy(setup, options):
    steps, _ = setup("--retain", 1, *options)
    own, theirs = (dict(model.named_parameters()) for model in (steps.model, steps.before.model))
    shared = {name.partition(".")[0] for name in own if own[name] is theirs[name] and name != "encoder.positions"}
    assert shared == ({"encoder"} if options else set())
    assert all(torch.equal(own[name], theirs[name]) for name in own) and not any(
        p.requires_grad for p in theirs.values()
    )


def test_activations_computed_twice_give_the_same_gradients(setup, modules):
    """And less of them is kept."""
    kept, found = [], []
    for options in ((), ("--checkpoint",)):
        steps, batch = setup(*options)
        counted = modules("plan")._Kept(steps.model)
        some = batch(0, 8)
        with counted.counting():
            steps.losses(some)
        steps.step(0, iter([some]))
        kept.append(counted.bytes)
        found.append(moments(steps))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert kept[1] < 0.4 * kept[0]


@pytest.mark.parametrize("options", [(), ("--freeze", "encoder"), ("--retain", "1")])
def test_the_plan_is_what_is_kept(setup, modules, options):
    """Counted without memory, it is within a tenth of what a real step keeps, and exact for weights and optimizer."""
    plan = modules("plan")
    steps, batch = setup("--batch-seconds", 16, *options)
    some = batch(0, 8)
    counted = plan._Kept(steps.model)
    with counted.counting():
        steps.losses(some)
    steps.step(0, iter([some]))
    text = some.tokens.shape[1] - plan.STEERING
    found = plan.of(steps.model.config, steps.args, torch.float32, text)
    held = sum(p.numel() * 4 for p in steps.model.parameters())
    learned = sum(p.numel() for p in steps.learned)
    held += 4 * learned * ("--retain" in options)
    optimizer = sum(x.numel() * 4 for state in steps.optimizer.state.values() for x in state.values() if x.dim())
    assert (found.weights, found.gradients, found.optimizer) == (held, 4 * learned, optimizer)
    assert 0.9 < found.activations / counted.bytes < 1.1 and found.learned == learned


def test_a_plan_needs_no_weights_and_tells_what_helps(modules, monkeypatch, capsys):
    def plan(model, *options) -> tuple[str, float]:
        monkeypatch.setattr(sys, "argv", ["train.py", model, "--plan", "--dtype", "bfloat16", *options])
        modules("train").main()
        said = capsys.readouterr().out
        return said, float(re.search(r"total ([\d.]+)", said)[1])

    whole = ["--freeze", "nothing", "--retain", "0"]
    said, _ = plan("glm-asr-nano-2512", *whole)
    assert "weights 8.41, gradients 8.41, optimizer 16.82" in said  # 2,257,843,200 of 4 bytes
    totals = [
        plan("article-student", *options)[1] for options in (whole, [*whole, "--checkpoint"], [], ["--lora", "16"])
    ]
    assert totals[0] > max(totals[1:]) and totals[3] == min(totals)


def test_what_does_not_fit_is_refused_before_it_is_taken(train, monkeypatch):
    monkeypatch.setattr("glmasr.kernels.devices.free_memory", lambda device: 10_000)
    with pytest.raises(ShortMemoryError, match="memory in GiB.*--freeze encoder, --checkpoint"):
        train("whisper")


def test_spec_augment_leaves_padding_alone(modules):
    augment = modules("augment")
    mel = torch.randn(4, 80, 200, generator=torch.Generator().manual_seed(0))
    changed = augment.spec_augment(mel, [100, 200, 1, 0], np.random.default_rng(3))
    different = changed != mel
    assert not different[0, :, 100:].any() and not different[3].any()
    share = different[:2].float().mean((1, 2))
    assert (0.02 < share).all() and (share < 0.7).all()


# ---- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error:.*an autograd kernel was not registered")
def test_two_processes_are_one_with_twice_the_batches(task, modules, monkeypatch, capsys, tmp_path):
    """Over gloo: the same steps, so the same weights; each reads its own half. This process is the first of the two, with
    the variables of torchrun, which `test_lora.py` and `test_states.py` start."""
    common = [task / "whisper", "--train", task / "train.jsonl", "--eval", task / "eval.jsonl", "--accept-errors"]
    common += ["--threads", 1, "--steps", 2, "--batch-seconds", 4, "--keep", "last", "--rate", "1e-3"]
    trainer = modules("train")
    monkeypatch.setattr(modules("parallel"), "PATIENCE", timedelta(seconds=240))

    def run(*options) -> str:
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, [*common, *options])])
        assert trainer.ended(trainer.main, "") == 0
        return capsys.readouterr().out

    alone = run("--out", tmp_path / "one", "--accumulate", 2)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, FOLDER / "train.py", *common, "--out", tmp_path / "two"]
    second = subprocess.Popen(
        [*map(str, command)],
        env=os.environ | shared | {"RANK": "1", "LOCAL_RANK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for name, value in (shared | {"RANK": "0", "LOCAL_RANK": "0"}).items():
            monkeypatch.setenv(name, value)
        together = run("--out", tmp_path / "two")
        out, err = second.communicate(timeout=60)
    finally:
        second.kill()
    assert (second.returncode, out) == (0, ""), out + err  # the first says it all
    one, two = (
        [line for line in run.splitlines() if line.startswith(("before", "step "))] for run in (alone, together)
    )
    assert one == two and len(one) == 4, (alone, together)
    a, b = parameters(tmp_path / "one" / "model"), parameters(tmp_path / "two" / "model")
    start = parameters(task / "whisper")
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=2e-5, rtol=0)
    assert max((a[name] - start[name]).abs().max() for name in a) > 1e-3


def test_a_fault_ends_the_trainer_without_a_traceback(task, tmp_path):
    write_manifest(tmp_path / "bad.jsonl", [{"audio": "missing.wav", "text": "a", "language": "en"}] * 2)
    command = [sys.executable, str(FOLDER / "train.py"), task / "whisper", "--train", tmp_path / "bad.jsonl"]
    done = subprocess.run([*map(str, command), "--out", str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: 2 faults in the manifests:" in done.stderr and json.dumps("line 2")[1:-1] in done.stderr
    with pytest.raises(GlmAsrError):
        weights.load(tmp_path / "run" / "model")
