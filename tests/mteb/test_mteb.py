"""Encoders for MTEB keep its contract, and what it skips is an error; MTEB itself where it is installed."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from hear_transformers import catalogue, tiny
from hear_transformers import mteb as ours
from hear_transformers.checkpoints import published
from hear_transformers.errors import AudioError, HearTransformersError, OptionError
from tests.networks.test_contract import SMALL

INSTALLED = "MTEB is not installed: pip install 'hear_transformers[mteb]'"
RATE = 16_000


@pytest.fixture(scope="module")
def encoder() -> ours.AudioEncoder:
    return ours.AudioEncoder("tiny", device="cpu")


def sound(n_samples: int, seed: int = 0) -> dict:
    array = np.random.default_rng(seed).uniform(-0.5, 0.5, n_samples).astype(np.float32)
    return {"array": array, "sampling_rate": RATE}


def wav(sound: dict) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound["array"], sound["sampling_rate"], format="WAV", subtype="FLOAT")
    return file.getvalue()


class Audio(SimpleNamespace):
    """A column as `datasets.Audio` is."""

    def __init__(self, decode: bool = True) -> None:
        super().__init__(decode=decode)


class Rows(list):
    """A data set as `datasets.Dataset` is, whose column of audio fails to decode without torchcodec."""

    features = {"audio": Audio()}  # noqa: RUF012

    def cast_column(self, name: str, feature: Audio) -> "Rows":
        cast = Rows(self)
        cast.features = {name: feature}
        return cast

    def __getitem__(self, index: int) -> dict:
        if self.features["audio"].decode:
            raise ImportError("To support decoding audio data, please install 'torchcodec'.")
        return super().__getitem__(index)


def encoded(encoder: ours.AudioEncoder, rows: list, **kwargs) -> np.ndarray:
    task = SimpleNamespace(name="ATask")
    how = {"show_progress_bar": False, **kwargs}
    return encoder.encode(DataLoader(rows, 2), task_metadata=task, hf_split="test", hf_subset="default", **how)


# Embeddings


def test_embeddings_come_in_the_order_of_the_inputs(encoder) -> None:
    sounds = [sound(n_samples, seed) for seed, n_samples in enumerate((16_000, 9_000, 30_000, 16_000, 700))]
    embeddings = encoded(encoder, [{"audio": each} for each in sounds])
    alone = [encoder.model.encode(each["array"], sampling_rate=RATE) for each in sounds]
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, alone, atol=1e-5)


def test_a_loader_that_shuffles_is_followed(encoder) -> None:
    rows = [{"audio": sound(4_000, seed)} for seed in range(4)]
    loader = DataLoader(rows, sampler=[2, 0])
    embeddings = encoder.encode(loader, task_metadata=None, hf_split="", hf_subset="", show_progress_bar=False)
    np.testing.assert_allclose(embeddings, encoded(encoder, [rows[2], rows[0]]), atol=1e-5)


def test_files_of_a_data_set_are_decoded_by_this_package(encoder) -> None:
    sounds = [sound(8_000, seed) for seed in range(2)]
    rows = Rows({"audio": {"bytes": wav(each), "path": "a.wav"}} for each in sounds)
    np.testing.assert_allclose(
        encoded(encoder, rows), encoded(encoder, [{"audio": each} for each in sounds]), atol=1e-6
    )


def test_a_file_that_cannot_be_decoded_is_an_error(encoder) -> None:
    rows = Rows([{"audio": {"bytes": wav(sound(800)), "path": "a.wav"}}, {"audio": {"bytes": b"no", "path": "b.wav"}}])
    with pytest.raises(AudioError, match=r"b\.wav"):
        encoded(encoder, rows)


def test_a_task_without_audio_is_an_error(encoder) -> None:
    with pytest.raises(OptionError, match="ATask: row 0 has no audio, but text"):
        encoded(encoder, [{"text": "a dog barks"}])


def test_another_precision_of_vectors_is_refused(encoder) -> None:
    with pytest.raises(OptionError, match="precision='int8'"):
        encoded(encoder, [{"audio": sound(800)}], precision="int8")


def test_options_choose_what_is_embedded() -> None:
    encoder = ours.AudioEncoder("hear-transformers/tiny.tiny", "a revision", device="cpu", layer=8)
    clip = sound(32_000)
    expected = tiny.load_model(layer=8).encode(clip)
    np.testing.assert_allclose(encoded(encoder, [{"audio": clip}])[0], expected, atol=1e-5)


def test_similarities_are_cosines(encoder) -> None:
    one, other = torch.rand(3, 5), np.random.default_rng(0).normal(size=(4, 5))
    expected = torch.nn.functional.cosine_similarity(one[:, None], torch.from_numpy(other).float()[None], dim=-1)
    torch.testing.assert_close(encoder.similarity(one, other), expected)
    torch.testing.assert_close(encoder.similarity_pairwise(one, other[:3]), expected.diagonal())


# What MTEB is told


def told(monkeypatch, model: str, **options) -> SimpleNamespace:
    """Return what a fake of MTEB is told of a model."""
    fake = SimpleNamespace(models=SimpleNamespace(ModelMeta=SimpleNamespace))
    monkeypatch.setitem(sys.modules, "mteb", fake)
    return ours.model_meta(model, **options)


@pytest.mark.parametrize(("name", "expected"), [("tiny", "tiny.tiny"), ("mn04_as", "efficientat.mn04_as")])
def test_models_have_names_that_load_them(monkeypatch, name, expected) -> None:
    meta = told(monkeypatch, name)
    assert meta.name == f"hear-transformers/{expected}"
    assert told(monkeypatch, meta.name) == meta


def test_every_published_model_is_described(monkeypatch) -> None:
    for family, variant in catalogue.matches():
        row = catalogue.sizes()[family][variant]
        meta = told(monkeypatch, f"{family}/{variant}")
        assert meta.n_parameters == row["parameters"]
        assert meta.memory_usage_mb * 2**20 == 4 * row["parameters"]
        assert meta.embed_dim == row["scene_embedding_size"]
        assert meta.modalities == ["audio"]
        assert meta.open_weights == bool(row["checkpoint"])
        assert bool(meta.license) == meta.open_weights


def test_all_that_weights_were_trained_on_is_known() -> None:
    rows = [(family, row) for family, rows in catalogue.sizes().items() for row in rows.values() if row["checkpoint"]]
    data = {published.find(family, row["checkpoint"]).trained_on for family, row in rows}
    assert data <= ours.TASKS_OF.keys()


def test_another_layer_is_another_model_of_another_size(monkeypatch) -> None:
    meta = told(monkeypatch, "tiny", layer=8)
    assert meta.embed_dim == 192
    assert meta.loader_kwargs == {"layer": 8}
    assert meta.experiment_kwargs == {"layer": "8"}


def test_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(OptionError, match=r"pip install 'hear_transformers\[mteb\]'"):
        ours.model_meta("tiny")


# Synthetic tasks


def ran(monkeypatch, **statuses) -> dict:
    """Run the synthetic tasks of a fake of MTEB."""
    fake = SimpleNamespace(mock_run=lambda encoder: statuses)
    monkeypatch.setitem(sys.modules, "mteb", fake)
    audio = type("Audio", (), {"decode_example": None, "encode_example": None})
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(Audio=audio))
    return ours.mock_run(None)


def test_tasks_that_ran_are_returned(monkeypatch) -> None:
    done = SimpleNamespace(scores=[1.0])
    assert ran(monkeypatch, Clustering=done, OfText=None) == {"Clustering": done}


def test_a_task_that_was_skipped_is_an_error(monkeypatch) -> None:
    skipped = SimpleNamespace(exception="Traceback\nImportError: please install 'torchcodec'.")
    with pytest.raises(HearTransformersError, match=r"1 of MTEB's 2 .*Reranking \(ImportError: please install"):
        ran(monkeypatch, Clustering=SimpleNamespace(), Reranking=skipped)


def test_no_tasks_are_an_error(monkeypatch) -> None:
    with pytest.raises(HearTransformersError, match="0 of MTEB's 0"):
        ran(monkeypatch, OfText=None)


@pytest.mark.parametrize("stored", ["bytes", "path"])
def test_sounds_are_decoded_as_they_were_encoded(audio_file, stored) -> None:
    given = sound(5_000)
    value = ours.encoded(given if stored == "bytes" else audio_file("a.wav", given["array"], subtype="FLOAT"))
    decoded = ours.decoded(value)
    assert decoded["sampling_rate"] == (RATE if stored == "bytes" else 32_000)
    np.testing.assert_array_equal(decoded["array"], given["array"])


# MTEB itself


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Precision is ill-defined")  # of classes that random weights do not tell apart
@pytest.mark.parametrize("family", catalogue.FAMILIES)
def test_mteb_runs_all_of_its_synthetic_tasks(family) -> None:
    library = pytest.importorskip("mteb", reason=INSTALLED)
    encoder = ours.AudioEncoder(family, device="cpu", pretrained=False, network=SMALL.get(family, {}))
    assert isinstance(encoder, library.models.EncoderProtocol)
    assert len(ours.mock_run(encoder)) >= 7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The task '.*' is currently in beta")
def test_mteb_accepts_what_it_is_told_of_every_model() -> None:
    library = pytest.importorskip("mteb", reason=INSTALLED)
    for family, variant in catalogue.matches():
        meta = ours.model_meta(f"{family}/{variant}")
        assert not meta.open_weights or meta.license
    for name in set().union(*ours.TASKS_OF.values()):
        assert library.get_task(name).metadata.name == name
