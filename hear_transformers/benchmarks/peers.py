"""Our networks beside their authors' packages in one process: equal numbers first, then how much faster.

PaSST beside hear21passt, AST beside Hugging Face's transformers with its feature extractor, Cnn14 beside
panns_inference. Run ``make bench``, or ``python -m hear_transformers.benchmarks.peers --help``. Both sides hold the
same random weights. Seconds on a shared machine say little; the ratio of two neighbours in one run does.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import click
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .. import ast, hear, mast, panns, passt
from ..embedding import options
from ..embedding.embedder import Embedder
from ..embedding.external import silenced
from ..embedding.forward import PRECISIONS
from ..networks import counting
from ..networks.family import random_trunk

TOLERANCE = 1e-4  # of the largest magnitude, in float32; that of the golden answers
GEMM_SHAPE = (2048, 768, 3072)  # the larger matrix product of a PaSST block's MLP, over 2048 tokens
TIMED = ("float32", "bfloat16")  # precisions
MAST_SECONDS = 10.24  # the length of clip that the paper of MAST compares it with AST at
TOKEN_SCALE = 0.2  # standard deviation of the random embeddings of tokens and positions, as after training


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to time: "scene" or "timestamp" embeddings of a variant, on so much audio."""

    kind: str
    variant: str
    clips: int
    seconds: float


class Peer(Protocol):
    """Somebody else's package with random weights."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What is timed."""

    def embed(self, task: Task, audio: Tensor) -> Tensor:
        """Embed clips (clips, samples) as its users do: -> (clips, size) or (clips, times, size)."""

    def ours(self, variant: str, precision: str) -> Embedder:
        """Build our model of a variant with the same weights."""


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Contain the authors' packages, which print and warn."""
    with silenced(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Draw the same random weights every time, without touching the global seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def our_model(family: hear.Family, variant: str, weights: dict[str, Tensor], precision: str = "float32") -> Embedder:
    """Build our model of a variant with the weights of a peer, in the peer's layout."""
    row = family.variants[variant]
    trunk = random_trunk(family, row)
    adapted = {key: value for key, value in family.convert_state_dict(weights, row).items() if key not in family.unused}
    # A peer may lack the head.
    trunk.load_state_dict({**trunk.state_dict(), **adapted})
    return Embedder(trunk, options.choose(row, trunk), name=(family.name, variant), precision=precision)


class Hear21Passt:
    """The PaSST authors' HEAR modules.

    Parameters
    ----------
    device : where it runs
    """

    tasks = (
        Task("scene", "base", 1, 10),
        Task("scene", "base", 8, 4),
        Task("scene", "base", 1, 30),
        Task("timestamp", "base", 1, 10),
        Task("timestamp", "base", 8, 4),
        Task("timestamp", "base2levelmel", 1, 10),
    )

    def __init__(self, device: str) -> None:
        with contained(), seeded():
            wrapper = importlib.import_module("hear21passt.wrapper")
            preprocess = importlib.import_module("hear21passt.models.preprocess")
            models = importlib.import_module("hear21passt.models.passt")
            mel = preprocess.AugmentMelSTFT(
                n_mels=128,
                sr=32_000,
                win_length=800,
                hopsize=320,
                n_fft=1024,
                fmin=0.0,
                fmax=None,
                fmax_aug_range=2_000,
            )
            network = models.get_model("passt_s_swa_p16_128_ap476", pretrained=False)
            self.model = wrapper.PasstBasicWrapper(mel=mel, net=network).eval().to(device)

    def embed(self, task: Task, audio: Tensor) -> Tensor:
        """Call the function of the preset's module; see `Peer.embed`."""
        return embed(importlib.import_module(f"hear21passt.{task.variant}"), task, self.model, audio)

    def ours(self, variant: str, precision: str = "float32") -> Embedder:
        """See `Peer.ours`."""
        return our_model(passt.FAMILY, variant, self.model.net.state_dict(), precision)


class Transformers:
    """Hugging Face's AST with its feature extractor.

    Parameters
    ----------
    device : where it runs
    config : of its network, where that is not AST's own
    """

    tasks = (Task("scene", "audioset_10_10", 1, 10), Task("scene", "audioset_10_10", 8, 10))

    def __init__(self, device: str, **config: int) -> None:
        with contained(), seeded():
            transformers = importlib.import_module("transformers")
            self.extractor = transformers.ASTFeatureExtractor()
            self.model = transformers.ASTForAudioClassification(transformers.ASTConfig(**{"num_labels": 527, **config}))
            for parameter in self.model.audio_spectrogram_transformer.embeddings.parameters():
                # Its LayerNorms' epsilon, 1e-12, is not the authors' 1e-6: it shows in tokens near zero only.
                torch.nn.init.normal_(parameter, std=TOKEN_SCALE)
        self.model.eval().to(device)

    def embed(self, task: Task, audio: Tensor) -> Tensor:
        """Extract features, run the network without its classifier; see `Peer.embed`."""
        inputs = self.extractor(list(audio.cpu().numpy()), sampling_rate=16_000, return_tensors="pt")
        network = self.model.audio_spectrogram_transformer
        pooled: Tensor = network(inputs["input_values"].to(self.model.device)).pooler_output
        return pooled

    def ours(self, variant: str, precision: str = "float32") -> Embedder:
        """See `Peer.ours`."""
        return our_model(ast.FAMILY, variant, self.model.state_dict(), precision)


class PannsInference:
    """The PANNs authors' package.

    Parameters
    ----------
    device : where it runs
    network : name of its class
    """

    tasks = (Task("scene", "cnn14", 1, 10), Task("scene", "cnn14", 8, 10))

    def __init__(self, device: str, network: str = "Cnn14") -> None:
        with contained(), seeded():
            models = panns_inference_models()
            self.model = getattr(models, network)(
                sample_rate=32_000, window_size=1024, hop_size=320, mel_bins=64, fmin=50, fmax=14_000, classes_num=527
            )
        self.model.eval().to(device)

    def embed(self, task: Task, audio: Tensor) -> Tensor:
        """Run the network; see `Peer.embed`."""
        embedding: Tensor = self.model(audio)["embedding"]
        return embedding

    def ours(self, variant: str, precision: str = "float32") -> Embedder:
        """See `Peer.ours`."""
        return our_model(panns.FAMILY, variant, self.model.state_dict(), precision)


def panns_inference_models() -> types.ModuleType:
    """Import the networks of panns_inference without the package's own start, which downloads into the home folder."""
    name = "panns_inference"
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    package = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations or ())
    before = sys.modules.get(name)
    sys.modules[name] = package
    try:
        return importlib.import_module(f"{name}.models")
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


PEERS: dict[str, Callable[[str], Peer]] = {
    "hear21passt": Hear21Passt,
    "transformers": Transformers,
    "panns_inference": PannsInference,
}


def embed(module: Any, task: Task, model: Any, audio: Tensor) -> Tensor:
    """Call the function of a HEAR module that a task is about; give the embeddings."""
    result = getattr(module, f"get_{task.kind}_embeddings")(audio, model)
    embeddings: Tensor = result[0] if isinstance(result, tuple) else result
    return embeddings


def seconds_of(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Time functions in turns, as the machine has other work: the shortest run of each after a first."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(1 + repeats):
        for name, function in functions.items():
            synchronise()
            start = time.perf_counter()
            function()
            synchronise()
            times[name].append(time.perf_counter() - start)
    return {name: min(runs[1:]) for name, runs in times.items()}


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def gemm_peak(precision: torch.dtype, device: str) -> float:
    """Measure the machine's matrix product: FLOP/s."""
    rows, inner, columns = GEMM_SHAPE
    left, right = (torch.randn(shape, device=device).to(precision) for shape in ((rows, inner), (inner, columns)))
    return 2.0 * rows * inner * columns / seconds_of({"": lambda: left @ right}, 20)[""]


def run(task: Task, peer: Peer, repeats: int, device: str) -> list[str]:
    """Compare and time one task; give the lines of the table."""
    ours = {precision: peer.ours(task.variant, precision).to(device) for precision in TIMED}
    rate = ours["float32"].sample_rate
    generator = torch.Generator().manual_seed(0)
    audio = 0.1 * torch.randn(task.clips, int(task.seconds * rate), generator=generator).to(device)
    with contained(), torch.no_grad():
        expected = peer.embed(task, audio)
        sides = {"theirs": partial(peer.embed, task, audio)}
        sides.update({precision: partial(embed, hear, task, model, audio) for precision, model in ours.items()})
        seconds = seconds_of(sides, repeats)
    name = f"{task.kind}, {task.clips} x {task.seconds:g} s"
    lines = []
    for precision, model in ours.items():
        with FlopCounterMode(display=False) as counter:
            found = embed(hear, task, model, audio)
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        if precision == "float32" and error > TOLERANCE:
            raise click.ClickException(f"{name}, {task.variant}: numbers differ by {error:.1e} of the largest")
        flops = counter.get_total_flops() / seconds[precision]
        lines.append(
            f"{name:24}{task.variant:16}{precision:10}{seconds['theirs']:9.2f}{seconds[precision]:9.2f}"
            f"{seconds['theirs'] / seconds[precision]:8.2f}{error:10.1e}{flops / 1e9:10.0f}"
            f"{flops / gemm_peak(PRECISIONS[precision], device):8.0%}"
        )
    return lines


def compare_mast(repeats: int, device: str) -> Iterator[str]:
    """Time our MAST beside our AST, random weights: how much of its smaller number of operations becomes speed."""
    rows = {family.name: next(iter(family.variants.values())) for family in (ast.FAMILY, mast.FAMILY)}
    fewer = counting.count_macs(ast.FAMILY, rows["ast"]) / counting.count_macs(mast.FAMILY, rows["mast"])
    for clips in (1, 8):
        audio = 0.1 * torch.randn(clips, int(MAST_SECONDS * 16_000), generator=torch.Generator().manual_seed(0))
        for precision in TIMED:
            models = {
                family.name: our_model(family, next(iter(family.variants)), {}, precision).to(device)
                for family in (ast.FAMILY, mast.FAMILY)
            }
            sides = {name: partial(model.embed_scenes, audio.to(device)) for name, model in models.items()}
            seconds = seconds_of(sides, repeats)
            name = f"scene, {clips} x {MAST_SECONDS:g} s"
            yield (
                f"{name:24}{precision:10}{seconds['ast']:9.2f}{seconds['mast']:9.2f}"
                f"{seconds['ast'] / seconds['mast']:11.1f}{fewer:14.1f}"
            )


@click.command()
@click.option("--repeats", default=3, show_default=True, help="Runs of each side; the shortest counts.")
@click.option("--device", default="cpu", show_default=True, help="Where both sides run.")
@click.option("--peer", "names", type=click.Choice(list(PEERS)), multiple=True, help="Only this one.  [default: all]")
def main(repeats: int, device: str, names: tuple[str, ...]) -> None:
    """Time scene and timestamp embeddings (hop 50 ms) beside the packages of others."""
    click.echo(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device}; random weights, same both sides"
    )
    for name in names or PEERS:
        peer = PEERS[name](device)
        click.echo()
        click.echo(
            f"{f'beside {name}':24}{'variant':16}{'precision':10}{'theirs/s':>9}{'ours/s':>9}{'ratio':>8}{'error':>10}"
            f"{'GFLOP/s':>10}{'of GEMM':>8}"
        )
        for task in peer.tasks:
            for line in run(task, peer, repeats, device):
                click.echo(line)
    if not names:
        click.echo()
        click.echo(
            f"{'MAST beside our AST':24}{'precision':10}{'AST/s':>9}{'MAST/s':>9}{'x as fast':>11}{'x fewer MACs':>14}"
        )
        for line in compare_mast(repeats, device):
            click.echo(line)


if __name__ == "__main__":
    main()
