"""Manifest row -> verified file -> state dict -> network.

:func:`find` looks a published checkpoint up, :func:`fetch` brings its file to this machine once and verifies it every
time, :func:`read_state_dict` reads tensors and nothing but tensors, :func:`load_into` fills a network with them.
Whatever goes wrong is a WeightsError that names the file.
"""

import contextlib
import functools
import math
import os
import pickle
import re
import sys
import time
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import filelock
import pooch
import requests
import safetensors.torch
import torch
from torch import Tensor, nn

from .errors import WeightsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER_VARIABLE = "HEAR_TRANSFORMERS_WEIGHTS"
"""Environment variable that names the folder of downloaded checkpoints."""

TIMEOUT_S: tuple[float, float] = (10.0, 30.0)
"""How long a server may take to accept a connection, and to send the next bytes."""

RETRY_PAUSES_S: tuple[float, ...] = (1.0, 4.0)
"""Pauses before the second, third, ... attempt at a download."""

LOCK_TIMEOUT_S = 3600.0
"""How long one process waits for another that downloads the same file; a process that died holds no lock."""

CHUNK_BYTES = 2**18
"""Bytes per write while downloading."""

LEGACY_HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""First bytes of files that ``torch.save`` wrote before PyTorch 1.6: ``torch.serialization.MAGIC_NUMBER``."""

ZIP_RATIO = 8
"""Largest unpacked size of a checkpoint, in file sizes: ``torch.save`` stores tensors without compression."""

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training programs keep the state dict: Lightning, PyTorch's tutorials, PANNs and timm."""

AVERAGED_PREFIX = "net_swa."
"""Where PaSST's training code keeps the running average of ``net.``: the network its authors evaluate and publish."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", AVERAGED_PREFIX)
"""What DataParallel, ``torch.compile`` and Lightning modules put before every key."""

BESIDE = ("mel.", "device_proxy")
"""What stands beside the network's own keys when a whole model is saved: its front end, its wrapper."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One row of ``weights/manifest.toml``, where the meaning of each field is written."""

    family: str
    name: str
    file: str
    licence: str
    url: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None
    source: str | None = None
    trained_on: str | None = None
    metric: str | None = None
    embedded: bool = False


FIELDS: dict[str, type] = {
    "file": str,
    "licence": str,
    "url": str,
    "bytes": int,
    "sha256": str,
    "md5": str,
    "source": str,
    "trained_on": str,
    "metric": str,
    "embedded": bool,
}
"""Fields of a manifest row and their types."""


@functools.cache
def manifest() -> Mapping[tuple[str, str], Checkpoint]:
    """Return every published checkpoint by (family, name), in the order of ``weights/manifest.toml``."""
    return parse_manifest((files("hear_transformers.weights") / "manifest.toml").read_text(encoding="utf-8"))


def parse_manifest(text: str) -> dict[tuple[str, str], Checkpoint]:
    """Return the rows of a manifest by (family, name); raise WeightsError where one is malformed."""
    try:
        families = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise WeightsError(f"the checkpoint manifest is not TOML: {error}") from error
    rows = {}
    for family, tables in families.items():
        if not isinstance(tables, dict):
            raise WeightsError(f"checkpoint manifest: {family} = {tables!r} must be a table of rows")
        for name, table in tables.items():
            rows[family, name] = _parse_row(family, name, table)
    return rows


def _parse_row(family: str, name: str, table: Any) -> Checkpoint:
    """Return one row, after checking the names and types of its fields."""
    where = f"checkpoint manifest, row [{family}.{name}]"
    if not isinstance(table, dict):
        raise WeightsError(f"{where}: expected a table of fields, found {table!r}")
    for field, value in table.items():
        if field not in FIELDS:
            raise WeightsError(f"{where}: field {field!r} is unknown; choose from {', '.join(FIELDS)}")
        if type(value) is not FIELDS[field]:
            raise WeightsError(f"{where}: {field} = {value!r} must be of type {FIELDS[field].__name__}")
    if not {"file", "licence"} <= table.keys():
        raise WeightsError(f"{where}: file and licence are required")
    if ("url" in table) == table.get("embedded", False):
        raise WeightsError(f"{where}: give either url or embedded = true")
    if Path(table["file"]).name != table["file"]:
        raise WeightsError(f"{where}: file = {table['file']!r} must be a name without a folder")
    return Checkpoint(family, name, **table)


def find(family: str, name: str) -> Checkpoint:
    """Return the published checkpoint ``name`` of ``family``; raise WeightsError that lists those there are."""
    if (family, name) not in manifest():
        names = ", ".join(known for of, known in manifest() if of == family)
        raise WeightsError(f"no checkpoint {name!r} of {family!r} is published; choose one of: {names or '(none)'}")
    return manifest()[family, name]


def weights_dir() -> Path:
    """Return the folder of downloaded checkpoints: ``$HEAR_TRANSFORMERS_WEIGHTS``, else the user's cache."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path(pooch.os_cache("hear_transformers"))


def locate(row: Checkpoint) -> Path | None:
    """Return where the file of a checkpoint lies on this machine, or None; never touches the network."""
    folder = Path(str(files("hear_transformers.weights"))) if row.embedded else weights_dir()
    path = folder / row.file
    return path if os.path.isfile(path) else None


def fetch(row: Checkpoint, progress: bool = False) -> Path:
    """Return the verified file of a checkpoint, downloading it into :func:`weights_dir` when it is not there.

    Size and hash are checked at every call. Where the manifest knows no hash, the sha256 of the first file that arrives
    is pinned beside it, as ``<file>.sha256``, and later files must equal it.

    Parameters
    ----------
    row : from :func:`manifest` or :func:`find`
    progress : show a progress bar on stderr while downloading

    Raises
    ------
    WeightsError : no network, a failing server, a file other than the published one, or no room to write
    """
    path = locate(row) or _download_once(row, progress)
    _verify(row, path, path, f"delete {path} and load again")
    if not row.embedded and _expected_hash(row, path) is None:
        read_state_dict(path)  # what is not a checkpoint at all must not be pinned
        _pin(path)
    return path


def _download_once(row: Checkpoint, progress: bool) -> Path:
    """Download a checkpoint, or wait for the process that already does, and return its path."""
    if row.url is None:
        raise WeightsError(f"{row.file} belongs inside the installed package but is missing; install the package again")
    target = weights_dir() / row.file
    locks = weights_dir() / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        # A lock of the operating system: it ends with its process, however that ends.
        with filelock.FileLock(locks / f"{row.file}.lock", timeout=LOCK_TIMEOUT_S):
            if not target.is_file():
                _download(row, row.url, target, progress)
    except filelock.Timeout as error:
        raise WeightsError(f"{target}: another process has been downloading it for {LOCK_TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written ({error}); {_by_hand(row)}") from error
    return target


def _download(row: Checkpoint, url: str, target: Path, progress: bool) -> None:
    """Download to a temporary name, verify, and only then give the file its own name."""
    # One fixed name, written under the lock: what a killed process left is overwritten by the next one.
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
    """Download one file, trying again after failures that may pass."""
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
    """Tell whether trying again can help: not when the server says that the request itself is wrong."""
    return error.response is None or error.response.status_code >= 500 or error.response.status_code in (408, 429)


def _by_hand(row: Checkpoint) -> str:
    """Say what a user without a network can do."""
    return (
        f"get {row.url} by other means and put it into {weights_dir()} as {row.file}, "
        f"set {FOLDER_VARIABLE} to the folder that holds it, or give a file of your own: load_model(path), --weights"
    )


def _refuse_other_content(row: Checkpoint, part: Path) -> None:
    """Raise WeightsError when what came is no checkpoint but, say, a network's login page."""
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
    algorithm, expected, said_by = known
    found = _hash_of(path, algorithm)
    if found != expected:
        raise WeightsError(f"{target}, from {row.url}: {algorithm} {found}, expected {expected} ({said_by}); {remedy}")


def _expected_hash(row: Checkpoint, target: Path) -> tuple[str, str, str] | None:
    """Return algorithm, hash and who says so, or None where nobody does."""
    if row.sha256 is not None:
        return "sha256", row.sha256, "the manifest"
    if row.md5 is not None:
        return "md5", row.md5, "the manifest"
    pin = _pin_of(target)
    if not os.path.isfile(pin):
        return None
    pinned, _, _ = pin.read_text(encoding="utf-8", errors="replace").partition(" ")
    return "sha256", pinned, f"pinned in {pin}; delete that too if the published file was replaced"


def _pin_of(path: Path) -> Path:
    """Return where the sha256 of a file is pinned, in the format of ``sha256sum --check``."""
    return path.with_name(f"{path.name}.sha256")


def _pin(path: Path) -> None:
    """Write the sha256 of a file beside it, where the folder may be written."""
    new = path.with_name(f".{path.name}.{os.getpid()}.sha256")
    with contextlib.suppress(OSError):  # a read-only folder of shared weights stays usable, unpinned
        try:
            new.write_text(f"{sha256_of(path)}  {path.name}\n", encoding="utf-8")
            new.replace(_pin_of(path))
        finally:
            new.unlink(missing_ok=True)


def sha256_of(path: str | Path) -> str:
    """Return the sha256 of a file in hexadecimal; an unchanged file is read only once per process."""
    return _hash_of(Path(path), "sha256")


def _hash_of(path: Path, algorithm: str) -> str:
    """Return a hash of a file in hexadecimal, cached for as long as its size and time of change stay."""
    try:
        status = path.stat()
        return _hash_cached(str(path), algorithm, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error


@functools.lru_cache(maxsize=256)
def _hash_cached(path: str, algorithm: str, size: int, mtime_ns: int) -> str:
    """Return a hash of a file; size and time are there to tell versions of it apart."""
    return str(pooch.file_hash(path, alg=algorithm))


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, safetensors or ``torch.save``, told apart by content.

    No code in the file is ever run. What training programs wrap around a network is taken off as :func:`unwrap` and
    :func:`strip_prefixes` say; renaming keys beyond that is the affair of each family.

    Returns
    -------
    state_dict : tensors on the CPU by name, in the data types of the file

    Raises
    ------
    WeightsError : the file is missing, damaged, not a checkpoint, or holds anything but tensors
    """
    path = Path(path)
    state_dict = unwrap(_read_file(path))
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise WeightsError(f"{path}: expected a dict of tensors, found {_kind(state_dict)}")
    for key, value in state_dict.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise WeightsError(f"{path}: expected a dict of dense tensors, found {_kind(value)} under {key!r}")
    return strip_prefixes({key: value.detach() for key, value in state_dict.items()})


def unwrap(loaded: Any) -> Any:
    """Return the dict that lies under a key of :data:`WRAPPERS`, or under several of them one in the other.

    A state dict itself is left alone: its values are tensors, never dicts.
    """
    for _ in WRAPPERS:  # bounded: a dict read from a file may hold itself
        if isinstance(loaded, Mapping):
            loaded = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)
    return loaded


def strip_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take a prefix of :data:`PREFIXES` off all keys whenever every key carries it.

    Keys of :data:`BESIDE` may stand beside and stay as they are. Where PaSST's training code kept an averaged
    network (``net_swa.``) beside the trained one (``net.``), only the averaged one is returned.
    """
    if any(key.startswith(AVERAGED_PREFIX) for key in state_dict):
        state_dict = {key: value for key, value in state_dict.items() if not key.startswith("net.")}
    while names := [key for key in state_dict if not key.startswith(BESIDE)]:
        prefix = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in names)), None)
        if prefix is None:
            break
        state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
    return dict(state_dict)


def _kind(value: Any) -> str:
    """Name what was found where a tensor or a dict of tensors was expected."""
    if isinstance(value, Tensor):
        return f"a tensor of layout {value.layout} and type {value.dtype} on {value.device}"
    return "an empty dict" if isinstance(value, Mapping) and not value else f"an object of type {type(value).__name__}"


def _is_plain(value: Any) -> bool:
    """Tell whether a value is an ordinary tensor: not sparse, not quantized, its numbers in memory."""
    if not isinstance(value, Tensor):
        return False
    return value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized


def _read_file(path: Path) -> Any:
    """Return what a checkpoint file holds, by the reader that its first bytes ask for."""
    if os.path.isdir(path):
        raise WeightsError(f"{path} is a folder; give the checkpoint file in it")
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            head = file.read(len(LEGACY_HEAD))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error
    if not head:
        raise WeightsError(f"{path}: the file is empty")
    if head[8:9] == b"{":  # eight bytes of length, then a JSON header
        return _read_safetensors(path)
    if head.startswith(b"PK\3\4"):
        return _read_torch(path, in_memory=_holds_compressed(path))
    if head == LEGACY_HEAD:
        return _read_torch(path, in_memory=True)
    raise WeightsError(f"{path} is not a checkpoint: neither safetensors nor written by torch.save")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file."""
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # besides SafetensorError, whatever PyTorch says to a type or shape it does not know
        raise WeightsError(f"{path}: damaged or cut short ({error})") from error


def _holds_compressed(path: Path) -> bool:
    """Tell whether a ``torch.save`` archive was packed again with compression; refuse what is not such an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise WeightsError(f"{path}: damaged or cut short ({error})") from error
    unpacked, packed = sum(entry.file_size for entry in entries), path.stat().st_size
    if unpacked > ZIP_RATIO * packed:
        raise WeightsError(f"{path}: refused: {packed} bytes would unpack to {unpacked}; torch.save does not compress")
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise WeightsError(f"{path}: refused: a TorchScript program, only tensors are loaded; save its state_dict()")
    return any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)


def _read_torch(path: Path, in_memory: bool) -> Any:
    """Return what ``torch.save`` wrote; PyTorch's own messages are not passed on, they advise to run code in files."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=not in_memory)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?i)unsupported (?:global: )?global ([\w.]+)", str(error))
        found = f"the file holds code ({named[1]})" if named else "the file is damaged or holds code"
        raise WeightsError(f"{path}: refused: {found}, only tensors are loaded; save a state_dict() alone") from error
    except Exception as error:  # damaged bytes raise about every type there is, from EOFError to KeyError
        raise WeightsError(f"{path}: damaged or cut short ({type(error).__name__})") from error


def load_into(
    module: nn.Module, state_dict: Mapping[str, Tensor], path: str | Path, unused: Collection[str] = ()
) -> None:
    """Put a state dict into a network that it must fit exactly; numbers are converted to the network's precision.

    Parameters
    ----------
    module : the network; left untouched when anything is wrong
    state_dict : tensors by name, after the family's renaming
    path : where they come from, for messages
    unused : keys the file is known to hold and the network does without

    Raises
    ------
    WeightsError : keys are missing or left over, shapes differ, or a number is NaN or infinite
    """
    wanted: dict[str, Tensor] = module.state_dict()
    given = {key: value for key, value in state_dict.items() if key not in unused}
    common = [key for key in wanted if key in given]
    misfits = {
        "missing": [f"{key} {_form(wanted[key])}" for key in wanted if key not in given],
        "unexpected": [f"{key} {_form(given[key])}" for key in given if key not in wanted],
        "of another shape or type": [
            f"{key} {_form(given[key])} instead of {_form(wanted[key])}"
            for key in common
            if not _fits(given[key], wanted[key])
        ],
    }
    if any(misfits.values()):
        raise WeightsError(
            f"{path} does not fit {type(module).__name__}: {_summary(misfits)}; "
            "is it a checkpoint of another network or variant?"
        )
    broken = {"NaN or infinite": [key for key in common if not _is_finite(given[key].to(wanted[key].dtype))]}
    if any(broken.values()):
        raise WeightsError(f"{path}: {_summary(broken)}; the checkpoint is damaged, or its training diverged")
    module.load_state_dict(given, strict=True)


def _form(value: Tensor) -> str:
    """Write the shape and type of a tensor."""
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _fits(given: Tensor, wanted: Tensor) -> bool:
    """Tell whether a tensor has the wanted shape and may be converted: floats to floats, integers to integers."""
    return given.shape == wanted.shape and given.is_floating_point() == wanted.is_floating_point()


def _is_finite(value: Tensor) -> bool:
    """Tell whether all numbers are finite; ten times faster than ``isfinite().all()`` on large weights."""
    if value.numel() == 0 or not value.is_floating_point():
        return True
    return all(math.isfinite(extreme) for extreme in torch.aminmax(value))


def _summary(keys_by_fault: Mapping[str, Sequence[str]], shown: int = 3) -> str:
    """Count the keys of each fault and name the first few."""
    return "; ".join(
        f"{len(keys)} {fault}: {', '.join(keys[:shown])}{', ...' if len(keys) > shown else ''}"
        for fault, keys in keys_by_fault.items()
        if keys
    )
