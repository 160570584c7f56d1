"""Outputs of other settings never come to stand beside new ones, in any format, and the error says what differs."""

from pathlib import Path

import numpy as np
import pytest

from hear_transformers import efficientat
from hear_transformers.bulk import extract, mixing
from hear_transformers.bulk.outputs import OutputOptions, Shard
from hear_transformers.bulk.sources import find_sources
from hear_transformers.errors import OptionError
from tests.bulk.test_rows import Sums

FORMATS = ["npz", "npy", "parquet", "hdf5"]


class Other(Sums):
    """Has settings as an embedder has."""

    def __init__(self, **settings) -> None:
        super().__init__()
        scene = {"layers": settings.pop("layers", ["8"]), "pool": settings.pop("pool", "mean")}
        readouts = [{**scene, "window_ms": settings.pop("window_ms", 160.0)}]
        self.settings = {"family": "some", "weights_sha256": "0" * 64, "scene": scene, "timestamps": readouts}
        self.settings |= {"hop_ms": 50.0, "precision": "float32", **settings}

    def provenance(self):
        return self.settings


@pytest.fixture
def files(audio_file):
    return [audio_file(f"{name}.wav", seconds=0.1) for name in ("a", "b", "sub/c")]


def embed(model, files, out: Path, *, slash: bool = False, timestamps: bool = False, **options) -> extract.Report:
    found = find_sources(map(str, files))
    return extract.extract(model, found, out, OutputOptions(**options), timestamps=timestamps)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def refused(model, files, out: Path, match: str, **options) -> None:
    before = contents(out)
    with pytest.raises(OptionError, match=match) as raised:
        embed(model, files, out, **options)
    assert {"--out", "--overwrite"} & set(str(raised.value).replace(",", " ").split())
    assert contents(out) == before
    assert model.n_clips == 0


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"layers": ["4"]}, "layer 8 -> 4"),
        ({"layers": ["4", "12"], "pool": "max"}, "layer 8 -> 4,12, pool mean -> max"),
        ({"family": "another"}, "family some -> another"),
        ({"weights_sha256": "1" * 64}, "weights 000.* -> 111"),
        ({"precision": "bfloat16"}, "precision float32 -> bfloat16"),
        ({"channel": 1}, "channel none -> 1"),
        ({"network": {"relpos": "official"}}, "network"),
    ],
)
def test_other_settings_beside_are_refused(files, tmp_path, format, settings, difference):
    out = tmp_path / "out"
    embed(Other(), files[:1], out, format=format)
    refused(Other(**settings), files[1:], out, difference, format=format)
    refused(Other(**settings), files[:1], out, difference, format=format)


@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_other_types_of_numbers_and_kinds_are_refused(files, small_model, tmp_path, format):
    embed(Other(), files[:1], tmp_path / "out", format=format)
    refused(Other(), files[1:], tmp_path / "out", "dtype float32 -> float16", format=format, dtype="float16")
    with pytest.raises(OptionError, match="kind scene -> timestamps"):
        embed(small_model, files[1:], tmp_path / "out", format=format, timestamps=True)


def test_other_formats_of_the_same_settings_may_stand_beside(files, tmp_path):
    for format in FORMATS:
        assert len(embed(Other(), files, tmp_path, format=format).written) == 3


@pytest.mark.parametrize(("first", "second"), [("npz", "npy"), ("npz", "parquet"), ("parquet", "npz"), ("hdf5", "npy")])
def test_other_formats_of_other_settings_are_refused(files, tmp_path, first, second):
    embed(Other(), files, tmp_path / "out", format=first)
    refused(Other(layers=["4"]), files, tmp_path / "out", "layer 8 -> 4", format=second)


@pytest.mark.parametrize("names", [["x.npz", "y.npz"], ["x.parquet", "y.parquet"], ["x.parquet", "y.npz"]])
def test_outputs_that_the_user_names_may_differ(files, tmp_path, names):
    for name, layer in zip(names, "48", strict=True):
        report = embed(Other(layers=[layer]), files[:1], tmp_path / name, format=Path(name).suffix[1:])
        assert len(report.written) == 1


def test_an_output_named_again_is_refused(files, tmp_path):
    embed(Other(), files[:1], tmp_path / "out/x.npz")
    refused(Other(layers=["4"]), files[:1], tmp_path / "out/x.npz", "layer 8 -> 4")


def test_outputs_in_folders_of_the_folder_count_too(files, tmp_path):
    files[2].parent.joinpath("deep").mkdir()
    deep = files[2].rename(files[2].parent / "deep/c.wav")
    embed(Other(), [deep.parent.parent], tmp_path / "out")
    refused(Other(layers=["4"]), files[:2], tmp_path / "out", "deep/c.npz was made with other settings")


@pytest.mark.parametrize("deep", ["layer8", "a/b", "c.npz/d"])
def test_folders_in_the_current_folder_are_places_of_their_own(files, tmp_path, monkeypatch, deep):
    monkeypatch.chdir(tmp_path)
    embed(Other(), files[:1], Path(deep))
    assert len(embed(Other(layers=["4"]), files[:1], Path()).written) == 1
    refused(Other(), files[1:2], Path(), "a.npz was made with other settings")


def test_folders_in_the_current_folder_that_are_written_to_count(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in/sub").mkdir(parents=True)
    files[2].rename(tmp_path / "in/sub/c.wav")
    embed(Other(), files[:1], Path("sub"))
    refused(Other(layers=["4"]), [tmp_path / "in"], Path(), "sub/a.npz was made with other settings")


@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_overwriting_all_of_it_is_no_mixture(files, tmp_path, format):
    embed(Other(), files, tmp_path / "out", format=format)
    assert len(embed(Other(layers=["4"]), files, tmp_path / "out", format=format, overwrite=True).written) == 3


def test_overwriting_some_of_it_is_one(files, tmp_path):
    embed(Other(), files, tmp_path / "out")
    refused(Other(layers=["4"]), files[:2], tmp_path / "out", "c.npz was made with other settings", overwrite=True)


@pytest.mark.parametrize("name", ["embeddings", "x.table"])
@pytest.mark.parametrize(("first", "second"), [(8, 4), (1, 2), (2, 1)])
def test_tables_of_shards_of_another_count_are_refused(files, tmp_path, name, first, second):
    out = tmp_path / f"out/{name}.parquet"
    for i in range(first):
        embed(Other(), files, out, format="parquet", shard=Shard(i, first))
    outcomes = []
    for i in range(second):
        try:
            outcomes += embed(Other(), files, out, format="parquet", shard=Shard(i, second)).written
        except OptionError as error:
            outcomes.append(str(error))
    assert outcomes  # shards without a file have none
    for each in outcomes:
        assert f"holds a share of {first}, and --shard asks for one of {second}" in each


def test_tables_of_shards_of_other_settings_are_refused(files, tmp_path):
    for i in range(2):
        embed(Other(), files, tmp_path / "out", format="parquet", shard=Shard(i, 3))
    with pytest.raises(OptionError, match="layer 8 -> 4"):
        embed(Other(layers=["4"]), files, tmp_path / "out", format="parquet", shard=Shard(2, 3))


@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_separate_layers_are_of_one_model(files, tmp_path, format):
    def model(layer: str, **settings):
        return efficientat.load_model(variant="mn01_as", pretrained=False, layer=layer, **settings)

    separate = {"format": format, "separate_layers": True}
    embed(model("2,5"), files, tmp_path / "out", **separate)
    assert len(embed(model("5,7"), files, tmp_path / "out", **separate).written) == 3
    with pytest.raises(OptionError, match="pool mean -> max"):
        embed(model("9", pool="max"), files, tmp_path / "out", **separate)
    with pytest.raises(OptionError, match="pool mean -> max"):
        embed(model("9", pool="max"), files, tmp_path / "out", format=format)
    with pytest.raises(OptionError, match=r"layer=5.*pool mean -> max"):
        embed(model("5", pool="max"), files, tmp_path / "out", **separate)


def test_files_of_others_do_not_matter(files, tmp_path):
    (tmp_path / "out").mkdir()
    np.savez(tmp_path / "out/mine.npz", x=np.zeros(3))
    np.save(tmp_path / "out/mine.npy", np.zeros(3))
    (tmp_path / "out/embeddings.hdf5").write_text("no table")
    (tmp_path / "out/damaged.npz").write_bytes(b"PK\3\4")
    assert len(embed(Other(), files, tmp_path / "out").written) == 3


def test_a_folder_of_very_many_files_is_not_searched_to_its_end(files, tmp_path, monkeypatch):
    monkeypatch.setattr(mixing, "MOST_OTHERS", 2)
    opened = []
    provenance_of = mixing._provenance_of
    monkeypatch.setattr(mixing, "_provenance_of", lambda path: opened.append(path) or provenance_of(path))
    for i in range(5):
        np.save(tmp_path / f"{i}.npy", np.zeros(3))
    embed(Other(), files, tmp_path)
    assert len(opened) == 2
