"""Manifest row -> verified file on this machine.

`fetch` downloads the file of a published checkpoint once and verifies it at every call. Every failure is a WeightsError
that names the file; `state_dicts` reads its content.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

import filelock
import platformdirs

from ..errors import HearTransformersError, WeightsError
from ..files import hash_of, sha256_of
from . import caches
from .download import Download, UnreachableError
from .published import Checkpoint

FOLDER_VARIABLE = "HEAR_TRANSFORMERS_WEIGHTS"
"""Environment variable with the folder of downloaded checkpoints."""

LOCK_TIMEOUT_S = 3600.0
"""Limit for waiting on another process that downloads the same file; a dead process holds no lock."""


class OfflineError(WeightsError):
    """A file is missing, and no host that has it can be reached."""


def weights_dir() -> Path:
    """Return the folder of downloaded checkpoints: ``$HEAR_TRANSFORMERS_WEIGHTS``, else the user's cache."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("hear_transformers"))


def locate(row: Checkpoint) -> Path | None:
    """Return the path of a checkpoint's file on this machine, or None; never use the network."""
    folder = Path(str(files("hear_transformers.weights"))) if row.embedded else weights_dir()
    path = folder / row.file
    return path if os.path.isfile(path) else None


def find_here(row: Checkpoint) -> Path | None:
    """Return the path of a checkpoint's file on this machine, ours or that of another package with the right hash."""
    return locate(row) or caches.find(row)


def hosts(row: Checkpoint) -> set[str]:
    """Return the hosts that have a file."""
    return {urlsplit(url).hostname or url for url in (row.url, *row.mirrors) if url}


def fetch(row: Checkpoint, progress: bool = False, unreachable: Collection[str] = ()) -> Path:
    """Return the verified file of a checkpoint, downloading it into `weights_dir` if it is missing.

    A file that another package keeps is used where it lies, if the manifest's hash says that it is the same.
    Size and hash are checked at every call. If the manifest has no whole hash, the sha256 of the first download is
    pinned beside it, as ``<file>.sha256``, and later files must match it.

    Parameters
    ----------
    row : from `published.manifest` or `published.find`
    progress : show a progress bar on stderr while downloading
    unreachable : hosts that are not asked, as they could not be reached before

    Raises
    ------
    OfflineError : the file is missing, and no host that has it can be reached
    WeightsError : a failing server, a file other than the published one, or no room to write
    """
    path = find_here(row) or _download_once(row, progress, unreachable)
    if wrong := _difference(row, path, path):
        raise WeightsError(f"{path}, from {row.url}: {wrong}; delete {path} and load again")
    if not (row.embedded or row.full_hash or _pin_of(path).is_file()):
        from .state_dicts import read_state_dict

        read_state_dict(path)  # raises: a file that is no checkpoint must not be pinned
        _pin(path)
    return path


def _download_once(row: Checkpoint, progress: bool, unreachable: Collection[str]) -> Path:
    """Download a checkpoint, or wait for a process that is doing so, and return its path."""
    if row.url is None:
        raise WeightsError(f"{row.file} belongs inside the installed package but is missing; install the package again")
    target = weights_dir() / row.file
    locks = weights_dir() / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        # A lock of the operating system ends with its process, however that ends.
        with filelock.FileLock(locks / f"{row.file}.lock", timeout=LOCK_TIMEOUT_S):
            if not target.is_file():
                _download_from_any(row, target, progress, unreachable)
    except filelock.Timeout as error:
        raise WeightsError(f"{target}: another process has been downloading it for {LOCK_TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written ({error}); {_by_hand(row)}") from error
    return target


def _download_from_any(row: Checkpoint, target: Path, progress: bool, unreachable: Collection[str]) -> None:
    """Download from the first address that has the published file."""
    # One fixed name, written under the lock: what is left by a killed process is gone on with.
    part = target.with_name(f".{target.name}.part")
    failures: list[WeightsError] = [UnreachableError(host) for host in sorted(hosts(row) & {*unreachable})]
    for url in filter(None, (row.url, *row.mirrors)):
        download = Download(url, part, row.bytes, has_hash=_expected_hash(row, target) is not None, progress=progress)
        try:
            if any(isinstance(error, UnreachableError) and error.host == download.host for error in failures):
                continue
            _download(row, download, target)
            return
        except WeightsError as error:
            failures.append(error)
        except OSError:  # a full disk: the part would keep it full
            download.discard()
            raise
    reasons = "; ".join(dict.fromkeys(map(str, failures)))
    message = f"{row.file} is not on this machine: {_by_hand(row)}; {reasons}"
    if all(isinstance(error, UnreachableError) for error in failures):
        raise OfflineError(message) from failures[0]
    raise WeightsError(message) from failures[0]


def _download(row: Checkpoint, download: Download, target: Path) -> None:
    """Download to a temporary name, verify, then rename."""
    try:
        _download_verified(row, download, target)
    except WeightsError:
        if not download.was_resumed or download.part.exists():
            raise
        _download_verified(row, download, target)  # the file changed between its parts: once more, from the start
    download.part.replace(target)
    download.discard()


def _download_verified(row: Checkpoint, download: Download, target: Path) -> None:
    """Download, and remove what turns out to be another file."""
    download.run()
    try:
        if wrong := _difference(row, download.part, target):
            raise WeightsError(f"{download.host} sent another file: {wrong}; nothing was kept")
        if _expected_hash(row, target) is None:
            _refuse_other_content(download)
    except WeightsError:
        download.discard()
        raise


def _by_hand(row: Checkpoint) -> str:
    """Return the remedy for a user without a network."""
    return (
        f"put it into {weights_dir()} (or {FOLDER_VARIABLE}), or give a file of your own with --weights or "
        f"load_model(path). It is published at {row.url}"
    )


def _refuse_other_content(download: Download) -> None:
    """Raise WeightsError if the download is no checkpoint but, for example, a network's login page."""
    from .state_dicts import read_state_dict

    try:
        read_state_dict(download.part)
    except WeightsError as error:
        raise WeightsError(f"{download.host} did not send a checkpoint ({error})") from error


def _difference(row: Checkpoint, path: Path, target: Path) -> str | None:
    """Return how a file, to be kept as ``target``, differs from the known size and hash; None if it does not."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error
    if row.bytes is not None and size != row.bytes:
        return f"{size} bytes, expected {row.bytes}"
    known = _expected_hash(row, target)
    if known is None:
        return None
    algorithm, expected, source = known
    try:
        found = hash_of(path, algorithm)
    except HearTransformersError as error:
        raise WeightsError(str(error)) from error
    if found == expected or (expected == row.sha256_start and found.startswith(expected)):
        return None
    return f"{algorithm} {found}, expected {expected} ({source})"


def _expected_hash(row: Checkpoint, target: Path) -> tuple[str, str, str] | None:
    """Return (algorithm, hash, source of the hash), or None without a known hash."""
    if row.full_hash:
        return *row.full_hash, "the manifest"
    pin = _pin_of(target)
    if os.path.isfile(pin):
        pinned, _, _ = pin.read_text(encoding="utf-8", errors="replace").partition(" ")
        return "sha256", pinned, f"pinned in {pin}; delete that too if the published file was replaced"
    return ("sha256", row.sha256_start, "the manifest") if row.sha256_start else None


def _pin_of(path: Path) -> Path:
    """Return the path of the pinned sha256 of a file, in the format of ``sha256sum --check``."""
    return path.with_name(f"{path.name}.sha256")


def _pin(path: Path) -> None:
    """Write the sha256 of a file beside it, if the folder is writable."""
    new = path.with_name(f".{path.name}.{os.getpid()}.sha256")
    with contextlib.suppress(OSError):  # a read-only folder of shared weights stays usable, unpinned
        try:
            new.write_text(f"{sha256_of(path)}  {path.name}\n", encoding="utf-8")
            new.replace(_pin_of(path))
        finally:
            new.unlink(missing_ok=True)
