"""A cluster of three machines, all of them processes on this one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from hear_transformers.ray import start

MACHINES = 3
CPUS = 2  # of each; one of them is left to Ray Data, so each has one actor


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """Start a cluster, and connect to it."""
    import ray
    from ray.cluster_utils import Cluster

    here = Path(__file__).parent
    with contextlib.ExitStack() as stack:
        environment = pytest.MonkeyPatch()
        stack.callback(environment.undo)
        # Where actors find the models of these tests.
        environment.setenv("PYTHONPATH", os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")]))
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        machine: dict[str, Any] = {"num_cpus": CPUS, "object_store_memory": 2**27}
        made = Cluster(initialize_head=True, head_node_args={**machine, "include_dashboard": False})
        stack.callback(made.shutdown)
        for _ in range(MACHINES - 1):
            made.add_node(**machine)
        start(made.address)
        stack.callback(ray.shutdown)
        yield made


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    """Make 60 clips of noise of 0.5 s, each of another level."""
    rng = np.random.default_rng(0)
    (tmp_path / "clips").mkdir()
    paths = [tmp_path / "clips" / f"{i:02d}.wav" for i in range(60)]
    for i, path in enumerate(paths):
        soundfile.write(path, (0.005 + 0.005 * i) * rng.standard_normal(16_000), 32_000)
    return paths
