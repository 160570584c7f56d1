"""Files that are whole or not there, and their hashes."""

import hashlib
from pathlib import Path

import pytest

from hear_transformers import files
from hear_transformers.errors import HearTransformersError
from hear_transformers.files import atomic, sha256_of


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_text("before")

    def write_half() -> None:
        with atomic(path) as file:
            file.write(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert [(entry, entry.read_text()) for entry in tmp_path.iterdir()] == [(path, "before")]


def test_sha256_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    assert sha256_of(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"other")
    assert sha256_of(str(path)) == hashlib.sha256(b"other").hexdigest()


def test_an_unchanged_file_is_hashed_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    sha256_of(path)
    before = files._hash_cached.cache_info().misses
    sha256_of(path)
    assert files._hash_cached.cache_info().misses == before


def test_the_hash_of_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HearTransformersError, match=r"none\.pt"):
        sha256_of(tmp_path / "none.pt")
