"""An hour of audio costs no more memory than ten minutes, beyond what is asked for."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

SAMPLE_RATE = 16_000
MEBIBYTE = 2**20

# A process of its own each time: the peak of a process never goes down again.
EMBED = """
import resource, sys
from importlib.metadata import entry_points
(command,) = entry_points(group="console_scripts", name="embed-audio")
try:
    command.load()(sys.argv[1:])
except SystemExit as end:
    assert end.code == 0, end.code
unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
"""


def long_file(path: Path, minutes: int) -> Path:
    """Write noise minute by minute."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16") as file:
        for _ in range(minutes):
            file.write(0.1 * rng.standard_normal(60 * SAMPLE_RATE, dtype=np.float32))
    return path


def peak_bytes(path: Path, out: Path) -> int:
    """Embed a file along time at hop 50 ms with the first block of the default model; give the peak memory."""
    arguments = [str(path), "--timestamps", "--layer", "1", "--hop-ms", "50", "--out", str(out), "--quiet"]
    result = subprocess.run([sys.executable, "-c", EMBED, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no module resource to measure memory with")
def test_an_hour_needs_no_more_memory_than_ten_minutes_beyond_its_output(tmp_path):
    peaks, outputs = {}, {}
    for minutes in (10, 60):
        path = long_file(tmp_path / f"{minutes}.wav", minutes)
        peaks[minutes] = peak_bytes(path, tmp_path)
        path.unlink()
        output = path.with_suffix(".npz")
        outputs[minutes] = output.stat().st_size
        with np.load(output) as arrays:
            assert arrays["timestamps"][-1] == minutes * 60_000
            assert np.isfinite(arrays["embedding"][-1]).all()
    growth_beyond_output = (peaks[60] - peaks[10]) - (outputs[60] - outputs[10])
    assert growth_beyond_output < 200 * MEBIBYTE
