"""The optimiser of a recipe, the learning rate of each step, and the average of the weights."""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .recipes import Recipe

FACTOR = "factor"
"""Key of a parameter group: its multiple of the learning rate."""

EXPONENTIAL_STEEPNESS = 5.0  # of the exponential warm-up (Laine and Aila, 1610.02242, appendix A)
EXPONENTIAL_FIRST = 0.5  # epochs at which it starts (PaSST's helpers/ramp.py)


def build_optimiser(module: nn.Module, recipe: Recipe, fresh: tuple[str, ...] = ()) -> torch.optim.Optimizer:
    """Build the optimiser of a recipe.

    Parameters
    ----------
    module : whose parameters are trained
    recipe : without `Recipe.decay_vectors`, biases, norms and other vectors get no weight decay
    fresh : prefixes of the names of reinitialised parameters, which get `Recipe.fresh_factor`

    Returns
    -------
    optimiser : Adam (Kingma and Ba, 1412.6980) or AdamW (Loshchilov and Hutter, 1711.05101)
    """
    groups = []
    for is_fresh, is_matrix in product((False, True), (True, False)):
        group = [
            parameter
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and name.startswith(fresh) == is_fresh and (parameter.ndim > 1) == is_matrix
        ]
        decay = recipe.weight_decay if is_matrix or recipe.decay_vectors else 0.0
        if group:
            factor = recipe.fresh_factor if is_fresh else 1.0
            groups.append({"params": group, "weight_decay": decay, FACTOR: factor})
    kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps, amsgrad=recipe.amsgrad)


def learning_rate_at(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step, counted from 0: warm-up times decay."""
    return recipe.learning_rate * _warm_up(recipe, step, steps_per_epoch) * _decay(recipe, step, steps_per_epoch)


def _warm_up(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the factor that rises to 1."""
    length = recipe.warm_up_steps + recipe.warm_up_epochs * steps_per_epoch
    if step + 1 >= length:
        return 1.0
    if recipe.warm_up_shape == "linear":
        return (step + 1) / length
    progress = max(step, EXPONENTIAL_FIRST * steps_per_epoch) / length
    return math.exp(-EXPONENTIAL_STEEPNESS * (1 - min(1.0, progress)) ** 2)


def _decay(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the factor that falls from 1."""
    epoch = step / steps_per_epoch
    if recipe.decay == "cosine":
        return recipe.floor + (1 - recipe.floor) * 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))
    if recipe.decay == "milestones":
        return recipe.gamma ** sum(epoch >= milestone for milestone in recipe.milestones)
    if recipe.decay == "linear":
        progress = (epoch - recipe.decay_from) / (recipe.decay_to - recipe.decay_from)
        return 1 - (1 - recipe.floor) * min(1.0, max(0.0, progress))
    return 1.0


class Average:
    """The average of a network's weights over training, if the recipe asks for one.

    Parameters
    ----------
    network : whose weights are averaged; none are counted yet
    recipe : "ema" counts after every step, "epochs" after epochs `average_from`, `average_from + average_every`, ...
    """

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        self.recipe = recipe
        self.model: AveragedModel | None = None
        if recipe.average == "ema":
            rule = get_ema_multi_avg_fn(recipe.ema_decay)
            self.model = AveragedModel(network, multi_avg_fn=rule, use_buffers=True)
        elif recipe.average == "epochs":
            self.model = AveragedModel(network, use_buffers=True)

    def after_step(self, network: nn.Module) -> None:
        """Count the weights after a step."""
        if self.model is not None and self.recipe.average == "ema":
            self.model.update_parameters(network)

    def after_epoch(self, network: nn.Module, epoch: int) -> None:
        """Count the weights after an epoch, counted from 1."""
        counted = range(self.recipe.average_from, self.recipe.epochs + 1, self.recipe.average_every)
        if self.model is not None and self.recipe.average == "epochs" and epoch in counted:
            self.model.update_parameters(network)

    def network(self, trained: nn.Module) -> nn.Module:
        """Return the average, or the trained network if none was counted yet."""
        if self.model is None or not self.model.n_averaged:
            return trained
        return self.model.module
