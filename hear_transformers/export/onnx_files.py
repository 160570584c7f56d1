"""Models as ONNX files, in float32 and int8, which onnxruntime runs without PyTorch."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..embedding.embedder import Embedder
from ..errors import OptionError, import_extra
from ..files import atomic_path
from . import verification
from .choices import SameChoices, WithChoices, without_choices
from .portable import Exported, Portable, check, lengths
from .verification import TOLERANCE, Run, Written

INPUT, OUTPUT = "waveforms", "embeddings"
"""Names in the file."""

OPSET = 17
"""Version of ONNX's operators, the first with LayerNormalization: what most programs take."""

FRONTEND = "/frontend/"
"""Part of the names of the front end's nodes."""


def to_onnx(
    model: Embedder,
    path: str | os.PathLike[str],
    *,
    seconds: float | None = None,
    int8: bool = False,
    clips: Sequence[Tensor] = (),
) -> Written:
    """Write a model as an ONNX file, and check it beside PyTorch before it is there.

    The file takes waveforms (batch, samples) float32 at the model's rate, of any batch and any length up to one window,
    and returns what `Embedder.embed_scenes` does. Its metadata have what `Embedder.provenance` says, and lengths.

    Parameters
    ----------
    model : from a family's `load_model`, with the layers and the pooling wanted
    path : of the file; one that is there is replaced
    seconds : the one length that the file takes; None for any
    int8 : whether the weights of matrices are stored in 8 bits, and multiplied so
    clips : (samples,) each, at the model's rate, on which int8 is compared with float32; without any, synthetic ones

    Returns
    -------
    written : what was measured

    Raises
    ------
    OptionError : the model cannot be exported, ``seconds`` is outside what it takes, a package is missing, or
        onnxruntime differs from PyTorch by more than `TOLERANCE`
    """
    require()
    check(model)
    shortest, longest = lengths(model) if seconds is None else (fixed_length(model, seconds),) * 2
    with atomic_path(Path(path)) as unfinished:
        trace(model, unfinished, shortest, longest)
        truth = verification.by_pytorch(model)
        pair = SameChoices(outputs_of(unfinished), truth)
        shortest = shortest_of(pair, shortest, longest, model)
        shapes = {(2, shortest), (3, (shortest + 2 * longest) // 3 + 1), (1, longest)}
        if shortest == longest:
            shapes = {(1, longest), (3, longest)}
        found = verification.difference(pair.run, pair.truth, shapes, model.sample_rate)
        if found > TOLERANCE:
            advice = "give seconds, for a file of one length" if seconds is None else "please report this"
            raise OptionError(
                f"{'/'.join(model.name)} cannot be exported: onnxruntime differs from PyTorch by {found:.1e} of the "
                f"largest number, above {TOLERANCE:g}; {advice}"
            )
        prune(unfinished)
        run = by_onnxruntime(unfinished)
        cosine = None
        if int8:
            heard = clips or [*verification.example(4, longest, model.sample_rate)]
            heard = [clip[:longest] for clip in heard if len(clip) >= shortest]
            cosine = quantise(unfinished, run, heard)
            run = by_onnxruntime(unfinished)
        written = Written(
            path=Path(path),
            n_bytes=0,
            sample_rate=model.sample_rate,
            min_samples=shortest,
            max_samples=longest,
            size=model.scene_embedding_size,
            difference=found,
            time_ratio=verification.time_ratio(run, truth, longest, model.sample_rate),
            cosine=cosine,
        )
        describe(unfinished, model, written)
    return replace(written, n_bytes=Path(path).stat().st_size)


def require() -> None:
    """Raise OptionError that names the extra if a package is missing."""
    for package in ("onnx", "onnxruntime"):
        import_extra("an ONNX file", package, "onnx")


def fixed_length(model: Embedder, seconds: float) -> int:
    """Return a length in samples; raise OptionError if the model does not take it."""
    shortest, longest = lengths(model)
    n_samples = round(seconds * model.sample_rate)
    if not shortest <= n_samples <= longest:
        raise OptionError(
            f"seconds={seconds:g} is outside what {'/'.join(model.name)} reads at once; choose "
            f"{shortest / model.sample_rate:.3g} to {longest / model.sample_rate:g}"
        )
    return n_samples


def trace(model: Embedder, path: Path, shortest: int, longest: int) -> None:
    """Write the operations that PyTorch records as it embeds an example, for any batch and, unless equal, any length.

    The exporter that follows `torch.export` proves every length, which took minutes for twelve blocks; here other
    lengths are tried instead.
    """
    clips = verification.example(2, (shortest + 2 * longest) // 3, model.sample_rate)
    free = {0: "batch", 1: "samples"} if shortest < longest else {0: "batch"}
    try:
        # It says that other lengths may differ, and what comes after it; of errors it prints the whole graph.
        with quietly(), torch.no_grad(), Portable():
            torch.onnx.export(
                WithChoices(Exported(model)),
                (clips,),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: free, OUTPUT: {0: "batch"}},
            )
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        reason = str(error).strip().splitlines()[0]
        raise OptionError(f"{'/'.join(model.name)} cannot be exported to ONNX: {reason}") from error


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep an exporter from printing and warning."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def outputs_of(path: Path) -> Callable[[Tensor], list[Tensor]]:
    """Return what runs a file on the processor, with as many threads as PyTorch, and returns all its outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as well
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def run(waveforms: Tensor) -> list[Tensor]:
        return [torch.from_numpy(each) for each in session.run(None, {INPUT: waveforms.numpy()})]

    return run


def by_onnxruntime(path: Path) -> Run:
    """Return what runs a file, see `outputs_of`, and returns embeddings."""
    run = outputs_of(path)
    return lambda waveforms: run(waveforms)[0]


def prune(path: Path) -> None:
    """Remove what `WithChoices` returns beside the embedding from a file."""
    import onnx

    found = onnx.load(str(path))
    without_choices(found)
    onnx.save(found, str(path))


def shortest_of(pair: SameChoices, shortest: int, longest: int, model: Embedder) -> int:
    """Return the shortest length at which a file agrees: the model's, or as many times twice that as are needed.

    Of very short clips networks may do something else, such as ATGNN where there are fewer positions than neighbours.
    """
    while shortest < longest:
        try:
            if verification.difference(pair.run, pair.truth, [(1, shortest)], model.sample_rate) <= TOLERANCE:
                return shortest
        except Exception as error:  # onnxruntime has a class of its own for each of its codes
            logging.getLogger(__name__).debug("%d samples: %s", shortest, error)
        shortest = min(2 * shortest, longest)
    return shortest


def quantise(path: Path, exact: Run, clips: Sequence[Tensor]) -> float:
    """Store weights in 8 bits in place, but for those of the front end; return the least cosine to float32."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(str(path)).graph
    kept = [node.name for node in graph.node if FRONTEND in node.name or is_grouped(node)]
    with tempfile.TemporaryDirectory() as folder, quietly():
        result = Path(folder) / "int8.onnx"
        logging.disable(logging.WARNING)  # it advises to preprocess, which is for static quantisation
        try:
            quantize_dynamic(
                str(path),
                result,
                op_types_to_quantize=kinds(graph),
                per_channel=True,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=kept,
            )
        finally:
            logging.disable(logging.NOTSET)
        path.write_bytes(result.read_bytes())
    return verification.least_cosine(by_onnxruntime(path), exact, clips)


def is_grouped(node: Any) -> bool:
    """Return True for a convolution in groups: it has few weights, and 8 bits cost a MobileNet its cosine there."""
    return any(each.name == "group" and each.i > 1 for each in node.attribute)


def kinds(graph: Any) -> list[str]:
    """Return the operations whose weights are stored in 8 bits: matrices, and convolutions where these have most."""
    sizes = {each.name: len(each.raw_data) for each in graph.initializer}
    weights = {"MatMul": 0, "Gemm": 0, "Conv": 0}
    for node in graph.node:
        if node.op_type in weights and FRONTEND not in node.name:
            weights[node.op_type] += sum(sizes.get(name, 0) for name in node.input)
    matrices = ["MatMul", "Gemm"]
    return [*matrices, "Conv"] if weights["Conv"] > weights["MatMul"] + weights["Gemm"] else matrices


def describe(path: Path, model: Embedder, written: Written) -> None:
    """Write into the metadata of a file what it takes, returns and was made by, all as JSON."""
    import onnx

    found = onnx.load(str(path))
    onnx.helper.set_model_props(found, {name: json.dumps(value) for name, value in metadata(model, written).items()})
    found.graph.output[0].type.tensor_type.shape.dim[1].dim_value = written.size
    onnx.checker.check_model(found)
    onnx.save(found, str(path))


def metadata(model: Embedder, written: Written) -> dict[str, Any]:
    """Return what a file says of itself, ready for JSON."""
    named = "logits" in model.layers and len(model.layers) == 1 and model.labels is not None
    return {
        "input": {"name": INPUT, "shape": ["batch", "samples"]},
        "output": {"name": OUTPUT, "shape": ["batch", written.size]},
        "sample_rate": written.sample_rate,
        "min_samples": written.min_samples,
        "max_samples": written.max_samples,
        # Between windows of a clip that is longer than one, whose embedding is the mean.
        "hop_ms": model.variant.scene_hop_ms,
        "difference": written.difference,
        "int8_cosine": written.cosine,
        "provenance": model.provenance(),
        **({"labels": model.labels, "multi_label": model.multi_label} if named else {}),
    }
