"""The catalogue of models: names, descriptions, downloads, and loading by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict
from types import ModuleType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from . import FAMILIES
from .checkpoints import published, state_dicts, store
from .checkpoints.published import Checkpoint
from .embedding.embedder import Embedder
from .embedding.external import ExternalModel, import_hear
from .embedding.pipeline import Model
from .errors import OptionError
from .files import local_path
from .networks.counting import CLIP_SECONDS, count_macs, count_operations, count_parameters
from .networks.family import Variant
from .networks.layer_table import layer_table

PACKAGE = __package__

DEVICES = ("cuda", "mps", "cpu")
"""Types of devices, in the order that "auto" prefers."""


def family(name: str) -> ModuleType:
    """Import the module of a family; raise OptionError that lists the families for an unknown name."""
    if name not in FAMILIES:
        raise OptionError(f"model={name!r} is unknown; choose one of {', '.join(FAMILIES)}")
    return importlib.import_module(f"{PACKAGE}.{name}")


def family_of_module(name: str) -> str | None:
    """Return the family of a module ("passt" or "hear_transformers.passt"), None for a module of others."""
    name = name.removeprefix(f"{PACKAGE}.")
    return name if name in FAMILIES else None


def resolve(name: str, variant_name: str | None = None) -> tuple[str, str | None]:
    """Return family and variant for a family, a family and a variant, or a variant alone.

    Raises
    ------
    OptionError : no family or variant has this name, or variants of several families have it
    """
    if name in FAMILIES or variant_name is not None:
        return name, variant_name
    owners = [owner for owner in FAMILIES if name in family(owner).VARIANTS]
    if len(owners) != 1:
        reason = f"is a variant of {' and '.join(owners)}; name the family too" if owners else "is unknown"
        raise OptionError(f"{name!r} {reason}; choose {', '.join(FAMILIES)}, or a variant of hear-transformers list")
    return owners[0], name


def family_of_checkpoint(path: str) -> str:
    """Return the family of a checkpoint written by this package; the first family for any other, or without one."""
    default = next(iter(FAMILIES))
    return state_dicts.read_metadata(local_path(path, "weights")).get("family", default) if path else default


def load(name: str, path: str = "", device: str = "auto", options: Mapping[str, Any] | None = None) -> Model:
    """Load a model onto a device.

    Parameters
    ----------
    name : of a family, or of any other module that follows the HEAR API
    path : checkpoint; empty for the published one
    device : "auto", or a name of PyTorch ("cuda:1")
    options : for the family's `load_model`; "batch_size", windows per forward pass ("auto" for the device's own);
        "compile", True to compile the network. Other modules take none

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
    place = pick_device(device)
    chosen = dict(options or {})
    own = family_of_module(name)
    if own is None:
        return _load_foreign(name, path, place, chosen)
    batch_size = chosen.pop("batch_size", None)
    compiled = chosen.pop("compile", False)
    model: Embedder = family(own).load_model(path, **chosen).to(place)
    model.batch_size = None if batch_size == "auto" else batch_size
    if compiled:
        model.compile_trunk()
    return model


def _load_foreign(name: str, path: str, device: torch.device, options: Mapping[str, Any]) -> ExternalModel:
    try:
        import_hear(name)
    except OptionError as error:
        raise OptionError(f"{error}; model is one of {', '.join(FAMILIES)}, or a module that follows HEAR") from error
    if options:
        raise OptionError(
            f"{', '.join(options)}: the HEAR API has no such options, so the module {name!r} cannot take them; "
            f"they are for {', '.join(FAMILIES)}"
        )
    return ExternalModel(name, path, device)


def pick_device(name: str) -> torch.device:
    """Return the device of a name, the fastest for "auto"; raise OptionError if it cannot be used."""
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    known = [kind for kind in DEVICES if usable[kind]]
    if name == "auto":
        return torch.device(known[0])
    try:
        device = torch.device(name)
        if device.type not in known:
            raise RuntimeError("not there")
        torch.zeros(1, device=device)  # raises if the number of the device is too high
    except RuntimeError as error:
        raise OptionError(f"device={name!r} cannot be used here; choose auto or {', '.join(known)}") from error
    return device


def list_models() -> list[dict[str, Any]]:
    """Return one row for every variant of every family, ready for JSON.

    Examples
    --------
    >>> from hear_transformers import catalogue
    >>> first = catalogue.list_models()[0]
    >>> first["family"], first["variant"], first["parameters"], first["on_this_machine"]
    ('tiny', 'tiny', 5500992, True)
    """
    parameters: dict[str, int] = {}  # many variants share a network
    rows = []
    for name in FAMILIES:
        for variant_name, variant in family(name).VARIANTS.items():
            network = f"{name} {variant.network}"
            if network not in parameters:
                parameters[network] = count_parameters(family(name).FAMILY, variant)
            row = {"family": name, "variant": variant_name, "parameters": parameters[network]}
            rows.append(row | _located(_checkpoint(name, variant)))
    return rows


def _checkpoint(name: str, variant: Variant) -> Checkpoint | None:
    return published.find(name, variant.checkpoint) if variant.checkpoint else None


def _located(row: Checkpoint | None) -> dict[str, Any]:
    """Describe a checkpoint, and whether it is on this machine."""
    if row is None:
        return {"checkpoint": None}
    path = store.locate(row)
    size = path.stat().st_size if path else row.bytes
    return {
        "checkpoint": row.file,
        "megabytes": None if size is None else round(size / 1e6, 1),
        "licence": row.licence,
        "trained_on": row.trained_on,
        "metric": row.metric,
        "source": row.source,
        "url": row.url,
        "on_this_machine": path is not None,
    }


def relative_to_ast(name: str, variant: Variant) -> dict[str, float]:
    """Return size and cost of a network as fractions of those of AST, the reference of the papers."""
    ours, ast = family(name).FAMILY, family("ast").FAMILY
    yardstick = ast.variants["audioset_10_10"]
    return {
        "parameters": count_parameters(ours, variant) / count_parameters(ast, yardstick),
        "multiply_accumulates": count_macs(ours, variant) / count_macs(ast, yardstick),
    }


def describe(name: str, variant_name: str | None = None) -> dict[str, Any]:
    """Describe one variant (None: the family's first): layers, defaults, lengths, checkpoint; ready for JSON."""
    module = family(name)
    with FakeTensorMode():  # shapes are enough: random weights of a large network take seconds
        model: Embedder = module.load_model(variant=variant_name, pretrained=False)
        layers = layer_table(model.trunk, model.variant.frontend)
    variant = model.variant
    ms = 1000 / model.sample_rate
    return {
        "family": name,
        "variant": model.name[1],
        "about": FAMILIES[name],
        "parameters": count_parameters(module.FAMILY, variant),
        f"multiply_accumulates_{CLIP_SECONDS:g}_s": count_macs(module.FAMILY, variant),
        f"operations_{CLIP_SECONDS:g}_s": count_operations(module.FAMILY, variant),
        "relative_to_ast": relative_to_ast(name, variant),
        "sample_rate": model.sample_rate,
        "shortest_window_ms": model.min_samples * ms,
        "longest_window_ms": None if model.max_samples is None else model.max_samples * ms,
        "scene_embedding_size": model.scene_embedding_size,
        "timestamp_embedding_size": model.timestamp_embedding_size,
        "defaults": {key: model.provenance()[key] for key in ("scene", "timestamps", "hop_ms", "framing", "precision")},
        "layers": list(map(asdict, layers)),
        "weights": _located(_checkpoint(name, variant)),
        **({"imagenet": _located(published.find(*variant.imagenet))} if variant.imagenet else {}),
    }


def downloads(name: str, variant_name: str | None = None, *, imagenet: bool = False) -> list[Checkpoint]:
    """Return the checkpoints of one variant (None: the family's first), or of "all" of a family, each once.

    Parameters
    ----------
    name, variant_name : of family and variant
    imagenet : return those of the networks for images that training may start from instead

    Raises
    ------
    OptionError : family or variant is unknown, or nothing is published for it
    """
    variants: Mapping[str, Variant] = family(name).VARIANTS
    variant_name = next(iter(variants)) if variant_name is None else variant_name
    if variant_name != "all" and variant_name not in variants:
        raise OptionError(f"variant={variant_name!r} is unknown to {name}; choose all or one of {', '.join(variants)}")
    chosen = variants.values() if variant_name == "all" else [variants[variant_name]]
    starts = (published.find(*variant.imagenet) if variant.imagenet else None for variant in chosen)
    found = starts if imagenet else (_checkpoint(name, variant) for variant in chosen)
    rows = list(dict.fromkeys(row for row in found if row))
    if not rows:
        kind = "ImageNet start is known" if imagenet else "weights are published"
        raise OptionError(f"no {kind} for {name} {variant_name}; train some, or give your own file")
    return rows
