"""The cache of a hub: which files a model needs, and whether all of them are there.

The cache of Hugging Face's hub is the one that `huggingface_hub` and Transformers share, so each finds what another
fetched:
    <HF_HOME>/hub/models--<owner>--<name>/blobs/<checksum>                  the files, whole
                                          snapshots/<commit>/<name>         links to them
                                          refs/<branch>                     its commit when it was fetched
                                          .no_exist/<commit>/<name>         known not to be there
ModelScope's is laid out the same way in <MODELSCOPE_CACHE>/models/<owner>--<name>; what its own packages fetched is
found as well (`modelscope`).

Unusual: a checkpoint that isn't whole is never used: see `check_whole`.
"""

from collections.abc import Iterable
from pathlib import Path

from ..errors import CheckpointError
from . import ctranslate2
from .hub_model import COMMIT, HubModel
from .json_file import read_json
from .tensor_files import INDEX, WHOLE, check_files, weight_files

CONFIG = "config.json"
# Files that make a tokenizer; the first that are there count, as in `tokenizer.read_tokenizer`.
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model", "added_tokens.json"), ("vocabulary.json",), ("vocabulary.txt",))
# What a model of a kind needs beside its config.json; the original layout of GLM-ASR has all in there.
BESIDE = {
    "glmasr": ("generation_config.json", "processor_config.json"),
    "whisper": ("generation_config.json", "preprocessor_config.json"),
    ctranslate2.FILE: ("preprocessor_config.json",),
}
# What may hold the weights or name their files; the first that is there counts.
WEIGHTS = (WHOLE, INDEX, ctranslate2.FILE)
SMALL = (
    CONFIG,
    *sorted({name for names in BESIDE.values() for name in names}),
    *(name for names in TOKENIZERS for name in names),
)


def check_whole(model: HubModel) -> Path:
    """The snapshot of a model in the cache, after checking that everything it needs is there. Raises CheckpointError
    that names the first file that isn't, or isn't whole."""
    commit = model.commit
    if commit is not None and model.snapshot(commit).is_dir():
        return check_snapshot(model.snapshot(commit), model.absent(commit))
    if (other := model.hub.fetched_by_others(model)) is not None:
        return check_snapshot(other, None)
    raise CheckpointError(f"{model} is not in the cache {model.hub.cache()}")


def check_snapshot(snapshot: Path, absent: Path | None) -> Path:
    """The same directory, if it is whole. `absent` has the names of files that the model doesn't have; None where
    that was not recorded. Raises CheckpointError."""
    config, files = read_json(snapshot / CONFIG), weight_files(snapshot)
    kind = ctranslate2.FILE if files[0].name == ctranslate2.FILE else str(config.get("model_type")).partition("-")[0]
    for name in BESIDE.get(kind, ()):
        if not ((snapshot / name).is_file() or absent and (absent / name).is_file()):
            raise CheckpointError(f"{snapshot / name}: no such file; the download is not complete")
    if tokenizer_files(path.name for path in snapshot.iterdir() if path.is_file()) is None:
        lacking = next(name for name in TOKENIZERS[1] if not (snapshot / name).is_file())
        raise CheckpointError(
            f"{snapshot}: neither {TOKENIZERS[0][0]} nor {lacking} is there; the download is not complete"
        )
    check_files(snapshot)
    return snapshot


def tokenizer_files(names: Iterable[str]) -> tuple[str, ...] | None:
    """Which of TOKENIZERS counts, of those whose files are all among some names."""
    names = set(names)
    return next((files for files in TOKENIZERS if names.issuperset(files)), None)


# -- for messages ------------------------------------------------------------------------------------------------------


def why_asked(model: HubModel) -> str:
    """Why the cache isn't enough and the hub had to be asked."""
    try:
        check_whole(model)
        return f"it was asked where {model} is now"
    except CheckpointError as error:
        return str(error)


def other_revisions(model: HubModel) -> str:
    """What else the cache has of a model."""
    try:
        commits = sorted(path.name for path in (model.folder / "snapshots").iterdir() if COMMIT.fullmatch(path.name))
    except OSError:
        commits = []
    whole = []
    for commit in commits:
        try:
            check_whole(HubModel(model.repository, commit, model.hub))
            whole.append(commit)
        except CheckpointError:
            pass
    return f"The cache has revision {', '.join(whole[:3])} of it (--revision). " if whole else ""
