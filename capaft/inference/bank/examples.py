"""Apply a function example by example, in one batched operation, wherever the axis of the examples is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from capaft.support.errors import UsageError


def apply_to_examples(
    function: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    parameters: Sequence[Tensor],
    axes: Sequence[int | None],
    *,
    axis: int,
    count: int,
    rows: Tensor | None,
) -> Tensor:
    """What a function gives for some examples of a batch, each with its own parameters.

    A module may see several rows of each example (choices, beams, positions in one axis): they follow one another, and
    the function gets those of one example as an ordinary batch.

    Args:
        function: takes tensors of one example, then its parameters.
        tensors: those of the whole batch.
        parameters: stacked, or the same for all.
        axes: the axis of the examples in each of the parameters; None where it is the same for all.
        axis: of the examples in the tensors.
        count: number of examples in the batch.
        rows: the examples that are meant; None for all.

    Returns:
        The results, with an axis of the examples that are meant before the axis of each one's rows.
    """
    parts = [split_examples(tensor, axis, count) for tensor in tensors]
    if rows is not None:
        parts = [part.index_select(axis, rows.to(part.device)) for part in parts]
    if all(own is None for own in axes):
        meant = parts[0].shape[axis]
        joined = function(*(part.flatten(axis, axis + 1) for part in parts), *parameters)
        return joined.unflatten(axis, (meant, -1))
    in_axes = (*[axis] * len(parts), *axes)
    return torch.func.vmap(function, in_dims=in_axes, out_dims=axis)(*parts, *parameters)


def split_examples(tensor: Tensor, axis: int, count: int) -> Tensor:
    """A tensor with an axis of the examples before the axis of each one's rows.

    Raises:
        UsageError: the rows do not divide among the examples.
    """
    size = tensor.shape[axis] if axis < tensor.ndim else 0
    if size == 0 or size % count:
        raise UsageError(f"the batch names {count} adapters, but a layer got {size} rows; name one for each example")
    return tensor.unflatten(axis, (count, size // count))
