"""Entries `name=value` of repeated flags, such as `--rename old=new`."""

from __future__ import annotations

from collections.abc import Sequence

from capaft.support.errors import UsageError


def parse_pairs(entries: Sequence[str], form: str, *, may_be_empty: bool = False) -> dict[str, str]:
    """`["a=b", ...]` as a dictionary.

    Args:
        entries: what the user typed.
        form: the flag and the form of an entry, such as `--rename OLD=NEW`.
        may_be_empty: the second part may be empty, as the value of a text may.

    Raises:
        UsageError: an entry does not have that form.
    """
    flag, shape = form.split()
    pairs = {}
    for entry in entries:
        first, equals, second = entry.partition("=")
        if not (first and equals and (second or may_be_empty)):
            raise UsageError(f"{flag} {entry} must be {shape.lower()}")
        pairs[first] = second
    return pairs
