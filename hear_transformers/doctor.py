"""Check what works on this machine: libraries, extras, devices, decoders, the cache, weights. Uses no network.

Every part is a list of rows ready for JSON. The row of something needed that does not work has a "problem", which says
what to do. Nothing heavy is imported before a part needs it, since it may be what does not load.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoints import published
from .errors import HearTransformersError

if TYPE_CHECKING:
    import numpy as np

PACKAGE = "hear_transformers"

LIBRARIES = ("torch", "numpy", "soundfile", "soxr", "safetensors")
"""Required libraries that may fail to load: their compiled code must fit the machine."""

INSTALL = "python -m pip install"

DEVELOPERS = ("bench", "check", "dev", "docs", "hear", "quick", "teachers", "test")
"""Extras that users do not need."""

SAMPLE_RATE = 48_000
"""Of the test tone, in Hz: the highest of Opus."""

PADDING = 4_096
"""Samples by which the decoded tone may be longer or shorter: two frames of WMA, the longest."""

SOUND_FILES = {
    "WAV": ("WAV", ""),
    "FLAC": ("FLAC", ""),
    "Ogg Vorbis": ("OGG", "VORBIS"),
    "Ogg Opus": ("OGG", "OPUS"),
    "MP3": ("MP3", ""),
}
"""Containers and codecs tested with libsndfile; the codec is empty for that of the container."""

MEDIA_FILES = {"M4A (AAC)": ("ipod", "aac"), "WebM (Opus)": ("webm", "libopus"), "WMA": ("asf", "wmav2")}
"""Containers and codecs tested with PyAV."""

Row = dict[str, Any]


def examine(*, verify: bool = False) -> dict[str, list[Row]]:
    """Check everything.

    Parameters
    ----------
    verify : compare hashes of weights, as every load does, not only their sizes

    Returns
    -------
    parts : rows by the name of the part, ready for JSON
    """
    parts: dict[str, Callable[[], list[Row]]] = {
        "versions": versions,
        "extras": extras,
        "devices": devices,
        "decoders": decoders,
        "cache": cache,
        "weights": lambda: weights(verify=verify),
    }
    found = {}
    for name, part in parts.items():
        try:
            found[name] = part()
        except Exception as error:  # of any library
            found[name] = [{"problem": f"{name} cannot be looked at ({type(error).__name__}: {error})"}]
    return found


def problems(parts: dict[str, list[Row]]) -> list[str]:
    """Return what does not work, and what to do about it."""
    return [row["problem"] for rows in parts.values() for row in rows if row.get("problem")]


def versions() -> list[Row]:
    """Return the versions of Python, this package and the libraries, and whether those load."""
    rows: list[Row] = [
        {"name": PACKAGE, "version": _version(PACKAGE)},
        {"name": "python", "version": f"{platform.python_version()} on {platform.platform()}"},
    ]
    rows += [_library(name, name) for name in LIBRARIES]
    rows.append(_library("libsndfile", "soundfile", "__libsndfile_version__"))
    if _version("av"):
        rows += [_library("av", "av"), _library("FFmpeg", "av", "ffmpeg_version_info")]
    return rows


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _library(name: str, module: str, attribute: str = "") -> Row:
    """Load a library, and return its version or that of a library in it."""
    version = _version(module)
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # what a library raises while it loads has no common root
        again = f"{INSTALL} --force-reinstall '{module}{'' if version is None else f'=={version}'}'"
        return {"name": name, "version": version, "problem": f"{module} does not load ({error}); run: {again}"}
    return {"name": name, "version": str(getattr(loaded, attribute, "unknown")) if attribute else version}


def extras() -> list[Row]:
    """Return which extras are installed, and what installs the others."""
    wanted: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires(PACKAGE) or []:
        distribution, marker = re.match(r"([\w.-]+)", requirement), re.search(r"extra == ['\"]([\w-]+)", requirement)
        if distribution and marker and marker[1] not in DEVELOPERS:
            wanted.setdefault(marker[1], []).append(distribution[1])
    missing = {name: [each for each in needed if _version(each) is None] for name, needed in wanted.items()}
    return [
        {"name": name, "missing": lacking, "install": f"{INSTALL} '{PACKAGE}[{name}]'" if lacking else None}
        for name, lacking in missing.items()
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def devices() -> list[Row]:
    """Return PyTorch's devices, whether they compute, and whether low precision pays there."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    threads = f"{_count(torch.get_num_threads(), 'thread')}, {_count(os.cpu_count() or 1, 'core')}, {capability}"
    rows: list[Row] = [{"name": "cpu", "about": threads} | _low_precision("cpu")]
    with warnings.catch_warnings(record=True) as caught:  # a driver too old for PyTorch is no more than a warning
        warnings.simplefilter("always")
        n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    rows += [{"name": "cuda", "about": f"cannot be used: {warning.message}"} for warning in caught]
    for i in range(n_cuda):
        card = torch.cuda.get_device_properties(i)
        about = f"{card.name}, {card.total_memory / 1e9:.0f} GB, compute capability {card.major}.{card.minor}"
        works = _works(f"cuda:{i}")
        about += "" if "problem" in works else _without_kernels(f"cuda:{i}")
        rows.append({"name": f"cuda:{i}", "about": about, "bytes": card.total_memory} | works)
    if torch.backends.mps.is_available():
        rows.append({"name": "mps", "about": platform.machine()} | _works("mps"))
    return rows


def _works(device: str) -> Row:
    return _computes(device) or _low_precision(device)


def _without_kernels(device: str) -> str:
    """Return that our kernels do not run on a card, and why; PyTorch's take their place."""
    import torch

    from .networks.fused import tried

    found = tried(torch.device(device), torch.float32)
    return f", transformers without the faster kernels of Triton ({found})" if isinstance(found, str) else ""


def _low_precision(device: str) -> Row:
    """Return what the precision "auto" is on a device, and how many times as long as float32 bfloat16 takes."""
    import torch

    from .embedding.precision import AUTO, resolve, slowdown

    return {
        "auto": resolve(AUTO, torch.device(device)),
        "bfloat16_times_as_long": slowdown("bfloat16", torch.device(device))._asdict(),
    }


def _computes(device: str) -> Row:
    """Add two numbers on a device."""
    import torch

    try:
        right = torch.ones(2, device=device).sum().item() == 2
        reason = "" if right else "1 + 1 is not 2"
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
    advice = "use --device cpu, or install the PyTorch that is made for it (https://pytorch.org/get-started)"
    return {"problem": f"{device} does not compute ({reason}); {advice}"} if reason else {}


def decoders() -> list[Row]:
    """Encode a tone and decode it like any file; "decodes" is None where PyAV or its encoder is not installed."""
    rows = [_decoder(name, "libsndfile", partial(_write_sound, *made)) for name, made in SOUND_FILES.items()]
    for name, (container, codec) in MEDIA_FILES.items():
        if _encodes(codec):
            rows.append(_decoder(name, "PyAV", partial(_write_media, container, codec)))
        else:
            rows.append({"format": name, "library": "PyAV", "decodes": None})
    return rows


def _encodes(codec: str) -> bool:
    """Return True if PyAV is installed and its FFmpeg has an encoder."""
    if _version("av") is None:
        return False
    import av

    try:
        return av.Codec(codec, "w").is_encoder
    except ValueError:
        return False


def _decoder(name: str, library: str, write: Callable[[Path, np.ndarray], None]) -> Row:
    import numpy as np

    from .audio import reading

    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tone = (0.3 * np.sin(2 * np.pi * (200 + 150 * t) * t)).astype(np.float32)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "tone")
            write(path, tone)
            heard = reading.read(path, SAMPLE_RATE).numpy()
        difference = len(heard) - len(tone)
        reason = "" if abs(difference) <= PADDING else f"{len(heard)} samples were decoded of {len(tone)}"
    except Exception as error:  # of two libraries and the disk
        reason = str(error)
    row: Row = {"format": name, "library": library, "decodes": not reason}
    again = f"{INSTALL} --upgrade {'soundfile' if library == 'libsndfile' else 'av'}"
    return row | ({"problem": f"{name} is not decoded by {library} ({reason}); run: {again}"} if reason else {})


def _write_sound(container: str, codec: str, path: Path, waveform: np.ndarray) -> None:
    import soundfile

    soundfile.write(path, waveform, SAMPLE_RATE, format=container, subtype=codec or None)


def _write_media(container: str, codec: str, path: Path, waveform: np.ndarray) -> None:
    import av

    with av.open(str(path), "w", format=container) as media:
        stream: Any = media.add_stream(codec, rate=SAMPLE_RATE)
        stream.layout, stream.bit_rate = "mono", 128_000
        stream.codec_context.open()
        frame = av.AudioFrame.from_ndarray(waveform[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, 0
        resampler = av.AudioResampler(stream.format, "mono", SAMPLE_RATE, stream.codec_context.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            media.mux(stream.encode(part))


def cache() -> list[Row]:
    """Return where downloaded weights go."""
    from .checkpoints import store

    folder = store.weights_dir()
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    row: Row = {
        "folder": str(folder),
        "variable": os.environ.get(store.FOLDER_VARIABLE),
        "exists": folder.is_dir(),
        "writable": os.access(there, os.W_OK | os.X_OK),
        "free_bytes": shutil.disk_usage(there).free,
    }
    if folder.exists() and not folder.is_dir():
        row["problem"] = f"{folder} is not a folder; set {store.FOLDER_VARIABLE} to one that holds weights, or may"
    elif not row["writable"] and not any((folder / each.file).is_file() for each in published.manifest().values()):
        problem = f"{folder} holds no weights and cannot be written; set {store.FOLDER_VARIABLE} to a folder that can"
        row["problem"] = problem
    return [row]


def weights(*, verify: bool = False) -> list[Row]:
    """Return which published weights are on this machine, ours or another package's, and whether they are right."""
    from .checkpoints import caches, store

    rows: list[Row] = []
    for row in published.manifest().values():
        path = store.locate(row)
        name = f"{row.family} {row.name}"
        if path is not None:
            size = path.stat().st_size
            rows.append({"checkpoint": name, "file": str(path), "bytes": size} | _state(row, path, size, verify))
        elif (other := next(caches.candidates(row), None)) is not None:
            found = caches.find(row) if verify else None
            state = "right content" if found else "wrong content, not used" if verify else "not verified"
            other = found or other
            described = {"checkpoint": name, "file": str(other), "bytes": other.stat().st_size}
            rows.append(described | {"state": f"of another package, {state}"})
        elif row.embedded:
            problem = f"{row.file} is missing in the package; run: {INSTALL} --force-reinstall {PACKAGE}"
            rows.append({"checkpoint": name, "file": None, "bytes": None, "state": "missing", "problem": problem})
    return rows


def _state(row: Any, path: Path, size: int, verify: bool) -> Row:
    from .checkpoints import store

    if row.bytes is not None and size != row.bytes:
        problem = f"{path}: {size} bytes, expected {row.bytes}; delete it and load again"
        return {"state": "wrong size", "problem": problem}
    if not verify:
        return {"state": "right size" if row.bytes else "its size is not published"}
    try:
        store.fetch(row)  # it exists, and so is only verified
    except HearTransformersError as error:
        return {"state": "wrong content", "problem": str(error)}
    return {"state": "right content" if row.full_hash else "as it was first seen"}
