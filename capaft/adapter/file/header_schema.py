"""The header of an adapter file as JSON values: their types and limits.

A stranger's header is held against them before anything is made of it, and one's own before it is written.
"""

from __future__ import annotations

from typing import Any

from capaft.adapter.file.canonical import canonical_json, plain

_SCHEMA: dict[str, Any] = {
    "base": {"name": (str, None), "revision": (str, None), "weights": (str, None)},
    "contract": int,
    "digest": {"header": str, "streams": str, "tensors": str},
    "ext": dict,
    "format": int,
    "head": (dict, None),
    "method": dict,
    "save_dtype": str,
    "seed": int,
    "sites": list,
    "targets": {"exclude": str, "layers": str, "modules": str},
    "task": (dict, None),
}
_HEAD_SCHEMA: dict[str, Any] = {"k": int, "parameters": dict, "weights": (str, None)}
_TASK_SCHEMA: dict[str, Any] = {"labels": list, "max_length": int, "metric": str, "name": str, "options": dict}
MAX_OPTIONS = 32
MAX_EXT = 2**16


def wrong_header(header: Any) -> str | None:
    """The first thing wrong with the keys and types of a header, or None."""
    return (
        _mismatch(header, _SCHEMA, "header")
        or _wrong_task(header["task"])
        or _wrong_head(header["head"])
        or wrong_ext(header["ext"])
    )


def wrong_options(options: dict[Any, Any]) -> str | None:
    """The reason why a file cannot hold these options of a task, or None."""
    if len(options) > MAX_OPTIONS:
        return f"a task has more than {MAX_OPTIONS} options"
    for name, value in options.items():
        if type(name) is not str or not (value is None or type(value) in (str, int, float, bool)):
            return f"the task's option {name} is not a text, number or truth value"
        if problem := not_plain(name, "the name of a task's option") or not_plain(value, f"the task's option {name}"):
            return problem
    return None


def wrong_ext(ext: Any) -> str | None:
    """The reason why a file cannot hold this object beside its header, or None."""
    if not isinstance(ext, dict):
        return "ext is not an object with texts as keys"
    # The length first, since a stranger's may be of any size.
    try:
        problem = f"ext takes more than {MAX_EXT:,} characters" if len(canonical_json(ext)) > MAX_EXT else None
    except (ValueError, TypeError):
        problem = None
    return problem or not_plain(ext, "ext")


def not_plain(value: Any, where: str) -> str | None:
    """The reason why JSON that all readers take alike cannot hold a value, or None."""
    try:
        plain(value, where)
    except ValueError as error:
        return str(error)
    return None


def _wrong_task(task: Any) -> str | None:
    """The first thing wrong with a task, or None."""
    if task is None:
        return None
    if problem := _mismatch(task, _TASK_SCHEMA, "task"):
        return problem
    if not all(isinstance(label, str) for label in task["labels"]):
        return "a label is not text"
    return wrong_options(task["options"])


def _wrong_head(head: Any) -> str | None:
    """The first thing wrong with a head, or None."""
    if head is None:
        return None
    if problem := _mismatch(head, _HEAD_SCHEMA, "head"):
        return problem
    shapes = head["parameters"].values()
    if head["k"] < 0 or not shapes:
        return "its head has no parameters, or a negative number of coefficients"
    if not all(type(shape) is list and [type(side) for side in shape] == [int, int] for shape in shapes):
        return "its head has a shape that is not two whole numbers"
    return None


def _mismatch(value: Any, schema: dict[str, Any], where: str) -> str | None:
    """The first mismatch between a record and its schema, or None."""
    if not isinstance(value, dict) or set(value) != set(schema):
        return f"its {where} does not have the keys {', '.join(schema)}"
    for key, kind in schema.items():
        if isinstance(kind, dict):
            if problem := _mismatch(value[key], kind, key):
                return problem
            continue
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not any(value[key] is None if k is None else type(value[key]) is k for k in kinds):
            return f"{key} in its {where} is of the wrong type"
    return None
