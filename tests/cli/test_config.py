"""Options from a file: `--config run.toml`."""

import re
from ast import literal_eval
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from hear_transformers.cli.config import configurable, read
from hear_transformers.cli.embed_audio import main as embed_audio_command
from hear_transformers.cli.hear_transformers import main as hear_transformers

PAGE = Path(__file__).parents[2] / "docs" / "shell.md"
Run = Callable[..., Result]


@click.command()
@click.argument("inputs", nargs=-1)
@click.option("--layer")
@click.option("--hop-ms", type=float)
@click.option("--epochs", type=click.IntRange(1))
@click.option("--kind", type=click.Choice(("a", "b")))
@click.option("--model", "models", multiple=True)
@click.option("--network", multiple=True, metavar="NAME=VALUE")
@click.option("--columns", multiple=True, metavar="NAME=COLUMN,...")
@click.option("--scene/--timestamps", default=None)
@click.option("--overwrite", is_flag=True)
@click.option("--out", required=True)
@configurable
def command(**given: Any) -> None:
    """Print what is given."""
    click.echo(repr({name: value for name, value in given.items() if value not in (None, (), False)}))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command with a file."""
    monkeypatch.chdir(tmp_path)

    def invoke(text: str, *arguments: str) -> Result:
        Path("run.toml").write_text(text, encoding="utf-8")
        return CliRunner().invoke(command, [*arguments, "--config", "run.toml"], prog_name="try")

    return invoke


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("layer = 8", {"layer": "8"}),
        ("layer = [4, 8, 'features']", {"layer": "4,8,features"}),
        ("hop-ms = 50", {"hop_ms": 50.0}),
        ("hop_ms = 12.5", {"hop_ms": 12.5}),
        ("model = ['tiny', 'passt/base']", {"models": ("tiny", "passt/base")}),
        ("model = 'tiny'", {"models": ("tiny",)}),
        ("overwrite = true", {"overwrite": True}),
        ("scene = true", {"scene": True}),
        ("timestamps = false", {"scene": True}),
        ("[network]\nstride = 16\nlayers = [1, 2]\nkind = 'x'", {"network": ("stride=16", "layers=[1, 2]", "kind=x")}),
        ("[columns]\npath = 'file'\nlabels = 'class'", {"columns": ("path=file,labels=class",)}),
        ("[[columns]]\npath = 'a'\n[[columns]]\npath = 'b'", {"columns": ("path=a", "path=b")}),
        ("kind = 'a'", {"kind": "a"}),
        ("\ufeff# nothing", {}),
    ],
)
def test_values_are_those_of_the_command_line(run: Run, text: str, given: dict[str, Any]) -> None:
    result = run(text, "--out", "x")
    assert result.exit_code == 0, result.output
    assert literal_eval(result.output) == {**given, "out": "x"}


def test_what_is_typed_wins(run: Run) -> None:
    text = "layer = 8\nmodel = ['tiny', 'passt']\nscene = true\nout = 'there'\n"
    result = run(text, "--layer", "4", "--model", "ast", "--timestamps", "--out", "here", "a.wav")
    assert literal_eval(result.output) == {"inputs": ("a.wav",), "layer": "4", "models": ("ast",), "out": "here"}


def test_a_required_option_may_be_in_the_file(run: Run) -> None:
    assert literal_eval(run("out = 'there'").output) == {"out": "there"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hopms = 50", "run.toml: key='hopms' is unknown; choose one of layer, hop-ms, "),
        ("hop_mz = 50", "did you mean hop-ms?"),
        ("help = true", "key='help' is unknown"),
        ("config = 'other.toml'", "key='config' is unknown"),
        ("inputs = ['clips']", "inputs is no option; what a command reads is typed: try clips/"),
        ("hop-ms = 'often'", "run.toml: hop-ms: 'often' is not a valid float"),
        ("hop-ms = [50, 100]", "run.toml: hop-ms: '50,100' is not a valid float"),
        ("epochs = 0", "run.toml: epochs: 0 is not in the range x>=1"),
        ("kind = 'c'", "run.toml: kind: 'c' is not one of 'a', 'b'"),
        ("overwrite = 1", "run.toml: overwrite: 1 is neither true nor false"),
        ("layer = true", "run.toml: layer: True is neither a number nor a text"),
        ("layer = 2026-01-01", "is neither a number nor a text"),
        ("scene = true\ntimestamps = true", "run.toml: timestamps is there twice, or beside its opposite"),
        ("hop-ms = 1\nhop_ms = 2", "is there twice"),
        ("layer = eight", "run.toml: is no TOML"),
    ],
)
def test_a_wrong_file_is_answered_with_file_key_and_choice(run: Run, text: str, message: str) -> None:
    result = run(text, "--out", "x")
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["--config", str(tmp_path / "none.toml"), "--out", "x"])
    assert result.exit_code == 2
    assert "none.toml: cannot be read" in result.stderr


LONG = {
    "embed-audio": [embed_audio_command],
    **{name: [hear_transformers, name] for name in ("train", "sweep", "probe")},
}


@pytest.mark.parametrize("name", LONG)
def test_long_commands_take_a_file(name: str, tmp_path: Path) -> None:
    main, *path = LONG[name]
    file = tmp_path / "run.toml"
    file.write_text("wrong = 1")
    result = CliRunner().invoke(main, [*path, "--config", str(file)])
    assert result.exit_code == 2
    assert "run.toml: key='wrong' is unknown" in result.stderr
    assert "--config FILE" in CliRunner().invoke(main, [*path, "--help"]).output


def test_the_example_of_the_page_is_true(tmp_path: Path) -> None:
    (example,) = re.findall("```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "run.toml").write_text(example)
    with click.Context(embed_audio_command, info_name="embed-audio") as context:
        given = read(context, str(tmp_path / "run.toml"))
    models, out = ["tiny", "mast"], "embeddings"
    assert given == {"models": models, "layer": "4,8", "segment": "3.0", "overwrite": True, "out": out}


def test_a_file_embeds_like_its_options(embed_audio: Any, audio_file: Any, tmp_path: Path) -> None:
    audio_file("a.wav")
    Path("run.toml").write_text('layer = [0, 5]\nsegment = 0.5\nout = "by_file"\n')
    assert embed_audio("a.wav", "--config", "run.toml").exit_code == 0
    assert embed_audio("a.wav", "--layer", "0,5", "--segment", "0.5", "--out", "typed").exit_code == 0
    one, other = (Path(folder, "a.npz").read_bytes() for folder in ("by_file", "typed"))
    assert len(one) == len(other) > 0
