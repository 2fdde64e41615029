"""docs/pictures: the drawings of the networks are what their script draws today, with the shapes of the modules."""

import re
import runpy
from xml.etree import ElementTree

import pytest
import torch
from helpers import ROOT

from glmasr import audio
from glmasr.config import PRESETS
from glmasr.model import EncoderDecoder, GlmAsr

FOLDER = ROOT / "docs" / "pictures"
DRAWN = ("glm-asr.svg", "encoder-decoder.svg")


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(FOLDER / "networks.py"), run_name="networks")


@pytest.fixture(scope="module")
def texts():
    """Of each drawing, what is written in it."""
    roots = {name: ElementTree.fromstring((FOLDER / name).read_text(encoding="utf-8")) for name in DRAWN}
    return {
        name: [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
        for name, root in roots.items()
    }


def test_the_files_are_what_the_script_draws(script):
    pictures = script["pictures"]()
    assert set(pictures) == set(DRAWN) == {path.name for path in FOLDER.glob("*.svg")}
    for name, text in pictures.items():
        assert text == (FOLDER / name).read_text(encoding="utf-8"), "run: python docs/pictures/networks.py"


@pytest.mark.parametrize("name", DRAWN)
def test_they_need_nothing_from_elsewhere_and_have_two_themes(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert len(text) < 100_000 and "@media (prefers-color-scheme: dark)" in text
    assert re.findall(r"https?://[^\"]+", text) == ["http://www.w3.org/2000/svg"] and not re.search(
        r"href|@import|url\(|<script|<image", text
    )
    style, used = (
        re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1],
        set(" ".join(re.findall(r'class="([^"]+)"', text)).split()),
    )
    light, dark = style.split("@media")
    for theme in (light, dark):  # every color is there in both
        colored = set(re.findall(r"^\.([\w-]+) \{ (?:fill|stroke)", theme, re.MULTILINE))
        assert used - colored <= {"mono", "small", "tiny", "bold", "title", "middle", "end", "dashed"}


def test_every_text_lies_within_the_picture():
    """By an estimate of how wide letters are, on the wide side."""
    for name in DRAWN:
        root = ElementTree.fromstring((FOLDER / name).read_text(encoding="utf-8"))
        _, _, width, height = map(float, root.get("viewBox").split())
        for element in root.iter("{http://www.w3.org/2000/svg}text"):
            kinds = element.get("class").split()
            size = (
                12 if "title" in kinds else 7.3 if "mono" in kinds else 6.1 if {"small", "tiny"} & set(kinds) else 7.2
            )
            long, x = size * len(element.text), float(element.get("x"))
            left = x - long * (0.5 if "middle" in kinds else 1 if "end" in kinds else 0)
            assert left >= 0 and left + long <= width and 0 < float(element.get("y")) < height, element.text


@torch.inference_mode()
def test_glm_asr_has_the_shapes_of_its_modules(texts):
    """Those that the modules of the preset give on the meta device; 1 stands for W and B."""
    found, config = texts["glm-asr.svg"], PRESETS["glm-asr-nano-2512"]
    with torch.device("meta"):
        model = GlmAsr(config)
    mel = torch.zeros(1, config.encoder.bands, config.window // audio.HOP, device="meta")
    convolved = model.encoder.frontend.conv1(mel)
    states = model.encoder(mel)
    rows = model.projector(states)
    cache = model.new_cache(1, 8)
    said = [
        ("W", (1, config.window)),
        ("W", mel.shape),
        ("W", convolved.shape),
        ("W", states.shape),
        ("W", rows.shape),
        ("W", states.unflatten(1, (-1, config.merge)).flatten(2).shape),
        ("B", model.decoder.head(rows[:, -1]).shape),
    ]
    for letter, shape in said:
        assert f"({', '.join(map(str, (letter, *shape[1:])))})" in found, shape
    assert f"(B, L, {config.decoder.width})" in found and f"(N, {config.decoder.width})" in found
    assert f"(B, {cache.keys.shape[2]}, S, {cache.keys.shape[4]})" in found
    assert {f"× {config.encoder.layers}", f"× {config.decoder.layers}"} <= set(found)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert (
        any(text.startswith(f"{total / 1e9:.2f} billion parameters") for text in found)
        and f"“{config.instruction}”" in found
    )


@torch.inference_mode()
def test_the_encoder_decoder_has_the_shapes_of_its_modules(texts):
    found = texts["encoder-decoder.svg"]
    for preset in ("article", "article-waveform"):
        config = PRESETS[preset]
        with torch.device("meta"):
            model = EncoderDecoder(config)
        waveform = bool(config.encoder.convolutions)
        shape = (1, 1, config.window) if waveform else (1, config.encoder.bands, config.window // audio.HOP)
        features = torch.zeros(shape, device="meta")
        fronted, states = model.encoder.frontend(features), model.encoder(features)
        inner = model.encoder.frontend.layers(features).mT if waveform else model.encoder.frontend.conv1(features)
        heard = model.decoder.cross_kv(states)
        logits = model.decoder.head(model.decoder(torch.zeros(1, 3, dtype=torch.long, device="meta"), heard)[:, -1])
        for letter, shape in (("A", features.shape), ("A", inner.shape), ("A", fronted.shape), ("B", logits.shape)):
            assert f"({', '.join(map(str, (letter, *shape[1:])))})" in found, shape
        assert (
            f"(A, T, {states.shape[2]})" in found and f"(A, {heard[0][0].shape[1]}, T, {heard[0][0].shape[3]})" in found
        )
        assert any(str(states.shape[1]) in text for text in found if text.startswith("T = "))
        assert {f"× {config.encoder.layers}", f"× {config.decoder.layers}", f"{len(heard)} × keys and values"} <= set(
            found
        )
        assert {str(config.start), str(config.end), str(config.times), str(config.languages["zh"])} <= set(found)
        assert any(f"the {config.beams} best" in text for text in found)


def test_plots_are_small():
    plots = sorted(FOLDER.glob("*.png"))
    assert len(plots) == 4
    for path in plots:
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size <= 150_000
