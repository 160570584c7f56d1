"""python dask_delayed.py FOLDER OUT: embeddings by Dask, a table for every so many files."""

import sys
from pathlib import Path

import dask
import pandas

FILES = 1000  # a task, which loads the model


@dask.delayed
def embed(paths, table):
    from hear_transformers.tiny import load_model

    vectors = load_model(layer=8).encode(paths, num_workers=0)
    pandas.DataFrame({"path": paths, "embedding": list(vectors)}).to_parquet(table)


if __name__ == "__main__":  # on a cluster: dask.distributed.Client("scheduler:8786")
    out, paths = Path(sys.argv[2]), sorted(map(str, Path(sys.argv[1]).rglob("*.wav")))
    out.mkdir(exist_ok=True)
    parts = [paths[i : i + FILES] for i in range(0, len(paths), FILES)]
    dask.compute(*(embed(part, out / f"{i}.parquet") for i, part in enumerate(parts)), scheduler="processes")
