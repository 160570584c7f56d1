"""HEAR's MLP: the network, the grid and the early stopping of heareval 2021.1.3 (predictions/task_predictions.py)."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .sample import Sample

GRID: dict[str, tuple[Any, ...]] = {
    "hidden_layers": (1, 2),
    "lr": (3.2e-3, 1e-3, 3.2e-4, 1e-4),
    "initialization": ("xavier_uniform_", "xavier_normal_"),
    "hidden_dim": (1024,),
    "dropout": (0.1,),
    "patience": (20,),
    "max_epochs": (500,),
    "check_val_every_n_epoch": (3,),
    "batch_size": (1024,),
}
"""Values that are tried (PARAM_GRID there)."""

GRID_POINTS = 8
"""Points of the grid that are drawn (predictions/runner.py)."""

SEED = 42
"""Added to that of the user; heareval's own."""

GATE = {"lr": 0.01, "patience": 20, "max_epochs": 500, "check_val_every_n_epoch": 3, "batch_size": 1024}

Arrays = dict[str, NDArray[np.float32]]


def fit(sample: Sample) -> tuple[Arrays, dict[str, Any]]:
    """Fit the MLP: of the points of the grid, or with the settings of the sample.

    Returns
    -------
    arrays : "weight0" (hidden, size), "bias0", ..., batch norms folded into them
    settings : of the best point, and "epoch"
    """
    point = {name: sample.settings[name] for name in GRID if name in sample.settings}
    points = [point] if len(point) == len(GRID) else drawn(sample)
    best: tuple[float, nn.Module, dict[str, Any]] | None = None
    for each in points:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED + sample.seed)
            network = build(sample.x.shape[1], sample.y.shape[1], each)
            value, epoch = train(network, sample, each)
        if best is None or value > best[0]:
            best = value, network, {**each, "epoch": epoch}
    assert best is not None
    return folded(best[1]), best[2]


def drawn(sample: Sample) -> list[dict[str, Any]]:
    """Draw points of the grid, with values of the sample's settings in place of the grid's."""
    grid = {name: (sample.settings[name],) if name in sample.settings else GRID[name] for name in GRID}
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    order = np.random.default_rng(SEED + sample.seed).permutation(len(points))
    return [points[i] for i in order[: sample.settings.get("grid_points", GRID_POINTS)]]


def build(size: int, n_classes: int, point: Mapping[str, Any]) -> nn.Sequential:
    """Make the network: linear, batch norm, dropout, ReLU for each hidden layer, and a linear one."""
    layers: list[nn.Module] = []
    initialise = getattr(nn.init, point["initialization"])
    for i in range(point["hidden_layers"]):
        linear = nn.Linear(size, point["hidden_dim"])
        initialise(linear.weight, gain=nn.init.calculate_gain("relu" if i else "linear"))
        size = point["hidden_dim"]
        layers += [linear, nn.BatchNorm1d(size), nn.Dropout(point["dropout"]), nn.ReLU()]
    last = nn.Linear(size, n_classes)
    initialise(last.weight, gain=nn.init.calculate_gain("relu" if layers else "linear"))
    return nn.Sequential(*layers, last)


def train(network: nn.Module, sample: Sample, point: Mapping[str, Any]) -> tuple[float, int]:
    """Train until the validation score has not grown for some checks; keep the best; return its score and epoch.

    As in heareval, rows are not shuffled, and the score, not the loss, is what grows.
    """
    x, y, valid = (torch.from_numpy(np.ascontiguousarray(each)) for each in (sample.x, sample.y, sample.valid_x))
    optimiser = torch.optim.Adam(network.parameters(), lr=point["lr"])
    loss_of = F.binary_cross_entropy_with_logits if sample.multi_label else F.cross_entropy
    best, kept, best_epoch, waited = -math.inf, copy.deepcopy(network.state_dict()), 0, 0
    for epoch in range(point["max_epochs"]):
        network.train()
        for rows, targets in _batches(x, y, point["batch_size"]):
            optimiser.zero_grad(set_to_none=True)
            loss_of(network(rows), targets).backward()
            optimiser.step()
        if (epoch + 1) % point["check_val_every_n_epoch"]:
            continue
        value = sample.value(_probabilities(network, valid, sample.multi_label))
        if value > best:
            best, kept, best_epoch, waited = value, copy.deepcopy(network.state_dict()), epoch, 0
        else:
            waited += 1
            if waited >= point["patience"]:
                break
    network.load_state_dict(kept)
    network.eval()
    return best, best_epoch


def _batches(x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for first in range(0, len(x), size):
        if len(x) - first > 1 or not first:  # a batch norm needs two rows
            yield x[first : first + size], y[first : first + size]


@torch.no_grad()
def _probabilities(network: nn.Module, x: Tensor, multi_label: bool) -> NDArray[np.float32]:
    network.eval()
    logits = network(x)
    activated: NDArray[np.float32] = (torch.sigmoid(logits) if multi_label else torch.softmax(logits, 1)).numpy()
    return activated


@torch.no_grad()
def folded(network: nn.Module) -> Arrays:
    """Return weights and biases of the linear layers, with the batch norms behind them folded in."""
    arrays: Arrays = {}
    pairs: list[tuple[Tensor, Tensor]] = []
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            pairs.append((layer.weight, layer.bias))
        elif isinstance(layer, nn.BatchNorm1d):
            weight, bias = pairs.pop()
            assert layer.running_var is not None
            assert layer.running_mean is not None
            factor = layer.weight / torch.sqrt(layer.running_var + layer.eps)
            pairs.append((weight * factor[:, None], (bias - layer.running_mean) * factor + layer.bias))
    for i, (weight, bias) in enumerate(pairs):
        arrays |= {f"weight{i}": weight.numpy().copy(), f"bias{i}": bias.numpy().copy()}
    return arrays


class Gated(nn.Module):
    """A softmax gate over layers, and a linear classifier.

    Parameters
    ----------
    mean, scale : (size,) of the standardisation
    layer_of : (size,) the layer of each number
    n_layers, n_classes : how many
    """

    mean: Tensor
    scale: Tensor
    layer_of: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, layer_of: Tensor, n_layers: int, n_classes: int) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("scale", scale), ("layer_of", layer_of)):
            self.register_buffer(name, value)
        self.gate = nn.Parameter(torch.zeros(n_layers))
        self.linear = nn.Linear(len(mean), n_classes)

    def factors(self) -> Tensor:
        """Compute what each number of an embedding is multiplied by: (size,), 1 if all layers weigh the same."""
        return len(self.gate) * torch.softmax(self.gate, 0)[self.layer_of]

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits: (clips, size) -> (clips, classes)."""
        return self.linear((x - self.mean) / self.scale * self.factors())


def fit_gated(
    sample: Sample, mean: NDArray[np.float32], scale: NDArray[np.float32], layer_of: NDArray[np.int64], n_layers: int
) -> tuple[Arrays, NDArray[np.float32], dict[str, Any]]:
    """Fit a gate: return the arrays of the linear layer with the gate in it, the gates, and the settings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED + sample.seed)
        centre, width, owner = (torch.from_numpy(each) for each in (mean, scale, layer_of))
        network = Gated(centre, width, owner, n_layers, sample.y.shape[1])
        _, epoch = train(network, sample, GATE)
    with torch.no_grad():
        weight = (network.linear.weight * network.factors()).numpy()
        gates = torch.softmax(network.gate, 0).numpy()
    return {"weight0": weight, "bias0": network.linear.bias.detach().numpy()}, gates, {"epoch": epoch}
