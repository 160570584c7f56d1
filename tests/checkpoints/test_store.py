"""The weights store: the manifest, where files lie, hashes."""

from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch

from hear_transformers import FAMILIES, catalogue
from hear_transformers.checkpoints.published import Checkpoint, find, manifest, parse_manifest
from hear_transformers.checkpoints.state_dicts import read_state_dict
from hear_transformers.checkpoints.store import fetch, locate, weights_dir
from hear_transformers.errors import WeightsError
from hear_transformers.files import sha256_of

ROW = '[net.one]\nfile = "one.pt"\nlicence = "MIT"\nurl = "https://example.org/one.pt"\n'
ROWS = [pytest.param(row, id=f"{row.family}-{row.name}") for row in manifest().values()]
DOWNLOADED = [pytest.param(row, id=f"{row.family}-{row.name}") for row in manifest().values() if not row.embedded]
GOOGLE_DRIVE = "https://drive.usercontent.google.com/download?id="
ONEDRIVE = "https://1drv.ms/u/"  # whose links have no names
# Where files lie that are not beside the authors' code.
PUBLISHERS = (
    "https://huggingface.co/MIT/",
    "https://huggingface.co/mohammedali2501/ssondo/",
    "https://www.dropbox.com/s/",
    "https://zenodo.org/record/3987831/files/",
    "https://dl.fbaipublicfiles.com/mvit/mvitv2_models/",
    "https://dl.fbaipublicfiles.com/deit/",
    "https://huggingface.co/mispeech/",
    "https://zenodo.org/records/13315686/files/",
    "https://huggingface.co/worstchan/EAT-",
    "https://huggingface.co/ta012/SSLAM_",
    GOOGLE_DRIVE,
    ONEDRIVE,
    "https://huggingface.co/EarthSpeciesProject/",
    "https://huggingface.co/laion/",
)
REAL = Path(__file__).parents[3] / "shared" / "weights" / "mn04_as_mAP_432.pt"


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# ---- the manifest


@pytest.mark.parametrize("row", DOWNLOADED)
def test_published_rows_say_where_from_and_on_what_terms(row: Checkpoint) -> None:
    assert row.url is not None
    assert row.source is not None
    assert row.url.startswith((row.source, *PUBLISHERS))
    assert row.source.startswith("https://")
    # Hugging Face calls every file "model"; here it has the name of its repository.
    repository = Path(row.file).stem
    is_named = unquote(urlsplit(row.url).path).endswith(f"/{row.file}") or f"/{repository}/resolve/" in row.url
    assert is_named or row.url.startswith((GOOGLE_DRIVE, ONEDRIVE))  # which number their files
    assert row.licence in {"Apache-2.0", "MIT", "BSD-3-Clause", "CC-BY-4.0", "CC-BY-NC-SA-4.0"}
    assert row.trained_on is not None


@pytest.mark.parametrize("row", ROWS)
def test_known_hashes_and_sizes_are_well_formed(row: Checkpoint) -> None:
    for digest, length in ((row.sha256, 64), (row.md5, 32)):
        assert digest is None or (len(digest) == length and set(digest) <= set("0123456789abcdef"))
    assert row.bytes is None or row.bytes > 0
    assert row.sha256_start is None or row.file.endswith(f"-{row.sha256_start}.pth")


def test_file_names_are_unique() -> None:
    assert max(Counter(row.file for row in manifest().values()).values()) == 1


def test_urls_are_unique() -> None:
    assert max(Counter(row.url for row in manifest().values() if row.url).values()) == 1


def test_every_published_file_of_each_family_is_listed() -> None:
    published = {"tiny": 1, "passt": 25, "efficientat": 52, "ast": 8, "panns": 22, "mast": 4, "atgnn": 2, "deit": 3}
    published |= {"dasheng": 4, "ced": 4, "eat": 9, "atst": 5}
    published |= {"beats": 18}
    published |= {"clap": 4}
    assert Counter(row.family for row in manifest().values()) == published


def test_what_nobody_else_publishes_is_embedded() -> None:
    assert [(row.family, row.name) for row in manifest().values() if row.embedded] == [
        ("tiny", "tiny"),
        ("mast", "mini"),
        ("atgnn", "mini"),
    ]


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
        ("ast", "audioset_10_10"),
        ("ast", "audioset_10_10_0.4495"),
        ("panns", "wavegram_logmel_cnn14"),
    ],
)
def test_rows_are_found_by_the_authors_names(family: str, name: str) -> None:
    assert (find(family, name).family, find(family, name).name) == (family, name)


def test_the_metric_agrees_with_the_file_name() -> None:
    assert find("efficientat", "mn04_as").metric == "AudioSet mAP 0.432"
    assert find("passt", "fsd50k").metric == "FSD50K mAP 0.655"


def test_imagenet_files_claim_nothing_about_audio() -> None:
    rows = [row for row in manifest().values() if row.trained_on == "ImageNet"]
    assert {row.family: [other.family for other in rows].count(row.family) for row in rows} == {
        "efficientat": 12,
        "mast": 3,
        "atgnn": 1,
        "deit": 3,
    }
    assert all(row.metric is None or row.metric.startswith("ImageNet top-1 ") for row in rows)


def test_variants_start_from_imagenet_files_and_every_file_is_for_one() -> None:
    variants = {(name, key): row for name in FAMILIES for key, row in catalogue.family(name).VARIANTS.items()}
    starts = {key: row.imagenet for key, row in variants.items() if row.imagenet}
    files = {row.family + "." + row.name for row in manifest().values() if row.trained_on == "ImageNet"}
    # A second file for a network that has one already.
    assert {".".join(start) for start in starts.values()} == files - {"efficientat.mn10_im_pytorch"}
    assert [key for key in starts if key[0] in ("tiny", "panns")] == []


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
        (ROW + 'take_for = ["cats"]', r"take_for = \['cats'\] must be of sound events, events in time"),
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


def known_by_its_start(path: Path, digits: str) -> Checkpoint:
    torch.save({"weight": torch.ones(1)}, path)
    return Checkpoint("net", "one", path.name, "MIT", url="https://example.org/one.pt", sha256_start=digits)


def test_a_file_is_known_by_the_start_of_its_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEAR_TRANSFORMERS_WEIGHTS", str(tmp_path))
    path = tmp_path / "one.pt"
    known_by_its_start(path, "")
    assert fetch(known_by_its_start(path, sha256_of(path)[:8])) == path


def test_another_start_of_the_hash_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEAR_TRANSFORMERS_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match=r"one\.pt, .* expected 0123abcd \(the manifest\)"):
        fetch(known_by_its_start(tmp_path / "one.pt", "0123abcd"))


# ---- a real file


@pytest.mark.shared
@pytest.mark.skipif(not REAL.is_file(), reason="the developers' folder ../shared is not here")
def test_a_real_checkpoint_is_found_verified_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEAR_TRANSFORMERS_WEIGHTS", str(REAL.parent))
    state_dict = read_state_dict(fetch(find("efficientat", "mn04_as")))
    assert len(state_dict) == 312
    assert state_dict["classifier.5.weight"].shape == (527, 512)
