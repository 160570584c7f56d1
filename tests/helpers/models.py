"""Models that are loaded by name in other processes, and whose embeddings tell which device made them."""

import os
import signal
import time

import torch

from hear_transformers.embedding.external import ExternalModel
from hear_transformers.errors import HearTransformersError, OptionError

DEVICES = ("cpu", "cpu:0")
"""Two names of the processor."""


class OnDevice(ExternalModel):
    """Gives the number of its device as the embedding.

    Parameters
    ----------
    device : one of `DEVICES`
    seconds : that the second device takes for a clip
    lives : clips after which the second device is killed
    all_die : or any device
    """

    def __init__(self, device: str, seconds: float = 0.0, lives: int = 10**9, *, all_die: bool = False) -> None:
        self.number = DEVICES.index(device)
        self.seconds, self.lives = seconds * self.number, lives if all_die or self.number else 10**9
        self.sample_rate, self.scene_embedding_size, self.batch_size, self.precision = 16_000, 1, 1, "float32"
        self.layers = ()
        self.name = "on a device"

    def embed_scenes(self, waveforms: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        self.lives -= 1
        if self.lives < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if waveforms.shape[1] == 13:
            raise HearTransformersError("thirteen samples")
        return torch.full((len(waveforms), 1), float(self.number))

    def provenance(self):
        return {"family": "on a device"}


def quick(*, device: str) -> OnDevice:
    return OnDevice(device)


def slow_second(*, device: str) -> OnDevice:
    return OnDevice(device, seconds=0.05)


def mortal_second(*, device: str) -> OnDevice:
    return OnDevice(device, seconds=0.02, lives=3)


def mortal(*, device: str) -> OnDevice:
    return OnDevice(device, lives=3, all_die=True)


def killed_while_loading(*, device: str) -> OnDevice:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def refused(*, device: str) -> OnDevice:
    raise OptionError(f"{device} is refused")


class Loudness(ExternalModel):
    """Gives the loudness and the number of samples of a clip at 16 kHz, or of each 0.1 s of it."""

    def __init__(self) -> None:
        self.sample_rate, self.scene_embedding_size, self.batch_size, self.precision = 16_000, 2, None, "float32"
        self.layers = ()
        self.name = "loudness"

    def embed_scenes(self, waveforms: torch.Tensor) -> torch.Tensor:
        n_samples = torch.full((len(waveforms),), float(waveforms.shape[1]))
        return torch.stack([waveforms.square().mean(1).sqrt(), n_samples], 1)

    def embed_timestamps(self, waveforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pieces = waveforms[:, : waveforms.shape[1] // 1_600 * 1_600].unflatten(1, (-1, 1_600))
        vectors = torch.stack([self.embed_scenes(piece) for piece in pieces])  # (clips, times, 2)
        return vectors, 50.0 + 100.0 * torch.arange(vectors.shape[1])

    def provenance(self):
        return {"family": "loudness", "sample_rate": self.sample_rate}


def two(*, device: str) -> list[ExternalModel]:
    return [OnDevice(device), Loudness()]
