"""Embed a file of any length along time in memory that does not grow: long_file.py AUDIO OUT.csv."""

import csv
import sys

from hear_transformers.audio.reading import AudioFile
from hear_transformers.tiny import load_model


def main(audio: str, out: str) -> None:
    """Write a row for each second as it is heard: its centre in s, and how much it differs from the second before."""
    model = load_model(hop_ms=1000)
    before = None
    with AudioFile(audio) as file, open(out, "w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(["s", "change"])
        blocks = (block[None] for block in file.blocks(model.sample_rate))  # (1, samples) each
        for embeddings, centres_ms in model.stream_timestamps(blocks):
            for vector, ms in zip(embeddings[0], centres_ms.tolist(), strict=True):
                change = 0.0 if before is None else float((vector - before).norm())
                writer.writerow([ms / 1000, f"{change:.4f}"])
                before = vector


if __name__ == "__main__":
    main(*sys.argv[1:])
