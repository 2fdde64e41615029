"""Hugging Face's hub, by its own package `huggingface_hub` (the extra [hub]): what a model holds, where a file is, and
its content.

The package says where a file is, how large and with which checksum, and holds address, token and proxy; the transfer is
ours, see `download`. It is imported only when something is to be fetched: what is whole in the cache is used without
it.
"""

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import CheckpointError, GlmAsrError
from .hub_cache import other_revisions, why_asked
from .hub_model import BUSY, COMMIT, TIMEOUT, Broken, Hub, HubModel, Listing, Remote, by_hand, first_line

_A_HUB = "HF_ENDPOINT has to name a hub or a mirror of it"
_CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class HuggingFace(Hub):
    """Models by commit. Its cache is that of `huggingface_hub`."""

    name = "huggingface"
    title = "Hugging Face"
    branch = "main"
    has_commits = True
    address_variable = "HF_ENDPOINT"
    cache_variable = "HF_HOME"
    way_out = "take ModelScope's hub (--hub modelscope)"

    def cache(self) -> Path:
        """HF_HUB_CACHE, or `hub` in HF_HOME: the folder that `huggingface_hub` uses."""
        return cache_folder()

    def folder(self, repository: str) -> Path:
        """owner/name -> `models--owner--name` in the cache."""
        return cache_folder() / f"models--{repository.replace('/', '--')}"

    def fetched_by_others(self, model: HubModel) -> Path | None:
        """None: other packages use this same cache."""
        return None  # the cache is one

    def page(self, model: HubModel) -> str:
        """The revision's page on huggingface.co, as a mirror (HF_ENDPOINT) may have no pages."""
        return f"https://huggingface.co/{model.repository}/tree/{model.revision}"

    def listing(self, model: HubModel) -> Listing:
        """Of a file only the name is listed; the rest is asked for one by one."""
        from huggingface_hub import HfApi

        try:
            info = HfApi(library_name="glmasr").model_info(model.repository, revision=model.revision, timeout=TIMEOUT)
            commit, names = info.sha, frozenset(file.rfilename for file in info.siblings or ())
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise CheckpointError(
                f"{_endpoint()} answers with something else than the description of a model ({error!r:.100}); "
                f"{_A_HUB}, and no login page may be in between"
            ) from None
        expected = model.revision if COMMIT.fullmatch(model.revision) else commit
        if not (isinstance(commit, str) and COMMIT.fullmatch(commit) and commit == expected):
            raise CheckpointError(
                f"{_endpoint()} says that {model} is commit {commit!r:.100}, expected 40 hexadecimal digits, the same "
                f"where the revision is a commit; {_A_HUB}"
            )
        return Listing(commit, names, partial(_remote, model.repository, commit))

    @contextmanager
    def stream(self, remote: Remote, start: int) -> Iterator[tuple[bool, Iterator[bytes]]]:
        """The hub is asked each time, not the storage that it leads to, whose address is good for minutes only; on the
        way there the client leaves out the token."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        headers = build_hf_headers(library_name="glmasr") | {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            with get_session().stream(
                "GET", remote.url, headers=headers, timeout=TIMEOUT, follow_redirects=True
            ) as response:
                hf_raise_for_status(response)
                # not 206: a server that can't go on in the middle
                yield response.status_code != 206, response.iter_bytes()
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in BUSY:
                raise
            raise Broken(first_line(error)) from None

    @contextmanager
    def explained(self, model: HubModel) -> Iterator[None]:
        """CheckpointError, too, without the extra [hub], for a bad HF_ENDPOINT, and under HF_HUB_OFFLINE."""
        try:
            from huggingface_hub import errors
        except ImportError:
            raise CheckpointError(
                f"the weights of {model} are not on this machine, and fetching them needs the extra [hub]:  pip "
                f"install -c constraints.txt '.[hub]'  {other_revisions(model)}{by_hand(model)}"
            ) from None
        endpoint = _endpoint()
        if not _is_address(endpoint):
            raise CheckpointError(
                f"HF_ENDPOINT is {endpoint!r:.200}, expected the address of a hub, such as https://huggingface.co"
            )
        try:
            yield
        except GlmAsrError:
            raise
        except errors.OfflineModeIsEnabled:
            raise CheckpointError(
                f"HF_HUB_OFFLINE forbids the network, and {why_asked(model)}. {other_revisions(model)}Unset it, or "
                "fetch the model on another machine (glmasr-fetch) and take the cache along, or try the built-in "
                "--model demo"
            ) from None
        except errors.GatedRepoError:
            raise CheckpointError(
                f"{model} is given only to those who accept its terms: do so on {endpoint}/{model.repository}, then "
                "set HF_TOKEN or run  hf auth login"
            ) from None
        except errors.RevisionNotFoundError:
            raise CheckpointError(
                f"{model.repository} has no revision {model.revision!r}; expected a commit in all its 40 digits, a "
                "branch or a tag of it (--revision)"
            ) from None
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            # the hub says 401 of private models and of none
            if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
                raise CheckpointError(
                    f"{model.repository}: no such directory here, and {endpoint} has no such model, or not for "
                    f"everybody (status {status}); for a private one set HF_TOKEN to a valid token, or run  "
                    "hf auth login"
                ) from None
            way = {403: "HF_TOKEN has no right to it", 404: "there is no such model, revision or file"}.get(
                status, "try again later, or a mirror (HF_ENDPOINT)"
            )
            raise CheckpointError(f"{endpoint} answers with status {status} when asked for {model}: {way}") from None
        except errors.HTTPError as error:
            raise CheckpointError(
                f"{endpoint} can't be reached ({first_line(error)}), and {why_asked(model)}. {other_revisions(model)}"
                f"Check the connection and the proxy, or name a mirror (HF_ENDPOINT). {by_hand(model)}"
            ) from None

    def lock(self, path: Path) -> AbstractContextManager[object]:
        """The lock of `huggingface_hub`, which falls back to a marker file on file systems without locks."""
        from huggingface_hub.utils import WeakFileLock

        return WeakFileLock(path)


def cache_folder() -> Path:
    """Where the hub's packages keep what they fetched, by the same environment variables."""

    def variable(name: str, default: str | Path) -> Path:
        return Path(os.path.expandvars(os.environ.get(name) or default)).expanduser()

    home = variable("HF_HOME", variable("XDG_CACHE_HOME", Path.home() / ".cache") / "huggingface")
    return variable("HF_HUB_CACHE", variable("HUGGINGFACE_HUB_CACHE", home / "hub"))


def _remote(repository: str, commit: str, name: str) -> Remote:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HTTPError

    url = hf_hub_url(repository, name, revision=commit)
    try:
        found = get_hf_file_metadata(url, timeout=TIMEOUT, library_name="glmasr")
    except (HTTPError, OSError):  # `explained` explains them
        raise
    except Exception as error:
        # TRAP: an address that can't be parsed is a ValueError, or of a class that nothing exports
        raise CheckpointError(f"{url} leads to an address that is none ({error!r:.200}); {_A_HUB}") from None
    if found.commit_hash != commit or not found.etag or not _CHECKSUM.fullmatch(found.etag):
        raise CheckpointError(
            f"{url} answers with commit {found.commit_hash!r:.100} and ETag {found.etag!r:.100}, expected {commit} and "
            f"a checksum; {_A_HUB}"
        )
    return Remote(name, url, found.etag, found.size)


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _is_address(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        return bool(parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1))
    except ValueError:
        return False
