"""The precision of a network: what its matrix products and convolutions compute in, and which one pays where.

PyTorch keeps the precision of float32 in flags of the process: cuDNN convolves in TF32 (10 bits of 23) unless it is
told not to, and `torch.set_float32_matmul_precision` allows TF32 on CUDA and bfloat16 on the CPU. Here the flags are
set around a computation and put back, so that float32 means float32 whatever the process has chosen.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import HearTransformersWarning
from .choices import check_choice

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "tf32": torch.float32,
}
"""Types of numbers by name. "tf32" is float32 whose factors CUDA rounds to 10 bits in products and convolutions."""

AUTO = "auto"
"""Not a precision but the wish for the fastest that is safe, see `resolve`."""

BRAIN_CAPABILITY = (8, 0)
"""First compute capability of NVIDIA (Ampere) with bfloat16 and TF32 (CUDA programming guide, tensor cores)."""

HALF_CAPABILITY = (7, 0)
"""First compute capability of NVIDIA (Volta) with tensor cores, which compute in float16."""

SLOWER = 1.2
"""Times as slow as float32 from which a precision is warned of; less is within the noise of a short measurement."""

MEASURED_SECONDS = 0.1
"""Time for which a computation is repeated in two precisions by turns; the fastest call of each counts."""

X86 = ("x86_64", "amd64", "i686")
"""Names of x86 by `platform.machine`, in small letters."""

EXACT, ROUNDED = "ieee", "tf32"
"""PyTorch's names for the two ways to multiply float32."""


# What the hardware has


def resolve(precision: str, device: torch.device) -> str:
    """Return the precision to compute in; "auto" is bfloat16 where the device has instructions for it, else float32.

    Never float16, which older cards have units for: it ends at 65504, where networks overflow and training needs its
    losses scaled. Never "tf32", which is no faster than bfloat16.

    Raises
    ------
    OptionError : the name is unknown
    """
    if precision == AUTO:
        return "bfloat16" if has_instructions("bfloat16", device) else "float32"
    check_choice("precision", precision)
    return precision


def has_instructions(precision: str, device: torch.device) -> bool:
    """Return True if a device multiplies in a precision itself, instead of by way of float32."""
    if precision == "float32":
        return True
    if device.type == "cuda":
        needed = HALF_CAPABILITY if precision == "float16" else BRAIN_CAPABILITY
        return torch.cuda.get_device_capability(device) >= needed
    # Of what an Apple GPU does in which generation PyTorch says nothing; float16 is not worth a list of CPUs.
    return device.type == "cpu" and precision == "bfloat16" and _cpu_has_bfloat16()


def _cpu_has_bfloat16() -> bool:
    """Return True on CPUs with AMX-BF16 or AVX512-BF16, and on ARM's with BF16, where oneDNN uses them."""
    # oneDNN knows what ONEDNN_MAX_CPU_ISA forbids; but on x86 it takes any AVX-512 for enough, and emulates the rest.
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    if platform.machine().lower() not in X86:
        return True
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


# How slow a choice is


class Slowdown(NamedTuple):
    """How many times as long as in float32 a matrix product and a convolution take."""

    product: float
    convolution: float


def slowdown(precision: str, device: torch.device) -> Slowdown:
    """Measure a precision on a device: for less than a second, once a process."""
    with _MEASURING:  # threads would measure each other
        return _measured(precision, str(device))


_MEASURING = threading.Lock()


@functools.cache
def _measured(precision: str, name: str) -> Slowdown:
    device = torch.device(name)
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(device)

    def ratio(compute: Callable[..., Tensor], *operands: Tensor) -> float:
        exact, chosen = _seconds(compute, operands, [each.to(PRECISIONS[precision]) for each in operands])
        return chosen / exact

    # The width of AST, and a block of PANNs: threads wait for each other a small part of the time.
    product = ratio(F.linear, noise(256, 768), noise(768, 768))
    return Slowdown(product, ratio(partial(F.conv2d, padding=1), noise(1, 128, 16, 16), noise(128, 128, 3, 3)))


@torch.no_grad()
def _seconds(compute: Callable[..., Tensor], *choices: Sequence[Tensor]) -> list[float]:
    """Return the least time of some calls with each choice of operands, the first of which warm up.

    They take turns, so that other work of the machine slows all of them.
    """
    times: list[list[float]] = [[] for _ in choices]
    while len(times[0]) < 3 or sum(map(sum, times)) < MEASURED_SECONDS:
        for operands, each in zip(choices, times, strict=True):
            start = time.perf_counter()
            with multiplying("float32"):
                compute(*operands).sum().item()  # waits for the device
            each.append(time.perf_counter() - start)
    return [min(each[1:]) for each in times]


def warn_if_slow(precision: str, device: torch.device) -> None:
    """Warn of a precision that a device has no instructions for, with the time that it takes here."""
    if has_instructions(precision, device):
        return
    if precision == "tf32":
        message = "is of NVIDIA cards from compute capability 8.0 on; the network computes in float32"
    else:
        factors = slowdown(precision, device)
        if max(factors) < SLOWER:
            return
        product, convolution = (f"{factor:.{0 if factor >= 10 else 1}f}" for factor in factors)
        message = (
            f"is slow on this {device.type}: a matrix product takes {product} times, a convolution {convolution} "
            "times as long as in float32 (measured); choose float32, or auto"
        )
    warnings.warn(f"precision={precision!r} {message}", HearTransformersWarning, stacklevel=2)


# The flags of the process


class Flags:
    """The flags of this process that choose how float32 is multiplied, and back to what they were.

    PyTorch 2.9 has a table of them, where "none" inherits: (backend, operation), then (backend, "all"), then
    ("generic", "all"); older flags live on beside it, and reading them raises RuntimeError where the two contradict
    each other. So both are set, to the same.
    """

    TABLE = (
        ("generic", "all"),
        *(("cuda", each) for each in ("all", "conv", "rnn", "matmul")),
        *(("mkldnn", each) for each in ("all", "conv", "rnn", "matmul")),
    )
    """Entries of the table, those that others inherit from first."""

    def __init__(self) -> None:
        self.has_table = hasattr(torch._C, "_get_fp32_precision_getter")  # PyTorch 2.9 and newer
        self.is_used = False

    def exchange(self, mode: str) -> Callable[[], None]:
        """Set all flags to `EXACT` or `ROUNDED` (on CUDA), and return what restores them."""
        if not self.is_used:
            self.is_used = True
            with warnings.catch_warnings():  # PyTorch 2.9.0 warns of the older flags, once a process
                warnings.simplefilter("ignore")
                self.exchange(mode)()
        table = [(entry, self._taken(*entry)) for entry in self.TABLE] if self.has_table else []
        for entry in (("cuda", "conv"), ("cuda", "rnn")) if self.has_table else ():
            torch._C._set_fp32_precision_setter(*entry, ROUNDED)
        try:
            convolves = torch._C._get_cudnn_allow_tf32()
        except RuntimeError:  # it contradicts the two
            convolves = False
        multiplies = torch.get_float32_matmul_precision()
        self._set(mode == ROUNDED, "high" if mode == ROUNDED else "highest")
        for backend, operation in self.TABLE[1:] if self.has_table else ():
            is_rounded = backend == "cuda" and mode == ROUNDED
            torch._C._set_fp32_precision_setter(backend, operation, ROUNDED if is_rounded else EXACT)

        def restore() -> None:
            self._set(convolves, multiplies)
            for entry, value in table:
                torch._C._set_fp32_precision_setter(*entry, value)

        return restore

    @staticmethod
    def _taken(backend: str, operation: str) -> str:
        """Return an entry of the table and empty it, so that those which inherit from it show their own."""
        value = torch._C._get_fp32_precision_getter(backend, operation)
        torch._C._set_fp32_precision_setter(backend, operation, "none")
        return value

    @staticmethod
    def _set(convolves: bool, multiplies: str) -> None:
        torch._C._set_cudnn_allow_tf32(convolves)
        torch.set_float32_matmul_precision(multiplies)


class Turns:
    """Shares the flags among threads: those that want the same go at once, others in the order of their coming."""

    def __init__(self) -> None:
        self.flags = Flags()
        self.condition = threading.Condition()
        self.waiting: deque[object] = deque()
        self.mode = EXACT
        self.count = 0  # threads inside
        self.restore: Callable[[], None] = lambda: None
        self.held = threading.local()  # mode: the one that this thread holds, or None

    def take(self, mode: str) -> None:
        """Wait until the flags are free or in this mode already, and hold them."""
        turn = object()
        with self.condition:
            self.waiting.append(turn)
            try:
                self.condition.wait_for(lambda: self.waiting[0] is turn and (not self.count or self.mode == mode))
                if not self.count:
                    self.restore = self.flags.exchange(mode)
                    self.mode = mode
                self.count += 1
            finally:
                self.waiting.remove(turn)
                self.condition.notify_all()

    def leave(self) -> None:
        """Release the flags; the last thread restores them."""
        with self.condition:
            self.count -= 1
            if not self.count:
                self.restore()
            self.condition.notify_all()

    @contextlib.contextmanager
    def inside(self, mode: str) -> Iterator[None]:
        """Hold the flags in a mode; a thread that holds them in the other one lets go of them meanwhile."""
        outer = getattr(self.held, "mode", None)
        try:
            self._hold(mode)
            yield
        finally:
            self._hold(outer)

    def _hold(self, mode: str | None) -> None:
        held = getattr(self.held, "mode", None)
        if held == mode:
            return
        self.held.mode = None
        if held is not None:
            self.leave()
        if mode is not None:
            self.take(mode)
        self.held.mode = mode


_TURNS = Turns()


def multiplying(precision: str) -> AbstractContextManager[None]:
    """Multiply float32 as a precision wants it until the block ends, whatever the flags of the process are.

    All but "tf32" want it exact. A thread waits while others want it otherwise.
    """
    return _TURNS.inside(ROUNDED if precision == "tf32" else EXACT)


@contextlib.contextmanager
def running(precision: str, device: torch.device) -> Iterator[None]:
    """Run a network that `preparation.prepare` made ready, also inside another's autocast; see `multiplying`."""
    with multiplying(precision), torch.autocast(device.type, enabled=False):
        yield


@contextlib.contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Train a float32 network in a precision until the block ends, by autocast; see `multiplying`."""
    dtype = PRECISIONS[precision]
    with multiplying(precision), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield
