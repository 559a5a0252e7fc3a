"""What users call says what it does, with an example; doctest runs the examples."""

import inspect

import pytest

from tinycomp import te
from tinycomp.tir.group import Group
from tinycomp.tir.schedule import Schedule
from tinycomp.tir.stage import Stage

FUNCTIONS = sorted(n for n in te.__all__ if inspect.isfunction(getattr(te, n)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_examples(name):
    text = inspect.getdoc(getattr(te, name)) or ""
    assert ">>> " in text, f"te.{name} has no example"


@pytest.mark.parametrize("owner", [Schedule, Stage, Group], ids=lambda c: c.__name__)
def test_methods_are_documented(owner):
    missing = [n for n, m in inspect.getmembers(owner, inspect.isfunction)
               if not n.startswith("_") and not inspect.getdoc(m)]  # fmt: skip
    assert not missing
