"""What a file cannot hold is not written, and what cannot be written leaves the old file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_files import adapted

import capaft
from capaft.adapter.file.encoding import SAVE_DTYPES, SaveDtype
from capaft.adapter.file.header import TaskRecord
from capaft.adapter.file.save_load import save
from capaft.model.origin import Origin
from capaft.support import files
from capaft.support.errors import TrainingError, UsageError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({str(number): number for number in range(33)}, "a task has more than 32 options"),
        ({"a": [1]}, "the task's option a is not a text, number or truth value"),
        ({"a": float("nan")}, "the task's option a is not finite"),
        ({1: 1}, "the task's option 1 is not a text"),
        ({"a": 2**64}, "the task's option a has more than 64 bits"),
        ({"a": "\ud800"}, "the task's option a holds a half of a surrogate pair"),
        ({"\ud800": 1}, "the name of a task's option holds a half of a surrogate pair"),
    ],
)
def test_options_that_a_file_cannot_hold(options: Any, message: str, path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        save(adapted(), path, task=TaskRecord("text-classification", (), 1, "f1", options))
    assert not path.exists()
    assert TaskRecord("text-classification", (), 1, "f1").options == {}


LONG = "a" * 17 * 2**20


@pytest.mark.parametrize(
    ("labels", "base", "message"),
    [
        (("a", "\ud83d"), None, r"labels\[1\] holds a half of a surrogate pair"),
        (("a", LONG), None, "the header takes 17,.* bytes, more than 16,777,216; shorten the labels"),
        ((), "caf\udce9", "the base model's name"),
        ((), LONG, "more than 16,777,216"),
    ],
)
def test_texts_that_a_file_cannot_hold(labels: tuple[str, ...], base: str | None, message: str, path: Path) -> None:
    path.write_bytes(b"what was there before")
    with pytest.raises(UsageError, match=message) as error:
        save(adapted(), path, base=Origin(base), task=TaskRecord("text-classification", labels, 1, "f1"))
    assert "\n" not in str(error.value)
    assert path.read_bytes() == b"what was there before"


@pytest.mark.parametrize(
    ("ext", "message"),
    [
        ([1], "ext is not an object"),
        ({"a": float("inf")}, r"ext\.a is not finite"),
        ({"a": {1: 1}}, r"ext\.a has the key 1, which is not text"),
        ({"a": Path()}, r"ext\.a is a \w*Path"),
        ({"a": "é" * 11_000}, "ext takes more than 65,536 characters"),
        ({"a": json.loads("[" * 16 + "]" * 16)}, "nested more than 16 levels"),
    ],
)
def test_ext_that_a_file_cannot_hold(ext: Any, message: str, path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        save(adapted(), path, ext=ext)
    assert not path.exists()


@pytest.mark.parametrize("dtype", SAVE_DTYPES)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["up", "head:classifier.bias"])
def test_numbers_that_are_not_finite_are_not_saved(where: str, wrong: float, dtype: SaveDtype, path: Path) -> None:
    model = adapted()
    with torch.no_grad():
        capaft.adapters(model)["default"].trained(model)[where].flatten()[0] = wrong
    with pytest.raises(TrainingError, match=f"{where} holds numbers that are not finite"):
        save(model, path, dtype=dtype)
    assert not path.exists()


def test_numbers_too_large_for_the_dtype_are_not_saved(path: Path) -> None:
    model = adapted()
    with torch.no_grad():
        capaft.adapters(model)["default"].role_parameters["down"][0, 0] = 1e5
    with pytest.raises(TrainingError, match="not finite as float16"):
        save(model, path, dtype="float16")
    assert not path.exists()
    save(model, path, dtype="bfloat16")


def test_an_unknown_dtype_or_adapter_is_refused(path: Path) -> None:
    with pytest.raises(UsageError, match="--save-dtype must be one of float32"):
        save(adapted(), path, dtype="int2")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no adapter named other"):
        save(adapted(), path, name="other")


@contextlib.contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """A real limit: the system refuses to write further."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("old", [b"", b"what was there before"])
def test_a_full_disk_leaves_the_old_file(old: bytes, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if old:
        path.write_bytes(old)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = adapted()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(TrainingError, match="No space left"):
            save(model, path)
    with _largest_file(100), pytest.raises(TrainingError, match="too large"):
        save(model, path)
    assert [file.read_bytes() for file in path.parent.iterdir()] == [old] * bool(old)
