"""ModelScope's hub over its plain HTTP interface: what a model's folder holds, and the content of a file.

    GET <endpoint>/api/v1/models/<owner>/<name>/repo/files?Revision=master&Recursive=False
        {"Data": {"Files": [{"Path", "Size", "Sha256", "Type"}]}}
    GET <endpoint>/api/v1/models/<owner>/<name>/repo?Revision=master&FilePath=config.json
        the content; from the middle, if "Range" asks for it

Written from the package `modelscope_hub` (0.5), which does the same and needs more; the hub itself was not at hand.
`download` does the rest, the same for both hubs: which files, where they go, going on after a cut, checksums, locks.

Unusual: a revision's commit isn't known. What a model is at a revision is named by the checksums of its files instead:
see `_listing`.
"""

import hashlib
import http.client
import os
import re
import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPMessage
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit

from ..errors import CheckpointError, GlmAsrError
from .hub_cache import why_asked
from .hub_model import BUSY, TIMEOUT, Broken, Hub, HubModel, Listing, Remote, by_hand, first_line
from .json_file import parse_json, read_file

ENDPOINT = "https://modelscope.cn"
LARGEST_LISTING = 10_000_000  # bytes
MOST_FILES = 3000  # the hub leaves out what is beyond, without a word
# The network, or what stands in for the hub.
BROKEN = (URLError, TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException)
_CHECKSUM = re.compile(r"[0-9a-f]{64}")


class ModelScope(Hub):
    """Models by branch or tag. Its cache is that of `modelscope_hub`, and read as its older packages left it."""

    name = "modelscope"
    title = "ModelScope"
    branch = "master"
    has_commits = False
    address_variable = "MODELSCOPE_ENDPOINT"
    cache_variable = "MODELSCOPE_CACHE"
    way_out = "take Hugging Face's hub (--hub huggingface)"

    def cache(self) -> Path:
        """MODELSCOPE_CACHE, or `.cache/modelscope` in the user's home, as `modelscope_hub` does."""
        return cache_folder()

    def folder(self, repository: str) -> Path:
        """owner/name -> `models/owner--name` in the cache."""
        return cache_folder() / "models" / repository.replace("/", "--")

    def fetched_by_others(self, model: HubModel) -> Path | None:
        """The directory in which ModelScope's own packages, old or new, keep this revision; None if there is none."""
        return next((path for path in _places(model.repository, model.revision) if path.is_dir()), None)

    def page(self, model: HubModel) -> str:
        """The page of the default branch, whatever the revision."""
        return f"{ENDPOINT}/models/{model.repository}/files"

    def listing(self, model: HubModel) -> Listing:
        """One request lists all files with sizes and checksums; `remote` asks for nothing more."""
        state, remotes = _listing(model.repository, model.revision)
        return Listing(state, frozenset(remotes), remotes.__getitem__)

    @contextmanager
    def stream(self, remote: Remote, start: int) -> Iterator[tuple[bool, Iterator[bytes]]]:
        """Any status but 206 means that the hub ignored `start`. Raises Broken for a status in BUSY, too."""
        try:
            with opened(remote.url, start) as response:
                yield response.status != 206, iter(lambda: response.read(2**20), b"")
        except BROKEN as error:
            if isinstance(error, HTTPError) and error.code not in BUSY:
                raise
            raise Broken(first_line(error)) from None

    @contextmanager
    def explained(self, model: HubModel) -> Iterator[None]:
        """HF_HUB_OFFLINE forbids this hub, too. The message for an HTTP status says what to do about it."""
        address = endpoint()
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise CheckpointError(
                f"HF_HUB_OFFLINE forbids the network, and {why_asked(model)}. Unset it, or fetch the model on another "
                "machine (glmasr-fetch --hub modelscope) and take the cache along, or try the built-in --model demo"
            )
        try:
            yield
        except GlmAsrError:
            raise
        except HTTPError as error:
            way = {
                401: "a private model needs a valid token in MODELSCOPE_API_TOKEN",
                403: "MODELSCOPE_API_TOKEN has no right to it",
                404: "there is no such model, revision (--revision) or file, or not for everybody "
                "(MODELSCOPE_API_TOKEN); models of Hugging Face may have other owners there",
            }.get(error.code, "try again later, or another address of it (MODELSCOPE_ENDPOINT)")
            raise CheckpointError(
                f"{address} answers with status {error.code} ({first_line(error)}) when asked for {model}: {way}"
            ) from None
        except BROKEN as error:
            raise CheckpointError(
                f"{address} can't be reached ({first_line(error)}), and {why_asked(model)}. Check the connection and "
                f"the proxy, or name another address (MODELSCOPE_ENDPOINT). {by_hand(model)}"
            ) from None

    @contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        """`flock`. No lock on Windows and some file systems: there the checksum reveals a mix of two writers."""
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        with open(path, "w") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def endpoint() -> str:
    """The hub's address, by the variables of its own packages. Raises CheckpointError if it is none."""
    name = "MODELSCOPE_ENDPOINT" if os.environ.get("MODELSCOPE_ENDPOINT") else "MODELSCOPE_DOMAIN"
    value = (os.environ.get(name) or ENDPOINT).strip()
    value = value if "://" in value else f"https://{value}"
    try:
        parts = urlsplit(value)
        if (
            parts.scheme in ("http", "https")
            and parts.hostname
            and (parts.port or 1)
            and not re.search(r"[\s\x00-\x20\x7f?#]", value)
        ):
            return value.rstrip("/")
    except ValueError:
        pass
    raise CheckpointError(f"{name} is {os.environ.get(name)!r:.200}, expected the address of a hub, such as {ENDPOINT}")


def cache_folder() -> Path:
    """Where the hub's packages keep what they fetched, by the same environment variable."""
    return Path(
        os.path.expandvars(os.environ.get("MODELSCOPE_CACHE") or Path.home() / ".cache" / "modelscope")
    ).expanduser()


def _places(repository: str, revision: str) -> list[Path]:
    """Where ModelScope's own packages would have put a model: those of 2026, and before. Before, a folder held one
    revision, named in `.mv`."""
    owner, name = repository.split("/")
    root, old = cache_folder(), Path("models", owner, name.replace(".", "___"))
    found = [root / "models" / f"{owner}--{name}" / "snapshots" / revision]
    for folder in (root / old, root / "hub" / old):
        try:
            held = re.match(rb"Revision:([^,\s]+)", read_file(folder / ".mv", 1000))
        except OSError:
            held = None
        if revision.encode() == (held[1] if held else b"master"):
            found.append(folder)
    return found


def _listing(repository: str, revision: str) -> tuple[str, dict[str, Remote]]:
    """(40 hexadecimal digits that stand for this state of the model, its files by name, without those in folders).
    Raises CheckpointError, and what `opened` raises."""
    url = f"{_model(repository)}/files?{urlencode({'Revision': revision, 'Recursive': 'False'})}"
    with opened(url) as response:
        content = response.read(LARGEST_LISTING + 1)
    if len(content) > LARGEST_LISTING:
        raise CheckpointError(f"{url} has more than {LARGEST_LISTING:,} bytes; that is no list of a model's files")
    try:
        files = parse_json(content)["Data"]["Files"]
        entries = [
            (str(entry["Path"]), entry["Size"], entry.get("Sha256")) for entry in files if entry["Type"] == "blob"
        ]
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{url} answers with something else than a list of files ({error!r:.100}); MODELSCOPE_ENDPOINT has to name "
            "ModelScope's hub, and no login page may be in between"
        ) from None
    if len(files) >= MOST_FILES:
        raise CheckpointError(
            f"{url} lists {len(files):,} files or more; expected fewer than {MOST_FILES:,}, the most that the hub lists"
        )
    listed: dict[str, Remote] = {}
    for name, size, checksum in entries:
        if type(size) is not int or size < 0 or not (isinstance(checksum, str) and _CHECKSUM.fullmatch(checksum)):
            raise CheckpointError(
                f"{url} says that {name!r:.100} has {size!r:.50} bytes and the checksum {checksum!r:.100}, expected a "
                "number and a SHA-256"
            )
        query = urlencode({"Revision": revision, "FilePath": name}, errors="replace")
        remote = Remote(name, f"{_model(repository)}?{query}", checksum, size)
        if listed.setdefault(name, remote) != remote:
            raise CheckpointError(f"{url} lists {name!r:.100} twice, with different content")
    state = "\n".join(f"{name}\0{file.size}\0{file.checksum}" for name, file in sorted(listed.items()))
    return hashlib.sha256(state.encode("utf-8", "surrogatepass")).hexdigest()[:40], listed


def _model(repository: str) -> str:
    return f"{endpoint()}/api/v1/models/{quote(repository)}/repo"


class _ToTheWeb(urllib.request.HTTPRedirectHandler):
    """Large files come from a storage elsewhere. TRAP: urllib would follow to FTP."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise HTTPError(
                req.full_url, code, f"it leads to {newurl!r:.100}, which is no address of the web", headers, fp
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def opened(url: str, start: int = 0) -> Iterator[http.client.HTTPResponse]:
    """The answer of the hub, from byte `start` on where its status is 206, else from the beginning. Raises HTTPError
    for a status that is none of success, and BROKEN. A token (MODELSCOPE_API_TOKEN) goes to the hub and not to where it
    leads."""
    headers = {"User-Agent": "glmasr", "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    request = urllib.request.Request(url, headers=headers)
    if token := os.environ.get("MODELSCOPE_API_TOKEN"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
        request.add_unredirected_header("Cookie", f"m_session_id={token}")
    try:
        response = urllib.request.build_opener(_ToTheWeb).open(request, timeout=TIMEOUT)
    except ValueError as error:  # it leads to an address that can't be parsed
        raise URLError(f"{error!r:.200}") from None
    with response:
        yield response
