"""Bytes of adapters that are alike, one row each, without a Python object for any of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

BLOCK_BYTES = 8 * 2**20


class Rows:
    """The stored tensors of adapters that have the same ones, as a file holds them.

    Rows stand in blocks, so that a bank grows without being copied.

    Args:
        tensors: the tensors of one adapter, whose dtypes and shapes are those of all.

    Attributes:
        width: bytes of a row.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        # Wide values first, so that each lies where its dtype may.
        ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
        self._layout: dict[str, tuple[int, int, torch.dtype, tuple[int, ...]]] = {}
        end = 0
        for name, tensor in ordered:
            self._layout[name] = (end, end + tensor.nbytes, tensor.dtype, tuple(tensor.shape))
            end += tensor.nbytes
        self.width = max(8, 8 * math.ceil(end / 8))
        self._per_block = max(1, BLOCK_BYTES // self.width)
        self._blocks: list[Tensor] = []
        self._free: list[int] = []
        self._used = 0

    def __len__(self) -> int:
        return self._used - len(self._free)

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return sum(block.nbytes for block in self._blocks)

    def add(self, tensors: Mapping[str, Tensor]) -> int:
        """Keep the tensors of one more adapter; the number of its row."""
        if self._free:
            row = self._free.pop()
        else:
            row = self._used
            if row == len(self._blocks) * self._per_block:
                self._blocks.append(torch.empty(self._per_block, self.width, dtype=torch.uint8, device="cpu"))
            self._used += 1
        for name, values in self.read(row).items():
            values.copy_(tensors[name])
        return row

    def read(self, row: int) -> dict[str, Tensor]:
        """The tensors of one adapter, as views that hold until its row is freed."""
        block, position = divmod(row, self._per_block)
        content = self._blocks[block][position]
        return {
            name: content[start:stop].view(dtype).view(shape)
            for name, (start, stop, dtype, shape) in self._layout.items()
        }

    def free(self, row: int) -> None:
        """Let another adapter have the row."""
        self._free.append(row)
