"""Ctrl-C, whenever it comes: exit code 130, one line, no traceback."""

import argparse
import configparser
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from importlib import import_module

import pytest
from helpers import ROOT

import glmasr
from glmasr import cli

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
EXAMPLE = str(ROOT / "examples" / "zh.wav")
# The entry that pip writes, which tells when Ctrl-C is ours: what comes before is raised in Python's own start.
ENTRY = """
import os, sys
from glmasr import cli
hold = cli._hold
cli._hold = lambda: (hold(), os.write({held}, b"."))[0]
sys.argv[0] = "{name}"
sys.exit(cli.{name}())
"""
COMMANDS = {
    "transcribe": [EXAMPLE, "--model", "demo", "--quiet"],
    "check": ["demo"],
    "fetch": ["demo"],
    "quantize": ["demo"],
}


def check(name, delay, folder):
    """Interrupts a command so many seconds after its first line that looks after Ctrl-C; its exit code."""
    held, telling = os.pipe()
    command = [
        sys.executable,
        "-c",
        ENTRY.format(name=name, held=telling),
        *COMMANDS[name],
        *([str(folder / f"out-{delay}")] if name == "quantize" else []),
    ]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child would inherit that it is ignored
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, pass_fds=[telling]
    )
    signal.signal(signal.SIGINT, handler)
    os.close(telling)
    try:
        assert os.read(held, 1) == b".", child.communicate(timeout=120)
        time.sleep(delay)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=120)
    finally:
        child.kill()
        os.close(held)
    lines = err.splitlines()
    # 0: it had ended before. Its last act, Python's own, is to give signals back to the system, which then ends it
    # without a word.
    assert (
        child.returncode == 0
        or child.returncode == 130
        and lines[-1:] == ["interrupted"]
        or (child.returncode, lines) == (-signal.SIGINT, [])
    ), (child.returncode, lines)
    assert not any("Traceback" in line or "Exception ignored" in line for line in lines), lines
    return child.returncode


@pytest.mark.parametrize("name, delay", [("transcribe", 0.6), ("check", 0.0), ("fetch", 0.3)])
def test_an_interrupt_while_python_imports(name, delay, tmp_path):
    check(name, delay, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupt_at_any_time(name, tmp_path):
    codes = [check(name, 2.4 * step / 19, tmp_path) for step in range(20)]
    assert codes.count(130) > 4


def test_within_a_program_that_looks_after_itself():
    """Its own handler stays, and in a thread nothing is tried; Python's one comes back."""
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with cli.ended_at_once():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        assert seen == [1]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with cli.ended_at_once():
            assert signal.getsignal(signal.SIGINT) is cli._end
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

        def elsewhere():
            with cli.ended_at_once():
                seen.append(signal.getsignal(signal.SIGINT))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert seen[1:] == [signal.default_int_handler]
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_that_was_to_be_ignored():
    """As of a command that a shell has put into the background."""
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from glmasr.cli import ended_at_once\nwith ended_at_once(): signal.raise_signal(signal.SIGINT)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60).returncode == 0


@pytest.mark.parametrize("closed", [False, True])
def test_while_it_imports_and_when_all_is_said(tmp_path, closed):
    """Also where standard error is closed."""
    for moment in ("", "def main(): return 0"):
        (tmp_path / "module.py").write_text(f"import signal\n{moment or 'signal.raise_signal(signal.SIGINT)'}\n")
        code = "import signal, sys; from glmasr import cli; code = cli._run('module'); signal.raise_signal(signal.SIGINT); sys.exit(code)"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
            capture_output=True,
            text=True,
            timeout=60,
            preexec_fn=(lambda: (signal.signal(signal.SIGINT, signal.default_int_handler), closed and os.close(2))),
        )
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "" if closed else "interrupted\n")


def test_each_command_goes_through_it():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    places = dict(line.split(" = ") for line in setup["options.entry_points"]["console_scripts"].split("\n") if line)
    assert {name: place for name, place in places.items() if name != "glmasr-serve"} == {
        "glmasr": "glmasr.cli:transcribe",
        "glmasr-fetch": "glmasr.cli:fetch",
        "glmasr-check": "glmasr.cli:check",
        "glmasr-quantize": "glmasr.cli:quantize",
        "glmasr-merge": "glmasr.cli:merge",
        "glmasr-archive": "glmasr.cli:archive",
        "glmasr-eval": "glmasr.cli:evaluate",
    }
    for module in (
        "transcribe",
        "glmasr.tools.fetch",
        "glmasr.tools.check",
        "glmasr.tools.quantize",
        "glmasr.tools.merge",
        "glmasr.archive.main",
        "glmasr.evaluation.main",
    ):
        assert callable(import_module(module).main)


@pytest.mark.parametrize(
    "module",
    ["glmasr.tools.fetch", "glmasr.tools.check", "glmasr.tools.quantize", "glmasr.evaluation.main", "transcribe"],
)
def test_no_command_repeats_what_a_terminal_would_obey(module, monkeypatch, capsys):
    """A shell's pattern makes options of files that are named like one."""
    monkeypatch.setattr(sys, "argv", ["command", "a", "b", "--\x1b]0;owned\x07", "--"])
    with pytest.raises(SystemExit) as leave:
        import_module(module).main()
    out, err = capsys.readouterr()
    assert (leave.value.code, out) == (2, "") and r"--\x1b]0;owned\x07" in err and "\x1b" not in err


@pytest.mark.parametrize(
    "module",
    [
        "glmasr.tools.fetch",
        "glmasr.tools.check",
        "glmasr.tools.quantize",
        "glmasr.evaluation.main",
        "glmasr.server.main",
        "transcribe",
    ],
)
def test_each_command_tells_its_version(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--version"])
    with pytest.raises(SystemExit) as leave:
        import_module(module).main()
    assert (leave.value.code, *capsys.readouterr()) == (0, f"glmasr {glmasr.__version__}\n", "")


@pytest.mark.parametrize(
    "place", ["cli.transcribe", "cli.fetch", "cli.check", "cli.quantize", "cli.evaluate", "server.main.main"]
)
def test_the_version_is_told_without_pytorch(place):
    module, _, name = place.rpartition(".")
    code = f"import sys; sys.modules['torch'] = None; from glmasr.{module} import {name}; sys.exit({name}())"
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"glmasr {glmasr.__version__}\n", "")


def test_the_servers_own_process_is_without_pytorch():
    """Only its worker imports it, which the server doesn't wait for before it begins to start."""
    pytest.importorskip("uvicorn", reason="needs the extra [web]")
    code = "import sys; sys.modules['torch'] = None; from glmasr.server import running, page_views, page_words, talks"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("on, frozen, new", [(True, 0, True), (True, 7, True), (True, 0, False), (False, 0, True)])
def test_collections_are_as_before_an_import(on, frozen, new, monkeypatch):
    """And what is frozen is only counted where something was imported: it takes long where it is much."""
    calls = []
    monkeypatch.setattr(gc, "isenabled", lambda: on)
    monkeypatch.setattr(gc, "get_freeze_count", lambda: frozen if new else pytest.fail("counted in vain"))
    for name in ("disable", "freeze", "unfreeze", "enable"):
        monkeypatch.setattr(gc, name, partial(calls.append, name))
    with contextlib.suppress(ImportError), glmasr.uncollected():
        calls.append("import")
        if new:
            monkeypatch.setitem(sys.modules, "a_module_that_is_new", contextlib)
        raise ImportError
    thaw = [] if frozen or not new else ["freeze", "unfreeze"]
    assert calls == (["disable", "import", *thaw, "enable"] if on else ["import"])


@pytest.mark.parametrize(
    "kind, right, wrong, expected",
    [
        (cli.positive, {"1": 1, " 20": 20}, ["0", "-1", "1.5", "x", "", "9" * 5000], "a positive integer"),
        (cli.positive_or_auto, {"auto": None, "3": 3}, ["0", "Auto"], "a positive integer or auto"),
        (cli.count, {"0": 0, "7": 7}, ["-1", "0.5"], "an integer of 0 or more"),
        (cli.port, {"0": 0, "65535": 65535}, ["-1", "65536", "http"], "an integer of 0 to 65535"),
        (cli.seconds, {"0.5": 0.5, "1e3": 1000.0}, ["0", "-1", "inf", "nan", "x"], "a positive number of seconds"),
        (cli.megabytes, {"100": 100.0}, ["0", "nan", "1 GB"], "a positive number of MiB"),
        (
            cli.number_or_language,
            {"2": 2, "eng": "eng", "zh": "zh"},
            ["0", "english", "e", "\u00b2", "-1"],
            "a number from 1 on or a language, such as eng",
        ),
    ],
)
def test_what_an_argument_may_be(kind, right, wrong, expected):
    """An error has the value and what is expected."""
    assert {text: kind(text) for text in right} == right
    for text in wrong:
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            kind(text)
        assert str(caught.value) == f"{text!r} is not {expected}"
