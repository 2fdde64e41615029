"""What docs/ says about the code: names, numbers, shapes and examples."""

import doctest
import importlib
import re
from functools import cache
from operator import attrgetter
from pathlib import Path

import pytest
import torch

from glmasr import audio, weights
from glmasr.config import PRESETS
from glmasr.transcription import window_decoder

FOLDER = Path(__file__).parents[1] / "docs"
PACKAGE = FOLDER.parent / "glmasr"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}
# Those that explain the code, and hold its names and examples. The others have tests of their own, are measurements, or
# tell how to use it.
TEXTS = {name: PAGES[name] for name in ("ENCODER-DECODER.md", "GLM-ASR.md", "JSON.md", "MODEL.md")}
TOTALS = {"glm-asr-nano-2512": 2_257_843_200, "article": 310_412_288, "article-waveform": 314_070_016}


@cache
def model(preset):
    with torch.device("meta"):
        return weights.build(PRESETS[preset])


def count(preset, path):
    """Parameters of a module, or of a parameter by itself."""
    found = attrgetter(path)(model(preset))
    return found.numel() if isinstance(found, torch.Tensor) else sum(p.numel() for p in found.parameters())


def rows(text):
    """The cells of each row of all tables in a text."""
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def number(text):
    return int(text.replace(",", ""))


def has(file, path):
    """Whether a module of the package has something under a dotted name."""
    module = importlib.import_module(".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts))
    try:
        return attrgetter(path)(module) is not None
    except AttributeError:
        return False


@pytest.mark.parametrize("name", TEXTS)
def test_every_place_in_the_code_is_there(name):
    places = re.findall(r"`(\w+)\.py: ([\w.]+)`", TEXTS[name])
    assert len(places) > (0 if name == "JSON.md" else 10)
    assert len(places) == TEXTS[name].count(".py:"), "a place that is not written as `file.py: Name`"
    for module, path in places:
        assert any(has(known, path) for known in PACKAGE.rglob(f"{module}.py")), f"{module}.py: {path}"


@pytest.mark.parametrize("name", PAGES)
def test_links_and_files(name):
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", PAGES[name]):
        if not target.startswith("https://"):
            assert (FOLDER / target).is_file() and (name == "REAL.md" or ".." not in target), target
            assert not anchor or anchor in anchors(PAGES[target]), f"{target}#{anchor}"
    for target in re.findall(r"`((?:tests|training|benchmarks|glmasr)/[\w/]+\.\w+)`", PAGES[name]):
        assert (FOLDER.parent / target).is_file(), target
    if name not in ("HOSTILE.md", "REAL.md", "SERVER.md"):
        assert not re.search(r"\.\./|(?<![\w.:/])/\w+/", PAGES[name]), "a path of somebody's machine"


def anchors(text):
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)", text, re.MULTILINE)
    }


def test_every_page_is_in_the_index():
    index = re.findall(r"\]\(([^)#]+)\)", PAGES["README.md"])
    assert sorted(index) == sorted(set(PAGES) - {"README.md"})


@pytest.mark.parametrize("name", TEXTS)
def test_examples(name):
    """Each ```python block is a session; all of a page are one."""
    source = "\n".join(re.findall(r"```python\n(.*?)```", TEXTS[name], re.DOTALL))
    assert (
        source
        and doctest.DocTestRunner().run(doctest.DocTestParser().get_doctest(source, {}, name, name, 0)).failed == 0
    )


@pytest.mark.parametrize("name, preset", [("GLM-ASR.md", "glm-asr-nano-2512"), ("ENCODER-DECODER.md", "article")])
def test_parameter_tables(name, preset):
    section = TEXTS[name].partition(f"## Parameters of `{preset}`\n")[2].partition("\n## ")[0]
    parts, blocks, total = {}, {}, None
    for cells in rows(section):
        paths = re.findall(r"`([\w.]+)`", cells[0])
        if cells[0] == "total":
            total = number(cells[2])
        for path in paths:
            formula = cells[1].replace(",", "").replace("×", "*")
            assert re.fullmatch(r"[\d*+() ]+", formula)
            assert eval(formula) == number(cells[2]) == count(preset, path), path
            (blocks if ".blocks.0." in path else parts)[path] = number(cells[2])
    assert total == sum(parts.values()) == sum(p.numel() for p in model(preset).parameters()) == TOTALS[preset]
    for part in ("encoder", "decoder"):
        inside = {path.rpartition(".")[2] for path in blocks if path.startswith(part)}
        assert inside == {path for path, _ in attrgetter(f"{part}.blocks.0")(model(preset)).named_children()}
        assert sum(value for path, value in blocks.items() if path.startswith(part)) == count(
            preset, f"{part}.blocks.0"
        )


def test_other_counts():
    for preset, total in TOTALS.items():
        assert sum(p.numel() for p in model(preset).parameters()) == total
    for preset in ("glm-asr-nano-2512", "article"):
        assert f"{TOTALS[preset]:,}" in TEXTS["MODEL.md"]
    wave = [
        f"{value:,}"
        for value in (
            TOTALS["article-waveform"],
            count("article-waveform", "encoder.frontend"),
            count("article-waveform", "encoder.positions"),
        )
    ]
    assert "{} parameters, {} of them here and {} in its".format(*wave) in " ".join(TEXTS["ENCODER-DECODER.md"].split())


def test_the_comparison_has_the_numbers_of_the_presets():
    table = {cells[0]: cells[1:] for cells in rows(TEXTS["MODEL.md"])}
    ours, theirs = PRESETS["article"], PRESETS["glm-asr-nano-2512"]
    for part in ("encoder", "decoder"):
        values = getattr(ours, part)
        assert table[part][0] == f"{values.layers} layers, `d_model` {values.width}, {values.heads} heads"
    e, d = theirs.encoder, theirs.decoder
    assert table["encoder"][1].startswith(
        f"{e.layers} layers, width {e.width}, {e.heads} heads of {e.head_size}, MLP {e.hidden};"
    )
    assert e.rotary * 2 == e.head_size
    assert table["decoder"][1] == (
        f"Llama: {d.layers} layers, width {d.width}, {d.heads} query and {d.key_heads} key heads of {d.head_size}, "
        f"SwiGLU {d.hidden}"
    )
    assert table["vocabulary"][0] == f"{ours.decoder.vocabulary:,}" and table["vocabulary"][1].startswith(
        f"{d.vocabulary:,}:"
    )
    assert table["search"][0] == f"`num_beams={ours.beams}`" and theirs.beams == 1
    assert f"{d.positions} positions" in table["limit"][1]
    assert (
        f"{theirs.longest_windows} windows, {theirs.longest_windows * theirs.window_seconds} s"
        in table["long sound"][1]
    )
    assert f"MLPs of {ours.encoder.hidden}, {ours.decoder.positions} text" in " ".join(TEXTS["MODEL.md"].split())
    for seconds, tokens in ((0, 32), (1, 48), (30, 512)):
        assert window_decoder.TOKENS_AT_LEAST + window_decoder.TOKENS_A_SECOND * seconds == tokens
    assert f"positions leave: {min(512, ours.decoder.positions - 4)} for a window" in " ".join(
        TEXTS["ENCODER-DECODER.md"].split()
    )


def test_the_special_tokens_of_the_article():
    found = {
        cells[2].strip("`"): [int(id) for id in re.findall(r"\d+", cells[0])]
        for cells in rows(TEXTS["ENCODER-DECODER.md"])
        if cells[2:]
    }
    config = PRESETS["article"]
    for field in ("end", "start", "no_speech", "no_timestamps"):
        assert found[field] == [getattr(config, field)]
    assert found["languages"] == list(config.languages.values()) and found["tasks"] == list(config.tasks.values())
    assert (
        found["times"] == [config.times, config.decoder.vocabulary - 1]
        and found["times"][1] - found["times"][0] + 1 == 1501
    )
    assert found[""] == [0, config.end - 1]


def test_the_prompt_of_glm_asr_has_15_ids_more_than_rows():
    line = next(line for line in TEXTS["GLM-ASR.md"].splitlines() if line.startswith("[59253"))
    ids, config = eval(line, {"N": 375}), PRESETS["glm-asr-nano-2512"]
    assert len(ids) == 15 + 375 and ids.count(config.audio_token) == 375
    table = {cells[0]: cells[2] for cells in rows(TEXTS["GLM-ASR.md"]) if len(cells) == 3}
    assert {int(id) for id, use in table.items() if "ends an answer" in use} == set(config.stop)


@torch.inference_mode()
def test_the_way_of_the_data():
    """The shapes that full-size models give on the meta device, with no numbers behind them; 1 stands for W and A."""

    def said(name, shape, letters="WA"):
        body = ", ".join(map(str, shape[1:]))
        assert any(f"({letter}, {body})" in TEXTS[name] for letter in letters), shape

    windows = audio.windows(torch.zeros(1000))
    said("GLM-ASR.md", windows.shape)
    for preset, name in (
        ("glm-asr-nano-2512", "GLM-ASR.md"),
        ("article", "ENCODER-DECODER.md"),
        ("article-waveform", "ENCODER-DECODER.md"),
    ):
        m = model(preset)
        if preset == "glm-asr-nano-2512":
            features = audio.log_mel(windows, m.config.encoder.bands)
        else:
            features = m.features(windows)
        said(name, features.shape)
        states = m.encoder(features.to("meta"))
        said(name, m.encoder.frontend(features.to("meta")).shape)
        said(name, states.shape)
        if preset == "glm-asr-nano-2512":
            said(name, states.unflatten(1, (-1, m.config.merge)).flatten(2).shape)
            heard = m.projector(states)
            said(name, heard.shape)
            logits = m.decoder.head(m.decoder(heard)[:, -1])
        else:
            heard = m.decoder.cross_kv(states)
            assert len(heard) == m.config.decoder.layers
            said(name, heard[0][0].shape)
            logits = m.decoder.head(m.decoder(torch.zeros(1, 4, dtype=torch.long, device="meta"), heard)[:, -1])
        said(name, logits.shape, "1AB")
