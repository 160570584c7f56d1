"""Augmentation: what is drawn, and what it does to waveforms, mels, targets and weights."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hear_transformers.networks.frontend import AST_MEL, CPJKU_MEL, Waveform
from hear_transformers.panns import PANNS_MEL
from hear_transformers.training import augment
from hear_transformers.training.recipes import RECIPES, Mask, Mixup, Recipe

PLAIN = Recipe(epochs=1, batch_size=8, learning_rate=1e-3)
EVERYTHING = replace(
    PLAIN,
    gain_db=7.0,
    shift_samples=50,
    mixups=(Mixup(of="waveforms", rate=0.5, alpha=2.0), Mixup(of="mels", alpha=0.3, keep_larger=True)),
    masks=(Mask(axis="frequency", widest=20, number=2, value=0.0), Mask(axis="time", widest=30)),
)
N, N_MELS, N_FRAMES = 8, 128, 100


def draw(recipe: Recipe, n: int = N, seed: int = 0) -> dict[str, torch.Tensor]:
    return augment.draw(recipe, np.random.default_rng(seed), n, N_MELS, N_FRAMES)


def clips(*shape: int, n: int = N) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, *shape, generator=generator), torch.eye(n), torch.ones(n)


# Draws


def test_draws_hold_what_the_recipe_asks_for_and_nothing_else():
    assert draw(PLAIN) == {}
    shapes = {name: tuple(values.shape) for name, values in draw(EVERYTHING).items()}
    assert shapes == {
        "gain_db": (N,),
        "shift": (N,),
        "share_of_waveforms": (N,),
        "share_of_mels": (N,),
        "masks": (N, 3, 2),
    }


def test_the_same_generator_draws_the_same():
    torch.testing.assert_close(draw(EVERYTHING), draw(EVERYTHING), rtol=0, atol=0)
    assert not torch.equal(draw(EVERYTHING)["gain_db"], draw(EVERYTHING, seed=1)["gain_db"])


def test_draws_span_what_the_recipe_says_and_no_more():
    draws = draw(EVERYTHING, 10_000)
    assert -7 <= draws["gain_db"].min() < -6.9
    assert 6.9 < draws["gain_db"].max() <= 7
    assert draws["shift"].unique().tolist() == list(range(-50, 51))
    starts, ends = draws["masks"][:, 2].unbind(1)
    assert (ends - starts).unique().tolist() == list(range(31))
    assert starts.min() == 0
    assert ends.max() == N_FRAMES


def test_masks_are_no_wider_than_what_there_is():
    recipe = replace(PLAIN, masks=(Mask(axis="time", widest=192),))
    assert draw(recipe, 10_000)["masks"].max() == N_FRAMES


def test_shares_follow_the_beta_distribution():
    alpha = 0.3
    shares = draw(replace(PLAIN, mixups=(Mixup(of="mels", alpha=alpha),)), 20_000)["share_of_mels"]
    assert shares.mean().item() == pytest.approx(0.5, abs=0.01)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_the_larger_share_is_kept_where_asked_for():
    shares = draw(EVERYTHING, 10_000)["share_of_mels"]
    assert shares.min() >= 0.5


def test_only_a_part_of_the_clips_is_mixed():
    shares = draw(EVERYTHING, 10_000)["share_of_waveforms"]
    assert (shares < 1).float().mean().item() == pytest.approx(0.5, abs=0.02)


# Waveforms


def test_gain_is_in_db():
    recipe = replace(PLAIN, gain_db=20.0)
    waveforms, targets, weights = clips(10)
    gain_db = torch.tensor([20.0, -20.0, 0.0, 6.0, 0.0, 0.0, 0.0, 0.0])
    louder, *others = augment.waveforms(waveforms, targets, weights, {"gain_db": gain_db}, recipe)
    expected = torch.tensor([10, 0.1, 1, 1.9953])
    torch.testing.assert_close(louder[:4] / waveforms[:4], expected.unsqueeze(1).expand(-1, 10), rtol=1e-4, atol=0)
    assert others[0] is targets
    assert others[1] is weights


@pytest.mark.parametrize("shift", [0, 1, -3, 50, -50])
def test_clips_are_rolled_as_by_torch(shift):
    waveforms = clips(10)[0]
    shifts = torch.arange(N) + shift
    expected = torch.stack([row.roll(int(by)) for row, by in zip(waveforms, shifts, strict=True)])
    assert torch.equal(augment.rolled(waveforms, shifts), expected)


def test_a_clip_is_mixed_with_its_neighbour_and_targets_are_too():
    waveforms, targets, weights = clips(10, n=4)
    shares = torch.tensor([0.75, 0.4, 1.0, 0.5])
    mixed, mixed_targets, mixed_weights = augment.mixed((waveforms, targets, weights), shares)
    torch.testing.assert_close(mixed[0], 0.75 * waveforms[0] + 0.25 * waveforms[1])
    torch.testing.assert_close(mixed[1], 0.4 * waveforms[1] + 0.6 * waveforms[0])
    assert torch.equal(mixed[2], waveforms[2])
    torch.testing.assert_close(
        mixed_targets, torch.tensor([[0.75, 0.25, 0, 0], [0.6, 0.4, 0, 0], [0, 0, 1, 0], [0, 0, 0.5, 0.5]])
    )
    assert mixed_weights.tolist() == [1, 1, 1, 1]


def test_the_last_of_an_odd_number_stays_as_it_is():
    waveforms, targets, weights = clips(10, n=3)
    mixed, mixed_targets, mixed_weights = augment.mixed((waveforms, targets, weights), torch.full((3,), 0.3))
    assert torch.equal(mixed[2], waveforms[2])
    assert torch.equal(mixed_targets[2], targets[2])
    assert mixed_weights[2] == 1


def test_a_mix_with_a_clip_that_does_not_count_does_not_count():
    waveforms, targets, _ = clips(10, n=4)
    weights = torch.tensor([0.0, 1.0, 0.0, 1.0])
    _, _, mixed_weights = augment.mixed((waveforms, targets, weights), torch.tensor([0.5, 0.5, 1.0, 1.0]))
    assert mixed_weights.tolist() == [0, 0, 0, 1]


# Mels


def masks_of(mask: Mask, start: int, end: int, spec=CPJKU_MEL) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply one mask to every clip: before, after."""
    mels, targets, weights = clips(N_MELS, N_FRAMES)
    draws = {"masks": torch.tensor([start, end]).expand(N, 1, 2)}
    return mels, augment.mels(mels, targets, weights, draws, replace(PLAIN, masks=(mask,)), spec)[0]


def test_a_mask_blanks_its_bands_and_no_others():
    before, after = masks_of(Mask(axis="frequency", widest=48, value=0.0), 10, 30)
    assert (after[:, 10:30] == 0.9).all(), "a natural logarithm of 0 is (0 + 4.5) / 5 after the front end"
    assert torch.equal(after[:, :10], before[:, :10])
    assert torch.equal(after[:, 30:], before[:, 30:])


def test_a_mask_blanks_its_frames_with_the_mean_of_the_clip():
    before, after = masks_of(Mask(axis="time", widest=48), 90, 100)
    torch.testing.assert_close(after[:, 5, 95], before.mean((1, 2)))
    assert torch.equal(after[:, :, :90], before[:, :, :90])


def test_a_mask_of_no_width_blanks_nothing():
    before, after = masks_of(Mask(axis="time", widest=48), 7, 7)
    assert torch.equal(after, before)


@pytest.mark.parametrize(
    ("spec", "value"), [(AST_MEL, -AST_MEL.mean / AST_MEL.scale), (CPJKU_MEL, 0.9), (PANNS_MEL, 0.0)]
)
def test_zero_means_the_same_before_every_normalisation(spec, value):
    assert spec.normalised(0.0) == pytest.approx(value)


@pytest.mark.parametrize("spec", [AST_MEL, CPJKU_MEL])
def test_normalised_is_what_the_front_end_does(spec):
    level = 3.0
    found = spec.build().log(torch.full((1, 1, 1), math.exp(level)))
    assert spec.normalised(level) == pytest.approx(found.item(), abs=1e-5)


def test_padding_is_a_normalised_zero():
    assert AST_MEL.normalised(0.0) == AST_MEL.padding


def test_masks_come_before_mixing():
    mels, targets, weights = clips(N_MELS, N_FRAMES, n=2)
    recipe = replace(PLAIN, mixups=(Mixup(of="mels", alpha=1.0),), masks=(Mask(axis="time", widest=9, value=0.0),))
    draws = {"share_of_mels": torch.tensor([0.5, 1.0]), "masks": torch.tensor([[[0, 5]], [[3, 9]]])}
    mixed, _, _ = augment.mels(mels, targets, weights, draws, recipe, CPJKU_MEL)
    torch.testing.assert_close(mixed[0, :, 4], torch.full((N_MELS,), 0.9))
    torch.testing.assert_close(mixed[0, :, 7], (mels[0, :, 7] + 0.9) / 2)


def test_a_front_end_without_mels_is_left_alone():
    given = clips(320)
    found = augment.mels(*given, draw(EVERYTHING), EVERYTHING, Waveform(sample_rate=32_000))
    assert all(one is other for one, other in zip(found, given, strict=True))


# A batch


def augmented(recipe: Recipe, draws: dict[str, torch.Tensor], rows: slice = slice(None)) -> list[torch.Tensor]:
    """Augment some rows of a batch: what `waveforms` gives, then what `mels` gives of other inputs."""
    draws = {name: values[rows] for name, values in draws.items()}
    waveforms, targets, weights = (tensor[rows] for tensor in clips(400))
    waveforms, targets, weights = augment.waveforms(waveforms, targets, weights, draws, recipe)
    mels = clips(N_MELS, N_FRAMES)[0][rows]
    return [waveforms, *augment.mels(mels, targets, weights, draws, recipe, AST_MEL)]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_part_of_a_batch_is_augmented_like_the_same_rows_of_the_whole(recipe):
    draws = draw(recipe)
    whole = augmented(recipe, draws)
    for rows in (slice(0, 2), slice(2, 8), slice(4, 8)):
        torch.testing.assert_close(
            augmented(recipe, draws, rows), [tensor[rows] for tensor in whole], rtol=0, atol=1e-6
        )


def test_without_draws_nothing_changes():
    given = clips(400)
    assert augment.waveforms(*given, {}, EVERYTHING) == given
    given = clips(N_MELS, N_FRAMES)
    assert augment.mels(*given, {}, EVERYTHING, CPJKU_MEL) == given


def test_what_is_given_is_not_written_to():
    draws = draw(EVERYTHING)
    waveforms, targets, weights = clips(400)
    mels = clips(N_MELS, N_FRAMES)[0]
    copies = [tensor.clone() for tensor in (waveforms, targets, weights, mels)]
    augment.waveforms(waveforms, targets, weights, draws, EVERYTHING)
    augment.mels(mels, targets, weights, draws, EVERYTHING, CPJKU_MEL)
    assert all(map(torch.equal, copies, (waveforms, targets, weights, mels)))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_augments_alike():
    draws = draw(EVERYTHING)
    on_gpu = {name: values.cuda() for name, values in draws.items()}
    waveforms = [tensor.cuda() for tensor in clips(400)]
    mels = [tensor.cuda() for tensor in clips(N_MELS, N_FRAMES)]
    for found, expected in (
        (augment.waveforms(*waveforms, on_gpu, EVERYTHING), augment.waveforms(*clips(400), draws, EVERYTHING)),
        (
            augment.mels(*mels, on_gpu, EVERYTHING, CPJKU_MEL),
            augment.mels(*clips(N_MELS, N_FRAMES), draws, EVERYTHING, CPJKU_MEL),
        ),
    ):
        torch.testing.assert_close([tensor.cpu() for tensor in found], list(expected), rtol=0, atol=1e-6)
