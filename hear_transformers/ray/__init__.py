"""Embeddings on a cluster: Ray Data hands blocks of file names to actors, each of which reads, embeds and writes them.

    this process                  an actor for each card, or for a few cores
    names of files, in blocks ->  decodes, resamples, runs the networks: `bulk.extract`, as the command on one machine
    outcomes                  <-  a Parquet shard for each block, on any file system of fsspec

No waveform and no embedding goes through Ray. A shard says which parts of which files it holds (`bulk.shards`), so a
run does what is missing, whatever ended the last one. Actors that die, and the blocks that die with them, are treated
alike: they are missing, and are done in another pass, in smaller blocks, until what kills an actor is alone.
"""

from __future__ import annotations

from .clusters import start
from .runs import embed

__all__ = ["embed", "start"]
