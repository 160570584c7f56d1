"""Train a network and a linear layer on it in plain PyTorch: fine_tune.py FOLDER [EPOCHS], a folder for each class."""

import sys
from pathlib import Path

import torch

from hear_transformers.audio.reading import read
from hear_transformers.tiny import load_model


def main(folder: str, epochs: int = 3) -> None:
    """Fit all weights to the clips; `hear-transformers train` does it with validation, augmentation and checkpoints."""
    torch.manual_seed(0)
    paths = sorted(Path(folder).rglob("*.wav"))
    names = sorted({path.parent.name for path in paths})
    embedder = load_model()
    network = torch.nn.Sequential(embedder, torch.nn.Linear(embedder.scene_embedding_size, len(names)))
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    clips = torch.nn.utils.rnn.pad_sequence([read(path, embedder.sample_rate) for path in paths], batch_first=True)
    labels = torch.tensor([names.index(path.parent.name) for path in paths])
    for epoch in range(int(epochs)):
        losses = []
        for batch in torch.randperm(len(paths)).split(8):
            loss = torch.nn.functional.cross_entropy(network(clips[batch]), labels[batch])  # with gradients
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
