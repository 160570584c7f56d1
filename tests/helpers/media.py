"""Audio and video files made with PyAV."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def write(
    path: Path,
    samples: np.ndarray,
    sample_rate: int,
    container: str,
    codec: str,
    *,
    video: str = "",
    n_audio: int = 1,
    sample_format: str = "",
    bit_rate: int = 128_000,
    options: dict[str, str] | None = None,
) -> Path:
    """Write (samples,) or (channels, samples); the second audio stream and later ones hold silence."""
    import av

    samples = np.atleast_2d(samples).astype(np.float32)
    with av.open(str(path), "w", format=container, options=options or {}) as media:
        packets = []
        if video:
            packets += list(_pictures(media.add_stream(video, rate=25), samples.shape[1] / sample_rate))
        streams = [media.add_stream(codec, rate=sample_rate, layout=LAYOUTS[len(samples)]) for _ in range(n_audio)]
        for i, stream in enumerate(streams):
            if sample_format:
                stream.format = sample_format
            stream.bit_rate = bit_rate
            packets += list(_sound(stream, samples if i == 0 else 0 * samples, sample_rate))
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            media.mux(packet)
    return path


def _pictures(stream, seconds: float) -> Iterator:
    import av

    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
    for i in range(max(1, round(25 * seconds))):
        frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), i % 256, np.uint8), format="rgb24")
        frame.pts, frame.time_base = i, Fraction(1, 25)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _sound(stream, samples: np.ndarray, sample_rate: int) -> Iterator:
    import av

    # Interleaved, since PyAV takes no eight channels otherwise.
    frame = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1).copy(), format="flt", layout=LAYOUTS[len(samples)])
    frame.sample_rate, frame.pts, frame.time_base = sample_rate, 0, Fraction(1, sample_rate)
    resampler = av.AudioResampler(format=stream.format, layout=stream.layout, rate=sample_rate)
    queue = av.AudioFifo()
    for part in resampler.resample(frame):
        queue.write(part)
    size = stream.codec_context.frame_size or 1024
    while part := queue.read(size) or queue.read(0):
        yield from stream.encode(part)
    yield from stream.encode(None)
