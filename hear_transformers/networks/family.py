"""The records that a family file declares: its networks as rows of a table, and what is read from each."""

from __future__ import annotations

import contextlib
import inspect
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from ..errors import OptionError, unknown
from .frontend import FrameSpec, MelSpec
from .trunk import Trunk


@dataclass(frozen=True, slots=True)
class Readout:
    """One vector per window: the length of the window, the layers, their pooling.

    Attributes
    ----------
    window_ms : length of the window; for scenes the longest clip that is read in one pass
    layers : keys of `Trunk.layers` or "mel", concatenated in this order; a variant may count blocks from the last one,
        "-1", as a custom network may be of another depth
    pool : a key of `pooling.POOLS`, or "cls", or several joined by commas, "mean,cls", which are concatenated for each
        layer in this order; vectors pass unchanged, once
    fill_frames : shorter clips are padded to this many frames with `FrameSpec.padding`, as the network was trained
    """

    window_ms: float
    layers: tuple[str, ...]
    pool: str = "mean"
    fill_frames: int = 0

    @property
    def pools(self) -> tuple[str, ...]:
        """Names of the poolings, in order."""
        return tuple(self.pool.split(","))


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Everything that distinguishes two models of one family.

    Attributes
    ----------
    checkpoint : name of the family's row in weights/manifest.toml; empty if none is published
    network : keyword arguments of the family's network
    frontend : the mel dialect, or the waveform itself
    scene : readout of a whole clip
    scene_hop_ms : distance between the windows of a clip longer than one window
    timestamps : readouts around each timestamp, concatenated; with framing "native" the first one, read from chunks as
        long as a scene's window
    hop_ms : distance between timestamps
    framing : "windowed" or "native", see `Embedder`
    mean_over_time : whether a scene is the mean over the timestamps, instead of a readout of its own
    imagenet : table and row in weights/manifest.toml of the network for images that training may start from; None
        without one
    labels : reads the names of its classes, where they are neither AudioSet's 527 nor in its checkpoint
    """

    checkpoint: str
    network: Mapping[str, Any]
    frontend: FrameSpec
    scene: Readout
    scene_hop_ms: float
    timestamps: tuple[Readout, ...]
    hop_ms: float = 50.0
    framing: str = "windowed"
    mean_over_time: bool = False
    imagenet: tuple[str, str] | None = None
    labels: Callable[[], tuple[str, ...]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What a checkpoint says beside its tensors.

    Attributes
    ----------
    network : arguments of the network
    normalisation : mean and standard deviation of the front end; None if nothing says them
    labels : names of the classes in the order of the logits; None without names
    multi_label : whether a clip may belong to several classes
    """

    network: Mapping[str, Any] = field(default_factory=dict)
    normalisation: tuple[float, float] | None = None
    labels: tuple[str, ...] | None = None
    multi_label: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family of networks.

    Attributes
    ----------
    name : of its module
    network : builds the network from `Variant.network`. An argument that counts blocks has "depth" in its name, see
        `checkpoints.trained`
    variants : its variants by name, the default first
    anchors : names that every file of the family has one of, in the authors' layouts and ours: where the network begins
        in a file, see `checkpoints.search`
    convert_state_dict : authors' state dict of a variant -> ours; raises WeightsError if it belongs to other audio
    sizes : (tensors, variant, arguments that the user fixed) -> the arguments of the network that the shapes of tensors
        decide; the tensors have the names of the file and, with priority, those after `convert_state_dict`. Raises
        WeightsError where an argument must be given
    model_type : of this network in a ``config.json`` of Hugging Face; empty if there is none
    arguments_of_config : such a ``config.json`` -> arguments of the network
    beside : entries of a file that hold no tensors, see `state_dicts.Content` -> what they say; raises WeightsError if
        it belongs to another network
    unused : keys of the authors' checkpoints, after `convert_state_dict`, that the network ignores
    classifier : keys, after `convert_state_dict`, of biases with one entry per class; the first one present counts the
        classes of a file, which may differ from the variant's. Empty for a family without a classifier
    adapt_pretrained : used by `training.initialisation` alone, after `convert_state_dict`: fits weights of a network
        for images, or for another length, to a variant
    evaluated : finds the prefix of the network that the authors evaluate, in a file with several; None for the averaged
        one, see `checkpoints.search`
    reinitialised : prefixes of keys. A group that is not all in a file, or of other shapes, is drawn at random by
        `training.initialisation`. Parts come before the whole: ("head.1.", "head.") keeps what it can of a classifier
    """

    name: str
    network: Callable[..., Trunk]
    variants: Mapping[str, Variant]
    anchors: tuple[str, ...]
    convert_state_dict: Callable[[dict[str, Tensor], Variant], dict[str, Tensor]] = lambda state_dict, variant: (
        state_dict
    )
    sizes: Callable[[Mapping[str, Tensor], Variant, Mapping[str, Any]], dict[str, Any]] = (
        lambda tensors, variant, given: {}
    )
    model_type: str = ""
    arguments_of_config: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}
    beside: Callable[[Mapping[str, Mapping[Any, Any]]], Beside] = lambda entries: Beside()
    unused: tuple[str, ...] = ()
    classifier: tuple[str, ...] = ()
    adapt_pretrained: Callable[[dict[str, Tensor], Variant], dict[str, Tensor]] = lambda state_dict, variant: state_dict
    reinitialised: tuple[str, ...] = ()
    evaluated: re.Pattern[str] | None = None


class _Without(TorchFunctionMode):
    """Leave out functions that fill or scale tensors, in networks whose numbers do not count."""

    def __init__(self, left_out: Collection[Callable[..., Any]], instead: Callable[[Any], Any] = lambda it: it) -> None:
        super().__init__()
        self.left_out = left_out
        self.instead = instead  # called with the tensor

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: Any = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of PyTorch, or return the tensor that it would fill or scale."""
        if function is torch.randn:  # on the device meta it imports SymPy, for half a second
            function = torch.zeros
        is_product = function is Tensor.mul and isinstance(arguments[-1], Tensor)
        if function in self.left_out and not is_product:
            return self.instead(arguments[0])
        return function(*arguments, **(named or {}))


DRAWING: set[Callable[..., Any]] = {Tensor.normal_, Tensor.uniform_, Tensor.erfinv_}
"""What the functions of ``torch.nn.init`` draw random numbers with."""

FILLING: set[Callable[..., Any]] = {
    *DRAWING, Tensor.clamp_, Tensor.mul_, Tensor.add_, Tensor.zero_, Tensor.fill_, Tensor.mul,
}  # fmt: skip
"""All that fills tensors and scales them: on the device ``meta`` they have no numbers, and PyTorch spends seconds."""


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Build and run networks without memory for their numbers, of which none can be read."""
    # From PyTorch 2.14 on, `trunc_normal_` draws again until no number is out of bounds, and asks whether any is.
    with FakeTensorMode(), _Without({Tensor.any}, lambda tensor: False):
        yield


MOST_BUILT = 128
"""Most networks without numbers that are kept, more than the variants of all families."""

_BUILT: dict[tuple[Callable[..., Trunk], str], Trunk] = {}


def on_meta(family: Family, variant: Variant) -> Trunk:
    """Build a variant's network on the device ``meta``, shapes without numbers; the last ones built are kept."""
    key = family.network, repr(variant.network)
    if key not in _BUILT:
        with torch.device("meta"), _Without(FILLING):
            trunk = family.network(**variant.network)
        if len(_BUILT) >= MOST_BUILT:
            _BUILT.clear()
        _BUILT[key] = trunk
    return _BUILT[key]


USUAL_FRAMES = 1024
"""Argument "frames" of networks that have it, unless a variant says otherwise: AST, and what followed it."""


def with_network(variant: Variant, arguments: Mapping[str, Any]) -> Variant:
    """Change arguments of a variant's network, with them the mel bands of its front end and the length of scenes."""
    frontend = variant.frontend
    n_mels = arguments.get("n_mels")
    if isinstance(frontend, MelSpec) and isinstance(n_mels, int) and n_mels > 0:
        frontend = replace(frontend, n_mels=n_mels)
    usual = variant.network.get("frames", USUAL_FRAMES)
    frames = arguments.get("frames", usual)
    changed = replace(variant, network={**variant.network, **arguments}, frontend=frontend)
    if frames == usual or not isinstance(frames, int) or frames < 1:
        return changed
    scene = variant.scene
    window_ms = scene.window_ms * frames / usual
    fill_frames = 0
    if scene.fill_frames:
        window_ms, fill_frames = 1000.0 * frontend.n_samples(frames) / frontend.sample_rate, frames
    scene_hop_ms = window_ms * variant.scene_hop_ms / scene.window_ms
    return replace(
        changed, scene=replace(scene, window_ms=window_ms, fill_frames=fill_frames), scene_hop_ms=scene_hop_ms
    )


def with_normalisation(variant: Variant, normalisation: Sequence[float] | None) -> Variant:
    """Change the mean and the standard deviation that a variant's front end normalises with; None changes nothing.

    Raises
    ------
    OptionError : they are no two finite numbers, or the network takes none
    """
    if normalisation is None:
        return variant
    match [*normalisation]:
        case [float() | int() as mean, float() | int() as std] if math.isfinite(mean) and 0 < std < math.inf:
            return replace(variant, frontend=variant.frontend.with_normalisation(float(mean), float(std)))
    raise OptionError(f"normalisation={normalisation!r} is no mean and deviation above 0, such as (-4.27, 4.57)")


BUILD_ERRORS = (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError)
"""Errors of networks that are built with wrong arguments; OptionError is a ValueError."""


def check_arguments(family: Family, variant: Variant, given: Mapping[str, Any], *, sizes_follow: bool = False) -> None:
    """Raise OptionError that lists the arguments of a variant's network if it cannot be built with those given.

    With `sizes_follow`, a file will say what other sizes they go with, and only unknown ones are refused.
    """
    try:
        on_meta(family, with_network(variant, given))
    except BUILD_ERRORS as error:
        if sizes_follow and set(given) <= set(arguments_of(family, variant)):
            return
        raise arguments_error(family, variant, given, error) from error


def arguments_error(
    family: Family, variant: Variant, given: Mapping[str, Any], reason: Exception | str = "they do not fit the file"
) -> OptionError:
    """Return the error for arguments that make no network."""
    names = ", ".join(arguments_of(family, variant))
    return OptionError(
        f"network={dict(given)!r} makes no network of {family.name}: {reason}; its arguments are {names}"
    )


def arguments_of(family: Family, variant: Variant) -> dict[str, Any]:
    """Return the arguments of a variant's network, those of its base classes too, each with a value that it may have.

    A function that builds networks passes on arguments that other variants set.
    """
    values = dict(variant.network)
    for row in family.variants.values():
        values = {**row.network, **values}
    kind = type(on_meta(family, variant))
    builders: list[Callable[..., Any]] = [family.network, *(base for base in kind.__mro__ if issubclass(base, Trunk))]
    for builder in builders:
        for name, parameter in inspect.signature(builder).parameters.items():
            if parameter.default is not parameter.empty:
                values.setdefault(name, parameter.default)
    return values


def count_members(names: Iterable[str], container: str) -> int:
    """Count the modules of a list in the names of a state dict: different numbers behind "blocks."."""
    return len({name.removeprefix(container).partition(".")[0] for name in names if name.startswith(container)})


def variant_of(family: Family, name: str | None) -> tuple[str, Variant]:
    """Return (name, variant), the first for None; raise OptionError that lists the variants for an unknown name."""
    name = next(iter(family.variants)) if name is None else name
    if name not in family.variants:
        raise unknown("variant", name, family.variants, to=family.name, more=f"hear-transformers list {family.name}")
    return name, family.variants[name]


def random_trunk(family: Family, variant: Variant) -> Trunk:
    """Build a variant's network with the same random weights every time, without touching the global seed."""
    with torch.random.fork_rng(devices=[]), float32_by_default():
        torch.manual_seed(0)
        return family.network(**variant.network)


def unfilled_trunk(family: Family, variant: Variant) -> Trunk:
    """Build a variant's network for weights that are loaded next: what `random_trunk` draws at random is zero."""
    # Not undefined: from PyTorch 2.14 on, `trunc_normal_` draws again until all numbers are within its bounds.
    with _Without(DRAWING, Tensor.zero_), float32_by_default():
        return family.network(**variant.network)


@contextlib.contextmanager
def float32_by_default() -> Iterator[None]:
    """Build in float32, also for users who set another default; where it is float32, as nearly always, do nothing."""
    before = torch.get_default_dtype()
    if before == torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
