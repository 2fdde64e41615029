"""The commands and snippets of the documents: their options are known to the programs, their models and languages to
the package."""

import ast
import configparser
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from helpers import ROOT

import transcribe
from glmasr.checkpoint import hub
from glmasr.checkpoint.hub_model import HubModel
from glmasr.transcription.language import LANGUAGES, canonical
from glmasr.transcription.options import Options

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("docs/zh/*.md"),
        ROOT / "training" / "README.md",
        ROOT / "examples" / "README.md",
        *ROOT.glob("glmasr/checkpoints/*/README.md"),
    )
}
MADE = {"glm-asr-nano-2512-int8", "OUT", "DIR", "MODEL", "NAME", "NAME|DIR"}  # by a command before it, and placeholders
SHELL = {"&&", "||", ";", "|", ">", "&"}


def programs() -> dict[str, Path]:
    """What a command line begins with -> the file with its parser."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    found = {
        "app.py": ROOT / "glmasr" / "server" / "main.py",
        "transcribe.py": ROOT / "transcribe.py",
        "glmasr": ROOT / "transcribe.py",
    }
    for line in setup["options.entry_points"]["console_scripts"].split("\n"):
        if (name := line.partition(" = ")[0]).startswith("glmasr-"):
            found[name] = (
                ROOT
                / "glmasr"
                / {
                    "glmasr-serve": "server/main.py",
                    "glmasr-archive": "archive/main.py",
                    "glmasr-eval": "evaluation/main.py",
                }.get(name, f"tools/{name.removeprefix('glmasr-')}.py")
            )
    return found | {
        str(path.relative_to(ROOT)): path
        for folder in ("training", "benchmarks")
        for path in (ROOT / folder).glob("*.py")
    }


@cache  # what many import would be read again for each
def options(path: Path) -> set[str]:
    """Those that a file, or a module beside it that it imports, gives to a parser."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {"--help"} if path.parent.name in ("training", "benchmarks") else {"--help", "--version"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            found |= {
                argument.value
                for argument in node.args
                if isinstance(argument, ast.Constant) and argument.value.startswith("--")
            }
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and path.parent.name in ("training", "benchmarks"):
            for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]:
                if (beside := path.parent / f"{name}.py").is_file() and beside != path:
                    found |= options(beside)
    return found


PROGRAMS = programs()
OPTIONS = {name: options(path) for name, path in PROGRAMS.items()}


def commands(page: str) -> list[tuple[str, list[str]]]:
    """(program, its arguments) of each call of a program of this repository, in blocks of code and in the text."""
    text = PAGES[page]
    fenced = re.findall(
        r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE
    )  # TRAP: all of them, or an end is taken for a beginning
    blocks = [block for kind, block in fenced if kind in ("", "sh", "console")]
    lines = [line.removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(
        r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE).replace("\n", " ")
    )
    found = []
    for line in lines:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # no command, but a text with a quote
            continue
        for number, word in enumerate(words):
            at_start = number == 0 or words[number - 1] in SHELL | {"python", "python3"} or "docker" in words[:number]
            if word in PROGRAMS and at_start:
                rest = words[number + 1 :]
                found.append(
                    (word, rest[: next((index for index, other in enumerate(rest) if other in SHELL), len(rest))])
                )
                break
    return found


def test_commands_are_found():
    found = [program for page in PAGES for program, _ in commands(page)]
    assert len(found) > 60 and {
        "transcribe.py",
        "app.py",
        "glmasr",
        "glmasr-fetch",
        "glmasr-check",
        "glmasr-quantize",
    } <= set(found)
    assert OPTIONS["transcribe.py"] > {"--model", "--hub", "--lang"} and OPTIONS["app.py"] == OPTIONS[
        "glmasr-serve"
    ] > {"--model", "--hub", "--port"}


@pytest.mark.parametrize("page", PAGES)
def test_options_are_known(page):
    for program, arguments in commands(page):
        for option in {word.strip("[]").partition("=")[0] for word in arguments if re.match(r"\[?--\w", word)}:
            assert option in OPTIONS[program], f"{program} {' '.join(arguments)}"


def option_rows(page: str) -> dict[str, list[str]]:
    """Option or command -> the cells of the row of a table whose first cell names it."""
    found = {}
    for line in PAGES[page].splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found |= dict.fromkeys(re.findall(r"`((?:--|glmasr-)[\w-]+)", cells[0]), cells)
    return found


@pytest.mark.parametrize("page", ["docs/CLI.md", "docs/zh/CLI.md"])
def test_every_option_of_the_command_line_is_explained(page):
    """With its argument, its choices and its default: `--help` has a few words on each only."""
    rows, seen = option_rows(page), set()
    for action in transcribe.make_parser()._actions:
        for option in (name for name in action.option_strings if name.startswith("--")):
            seen.add(option)
            if option == "--language":  # the same as --lang, in whose row it stands
                assert f"`{option}`" in rows["--lang"][1]
                continue
            cells = rows[option]
            assert len(cells) in (3, 4) and cells[1], option
            if action.metavar is not None:
                assert f"`{option} {action.metavar}`".replace("|", "\\|") in cells[0]
            for choice in action.choices or ():
                assert f"`{choice}`" in cells[1], (option, choice)
            default = getattr(Options, action.dest, None) if action.default is None else action.default
            if action.nargs != 0 and isinstance(default, (str, int, float)) and default != "":
                shown = default if isinstance(default, str) else f"{default:g}"
                assert re.search(rf"(?<!\w){re.escape(shown)}(?!\w)", cells[2]), (option, default)
    assert {option for option in rows if option.startswith("--")} == seen - {"--language"}


@pytest.mark.parametrize("page", ["docs/CLI.md", "docs/zh/CLI.md"])
@pytest.mark.parametrize("command", [name for name in PROGRAMS if name.startswith("glmasr-")])
def test_every_option_of_the_other_commands_is_named(page, command):
    """The server's are in a table of its own page, which `test_server.py` compares with `--help`."""
    if command == "glmasr-serve":
        assert OPTIONS[command] - {"--help", "--version"} <= set(re.findall(r"--[\w-]+", PAGES["docs/SERVER.md"]))
        return
    cells = option_rows(page)[command]
    assert OPTIONS[command] - {"--help", "--version"} == set(re.findall(r"--[\w-]+", cells[2]))


@pytest.mark.parametrize("page", PAGES)
def test_models_are_known(page):
    named = [
        word
        for _, arguments in commands(page)
        for option, word in zip(arguments, arguments[1:])
        if option.strip("[") == "--model"
    ]
    named += [
        arguments[0]
        for program, arguments in commands(page)
        if program in ("glmasr-fetch", "glmasr-check", "glmasr-quantize")
        and arguments
        and not arguments[0].startswith(("-", "["))
    ]
    named += re.findall(r"--model ([\w./-]+)", PAGES[page])
    named += re.findall(r"\bload\(\"([^\"]+)\"", PAGES[page])
    for name in {name.strip("[]") for name in named} - MADE:
        assert isinstance(hub.local(name), (Path, HubModel)), name


@pytest.mark.parametrize("page", PAGES)
def test_languages_are_known(page):
    for name in re.findall(r"--lang ([\w-]+)|\blanguage=\"([^\"]+)\"", PAGES[page]):
        assert canonical("".join(name)) in LANGUAGES or "LANGUAGE" in name


@pytest.mark.parametrize("name", [*hub.NAMES, *hub.BUILT_IN])
def test_short_names_also_behind_whisper(name):
    if name.split("-")[0] in ("tiny", "base", "small", "medium", "large", "turbo") or "." in name:
        assert hub.local(f"whisper-{name}").repository == hub.local(name).repository


@pytest.mark.slow
def test_the_snippet_and_the_worked_example_work():
    """The texts as they are printed there; times depend on the machine's kind of numbers, the last line on its speed.
    The Chinese page has the same."""
    text = PAGES["README.md"]
    snippet = next(
        block for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if "load(" in block
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", snippet], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120
    )
    assert done.returncode == 0 and done.stdout.startswith("三一四一五九二六 zh "), done.stderr
    for block in [
        block
        for block in re.findall(r"^```console\n(.*?)^```", text + PAGES["docs/CLI.md"], re.DOTALL | re.MULTILINE)
        if "transcribe.py examples" in block
    ]:
        command, _, printed = block.removeprefix("$ ").partition("\n")
        done = subprocess.run(
            [sys.executable, *shlex.split(command)[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=environment | {"PYTHONUNBUFFERED": "1"},
            timeout=120,
        )
        plain = [re.sub(r"\[[\d:.]+ --> [\d:.]+\]", "[]", lines).splitlines()[:-1] for lines in (done.stdout, printed)]
        assert plain[0] == plain[1], done.stdout
