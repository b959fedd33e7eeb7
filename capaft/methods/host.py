"""What a method that hosts adapters has to say: its factors, its forward, and its update as a product."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from capaft.factor import Factor
from capaft.sites import Site


class Host(ABC):
    """An adapter method. It sees factors, never how their numbers came to be or how often they were copied.

    Subclasses are frozen dataclasses: their fields are the method's options, and are what the adapter file records.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    equation: ClassVar[str]
    paper: ClassVar[str]

    @abstractmethod
    def factors(self, site: Site) -> tuple[Factor, ...]:
        """The factors that the method needs at a site, in the order in which it takes them back."""

    @abstractmethod
    def forward(self, site: Site, inputs: Tensor, output: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        """The site's output with the adapter in place.

        Args:
            site: where this is.
            inputs: the module's input, `(..., in)`.
            output: the base module's output, `(..., out)`; for a slice, that slice of it.
            factors: the widened factors, in the order of :meth:`factors`.
        """

    @abstractmethod
    def product(self, site: Site, factors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The update as `dW = left @ right`, scale included: `left` is `(out, hidden)`, `right` `(hidden, in)`."""
