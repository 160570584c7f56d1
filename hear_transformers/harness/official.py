"""HEAR's official programs, unmodified, on today's Python, PyTorch, NumPy and Lightning.

    python -m hear_transformers.harness.official embeddings MODULE --tasks-dir TASKS ...
    python -m hear_transformers.harness.official predictions EMBEDDINGS/MODULE/* ...
    python -m hear_transformers.harness.official validate MODULE ...

These are heareval 2021.1.3 (github.com/hearbenchmark/hear-eval-kit) and hearvalidator 2021.0.2
(github.com/hearbenchmark/hear-validator), Apache-2.0. No file of theirs changes: what has changed around them since
2021 is put right from outside, for the process that runs one of them. Importing this module changes nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, wraps
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import click

from ..cli.failures import Failure, guarded
from ..cli.parsing import parse_object

NEEDS = (
    "heareval",
    "dcase_util",
    "intervaltree",
    "more_itertools",
    "pandas",
    "pytorch_lightning",
    "sed_eval",
    "slugify",
    "torchinfo",
)
"""What of heareval and its requirements the package itself does not need."""


def require(*packages: str) -> None:
    """Fail clearly unless packages are installed."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise Failure(
            f"HEAR's harness is not installed for {sys.executable}: it lacks {', '.join(missing)}; `make hear` and "
            "`make test` install it into the environment .venv-hear beside ours, see the Makefile for how",
            1,
        )


# What has changed around the programs


class TensorFlow(ModuleType):
    """What the programs use of TensorFlow: a class that no model is of, and whether it sees a GPU."""

    __version__ = "0"
    Module = type("Module", (), {})
    test = SimpleNamespace(is_gpu_available=lambda *_, **__: True)

    def __init__(self) -> None:
        super().__init__("tensorflow")
        self.__spec__ = ModuleSpec("tensorflow", None)  # torch looks for it, and one that is None is an error

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"tensorflow.{name}", name=name, obj=self)


def without_tensorflow() -> None:
    """Let programs for two frameworks run with one of them.

    embeddings/runner.py:13, embeddings/task_embeddings.py:35 and hearvalidator/validate.py:21 import TensorFlow, only
    to ask whether a model is of it: ModuleNotFoundError without its 1.9 GB, seconds lost with it, and ValueError
    (runner.py:21) with one that does not see the GPU that PyTorch sees. So a stand-in is needed where TensorFlow is
    installed as well, and this much of one is enough.
    """
    sys.modules["tensorflow"] = TensorFlow()


def without_pkg_resources() -> None:
    """Let dcase_util be imported where setuptools no longer has pkg_resources.

    score.py:16 imports dcase_util, whose utils/utils.py:12 imports pkg_resources, which setuptools 82 dropped:
    ModuleNotFoundError. Nothing of it is called, so an empty module is enough.
    """
    if importlib.util.find_spec("pkg_resources") is None:
        sys.modules["pkg_resources"] = ModuleType("pkg_resources")


def names_of_gpus_are_bytes() -> None:
    """Give names of GPUs as they were given.

    gpu_max_mem.py:50 decodes what nvmlDeviceGetName gives, which is text since nvidia-ml-py 11.515: AttributeError
    behind the first task on a machine with CUDA, before .done.embeddings is written. gpu_max_mem.py:15 binds the
    function when it is imported, so it is wrapped where it comes from.
    """
    import torch

    if not torch.cuda.is_available():
        return
    import pynvml

    given = pynvml.nvmlDeviceGetName

    @wraps(given)
    def in_bytes(*arguments: Any) -> bytes:
        name = given(*arguments)
        return name.encode() if isinstance(name, str) else name

    pynvml.nvmlDeviceGetName = in_bytes


def checkpoints_hold_classes() -> None:
    """Let checkpoints be loaded that hold more than weights.

    predictions/task_predictions.py:1050 and Lightning at :1105 load what this process has written a moment before.
    Among the settings are classes such as BatchNorm1d, which torch.load refuses since 2.6: UnpicklingError. This
    variable is PyTorch's own way to trust files (pytorch.org/docs/stable/notes/serialization.html).
    """
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"


def trainers_take_gpus() -> None:
    """Accept Trainer(gpus=...).

    predictions/task_predictions.py:1016 passes it; Lightning 2 has "accelerator" and "devices": TypeError.
    """
    import pytorch_lightning

    class Trainer(pytorch_lightning.Trainer):  # type: ignore[misc]
        """Lightning's trainer with Lightning 1's argument for GPUs."""

        def __init__(self, *, gpus: Any = None, **options: Any) -> None:
            super().__init__(accelerator="gpu" if gpus else "cpu", devices=gpus or 1, **options)

    pytorch_lightning.Trainer = Trainer


def epochs_end_with_outputs() -> None:
    """Call validation_epoch_end and test_epoch_end with what the steps of the epoch gave.

    predictions/task_predictions.py:301 and :304 define them; Lightning 2 does not call them and refuses models that
    have them: NotImplementedError. Its hooks on_validation_epoch_end and on_test_epoch_end have no outputs, so the
    steps' are kept until then.
    """
    from heareval.predictions.task_predictions import AbstractPredictionModel as Model

    for stage in ("validation", "test"):
        _collect(Model, f"{stage}_step", f"{stage}_epoch_end")


def _collect(model: Any, step_name: str, end_name: str) -> None:
    """Make a hook of what ends an epoch, called with the outputs of the steps before."""
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


def epochs_can_be_set() -> None:
    """Let an epoch be set for the test.

    predictions/task_predictions.py:1102 sets fit_loop.current_epoch, so that at :431 a test finds the postprocessing of
    the best epoch. Since Lightning 1.6 the epoch is read from fit_loop.epoch_progress, and what is set is lost:
    KeyError at the test of every event task, after all training (hear-eval-kit issue 432). A property under that name
    is the least that leads there.
    """
    from pytorch_lightning.loops import fit_loop

    def get(loop: Any) -> int:
        return loop.epoch_progress.current.completed

    def put(loop: Any, epoch: int) -> None:
        loop.epoch_progress.current.completed = epoch

    fit_loop._FitLoop.current_epoch = property(get, put)


def mel_filters_take_positions(arguments: Sequence[str]) -> None:
    """Let HEAR's baseline, hearbaseline 2021.1.1, make its mel filters, if the arguments name it.

    naive.py:53 passes the sample rate by position; librosa.filters.mel takes keywords only since 0.10: TypeError.
    """
    if not any(argument.split(".")[0] == "hearbaseline" for argument in arguments):
        return
    import librosa

    given = librosa.filters.mel
    librosa.filters.mel = lambda sr, **options: given(sr=sr, **options)


@contextlib.contextmanager
def clear_about_tensorflow() -> Iterator[None]:
    """Say that modules for TensorFlow are not supported, where one meets the stand-in."""
    try:
        yield
    except (ImportError, AttributeError) as error:
        is_stand_in = isinstance(getattr(error, "obj", None), TensorFlow)
        if not is_stand_in and str(error.name).split(".")[0] != "tensorflow":
            raise
        raise Failure(
            f"the module needs TensorFlow ({error}); HEAR's programs run here without it, for modules for PyTorch only",
            1,
        ) from error


# The validator


def validate(
    module: str, weights: str = "", device: str | None = None, options: Mapping[str, Any] | None = None
) -> None:
    """Run hear-validator, which prints what it checks.

    It goes beyond the original in two points. The registry's only release allows 16, 22.05, 44.1 and 48 kHz, and at any
    other rate fails by an AttributeError of its own (validate.py:120); the newest source allows 32 kHz, and so does
    this. And `load_model` is given options, for which the original has none.

    Parameters
    ----------
    module : name of the module
    weights : checkpoint for its `load_model`, empty for its own default
    device : where the model is moved; None for CUDA if there is one
    options : keyword arguments for its `load_model`

    Raises
    ------
    hearvalidator.validate.ModelError : a rule is broken
    """
    from hearvalidator.validate import ValidateModel

    class Validator(ValidateModel):  # type: ignore[misc]
        """HEAR's, with 32 kHz and with options."""

        module: Any
        ACCEPTABLE_SAMPLE_RATE = (*ValidateModel.ACCEPTABLE_SAMPLE_RATE, 32_000)

        def import_model(self) -> None:
            """Import the module, and bind the options to its `load_model`."""
            super().import_model()
            if options and hasattr(self.module, "load_model"):
                load_model = partial(self.module.load_model, **options)
                self.module = SimpleNamespace(**{**vars(self.module), "load_model": load_model})

    Validator(module, weights, device=device)()
    click.echo("Looks good!")


# The commands


@click.group()
def main() -> None:
    """Run an official program of HEAR.

    Arguments of embeddings and predictions are those of heareval.embeddings.runner and heareval.predictions.runner, see
    their --help.
    """


def passed_on(command: Callable[[tuple[str, ...]], None]) -> click.Command:
    """Make a command that is given all arguments as they are, --help included."""
    given = click.argument("arguments", nargs=-1, type=click.UNPROCESSED)(command)
    return main.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)(given)


@main.command()
def check() -> None:
    """Check that the programs are installed."""
    require(*NEEDS)


@passed_on
def embeddings(arguments: tuple[str, ...]) -> None:
    """Embed tasks: heareval.embeddings.runner."""
    require(*NEEDS)
    without_tensorflow()
    names_of_gpus_are_bytes()
    mel_filters_take_positions(arguments)
    from heareval.embeddings import runner

    with clear_about_tensorflow():
        runner.runner(arguments, prog_name="embeddings")


@passed_on
def predictions(arguments: tuple[str, ...]) -> None:
    """Learn from embeddings, and score: heareval.predictions.runner."""
    require(*NEEDS)
    without_pkg_resources()
    names_of_gpus_are_bytes()
    checkpoints_hold_classes()
    trainers_take_gpus()
    epochs_end_with_outputs()
    epochs_can_be_set()
    from heareval.predictions import runner

    runner.runner(arguments, prog_name="predictions")


@main.command("validate")
@click.argument("module")
@click.option("--model", "-m", "weights", default="", metavar="FILE", help="Checkpoint for its load_model.")
@click.option("--device", "-d", metavar="NAME", help="cpu, cuda.  [default: CUDA if there is one]")
@click.option(
    "--model-options", default="{}", metavar="JSON", help="More for its load_model: '{\"pretrained\": false}'"
)
@guarded
def validate_command(module: str, weights: str, device: str | None, model_options: str) -> None:
    """Check that a MODULE follows the HEAR API: hear-validator.

    Where files of weights cannot be had, '{"pretrained": false}' gives random ones, with modules of this package.
    """
    options = parse_object("--model-options", model_options, '{"pretrained": false}')
    require("hearvalidator")
    without_tensorflow()
    mel_filters_take_positions([module])
    from hearvalidator.validate import ModelError

    try:
        with clear_about_tensorflow():
            validate(module, weights, device, options)
    except ModelError as error:
        raise Failure(str(error), 1) from error


if __name__ == "__main__":
    main()
