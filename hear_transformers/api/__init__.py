"""What `hear_transformers` itself offers: models by name, and embeddings in one call.

Nothing heavy is imported before a function needs it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, cast, overload

from .. import catalogue
from ..embedding.choices import Framing, Pool, Precision
from ..errors import OptionError, did_you_mean
from ..networks.layer_names import Layer

if TYPE_CHECKING:
    import numpy as np
    import torch
    from typing_extensions import Unpack

    from ..audio.inputs import Sound
    from ..audio.levels import Channel
    from ..embedding.embedder import Embedder
    from ..embedding.encode import Timestamps
    from ..embedding.pipeline import Model

__all__ = ["EmbedOptions", "ModelOptions", "embed", "embed_timestamps", "list_models", "load_model"]

OF_TIME = ("hop_ms", "window_ms", "framing", "segment", "overlap")
"""Options of embeddings along time."""


class ModelOptions(TypedDict, total=False):
    """What may be chosen of a model, see `hear.Loader.load_model`; the last two are of encoders of Hugging Face."""

    variant: str | None
    layer: Layer | None
    pool: Pool | Sequence[Pool] | None
    hop_ms: float | None
    window_ms: float | Sequence[float] | None
    framing: Framing | None
    segment: float | None
    overlap: float | None
    mean_over_time: bool
    precision: Precision
    pretrained: bool
    network: Mapping[str, Any] | None
    normalisation: Sequence[float] | None
    weights_prefix: str | None
    revision: str | None
    trust_remote_code: bool


class EmbedOptions(ModelOptions, total=False):
    """The same, and how inputs are read, see `Embedder.encode`."""

    channel: Channel
    batch_size: int | None
    num_workers: int
    show_progress_bar: bool | None
    normalize_embeddings: bool
    keep_damaged: bool


def list_models(*patterns: str, pretrained: bool = False, on_this_machine: bool = False) -> list[str]:
    """Return the names of models that fit any of the patterns, of all without one.

    `catalogue.rows` describes the same models: parameters, licence, size of the weights.

    Parameters
    ----------
    patterns : a family, a variant, "family/variant", or a pattern of these: "*passt*", "mn0?_as", "panns/*16k"
    pretrained : only those with published weights
    on_this_machine : only those whose weights need no download

    Returns
    -------
    names : "family/variant" each, as `load_model` and the commands take them; the default of a family is its first

    Raises
    ------
    OptionError : a pattern fits nothing, or is no text

    Examples
    --------
    >>> import hear_transformers
    >>> hear_transformers.list_models("*passt*")[:3]
    ['passt/base', 'passt/base2level', 'passt/base2levelmel']
    >>> hear_transformers.list_models("mast", pretrained=True)
    ['mast/mini', 'mast/mvit_base', 'mast/mvit_small', 'mast/mvit_tiny']
    """
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise OptionError(f"pattern {pattern!r} is no text; give each by itself: list_models('tiny', 'mn*')")
    return [
        f"{row['family']}/{row['variant']}"
        for row in catalogue.rows(*patterns)
        if (row["checkpoint"] is not None or not pretrained) and (row.get("on_this_machine") or not on_this_machine)
    ]


def load_model(
    model: str | None = None,
    *,
    weights: str | os.PathLike[str] = "",
    device: str | torch.device = "auto",
    **options: Unpack[ModelOptions],
) -> Embedder:
    """Load a model of this package by name.

    Unlike the functions `load_model` of the families, which follow the HEAR API, this one puts the model onto the
    fastest device, and takes models instead of checkpoints for its first argument.

    Parameters
    ----------
    model : a family ("passt"), a variant ("mn10_as"), or both ("panns/cnn14", "hf/facebook/wav2vec2-base"); see
        `list_models`. None is the model that `weights` are of, or "tiny"
    weights : checkpoint file; folder that `Embedder.save_pretrained` wrote, or one of Hugging Face; or a repository
        there, "user/name"; empty for the published weights, downloaded at first use
    device : "auto" for the fastest there is, "cpu", "cuda", "cuda:1", "mps"
    options : by keyword, see `hear.Loader.load_model` for all of them: `layer`, `pool`, `hop_ms`, `window_ms`,
        `framing`, `segment`, `overlap`, `mean_over_time`, `precision`, `pretrained`, `network`, `normalisation`,
        `weights_prefix`, `variant`; of models of Hugging Face also `revision` and `trust_remote_code`

    Returns
    -------
    model : embeds files and arrays with `Embedder.encode` and `Embedder.encode_timestamps`, tensors when it is called

    Raises
    ------
    OptionError : model, device, an option or its value is unknown; the message lists what is known
    WeightsError : the checkpoint is missing, damaged, or for another network

    Examples
    --------
    >>> import hear_transformers
    >>> model = hear_transformers.load_model("tiny", layer=8, device="cpu")
    >>> model.encode(["dog.wav", "rain.flac"]).shape
    (2, 192)
    """
    _check_names(options, ModelOptions)
    path = os.fspath(weights)
    if model is None and options.get("variant") is None:
        model = catalogue.family_of_checkpoint(path)
    return catalogue.load_own(model, device, {**options, "weights": path})


def embed(
    inputs: Sound | Iterable[Sound],
    model: str | Model | None = None,
    *,
    sampling_rate: float | None = None,
    weights: str | os.PathLike[str] = "",
    device: str | torch.device = "auto",
    **options: Unpack[EmbedOptions],
) -> np.ndarray:
    """Embed audio, one vector for each file or array, of any duration and sample rate, in the order given.

    The model is loaded by each call; to call several times, load it once and give it as `model`. To embed many files
    into other files, resumably, use the command ``embed-audio``.

    Parameters
    ----------
    inputs : a path, an address, an array, an open file, or several of these, also from a generator; see
        `Embedder.encode`
    model : name, see `load_model`; a module of others that follows the HEAR API; or a model that is loaded. None is the
        model that `weights` are of, or "tiny"
    sampling_rate : of arrays, in Hz; files say their own
    weights, device : see `load_model`
    options : by keyword: those of `load_model`, such as `layer` and `pool`, and of `Embedder.encode`: `channel`,
        `batch_size`, `num_workers`, `show_progress_bar`, `normalize_embeddings`, `keep_damaged`. Options of embeddings
        along time, such as `hop_ms`, need ``mean_over_time=True``; `embed_timestamps` gives the embeddings themselves

    Returns
    -------
    embeddings : (size,) float32 of one input, (inputs, size) of several

    Raises
    ------
    OptionError : model, device, an option or its value is unknown, or an array has no sample rate
    AudioError : an input cannot be read, or is not audio; the message says which
    WeightsError : the checkpoint is missing, damaged, or for another network

    Examples
    --------
    >>> import hear_transformers
    >>> hear_transformers.embed("dog.wav", layer=8).shape
    (192,)
    >>> hear_transformers.embed(["dog.wav", "rain.flac"], "tiny", layer=[4, 8], normalize_embeddings=True).shape
    (2, 384)
    >>> import numpy as np
    >>> hear_transformers.embed(np.zeros(44_100, np.float32), layer=8, sampling_rate=44_100).shape
    (192,)
    """
    along_time = [name for name in OF_TIME if options.get(name) is not None]
    if along_time and not options.get("mean_over_time"):
        raise OptionError(
            f"{', '.join(along_time)}: of embeddings along time; call embed_timestamps, or give mean_over_time=True "
            "for one vector, their mean"
        )
    from ..embedding import encode

    loaded, reading = _loaded(model, weights, device, options)
    return encode.encode(loaded, inputs, sampling_rate=sampling_rate, **reading)


@overload
def embed_timestamps(  # type: ignore[overload-overlap]  # see `embedding.encode.encode_timestamps`
    inputs: Sound,
    model: str | Model | None = None,
    *,
    sampling_rate: float | None = None,
    weights: str | os.PathLike[str] = "",
    device: str | torch.device = "auto",
    **options: Unpack[EmbedOptions],
) -> Timestamps: ...


@overload
def embed_timestamps(
    inputs: Iterable[Sound],
    model: str | Model | None = None,
    *,
    sampling_rate: float | None = None,
    weights: str | os.PathLike[str] = "",
    device: str | torch.device = "auto",
    **options: Unpack[EmbedOptions],
) -> list[Timestamps]: ...


def embed_timestamps(
    inputs: Sound | Iterable[Sound],
    model: str | Model | None = None,
    *,
    sampling_rate: float | None = None,
    weights: str | os.PathLike[str] = "",
    device: str | torch.device = "auto",
    **options: Unpack[EmbedOptions],
) -> Timestamps | list[Timestamps] | list[list[Timestamps]]:
    """Embed audio along time: a vector every `hop_ms`, or for each `segment` of so many seconds.

    Parameters
    ----------
    inputs, model, sampling_rate, weights, device, options : see `embed`

    Returns
    -------
    timestamps : embeddings (times, size) float32 and their centres (times,) in ms, of one input; a list of such pairs
        of several

    Raises
    ------
    OptionError, AudioError, WeightsError : see `embed`

    Examples
    --------
    >>> import hear_transformers
    >>> embeddings, centres_ms = hear_transformers.embed_timestamps("dog.wav", layer=8, hop_ms=100)
    >>> embeddings.shape, centres_ms[:3].tolist()
    ((11, 192), [0.0, 100.0, 200.0])
    """
    from ..embedding import encode

    loaded, reading = _loaded(model, weights, device, options)
    return encode.encode_timestamps(loaded, inputs, sampling_rate=sampling_rate, **reading)


def _loaded(
    model: str | Model | None, weights: str | os.PathLike[str], device: str | torch.device, options: Mapping[str, Any]
) -> tuple[Model, dict[str, Any]]:
    """Return the model of a call, and its options of `Embedder.encode`."""
    _check_names(options, EmbedOptions)
    choosing = {name: value for name, value in options.items() if name in ModelOptions.__annotations__}
    reading = {name: value for name, value in options.items() if name not in choosing}
    if model is None or (isinstance(model, str) and catalogue.is_own(model)):
        return load_model(model, weights=weights, device=device, **cast("ModelOptions", choosing)), reading
    if isinstance(model, str):
        return catalogue.load(model, os.fspath(weights), device, choosing), reading
    if given := [*choosing, *(["weights"] if os.fspath(weights) else []), *(["device"] if device != "auto" else [])]:
        raise OptionError(f"{', '.join(given)}: the model is loaded already; give it to load_model, or a name as model")
    if not hasattr(model, "scene_embedding_size"):
        raise OptionError(f"model is a {type(model).__name__}; expected a name, or what load_model returns")
    return model, reading


def _check_names(options: Iterable[str], known: type[ModelOptions]) -> None:
    """Raise OptionError for an unknown keyword."""
    names = ["model", "weights", "device", *known.__annotations__]
    for option in options:
        if option not in known.__annotations__:
            raise OptionError(f"option {option!r} is unknown; {did_you_mean(option, names)}")
