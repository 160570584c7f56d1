"""The recipes of docs/ run as they are, where what they need is installed; the page shows these very files."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs" / "recipes"
PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
SHOWN = dict(re.findall(r"<!-- (recipes/\S+) -->\n```\w+\n(.*?)```\n", PAGE, re.DOTALL))


@pytest.fixture
def clips(audio_file) -> Path:
    for i in range(6):
        path = audio_file(f"clips/{i}.wav", seconds=0.5 + i / 10)
    return path.parent


def run(*command: object, cwd: Path, **environment: str) -> str:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    shown = [str(part) for part in command]
    done = subprocess.run(shown, cwd=cwd, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("path", sorted(RECIPES.iterdir()), ids=lambda path: path.name)
def test_the_page_shows_the_recipe(path):
    assert SHOWN[f"recipes/{path.name}"] == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.py")), ids=lambda path: path.name)
def test_recipes_are_python(path):
    compile(path.read_text(encoding="utf-8"), path.name, "exec")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SLURM and bash")
def test_tasks_of_an_array_write_a_table_each_and_all_clips_between_them(clips, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for task in range(3):
        array = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "3", "PATH": path}
        run("bash", RECIPES / "slurm.sh", clips, tmp_path / "out", "--layer", 8, "--quiet", cwd=tmp_path, **array)
    tables = sorted((tmp_path / "out").glob("*.parquet"))
    assert {each.name for each in tables} <= {f"embeddings-{i}-of-3.parquet" for i in range(3)}
    names = [name for each in tables for name in parquet.read_table(each)["file"].to_pylist()]
    assert sorted(map(os.path.basename, names)) == [f"{i}.wav" for i in range(6)]


def expected(clips: Path) -> np.ndarray:
    from hear_transformers.tiny import load_model

    return load_model(layer=8).encode([str(path) for path in sorted(clips.iterdir())])


@pytest.mark.slow
def test_a_data_set_of_hugging_face_gets_a_column(clips, tmp_path):
    pytest.importorskip("datasets")
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out.parquet"
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    run(sys.executable, RECIPES / "datasets_map.py", clips, out, cwd=tmp_path, **environment)
    found = np.stack(parquet.read_table(out)["embedding"].to_pylist())
    np.testing.assert_allclose(found, expected(clips), atol=1e-5)


@pytest.mark.slow
def test_a_class_of_daft_embeds_files(clips, tmp_path):
    # In no extra: it holds other packages back, such as pyarrow.
    pytest.importorskip("daft", exc_type=ImportError)
    parquet = pytest.importorskip("pyarrow.parquet")
    run(sys.executable, RECIPES / "daft_udf.py", f"{clips}/*.wav", tmp_path / "out", cwd=tmp_path)
    rows = [row for each in (tmp_path / "out").glob("*.parquet") for row in parquet.read_table(each).to_pylist()]
    found = np.stack([row["embedding"] for row in sorted(rows, key=lambda row: row["path"])])
    np.testing.assert_allclose(found, expected(clips), atol=1e-5)


@pytest.mark.slow
def test_tasks_of_dask_write_a_table_each(clips, tmp_path):
    # In no extra: it brings nothing that embedding needs.
    pytest.importorskip("dask")
    pandas = pytest.importorskip("pandas")
    run(sys.executable, RECIPES / "dask_delayed.py", clips, tmp_path / "out", cwd=tmp_path)
    found = pandas.read_parquet(tmp_path / "out").sort_values("path")
    np.testing.assert_allclose(np.stack(found["embedding"]), expected(clips), atol=1e-5)


@pytest.mark.slow
def test_a_pipeline_of_beam_embeds_files(clips, tmp_path):
    # In no extra: it holds other packages back, such as NumPy.
    pytest.importorskip("apache_beam", exc_type=ImportError)
    parquet = pytest.importorskip("pyarrow.parquet")
    run(sys.executable, RECIPES / "beam.py", f"{clips}/*.wav", tmp_path / "out", cwd=tmp_path)
    rows = [row for each in tmp_path.glob("out*.parquet") for row in parquet.read_table(each).to_pylist()]
    found = np.stack([row["embedding"] for row in sorted(rows, key=lambda row: row["path"])])
    np.testing.assert_allclose(found, expected(clips), atol=1e-5)
