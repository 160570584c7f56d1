"""Models as programs of `torch.export`, which PyTorch runs without this package."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..embedding.embedder import Embedder
from ..errors import OptionError
from ..files import atomic_path
from . import verification
from .onnx_files import fixed_length, metadata, quietly
from .portable import Exported, check, lengths
from .verification import TOLERANCE, Run, Written

ABOUT = "hear_transformers.json"
"""Name of the file within a program that says what it takes, returns and was made by."""

MOST_CLIPS = 2**16
"""Of a batch; a program wants a limit."""


def to_program(model: Embedder, path: str | os.PathLike[str], *, seconds: float | None = None) -> Written:
    """Write a model as a program of `torch.export`, for any batch of clips of one length, and check it.

    Parameters
    ----------
    model : from a family's `load_model`, with the layers and the pooling wanted
    path : of the file, with the suffix .pt2; one that is there is replaced
    seconds : length of the clips; None for that of a window

    Returns
    -------
    written : what was measured

    Raises
    ------
    OptionError : the model cannot be exported, ``seconds`` is outside what it takes, or the program differs from the
        model by more than `TOLERANCE`
    """
    check(model)
    n_samples = lengths(model)[1] if seconds is None else fixed_length(model, seconds)
    rate, truth = model.sample_rate, verification.by_pytorch(model)
    batch = torch.export.Dim("batch", min=1, max=MOST_CLIPS)
    with quietly(), torch.no_grad():
        clips = verification.example(2, n_samples, rate)
        program = torch.export.export(Exported(model), (clips,), dynamic_shapes=({0: batch},), strict=False)
    with atomic_path(Path(path)) as unfinished:
        kept = unfinished.with_name(f"{unfinished.name}.pt2")  # a suffix that PyTorch insists on
        try:
            torch.export.save(program, kept)
            run = by_program(kept)
            found = verification.difference(run, truth, [(1, n_samples), (3, n_samples)], rate)
            if found > TOLERANCE:
                raise OptionError(
                    f"{'/'.join(model.name)} cannot be exported: its program differs by {found:.1e} of the largest "
                    f"number, above {TOLERANCE:g}; please report this"
                )
            ratio = verification.time_ratio(run, truth, n_samples, rate)
            size = model.scene_embedding_size
            written = Written(Path(path), 0, rate, n_samples, n_samples, size, found, ratio)
            torch.export.save(program, kept, extra_files={ABOUT: json.dumps(metadata(model, written))})
            kept.replace(unfinished)
        finally:
            kept.unlink(missing_ok=True)
    return replace(written, n_bytes=Path(path).stat().st_size)


def by_program(path: Path) -> Run:
    """Return what runs a file."""
    with quietly():
        network = torch.export.load(path).module()

    @torch.no_grad()
    def run(waveforms: Tensor) -> Tensor:
        found: Tensor = network(waveforms)
        return found

    return run
