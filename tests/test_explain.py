"""`--explain`: it shows what the plain run does, all of it, and leaves nothing behind."""

import math
import re
import threading
from dataclasses import replace

import pytest
import soundfile
import torch
from helpers.checkpoints import CONVOLUTIONS, make_checkpoint, make_encoder_decoder
from helpers.sounds import RATE, melody

import glmasr
import transcribe
from glmasr import audio, decode, pipeline
from glmasr.errors import AudioError, CheckpointError
from glmasr.kernels import prepare
from glmasr.model import GlmAsr
from glmasr.tools import explain
from glmasr.tools.explain import Observation, observed
from glmasr.tools.explain_report import LIKELIEST, WIDTH, report, spelled, token_text
from glmasr.transcription import window_decoder
from glmasr.writers.line_breaks import width


def make(kind, directory, **more):
    maker = make_checkpoint if kind == "glm" else make_encoder_decoder
    more = more | ({"convolutions": CONVOLUTIONS} if kind == "waveform" else {})
    return pipeline.load(maker(directory, **more), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def recognizers(tmp_path_factory):
    return {kind: make(kind, tmp_path_factory.mktemp(kind)) for kind in ("glm", "mel", "waveform")}


@pytest.fixture(params=["glm", "mel", "waveform"])
def recognizer(request, recognizers):
    return recognizers[request.param]


@pytest.fixture(autouse=True)
def sure(monkeypatch):
    """Random weights are sure of no language, and would try another one."""
    monkeypatch.setattr(window_decoder, "UNSURE", -float("inf"))


def explained(recognizer, sound=None, rate=RATE, **options):
    """(observation, transcript) of samples, by default of a melody of 1.5 s."""
    sound = melody(1.5) if sound is None else sound
    # Without guards, if nothing shall be tried again: what random weights say would be, in halves.
    options = {
        "max_new_tokens": 12,
        "temperatures": (0.0,),
        "guards": "temperatures" in options,
        "timestamps": False,
    } | options
    with observed(recognizer) as run:
        transcript = recognizer.transcribe(sound, sample_rate=rate, **options)
    return run, transcript


def table(run):
    """The report's lines of stages: name -> (shape, type, parameters, ms, note), in order."""
    lines = report(run).splitlines()
    end = next(index for index, line in enumerate(lines) if line.startswith("together")) + 1
    shape, kind, end_of_count, end_of_time = (
        lines[1].index("shape"),
        lines[1].index("type"),
        lines[1].index("parameters") + 10,
        lines[1].index("ms") + 2,
    )
    rows = {}
    for line in lines[2:end]:
        name, words, count = line[:shape].strip(), line[kind:end_of_count].split(), 0
        if words and words[-1][0].isdigit():
            count = int(words.pop().replace(",", ""))
        assert name not in rows and len(words) < 2
        rows[name] = (
            line[shape:kind].strip(),
            "".join(words),
            count,
            float(line[end_of_count:end_of_time].strip() or 0),
            line[end_of_time:].strip(),
        )
    return rows


def section(run, head):
    """The cells of the indented lines below the line that begins so."""
    lines = report(run).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(head)) + 1
    end = next((index for index in range(start, len(lines)) if not lines[index].startswith("   ")), len(lines))
    return [cell for line in lines[start:end] for cell in re.split(r" {2,}(?=\d|\.\.\.)", line.strip())]


# ---- nothing is changed, nothing is left behind -------------------------------------------------------------------------


def traces(recognizer):
    """What observing could have left behind."""
    functions = {
        (owner.__name__, name): value
        for owner in (audio, decode, pipeline)
        for name, value in vars(owner).items()
        if callable(value)
    }
    hooks = [
        (name, kind)
        for name, module in recognizer.model.named_modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks")
        if getattr(module, kind)
    ]
    return functions, hooks, sorted(vars(recognizer)), [sorted(vars(module)) for module in recognizer.model.modules()]


@pytest.mark.parametrize(
    "options",
    [{}, {"beams": 1}, {"beams": 4, "language": "en"}, {"timestamps": True, "temperatures": (0.0, 0.4, 0.8)}],
    ids=str,
)
def test_the_transcript_is_that_of_a_plain_run(recognizer, options):
    if isinstance(recognizer.model, GlmAsr):
        options = {name: value for name, value in options.items() if name != "timestamps"}
    before, sound = traces(recognizer), melody(3.1)
    plain = recognizer.transcribe(sound, sample_rate=RATE, max_new_tokens=12, **{"timestamps": False} | options)
    run, transcript = explained(recognizer, sound, **{"temperatures": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)} | options)
    assert transcript == plain and plain.text and run.attempts
    assert traces(recognizer) == before and not before[1]
    stages = report(run)
    assert (
        recognizer.transcribe(sound, sample_rate=RATE, max_new_tokens=12, **{"timestamps": False} | options) == plain
        and report(run) == stages
    )


def test_nothing_is_left_behind_an_error(recognizer, tmp_path, monkeypatch):
    before = traces(recognizer)
    with pytest.raises(AudioError), observed(recognizer):
        assert traces(recognizer)[1] and traces(recognizer) != before
        recognizer.transcribe(tmp_path / "nothing.wav")
    assert traces(recognizer) == before
    for place in (recognizer.model.encoder.blocks[0].attn, recognizer.model.decoder.blocks[-1].mlp):
        with monkeypatch.context() as patch:
            patch.setattr(type(place), "forward", lambda *_: 1 / 0)
            during = traces(recognizer)
            with pytest.raises(ZeroDivisionError):
                explained(recognizer)
            assert traces(recognizer) == during
    with pytest.raises(CheckpointError), monkeypatch.context() as patch:
        patch.setattr(
            type(recognizer.model),
            "prefill",
            lambda *_: torch.full((1, recognizer.config.decoder.vocabulary), math.nan),
        )
        explained(recognizer, beams=1, max_new_tokens=1)
    assert traces(recognizer) == before
    assert explained(recognizer)[1] == explained(recognizer)[1]


def test_only_the_thread_that_asks_is_observed(recognizer):
    """Another one may use the same model meanwhile."""
    arguments = {"sample_rate": RATE, "max_new_tokens": 4, "temperatures": (0.0,), "guards": False}
    with observed(recognizer) as run:
        thread = threading.Thread(target=recognizer.transcribe, args=(melody(1.5),), kwargs=arguments)
        thread.start()
        thread.join()
        assert not (run.stages or run.searches or run.parameters or run.seconds)
        recognizer.transcribe(melody(1.5), **arguments)
    assert len(run.searches) == 1 and table(run)["together"][2] > 0


# ---- stages -------------------------------------------------------------------------------------------------------------

FRONT = {
    "glm": ["log-mel", "encoder.frontend.conv1", "encoder.frontend.conv2"],
    "mel": ["log-mel", "encoder.frontend.conv1", "encoder.frontend.conv2", "encoder.positions"],
    "waveform": [
        "samples",
        *(f"encoder.frontend.layers.{n}" for n in range(3)),
        "encoder.frontend.project",
        "encoder.positions",
    ],
}


@pytest.mark.parametrize("kind", FRONT)
@pytest.mark.parametrize("rate", [RATE, 24_000])
def test_the_stages_are_in_the_order_of_the_data(recognizers, kind, rate):
    run, _ = explained(recognizers[kind], rate=rate)
    between = ["projector", "audio embeddings"] if kind == "glm" else ["decoder.cross_kv", "language"]
    places = [] if kind == "glm" else ["decoder.positions"]
    assert list(table(run)) == [
        "read",
        *(["resample"] if rate != RATE else []),
        "windows",
        *FRONT[kind],
        "encoder.blocks",
        "encoder.norm",
        *between,
        "decoder.embed",
        *places,
        "decoder.blocks",
        "decoder.norm",
        "decoder.head",
        "step",
        "search",
        "everything else",
        "together",
    ]
    assert table(run)["read"][4] == f"{24_000 / rate:.2f} s at {rate} Hz" and table(run)["read"][0] == "(24000)"
    assert rate == RATE or table(run)["resample"][0] == "(16000)"


@pytest.mark.parametrize("kind", FRONT)
@pytest.mark.parametrize("options", [{"beams": 1}, {"beams": 3, "temperatures": (0.0, 0.5)}], ids=str)
def test_parameters_and_times_add_up(recognizers, kind, options):
    run, _ = explained(recognizers[kind], melody(3.1), **options)
    *stages, together = table(run).values()
    model = recognizers[kind].model
    assert (
        sum(stage[2] for stage in stages)
        == together[2]
        == sum(parameter.numel() for parameter in model.parameters())
        > 0
    )
    assert (
        sum(stage[3] for stage in stages) == pytest.approx(together[3], abs=0.005 * len(stages) + 0.005)
        and together[3] > 1
    )
    assert report(run).startswith(f"{type(model).__name__}: {together[2]:,} parameters in float32 on cpu\n")


def test_weights_of_8_bits_are_counted_and_named(recognizers, monkeypatch):
    run, _ = explained(glmasr.load("demo", device="cpu", dtype="int8"))
    *stages, together = table(run).values()
    assert sum(stage[2] for stage in stages) == together[2] > 3.5e6 and report(run).splitlines()[0].endswith(
        " on cpu, linears int8"
    )
    monkeypatch.setattr(prepare, "LARGE", 1)
    assert (
        "without --explain linears are packed, and faster" in report(explained(recognizers["glm"])[0]).splitlines()[0]
    )


def test_the_parameters_of_a_stage_are_those_of_its_modules(recognizers):
    def count(*modules):
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    model, rows = recognizers["glm"].model, table(explained(recognizers["glm"])[0])
    for name in (
        "encoder.frontend.conv1",
        "encoder.frontend.conv2",
        "encoder.blocks",
        "encoder.norm",
        "projector",
        "decoder.embed",
        "decoder.blocks",
        "decoder.norm",
        "decoder.head",
    ):
        assert rows[name][2] == count(model.get_submodule(name)) > 0, name
    model, rows = recognizers["waveform"].model, table(explained(recognizers["waveform"])[0])
    crossed = [part for block in model.decoder.blocks for part in (block.cross.key, block.cross.value)]
    assert rows["decoder.cross_kv"][2] == count(*crossed) > 0 and rows["decoder.blocks"][2] == count(
        model.decoder.blocks
    ) - count(*crossed)
    assert rows["encoder.positions"][2] == model.encoder.positions.numel() and rows["decoder.head"][2] == 0
    assert rows["encoder.frontend.layers.1"][2] == count(model.encoder.frontend.layers[1])


def test_a_tied_head_is_counted_once(tmp_path):
    recognizer = make("glm", tmp_path)
    recognizer.model.config = replace(recognizer.config, decoder=replace(recognizer.config.decoder, tied=True))
    recognizer.model.decoder.config = recognizer.config.decoder
    recognizer.model.decoder.tie()
    rows = table(explained(recognizer)[0])
    assert rows["decoder.head"][2] == 0 and rows["decoder.embed"][2] == recognizer.model.decoder.embed.weight.numel()
    assert sum(row[2] for row in rows.values()) == 2 * rows["together"][2]


@pytest.mark.parametrize(
    "kind, more", [("mel", {}), ("mel", {"width": 24, "layers": (1, 3)}), ("waveform", {}), ("waveform", {"width": 32})]
)
def test_shapes_of_the_encoder_decoder(tmp_path, kind, more):
    recognizer = make(kind, tmp_path, **more)
    config = recognizer.config
    width, key, size = config.encoder.width, config.decoder.width // 4, config.decoder.vocabulary
    rows = table(explained(recognizer, melody(3.1), beams=2)[0])  # two windows, in a batch
    shapes = {
        "windows": "(2, 32000)",
        "encoder.positions": f"(100, {width})",
        "encoder.blocks": f"(2, 100, {width})",
        "encoder.norm": f"(2, 100, {width})",
        "language": "(2, 3)",
        "decoder.cross_kv": f"(2, 4, 100, {key})",
        "decoder.embed": f"(2, 4, {width})",
        "decoder.positions": f"(4, {width})",
        "decoder.blocks": f"(2, 4, {width})",
        "decoder.norm": f"(2, 4, {width})",
        "decoder.head": f"(2, {size})",
        "step": f"{rows['step'][0].split()[0]} x (4, {size})",
    }
    assert 0 < int(rows["step"][0].split()[0]) <= 11
    if kind == "mel":
        shapes |= {
            "log-mel": "(2, 80, 200)",
            "encoder.frontend.conv1": f"(2, {width}, 200)",
            "encoder.frontend.conv2": f"(2, {width}, 100)",
        }
    else:
        shapes |= {
            "samples": "(2, 1, 32000)",
            "encoder.frontend.layers.0": "(2, 6, 6400)",
            "encoder.frontend.layers.2": "(2, 8, 100)",
            "encoder.frontend.project": f"(2, 100, {width})",
        }
    assert {name: rows[name][0] for name in shapes} == shapes
    encoder, decoder = (
        f"{layers} x " if layers > 1 else "" for layers in (config.encoder.layers, config.decoder.layers)
    )
    assert (
        rows["encoder.blocks"][4] == f"encoder.py, {encoder}EncoderBlock"
        and rows["decoder.blocks"][4] == f"decoder.py, {decoder}CrossBlock"
    )
    assert rows["windows"][4] == "2 of 2 s" and rows["decoder.cross_kv"][4] == "decoder.py, CrossDecoder.cross_kv"


@pytest.mark.parametrize("seconds, windows", [(1.5, ""), (3.1, "2 x ")])
def test_shapes_of_glm(recognizers, seconds, windows):
    rows = table(explained(recognizers["glm"], melody(seconds), long="whole")[0])
    first, all_rows = (18, 18) if seconds == 1.5 else (25, 38)
    prompt = all_rows + len(recognizers["glm"].model.prompt(recognizers["glm"].tokenizer, 0))
    shapes = {
        "windows": "(1, 32000)",
        "log-mel": f"{windows}(1, 80, 200)",
        "encoder.frontend.conv2": f"{windows}(1, 16, 100)",
        "encoder.blocks": f"{windows}(1, 100, 16)",
        "projector": f"{windows}(1, 25, 24)",
        "audio embeddings": f"{windows}({first}, 24)",
        "decoder.embed": f"(1, {prompt}, 24)",
        "decoder.blocks": f"(1, {prompt}, 24)",
        "decoder.norm": "(1, 1, 24)",
        "decoder.head": "(1, 310)",
        "step": "11 x (1, 310)",
    }
    assert {name: rows[name][0] for name in shapes} == shapes
    assert rows["windows"][4] == f"{len(windows) // 2 or 1} of 2 s"


def test_types_are_those_of_the_results(tmp_path):
    recognizer = pipeline.load(make_encoder_decoder(tmp_path), device="cpu", dtype="bfloat16")
    rows = table(explained(recognizer)[0])
    assert {rows[name][1] for name in ("read", "windows", "log-mel", "language")} == {"float32"}
    assert {
        rows[name][1]
        for name in ("encoder.frontend.conv1", "encoder.blocks", "decoder.cross_kv", "decoder.head", "step")
    } == {"bfloat16"}


def test_a_moment_belongs_to_the_innermost_stage_but_for_stages_that_stay_whole(recognizers, monkeypatch):
    run, now = Observation(recognizers["glm"]), [100.0]
    monkeypatch.setattr(explain.time, "perf_counter", lambda: now[0])
    for change, name, wait in (
        (run.begin, "outer", 1),
        (run.begin, "inner", 2),
        (run.end, "inner", 4),
        (run.begin, "step", 8),
        (run.begin, "inner", 16),
        (run.end, "inner", 32),
        (run.end, "step", 64),
        (run.begin, "inner", 128),
        (run.end, "inner", 256),
        (run.end, "outer", 512),
    ):
        change(name, *([""] if change == run.end else []))
        now[0] += wait
    assert run.seconds == {"outer": 1 + 4 + 64 + 256, "inner": 2 + 128, "step": 8 + 16 + 32}
    assert {name: stage.calls for name, stage in run.stages.items()} == {"inner": 2, "step": 1, "outer": 1}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(tmp_path):
    recognizer = pipeline.load(make_encoder_decoder(tmp_path), device="cuda", dtype="float32")
    run, transcript = explained(recognizer)
    assert transcript == recognizer.transcribe(
        melody(1.5), sample_rate=RATE, max_new_tokens=12, temperatures=(0.0,), timestamps=False
    )
    assert "on cuda" in report(run) and table(run)["together"][3] > 1


def test_the_clock_waits_for_a_gpu(recognizers, monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waits.append(1))
    explained(recognizers["glm"])
    assert not waits
    run = Observation(recognizers["glm"])
    monkeypatch.setattr(type(recognizers["glm"].model), "device", torch.device("cuda"))
    run.begin("a")
    run.end("a", "")
    assert waits


# ---- prompt and search --------------------------------------------------------------------------------------------------


def test_the_prompt_is_that_of_the_model(recognizer):
    run, transcript = explained(recognizer)
    search, tokenizer, model = run.attempts[-1], recognizer.tokenizer, recognizer.model
    expected = model.prompt(tokenizer, 18) if isinstance(model, GlmAsr) else model.prompt(transcript.language)
    assert search.prompt == expected
    ids, spelling = [], ""
    for cell in section(run, f"prompt of {len(expected)} tokens"):
        number, text, count = re.fullmatch(r"(\d+) (.+?)(?: x (\d+))?", cell).groups()
        assert text == token_text(tokenizer, int(number)) and (count is None or int(count) > 2)
        ids += [int(number)] * int(count or 1)
        spelling += (text if text.startswith("<|") else eval(text)) * int(count or 1)
    assert ids == expected and spelling == tokenizer.decode(expected, skip_special=False)
    if isinstance(model, GlmAsr):
        assert "307 <|pad|> x 18" in section(run, "prompt of")
        assert [cell.startswith("307") for cell in section(explained(recognizer, melody(0.16))[0], "prompt of")].count(
            True
        ) == 2
        assert "307 <|pad|> x 3" in section(explained(recognizer, melody(0.24))[0], "prompt of")


@torch.inference_mode()
@pytest.mark.parametrize(
    "options", [{"beams": 1}, {"beams": 3}, {"beams": 3, "language": "zh"}, {"beams": 1, "timestamps": True}], ids=str
)
def test_the_first_tokens_are_those_of_prefill(recognizer, options):
    glm = isinstance(recognizer.model, GlmAsr)
    if glm and "timestamps" in options:
        return
    run, transcript = explained(recognizer, **options)
    samples = torch.from_numpy(melody(1.5))
    audio = [recognizer.family.embed(samples)] if glm else recognizer.family.encode_windows([samples])
    prompt = run.attempts[-1].prompt
    logits = recognizer.model.prefill(audio, [prompt], recognizer.model.new_cache(1, len(prompt)))
    free = logits.softmax(-1)[0]
    logits = logits.clone()
    for rule in recognizer.family.rules(
        options.get("language", "auto"), pipeline.Options(timestamps=options.get("timestamps", False))
    ):
        rule(logits, torch.zeros(1, 0, dtype=torch.long))
    ruled = logits.softmax(-1)[0]
    values, ids = ruled.topk(LIKELIEST)
    cells = section(run, "first token, ")
    assert [cell.split()[0] for cell in cells] == [str(id) for id in ids.tolist()]
    assert [float(cell.split()[-1]) for cell in cells] == pytest.approx(values.tolist(), abs=6e-5)
    assert [cell.split(" ", 1)[1].rsplit(" ", 1)[0] for cell in cells] == [
        token_text(recognizer.tokenizer, id) for id in ids.tolist()
    ]
    [head] = [line for line in report(run).splitlines() if line.startswith("first token, ")]
    forbidden, wish = int(logits.isneginf().sum()), int(free.argmax())
    assert f"the likeliest of {len(ruled)}" in head and (f"the rules forbid {forbidden}" in head) == (forbidden > 0)
    assert (f"such as {wish} {token_text(recognizer.tokenizer, wish)} {free[wish]:.4f}" in head) == (
        wish not in ids.tolist()
    )
    if not glm:
        likely, no_speech = recognizer.model.detect_language(audio)
        order = sorted(zip(recognizer.config.languages, likely[0].tolist()), key=lambda item: -item[1])
        line = "language: " + ", ".join(
            [*(f"{name} {value:.3f}" for name, value in order), f"no speech {no_speech[0]:.3f}"]
        )
        assert line in report(run).splitlines()
        assert transcript.language == options.get("language", order[0][0])


def test_what_greedy_search_kept_is_its_result(recognizer):
    run, _ = explained(recognizer, beams=1)
    [search] = run.attempts
    result = search.result
    chosen = [step[0].ids[-1] for step in search.steps]
    assert all(len(step) == 1 and step[0].ids == chosen[:number] for number, step in enumerate(search.steps, 1))
    assert chosen[: len(result.ids)] == result.ids and all(
        id in recognizer.config.stop for id in chosen[len(result.ids) :]
    )
    assert len(chosen) == len(result.ids) + result.stopped and search.steps[-1][0].score == pytest.approx(
        result.logprob, abs=1e-5
    )
    cells = section(run, "greedy search")
    assert [int(cell.split()[1]) for cell in cells] == chosen and [cell.split(":")[0] for cell in cells] == [
        str(n + 1) for n in range(len(chosen))
    ]
    assert math.prod(float(cell.split()[-1]) for cell in cells) == pytest.approx(math.exp(result.logprob), rel=0.01)


@pytest.mark.parametrize("width", [2, 5])
def test_what_the_beams_kept(recognizer, width):
    run, _ = explained(recognizer, beams=width, max_new_tokens=9)
    [search] = run.attempts
    stop, result = recognizer.config.stop, search.result
    ended = {}
    for number, step in enumerate(search.steps, 1):
        assert 0 < len(step) <= 2 * width and [kept.score for kept in step] == sorted(
            (kept.score for kept in step), reverse=True
        )
        assert all(len(kept.ids) == number for kept in step) and len({tuple(kept.ids) for kept in step}) == len(step)
        if number > 1:  # each continues one that had not ended
            assert {tuple(kept.ids[:-1]) for kept in step} <= {
                tuple(kept.ids) for kept in search.steps[number - 2] if kept.ids[-1] not in stop
            }
        ended |= {tuple(kept.ids): kept.score / number for kept in step if kept.ids[-1] in stop or number == 9}
    best = max(ended, key=ended.get)
    assert list(best)[: len(result.ids)] == result.ids and len(best) == len(result.ids) + result.stopped
    lines = [line for line in report(run).splitlines() if re.match(r" *\d+: +-\d", line)]
    assert len(lines) == len(search.steps)
    for line, step in zip(lines, search.steps):
        assert [float(number) for number in re.findall(r"(?:^|  )(?: *\d+:)? *(-\d+\.\d{3}) ", line)] == pytest.approx(
            [kept.score for kept in step[:3]], abs=6e-4
        )


def test_the_first_window_alone_is_told(recognizers):
    """Its search ends long before that of the batch."""
    sound = melody(3.5)
    for beams in (1, 3):
        both, alone = (
            explained(recognizers["mel"], part, beams=beams, max_new_tokens=30, batch_size=size)[0]
            for part, size in ((sound, 9), (sound, 1))
        )
        assert len(both.attempts[0].steps) - 1 <= both.stages["step"].calls
        assert [[kept.ids for kept in step] for step in both.attempts[0].steps] == [
            [kept.ids for kept in step] for step in alone.attempts[0].steps
        ]
        assert both.attempts[0].result.ids == alone.attempts[0].result.ids


def test_each_attempt_is_told(tmp_path):
    recognizer = make("mel", tmp_path, loud=0.2)  # so unsure that no text will do
    run, _ = explained(recognizer, melody(3.5), beams=1, temperatures=(0.0, 0.5, 1.0))
    assert [search.temperature for search in run.attempts] == [0.0, 0.5, 1.0] and len(run.searches) == 3
    lines = report(run).splitlines()
    for search in run.attempts:
        result = search.result
        assert (
            f"at temperature {search.temperature}: {len(result.ids)} tokens, mean log-probability {result.mean_logprob:.3f}, ended by "
            + ("a stop token" if result.stopped else "the limit")
        ) in lines
        assert result.ids in [
            kept.ids[:-1] if kept.ids[-1] == recognizer.config.end else kept.ids
            for step in search.steps
            for kept in step
        ]
        assert len(search.steps[0]) == (5 if search.temperature else 1)
    assert "sampling at temperature 1.0: the best 3" in report(run)
    assert table(run)["decoder.embed"][0] == "3 x (2, 4, 16)" and table(run)["encoder.blocks"][0] == "(2, 100, 16)"


def test_windows_that_are_alike_are_not_taken_for_attempts(recognizers):
    run, _ = explained(
        recognizers["waveform"], torch.full((20 * RATE,), 0.1), max_new_tokens=2, guards=False, batch_size=8
    )
    assert len(run.searches) > 1 and len(run.attempts) == 1 and table(run)["windows"][4].endswith(" of 2 s")
    assert table(run)["encoder.blocks"][0] == f"{len(run.searches)} x (8, 100, 16)"


def test_silence_is_told(recognizers):
    run, transcript = explained(recognizers["mel"], torch.zeros(20 * RATE))
    assert transcript.text == "" and report(run).splitlines()[-1].startswith("all of it is silent")


def test_parts_of_characters_are_bytes(recognizer):
    tokenizer = recognizer.tokenizer
    whole, name = tokenizer.encode("大é\n a"), recognizer.config.stop[0]
    assert spelled(tokenizer, [*whole, name]) == "大é\n a" + token_text(tokenizer, name)
    assert (
        spelled(tokenizer, [0xE5, 0x61, 0xA4, 0xA7]) == "<0xE5>a<0xA4><0xA7>"
        and spelled(tokenizer, [0xE5, 0xA4, 0xA7]) == "大"
    )
    assert (
        token_text(tokenizer, 10) == r"'\n'"
        and token_text(tokenizer, 0x20) == "' '"
        and token_text(tokenizer, name) in tokenizer.special
    )
    assert width("大a'") == 4


@pytest.mark.parametrize("options", [{"beams": 1}, {"beams": 5}, {"beams": 5, "language": "zh"}], ids=str)
def test_it_fits_on_a_screen(recognizer, options):
    run, _ = explained(recognizer, melody(3.9), max_new_tokens=40, **options)
    lines, steps = report(run).splitlines(), len(run.attempts[0].steps)
    assert len(lines) <= 47 and max(map(width, lines)) <= WIDTH
    shown = 24 if options["beams"] == 1 else 10
    assert (f"... {steps - shown - 1} more steps" in report(run)) == (steps > shown + 2)


# ---- the command line ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    folder = tmp_path_factory.mktemp("room")
    make_checkpoint(folder / "glm")
    (folder / "mel").mkdir()
    make_encoder_decoder(folder / "mel")
    soundfile.write(folder / "0.wav", melody(1.5), RATE)
    return folder


def call(capsys, room, *arguments):
    try:
        code = transcribe.main([*arguments, "--device", "cpu", "--max-new-tokens", "6", "--dtype", "float32"])
    except SystemExit as leave:
        code = leave.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "glm"],
        ["--model", "glm", "--quiet", "--beams", "2"],
        ["--model", "mel", "--timestamps"],
        ["--model", "mel", "--lang", "yue", "--beams", "1"],
    ],
    ids=str,
)
def test_the_text_follows_the_explanation(capsys, room, monkeypatch, options):
    monkeypatch.chdir(room)
    code, plain, _ = call(capsys, room, "0.wav", *options)
    explained_code, out, err = call(capsys, room, "0.wav", "--explain", *options)
    assert (
        code == explained_code == 0
        and out.endswith("\n" + plain)
        and plain.strip()
        and (err == "") == ("--quiet" in options)
    )
    told = out.removesuffix(plain)
    assert (
        re.match(r"(GlmAsr|EncoderDecoder): [\d,]+ parameters in float32 on cpu\nstage ", told)
        and "tokens, mean log-probability" in told
    )


@pytest.mark.parametrize("arguments", [["0.wav", "0.wav"], ["0.wav", "--json"], []])
def test_wrong_usage(capsys, room, monkeypatch, arguments):
    monkeypatch.chdir(room)
    code, out, err = call(capsys, room, "--model", "glm", "--explain", *arguments)
    assert code == 2 and out == "" and "usage:" in err
    assert not arguments or "one recording at a time" in err and "without --json" in err


def test_a_bad_recording(capsys, room, monkeypatch):
    monkeypatch.chdir(room)
    code, out, err = call(capsys, room, "--model", "glm", "--explain", "nothing.wav")
    assert code == 1 and out == "" and "error: nothing.wav" in err
