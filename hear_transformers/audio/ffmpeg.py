"""Decoding with FFmpeg through PyAV, the extra `av`: MP4, AAC, WebM, WMA, video, ..., which libsndfile does not know.

`containers` recognises these files: FFmpeg is told what a file is, so that it never takes one for a list of other files
or of addresses to open. It only decodes: no resampling, no mixing, no video.

- The best audio stream, by FFmpeg's choice, is read from its first sample to its last. When it starts in a video, and
  gaps in its timestamps, are not filled with silence.
- Samples that the encoder put in front are left out where the container counts them: MP4, Matroska and WebM do; ADTS,
  FLV, MPEG streams and AVI cannot, so that AAC begins there with its 1,024 or more. Of WMA, two frames are dropped.
- Padding at the end is left out where the header of an MP4 or the packets of Opus count it, else kept.
- What FFmpeg calls damaged is refused, and so is a file whose outermost parts claim more bytes than there are, or whose
  header more seconds. Unnoticed go: AAC, AMR and MPEG streams cut between two packets, live recordings in WebM and
  fragmented MP4 cut between two parts, damage inside packets that a decoder conceals, and whole packets that are lost.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import AudioError
from .containers import Container
from .sndfile import UNKNOWN_FRAMES
from .views import Survey, View

SUFFIXES = (
    ".3g2", ".3gp", ".aac", ".ac3", ".amr", ".asf", ".avi", ".dsf", ".dts", ".eac3", ".ec3", ".f4v", ".flv", ".m2ts",
    ".m4a", ".m4b", ".m4v", ".mka", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".spx", ".tta", ".vob", ".weba", ".webm",
    ".wma", ".wmv", ".wv",
)  # fmt: skip
"""Names of such files in folders, but not .ts and .mts, which are mostly programs."""

LONGEST_PADDING = 4_096
"""Maximum padding at the end in samples: two frames of HE-AAC, 2,048 each (ISO/IEC 14496-3, 4.6.18)."""

CLEARLY_SECONDS = 0.5
"""A file that ends this much before its header says is cut short: durations are rounded, and streams end apart."""

SKIPPED_FRAMES = 2**20
"""Frames decoded at once before an excerpt."""

CHECKED = ("flac", "tta", "wavpack")
"""Codecs whose packets carry a checksum that FFmpeg compares only if told to."""

SAMPLE_TYPES = {
    "u8": np.uint8, "s16": np.int16, "s32": np.int32, "s64": np.int64, "flt": np.float32, "dbl": np.float64
}  # fmt: skip
"""FFmpeg's sample formats (libavutil/samplefmt.h); those in planes end in p."""

INVALID_ARGUMENT = -22
"""FFmpeg's error for an invalid offset (AVERROR(EINVAL))."""

MICROSECONDS = 1e6
"""Microseconds per second: the unit of FFmpeg's duration of a file (AV_TIME_BASE)."""


INSTALL = "python -m pip install 'hear_transformers[av]'"


class MissingError(AudioError):
    """PyAV is not installed."""


class FFmpegDecoder:
    """Decodes the best audio stream of a file, forward only.

    Attributes
    ----------
    samplerate, channels : of the first samples; other channels later are averaged
    frames : number of frames, unknown before the end is reached
    is_sought : False, since frames before an excerpt are decoded too
    notes : what a user is to be warned of
    damage : what is wrong with the file, empty if nothing is, as far as it was decoded
    is_empty : nothing could be decoded at all
    """

    def __init__(self, path: Path, media: Any, container: Container, found: Survey) -> None:
        stream = media.streams.best("audio")
        if stream is None or stream.codec_context is None:
            wrong = "no audio stream" if stream is None else "an audio stream that FFmpeg has no decoder for"
            raise AudioError(f"{path}: {container.name} with {wrong}{f', {found.damage}' if found.damage else ''}")
        self.path = path
        self.media = media
        self.stream = stream
        if stream.codec_context.name in CHECKED:
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
        self.claims_duration = container.claims_duration
        self.samplerate, self.channels = stream.codec_context.sample_rate, 1
        self.frames = UNKNOWN_FRAMES
        self.is_sought = False
        self.notes: Sequence[str] = found.notes
        self.damage = found.damage
        self._position = 0
        self._end_s = self._audio_end_s = 0.0
        self._started = False
        self._pieces = self._without_padding()
        # By the first samples, since HE-AAC may claim half its sample rate in the header.
        self._rest = next(self._pieces, np.zeros((0, 1), np.float32))
        self.is_empty = not len(self._rest)

    def decode(self, n_frames: int) -> np.ndarray:
        """Decode the next frames, fewer at the end: (frames, channels) float32."""
        pieces, count = [self._rest], len(self._rest)
        while count < n_frames:
            piece = next(self._pieces, None)
            if piece is None:
                self.frames = self._position + count
                break
            pieces.append(piece)
            count += len(piece)
        joined = np.concatenate(pieces)
        self._rest = joined[n_frames:].copy()
        self._position += min(count, n_frames)
        return joined[:n_frames]

    def skip(self, n_frames: int) -> None:
        """Go from the beginning to a frame, or to the end.

        All before it is decoded: a decoder that starts in the middle returns other samples for a while, with the noise
        of AAC for good, and timestamps of Matroska are too coarse to find a sample.
        """
        while self._position < n_frames and len(self.decode(min(n_frames - self._position, SKIPPED_FRAMES))):
            pass

    def seconds(self) -> float | None:
        """Return the duration of the audio if it is in the header: that of a whole MP4 which is not fragmented."""
        return None if self.damage else self._claimed_seconds()

    def _claimed_seconds(self) -> float | None:
        stream = self.stream
        if not (self.claims_duration and stream.frames and stream.duration):
            return None
        return float(stream.duration * stream.time_base)

    def flaw(self, n_frames: int) -> str:
        """Return what is wrong with the file, the duration in its header if that is not reached at the end."""
        if self.damage or not self.claims_duration or self.frames == UNKNOWN_FRAMES:
            return self.damage
        stream = self.stream
        if stream.duration and stream.start_time is not None:
            is_cut = self._audio_end_s < float(stream.duration * stream.time_base) - CLEARLY_SECONDS
        else:
            is_cut = self._end_s < (self.media.duration or 0) / MICROSECONDS - CLEARLY_SECONDS
        return "cut short" if is_cut else ""

    def _without_padding(self) -> Iterator[np.ndarray]:
        """Decode as many samples as the header of an MP4 counts, or all if far more show that it is wrong."""
        held: list[np.ndarray] = []
        count = 0
        for piece in self._up_to_damage():
            seconds = self._claimed_seconds()
            n_claimed = UNKNOWN_FRAMES if seconds is None else round(seconds * self.samplerate)
            held.append(piece)
            count += len(piece)
            if count <= n_claimed or count - n_claimed > LONGEST_PADDING:
                yield from held
                held = []
        if held:
            yield np.concatenate(held)[: n_claimed - count]

    def _up_to_damage(self) -> Iterator[np.ndarray]:
        """Decode up to the end, or to where FFmpeg finds damage."""
        import av

        try:
            yield from self._decoded()
        except av.error.FFmpegError as error:
            self.damage = f"damaged: {error.strerror}"

    def _decoded(self) -> Iterator[np.ndarray]:
        """Decode packet by packet, and yield (frames, channels) float32."""
        # Of all streams: they are read anyway, and show where the file ends.
        for packet in _packets(self.media):
            is_audio = packet.stream.index == self.stream.index
            # In these containers, a packet of sound or picture is corrupt if it ends behind the end of the file.
            if packet.is_corrupt and (is_audio or self.claims_duration):
                self.damage = self.damage or "damaged or cut short"
                return
            if packet.pts is not None:
                end_s = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                self._end_s = max(self._end_s, end_s)
                self._audio_end_s = max(self._audio_end_s, end_s) if is_audio else self._audio_end_s
            for frame in packet.decode() if is_audio else ():
                yield self._samples(frame)

    def _samples(self, frame: Any) -> np.ndarray:
        """Convert a frame of FFmpeg to (frames, channels) float32, with the channels of the first one."""
        channels = frame.layout.nb_channels
        if not self._started:
            self._started = True
            self.samplerate, self.channels = frame.sample_rate, channels
        if frame.sample_rate != self.samplerate:
            raise AudioError(
                f"{self.path}: the sample rate changes from {self.samplerate} to {frame.sample_rate} Hz at "
                f"{self._audio_end_s:.3f} s; convert it to WAV"
            )
        samples = as_float(_array(frame))
        if channels == self.channels:
            return samples
        return np.repeat(samples.mean(1, keepdims=True), self.channels, axis=1)  # (frames, 1) -> (frames, channels)


def _packets(media: Any) -> Iterator[Any]:
    """Yield the packets of all streams that exist from the start."""
    # PyAV looks for a stream that appears on the way, as in broadcasts, once all packets are read and flushed.
    with contextlib.suppress(IndexError):
        yield from media.demux()


def _array(frame: Any) -> np.ndarray:
    """Return the samples of a frame of FFmpeg: (frames, channels), of its own type.

    `frame.planes` and `frame.to_ndarray` look for the end of the planes behind the eighth, where there is none.
    """
    from av.audio.plane import AudioPlane

    n_channels = frame.layout.nb_channels
    n_planes = n_channels if frame.format.is_planar else 1
    dtype = SAMPLE_TYPES[frame.format.name.removesuffix("p")]
    count = frame.samples * n_channels // n_planes
    buffers: list[Any] = [AudioPlane(frame, i) for i in range(n_planes)]
    planes = [np.frombuffer(buffer, dtype, count) for buffer in buffers]
    return np.stack(planes, axis=1) if frame.format.is_planar else planes[0].reshape(-1, n_channels)  # interleaved


def as_float(samples: np.ndarray) -> np.ndarray:
    """Convert samples of any type to float32; integers are divided by a power of two, exactly up to 24 bits."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    full_scale = np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
    middle = full_scale if samples.dtype.kind == "u" else np.float32(0.0)
    return (samples.astype(np.float32) - middle) / full_scale


class _File:
    """The file as FFmpeg reads it: already open, so that its name is never taken for an address."""

    def __init__(self, file: View) -> None:
        self.read, self.tell, self.file = file.read, file.tell, file

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek; return an error code where that is impossible, since PyAV would print an exception."""
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END) or (whence == os.SEEK_SET and offset < 0):
            return INVALID_ARGUMENT
        return self.file.seek(offset, whence)


@contextlib.contextmanager
def opened(
    file: BinaryIO, path: Path, n_bytes: int, container: Container, found: Survey | None = None
) -> Iterator[FFmpegDecoder]:
    """Open a decoder at the start of a file; whatever FFmpeg raises, then or later, becomes an AudioError.

    Parameters
    ----------
    found : what a survey found out about the file, if it is one of `containers.OTHERS`
    """
    try:
        import av
    except ImportError as error:  # an optional dependency
        raise MissingError(f"{path}: {container.name} needs PyAV, which is not installed; run: {INSTALL}") from error
    if excess := container.excess(file, n_bytes):
        raise AudioError(f"{path}: {excess}; copy or download it again")
    found = found or Survey(damage=container.flaw(file, n_bytes))
    is_mended = len(found.streams) == 1 and not found.is_plain
    source = _File(View(file, found.streams[0] if is_mended else [range(n_bytes)]))
    try:
        options = {"codec_whitelist": _audio_decoders()}
        with av.open(source, format=container.demuxer, metadata_errors="replace", container_options=options) as media:
            yield FFmpegDecoder(path, media, container, found)
    except av.error.FFmpegError as error:
        wrong = found.damage or "damaged, or not for FFmpeg"
        raise AudioError(f"{path}: {container.name} that is {wrong} ({error.strerror})") from error


@functools.cache
def _audio_decoders() -> str:
    """Return the names of all audio decoders: FFmpeg probes every stream, and must not decode video for that."""
    import av

    decoders = []
    for name in sorted(av.codecs_available):
        with contextlib.suppress(ValueError):  # it is an encoder only
            decoders.append(av.Codec(name, "r"))
    return ",".join(decoder.name for decoder in decoders if decoder.type == "audio")
