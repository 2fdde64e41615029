"""`--explain --plot`: a picture of what happened, in three formats, whole or not at all; and where the text looked."""

import io
import sys
from xml.etree import ElementTree

import pytest
import torch
from helpers import ROOT

import glmasr
import transcribe
from glmasr.alignment import heads
from glmasr.alignment.reading import all_heads, read_cross, read_prompted
from glmasr.errors import OptionError, OutputError
from glmasr.model import GlmAsr
from glmasr.tools import attention, explain, plot

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")  # matplotlib needs it too

RECORDINGS = {"demo": ROOT / "examples" / "zh.wav", "demo-article": ROOT / "examples" / "en.mp3"}


@pytest.fixture(scope="module", params=RECORDINGS)
def explained(request):
    """(recognizer, samples, searches) of an example."""
    recognizer = glmasr.load(request.param, device="cpu", dtype="float32", plain=True)
    recording = RECORDINGS[request.param]
    with explain.observed(recognizer) as run:
        recognizer.transcribe(recording)
    samples, begin = attention.first_window(recognizer, recording, recognizer.check())
    assert begin == 0.0 and len(samples) > 16_000
    return recognizer, samples, run.attempts


# ---- where the text looked -------------------------------------------------------------------------------------------


def test_the_answer_read_again_is_the_answer(explained):
    recognizer, samples, searches = explained
    reading, answer = attention.read_again(recognizer, samples, searches[-1]), searches[-1].result
    assert reading.ids[:-1] == answer.ids and reading.ids[-1] in recognizer.config.stop
    found = sum(float(row[number]) for row, number in zip(reading.logprobs, reading.ids, strict=True))
    if isinstance(recognizer.model, GlmAsr):  # without rules both are sums of the same
        assert found == pytest.approx(answer.logprob, abs=1e-3) and reading.logprobs.argmax(-1).tolist() == reading.ids
    assert found <= answer.logprob + 1e-3  # what rules forbid has no share
    columns = -(-len(samples) // round(reading.seconds * 16_000))
    assert reading.attention.shape[0] == len(reading.ids) and reading.attention.shape[1] in (columns - 1, columns)
    assert torch.allclose(reading.attention.sum(-1), torch.ones(len(reading.ids)))


def test_the_weights_are_those_that_the_modules_mix_with(explained):
    recognizer, _, _ = explained
    model, ids = recognizer.model, [6, 7, 8]
    every = all_heads(1, model.config.decoder.heads)  # of the first layer
    seen = []
    if isinstance(model, GlmAsr):
        module, x = model.decoder.blocks[0].attn, model.decoder.embed(torch.tensor([[5, *ids, 9]]))
        handle = module.register_forward_hook(lambda _, args, result: seen.append((module.project(args[0])[2], result)))
        with torch.inference_mode():
            scores = read_prompted(model.decoder, x, 1, slice(0, 5), every).scores
        scores = scores.masked_fill(~torch.ones(4, 5, dtype=torch.bool).tril(), -torch.inf)
    else:
        module = model.decoder.blocks[0].cross
        handle = module.register_forward_hook(lambda _, args, result: seen.append((args[2], result)))
        with torch.inference_mode():
            cross_kv = model.decoder.cross_kv(torch.randn(1, 40, recognizer.config.encoder.width))
            scores = read_cross(model.decoder, [5], ids, 9, cross_kv, every).scores
    handle.remove()
    [(value, result)] = seen
    mixed = scores.softmax(-1) @ value[0].repeat_interleave(len(scores) // value.shape[1], dim=0)
    assert torch.allclose(module.out(mixed.transpose(0, 1).flatten(1)), result[0, :-1], atol=1e-5)


def test_the_steadiest_head_goes_along_with_the_sound():
    looked = torch.full((2, 6, 8, 40), 1 / 40)
    looked[1, 3] = 0
    for token in range(8):
        looked[1, 3, token, 5 * token + 2] = 1.0
    looked[0, 2] = looked[1, 3].flip(0)  # this one goes backward
    found = heads.steadiest(looked.flatten(0, 1))
    assert found[0] == 6 + 3 and len(found) == heads.HEADS and 2 not in found
    assert heads.steadiest(looked[:1, 0, :1, :1]) == [0]


def test_the_text_looks_where_each_word_is_said(explained):
    recognizer, samples, searches = explained
    reading = attention.read_again(recognizer, samples, searches[-1])
    times = reading.attention.argmax(-1) * reading.seconds
    end = min(recognizer.config.stop)  # behind it are no words
    words = [time for time, number in zip(times.tolist(), reading.ids, strict=True) if number < end]
    assert len(words) in (7, 8) and words == sorted(words) and words[0] < 0.3 and 1.9 < words[-1] < 3.0


# ---- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "PNG"])
def test_a_picture_in_each_format(explained, tmp_path, ending):
    recognizer, samples, searches = explained
    path = tmp_path / "new" / f"picture.{ending}"
    assert len(plot.draw(recognizer, samples, searches, str(path))) <= 1  # where no font has Chinese characters
    data = path.read_bytes()
    if ending.lower() == "png":
        image = Image.open(io.BytesIO(data))
        assert image.format == "PNG" and image.width == 1100 and image.height > 800 and len(data) < 250_000
    elif ending == "svg":
        assert ElementTree.fromstring(data).tag.endswith("svg")
    else:
        assert data.startswith(b"%PDF")
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_same_run_gives_the_same_picture(explained, tmp_path):
    recognizer, samples, searches = explained
    for name in ("a.svg", "b.svg"):
        plot.draw(recognizer, samples, searches, str(tmp_path / name), begin=2.0)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_silence_and_8_bits(tmp_path):
    recognizer = glmasr.load("demo", device="cpu", dtype="int8", plain=True)
    assert not plot.draw(recognizer, torch.zeros(0), [], str(tmp_path / "silent.png"))
    with explain.observed(recognizer) as run:
        recognizer.transcribe(RECORDINGS["demo"])
    samples, _ = plot.first_window(recognizer, RECORDINGS["demo"], recognizer.check())
    plot.draw(recognizer, samples, run.attempts, str(tmp_path / "spoken.png"))
    assert (tmp_path / "spoken.png").stat().st_size > 2 * (tmp_path / "silent.png").stat().st_size > 0


def test_without_a_font_one_line_says_so(explained, tmp_path, monkeypatch, recwarn):
    recognizer, samples, searches = explained
    monkeypatch.setattr(plot, "CHINESE_FONTS", ())
    said = plot.draw(recognizer, samples, searches, str(tmp_path / "a.png"))
    assert [("font" in line and "\n" not in line) for line in said] == (
        [True] if isinstance(recognizer.model, GlmAsr) else []
    )
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_what_can_not_be_drawn(explained, tmp_path, monkeypatch):
    recognizer, samples, searches = explained
    for name in ("picture", "picture.jpg", "picture.png.txt"):
        with pytest.raises(OptionError, match=r"\.png, \.svg, \.pdf"):
            plot.draw(recognizer, samples, searches, str(tmp_path / name))
    with pytest.raises(OptionError, match="one recording at a time"):
        plot.check("a.png", ["a.wav", "b.wav"])
    with pytest.raises(OutputError):
        (tmp_path / "file").touch()
        plot.draw(recognizer, samples, searches, str(tmp_path / "file" / "a.png"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OptionError, match=r"\.\[plot\]"):
        plot.check("a.png")


@pytest.mark.parametrize(
    "number, expected",
    [
        (" five", "␣five"),
        ("\n", "⏎"),
        ("<|0.00|>", "0.00"),
        ("<|endoftranscript|>", "end"),
        ("$", r"\$"),
        ("\udce4", "xE4"),
    ],
)
def test_labels(number, expected):
    class Tokenizer:
        special = {name: 1 for name in [number] if number.startswith("<|")}

        def decode(self, ids):
            return "\ufffd" if number == "\udce4" else number

        def token_bytes(self, number_):
            return number.encode("utf-8", "surrogateescape")

    assert plot.label(Tokenizer(), 1) == expected


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_draws_and_shows_what_it_showed(tmp_path, capsys):
    options = [str(RECORDINGS["demo"]), "--model", "demo", "--lang", "zh", "--device", "cpu", "--explain"]
    shown = []
    for more in ([], ["--plot", str(tmp_path / "a.png")]):
        assert transcribe.main(options + more) == 0
        shown.append(capsys.readouterr().out)
    assert (tmp_path / "a.png").stat().st_size > 10_000
    # Times differ, and with them the width of their columns.
    plain, drawn = ([line.split()[:1] for line in text.splitlines()] for text in shown)
    assert plain == drawn and shown[0].splitlines()[-1] == shown[1].splitlines()[-1] == "三一四一五九二六"


@pytest.mark.parametrize(
    "wrong",
    [
        ["--plot", "a.png"],
        ["-", "--explain", "--plot", "a.png"],
        ["--explain", "--plot", "a.jpg"],
        ["b.wav", "--explain", "--plot", "a.png"],
    ],
)
def test_wrong_usage(wrong, capsys):
    audio = [] if "-" in wrong else [str(RECORDINGS["demo"])]
    try:
        code = transcribe.main([*audio, *wrong, "--model", "demo"])
    except SystemExit as end:
        code = end.code
    assert code == 2 and capsys.readouterr().err
