"""python datasets_map.py FOLDER OUT.parquet: embeddings as a column of a Hugging Face data set."""

import sys
from pathlib import Path

from datasets import Dataset

from hear_transformers.tiny import load_model

model = load_model(layer=8)  # device="cuda"


def embed(batch):
    """Embed a batch of rows. Of a published data set: clips.cast_column("audio", Audio(decode=False))."""
    return {"embedding": list(model.encode(batch["audio"], num_workers=0))}


clips = Dataset.from_dict({"audio": sorted(map(str, Path(sys.argv[1]).rglob("*.wav")))})
clips.map(embed, batched=True, batch_size=64).to_parquet(sys.argv[2])
