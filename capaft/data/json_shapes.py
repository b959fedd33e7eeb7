"""The records in a JSON document: a list of them, a list under a key, SQuAD's files, or what pandas writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capaft.data.squad_file import is_squad, squad_records
from capaft.support.errors import UsageError

Record = dict[str, Any]

# A document of one of these alone is one chat.
_CHATS = frozenset({"messages", "conversations", "conversation", "chat", "dialog", "dialogue"})


def records_in(path: Path, document: Any) -> list[Record] | None:
    """The records of a document, in their order; None if it is of no such shape.

    pandas writes a table in several ways: by columns or by index (a record of records), split (names apart from the
    rows), or as a table with its schema.

    Raises:
        UsageError: an item of its list is not a record, or it has several lists of records.
    """
    if isinstance(document, list):
        return _listed(path, document)
    if not isinstance(document, dict):
        return None
    if is_squad(document):
        return squad_records(path, document)
    if _is_split(document):
        return [dict(zip(document["columns"], row, strict=True)) for row in document["data"]]
    lists = [name for name, value in document.items() if _are_records(value)]
    if len(lists) == 1 and lists[0] not in _CHATS and _is_envelope(document, lists[0]):
        return _listed(path, document[lists[0]])
    if len(lists) > 1 and len(lists) == len(document):
        raise UsageError(
            f"{path}: this holds several lists of records, {', '.join(lists[:5])}; write each to its own file, such as "
            "train.json and test.json"
        )
    return _table(path, document)


def _listed(path: Path, document: list[Any]) -> list[Record]:
    for number, record in enumerate(document, start=1):
        if not isinstance(record, dict):
            pair = _annotated(record)
            if pair is None:
                raise UsageError(f'{path}: record {number} is not a record such as {{"text": "...", "label": 0}}')
    return [record if isinstance(record, dict) else {"text": record[0], **record[1]} for record in document]


def _annotated(record: Any) -> Record | None:
    """The notes of a text, if this is a pair of both, as spaCy's training data used to be."""
    if isinstance(record, list) and len(record) == 2 and isinstance(record[0], str) and isinstance(record[1], dict):
        return record[1]
    return None


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) or _annotated(v) for v in value)


def _is_envelope(document: Mapping[str, Any], name: str) -> bool:
    """True if all else in a document describes a list of records: it is not the one record that has this list."""
    records = document[name]
    is_chat = all(isinstance(record, dict) and {"role", "content"} <= record.keys() for record in records)
    return not is_chat and len(records) > 1


def _is_split(document: Mapping[str, Any]) -> bool:
    names, rows = document.get("columns"), document.get("data")
    return (
        isinstance(names, list)
        and isinstance(rows, list)
        and all(isinstance(name, str) for name in names)
        and all(isinstance(row, list) and len(row) == len(names) for row in rows)
    )


def _table(path: Path, document: Mapping[str, Any]) -> list[Record] | None:
    """The records of a table by columns or by index; None if the document is no such table.

    Raises:
        UsageError: it could be either.
    """
    values = list(document.values())
    if len(values) > 1 and all(isinstance(value, list) and len(value) == len(values[0]) > 1 for value in values):
        return [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)]
    if not values or not all(isinstance(value, dict) for value in values):
        return None
    inner = values[0].keys()
    alike = all(value.keys() == inner for value in values)
    if inner and alike and all(key.isdecimal() for key in inner):
        return [{name: column[key] for name, column in document.items()} for key in inner]
    if all(key.isdecimal() for key in document) or len(values) > max(len(value) for value in values):
        return values
    raise UsageError(
        f"{path}: it is not clear whether columns or rows come first in this document; give a list of records"
    )
