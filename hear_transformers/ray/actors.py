"""What an actor does: blocks of pieces -> shards."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from ..audio.workers import Spent
from ..bulk.extract import Outcome, extract
from ..bulk.journal import explained
from ..bulk.outputs import OutputOptions
from ..bulk.shards import Store, name_of
from ..embedding.replicas import Description
from ..errors import HearTransformersError
from .clusters import Crew
from .pieces import Piece

TABLE = "embeddings.parquet"
"""Name of the table that becomes a shard."""


@dataclass(frozen=True, slots=True)
class Job:
    """What all actors need to know.

    Attributes
    ----------
    load : makes the models, as `catalogue.load_each` with all but the device
    out : what the user named, for errors
    stores : of each model and separate layer, by its folder in a table of one machine
    settings : of these
    options : of `extract`
    dtype, separate_layers : see `OutputOptions`
    crew : cores and device of each actor
    """

    load: Callable[..., Any]
    out: str
    stores: Mapping[str, Store]
    settings: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any]
    output: OutputOptions
    crew: Crew


@dataclass(frozen=True, slots=True)
class Done:
    """What an actor made of a block.

    Attributes
    ----------
    outcomes : of each piece; empty after an error
    spent : where the time went
    error : what ends the run: the disk is full, an option does not suit
    fault : any other error, for which no piece is to blame yet
    """

    outcomes: tuple[Outcome, ...] = ()
    spent: Spent = field(default_factory=Spent)
    error: HearTransformersError | None = None
    fault: str = ""


class Embedder:
    """An actor: it loads the models once, and embeds blocks."""

    def __init__(self, job: Job) -> None:
        import torch

        torch.set_num_threads(job.crew.cores)
        self.job = job
        self.models = job.load(device=job.crew.device)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Embed a block, a row with the pickled pieces; return a row with what became of it."""
        try:
            done = self._embed(pickle.loads(row["block"]))
        except HearTransformersError as error:
            done = Done(error=error)
        except Exception as error:
            done = Done(fault=f"{type(error).__name__}: {error}")
        return {"number": row["number"], "done": pickle.dumps(done)}

    def _embed(self, pieces: Sequence[Piece]) -> Done:
        job, spent = self.job, Spent()
        with tempfile.TemporaryDirectory(prefix="embed-audio-") as scratch:
            report = extract(
                self.models,
                [piece.source for piece in pieces],
                os.path.join(scratch, TABLE),
                job.output,
                workers=min(job.crew.cores - 1, len(pieces)),
                spent=spent,
                **job.options,
            )
            name = name_of(job.settings, [piece.part for piece in pieces])
            spans = {piece.part: piece.span for piece in pieces if piece.span is not None}
            if report.written:
                with spent.on("writing"), explained(Path(job.out)):
                    for folder, store in job.stores.items():
                        table = Path(scratch, folder, TABLE)
                        store.write(table, name, [piece.part for piece in pieces], spans)
        # On another file system an address, which is only shown.
        place = cast(Path, next(iter(job.stores.values())).place(name))
        outcomes = (*(replace(each, output=place) for each in report.written), *report.failed)
        by_source = {_key(each.source, each.start, each.end, each.channel): each for each in outcomes}
        sources = [piece.source for piece in pieces]
        return Done(tuple(by_source[_key(each.path, each.start, each.end, each.channel)] for each in sources), spent)


def _key(path: object, *part: object) -> tuple[object, ...]:
    return str(path), *part


def describe(load: Callable[..., Any], device: str) -> list[Description]:
    """Load the models where an actor would, and tell what must be known of them elsewhere."""
    return [Description.of(model) for model in load(device=device)]
