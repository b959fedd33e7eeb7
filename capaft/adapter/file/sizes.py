"""The places where the bytes of an adapter file go."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from capaft.adapter.file.adapter_file import AdapterFile
from capaft.adapter.file.canonical import canonical_json
from capaft.adapter.file.encoding import SCALE, dtype_name


class TensorSize(NamedTuple):
    """The size of one stored tensor.

    Attributes:
        parameters: that it holds; of int4, one more than there are if they are odd. Block scales hold none.
        dtype: as safetensors calls it.
        bytes: of its data.
    """

    parameters: int
    dtype: str
    bytes: int


def tensor_sizes(file: AdapterFile) -> dict[str, TensorSize]:
    """The sizes of a file's tensors, the largest first."""
    per_value = 2 if file.header.save_dtype == "int4" else 1
    sizes = {
        name: TensorSize(0 if name.startswith(SCALE) else per_value * tensor.numel(), dtype_name(tensor), tensor.nbytes)
        for name, tensor in file.tensors.items()
    }
    return dict(sorted(sizes.items(), key=lambda size: (-size[1].bytes, size[0])))


def header_sizes(file: AdapterFile) -> dict[str, int]:
    """Bytes of what is not a tensor: parts of the header as it stands in the file, and the JSON around it."""
    record = file.header.record()
    task, head = record["task"] or {}, record["head"] or {}
    samples = [part["weights"] for part in (record["base"], head) if part.get("weights")]
    sizes = {
        "sites": _stored(record["sites"]),
        "method": _stored(record["method"]),
        "labels": _stored(task["labels"]) if task.get("labels") else 0,
        "base samples": sum(map(_stored, samples)),
        "digests": _stored(record["digest"]),
        "ext": _stored(record["ext"]) if record["ext"] else 0,
    }
    header = _stored(record)
    tensors = sum(size.bytes for size in tensor_sizes(file).values())
    return sizes | {"other entries": header - sum(sizes.values()), "names of tensors": file.size - tensors - header}


def _stored(value: Any) -> int:
    """Length of a part of the header in the file, where it is a string of another JSON text: quotes are escaped."""
    return len(json.dumps(canonical_json(value))) - 2
