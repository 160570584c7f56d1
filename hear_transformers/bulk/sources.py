"""Inputs named by the user -> audio files and addresses, and the name of the output of each."""

from __future__ import annotations

import glob
import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path, PurePath
from typing import Any

from ..audio import addresses
from ..audio.reading import SUFFIXES, channels_of, is_of_damage
from ..embedding.pipeline import Embedded
from ..errors import AudioError, OptionError
from ..files import Address, place_of

STDIN = "-"
"""Stands for a list of paths, one per line."""


@dataclass(frozen=True, slots=True)
class Source:
    """An audio file to read, a part of one, or an input that cannot be read.

    Attributes
    ----------
    path : as the user would write it, or an address
    name : path relative to the folder that was searched, or to the folders of a pattern before its first ``*``; of a
        job of a run (`outputs.jobs_of`), that of its output relative to the output folder, in a table a unique name
    error : why there is no file to read, None if there may be one
    start, end : of the part of the file, in s
    channel : of the file, from 1, where its channels are sources of their own
    """

    path: Path | Address
    name: PurePath
    error: AudioError | None = None
    start: float = 0.0
    end: float = math.inf
    channel: int | None = None

    @property
    def segment(self) -> str:
        """The part of the file, in ms, and its channel: "1500-3000.ch2"; empty for all of it."""
        parts = []
        if (self.start, self.end) != (0.0, math.inf):
            start, end = (f"{1000.0 * seconds:.12g}" for seconds in (self.start, self.end))
            parts.append(f"{start}-{'end' if end == 'inf' else end}")
        if self.channel is not None:
            parts.append(f"ch{self.channel}")
        return ".".join(parts)

    @property
    def key(self) -> str:
        """Unique name of a job in a journal."""
        return f"{self.name.as_posix()}|{self.segment}"

    def audio(self, sha256: str) -> dict[str, Any]:
        """Return what an output records of its audio: file and its sha256, start and end in s, None for the end."""
        end = None if self.end == math.inf else self.end
        channel = {} if self.channel is None else {"channel": self.channel}
        return {"file": self.file, "sha256": sha256, "start": self.start, "end": end, **channel}

    @property
    def file(self) -> str:
        """Absolute path, or the address."""
        return str(self.path) if isinstance(self.path, Address) else os.path.abspath(self.path)

    @property
    def location(self) -> str:
        """Absolute path for naming outputs; that of an address is made from it."""
        if isinstance(self.path, Path):
            return os.path.abspath(self.path)
        path = self.path.path
        if "?" in self.path or "::" in self.path:  # what the path does not show
            path = path.with_name(f"{path.name}-{hashlib.sha256(os.fsencode(self.path)).hexdigest()[:8]}")
        return os.path.join(os.sep, path)

    def audio_of(self, embedded: Embedded) -> dict[str, Any]:
        """Return what an output records of audio that was embedded: of some also warnings, duration in s and damage."""
        record = self.audio(embedded.sha256)
        if embedded.warnings:
            record |= {"seconds": embedded.seconds, "warnings": list(embedded.warnings)}
            record |= {"damaged": any(map(is_of_damage, embedded.warnings))}
        return record


Place = tuple[str, float, float, int | None]
"""Identity of a source, file, part and channel: links in its folder are resolved, a link to the file is another one."""


def find_sources(inputs: Iterable[str], listed: Iterable[str] = ()) -> list[Source]:
    """Find the audio files that the inputs stand for, each once, in the order named.

    A file may have any suffix. A folder stands for the files in it and below that end in `reading.SUFFIXES`, in upper
    or lower case, sorted; hidden files are skipped, links to folders are followed, each folder is searched once. An
    input that is neither is a pattern if it has ``*``, ``?`` or ``[...]``. ``-`` stands for `listed`. An archive, zip
    or tar, is a folder. An address, see `files.place_of`, is a file; but for the web a folder if it ends in ``/``, and
    maybe a pattern.

    Parameters
    ----------
    inputs : files, folders, patterns or ``-``
    listed : lines of a list of files, folders or patterns; empty lines are skipped

    Returns
    -------
    sources : an input that cannot be read is a source with an `error`, so that it does not stop the others
    """
    return each_once(expand_inputs(inputs, listed))


def expand_inputs(inputs: Iterable[str], listed: Iterable[str] = ()) -> Iterator[Source]:
    """Find the audio files that the inputs stand for, as often as they are named; see `find_sources`."""
    stripped = (line.rstrip("\r\n") for line in listed)
    lines = (line for entry in inputs for line in (stripped if entry == STDIN else [entry]))
    return (source for line in lines if line for source in _expand(line))


def each_once(sources: Iterable[Source], beside: Iterable[Source] = ()) -> list[Source]:
    """Drop sources that are named twice, or are among those `beside`."""
    sources = list(sources)
    seen = set(places_of(beside))
    found = []
    for place, source in zip(places_of(sources), sources, strict=True):
        if place not in seen:
            seen.add(place)
            found.append(source)
    return found


def places_of(sources: Iterable[Source]) -> list[Place]:
    """Return the place of every source."""
    folders: dict[str, str] = {}  # by their names: many sources share few

    def place(source: Source) -> Place:
        part = (source.start, source.end, source.channel)
        if isinstance(source.path, Address):
            return (source.path, *part)
        parent, name = os.path.split(source.path)
        folder = folders.get(parent) or folders.setdefault(parent, os.path.realpath(parent))
        return (os.path.join(folder, name), *part)

    return [place(source) for source in sources]


def each_channel(sources: Iterable[Source]) -> list[Source]:
    """Return a source for each channel of each file, which is opened for its number of channels."""
    found = []
    counts: dict[str, int] = {}
    for source in sources:
        try:
            if source.error is None and source.file not in counts:
                counts[source.file] = channels_of(source.path)
        except AudioError as error:
            source = replace(source, error=error)
        if source.error is not None:
            found.append(source)
        else:
            found += [replace(source, channel=i) for i in range(1, counts[source.file] + 1)]
    return found


def _expand(entry: str) -> Iterator[Source]:
    """Find the files that one input stands for."""
    if "\0" in entry:
        shown = entry.replace("\0", "\\0")
        yield Source(Path(shown), PurePath(shown), AudioError(f"{shown}: a file name cannot hold a zero byte"))
        return
    try:
        path = place_of(entry)
    except AudioError as error:
        yield Source(Address(entry), PurePath(entry), error)
        return
    if isinstance(path, Address) or os.path.isfile(path):
        yield from _files(path)
    elif os.path.isdir(path):  # unlike Path.is_dir, returns False for a name that is too long
        yield from _search(path, path)
    elif not os.path.lexists(path) and glob.has_magic(str(path)):
        yield from _match(str(path))
    else:
        yield Source(path, PurePath(path.name))


def _files(place: Path | Address, below: PurePath | None = None) -> Iterator[Source]:
    """Find the files in an archive, or at an address; another file is itself.

    Parameters
    ----------
    place : of a file, an archive, or of what is searched
    below : name of the file where it is not that of the place alone; archives are folders of these names
    """
    itself = below or PurePath(place.path.name if isinstance(place, Address) else place.name)
    searched = addresses.folder_of(place) or (place if isinstance(place, Address) else None)
    try:
        found = None if searched is None else addresses.search(searched, SUFFIXES)
    except AudioError as error:
        yield Source(place, itself, error)
        return
    if found is None:
        yield Source(place, itself)
        return
    for address, name in found:
        yield Source(address, name if below is None else below / name)


def _search(folder: Path, root: Path) -> Iterator[Source]:
    """Find the audio files in a folder and below; they are named relative to `root`."""
    unreadable: list[OSError] = []
    seen: set[str] = set()
    n_found = 0
    for parent, subfolders, files in os.walk(folder, onerror=unreadable.append, followlinks=True):
        if (place := os.path.realpath(parent)) in seen:  # already searched: a link, perhaps a loop
            subfolders.clear()
            continue
        seen.add(place)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                path = Path(parent, name)
                yield Source(path, path.relative_to(root))
                n_found += 1
    for error in unreadable:
        path = Path(error.filename)
        yield Source(path, PurePath(path.name), AudioError(f"{path}: cannot be searched ({error.strerror})"))
    if not n_found and not unreadable:
        message = f"{folder}: no audio in this folder or below; audio files end in {', '.join(SUFFIXES)}"
        yield Source(folder, PurePath(folder.name), AudioError(message))


def _match(pattern: str) -> Iterator[Source]:
    """Find the files that match a pattern, as in a shell with ``**``; they are named below its fixed part."""
    parts = Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed])
    matches = sorted(glob.glob(pattern, recursive=True))
    if not matches:
        yield Source(Path(pattern), PurePath(pattern), AudioError(f"{pattern}: no file matches this pattern"))
    for match in matches:
        path = Path(match)
        if path.is_file():
            yield from _files(path, path.relative_to(root))
        elif "**" not in parts:  # which also matches every folder on the way to a file
            yield from _search(path, root)


def _below(name: PurePath) -> PurePath:
    """Return a name that stays below the output folder: without a root, and without ``..``."""
    if name.parts and not name.anchor and os.pardir not in name.parts:
        return name
    parts = [part for part in name.parts if part not in (name.anchor, os.pardir)]
    return PurePath(*parts) if parts else PurePath("unnamed")


NAMINGS: tuple[tuple[Callable[[Source, str], PurePath], Callable[[PurePath], str]], ...] = (
    (lambda source, _: _below(source.name), attrgetter("stem")),
    (lambda source, _: _below(source.name), attrgetter("name")),
    (lambda source, common: PurePath(os.path.relpath(source.location, common)), attrgetter("name")),
)
"""Ways to name an output after its source, tried in this order until all names differ: without the suffix, with it, and
with all folders below the common folder of the sources."""


def name_outputs(sources: Sequence[Source], suffix: str) -> list[PurePath]:
    """Name the output of every source, below the output folder; no two are the same.

    `clip.wav` becomes `clip.npz`, its part from 1.5 to 3 s `clip.1500-3000.npz`, its second channel `clip.ch2.npz`. If
    another output has that name, it becomes `clip.wav.npz`; if that is taken too, it keeps the folders in which the
    sources differ.

    Raises
    ------
    OptionError : two outputs would have the same name in any case
    """
    ways = [0 if suffix else 1] * len(sources)  # without a suffix of the output, clip.wav and clip.flac keep theirs
    last = len(NAMINGS) - 1
    while True:
        common = ""
        if last in ways:
            common = os.path.commonpath([os.path.dirname(source.location) for source in sources])
        outputs = []
        for way, source in zip(ways, sources, strict=True):
            path_of, name_of = NAMINGS[way]
            path = path_of(source, common)
            segment = f".{segment}" if (segment := source.segment) else ""
            outputs.append(path.with_name(f"{name_of(path)}{segment}{suffix}"))
        # Two names that differ in case only are one file on many systems.
        names = [str(output).casefold() for output in outputs]
        counts = Counter(names)
        clashing = [i for i, name in enumerate(names) if counts[name] > 1]
        if not clashing:
            return outputs
        if all(ways[i] == last for i in clashing):
            paths = ", ".join(str(sources[i].path) for i in clashing[:2])
            raise OptionError(f"{paths} would be written to the same file; embed them in separate runs")
        for i in clashing:
            ways[i] = min(ways[i] + 1, last)
