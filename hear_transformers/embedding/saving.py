"""Save models as folders, and put them into repositories of Hugging Face, with the names of `transformers`."""

from __future__ import annotations

import json
import os
import tempfile
import textwrap
from typing import Any, Protocol

from ..checkpoints import saved
from ..errors import OptionError, WeightsError, import_extra
from ..files import local_path
from ..networks.family import Variant
from ..networks.trunk import Trunk

MOST_WORDS = 300
"""Letters that are kept of an error of the hub."""

MOST_CLASSES = 20
"""Names of classes that a card lists."""


class Savable(Protocol):
    """What is saved of an `Embedder`, which see."""

    name: tuple[str, str]
    origin: saved.Origin | None
    trunk: Trunk
    variant: Variant
    labels: tuple[str, ...] | None
    multi_label: bool
    sample_rate: int
    scene_embedding_size: int
    timestamp_embedding_size: int

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers that were chosen."""

    def provenance(self) -> dict[str, Any]:
        """Describe what makes the embeddings."""


def save_pretrained(self: Savable, folder: str | os.PathLike[str]) -> None:
    """Save the model into a folder: weights as they are now, what was chosen of it, and a card.

    ``load_model(weights=folder)`` makes the same model of it, of the family or by `hear_transformers.load_model`, and
    ``embed-audio --weights folder`` uses it. Layers, poolings and times can be chosen anew then. Precision and device
    are not saved.

    Parameters
    ----------
    folder : for ``model.safetensors``, ``config.json`` and ``README.md``, which are replaced

    Raises
    ------
    OptionError : the folder cannot be made, or the network is one of `transformers`, which saves its own

    Examples
    --------
    >>> import hear_transformers
    >>> hear_transformers.load_model("tiny", layer=8, pool="meanstd").save_pretrained("my-tiny")
    >>> hear_transformers.load_model(weights="my-tiny").encode("dog.wav").shape
    (384,)
    """
    if self.origin is None:
        raise OptionError(
            f"{'/'.join(self.name)} is a network of transformers; save it by trunk.network.save_pretrained, and its "
            "extractor by trunk.extractor.save_pretrained"
        )
    family, variant = self.name
    metadata = {"family": family, "variant": variant, "multi_label": json.dumps(self.multi_label)}
    if self.labels is not None:
        metadata["labels"] = json.dumps(self.labels)
    saved.write(local_path(folder, "models"), self.trunk, self.origin, metadata, card(self))


def push_to_hub(
    self: Savable,
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload a model of hear_transformers",
) -> str:
    """Save the model into a repository of Hugging Face, which is made if it is not there.

    Whoever has access loads it with ``load_model(weights="user/name")``. Mind the licence of the weights.

    Parameters
    ----------
    repository : "user/name"
    private : whether a new repository is; None for what is usual for the user
    revision : branch to write to; None for "main"
    token : of the user; None for that of ``hf auth login``
    commit_message : of the change

    Returns
    -------
    url : of the change

    Raises
    ------
    OptionError : see `save_pretrained`, or huggingface_hub is not installed
    WeightsError : the hub refuses, or cannot be reached
    """
    hub = import_extra("push_to_hub", "huggingface_hub", "hf")
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(self, folder)
        try:
            api = hub.HfApi(token=token)
            api.create_repo(repository, private=private, exist_ok=True)
            change = api.upload_folder(
                repo_id=repository, folder_path=folder, revision=revision, commit_message=commit_message
            )
        except Exception as error:  # of the hub, or of the library beneath it for HTTP
            reason = textwrap.shorten(str(error), MOST_WORDS) or type(error).__name__
            raise WeightsError(
                f"{repository} cannot be written ({reason}); check the name, and log in with hf auth login"
            ) from error
    return str(change)


def card(model: Savable) -> str:
    """Return the card of a saved model, in Markdown with the header that the hub reads."""
    origin, described = model.origin, model.provenance()
    assert origin is not None
    rows = {
        "network": f"{'/'.join(model.name)}, {sum(each.numel() for each in model.trunk.parameters()):,} parameters",
        "takes": f"mono at {model.sample_rate} Hz, resampled where it is not",
        "layers": ", ".join(model.layers),
        "pooling": model.variant.scene.pool,
        "embedding of a clip": f"{model.scene_embedding_size} numbers",
        "embeddings along time": f"{model.timestamp_embedding_size} numbers every {model.variant.hop_ms:g} ms",
        "classes": classes(model),
        "loaded from": described["weights_sha256"] and f"a file with the sha256 {described['weights_sha256']}",
        "made with": described["package"],
    }
    table = "".join(f"| {name} | {value} |\n" for name, value in rows.items() if value)
    return f"""---
library_name: hear_transformers
pipeline_tag: feature-extraction
tags: [audio, audio-embeddings, hear_transformers, {model.name[0]}]
---

# {"/".join(model.name)}

| | |
|---|---|
{table}
```python
import hear_transformers

model = hear_transformers.load_model(weights="this folder, or user/name of the repository")
model.encode(["one.wav", "two.flac"])
```
"""


def classes(model: Savable) -> str:
    """Return the names of the classes of a model, or how many there are."""
    if not model.labels:
        return ""
    if len(model.labels) > MOST_CLASSES:
        return str(len(model.labels))
    return ", ".join(" ".join(label.split()).replace("|", r"\|") for label in model.labels)
