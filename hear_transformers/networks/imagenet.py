"""Weights of Vision Transformers for images, adapted to networks over spectrograms."""

from __future__ import annotations

import math

from torch import Tensor

from ..errors import WeightsError

COLOURS = 3
TOKENS = 2  # class and distillation token (DeiT: Touvron et al., 2012.12877)


def are_for_images(filters: Tensor | None) -> bool:
    """Return True if the filters of the first layer, (features, channels, height, width), see colours."""
    return filters is not None and filters.ndim == 4 and filters.shape[1] == COLOURS


def summed(filters: Tensor) -> Tensor:
    """Sum filters over red, green and blue, so that they treat a spectrogram as a grey image.

    AST and PaSST both do so (authors' src/models/ast_models.py; models/helpers/vit_helpers.py).
    """
    return filters.float().sum(1, keepdim=True)


def positions(table: Tensor | None, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """Split the position embeddings of a distilled DeiT into those of tokens and of patches.

    Parameters
    ----------
    table : (1, 2 + patches, features), patches row by row
    rows : of patches; None for a square

    Returns
    -------
    tokens : (1, 2, features)
    patches : (1, features, rows, columns)

    Raises
    ------
    WeightsError : the table is missing, or its patches are not in such rows
    """
    if table is None or table.ndim != 3 or len(table) != 1 or table.shape[1] <= TOKENS:
        found = "missing" if table is None else f"of shape {tuple(table.shape)}"
        raise WeightsError(f"pos_embed is {found}, expected (1, {TOKENS} + patches, features)")
    n_patches = table.shape[1] - TOKENS
    height = math.isqrt(n_patches) if rows is None else rows
    width = n_patches // height
    if height * width != n_patches or (rows is None and height != width):
        form = "a square" if rows is None else f"{rows} rows"
        raise WeightsError(
            f"pos_embed is for {n_patches} patches beside {TOKENS} tokens, which are not {form}; is it a checkpoint of "
            "another variant, or of a network without distillation?"
        )
    table = table.float()
    patches = table[:, TOKENS:].transpose(1, 2).unflatten(2, (height, width))  # (1, features, rows, columns)
    return table[:, :TOKENS], patches
