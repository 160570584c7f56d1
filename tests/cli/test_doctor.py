"""What `hear-transformers doctor` finds, where something does not work."""

import hashlib
import importlib.metadata
import json
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hear_transformers import doctor
from hear_transformers.audio import reading
from hear_transformers.checkpoints import published, store
from hear_transformers.embedding import precision
from hear_transformers.errors import AudioError
from hear_transformers.networks import fused


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Give an empty folder of weights."""
    monkeypatch.setenv(store.FOLDER_VARIABLE, str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


@pytest.fixture
def run(installed_command):
    command = installed_command("hear-transformers")
    return lambda *arguments: command("doctor", *arguments)


def publish(monkeypatch, **changes) -> None:
    """Make the manifest hold one file of 100 zero bytes."""
    sha256 = hashlib.sha256(bytes(100)).hexdigest()
    row = published.Checkpoint("passt", "a", "a.pt", "MIT", "https://localhost/a.pt", 100, sha256)
    row = published.Checkpoint(**{name: getattr(row, name) for name in row.__slots__} | changes)
    monkeypatch.setattr(published, "manifest", lambda: {("passt", "a"): row})


def test_where_all_works_it_says_so(run):
    result = run()
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("\nAll is well.\n")


def test_json_has_every_part(run):
    report = json.loads(run("--json").stdout)
    assert list(report) == ["versions", "extras", "devices", "decoders", "cache", "weights", "problems"]
    assert report["problems"] == []


def test_versions_are_those_that_are_installed():
    versions = {row["name"]: row["version"] for row in doctor.versions()}
    assert versions["torch"] == importlib.metadata.version("torch")
    assert versions["libsndfile"].count(".") == 2


def test_processor_has_the_precision_that_pays(run, monkeypatch):
    for name, auto, factors in (("no", "float32", (6.25, 36.1)), ("yes", "bfloat16", (0.5, 0.4))):
        monkeypatch.setattr(precision, "has_instructions", lambda *_, name=name: name == "yes")
        monkeypatch.setattr(precision, "slowdown", lambda *_, factors=factors: precision.Slowdown(*factors))
        row = doctor.devices()[0]
        assert (row["name"], row["auto"]) == ("cpu", auto)
        assert tuple(row["bfloat16_times_as_long"].values()) == factors
        words = " ".join(run().stdout.split())
        linear, conv = (f"{factor:.1f}" for factor in factors)
        assert f"precision auto is {auto}; bfloat16 takes {linear} (linear), {conv} (conv) times as long" in words


def test_every_decoder_is_tried():
    assert {
        row["format"]: row["decodes"] for row in doctor.decoders() if row["library"] == "libsndfile"
    } == dict.fromkeys(doctor.SOUND_FILES, True)


def test_decoders_of_pyav_are_tried_where_it_is():
    pytest.importorskip("av")
    decodes = {row["format"]: row["decodes"] for row in doctor.decoders() if row["library"] == "PyAV"}
    assert decodes["M4A (AAC)"] is True


def without(monkeypatch, distribution: str) -> None:
    """Hide a distribution."""
    version = importlib.metadata.version

    def hidden(name: str) -> str:
        if name == distribution:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", hidden)


def test_without_an_extra_it_says_how_to_install_it_and_all_is_well(run, monkeypatch):
    without(monkeypatch, "av")
    result = run()
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    assert "av run: python -m pip install 'hear_transformers[av]'" in words
    assert "M4A (AAC) PyAV cannot be tried" in words


def test_a_library_that_does_not_load_is_a_problem(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    result = run()
    assert result.exit_code == 1
    assert "Problem: soxr does not load" in result.stdout
    assert "python -m pip install --force-reinstall 'soxr==" in result.stdout


def test_a_decoder_that_does_not_decode_is_a_problem(run, monkeypatch):
    def refuse(path, sample_rate):
        raise AudioError("no")

    monkeypatch.setattr(reading, "read", refuse)
    result = run()
    assert result.exit_code == 1
    assert (
        "Problem: FLAC is not decoded by libsndfile (no); run: python -m pip install --upgrade soundfile"
        in result.stdout
    )


def test_a_decoder_that_loses_samples_is_a_problem(monkeypatch):
    monkeypatch.setattr(reading, "read", lambda path, sample_rate: torch.randn(sample_rate // 2))
    (problem, *_) = doctor.problems({"decoders": doctor.decoders()})
    assert problem.startswith("WAV is not decoded by libsndfile (24000 samples were decoded of 48000)")


def test_a_device_that_does_not_compute_is_a_problem(monkeypatch):
    card = SimpleNamespace(name="Card", total_memory=16_000_000_000, major=3, minor=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: card)

    def refuse(*shape, device):
        raise RuntimeError("no kernel image is available\nmore")

    monkeypatch.setattr(torch, "ones", refuse)
    _, row = doctor.devices()
    assert row["about"] == "Card, 16 GB, compute capability 3.5"
    assert row["problem"].startswith("cuda:0 does not compute (no kernel image is available); use --device cpu")


def test_a_card_without_triton_says_what_that_costs(monkeypatch):
    monkeypatch.setattr(fused, "tried", lambda device, dtype: "RuntimeError: no C compiler")
    assert doctor._without_kernels("cuda:0") == (
        ", transformers without the faster kernels of Triton (RuntimeError: no C compiler)"
    )


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_card_is_named_and_computes():
    row = next(row for row in doctor.devices() if row["name"] == "cuda:0")
    assert "compute capability" in row["about"]
    assert "problem" not in row


def test_a_part_that_cannot_be_looked_at_is_a_problem(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    monkeypatch.delitem(sys.modules, "hear_transformers.checkpoints.store")
    monkeypatch.delattr("hear_transformers.checkpoints.store")
    result = run()
    assert result.exit_code == 1
    assert "Problem: weights cannot be looked at (ModuleNotFoundError" in result.stdout
    assert "WAV libsndfile decodes" in " ".join(result.stdout.split())


def test_weights_that_are_here_are_named(run, monkeypatch, folder):
    publish(monkeypatch)
    (folder / "a.pt").write_bytes(bytes(100))
    result = run("--verify")
    assert result.exit_code == 0
    assert f"right content  {folder / 'a.pt'}" in result.stdout


def test_weights_that_are_not_here_are_not_missed(run, monkeypatch):
    publish(monkeypatch)
    assert json.loads(run("--json").stdout)["weights"] == []


def test_weights_of_another_size_are_a_problem(run, monkeypatch, folder):
    publish(monkeypatch)
    (folder / "a.pt").write_bytes(bytes(99))
    result = run()
    assert result.exit_code == 1
    assert f"Problem: {folder / 'a.pt'}: 99 bytes, expected 100; delete it and load again" in result.stdout


@pytest.mark.slow
def test_other_content_of_the_same_size_is_found_by_verify(run, monkeypatch, folder):
    publish(monkeypatch)
    (folder / "a.pt").write_bytes(b"\1" + bytes(99))
    assert run().exit_code == 0
    result = run("--verify")
    assert result.exit_code == 1
    assert f"Problem: {folder / 'a.pt'}, from https://localhost/a.pt: sha256" in result.stdout


def test_the_embedded_model_is_missed(run, monkeypatch):
    publish(monkeypatch, file="missing.safetensors", url=None, embedded=True)
    result = run()
    assert result.exit_code == 1
    assert "Problem: missing.safetensors is missing in the package; run: python -m pip install --force" in result.stdout


def test_a_folder_that_is_not_there_yet_is_no_problem(run, folder):
    folder.rmdir()
    result = run()
    assert result.exit_code == 0
    assert "is made when needed" in result.stdout


def test_a_folder_that_is_a_file_is_a_problem(run, folder):
    folder.rmdir()
    folder.touch()
    result = run()
    assert result.exit_code == 1
    assert f"Problem: {folder} is not a folder; set HEAR_TRANSFORMERS_WEIGHTS" in result.stdout


def test_an_empty_folder_that_cannot_be_written_is_a_problem(run, monkeypatch, folder):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    result = run()
    assert result.exit_code == 1
    assert f"Problem: {folder} holds no weights and cannot be written" in result.stdout


def test_a_read_only_folder_that_holds_weights_is_no_problem(run, monkeypatch, folder):
    publish(monkeypatch)
    (folder / "a.pt").write_bytes(bytes(100))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    result = run()
    assert result.exit_code == 0
    assert "read only" in result.stdout


def test_the_network_is_not_used(run, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert run("--verify").exit_code == 0
