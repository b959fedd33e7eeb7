"""Kinds of layers."""

from __future__ import annotations

import torch
from torch import nn

from capaft.model.site import Site
from capaft.model.targets import Targets
from capaft.model.weight_sites import find_weight_sites


def test_a_quantised_linear_layer_is_a_site() -> None:
    class Int8Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_features, self.out_features = 8, 6
            self.register_buffer("weight", torch.zeros(6, 8, dtype=torch.int8))

    model = nn.ModuleDict({"q_proj": Int8Linear(), "bilinear": nn.Bilinear(2, 2, 2)})
    assert find_weight_sites(model, Targets("all-linear")) == (Site("q_proj", "q_proj", 8, 6),)
