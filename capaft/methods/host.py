"""The interface of an adapter method: its options, its sites, its factors, and their effect on a layer."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import Field, fields
from typing import Any, ClassVar

from torch import Tensor, nn

from capaft.factors.factor import Factor
from capaft.model.site import Site
from capaft.model.targets import Targets
from capaft.model.weight_sites import find_weight_sites
from capaft.support.errors import UsageError

# Names that tensors of an adapter file can have beside `head`, `head:...` and `scale:...`.
FACTOR_NAME = re.compile(r"(?!head$)[a-z][a-z0-9_]*")


class Host(ABC):
    """An adapter method. It sees factors, never how they were made or how often they were copied.

    Subclasses are frozen dataclasses. Their fields are the method's options, named as on the command line; the adapter
    file records them.

    Attributes:
        name: name of the method in a stack; of one from another package, `package.host`.
        version: of a method from another package, to be raised when the same parameters would mean another update. An
            adapter file is only read with the version that wrote it.
        summary: its effect, in half a line.
        equation: its formula.
        paper: its source.
        size: the option that sets its size, which a budget may choose; empty if it has only one size.
        narrow: reason why masked copies have no meaning for it; empty if they have one.
        unmergeable: reason why its update cannot be added to the base weights; empty if it can.
        default_targets: targets without a user's choice; empty if the method itself determines its places.
        learning_rate: default peak learning rate of its own factors; coefficients have another.
        tuned_parameters: number of trainable parameters that `learning_rate` was tuned with; more lower the rate.
        additive: True if the term that it adds to an output does not depend on that output.
        drops: True if it has an input of its own, part of which dropout can zero.
        kinds: kinds of layer whose output it can adapt beside the layer; of others it changes the weight.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    summary: ClassVar[str]
    equation: ClassVar[str]
    paper: ClassVar[str]
    size: ClassVar[str] = ""
    narrow: ClassVar[str] = ""
    unmergeable: ClassVar[str] = ""
    default_targets: ClassVar[str] = ""
    learning_rate: ClassVar[float] = 2e-3
    tuned_parameters: ClassVar[int] = 73_728
    additive: ClassVar[bool] = False
    drops: ClassVar[bool] = False
    kinds: ClassVar[frozenset[str]] = frozenset(["linear"])

    def sites(self, model: nn.Module, targets: Targets, rename: dict[str, str] | None) -> tuple[Site, ...]:
        """Sites that the method attaches to: the targets, or its default ones.

        Raises:
            UsageError: nothing in the model matches the targets.
        """
        return find_weight_sites(model, targets, rename)

    def prepare(self, model: nn.Module) -> list[Any]:
        """Change the model as a whole, if the method needs to; every result has a `remove` that undoes a change."""
        return []

    @abstractmethod
    def factors(self, site: Site) -> tuple[Factor, ...]:
        """The factors that the method needs at a site, in the order in which `forward` and the others receive them."""

    @abstractmethod
    def forward(
        self, site: Site, module: nn.Module, inputs: Tensor, output: Tensor, factors: tuple[Tensor, ...]
    ) -> Tensor:
        """The site's output with the adapter in place.

        Args:
            site: the site.
            module: the base module.
            inputs: the module's input, `(..., in)`.
            output: the base module's output, `(..., out)`, or the site's part of it for a fused projection.
            factors: the widened factors, in the order of `factors`.
        """

    def before(self, site: Site, module: nn.Module, inputs: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        """The base module's input at a site that changes it; see `Site`."""
        return inputs

    def attend(self, factors: tuple[Tensor, ...], function: Any, *args: Any, **kwargs: Any) -> Any:
        """Replacement for `function(*args, **kwargs)` of `model.attention_routing`, at a site that is an attention."""
        return function(*args, **kwargs)

    def merged(
        self, site: Site, weight: Tensor, bias: Tensor | None, factors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """The weight `(out, in)` and bias `(out,)` of a plain layer that equals layer and adapter together."""
        raise UsageError(f"{self.name} cannot be merged: {self.unmergeable}")

    def rows_of(self, site: Site, factors: tuple[Tensor, ...], start: int, stop: int) -> tuple[Tensor, ...] | None:
        """The factors that `merged` needs for the outputs from `start` to `stop` alone.

        None, by default, for a method whose outputs cannot be merged one by one: its weights are merged whole, which
        takes more memory.
        """
        return None

    def product(self, site: Site, factors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor] | None:
        """The update as `dW = left @ right`, scale included: `left` is `(out, hidden)`, `right` `(hidden, in)`.

        None for a method whose update is not a product of factors.
        """
        return None

    @classmethod
    def options(cls) -> tuple[Field[Any], ...]:
        """The method's options."""
        return fields(cls)  # type: ignore[arg-type]


def check_factors(host: Host, site: Site) -> None:
    """Refuse the factors of a host that an adapter file could not tell apart.

    Raises:
        UsageError: one of them has a name that it cannot have, or that another one has.
    """
    names = [factor.name for factor in host.factors(site)]
    for name in names:
        if not isinstance(name, str) or not FACTOR_NAME.fullmatch(name):
            raise UsageError(
                f"the method {host.name} has a factor named {name!r}; its author has to choose a name of lower-case "
                "letters, digits and _ that begins with a letter and is not head"
            )
    if len(set(names)) < len(names):
        raise UsageError(f"the method {host.name} has two factors of one name among {', '.join(names)}")


def check_whole(option: str, value: Any, low: int = 1) -> int:
    """Return an option's value, which must be a whole number of at least `low`.

    Raises:
        UsageError: the value is anything else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise UsageError(f"--{option} must be a whole number of at least {low}, got {value!r}")
    return value


def check_number(option: str, value: Any) -> float:
    """Return an option's value, which must be a finite number other than 0, as a float.

    Raises:
        UsageError: the value is anything else.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < abs(value) < 1e9:
        raise UsageError(f"--{option} must be a finite number other than 0, got {value!r}")
    return float(value)  # 16 and 16.0 are the same adapter, and must give the same file.
