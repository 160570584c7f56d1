"""Front ends against what their authors compute, in the same process: Kaldi's features, torch.stft, convolutions."""

import importlib.util
import math
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from hear_transformers import atgnn, beats, efficientat, panns, passt
from hear_transformers.networks import fused
from hear_transformers.networks.frontend import (
    AST_MEL,
    XIAOMI_MEL,
    CpjkuMel,
    KaldiMel,
    PannsMel,
    htk_filters,
    kaldi_filters,
    slaney_filters,
)
from tests.helpers.torchaudio import needs_torchaudio

pytestmark = pytest.mark.numeric

TOLERANCE = 1e-6  # in the unit of the network's input; 2.4e-7 was found, with AVX2 and without

TOLERANCE_DB = 5e-5  # 8e-6 was found, a unit in the last place at -100 dB

CPJKU_MELS = sorted(
    {
        row.frontend
        for family in (efficientat, passt)
        for row in family.VARIANTS.values()
        if isinstance(row.frontend, CpjkuMel)
    },
    key=lambda spec: (-spec.sample_rate, repr(spec)),
)

PANNS_MELS = sorted(
    {
        row.frontend
        for row in panns.VARIANTS.values()
        if isinstance(row.frontend, PannsMel) and row.frontend.decimation == 1
    },
    key=repr,
)


def noise(clips: int, n_samples: int) -> torch.Tensor:
    """Make noise at three levels: full scale, 40 dB below it, silence."""
    samples = torch.rand(clips, n_samples, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return samples * torch.tensor([1.0, 0.01, 0.0])[:clips, None]


def kaldis(spec: KaldiMel, clip: torch.Tensor) -> torch.Tensor:
    """Compute the features of one clip as the authors of AST, ATGNN and BEATs do: (n_mels, frames)."""
    from torchaudio.compliance import kaldi

    fbank = kaldi.fbank(
        clip[None] * spec.full_scale,
        htk_compat=True,
        sample_frequency=16_000,
        use_energy=False,
        window_type="hanning" if spec.window_power == 1 else "povey",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )
    return (fbank.T - spec.mean) / spec.scale


def cpjkus(spec: CpjkuMel, clips: torch.Tensor) -> torch.Tensor:
    """Compute what `AugmentMelSTFT` does in evaluation mode, EfficientAT's or PretrainedSED's: (clips, n_mels, frames).

    The window of frame-wise PaSST is PyTorch's, that of frame-MobileNets symmetric.
    """
    from torchaudio.compliance import kaldi

    kernel = torch.tensor([[[-0.97, 1.0]]])
    emphasised = torch.nn.functional.conv1d(clips[:, None], kernel)[:, 0]
    is_sed = spec.sample_rate == 16_000
    n_fft, win_length, fmax = (512, 400, 7_000.0) if is_sed else (1024, 800, 15_000.0)
    window = torch.hann_window(win_length, periodic=spec == passt.VARIANTS["fpasst_ssl"].frontend)
    spectrum = torch.stft(emphasised, n_fft, spec.hop_length, win_length, window, center=True, return_complex=True)
    power = torch.view_as_real(spectrum).square().sum(-1)
    filters, _ = kaldi.get_mel_banks(spec.n_mels, n_fft, spec.sample_rate, 0.0, fmax, 100.0, -500.0, 1.0)
    mel = torch.nn.functional.pad(filters, (0, 1)) @ power
    return ((mel.clamp(min=1e-7) if is_sed else mel + 1e-5).log() + 4.5) / 5


def torchlibrosas(spec: PannsMel, clips: torch.Tensor) -> torch.Tensor:
    """Compute what `Spectrogram` and `LogmelFilterBank` do in evaluation mode, in dB: (clips, n_mels, frames)."""
    angles = 2 * np.pi / spec.n_fft * np.outer(np.arange(spec.n_fft // 2 + 1), np.arange(spec.n_fft))
    window = torch.hann_window(spec.n_fft, dtype=torch.float64).numpy()
    padded = torch.nn.functional.pad(clips[:, None], (spec.n_fft // 2, spec.n_fft // 2), mode="reflect")
    real, imag = (
        torch.nn.functional.conv1d(padded, torch.from_numpy(wave * window).float()[:, None], stride=spec.hop_length)
        for wave in (np.cos(angles), -np.sin(angles))
    )
    mel = (real**2 + imag**2).transpose(1, 2) @ slaney_filters(spec)
    return 10 * mel.clamp(min=1e-10).log10().transpose(1, 2)


# Sample rates with sizes of the transform; bands with edges as shares of the Nyquist frequency: those in use, narrow
# bands of a single bin or none, few wide ones.
SPECTRA = [(8_000, 256), (11_025, 400), (16_000, 512), (22_050, 1_024), (32_000, 1_024), (44_100, 2_048), (48_000, 512)]
BANDS = [(128, 0.0, 1.0), (128, 0.0, 15 / 16), (64, 0.003, 0.875), (40, 0.0025, 1.0), (4, 0.2, 0.4), (256, 0.5, 1.0)]


@needs_torchaudio
@pytest.mark.parametrize(("sample_rate", "n_fft"), SPECTRA)
def test_filters_are_kaldis(sample_rate, n_fft):
    from torchaudio.compliance.kaldi import get_mel_banks

    for n_mels, low, high in BANDS:
        fmin, fmax = low * sample_rate / 2, high * sample_rate / 2
        spec = replace(AST_MEL, sample_rate=sample_rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax)
        expected, _ = get_mel_banks(n_mels, n_fft, sample_rate, fmin, fmax, 100.0, -500.0, 1.0)
        filters = kaldi_filters(spec)
        torch.testing.assert_close(filters[:-1], expected.T, rtol=0, atol=TOLERANCE)
        assert not filters[-1].any()


@needs_torchaudio
@pytest.mark.parametrize("n_samples", [400, 559, 560, 16_000, 48_123])
@pytest.mark.parametrize("spec", [AST_MEL, atgnn.ATGNN_MEL, beats.BEATS_MEL], ids=["ast", "atgnn", "beats"])
def test_fbank_is_kaldis(spec, n_samples):
    clips = noise(3, n_samples)
    for clip, fbank in zip(clips, spec.build()(clips), strict=True):
        torch.testing.assert_close(fbank, kaldis(spec, clip), rtol=0, atol=TOLERANCE)


@needs_torchaudio
@pytest.mark.slow
@pytest.mark.parametrize("n_samples", [1_024, 5_120, 32_000, 48_123])
@pytest.mark.parametrize("spec", CPJKU_MELS, ids=lambda spec: f"{spec.sample_rate}-hop{spec.hop_length}-{spec.n_mels}")
def test_mel_is_that_of_augment_mel_stft(spec, n_samples):
    clips = noise(3, n_samples)
    torch.testing.assert_close(spec.build()(clips), cpjkus(spec, clips), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("spec", PANNS_MELS, ids=lambda spec: f"{spec.sample_rate}-{spec.n_mels}")
def test_mel_is_that_of_torchlibrosa(spec):
    clips = noise(3, 48_123)
    torch.testing.assert_close(spec.build()(clips), torchlibrosas(spec, clips), rtol=0, atol=TOLERANCE_DB)


@needs_torchaudio
@pytest.mark.parametrize("n_samples", [257, 480, 48_123])
def test_mel_is_torchaudios(n_samples):
    from torchaudio import functional, transforms

    spec = XIAOMI_MEL
    sizes = {"n_fft": spec.n_fft, "win_length": spec.win_length, "hop_length": spec.hop_length, "n_mels": spec.n_mels}
    power = transforms.MelSpectrogram(spec.sample_rate, **sizes, f_min=spec.fmin, f_max=spec.fmax)
    decibels = transforms.AmplitudeToDB(top_db=spec.range_db)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "At least one mel filterbank has all zero values")
        filters = functional.melscale_fbanks(257, spec.fmin, spec.fmax, spec.n_mels, spec.sample_rate)
        assert torch.equal(htk_filters(spec), filters)
        for clip, mel in zip(noise(3, n_samples), spec.build()(noise(3, n_samples)), strict=True):
            torch.testing.assert_close(mel, decibels(power(clip)), rtol=0, atol=TOLERANCE_DB)


@needs_torchaudio
@pytest.mark.parametrize("n_samples", [1_024, 1_535, 48_123])
def test_mel_of_ssondo_is_torchaudios(n_samples):
    from torchaudio import transforms

    power = transforms.MelSpectrogram(
        32_000, 1024, 1024, 512, 50.0, 16_000.0, n_mels=128, center=False, norm="slaney", mel_scale="slaney"
    )
    clips = noise(3, n_samples)
    # Their filters are made in float32, ours in float64 and then rounded: 4.6e-5 was found in single bins.
    torch.testing.assert_close(efficientat.SSONDO_MEL.build()(clips), (power(clips) + 1e-3).log(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("n_samples", [400, 559, 560, 719, 720, 16_000])
def test_frames_of_kaldi_are_counted_right(n_samples):
    n_frames = AST_MEL.build()(torch.zeros(1, n_samples)).shape[2]
    assert AST_MEL.n_frames(n_samples) == n_frames
    assert AST_MEL.n_samples(n_frames) <= n_samples <= AST_MEL.max_samples(n_frames)


# Kernels of our own

SHORT = CPJKU_MELS[0]
"""For an interpreter."""

INTERPRETED = """
import numpy as np
from hear_transformers.networks import frontend, kernels
from tests.networks.test_frontend import SHORT, noise

for n_samples in (SHORT.min_samples, 1_600):
    waveforms = noise(2, n_samples)
    frontend.kernels_for = lambda tensor: None
    expected = SHORT.build()(waveforms)
    frontend.kernels_for = lambda tensor: kernels
    np.testing.assert_allclose(SHORT.build()(waveforms), expected, rtol=0, atol=1e-6)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="PyTorch comes without Triton here")
def test_kernels_compute_the_same_where_triton_is_interpreted():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True, env=environment)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("n_samples", [CPJKU_MELS[0].min_samples, 32_001])
@pytest.mark.parametrize("spec", [*CPJKU_MELS, *PANNS_MELS, XIAOMI_MEL], ids=str)
@torch.no_grad()
def test_kernels_of_a_card_are_as_exact_as_pytorch(spec, n_samples, monkeypatch):
    frontend, waveforms = spec.build(), noise(2, n_samples)
    exact = spec.build().double()(waveforms.double())
    errors = []
    for fewest in (1, math.inf):
        monkeypatch.setattr(fused, "FEWEST_NUMBERS", fewest)
        errors.append((frontend.cuda()(waveforms.cuda()).cpu() - exact).abs().max().item())
    assert errors[0] <= max(2 * errors[1], TOLERANCE)
