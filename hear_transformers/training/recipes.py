"""How networks are trained: the contents of a recipe, and the recipes of the papers.

A recipe applies to any network. `Recipe.network` holds arguments of the network itself; masks and mixup of mels are
skipped for a front end without a mel.

All of them leave out two things. PaSST and EfficientAT are trained with jittered mel edges (by up to 10 Hz below and
2000 Hz above); here the filters are part of the front end, which is the same in training and afterwards. And the mean
of a waveform is not subtracted before mixing, see `augment`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, Literal

from ..errors import OptionError, did_you_mean

Rule = tuple[Callable[[Any], bool], str]
"""A predicate for values, and a description of those allowed."""


def whole_from(least: int) -> Rule:
    """Allow whole numbers from `least`."""
    return lambda value: type(value) is int and value >= least, f"a whole number of at least {least}"


def one_of(*values: str) -> Rule:
    """Allow some names."""
    return lambda value: value in values, f"one of {', '.join(values)}"


def or_none(rule: Rule) -> Rule:
    """Allow None as well."""
    is_allowed, text = rule
    return lambda value: value is None or is_allowed(value), f"{text}, or None"


def number_where(is_allowed: Callable[[float], bool], text: str) -> Rule:
    """Allow some numbers, but not True, which Python takes for 1."""
    return lambda value: not isinstance(value, bool) and is_allowed(value), text


POSITIVE = number_where(lambda value: 0 < value < math.inf, "a number above 0")
NOT_NEGATIVE = number_where(lambda value: 0 <= value < math.inf, "a number of at least 0")
SHARE = number_where(lambda value: 0 <= value <= 1, "a number from 0 to 1")
FINITE = number_where(math.isfinite, "a finite number")
INSIDE = number_where(lambda value: 0 < value < 1, "a number between 0 and 1")
TRUTH: Rule = (lambda value: isinstance(value, bool), "True or False")
BETAS: Rule = (lambda pair: len(pair) == 2 and all(0 <= beta < 1 for beta in pair), "two numbers from 0 to below 1")
MILESTONES: Rule = (lambda epochs: all(one < later for one, later in pairwise([0, *epochs])), "epochs above 0 in order")
NAMED: Rule = (lambda options: isinstance(options, Mapping), "arguments of the network by name")


def checked(rule: Rule, **default: Any) -> Any:
    """Make a field of a recipe whose values follow a rule; `default` as for `dataclasses.field`."""
    return field(metadata={"rule": rule}, **default)


def check_fields(part: Any) -> None:
    """Check the fields of a part of a recipe; raise OptionError if a value is not allowed."""
    for each in fields(part):
        is_allowed, allowed = each.metadata["rule"]
        value = getattr(part, each.name)
        try:
            is_fine = is_allowed(value)
        except (TypeError, ValueError):  # not even comparable
            is_fine = False
        if not is_fine:
            raise OptionError(f"{each.name}={value!r} is not allowed; give {allowed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixup:
    """Mixup of pairs of clips and of their targets (Zhang et al., 1710.09412).

    Attributes
    ----------
    of : "waveforms" or "mels"
    rate : fraction of the clips that are mixed
    alpha : the weight of a clip in its mix is drawn from Beta(alpha, alpha)
    keep_larger : True to always give the clip itself the larger weight
    """

    of: Literal["waveforms", "mels"] = checked(one_of("waveforms", "mels"))
    rate: float = checked(SHARE, default=1.0)
    alpha: float = checked(POSITIVE)
    keep_larger: bool = checked(TRUTH, default=False)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """Masking of adjacent bands or frames of a log-mel spectrogram (SpecAugment: Park et al., 1904.08779).

    Attributes
    ----------
    axis : "frequency" or "time"
    widest : bands or frames; the width is drawn from 0 to this, or to the size of the axis if that is smaller
    number : of such masks
    value : of masked bands or frames, in the log-mel before normalisation (natural logarithm or dB, as the dialect has
        it); None for the mean of the clip
    """

    axis: Literal["frequency", "time"] = checked(one_of("frequency", "time"))
    widest: int = checked(whole_from(0))
    number: int = checked(whole_from(1), default=1)
    value: float | None = checked(or_none(FINITE), default=None)

    def __post_init__(self) -> None:
        check_fields(self)


MIXUPS: Rule = (
    lambda parts: all(isinstance(part, Mixup) for part in parts) and len({part.of for part in parts}) == len(parts),
    "at most one Mixup of waveforms and one of mels",
)
MASKS: Rule = (lambda parts: all(isinstance(part, Mask) for part in parts), "Masks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a network is trained. `dataclasses.asdict` converts it for JSON, `with_changes` back.

    Attributes
    ----------
    epochs : number of epochs
    batch_size : clips per step, over all processes
    learning_rate : peak learning rate
    fresh_factor : its multiple for reinitialised parameters, such as the classifier of new classes
    optimiser : "adam" or "adamw"
    betas, eps, amsgrad : of the optimiser
    weight_decay : added to the gradient by Adam, decoupled from it by AdamW
    decay_vectors : True to apply it to biases, norms and other vectors too
    warm_up_steps, warm_up_epochs : until the learning rate reaches its peak; one of them is 0
    warm_up_shape : "linear", or "exponential": exp(-5 (1 - progress)^2)
    decay : of the learning rate: "none"; "cosine", over all epochs; "milestones"; "linear"
    milestones : epochs at which the learning rate is multiplied by `gamma`
    gamma : see `milestones`
    decay_from, decay_to : epochs between which "linear" decay takes place
    floor : last factor of "cosine" and "linear"
    gradient_norm : gradients are clipped to this norm; None for no limit
    precision : of the network, forward and back: "bfloat16" for autocast, "float32", "tf32"; "auto" for bfloat16 where
        the device has instructions for it, else float32, see `embedding.precision`
    average : of the weights, used for validation and as the result: "none"; "ema", exponential; "epochs", the mean
        over some epochs
    ema_decay : of an exponential average, per step
    average_from, average_every : first epoch that counts, counted from 1, and step to the next
    balance : clips are sampled with weight sum over labels of 1 / (clips of the class + balance); None to take every
        clip once per epoch
    epoch_clips : clips per epoch; None for the size of the training set
    seconds : length of a clip; None for the variant's own
    gain_db : largest random gain, up or down
    shift_samples : largest random roll, either way
    mixups : at most one of waveforms and one of mels
    masks : of the mels
    network : arguments of the network during training, such as patchout or drop_path
    """

    epochs: int = checked(whole_from(1))
    batch_size: int = checked(whole_from(1))
    learning_rate: float = checked(POSITIVE)
    fresh_factor: float = checked(POSITIVE, default=1.0)
    optimiser: Literal["adam", "adamw"] = checked(one_of("adam", "adamw"), default="adam")
    betas: tuple[float, float] = checked(BETAS, default=(0.9, 0.999))  # PyTorch's defaults, as eps
    eps: float = checked(POSITIVE, default=1e-8)
    weight_decay: float = checked(NOT_NEGATIVE, default=0.0)
    amsgrad: bool = checked(TRUTH, default=False)
    decay_vectors: bool = checked(TRUTH, default=True)
    warm_up_steps: int = checked(whole_from(0), default=0)
    warm_up_epochs: float = checked(NOT_NEGATIVE, default=0.0)
    warm_up_shape: Literal["linear", "exponential"] = checked(one_of("linear", "exponential"), default="linear")
    decay: Literal["none", "cosine", "milestones", "linear"] = checked(
        one_of("none", "cosine", "milestones", "linear"), default="none"
    )
    milestones: tuple[float, ...] = checked(MILESTONES, default=())
    gamma: float = checked(POSITIVE, default=0.5)
    decay_from: float = checked(NOT_NEGATIVE, default=0.0)
    decay_to: float = checked(NOT_NEGATIVE, default=0.0)
    floor: float = checked(SHARE, default=0.0)
    gradient_norm: float | None = checked(or_none(POSITIVE), default=None)
    precision: Literal["bfloat16", "float32", "tf32", "auto"] = checked(
        one_of("bfloat16", "float32", "tf32", "auto"), default="auto"
    )
    average: Literal["none", "ema", "epochs"] = checked(one_of("none", "ema", "epochs"), default="none")
    ema_decay: float = checked(INSIDE, default=0.999)
    average_from: int = checked(whole_from(1), default=1)
    average_every: int = checked(whole_from(1), default=1)
    balance: float | None = checked(or_none(NOT_NEGATIVE), default=None)
    epoch_clips: int | None = checked(or_none(whole_from(1)), default=None)
    seconds: float | None = checked(or_none(POSITIVE), default=None)
    gain_db: float = checked(NOT_NEGATIVE, default=0.0)
    shift_samples: int = checked(whole_from(0), default=0)
    mixups: tuple[Mixup, ...] = checked(MIXUPS, default=())
    masks: tuple[Mask, ...] = checked(MASKS, default=())
    network: Mapping[str, Any] = checked(NAMED, default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.warm_up_steps and self.warm_up_epochs:
            raise OptionError(
                f"warm_up_steps={self.warm_up_steps} and warm_up_epochs={self.warm_up_epochs} are both given; "
                "set one of them to 0"
            )
        if self.decay == "linear" and self.decay_from >= self.decay_to:
            raise OptionError(
                f"decay_from={self.decay_from} and decay_to={self.decay_to} leave no time for a linear decay; "
                "give a later decay_to"
            )
        if self.decay == "milestones" and not self.milestones:
            raise OptionError("decay='milestones' needs milestones; give the epochs, or decay='none'")


PARTS: dict[str, type[Mixup] | type[Mask]] = {"mixups": Mixup, "masks": Mask}
"""Fields of a recipe that hold parts."""


def with_changes(recipe: Recipe, **changes: Any) -> Recipe:
    """Return a recipe with other values.

    Parameters
    ----------
    recipe : to change
    changes : fields of `Recipe`; as in JSON, lists stand for tuples, dicts for `Mixup` and `Mask`

    Raises
    ------
    OptionError : a name is unknown or a value not allowed
    """
    _check_names(Recipe, changes)
    return replace(recipe, **{name: _from_json(name, value) for name, value in changes.items()})


def _from_json(name: str, value: Any) -> Any:
    """Convert lists to tuples, and dicts to parts of a recipe."""
    if not isinstance(value, (list, tuple)):
        return value
    return tuple(_part(PARTS[name], item) if name in PARTS and isinstance(item, dict) else item for item in value)


def _part(kind: type[Mixup] | type[Mask], values: dict[str, Any]) -> Mixup | Mask:
    _check_names(kind, values)
    try:
        return kind(**values)
    except TypeError as error:
        raise OptionError(f"{kind.__name__}: {values} is incomplete ({error})") from error


def _check_names(kind: type[Recipe] | type[Mixup] | type[Mask], given: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(kind)]
    for name in given:
        if name not in known:
            raise OptionError(f"{kind.__name__}: {name} unknown; {did_you_mean(name, known, of='choose from')}")


# Parts that several recipes share


WAVEFORM_MIXUP = Mixup(of="waveforms", rate=0.5, alpha=10.0)
"""Of PSLA and AST (2104.01778, section 3.1; src/dataloader.py: Beta(10, 10)); of ATGNN too."""

AST_MASKS = (Mask(axis="frequency", widest=48, value=0.0), Mask(axis="time", widest=192, value=0.0))
"""Of AST (egs/audioset/run.sh: freqm, timem): zeros before the normalisation; of PaSST and ATGNN too."""

CPJKU_MIXUPS = (
    Mixup(of="waveforms", rate=0.5, alpha=2.0, keep_larger=True),  # PaSST's audioset/dataset.py, MixupDataset
    Mixup(of="mels", alpha=0.3, keep_larger=True),  # PaSST's helpers/mixup.py, called for every batch
)
"""Of PaSST and EfficientAT."""


# Recipes


AST_AUDIOSET_BALANCED = Recipe(
    # egs/audioset/run.sh, src/run.py and src/traintest.py of the authors; from ImageNet.
    epochs=25,
    batch_size=12,
    learning_rate=5e-5,
    betas=(0.95, 0.999),
    weight_decay=5e-7,  # in Adam, of all parameters
    warm_up_steps=1000,  # theirs moves every 50 steps
    decay="milestones",
    milestones=(10, 15, 20),  # every 5 epochs from 10 on; theirs would continue at 25, when training ends
    gamma=0.5,
    precision="auto",  # theirs is float16
    average="epochs",
    average_from=6,  # to the last, 25
    mixups=(WAVEFORM_MIXUP,),
    masks=AST_MASKS,
)

AST_AUDIOSET = replace(
    AST_AUDIOSET_BALANCED,
    # The other branch of the same script.
    epochs=5,
    learning_rate=1e-5,
    milestones=(2, 3, 4),
    average_from=1,
    balance=0.01,  # egs/audioset/gen_weight_file.py: 1000 / (count + 0.01)
)

AST_ESC50 = Recipe(
    # 2104.01778, section 3.2, and egs/esc50/run_esc.sh; from ImageNet.
    epochs=20,
    batch_size=48,
    learning_rate=1e-4,
    betas=(0.95, 0.999),  # this and the next: src/traintest.py, the same as for AudioSet
    weight_decay=5e-7,
    decay="milestones",
    milestones=tuple(range(5, 20)),  # every epoch from 5 on
    gamma=0.85,
    precision="auto",  # theirs is float16
    seconds=5.0,  # of every clip of ESC-50
    masks=(Mask(axis="frequency", widest=24, value=0.0), Mask(axis="time", widest=96, value=0.0)),
)

PASST_AUDIOSET = Recipe(
    # ex_audioset.py, audioset/dataset.py and helpers/ramp.py of the authors; from ImageNet.
    epochs=130,
    batch_size=12,
    learning_rate=2e-5,
    optimiser="adamw",
    weight_decay=1e-4,  # of all parameters
    warm_up_epochs=5.0,
    warm_up_shape="exponential",  # theirs moves once an epoch
    decay="linear",
    decay_from=50.0,
    decay_to=100.0,
    floor=0.01,
    precision="auto",  # theirs is float16
    average="epochs",
    average_from=50,
    average_every=5,
    balance=100.0,  # 1000 / (count + 100)
    epoch_clips=100_000,
    gain_db=7.0,  # theirs are whole dB
    shift_samples=50,
    mixups=CPJKU_MIXUPS,
    masks=AST_MASKS,  # on the logarithm, before (x + 4.5) / 5
    network={"patchout": (4, 40)},  # rows of frequency, columns of time, for patches every 10 bands and frames
)

PANNS_AUDIOSET = Recipe(
    # 1912.10211, section IV-A, and pytorch/main.py of the authors; from random weights.
    # 600,000 steps, at which they evaluate, in 10 epochs of 60,000; their training set has 1,934,187 clips.
    epochs=10,
    # Theirs reads 64 clips and mixes them in pairs to 32, each once. Here 32 clips make 32 mixtures: as many for each
    # step to learn from, which is what a learning rate belongs to.
    batch_size=32,
    learning_rate=1e-3,
    amsgrad=True,
    precision="float32",
    balance=0.01,  # theirs goes round the classes; the offset is AST's
    epoch_clips=32 * 60_000,
    mixups=(Mixup(of="mels", alpha=1.0),),
    # Theirs blank the normalised mel with 0, which is its mean over all clips.
    masks=(Mask(axis="frequency", widest=8, number=2), Mask(axis="time", widest=64, number=2)),
)

ATGNN_FSD50K = Recipe(
    # configs/ of the authors' repository; the encoder from ImageNet. The best epoch is the result.
    epochs=50,
    batch_size=96,
    learning_rate=5e-4,
    betas=(0.95, 0.999),
    weight_decay=5e-7,
    warm_up_steps=1000,  # theirs moves every 50 steps
    decay="milestones",
    milestones=tuple(range(10, 50, 5)),
    gamma=0.5,
    gradient_norm=1.0,
    precision="float32",  # of the network with labels; their README
    mixups=(WAVEFORM_MIXUP,),
    masks=AST_MASKS,
)

MAST = Recipe(
    # Ours: nothing of the training is published but that it is supervised. The optimiser and its schedule are MViTv2's
    # (configs/MVITv2_B.yaml of its authors), data and augmentation AST's. Stochastic depth is a part of the variants.
    epochs=30,  # ours; MViTv2's 300 are for random weights
    batch_size=96,  # ours
    learning_rate=2.5e-4,  # BASE_LR
    optimiser="adamw",
    weight_decay=0.05,
    decay_vectors=False,  # ZERO_WD_1D_PARAM
    warm_up_epochs=5.0,  # ours; for as many epochs as AudioSet's recipes have
    decay="cosine",
    gradient_norm=1.0,  # CLIP_GRAD_L2NORM
    precision="auto",  # ours
    balance=0.01,
    mixups=(WAVEFORM_MIXUP,),
    masks=AST_MASKS,
)

EFFICIENTAT_ESC50 = Recipe(
    # ex_esc50.py of the authors; from AudioSet.
    epochs=80,
    batch_size=128,
    learning_rate=6e-5,
    warm_up_epochs=10.0,
    warm_up_shape="exponential",
    decay="linear",
    decay_from=10.0,
    decay_to=75.0,  # over 65 epochs
    floor=0.01,
    precision="float32",
    seconds=5.0,  # of every clip of ESC-50
    gain_db=12.0,
    shift_samples=50,
    mixups=CPJKU_MIXUPS,
)

FINE_TUNE = Recipe(
    # Ours: fine-tuning a pretrained network on little audio.
    epochs=20,
    batch_size=32,
    learning_rate=1e-4,
    fresh_factor=10.0,
    optimiser="adamw",
    weight_decay=0.01,
    decay_vectors=False,
    warm_up_epochs=1.0,
    decay="cosine",
    gradient_norm=1.0,
    precision="auto",
    mixups=(WAVEFORM_MIXUP,),
    masks=(Mask(axis="frequency", widest=16), Mask(axis="time", widest=32)),
)

SCRATCH = replace(
    FINE_TUNE,
    # Ours: random weights need more and larger steps, and more regularisation.
    epochs=100,
    learning_rate=5e-4,
    weight_decay=0.05,
    warm_up_epochs=5.0,
    masks=(Mask(axis="frequency", widest=24), Mask(axis="time", widest=64)),
)

RECIPES: dict[str, Recipe] = {
    "fine_tune": FINE_TUNE,
    "scratch": SCRATCH,
    "ast_audioset_balanced": AST_AUDIOSET_BALANCED,
    "ast_audioset": AST_AUDIOSET,
    "ast_esc50": AST_ESC50,
    "ast_esc50_from_audioset": replace(AST_ESC50, learning_rate=1e-5),
    "passt_audioset": PASST_AUDIOSET,
    "panns_audioset": PANNS_AUDIOSET,
    "atgnn_fsd50k": ATGNN_FSD50K,
    "mast": MAST,
    "efficientat_esc50": EFFICIENTAT_ESC50,
}
