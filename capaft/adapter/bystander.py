"""The base class of all that an adapter adds to a model as child modules."""

from __future__ import annotations

from typing import Any

from torch import nn


class Bystander(nn.Module):
    """A child that computes nothing when it is called: its hooks and its owner do."""

    def forward(self, *inputs: Any) -> Any:
        """Return the inputs: some containers, `nn.Sequential` for one, call all their children in turn."""
        return inputs[0] if len(inputs) == 1 else inputs
