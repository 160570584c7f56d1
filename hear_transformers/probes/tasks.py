"""Clips with labels, and which of them are trained on, validated on and tested: what a probe is scored on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError, TrainingError

Rows = NDArray[np.int64]

N_FOLDS = 5
"""Folds that are drawn if none are given."""

VALID_FRACTION = 0.2
"""Of the groups of a training set, where nothing else is there to validate on."""

TRAIN, VALID, TEST = "train", "valid", "test"


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Numbers of the clips to train on, to choose settings by, and to test."""

    name: str
    train: Rows
    valid: Rows
    test: Rows


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Clips with labels and splits.

    Attributes
    ----------
    names : of the clips
    classes : names
    targets : (clips, classes) 1 for each label and 0 elsewhere
    groups : (clips,) what must not be on both sides of a split, such as parts of a file
    splits : each with a test
    split_in_words : how they were made
    multi_label : whether a clip may have any number of labels
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    targets: NDArray[np.float32]
    groups: Rows
    splits: tuple[Split, ...]
    split_in_words: str
    multi_label: bool


def make_task(
    names: Sequence[str],
    classes: Sequence[str],
    targets: NDArray[np.float32],
    *,
    folds: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    n_folds: int | None = None,
    seed: int = 0,
    multi_label: bool | None = None,
) -> Task:
    """Make a task: of folds that are given, or drawn.

    Parameters
    ----------
    names : of the clips
    classes : names
    targets : (clips, classes)
    folds : of each clip: "train", "valid" and "test"; or others, each tested in turn, the next validated on
    groups : of each clip, what must not be on both sides of a split; None for the names
    n_folds : to draw, where none are given; None for `N_FOLDS`, or as many as the rarest class has groups
    seed : of the draw
    multi_label : whether a clip may have any number of labels; None for whether one has several, or none

    Raises
    ------
    TrainingError : one class only; a class without clips; a fold without a class; too few groups to split
    OptionError : fewer than two folds
    """
    members, targets = list(names if groups is None else groups), np.asarray(targets, np.float32)
    multi_label = bool((targets.sum(1) != 1).any()) if multi_label is None else multi_label
    if len(names) == 0:
        raise TrainingError("there are no clips to probe")
    if len(classes) < 2 and not multi_label:
        raise TrainingError(f"every clip has the one label {classes[0]!r}; add clips of another class")
    if empty := [name for name, n in zip(classes, targets.sum(0), strict=True) if not n]:
        raise TrainingError(f"no clip has the label {empty[0]!r}; add some, or leave the class out")
    _, numbers = np.unique(members, return_inverse=True)
    numbers = numbers.astype(np.int64)
    if folds is None:
        n = _most_folds(targets, numbers, classes, multi_label) if n_folds is None else n_folds
        of_fold = _drawn(targets, numbers, n, seed, multi_label)
        folds = [f"{fold + 1}" for fold in of_fold]
        of_what = "files" if groups is None else "groups"
        words = f"{n} folds of whole {of_what}, drawn with seed {seed}" + ("" if multi_label else ", stratified")
    else:
        words = f"given: {', '.join(f'{name} ({n})' for name, n in sorted(Counter(folds).items()))}"
    splits = _splits(np.array(folds), numbers, targets, seed, multi_label)
    _check_classes(splits, classes, targets, multi_label)
    return Task(tuple(names), tuple(classes), targets, numbers, splits, words, multi_label)


def _most_folds(targets: NDArray[np.float32], groups: Rows, classes: Sequence[str], multi_label: bool) -> int:
    """Return how many folds to draw: `N_FOLDS`, or fewer so that each has every class where a clip has one."""
    if multi_label:
        return min(N_FOLDS, int(groups.max()) + 1)
    of_class = [len(np.unique(groups[targets[:, i] > 0])) for i in range(len(classes))]
    if min(of_class) < 2:
        rare = classes[int(np.argmin(of_class))]
        raise TrainingError(f"{rare!r} has a single clip or group, which cannot be on both sides of a split; add some")
    return min(N_FOLDS, *of_class)


def _drawn(targets: NDArray[np.float32], groups: Rows, n_folds: int, seed: int, multi_label: bool) -> NDArray[np.int64]:
    """Draw the fold of each clip: groups stay together, and of single labels every fold gets about the same."""
    n_groups = int(groups.max()) + 1
    if n_groups < 2:
        raise TrainingError(
            "what is to be trained on and validated on is of one file or group, which stays together; add clips of "
            "other files, or name what belongs together: --columns group=COLUMN"
        )
    if not 2 <= n_folds <= n_groups:
        raise OptionError(f"folds={n_folds}: choose 2 to {n_groups}, the number of files or groups")
    rng = np.random.default_rng(seed)
    counts = np.zeros((n_groups, targets.shape[1]))
    np.add.at(counts, groups, targets)
    order = rng.permutation(n_groups)
    fold_of, sizes = np.zeros(n_groups, np.int64), np.zeros((n_folds, targets.shape[1]))
    for group in order[np.argsort(-counts[order].max(1), kind="stable")]:  # large ones first
        # The fold that has least of what the group brings, then the smallest.
        wanted = sizes @ (counts[group] / np.maximum(counts.sum(0), 1.0))
        fold = np.lexsort((sizes.sum(1), np.round(wanted, 9)))[0]
        fold_of[group], sizes[fold] = fold, sizes[fold] + counts[group] + (1e-3 if multi_label else 0)
    return fold_of[groups]


def _splits(
    folds: NDArray[np.str_], groups: Rows, targets: NDArray[np.float32], seed: int, multi_label: bool
) -> tuple[Split, ...]:
    names = sorted(
        set(folds.tolist()), key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)
    )
    rows = {name: np.flatnonzero(folds == name) for name in names}
    if TEST in rows and TRAIN in rows and set(rows) <= {TRAIN, VALID, TEST}:
        valid = rows.get(VALID)
        train = rows[TRAIN]
        if valid is None:
            train, valid = _without_fifth(train, groups, targets, seed, multi_label)
        return (Split(TEST, train, valid, rows[TEST]),)
    if len(names) < 2:
        raise OptionError(f"the only fold is {names[0]!r}; give two or more, or train, valid and test, or none at all")
    splits = []
    for i, name in enumerate(names):
        following = names[(i + 1) % len(names)]
        if len(names) > 2:  # as heareval: the next fold is validated on
            train, valid = np.flatnonzero((folds != name) & (folds != following)), rows[following]
        else:
            train, valid = _without_fifth(rows[following], groups, targets, seed, multi_label)
        splits.append(Split(name, train, valid, rows[name]))
    return tuple(splits)


def _without_fifth(
    rows: Rows, groups: Rows, targets: NDArray[np.float32], seed: int, multi_label: bool
) -> tuple[Rows, Rows]:
    """Draw what to validate on from training clips; return both."""
    _, numbers = np.unique(groups[rows], return_inverse=True)
    n_folds = min(round(1 / VALID_FRACTION), int(numbers.max()) + 1)
    is_valid = _drawn(targets[rows], numbers.astype(np.int64), n_folds, seed, multi_label) == 0
    return rows[~is_valid], rows[is_valid]


def _check_classes(
    splits: Sequence[Split], classes: Sequence[str], targets: NDArray[np.float32], multi_label: bool
) -> None:
    """Raise TrainingError if a class is missing where it is trained on, or with single labels where it is tested."""
    for split in splits:
        for part, rows in ((TRAIN, split.train), (TEST, split.test)):
            missing = [classes[i] for i in np.flatnonzero(targets[rows].sum(0) == 0).tolist()]
            if missing and (part == TRAIN or not multi_label):
                where = f"the fold {split.name!r}" if part == TEST else f"what is trained on to test {split.name!r}"
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise TrainingError(
                    f"{where} has no clip of {missing[0]!r}{more}; add clips, leave the class out, or name folds, "
                    "three at least, each with clips of every class"
                )


def of_few(task: Task, n: int, seed: int) -> Task:
    """Return a task with few clips to train on: drawn in turn unless there are enough of all labels of one.

    Parameters
    ----------
    task : whose validation and tests stay
    n : clips of each class; of several labels a clip some classes get more
    seed : of the draw; more clips hold the fewer ones

    Raises
    ------
    OptionError : a class has fewer clips to train on
    """
    return replace(task, splits=tuple(replace(split, train=_few(task, split, n, seed)) for split in task.splits))


def _few(task: Task, split: Split, n: int, seed: int) -> Rows:
    counts = task.targets[split.train].sum(0)
    if (least := int(counts.min())) < n:
        name = task.classes[int(counts.argmin())]
        raise OptionError(
            f"clips per class={n}: to test {split.name!r} there are {least} clips of {name!r} to train on; choose "
            f"1 to {least}"
        )
    taken, left = [], np.full(len(task.classes), n)
    for row in np.random.default_rng(seed).permutation(split.train).tolist():
        if (task.targets[row] * left > 0).any():
            taken.append(row)
            left = np.maximum(left - task.targets[row], 0)
    return np.sort(np.array(taken, np.int64))


def whole(task: Task) -> Split:
    """Return the split that the probe to keep is fitted on: all clips of folds, else what is trained on."""
    if len(task.splits) == 1:
        return task.splits[0]
    valid = task.splits[0].valid
    train = np.setdiff1d(np.arange(len(task.names)), valid)
    return Split("all", train, valid, np.zeros(0, np.int64))
