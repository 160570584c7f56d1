"""Reading checkpoint files and the manifest of those that are published."""

import argparse
import contextlib
import hashlib
import json
import math
import os
import pickle
import random
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from hear_transformers import checkpoints
from hear_transformers.checkpoints import (
    Checkpoint,
    fetch,
    find,
    load_into,
    locate,
    manifest,
    parse_manifest,
    read_state_dict,
    sha256_of,
    strip_prefixes,
    unwrap,
    weights_dir,
)
from hear_transformers.errors import WeightsError

ROW = '[net.one]\nfile = "one.pt"\nlicence = "MIT"\nurl = "https://example.org/one.pt"\n'
ROWS = [pytest.param(row, id=f"{row.family}-{row.name}") for row in manifest().values()]
DOWNLOADED = [pytest.param(row, id=f"{row.family}-{row.name}") for row in manifest().values() if not row.embedded]


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


@pytest.fixture
def state_dict() -> dict[str, Tensor]:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict()


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0)


# ---- the manifest


@pytest.mark.parametrize("row", DOWNLOADED)
def test_published_rows_say_where_from_and_on_what_terms(row: Checkpoint) -> None:
    assert row.url is not None
    assert row.url.startswith("https://")
    assert row.url.endswith(f"/{row.file}")
    assert row.source is not None
    assert row.url.startswith(row.source)
    assert row.licence in {"Apache-2.0", "MIT"}
    assert row.trained_on is not None


@pytest.mark.parametrize("row", ROWS)
def test_known_hashes_and_sizes_are_well_formed(row: Checkpoint) -> None:
    for digest, length in ((row.sha256, 64), (row.md5, 32)):
        assert digest is None or (len(digest) == length and set(digest) <= set("0123456789abcdef"))
    assert row.bytes is None or row.bytes > 0


def test_file_names_are_unique() -> None:
    assert max(Counter(row.file for row in manifest().values()).values()) == 1


def test_urls_are_unique() -> None:
    assert max(Counter(row.url for row in manifest().values() if row.url).values()) == 1


def test_every_published_file_of_each_family_is_listed() -> None:
    assert Counter(row.family for row in manifest().values()) == {"tiny": 1, "passt": 22, "efficientat": 46}


def test_only_the_default_model_is_embedded() -> None:
    assert [(row.family, row.name) for row in manifest().values() if row.embedded] == [("tiny", "tiny")]


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("passt", "passt_s_swa_p16_128_ap476"),
        ("passt", "stfthop100"),
        ("passt", "passt_30sec"),
        ("passt", "fsd50k-n"),
        ("passt", "openmic2008_ap85_swa"),
        ("efficientat", "mn10_as"),
        ("efficientat", "mn40_as(2)"),
        ("efficientat", "mn10_as_hop_25"),
        ("efficientat", "dymn20_as(3)"),
        ("efficientat", "dymn04_replace_se_as"),
        ("efficientat", "mn10_im_pytorch"),
    ],
)
def test_rows_are_found_by_the_authors_names(family: str, name: str) -> None:
    assert (find(family, name).family, find(family, name).name) == (family, name)


def test_the_metric_agrees_with_the_file_name() -> None:
    assert find("efficientat", "mn04_as").metric == "AudioSet mAP 0.432"
    assert find("passt", "fsd50k").metric == "FSD50K mAP 0.655"


def test_imagenet_files_claim_nothing_about_audio() -> None:
    names = {row.name: row.metric for row in manifest().values() if row.trained_on == "ImageNet"}
    assert len(names) == 12
    assert all("_im" in name and metric is None for name, metric in names.items())


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(WeightsError, match=r"'mn11_as' of 'efficientat'.*choose one of.*mn10_as, "):
        find("efficientat", "mn11_as")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[net", "not TOML"),
        ("net = 3", "table of rows"),
        ("[net]\none = 3", "table of fields"),
        (ROW + 'sha265 = "00"', "'sha265' is unknown; choose from .*sha256"),
        (ROW + 'bytes = "12"', "bytes = '12' must be of type int"),
        (ROW + "bytes = true", "must be of type int"),
        ('[net.one]\nfile = "one.pt"\nurl = "https://example.org"', "licence are required"),
        ('[net.one]\nfile = "one.pt"\nlicence = "MIT"', "either url or embedded"),
        (ROW + "embedded = true", "either url or embedded"),
        (ROW.replace('"one.pt"', '"../one.pt"'), "without a folder"),
    ],
)
def test_a_malformed_manifest_is_refused(text: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        parse_manifest(text)


def test_a_manifest_row_becomes_a_record() -> None:
    assert parse_manifest(ROW) == {
        ("net", "one"): Checkpoint("net", "one", "one.pt", "MIT", url="https://example.org/one.pt")
    }


# ---- where files lie


def test_the_environment_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEAR_TRANSFORMERS_WEIGHTS", str(tmp_path))
    assert weights_dir() == tmp_path


def test_an_empty_environment_variable_means_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEAR_TRANSFORMERS_WEIGHTS", "")
    chosen = weights_dir()
    monkeypatch.delenv("HEAR_TRANSFORMERS_WEIGHTS")
    assert chosen == weights_dir()
    assert chosen.name == "hear_transformers"


def test_embedded_files_lie_in_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEAR_TRANSFORMERS_WEIGHTS", str(tmp_path))
    path = locate(Checkpoint("net", "net", file="manifest.toml", licence="MIT", embedded=True))
    assert path is not None
    assert path.read_text().startswith("# Published checkpoints")


def test_sha256_follows_the_content(tmp_path: Path) -> None:
    path = written(tmp_path / "file", b"one")
    assert sha256_of(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"other")
    assert sha256_of(str(path)) == hashlib.sha256(b"other").hexdigest()


def test_an_unchanged_file_is_hashed_once(tmp_path: Path) -> None:
    path = written(tmp_path / "file", b"one")
    sha256_of(path)
    before = checkpoints._hash_cached.cache_info().misses
    sha256_of(path)
    assert checkpoints._hash_cached.cache_info().misses == before


def test_the_hash_of_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.pt"):
        sha256_of(tmp_path / "none.pt")


# ---- reading


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "net"])
def test_safetensors_are_known_by_content(tmp_path: Path, state_dict: dict[str, Tensor], name: str) -> None:
    path = written(tmp_path / name, safetensors.torch.save(state_dict))
    assert_equal(read_state_dict(path), state_dict)


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors", "net"])
@pytest.mark.parametrize("new", [True, False])
def test_torch_files_are_known_by_content(tmp_path: Path, state_dict: dict[str, Tensor], name: str, new: bool) -> None:
    path = saved(tmp_path / name, state_dict, _use_new_zipfile_serialization=new)
    assert_equal(read_state_dict(str(path)), state_dict)


def test_an_archive_packed_again_with_compression_is_read(tmp_path: Path) -> None:
    weights = {"weight": torch.randn(4, 400).round(decimals=1)}
    packed = tmp_path / "packed.pt"
    with (
        zipfile.ZipFile(saved(tmp_path / "net.pt", weights)) as archive,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in archive.namelist():
            target.writestr(name, archive.read(name))
    assert_equal(read_state_dict(packed), weights)


def test_reading_keeps_the_data_types_of_the_file(tmp_path: Path) -> None:
    weights = {"half": torch.ones(2).half(), "bfloat16": torch.ones(2).bfloat16(), "count": torch.tensor(3)}
    assert_equal(read_state_dict(saved(tmp_path / "net.pt", weights)), weights)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_wrappers_are_taken_off(tmp_path: Path, state_dict: dict[str, Tensor], key: str) -> None:
    path = saved(tmp_path / "net.pt", {"epoch": 3, key: state_dict, "optimizer": {"lr": 0.1}})
    assert_equal(read_state_dict(path), state_dict)


def test_nested_wrappers_are_taken_off() -> None:
    assert unwrap({"model": {"state_dict": {"weight": 1}}}) == {"weight": 1}


def test_a_dict_that_wraps_itself_ends(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["model"] = endless
    with pytest.raises(WeightsError, match="dict of"):
        read_state_dict(saved(tmp_path / "net.pt", endless))


@pytest.mark.parametrize("prefix", ["module.", "model.", "net.", "module.net.", "_orig_mod.", "net_swa."])
def test_prefixes_are_taken_off(state_dict: dict[str, Tensor], prefix: str) -> None:
    assert_equal(strip_prefixes({prefix + key: value for key, value in state_dict.items()}), state_dict)


def test_a_prefix_that_some_keys_lack_stays() -> None:
    mixed = {"net.weight": torch.ones(1), "head.weight": torch.ones(1)}
    assert_equal(strip_prefixes(mixed), mixed)


def test_front_end_buffers_may_stand_beside_a_prefix() -> None:
    one = torch.ones(1)
    assert strip_prefixes({"net.weight": one, "mel.window": one}).keys() == {"weight", "mel.window"}


def test_the_averaged_network_is_preferred() -> None:
    trained, averaged = torch.zeros(1), torch.ones(1)
    assert_equal(strip_prefixes({"net.weight": trained, "net_swa.weight": averaged}), {"weight": averaged})


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("exit 1",)


def test_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"net.pt: refused: the file holds code \((posix|nt).system\), only tensors"):
        read_state_dict(saved(tmp_path / "net.pt", {"weight": Code()}))


@pytest.mark.parametrize("content", [nn.Linear(1, 1), {"weight": torch.ones(1), "options": argparse.Namespace()}])
@pytest.mark.parametrize("new", [True, False])
def test_objects_are_refused(tmp_path: Path, content: Any, new: bool) -> None:
    with pytest.raises(WeightsError, match=r"refused: .*only tensors are loaded; save a state_dict\(\)"):
        read_state_dict(saved(tmp_path / "net.pt", content, _use_new_zipfile_serialization=new))


def test_the_advice_to_run_code_is_not_passed_on(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as error:
        read_state_dict(saved(tmp_path / "net.pt", Code()))
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([torch.ones(1)], "type list"),
        (torch.ones(1), "a tensor"),
        ({}, "an empty dict"),
        ({"model": {}}, "an empty dict"),
        ({"weight": torch.ones(1), "epoch": 3}, "type int under 'epoch'"),
        ({3: torch.ones(1)}, "under 3"),
        pytest.param(
            {"weight": torch.ones(2, 2).to_sparse()}, "sparse", marks=pytest.mark.filterwarnings("ignore:.*parse")
        ),
        ({"weight": torch.ones(2, device="meta")}, "on meta"),
    ],
)
def test_anything_but_a_dict_of_dense_tensors_is_refused(tmp_path: Path, content: Any, found: str) -> None:
    with pytest.raises(WeightsError, match=f"net.pt: expected a dict of .*, found .*{found}"):
        read_state_dict(saved(tmp_path / "net.pt", content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.pt: no such file"):
        read_state_dict(tmp_path / "none.pt")


def test_a_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a folder"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"{", "is not a checkpoint"),
        (b"<!DOCTYPE html>", "is not a checkpoint"),
        (json.dumps({"weight": [1.0]}).encode(), "is not a checkpoint"),
        (pickle.dumps({"weight": 1.0}), "is not a checkpoint"),
        (b"\xff" * 7 + b"\x7f{}", "damaged"),
        (b"\x02" + b"\0" * 7 + b"{x", "damaged"),
        (b"PK\3\4 and nothing else", "damaged"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(WeightsError, match=f"net.pt.*{message}"):
        read_state_dict(written(tmp_path / "net.pt", content))


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("notes/readme.txt", "hello")
    with pytest.raises(WeightsError, match="damaged"):
        read_state_dict(tmp_path / "net.pt")


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("net/constants.pkl", b"")
    with pytest.raises(WeightsError, match="TorchScript"):
        read_state_dict(tmp_path / "net.pt")


def test_an_archive_that_would_unpack_to_far_more_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data/0", bytes(1_000_000))
    with pytest.raises(WeightsError, match=r"refused: .* would unpack to 1000000"):
        read_state_dict(tmp_path / "net.pt")


def contents(state_dict: dict[str, Tensor], folder: Path) -> dict[str, bytes]:
    """Return the same state dict in every format."""
    return {
        "safetensors": safetensors.torch.save(state_dict),
        "torch": saved(folder / "new.pt", state_dict).read_bytes(),
        "old torch": saved(folder / "old.pt", state_dict, _use_new_zipfile_serialization=False).read_bytes(),
    }


@pytest.mark.parametrize("form", ["safetensors", "torch", "old torch"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, state_dict: dict[str, Tensor], form: str) -> None:
    content = contents(state_dict, tmp_path)[form]
    for length in range(0, len(content), 1 + len(content) // 50):
        with pytest.raises(WeightsError, match="cut"):
            read_state_dict(written(tmp_path / "cut", content[:length]))


@pytest.mark.parametrize("form", ["safetensors", "torch", "old torch"])
def test_damage_anywhere_raises_nothing_but_weights_errors(
    tmp_path: Path, state_dict: dict[str, Tensor], form: str
) -> None:
    content = contents(state_dict, tmp_path)[form]
    dice = random.Random(form)
    for _ in range(100):
        damaged = bytearray(content)
        damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        with contextlib.suppress(WeightsError):
            read_state_dict(written(tmp_path / "damaged", bytes(damaged)))


REAL = Path(__file__).parents[2] / "shared" / "weights" / "mn04_as_mAP_432.pt"


@pytest.mark.shared
@pytest.mark.skipif(not REAL.is_file(), reason="the developers' folder ../shared is not here")
def test_a_real_checkpoint_is_found_verified_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEAR_TRANSFORMERS_WEIGHTS", str(REAL.parent))
    state_dict = read_state_dict(fetch(find("efficientat", "mn04_as")))
    assert len(state_dict) == 312
    assert state_dict["classifier.5.weight"].shape == (527, 512)


# ---- loading


def test_loading_fills_the_network(network: nn.Module, state_dict: dict[str, Tensor]) -> None:
    load_into(network, state_dict, "net.pt")
    assert_equal(network.state_dict(), state_dict)


def test_loading_does_not_share_memory(network: nn.Module, state_dict: dict[str, Tensor]) -> None:
    load_into(network, state_dict, "net.pt")
    state_dict["0.weight"].zero_()
    assert network.state_dict()["0.weight"].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(network: nn.Module, state_dict: dict[str, Tensor], dtype: torch.dtype) -> None:
    given = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state_dict.items()}
    load_into(network, given, "net.pt")
    assert_equal(network.state_dict(), {key: value.to(state_dict[key].dtype) for key, value in given.items()})


def test_known_unused_keys_are_passed_over(network: nn.Module, state_dict: dict[str, Tensor]) -> None:
    load_into(network, state_dict | {"mel.window": torch.ones(3)}, "net.pt", unused={"mel.window", "mel.bank"})
    assert_equal(network.state_dict(), state_dict)


def test_a_misfit_names_its_keys_and_shapes(network: nn.Module, state_dict: dict[str, Tensor]) -> None:
    given = state_dict | {"0.weight": torch.ones(4, 3), "head": torch.ones(1)}
    del given["0.bias"]
    with pytest.raises(WeightsError) as error:
        load_into(network, given, "net.pt")
    assert str(error.value) == (
        "net.pt does not fit Sequential: 1 missing: 0.bias (2,) float32; 1 unexpected: head (1,) float32; "
        "1 of another shape or type: 0.weight (4, 3) float32 instead of (2, 3) float32; "
        "is it a checkpoint of another network or variant?"
    )


def test_a_long_list_of_keys_is_cut(network: nn.Module) -> None:
    with pytest.raises(WeightsError, match=r"7 missing: 0.weight \(2, 3\) float32, .*, \.\.\.; 1 unexpected"):
        load_into(network, {"weight": torch.ones(1)}, "net.pt")


def test_integers_in_place_of_weights_are_refused(network: nn.Module, state_dict: dict[str, Tensor]) -> None:
    state_dict["0.weight"] = torch.ones(2, 3, dtype=torch.int8)
    with pytest.raises(WeightsError, match=r"0.weight \(2, 3\) int8 instead of \(2, 3\) float32"):
        load_into(network, state_dict, "net.pt")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(
    network: nn.Module, state_dict: dict[str, Tensor], number: float
) -> None:
    state_dict["0.weight"][1, 2] = number
    with pytest.raises(WeightsError, match=r"net\.pt: 1 NaN or infinite: 0\.weight"):
        load_into(network, state_dict, "net.pt")


def test_numbers_too_large_for_float32_are_refused(network: nn.Module, state_dict: dict[str, Tensor]) -> None:
    state_dict["0.weight"] = torch.full((2, 3), 1e300, dtype=torch.float64)
    with pytest.raises(WeightsError, match=r"infinite: 0\.weight"):
        load_into(network, state_dict, "net.pt")


def test_a_refused_checkpoint_leaves_the_network_as_it_was(network: nn.Module, state_dict: dict[str, Tensor]) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state_dict["1.running_var"][0] = math.nan
    with pytest.raises(WeightsError):
        load_into(network, state_dict, "net.pt")
    assert_equal(network.state_dict(), before)


def test_shapes_are_checked_before_numbers_are_touched(network: nn.Module, state_dict: dict[str, Tensor]) -> None:
    state_dict["0.weight"] = torch.ones(1).expand(10**12)
    with pytest.raises(WeightsError, match="1000000000000"):
        load_into(network, state_dict, "net.pt")
