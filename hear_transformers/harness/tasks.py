"""HEAR's task folders, as hearpreprocess writes them and heareval reads them.

TASKS/NAME/task_metadata.json      kind of the task, and its splits
           labelvocabulary.csv
           SPLIT.json              file -> its labels, or its events {"label", "start", "end"} in ms
           RATE/SPLIT/FILE         audio, for each sample rate downloaded
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import OptionError, did_you_mean

METADATA = "task_metadata.json"
VOCABULARY = "labelvocabulary.csv"
KINDS = ("scene", "event")
ALL = "all"

WHERE_FROM = "HEAR's tasks are at https://hearbenchmark.com/hear-tasks.html; give the folder that holds theirs"


@dataclass(frozen=True)
class Task:
    """A HEAR task.

    Attributes
    ----------
    folder : of the task, and its name
    kind : "scene" or "event": one embedding per file, or embeddings along time
    splits : names of the splits
    """

    folder: Path
    kind: str
    splits: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the task, with version and mode."""
        return self.folder.name

    def audio(self, split: str, sample_rate: int) -> Path:
        """Return the folder of a split's audio; raise OptionError if the task lacks this sample rate."""
        folder = self.folder / str(sample_rate) / split
        if not folder.is_dir():
            rates = sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())
            raise OptionError(
                f"{self.folder} has no audio at {sample_rate} Hz, the sample rate of the model; it has "
                f"{', '.join(map(str, rates)) or 'none'}: download the task at {sample_rate} Hz"
            )
        return folder

    @cached_property
    def labels(self) -> dict[str, dict[str, list[Any]]]:
        """Labels or events to predict: split -> file -> list, in the order of the task."""
        return {split: self._labels(split) for split in self.splits}

    def _labels(self, split: str) -> dict[str, list[Any]]:
        path = self.folder / f"{split}.json"
        labels = dict(_read_json(path))
        strange = [name for name in labels if not _is_name(name)]
        if strange:
            raise OptionError(f"{path}: {strange[0]!r} is not the name of a file; the task is damaged")
        return labels


def read_task(folder: Path) -> Task:
    """Read a task's metadata; raise OptionError if the folder holds no task, or a damaged one."""
    path = folder / METADATA
    metadata = _read_json(path)
    kind, splits = metadata.get("embedding_type"), metadata.get("splits")
    if kind not in KINDS:
        raise OptionError(f"{path}: embedding_type is {kind!r}; expected one of {', '.join(KINDS)}")
    if not (isinstance(splits, list) and splits and all(map(_is_name, splits))):
        raise OptionError(f"{path}: splits is {splits!r}; expected names")
    if not (folder / VOCABULARY).is_file():
        raise OptionError(f"{folder} has no {VOCABULARY}; the task is incomplete")
    return Task(folder, kind, tuple(splits))


def find_tasks(tasks_dir: Path, name: str = ALL) -> list[Task]:
    """Find tasks.

    Parameters
    ----------
    tasks_dir : folder that holds task folders; anything else in it is ignored
    name : of one task, or "all"

    Raises
    ------
    OptionError : there is no such task, none at all, or one is damaged
    """
    if not tasks_dir.is_dir():
        raise OptionError(f"tasks-dir={tasks_dir} is not a folder; {WHERE_FROM}")
    folders = {path.parent.name: path.parent for path in sorted(tasks_dir.glob(f"*/{METADATA}"))}
    if not folders:
        raise OptionError(f"tasks-dir={tasks_dir} holds no task; {WHERE_FROM}")
    if name != ALL and name not in folders:
        known = did_you_mean(name, folders, of=f"choose {ALL} or one of")
        raise OptionError(f"task={name!r} is not in {tasks_dir}; {known}")
    return [read_task(folder) for folder in folders.values() if name in (ALL, folder.name)]


def _is_name(value: object) -> bool:
    """Return True for the plain name of a file, not a path that could lead elsewhere."""
    return isinstance(value, str) and value not in ("", ".", "..") and Path(value).name == value


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}: cannot be read ({error}); the task is damaged or incomplete") from error
    if not isinstance(value, dict):
        raise OptionError(f"{path}: holds no JSON object; the task is damaged")
    return value
