"""The header of an adapter file: its schema, its canonical form, its digest, and where the tensors lie."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, BinaryIO

from capaft.adapter.file.encoding import DTYPE_BYTES, SAVE_DTYPES
from capaft.factors import rng
from capaft.methods.stack import parse_stack, stack_options
from capaft.support.errors import AdapterFileError, UsageError

FORMAT = 1
MAX_HEADER_BYTES = 16 * 2**20
_SCHEMA: dict[str, Any] = {
    "base": {"name": (str, None), "revision": (str, None), "weights": (str, None)},
    "contract": int,
    "digest": {"header": str, "sites": str, "streams": str, "tensors": str},
    "format": int,
    "head": (dict, None),
    "method": dict,
    "save_dtype": str,
    "seed": int,
    "sites": int,
    "targets": {"exclude": str, "layers": str, "modules": str},
    "task": (dict, None),
}
_HEAD_SCHEMA: dict[str, Any] = {"k": int, "parameters": dict, "weights": (str, None)}
_TASK_SCHEMA: dict[str, Any] = {"labels": list, "max_length": int, "metric": str, "name": str, "options": dict}
MAX_OPTIONS = 32


def open_safetensors(path: Path, stream: BinaryIO, size: int) -> tuple[dict[str, Any], str]:
    """The safetensors header with its bounds checked: descriptions by tensor name, and capaft's own text.

    The numbers are not read yet: somebody else's file may be of any size.

    Raises:
        AdapterFileError: the file is truncated, foreign, or its tensors do not lie as it says.
    """
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise AdapterFileError(f"{path} is truncated or is not an adapter file; copy it again")
    try:
        described = json.loads(stream.read(length))
        metadata = described.pop("__metadata__")
        text = metadata.pop("capaft")
        if metadata or not isinstance(text, str):
            raise TypeError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise AdapterFileError(f"{path} is not a capaft adapter; adapters of other tools cannot be read") from None
    end = 0
    try:
        for entry in sorted(described.values(), key=lambda each: tuple(each["data_offsets"])):
            count = 1
            for side in entry["shape"]:
                if type(side) is not int or side < 0:
                    raise ValueError
                count *= side
                if count > size:  # Before a long row of sides makes it a number of millions of digits.
                    raise ValueError
            start, stop = entry["data_offsets"]
            if start != end or stop - start != count * DTYPE_BYTES[entry["dtype"]]:
                raise ValueError
            end = stop
    except (ValueError, TypeError, KeyError, AttributeError):
        raise AdapterFileError(f"{path} is damaged: its tensors do not lie as its header says") from None
    if 8 + length + end != size:
        raise AdapterFileError(f"{path} is truncated or has bytes that its header does not name; copy it again")
    return described, text


def parse_header(path: Path, text: str) -> dict[str, Any]:
    """The header, after its schema, canonical form, digest, versions and method have been checked.

    Raises:
        AdapterFileError: something does not hold.
    """
    try:
        header = json.loads(text)
        is_canonical = canonical_json(header) == text
    except (ValueError, TypeError, RecursionError):
        raise AdapterFileError(f"{path} is damaged: its header is not JSON") from None
    if isinstance(header, dict) and isinstance(header.get("format"), int) and header["format"] > FORMAT:
        raise AdapterFileError(f"{path} has format {header['format']}, newer than this capaft reads; upgrade it")
    problem = None if is_canonical else "it is not canonical"
    problem = problem or _mismatch(header, _SCHEMA, "header")
    if not problem and header["task"] is not None:
        problem = _mismatch(header["task"], _TASK_SCHEMA, "task")
        if not problem and not all(isinstance(label, str) for label in header["task"]["labels"]):
            problem = "a label is not text"
        problem = problem or wrong_options(header["task"]["options"])
    if not problem and header["head"] is not None:
        problem = _mismatch(header["head"], _HEAD_SCHEMA, "head") or _wrong_head(header["head"])
    if not problem:
        expected = header["digest"].pop("header")
        if header_digest(header) != expected:
            problem = "it does not match its digest"
        header["digest"]["header"] = expected
    if problem:
        raise AdapterFileError(f"{path} is damaged: {problem}; copy it again")
    if header["format"] != FORMAT or header["contract"] != rng.CONTRACT_VERSION:
        raise AdapterFileError(
            f"{path} follows format {header['format']} and seed contract {header['contract']}; "
            f"this capaft reads format {FORMAT} and contract {rng.CONTRACT_VERSION}"
        )
    try:
        wrong = set(header["method"]) != stack_options(str(header["method"].get("method")))
        if wrong or header["save_dtype"] not in SAVE_DTYPES:
            raise AdapterFileError(f"{path} is damaged: its method's numbers are not complete")
        if canonical_json(parse_stack(**header["method"]).record()) != canonical_json(header["method"]):
            raise AdapterFileError(f"{path} is damaged: its method is not in canonical form")
    except UsageError as error:
        raise AdapterFileError(f"{path}: {error}") from None
    return header


def _mismatch(value: Any, schema: dict[str, Any], where: str) -> str | None:
    """What is wrong with a record, or None."""
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


def wrong_options(options: dict[Any, Any]) -> str | None:
    """What a file cannot hold of a task's own options, or None."""
    if len(options) > MAX_OPTIONS:
        return f"a task has more than {MAX_OPTIONS} options"
    for name, value in options.items():
        if type(name) is not str or not (value is None or type(value) in (str, int, float, bool)):
            return f"the task's option {name} is no text, number or truth value"
        if type(value) is float and not math.isfinite(value):
            return f"the task's option {name} is not finite"
    return None


def _wrong_head(head: dict[str, Any]) -> str | None:
    """What is wrong with a head of the right keys, or None."""
    shapes = head["parameters"].values()
    if head["k"] < 0 or not shapes:
        return "its head has no parameters, or fewer than no coefficients"
    if not all(type(shape) is list and [type(side) for side in shape] == [int, int] for shape in shapes):
        return "its head has a shape that is not two whole numbers"
    return None


def canonical_json(header: Any) -> str:
    """Sorted keys, no spaces, ASCII: the same bytes for the same header."""
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def header_digest(header: dict[str, Any]) -> str:
    """Digest of the canonical JSON of a header that has no digest of itself yet."""
    return hashlib.blake2b(canonical_json(header).encode(), digest_size=16).hexdigest()
