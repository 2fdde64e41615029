"""A name -> the directory of a checkpoint: where it lies on this machine, or, fetched, in the cache of a hub, Hugging
Face's or ModelScope's.

A checkpoint that is whole in the cache is used without any network, and without the package `huggingface_hub`.
"""

import os
import re
from pathlib import Path

from ..errors import CheckpointError, OptionError
from .built_in import BUILT_IN as BUILT_IN
from .built_in import DEMO as DEMO
from .download import fetch
from .hub_cache import check_whole
from .hub_model import COMMIT, Hub, HubModel
from .huggingface import HuggingFace
from .modelscope import ModelScope

HUBS: dict[str, Hub] = {hub.name: hub for hub in (HuggingFace(), ModelScope())}
DEFAULT = "glm-asr-nano-2512"

_WHISPERS = (
    *("tiny.en", "tiny", "base.en", "base", "small.en", "small", "medium.en", "medium"),
    *("large-v2", "large-v3", "large-v3-turbo"),
)
# Short names of models of Hugging Face's, of Whispers those that openai/whisper has; also after "whisper-".
NAMES = {
    "glm-asr-nano-2512": "zai-org/GLM-ASR-Nano-2512",
    **{name: f"openai/whisper-{name}" for name in _WHISPERS},
    "large-v1": "openai/whisper-large",
    "large": "openai/whisper-large-v3",
    "turbo": "openai/whisper-large-v3-turbo",
    "distil-large-v3": "distil-whisper/distil-large-v3",
}
# The same of ModelScope's. Of other Whispers no copy is known.
MODELSCOPE_NAMES = {
    "glm-asr-nano-2512": "ZhipuAI/GLM-ASR-Nano-2512",
    **{
        name: f"openai-mirror/whisper-{name}"
        for name in ("tiny", "base", "small", "medium", "large-v3", "large-v3-turbo")
    },
    "large": "openai-mirror/whisper-large-v3",
    "turbo": "openai-mirror/whisper-large-v3-turbo",
}
_SHORT = {"huggingface": NAMES, "modelscope": MODELSCOPE_NAMES}
# Hub -> model -> commit; of others the hub's main branch.
PINNED: dict[str, dict[str, str]] = {
    "huggingface": {"zai-org/GLM-ASR-Nano-2512": "61ba4e0b3309b6656edea3e93e419f7bd5c61957"},
    "modelscope": {},
}

_REPOSITORY = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}")


def find(
    name_or_path: str | Path,
    revision: str | None = None,
    *,
    hub: str | None = None,
    progress: bool = True,
    renew: bool = False,
) -> Path:
    """The directory of a checkpoint. Raises CheckpointError, OptionError.

    name_or_path  a directory; "demo" or "demo-article"; a short name of NAMES, such as "glm-asr-nano-2512" or
                  "large-v3"; or a model of the hub, "owner/name". What is not in the hub's cache is fetched, which of
                  Hugging Face's needs the extra [hub]
    revision      commit, branch or tag of a model of the hub; None: where one is known the pinned commit, else "main",
                  at ModelScope "master"
    hub           "huggingface" or "modelscope"; None: what GLMASR_HUB says, or "huggingface"
    progress      show a bar on standard error while weights are fetched
    renew         ask the hub where a branch is now; otherwise one that is in the cache stays where it was
    """
    found = local(name_or_path, revision, hub)
    if isinstance(found, Path):
        return found
    if not (renew and not COMMIT.fullmatch(found.revision)):
        try:
            return check_whole(found)
        except CheckpointError:  # not there, or not all of it
            pass
    return fetch(found, progress)


def local(name_or_path: str | Path, revision: str | None = None, hub: str | None = None) -> Path | HubModel:
    """A directory of this machine, or the model of the hub that a name means. Raises CheckpointError, OptionError."""
    name, site = str(name_or_path), choose(hub)
    try:
        path = BUILT_IN.get(name, Path(name_or_path).expanduser())
        if name in BUILT_IN or name and path.is_dir():  # TRAP: Path("") is the current directory
            if revision is not None:
                raise OptionError(
                    f"revision is {revision!r}, but {name} is a directory of this machine; a model of the hub has "
                    "revisions"
                )
            return path
        if name and path.exists():
            raise CheckpointError(
                f"{name} is a file; expected the directory that it lies in, with its configuration and tokenizer"
            )
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, not permitted, with a NUL; ~nobody
        raise CheckpointError(f"{name!r} can't be a directory: {error}") from None
    repository = _repository(name, site)
    if revision is None:
        revision = PINNED[site.name].get(repository, site.branch)
    if not (isinstance(revision, str) and _REVISION.fullmatch(revision)):
        raise OptionError(f"revision is {revision!r:.200}, expected a commit, a branch or a tag")
    return HubModel(repository, revision, site)


def _repository(name: str, site: Hub) -> str:
    """The model of a hub, "owner/name", that a name means. Raises CheckpointError."""
    names, short = _SHORT[site.name], name.lower().removeprefix("whisper-")
    if short in NAMES and short not in names:
        raise CheckpointError(
            f"{name!r}: no copy of it on {site.title} is known to this package, only of {', '.join(names)}; name "
            "another one as owner/name, a directory, or --hub huggingface"
        )
    repository = names.get(short, name)
    if not (_REPOSITORY.fullmatch(repository) and len(repository) <= 96):
        raise CheckpointError(
            f"{name!r}: no such directory, and not a name that this package knows ({', '.join([*BUILT_IN, *names])}, "
            "or owner/name of a model of the hub)"
        )
    return repository


def choose(hub: str | None = None) -> Hub:
    """What `hub` asks for, or else GLMASR_HUB. Raises OptionError."""
    where, name = ("hub", hub) if hub is not None else ("GLMASR_HUB", os.environ.get("GLMASR_HUB") or "huggingface")
    if name not in HUBS:
        raise OptionError(f"{where} is {name!r:.100}, expected {' or '.join(HUBS)}")
    return HUBS[name]
