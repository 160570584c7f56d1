"""Files that are whole or not there, and their hashes."""

import gc
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
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


@pytest.mark.parametrize(
    "value", [[1, {"a": [2]}], {"name": "[" * 1_000}, {'"[{\\': '\\"' + "{" * 200}, [[]] * 5_000, [{"a": {}}] * 200]
)
@pytest.mark.parametrize("encode", [str, str.encode])
def test_json_is_parsed(value, encode) -> None:
    assert files.parse_json(encode(json.dumps(value))) == value


@pytest.mark.parametrize(
    "text", ["[" * 101 + "]" * 101, "[" * 100_000, '{"a":' * 101, '["[", ' * 200, "[] " + "[" * 101, '"[" ' + "{[" * 99]
)
def test_json_that_is_nested_too_deeply_is_refused(text) -> None:
    with pytest.raises(ValueError, match="nested deeper than 100 levels"):
        files.parse_json(text)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"\xff[]", UnicodeDecodeError),
        (b"", json.JSONDecodeError),
        ("[" * 100, json.JSONDecodeError),
        ("]" * 200, json.JSONDecodeError),
        ('"', json.JSONDecodeError),
    ],
)
def test_damaged_json_is_an_error(text, error) -> None:
    with pytest.raises(error):
        files.parse_json(text)


def test_damaged_json_leaves_the_lock_of_h5py_free() -> None:
    """A destructor of h5py's that the garbage collector runs at the end of the stack would keep it."""
    h5py = pytest.importorskip("h5py")
    garbage = [h5py.h5p.create(h5py.h5p.FILE_ACCESS) for _ in range(2_000)]

    def destroy(phase: str, _: dict) -> None:
        garbage.pop()

    thresholds = gc.get_threshold()
    gc.callbacks.append(destroy)
    gc.set_threshold(1)  # at every level of the nesting
    try:
        with pytest.raises(ValueError, match="nested"):
            files.parse_json("[" * 100_000)
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(destroy)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(h5py._objects.phil.acquire, blocking=False).result()
        pool.submit(h5py._objects.phil.release).result()
