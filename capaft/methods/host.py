"""What a method that hosts adapters has to say: its options, its sites, its factors, and what they do to a layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import Field, fields
from typing import Any, ClassVar

from torch import Tensor, nn

from capaft.factors.factor import Factor
from capaft.model.site import Site
from capaft.model.targets import Targets
from capaft.model.weight_sites import find_weight_sites
from capaft.support.errors import UsageError


class Host(ABC):
    """An adapter method. It sees factors, never how their numbers came to be or how often they were copied.

    Subclasses are frozen dataclasses: their fields are the method's options, by the names of the command line, and are
    what the adapter file records.

    Attributes:
        name: what the method is called in a stack.
        summary: what it does, in half a line.
        equation: what it computes.
        paper: where it was published.
        size: the option that sets how large it is, which a budget may choose; empty if it has one size only.
        narrow: why masked copies have no meaning for it; empty if they have one.
        unmergeable: why its update cannot be added to the base weights; empty if it can.
        default_targets: what is adapted where the user does not say; empty where the method itself knows its places.
        learning_rate: the peak learning rate that it trains with unless told otherwise; coefficients have their own.
        found_with: how many trained numbers that rate was found with; with more of them it is lower.
        additive: whether what it adds to an output does not depend on that output.
        drops: whether it has an input of its own that dropout can zero part of.
        kinds: kinds of layer whose output it can adapt beside the layer; others have their weight changed instead.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    equation: ClassVar[str]
    paper: ClassVar[str]
    size: ClassVar[str] = ""
    narrow: ClassVar[str] = ""
    unmergeable: ClassVar[str] = ""
    default_targets: ClassVar[str] = ""
    learning_rate: ClassVar[float] = 2e-3
    found_with: ClassVar[int] = 73_728
    additive: ClassVar[bool] = False
    drops: ClassVar[bool] = False
    kinds: ClassVar[frozenset[str]] = frozenset(["linear"])

    def sites(self, model: nn.Module, targets: Targets, rename: dict[str, str] | None) -> tuple[Site, ...]:
        """Where the method attaches; by default the query and value projections, or the layers asked for.

        Raises:
            UsageError: nothing in the model is what the targets ask for.
        """
        return find_weight_sites(model, targets, rename)

    def prepare(self, model: nn.Module) -> list[Any]:
        """What the method needs of the model as a whole; each thing has a `remove` that undoes it."""
        return []

    @abstractmethod
    def factors(self, site: Site) -> tuple[Factor, ...]:
        """The factors that the method needs at a site, in the order in which it takes them back."""

    @abstractmethod
    def forward(
        self, site: Site, module: nn.Module, inputs: Tensor, output: Tensor, factors: tuple[Tensor, ...]
    ) -> Tensor:
        """The site's output with the adapter in place.

        Args:
            site: where this is.
            module: the base module.
            inputs: the module's input, `(..., in)`.
            output: the base module's output, `(..., out)`; for a part of a fused projection, that part of it.
            factors: the widened factors, in the order of `factors`.
        """

    def before(self, site: Site, module: nn.Module, inputs: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        """The input that the base module gets at a site that scales its input; see `Site`."""
        return inputs

    def attend(self, factors: tuple[Tensor, ...], function: Any, *args: Any, **kwargs: Any) -> Any:
        """At a site that is an attention: what `function(*args, **kwargs)` of `model.attention_routing` becomes."""
        return function(*args, **kwargs)

    def merged(
        self, site: Site, weight: Tensor, bias: Tensor | None, factors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """The weight `(out, in)` and bias `(out,)` of a plain layer that does what layer and adapter do together."""
        raise UsageError(f"{self.name} cannot be merged: {self.unmergeable}")

    def product(self, site: Site, factors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor] | None:
        """The update as `dW = left @ right`, scale included: `left` is `(out, hidden)`, `right` `(hidden, in)`.

        None for a method whose update is no product of factors.
        """
        return None

    @classmethod
    def options(cls) -> tuple[Field[Any], ...]:
        """The method's options."""
        return fields(cls)  # type: ignore[arg-type]


def check_whole(option: str, value: Any, low: int = 1) -> int:
    """An option that must be a whole number.

    Raises:
        UsageError: it is not, or is below `low`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise UsageError(f"--{option} must be a whole number of at least {low}, got {value}")
    return value


def check_number(option: str, value: Any) -> float:
    """An option that must be a finite number other than 0.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < abs(value) < 1e9:
        raise UsageError(f"--{option} must be a finite number other than 0, got {value}")
    return float(value)  # 16 and 16.0 are one adapter, and must be one file.
