"""Initial values of a new head, from the seed: what is not trained need not be stored."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from capaft.factors import rng
from capaft.model.names import canonical_path


def initialise_head(model: nn.Module, names: Iterable[str], seed: int) -> None:
    """Give new parameters initial values from the seed: matrices U(-1, 1) / sqrt(fan_in), biases 0.

    Vectors of normalisation layers keep their ones and zeros.
    """
    new = set(names)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            name = canonical_path(model, path)
            if name not in new:
                continue
            values = initial_values(name, parameter.shape, seed)
            if values is not None:
                parameter.copy_(values)


def initial_values(name: str, shape: torch.Size, seed: int) -> Tensor | None:
    """Initial values of a new parameter of a head, by its canonical name; None if it keeps those of its layer."""
    site, _, leaf = name.rpartition(".")
    if len(shape) >= 2:
        fan_in = shape[1:].numel()
        drawn = torch.from_numpy(rng.uniform(rng.fold_in(seed, site, f"head:{leaf}", "init"), shape.numel()))
        return drawn.view(shape) * float(np.float32(1 / math.sqrt(fan_in)))
    return None if "norm" in site.lower() else torch.zeros(shape)
