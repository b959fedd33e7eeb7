"""The examples in the docstrings of the public functions run, given a model and a path."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

import capaft

FUNCTIONS = [name for name in capaft.__all__ if inspect.isfunction(getattr(capaft, name))]
MODULES = sorted({inspect.unwrap(getattr(capaft, name)).__module__ for name in FUNCTIONS})


def examples(target: Any, name: str, *, module: Any = None) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder().find(target, name, module, globs={}) if test.examples]


# Not `capaft.attach`: the package has a function in place of the module.
IN_MODULES = [test for name in MODULES for test in examples(importlib.import_module(name), name)]


@pytest.fixture
def globs(tmp_path: Path) -> dict[str, Any]:
    """Names that the examples use without defining them."""
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return {
        "capaft": capaft,
        "torch": torch,
        "model": BertModel(BertConfig(vocab_size=100, **size)).eval(),
        "path": tmp_path / "adapter.safetensors",
    }


def run(test: doctest.DocTest, globs: dict[str, Any]) -> None:
    failures: list[str] = []
    test.globs = globs
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=failures.append)
    assert not failures, "".join(failures)


# By name: doctest's search of a module passes over decorated functions such as `disabled`.
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_has_an_example_that_runs(name: str, globs: dict[str, Any]) -> None:
    tests = examples(getattr(capaft, name), name, module=False)
    assert tests, f"capaft.{name} has no example"
    for test in tests:
        run(test, globs)


@pytest.mark.parametrize("test", IN_MODULES, ids=lambda test: test.name)
def test_the_examples_of_the_modules_run(test: doctest.DocTest, globs: dict[str, Any]) -> None:
    run(test, globs)
