"""Small students under the names of the real ones."""

import pytest

from hear_transformers.training.curves import Curves
from hear_transformers.training.distil import objectives, run, students
from tests.helpers.distilling import SIZES, small


@pytest.fixture(autouse=True)
def small_students(monkeypatch):
    """Train small networks under the names of the real ones."""
    shrunk = {name: small(student, SIZES[name]) for name, student in students.STUDENTS.items()}
    for module in (objectives, run):
        monkeypatch.setattr(module, "STUDENTS", shrunk)
    return shrunk


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Draw no curves, which takes longer than the training of such networks."""
    monkeypatch.setattr(Curves, "plot", lambda *_: None)
