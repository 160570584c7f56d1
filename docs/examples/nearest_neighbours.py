"""Print the files of a folder that sound most like another file: nearest_neighbours.py FOLDER QUERY [K]."""

import sys
from pathlib import Path

import numpy as np

from hear_transformers.tiny import load_model


def main(folder: str, query: str, k: int = 3) -> None:
    """Embed the folder and the query, and compare them."""
    model = load_model()
    paths = sorted(map(str, Path(folder).rglob("*.wav")))
    vectors = model.encode(paths)
    # Without their mean, which all sounds share, cosines tell sounds apart.
    mean = vectors.mean(0)
    wanted, vectors = model.encode(query) - mean, vectors - mean
    cosines = vectors @ wanted / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(wanted))
    for i in np.argsort(-cosines)[: int(k)]:
        print(f"{cosines[i]:.3f}  {paths[i]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
