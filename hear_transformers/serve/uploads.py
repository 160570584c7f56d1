"""Bodies of requests -> files in a folder of their own, under names of ours, as they arrive.

Nothing that a client sends is taken for a path, an address or the name of a file to open: a name is text for messages.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ..audio.inputs import check_sample_rate
from ..errors import AudioError, OptionError, did_you_mean
from ..files import parse_json
from .limits import Limits
from .refusals import Refusal

NAME_LENGTH = 255
"""Characters of a file's name that are kept."""

FIELDS = ("input", "model", "encoding_format", "user")
"""Names in a JSON body, those of OpenAI's embeddings."""

MOST_VALUES, MOST_BRACKETS = 4_000_000, 10_000
"""Commas and opening brackets in a JSON body: a value takes 32 bytes once it is parsed, an empty list 64, of three that
were sent."""

EXAMPLE = (
    'give {"input": "<a file in base64>"}, {"input": {"array": [0.1, ...], "sampling_rate": 16000}}, or a list of such'
)

MULTIPART, JSON = "multipart/form-data", "application/json"


@dataclass(frozen=True, slots=True)
class Upload:
    """A sound that was sent: where it lies, and what the client calls it."""

    path: Path
    name: str


@dataclass(slots=True)
class Received:
    """What came in a body: sounds, and the fields of a JSON one."""

    uploads: list[Upload] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Folder:
    """Where the sounds of one request are put; at most so many."""

    path: Path
    most_files: int
    uploads: list[Upload] = field(default_factory=list)

    def add(self, name: str) -> Upload:
        """Return a place for one more sound."""
        if len(self.uploads) == self.most_files:
            raise Refusal(413, f"more than {self.most_files} files; send them in several requests", "too_many_files")
        number = len(self.uploads)
        shown = name[:NAME_LENGTH] if name else f"file {number}"
        self.uploads.append(Upload(self.path / str(number), shown))
        return self.uploads[-1]


async def receive(body: AsyncIterator[bytes], content_type: str, folder: Path, limits: Limits) -> Received | Path:
    """Write a body to a folder as it arrives.

    Parameters
    ----------
    body : blocks of bytes, see `counted`
    content_type : of the body; what is neither a form nor JSON is the content of one audio file
    folder : empty
    limits : of the body

    Returns
    -------
    received : or the path of a JSON body, for `read_json`
    """
    place = Folder(folder, limits.files)
    kind, options = parse_options_header(content_type)
    if kind == MULTIPART.encode():
        await _receive_form(body, options.get(b"boundary", b""), place)
    elif kind == JSON.encode():
        path = folder / "body"
        await _save(body, path)
        return path
    else:
        await _save(body, place.add("audio").path)
    return checked(place)


def checked(place: Folder) -> Received:
    """Return what was received; raise Refusal if it is nothing."""
    if not any(each.path.stat().st_size for each in place.uploads):
        raise Refusal(400, "no audio was sent; send a file as the body, or files in a form: -F file=@a.wav", "no_audio")
    return Received(place.uploads)


async def _save(body: AsyncIterator[bytes], path: Path) -> None:
    with path.open("xb") as file:
        async for block in body:
            file.write(block)


async def _receive_form(body: AsyncIterator[bytes], boundary: bytes, place: Folder) -> None:
    if not boundary:
        raise Refusal(400, "the form has no boundary in its Content-Type; let the client make that header", "bad_form")
    form = _Form(place)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        async for block in body:
            parser.write(block)
    except FormParserError as error:
        raise Refusal(400, f"not a form as multipart/form-data has it: {error}", "bad_form") from error
    finally:
        form.close()
    if not form.is_complete:
        raise Refusal(400, "the form ends before its last boundary", "bad_form")


class _Form:
    """Writes the parts of a form to files: every part that has a file's name is a sound, others are refused."""

    def __init__(self, place: Folder) -> None:
        self.place = place
        self.file: BinaryIO | None = None
        self.header = bytearray()  # name of the current one
        self.value = bytearray()
        self.disposition = b""
        self.is_complete = False

    def callbacks(self) -> Any:
        """Return what a parser calls."""
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end")
        named: dict[str, Callable[..., None]] = {f"on_{name}": getattr(self, name) for name in names}
        return {**named, "on_headers_finished": self.headers_finished, "on_end": self.end}

    def part_begin(self) -> None:
        self.disposition = b""

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self.header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def header_end(self) -> None:
        if self.header.lower() == b"content-disposition":
            self.disposition = bytes(self.value)
        self.header.clear()
        self.value.clear()

    def headers_finished(self) -> None:
        _, options = parse_options_header(self.disposition)
        if b"filename" not in options:
            name = options.get(b"name", b"").decode("utf-8", "replace")
            raise Refusal(
                400,
                f"the form's field {name[:NAME_LENGTH]!r} is no file; options go into the address, as in "
                "?timestamps=true, and a file is -F file=@a.wav",
                "bad_form",
            )
        self.file = self.place.add(options[b"filename"].decode("utf-8", "replace")).path.open("xb")

    def part_data(self, data: bytes, start: int, end: int) -> None:
        assert self.file is not None  # headers come before data
        self.file.write(data[start:end])

    def part_end(self) -> None:
        self.close()

    def end(self) -> None:
        self.is_complete = True

    def close(self) -> None:
        """Close the file of the current part."""
        if self.file is not None:
            self.file.close()
            self.file = None


def read_json(path: Path, limits: Limits) -> Received:
    """Read a JSON body that was received, and write its sounds beside it.

    Raises
    ------
    OptionError : it is not JSON, or not of the form that is expected
    """
    content = path.read_bytes()
    if content.count(b",") > MOST_VALUES or content.count(b"[") + content.count(b"{") > MOST_BRACKETS:
        text = f"more than {MOST_VALUES:,} values in JSON; send the sound as a file, as the body or in a form"
        raise Refusal(413, text, "too_many_values")
    try:
        body = parse_json(content)
    except ValueError as error:
        raise OptionError(f"the body is not JSON ({error}); {EXAMPLE}") from error
    path.unlink()
    if not isinstance(body, dict) or "input" not in body:
        raise OptionError(f"the body has no input; {EXAMPLE}")
    for name in body:
        if name not in FIELDS:
            raise OptionError(f"{name!r} is unknown in the body; {did_you_mean(name, FIELDS)}")
    sounds = body.pop("input")
    place = Folder(path.parent, limits.files)
    for sound in sounds if isinstance(sounds, list) else [sounds]:
        _write_sound(sound, place)
    received = checked(place)
    received.fields = body
    return received


def _write_sound(sound: Any, place: Folder) -> None:
    """Write one input of a JSON body: the content of a file in base64, or samples."""
    upload = place.add("")
    if isinstance(sound, str):
        upload.path.write_bytes(_decoded(sound, upload.name))
    elif isinstance(sound, Mapping) and sound.keys() == {"array", "sampling_rate"}:
        rate = check_sample_rate(sound["sampling_rate"])
        soundfile.write(upload.path, _samples(sound["array"], upload.name), rate, subtype="FLOAT", format="WAV")
    else:
        raise OptionError(f"{upload.name}: neither base64 nor an array with its sampling_rate; {EXAMPLE}")


def _decoded(text: str, name: str) -> bytes:
    """Decode base64, also behind ``data:audio/wav;base64,``."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise OptionError(
            f"{name}: not base64 ({error}); input is the content of a file, and neither a path nor an address is opened"
        ) from error


def _samples(array: Any, name: str) -> np.ndarray:
    """Return samples (samples,), or (samples, channels) of (channels, samples), float32."""
    try:
        samples = np.asarray(array, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise AudioError(f"{name}: array is no list of numbers ({error})") from error
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and len(samples) > samples.shape[1]):
        raise AudioError(f"{name}: the array has the shape {samples.shape}; expected (samples,) or (channels, samples)")
    if 0 in samples.shape:
        raise AudioError(f"{name}: 0 samples; expected at least 1")
    return samples.T
