"""How long and how fast each kind of method trains, unless the user says otherwise.

Found on the embedded demo and on GLUE; docs/log.md has the figures.
A host brings the rate of its own dense factors.
Coefficients of a random basis want a far larger step than the entries of a factor, since each is spread thin over the
whole factor.

The rates were found on one small model. A step of Adam moves every number by about the rate, so that its length grows
with the square root of how many numbers there are: with more of them the rate falls by that root, and the step stays as
long as it was. Without that, large ranks and many layers ended at the commonest answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from capaft.methods.stack import Stack

# How many the rates were found with, on all-MiniLM-L6-v2: coefficients of query and value, k = 192; and all weights.
_COEFFICIENTS, _WEIGHTS = 4_608, 22_713_216


@dataclass(frozen=True)
class Recipe:
    """Peak learning rates and epochs.

    Attributes:
        lr: of the adapter's numbers, or of all weights for `full`.
        head_lr: of a newly made head.
        epochs: passes over the training data.
    """

    lr: float
    head_lr: float
    epochs: int


def choose_recipe(stack: Stack, numbers: int) -> Recipe:
    """The recipe of a method stack.

    Args:
        stack: the methods.
        numbers: how many are trained beside those of the head.
    """
    if stack.method == "full":
        return Recipe(lr=_slowed(1e-4, _WEIGHTS, numbers), head_lr=1e-3, epochs=4)
    if stack.method == "head":
        return Recipe(lr=2e-3, head_lr=2e-3, epochs=5)
    assert stack.host is not None
    lr, tuned = (1e-2, _COEFFICIENTS) if stack.k else (stack.host.learning_rate, stack.host.tuned_parameters)
    return Recipe(lr=_slowed(lr, tuned, numbers), head_lr=2e-3, epochs=5)


def _slowed(lr: float, tuned: int, numbers: int) -> float:
    """A rate that was found with so many numbers, for as many or more; to two digits, which is what it is known to."""
    return float(f"{lr * min(1.0, math.sqrt(tuned / max(numbers, 1))):.1e}")
