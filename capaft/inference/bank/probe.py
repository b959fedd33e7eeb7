"""The axis on which a module's output has the examples of a batch, found by calling the model once.

Most modules have them first. Some models put positions first, and some join positions or choices with examples; there
a wrong guess would give each example another one's adapter, without an error. So three examples are sent through the
model, the first and the last of them the same: whatever axis shows this pattern is theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from capaft.support.errors import UsageError

EXAMPLES = 3
_CACHES = ("past_key_values", "past_key_value", "cache_params")


def example_axis(output: Tensor) -> int | None:
    """The first axis along which an output shows the pattern of the examples; -1 if all three are alike, or None."""
    for axis in range(output.ndim):
        if output.shape[axis] % EXAMPLES or not output.shape[axis]:
            continue
        first, second, third = output.unflatten(axis, (EXAMPLES, -1)).unbind(axis)
        if _alike(first, third) and not _alike(first, second):
            return axis
    alike = output.ndim and output.shape[0] % EXAMPLES == 0
    return -1 if alike and _alike(*output.unflatten(0, (EXAMPLES, -1)).unbind(0)[:2]) else None


def probe_inputs(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], count: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of three examples made from the first of a batch: itself, a changed one, itself.

    Args:
        args: the batch's inputs by position.
        kwargs: those by name.
        count: number of examples that the batch names.

    Raises:
        UsageError: no input has rows that divide among the examples.
    """
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim]
    sizes = Counter(len(value) for value in tensors if len(value) and len(value) % count == 0)
    if not sizes:
        rows = f"{len(tensors[0])} rows" if tensors else "no tensor with a row for each example"
        raise UsageError(f"the batch names {count} adapters, but the model got {rows}; name one for each example")
    size = max(sizes, key=lambda size: sizes[size])

    def taken(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim or value.shape[0] != size:
            return value
        one = value[:1]
        return torch.cat([one, one if "mask" in name else _changed(one), one])

    named = {name: taken(name, value) for name, value in kwargs.items() if name not in (*_CACHES, "labels")}
    if "use_cache" in named:
        named["use_cache"] = False
    return tuple(taken("", value) for value in args), named


def settle_axes(found: Mapping[str, int | None]) -> dict[str, int | None]:
    """The axes that a probe has found; a module whose outputs were all alike has the axis of most others."""
    counts = Counter(axis for axis in found.values() if axis is not None and axis >= 0)
    usual = counts.most_common(1)[0][0] if counts else 0
    return {path: usual if axis == -1 else axis for path, axis in found.items()}


@torch.no_grad()
def run_probe(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], count: int) -> None:
    """Call the model with three examples, for its hooks to look at."""
    positional, named = probe_inputs(args, kwargs, count)
    model(*positional, **named)


def _changed(example: Tensor) -> Tensor:
    """Another example of the same shape: of codes only those that occur, of values any."""
    if example.ndim < 2 or not example.numel():
        return example
    if example.is_floating_point():
        return example.roll(1, -1) * 0.5 + 0.25
    rolled = example.roll(1, -1)
    if not torch.equal(rolled, example) or example.dtype == torch.bool:
        return rolled
    return (example + 1) % (example.max() + 1)


def _alike(one: Tensor, other: Tensor) -> bool:
    return bool(torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-5, equal_nan=True))
