"""Length and learning rates of a run: the user's choice, else a recipe for the kind of method.

The recipes were found on the embedded demo and on GLUE; docs/log.md has the figures. A host brings the rate of its own
dense factors. Coefficients of a random basis want a far larger step than the entries of a factor, since each is spread
thin over the whole factor.

The rates were found on one small model. A step of Adam moves every parameter by about the rate, so its length grows
with the square root of the number of parameters: with more of them the rate falls by that root, and the step stays as
long as it was. Without that, large ranks and many layers ended at the commonest answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from capaft.config.parts.optimization import OptimizationSettings
from capaft.methods.stack import Stack

# Numbers of parameters that the rates were found with, on all-MiniLM-L6-v2: coefficients of query and value with
# k = 192, and all weights.
_COEFFICIENTS, _WEIGHTS = 4_608, 22_713_216


@dataclass(frozen=True)
class Recipe:
    """Peak learning rates and epochs for a kind of method.

    Attributes:
        lr: of the adapter's parameters, or of all weights for `full`.
        head_lr: of a new head.
        epochs: passes over the training data.
    """

    lr: float
    head_lr: float
    epochs: int


@dataclass(frozen=True)
class Rates:
    """Length and learning rates of a run.

    Attributes:
        lr: peak learning rate of the adapter's parameters.
        head_lr: peak learning rate of the head.
        steps: optimizer steps of the whole run.
        epochs: passes over the training examples; None where steps were asked for.
    """

    lr: float
    head_lr: float
    steps: int
    epochs: int | None


def choose_rates(stack: Stack, parameters: int, examples: int, settings: OptimizationSettings) -> Rates:
    """The rates of a run: what the settings say, else the recipe of the method.

    Args:
        stack: the methods.
        parameters: number of trainable parameters beside those of the head.
        examples: number of training examples.
        settings: those of the optimization.
    """
    recipe = choose_recipe(stack, parameters)
    epochs = None if settings.max_steps else settings.epochs or recipe.epochs
    # Of the method that trains nothing but the head, the one rate is the head's.
    head_lr = settings.head_lr or (settings.lr if stack.method == "head" else None) or recipe.head_lr
    return Rates(
        lr=settings.lr or recipe.lr,
        head_lr=head_lr,
        steps=settings.max_steps or (epochs or 1) * math.ceil(examples / settings.batch_size),
        epochs=epochs,
    )


def choose_recipe(stack: Stack, parameters: int) -> Recipe:
    """The recipe of a method stack.

    Args:
        stack: the methods.
        parameters: number of trainable parameters beside those of the head.
    """
    if stack.method == "full":
        return Recipe(lr=_slowed(1e-4, _WEIGHTS, parameters), head_lr=1e-3, epochs=4)
    if stack.method == "head":
        return Recipe(lr=2e-3, head_lr=2e-3, epochs=5)
    assert stack.host is not None
    lr, tuned_with = (1e-2, _COEFFICIENTS) if stack.k else (stack.host.learning_rate, stack.host.tuned_parameters)
    return Recipe(lr=_slowed(lr, tuned_with, parameters), head_lr=2e-3, epochs=5)


def _slowed(lr: float, tuned_with: int, parameters: int) -> float:
    """A rate found with one number of parameters, for as many or more; to two digits, which it is known to."""
    return float(f"{lr * min(1.0, math.sqrt(tuned_with / max(parameters, 1))):.1e}")
