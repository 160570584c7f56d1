"""How a network is run: the one place that decides the type of its numbers, their layout in memory, and compilation."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..networks import conv_norm, tensor_cores, winograd
from ..networks.fused import LayerNorm
from ..networks.trunk import Exact, Trunk
from .precision import PRECISIONS

Compute = Callable[[Tensor], dict[str, Tensor]]

KEPT = (nn.modules.batchnorm._BatchNorm, Exact)
"""Parts whose numbers stay float32. Batch normalisation takes and returns 16 bits all the same."""


def prepare(trunk: Trunk, precision: str) -> None:
    """Make a network ready to run in a precision.

    All its parameters are stored in 16 bits where it computes in 16 bits, so that nothing is converted in a forward
    pass, which autocast does for every normalisation and residual sum: on an H200 a quarter of the time of PaSST.
    PyTorch's kernels compute the statistics of LayerNorm, the softmax of attention and all sums in float32 anyhow.
    """
    if PRECISIONS[precision] != torch.float32:
        _cast(trunk, PRECISIONS[precision])


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Store the numbers of a module and its parts in a type, but for `KEPT`."""
    if isinstance(module, KEPT):
        return
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    for part in module.children():
        _cast(part, dtype)


COMPILED_CLIPS = 3_000_000
"""Clips of 10 s from which compiling pays on CUDA. On an H200 in bfloat16 it saves a clip of the MobileNet mn10 0.02 ms
(14,500 -> 20,900 clips/s), which repays about a minute; Cnn14 is as fast without."""


def compiling_pays(trunk: Trunk, n_clips: float, device: torch.device) -> bool:
    """Return True if compiling a network takes less time than it saves; `math.inf` clips repay any."""
    # On CPUs most of the time is spent in products and convolutions, which compiling leaves alone. Transformers have
    # kernels of their own (`networks.fused`), which are faster than compiled ones.
    has_kernels = any(isinstance(module, LayerNorm) for module in trunk.modules())
    return n_clips == math.inf or (not has_kernels and device.type == "cuda" and n_clips >= COMPILED_CLIPS)


_COPIES: WeakKeyDictionary[Trunk, tuple[Any, Trunk]] = WeakKeyDictionary()
"""Copies for inference, and the state of the network that each was made of, see `ready`."""

_COPYING = threading.Lock()


def ready(trunk: Trunk, precision: str, backend: str | None = None) -> Trunk:
    """Return what computes a network fastest: a copy of a convolutional one in inference, otherwise itself.

    The copy is made at the first use and once more whenever the network has other weights or another device. A network
    with hooks runs itself, so that they see what they were registered for.

    Parameters
    ----------
    trunk : from `prepare`
    precision : a key of `PRECISIONS`
    backend : of `torch.compile`, None to run as it is
    """
    if torch.is_grad_enabled() or trunk.training or torch.compiler.is_compiling() or not trunk.convolutional:
        return trunk
    modules, tensors = _contents(trunk)
    if any(map(_is_watched, modules)):
        return trunk
    state = precision, backend, [each.device for each in tensors], _state(tensors)
    with _COPYING:
        made_of, copied = _COPIES.get(trunk, (None, trunk))
        if made_of != state:
            copied = _copied(trunk, precision, is_compiled=backend is not None)
            if backend is not None:
                copied.compile(dynamic=True, backend=backend)
            _COPIES[trunk] = state, copied
    return copied


def _contents(module: nn.Module) -> tuple[list[nn.Module], list[Tensor]]:
    """Return a module with all its parts, and their parameters and buffers.

    Twelve times as fast as ``modules()`` and ``parameters()``, which name everything; these took as long as the card
    for a batch of a small network, and attributes of a module take twice as long as its dictionary. What is shared
    comes more than once.
    """
    modules: list[nn.Module] = [module]
    tensors: list[Tensor | None] = []
    for part in modules:
        held = vars(part)
        modules += [child for child in held["_modules"].values() if child is not None]
        tensors += held["_parameters"].values()
        tensors += held["_buffers"].values()
    return modules, [each for each in tensors if each is not None]


def evaluate(network: nn.Module) -> None:
    """Put a network with all its parts into evaluation mode.

    `eval` sets this everywhere, which takes a tenth of the time of a batch on a card; to look takes a tenth of that.
    """
    modules = [network]
    for part in modules:
        held = vars(part)  # see `_contents`
        if held["training"]:
            network.eval()
            return
        modules += [child for child in held["_modules"].values() if child is not None]


def _is_watched(module: nn.Module) -> bool:
    """Return True if a module has hooks or another forward than its class, which a copy would not call."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _state(tensors: Sequence[Tensor]) -> tuple[list[int], ...]:
    """Return which tensors these are, and how often each was changed in place."""
    try:
        versions = list(map(attrgetter("_version"), tensors))
    except RuntimeError:  # one was made in inference mode, where changes in place are not counted
        versions = [0 if each.is_inference() else each._version for each in tensors]
    return list(map(id, tensors)), versions


def _copied(trunk: Trunk, precision: str, is_compiled: bool) -> Trunk:
    """Copy a network for inference: fewer operations, features innermost in memory; other tensors are shared."""
    device = next(trunk.parameters()).device.type
    copied = conv_norm.fold(trunk)
    if device == "cpu" and PRECISIONS[precision] == torch.float32:
        winograd.replace_convolutions(copied)
    # A compiler joins the same operations in its own way.
    if device == "cuda" and PRECISIONS[precision] != torch.float32 and not is_compiled:
        tensor_cores.fuse(copied)
    # In float32 proper, cuDNN has its fastest convolutions for the usual layout.
    if device == "cpu" or (device == "cuda" and precision != "float32"):
        conv_norm.features_innermost(copied)
    return copied


# CUDA graphs

GRAPH_WORK = 7e10
"""Parameters times seconds of audio in a batch up to which a graph pays: batches of any size of the embedded model and
of MobileNets, 1,280 s of MAST, 800 s of PaSST. Starting its kernels takes MAST, which has 250, up to 50 ms beside an
H200, which computes 128 clips of 10 s in 33."""

MOST_GRAPHS = 8
"""Shapes of batches that are remembered for a network. Their graphs share the memory for what lies between."""

_GRAPHS: WeakKeyDictionary[nn.Module, Graphs] = WeakKeyDictionary()


def run(network: nn.Module, key: Hashable, compute: Compute, batch: Tensor, seconds: float) -> dict[str, Tensor]:
    """Return ``compute(batch)``, replayed from a graph of CUDA where that is faster.

    Parameters
    ----------
    network : that computes
    key : what the result depends on beside the network and the batch
    compute : from a batch to tensors by name
    batch : (batch, samples)
    seconds : of audio in the batch
    """
    if batch.device.type != "cuda" or torch.is_grad_enabled() or network.training or torch.compiler.is_compiling():
        return compute(batch)
    with _COPYING:
        graphs = _GRAPHS.get(network)
        if graphs is None:
            graphs = _GRAPHS[network] = Graphs(sum(each.numel() for each in network.parameters()))
    is_large = seconds * graphs.n_parameters > GRAPH_WORK
    # Graphs share memory, so they must not overlap.
    if is_large or torch.cuda.current_stream(batch.device) != torch.cuda.default_stream(batch.device):
        return compute(batch)
    tensors = _contents(network)[1]
    state = *_state(tensors), list(map(Tensor.data_ptr, tensors))
    return graphs.run((key, batch.shape), state, compute, batch)


@dataclass(frozen=True, slots=True)
class Recording:
    """A graph, the batch that it reads and what it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    outputs: dict[str, Tensor]

    def replay(self, batch: Tensor) -> dict[str, Tensor]:
        """Compute another batch of the same shape."""
        self.inputs.copy_(batch)
        self.graph.replay()
        return {name: output.clone() for name, output in self.outputs.items()}


class Graphs:
    """Records of what a network computes (`torch.cuda.graphs`), replayed as a whole.

    A batch of a shape seen for the first time is computed as usual, at the second time it is recorded. Where that is
    not possible, as something waits for the card or is copied to it, such batches are computed as usual for good.

    Parameters
    ----------
    n_parameters : numbers in the parameters of the network
    """

    def __init__(self, n_parameters: int) -> None:
        self.n_parameters = n_parameters
        self.lock = threading.Lock()
        self.seen: dict[Hashable, Recording | bool] = {}  # False if it cannot be recorded, True if it has yet to be
        self.state: object = None
        self.pool: Any = None

    def run(self, key: Hashable, state: object, compute: Compute, batch: Tensor) -> dict[str, Tensor]:
        """Return ``compute(batch)``; a graph of another `state` of the network is worthless."""
        with self.lock:  # the memory of a graph is that of one batch at a time
            if state != self.state:
                self.seen, self.state, self.pool = {}, state, None
            found = self.seen.get(key)
            if found is True:
                found = self.seen[key] = self._recorded(compute, batch) or False
            if isinstance(found, Recording):
                return found.replay(batch)
            if found is None:
                self._remember(key)
        return compute(batch)

    def _remember(self, key: Hashable) -> None:
        """Note that a shape was seen, instead of the first one that came once only."""
        if len(self.seen) == MOST_GRAPHS:
            once = next((other for other, found in self.seen.items() if found is True), None)
            if once is None:
                return
            del self.seen[once]
        self.seen[key] = True

    def _recorded(self, compute: Compute, batch: Tensor) -> Recording | None:
        """Record a computation; None if that is not possible."""
        with torch.cuda.device(batch.device):
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            inputs, graph, side = batch.clone(), torch.cuda.CUDAGraph(), torch.cuda.Stream()
            # Libraries choose their kernels and allocate at first use, which cannot be recorded.
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                compute(inputs)
            torch.cuda.current_stream().wait_stream(side)
            try:
                # What other threads do meanwhile is none of the graph's business.
                with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                    outputs = compute(inputs)
            except RuntimeError:
                return None
        return Recording(graph, inputs, outputs)
