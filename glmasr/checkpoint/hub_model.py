"""A model of a hub, its places in the hub's cache, and what a site has to offer to be a hub: the protocol `Hub`.

`huggingface` and `modelscope` implement it. `download` and `hub_cache` use it, the same way for both.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .json_file import read_file

COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT = 30.0  # seconds without a byte
BUSY = (408, 429, 500, 502, 503, 504)  # statuses of an answer that may be another one the next time


@dataclass(frozen=True)
class HubModel:
    """A model of a hub at a revision, and its places in the cache."""

    repository: str  # owner/name
    revision: str  # a commit, or what stands for one
    hub: "Hub"

    def __str__(self) -> str:
        return f"{self.repository} at revision {self.revision}"

    @property
    def folder(self) -> Path:
        """Its folder in the cache, shared by all of its revisions."""
        return self.hub.folder(self.repository)

    @property
    def commit(self) -> str | None:
        """The commit that the revision is, as far as this machine knows. Where a hub tells of none: what stands for it,
        see `Listing`."""
        if self.hub.has_commits and COMMIT.fullmatch(self.revision):
            return self.revision
        try:
            found = read_file(self.folder / "refs" / self.revision, 1000).decode("ascii").strip()
        except (OSError, ValueError):
            return None
        return found if COMMIT.fullmatch(found) else None

    def snapshot(self, commit: str) -> Path:
        """The directory for the files of a commit, which may not exist yet."""
        return self.folder / "snapshots" / commit

    def absent(self, commit: str) -> Path:
        """The directory of empty files named like those that a commit doesn't have: they aren't asked for again."""
        return self.folder / ".no_exist" / commit


@dataclass(frozen=True)
class Remote:
    """A file of a hub."""

    name: str
    url: str
    checksum: str  # 64 digits: SHA-256, of a large file; 40: that of git
    size: int | None  # bytes


@dataclass(frozen=True)
class Listing:
    """The files of a model at a commit."""

    commit: str  # 40 hexadecimal digits; where a hub tells of no commits, of a checksum over all files
    names: frozenset[str]
    remote: Callable[[str], Remote]  # one of the names -> where it is; may ask the hub. Raises CheckpointError


class Broken(Exception):
    """A transfer that may go on when it is tried again."""


class Hub(Protocol):
    """A site that holds models, and the folder where its own packages keep what they fetched."""

    name: str  # as in --hub and GLMASR_HUB
    title: str
    branch: str  # of models without another revision
    has_commits: bool  # a revision may be a commit, which never changes
    address_variable: str  # of the environment: another address of the hub
    cache_variable: str  # of the environment: another folder
    way_out: str  # what to do where the hub can't be reached, for a message

    def cache(self) -> Path:
        """The folder with all models of the hub."""

    def folder(self, repository: str) -> Path:
        """The place of a model, "owner/name", in the cache."""

    def fetched_by_others(self, model: HubModel) -> Path | None:
        """A directory where other packages have put a model, in a layout of their own."""

    def page(self, model: HubModel) -> str:
        """The address of a model's files, for people."""

    def listing(self, model: HubModel) -> Listing:
        """What a model holds now. Raises CheckpointError, and what `explained` explains."""

    def stream(self, remote: Remote, start: int) -> AbstractContextManager[tuple[bool, Iterator[bytes]]]:
        """(whether it begins anew, chunks): one answer of the hub, from byte `start` of a file on. Raises Broken, and
        what `explained` explains."""

    def explained(self, model: HubModel) -> AbstractContextManager[None]:
        """Turns what the network and the hub's package raise while a model is fetched into a CheckpointError. Errors of
        the disk pass."""

    def lock(self, path: Path) -> AbstractContextManager[object]:
        """One process at a time, as far as the system has locks."""


def first_line(error: Exception) -> str:
    """The class of an error and the first line that it says, for a message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip():.200}" if lines else type(error).__name__


def by_hand(model: HubModel) -> str:
    """What to do without the hub, for a message."""
    return (
        f"Or put the files of {model.hub.page(model)} into a folder by hand and name it with --model, or "
        f"{model.hub.way_out}, or try the built-in --model demo"
    )
