"""From streamed clips to batches: which clips a step sees, and what stays together when they are cropped."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hear_transformers.training.distil import augmentation, clips
from hear_transformers.training.distil.clips import Clips
from tests.helpers.distilling import CPU, SMALL, Loudness, corpus


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def batches(steps: range, recipe=SMALL):
    return list(clips.batches(recipe, corpus, [Loudness()], CPU, steps))


def test_batch_depends_on_its_number_alone():
    _, second, third = batches(range(3))
    (again,) = batches(range(2, 3))
    for kind, ours in third.items():
        assert torch.equal(ours.mels, again[kind].mels)
        assert all(torch.equal(target, again[kind].by_frame[name]) for name, target in ours.by_frame.items())
    assert not torch.equal(second["scenes"].mels, third["scenes"].mels)


def test_batches_are_as_long_as_the_recipe_says():
    for batch in batches(range(4)):
        assert batch["scenes"].mels.shape == (4, 128, 32)
        assert batch["speech"].mels.shape in {(4, 128, 16), (2, 128, 32)}
        assert batch["notes"].mels.shape == (2, 128, 24)
        assert batch["notes"].by_frame["pitches"].shape == (2, 24, 88)


def test_no_steps_need_no_clips():
    assert batches(range(6, 6)) == []


def test_held_out_clips_are_never_trained_on():
    held = clips.held_out(SMALL, corpus, [], CPU)["scenes"].mels
    trained = clips.first_clips(replace(SMALL, statistics_steps=20), corpus, [], CPU)["scenes"].mels
    assert len(held) >= SMALL.held_out
    assert not (held[:, None] == trained).flatten(2).all(2).any()


def test_teachers_are_asked_about_what_they_hear():
    held = clips.held_out(SMALL, corpus, [Loudness()], CPU)
    assert {kind: set(part.by_clip) for kind, part in held.items()} == {
        "scenes": {"logits", "penultimate"},
        "speech": set(),
        "notes": set(),
    }


def test_teachers_hear_what_the_student_hears_but_for_its_masks(monkeypatch):
    def unmasked(rng, mels):
        return mels

    monkeypatch.setattr(augmentation, "mask", unmasked)
    for batch in batches(range(3)):
        assert batch["scenes"].by_clip.keys() == {"logits", "penultimate"}
        for name, answer in Loudness().targets(batch["scenes"].mels).items():
            assert torch.equal(batch["scenes"].by_clip[name], answer)


def test_mixed_scenes_have_the_labels_and_the_power_of_both(rng):
    labels = torch.eye(2, dtype=torch.uint8)[:, None, None].expand(2, 50, 8, 2)  # (which, clips, frames, families)
    mels = torch.from_numpy(rng.normal(0, 0.3, (2, 50, 128, 8)).astype(np.float32))
    ours, others = (Clips(mels[i], {"events": labels[i]}, {}) for i in (0, 1))
    mixed = clips.mix(rng, ours, others)
    is_mixed = (mixed.mels != ours.mels).flatten(1).any(1)
    assert 10 < is_mixed.sum() < 40
    assert (mixed.mels >= ours.mels - 1e-5).all()
    assert mixed.by_frame["events"][is_mixed].all()
    assert torch.equal(mixed.by_frame["events"][~is_mixed], ours.by_frame["events"][~is_mixed])


def test_crops_of_mels_and_labels_are_of_the_same_time():
    labels = torch.arange(200).reshape(5, 40)
    told = Clips(labels.unsqueeze(1).expand(5, 128, 40), {"number": labels}, {"clip": torch.arange(5)})
    cropped = clips.draw_crops(np.random.default_rng(0), told, 5, 16)
    assert torch.equal(cropped.mels[:, 7], cropped.by_frame["number"])
    assert torch.equal(cropped.by_frame["number"][:, 0] // 40, cropped.by_clip["clip"])
    assert sorted(cropped.by_clip["clip"].tolist()) == [0, 1, 2, 3, 4]


# Augmentation


def test_background_adds_power_below_the_speech(rng):
    mels, backgrounds = torch.from_numpy(rng.normal(0, 0.3, (2, 50, 128, 10)).astype(np.float32))
    noisy = augmentation.add_backgrounds(rng, mels, backgrounds, (-45, 0))
    assert (noisy >= mels - 1e-5).all()
    assert (noisy.amax((1, 2)) <= mels.amax((1, 2)) + np.log(2) / 5).all()


def test_shift_moves_by_so_many_bands_at_most(rng):
    bands = torch.arange(128.0)[:, None].repeat(40, 1, 2)
    shifts = augmentation.shift_bands(rng, bands, 3)[:, 64, 0] - 64
    assert set(shifts.tolist()) == {-3, -2, -1, 0, 1, 2, 3}


def test_masks_leave_most_of_a_log_mel(rng):
    mels = torch.from_numpy(rng.normal(0, 1, (100, 128, 80)).astype(np.float32))
    changed = augmentation.mask(rng, mels) != mels
    assert 0.02 < changed.float().mean() < 0.1
    assert changed.all(2).sum(1).max() <= augmentation.BAND_MASK


def test_colour_is_the_same_in_every_frame_and_never_below_silence(rng):
    mels = torch.zeros(20, 128, 6)
    mels[0] = augmentation.SILENCE
    coloured = augmentation.colour(rng, mels)
    assert torch.equal(coloured, coloured[:, :, :1].expand_as(coloured))
    assert coloured.min() >= augmentation.SILENCE
    assert coloured[1:].std() > 0.1


def test_notes_keep_their_pitch(rng, monkeypatch):
    monkeypatch.setattr(augmentation, "shift_bands", lambda *_: pytest.fail("shifted"))
    augmentation.AUGMENT["notes"](rng, torch.zeros(2, 128, 8), lambda: torch.zeros(2, 128, 8))
