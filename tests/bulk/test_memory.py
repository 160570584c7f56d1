"""An hour of audio costs no more memory than ten minutes, beyond what is asked for."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from hear_transformers.benchmarks import bulk

SAMPLE_RATE = 16_000
MEBIBYTE = 2**20

PEAK_ALL = 400  # MiB, with a PyTorch for CPUs alone; 270 to 300 were found
PEAK_OURS = 180  # beyond importing PyTorch, which takes 500 if it is made for CUDA; 80 to 130 were found


def long_file(path: Path, minutes: int) -> Path:
    """Write noise minute by minute."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16") as file:
        for _ in range(minutes):
            file.write(0.1 * rng.standard_normal(60 * SAMPLE_RATE, dtype=np.float32))
    return path


def peak_bytes(path: Path, out: Path, times: list[str]) -> float:
    """Embed a file along time with the first block of the default model; give the peak memory."""
    options = [*times, "--layer", "1", "--out", str(out), "--quiet"]
    peak, *_ = bulk.cost_of("-c", bulk.COMMAND, str(path), *options)
    return peak * MEBIBYTE


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no module resource to measure memory with")
def test_one_file_needs_little_more_memory_than_pytorch_itself(tmp_path):
    (_, alone, _), (_, peak, _) = bulk.one_file_rows(tmp_path, seconds=10.0)
    assert peak - alone < PEAK_OURS
    if torch.version.cuda is None and torch.version.hip is None:
        assert peak < PEAK_ALL


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no module resource to measure memory with")
@pytest.mark.parametrize(
    ("times", "last_ms"), [(["--timestamps", "--hop-ms", "50"], 0.0), (["--segment", "3", "--overlap", "1"], -1_000.0)]
)
def test_an_hour_needs_no_more_memory_than_ten_minutes_beyond_its_output(tmp_path, times, last_ms):
    peaks, outputs = {}, {}
    for minutes in (10, 60):
        path = long_file(tmp_path / f"{minutes}.wav", minutes)
        peaks[minutes] = peak_bytes(path, tmp_path, times)
        path.unlink()
        output = path.with_suffix(".npz")
        outputs[minutes] = output.stat().st_size
        with np.load(output) as arrays:
            assert arrays["timestamps"][-1] == minutes * 60_000 + last_ms
            assert np.isfinite(arrays["embedding"][-1]).all()
    growth_beyond_output = (peaks[60] - peaks[10]) - (outputs[60] - outputs[10])
    assert growth_beyond_output < 200 * MEBIBYTE
