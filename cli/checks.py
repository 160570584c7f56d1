"""What options of `embed-audio` mean together, and which do not go together: checked before PyTorch is imported."""

from __future__ import annotations

import os
from typing import Any

import click

from hear_transformers.errors import OptionError

TOP_K = 10
"""Default number of labels per file."""

LOGITS = "logits"
"""Layer that labels are of."""

TIME_OPTIONS = ("hop_ms", "window_ms", "framing", "segment", "overlap")
"""Options of embeddings along time."""

WINDOWED = "windowed"
"""Framing of windows that are centred on their times."""

FRAMEWISE = "framewise"
"""Layer that labels along time may be of, in networks that have it."""

WINDOW_MS, HOP_MS = 2000.0, 500.0
"""Of labels along time: HEAR's windows, 160 ms of most networks, are too short to tell one sound from another."""

OF_SEGMENTS = ("segment", "overlap")
"""Those of them that go with vectors of segments only."""

OF_ONE_MODEL = ("variant", "weights", "weights_prefix", "network", "normalisation", "labels")
"""Options that mean one network."""


def check_one_model(models: tuple[str, ...], options: dict[str, Any]) -> None:
    """Raise UsageError for options that mean one network, beside several models."""
    given = [f"--{name.replace('_', '-')}" for name in OF_ONE_MODEL if options[name]]
    if len(models) > 1 and given:
        raise click.UsageError(
            f"{', '.join(given)}: of one model only, and {len(models)} are named; give it with its --model in a run of "
            "its own, with --out of its folder, such as OUT/model=passt-base; a variant is --model passt/base"
        )


def wants_timestamps(scene: bool | None, options: dict[str, Any]) -> bool:
    """Return True for vectors along time, which options about time imply, False for one vector per file.

    With --scene, options about time ask for the mean over vectors along time: "mean_over_time" is set.
    """
    given = [name for name in TIME_OPTIONS if options[name] is not None]
    if scene and (of_segments := [f"--{name}" for name in given if name in OF_SEGMENTS]):
        raise click.UsageError(
            f"--scene gives one vector per file, and {', '.join(of_segments)} one per segment; leave one of them out"
        )
    if scene and given:
        options["mean_over_time"] = True
    return not scene if scene is not None else bool(given)


def note_on_windows(options: dict[str, Any]) -> str:
    """Return what is to be known of windows as long as their distance, which segments may be meant by; "" of others."""
    hop_ms = options["hop_ms"]
    if hop_ms is None or options["window_ms"] != [hop_ms] or options["framing"] not in (None, WINDOWED):
        return ""
    once, twice = (f"{n * hop_ms / 1000.0:g}" for n in (1, 2))
    return (
        f"Note: windows are centred on 0, {once}, {twice} s, ...: half of the first is mirrored audio, and the end of "
        f"a file may be in none; --segment {once} embeds 0-{once} s, {once}-{twice} s, ..."
    )


def wants_labels(labels: bool, top_k: int | None, options: dict[str, Any], timestamps: bool) -> int:
    """Return the number of labels per file, 0 for none, and choose the layer that they need; refuse another."""
    if not labels:
        if top_k is not None:
            raise click.UsageError("--top-k is the number of labels to print; give --labels too, or leave it out")
        return 0
    if options["layer"] is None:
        options["layer"] = LOGITS
    if timestamps and options["layer"] == LOGITS and not any(options[name] for name in ("window_ms", "segment")):
        options["window_ms"] = [WINDOW_MS]
        options["hop_ms"] = HOP_MS if options["hop_ms"] is None else options["hop_ms"]
    if options["layer"] not in ((LOGITS, FRAMEWISE) if timestamps else (LOGITS,)):
        raise click.UsageError(
            f"--labels needs logits, and layer {options['layer']} was asked for; "
            "give --layer logits or leave it out, with a model that was trained on AudioSet, such as efficientat, "
            "or by you"
        )
    return TOP_K if top_k is None else top_k


def check_words(model: str | None, options: dict[str, Any], *, of_its_own: bool, labels: bool) -> None:
    """Raise OptionError for words that a model does not know; the layers of a file `of_its_own` are not known yet."""
    from hear_transformers import catalogue
    from hear_transformers.embedding.choices import CHOICES

    words = {name: options[name] for name in CHOICES}
    catalogue.check(model, options["variant"], **words)
    try:
        catalogue.check(model, options["variant"], None if of_its_own else options["layer"])
    except OptionError as error:
        if labels:
            raise OptionError(f"{error}; --labels needs a model that makes logits, such as efficientat") from error
        raise


def local_output(out: str) -> str:
    """Return the path of the outputs; a slash at its end, which makes it a folder in any case, stays."""
    from hear_transformers.files import local_path

    path = str(local_path(out, "outputs"))
    return os.path.join(path, "") if out.endswith(("/", os.sep)) else path


def choose_storage(out: str, options: dict[str, Any]) -> str:
    """Return the format of the outputs; raise OptionError if it or the type of the numbers is unknown."""
    from hear_transformers.bulk import formats

    if options["dtype"] is not None:
        formats.check_dtype(options["dtype"])
    return formats.choose_format(out, options["format"])
