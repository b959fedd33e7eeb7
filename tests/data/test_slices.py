"""A slice after a name means what it means in Python, in counts and in percentages."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capaft.data.slices import Slice, split_off_slice
from capaft.support.errors import UsageError

bounds = st.none() | st.integers(-60, 60)


@given(start=bounds, stop=bounds, count=st.integers(0, 50))
def test_counts_are_those_of_python(start: int | None, stop: int | None, count: int) -> None:
    written = f"{'' if start is None else start}:{'' if stop is None else stop}"
    source, part = split_off_slice(f"glue/sst2[{written}]")
    assert source == "glue/sst2"
    assert part is not None
    assert list(part.rows(count)) == list(range(count))[start:stop]


@given(percentage=st.integers(0, 1000), count=st.integers(0, 10_000))
def test_percentages_part_the_rows(percentage: int, count: int) -> None:
    at = f"{percentage / 10}%"
    first, second, last = Slice("", at).rows(count), Slice(at, "").rows(count), Slice(f"-{at}", "").rows(count)
    assert [*first, *second] == list(range(count))
    assert abs(len(first) - Fraction(percentage, 1000) * count) <= Fraction(1, 2)
    # As in Python's [-0:], -0% begins with the first row.
    assert len(last) == (len(first) or count)


def test_bounds_may_differ_in_kind() -> None:
    assert Slice("10", "50%").rows(100) == range(10, 50)
    assert Slice("-50%", "-10").rows(100) == range(50, 90)
    assert Slice("", "33.3%").rows(1000) == range(333)


@pytest.mark.parametrize("spec", ["imdb", "user/name/config", "data/x[1].csv", "x[1]/train.csv", "", "[1:2]"])
def test_names_without_a_slice(spec: str) -> None:
    assert split_off_slice(spec) == (spec, None)


def test_only_the_last_brackets_are_a_slice() -> None:
    assert split_off_slice("x[1:2][:5]") == ("x[1:2]", Slice("", "5"))


@pytest.mark.parametrize("part", ["[]", "[5]", "[5%]", "[:5", "[::2]", "[:1e3]", "[:100.5%]", "[:+5]", "[:%]", "[:٣]"])
def test_what_is_no_slice(part: str) -> None:
    with pytest.raises(UsageError, match=r"write the slice as \[a:b\]") as caught:
        split_off_slice(f"imdb{part}")
    assert "\n" not in str(caught.value)
