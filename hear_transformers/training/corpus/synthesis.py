"""Synthetic sound scenes: twelve families of sounds, one to three of them in a clip, then a recording chain.

The families cover the ways in which everyday sounds arise (plucked, struck, blown, rubbed, boiled, spoken, beeped) with
wide ranges, rather than model single sounds. The ranges are in the code of each family, where they have a meaning.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from . import effects
from .mels import FRAMES, HOP
from .signals import (
    LENGTH,
    RATE,
    TIMES,
    TOP_HZ,
    Dice,
    Signal,
    bends,
    coloured_noise,
    db_to_gain,
    envelope,
    filter_clip,
    low_pass,
    normalise_level,
    partials,
    place,
    poisson_onsets,
    regular_onsets,
    resonance,
    resonances,
    wander,
)

Events = NDArray[np.uint8]

TAU = np.float32(2 * np.pi)
SEMITONES = (0, 2, 3, 5, 7, 8, 10, 12)  # of a scale for melodies
BAR_RATIOS = (1.0, 2.76, 5.40, 8.93, 13.34, 18.64)  # modes of a free bar (Fletcher and Rossing, section 2.15)

VOWELS = np.array(
    [
        [270, 2290, 3010],
        [390, 1990, 2550],
        [530, 1840, 2480],
        [660, 1720, 2410],
        [730, 1090, 2440],
        [570, 840, 2410],
        [440, 1020, 2240],
        [300, 870, 2240],
        [640, 1190, 2390],
        [490, 1350, 1690],
    ],
    float,
)
"""Formants of American English vowels in Hz, men (Peterson and Barney 1952, table II)."""

FORMANT_GAINS = (1.0, 0.7, 0.4)


def harmonic(dice: Dice) -> Signal:
    """Pitched instruments and hums: a few notes of a harmonic or slightly stretched series."""
    base = dice.log_uniform(50, 2500)
    n_notes = dice.integer(1, 6)
    numbers = np.arange(1, min(24, int(TOP_HZ / base)) + 1, dtype=float)
    if dice.chance(0.25):
        numbers = numbers[::2]
    ratios = numbers * np.sqrt(1 + dice.log_uniform(1e-6, 1e-3) * dice.chance(0.4) * numbers**2)
    amplitudes = numbers ** -dice.uniform(0.3, 2.5)
    vibrato, vibrato_hz = dice.uniform(0, 0.02) * dice.chance(0.5), dice.uniform(3, 9)
    shape = dice.log_uniform(0.002, 0.3), dice.log_uniform(0.05, 1), dice.uniform(0, 1), dice.log_uniform(0.01, 0.3)
    breath, overlap = np.float32(dice.uniform(0, 0.15)), dice.uniform(0.6, 1.3)
    scale = dice.rng.choice(SEMITONES, n_notes) if dice.chance(0.7) else np.zeros(n_notes)

    def note(i: int) -> Signal:
        n = min(LENGTH, int(LENGTH / n_notes * overlap))
        frequency = base * 2 ** (scale[i] / 12) * (1 + vibrato * np.sin(TAU * vibrato_hz * TIMES[:n]))
        return (partials(dice, frequency, ratios, amplitudes) + breath * dice.noise(n)) * envelope(n, *shape)

    clip = place(note, np.arange(n_notes) * LENGTH / RATE / n_notes)
    if dice.chance(0.5):
        clip = filter_clip(clip, 0.05 + resonances(dice, dice.integer(1, 4), 150, 9000, (1, 8)))
    return clip


def mode_ratios(dice: Dice, n: int) -> np.ndarray:
    """Draw the frequencies of a struck body's modes, the lowest 1."""
    rule = dice.integer(0, 3)
    if rule == 0:
        return np.concatenate([[1.0], 1 + np.cumsum(dice.uniforms(0.2, 1.5, n - 1))])
    if rule == 1:
        return np.concatenate([[1.0], dice.uniforms(1, 14, n - 1)])
    if rule == 2:
        return np.arange(1, n + 1) ** dice.uniform(1.2, 2.0)
    return np.array(BAR_RATIOS[:n]) * dice.uniforms(0.97, 1.03, min(n, len(BAR_RATIOS)))


def modal(dice: Dice) -> Signal:
    """Struck bodies, from wood blocks to bells: decaying modes and a click."""
    ratios = mode_ratios(dice, dice.integer(3, 15))
    base = dice.log_uniform(80, 3000)
    decay = dice.log_uniform(0.01, 1.2)
    decays = decay * ratios ** -dice.uniform(0, 1.2)
    amplitudes = dice.uniforms(0.1, 1, len(ratios))
    click, click_decay = np.float32(dice.uniform(0, 0.8)), dice.log_uniform(0.001, 0.02)
    n = int(np.clip(decay * 5, 0.08, 2.0) * RATE)
    points = np.exp(-np.linspace(0, n / RATE, 64) / decays[:, None])  # (modes, points)
    click_shape = click * np.exp(-TIMES[:n] / np.float32(click_decay))

    def hit(_: int) -> Signal:
        strength = dice.uniform(0.4, 1) * amplitudes * dice.uniforms(0.7, 1.3, len(ratios))
        modes = partials(dice, np.full(n, base), ratios, strength[:, None] * points)
        return modes + click_shape * dice.noise(n)

    if dice.chance(0.6):
        return place(hit, regular_onsets(dice, dice.log_uniform(0.5, 9), dice.uniform(0, 0.5) ** 2))
    return place(hit, poisson_onsets(dice, dice.log_uniform(0.5, 8)))


def texture(dice: Dice) -> Signal:
    """Wind, sea, rain, hiss, rumble: coloured noise, resonant or not, steady or swelling."""
    clip = coloured_noise(dice, dice.uniform(-1, 3))
    if n := dice.integer(0, 3):
        clip = filter_clip(clip, dice.log_uniform(0.01, 0.3) + resonances(dice, n, 60, 12_000, (0.5, 10)))
    movement = dice.integer(0, 3)
    if movement == 1:
        clip = clip * np.maximum(0, 1 + dice.uniform(0.2, 1) * np.sin(TAU * (dice.log_uniform(0.2, 30) * TIMES)))
    elif movement == 2:
        clip = clip * np.exp(dice.uniform(0.3, 1.5) * wander(dice, dice.log_uniform(0.5, 40)))
    elif movement == 3:
        clip = swell(dice, clip)
    return normalise_level(clip.astype(np.float32))


def swell(dice: Dice, clip: Signal) -> Signal:
    """Make a noise rise and fall once, darker at its height, like a breaking wave or a gust."""
    rise = np.exp(-(((TIMES - dice.uniform(0, 2)) / dice.log_uniform(0.2, 1.5)) ** 2))
    dark = filter_clip(clip, low_pass(dice.log_uniform(500, 4000), order=2))
    return (clip * (1 - rise) + 2 * dark * rise) * (rise + dice.uniform(0.02, 0.3))


def granular(dice: Dice) -> Signal:
    """Fire, rain on a roof, gravel, frying: many small impacts over a bed of noise."""
    n = int(dice.rng.poisson(2 * dice.log_uniform(3, 3000))) + 1
    positions = dice.rng.integers(0, LENGTH, n)
    if dice.chance(0.3):  # in clusters
        density = np.maximum(0, wander(dice, dice.log_uniform(2, 12)))
        positions = positions[dice.rng.random(n) < density[positions]]
    strengths = np.minimum(dice.rng.pareto(dice.uniform(0.8, 4), len(positions)) + 0.05, 30)
    impacts = np.zeros(LENGTH, np.float32)
    np.add.at(impacts, positions, (strengths * dice.rng.choice([-1, 1], len(positions))).astype(np.float32))
    n_grain = int(dice.log_uniform(0.0005, 0.03) * RATE) + 8
    grain = np.zeros(LENGTH, np.float32)
    grain[:n_grain] = dice.noise(n_grain) * np.exp(np.linspace(0, -5, n_grain, dtype=np.float32))
    body = dice.log_uniform(0.01, 0.5) + resonances(dice, dice.integer(1, 3), 400, 12_000, (0.5, 8))
    clip = fft.irfft(fft.rfft(impacts) * fft.rfft(grain) * body, LENGTH)
    return normalise_level(clip) + np.float32(0.7 * dice.log_uniform(0.01, 1)) * texture(dice)


def whistle(dice: Dice) -> Signal:
    """Birds, whistles, insects, sirens: gliding tones with few overtones, once or repeated."""
    duration = dice.log_uniform(0.03, 1.2)
    n = int(duration * RATE)
    glide = dice.log_uniform(300, 9000) * 2 ** bends(dice, dice.integer(2, 5), -1, 1, n)
    trill = dice.uniform(0, 0.3) * dice.chance(0.4) * np.sin(TAU * dice.log_uniform(5, 80) * TIMES[:n])
    frequency = np.clip(glide * 2**trill, 60, 15_000)
    amplitudes = np.concatenate([[1.0], dice.uniforms(0.02, 0.6, dice.integer(0, 4))])
    ratios = np.arange(1.0, len(amplitudes) + 1)
    shape = envelope(n, dice.log_uniform(0.003, 0.2), 0.5, 0.7, dice.log_uniform(0.01, 0.3))
    if dice.chance(0.3):
        shape = shape * (1 + dice.uniform(0, 1) * np.sin(TAU * dice.log_uniform(10, 120) * TIMES[:n]))

    def syllable(_: int) -> Signal:
        detuned = frequency * 2 ** (0.03 * dice.rng.standard_normal())
        return (partials(dice, detuned, ratios, amplitudes) * shape).astype(np.float32)

    if dice.chance(0.7):
        return place(syllable, regular_onsets(dice, min(dice.log_uniform(0.6, 12), 0.9 / duration), 0.05))
    return place(syllable, [dice.uniform(0, 0.8)])


VOICES = {
    # pitch in Hz, duration in s, calls per second, pitch jitter, breath noise
    "babble": ((80, 300), (0.08, 0.4), (2, 6), 0.01, (0.01, 0.2)),
    "cry": ((280, 650), (0.4, 1.5), (0.6, 1.6), 0.02, (0.02, 0.3)),
    "bark": ((150, 900), (0.06, 0.3), (1, 5), 0.06, (0.2, 1.0)),
    "crow": ((350, 1100), (0.15, 0.9), (1, 3), 0.05, (0.05, 0.5)),
    "moo": ((60, 700), (0.3, 1.5), (0.7, 2), 0.03, (0.02, 0.4)),
}

CONTOURS: tuple[Callable[[np.ndarray, float], np.ndarray], ...] = (
    lambda progress, _: -progress,
    lambda progress, _: progress,
    lambda progress, _: 4 * progress * (1 - progress),
    lambda progress, turns: np.sin(turns * progress),
)
"""How the pitch of a call moves."""


def formant_gains(freqs: np.ndarray, formants: np.ndarray, base_width: float, relative_width: float) -> np.ndarray:
    """Compute the gain of three formants: (...) frequencies, (..., 3) formants -> (...)."""
    detuning = (freqs[..., None] - formants) / (base_width + relative_width * formants)
    return (FORMANT_GAINS / (1 + detuning**2)).sum(-1)


def voice(dice: Dice) -> Signal:
    """Voices of people and animals: a buzzing source through three gliding formants, with breath."""
    pitch, duration, rate, jitter, breath = VOICES[str(dice.rng.choice(list(VOICES)))]
    pitch_hz, seconds, breath_level = dice.uniform(*pitch), dice.uniform(*duration), dice.uniform(*breath)
    contour, bend, turns = CONTOURS[dice.integer(0, 3)], dice.uniform(0, 0.6), dice.uniform(2, 9)
    vowels = VOWELS[dice.rng.integers(0, len(VOWELS), 6)] * dice.log_uniform(0.6, 2.2)
    tilt = dice.uniform(0.6, 1.6)
    roughness, rough_hz = dice.uniform(0, 0.9) * dice.chance(0.35), dice.log_uniform(30, 110)

    def call(i: int) -> Signal:
        n = int(seconds * dice.uniform(0.8, 1.2) * RATE)
        n_points = max(8, n // 320)
        progress = np.linspace(0, 1, n_points)
        wobble = jitter * dice.rng.standard_normal(n_points) + 0.05 * dice.rng.standard_normal()
        points_hz = pitch_hz * 2 ** (bend * contour(progress, turns) + wobble)
        formants = vowels[i % 6] + (vowels[(i + 1) % 6] - vowels[i % 6]) * progress[:, None]  # (points, 3)
        numbers = np.arange(1, min(30, int(11_000 / points_hz.max())) + 2, dtype=float)
        gains = formant_gains(numbers[:, None] * points_hz, formants, 60, 0.08) + 0.02  # (partials, points)
        frequency = np.interp(np.linspace(0, 1, n), progress, points_hz)
        source = partials(dice, frequency, numbers, gains * numbers[:, None] ** -tilt)
        source = normalise_level(source * (1 + roughness * np.sin(TAU * rough_hz * TIMES[:n])).astype(np.float32))
        call = source + np.float32(breath_level) * breath_noise(dice, n, formants.mean(0))
        shape = envelope(n, dice.uniform(0.01, 0.08), 0.3, 0.6, dice.uniform(0.02, 0.15))
        return call * shape

    return place(call, regular_onsets(dice, dice.uniform(*rate), 0.1, most=8))


def breath_noise(dice: Dice, n: int, formants: np.ndarray) -> Signal:
    """Make noise of unit level through three fixed formants."""
    gains = formant_gains(fft.rfftfreq(n, 1 / RATE), formants, 150, 0.1) + 0.03 * dice.chance(0.5)
    return normalise_level(fft.irfft(fft.rfft(dice.noise(n)) * gains.astype(np.float32), n))


def engine(dice: Dice) -> Signal:
    """Engines, rotors, saws, fans: a drifting train of pulses that gate noise, and its harmonics."""
    drift = dice.uniform(0, 0.06) * wander(dice, 3) + dice.uniform(-0.2, 0.2) * dice.chance(0.3) * TIMES
    frequency = dice.log_uniform(8, 220) * np.maximum(0.2, 1 + drift)
    cycles = np.cumsum(frequency / RATE, dtype=np.float64)
    pulses = np.exp(-(cycles - np.floor(cycles)) / dice.log_uniform(0.02, 0.5)).astype(np.float32)
    clip = pulses * coloured_noise(dice, dice.uniform(0, 2.5)) * np.float32(dice.uniform(0, 1))
    clip += (pulses - pulses.mean()) * np.float32(dice.uniform(0, 2))
    if n := dice.integer(0, 11):
        numbers = np.arange(1.0, n + 1)
        clip += partials(dice, frequency, numbers * dice.integer(1, 3), dice.uniforms(0, 0.5, n) * numbers**-0.7)
    clip = filter_clip(clip, dice.log_uniform(0.01, 0.3) + resonances(dice, dice.integer(1, 4), 50, 8000, (0.7, 8)))
    return normalise_level(clip) + np.float32(0.5 * dice.log_uniform(0.005, 0.5)) * texture(dice)


def ticks(dice: Dice) -> Signal:
    """Clocks, keys, steps, knocks: short damped clicks, nearly regular, sometimes in pairs or alternating."""
    n = int(0.12 * RATE)
    n_modes = dice.integer(2, 5)
    modes_hz = dice.log_uniforms(300, 9000, n_modes)
    decay = dice.log_uniform(0.001, 0.05)
    alternation = dice.uniform(0.5, 1.1)
    gap = int(dice.uniform(0.02, 0.11) * dice.chance(0.4) * RATE)

    def tick(i: int) -> Signal:
        pitch = alternation if i % 2 else 1.0
        fade = np.exp(-TIMES[:n] / np.float32(decay * dice.uniform(0.8, 1.2)))
        click = partials(dice, np.full(n, pitch), modes_hz, np.ones(n_modes)) * fade + dice.noise(n) * fade**3
        if gap:
            click[gap:] += np.float32(0.5) * click[:-gap].copy()
        return click

    clip = normalise_level(place(tick, regular_onsets(dice, dice.log_uniform(1, 12), dice.uniform(0, 0.05))))
    return clip + np.float32(dice.log_uniform(1e-4, 0.05)) * coloured_noise(dice, dice.uniform(-1, 3))


def burst(dice: Dice) -> Signal:
    """Sneezes, coughs, claps, doors, shots: one to four shaped bursts of noise, some of them voiced."""
    decay, attack = dice.log_uniform(0.02, 0.6), dice.log_uniform(0.001, 0.25)
    n = min(LENGTH, int((4 * decay + attack) * RATE))
    shape = np.minimum(TIMES[:n] / attack, 1) ** 2 * np.exp(-np.maximum(TIMES[:n] - attack, 0) / decay)
    vowel = VOWELS[dice.integer(0, 9)] * dice.log_uniform(0.8, 1.4)
    body = resonances(dice, 3, 300, 7000, (1, 6)) + 0.03 * sum(resonance(formant, 100) for formant in vowel)
    voicing, pitch_hz = dice.uniform(0, 1.6) * dice.chance(0.5), dice.log_uniform(90, 400)
    numbers = np.arange(1.0, 12)
    voiced_gains = (np.exp(-(((numbers * pitch_hz - vowel[0]) / 600) ** 2)) + 0.05) / numbers

    def event(_: int) -> Signal:
        sound = normalise_level(filter_clip(dice.noise(), body))[:n]
        if voicing:
            falling = pitch_hz * (1 - 0.2 * TIMES[:n])
            sound = sound + np.float32(voicing) * partials(dice, falling, numbers, voiced_gains)
        return (sound * shape * dice.uniform(0.4, 1)).astype(np.float32)

    return place(event, np.sort(dice.uniforms(0, 1.7, dice.integer(1, 4))))


def bubbles(dice: Dice) -> Signal:
    """Drips, pouring, boiling: short rising sines, higher ones shorter (van den Doel 2005, section 3)."""
    lowest = dice.log_uniform(200, 1500)
    highest = lowest * dice.log_uniform(1.5, 8)
    rise = dice.uniform(0, 3)

    def bubble(_: int) -> Signal:
        frequency = dice.log_uniform(lowest, highest)
        decay = 0.01 + 0.24 / (0.13 * np.sqrt(frequency) + 0.0072 * frequency**0.75)
        times = TIMES[: int(min(0.3, 6 * decay) * RATE)]
        wave = np.sin(TAU * np.float32(frequency) * times * (1 + np.float32(rise) * times))
        return np.float32(dice.rng.random()) * np.exp(-times / np.float32(decay)) * wave

    clip = normalise_level(place(bubble, poisson_onsets(dice, dice.log_uniform(2, 120))))
    return clip + np.float32(0.3 * dice.log_uniform(1e-3, 0.2)) * texture(dice)


def fm(dice: Dice) -> Signal:
    """Synthesisers, machines, toys: a gliding carrier, frequency modulated, gated or not."""
    frequency = dice.log_uniform(30, 4000) * np.ones(LENGTH, np.float32)
    if dice.chance(0.5):
        frequency = frequency * 2 ** bends(dice, dice.integer(2, 7), -0.6, 0.6)
    cycles = np.cumsum(frequency / RATE, dtype=np.float64)
    index = bends(dice, dice.integer(2, 5), 0, dice.log_uniform(0.2, 12))
    modulation = index * np.sin(2 * np.pi * cycles * dice.log_uniform(0.1, 8))
    clip = np.sin(2 * np.pi * cycles + modulation) * bends(dice, dice.integer(2, 6), 0, 1)
    clip = clip * (1 + dice.uniform(0, 1) * np.sin(TAU * dice.log_uniform(0.5, 60) * TIMES))
    if dice.chance(0.4):
        clip = clip * (np.sin(TAU * dice.log_uniform(0.5, 12) * TIMES) > dice.uniform(-1, 0.8))
    if dice.chance(0.3):
        clip = clip + dice.uniform(0, 0.2) * dice.noise()
    return clip.astype(np.float32)


def alarm(dice: Dice) -> Signal:
    """Beeps, horns, telephones: one to three saturated tones, together or in turn, gated."""
    tones_hz = dice.log_uniforms(300, 4000, dice.integer(1, 3))
    drive, duty = dice.uniform(1, 8), dice.uniform(0.2, 0.9)
    phase = (TIMES * dice.log_uniform(0.7, 25) + dice.rng.random()) % 1
    in_turn = dice.chance(0.5)
    clip = np.zeros(LENGTH)
    for i, tone_hz in enumerate(tones_hz):
        wave = np.tanh(drive * np.sin(2 * np.pi * (tone_hz * TIMES.astype(float) + dice.rng.random())))
        clip += wave * (np.floor(phase * len(tones_hz)) == i) if in_turn else wave
    return (clip * (phase < duty)).astype(np.float32)


FAMILIES: dict[Callable[[Dice], Signal], float] = {
    harmonic: 0.9,
    modal: 0.9,
    texture: 1.1,
    granular: 1.2,
    whistle: 0.9,
    voice: 2.0,
    engine: 1.2,
    ticks: 0.7,
    burst: 0.9,
    bubbles: 0.6,
    fm: 0.7,
    alarm: 0.5,
}
"""Relative frequency of each family."""

SCENE_STREAM = 0  # separates the draws of scenes from those of speech
LAYERS = (1, 1, 1, 2, 2, 3)  # sounds in a scene, each entry equally likely
SCENE_BAND_LIMITED = 0.2
SCENE_NOISE_DB = (-50.0, -12.0)
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
    families, weights = list(FAMILIES), np.array(list(FAMILIES.values()))
    clip = np.zeros(LENGTH, np.float32)
    events = np.zeros((FRAMES, len(families)), np.uint8)
    for i in range(LAYERS[dice.integer(0, len(LAYERS) - 1)]):
        number = int(dice.rng.choice(len(families), p=weights / weights.sum()))
        layer = normalise_level(families[number](dice))
        events[:, number] |= audible(layer)
        clip += db_to_gain(0.0 if i == 0 else dice.uniform(-18, 0)) * layer
    clip = effects.record(dice, clip, SCENE_BAND_LIMITED, SCENE_NOISE_DB)
    if dice.chance(0.12):
        start = dice.integer(int(0.3 * FRAMES), int(0.9 * FRAMES))
        clip[start * HOP :] = 0.0  # digital silence, like a padded recording
        events[start:] = 0
    return effects.randomise_level(dice, clip), events


def audible(layer: Signal) -> NDArray[np.bool_]:
    """Find the mel frames in which a layer sounds: (LENGTH,) -> (FRAMES,)."""
    power = np.square(layer).reshape(FRAMES, HOP).mean(1)  # of the hop behind the centre of the frame
    around = np.maximum(power, np.concatenate([power[:1], power[:-1]]))
    return around > power.max() * 10 ** (AUDIBLE_DB / 10)
