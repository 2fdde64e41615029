"""Ctrl-C, whenever it comes: exit code 130, one line, no traceback."""

import configparser
import os
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module

import pytest

from glmasr import commands
from helpers import ROOT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
EXAMPLE = str(ROOT / "examples" / "zh.wav")
ENTRY = "import sys; sys.argv[0] = '{0}'; from glmasr.commands import {0}; sys.exit({0}())"
COMMANDS = {"transcribe.py": [str(ROOT / "transcribe.py"), EXAMPLE, "--model", "demo", "--quiet"],
            "glmasr": ["-c", ENTRY.format("transcribe"), EXAMPLE, "--model", "demo", "--quiet"],
            "glmasr-check": ["-c", ENTRY.format("check"), "demo"], "glmasr-fetch": ["-c", ENTRY.format("fetch"), "demo"],
            "glmasr-quantize": ["-c", ENTRY.format("quantize"), "demo"]}


def interrupted(name, delay, folder):
    """(exit code, standard error, whether a line of ours had run) of a command that is interrupted so many seconds after its start.

    A signal that comes while Python ends the import of glmasr.commands is raised in the line of the entry, which pip writes: not a line of ours.
    """
    command = [sys.executable, "-X", "importtime", *COMMANDS[name], *([str(folder / f"out-{delay}")] if name == "glmasr-quantize" else [])]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)      # a child would inherit that it is ignored
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, handler)
    try:
        time.sleep(delay)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=120)
    finally:
        child.kill()
    timed, lines = [], []
    for line in err.splitlines():
        (timed if line.startswith("import time:") else lines).append(line)
    entry = [line for line in lines if "File" in line] == ['  File "<string>", line 1, in <module>']
    return child.returncode, lines, not entry and any(line.endswith("glmasr.commands") for line in timed)


def check(name, delay, folder):
    code, lines, ours = interrupted(name, delay, folder)
    if ours and code != 0:                      # 0: it had ended before
        assert code == 130 and lines[-1:] == ["interrupted"] and not any("Traceback" in line or "Exception ignored" in line for line in lines), (code, lines)
    return code


@pytest.mark.parametrize("name, delay", [("transcribe.py", 0.7), ("glmasr-check", 0.4), ("glmasr-fetch", 1.0)])
def test_an_interrupt_while_python_imports(name, delay, tmp_path):
    check(name, delay, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupt_at_any_time(name, tmp_path):
    codes = [check(name, 0.05 + 2.45 * step / 39, tmp_path) for step in range(40)]
    assert codes.count(130) > 10


def test_within_a_program_that_looks_after_itself():
    """Its own handler stays, and in a thread nothing is tried; Python's one comes back."""
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with commands.ended_at_once():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        assert seen == [1]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with commands.ended_at_once():
            assert signal.getsignal(signal.SIGINT) is commands._end
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

        def elsewhere():
            with commands.ended_at_once():
                seen.append(signal.getsignal(signal.SIGINT))
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert seen[1:] == [signal.default_int_handler]
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_that_was_to_be_ignored():
    """As of a command that a shell has put into the background."""
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from glmasr.commands import ended_at_once\nwith ended_at_once(): signal.raise_signal(signal.SIGINT)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60).returncode == 0


@pytest.mark.parametrize("closed", [False, True])
def test_while_it_imports_and_when_all_is_said(tmp_path, closed):
    """Also where standard error is closed."""
    for moment in ("", "def main(): return 0"):
        (tmp_path / "module.py").write_text(f"import signal\n{moment or 'signal.raise_signal(signal.SIGINT)'}\n")
        code = "import signal, sys; from glmasr import commands; code = commands._run('module'); signal.raise_signal(signal.SIGINT); sys.exit(code)"
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}, capture_output=True, text=True,
                              timeout=60, preexec_fn=(lambda: (signal.signal(signal.SIGINT, signal.default_int_handler), closed and os.close(2))))
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "" if closed else "interrupted\n")


def test_each_command_goes_through_it():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    places = dict(line.split(" = ") for line in setup["options.entry_points"]["console_scripts"].split("\n") if line)
    assert {name: place for name, place in places.items() if name != "glmasr-serve"} == {
        "glmasr": "glmasr.commands:transcribe", "glmasr-fetch": "glmasr.commands:fetch", "glmasr-check": "glmasr.commands:check",
        "glmasr-quantize": "glmasr.commands:quantize"}
    for module in ("transcribe", "glmasr.hub", "glmasr.check", "glmasr.quantize"):
        assert callable(import_module(module).main)


@pytest.mark.parametrize("module", ["glmasr.hub", "glmasr.check", "glmasr.quantize", "transcribe"])
def test_no_command_repeats_what_a_terminal_would_obey(module, monkeypatch, capsys):
    """A shell's pattern makes options of files that are named like one."""
    monkeypatch.setattr(sys, "argv", ["command", "a", "b", "--\x1b]0;owned\x07", "--"])
    with pytest.raises(SystemExit) as leave:
        import_module(module).main()
    out, err = capsys.readouterr()
    assert (leave.value.code, out) == (2, "") and r"--\x1b]0;owned\x07" in err and "\x1b" not in err
