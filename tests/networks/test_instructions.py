"""The switches of `make test-oldest` act; without them the libraries run the instructions that they prefer."""

import os
import subprocess
import sys

import pytest
import torch

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="no MKL: not an x86 processor"),
]

PRODUCT_AND_CONVOLUTION = """
import torch
torch.randn(64, 64) @ torch.randn(64, 64)
with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
    torch.nn.functional.conv2d(torch.randn(8, 64, 64, 64), torch.randn(64, 64, 3, 3))
"""


def test_pytorch_runs_what_it_is_told_to():
    capability = torch.backends.cpu.get_cpu_capability()
    assert capability == os.environ.get("ATEN_CPU_CAPABILITY", capability).upper()


@pytest.mark.slow
def test_mkl_and_onednn_run_what_they_are_told_to():
    printed = subprocess.run(
        [sys.executable, "-c", PRODUCT_AND_CONVOLUTION],
        env={**os.environ, "MKL_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (product,) = (line for line in printed.splitlines() if "SGEMM(N,N,64,64,64" in line)
    (convolution,) = (line for line in printed.splitlines() if ",exec,cpu,convolution," in line)
    # Conditional numerical reproducibility, of which a branch for all processors is the strictest kind.
    assert f"CNR:{os.environ.get('MKL_CBWR', 'OFF')} " in product
    assert f",jit:{os.environ.get('ONEDNN_MAX_CPU_ISA', '').lower()}" in convolution
