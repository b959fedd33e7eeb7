"""Cost of importing the package, and its missing attributes."""

from __future__ import annotations

import subprocess
import sys

import pytest

import capaft


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("module", ["capaft", "capaft.commands.app", "capaft.config.train_config", "capaft.__main__"])
def test_nothing_heavy_is_imported_before_it_is_used(module: str) -> None:
    heavy = {"torch", "transformers", "datasets", "numpy", "accelerate", "matplotlib", "sklearn", "safetensors"}
    assert run(f"import sys, {module}; print(*({heavy} & sys.modules.keys()))") == "\n"


def test_what_the_package_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'atach'"):
        getattr(capaft, "atach")  # noqa: B009
