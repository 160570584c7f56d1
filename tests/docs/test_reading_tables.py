"""Shards of embeddings, one with a column more, are one table to DuckDB and Polars, as docs/scale.md says."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.tables_of_embeddings import write_table

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
CODE = dict(re.findall(r"<!-- (\w+) -->\n```python\n(.*?)```\n", PAGE, re.DOTALL))


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def _shards(vectors, tmp_path, monkeypatch):
    """Write three shards of ten rows, the last with channels."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        files = [f"{i}-{row}.wav" for row in range(10)]
        path = write_table(tmp_path / "embeddings" / f"embeddings-{i}-of-3.parquet", vectors[10 * i :][:10], files)
    rows = parquet.read_table(path)
    parquet.write_table(rows.add_column(1, "channel", arrow.array([1] * 10)), path)


def run(name: str) -> dict:
    variables: dict = {}
    exec(CODE[name], variables)
    return variables


def nearest(vectors: np.ndarray) -> list[str]:
    scaled = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.argsort(-(scaled @ scaled[0]))[:5]
    return [f"{row // 10}-{row % 10}.wav" for row in order]


def test_duckdb(vectors):
    pytest.importorskip("duckdb")
    found = run("duckdb")
    assert found["count"] == 30
    assert [row[0] for row in found["channels"]] == [None, 1]
    assert [row[0] for row in found["nearest"]] == nearest(vectors)


def test_polars(vectors):
    pytest.importorskip("polars")
    found = run("polars")
    assert found["count"] == 30
    assert found["channels"].to_series().to_list() == [None, 1]
    assert found["listed"].columns == ["file", "start", "end"]
    assert len(found["listed"]) == 30
