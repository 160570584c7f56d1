"""A model in the words of HEAR's API which ends its process at a clip louder than 0.9."""

import os

import torch

LETHAL = 0.9


class Model(torch.nn.Module):
    """Nothing but what the API asks for."""

    sample_rate = 32_000
    scene_embedding_size = 2
    timestamp_embedding_size = 2


def load_model(path: str = "") -> Model:
    """Make the model."""
    return Model()


def get_scene_embeddings(audio: torch.Tensor, model: Model) -> torch.Tensor:
    """Compute mean and deviation of each clip, or die."""
    if audio.abs().max() > LETHAL:
        os._exit(1)
    return torch.stack([audio.mean(1), audio.std(1)], 1)


def get_timestamp_embeddings(audio: torch.Tensor, model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the same for the whole clip."""
    return get_scene_embeddings(audio, model).unsqueeze(1), torch.zeros(len(audio), 1)
