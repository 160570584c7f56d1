"""Half an hour at a hop that is no whole number of samples: what HEAR's validator warns of.

At 44.1 kHz a hop of 25 ms is 1102.5 samples. Rounded, it is off by 25 ms after 37 minutes.
"""

from dataclasses import replace

import pytest
import torch

from hear_transformers.embedding.embedder import Embedder
from hear_transformers.networks.family import Readout, Variant
from hear_transformers.networks.frontend import Waveform
from hear_transformers.networks.trunk import TimeAxis, Trunk

RATE, HOP_MS, MINUTES = 44_100, 25.0, 37
PERIOD_SECONDS = 10.0


class Levels(Trunk):
    """Reads the mean level of every 63 samples."""

    min_frames = 63

    def __init__(self):
        super().__init__()
        self.layers = {"0": TimeAxis(63, 31.0, 63)}
        self.place = torch.nn.Parameter(torch.zeros(()))  # says where the network is

    def forward(self, frames, wanted):
        return {"0": frames.unfold(1, 63, 63).mean(2)[:, :, None, None]}


VARIANT = Variant(
    checkpoint="",
    network={},
    frontend=Waveform(sample_rate=RATE),
    scene=Readout(1000.0, ("0",)),
    scene_hop_ms=1000.0,
    timestamps=(Readout(10.0, ("0",)),),
    hop_ms=HOP_MS,
)
NATIVE = replace(VARIANT, framing="native", timestamps=(Readout(1000.0, ("0",)),))


def wave(seconds: torch.Tensor) -> torch.Tensor:
    return torch.sin(2 * torch.pi * seconds / PERIOD_SECONDS)


def blocks():
    """Give a slow wave, whose level tells the time: a shift of 25 ms changes it by up to 0.016."""
    for minute in range(MINUTES):
        samples = torch.arange(minute * 60 * RATE, (minute + 1) * 60 * RATE, dtype=torch.float64)
        yield wave(samples / RATE).float()[None]


@pytest.mark.slow
@pytest.mark.parametrize("variant", [VARIANT, NATIVE], ids=["windowed", "native"])
def test_timestamps_do_not_drift_in_37_minutes(variant):
    model = Embedder(Levels(), variant, name=("test", "levels"))
    embeddings, times_ms = (
        torch.cat(parts, -1)
        for parts in zip(
            *((embedding[0, :, 0], times) for embedding, times in model.stream_timestamps(blocks())), strict=True
        )
    )
    assert torch.equal(times_ms, torch.arange(MINUTES * 60 * 40 + 1, dtype=torch.float64) * HOP_MS)
    inside = slice(1, -1)  # at both ends a window holds the mirror image of the clip
    assert float((embeddings - wave(times_ms / 1000))[inside].abs().max()) < 2e-4
