"""How long the clips of a run are: what the network takes, found out before anything is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..embedding.options import lengthened, shortened
from ..errors import OptionError
from ..hear import usual_frames
from ..networks.family import Family, Variant, shapes_alone
from ..networks.frontend import FrameSpec
from ..networks.trunk import Trunk
from .initialisation import build, row_with
from .recipes import Recipe

LONGEST_SECONDS = 10.24
"""Longest clip, that of AudioSet, for networks that take any length; a recipe may choose another."""


def plan_clips(
    family: Family, name: str, recipe: Recipe, network: Mapping[str, Any], n_clips: int
) -> tuple[Variant, int]:
    """Choose the length of the clips, and run the network once on them, without memory for its numbers.

    Parameters
    ----------
    family, name : of the network and its variant
    recipe : `Recipe.seconds` is the length; None for the window of the variant's scenes, or the longest that a shorter
        or longer network takes
    network : arguments of the network in training that differ from the variant's
    n_clips : that a process trains on at once

    Returns
    -------
    variant : with these arguments, its scenes as long as the network takes, as where it is embedded with
    n_samples : length of the clips

    Raises
    ------
    OptionError : the network takes no clips of this length, or cannot be built or trained with these arguments
    """
    row = row_with(family, name, network, n_classes=2)
    with torch.random.fork_rng(devices=[]), shapes_alone():
        trunk = build(family, name, row).train()
        variant = lengthened(shortened(row, trunk), trunk, usual_frames(family, family.variants[name]))
        n_samples = _clip_samples(variant, trunk, recipe)
        try:
            example = variant.frontend.example(frames_of(variant, n_samples))
            trunk(example.expand(n_clips, *example.shape[1:]), ["logits"])
        except OptionError:
            raise
        except Exception as error:  # the errors that arbitrary arguments cause have no common root
            given = ", ".join(f"{key}={value!r}" for key, value in network.items())
            seconds = n_samples / variant.frontend.sample_rate
            raise OptionError(
                f"{family.name}/{name} cannot be trained with {given or 'these options'} on batches of {n_clips} clips "
                f"of {seconds:g} s: {error}"
            ) from error
    return variant, n_samples


def frames_of(variant: Variant, n_samples: int) -> int:
    """Count the frames that the network reads of a clip: short clips are padded where the authors do."""
    return max(variant.frontend.n_frames(n_samples), variant.scene.fill_frames)


def clip_limits(variant: Variant, trunk: Trunk) -> tuple[int, int | None]:
    """Return the shortest and the longest clip that can be trained on, in samples; None if any is short enough."""
    spec = variant.frontend
    is_padded = variant.scene.fill_frames >= trunk.min_training_frames
    shortest = spec.min_samples if is_padded else spec.n_samples(trunk.min_training_frames)
    return shortest, None if trunk.max_frames is None else spec.max_samples(trunk.max_frames)


def _clip_samples(variant: Variant, trunk: Trunk, recipe: Recipe) -> int:
    """Return the clip length in samples; raise OptionError if the network does not take it."""
    spec = variant.frontend
    seconds = variant.scene.window_ms / 1000.0
    if trunk.max_frames is None:
        seconds = min(seconds, LONGEST_SECONDS)
    if trunk.piece_frames is not None:
        seconds = min(seconds, spec.max_samples(trunk.piece_frames) / spec.sample_rate)
    n_samples = round((recipe.seconds or seconds) * spec.sample_rate)
    shortest, longest = clip_limits(variant, trunk)
    if longest is not None and longest < shortest:
        raise OptionError(
            f"this network takes no clips at all: at least {shortest / spec.sample_rate:.3f} s and at most "
            f"{longest / spec.sample_rate:.3f} s; make it longer, or drop fewer patches in training"
        )
    if n_samples < shortest or (longest is not None and n_samples > longest):
        raise OptionError(
            f"seconds={n_samples / spec.sample_rate:g} is no length of clips that this network trains on; choose "
            f"{describe_limits(spec, shortest, longest)}"
        )
    return n_samples


def describe_limits(spec: FrameSpec, shortest: int, longest: int | None) -> str:
    """Describe lengths in samples, in s, rounded to ms that still lie between them."""
    least = f"{math.ceil(1000 * shortest / spec.sample_rate) / 1000:g}"
    return f"{least} s or more" if longest is None else f"{least} to {longest * 1000 // spec.sample_rate / 1000:g} s"
