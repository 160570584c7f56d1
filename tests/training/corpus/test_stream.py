"""The stream of batches: a batch depends on seed and number alone."""

import numpy as np
import pytest

from hear_transformers.errors import OptionError
from hear_transformers.training.corpus.notes import N_PITCHES
from hear_transformers.training.corpus.stream import FAMILIES, PHONES, Batch, CorpusOptions, stream
from tests.training.corpus.test_speech import needs_espeak

SMALL = CorpusOptions(scenes=2, speech=2, notes=1, waveforms=True)
SILENT = CorpusOptions(scenes=2, speech=0, notes=1)


def arrays(batch: Batch) -> list[np.ndarray]:
    parts = (batch.scenes, batch.speech, batch.notes)
    return [
        array for part in parts for array in (part.waveforms, part.mels, *part.labels.values()) if array is not None
    ]


def made(options: CorpusOptions, steps: list[int], workers: int) -> dict[int, list[np.ndarray]]:
    return {batch.step: arrays(batch) for batch in stream(options, steps, workers)}


@pytest.mark.parametrize("options", [pytest.param(SMALL, marks=needs_espeak), SILENT], ids=["all", "without speech"])
def test_batch_is_the_same_whoever_makes_it(options):
    expected = made(options, [0, 1, 2], 0)
    for workers, steps in [(1, [2, 1]), (2, [1, 2, 0])]:
        found = made(options, steps, workers)
        assert list(found) == steps
        for step in steps:
            for ours, theirs in zip(found[step], expected[step], strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_batches_of_other_numbers_and_seeds_are_others():
    batches = [*made(SILENT, [0, 1], 0).values(), *made(CorpusOptions(seed=1, scenes=2, speech=0), [0], 0).values()]
    mels = [batch[0] for batch in batches]
    assert not np.array_equal(mels[0], mels[1])
    assert not np.array_equal(mels[0], mels[2])


@needs_espeak
def test_batch_has_clips_of_three_kinds_with_their_labels():
    (batch,) = stream(SMALL, [7], 0)
    assert batch.step == 7
    for part, n, name, shape in [
        (batch.scenes, 2, "events", (200, len(FAMILIES))),
        (batch.speech, 2, "phones", (200,)),
        (batch.notes, 1, "pitches", (200, N_PITCHES)),
    ]:
        assert part.mels.shape == (n, 128, 200)
        assert part.mels.dtype == np.float16
        assert np.isfinite(part.mels).all()
        assert part.waveforms.shape == (n, 64_000)
        assert part.waveforms.dtype == np.int16
        assert np.abs(part.waveforms).max(1).min() > 1000
        assert part.labels[name].shape == (n, *shape)
        assert part.labels[name].dtype == np.uint8
    assert batch.speech.labels["phones"].max() < len(PHONES)


def test_waveforms_are_left_out_unless_wanted():
    (batch,) = stream(SILENT, [0], 0)
    assert batch.scenes.waveforms is None
    assert len(batch.speech.mels) == 0


def test_an_earlier_batch_stays_as_it_was():
    batches = list(stream(SILENT, [0, 1, 2, 3, 4, 5], 1))
    (again,) = stream(SILENT, [0], 0)
    np.testing.assert_array_equal(batches[0].scenes.mels, again.scenes.mels)


@pytest.mark.parametrize("name", ["seed", "scenes", "speech", "notes"])
def test_negative_numbers_are_refused(name):
    with pytest.raises(OptionError, match=f"{name}=-1"):
        CorpusOptions(**{name: -1})


def test_negative_numbers_of_processes_are_refused():
    with pytest.raises(OptionError, match="workers=-1"):
        next(stream(SILENT, [0], -1))
