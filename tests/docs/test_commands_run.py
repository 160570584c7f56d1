"""Commands of pages run, from the top of each page to its end, as far as they need no download, card or cluster."""

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from hear_transformers.bulk.selections import Selection, write_each, write_selections
from tests.docs.test_commands import COMMANDS, of_ours, parsed
from tests.helpers.markdown import FENCED, ROOT, commands

RATE = 32_000
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("command-line", "archives", "training", "install")),
]
AWAY = ("--model", "--variant", "--weights", "--engine")
"""Options with which a command needs what is not here."""

ELSEWHERE = ("download", "train", "hear", "validate", "compare")
INPUTS = ("inputs", "manifest", "probe", "table", "query", "data", "outputs", "folder", "clip")
"""Parameters that name files; a command whose files the page has not made is another's example."""


def sound(kind: int, rng: np.random.Generator, seconds: float = 1.0) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    return 0.3 * np.sin(2 * np.pi * (400 + 3000 * kind) * t) + 0.01 * rng.standard_normal(len(t))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make what the pages speak of: clips of two classes and a table of them, long recordings with selections."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lines = ["path,filename,category"]
    for i in range(12):
        kind = ("dog", "rain")[i % 2]
        path = Path("clips") / kind / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sound(i % 2, rng), RATE)
        lines.append(f"{path},{path},{kind}")
    shutil.copytree("clips", "archive")  # large enough for the first of eight shards to hold a file
    shutil.copytree("clips/dog", "new")
    Path("clips.csv").write_text("\n".join(lines) + "\n")
    Path("dawn").mkdir()
    for i in range(6):
        quiet, call = 0.001 * rng.standard_normal(RATE), sound(i % 2, rng)
        soundfile.write(f"dawn/{i}.wav", np.concatenate([quiet, call, quiet]), RATE)
    calls = [Selection(f"dawn/{i}.wav", 1.0, 2.0, ("frog", "bird")[i % 2]) for i in range(6)]
    write_each(Path("selections"), calls, "raven")
    write_selections(Path("dawn.Table.1.selections.txt"), calls, "raven")
    for name in ("query.wav", "street.wav", "talk.mp3", "clip.wav"):
        soundfile.write(name, sound(1, rng), RATE)
    shutil.copytree(ROOT / "tests" / "data", "tests/data", ignore=shutil.ignore_patterns("golden"))
    return tmp_path


def is_here(name: str, words: Sequence[str]) -> bool:
    """Return True if a command needs nothing but the embedded model and files that are there."""
    if set(AWAY) & set(words) or words[:1] in [[word] for word in ELSEWHERE] or "all" in words:
        return False
    given = parsed(COMMANDS[name], name, words).params
    named = [given[key] for key in INPUTS if given.get(key)]
    files = [str(value) for values in named for value in (values if isinstance(values, tuple) else [values])]
    return all(Path(file).exists() or file.isdigit() for file in files)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_succeed(page: Path, folder: Path) -> None:
    done = []
    for words in commands(page):
        found = of_ours(words)
        if found is not None and is_here(*found):
            name, rest = found
            result = CliRunner().invoke(COMMANDS[name], [str(word) for word in rest])
            assert result.exit_code == 0, f"{' '.join(words)}: {result.output}"
            done.append(words)
    assert done


def test_the_first_command_prints_what_the_readme_shows(folder: Path) -> None:
    (shown,) = [match["text"] for match in FENCED.finditer(PAGES[0].read_text()) if match["kind"] == "console"]
    prompt, printed = shown.split("\n", 1)
    name, *words = shlex.split(prompt.removeprefix("$ "))
    assert CliRunner().invoke(COMMANDS[name], words).stdout == printed
