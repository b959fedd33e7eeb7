"""A head of which little is stored: its large parameters stay as they are, or move along a seeded basis.

A classifier's dense layer can hold fifty times the numbers of an adapter (590,592 in RoBERTa's). Where that is too
many, a parameter of the head becomes `W0 + G c`: W0 is what the model holds when the adapter is attached, G comes from
the seed as NOLA's bases do (arXiv 2310.02556), and only c is trained and stored. So W0 must be had again: from the
checkpoint, or for a new head from the seed, as `initialise_head` draws it. An adapter file carries
samples of it, so that another W0 is noticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from torch import Tensor, nn

from capaft.config.choices import BASIS, BasisName, HeadMode
from capaft.factors.factor import Factor
from capaft.factors.nola import Coefficients
from capaft.methods.host import Host
from capaft.model.site import Site, is_quantised, stored_parameter
from capaft.model.weights import weight_owners
from capaft.support.errors import UsageError

HEAD_MODES = get_args(HeadMode)
# The role of the coefficients, of all parameters together: one tensor in an adapter file.
HEAD_ROLE = "head"


@dataclass(frozen=True)
class Head(Host):
    """The parameters of a head that are not trained whole, as sites of a host that stands beside the stack's own.

    Attributes:
        k: coefficients of each parameter; 0 leaves them as they are.
        basis: what the coefficients combine.
        parameters: where they are, in the order of their names.
    """

    name: ClassVar[str] = "head"
    summary: ClassVar[str] = "large parameters of the head, moved along a seeded basis"
    equation: ClassVar[str] = "W = W0 + G c"
    paper: ClassVar[str] = "arXiv 2310.02556"
    additive: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = frozenset()

    k: int = 0
    basis: BasisName = BASIS
    parameters: tuple[Site, ...] = ()

    @staticmethod
    def of(model: nn.Module, names: Mapping[str, str], k: int, basis: BasisName) -> Head:
        """The head that has these parameters.

        Args:
            model: the base model.
            names: by canonical name, the parameters' names in the model.
            k: coefficients of each; 0 leaves them as they are.
            basis: what the coefficients combine.

        Raises:
            UsageError: one is quantised or shared with another module, and so cannot be moved.
        """
        owners = weight_owners(model)
        sites = []
        for name, own in sorted(names.items()):
            inside, _, leaf = own.rpartition(".")
            parameter = stored_parameter(model.get_submodule(inside), leaf)
            if k and is_quantised(parameter):
                raise UsageError(f"{own} is quantised and has no coefficients; choose --head frozen")
            if k and len(tied := owners[id(parameter)]) > 1:
                raise UsageError(
                    f"{' and '.join(map('.'.join, tied))} are one tied weight; choose --head full, or load it untied"
                )
            out = parameter.shape[0] if parameter.ndim else 1
            path = name.rpartition(".")[0]
            sites.append(Site(path, inside, parameter.shape[1:].numel(), out, "head", leaf))
        return Head(k, basis, tuple(sites)) if sites else Head()

    @property
    def moved(self) -> tuple[Site, ...]:
        """The parameters that have coefficients."""
        return self.parameters if self.k else ()

    @property
    def numbers(self) -> int:
        """How many coefficients there are, of all parameters together."""
        return self.k * len(self.parameters)

    @property
    def coefficients(self) -> Coefficients:
        """NOLA's numbers for each parameter."""
        return Coefficients(self.k, self.basis)

    def record(self) -> dict[str, Any] | None:
        """What an adapter file says of it: k, and the shape of every parameter as a matrix; None if there are none."""
        shapes = {_name(site): [site.out_features, site.in_features] for site in self.parameters}
        return {"k": self.k, "parameters": shapes} if shapes else None

    def factors(self, site: Site) -> tuple[Factor, ...]:
        """See `Host.factors`: `G c`, which starts at 0."""
        return (Factor(f"{HEAD_ROLE}:{site.parameter}", (site.out_features, site.in_features), None),)

    def forward(
        self, site: Site, module: nn.Module, inputs: Tensor, output: Tensor, factors: tuple[Tensor, ...]
    ) -> Tensor:
        """See `Host.forward`: never called, since what changes is a parameter while the model reads it."""
        raise AssertionError("a parameter of the head has no output")

    def merged(
        self, site: Site, weight: Tensor, bias: Tensor | None, factors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """See `Host.merged`."""
        return weight + factors[0], bias


def _name(site: Site) -> str:
    """The canonical name of the parameter that a site is."""
    return f"{site.path}.{site.parameter}".removeprefix(".")
