"""The examples of the README, of the pages of docs/ and of docstrings run, offline, and give what they say."""

import doctest
import importlib
import shutil
from pathlib import Path

import pytest
import soundfile

from tests.conftest import tone
from tests.helpers.markdown import PAGES, ROOT, blocks, name_of

EXAMPLES = {page: [text for text in blocks(page, "python") if ">>> " in text] for page in PAGES}
"""Page -> its blocks with prompts, which one reader types one after the other. Others are programs, see tests/docs/."""
DOCUMENTED = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "hear_transformers").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.fixture(autouse=True)
def sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put sounds of 1 s into the current folder, and the example recording."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("dog.wav", tone(1.0), 32_000)
    soundfile.write("rain.flac", tone(1.0)[::-1], 32_000)
    shutil.copy(ROOT / "tests" / "data" / "example.wav", tmp_path)


def check(test: doctest.DocTest) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    printed: list[str] = []
    runner.run(test, out=printed.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(printed)


@pytest.mark.parametrize("page", [page for page in PAGES if EXAMPLES[page]], ids=name_of)
def test_examples_of_pages_are_true(page: Path) -> None:
    test = doctest.DocTestParser().get_doctest("\n".join(EXAMPLES[page]), {}, name_of(page), None, 0)
    assert test.examples
    check(test)


@pytest.mark.slow
@pytest.mark.parametrize("module", DOCUMENTED)
def test_examples_of_docstrings_are_true(module):
    for test in doctest.DocTestFinder().find(importlib.import_module(module)):
        check(test)
