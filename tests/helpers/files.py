"""A file system that refuses."""

import os


def locked(monkeypatch, names=("deep", "locked")):
    """Folders of these names can't be read, also by root."""
    real = os.scandir

    def scandir(path):
        if os.path.basename(path) in names:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
