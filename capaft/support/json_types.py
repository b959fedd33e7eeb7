"""Values of a JSON document, compared with the types that the program expects of them."""

from __future__ import annotations

import typing
from types import UnionType
from typing import Any, Literal, Union


def fits(value: Any, kind: Any) -> bool:
    """True if a value is of a type: a plain one, a literal, a union, or a list or dictionary of typed values.

    A whole number may stand for a fraction, but a truth value for no number.
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return value in parts
    if origin in (UnionType, Union):
        return any(fits(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(fits(entry, parts[0]) for entry in value)
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(parts) and all(map(fits, value, parts))
    if origin is dict:
        return isinstance(value, dict) and all(fits(entry, parts[1]) for entry in value.values())
    return type(value) is kind or (kind is float and type(value) is int)


def fitting(record: Any, kind: type) -> dict[str, Any]:
    """A record, once its values are known to be of the types of a class's fields of their names.

    Raises:
        TypeError: one is not, or it is no record.
    """
    types = typing.get_type_hints(kind)
    if not isinstance(record, dict):
        raise TypeError(f"not a record of {kind.__name__}")
    for name, value in record.items():
        if name in types and not fits(value, types[name]):
            raise TypeError(f"{name} is {value!r:.40}")
    return record
