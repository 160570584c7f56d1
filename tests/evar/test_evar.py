"""A representation for EVAR keeps the contract of its BaseAudioRepr, and its scripts find it."""

import sys
from types import SimpleNamespace

import pytest
import torch

from hear_transformers import tiny
from hear_transformers.errors import OptionError
from hear_transformers.evar import MODULE, AR_HearTransformers, config, run


class Config(dict):
    """A dict with attributes, as EVAR's EasyDict is."""

    __getattr__ = dict.__getitem__


def configured(**changed) -> Config:
    """Return a configuration as EVAR reads it from YAML."""
    yaml = pytest.importorskip("yaml")
    return Config(yaml.safe_load(config("tiny", layer=8)) | changed)


def noise(clips: int, n_samples: int) -> torch.Tensor:
    return torch.rand(clips, n_samples, generator=torch.Generator().manual_seed(0)) - 0.5


def test_a_configuration_names_the_class_and_what_it_is_of() -> None:
    cfg = configured()
    assert cfg.audio_repr == "ar_hear_transformers.AR_HearTransformers"
    assert (cfg.sample_rate, cfg.feature_d, cfg.hear_model) == (32_000, 192, "tiny/tiny")
    assert cfg.hear_options == {"layer": 8}
    assert cfg.weight_file == ""


def test_clips_and_frames_are_those_of_the_model() -> None:
    representation, model, clips = AR_HearTransformers(configured()), tiny.load_model(layer=8), noise(2, 40_000)
    representation.precompute(torch.device("cpu"), [clips])
    torch.testing.assert_close(representation(clips), model.embed_scenes(clips), atol=1e-5, rtol=0)
    frames = representation.encode_frames(clips)
    assert frames.shape == (2, 192, 26)
    torch.testing.assert_close(frames.transpose(1, 2), model.embed_timestamps(clips)[0], atol=1e-5, rtol=0)


def test_networks_are_fine_tuned() -> None:
    representation = AR_HearTransformers(configured())
    representation(noise(2, 32_000)).sum().backward()
    assert representation.backbone.trunk.cls_token.grad is not None


def test_spectrograms_are_not_augmented() -> None:
    representation = AR_HearTransformers(configured())
    representation.set_augment_tf_feature_fn(SimpleNamespace(spec_aug=None, rrc=None))
    with pytest.raises(OptionError, match="ft_freq_mask: 0"):
        representation.set_augment_tf_feature_fn(SimpleNamespace(spec_aug=object(), rrc=None))


def test_a_configuration_of_other_layers_is_refused() -> None:
    with pytest.raises(OptionError, match="feature_d: 768 is not of tiny/tiny"):
        AR_HearTransformers(configured(feature_d=768))


def test_sample_rates_that_evar_has_no_audio_of_are_refused(monkeypatch) -> None:
    monkeypatch.setattr("hear_transformers.evar.SAMPLE_RATES", (16_000,))
    with pytest.raises(OptionError, match="takes audio at 32000 Hz; EVAR has it at 16000 Hz"):
        config("tiny")


def test_scripts_find_the_class(tmp_path, monkeypatch) -> None:
    (tmp_path / "evar").mkdir()
    (tmp_path / "evar" / "__init__.py").touch()
    (tmp_path / "script.py").write_text(
        "import pathlib, sys, evar\nassert __name__ == '__main__'\n"
        "kind = eval('evar.ar_hear_transformers.AR_HearTransformers')\n"
        "pathlib.Path('out').write_text(f'{sys.argv} {kind.__name__}')\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("path", "argv"):
        monkeypatch.setattr(sys, name, [*getattr(sys, name)])
    for name in ("evar", f"evar.{MODULE}"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    run("script.py", ["config/tiny.yaml", "esc50"])
    assert (tmp_path / "out").read_text() == "['script.py', 'config/tiny.yaml', 'esc50'] AR_HearTransformers"
    for name in ("evar", f"evar.{MODULE}"):
        sys.modules.pop(name, None)


def test_another_folder_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(OptionError, match="No module named 'evar'; run this in the folder of EVAR"):
        run("lineareval.py", [])
