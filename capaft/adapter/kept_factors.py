"""The factors that were last expanded, for as long as the parameters are the same.

A saved copy tells whether they are. Tensor version counters would be cheaper and wrong: fused optimizers and `.data`
edits leave them unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from capaft.adapter.flow import Factors


class KeptFactors:
    """The last expansions of an adapter, one made with gradients and one without."""

    def __init__(self) -> None:
        self._kept: dict[bool, tuple[list[Factors], list[Tensor], torch.dtype]] = {}

    def keep(self, factors: list[Factors], parameters: Iterable[Tensor], dtype: torch.dtype) -> list[Factors]:
        """Keep factors of this dtype that were expanded from these parameters, in the present gradient mode."""
        # Replaced as a whole, so that a thread sees either these or the ones before, which are as good.
        copies = [parameter.detach().clone() for parameter in parameters]
        self._kept[torch.is_grad_enabled()] = (factors, copies, dtype)
        return factors

    def unchanged(self, parameters: Iterable[Tensor], dtype: torch.dtype) -> list[Factors] | None:
        """The factors of this gradient mode; None if they are of other parameters, or of another dtype."""
        kept = self._kept.get(torch.is_grad_enabled())
        if kept is None:
            return None
        factors, copies, kept_dtype = kept
        same = kept_dtype == dtype and all(
            copy.device == parameter.device and torch.equal(copy, parameter)
            for copy, parameter in zip(copies, parameters, strict=True)
        )
        return factors if same else None

    def with_gradients(self) -> list[Factors] | None:
        """The factors of the last forward that had gradients, whatever has changed since."""
        kept = self._kept.get(True)
        return kept and kept[0]

    def __reduce__(self) -> tuple[Any, ...]:
        # They are part of an autograd graph and cannot be copied; they are expanded again when needed.
        return KeptFactors, ()
