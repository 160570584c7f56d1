"""Embed a folder on several devices, a process each: several_devices.py FOLDER OUT.npy DEVICE [DEVICE...]."""

import sys
from pathlib import Path

import numpy as np

from hear_transformers import catalogue


def main(folder: str, out: str, *devices: str) -> None:
    """Embed all clips; those of a slow device do not hold up the others, and the order is that of the paths."""
    paths = sorted(map(str, Path(folder).rglob("*.wav")))
    with catalogue.load_replicas(["tiny"], "", devices) as model:
        vectors = model.encode(paths)
    np.save(out, vectors)
    print(f"{len(vectors)} vectors of {vectors.shape[1]} numbers, by {len(devices)} devices")


if __name__ == "__main__":  # needed: the processes import this file
    main(*sys.argv[1:])
