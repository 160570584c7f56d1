"""Any audio encoder of Hugging Face that returns hidden states: wav2vec2, HuBERT, WavLM, Whisper, MERT, AST and others.

A variant is a folder, or the name of a repository, such as ``MIT/ast-finetuned-audioset-10-10-0.4593``. Network and
feature extractor are those of the package `transformers` (huggingface.co/docs/transformers, Apache-2.0), which reads
weights from safetensors, else from a file of PyTorch with ``weights_only``. Layer i is its ``hidden_states[i]``: 0 is
what goes into the first block, the last number comes out of the last one. "features" is its ``last_hidden_state``,
which some networks normalise once more.

What is read of a clip depends on nothing but the clip: windows of one length go through the network together, so
nothing is padded, and waveforms are normalised one by one. Where the network takes clips of one length only (Whisper,
AST), their positions behind the end are left out.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import re
import textwrap
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import __version__
from .checkpoints import hub
from .checkpoints.hugging_face import PREPROCESSOR, weights_in
from .checkpoints.loading import hash_of_parts
from .embedding.choices import Framing, Pool, Precision
from .embedding.devices import pick_device
from .embedding.embedder import Embedder
from .embedding.external import silenced
from .embedding.options import choose
from .errors import HearTransformersWarning, OptionError, WeightsError, import_extra
from .hear import get_scene_embeddings, get_timestamp_embeddings
from .networks.family import Readout, Variant
from .networks.frontend import Waveform
from .networks.layer_names import Layer
from .networks.layer_table import layer_table
from .networks.trunk import TimeAxis, Trunk

__all__ = ["Encoder", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]

NAME = "hf"

LAST = "features"
"""Name of the ``last_hidden_state``."""

WINDOW_MS = 30_000.0
"""Longest clip that is read in one pass, as in Whisper: attention takes memory with the square of the length."""

USUAL_RATE = 16_000
"""Sample rate in Hz of encoders without ``preprocessor_config.json``, such as USAD."""

VARIANCE_FLOOR = 1e-7
"""Of `Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm`."""

KALDI_WINDOW, KALDI_HOP = 25, 10
"""Window and hop of the frames of `ASTFeatureExtractor`, in ms: the defaults of Kaldi, which it has no options for."""

MOST_WORDS = 300
"""Letters that are kept of an error of `transformers`, which may advise for pages."""

NOT_AUDIO = ("input_ids", "inputs_embeds", "pixel_values", "pixel_values_videos")
"""First arguments of networks for text, images and video."""

ONLY_ELSEWHERE = re.compile(r"masked_spec_embed|^decoder\.")
"""Names of parameters that files may lack: hidden states of an encoder are computed without them."""

OWN_CODE = "transformers_modules"
"""Package that `transformers` imports code beside weights into."""

TRUST = "trust_remote_code"
"""Option without which such code is not run."""

FIRST_POSITIONS, SPAN = 3, 8
"""Positions after which, and over how many, the hop of an unknown network is measured: some take two for the first."""

LONGEST_SECONDS = 2
"""Longest clip that the hop of an unknown network is measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Where the positions of hidden states lie in a clip, in samples.

    Attributes
    ----------
    hop : distance of two positions
    offset : centre of the first
    min_samples, max_samples : length of the shortest clip, and of the longest; None if any
    layers : names of what it returns
    n_freq : positions along frequency, which are the slower ones
    prefix : tokens before them
    count : samples -> positions in time within the clip, where the network has more; None where it has not
    """

    hop: int
    offset: float
    min_samples: int
    max_samples: int | None = None
    layers: tuple[str, ...]
    n_freq: int = 1
    prefix: tuple[str, ...] = ()
    count: Callable[[int], int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FilledWaveform(Waveform):
    """The front end of a network that fills every waveform up to one length, so that a short one takes as much.

    Attributes
    ----------
    filled : that length, in samples
    """

    filled: int

    def computed(self, n_samples: int) -> int:
        """Return the filled length."""
        return max(n_samples, self.filled)


class Encoder(Trunk):
    """A network of transformers over waveforms, behind the feature extractor of its checkpoint.

    Parameters
    ----------
    network : that returns hidden states
    extractor : feature extractor; None if it takes waveforms as they are
    sample_rate : in Hz
    """

    recordable = False  # extractors compute on the CPU

    def __init__(self, network: nn.Module, extractor: Any, sample_rate: int) -> None:
        super().__init__()
        self.network = network
        self.extractor = extractor
        self.sample_rate = sample_rate
        parameters = inspect.signature(network.forward).parameters
        self.arguments = frozenset(parameters)
        self.input_name = next(iter(parameters))
        takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        self.asked = {"output_hidden_states": True} if takes_any or "output_hidden_states" in parameters else {}
        self.geometry = geometry_of(self)
        self.prefix = self.geometry.prefix
        self.min_frames, self.max_frames = self.geometry.min_samples, self.geometry.max_samples
        axis = TimeAxis(self.geometry.hop, self.geometry.offset, None)
        self.layers = {name: axis for name in self.geometry.layers}

    def cut(self, wanted: Collection[str]) -> None:
        """Drop the blocks behind those that numbered layers need: `transformers` would run them all.

        What goes into a block is the same whatever follows it, while what comes out of the last one may be normalised:
        so one more block is kept. Code that is not of `transformers` is left alone, as its blocks may do anything.
        """
        numbers = [layer.partition(".")[0] for layer in wanted]
        if LAST in numbers or is_foreign(self.network):
            return
        config: Any = self.network.config
        deepest, n_blocks = max(map(int, numbers)), config.num_hidden_layers
        lists = [each for each in self.network.modules() if isinstance(each, nn.ModuleList) and len(each) == n_blocks]
        if len(lists) == 1 and deepest < n_blocks:
            del lists[0][deepest + 1 :]
            self.layers = {name: axis for name, axis in self.layers.items() if name != LAST and int(name) <= deepest}

    def forward(self, frames: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Compute layers of waveforms (batch, samples), see `Trunk.forward`."""
        states = self.states(frames)
        n_prefix, taps = len(self.prefix), {}
        for key in wanted:
            layer, _, token = key.partition(".")
            state = states[layer]  # (batch, prefix + freq * time, features)
            if token:
                taps[key] = state[:, self.prefix.index(token)]
                continue
            grid = state[:, n_prefix:].unflatten(1, (self.geometry.n_freq, -1)).transpose(1, 2)
            if self.geometry.count is not None:
                grid = grid[:, : self.geometry.count(frames.shape[1])]
            taps[key] = grid  # (batch, time, freq, features)
        return taps

    def states(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Return what the network returns by the names of layers: (batch, positions, features) each."""
        features = self.features(waveforms)
        outputs = self.network(**features, **self.asked)
        get = outputs.get if hasattr(outputs, "get") else vars(outputs).get
        held = get("hidden_states")
        if not held or any(state.ndim != 3 for state in held):
            kind = type(self.network).__name__
            raise WeightsError(f"{kind} returns no hidden states (batch, time, features), so it has no layers to read")
        states, last = {str(i): state for i, state in enumerate(held)}, get("last_hidden_state")
        if last is not None and last.shape[:2] == held[-1].shape[:2]:
            states[LAST] = last
        mask = features.get("attention_mask")
        if mask is None or mask.shape[1] != held[0].shape[1]:
            return states
        n_heard = int(mask[0].sum())  # clips are equally long: behind it an extractor has filled a stride
        return {name: state[:, :n_heard] for name, state in states.items()}

    @torch.compiler.disable  # extractors are of NumPy
    def features(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Return the arguments of the network, as its feature extractor makes them of each waveform alone."""
        weight = next(self.network.parameters())
        if self.extractor is None:
            return {self.input_name: waveforms.to(weight.dtype)}
        if takes_waveforms(self.extractor):  # here, as it is cheap: the extractor would fetch it from the device
            if self.extractor.do_normalize:
                variance, mean = torch.var_mean(waveforms, 1, correction=0, keepdim=True)
                waveforms = (waveforms - mean) / (variance + VARIANCE_FLOOR).sqrt()
            return {self.input_name: waveforms.to(weight.dtype)}
        found = extracted(self.extractor, waveforms.detach().cpu(), self.sample_rate)
        return {
            name: value.to(weight.device, weight.dtype if value.is_floating_point() else value.dtype)
            for name, value in found.items()
            if name in self.arguments
        }


def is_foreign(part: object) -> bool:
    """Return True for a network or an extractor whose code lies beside its weights."""
    return type(part).__module__.startswith(OWN_CODE)


def takes_waveforms(extractor: Any) -> bool:
    """Return True for the feature extractor that normalises waveforms and no more."""
    return type(extractor).__name__ == "Wav2Vec2FeatureExtractor"


def extracted(extractor: Any, waveforms: Tensor, sample_rate: int) -> dict[str, Tensor]:
    """Return what a feature extractor makes of waveforms (batch, samples).

    That of Whisper fills them with silence up to 30 s, and computes spectra of it. Here it gets enough for a frame of
    nothing but silence, which is repeated: the same numbers, as every frame after it is equal.
    """
    options: dict[str, Any] = {"sampling_rate": sample_rate, "return_tensors": "pt"}
    # With dither no two frames of silence are equal; older extractors have none.
    if type(extractor).__name__ == "WhisperFeatureExtractor" and not getattr(extractor, "dither", 0.0):
        silence = 2 * extractor.n_fft
        if waveforms.shape[1] + silence < extractor.n_samples:
            clips = list(nn.functional.pad(waveforms, (0, silence)).numpy())
            spectra = extractor(clips, padding="do_not_pad", **options)["input_features"]  # (batch, n_mels, frames)
            missing = extractor.nb_max_frames - spectra.shape[2]
            return {"input_features": nn.functional.pad(spectra, (0, missing), mode="replicate")}
    return dict(extractor(list(waveforms.numpy()), **options))


# Geometry


def geometry_of(encoder: Encoder) -> Geometry:
    """Return the geometry of an encoder: from the strides in its configuration, or measured."""
    config: Any = getattr(encoder.network, "config", None)
    if getattr(config, "model_type", "") == "audio-spectrogram-transformer":
        return patches(config, encoder.sample_rate)
    strides: Any = getattr(config, "conv_stride", None)
    kernels: Any = getattr(config, "conv_kernel", None)
    is_plain = isinstance(strides, (list, tuple)) and isinstance(kernels, (list, tuple))
    if is_plain and not hasattr(config, "squeeze_factor"):  # SEW pools once more
        return convolutions(kernels, strides, names_of(config))
    if hasattr(config, "max_source_positions") and hasattr(encoder.extractor, "n_samples"):  # Whisper's
        longest = encoder.extractor.n_samples
        hop = longest // config.max_source_positions
        return Geometry(
            hop=hop,
            offset=0.0,  # frames of the spectrogram are centred, and so are the strides over them
            min_samples=1,
            max_samples=longest,
            layers=names_of(config),
            count=lambda n_samples: -(-n_samples // hop),
        )
    return measured(encoder)


def names_of(config: Any) -> tuple[str, ...]:
    """Return the names of the layers of a network of `transformers`; an adapter changes the times of the last one."""
    numbers = map(str, range(config.num_hidden_layers + 1))
    return (*numbers,) if getattr(config, "add_adapter", False) else (*numbers, LAST)


def convolutions(kernels: Sequence[int], strides: Sequence[int], layers: tuple[str, ...]) -> Geometry:
    """Return the geometry behind convolutions over the waveform without padding."""
    hop = field = 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    return Geometry(hop=hop, offset=(field - 1) / 2, min_samples=field, layers=layers)


def patches(config: Any, sample_rate: int) -> Geometry:
    """Return the geometry of patches over a spectrogram that is filled to one length, behind two tokens."""
    frame, hop = (sample_rate * length_ms // 1000 for length_ms in (KALDI_WINDOW, KALDI_HOP))
    size, stride = config.patch_size, config.time_stride

    def count(n_samples: int) -> int:
        n_frames = 1 + (n_samples - frame) // hop
        return max(1, 1 + (n_frames - size) // stride)

    return Geometry(
        hop=hop * stride,
        offset=frame / 2 + hop * (size - 1) / 2,
        min_samples=frame,
        max_samples=frame + config.max_length * hop - 1,
        layers=names_of(config),
        n_freq=1 + (config.num_mel_bins - size) // config.frequency_stride,
        prefix=("cls", "dist"),
        count=count,
    )


@torch.no_grad()
def measured(encoder: Encoder) -> Geometry:
    """Measure the geometry of an unknown network by the shortest clips that have one, some, and `SPAN` more positions.

    Raises
    ------
    WeightsError : positions do not follow each other at one distance
    """
    noise = torch.randn(1, LONGEST_SECONDS * encoder.sample_rate, generator=torch.Generator().manual_seed(0))
    encoder.network.eval()

    def count(n_samples: int) -> int:
        try:
            first, *_, last = encoder.states(noise[:, :n_samples]).values()
        except (RuntimeError, ValueError, IndexError, AssertionError):  # too short
            return 0
        return first.shape[1] if last.isfinite().all() else 0  # a deviation over one frame is none

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = (*encoder.states(noise),)
        later = shortest(count, FIRST_POSITIONS + SPAN, noise.shape[1])
        few = shortest(count, FIRST_POSITIONS, later)
        least = shortest(count, 1, few)
    if not later or later == few or (later - few) % SPAN:
        kind = type(encoder.network).__name__
        raise WeightsError(f"{kind}: its hidden states do not lie along time at one distance, so it cannot be read")
    hop = (later - few) // SPAN
    field = few - (FIRST_POSITIONS - 1) * hop
    return Geometry(hop=hop, offset=(field - 1) / 2, min_samples=least, layers=layers)


def shortest(count: Callable[[int], int], wanted: int, longest: int) -> int:
    """Return the fewest samples that have so many positions, 0 if the longest clip has not."""
    if count(longest) < wanted:
        return 0
    low, high = 0, longest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) >= wanted else (middle, high)
    return high


# Loading


def load_model(
    path: str | os.PathLike[str] = "",
    variant: str | None = None,
    *,
    layer: Layer | None = None,
    pool: Pool | Sequence[Pool] | None = None,
    hop_ms: float | None = None,
    window_ms: float | Sequence[float] | None = None,
    framing: Framing | None = None,
    segment: float | None = None,
    overlap: float | None = None,
    mean_over_time: bool = False,
    precision: Precision = "float32",
    device: str | torch.device = "cpu",
    pretrained: bool = True,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Embedder:
    """Load an encoder of Hugging Face; what is not described here is as in `hear.Loader.load_model`.

    Parameters
    ----------
    path : folder with ``config.json`` and weights
    variant : such a folder, or the name of a repository, which is downloaded if it is not in the cache of Hugging Face;
        beside a path, the name that the folder goes by
    layer : number of a hidden state, or "features", the last one as the network returns it; None is the latter
    hop_ms : None is the distance of two positions of the network
    revision : of the repository: branch, tag or hash of a commit
    trust_remote_code : run Python code that lies beside the weights, where the network is not one of `transformers`

    Returns
    -------
    model : on the device

    Raises
    ------
    OptionError : a value is not one this encoder knows, `transformers` is missing, or code must be trusted first
    WeightsError : there is no encoder of audio, or it cannot be loaded
    """
    library = import_extra(f"model={NAME}", "transformers", NAME)
    found = find(path, variant, revision)
    place = pick_device(device)
    network, extractor = read(library, found.folder, pretrained=pretrained, trusted=trust_remote_code)
    trunk = Encoder(network, extractor, rate_of(found, network, extractor))
    times: dict[str, Any] = {"hop_ms": hop_ms, "window_ms": window_ms, "framing": framing}
    times |= {"segment": segment, "overlap": overlap, "mean_over_time": mean_over_time}
    chosen = choose(readouts_of(trunk), trunk, layer=layer, pool=pool, **times)
    trunk.cut(chosen.scene.layers)  # those of timestamps too
    model = Embedder(trunk, chosen, name=(NAME, found.name), precision=precision, device=place)
    model.weights_sha256 = hash_of_parts(weights_in(found.folder)) if pretrained else None
    own_code = any(map(is_foreign, (network, extractor)))
    model.read_with = {
        "package": f"hear_transformers {__version__}, transformers {library.__version__}",
        "revision": found.revision,
        "remote_code": hash_of_parts(sorted(found.folder.glob("*.py"))) if own_code else None,
    }
    return model if place == model.device else model.to(place)


def describe(variant: str, **options: Any) -> dict[str, Any]:
    """Describe an encoder that is on this machine, ready for JSON, see `catalogue.describe`.

    Parameters
    ----------
    variant : folder or name
    options : for `load_model`
    """
    found = find("", variant, here=True)
    model = load_model(found.folder, variant, **options)
    ms = 1000 / model.sample_rate
    provenance = model.provenance()
    return {
        "variant": found.name,
        "parameters": sum(parameter.numel() for parameter in model.trunk.parameters()),
        "sample_rate": model.sample_rate,
        "shortest_window_ms": model.min_samples * ms,
        "longest_window_ms": None if model.max_samples is None else model.max_samples * ms,
        "scene_embedding_size": model.scene_embedding_size,
        "timestamp_embedding_size": model.timestamp_embedding_size,
        "defaults": {key: provenance[key] for key in ("scene", "timestamps", "hop_ms", "framing", "precision")},
        "layers": [asdict(row) for row in layer_table(model.trunk, model.variant.frontend)],
        "source": {
            "network": type(model.trunk.network).__name__,
            "folder": str(found.folder),
            "revision": found.revision,
            "sha256": model.weights_sha256,
            "remote code": provenance["remote_code"],
        },
    }


def find(
    path: str | os.PathLike[str], variant: str | None, revision: str | None = None, *, here: bool = False
) -> hub.Snapshot:
    """Find an encoder, see `hub.find`; raise OptionError if none is named."""
    place = os.fspath(path) or variant
    if not place:
        raise OptionError(
            f"model={NAME!r} stands for any audio encoder of Hugging Face; give variant, a folder or the name of a "
            "repository, such as MIT/ast-finetuned-audioset-10-10-0.4593"
        )
    import_extra(f"model={NAME}", "huggingface_hub", NAME)
    found = hub.find(place, revision, here=here)
    return replace(found, name=variant) if os.fspath(path) and variant else found


def read(library: Any, folder: Path, *, pretrained: bool, trusted: bool) -> tuple[nn.Module, Any]:
    """Read the network of a folder, in float32, and its feature extractor, None without, by `transformers`.

    Of an encoder and a decoder it is the encoder. Nothing is fetched.
    """
    options = {"local_files_only": True, "trust_remote_code": trusted}
    missing: Collection[str] = ()
    with quiet(library), failing(folder, library):
        config = library.AutoConfig.from_pretrained(str(folder), **options)
        extractor = None
        if (folder / PREPROCESSOR).is_file():
            extractor = library.AutoFeatureExtractor.from_pretrained(str(folder), **options)
        if pretrained:
            options |= {"config": config, "output_loading_info": True}
            network, found = library.AutoModel.from_pretrained(str(folder), **options)
            missing = found["missing_keys"]
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = library.AutoModel.from_config(config, trust_remote_code=trusted)
    check_is_audio(network, folder)
    check_is_whole(network, missing, folder)
    encoder = network.get_encoder() if config.is_encoder_decoder else network
    return encoder.float().eval(), extractor


def check_is_audio(network: nn.Module, folder: Path) -> None:
    """Raise WeightsError for a network of text, images or video."""
    argument = next(iter(inspect.signature(network.forward).parameters), "")
    if argument in NOT_AUDIO:
        raise WeightsError(f"{folder}: {type(network).__name__} takes {argument}: it is no encoder of audio")


def check_is_whole(network: nn.Module, missing: Collection[str], folder: Path) -> None:
    """Raise WeightsError if weights lack what hidden states are computed with, which would be drawn at random."""
    lost = [name for name in missing if not ONLY_ELSEWHERE.search(name)]
    if lost:
        few = ", ".join(sorted(lost)[:3])
        raise WeightsError(f"{folder}: the weights lack {len(lost)} tensors of {type(network).__name__}: {few}")


def rate_of(found: hub.Snapshot, network: nn.Module, extractor: Any) -> int:
    """Return the sample rate in Hz; where nothing says it, warn of the usual one."""
    config = getattr(network, "config", None)
    for holder, name in ((extractor, "sampling_rate"), (config, "sampling_rate"), (config, "sample_rate")):
        if rate := getattr(holder, name, None):
            return int(rate)
    if extractor is not None:
        raise WeightsError(f"{found.folder / PREPROCESSOR}: has no sampling_rate, so this is no encoder of audio")
    warnings.warn(
        f"{found.name} has no {PREPROCESSOR}: waveforms are taken at {USUAL_RATE} Hz and as they are",
        HearTransformersWarning,
        stacklevel=3,
    )
    return USUAL_RATE


def readouts_of(trunk: Encoder) -> Variant:
    """Return what is read by default: the mean of the last layer, and its positions as they lie in time."""
    rate, geometry = trunk.sample_rate, trunk.geometry
    last = geometry.layers[-1:]
    window_ms = min(WINDOW_MS, 1000.0 * (geometry.max_samples or math.inf) / rate)
    # Every network that takes so much and no more fills up to it.
    longest = geometry.max_samples
    frontend = FilledWaveform(sample_rate=rate, filled=longest) if longest else Waveform(sample_rate=rate)
    return Variant(
        checkpoint="",
        network={},
        frontend=frontend,
        scene=Readout(window_ms, last),
        scene_hop_ms=window_ms / 2,
        timestamps=(Readout(1_000.0, last),),
        hop_ms=1000.0 * geometry.hop / rate,
        framing="native",
    )


@contextlib.contextmanager
def quiet(library: Any) -> Iterator[None]:
    """Silence `transformers`, and what code of others prints, until the block ends."""
    log = library.utils.logging
    level, has_bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with silenced():
            yield
    finally:
        log.set_verbosity(level)
        if has_bar:
            log.enable_progress_bar()


@contextlib.contextmanager
def failing(folder: Path, library: Any) -> Iterator[None]:
    """Raise errors of `transformers` as ours, with the folder."""
    try:
        yield
    except Exception as error:  # the folder decides which classes are called
        if TRUST in str(error):
            raise OptionError(
                f"{folder} has Python code of its own, which loading it runs; read it, then give --trust-remote-code, "
                f"in Python {TRUST}=True"
            ) from error
        reason = textwrap.shorten(str(error), MOST_WORDS) or type(error).__name__
        raise WeightsError(f"{folder}: transformers {library.__version__} cannot load it ({reason})") from error
