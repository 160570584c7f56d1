"""Files of many formats, without the names that they had: the content says what they are."""

import io

import numpy as np
import pytest
import soundfile

from tests.helpers import media

FORMATS = {
    "wav": ("WAV", "PCM_16"), "wav 24": ("WAV", "PCM_24"), "flac": ("FLAC", "PCM_16"), "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III"), "aiff": ("AIFF", "PCM_16"), "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"), "w64": ("W64", "PCM_16"),
}  # fmt: skip


def noise() -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(48_000)


def embedding(server, content: bytes) -> np.ndarray:
    answer = server.post("/v1/embeddings", data=content)
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["data"][0]["embedding"])


@pytest.mark.parametrize("name", FORMATS)
def test_what_libsndfile_decodes_is_embedded_as_by_encode(server, served, tmp_path, name):
    file = io.BytesIO()
    format, subtype = FORMATS[name]
    soundfile.write(file, noise(), 48_000, format=format, subtype=subtype)
    path = tmp_path / f"sound.{name.split()[0]}"
    path.write_bytes(file.getvalue())
    np.testing.assert_allclose(embedding(server, file.getvalue()), served.model.encode(path), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("suffix", "container", "codec", "video"),
    [
        ("m4a", "ipod", "aac", ""),
        ("webm", "webm", "libopus", ""),
        ("wma", "asf", "wmav2", ""),
        ("mp4", "mp4", "aac", "mpeg4"),
    ],
)
def test_what_ffmpeg_decodes_is_embedded_as_by_encode(server, served, tmp_path, suffix, container, codec, video):
    pytest.importorskip("av")
    path = media.write(tmp_path / f"sound.{suffix}", noise(), 48_000, container, codec, video=video)
    np.testing.assert_allclose(embedding(server, path.read_bytes()), served.model.encode(path), rtol=0, atol=1e-5)
