"""Write example.wav: four seconds of speech-like syllables, a bell and footsteps, from arithmetic alone.

Run from the root of the repository: ``python -m tests.data.make_example``.
"""

from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE = 32_000
SECONDS = 4.0

# Formants in Hz of five vowels of a man's voice (Peterson and Barney 1952, rounded), and the pitch each is sung at.
SYLLABLES = [((730, 1090, 2440), 120), ((270, 2290, 3010), 140), ((570, 840, 2410), 110), ((530, 1840, 2480), 130)]
BELL_PARTIALS = (0.5, 1.0, 1.2, 1.5, 2.0, 2.5, 2.67, 3.0, 4.0)  # of a church bell, relative to its strike note


def syllable(formants: tuple[int, ...], pitch: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Sum the harmonics of a voice under three resonances, with a breath of noise before them."""
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    glide = pitch * (1 + 0.08 * np.cos(2 * np.pi * 1.5 * t))
    phase = 2 * np.pi * np.cumsum(glide) / SAMPLE_RATE
    voiced = np.zeros_like(t)
    for k in range(1, int(4_000 / pitch)):
        gain = sum(1 / (1 + ((k * pitch - formant) / (40 + 0.06 * formant)) ** 2) for formant in formants)
        voiced += gain / k**0.3 * np.sin(k * phase)
    breath = rng.standard_normal(len(t)) * np.exp(-t / 0.03)
    envelope = np.minimum(t / 0.04, 1) * np.minimum((seconds - t) / 0.08, 1)
    return 0.25 * envelope * voiced + 0.15 * breath


def bell(strike: float, seconds: float) -> np.ndarray:
    """Sum decaying partials: high ones die first."""
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return sum(np.exp(-2.2 * t * ratio**0.7) * np.sin(2 * np.pi * strike * ratio * t) for ratio in BELL_PARTIALS) / 6


def step(rng: np.random.Generator) -> np.ndarray:
    """Shape a short burst of noise."""
    t = np.arange(int(0.12 * SAMPLE_RATE)) / SAMPLE_RATE
    return 0.5 * rng.standard_normal(len(t)) * np.exp(-t / 0.015)


def example() -> np.ndarray:
    """Mix the recording: (samples,) in [-1, 1]."""
    rng = np.random.default_rng(7)
    recording = 0.003 * rng.standard_normal(int(SECONDS * SAMPLE_RATE))

    def add(sound: np.ndarray, at_seconds: float) -> None:
        start = int(at_seconds * SAMPLE_RATE)
        sound = sound[: len(recording) - start]
        recording[start : start + len(sound)] += sound

    for i, (formants, pitch) in enumerate(SYLLABLES):
        add(syllable(formants, pitch, 0.3, rng), 0.2 + 0.36 * i)
    add(bell(620.0, 1.6), 1.9)
    for at_seconds in (2.3, 2.75, 3.2, 3.65):
        add(step(rng), at_seconds)
    return 0.7 * recording / np.abs(recording).max()


if __name__ == "__main__":
    soundfile.write(Path(__file__).with_name("example.wav"), example(), SAMPLE_RATE, subtype="PCM_16")
