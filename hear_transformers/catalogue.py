"""The catalogue of models: names, descriptions, downloads, and loading by name.

Names, sizes and layers are data, so nothing but loading a model imports PyTorch.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from . import FAMILIES, OPEN_FAMILIES
from .checkpoints import caches, published, store
from .checkpoints.published import Checkpoint
from .embedding.choices import check_choice
from .errors import OptionError, WeightsError, did_you_mean, similar, unknown
from .networks.layer_names import LayerRow, parse_layers

if TYPE_CHECKING:
    import torch

    from .embedding.embedder import Embedder
    from .embedding.external import ExternalModel
    from .embedding.pipeline import Model
    from .embedding.replicas import Replicas

__all__ = ["describe", "rows"]

PACKAGE = __package__

ALL = "all"
"""Name of every model, or of every variant of a family."""

LIST = "hear-transformers list"

OWN = {**FAMILIES, **OPEN_FAMILIES}
"""Every family, with a table of variants or without."""

OR_MODULE = ", or a module that follows the HEAR API"

YARDSTICK = ("ast", "audioset_10_10")
"""The network that others are compared with: AST, the reference of the papers."""


# Names


@functools.cache
def sizes() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """Return what `benchmarks.sizes` measured, family -> variant -> row, in the order of the families and variants."""
    return json.loads((files(f"{PACKAGE}.weights") / "sizes.json").read_text(encoding="utf-8"))


def family(name: str) -> ModuleType:
    """Import the module of a family; raise OptionError that lists the families for an unknown name."""
    if name not in OWN:
        raise unknown("model", name, OWN)
    return importlib.import_module(f"{PACKAGE}.{name}")


def resolve(model: str | None = None, variant: str | None = None) -> tuple[str, str | None]:
    """Return family and variant of a model by any of its names.

    Parameters
    ----------
    model : a family ("passt"), its module ("hear_transformers.passt"), a variant ("mn10_as"), both ("panns/cnn14"), or
        a module of others that follows the HEAR API; None for the family that has the variant
    variant : of the family; None for its first, or that of `model`

    Returns
    -------
    family, variant : variant None means a family's first; a module of others stands for its family

    Raises
    ------
    OptionError : a name is unknown, variants of several families have it, or two names contradict each other
    """
    if model is None:
        return (next(iter(FAMILIES)), None) if variant is None else _owner("variant", variant)
    name, slash, named = model.removeprefix(f"{PACKAGE}.").partition("/")
    if name in OWN:
        if slash and variant not in (None, named):
            raise OptionError(f"model={model!r} and variant={variant!r} are two variants; give one of them")
        variant = named if slash else variant
        return name, variant if variant is None or name in OPEN_FAMILIES else _variant(name, variant)
    if not slash and name in _owners():
        if variant in (None, name):
            return _owner("model", name)
        raise OptionError(f"model={model!r} and variant={variant!r} are two variants; give one of them")
    if slash or not _is_module(model):
        raise _unknown_model(model, OR_MODULE)
    return model, variant


def is_own(model: str) -> bool:
    """Return True for a family or a variant of this package, also under the name of its module."""
    name = model.removeprefix(f"{PACKAGE}.").partition("/")[0]
    return name in OWN or model != name or model in _owners()


def resolve_own(model: str | None, variant: str | None = None) -> tuple[str, str | None]:
    """Return family and variant like `resolve`; raise OptionError for a module of others as well."""
    if model is not None and not is_own(model):
        raise _unknown_model(model)
    return resolve(model, variant)


def full_name(model: str) -> str:
    """Return family and variant of a model of this package under any of its names: "passt/base".

    Raises
    ------
    OptionError : the model is unknown, or is a family without a table, of which a variant must be named
    """
    name, variant = resolve_own(model)
    if variant is None and name in OPEN_FAMILIES:
        raise OptionError(f"model={model!r} names no variant, as in {name}/facebook/wav2vec2-base")
    return f"{name}/{variant or next(iter(sizes()[name]))}"


def as_module(model: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the HEAR module of a model under any of its names, and the keywords of its `load_model`."""
    name, variant = resolve(model, options.get("variant"))
    if name not in OWN:
        return name, dict(options)
    named = {} if variant is None or "variant" in options else {"variant": variant}
    return f"{PACKAGE}.{name}", named | dict(options)


def _families() -> str:
    return ", ".join(OWN)


@functools.cache
def _owners() -> Mapping[str, list[str]]:
    """Return the families of every name of a variant."""
    owners: dict[str, list[str]] = {}
    for owner, rows in sizes().items():
        for name in rows:
            owners.setdefault(name, []).append(owner)
    return owners


def _owner(option: str, name: str) -> tuple[str, str]:
    """Return the one family that has a variant, and the variant."""
    owners = _owners().get(name)
    if owners is None:
        raise unknown(option, name, _owners(), more=LIST)
    if len(owners) > 1:
        names = ", ".join(f"{owner}/{name}" for owner in owners)
        raise OptionError(f"{option}={name!r} is a variant of {len(owners)} families; choose one of {names}")
    return owners[0], name


def _variant(family_name: str, name: str) -> str:
    """Return the name of a variant; raise OptionError that names the nearest, or the family that has it."""
    if name in sizes()[family_name]:
        return name
    if owners := [f"{owner}/{name}" for owner in _owners().get(name, ())]:
        raise OptionError(f"variant={name!r} is unknown to {family_name}; did you mean {' or '.join(owners)}?")
    raise unknown("variant", name, sizes()[family_name], to=family_name, more=f"{LIST} {family_name}")


def _is_module(name: str) -> bool:
    """Return True if Python finds a module of this name; of a dotted name it imports the packages."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
    except Exception:  # of a package that does not load, which loading the module reports
        return True


def _unknown_model(name: str, modules: str = "") -> OptionError:
    if Path(name).is_file() or (name and any(Path(name).glob("*.safetensors"))):
        return OptionError(f"model={name!r} holds weights; give it as weights, and its family as model, or none")
    return OptionError(f"model={name!r} is unknown; {_known_models(name, modules)}")


def _known_models(name: str, modules: str = "") -> str:
    near = similar(name.partition("/")[0], [*OWN, *_owners()])
    asked = f"; did you mean {' or '.join(near)}?" if near else ""
    if not near and name.count("/") == 1:  # owner/model, as Hugging Face has it
        hub = next(iter(OPEN_FAMILIES))
        return f"an encoder of Hugging Face is {hub}/{name}, weights there are weights={name!r}; {LIST} has all others"
    return f"choose one of {_families()}, a variant ({LIST}){modules}{asked}"


def family_of_checkpoint(path: str) -> str:
    """Return the family of a checkpoint: by what it says of itself, by its hash, else by the networks it holds.

    Raises
    ------
    WeightsError : the file cannot be read, or no variant of one family alone fits it
    """
    if not path:
        return next(iter(FAMILIES))
    from .checkpoints import hub, hugging_face, search

    file = hub.located(path)
    if held := hugging_face.metadata_in(file).get("family"):
        return held
    files = hugging_face.weights_in(file)
    content = hugging_face.read_parts(files)
    row = published.identify(files[0]) if len(files) == 1 else None
    if row and row.family in FAMILIES:
        return row.family
    owners = {name: rows for name in FAMILIES if (rows := search.rows_that_fit(family(name).FAMILY, content, given={}))}
    likely = [*owners] or [name for name in FAMILIES if search.holds_any(family(name).FAMILY, content)]
    if len(likely) == 1:
        return likely[0]
    if not likely and (file / hugging_face.CONFIG).is_file():
        return next(iter(OPEN_FAMILIES))
    known = "; ".join(f"--model {name} --variant {search.shortened(rows)}" for name, rows in owners.items())
    raise WeightsError(
        f"{path}: its model is not known by its hash, nor by its tensors; "
        + (f"it may be one of: {known}" if known else f"give model, one of {', '.join(FAMILIES)}, and variant")
    )


def check(model: str | None, variant: str | None, layer: str | None = None, **words: str | None) -> None:
    """Raise OptionError for an unknown model, variant, layer of a published network, or word, without PyTorch.

    `words` are those of the options in `embedding.choices`.
    """
    for option, word in words.items():
        if word is not None:
            check_choice(option, word)
    name, variant = resolve(model, variant)
    if layer is not None and name in FAMILIES:
        rows = [LayerRow(*row) for row in _row(name, variant)["layers"]]
        parse_layers(layer, [row.layer for row in rows], lambda: rows)


def _row(name: str, variant: str | None) -> Mapping[str, Any]:
    rows = sizes()[name]
    return rows[next(iter(rows)) if variant is None else variant]


# Loading


def load(
    name: str | None, path: str = "", device: str | torch.device = "auto", options: Mapping[str, Any] | None = None
) -> Model:
    """Load a model onto a device.

    Parameters
    ----------
    name : of a model, see `resolve`; None for the family that has the variant in `options`
    path : checkpoint; empty for the published one
    device : "auto", or a name of PyTorch ("cuda:1")
    options : for the family's `load_model`; "batch_size", windows per forward pass ("auto" for the device's own);
        "compile", a number of clips, to compile the network if it pays for so many (`math.inf`: in any case);
        "trust_remote_code", which concerns encoders of Hugging Face alone. Other modules take none

    Raises
    ------
    OptionError : model, device or an option is unknown
    WeightsError : the checkpoint is missing, damaged, or for another network

    Examples
    --------
    >>> import torch
    >>> from hear_transformers import catalogue
    >>> model = catalogue.load("tiny", device="cpu", options={"layer": "4,8"})
    >>> model.embed_scenes(torch.rand(2, 3 * model.sample_rate) - 0.5).shape
    torch.Size([2, 384])
    """
    from .embedding.devices import pick_device
    from .embedding.preparation import compiling_pays

    place = pick_device(device)
    chosen = dict(options or {})
    own, variant = resolve(name, chosen.get("variant"))
    if own not in OPEN_FAMILIES:
        chosen.pop("trust_remote_code", None)  # there is none
    if own not in OWN:
        return _load_foreign(own, path, place, chosen)
    chosen["variant"] = variant
    batch_size = chosen.pop("batch_size", None)
    n_clips = chosen.pop("compile", 0)
    check_names(own, chosen)
    model: Embedder = family(own).load_model(path, **chosen, device=place)
    model.batch_size = None if batch_size == "auto" else batch_size
    if compiling_pays(model.trunk, n_clips, place):
        model.compile_trunk()
    return model


def load_own(
    name: str | None, device: str | torch.device = "auto", options: Mapping[str, Any] | None = None
) -> Embedder:
    """Load a model of this package; its checkpoint is the option "weights", all else is as in `load`."""
    chosen = dict(options or {})
    own, variant = resolve_own(name, chosen.get("variant"))
    model = load(own, chosen.pop("weights", ""), device, chosen | {"variant": variant})
    return cast("Embedder", model)


def load_each(
    names: Sequence[str | None], path: str = "", device: str = "auto", options: Mapping[str, Any] | None = None
) -> list[Model]:
    """Load several models onto a device with the same options, see `load`; an error names the model."""
    models = []
    for name in names:
        try:
            models.append(load(name, path, device, options))
        except OptionError as error:
            raise OptionError(f"{name}: {error}") if len(names) > 1 else error from error
    return models


def load_replicas(
    names: Sequence[str | None], path: str, devices: Sequence[str], options: Mapping[str, Any] | None = None
) -> Replicas:
    """Load models onto several devices, in a process each; further parameters and errors are those of `load_each`.

    A script that calls this needs ``if __name__ == "__main__":``, and closes what it gets, or uses it with ``with``.

    Parameters
    ----------
    devices : names of PyTorch, ["cuda:0", "cuda:1"], see `embedding.devices.pick_devices`
    """
    from .embedding.replicas import Replicas

    return Replicas(functools.partial(load_each, names, path, options=dict(options or {})), devices)


def check_names(name: str, options: Iterable[str]) -> None:
    """Raise OptionError for a keyword that the `load_model` of a family does not take."""
    known = list(inspect.signature(family(name).load_model).parameters)[1:]  # the first is the path
    for option in options:
        if option not in known:
            raise OptionError(f"option {option!r} is unknown to {name}; {did_you_mean(option, known)}")


def _load_foreign(name: str, path: str, device: torch.device, options: Mapping[str, Any]) -> ExternalModel:
    from .embedding.external import ExternalModel, import_hear

    try:
        import_hear(name)
    except OptionError as error:
        raise OptionError(f"{error}; {_known_models(name, OR_MODULE)}") from error
    if options:
        raise OptionError(
            f"{', '.join(options)}: the HEAR API has no such options, so the module {name!r} cannot take them; "
            f"they are for {_families()}"
        )
    return ExternalModel(name, path, device)


# Descriptions


def matches(*patterns: str) -> list[tuple[str, str]]:
    """Return family and variant of all models that fit any of the patterns, of all without one.

    Parameters
    ----------
    patterns : a family, a variant, "family/variant", "all", or a pattern of these: "mn*", "panns/*_16k"

    Raises
    ------
    OptionError : a pattern fits nothing
    """
    pairs = [(name, key) for name, rows in sizes().items() for key in rows]
    found: set[tuple[str, str]] = set()
    for pattern in patterns or (ALL,):
        wanted = pattern.removeprefix(f"{PACKAGE}.").removesuffix(f"/{ALL}")
        fits = [pair for pair in pairs if wanted == ALL or _fits(pair, wanted)]
        if not fits and pattern not in OPEN_FAMILIES:
            raise _no_match(pattern, [pair for pair in pairs if _fits(pair, f"*{wanted}*")])
        found.update(fits)
    return [pair for pair in pairs if pair in found]


def _no_match(pattern: str, wider: Sequence[tuple[str, str]]) -> OptionError:
    """Return the error for a pattern that fits nothing; `wider` are the models whose names hold it."""
    if not pattern or not wider or any(sign in pattern for sign in "*?["):
        return _unknown_model(pattern)
    names = "a name" if len(wider) == 1 else f"{len(wider)} names"
    return OptionError(f"model={pattern!r} is a part of {names}; the pattern '*{pattern}*' finds them all")


def _fits(pair: tuple[str, str], pattern: str) -> bool:
    if pattern in FAMILIES:  # mast has a variant "tiny"
        return pair[0] == pattern
    names = (*pair, "/".join(pair))
    return pattern in names or any(fnmatchcase(name, pattern) for name in names)


def rows(*patterns: str) -> list[dict[str, Any]]:
    """Return one row for every model that fits, see `matches`, ready for JSON; `api.list_models` returns their names.

    Parameters
    ----------
    patterns : see `matches`

    Returns
    -------
    rows : among others "family", "variant", "parameters", "licence", "recommended", "on_this_machine"

    Examples
    --------
    >>> from hear_transformers import catalogue
    >>> first = catalogue.rows()[0]
    >>> first["family"], first["variant"], first["parameters"], first["on_this_machine"]
    ('tiny', 'tiny', 5500992, True)
    >>> [row["variant"] for row in catalogue.rows("panns/cnn1?", "mn0?_as")]
    ['cnn14', 'cnn10', 'mn01_as', 'mn02_as', 'mn04_as', 'mn05_as']
    """
    return [_listed(name, variant) for name, variant in matches(*patterns)]


def _listed(name: str, variant: str) -> dict[str, Any]:
    row = sizes()[name][variant]
    found = _checkpoint(name, variant)
    described = {"family": name, "variant": variant, "parameters": row["parameters"]}
    return described | _recommended(name, variant) | _located(found)


def _recommended(name: str, variant: str) -> dict[str, Any]:
    """Return why a variant is recommended, None if it is not, and for what; only the first that reads a file is."""
    found = _checkpoint(name, variant)
    if found is None or _first_reader(found) != (name, variant):
        return {"recommended": None, "take_for": []}
    return {"recommended": found.recommended, "take_for": list(found.take_for)}


def _checkpoint(name: str, variant: str | None) -> Checkpoint | None:
    checkpoint = _row(name, variant)["checkpoint"]
    return published.find(name, checkpoint) if checkpoint else None


def _imagenet(name: str, variant: str | None) -> Checkpoint | None:
    start = _row(name, variant)["imagenet"]
    return published.find(*start) if start else None


@functools.cache
def _readers() -> Mapping[tuple[str, str], list[tuple[str, str]]]:
    """Return the variants that read each file, as weights or as a start, by the file's family and name."""
    readers: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name, rows in sizes().items():
        for variant, row in rows.items():
            for file in ((name, row["checkpoint"]), row["imagenet"]):
                if file and file[1]:
                    readers.setdefault((file[0], file[1]), []).append((name, variant))
    return readers


def _first_reader(row: Checkpoint) -> tuple[str, str] | None:
    return next(iter(_readers().get((row.family, row.name), ())), None)


def megabytes(row: Checkpoint) -> tuple[float | None, bool]:
    """Return the size of a file in MB, and whether it is an estimate: four bytes for each parameter of its network."""
    path = store.locate(row)
    size = path.stat().st_size if path else row.bytes
    reader = _first_reader(row)
    if size is not None or reader is None:
        return None if size is None else round(size / 1e6, 1), False
    return round(4 * sizes()[reader[0]][reader[1]]["parameters"] / 1e6, 1), True


def _located(row: Checkpoint | None) -> dict[str, Any]:
    """Describe a checkpoint, and whether it is on this machine."""
    if row is None:
        return {"checkpoint": None}
    size, estimated = megabytes(row)
    other = next(iter(caches.candidates(row)), None)
    return {
        "checkpoint": row.file,
        "megabytes": size,
        "megabytes_are_estimated": estimated,
        "licence": row.licence,
        "trained_on": row.trained_on,
        "metric": row.metric,
        "verified_by": row.verified_by,
        "source": row.source,
        "url": row.url,
        "on_this_machine": store.locate(row) is not None,
        "of_another_package": None if other is None else str(other),
    }


def describe(name: str, variant: str | None = None, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe one variant (None: the family's first): layers, defaults, lengths, checkpoint; ready for JSON.

    Of a family without a table a variant is loaded, with options of its `load_model`, if it is on this machine.

    Parameters
    ----------
    name : of a family
    variant : of it
    options : of its `load_model`

    Returns
    -------
    description : among others "parameters", "sample_rate", "layers", "weights"

    Examples
    --------
    >>> from hear_transformers import catalogue
    >>> found = catalogue.describe("passt", "base")
    >>> found["sample_rate"], [layer["layer"] for layer in found["layers"]][:4]
    (32000, ['mel', '0', '1', '2'])
    """
    if name in OPEN_FAMILIES:
        about = {"family": name, "about": OPEN_FAMILIES[name]}
        return about if variant is None else about | family(name).describe(variant, **(options or {}))
    variant = next(iter(sizes()[name])) if variant is None else variant
    row = dict(_row(name, variant))
    yardstick = sizes()[YARDSTICK[0]][YARDSTICK[1]]
    compared = ("parameters", "multiply_accumulates_10_s")
    start = _imagenet(name, variant)
    layers = [asdict(LayerRow(*layer)) for layer in row.pop("layers")]
    del row["checkpoint"], row["imagenet"]
    return {
        "family": name,
        "variant": variant,
        "about": FAMILIES[name],
        **_recommended(name, variant),
        **row,
        "relative_to_ast": {key: row[key] / yardstick[key] for key in compared},
        "layers": layers,
        "weights": _located(_checkpoint(name, variant)),
        **({"imagenet": _located(start)} if start else {}),
    }


def downloads(name: str, variant: str | None = None, *, imagenet: bool = False) -> list[Checkpoint]:
    """Return checkpoints, each once.

    Parameters
    ----------
    name : of a model, see `resolve`; or "all", or a pattern, see `matches`
    variant : of that family, None for its first; or "all", or a pattern
    imagenet : return those of the networks for images that training may start from instead

    Raises
    ------
    OptionError : a name is unknown, or nothing is published for it
    """
    several = any(part == ALL or set(part) & set("*?[") for part in (*name.split("/"), variant) if part)
    pattern = name if variant is None else f"{name}/{variant}"
    pairs: Iterable[tuple[str, str | None]] = matches(pattern) if several else [resolve_own(name, variant)]
    found = (_imagenet(*pair) if imagenet else _checkpoint(*pair) for pair in pairs)
    rows = list(dict.fromkeys(row for row in found if row))
    if not rows:
        kind = "ImageNet start is known" if imagenet else "weights are published"
        raise OptionError(f"no {kind} for {pattern.replace('/', ' ')}; train some, or give your own file")
    return rows
