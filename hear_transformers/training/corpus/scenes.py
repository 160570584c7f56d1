"""Sound scenes: one to three sounds of different families, each for a time of its own, through a recording chain."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from . import effects, families, instruments, nature
from .mels import FRAMES, HOP
from .signals import LENGTH, RATE, Dice, Signal, db_to_gain, normalise_level

Events = NDArray[np.uint8]

FAMILIES: dict[Callable[[Dice], Signal], float] = {
    families.harmonic: 0.6,
    families.modal: 0.9,
    families.texture: 0.9,
    families.granular: 1.0,
    families.whistle: 0.6,
    families.voice: 2.0,
    families.engine: 1.0,
    families.ticks: 0.7,
    families.burst: 0.9,
    families.bubbles: 0.5,
    families.fm: 0.5,
    families.alarm: 0.5,
    instruments.music: 1.2,
    nature.insects: 0.5,
    nature.birds: 0.8,
    nature.wind: 0.5,
    nature.stream: 0.6,
    nature.rain: 0.6,
    nature.footsteps: 0.6,
    nature.squeak: 0.6,
    nature.clatter: 0.6,
    nature.hum: 0.6,
    nature.explosion: 0.5,
}
"""Families of sounds, and the relative frequency of each."""

WEIGHTS = np.array(list(FAMILIES.values())) / sum(FAMILIES.values())

SCENE_STREAM = 0  # separates the draws of scenes from those of speech and notes
LAYERS = (1, 1, 1, 2, 2, 3)  # sounds in a scene, each entry equally likely
WHOLE_SHARE = 0.6  # fraction of the sounds that last as long as the clip
SHORTEST = 0.3  # s that another one lasts at least
FADE = 0.02  # s in which it comes and goes
BAND_LIMITED = 0.2
NOISE_DB = (-50.0, -12.0)
AUDIBLE_DB = -40.0  # a layer sounds in frames that are at most so far below its loudest one


def scene(seed: int, step: int, index: int) -> tuple[Signal, Events]:
    """Synthesise one scene of two seconds; the same arguments give the same samples.

    Parameters
    ----------
    seed : of the corpus
    step, index : which batch, which clip of it

    Returns
    -------
    waveform : (LENGTH,) in [-1, 1] at `RATE`
    events : (FRAMES, families) 1 where a family sounds
    """
    dice = Dice(seed, SCENE_STREAM, step, index)
    makers = list(FAMILIES)
    clip = np.zeros(LENGTH, np.float32)
    events = np.zeros((FRAMES, len(makers)), np.uint8)
    n_layers = LAYERS[dice.integer(0, len(LAYERS) - 1)]
    for i, number in enumerate(dice.rng.choice(len(makers), n_layers, replace=False, p=WEIGHTS)):
        sound = layer(dice, makers[number])
        events[:, number] = audible(sound)
        clip += db_to_gain(0.0 if i == 0 else dice.uniform(-18, 0)) * sound
    clip = effects.record(dice, clip, BAND_LIMITED, NOISE_DB)
    if dice.chance(0.12):
        start = dice.integer(int(0.3 * FRAMES), int(0.9 * FRAMES))
        clip[start * HOP :] = 0.0  # digital silence, like a padded recording
        events[start:] = 0
    return effects.randomise_level(dice, clip), events


def layer(dice: Dice, family: Callable[[Dice], Signal]) -> Signal:
    """Make a sound of a family and of unit level, for all of the clip or a part of it."""
    sound = normalise_level(family(dice))
    if dice.chance(WHOLE_SHARE):
        return sound
    n = int(dice.uniform(SHORTEST, LENGTH / RATE) * RATE)
    start = dice.integer(0, LENGTH - n)
    part = np.zeros(LENGTH, np.float32)
    ramp = np.minimum(np.arange(n, dtype=np.float32) / np.float32(FADE * RATE), 1)
    part[start : start + n] = sound[start : start + n] * ramp * ramp[::-1]
    # What is left of a sparse sound may be a tail: then all of it is better.
    return normalise_level(part) if np.abs(part).max() > 0.1 * np.abs(sound).max() else sound


def audible(sound: Signal) -> NDArray[np.bool_]:
    """Find the mel frames in which a sound is heard: (LENGTH,) -> (FRAMES,)."""
    power = np.square(sound).reshape(FRAMES, HOP).mean(1)  # of the hop behind the centre of the frame
    around = np.maximum(power, np.concatenate([power[:1], power[:-1]]))
    return around > power.max() * 10 ** (AUDIBLE_DB / 10)
