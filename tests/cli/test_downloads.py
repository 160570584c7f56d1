"""`hear-transformers download` without a network, with part of one, and with files of other packages."""

import hashlib
import socket
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hear_transformers import catalogue
from hear_transformers.checkpoints import download, published, store

BODY = safetensors.torch.save({"weight": torch.ones(10)})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Give empty folders of weights, ours and everybody's."""
    for name in ("HOME", "TORCH_HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "other"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(store.FOLDER_VARIABLE, str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "weights"


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Have no network: list the hosts that are looked for."""
    hosts = []

    def refuse(host, *arguments, **options):
        hosts.append(host)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return hosts


@pytest.fixture
def run(installed_command):
    command = installed_command("hear-transformers")
    return lambda *arguments: command("download", *arguments)


def test_without_a_network_every_host_is_asked_once_and_one_summary_is_printed(run, asked, folder):
    result = run("panns", "all")
    assert asked == ["zenodo.org"]
    assert (result.exit_code, result.stdout) == (1, "")
    first, summary, *files = result.stderr.splitlines()
    assert first == "22 files, ~5,094 MB"
    assert summary.startswith(f"Error: zenodo.org cannot be reached; put these 22 files into {folder}, ")
    assert sorted(line.strip() for line in files) == sorted(row.file for row in catalogue.downloads("panns", "all"))


def test_without_a_network_all_hosts_are_asked_once(run, asked):
    assert run("all").exit_code == 1
    facebook, google = "dl.fbaipublicfiles.com", "drive.usercontent.google.com"
    rest = ["github.com", "huggingface.co", "www.dropbox.com", "zenodo.org"]
    assert sorted(asked) == sorted(["1drv.ms", facebook, google, *rest])


@pytest.mark.parametrize("name", ["mn10_as", "cnn14", "passt", "ast/audioset_12_12"])
def test_without_a_network_the_error_is_short_and_begins_with_what_to_do(run, asked, folder, name):
    result = run(name)
    (row,) = catalogue.downloads(name)
    assert result.exit_code == 1
    (_, line) = result.stderr.splitlines()
    assert line.startswith(f"Error: {row.file} is not on this machine: put it into {folder}")
    assert line.count("https://") == 1
    assert "--weights" in line
    assert line.endswith("cannot be reached")
    assert len(asked) == 1


def published_here(monkeypatch, *names: str) -> dict[str, published.Checkpoint]:
    """Make these rows of the manifest be of one small file."""
    rows = dict(published.manifest())
    for name in names:
        row = rows["efficientat", name]
        sha256 = hashlib.sha256(BODY).hexdigest()
        rows["efficientat", name] = published.Checkpoint(
            "efficientat", name, row.file, row.licence, row.url, len(BODY), sha256
        )
    monkeypatch.setattr(published, "manifest", lambda: rows)
    return {name: rows["efficientat", name] for name in names}


def test_one_that_fails_does_not_stop_the_others(run, monkeypatch, folder):
    published_here(monkeypatch, "mn01_as", "mn02_as", "mn04_as")

    def answer(self) -> None:
        if "mn02" in self.url:
            raise store.WeightsError("github.com answers 404 Not Found")
        self.part.write_bytes(BODY)

    monkeypatch.setattr(download.Download, "run", answer)
    result = run("mn0[124]_as")
    assert result.exit_code == 1
    assert [Path(line).name[:4] for line in result.stdout.splitlines()] == ["mn01", "mn04"]
    assert "404 Not Found" in result.stderr


def test_a_file_of_another_package_needs_no_network(run, asked, monkeypatch, tmp_path, folder):
    row = published_here(monkeypatch, "mn01_as")["mn01_as"]
    place = tmp_path / "other" / "hub" / "checkpoints" / row.file
    place.parent.mkdir(parents=True)
    place.write_bytes(BODY)
    result = run("mn01_as")
    assert result.stdout == f"{place}\n"
    assert asked == []
    assert not (folder / row.file).exists()


def test_it_is_listed_as_another_packages(installed_command, asked, monkeypatch, tmp_path):
    row = published_here(monkeypatch, "mn01_as")["mn01_as"]
    place = tmp_path / "other" / "hub" / "checkpoints" / row.file
    place.parent.mkdir(parents=True)
    place.write_bytes(BODY)
    command = installed_command("hear-transformers")
    assert command("list", "mn01_as").stdout.splitlines()[1].split()[-1] == "other"
    found = [line.split() for line in command("doctor", "--verify").stdout.splitlines() if str(place) in line]
    assert " ".join(found[0][3:]) == f"GB of another package, right content {place}"
    assert asked == []
