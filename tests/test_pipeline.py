"""Clips -> embeddings, in order, each as if it were alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hear_transformers import audio, pipeline
from hear_transformers.checkpoints import sha256_of
from hear_transformers.errors import AudioError
from hear_transformers.pipeline import Clip, embed


def alone(model, waveform: torch.Tensor) -> np.ndarray:
    return model.embed_scenes(waveform[None])[0].numpy()


def test_embeddings_come_in_the_order_of_the_clips(small_model, audio_file):
    seconds = [0.5, 1.0, 0.5, 0.7, 1.0]
    paths = [audio_file(f"{i}.wav", seconds=each) for i, each in enumerate(seconds)]
    embedded = list(embed(small_model, [Clip(path) for path in paths]))
    assert [each.index for each in embedded] == [0, 1, 2, 3, 4]
    assert [each.seconds for each in embedded] == seconds
    for path, each in zip(paths, embedded, strict=True):
        np.testing.assert_allclose(each.embedding, alone(small_model, audio.read(path, 32_000)), atol=1e-5)


def test_embeddings_do_not_wait_for_a_clip_of_rare_length(small_model, audio_file, monkeypatch):
    monkeypatch.setattr(pipeline, "WAITING_BYTES", 3 * 4 * small_model.scene_embedding_size)
    monkeypatch.setattr(small_model, "batch_size", 2)
    n_read = 0

    def clips():
        nonlocal n_read
        for i in range(12):
            n_read = i + 1
            yield Clip(audio_file(f"{i}.wav", seconds=0.4 if i == 0 else 1.0))

    first = next(embed(small_model, clips()))
    assert (first.index, n_read) == (0, 5)


@pytest.mark.parametrize(("start", "end"), [(0.25, 0.75), (0.5, float("inf"))])
@pytest.mark.parametrize("long_seconds", [60.0, 0.1])
def test_a_part_of_a_file_is_embedded_as_if_it_were_a_file(
    small_model, audio_file, monkeypatch, start, end, long_seconds
):
    path = audio_file()
    monkeypatch.setattr(pipeline, "LONG_SECONDS", long_seconds)
    (embedded,) = embed(small_model, [Clip(path, start, end)])
    part = audio.read(path, 32_000)[round(32_000 * start) : round(32_000 * min(end, 1.0))]
    np.testing.assert_allclose(embedded.embedding, alone(small_model, part), atol=1e-5)
    assert embedded.seconds == len(part) / 32_000


def test_a_part_that_begins_behind_the_end_fails(small_model, audio_file):
    for clip in (Clip(audio_file(), 2.0, 3.0), Clip(audio_file(), 2.0)):
        (embedded,) = embed(small_model, [clip])
        assert isinstance(embedded.error, AudioError)
        assert "ends before 2.000 s" in str(embedded.error)


def test_a_waveform_needs_no_file(small_model):
    waveform = torch.rand(32_000)
    (embedded,) = embed(small_model, [Clip(waveform=waveform)])
    np.testing.assert_allclose(embedded.embedding, alone(small_model, waveform), atol=1e-6)


def test_known_content_is_not_embedded_again(small_model, audio_file):
    path, other = audio_file(), audio_file("other.wav", seconds=0.5)
    known, new = embed(small_model, [Clip(path, known=sha256_of(path)), Clip(other, known=sha256_of(path))])
    assert (known.embedding, known.error) == (None, None)
    assert new.embedding is not None
    assert [known.sha256, new.sha256] == [sha256_of(path), sha256_of(other)]


def test_a_clip_that_fails_does_not_stop_the_others(small_model, audio_file):
    lost, good = embed(small_model, [Clip(Path("lost.wav")), Clip(audio_file())])
    assert "no such file" in str(lost.error)
    assert good.embedding is not None
