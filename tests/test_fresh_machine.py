"""A machine with nothing but Python: every test is found there, and one that needs a program of others is skipped by
its name."""

import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT
from helpers.programs import needs


@pytest.mark.slow  # all modules are imported once more
def test_no_test_module_needs_a_program(request):
    """With an empty PATH the tests that this run has are found as well: none is missing, and no module fails to be
    imported."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        request.config.option.markexpr,
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PATH": "", "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = set(re.findall(r"^tests/.*::.*$", done.stdout, re.MULTILINE))
    assert len(found) == int(re.search(r"^(\d+)(?:/\d+)? tests collected", done.stdout, re.MULTILINE)[1])
    assert {item.nodeid for item in request.session.items} <= found


def test_the_reason_names_the_program(monkeypatch, tmp_path):
    def reason(*names):
        (skip,) = needs(*names).args
        return needs(*names).kwargs["reason"] if skip else None

    for name in ("here", "here-too"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reason("here", "here-too") is reason("gone|here") is None
    assert reason("here", "gone-1", "gone-2|gone-3") == "needs gone-1 and gone-2 or gone-3"
    monkeypatch.delenv("PATH")
    assert reason("here") == "needs here"
