"""Shells complete models, variants, layers, words and files; without PyTorch."""

import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest
from click.shell_completion import CompletionItem, ShellComplete
from hear_transformers.cli.completion import PROGRAMS, SHELLS
from hear_transformers.cli.embed_audio import main as embed_audio
from hear_transformers.cli.hear_transformers import main as hear_transformers

from hear_transformers import FAMILIES, OPEN_FAMILIES, catalogue
from hear_transformers.embedding.choices import CHOICES

COMMANDS: dict[str, click.Command] = {"embed-audio": embed_audio, "hear-transformers": hear_transformers}


def items(line: str) -> list[CompletionItem]:
    """Complete the last word of a line."""
    program, *words, incomplete = line.split(" ")
    return ShellComplete(COMMANDS[program], {}, program, "").get_completions(words, incomplete)


def completed(line: str) -> list[str]:
    return [item.value for item in items(line)]


@pytest.mark.parametrize(
    "line", ["embed-audio --model ", "hear-transformers train --model ", "hear-transformers info "]
)
def test_models_are_families(line: str) -> None:
    assert completed(line) == [*FAMILIES, *OPEN_FAMILIES]
    assert items(line)[0].help == FAMILIES["tiny"]


def test_a_family_that_is_begun_comes_with_its_variants() -> None:
    found = completed("embed-audio --model pa")
    assert found[:3] == ["passt", "panns", "passt/base"]
    assert set(found) == {
        "passt",
        "panns",
        *(f"{name}/{key}" for name in ("passt", "panns") for key in catalogue.sizes()[name]),
    }


def test_variants_are_models_too() -> None:
    assert completed("hear-transformers download mn0") == ["mn01_as", "mn02_as", "mn04_as", "mn05_as"]
    assert "base" not in completed("embed-audio --model bas")  # of two families


def test_variants_are_those_of_the_model() -> None:
    assert completed("embed-audio --model mast --variant ") == [*catalogue.sizes()["mast"]]
    assert completed("embed-audio --model mast/mini --variant m") == [
        name for name in catalogue.sizes()["mast"] if name.startswith("m")
    ]
    assert completed("hear-transformers info passt hop160") == ["hop160base", "hop160base2lvl", "hop160base2lvlmel"]
    assert "cnn14" in completed("embed-audio --variant cnn")


def layers(family: str, variant: str) -> list[str]:
    return [row[0] for row in catalogue.sizes()[family][variant]["layers"]]


@pytest.mark.parametrize(
    ("line", "model"),
    [
        ("embed-audio --layer ", ("tiny", "tiny")),
        ("embed-audio --model passt --layer ", ("passt", "base")),
        ("embed-audio a.wav --model mn10_as --layer ", ("efficientat", "mn10_as")),
        ("embed-audio --model passt --variant fpasst_strong --layer ", ("passt", "fpasst_strong")),
        ("hear-transformers probe clips --out x --model panns/cnn14 --layer ", ("panns", "cnn14")),
        ("hear-transformers explain --model atst --layer ", ("atst", "frame_strong")),
    ],
)
def test_layers_are_those_of_the_model(line: str, model: tuple[str, str]) -> None:
    assert completed(line) == [*layers(*model), "all", "-1"]


def test_layers_of_several_models_are_those_of_any() -> None:
    found = completed("embed-audio --model tiny --model panns --layer ")
    assert {*layers("tiny", "tiny"), *layers("panns", "cnn14")} < set(found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("embed-audio --layer 4,1", ["4,1", "4,10", "4,11", "4,12"]),
        ("embed-audio --layer 4,5,f", ["4,5,features"]),
        ("hear-transformers sweep clips --model tiny --layers 4+fea", ["4+features"]),
        ("embed-audio --pool mean,m", ["mean,max", "mean,meanmax", "mean,meanstd"]),
        ("embed-audio --model unknown --layer ", []),
        ("embed-audio --model hf --layer ", []),
        ("hear-transformers compare tiny ast clips --layer ", []),  # of an argument, which is not known yet
        ("hear-transformers compare ti", ["tiny", "tiny/tiny"]),
    ],
)
def test_the_last_of_a_list_is_completed(line: str, found: list[str]) -> None:
    assert completed(line) == found


@pytest.mark.parametrize("option", CHOICES)
def test_words_are_those_that_are_checked(option: str) -> None:
    assert completed(f"embed-audio --{option} ") == [*CHOICES[option]]


def test_recipes_and_commands_are_completed() -> None:
    assert "fine_tune" in completed("hear-transformers train --recipe fi")
    assert completed("hear-transformers compl") == ["completion"]
    assert completed("hear-transformers completion ") == [*SHELLS]


@pytest.mark.parametrize(
    "line",
    [
        "embed-audio clips/",
        "embed-audio --out x",
        "embed-audio --weights x",
        "embed-audio --config x",
        "hear-transformers search ta",
        "hear-transformers train --train x",
        "hear-transformers explain --model tiny a.w",
    ],
)
def test_files_are_left_to_the_shell(line: str) -> None:
    assert [item.type for item in items(line)] == ["file"]


WITHOUT_TORCH = """
import sys
from importlib.metadata import entry_points
(entry,) = entry_points(group="console_scripts", name="embed-audio")
try:
    entry.load()(prog_name="embed-audio")
finally:
    assert not {"torch", "numpy"} & set(sys.modules)
"""


def test_completing_needs_no_pytorch() -> None:
    environment = {"_EMBED_AUDIO_COMPLETE": "bash_complete", "COMP_WORDS": "embed-audio --layer 1", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr) == (["plain,1", "plain,10", "plain,11", "plain,12"], "")


# Real shells


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Make a folder with both commands of this environment."""
    for name in PROGRAMS:
        (entry,) = entry_points(group="console_scripts", name=name)
        module, function = entry.value.split(":")
        script = tmp_path / name
        script.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{function}(prog_name={name!r})\n")
        script.chmod(0o755)
    return tmp_path


def run(shell: str, script: str, programs: Path) -> list[str]:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    environment = {"PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin", "HOME": str(programs)}
    done = subprocess.run(
        [shell, *(["--norc"] if shell == "bash" else ["-f"] if shell == "zsh" else ["--no-config"]), "-c", script],
        env=environment, cwd=programs, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split("\n")[:-1]


BASH = """
eval "$(hear-transformers completion bash)"
COMP_WORDS=({words})
COMP_CWORD={last}
_{function}_completion {program} >/dev/null 2>&1
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["embed-audio", "--model", "mast/mi"], ["mast/mini"]),
        (["embed-audio", "--model", "passt", "--layer", "4,1"], ["4,1", "4,10", "4,11", "4,12"]),
        (["hear-transformers", "info", "mn40_as_ext"], ["mn40_as_ext", r"mn40_as_ext\(2\)", r"mn40_as_ext\(3\)"]),
    ],
)
def test_bash_completes(programs: Path, words: list[str], found: list[str]) -> None:
    function = words[0].replace("-", "_")
    script = BASH.format(words=" ".join(words), last=len(words) - 1, function=function, program=words[0])
    assert run("bash", script, programs) == found


def test_fish_completes(programs: Path) -> None:
    script = 'hear-transformers completion fish | source; complete --do-complete "embed-audio --pool mean,meanm"'
    assert run("fish", script, programs) == ["mean,meanmax"]


def test_zsh_takes_the_script(programs: Path) -> None:
    script = (
        'autoload -Uz compinit; compinit -u; eval "$(hear-transformers completion zsh)"; print $_comps[embed-audio]'
    )
    assert run("zsh", script, programs) == ["_embed_audio_completion"]
