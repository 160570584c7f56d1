"""torchaudio, beside which front ends are tested where one for this PyTorch is installed."""

from importlib import metadata

import pytest
import torch


def installed() -> bool:
    """Return True if torchaudio's release is that of this PyTorch; that it then loads is for the tests to find."""
    try:
        release = metadata.version("torchaudio")
    except metadata.PackageNotFoundError:
        return False
    return release.split(".")[:2] == torch.__version__.split(".")[:2]


needs_torchaudio = pytest.mark.skipif(not installed(), reason="torchaudio is not installed, or not for this PyTorch")
