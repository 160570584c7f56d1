"""Encoders for X-ARES (github.com/jimbozhang/xares, version 0.1.3), which scores embeddings along time.

``hear_transformers.xares.passt`` is the module of a family, ``hear_transformers.xares.panns.cnn10`` that of a variant.
Such a module holds one class, as X-ARES wants it; none is a file, since a variant is a row of a table. Another choice
of layers is a class in a file of one's own, see `FrameEmbedder`.

Run them by ``python -m hear_transformers.xares``, see `run`: X-ARES itself loses what it cannot decode without a word.
"""

from __future__ import annotations

import re
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import FAMILIES, catalogue
from ..embedding.windows import TimeGrid


class FrameEmbedder(torch.nn.Module):
    """A model of this package in the words of X-ARES: subclass it in a file of your own, and choose what it embeds.

    The name of the class must end in Encoder, and a file may hold one such name. It is also the name of the folders in
    which X-ARES keeps embeddings and scores: another choice needs another name.

    Parameters
    ----------
    model : of the subclass: a family ("passt"), a variant ("mn10_as"), or both ("panns/cnn14")
    options : of the subclass: further keywords of `catalogue.load_own`, such as layer, pool, hop_ms, framing or
        precision

    Attributes
    ----------
    sampling_rate : of the audio it takes, in Hz
    output_dim : numbers per frame
    hop_size_in_ms : distance between the centres of two frames; the first is at 0

    Examples
    --------
    >>> from hear_transformers.xares import FrameEmbedder
    >>> class EighthBlockEncoder(FrameEmbedder, model="tiny", layer=8, hop_ms=100): ...
    >>> encoder = EighthBlockEncoder()
    >>> encoder(torch.rand(2, 3 * encoder.sampling_rate) - 0.5).shape
    torch.Size([2, 31, 192])
    """

    model: ClassVar[str] = next(iter(FAMILIES))
    options: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, model: str | None = None, **options: Any) -> None:
        super().__init_subclass__()
        cls.model = cls.model if model is None else model
        cls.options = {**cls.options, **options}

    def __init__(self) -> None:
        super().__init__()
        loaded = catalogue.load_own(self.model, "cpu", self.options)
        self.embedder = loaded
        self.sampling_rate = loaded.sample_rate
        self.output_dim = loaded.timestamp_embedding_size
        self.hop_size_in_ms = loaded.variant.hop_ms

    def forward(self, audio: Tensor) -> Tensor:
        """Embed a batch that X-ARES has padded with zeros to its longest clip, whose lengths it does not tell.

        Zeros at the end of a clip are taken for padding and left out, so the embedding of a clip does not depend on
        others. Frames behind its end are the mean of its own, so that the mean over all, which X-ARES classifies clips
        by, is that of the clip. A clip of nothing but zeros is one sample of silence.

        Parameters
        ----------
        audio : (clips, samples), or (samples,) of a single one, at `sampling_rate`

        Returns
        -------
        embeddings : (clips, times, output_dim) float32 on the device of the audio, centres at 0, hop, 2 hops, ...

        Raises
        ------
        AudioError : no samples, or samples that are not finite
        """
        clips = torch.atleast_2d(audio).detach().float().cpu().numpy()
        sounds = [clip[: sounding_samples(clip)] for clip in clips]
        found = self.embedder.encode_timestamps(sounds, sampling_rate=self.sampling_rate, show_progress_bar=False)
        n_times = TimeGrid(self.hop_size_in_ms, self.sampling_rate).count(clips.shape[1])
        n_times = max(n_times, *(len(each.embeddings) for each in found))
        embeddings = np.empty((len(clips), n_times, self.output_dim), np.float32)
        for row, (frames, _) in zip(embeddings, found, strict=True):
            row[: len(frames)] = frames
            row[len(frames) :] = frames.mean(0)
        return torch.from_numpy(embeddings).to(audio.device)

    def provenance(self) -> dict[str, Any]:
        """Describe what makes the embeddings, ready for JSON."""
        return self.embedder.provenance()


def sounding_samples(clip: np.ndarray) -> int:
    """Return the number of samples of a clip (samples,) without the zeros at its end, 1 if there are no others."""
    sounds = clip != 0
    return len(clip) - int(sounds[::-1].argmax()) if sounds.any() else min(len(clip), 1)


def module_of(model: str) -> str:
    """Return the name of the module of a model under any of its names, "passt" or "panns/cnn14"."""
    family, variant = catalogue.resolve_own(model)
    return ".".join([__name__, family, *([] if variant is None else [_identifier(variant)])])


def _identifier(variant: str) -> str:
    return re.sub(r"\W", "_", variant)


def _make_module(model: str) -> None:
    """Make the module of a model, where `import` finds it."""
    name = module_of(model)
    module = module_from_spec(ModuleSpec(name, None))
    words = re.split(r"[._]", name.removeprefix(f"{__name__}."))
    class_name = f"{''.join(word.capitalize() for word in words)}Encoder"
    described = {"__module__": name, "__doc__": f"Encoder for X-ARES: {model} with its own layers.", "model": model}
    setattr(module, class_name, type(class_name, (FrameEmbedder,), described))
    module.__file__ = __file__
    sys.modules[name] = module


for _family, _variants in catalogue.sizes().items():
    for _model in (_family, *(f"{_family}/{_variant}" for _variant in _variants)):
        _make_module(_model)
