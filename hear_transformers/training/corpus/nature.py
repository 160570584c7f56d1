"""Families of sounds after models of what makes them: insects, birds, wind, water, steps, friction.

Ranges are those of the sources named at each family, rounded and widened a little.
"""

from __future__ import annotations

import numpy as np

from .families import BAR_RATIOS, TAU, texture
from .signals import (
    FREQS,
    LENGTH,
    RATE,
    SOUND_SPEED,
    TIMES,
    Dice,
    Signal,
    bends,
    colour,
    coloured_noise,
    envelope,
    filter_clip,
    harmonics,
    modes,
    normalise_level,
    phasor,
    place,
    poisson_onsets,
    regular_onsets,
    resonances,
    shaped_noise,
    stretch,
    wander,
)

STROUHAL = 0.2  # of a cylinder in wind: frequency * diameter / speed (Strouhal 1878)
MINNAERT = 3.26  # m/s, frequency * radius of a bubble in water at the surface (Minnaert 1933)


def narrow_noise(dice: Dice, frequency: Signal, bandwidth: float) -> Signal:
    """Make noise in a narrow band around a gliding frequency (samples,): slow complex noise that modulates a tone."""
    n = len(frequency)
    slow = wander(dice, bandwidth, n) + 1j * wander(dice, bandwidth, n)
    return normalise_level((slow.astype(np.complex64) * phasor(frequency)).real)


def insects(dice: Dice) -> Signal:
    """Crickets and cicadas: pulses of a pure tone, in chirps or without end.

    Crickets: 3 to 8 kHz, 20 to 200 pulses/s, 2 to 6 in a chirp, 1 to 5 chirps/s; cicadas pulse without pause
    (Bennet-Clark 1989 and 1998).
    """
    clip = np.zeros(LENGTH, np.float32)
    for _ in range(dice.integer(1, 4)):
        carrier = dice.log_uniform(3000, 8000) * (1 + np.float32(0.01) * wander(dice, 5))
        pulse_hz = dice.log_uniform(20, 200)
        phase = (TIMES * np.float32(pulse_hz * (1 + 0.02 * dice.rng.standard_normal()))) % 1
        pulses = np.maximum(0, np.sin(TAU / 2 * phase / np.float32(dice.uniform(0.4, 1.0)))) * (phase < 0.9)
        if dice.chance(0.6):
            n_pulses, chirps_hz = dice.integer(2, 6), dice.log_uniform(1, 5)
            within = (TIMES * np.float32(chirps_hz) + np.float32(dice.rng.random())) % 1
            pulses *= within < min(0.8, n_pulses * chirps_hz / pulse_hz)
        gain = np.float32(dice.log_uniform(0.1, 1))
        clip += gain * pulses * harmonics(carrier, np.array([1.0, dice.log_uniform(0.01, 0.2)]))
    return clip.astype(np.float32)


def birds(dice: Dice) -> Signal:
    """Bird calls: phrases of syllables whose pitch sweeps, trills, or has a second voice.

    1 to 8 kHz, syllables of 20 to 300 ms, sweeps up to an octave, few harmonics, as of a syrinx that is driven with
    smooth gestures (Mindlin and Laje 2005, The Physics of Birdsong, chapters 2 and 6).
    """
    kinds = []
    for _ in range(dice.integer(1, 3)):
        n = int(dice.log_uniform(0.02, 0.3) * RATE)
        sweep = 2 ** bends(dice, dice.integer(2, 4), -0.5, 0.5, n)
        trill = 1 + np.float32(dice.uniform(0, 0.15) * dice.chance(0.4)) * np.sin(
            TAU * np.float32(dice.log_uniform(15, 80)) * TIMES[:n]
        )
        hz = np.clip(dice.log_uniform(1000, 8000) * sweep * trill, 500, 12_000)
        tone = harmonics(hz, np.array([1.0, dice.log_uniform(0.01, 0.5), dice.log_uniform(0.005, 0.2)]))
        if dice.chance(0.25):
            tone = tone + np.float32(0.7) * harmonics(hz * dice.uniform(1.1, 1.6), np.ones(1))
        arch = np.sin(np.linspace(0, 3.14, n, dtype=np.float32))
        kinds.append(tone * arch ** np.float32(dice.uniform(0.5, 2)))
    order = dice.rng.integers(0, len(kinds), 200)
    longest = max(len(kind) for kind in kinds) / RATE
    rate = min(dice.log_uniform(1.5, 20), 0.9 / longest)
    onsets = np.array(regular_onsets(dice, rate, 0.1))
    if dice.chance(0.5):  # phrases between rests
        phrase = dice.uniform(0.3, 0.9)
        onsets = onsets[(onsets + dice.uniform(0, 1)) % 1.2 < phrase]
    return place(lambda i: kinds[order[i]] * np.float32(dice.uniform(0.5, 1)), onsets if len(onsets) else [0.2])


def wind(dice: Dice) -> Signal:
    """Wind: gusts of dark noise, and tones at edges and wires whose pitch follows the speed.

    An Aeolian tone has a frequency of Strouhal's number * speed / diameter, and grows with a high power of the speed.
    """
    speed = dice.log_uniform(2, 15) * np.exp(np.float32(0.5) * wander(dice, dice.log_uniform(0.5, 3)))  # m/s
    gust = (speed / speed.max()) ** np.float32(dice.uniform(1, 3))
    clip = coloured_noise(dice, dice.uniform(1, 3)) * gust
    for _ in range(dice.integer(0, 3)):
        diameter = dice.log_uniform(0.0008, 0.02)  # m
        hz = np.clip(STROUHAL * speed / diameter, 60, 10_000)
        tone = narrow_noise(dice, hz, dice.log_uniform(20, 300))
        clip += np.float32(dice.log_uniform(0.1, 2)) * tone * (speed / speed.max()) ** 3
    return clip.astype(np.float32)


def stream(dice: Dice) -> Signal:
    """Brooks, pouring, boiling: hundreds of bubbles a second over a hiss; a vessel that fills rises in pitch.

    A bubble rings at Minnaert's frequency, 1 to 10 mm of radius below 3.3 kHz, and is damped as in van den Doel 2005,
    section 3; a column of air above the water has a quarter of a wavelength.
    """
    rate = dice.log_uniform(60, 600)
    smallest = dice.log_uniform(0.0004, 0.003)  # m
    radii = dice.log_uniforms(smallest, smallest * dice.log_uniform(2, 8), 24)
    hz = np.minimum(MINNAERT / radii, 12_000)
    damping = 0.13 / radii + 0.0072 * radii**-1.5  # 1/s
    rise = dice.uniform(0, 0.15)
    kinds = []
    for frequency, rate_of_decay in zip(hz, damping, strict=True):
        n = int(min(0.2, 6 / rate_of_decay) * RATE) + 16
        times = TIMES[:n]
        angle = TAU * np.float32(frequency) * times * (1 + np.float32(rise * rate_of_decay) * times / 2)
        kinds.append(np.sin(angle) * np.exp(times * np.float32(-rate_of_decay)))
    drawn = dice.rng.integers(0, len(kinds), 1300)
    strengths = dice.rng.random(1300).astype(np.float32) ** 3
    clip = normalise_level(place(lambda i: kinds[drawn[i]] * strengths[i], poisson_onsets(dice, rate, most=1300)))
    clip += np.float32(dice.log_uniform(0.03, 1)) * shaped_noise(dice, resonances(dice, 2, 800, 8000, (0.5, 3)) + 0.02)
    if dice.chance(0.4):
        column = np.linspace(dice.uniform(0.1, 0.3), dice.uniform(0.01, 0.08), 40)  # m
        clip += np.float32(dice.log_uniform(0.2, 2)) * narrow_noise(dice, stretch(SOUND_SPEED / 4 / column, LENGTH), 60)
    return clip.astype(np.float32)


def footsteps(dice: Dice) -> Signal:
    """Sounds of walking: heel and toe on wood, gravel, snow or tiles, at the pace of a walk or a run.

    1.4 to 3.3 steps/s; the ground is a body that rings, or a cloud of grains (Cook 2002, Modeling Bill's Gait).
    """
    n = int(dice.uniform(0.08, 0.25) * RATE)
    ground = dice.integer(0, 2)  # rings, crunches, rustles
    body = dice.log_uniform(0.02, 0.3) + resonances(dice, 3, 80, 6000, (1, 8))
    bar = dice.log_uniform(60, 500) * np.array(BAR_RATIOS)
    gap, toe = int(dice.uniform(0.04, 0.14) * RATE), np.float32(dice.uniform(0.2, 0.9))
    grains = int(dice.log_uniform(20, 400))

    def contact(strength: float) -> Signal:
        if ground == 0:
            sound = modes(dice, bar, dice.uniform(0.01, 0.06), dice.uniforms(0.2, 1, len(bar)), n)
            return sound + np.float32(0.5) * dice.noise(n) * np.exp(TIMES[:n] * np.float32(-400))
        shape = envelope(n, 0.01, 0.06, 0.1, 0.05)
        if ground == 1:
            hits = np.zeros(n, np.float32)
            hits[dice.rng.integers(0, n, grains)] = dice.rng.standard_normal(grains) ** 3
            return hits * shape * np.float32(strength)
        return dice.noise(n) * shape * np.float32(strength)

    def step(i: int) -> Signal:
        sound = np.zeros(n + gap, np.float32)
        sound[:n] += contact(1.0)
        sound[gap:] += toe * contact(0.7)
        return sound * np.float32(dice.uniform(0.7, 1) * (0.85 if i % 2 else 1))

    clip = filter_clip(place(step, regular_onsets(dice, dice.uniform(1.4, 3.3), 0.04)), body)
    return normalise_level(clip) + np.float32(dice.log_uniform(1e-4, 0.03)) * coloured_noise(dice, 1.5)


def squeak(dice: Dice) -> Signal:
    """Doors, brakes, chairs, chalk: a surface that sticks and slips, which excites a body.

    The friction force is a sawtooth, 20 Hz of creaks to 3 kHz of squeals, irregular as the pressure changes (Avanzini,
    Serafin and Rocchesso 2005).
    """
    n = int(dice.uniform(0.2, 1.8) * RATE)
    roughness = dice.uniform(0.0, 0.12)
    hz = dice.log_uniform(20, 3000) * 2 ** bends(dice, dice.integer(2, 6), -0.7, 0.7, n)
    hz = np.clip(hz * (1 + np.float32(roughness) * wander(dice, 80, n)), 12, 6000)
    turns = np.cumsum(hz, dtype=np.float64) / RATE
    saw = ((turns - np.floor(turns)) - 0.5).astype(np.float32)
    pressure = np.maximum(0, 0.6 + 0.5 * wander(dice, dice.log_uniform(2, 12), n))
    slips = saw * pressure * (1 + np.float32(dice.uniform(0, 0.5)) * dice.noise(n)) * envelope(n, 0.03, 1, 1, 0.05)
    clip = place(lambda _: slips, [dice.uniform(0, 2 - n / RATE)])
    return filter_clip(clip, dice.log_uniform(0.01, 0.1) + resonances(dice, dice.integer(2, 6), 200, 9000, (3, 40)))


def rain(dice: Dice) -> Signal:
    """Rain: drops on something that rings, sprays of noise on the ground, and the hiss of all that is far.

    A drop is an impact and, on water, the bubble that it leaves behind, mostly of 13 to 16 kHz (Pumphrey, Crum and
    Bjorno 1989); drops on a roof ring with its modes.
    """
    n = int(dice.uniform(0.02, 0.06) * RATE)
    bodies = [
        modes(dice, dice.log_uniforms(500, 9000, 4), dice.log_uniform(0.002, 0.02), dice.uniforms(0.1, 1, 4), n)
        + np.float32(0.5) * dice.noise(n) * np.exp(TIMES[:n] * np.float32(-dice.log_uniform(300, 3000)))
        for _ in range(8)
    ]
    onsets = poisson_onsets(dice, dice.log_uniform(20, 500), most=1000)
    strengths = np.minimum(dice.rng.pareto(2.0, 1000), 10).astype(np.float32)
    clip = normalise_level(place(lambda i: bodies[i % 8] * strengths[i], onsets))
    return clip + np.float32(dice.log_uniform(0.1, 3)) * coloured_noise(dice, dice.uniform(0, 1))


def clatter(dice: Dice) -> Signal:
    """Dishes, keys, cutlery, falling things: bodies that hit each other and bounce ever faster.

    The time between two bounces shrinks by the restitution, 0.5 to 0.9 (van den Doel, Kry and Pai 2001).
    """
    onsets, kinds = [], []
    for kind in range(dice.integer(1, 4)):
        gap, restitution = dice.uniform(0.1, 0.5), dice.uniform(0.5, 0.9)
        time, strength = dice.uniform(0, 1.5), 1.0
        while gap > 0.01 and time < 2 and strength > 0.03:
            onsets.append(time)
            kinds.append((kind, strength))
            time, gap, strength = time + gap, gap * restitution, strength * restitution
    n = int(dice.log_uniform(0.05, 0.8) * RATE)
    n_modes = dice.integer(4, 10)
    bodies = [
        modes(dice, dice.log_uniforms(300, 12_000, n_modes), dice.log_uniforms(0.01, 0.3, n_modes), np.ones(n_modes), n)
        for _ in range(4)
    ]
    return place(lambda i: bodies[kinds[i][0]] * np.float32(kinds[i][1] * dice.uniform(0.7, 1)), onsets)


def hum(dice: Dice) -> Signal:
    """Machines: transformers, fridges, fans, drills: harmonics of the mains or of a turning shaft that takes up load.

    Motors turn at 10 to 400 Hz; blades and slots give multiples of that; load slows them and makes them louder.
    """
    base = dice.rng.choice([50.0, 60.0, 100.0, 120.0]) if dice.chance(0.4) else dice.log_uniform(10, 400)
    load = bends(dice, dice.integer(2, 5), 0, 1) * np.float32(dice.uniform(0, 0.3) * dice.chance(0.5))
    numbers = np.arange(1.0, 31)
    amplitudes = numbers ** -dice.uniform(0.5, 2) * dice.log_uniforms(0.1, 1, 30)
    amplitudes[dice.integer(4, 12) :: dice.integer(5, 12)] *= 4
    clip = normalise_level(harmonics(base * (1 - load), amplitudes)) * (1 + load)
    return clip + np.float32(dice.log_uniform(0.01, 0.5)) * texture(dice)


def explosion(dice: Dice) -> Signal:
    """Thunder, fireworks, gunshots, slammed doors: a front, then a dark tail that breaks up in the distance.

    Far away, air has absorbed the high frequencies, with the square of the frequency (ISO 9613-1).
    """
    distance = dice.log_uniform(0.02, 3)  # km
    absorption = np.exp(-0.05 * distance * (FREQS / 1000) ** 2)
    decay = dice.log_uniform(0.05, 0.8)
    onsets = np.sort(dice.uniforms(0, 1.2, dice.integer(1, 4)))

    def event(_: int) -> Signal:
        n = min(LENGTH, int(5 * decay * RATE))
        shape = envelope(n, 0.002 * (1 + 20 * distance), decay, 0.0, 0.1)
        rumble = 1 + np.float32(0.8) * wander(dice, 12, n)
        return dice.noise(n) * shape * rumble * np.float32(dice.uniform(0.3, 1))

    return filter_clip(place(event, onsets), absorption * colour(2) * 200)  # 1 at 200 Hz
