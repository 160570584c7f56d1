"""Embeddings as a step of a scikit-learn pipeline: `AudioEmbedder`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import FAMILIES, catalogue
from .audio.inputs import as_inputs
from .audio.levels import EACH, MIX, Channel
from .embedding.cache import FolderCache, MemoryCache, encode_once
from .embedding.choices import Pool, Precision
from .embedding.embedder import Embedder
from .embedding.options import choose
from .errors import OptionError
from .networks.layer_names import Layer

__all__ = ["AudioEmbedder"]

try:
    from sklearn.base import BaseEstimator, TransformerMixin
    from sklearn.utils import Tags
except ImportError as error:
    raise ImportError(
        "hear_transformers.sklearn needs scikit-learn 1.6 or newer; "
        "run: python -m pip install 'hear_transformers[sklearn]'"
    ) from error

MODELS_HELD = 2
"""Models kept in memory, the last used: enough for a union of two."""

ALL_LAYERS = "all layers"
"""Option of `load`: every layer of the network, from one pass; the mel spectrogram, which needs none, stays apart."""

SHORT_POOLS = (None, "mean", "max", "meanmax", "meanstd", "cls")
"""Ways to pool that leave so few numbers that those of every layer are kept; None is "mean"."""

MEMORY = MemoryCache()
"""Embeddings of all estimators with ``cache="memory"`` in this process; `MEMORY.clear` frees them."""


class AudioEmbedder(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """Audio files or waveforms -> one embedding each, of any model of this package.

    There is nothing to fit. The model is loaded at the first `transform`, and shared by all estimators with the same
    parameters in this process, so that the folds of a cross-validation load it once; `load.cache_clear` frees it. An
    estimator holds its parameters only: copies and pickles are small.

    A search embeds every clip once, whatever it searches and however many folds it has: embeddings are kept by the
    content of their clips, those of all layers from one pass. Processes (``n_jobs=2``) share them in a folder.

    Parameters
    ----------
    model : a family ("passt"), a variant of one ("mn10_as"), or both ("panns/cnn14")
    variant : network of the family; None for its first
    weights : checkpoint; empty for the published one
    layer : 8, -1, "features", "mel", or a list of these; None for the variant's default
    pool : of a layer into a vector: "mean", "max", "meanmax", ..., or a list of these; None for the variant's default,
        or "mean" with a layer
    precision : of the network, "float32", "bfloat16", "float16", "tf32" or "auto"
    device : "auto", or a name of PyTorch ("cuda:1")
    batch_size : windows per forward pass; None for the model's default
    sampling_rate : of waveforms, in Hz; not needed for files
    channel : 1 for the first, 2, ...; "mix" for the mean of all
    num_workers : processes that decode files; 0 decodes in this one
    keep_damaged : take what there is of files that are cut short or damaged, with a warning, instead of an error
    cache : where embeddings are kept: "memory" (of this process, up to 1 GiB), a folder, or None to keep nothing and
        run the network no deeper than `layer` asks for

    Examples
    --------
    >>> import numpy as np
    >>> from hear_transformers.sklearn import AudioEmbedder
    >>> clips = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 16_000))
    >>> AudioEmbedder("tiny", layer=8, device="cpu", sampling_rate=16_000).fit_transform(clips).shape
    (3, 192)
    """

    def __init__(
        self,
        model: str = next(iter(FAMILIES)),
        *,
        variant: str | None = None,
        weights: str | Path = "",
        layer: Layer | None = None,
        pool: Pool | Sequence[Pool] | None = None,
        precision: Precision = "float32",
        device: str = "auto",
        batch_size: int | None = None,
        sampling_rate: float | None = None,
        channel: Channel = MIX,
        num_workers: int = 0,
        keep_damaged: bool = False,
        cache: str | Path | None = "memory",
    ) -> None:
        self.model = model
        self.variant = variant
        self.weights = weights
        self.layer = layer
        self.pool = pool
        self.precision = precision
        self.device = device
        self.batch_size = batch_size
        self.sampling_rate = sampling_rate
        self.channel = channel
        self.num_workers = num_workers
        self.keep_damaged = keep_damaged
        self.cache = cache

    def fit(self, X: Any, y: Any = None) -> AudioEmbedder:
        """Return the estimator itself; raise OptionError if `transform` does not take `X`."""
        clips_of(X)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> AudioEmbedder:
        """Return the estimator itself, see `fit`."""
        return self.fit(X, y)

    def transform(self, X: Any) -> np.ndarray:
        """Embed clips.

        Parameters
        ----------
        X : paths, in a list, an array, a series or a frame of one column; or waveforms at `sampling_rate`, in a list of
            any lengths or as (clips, samples); or any other list of inputs of `Embedder.encode`

        Returns
        -------
        embeddings : (clips, size) float32

        Raises
        ------
        AudioError : a clip cannot be read, or is not audio; the message says which
        OptionError : a parameter is unknown to the model, or `X` is of another kind
        """
        if self.channel == EACH:
            raise OptionError(f"channel={EACH!r} gives several rows a clip; choose 1, 2, ... or {MIX}")
        clips = clips_of(X)
        embedder, columns = self._embedder()
        options: dict[str, Any] = {"batch_size": self.batch_size, "num_workers": self.num_workers}
        options |= {"channel": self.channel, "keep_damaged": self.keep_damaged}
        if self.cache is None:
            return embedder.encode(clips, sampling_rate=self.sampling_rate, **options)
        cache = MEMORY if self.cache == "memory" else FolderCache(self.cache)
        return encode_once(embedder, list(clips), cache, sampling_rate=self.sampling_rate, **options)[:, columns]

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the numbers of an embedding: "passt_layer8_0", "passt_logits_526"."""
        embedder, columns = self._embedder()
        names = np.empty(embedder.scene_embedding_size, object)
        for layer, places in embedder.columns().items():
            start = f"{embedder.name[0]}_{'layer' if layer.isdecimal() else ''}{layer}_"
            names[places] = [f"{start}{i}" for i in range(len(places))]
        return names[columns]

    def __sklearn_tags__(self) -> Tags:
        """Declare the input, paths or clips of known sample rate, and that nothing is fitted."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = self.sampling_rate is not None
        tags.transformer_tags.preserves_dtype = []  # float32 always
        tags.requires_fit = False
        tags.no_validation = True
        return tags

    def _embedder(self) -> tuple[Embedder, list[int] | slice]:
        """Return the model, and the places in its embeddings that are asked for."""
        weights = str(self.weights)
        # A file may be written again under its name.
        stat = Path(weights).stat() if weights and Path(weights).is_file() else None
        version = (stat.st_mtime_ns, stat.st_size) if stat else None
        layer = self.layer
        if layer is not None and not isinstance(layer, (int, str)):
            layer = ",".join(map(str, layer))
        pool = self.pool if self.pool is None or isinstance(self.pool, str) else ",".join(self.pool)
        options = {"layer": layer, "pool": pool, "precision": self.precision}
        loading = (self.model, self.variant, weights, self.device)
        if self.cache is not None and layer is not None and pool in SHORT_POOLS:
            embedder = load(*loading, _given(options | {"layer": ALL_LAYERS}), version)
            columns = embedder.columns()
            wanted = choose(embedder.variant, embedder.trunk, layer=layer).scene.layers
            if columns.keys() >= {*wanted}:
                return embedder, [place for name in wanted for place in columns[name]]
        return load(*loading, _given(options), version), slice(None)


def _given(options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, value) for name, value in options.items() if value is not None)


@functools.lru_cache(maxsize=MODELS_HELD)
def load(
    model: str, variant: str | None, weights: str, device: str, options: tuple[tuple[str, Any], ...], version: object
) -> Embedder:
    """Load a model once; another version, the modification time and size of the weights' file, is loaded again."""
    family, variant = catalogue.resolve_own(model, variant)
    chosen = dict(options)
    if chosen.get("layer") == ALL_LAYERS:
        trunk = catalogue.family(family).load_model(weights, variant).trunk
        chosen["layer"] = list(trunk.layers)
    return catalogue.family(family).load_model(weights, variant, **chosen, device=device)


def clips_of(X: Any) -> Iterable[Any]:
    """Return the clips in the input of an estimator; raise OptionError for one clip, a sparse matrix, many columns."""
    if hasattr(X, "toarray"):
        raise OptionError("X is a sparse matrix; expected paths or waveforms, which are dense")
    X = X.to_numpy() if hasattr(X, "to_numpy") else X  # a series, or a frame
    if isinstance(X, np.ndarray) and X.ndim == 2:
        if X.dtype.kind not in "OTU":
            return list(X)
        if X.shape[1] != 1:
            raise OptionError(f"X has {X.shape[1]} columns; expected one, of paths")
    one, clips = as_inputs(X)
    if one:
        raise OptionError("X is a single clip; give a list of one")
    return clips
