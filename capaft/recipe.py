"""How long and how fast each kind of method trains, unless the user says otherwise.

Found on the embedded demo and on GLUE; docs/log.md has the figures.
A host brings the rate of its own dense factors.
Coefficients of a random basis want a far larger step than the entries of a factor, since each is spread thin over the
whole factor.
"""

from __future__ import annotations

from dataclasses import dataclass

from capaft.methods.stack import Stack


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


def recipe(stack: Stack) -> Recipe:
    """The recipe of a method stack."""
    if stack.method == "full":
        return Recipe(lr=1e-4, head_lr=1e-3, epochs=4)
    if stack.method == "head":
        return Recipe(lr=2e-3, head_lr=2e-3, epochs=5)
    if stack.k is not None:
        return Recipe(lr=1e-2, head_lr=2e-3, epochs=5)
    assert stack.host is not None
    return Recipe(lr=stack.host.learning_rate, head_lr=2e-3, epochs=5)
