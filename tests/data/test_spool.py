"""Tables and columns on the disk: the same values as in memory, and no file that outlives the process."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from capaft.data import spool
from capaft.data.lazy import ColumnValues, Derived
from capaft.data.spool import StoredColumn, gathered, lengths_of, spooled, stored_columns
from capaft.support.errors import UsageError


@pytest.mark.parametrize(
    "values",
    [
        [[1, 2], [], [300]],
        [[[1], [2, 3]], [[]], []],
        [np.array([1, 2]), np.array([3]), np.array([4, 5, 6])],
        ["a", "", "bc"],
        [("x", "y"), (), ("z",)],
        [1, 2, -100],
    ],
)
def test_a_stored_column_is_the_list(values: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    kept = stored_columns({"column": [value]} for value in values)["column"]
    monkeypatch.setattr(spool, "KEPT_NUMBERS", 0)
    monkeypatch.setattr(spool, "KEPT", 0)
    monkeypatch.setattr(spool, "ROWS", 2)
    stored = stored_columns({"column": [value]} for value in values)["column"]
    assert isinstance(kept, list)
    assert isinstance(stored, StoredColumn)
    plain = [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
    plain = [list(value) if isinstance(value, tuple) else value for value in plain]
    assert stored == plain
    assert stored[-1] == plain[-1]
    assert stored[:2] == plain[:2]
    with pytest.raises(IndexError):
        stored[len(values)]
    if isinstance(plain[0], list):
        assert lengths_of(stored).tolist() == list(map(len, plain))


def test_the_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(spool, "KEPT", 100)
    before = pa.total_allocated_bytes()
    table = spooled(pa.table({"n": np.arange(100) + 100 * part}) for part in range(1000))
    assert table.column("n").to_numpy().tolist() == list(range(100_000))
    assert pa.total_allocated_bytes() - before < 100_000
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    monkeypatch.setattr(spool, "KEPT", 0)
    with pytest.raises(UsageError, match=r"cannot write temporary data.*TMPDIR"):
        spooled([pa.table({"n": [1]})])


def test_gathered_rows_keep_their_types() -> None:
    rows = Dataset.from_dict({"a": [1, 2, 3], "b": ["x", "y", "z"]})
    chosen = gathered(rows.select([2, 0]))
    assert chosen.to_dict() == {"a": [3, 1], "b": ["z", "x"]}
    assert chosen.features == rows.features
    assert gathered(rows.select([])).to_dict() == {"a": [], "b": []}


def test_values_are_read_when_they_are_needed() -> None:
    values = ColumnValues(Dataset.from_dict({"a": list(range(2500))}), "a")
    doubled = Derived(lambda one, other: one + other, values, values)
    assert doubled == [2 * value for value in range(2500)]
    assert doubled[-1] == 4998
    assert doubled[1:3] == [2, 4]
    assert doubled != [0]
