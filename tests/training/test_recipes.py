"""Recipes: what they may hold, and the numbers of the papers."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from hear_transformers.errors import OptionError
from hear_transformers.training.optimisation import learning_rate_at
from hear_transformers.training.recipes import RECIPES, Mask, Mixup, Recipe, with_changes

PLAIN = Recipe(epochs=10, batch_size=4, learning_rate=1e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_goes_through_json(name):
    recipe = RECIPES[name]
    read = json.loads(json.dumps(asdict(recipe)))
    again = with_changes(PLAIN, **read)
    assert json.dumps(asdict(again)) == json.dumps(asdict(recipe))
    assert replace(again, network=recipe.network) == recipe


def test_recipes_compare_by_their_values():
    assert replace(PLAIN, epochs=10) == PLAIN
    assert replace(PLAIN, masks=(Mask(axis="time", widest=3),)) != PLAIN


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs=0 is not allowed; give a whole number of at least 1"),
        ({"epochs": 2.5}, "epochs=2.5"),
        ({"batch_size": "many"}, "batch_size='many'"),
        ({"learning_rate": float("nan")}, "learning_rate=nan is not allowed; give a number above 0"),
        ({"learning_rate": "fast"}, "learning_rate='fast'"),
        ({"optimiser": "sgd"}, "optimiser='sgd' is not allowed; give one of adam, adamw"),
        ({"betas": (0.9, 1.0)}, "two numbers from 0 to below 1"),
        ({"betas": 0.9}, "betas=0.9"),
        ({"weight_decay": -1e-3}, "a number of at least 0"),
        ({"amsgrad": "yes"}, "True or False"),
        ({"warm_up_shape": "cosine"}, "one of linear, exponential"),
        ({"decay": "step"}, "one of none, cosine, milestones, linear"),
        ({"milestones": (5, 5)}, "epochs above 0 in order"),
        ({"floor": 2.0}, "a number from 0 to 1"),
        ({"gradient_norm": 0.0}, "a number above 0, or None"),
        ({"precision": "float16"}, "one of bfloat16, float32"),
        ({"average": "swa"}, "one of none, ema, epochs"),
        ({"ema_decay": 1.0}, "a number between 0 and 1"),
        ({"average_from": 0}, "a whole number of at least 1"),
        ({"balance": -1.0}, "a number of at least 0, or None"),
        ({"seconds": 0.0}, "a number above 0, or None"),
        ({"gain_db": -6.0}, "gain_db=-6.0"),
        ({"shift_samples": 0.5}, "a whole number"),
        ({"mixups": (Mixup(of="mels", alpha=1.0),) * 2}, "at most one Mixup of waveforms and one of mels"),
        ({"masks": ("time",)}, "masks=.*give Masks"),
        ({"network": 3}, "arguments of the network by name"),
        ({"warm_up_steps": 5, "warm_up_epochs": 1.0}, "both given; set one of them to 0"),
        ({"decay": "linear", "decay_from": 5.0, "decay_to": 5.0}, "give a later decay_to"),
        ({"decay": "milestones"}, "give the epochs"),
    ],
)
def test_recipe_says_what_is_wrong_with_it(changes, message):
    with pytest.raises(OptionError, match=message):
        with_changes(PLAIN, **changes)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Mixup, {"of": "labels", "alpha": 1.0}, "one of waveforms, mels"),
        (Mixup, {"of": "mels", "alpha": 0.0}, "alpha=0.0"),
        (Mixup, {"of": "mels", "alpha": 1.0, "rate": 1.5}, "rate=1.5"),
        (Mask, {"axis": "mel", "widest": 8}, "one of frequency, time"),
        (Mask, {"axis": "time", "widest": -1}, "widest=-1"),
        (Mask, {"axis": "time", "widest": 8, "number": 0}, "number=0"),
        (Mask, {"axis": "time", "widest": 8, "value": float("inf")}, "value=inf"),
    ],
)
def test_a_part_says_what_is_wrong_with_it(kind, values, message):
    with pytest.raises(OptionError, match=message):
        kind(**values)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(OptionError, match=r"Recipe: lr unknown; choose from epochs, batch_size, learning_rate, .*"):
        with_changes(PLAIN, lr=1.0)


def test_parts_come_as_json_has_them():
    changed = with_changes(PLAIN, masks=[{"axis": "time", "widest": 8}], betas=[0.5, 0.9])
    assert changed.masks == (Mask(axis="time", widest=8),)
    assert changed.betas == (0.5, 0.9)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([{"axis": "time", "width": 8}], "Mask: width unknown; choose from axis, widest, number, value"),
        ([{"axis": "time"}], "Mask: .*is incomplete.*widest"),
    ],
)
def test_a_wrong_part_in_json_is_named(masks, message):
    with pytest.raises(OptionError, match=message):
        with_changes(PLAIN, masks=masks)


# The papers' learning rates, at the start of some epochs (with 100 steps each)

RATES = {
    "ast_audioset_balanced": {11: 2.5e-5, 14.99: 2.5e-5, 15: 1.25e-5, 20: 6.25e-6, 24.99: 6.25e-6},
    "ast_esc50": {4.99: 1e-4, 5: 0.85e-4, 7: 0.85**3 * 1e-4},
    "ast_esc50_from_audioset": {0: 1e-5},
    "passt_audioset": {0: 2e-5 * np.exp(-5 * 0.9**2), 5: 2e-5, 50: 2e-5, 75: 2e-5 * 0.505, 100: 2e-7, 129: 2e-7},
    "panns_audioset": {0: 1e-3, 9: 1e-3},
    "atgnn_fsd50k": {10: 2.5e-4, 45: 5e-4 / 2**8, 49.99: 5e-4 / 2**8},
    "efficientat_esc50": {10: 6e-5, 75: 6e-7},
}


@pytest.mark.parametrize("name", RATES)
def test_learning_rate_is_the_authors(name):
    for epoch, rate in RATES[name].items():
        assert learning_rate_at(RECIPES[name], round(epoch * 100), 100) == pytest.approx(rate, rel=1e-6)


def test_panns_train_for_600_000_steps():
    recipe = RECIPES["panns_audioset"]
    assert recipe.epochs * recipe.epoch_clips / recipe.batch_size == 600_000
