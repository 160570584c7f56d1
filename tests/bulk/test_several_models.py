"""Several models from one reading: each as if it were alone in its folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hear_transformers import efficientat, tiny
from hear_transformers.audio.reading import AudioFile
from hear_transformers.bulk.extract import Report, extract
from hear_transformers.bulk.outputs import OutputOptions
from hear_transformers.bulk.sources import find_sources
from hear_transformers.embedding import pipeline
from hear_transformers.embedding.embedder import Embedder
from hear_transformers.embedding.pipeline import Model
from hear_transformers.errors import HearTransformersError, OptionError
from tests.bulk.test_extract import in_table
from tests.helpers.models import Loudness

FOLDERS = ["model=efficientat-mn01_as", "model=loudness", "model=efficientat-mn02_as"]


@pytest.fixture(scope="module")
def models() -> list[Model]:
    """Give three models, two of 32 kHz and one of 16 kHz."""
    small = [efficientat.load_model(variant=f"mn0{i}_as", pretrained=False, hop_ms=100.0) for i in (1, 2)]
    return [small[0], Loudness(), small[1]]


@pytest.fixture
def folder(audio_file, tmp_path) -> Path:
    for i in range(5):
        audio_file(f"in/{i}.wav", seconds=0.3 + 0.1 * i, sample_rate=44_100)
    audio_file("in/bad.wav").write_text("text")
    return tmp_path / "in"


def run(models, folder: Path, out: Path, **options) -> Report:
    how = OutputOptions(options.pop("format", "npz"), **options.pop("stored", {}))
    return extract(models, find_sources([str(folder)]), out, how, **options)


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.load(path)["embedding"] for path in sorted(folder.glob("*.npz"))}


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("n_workers", [0, 3])
def test_each_model_writes_what_it_writes_alone(models, folder, tmp_path, timestamps, n_workers):
    report = run(models, folder, tmp_path / "all", timestamps=timestamps, workers=n_workers)
    assert (len(report.written), len(report.failed)) == (5, 1)
    for model, name in zip(models, FOLDERS, strict=True):
        run(model, folder, tmp_path / name, timestamps=timestamps)
        ours, alone = arrays(tmp_path / "all" / name), arrays(tmp_path / name)
        assert ours.keys() == alone.keys()
        for file, each in ours.items():
            np.testing.assert_allclose(each, alone[file], atol=1e-5)
        assert run(model, folder, tmp_path / "all" / name, timestamps=timestamps).written == []


def test_long_files_too(models, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "LONG_SECONDS", 0.45)
    run(models, folder, tmp_path / "all")
    run(models[2], folder, tmp_path / "alone")
    for file, each in arrays(tmp_path / "all" / FOLDERS[2]).items():
        np.testing.assert_allclose(each, arrays(tmp_path / "alone")[file], atol=1e-5)


def test_tables_and_separate_layers_lie_in_the_folders(folder, tmp_path):
    small = [efficientat.load_model(variant=f"mn0{i}_as", pretrained=False, layer="1,2") for i in (1, 2)]
    report = run(small, folder, tmp_path / "out", format="parquet", stored={"separate_layers": True})
    assert report.written[0].pattern == str(
        tmp_path / "out/model={efficientat-mn01_as,efficientat-mn02_as}/layer={1,2}/embeddings.parquet"
    )
    for name in FOLDERS[::2]:
        for layer in ("layer=1", "layer=2"):
            assert len(in_table(tmp_path / "out" / name / layer / "embeddings.parquet")) == 5


def test_each_file_is_decoded_once_for_all_sample_rates(models, folder, tmp_path, monkeypatch):
    decode, paths = AudioFile._decoder, []
    monkeypatch.setattr(AudioFile, "_decoder", lambda file: paths.append(file.path) or decode(file))
    run(models[:1], folder, tmp_path / "one")
    alone = sorted(paths)
    paths.clear()
    run(models, folder, tmp_path / "two")
    assert sorted(paths) == alone


def test_a_failure_is_named_once_and_that_of_one_model_with_its_name(models, folder, tmp_path, monkeypatch):
    model = tiny.load_model(pretrained=False)
    monkeypatch.setattr(model, "reader", lambda **how: Refusing(Embedder.reader(model, **how)))
    report = run([models[0], model], folder, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [outcome.source for outcome in report.failed]
    reasons = {Path(line["file"]).name: line["reason"] for line in lines}
    assert len(reasons) == 6
    assert "model" not in reasons["bad.wav"]
    assert "not audio" in reasons["bad.wav"]
    assert reasons["0.wav"].endswith("0.wav: no (tiny-tiny)")
    assert len(arrays(tmp_path / "out" / FOLDERS[0])) == 5


class Refusing:
    """A reader that embeds nothing."""

    def __init__(self, reader) -> None:
        self.device = reader.device
        self.reader = reader

    def plan(self, n_samples):
        raise HearTransformersError("no")


def test_only_models_without_an_output_embed(models, folder, tmp_path, monkeypatch):
    run(models[0], folder, tmp_path / "out" / FOLDERS[0])
    monkeypatch.setattr(models[0], "reader", lambda **how: Refusing(Embedder.reader(models[0], **how)))
    report = run(models, folder, tmp_path / "out")
    assert [Path(each.source).name for each in report.failed] == ["bad.wav"]
    assert len(report.written) == 5
    assert (tmp_path / "out" / FOLDERS[1] / "0.npz").exists()
    assert len(run(models, folder, tmp_path / "out").skipped) == 5


def test_a_model_that_lacks_a_few_waits_with_clips_that_others_do_not_wait_for(models, audio_file, tmp_path):
    for i in range(30):
        audio_file(f"in/{i:02d}.wav", 0.1 * np.random.default_rng(i).standard_normal(9_600), sample_rate=32_000)
    folder, out = tmp_path / "in", tmp_path / "out"
    run(models[0], folder, out / FOLDERS[0])
    for i in range(3):
        (out / FOLDERS[0] / f"{i:02d}.npz").unlink()
    run([models[0], models[2]], folder, out, workers=2)
    run(models[0], folder, tmp_path / "alone")
    alone = arrays(tmp_path / "alone")
    for file, each in arrays(out / FOLDERS[0]).items():
        np.testing.assert_allclose(each, alone[file], atol=1e-5, err_msg=file)


def test_changed_audio_is_embedded_again_by_each(models, folder, audio_file, tmp_path):
    run(models, folder, tmp_path / "out")
    before = arrays(tmp_path / "out" / FOLDERS[1])["0.npz"]
    audio_file("in/0.wav", 0.1 * torch.rand(20_000).numpy(), sample_rate=44_100)
    report = run(models, folder, tmp_path / "out")
    assert [Path(each.source).name for each in report.written] == ["0.wav"]
    assert not np.array_equal(arrays(tmp_path / "out" / FOLDERS[1])["0.npz"], before)


def test_outputs_of_other_settings_in_one_folder_are_refused(models, folder, tmp_path):
    other = efficientat.load_model(variant="mn02_as", pretrained=False, layer=2)
    run(other, folder, tmp_path / "out" / FOLDERS[2])
    with pytest.raises(OptionError, match="model=efficientat-mn02_as"):
        run(models, folder, tmp_path / "out")
    assert not (tmp_path / "out" / FOLDERS[0]).exists()


def test_the_same_model_twice_and_labels_of_several_are_refused(models, folder, tmp_path):
    with pytest.raises(OptionError, match="efficientat-mn01_as is there twice"):
        run([models[0], models[0]], folder, tmp_path / "out")
    taggers = [efficientat.load_model(variant=f"mn0{i}_as", pretrained=False, layer="logits") for i in (1, 2)]
    with pytest.raises(OptionError, match="labels are those of one model"):
        run(taggers, folder, tmp_path / "out", n_labels=2)


def test_one_model_in_a_list_is_one_model(models, folder, tmp_path):
    report = run([models[0]], folder, tmp_path / "out")
    assert report.written[0].output == tmp_path / "out" / "0.npz"
    assert report.written[0].models == ()


def test_the_command_takes_several_models(installed_command, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    embed_audio = installed_command("embed-audio")
    two = ["--model", "tiny", "--model", "tiny/tiny", "--device", "cpu"]
    assert "tiny-tiny is there twice" in embed_audio("in", *two).stderr
    for option in ("--weights=a.pt", "--variant=tiny", "--labels", "--network=depth=2", "--normalisation=0,1"):
        done = embed_audio("in", "--model=tiny", "--model=panns/cnn14", option)
        assert done.exit_code == 2
        assert "of one model only, and 2 are named" in done.stderr
    done = embed_audio("in", "--model=tiny", "--model=panns/cnn14", "--layer=99")
    assert done.exit_code == 2
    assert "99" in done.stderr


def test_levels_and_hashes_are_read_once(models, folder, tmp_path, monkeypatch):
    hashed = []
    sha256 = AudioFile.sha256
    monkeypatch.setattr(AudioFile, "sha256", lambda self: hashed.append(self.path) or sha256(self))
    run(models, folder, tmp_path / "out")
    assert len(hashed) == len(set(hashed)) == 6
