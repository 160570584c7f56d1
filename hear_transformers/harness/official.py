"""HEAR's official programs, unmodified, on today's Python, PyTorch, NumPy and Lightning.

These are heareval 2021.1.3 (github.com/hearbenchmark/hear-eval-kit) and hearvalidator 2021.0.2
(github.com/hearbenchmark/hear-validator), Apache-2.0. None of their files is changed: whatever has changed around them
since 2021 is patched from outside, in the process that runs one of them. Importing this module changes nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial, wraps
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

from ..errors import HearTransformersError

NEEDS = (
    "heareval", "dcase_util", "intervaltree", "more_itertools", "pandas", "pytorch_lightning", "sed_eval", "slugify",
    "torchinfo",
)  # fmt: skip
"""heareval, and those of its requirements that this package does not share."""


def require(*packages: str) -> None:
    """Raise HearTransformersError unless packages are installed."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise HearTransformersError(
            f"HEAR's harness is not installed for {sys.executable}: it lacks {', '.join(missing)}; `make hear` and "
            "`make test` install it into the environment .venv-hear beside ours, see the Makefile for how"
        )


# Patches for what has changed around the programs


class TensorFlow(ModuleType):
    """All that the programs use of TensorFlow: a class that no model is an instance of, and whether it sees a GPU."""

    __version__ = "0"
    Module = type("Module", (), {})
    test = SimpleNamespace(is_gpu_available=lambda *_, **__: True)

    def __init__(self) -> None:
        super().__init__("tensorflow")
        self.__spec__ = ModuleSpec("tensorflow", None)  # torch looks for it, and fails on None

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"tensorflow.{name}", name=name, obj=self)


def patch_tensorflow() -> None:
    """Replace TensorFlow by a stand-in.

    embeddings/runner.py:13, embeddings/task_embeddings.py:35 and hearvalidator/validate.py:21 import TensorFlow, only
    to ask whether a model is made with it: ModuleNotFoundError without its 1.9 GB, seconds lost with it, and
    ValueError (runner.py:21) with one that does not see the GPU that PyTorch sees. So the stand-in is needed even where
    TensorFlow is installed.
    """
    sys.modules["tensorflow"] = TensorFlow()


def patch_pkg_resources() -> None:
    """Provide the pkg_resources that dcase_util imports.

    score.py:16 imports dcase_util, whose utils/utils.py:12 imports pkg_resources, which setuptools 82 dropped:
    ModuleNotFoundError. It calls nothing there, so an empty module is enough.
    """
    if importlib.util.find_spec("pkg_resources") is None:
        sys.modules["pkg_resources"] = ModuleType("pkg_resources")


def patch_gpu_names() -> None:
    """Return names of GPUs as bytes again.

    gpu_max_mem.py:50 decodes the result of nvmlDeviceGetName, which is text since nvidia-ml-py 11.515: AttributeError
    after the first task on a machine with CUDA, before .done.embeddings is written. gpu_max_mem.py:15 binds the
    function on import, so it is wrapped in its own module.
    """
    import torch

    if not torch.cuda.is_available():
        return
    import pynvml

    original = pynvml.nvmlDeviceGetName

    @wraps(original)
    def get_name_as_bytes(*arguments: Any) -> bytes:
        name = original(*arguments)
        return name.encode() if isinstance(name, str) else name

    pynvml.nvmlDeviceGetName = get_name_as_bytes


def patch_checkpoint_loading() -> None:
    """Allow torch.load to read checkpoints that hold more than weights.

    predictions/task_predictions.py:1050 and Lightning at :1105 load files that this process has just written. Their
    settings include classes such as BatchNorm1d, which torch.load refuses since 2.6: UnpicklingError. This variable is
    PyTorch's own way to trust files (pytorch.org/docs/stable/notes/serialization.html).
    """
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"


def patch_trainer() -> None:
    """Accept Trainer(gpus=...).

    predictions/task_predictions.py:1016 passes it; Lightning 2 has "accelerator" and "devices": TypeError.
    """
    import pytorch_lightning

    class Trainer(pytorch_lightning.Trainer):  # type: ignore[misc]
        """Lightning's trainer with Lightning 1's argument for GPUs."""

        def __init__(self, *, gpus: Any = None, **options: Any) -> None:
            super().__init__(accelerator="gpu" if gpus else "cpu", devices=gpus or 1, **options)

    pytorch_lightning.Trainer = Trainer


def patch_epoch_ends() -> None:
    """Call validation_epoch_end and test_epoch_end with the outputs of the epoch's steps.

    predictions/task_predictions.py:301 and :304 define them; Lightning 2 does not call them and refuses models that
    have them: NotImplementedError. Its hooks on_validation_epoch_end and on_test_epoch_end receive no outputs, so those
    of the steps are collected for them.
    """
    from heareval.predictions.task_predictions import AbstractPredictionModel

    for stage in ("validation", "test"):
        _collect(AbstractPredictionModel, f"{stage}_step", f"{stage}_epoch_end")


def _collect(model: Any, step_name: str, end_name: str) -> None:
    """Turn a method that ends an epoch into Lightning's hook, and call it with the outputs of the steps before."""
    step, end = getattr(model, step_name), getattr(model, end_name)
    outputs: list[Any] = []

    @wraps(step)
    def collecting_step(self: Any, *arguments: Any) -> None:
        outputs.append(step(self, *arguments))

    def on_end(self: Any) -> None:
        collected = outputs.copy()
        outputs.clear()
        end(self, collected)

    setattr(model, step_name, collecting_step)
    setattr(model, f"on_{end_name}", on_end)
    delattr(model, end_name)


def patch_current_epoch() -> None:
    """Make fit_loop.current_epoch writable.

    predictions/task_predictions.py:1102 sets it, so that at :431 a test finds the postprocessing of the best epoch.
    Since Lightning 1.6 the epoch is read from fit_loop.epoch_progress, and the assignment is lost: KeyError at the test
    of every event task, after all training (hear-eval-kit issue 432). A property forwards it.
    """
    from pytorch_lightning.loops import fit_loop

    def get(loop: Any) -> int:
        return loop.epoch_progress.current.completed

    def put(loop: Any, epoch: int) -> None:
        loop.epoch_progress.current.completed = epoch

    fit_loop._FitLoop.current_epoch = property(get, put)


def patch_mel_filters(arguments: Sequence[str]) -> None:
    """Accept the sample rate by position in librosa.filters.mel, if the arguments name HEAR's baseline.

    naive.py:53 of hearbaseline 2021.1.1 passes it so; since librosa 0.10 only keywords are allowed: TypeError.
    """
    if not any(argument.split(".")[0] == "hearbaseline" for argument in arguments):
        return
    import librosa

    original = librosa.filters.mel
    librosa.filters.mel = lambda sr, **options: original(sr=sr, **options)


@contextlib.contextmanager
def explain_tensorflow() -> Iterator[None]:
    """Re-raise errors of modules that need TensorFlow as HearTransformersError."""
    try:
        yield
    except (ImportError, AttributeError) as error:
        is_stand_in = isinstance(getattr(error, "obj", None), TensorFlow)
        if not is_stand_in and str(error.name).split(".")[0] != "tensorflow":
            raise
        raise HearTransformersError(
            f"the module needs TensorFlow ({error}); HEAR's programs run here without it, for modules for PyTorch only"
        ) from error


# The programs


def run_embeddings(arguments: Sequence[str]) -> None:
    """Run heareval.embeddings.runner with its own arguments; it ends the process.

    Raise HearTransformersError if the harness is not installed, or the module is for TensorFlow.
    """
    require(*NEEDS)
    patch_tensorflow()
    patch_gpu_names()
    patch_mel_filters(arguments)
    from heareval.embeddings import runner

    with explain_tensorflow():
        runner.runner(arguments, prog_name="embeddings")


def run_predictions(arguments: Sequence[str]) -> None:
    """Run heareval.predictions.runner with its own arguments; it ends the process."""
    require(*NEEDS)
    patch_pkg_resources()
    patch_gpu_names()
    patch_checkpoint_loading()
    patch_trainer()
    patch_epoch_ends()
    patch_current_epoch()
    from heareval.predictions import runner

    runner.runner(arguments, prog_name="predictions")


def validate(
    module: str, weights: str = "", device: str | None = None, options: Mapping[str, Any] | None = None
) -> None:
    """Run hear-validator, which prints each of its checks.

    It differs from the original in two points. The registry's only release allows 16, 22.05, 44.1 and 48 kHz, and at
    any other rate fails with an AttributeError of its own (validate.py:120); the newest source allows 32 kHz, and so
    does this. And `load_model` receives options, for which the original has no argument.

    Parameters
    ----------
    module : name of the module
    weights : checkpoint for its `load_model`, empty for its own default
    device : where the model is moved; None for CUDA if available
    options : keyword arguments for its `load_model`

    Raises
    ------
    HearTransformersError : a rule is broken, hear-validator is not installed, or the module is for TensorFlow
    """
    require("hearvalidator")
    patch_tensorflow()
    patch_mel_filters([module])
    from hearvalidator.validate import ModelError, ValidateModel

    class Validator(ValidateModel):  # type: ignore[misc]
        """HEAR's, with 32 kHz and with options."""

        module: Any
        ACCEPTABLE_SAMPLE_RATE = (*ValidateModel.ACCEPTABLE_SAMPLE_RATE, 32_000)

        def import_model(self) -> None:
            """Import the module and bind the options to its `load_model`."""
            super().import_model()
            if options and hasattr(self.module, "load_model"):
                load_model = partial(self.module.load_model, **options)
                self.module = SimpleNamespace(**{**vars(self.module), "load_model": load_model})

    try:
        with explain_tensorflow():
            Validator(module, weights, device=device)()
    except ModelError as error:
        raise HearTransformersError(str(error)) from error
