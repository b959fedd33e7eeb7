"""A head that takes little space: its large parameters are frozen, or move along a seeded basis.

A classifier's dense layer can hold fifty times the parameters of an adapter (590,592 in RoBERTa's). Where that is too
many, a parameter of the head becomes `W0 + G c`: W0 is the model's value when the adapter is attached, G comes from the
seed as NOLA's bases do (arXiv 2310.02556), and only c is trained and stored. So W0 must be available again: from the
checkpoint, or for a new head from the seed, as `initialise_head` draws it. An adapter file carries samples of W0, so
that a different one is noticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from capaft.config.choices import BASIS, BasisName, HeadMode
from capaft.factors.factor import Factor
from capaft.factors.nola import Coefficients
from capaft.methods.host import Host
from capaft.model.site import Site, is_quantised, stored_parameter
from capaft.model.weights import weight_owners
from capaft.support.errors import UsageError

HEAD_MODES = get_args(HeadMode)
# The role of the coefficients of all parameters together: one tensor in an adapter file.
HEAD_ROLE = "head"


@dataclass(frozen=True)
class Head(Host):
    """The parameters of a head that are not trained directly, as sites of a second host beside the stack's.

    Attributes:
        k: number of coefficients of each parameter; 0 freezes the parameters.
        basis: kind of the random basis that the coefficients combine.
        parameters: the sites of the parameters, in the order of their names.
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
    def of(
        model: nn.Module, names: Mapping[str, str], shapes: Mapping[str, torch.Size], k: int, basis: BasisName
    ) -> Head:
        """The head with these parameters.

        Args:
            model: the base model.
            names: names of the parameters in the model, by canonical name.
            shapes: shapes of the parameters, by canonical name.
            k: number of coefficients of each parameter; 0 freezes the parameters.
            basis: kind of the random basis that the coefficients combine.

        Raises:
            UsageError: a parameter cannot be moved, since it is quantised or shared with another module.
        """
        owners = weight_owners(model)
        sites = []
        for canonical, name in sorted(names.items()):
            module_path, _, leaf = name.rpartition(".")
            parameter = stored_parameter(model.get_submodule(module_path), leaf)
            if k and is_quantised(parameter):
                raise UsageError(f"{name} is quantised and cannot have coefficients; choose --head frozen")
            if k and len(tied := owners[id(parameter)]) > 1:
                raise UsageError(
                    f"{' and '.join(map('.'.join, tied))} are one tied weight; choose --head full, or load it untied"
                )
            shape, path = shapes[canonical], canonical.rpartition(".")[0]
            sites.append(Site(path, module_path, shape[1:].numel(), shape[0] if shape else 1, "head", leaf))
        return Head(k, basis, tuple(sites)) if sites else Head()

    @property
    def moved(self) -> tuple[Site, ...]:
        """The parameters that have coefficients."""
        return self.parameters if self.k else ()

    @property
    def count(self) -> int:
        """Number of coefficients of all parameters together."""
        return self.k * len(self.parameters)

    @property
    def coefficients(self) -> Coefficients:
        """NOLA's options for each parameter."""
        return Coefficients(self.k, self.basis)

    def record(self) -> dict[str, Any] | None:
        """The head in an adapter file: k, and the shape of every parameter as a matrix; None without parameters."""
        shapes = {_name(site): [site.out_features, site.in_features] for site in self.parameters}
        return {"k": self.k, "parameters": shapes} if shapes else None

    def factors(self, site: Site) -> tuple[Factor, ...]:
        """See `Host.factors`. The factor is `G c`, which starts at 0."""
        return (Factor(f"{HEAD_ROLE}:{site.parameter}", (site.out_features, site.in_features), None),)

    def forward(
        self, site: Site, module: nn.Module, inputs: Tensor, output: Tensor, factors: tuple[Tensor, ...]
    ) -> Tensor:
        """See `Host.forward`. Never called: the adapter changes a parameter, not an output."""
        raise AssertionError("a parameter of the head has no output")

    def merged(
        self, site: Site, weight: Tensor, bias: Tensor | None, factors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """See `Host.merged`."""
        return weight + factors[0], bias

    def rows_of(self, site: Site, factors: tuple[Tensor, ...], start: int, stop: int) -> tuple[Tensor, ...]:
        """See `Host.rows_of`."""
        return (factors[0][start:stop],)


def _name(site: Site) -> str:
    """The canonical name of a site's parameter."""
    return f"{site.path}.{site.parameter}".removeprefix(".")
