"""Pages are read as a user reads them: what to paste, and whether what is printed is what is shown."""

import sys
from pathlib import Path

import click
import pytest

from hear_transformers.benchmarks.journeys import Block, blocks_of, is_like, run

PAGE = """
```bash
pip install '.[train]'
```

<!-- needs mteb -->
```python
print(1)
print(2)
```

```text
1
2
```

```console
$ never run
```
"""

PROGRAMS = Path(sys.executable).parent


def test_blocks_that_run_are_found_with_what_they_show():
    install, python = blocks_of(PAGE)
    assert (install.installs, install.n_commands, install.shown) == (True, 1, None)
    assert python == Block("python", "print(1)\nprint(2)\n", "mteb", "1\n2\n")
    assert (python.installs, python.n_commands) == (False, 1)


def test_a_block_runs_in_its_folder(tmp_path):
    printed = run(
        Block("python", "import os; print(os.getcwd(), os.environ['A'])", None, None), tmp_path, PROGRAMS, A="b"
    )
    assert printed == f"{tmp_path} b\n"


def test_a_block_that_fails_is_shown(tmp_path):
    with pytest.raises(click.ClickException, match="false; true"):
        run(Block("bash", "false; true", None, None), tmp_path, PROGRAMS)


@pytest.mark.parametrize(
    ("printed", "same"),
    [
        ("a.wav  0.75\nb.wav 3", True),
        ("b.wav 3\na.wav 0.1", True),
        ("/tmp/x/a.wav 0.1\nb.wav 3", True),
        ("a.wav 0.1\nb.wav 4", False),
        ("a.wav 0.1", False),
    ],
)
def test_decimals_folders_and_the_order_of_lines_may_differ(printed, same):
    assert is_like("a.wav 0.5\nb.wav 3\n", printed, Path("/tmp/x")) is same
