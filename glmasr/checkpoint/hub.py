"""A name -> the directory of a checkpoint: where it lies on this machine, or, fetched, in the cache of a hub, Hugging Face's or ModelScope's.

The cache of Hugging Face's is the one that `huggingface_hub` and Transformers share, so what one has fetched the others find:
    <HF_HOME>/hub/models--<owner>--<name>/blobs/<checksum>                  the files, whole
                                          snapshots/<commit>/<name>         links to them
                                          refs/<branch>                     the commit that a branch was when it was fetched
                                          .no_exist/<commit>/<name>         known not to be there
That of ModelScope's is laid out alike in <MODELSCOPE_CACHE>/models/<owner>--<name>, and what its own packages fetched is found (`modelscope`).

Unusual:
- A checkpoint that is whole in the cache is used without any network, and without the package `huggingface_hub`. One that
  isn't whole is never used: see `check_whole`.
- Of Hugging Face's, `huggingface_hub` says where a file is, how large and with which checksum; the transfer is ours, since that package (2.4)
  throws away what it has when a transfer is given up, and doesn't compare checksums. Here 4 GB of 4.5 are kept for the next run, and a file
  gets its name only when its checksum is right.
- Nothing that a hub answers becomes a path but names from the lists below, shards beside their index, and hexadecimal checksums.
"""

import errno
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from ..cli import INTERRUPTED, Parser, ended_at_once
from ..errors import CheckpointError, GlmAsrError, OptionError, printable
from . import ctranslate2, modelscope
from .config_json import read_config
from .json_file import read_file, read_json
from .tensor_files import INDEX, WHOLE, check_files, pickles, shards, weight_files

BUILT_IN = {name: Path(__file__).parent.parent / "checkpoints" / name for name in ("demo", "demo-article")}
# Said of both, whatever they hear: their probabilities don't tell. A mean log-probability below -0.2 has 86 % of other speech, and 10 % of digits.
DEMO = "this demo knows spoken digits only; whatever else is said, it writes digits"
_WHISPERS = ("tiny.en", "tiny", "base.en", "base", "small.en", "small", "medium.en", "medium", "large-v2", "large-v3", "large-v3-turbo")
# Short names, of Whispers those that openai/whisper has; also behind "whisper-".
NAMES = {"glm-asr-nano-2512": "zai-org/GLM-ASR-Nano-2512"} | {name: f"openai/whisper-{name}" for name in _WHISPERS} | {
    "large-v1": "openai/whisper-large", "large": "openai/whisper-large-v3", "turbo": "openai/whisper-large-v3-turbo",
    "distil-large-v3": "distil-whisper/distil-large-v3"}
PINNED = {"zai-org/GLM-ASR-Nano-2512": "61ba4e0b3309b6656edea3e93e419f7bd5c61957"}      # of others the branch main
DEFAULT = "glm-asr-nano-2512"

CONFIG = "config.json"
# Files that make a tokenizer; the first that are there count, as in `tokenizer.read_tokenizer`.
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model", "added_tokens.json"), ("vocabulary.json",), ("vocabulary.txt",))
# What a model of a kind needs beside its config.json; the original layout of GLM-ASR has all in there.
BESIDE = {"glmasr": ("generation_config.json", "processor_config.json"), "whisper": ("generation_config.json", "preprocessor_config.json"),
          ctranslate2.FILE: ("preprocessor_config.json",)}
WEIGHTS = (WHOLE, INDEX, ctranslate2.FILE)      # what may hold them or name their files; the first that is there counts
SMALL = (CONFIG, *sorted({name for names in BESIDE.values() for name in names}), *(name for names in TOKENIZERS for name in names))

TRIES = 5                       # of a transfer, without a byte gained
PAUSE = 1.0                     # seconds before the second try; before the third two, and so on
TIMEOUT = 30.0                  # seconds without a byte
LARGEST = 36_000_000            # bytes of a file that holds no weights: what the readers take at most
_HUB_ID = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}")
_A_HUB = "HF_ENDPOINT has to name a hub or a mirror of it"
_BUSY = (408, 429, 500, 502, 503, 504)                         # statuses that may be others the next time
_SHARD = re.compile(r"\w[\w.-]*\.safetensors", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def find(name_or_path, revision: str | None = None, *, hub: str | None = None, progress: bool = True, renew: bool = False) -> Path:
    """The directory of a checkpoint. Raises CheckpointError, OptionError.

    name_or_path  a directory; "demo" or "demo-article"; a short name of NAMES, such as "glm-asr-nano-2512" or "large-v3"; or a model of
                  the hub, "owner/name". What is not in the hub's cache is fetched, which of Hugging Face's needs the extra [hub]
    revision      commit, branch or tag of a model of the hub; None: where one is known the pinned commit, else "main", at ModelScope "master"
    hub           "huggingface" or "modelscope"; None: what GLMASR_HUB says, or "huggingface"
    progress      show a bar on standard error while weights are fetched
    renew         ask the hub where a branch is now; otherwise one that is in the cache stays where it was
    """
    found = local(name_or_path, revision, hub)
    if isinstance(found, Path):
        return found
    if not (renew and not _COMMIT.fullmatch(found.revision)):
        try:
            return check_whole(found)
        except CheckpointError:                 # not there, or not all of it
            pass
    return fetch(found, progress)


def local(name_or_path, revision: str | None = None, hub: str | None = None) -> "Path | Model":
    """A directory of this machine, or the model of the hub that a name means. Raises CheckpointError, OptionError."""
    name, site = str(name_or_path), choose(hub)
    try:
        path = BUILT_IN.get(name, Path(name_or_path).expanduser())
        if name in BUILT_IN or name and path.is_dir():                # TRAP: Path("") is the current directory
            if revision is not None:
                raise OptionError(f"revision is {revision!r}, but {name} is a directory of this machine; a model of the hub has revisions")
            return path
        if name and path.exists():
            raise CheckpointError(f"{name} is a file; expected the directory that it lies in, with its configuration and tokenizer")
    except (OSError, RuntimeError, ValueError) as error:        # a name too long, not permitted, with a NUL; ~nobody
        raise CheckpointError(f"{name!r} can't be a directory: {error}") from None
    short = name.lower().removeprefix("whisper-")
    repository = site.names.get(short, name)
    if short in NAMES and short not in site.names:
        raise CheckpointError(f"{name!r}: no copy of it on {site.title} is known to this package, only of {', '.join(site.names)}; name another one "
                              "as owner/name, a directory, or --hub huggingface")
    if not (_HUB_ID.fullmatch(repository) and len(repository) <= 96):
        raise CheckpointError(f"{name!r}: no such directory, and not a name that this package knows ({', '.join([*BUILT_IN, *site.names])}, or "
                              "owner/name of a model of the hub)")
    if revision is None:
        revision = site.pinned.get(repository, site.branch)
    if not (isinstance(revision, str) and _REVISION.fullmatch(revision)):
        raise OptionError(f"revision is {revision!r:.200}, expected a commit, a branch or a tag")
    return Model(repository, revision, site.name)


def choose(hub: str | None = None) -> "Hub":
    """What `hub` asks for, or else GLMASR_HUB. Raises OptionError."""
    where, name = ("hub", hub) if hub is not None else ("GLMASR_HUB", os.environ.get("GLMASR_HUB") or HUGGINGFACE.name)
    if name not in HUBS:
        raise OptionError(f"{where} is {name!r:.100}, expected {' or '.join(HUBS)}")
    return HUBS[name]


# -- the cache ---------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Model:
    """A model of the hub at a revision, and its places in the cache."""

    repository: str             # owner/name
    revision: str               # a commit, or what stands for one
    hub: str = "huggingface"

    def __str__(self) -> str:
        return f"{self.repository} at revision {self.revision}"

    @property
    def site(self) -> "Hub":
        return HUBS[self.hub]

    @property
    def folder(self) -> Path:
        return self.site.folder(self.repository)

    @property
    def commit(self) -> str | None:
        """The commit that the revision is, as far as this machine knows. Of ModelScope's hub: what stands for it, see `modelscope.listing`."""
        if self.site is HUGGINGFACE and _COMMIT.fullmatch(self.revision):
            return self.revision
        try:
            found = read_file(self.folder / "refs" / self.revision, 1000).decode("ascii").strip()
        except (OSError, ValueError):
            return None
        return found if _COMMIT.fullmatch(found) else None

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def absent(self, commit: str) -> Path:
        return self.folder / ".no_exist" / commit


def cache_folder() -> Path:
    """Where the hub's packages keep what they fetched, by the same environment variables."""
    def variable(name: str, default) -> Path:
        return Path(os.path.expandvars(os.environ.get(name) or default)).expanduser()

    home = variable("HF_HOME", variable("XDG_CACHE_HOME", Path.home() / ".cache") / "huggingface")
    return variable("HF_HUB_CACHE", variable("HUGGINGFACE_HUB_CACHE", home / "hub"))


def check_whole(model: Model) -> Path:
    """The snapshot of a model in the cache, after checking that everything it needs is there. Raises CheckpointError that names
    the first file that isn't, or isn't whole."""
    commit = model.commit
    if commit is not None and model.snapshot(commit).is_dir():
        return _check_snapshot(model.snapshot(commit), model.absent(commit))
    if (other := model.site.others(model)) is not None:
        return _check_snapshot(other, None)
    raise CheckpointError(f"{model} is not in the cache {model.site.cache()}")


def _check_snapshot(snapshot: Path, absent: Path | None) -> Path:
    """`absent`: has the names of files that the model doesn't have; None where nobody has noted that."""
    config, files = read_json(snapshot / CONFIG), weight_files(snapshot)
    kind = ctranslate2.FILE if files[0].name == ctranslate2.FILE else str(config.get("model_type")).partition("-")[0]
    for name in BESIDE.get(kind, ()):
        if not ((snapshot / name).is_file() or absent and (absent / name).is_file()):
            raise CheckpointError(f"{snapshot / name}: no such file; the download is not complete")
    if _tokenizer(path.name for path in snapshot.iterdir() if path.is_file()) is None:
        lacking = next(name for name in TOKENIZERS[1] if not (snapshot / name).is_file())
        raise CheckpointError(f"{snapshot}: neither {TOKENIZERS[0][0]} nor {lacking} is there; the download is not complete")
    check_files(snapshot)
    return snapshot


def _tokenizer(names) -> tuple[str, ...] | None:
    """Which of TOKENIZERS counts, of those whose files are all among some names."""
    names = set(names)
    return next((files for files in TOKENIZERS if names.issuperset(files)), None)


# -- fetching ----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Remote:
    """A file of the hub."""

    name: str
    url: str
    checksum: str               # 64 digits: SHA-256, of a large file; 40: that of git
    size: int | None            # bytes


def fetch(model: Model, progress: bool = True) -> Path:
    """The snapshot of a model, made whole in the cache from the hub; only files that this package reads. Weights come last, and
    only if the configuration is one that it runs. Raises CheckpointError; what was fetched until then stays for the next time."""
    with model.site.explained(model):
        commit, listed = model.site.listing(model)
        if not listed.keys() & set(WEIGHTS):
            unsafe = pickles(set(listed))
            what = f", but {unsafe[0]!r:.200}, a pickle, which can run any program when it is opened" if unsafe else ""
            raise CheckpointError(f"{model} has neither {WHOLE} nor {INDEX}{what}; this package can't run it")
        snapshot = model.snapshot(commit)
        # One process fetches, the others wait. On a network file system where locks do nothing, the checksum sees what two have mixed.
        lock = model.site.cache() / ".locks" / model.folder.name / "glmasr.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with model.site.lock(lock):
            unused = {name for names in TOKENIZERS for name in names} - set(_tokenizer(listed) or ())
            for name in SMALL:
                if name in listed and name not in unused:
                    _get(model, _remote(model, commit, listed, name), snapshot / name, progress=False)
            files = [next(name for name in WEIGHTS if name in listed)]
            _check_config(snapshot, files[0])   # raises: nobody wants the 100 GB of another model
            if files == [INDEX]:
                _get(model, _remote(model, commit, listed, INDEX), snapshot / INDEX, progress=False)
                files = shards(snapshot / INDEX)
            for name in files:
                if name not in listed or not (_SHARD.fullmatch(name) or name == ctranslate2.FILE):
                    raise CheckpointError(f"{snapshot / INDEX}: it names {name!r:.200}, which is no safetensors file of {model}")
            remotes = [_remote(model, commit, listed, name) for name in files]
            _check_space(model, [remote for remote in remotes if not (snapshot / remote.name).is_file()])
            for remote in remotes:
                _get(model, remote, snapshot / remote.name, progress)
            for name in set(SMALL) - listed.keys():
                (model.absent(commit) / name).parent.mkdir(parents=True, exist_ok=True)
                (model.absent(commit) / name).touch()
            whole = _check_snapshot(snapshot, model.absent(commit))
            if model.revision != commit:        # last: until now a branch was what it was before
                reference = model.folder / "refs" / model.revision
                reference.parent.mkdir(parents=True, exist_ok=True)
                _only_a_file(reference)
                reference.write_text(commit, encoding="ascii")
    return whole


def _check_config(snapshot: Path, file: str) -> None:
    """Raises CheckpointError unless this package runs what a configuration describes; `file` is where its weights are."""
    if file != ctranslate2.FILE:
        read_config(snapshot)
        return
    try:
        ctranslate2.check_config(read_json(snapshot / CONFIG))
    except CheckpointError as error:
        raise CheckpointError(f"{snapshot}: {error}") from None


def _remote(model: Model, commit: str, listed: "dict[str, Remote | None]", name: str) -> Remote:
    """Raises CheckpointError for a file that is too large for its name."""
    remote = listed[name] or _head(model, commit, name)
    if name in (*SMALL, INDEX) and (remote.size or 0) > LARGEST:
        raise CheckpointError(f"{remote.url} has {remote.size:,} bytes, expected at most {LARGEST:,} for a file of this name")
    return remote


def _listing(model: Model) -> "tuple[str, dict[str, Remote | None]]":
    """(commit, the files by name) of a revision; what is None is told when it is asked for, by `_head`."""
    from huggingface_hub import HfApi
    try:
        info = HfApi(library_name="glmasr").model_info(model.repository, revision=model.revision, timeout=TIMEOUT)
        commit, listed = info.sha, {file.rfilename for file in info.siblings or ()}
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{_endpoint()} answers with something else than the description of a model ({error!r:.100}); {_A_HUB}, "
                              "and no login page may be in between") from None
    expected = model.revision if _COMMIT.fullmatch(model.revision) else commit
    if not (isinstance(commit, str) and _COMMIT.fullmatch(commit) and commit == expected):
        raise CheckpointError(f"{_endpoint()} says that {model} is commit {commit!r:.100}, expected 40 hexadecimal digits, the same where the "
                              f"revision is a commit; {_A_HUB}")
    return commit, dict.fromkeys(listed)


def _head(model: Model, commit: str, name: str) -> Remote:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HTTPError
    url = hf_hub_url(model.repository, name, revision=commit)
    try:
        found = get_hf_file_metadata(url, timeout=TIMEOUT, library_name="glmasr")
    except (HTTPError, OSError):                # the caller explains them
        raise
    except Exception as error:                  # TRAP: an address that can't be parsed is a ValueError, or of a class that nothing exports
        raise CheckpointError(f"{url} leads to an address that is none ({error!r:.200}); {_A_HUB}") from None
    if found.commit_hash != commit or not _CHECKSUM.fullmatch(found.etag or ""):
        raise CheckpointError(f"{url} answers with commit {found.commit_hash!r:.100} and ETag {found.etag!r:.100}, expected {commit} and a "
                              f"checksum; {_A_HUB}")
    return Remote(name, url, found.etag, found.size)


def _get(model: Model, remote: Remote, target: Path, progress: bool) -> None:
    """Makes sure that a file lies whole in the cache, under `target`."""
    blob = model.folder / "blobs" / remote.checksum
    for path in (target, blob):
        if path.is_file() and remote.size not in (None, path.stat().st_size):
            path.unlink()                       # damaged since: a full disk, a copy that was stopped
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
        target.unlink(missing_ok=True)          # a link to what is no longer there
        target.symlink_to(os.path.relpath(blob, target.parent))
    except OSError:                             # Windows lets few users make links
        os.replace(blob, target)


def _part(model: Model, remote: Remote) -> Path:
    return model.folder / "blobs" / f"{remote.checksum}.incomplete"


def _only_a_file(path: Path) -> None:
    """What is no file, or a link to none, is removed: to write into a pipe would wait."""
    if not path.is_file():
        path.unlink(missing_ok=True)


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


class Broken(Exception):
    """A transfer that may go on when it is tried again."""


def _transfer(model: Model, remote: Remote, part: Path, progress: bool) -> None:
    """Fetches what is missing of a file; goes on after a cut connection, in this run or the next."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    part.touch()                                # else there would be no file of 0 bytes
    with tqdm(total=remote.size, initial=_length(part), desc=remote.name, unit="B", unit_scale=True, mininterval=0.2 if terminal else 30,
              disable=not progress or sys.stderr is None) as bar:
        tries = 0
        while remote.size is None or _length(part) < remote.size:
            have, reason = _length(part) if remote.size is not None else 0, "the connection was closed"
            try:
                with model.site.stream(remote, have) as (whole, chunks), open(part, "wb" if whole else "ab") as file:
                    bar.update(-bar.n if whole else 0)
                    for chunk in chunks:
                        file.write(chunk)
                        bar.update(len(chunk))
                        if file.tell() > (LARGEST if remote.size is None else remote.size):
                            break               # an endless answer; `_verify` throws it away
                if remote.size is None:
                    return
            except Broken as error:
                reason = str(error)
            tries = 1 if _length(part) > have else tries + 1
            if tries >= TRIES:
                raise CheckpointError(f"{remote.name}: {_length(part):,} of {remote.size or 0:,} bytes were fetched from {remote.url}, then no "
                                      f"more ({reason}); run it again to go on from there")
            if _length(part) != remote.size:
                time.sleep(PAUSE * tries)


@contextmanager
def _stream(remote: Remote, have: int):
    """(whether it begins anew, chunks): one answer of the hub, behind the `have` bytes that are there. It is asked each time, not the storage
    that it leads to, whose address is good for minutes only; on the way there the client leaves out the token."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
    headers = build_hf_headers(library_name="glmasr") | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with get_session().stream("GET", remote.url, headers=headers, timeout=TIMEOUT, follow_redirects=True) as response:
            hf_raise_for_status(response)
            yield response.status_code != 206, response.iter_bytes()            # not 206: a server that can't go on in the middle
    except HTTPError as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code not in _BUSY:
            raise
        raise Broken(_first_line(error)) from None


def _verify(model: Model, remote: Remote, part: Path) -> None:
    """Raises CheckpointError, and throws the file away, if its size or checksum is another one than the hub says."""
    size = _length(part)
    digest = hashlib.sha256() if len(remote.checksum) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with open(part, "rb") as file:
        while chunk := file.read(2 ** 22):
            digest.update(chunk)
    if digest.hexdigest() != remote.checksum or remote.size not in (None, size):
        part.unlink()
        raise CheckpointError(f"{remote.name}: the {size:,} bytes that were fetched from {remote.url} have the checksum {digest.hexdigest()}, "
                              f"expected {remote.checksum}{'' if remote.size is None else f' of {remote.size:,} bytes'}; they were damaged on the "
                              f"way and are thrown away: run it again, or name a mirror ({model.site.variable})")


def _check_space(model: Model, remotes: list[Remote]) -> None:
    """Raises CheckpointError if the disk can't hold what is to be fetched."""
    wanted = [remote for remote in remotes if not (model.folder / "blobs" / remote.checksum).is_file()]
    needed = sum((remote.size or 0) - _length(_part(model, remote)) for remote in wanted)
    free = shutil.disk_usage(model.folder).free
    if needed > free:
        raise _no_space(model, f"{needed:,} bytes are still to be fetched, {free:,} are free")


def _no_space(model: Model, numbers: str) -> CheckpointError:
    return CheckpointError(f"no space for {model} in {model.site.cache()}: {numbers}; make room, or let {model.site.home} name a folder on another "
                           "disk")


# -- what can go wrong -------------------------------------------------------------------------------------------------

def _endpoint() -> str:
    from huggingface_hub import constants
    return constants.ENDPOINT


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip():.200}" if lines else type(error).__name__


def _by_hand(model: Model) -> str:
    return (f"Or put the files of {model.site.page.format(model=model)} into a folder by hand and name it with --model, or {model.site.another}, "
            "or try the built-in --model demo")


@contextmanager
def _explained(model: Model):
    """What the hub's package, the network and the disk raise -> CheckpointError."""
    try:
        from huggingface_hub import errors
    except ImportError:
        raise CheckpointError(f"the weights of {model} are not on this machine, and fetching them needs the extra [hub]:  pip install -c "
                              f"constraints.txt '.[hub]'  {_others(model)}{_by_hand(model)}") from None
    endpoint = _endpoint()
    try:
        parts = urlsplit(endpoint)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        good = False
    if not good:
        raise CheckpointError(f"HF_ENDPOINT is {endpoint!r:.200}, expected the address of a hub, such as https://huggingface.co")
    try:
        yield
    except GlmAsrError:
        raise
    except errors.OfflineModeIsEnabled:
        raise CheckpointError(f"HF_HUB_OFFLINE forbids the network, and {_lack(model)}. {_others(model)}Unset it, or fetch the model on another "
                              "machine (glmasr-fetch) and take the cache along, or try the built-in --model demo") from None
    except errors.GatedRepoError:
        raise CheckpointError(f"{model} is given only to those who accept its terms: do so on {endpoint}/{model.repository}, then set "
                              "HF_TOKEN or run  hf auth login") from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{model.repository} has no revision {model.revision!r}; expected a commit in all its 40 digits, a branch or "
                              "a tag of it (--revision)") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if isinstance(error, errors.RepositoryNotFoundError) or status == 401:      # the hub says 401 of private models and of none
            raise CheckpointError(f"{model.repository}: no such directory here, and {endpoint} has no such model, or not for everybody "
                                  f"(status {status}); for a private one set HF_TOKEN to a valid token, or run  hf auth login") from None
        way = {403: "HF_TOKEN has no right to it", 404: "there is no such model, revision or file"}.get(
            status, "try again later, or a mirror (HF_ENDPOINT)")
        raise CheckpointError(f"{endpoint} answers with status {status} when asked for {model}: {way}") from None
    except errors.HTTPError as error:
        raise CheckpointError(f"{endpoint} can't be reached ({_first_line(error)}), and {_lack(model)}. {_others(model)}Check the connection "
                              f"and the proxy, or name a mirror (HF_ENDPOINT). {_by_hand(model)}") from None
    except OSError as error:
        raise _no_disk(model, error) from None


def _no_disk(model: Model, error: OSError) -> CheckpointError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _no_space(model, "the disk is full, what was fetched stays for the next time")
    return CheckpointError(f"{error.filename or model.site.cache()}: {error.strerror or error}; the cache of the hub must be writable, "
                           f"{model.site.home} names another folder")


def _lack(model: Model) -> str:
    """Why the cache can't help."""
    try:
        check_whole(model)
        return f"it was asked where {model} is now"
    except CheckpointError as error:
        return str(error)


def _others(model: Model) -> str:
    """What else the cache has of a model, for a message."""
    try:
        commits = sorted(path.name for path in (model.folder / "snapshots").iterdir() if model.site is HUGGINGFACE and _COMMIT.fullmatch(path.name))
    except OSError:
        commits = []
    whole = []
    for commit in commits:
        try:
            check_whole(Model(model.repository, commit))
            whole.append(commit)
        except CheckpointError:
            pass
    return f"The cache has revision {', '.join(whole[:3])} of it (--revision). " if whole else ""


# -- ModelScope's hub --------------------------------------------------------------------------------------------------

def _scope_listing(model: Model) -> tuple[str, dict[str, Remote]]:
    state, files = modelscope.listing(model.repository, model.revision)
    return state, {name: Remote(name, modelscope.address(model.repository, model.revision, name), file.checksum, file.size)
                   for name, file in files.items()}


@contextmanager
def _scope_stream(remote: Remote, have: int):
    try:
        with modelscope.opened(remote.url, have) as response:
            yield response.status != 206, iter(lambda: response.read(2 ** 20), b"")
    except modelscope.BROKEN as error:
        if isinstance(error, modelscope.HTTPError) and error.code not in _BUSY:
            raise
        raise Broken(_first_line(error)) from None


def _scope_others(model: Model) -> Path | None:
    return next((path for path in modelscope.fetched_by_others(model.repository, model.revision) if path.is_dir()), None)


@contextmanager
def _scope_explained(model: Model):
    """What the network and the disk raise -> CheckpointError."""
    endpoint = modelscope.endpoint()
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise CheckpointError(f"HF_HUB_OFFLINE forbids the network, and {_lack(model)}. Unset it, or fetch the model on another machine "
                              "(glmasr-fetch --hub modelscope) and take the cache along, or try the built-in --model demo")
    try:
        yield
    except GlmAsrError:
        raise
    except modelscope.HTTPError as error:
        way = {401: "a private model needs a valid token in MODELSCOPE_API_TOKEN", 403: "MODELSCOPE_API_TOKEN has no right to it",
               404: "there is no such model, revision (--revision) or file, or not for everybody (MODELSCOPE_API_TOKEN); models of Hugging Face "
                    "may have other owners there"}.get(error.code, "try again later, or another address of it (MODELSCOPE_ENDPOINT)")
        raise CheckpointError(f"{endpoint} answers with status {error.code} ({_first_line(error)}) when asked for {model}: {way}") from None
    except modelscope.BROKEN as error:
        raise CheckpointError(f"{endpoint} can't be reached ({_first_line(error)}), and {_lack(model)}. Check the connection and the proxy, or name "
                              f"another address (MODELSCOPE_ENDPOINT). {_by_hand(model)}") from None
    except OSError as error:
        raise _no_disk(model, error) from None


@contextmanager
def _scope_lock(path: Path):
    try:
        import fcntl
    except ImportError:                         # Windows: the checksum sees what two have mixed
        yield
        return
    with open(path, "w") as file:
        with suppress(OSError):                 # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# -- both --------------------------------------------------------------------------------------------------------------

def _weak_lock(path: Path):
    from huggingface_hub.utils import WeakFileLock
    return WeakFileLock(path)


@dataclass(frozen=True)
class Hub:
    """Where two hubs differ."""

    name: str
    title: str
    names: dict[str, str]       # short name -> owner/name
    pinned: dict[str, str]      # owner/name -> commit
    branch: str                 # of models that are not pinned
    page: str                   # address for people
    variable: str               # of the environment: another address
    home: str                   # of the environment: the cache
    another: str                # way out where it can't be reached
    cache: Callable[[], Path]
    folder: Callable[[str], Path]                               # of owner/name
    others: Callable[[Model], Path | None]                      # where other packages have put it, in a layout of their own
    listing: Callable[[Model], "tuple[str, dict[str, Remote | None]]"]
    stream: Callable            # (remote, bytes that are there) -> context: (whether it begins anew, chunks); raises Broken
    explained: Callable         # (model) -> context: whatever goes wrong is a CheckpointError
    lock: Callable              # (path) -> context: one process at a time


HUGGINGFACE = Hub("huggingface", "Hugging Face", NAMES, PINNED, "main", "https://huggingface.co/{model.repository}/tree/{model.revision}",
                  "HF_ENDPOINT", "HF_HOME", "take ModelScope's hub (--hub modelscope)", cache_folder,
                  lambda repository: cache_folder() / f"models--{repository.replace('/', '--')}", lambda model: None,
                  _listing, _stream, _explained, _weak_lock)
MODELSCOPE = Hub("modelscope", "ModelScope", modelscope.NAMES, {}, "master", f"{modelscope.ENDPOINT}/models/{{model.repository}}/files",
                 "MODELSCOPE_ENDPOINT", "MODELSCOPE_CACHE", "take Hugging Face's hub (--hub huggingface)", modelscope.cache_folder,
                 lambda repository: modelscope.cache_folder() / "models" / repository.replace("/", "--"), _scope_others,
                 _scope_listing, _scope_stream, _scope_explained, _scope_lock)
HUBS = {hub.name: hub for hub in (HUGGINGFACE, MODELSCOPE)}


# -- the command -------------------------------------------------------------------------------------------------------

def main(argv: list[str] | None = None) -> int:
    """`glmasr-fetch`. Exit code: 0 it is there, 1 it can't be fetched, 2 wrong usage, 130 interrupted."""
    parser = Parser(prog="glmasr-fetch", description="Fetches a model from the hub into its cache, where glmasr finds it, "
                                     "and prints the directory. What was fetched before an interrupt is kept.")
    parser.add_argument("model", nargs="?", default=DEFAULT, metavar="NAME", help=f"{DEFAULT} (default), a Whisper by its short name (tiny to large-v3, turbo), or owner/name of a model of the hub")
    parser.add_argument("--revision", metavar="REV", help="commit, branch or tag (default: a pinned commit; of others main, as it is now)")
    parser.add_argument("--hub", choices=tuple(HUBS), help="where it comes from (default: huggingface, or what GLMASR_HUB says)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    try:
        with ended_at_once(), suppress(ImportError):            # `fetch` says what is missing
            import_module("huggingface_hub.utils")
        found = str(find(args.model, args.revision, hub=args.hub, progress=not args.quiet, renew=True))
        print(printable(found) if sys.stdout.isatty() else found)               # a program that reads it wants the very name
        return 0
    except GlmAsrError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
