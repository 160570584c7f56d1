"""Our networks beside their authors' packages in one process: equal numbers first, then the ratio of times.

PaSST beside hear21passt; AST, CLAP, HuBERT and Whisper beside Hugging Face's transformers with its feature extractors;
Cnn14 beside panns_inference, Dasheng beside dasheng, BEATs beside openbeats, S-SONDO beside ssondo, ATST-Frame beside
avex. Run ``make bench``, or ``python -m hear_transformers.benchmarks.peers --help``.
Both sides have the same random weights. On a shared machine seconds mean little; ratios within one run do.

Other families have no peer that can be installed. Of EAT, CED and PretrainedSED's networks (fPaSST, frame-MobileNets)
no package of the registry has the code: avex and transformers run EAT and CED only with code that is fetched beside the
weights. Of ATST the authors' audiossl 0.1 is older than ATST-Frame, and wants PyTorch 1.10.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import sys
import tempfile
import time
import types
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .. import ast, atst, beats, clap, dasheng, efficientat, hear, hf, panns, passt
from ..embedding import options
from ..embedding.embedder import Embedder
from ..embedding.external import silenced
from ..embedding.precision import PRECISIONS, has_instructions, multiplying
from ..networks.family import random_trunk
from .tables import check_card, echo_table

TOLERANCE = 1e-4  # relative to the largest magnitude, in float32; as for the golden answers
GEMM_SHAPE = (2048, 768, 3072)  # the larger matrix product of a PaSST block's MLP, over 2048 tokens
TIMED_PRECISIONS = ("float32", "bfloat16")
"""Where a device has instructions for them."""
TOKEN_SCALE = 0.2  # standard deviation of the random embeddings of tokens and positions, as after training


@dataclass(frozen=True, slots=True)
class Workload:
    """What to time: "scene" or "timestamp" embeddings of a variant, on a number of clips."""

    kind: str
    variant: str
    clips: int
    seconds: float


class Peer(ABC):
    """Another package with random weights: the workloads to time, our family, its model on a device."""

    workloads: tuple[Workload, ...]
    family: hear.Family
    model: Any

    @abstractmethod
    def embed(self, work: Workload, audio: Tensor) -> Tensor:
        """Embed clips (clips, samples) like its users: -> (clips, size) or (clips, times, size)."""

    def ours(self, variant: str, precision: str = "float32") -> Embedder:
        """Build our model of a variant with the same weights."""
        weights = {key: value.cpu() for key, value in self.model.state_dict().items()}
        return build_ours(self.family, variant, weights, precision)


@contextlib.contextmanager
def silence_peers() -> Iterator[None]:
    """Silence the authors' packages, which print and warn."""
    with silenced(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def fix_seed() -> Iterator[None]:
    """Draw the same random weights every time, leaving the global seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def build_ours(family: hear.Family, variant: str, weights: dict[str, Tensor], precision: str = "float32") -> Embedder:
    """Build our model of a variant with the weights of a peer, in the peer's layout."""
    row = family.variants[variant]
    trunk = random_trunk(family, row)
    adapted = {key: value for key, value in family.convert_state_dict(weights, row).items() if key not in family.unused}
    # A peer may lack the head.
    trunk.load_state_dict({**trunk.state_dict(), **adapted})
    return Embedder(trunk, options.choose(row, trunk), name=(family.name, variant), precision=precision)


class Hear21Passt(Peer):
    """The HEAR modules of PaSST's authors."""

    family = passt.FAMILY
    workloads = (
        Workload("scene", "base", 1, 10),
        Workload("scene", "base", 8, 4),
        Workload("scene", "base", 1, 30),
        Workload("timestamp", "base", 1, 10),
        Workload("timestamp", "base", 8, 4),
        Workload("timestamp", "base2levelmel", 1, 10),
    )

    def __init__(self, device: str) -> None:
        with silence_peers(), fix_seed():
            wrapper = importlib.import_module("hear21passt.wrapper")
            preprocess = importlib.import_module("hear21passt.models.preprocess")
            models = importlib.import_module("hear21passt.models.passt")
            mel = preprocess.AugmentMelSTFT(fmax_aug_range=2_000)  # other arguments of its modules are the defaults
            network = models.get_model("passt_s_swa_p16_128_ap476", pretrained=False)
            self.model = wrapper.PasstBasicWrapper(mel=mel, net=network).eval().to(device)

    def embed(self, work: Workload, audio: Tensor) -> Tensor:
        """Call the function of the preset's module; see `Peer.embed`."""
        return call_hear(importlib.import_module(f"hear21passt.{work.variant}"), work, self.model, audio)

    def ours(self, variant: str, precision: str = "float32") -> Embedder:
        """Build our model; see `Peer.ours`."""
        return build_ours(self.family, variant, self.model.net.state_dict(), precision)


class Transformers(Peer):
    """Hugging Face's AST with its feature extractor; `config` is that of its network where it differs from AST's."""

    family = ast.FAMILY
    workloads = (Workload("scene", "audioset_10_10", 1, 10), Workload("scene", "audioset_10_10", 8, 10))

    def __init__(self, device: str, **config: int) -> None:
        with silence_peers(), fix_seed():
            transformers = importlib.import_module("transformers")
            self.extractor = transformers.ASTFeatureExtractor()
            self.model = transformers.ASTForAudioClassification(transformers.ASTConfig(**{"num_labels": 527, **config}))
            for parameter in self.model.audio_spectrogram_transformer.embeddings.parameters():
                # Its LayerNorms' epsilon is 1e-12, the authors' 1e-6: they differ for tokens near zero only.
                torch.nn.init.normal_(parameter, std=TOKEN_SCALE)
        self.model.eval().to(device)

    def embed(self, work: Workload, audio: Tensor) -> Tensor:
        """Extract features, run the network without its classifier; see `Peer.embed`."""
        inputs = self.extractor(list(audio.cpu().numpy()), sampling_rate=16_000, return_tensors="pt")
        return self.model.audio_spectrogram_transformer(inputs["input_values"].to(self.model.device)).pooler_output


class TransformersClap(Peer):
    """Hugging Face's CLAP with its feature extractor; `config` is that of its audio tower where it differs."""

    family = clap.FAMILY
    workloads = (Workload("scene", "clap-htsat-unfused", 1, 10), Workload("scene", "clap-htsat-unfused", 8, 10))

    def __init__(self, device: str, **config: Any) -> None:
        with silence_peers(), fix_seed():
            transformers = importlib.import_module("transformers")
            self.extractor = transformers.ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc")
            self.model = transformers.ClapAudioModelWithProjection(transformers.ClapAudioConfig(**config))
            for name, parameter in self.model.named_parameters():
                if name.endswith("relative_position_bias_table"):  # zeros
                    torch.nn.init.normal_(parameter)
        self.model.eval().to(device)

    def embed(self, work: Workload, audio: Tensor) -> Tensor:
        """Extract features, run the network; see `Peer.embed`."""
        inputs = self.extractor(list(audio.cpu().numpy()), sampling_rate=48_000, return_tensors="pt")
        return self.model(inputs["input_features"].to(self.model.device)).audio_embeds


class TransformersEncoder(Peer):
    """A network of Hugging Face that `hf` runs too, with its feature extractor; `sizes` are of its configuration."""

    kind: str
    sizes: Mapping[str, int]
    extractor_kind: str

    def __init__(self, device: str, **sizes: Any) -> None:
        with silence_peers(), fix_seed():
            transformers = importlib.import_module("transformers")
            self.extractor = getattr(transformers, self.extractor_kind)()
            config = getattr(transformers, f"{self.kind}Config")(**{**self.sizes, **sizes})
            model = getattr(transformers, f"{self.kind}Model")(config)
        self.model = (model.get_encoder() if config.is_encoder_decoder else model).eval().to(device)

    def embed(self, work: Workload, audio: Tensor) -> Tensor:
        """Extract features, run the network, and average over what was heard; see `Peer.embed`."""
        inputs = self.extractor(list(audio.cpu().numpy()), sampling_rate=16_000, return_tensors="pt")
        features = inputs[self.model.main_input_name].to(self.model.device)
        states = self.model(features, output_hidden_states=True).last_hidden_state
        return states[:, : self.count(audio.shape[1])].mean(1)

    def count(self, n_samples: int) -> int | None:
        """Count the positions within a clip, where the network has more."""
        return None

    def ours(self, variant: str, precision: str = "float32") -> Embedder:
        """Build our model; see `Peer.ours`."""
        trunk = hf.Encoder(copy.deepcopy(self.model).cpu(), self.extractor, self.extractor.sampling_rate)
        return Embedder(trunk, hf.readouts_of(trunk), name=(hf.NAME, variant), precision=precision)


class TransformersHubert(TransformersEncoder):
    """HuBERT, in the size of ``facebook/hubert-base-ls960``."""

    workloads = (Workload("scene", "hubert-base", 1, 10), Workload("scene", "hubert-base", 8, 10))
    kind, extractor_kind = "Hubert", "Wav2Vec2FeatureExtractor"
    sizes: Mapping[str, int] = {}  # the default


class TransformersWhisper(TransformersEncoder):
    """The encoder of Whisper, in the size of ``openai/whisper-base``; a clip is filled up to 30 s."""

    workloads = (
        Workload("scene", "whisper-base", 1, 10),
        Workload("scene", "whisper-base", 8, 10),
        Workload("scene", "whisper-base", 1, 30),
    )
    kind, extractor_kind = "Whisper", "WhisperFeatureExtractor"
    sizes: Mapping[str, int] = {
        "d_model": 512,
        **{
            f"{part}_{name}": size
            for part in ("encoder", "decoder")
            for name, size in (("layers", 6), ("attention_heads", 8), ("ffn_dim", 2048))
        },
    }

    def count(self, n_samples: int) -> int:
        """Count positions, 20 ms each, the first at the start."""
        return -(-n_samples // 320)


class PannsInference(Peer):
    """The PANNs authors' package; `network` is the name of a class there."""

    family = panns.FAMILY
    workloads = (Workload("scene", "cnn14", 1, 10), Workload("scene", "cnn14", 8, 10))

    def __init__(self, device: str, network: str = "Cnn14") -> None:
        with silence_peers(), fix_seed():
            models = import_panns_inference()
            self.model = getattr(models, network)(
                sample_rate=32_000, window_size=1024, hop_size=320, mel_bins=64, fmin=50, fmax=14_000, classes_num=527
            )
        self.model.eval().to(device)

    def embed(self, work: Workload, audio: Tensor) -> Tensor:
        """Run the network; see `Peer.embed`."""
        return self.model(audio)["embedding"]


class DashengPackage(Peer):
    """The package of Dasheng's authors; `config` is that of its network where it differs from the base one."""

    family = dasheng.FAMILY
    workloads = (Workload("scene", "dasheng_base", 1, 10), Workload("scene", "dasheng_base", 8, 10))

    def __init__(self, device: str, **config: int) -> None:
        with silence_peers(), fix_seed():
            networks = importlib.import_module("dasheng.pretrained.pretrained")
            patches = {"target_length": 1008, "patch_size": [64, 4], "patch_stride": [64, 4]}
            self.model = networks.Dasheng(**{"embed_dim": 768, "depth": 12, "num_heads": 12, **patches, **config})
        self.model.eval().to(device)

    def embed(self, work: Workload, audio: Tensor) -> Tensor:
        """Run the network; see `Peer.embed`."""
        return self.model(audio).mean(1)


class OpenBeats(Peer):
    """OpenBEATs' package, whose network is that of BEATs; `config` is that of the network where it differs from it."""

    family = beats.FAMILY
    workloads = (Workload("scene", "iter1", 1, 10), Workload("scene", "iter1", 8, 10))

    def __init__(self, device: str, **config: int) -> None:
        with silence_peers(), fix_seed():
            encoder = importlib.import_module("openbeats.beats_encoder").BeatsEncoder
            of_beats = {"deep_norm": True, "relative_position_embedding": True, "gru_rel_pos": True}
            self.model = encoder(0, beats_config={**of_beats, "max_distance": 800, "conv_bias": False, **config})
        self.model.eval().to(device)

    def embed(self, work: Workload, audio: Tensor) -> Tensor:
        """Run the network, and average over its tokens; see `Peer.embed`."""
        tokens, *_ = self.model(audio, torch.full((len(audio),), audio.shape[1], device=audio.device))
        return tokens.mean(1)


class Ssondo(Peer):
    """The package of S-SONDO's authors, without the download."""

    family = efficientat.FAMILY
    workloads = (Workload("scene", "matpac_mobilenetv3", 1, 10), Workload("scene", "matpac_mobilenetv3", 8, 10))
    network = "MobileNetV3"

    def __init__(self, device: str) -> None:
        with silence_peers(), fix_seed():
            parts, preprocess = (importlib.import_module(f"ssondo.{name}") for name in ("model", "preprocess"))
            network = importlib.import_module(f"ssondo.models.{self.network}.model").get_model()
            student = parts.ModelWrapper(network, nn.Identity())  # without the projection
            slicer = preprocess.SliceAudio(sr=32_000, window_length=10, step_size=10)
            mel = {"win_length": 0.032, "hop_length": 0.016, "f_min": 50, "f_max": 16_000}
            logmel = preprocess.LogMelSpectrogram(sample_rate=32_000, **mel)
            self.model = parts.SsondoWrapper(student, slicer, logmel)
        self.model.eval().to(device)

    def embed(self, work: Workload, audio: Tensor) -> Tensor:
        """Run the network; see `Peer.embed`."""
        return self.model.get_embeddings(audio)

    def ours(self, variant: str, precision: str = "float32") -> Embedder:
        """Build our model; see `Peer.ours`."""
        weights = self.model.student_model.model.state_dict(prefix=efficientat.IN_SSONDO)
        return build_ours(self.family, variant, weights, precision)


class SsondoDymn(Ssondo):
    """The same with a DyMN."""

    workloads = (Workload("scene", "matpac_dymn", 1, 10), Workload("scene", "matpac_dymn", 8, 10))
    network = "dymn"


class Avex(Peer):
    """The ATST-Frame of Earth Species Project's avex, in the one size that it builds."""

    family = atst.FAMILY
    workloads = (Workload("scene", "frame_small", 1, 10), Workload("scene", "frame_small", 8, 10))

    def __init__(self, device: str) -> None:
        with silence_peers(), fix_seed(), tempfile.TemporaryDirectory() as folder:
            self.package = importlib.import_module("avex.models.atst_frame.atst_frame")
            nothing = Path(folder) / "nothing.pt"
            torch.save({}, nothing)  # it takes what a file has
            self.model = self.package.load_model(str(nothing), device)
        self.model.eval()

    def embed(self, work: Workload, audio: Tensor) -> Tensor:
        """Call its function; see `Peer.embed`."""
        return self.package.get_scene_embedding(audio, self.model)


def import_panns_inference() -> types.ModuleType:
    """Import the networks of panns_inference without its __init__, which downloads into the home folder."""
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


PEERS = {
    "hear21passt": Hear21Passt,
    "transformers": Transformers,
    "transformers-clap": TransformersClap,
    "transformers-hubert": TransformersHubert,
    "transformers-whisper": TransformersWhisper,
    "panns_inference": PannsInference,
    "dasheng": DashengPackage,
    "openbeats": OpenBeats,
    "ssondo": Ssondo,
    "ssondo-dymn": SsondoDymn,
    "avex": Avex,
}

ALONE = ("avex",)
"""What is not in our extra "bench": avex installs forty packages for cloud storage and ONNX, and does not say that its
ATST-Frame imports pytorch-lightning and einops."""


def call_hear(module: Any, work: Workload, model: Any, audio: Tensor) -> Tensor:
    """Call the HEAR function for a workload, and return the embeddings."""
    result = getattr(module, f"get_{work.kind}_embeddings")(audio, model)
    return result[0] if isinstance(result, tuple) else result


def time_in_turns(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Time functions in turns, as the machine may be shared; return the shortest run of each, without the first."""
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


def measure_gemm(precision: torch.dtype, device: str, shape: tuple[int, int, int] = GEMM_SHAPE) -> float:
    """Measure the machine's matrix product in FLOP/s: (rows, inner) times (inner, columns)."""
    rows, inner, columns = shape
    left, right = (torch.randn(shape, device=device).to(precision) for shape in ((rows, inner), (inner, columns)))
    return 2.0 * rows * inner * columns / time_in_turns({"": lambda: left @ right}, 20)[""]


COLUMNS = (
    *("task", "model", "beside", "theirs ms", "ours ms", "float32", "error"),
    *("bfloat16 ms", "bfloat16", "of GEMM peak"),
)


def compare(work: Workload, name: str, peer: Peer, repeats: int, device: str) -> list[str]:
    """Compare and time one workload, and return its row of the table."""
    timed = [each for each in TIMED_PRECISIONS if has_instructions(each, torch.device(device))]
    ours = {precision: peer.ours(work.variant, precision).to(device) for precision in timed}
    rate = ours["float32"].sample_rate
    generator = torch.Generator().manual_seed(0)
    audio = 0.1 * torch.randn(work.clips, int(work.seconds * rate), generator=generator).to(device)
    with silence_peers(), torch.no_grad(), multiplying("float32"):
        sides = {"theirs": partial(peer.embed, work, audio)}
        sides.update({precision: partial(call_hear, hear, work, model, audio) for precision, model in ours.items()})
        # A peer may answer from the CPU.
        expected, found = (sides[side]().cpu() for side in ("theirs", "float32"))
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        if not error <= TOLERANCE:
            raise click.ClickException(f"{work.kind}, {work.variant}: numbers differ by {error:.1e} of the largest")
        seconds = time_in_turns(sides, repeats)
        shares = [gemm_share(sides[each], seconds[each], each, device) for each in timed]
    theirs, exact = seconds["theirs"], seconds["float32"]
    brain = seconds.get("bfloat16")
    return [
        *(f"{work.kind}, {work.clips} x {work.seconds:g} s", f"`{'/'.join(ours['float32'].name)}`", name),
        *(milliseconds(theirs), milliseconds(exact), f"{theirs / exact:.2f}x", f"{error:.1e}"),
        *((milliseconds(brain), f"{theirs / brain:.2f}x") if brain else ("", "")),
        ", ".join(shares),
    ]


def milliseconds(seconds: float) -> str:
    """Format a time in ms, to a tenth where it is short."""
    return f"{1000 * seconds:.{1 if seconds < 0.1 else 0}f}"


def gemm_share(embed: Callable[[], Any], seconds: float, precision: str, device: str) -> str:
    """Return the arithmetic of a call as a share of what the machine's matrix product does meanwhile."""
    with FlopCounterMode(display=False) as counter:
        embed()
    return f"{counter.get_total_flops() / seconds / measure_gemm(PRECISIONS[precision], device):.0%}"


@click.command()
@click.option("--repeats", default=3, show_default=True, help="Runs of each side; the fastest counts.")
@click.option("--device", default="cpu", show_default=True, help="Device of both sides.")
@click.option(
    "--peer",
    "names",
    type=click.Choice(list(PEERS)),
    multiple=True,
    help=f"Only this package.  [default: all but {', '.join(ALONE)}]",
)
def main(repeats: int, device: str, names: tuple[str, ...]) -> None:
    """Time scene and timestamp embeddings (hop 50 ms) beside other packages; print tables for weights/benchmarks.md."""
    check_card(device)
    click.echo(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device}; the same random weights\n")

    faults: list[str] = []

    def rows() -> Iterator[list[str]]:
        for name in names or [each for each in PEERS if each not in ALONE]:
            try:
                peer = PEERS[name](device)
            except ModuleNotFoundError as error:
                faults.append(f"{name} is left out: {error}")
                continue
            for work in peer.workloads:
                try:
                    yield compare(work, name, peer, repeats, device)
                except Exception as error:  # the others are compared all the same
                    faults.append(f"{name}: {error}")

    echo_table(COLUMNS, rows())
    if faults:
        raise click.ClickException("; ".join(faults))


if __name__ == "__main__":
    main()
