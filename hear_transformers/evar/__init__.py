"""EVAR (github.com/nttcslab/eval-audio-repr): a model of this package as one of its audio representations.

    python -m hear_transformers.evar config passt/base --out config/hear_passt_base.yaml
    python -m hear_transformers.evar run lineareval.py config/hear_passt_base.yaml esc50

both from the folder of EVAR, which is no package: it knows the modules that its scripts import, so `run` gives it this
one as ``evar.ar_hear_transformers``. No file of EVAR is changed.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .. import catalogue
from ..embedding.embedder import Embedder
from ..errors import OptionError

MODULE = "ar_hear_transformers"
"""Name of this module in the package evar, whose representations are all ``ar_NAME.AR_NAME``."""

SAMPLE_RATES = (16_000, 22_000, 32_000, 44_100, 48_000)
"""Of EVAR's folders of audio, in Hz: _fs_table in evar/ds_tasks.py."""

TRAINING = {
    **{"batch_size": 64, "lr_lineareval": 0.0003, "report_per_epochs": 20, "early_stop_epochs": 20},
    **{"warmup_epochs": 5, "mixup": 0.5, "ft_bs": 64, "ft_lr": 0.001, "ft_early_stop_epochs": -1, "ft_epochs": 200},
    **{"ft_freq_mask": 0, "ft_time_mask": 0, "ft_rrc": False},
}
"""Settings of evaluation and fine-tuning, from EVAR's config/cnn14.yaml, but for two: batches have 64 clips instead of
256, since all windows of a batch go through the network at once, and spectrograms are not augmented."""


class AR_HearTransformers(torch.nn.Module):
    """A model of this package with the methods of EVAR's BaseAudioRepr (evar/ar_base.py).

    Parameters
    ----------
    cfg : of EVAR: "hear_model", a name in the catalogue, and "hear_options", those of `catalogue.load_own`

    Raises
    ------
    OptionError : the configuration is of another model or other options than its "sample_rate" or "feature_d"
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone = catalogue.load_own(cfg["hear_model"], "cpu", cfg.get("hear_options"))
        made = _described(self.backbone)
        wrong = [name for name in made if cfg.get(name) != made[name]]
        if wrong:
            given = ", ".join(f"{name}: {cfg.get(name)}" for name in wrong)
            raise OptionError(f"{given} is not of {cfg['hear_model']} with these options; write the configuration anew")

    def precompute(self, device: torch.device, data_loader: Any) -> None:
        """Do nothing: a model normalises its input as it was trained, not by the data of a task."""

    def forward(self, batch_audio: Tensor) -> Tensor:
        """Embed whole clips, with gradients where they are asked for: (clips, samples) -> (clips, feature_d)."""
        embeddings: Tensor = self.backbone(batch_audio)
        return embeddings

    def encode_frames(self, batch_audio: Tensor) -> Tensor:
        """Embed clips along time: (clips, samples) -> (clips, size, times)."""
        embeddings, _ = self.backbone.embed_timestamps(batch_audio)
        return embeddings.transpose(1, 2)

    def set_augment_tf_feature_fn(self, aug_fn: Callable[[Tensor], Tensor] | None) -> None:
        """Refuse to mask or crop spectrograms in training, which happens in the network here.

        EVAR's finetune.py sets its AudioFineuneAug whatever is chosen, which has the choices as attributes.
        """
        if any(getattr(aug_fn, name, None) is not None for name in ("spec_aug", "rrc")):
            raise OptionError("spectrograms are not augmented; set ft_freq_mask: 0, ft_time_mask: 0 and ft_rrc: False")


def _described(model: Embedder) -> dict[str, int]:
    return {"sample_rate": model.sample_rate, "feature_d": model.scene_embedding_size}


def config(model: str, **options: Any) -> str:
    """Return EVAR's configuration of a model, in YAML.

    Parameters
    ----------
    model : a model ("passt", "panns/cnn14")
    options : further keywords of `catalogue.load_own`, such as layer or pool

    Raises
    ------
    OptionError : the model or an option is unknown, or EVAR has no audio at its sample rate
    WeightsError : its checkpoint is missing
    """
    name = catalogue.full_name(model)
    described = _described(catalogue.load_own(name, "cpu", options))
    if described["sample_rate"] not in SAMPLE_RATES:
        known = ", ".join(map(str, SAMPLE_RATES))
        raise OptionError(f"{name} takes audio at {described['sample_rate']} Hz; EVAR has it at {known} Hz")
    rows = {
        "audio_repr": f"{MODULE}.{AR_HearTransformers.__name__}",
        "name": f"hear_transformers-{name.replace('/', '-')}",
        "weight_file": "",
        "hear_model": name,
        "hear_options": options,
        **described,
        **TRAINING,
    }
    # JSON is YAML.
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in rows.items())


def run(script: str, arguments: Sequence[str]) -> None:
    """Run a script of EVAR in its folder, as ``python SCRIPT ARGUMENTS...`` does.

    Raises
    ------
    OptionError : this is not the folder of EVAR
    """
    sys.path.insert(0, "")
    try:
        package = import_module("evar")
    except ImportError as error:
        raise OptionError(f"{error}; run this in the folder of EVAR, with what its README installs") from error
    own = sys.modules[__name__]
    sys.modules[f"evar.{MODULE}"] = own
    setattr(package, MODULE, own)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
