"""Models of Hugging Face as folders: one's own, or the snapshot of a repository in the cache of Hugging Face."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import OptionError, WeightsError, import_extra
from ..files import local_path
from .hugging_face import CONFIG, WEIGHTS, weights_in
from .state_dicts import CHECKPOINTS

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
"""Name of a repository, such as ``MIT/ast-finetuned-audioset-10-10-0.4593``."""

DESCRIPTIONS = ("*.json", "*.txt", "*.py")
"""What is downloaded beside weights; code is not run before somebody says so."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A folder with an encoder.

    Attributes
    ----------
    folder : with ``config.json`` and weights
    name : of the repository, or of the folder
    revision : hash of the commit of the repository; None for a folder of one's own
    """

    folder: Path
    name: str
    revision: str | None = None


def located(weights: str | os.PathLike[str]) -> Path:
    """Return the file or the folder of weights, that of a repository of Hugging Face downloaded at first use.

    Parameters
    ----------
    weights : a path, or where there is none a text such as "user/name" or "user/name@revision"

    Raises
    ------
    OptionError : it is an address, or a repository, and the package for these is not installed
    WeightsError : the repository is not here and cannot be downloaded
    """
    path = local_path(weights, "weights")
    name, _, revision = os.fspath(weights).partition("@")
    is_name = isinstance(weights, str) and REPOSITORY.fullmatch(name) and Path(name).suffix not in CHECKPOINTS
    if not is_name or path.exists() or path.parent.is_dir():
        return path
    import_extra(f"{weights}: there is no such file, and a repository of Hugging Face", "huggingface_hub", "hf")
    return find(name, revision or None).folder


def find(place: str | os.PathLike[str], revision: str | None = None, *, here: bool = False) -> Snapshot:
    """Find an encoder: a folder, else a repository in the cache of Hugging Face, else download it there.

    Parameters
    ----------
    place : a folder, or the name of a repository
    revision : branch, tag or hash of a commit of a repository; None for "main"
    here : download nothing

    Raises
    ------
    OptionError : it is neither a folder nor a name, or a folder has no revisions
    WeightsError : the folder holds no encoder, or the repository is not here and cannot be downloaded
    """
    name = os.fspath(place)
    folder = local_path(place, "variant")
    if folder.is_dir():
        if revision is not None:
            raise OptionError(f"revision={revision!r} is one of a repository, and {name} is a folder; leave it out")
        if not (folder / CONFIG).is_file():
            raise WeightsError(f"{name}: a folder without {CONFIG} holds no encoder of Hugging Face")
        weights_in(folder)
        return Snapshot(folder, folder.resolve().name)
    if not REPOSITORY.fullmatch(name):
        raise OptionError(
            f"variant={name!r} is neither a folder nor the name of a repository of Hugging Face, such as "
            "MIT/ast-finetuned-audioset-10-10-0.4593"
        )
    found = _in_cache(name, revision)
    if found is None and here:
        raise WeightsError(f"{name} is not in the cache of Hugging Face; hear-transformers download hf {name}")
    found = found or _downloaded(name, revision)
    return Snapshot(found, name, found.name)


def _in_cache(repository: str, revision: str | None) -> Path | None:
    """Return the folder of a repository that is in the cache with its weights, None without."""
    hub, errors = (importlib.import_module(f"huggingface_hub{part}") for part in ("", ".errors"))
    with contextlib.suppress(errors.LocalEntryNotFoundError, WeightsError):
        folder = Path(hub.snapshot_download(repository, revision=revision, local_files_only=True))
        weights_in(folder)
        return folder if (folder / CONFIG).is_file() else None
    return None


def _downloaded(repository: str, revision: str | None) -> Path:
    """Download what describes an encoder, and its weights in safetensors, or PyTorch's format where there are none."""
    hub = importlib.import_module("huggingface_hub")
    try:
        for weights in WEIGHTS:
            stem, dot, suffix = weights.partition(".")
            patterns = [*DESCRIPTIONS, f"{stem}*{dot}{suffix}"]
            folder = Path(hub.snapshot_download(repository, revision=revision, allow_patterns=patterns))
            with contextlib.suppress(WeightsError):
                weights_in(folder)
                return folder
    except Exception as error:  # of the hub, or of the library beneath it for HTTP
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise WeightsError(
            f"{repository} is not in the cache of Hugging Face, and cannot be downloaded ({reason}); check the name, "
            "or give a folder with its files"
        ) from error
    raise WeightsError(f"{repository} has no {' or '.join(WEIGHTS)}; give a folder with weights of that name")
