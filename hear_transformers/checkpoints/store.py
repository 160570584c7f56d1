"""Manifest row -> verified file on this machine.

`fetch` downloads the file of a published checkpoint once and verifies it at every call. Every failure is a WeightsError
that names the file; `state_dicts` reads its content.
"""

import contextlib
import os
import time
from importlib.resources import files
from pathlib import Path

import filelock
import pooch
import requests

from ..errors import HearTransformersError, WeightsError
from ..files import hash_of, sha256_of
from .published import Checkpoint
from .state_dicts import read_state_dict

FOLDER_VARIABLE = "HEAR_TRANSFORMERS_WEIGHTS"
"""Environment variable with the folder of downloaded checkpoints."""

TIMEOUT_S: tuple[float, float] = (10.0, 30.0)
"""Limits for a server to accept a connection, and to send the next bytes."""

RETRY_PAUSES_S: tuple[float, ...] = (1.0, 4.0)
"""Pauses before the second, third, ... attempt at a download."""

LOCK_TIMEOUT_S = 3600.0
"""Limit for waiting on another process that downloads the same file; a dead process holds no lock."""

CHUNK_BYTES = 2**18
"""Bytes per write while downloading."""


def weights_dir() -> Path:
    """Return the folder of downloaded checkpoints: ``$HEAR_TRANSFORMERS_WEIGHTS``, else the user's cache."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path(pooch.os_cache("hear_transformers"))


def locate(row: Checkpoint) -> Path | None:
    """Return the path of a checkpoint's file on this machine, or None; never use the network."""
    folder = Path(str(files("hear_transformers.weights"))) if row.embedded else weights_dir()
    path = folder / row.file
    return path if os.path.isfile(path) else None


def fetch(row: Checkpoint, progress: bool = False) -> Path:
    """Return the verified file of a checkpoint, downloading it into `weights_dir` if it is missing.

    Size and hash are checked at every call. If the manifest has no hash, the sha256 of the first download is pinned
    beside it, as ``<file>.sha256``, and later files must match it.

    Parameters
    ----------
    row : from `published.manifest` or `published.find`
    progress : show a progress bar on stderr while downloading

    Raises
    ------
    WeightsError : no network, a failing server, a file other than the published one, or no room to write
    """
    path = locate(row) or _download_once(row, progress)
    _verify(row, path, path, f"delete {path} and load again")
    if not row.embedded and _expected_hash(row, path) is None:
        read_state_dict(path)  # raises: a file that is no checkpoint must not be pinned
        _pin(path)
    return path


def _download_once(row: Checkpoint, progress: bool) -> Path:
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
                _download(row, row.url, target, progress)
    except filelock.Timeout as error:
        raise WeightsError(f"{target}: another process has been downloading it for {LOCK_TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written ({error}); {_by_hand(row)}") from error
    return target


def _download(row: Checkpoint, url: str, target: Path, progress: bool) -> None:
    """Download to a temporary name, verify, then rename."""
    # One fixed name, written under the lock, so that the rest of a killed process is overwritten.
    part = target.with_name(f".{target.name}.part")
    try:
        _get(row, url, part, progress)
        _verify(row, part, target, f"nothing was kept; {_by_hand(row)}")
        if _expected_hash(row, target) is None:
            _refuse_other_content(row, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _get(row: Checkpoint, url: str, part: Path, progress: bool) -> None:
    """Download one file, retrying after temporary failures."""
    downloader = pooch.HTTPDownloader(progressbar=progress, chunk_size=CHUNK_BYTES, timeout=TIMEOUT_S)
    for pause in (*RETRY_PAUSES_S, None):
        try:
            downloader(url, str(part), None)
            return
        except requests.RequestException as error:
            if pause is None or not _may_pass(error):
                raise WeightsError(f"{url} could not be downloaded ({error}); {_by_hand(row)}") from error
        time.sleep(pause)


def _may_pass(error: requests.RequestException) -> bool:
    """Return True if a retry can help, False if the server refuses the request itself."""
    return error.response is None or error.response.status_code >= 500 or error.response.status_code in (408, 429)


def _by_hand(row: Checkpoint) -> str:
    """Return the remedy for a user without a network."""
    return (
        f"get {row.url} by other means and put it into {weights_dir()} as {row.file}, "
        f"set {FOLDER_VARIABLE} to the folder that holds it, or give a file of your own: load_model(path), --weights"
    )


def _refuse_other_content(row: Checkpoint, part: Path) -> None:
    """Raise WeightsError if the download is no checkpoint but, for example, a network's login page."""
    try:
        read_state_dict(part)
    except WeightsError as error:
        raise WeightsError(f"{row.url} did not send a checkpoint ({error}); {_by_hand(row)}") from error


def _verify(row: Checkpoint, path: Path, target: Path, remedy: str) -> None:
    """Raise WeightsError unless the file at ``path``, to be kept as ``target``, has the known size and hash."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error
    if row.bytes is not None and size != row.bytes:
        raise WeightsError(f"{target}, from {row.url}: {size} bytes, expected {row.bytes}; {remedy}")
    known = _expected_hash(row, target)
    if known is None:
        return
    algorithm, expected, source = known
    try:
        found = hash_of(path, algorithm)
    except HearTransformersError as error:
        raise WeightsError(str(error)) from error
    begins_so = expected == row.sha256_start and found.startswith(expected)
    if found != expected and not begins_so:
        raise WeightsError(f"{target}, from {row.url}: {algorithm} {found}, expected {expected} ({source}); {remedy}")


def _expected_hash(row: Checkpoint, target: Path) -> tuple[str, str, str] | None:
    """Return (algorithm, hash, source of the hash), or None without a known hash."""
    if sha256 := row.sha256 or row.sha256_start:
        return "sha256", sha256, "the manifest"
    if row.md5 is not None:
        return "md5", row.md5, "the manifest"
    pin = _pin_of(target)
    if not os.path.isfile(pin):
        return None
    pinned, _, _ = pin.read_text(encoding="utf-8", errors="replace").partition(" ")
    return "sha256", pinned, f"pinned in {pin}; delete that too if the published file was replaced"


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
