"""Folders of Hugging Face: the weights in them, and what lies beside the weights in JSON, never trusted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from ..files import parse_json
from ..networks.family import Beside, Family, Variant
from .state_dicts import CHECKPOINTS, Content, read_content, read_metadata

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights in a folder; in several parts, ``<name>.index.json`` says which part holds what."""

BEST = "best.safetensors"
"""Name of the best weights in the folder of a training run, whose other weights are named like Hugging Face's."""

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"

LARGEST_JSON = 2**24
"""Largest JSON file that is read, in bytes: a thousand times a usual one."""

EXTRACTOR = {"sampling_rate": 16_000, "do_normalize": True, "mean": -4.2677393, "std": 4.5689974}
"""Defaults of ``ASTFeatureExtractor`` (transformers, feature_extraction_audio_spectrogram_transformer.py)."""


def weights_in(path: Path) -> tuple[Path, ...]:
    """Return the files that hold the weights: the file itself, or those in a folder.

    Raises
    ------
    WeightsError : a folder holds none, or its index names a file outside of it
    """
    if not path.is_dir():
        return (path,)
    if (path / BEST).is_file():
        raise WeightsError(f"{path} is the folder of a training run; give {path / BEST}")
    for name in WEIGHTS:
        if (path / name).is_file():
            return (path / name,)
        if (path / f"{name}.index.json").is_file():
            return _parts(path / f"{name}.index.json")
    others = sorted(file.name for file in path.iterdir() if file.suffix in CHECKPOINTS)
    advice = f"give one of {', '.join(others[:5])}" if others else "give the checkpoint file"
    raise WeightsError(f"{path} is a folder without {' or '.join(WEIGHTS)}; {advice}")


def _parts(index: Path) -> tuple[Path, ...]:
    """Return the files that an index names."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise WeightsError(f"{index}: damaged: no weight_map of file names")
    for name in names.values():
        if Path(name).name != name:
            raise WeightsError(f"{index}: refused: it names {name!r}, which is not in its folder")
    return tuple(index.with_name(name) for name in dict.fromkeys(names.values()))


def read_parts(files: tuple[Path, ...]) -> Content:
    """Read the tensors of one file, or of all parts of one."""
    contents = [read_content(file) for file in files]
    return Content(
        {name: tensor for content in contents for name, tensor in content.tensors.items()},
        {name: kind for content in contents for name, kind in content.refused.items()},
        tuple(name for content in contents for name in content.objects),
        {name: entry for content in contents for name, entry in content.entries.items()},
    )


def metadata_in(path: Path) -> dict[str, str]:
    """Return the metadata of a file that this package wrote, or of that in a folder; empty for others."""
    files = weights_in(path)
    return read_metadata(files[0]) if len(files) == 1 else {}


def read_beside(family: Family, variant: Variant, weights: Path) -> Beside:
    """Read the JSON files beside weights; those of networks of other families say nothing.

    Raises
    ------
    WeightsError : a file is damaged, or describes audio or a network that the family does not have
    """
    path = weights.with_name(CONFIG)
    config = read_json(path) if path.is_file() and weights.suffix in (".safetensors", ".bin") else {}
    if not family.model_type or config.get("model_type", family.model_type) != family.model_type:
        return Beside()
    network = family.arguments_of_config(config)
    if not all(isinstance(value, int) and 0 < value < LARGEST_JSON for value in network.values()):
        raise WeightsError(f"{path}: damaged: sizes of the network that are no numbers above 0: {network}")
    path = weights.with_name(PREPROCESSOR)
    extractor = read_json(path) if path.is_file() and weights.suffix in (".safetensors", ".bin") else None
    return Beside(
        network=network,
        normalisation=None if extractor is None else _normalisation({**EXTRACTOR, **extractor}, variant, path),
        labels=_labels(config),
        multi_label=config.get("problem_type") != "single_label_classification",
    )


def _normalisation(extractor: Mapping[str, Any], variant: Variant, path: Path) -> tuple[float, float] | None:
    """Return the mean and the standard deviation of a feature extractor; None for a network that takes none."""
    rate = variant.frontend.sample_rate
    if extractor["sampling_rate"] != rate:
        raise WeightsError(f"{path}: sampling_rate = {extractor['sampling_rate']!r}, but this network takes {rate} Hz")
    if variant.frontend.normalisation is None:
        return None
    if extractor["do_normalize"] is False:
        return 0.0, 0.5  # of which the front end takes two: nothing is changed
    mean, std = extractor["mean"], extractor["std"]
    if not (isinstance(mean, (int, float)) and isinstance(std, (int, float)) and std > 0):
        raise WeightsError(f"{path}: damaged: mean = {mean!r} and std = {std!r} are no mean and deviation above 0")
    return float(mean), float(std)


def _labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the names of the classes, None if they are not all there."""
    names = config.get("id2label")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        return None
    ordered = [names.get(str(number)) for number in range(len(names))]
    return None if None in ordered else tuple(name for name in ordered if name is not None)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise WeightsError(f"{path}: refused: more than {LARGEST_JSON} bytes of JSON")
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: damaged: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: damaged: not a JSON object")
    return value
