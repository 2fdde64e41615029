"""A model of a hub -> its snapshot, whole, in the hub's cache.

Unusual:
- A hub says where a file is, how large and with which checksum; the transfer is ours, since `huggingface_hub` (2.4)
  throws away what it has when a transfer is given up, and doesn't compare checksums. Here 4 GB of 4.5 are kept for the
  next run, and a file gets its name only when its checksum is right.
- Nothing that a hub answers becomes a path but the names that `hub_cache` lists, shards beside their index, and
  hexadecimal checksums.
"""

import errno
import hashlib
import os
import re
import shutil
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

from tqdm import tqdm

from ..errors import CheckpointError
from . import ctranslate2, ctranslate2_whisper
from .config_json import read_config
from .hub_cache import CONFIG, SMALL, TOKENIZERS, WEIGHTS, check_snapshot, tokenizer_files
from .hub_model import Broken, HubModel, Listing, Remote
from .json_file import read_json
from .tensor_files import INDEX, WHOLE, pickles, shards

TRIES = 5  # of a transfer, without a byte gained
PAUSE = 1.0  # seconds before the second try; before the third two, and so on
LARGEST = 36_000_000  # bytes of a file that holds no weights: what the readers take at most
_SHARD = re.compile(r"\w[\w.-]*\.safetensors", re.ASCII)


def fetch(model: HubModel, progress: bool = True) -> Path:
    """The snapshot of a model, made whole in the cache from the hub; only files that this package reads. Raises
    CheckpointError; what was fetched until then stays for the next time."""
    try:
        with model.hub.explained(model):
            listing = model.hub.listing(model)
            _check_listing(model, listing)
            with _lock(model):
                snapshot = _fetch_files(model, listing, progress)
                if model.revision != listing.commit:  # last: until now a branch was what it was before
                    _move_branch(model, listing.commit)
        return snapshot
    except OSError as error:
        raise _disk_error(model, error) from None


def _check_listing(model: HubModel, listing: Listing) -> None:
    """Raises CheckpointError for a model without weights that this package opens."""
    if listing.names & set(WEIGHTS):
        return
    unsafe = pickles(listing.names)
    what = f", but {unsafe[0]!r:.200}, a pickle, which can run any program when it is opened" if unsafe else ""
    raise CheckpointError(f"{model} has neither {WHOLE} nor {INDEX}{what}; this package can't run it")


def _lock(model: HubModel) -> AbstractContextManager[object]:
    """One process fetches, the others wait. On a network file system where locks do nothing, the checksum sees what two
    have mixed."""
    path = model.hub.cache() / ".locks" / model.folder.name / "glmasr.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return model.hub.lock(path)


def _fetch_files(model: HubModel, listing: Listing, progress: bool) -> Path:
    """Weights come last, and only if the configuration is one that this package runs."""
    snapshot, absent = model.snapshot(listing.commit), model.absent(listing.commit)
    unused = {name for names in TOKENIZERS for name in names} - set(tokenizer_files(listing.names) or ())
    for name in SMALL:
        if name in listing.names and name not in unused:
            _get(model, _small(listing, name), snapshot / name, progress=False)
    remotes = [listing.remote(name) for name in _weights(model, listing, snapshot)]
    _check_space(model, [remote for remote in remotes if not (snapshot / remote.name).is_file()])
    for remote in remotes:
        _get(model, remote, snapshot / remote.name, progress)
    for name in set(SMALL) - listing.names:
        absent.mkdir(parents=True, exist_ok=True)
        (absent / name).touch()
    return check_snapshot(snapshot, absent)


def _weights(model: HubModel, listing: Listing, snapshot: Path) -> list[str]:
    """The names of the files with the weights. Raises CheckpointError, also where the configuration is none that this
    package runs: nobody wants the 100 GB of another model."""
    file = next(name for name in WEIGHTS if name in listing.names)
    if file == ctranslate2.FILE:
        try:
            ctranslate2_whisper.check_config(read_json(snapshot / CONFIG))
        except CheckpointError as error:
            raise CheckpointError(f"{snapshot}: {error}") from None
        return [file]
    read_config(snapshot)
    if file == WHOLE:
        return [file]
    _get(model, _small(listing, INDEX), snapshot / INDEX, progress=False)
    files = shards(snapshot / INDEX)
    for name in files:
        if name not in listing.names or not _SHARD.fullmatch(name):
            raise CheckpointError(
                f"{snapshot / INDEX}: it names {name!r:.200}, which is no safetensors file of {model}"
            )
    return files


def _small(listing: Listing, name: str) -> Remote:
    """A file that holds no weights. Raises CheckpointError for one that is too large for that."""
    remote = listing.remote(name)
    if (remote.size or 0) > LARGEST:
        raise CheckpointError(
            f"{remote.url} has {remote.size:,} bytes, expected at most {LARGEST:,} for a file of this name"
        )
    return remote


def _move_branch(model: HubModel, commit: str) -> None:
    reference = model.folder / "refs" / model.revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    _only_a_file(reference)
    reference.write_text(commit, encoding="ascii")


# -- a file ------------------------------------------------------------------------------------------------------------


def _get(model: HubModel, remote: Remote, target: Path, progress: bool) -> None:
    """Makes sure that a file lies whole in the cache, under `target`."""
    blob = model.folder / "blobs" / remote.checksum
    for path in (target, blob):
        if path.is_file() and remote.size not in (None, path.stat().st_size):
            path.unlink()  # damaged since: a full disk, a copy that was stopped
    if target.is_file():
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not blob.is_file():
        part = _part(model, remote)
        _only_a_file(part)
        _transfer(model, remote, part, progress)
        _verify(model, remote, part)
        os.replace(part, blob)
    try:
        target.unlink(missing_ok=True)  # a link to what is no longer there
        target.symlink_to(os.path.relpath(blob, target.parent))
    except OSError:  # Windows lets few users make links
        os.replace(blob, target)


def _part(model: HubModel, remote: Remote) -> Path:
    return model.folder / "blobs" / f"{remote.checksum}.incomplete"


def _only_a_file(path: Path) -> None:
    """What is no file, or a link to none, is removed: to write into a pipe would wait."""
    if not path.is_file():
        path.unlink(missing_ok=True)


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _transfer(model: HubModel, remote: Remote, part: Path, progress: bool) -> None:
    """Fetches what is missing of a file; goes on after a cut connection, in this run or the next."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    part.touch()  # else there would be no file of 0 bytes
    with tqdm(
        total=remote.size,
        initial=_length(part),
        desc=remote.name,
        unit="B",
        unit_scale=True,
        mininterval=0.2 if terminal else 30,
        disable=not progress or sys.stderr is None,
    ) as bar:
        tries = 0
        while remote.size is None or _length(part) < remote.size:
            have, reason = _length(part) if remote.size is not None else 0, "the connection was closed"
            try:
                with model.hub.stream(remote, have) as (anew, chunks), open(part, "wb" if anew else "ab") as file:
                    bar.update(-bar.n if anew else 0)
                    for chunk in chunks:
                        file.write(chunk)
                        bar.update(len(chunk))
                        if file.tell() > (LARGEST if remote.size is None else remote.size):
                            break  # an endless answer; `_verify` throws it away
                if remote.size is None:
                    return
            except Broken as error:
                reason = str(error)
            tries = 1 if _length(part) > have else tries + 1
            if tries >= TRIES:
                raise CheckpointError(
                    f"{remote.name}: {_length(part):,} of {remote.size or 0:,} bytes were fetched from {remote.url}, "
                    f"then no more ({reason}); run it again to go on from there"
                )
            if _length(part) != remote.size:
                time.sleep(PAUSE * tries)


def _verify(model: HubModel, remote: Remote, part: Path) -> None:
    """Raises CheckpointError, and throws the file away, if its size or checksum is another one than the hub says."""
    size = _length(part)
    digest = (
        hashlib.sha256() if len(remote.checksum) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    )
    with open(part, "rb") as file:
        while chunk := file.read(2**22):
            digest.update(chunk)
    if digest.hexdigest() != remote.checksum or remote.size not in (None, size):
        part.unlink()
        expected = remote.checksum if remote.size is None else f"{remote.checksum} of {remote.size:,} bytes"
        raise CheckpointError(
            f"{remote.name}: the {size:,} bytes that were fetched from {remote.url} have the checksum "
            f"{digest.hexdigest()}, expected {expected}; they were damaged on the way and are thrown away: run it "
            f"again, or name a mirror ({model.hub.address_variable})"
        )


# -- the disk ----------------------------------------------------------------------------------------------------------


def _check_space(model: HubModel, remotes: list[Remote]) -> None:
    """Raises CheckpointError if the disk can't hold what is to be fetched."""
    wanted = [remote for remote in remotes if not (model.folder / "blobs" / remote.checksum).is_file()]
    needed = sum((remote.size or 0) - _length(_part(model, remote)) for remote in wanted)
    free = shutil.disk_usage(model.folder).free
    if needed > free:
        raise _no_space(model, f"{needed:,} bytes are still to be fetched, {free:,} are free")


def _no_space(model: HubModel, numbers: str) -> CheckpointError:
    return CheckpointError(
        f"no space for {model} in {model.hub.cache()}: {numbers}; make room, or let {model.hub.cache_variable} name a "
        "folder on another disk"
    )


def _disk_error(model: HubModel, error: OSError) -> CheckpointError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _no_space(model, "the disk is full, what was fetched stays for the next time")
    return CheckpointError(
        f"{error.filename or model.hub.cache()}: {error.strerror or error}; the cache of the hub must be writable, "
        f"{model.hub.cache_variable} names another folder"
    )
