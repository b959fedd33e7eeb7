"""Imports only point down: a module may import those that stand before it in this list, and no others."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import capaft

PACKAGE = Path(capaft.__file__).parent
FLOORS = (
    "errors files strict_json hub settings rng split_names slices wav best schedule interrupt launch processes "
    "sharding heap",
    "basis factor",
    "sites targets layers fused weight_sites block_sites attention",
    "methods.host methods.low_rank methods.bottleneck methods.lora methods.dora methods.vera methods.houlsby "
    "methods.pfeiffer methods.parallel methods.prefix methods.ia3 methods.bitfit methods methods.stack",
    "head plan adapter parametrise site_adapter attach",
    "storage header fingerprint adapter_file merge rank budget demo base_model",
    "config presets squad_file readers idx media_folder media_table directory media columns hub_data data",
    "tasks.problem tasks.single_label tasks.multi_label tasks.regression tasks.glue tasks.squad_metrics tasks.task "
    "tasks.token_limit tasks.token_loss tasks.text_scores tasks.plain_text tasks.text_pairs tasks.example tasks.chat "
    "tasks.answers tasks.windows tasks.media_classification tasks.generation tasks.text_classification "
    "tasks.token_classification tasks.multiple_choice tasks.question_answering tasks.causal_lm tasks.seq2seq "
    "tasks.masked_lm tasks.image_classification tasks.audio_classification tasks tasks.recognise",
    "batches evaluate fitted_head head_cache recipe run_directory checkpoint journal loss_plot machine optimiser "
    "memory selection job made_from train card run saved merged scoring dry_run rank_report method_table "
    "summary",
    "cli __main__",
)
ORDER = [module for floor in FLOORS for module in floor.split()]
# Parts of the house that hold methods; they know what a host is, and nothing of one another.
HOSTS = [
    name
    for name in ORDER
    if name.startswith("methods.")
    and name not in ("methods.host", "methods.stack", "methods.low_rank", "methods.bottleneck")
]


def path_of(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    file = path.with_suffix(".py")
    return file if file.is_file() else path / "__init__.py"


def imported(module: str) -> Iterator[str]:
    """Every module of capaft that a module imports, anywhere in it, also for types alone."""
    modules = {"capaft", *(f"capaft.{name}" for name in ORDER)}
    for node in ast.walk(ast.parse(path_of(module).read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else str(node.module) for name in within]
        yield from (name.removeprefix("capaft.") for name in names if name.startswith("capaft."))


def test_every_module_has_its_place() -> None:
    found = {path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")}
    names = {".".join(path.parts).removesuffix(".__init__") for path in found} - {"__init__"}
    assert names == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_down(module: str) -> None:
    below = ORDER[: ORDER.index(module)]
    assert not [name for name in imported(module) if name not in below]


@pytest.mark.parametrize("module", HOSTS)
def test_methods_do_not_know_one_another(module: str) -> None:
    assert {name for name in imported(module) if name.startswith("methods")} <= {
        "methods.host",
        "methods.low_rank",
        "methods.bottleneck",
    }


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("module", ["capaft", "capaft.cli", "capaft.config", "capaft.__main__"])
def test_nothing_heavy_is_imported_before_it_is_used(module: str) -> None:
    heavy = {"torch", "transformers", "datasets", "numpy", "accelerate", "matplotlib", "sklearn", "safetensors"}
    assert run(f"import sys, {module}; print(*({heavy} & sys.modules.keys()))") == "\n"


def test_functions_keep_their_names_beside_modules_of_the_same_name() -> None:
    code = """
import sys
import capaft.merge
from capaft import attach
import capaft.attach
assert attach is capaft.attach is sys.modules["capaft.attach"].attach
assert capaft.merge is sys.modules["capaft.merge"].merge
assert all(callable(getattr(capaft, name)) for name in capaft.__all__ if name != "__version__")
"""
    run(code)


def test_what_the_package_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'atach'"):
        getattr(capaft, "atach")  # noqa: B009
