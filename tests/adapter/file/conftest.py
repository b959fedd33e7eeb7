"""A place for an adapter file, and the bytes of a good one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_files import TASK, adapted

from capaft.adapter.file.save_load import save
from capaft.model.origin import Origin


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "adapter.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small valid file, to be spoilt."""
    path = tmp_path_factory.mktemp("good") / "adapter.safetensors"
    save(adapted(), path, base=Origin("tiny"), task=TASK)
    return path.read_bytes()
