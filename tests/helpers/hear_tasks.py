"""Small HEAR tasks, as hearpreprocess writes them: scenes and events, from synthesised sounds or ESC-10.

TASKS/NAME-VERSION-MODE/task_metadata.json, labelvocabulary.csv
                        SPLIT.json                 scenes: file -> [label]; events: file -> [{label, start, end}], ms
                        SAMPLE_RATE/SPLIT/FILE     mono PCM16
"""

import csv
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

HARNESS = os.environ.get("HEAR_PYTHON", "")
"""Interpreter that has HEAR's harness."""

needs_harness = pytest.mark.skipif(not HARNESS, reason="`make test` installs HEAR's harness and sets HEAR_PYTHON")

ESC10 = Path(__file__).parents[3] / "shared" / "data" / "esc10"

SAMPLE_RATE = 32_000  # of all sounds, before they are written
SCENE_SECONDS = 2.5
EVENT_SECONDS = 0.8
MIX_SECONDS = 10.0
EVENTS_PER_MIX = 6
FADE_SECONDS = 0.01
BACKGROUND_DB, LOUDER_DB = -45.0, (15.0, 25.0)  # RMS of the noise, and of events relative to it
QUIET_DB = -20.0  # below its peak, where a sound begins

SCENES, EVENTS = "small_scenes-v1-full", "small_events-v1-full"
SPLITS = ("train", "valid", "test")

Waveform = np.ndarray[Any, np.dtype[np.float64]]
Fold = Mapping[str, Sequence[Waveform]]
"""Sounds by label."""


# Sounds


def _times(seconds: float) -> Waveform:
    return np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _hz(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _band(rng: np.random.Generator, t: Waveform) -> Waveform:
    """Make noise of one octave."""
    spectrum = np.fft.rfft(rng.standard_normal(len(t)))
    frequencies = np.fft.rfftfreq(len(t), 1 / SAMPLE_RATE)
    low = _hz(rng, 300, 5_000)
    spectrum[(frequencies < low) | (frequencies > 2 * low)] = 0
    return np.fft.irfft(spectrum, len(t))


def tone(rng: np.random.Generator, t: Waveform) -> Waveform:
    return np.sin(2 * np.pi * _hz(rng, 300, 4_000) * t)


def harmonics(rng: np.random.Generator, t: Waveform) -> Waveform:
    pitch = _hz(rng, 80, 300)
    return sum((np.sin(2 * np.pi * k * pitch * t + rng.uniform(0, 6)) / k for k in range(1, 15)), np.zeros_like(t))


def chirp(rng: np.random.Generator, t: Waveform) -> Waveform:
    begin, end = _hz(rng, 200, 1_000), _hz(rng, 2_000, 8_000)
    phase = 2 * np.pi * (begin * t + (end - begin) * t**2 / (2 * t[-1]))
    return np.sin(phase if rng.random() < 0.5 else phase[::-1])


def noise(rng: np.random.Generator, t: Waveform) -> Waveform:
    return _band(rng, t)


def pulsing_noise(rng: np.random.Generator, t: Waveform) -> Waveform:
    return _band(rng, t) * (np.sin(2 * np.pi * _hz(rng, 3, 9) * t) > rng.uniform(-0.5, 0.5))


def clicks(rng: np.random.Generator, t: Waveform) -> Waveform:
    since = t % (1 / _hz(rng, 3, 15))
    return np.sin(2 * np.pi * _hz(rng, 1_000, 6_000) * since) * np.exp(-since * _hz(rng, 100, 400))


SOUNDS: tuple[Callable[[np.random.Generator, Waveform], Waveform], ...] = (
    tone,
    harmonics,
    chirp,
    noise,
    pulsing_noise,
    clicks,
)


def synthesised(n_folds: int, n_per_label: int, seconds: float, seed: int = 0) -> list[Fold]:
    """Make sounds of random pitch and rate, with a little noise."""

    def sound(label: int, of: Callable[[np.random.Generator, Waveform], Waveform], *which: int) -> Waveform:
        rng = np.random.default_rng((seed, label, *which))
        t = _times(seconds)
        return set_level(of(rng, t), rng.uniform(-30, -15)) + 10 ** (-50 / 20) * rng.standard_normal(len(t))

    return [
        {of.__name__: [sound(i, of, fold, k) for k in range(n_per_label)] for i, of in enumerate(SOUNDS)}
        for fold in range(n_folds)
    ]


def esc10(n_folds: int, n_per_label: int, seconds: float, labels: Sequence[str] = ()) -> list[Fold]:
    """Read the first clips of each label and fold of ESC-10, cut to start where they become audible."""
    folds: list[dict[str, list[Waveform]]] = [{} for _ in range(n_folds)]
    with (ESC10 / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            fold = int(row["fold"]) - 1
            if fold < n_folds and (not labels or row["label"] in labels):
                clips = folds[fold].setdefault(row["label"], [])
                if len(clips) < n_per_label:
                    clips.append(_read_audible(ESC10 / "audio" / row["filename"], seconds))
    return list(folds)


def _read_audible(path: Path, seconds: float) -> Waveform:
    """Read a clip, from its first frame of 10 ms that is nearly as loud as the loudest."""
    waveform, rate = soundfile.read(path)
    waveform = soxr.resample(waveform, rate, SAMPLE_RATE)
    frame = SAMPLE_RATE // 100
    n_frames = len(waveform) // frame
    level = np.sqrt((waveform[: n_frames * frame].reshape(n_frames, frame) ** 2).mean(1))
    begin = frame * int(np.argmax(level >= level.max() * 10 ** (QUIET_DB / 20)))
    n_samples = round(seconds * SAMPLE_RATE)
    return np.pad(waveform[begin : begin + n_samples], (0, max(0, begin + n_samples - len(waveform))))


def set_level(waveform: Waveform, rms_db: float) -> Waveform:
    """Scale a sound to an RMS level."""
    rms = np.sqrt(np.mean(waveform**2))
    return waveform * (10 ** (rms_db / 20) / rms)


# Tasks


def write_scenes(tasks: Path, folds: Sequence[Fold], sample_rates: Sequence[int], grid: Mapping[str, Any]) -> None:
    """Write a task of whole clips with one label each, and one split per fold."""
    splits = {
        f"fold{i:02d}": {
            f"{label}-{k}.wav": (waveform, [label])
            for label, waveforms in fold.items()
            for k, waveform in enumerate(waveforms)
        }
        for i, fold in enumerate(folds)
    }
    metadata = {
        "embedding_type": "scene",
        "prediction_type": "multiclass",
        "split_mode": "presplit_kfold",
        "nfolds": len(folds),
        "sample_duration": SCENE_SECONDS,
        "evaluation": ["top1_acc", "mAP"],
    }
    _write(tasks / SCENES, metadata, splits, sample_rates, grid)


def write_events(
    tasks: Path, folds: Sequence[Fold], n_mixes: Sequence[int], sample_rates: Sequence[int], grid: Mapping[str, Any]
) -> None:
    """Write a task of events in noise, with mixes for training, validation and test, each from one fold."""
    splits = {}
    for split, fold, n in zip(SPLITS, folds, n_mixes, strict=True):
        rng = np.random.default_rng([SPLITS.index(split)])
        splits[split] = {f"{split}-{i}.wav": _mix(fold, rng) for i in range(n)}
    metadata = {
        "embedding_type": "event",
        "prediction_type": "multilabel",
        "split_mode": "trainvaltest",
        "sample_duration": MIX_SECONDS,
        "evaluation": ["event_onset_200ms_fms", "segment_1s_er"],
    }
    _write(tasks / EVENTS, metadata, splits, sample_rates, grid)


def _mix(fold: Fold, rng: np.random.Generator) -> tuple[Waveform, list[dict[str, Any]]]:
    """Mix events into noise, one per slot of time: return the mix and its events."""
    slot = MIX_SECONDS / EVENTS_PER_MIX
    mix = 10 ** (BACKGROUND_DB / 20) * rng.standard_normal(len(_times(MIX_SECONDS)))
    fades = np.minimum(1, np.minimum(_times(EVENT_SECONDS), _times(EVENT_SECONDS)[::-1]) / FADE_SECONDS)
    events = []
    for i in range(EVENTS_PER_MIX):
        label = str(rng.choice(sorted(fold)))
        waveform = fold[label][rng.integers(len(fold[label]))][: len(fades)]
        begin = round((i * slot + rng.uniform(0, slot - EVENT_SECONDS)) * SAMPLE_RATE)
        mix[begin : begin + len(fades)] += fades * set_level(waveform, BACKGROUND_DB + rng.uniform(*LOUDER_DB))
        start_ms = 1000 * begin / SAMPLE_RATE
        events.append({"label": label, "start": start_ms, "end": start_ms + 1000 * EVENT_SECONDS})
    return mix, events


def _write(
    folder: Path,
    metadata: Mapping[str, Any],
    splits: Mapping[str, Mapping[str, tuple[Waveform, list[Any]]]],
    sample_rates: Sequence[int],
    grid: Mapping[str, Any],
) -> None:
    """Write a task: splits hold files, files a waveform and its labels or events."""
    labels = set()
    for split, files in splits.items():
        for name, (waveform, marks) in files.items():
            labels |= {mark["label"] if isinstance(mark, dict) else mark for mark in marks}
            for rate in sample_rates:
                path = folder / str(rate) / split / name
                path.parent.mkdir(parents=True, exist_ok=True)
                resampled = np.clip(soxr.resample(waveform, SAMPLE_RATE, rate), -1, 1)
                soundfile.write(path, resampled, rate, subtype="PCM_16")
        _write_json(folder / f"{split}.json", {name: marks for name, (_, marks) in files.items()})
    (folder / "labelvocabulary.csv").write_text("\n".join(["idx,label", *map(_row, enumerate(sorted(labels)))]) + "\n")
    name, version, mode = folder.name.split("-")
    described = {"task_name": name, "version": version, "mode": mode, "splits": list(splits), **metadata}
    # Where heareval looks for a grid of the task's own (predictions/task_predictions.py:1336).
    own_grid = {"evaluation_params": {"task_specific_param_grid": dict(grid)}}
    _write_json(folder / "task_metadata.json", {**described, **own_grid})


def _row(cells: tuple[int, str]) -> str:
    return ",".join(map(str, cells))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=True))
