"""Embeddings and a task -> scores of a probe, and the probe to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError, TrainingError
from . import metrics
from .fitting import Fitted, fit
from .metrics import Score
from .sample import Sample
from .tasks import Split, Task, whole
from .token_maps import TokenMaps

if TYPE_CHECKING:
    from typing_extensions import Unpack

Floats = NDArray[np.float32]


class Options(TypedDict, total=False):
    """How probes are fitted.

    Attributes
    ----------
    seed : of the probe, 0 without
    columns : layer -> its positions in an embedding, for the gate
    settings : of the probe that are fixed, such as {"C": 1.0}
    """

    seed: int
    columns: Mapping[str, Sequence[int]] | None
    settings: Mapping[str, Any] | None


class Scored(Protocol):
    """What a probe makes of a task, of clips or of events."""

    @property
    def scores(self) -> Mapping[str, Score]:
        """Scores by metric."""

    @property
    def main(self) -> str:
        """Name of the metric that settings are chosen by."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a probe makes of a task.

    Attributes
    ----------
    probe : its name
    scores : by metric, the one that settings are chosen by first
    rows : numbers of the clips that were tested, ascending
    probabilities : (rows, classes) of these
    settings : of the probe for each test
    """

    probe: str
    scores: Mapping[str, Score]
    rows: NDArray[np.int64]
    probabilities: Floats
    settings: Mapping[str, Mapping[str, Any]]

    @property
    def main(self) -> str:
        """Name of the metric that settings are chosen by."""
        return next(iter(self.scores))


def evaluate(embeddings: Floats | TokenMaps, task: Task, probe: str = "logistic", **options: Unpack[Options]) -> Result:
    """Score a probe on a task: fit it for each split, and test it.

    Intervals are drawn from the same clips for all embeddings of a task, see `difference`.

    Parameters
    ----------
    embeddings : (clips, size), in the order of the task; of prototypes token maps
    task : from `tasks.make_task`
    probe : a key of `fitting.PROBES`
    options : see `Options`

    Raises
    ------
    OptionError : the probe is unknown, or there is not one embedding for each clip
    TrainingError : an embedding is not finite

    Examples
    --------
    >>> import numpy as np
    >>> from hear_transformers.probes import evaluation, tasks
    >>> labels, rng = np.eye(2)[np.arange(40) % 2], np.random.default_rng(0)
    >>> task = tasks.make_task([f"{i}.wav" for i in range(40)], ["cat", "dog"], labels, n_folds=4)
    >>> layers = {layer: rng.normal(size=(40, 8)) + 3 * layer * labels[:, :1] for layer in (0, 1)}
    >>> scores = {layer: evaluation.evaluate(each, task, "knn").scores["accuracy"] for layer, each in layers.items()}
    >>> scores[0].value < scores[1].low <= scores[1].value <= scores[1].high
    True
    """
    embeddings = check(embeddings, task)
    tested: list[NDArray[np.int64]] = []
    found: list[Floats] = []
    chosen: dict[str, Mapping[str, Any]] = {}

    def sample(split: Split, fixed: Mapping[str, Any]) -> Sample:
        return _sample(embeddings, task, split, {**options, "settings": fixed})

    for split, _, fitted in fit_each(task.splits, probe, sample, options.get("settings")):
        chosen[split.name] = fitted.settings
        tested.append(split.test)
        found.append(fitted.probabilities(embeddings[split.test]))
    rows, probabilities = np.concatenate(tested), np.concatenate(found)
    full = np.zeros((len(task.names), len(task.classes)), np.float32)
    full[rows] = probabilities
    scores = metrics.score_all(task.targets, full, task.groups, tested, multi_label=task.multi_label)
    order = np.argsort(rows)
    return Result(probe, scores, rows[order], probabilities[order], chosen)


def fit_each(
    splits: Sequence[Split],
    probe: str,
    sample_of: Callable[[Split, Mapping[str, Any]], Sample],
    settings: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Split, Sample, Fitted]]:
    """Fit a probe for each split of a task: yield the split, what the probe was fitted on, and the probe.

    Parameters
    ----------
    splits : of the task
    probe : a key of `fitting.PROBES`
    sample_of : makes what a probe is fitted on, of a split and the settings that are fixed
    settings : of the probe that are fixed
    """
    fixed = dict(settings or {})
    for split in splits:
        sample = sample_of(split, fixed)
        fitted = fit(probe, sample)
        if probe == "mlp":  # as heareval: the grid is searched on the first split
            fixed |= {name: value for name, value in fitted.settings.items() if name != "epoch"}
        yield split, sample, fitted


def evaluate_each(
    embeddings: Mapping[str, Floats | TokenMaps], task: Task, probes: Sequence[str] = ("logistic",), **options: Any
) -> Iterator[tuple[str, Result]]:
    """Score probes on many embeddings of the same clips: yield name and result as they come, see `evaluate`."""
    for name, each in embeddings.items():
        for probe in probes:
            yield name, evaluate(each, task, probe, **options)


def difference(one: Scored, other: Scored, metric: str | None = None) -> Score:
    """Return by how much a result is better than another of the same task, with the interval of the paired draws."""
    name = one.main if metric is None else metric
    first, second = one.scores[name], other.scores[name]
    return metrics.summarise([first.value - second.value], first.draws - second.draws)


def fit_whole(
    embeddings: Floats | TokenMaps, task: Task, probe: str = "logistic", **options: Unpack[Options]
) -> Fitted:
    """Fit the probe to keep: on all clips of folds, else on what is trained on; parameters are those of `evaluate`."""
    return fit(probe, _sample(check(embeddings, task), task, whole(task), options))


def check(embeddings: Floats | TokenMaps, task: Task) -> Floats | TokenMaps:
    """Return embeddings as (clips, size) float32, or token maps; raise an error that names the first clip without."""
    if isinstance(embeddings, TokenMaps):
        shape: Any = (len(embeddings), "time", "freq", "features")
        array: Floats | TokenMaps = embeddings
        rows: Iterable[Floats] = map(embeddings.read, range(len(embeddings)))
    else:
        array = np.asarray(embeddings, np.float32)
        shape, rows = array.shape, array
    if len(shape) < 2 or shape[0] != len(task.names):
        raise OptionError(f"embeddings of shape {shape} for {len(task.names)} clips; give one row for each")
    is_finite = np.array([bool(np.isfinite(each).all()) for each in rows])
    if (bad := np.flatnonzero(~is_finite)).size:
        raise TrainingError(
            f"{task.names[bad[0]]}: its embedding is not finite (NaN or infinite), as are {bad.size - 1} more; "
            "embed these files again"
        )
    return array


def make_sample(
    parts: Sequence[Floats],
    options: Options,
    *,
    multi_label: bool,
    score: Callable[[Floats], float] | None = None,
    maps: TokenMaps | None = None,
) -> Sample:
    """Return what a probe is fitted on.

    Parameters
    ----------
    parts : embeddings and targets to train on, and to validate on
    options : see `Options`
    multi_label, score, maps : see `Sample`
    """
    settings, columns = dict(options.get("settings") or {}), options.get("columns") or {}
    x, y, valid_x, valid_y = parts
    return Sample(x, y, valid_x, valid_y, multi_label, options.get("seed", 0), settings, score, columns, maps)


def _sample(embeddings: Floats | TokenMaps, task: Task, split: Split, options: Options) -> Sample:
    maps = embeddings if isinstance(embeddings, TokenMaps) else None
    numbers = np.arange(len(task.names), dtype=np.float32)[:, None]
    rows = numbers if isinstance(embeddings, TokenMaps) else embeddings
    parts = rows[split.train], task.targets[split.train], rows[split.valid], task.targets[split.valid]
    return make_sample(parts, options, multi_label=task.multi_label, maps=maps)
