"""A student: made of its teacher's layers, and trained on the teacher's texts and logits. The teachers are the demos, one
of each family."""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT
from helpers.training import FOLDER, tiny_whisper, write_manifest

import glmasr
from glmasr import weights
from glmasr.config import PRESETS, EncoderDecoderConfig, GlmAsrConfig
from glmasr.encoder import RotaryEncoder, SinusoidalEncoder
from glmasr.tokenizer import read_tokenizer

CHECKPOINTS = ROOT / "glmasr" / "checkpoints"
FAMILIES = ["demo", "demo-article"]
CLIPS = json.loads((ROOT / "examples" / "texts.json").read_text(encoding="utf-8"))
CPU = torch.device("cpu")
FAST = ["--threads", "1", "--batch-seconds", "16", "--steps", "2", "--rate", "1e-3"]


@pytest.fixture
def modules(monkeypatch):
    """modules(name) -> a module of training/."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return __import__


def lines(**changes) -> list[dict]:
    """Of a manifest of the examples; `changes` to that of en.mp3."""
    found = [{"audio": str(ROOT / "examples" / name), **what} for name, what in CLIPS.items()]
    found[-1] |= changes
    return [{name: value for name, value in line.items() if value is not None} for line in found]


@pytest.fixture
def distill(modules, monkeypatch, capsys, tmp_path):
    """distill(teacher, spec, *options) -> what it printed; the run is in tmp_path / "run"."""
    command = modules("distill")

    def run(teacher, spec, *options, manifest=None) -> str:
        path = write_manifest(tmp_path / "train.jsonl", lines() if manifest is None else manifest)
        directory = CHECKPOINTS / teacher if teacher in FAMILIES else teacher
        arguments = [directory, "--student", spec, "--train", path, "--out", tmp_path / "run", *FAST, *options]
        monkeypatch.setattr(sys, "argv", ["distill.py", *map(str, arguments)])
        command.main()
        return capsys.readouterr().out

    run.error = command.TrainingError
    return run


@pytest.fixture
def taught(modules, tmp_path):
    """taught(name) -> (a teacher, the rows of the examples)."""

    def make(name):
        path = write_manifest(tmp_path / "some.jsonl", lines())
        return modules("teacher").Teacher(CHECKPOINTS / name, CPU), modules("manifest").read_manifests([path])

    return make


# ---- how it is made --------------------------------------------------------------------------------------------------


def test_layers_are_spread_evenly_and_the_ends_are_kept(modules):
    evenly = modules("student").evenly
    assert evenly(2, 6) == [0, 5] and evenly(3, 6) == [0, 3, 5] and evenly(1, 6) == [0]
    for most in range(1, 40):
        for count in range(1, most + 1):
            found = evenly(count, most)
            assert len(found) == len(set(found)) == count and found[0] == 0 and (count == 1 or found[-1] == most - 1)
            gaps = np.diff(found)
            assert count < 2 or gaps.max() - gaps.min() <= 1
    assert evenly(32, 32) == list(range(32))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_has_the_weights_of_its_teachers_layers(modules, name):
    student = modules("student")
    config = weights.examine(CHECKPOINTS / name).config
    config = replace(config, decoder=replace(config.decoder, layers=5), alignment_heads=((0, 1), (1, 0), (4, 1)))
    teacher = weights.build(config)
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter)
    small = student.config_of("encoder=2,decoder=3", config, read_tokenizer(CHECKPOINTS / name))
    assert (small.encoder.layers, small.decoder.layers) == (2, 3) and small.alignment_heads == ((0, 1), (2, 1))
    made = weights.build(small)
    assert student.copy(teacher, made) == []
    theirs = dict(teacher.named_parameters())
    place = {"encoder": [0, config.encoder.layers - 1], "decoder": [0, 2, 4]}

    def source(match):
        return f"{match[1]}.blocks.{place[match[1]][int(match[2])]}"

    for name, parameter in made.named_parameters():
        assert torch.equal(parameter, theirs[re.sub(r"(\w+)\.blocks\.(\d+)", source, name)]), name


def test_what_does_not_fit_begins_at_random_and_is_named(modules, distill, tmp_path):
    """A decoder of half the width for the MLP: all else is the teacher's. One with other heads of the same width begins at
    random as well."""
    config = weights.examine(CHECKPOINTS / "demo-article").config
    small = replace(config, decoder=replace(config.decoder, hidden=config.decoder.hidden // 2))
    for name, values in modules("student").to_published(small, "float32").items():
        (tmp_path / name).write_text(json.dumps(values))
    width, hidden = small.decoder.width, small.decoder.hidden
    said = distill("demo-article", tmp_path / "config.json", "--steps", 1)
    count = 2 * (2 * width * hidden + hidden)
    found = re.search(r"at random, .*: 6 tensors, ([\d.]+) M parameters: (.*)", said)
    assert found[1] == f"{count / 1e6:.2f}"
    assert found[2] == "decoder.blocks.{}.mlp.up.weight x 2, decoder.blocks.{}.mlp.up.bias x 2, " + (
        "decoder.blocks.{}.mlp.down.weight x 2"
    )
    assert said.index("at random") < said.index("before:")
    heads = replace(config, decoder=replace(config.decoder, heads=config.decoder.heads // 2), alignment_heads=())
    fresh = modules("student").copy(weights.build(config), weights.build(heads))
    assert fresh and all(".attn." in name or ".cross." in name for name in fresh)


@pytest.mark.parametrize("preset, teacher", [("glm-asr-student", "glm-asr-nano-2512"), ("article-student", "article")])
def test_students_of_the_published_models_are_smaller_than_300_million(modules, preset, teacher):
    with torch.device("meta"):
        count = sum(p.numel() for p in weights.build(PRESETS[preset]).parameters())
    assert 250e6 < count < 300e6

    class Same:
        special, size = {}, 0

    assert modules("student").config_of(preset, PRESETS[teacher], Same()) == PRESETS[preset]


# ---- what it learns --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_kept_logits_are_those_of_the_teacher(modules, taught, tmp_path, name):
    """Within float16; the others are what is left of 1."""
    teacher, rows = taught(name)
    logits = teacher.logits(rows, tmp_path, 8, 2.0, print)
    for some, batch in modules("batches").unchanged(
        rows, modules("families").family_of(teacher.model, teacher.tokenizer), True, 1
    ):
        hidden = teacher.model.decoder.head(_with(teacher).forward(batch)[0])
        expected = (hidden[batch.targets != -100].float() / 2.0).log_softmax(-1)
        ids, logprobs = logits.at(batch.where, CPU)
        assert len(ids) == teacher.positions(some[0]) == len(expected)
        torch.testing.assert_close(logprobs[:, :-1], expected.gather(1, ids), atol=1e-4, rtol=1e-3)
        assert torch.equal(ids.sort()[0], expected.topk(8).indices.sort()[0])
        assert (logprobs.exp().sum(1) - 1).abs().max() < 2e-3


def _with(teacher):
    """The teacher's family with its weights."""
    from families import family_of

    return family_of(teacher.model, teacher.tokenizer)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_that_is_its_teacher_has_no_divergence(modules, taught, tmp_path, name):
    """Another one has, and it has a gradient everywhere."""
    teacher, rows = taught(name)
    logits = teacher.logits(rows, tmp_path, 16, 1.0, print)
    losses, family = modules("distill").losses, _with(teacher)
    (_, batch), *_ = modules("batches").unchanged(rows, family, True)
    entropy, divergence, count = losses(family, batch, logits)
    assert abs(divergence / count) < 1e-4 and entropy.isfinite()
    config = modules("student").config_of("encoder=2,decoder=1", teacher.config, teacher.tokenizer)
    small = weights.build(config)
    modules("student").copy(teacher.model, small)
    entropy, divergence, count = losses(modules("families").family_of(small, teacher.tokenizer), batch, logits)
    assert divergence / count > 0.1
    learned = modules("start").choose(small)
    gradients = torch.autograd.grad(divergence, learned)
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in gradients)


def test_the_divergence_is_that_of_all_tokens_if_all_are_kept(modules, tmp_path):
    teacher, manifest = modules("teacher"), modules("manifest")
    torch.manual_seed(0)
    theirs, ours = torch.randn(7, 20) * 3, torch.randn(7, 20) * 3
    row = manifest.Row("a.wav", "a", where="line 1")
    found = []
    for top in (19, 4):
        ids = theirs.topk(top).indices
        table = np.zeros(7, [("ids", "<i4", (top,)), ("logprobs", "<f2", (top + 1,))])
        table["ids"], table["logprobs"] = ids, teacher.summary(theirs, ids, 2.0).numpy()
        np.save(tmp_path / "logits.npy", table)
        found.append(teacher.Logits(tmp_path / "logits.npy", [row], [7], 2.0).divergence(ours, ["line 1"]).item())
    expected = 4 * F.kl_div((ours / 2).log_softmax(-1), (theirs / 2).log_softmax(-1), log_target=True, reduction="sum")
    assert found[0] == pytest.approx(expected.item(), rel=2e-3)
    assert 0 < found[1] < found[0]


# ---- which texts count -----------------------------------------------------------------------------------------------


def test_clips_are_left_out_by_cause_with_names_and_counts(modules):
    pytest.importorskip("jiwer")
    teacher, manifest = modules("teacher"), modules("manifest")
    said = "red green blue white black brown pink gray gold silver"

    def answer(number, text, found, flags=(), labeled=True):
        row = manifest.Row("a.wav", text, "en", where=f"m.jsonl, line {number}", seconds=1.0, labeled=labeled)
        return teacher.Answer(row, found, "en", flags)

    def check(row):
        if "long" in row.text:
            raise ValueError("has a text of 99 tokens")
        return row

    answers = [
        answer(1, said, said.upper() + "."),
        answer(2, said, said.replace("red green blue", "cat dog cow")),  # 30 %
        answer(3, said, said.replace("red green blue white", "cat dog cow hen")),
        answer(4, said, said, ("repeats",)),
        answer(5, "", said, labeled=False),
        answer(6, "", "", labeled=False),
        answer(7, "", ""),
        answer(8, "", said),
        answer(9, "long", "long"),
        answer(10, said, said, ("repeats",)),
    ]
    rows, lines = teacher.sieved(answers, check, 0.3)
    assert [row.where.split()[-1] for row in rows] == ["1", "2", "5", "7"]
    assert rows[0].text == said.upper() + "."  # the teacher's
    assert lines == [
        "LEFT OUT: 2 of 10 clips, the teacher's text disagrees with the manifest's by more than 30%: "
        "m.jsonl, line 3 (40%), m.jsonl, line 8 (it has none)",
        "LEFT OUT: 2 of 10 clips, the text repeats itself: m.jsonl, line 4, m.jsonl, line 10",
        "LEFT OUT: 1 of 10 clips, the teacher found no text, and the manifest has none: m.jsonl, line 6",
        "LEFT OUT: 1 of 10 clips, it can't be learned: m.jsonl, line 9 (has a text of 99 tokens)",
    ]
    assert [row.where.split()[-1] for row in teacher.sieved(answers, check, 0.0)[0]] == ["1", "5", "7"]


def test_a_manifest_may_be_without_texts_for_a_student_alone(modules, tmp_path):
    manifest = modules("manifest")
    path = write_manifest(tmp_path / "m.jsonl", lines(text=None, language=None))
    rows = manifest.read_manifests([path], textless=True)
    assert [row.labeled for row in rows] == [True, True, True, False] and rows[-1].text == ""
    with pytest.raises(manifest.TrainingError, match="line 4: has no text"):
        manifest.read_manifests([path])
    table = tmp_path / "m.tsv"
    table.write_text(f"audio\n{ROOT / 'examples' / 'zh.wav'}\n", encoding="utf-8")
    assert not manifest.read_manifests([table], textless=True)[0].labeled


# ---- the run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_two_steps_bring_a_student_nearer_to_its_teacher(distill, tmp_path, name):
    """One line has no text and no language, one the text of another recording."""
    some = lines(text=None, language=None)
    some[0] |= {"text": "九九九九九九九九"}
    said = distill(name, "layers=1", "--eval-every", 1, manifest=some)
    assert re.search(
        r"student: [\d.]+ M parameters, .*; encoder layers 0, 1, 2, 3, 4, 5 of 6; decoder layers 0 of 2", said
    )
    assert said.startswith(
        "loss: cross-entropy of the teacher's text + 1 x KL divergence from its logits at temperature 1;"
    )
    assert "LEFT OUT: 1 of 4 clips, the teacher's text disagrees" in said and "train.jsonl, line 1 (" in said
    assert re.search(r"the teacher's logits: \d+ positions of 386 bytes", said)
    divergence = [float(value) for value in re.findall(r"KL divergence from the teacher ([\d.]+)", said)]
    loss = [float(re.search(rf"^{when}: train loss ([\d.]+)", said, re.M)[1]) for when in ("before", "step 2")]
    assert len(divergence) == 3 and divergence[-1] < divergence[0] and loss[1] < loss[0], said
    kept = [json.loads(line) for line in (tmp_path / "run" / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = {line["audio"].rpartition("/")[2]: line["text"] for line in kept[1:]}
    assert texts == {name: what["text"] for name, what in CLIPS.items()}
    recognizer = glmasr.load(tmp_path / "run" / "model", plain=True)
    assert recognizer.config.decoder.layers == 1
    recognizer.transcribe(np.zeros(16_000, np.float32), sample_rate=16_000)


def test_an_encoder_that_is_the_teachers_is_frozen_and_hears_each_clip_once(distill, tmp_path):
    """For texts, logits, losses and steps."""
    heard = []

    def hook(module, inputs, states):
        if isinstance(module, (RotaryEncoder, SinusoidalEncoder)) and type(states) is torch.Tensor:  # else a plan's
            heard.extend(states)

    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        said = distill("demo-article", "layers=1")
    finally:
        handle.remove()
    (keys,) = (tmp_path / "run").glob("states-*.keys")
    windows = len(keys.read_text().splitlines()) - 1
    assert "frozen: encoder;" in said and windows >= len(CLIPS)
    assert len(heard) == windows + 1  # the first one twice: it says how long states are


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_without_alignment_heads_is_read_as_it_was_made(modules, family, tmp_path):
    """Or the same command would take it for another student."""
    student, folder = modules("student"), CHECKPOINTS / family
    teacher = replace(weights.examine(folder).config, alignment_heads=((1, 0),), alignment_lead=0.12)
    config = student.config_of("layers=1", teacher, read_tokenizer(folder))
    assert not config.alignment_heads
    weights.save(weights.build(config), tmp_path)
    assert weights.examine(tmp_path).config == config


def test_what_is_frozen_can_be_said(modules):
    distill = modules("distill")
    for options, same, expected in (
        ([], True, ["encoder"]),
        ([], False, []),
        (["--freeze", "nothing"], True, []),
        (["--freeze", "embedding"], True, ["embedding"]),
    ):
        assert distill.frozen(distill.parser().parse_args(["m", *options]).freeze, same) == expected


def test_the_probability_of_all_other_tokens_is_never_nothing(modules):
    """In float32 what is left of 1 may be 0, whose logarithm has no gradient."""
    logits = torch.tensor([[60.0, 0.0, -1.0, -2.0], [1.0, 0.5, -1.0, -2.0]], requires_grad=True)
    found = modules("teacher").summary(logits, torch.tensor([[0, 1], [0, 1]]), 1.0)
    expected = logits.double().log_softmax(-1)
    torch.testing.assert_close(found[:, :2], expected[:, :2].float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1, 2], expected[1, 2:].logsumexp(0).float(), atol=1e-5, rtol=1e-5)
    assert -17 < found[0, 2] < -15
    assert torch.autograd.grad(found.sum(), logits)[0].isfinite().all()


def test_the_best_has_the_lowest_loss_and_not_more_errors_than_the_unchanged_model(modules):
    """What isn't decoded before its first step, or makes more errors than there are words, can't get worse."""
    score = modules("scores").Score
    unchanged, best = score(9.0, 8.0, 5, 10), score(5.0, 4.0, 3, 10)
    assert score(4.0, 3.0, 4, 10).better(best, unchanged) and not score(4.0, 3.0, 6, 10).better(best, unchanged)
    assert not score(4.0, 4.5, 1, 10).better(best, unchanged) and not best.better(best, unchanged)
    for garbage in (score(9.0, 8.0), score(9.0, 8.0, 30, 10)):
        assert score(1.0, 1.0, 40, 10).better(garbage, garbage) and score(1.0, 1.0, 3, 10).better(garbage, garbage)
        assert not score(9.5, 8.5, 3, 10).better(garbage, garbage)


def test_the_same_command_goes_on_without_asking_the_teacher_again(distill, modules, monkeypatch, tmp_path):
    before = distill("demo-article", "layers=1")
    size = (tmp_path / "run" / "texts.jsonl").stat().st_size
    with open(tmp_path / "run" / "texts.jsonl", "a", encoding="utf-8") as file:
        file.write('{"audio": "a, killed while it wr')
    with monkeypatch.context() as patch:
        patch.setattr(modules("teacher").Teacher, "model", property(lambda _: pytest.fail("the teacher is wanted")))
        again = distill("demo-article", "layers=1", "--steps", 4)
    assert "steps 0 to 2" in before and "steps 2 to 4" in again and "the teacher's logits:" not in again
    assert (tmp_path / "run" / "texts.jsonl").stat().st_size == size
    assert re.search("^before: train.*", before, re.M)[0] == re.search("^before: train.*", again, re.M)[0]
    # Other texts want other logits, and no others stay.
    (tmp_path / "run" / "state.safetensors").unlink()  # which is of the others
    third = distill("demo-article", "layers=1", "--steps", 5, manifest=lines()[:3])
    assert "the teacher's logits:" in third and len([*(tmp_path / "run").glob("logits-*.npy")]) == 1


def test_transformers_loads_a_student_of_whisper(modules, tmp_path):
    transformers = pytest.importorskip("transformers")
    student, start = modules("student"), modules("start")
    teacher = start.load(tiny_whisper(tmp_path / "teacher"), CPU)
    config = student.config_of("layers=1", teacher.config, read_tokenizer(tmp_path / "teacher"))
    student.made(tmp_path / "teacher", teacher, config, torch.float32, tmp_path / "student", print)
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "student").eval()
    ours = weights.load(tmp_path / "student")
    assert theirs.config.decoder_layers == 1 and ours.config == config
    mel, ids = torch.randn(2, 80, 200), torch.randint(0, 256, (2, 9))
    with torch.inference_mode():
        found = ours.decoder.head(ours.decoder(ids, ours.decoder.cross_kv(ours.encode(mel))))
        torch.testing.assert_close(found, theirs(mel, decoder_input_ids=ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "spec, options, message",
    [
        ("layers=three", [], "--student layers=three: 'layers=three' says no number of layers; expected layers=2"),
        ("decoder=1,layers=2", [], "says no number"),
        ("tiny", [], "--student tiny: neither a preset nor a file; expected layers=2"),
        ("layers=3", [], "3 decoder layers; the teacher has 2: expected at most as many"),
        ("encoder=7", [], "7 encoder layers; the teacher has 6"),
        ("glm-asr-student", [], "is GLM-ASR, the teacher an encoder-decoder"),
        ("article-student", [], "a window of 30 s; expected the teacher's 4 s"),
        ("layers=1", ["--augment"], "--augment: the teacher's logits are of the clips as they are"),
        ("layers=1", ["--plan"], "expected train.py MODEL --plan"),
    ],
)
def test_a_student_that_can_not_be_made_is_an_error_of_one_line(distill, tmp_path, spec, options, message):
    with pytest.raises(distill.error, match=re.escape(message)) as caught:
        distill("demo-article", spec, *options)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_another_tokenizer_is_refused(distill, modules, tmp_path):
    tiny_whisper(tmp_path / "teacher")
    other = tiny_whisper(tmp_path / "other")
    file = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = file["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    with pytest.raises(distill.error, match=r"another tokenizer: token 97 is 'b', the teacher's 'a'"):
        distill(tmp_path / "teacher", other)
    settings = json.loads((other / "config.json").read_text(encoding="utf-8")) | {"vocab_size": 400}
    (other / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(distill.error, match="another tokenizer, of 400 tokens, where the teacher has 365"):
        distill(tmp_path / "teacher", other / "config.json")


def test_no_clip_left_and_texts_of_another_search(distill, tmp_path):
    wrong = [line | {"text": "nine nine nine nine"} for line in lines()]
    with pytest.raises(distill.error, match="none of 4 clips is left"):
        distill("demo-article", "layers=1", manifest=wrong)
    with pytest.raises(distill.error, match="texts of another teacher, or of other --beams"):
        distill("demo-article", "layers=1", "--beams", 2)
    with pytest.raises(distill.error, match="another teacher"):
        distill("demo", "layers=1")
    distill("demo-article", "layers=1", "--agreement", 1000, "--steps", 1, manifest=wrong)
    with pytest.raises(distill.error, match="is another student than --student encoder=3"):
        distill("demo-article", "encoder=3", "--agreement", 1000, manifest=wrong)


def test_an_error_ends_the_command_without_a_traceback(modules, monkeypatch, capsys, tmp_path):
    """`test_fine_tuning.py` has the trainer's, which ends alike, in a process of its own."""
    write_manifest(tmp_path / "m.jsonl", lines())
    arguments = [CHECKPOINTS / "demo", "--student", "layers=9", "--train", tmp_path / "m.jsonl"]
    command = modules("distill")
    monkeypatch.setattr(sys, "argv", ["distill.py", *map(str, arguments), "--out", str(tmp_path / "run")])
    assert command.ended(command.main, "") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: --student layers=9: 9 decoder layers; the teacher has 2") and said.count("\n") == 1


# ---- in full size ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["glm-asr-student", "article-student"])
def test_a_students_preset_in_full_size_is_trained_saved_and_loaded(modules, tmp_path, preset):
    """Two steps of AdamW in float32 on one window, with the weights that `start.fresh` begins with."""
    start, config = modules("start"), PRESETS[preset]
    for name, values in modules("student").to_published(config, "float32").items():
        (tmp_path / name).write_text(json.dumps(values))
    torch.manual_seed(0)
    model = start.fresh(tmp_path, CPU).train()
    assert model.config == config
    learned = start.choose(model)
    optimizer = torch.optim.AdamW(learned, lr=1e-4, fused=True)
    ids = torch.tensor([[5, 6, 7, 8]])
    losses = []
    for _ in range(2):
        loss = F.cross_entropy(_answer(model, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in learned)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    assert losses[1] < losses[0]
    del optimizer
    start.save(model, tmp_path / "model", tmp_path, torch.float32)
    again = weights.load(tmp_path / "model")
    assert again.config == config
    with torch.inference_mode():
        torch.testing.assert_close(_answer(again.eval(), ids), _answer(model.eval(), ids), atol=0, rtol=0)


def _answer(model, ids):
    """Logits (1, T, V) of some tokens after a window of noise."""
    noise, config = torch.Generator().manual_seed(0), model.config
    mel = torch.randn(1, config.encoder.bands, config.window // 160, generator=noise)
    if isinstance(config, GlmAsrConfig):
        words = model.decoder.embed(ids)
        states = model.decoder(torch.cat((model.projector(model.encoder(mel)), words), 1))[:, -ids.shape[1] :]
    else:
        assert isinstance(config, EncoderDecoderConfig)
        states = model.decoder(ids, model.decoder.cross_kv(model.encoder(mel)))
    return model.decoder.head(states)
