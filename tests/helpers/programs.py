"""Programs of others that a test may need. No machine has to have them: a fresh one has Python and git."""

import os
import shutil

import pytest


def program(name: str) -> str | None:
    """Where a program is. Servers lie in a folder that is not on everybody's PATH."""
    return shutil.which(name, path=os.pathsep.join(filter(None, (os.environ.get("PATH"), "/usr/sbin"))))


def needs(*names: str) -> pytest.MarkDecorator:
    """Skips a test where one of these programs is missing; the reason names it. `a|b`: either will do."""
    missing = [name for name in names if not any(map(program, name.split("|")))]
    return pytest.mark.skipif(bool(missing), reason=f"needs {' and '.join(missing).replace('|', ' or ')}")
