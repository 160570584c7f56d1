"""torchaudio, beside which front ends are tested where it can be installed."""

import importlib

import pytest


def installed() -> bool:
    """Return True if torchaudio loads; a release for another PyTorch raises more than ImportError."""
    try:
        importlib.import_module("torchaudio")
    except (ImportError, OSError, RuntimeError):
        return False
    return True


needs_torchaudio = pytest.mark.skipif(
    not installed(), reason="torchaudio is not installed, or not for this PyTorch: it has no release for 2.12 and later"
)
