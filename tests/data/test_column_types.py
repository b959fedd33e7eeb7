"""Types of columns whose values are read some at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capaft.data import column_types
from capaft.data.column_types import typed_table
from capaft.support.errors import UsageError

PLAIN = st.sampled_from([None, True, 0, 1, 2**60 + 1, 2**70, 0.5, float("nan"), "", "a"])
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
)
COLUMNS = st.one_of(
    st.lists(values, min_size=1, max_size=8)
    for values in (
        VALUES,
        st.none() | st.integers(-3, 3) | st.floats(-1, 1),
        st.none() | st.lists(st.integers(0, 2) | st.sampled_from([0.5, None]), max_size=2),
        st.dictionaries(st.sampled_from("abc"), PLAIN, max_size=3),
        st.lists(st.dictionaries(st.sampled_from("ab"), PLAIN, min_size=1), max_size=2),
    )
)


def outcome(values: list[Any], at_a_time: int) -> Any:
    """The column that values become, or the error."""

    def parts():
        for start in range(0, len(values), at_a_time):
            yield {"x": values[start : start + at_a_time], "y": list(range(start, min(start + at_a_time, len(values))))}

    try:
        table = typed_table(Path("x.jsonl"), parts, ["x", "y"], len(values))
    except UsageError as error:
        return str(error).partition("(")[0]
    assert table["y"].to_pylist() == list(range(len(values)))
    return table.schema.field("x").type, repr(table["x"].to_pylist())


@given(values=COLUMNS, at_a_time=st.integers(1, 3))
def test_parts_have_the_type_of_the_whole(values: list[Any], at_a_time: int) -> None:
    assert outcome(values, at_a_time) == outcome(values, len(values))


@given(values=COLUMNS)
def test_what_pyarrow_reads_is_as_it_reads_it(values: list[Any]) -> None:
    try:
        whole = pa.array(values)
    except (ValueError, TypeError, OverflowError, pa.ArrowException):
        return
    kind, read = outcome(values, 2)
    if kind != pa.list_(pa.json_()):
        assert (kind, read) == (whole.type, repr(whole.to_pylist()))


@pytest.mark.parametrize(
    ("values", "kind", "read"),
    [
        ([None, None, 1, 2.5], pa.float64(), [None, None, 1.0, 2.5]),
        ([1, 2, "a", None], pa.string(), ["1", "2", "a", None]),
        ([0.5, float("nan"), "a", True], pa.string(), ["0.5", None, "a", "true"]),
        ([[], [1], [2.5], None], pa.list_(pa.float64()), [[], [1.0], [2.5], None]),
        ([{}, {"a": 1}, {"b": "x"}], None, [{"a": None, "b": None}, {"a": 1, "b": None}, {"a": None, "b": "x"}]),
        ([[1], float("nan"), [2]], pa.list_(pa.int64()), [[1], None, [2]]),
    ],
)
def test_types_that_only_later_rows_tell(values: list[Any], kind: pa.DataType | None, read: list[Any]) -> None:
    made, shown = outcome(values, 1)
    assert kind in (None, made)
    assert shown == repr(read)


def test_columns_without_rows_in_common_end_together() -> None:
    parts = list(column_types.column_parts({"a": iter("ab"), "b": [1, 2]}))
    assert parts == [{"a": ["a", "b"], "b": [1, 2]}]
