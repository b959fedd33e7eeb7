"""The examples in the docstrings of the public functions run as they stand there."""

from __future__ import annotations

import doctest
import importlib
import inspect
from collections.abc import Iterable
from typing import Any

import pytest

import capaft

FUNCTIONS = [name for name in capaft.__all__ if inspect.isfunction(getattr(capaft, name))]
MODULES = sorted({inspect.unwrap(getattr(capaft, name)).__module__ for name in FUNCTIONS})


def examples(found: Any, name: str) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder().find(found, name, module=False, globs={}) if test.examples]


def run(tests: Iterable[doctest.DocTest]) -> None:
    for test in tests:
        said: list[str] = []
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
        assert not said, "".join(said)


# Asked for by name: doctest's search of a module passes over decorated functions such as `disabled`.
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_has_an_example_that_runs(name: str) -> None:
    tests = examples(getattr(capaft, name), name)
    assert tests, f"capaft.{name} has no example"
    run(tests)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_modules_run(name: str) -> None:
    # Not `capaft.attach`: the package has a function in the place of the module.
    module = importlib.import_module(name)
    run(test for test in doctest.DocTestFinder().find(module, name) if test.examples)
