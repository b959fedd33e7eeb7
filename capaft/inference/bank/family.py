"""Adapters that share everything but their trained parameters: method, seed, sites, and the kind of head.

All that the seed gives (bases, masks, frozen factors) is drawn once for the family, checked once against the base
model, and used for all of its adapters at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from capaft.adapter.file.adapter_file import AdapterFile
from capaft.adapter.file.encoding import decode_tensor, dtype_name
from capaft.adapter.file.fit import check_base, check_head, labels_on
from capaft.adapter.file.other_head import HEAD
from capaft.adapter.file.save_load import Fit, fit_file, stored_values
from capaft.adapter.hooks import parametrised
from capaft.adapter.module import Adapter
from capaft.adapter.plan import Plan
from capaft.inference.bank.cache import Expanded
from capaft.inference.bank.rows import Rows
from capaft.methods.head import HEAD_ROLE
from capaft.methods.host import Host
from capaft.model.labels import Labels
from capaft.model.layers import read_without_calling
from capaft.model.names import base_parameters, canonical_name
from capaft.model.weights import device_of, weight_owners
from capaft.support.errors import AdapterFileError

# Entries of a factor that are expanded at the same time, over all sites and adapters.
MOST_ENTRIES = 2**24


def family_key(file: AdapterFile) -> Hashable:
    """What two files have to have in common to be of one family."""
    header = file.header
    head = header.head and (header.head.k, tuple(sorted(header.head.parameters.items())), header.head.weights)
    tensors = tuple(sorted((name, dtype_name(t), tuple(t.shape)) for name, t in file.tensors.items()))
    return (header.method, header.seed, header.sites, header.targets, head, header.digest.streams, tensors)


class Family:
    """Adapters that share everything but their parameters.

    Args:
        model: the base model.
        file: the first file; nothing of it is kept here.
        rename: see `capaft.load`.
        allow_base_mismatch: see `capaft.load`.

    Attributes:
        plan: the decisions that all have in common.
        maps: an adapter that is on no model, for its maps from parameters to factors.
        sources: for each place of the plan, the map and the position in it of each factor.
        shared: for each map, its factors if they are the same for all adapters, else None.
        head: for every parameter that the adapters have in place of the model's, the places that hold it, each a
            module's path and the parameter's name there.
        rows: the stored parameters.
    """

    def __init__(
        self, model: nn.Module, file: AdapterFile, rename: dict[str, str] | None, allow_base_mismatch: bool
    ) -> None:
        fit = fit_file(model, file, rename, allow_base_mismatch)
        self.plan = fit.plan
        _refuse(model, file, fit.plan)
        self._rename, self._allow_mismatch, self._shapes = rename, allow_base_mismatch, fit.shapes
        self._dtype = file.header.save_dtype
        self.maps = Adapter(fit.plan).requires_grad_(False)
        self._prepare(device_of(model))
        self._base = _head_values(model, fit)
        self._parameters = {name: tuple(values.shape) for name, values in self.maps.role_parameters.items()}
        self._parameters |= {HEAD + name: tuple(self._base[name].shape) for name in fit.plan.trained}
        self._fixed = self._base.keys() - set(fit.plan.trained) - set(_moved_names(fit.plan))
        self.head = _places(model, self._base, fit.plan.rename)
        _refuse_head(model, file, self.head)
        stored_values(file, self._parameters)
        self.rows = Rows(file.tensors)
        self._fitting = {_claims(file): fit.labels}
        # Sites that no forward has called yet; None once it is known.
        self.unfired: set[int] | None = set(range(len(fit.plan.sites)))

    def _prepare(self, device: torch.device) -> None:
        """Move the maps to a device, and expand what does not depend on an adapter."""
        self.maps.to(device)
        self.device = device
        self.shared: list[Tensor | None] = []
        self.sources: list[list[tuple[int, int]]] = [[] for _ in self.plan.placed]
        with torch.no_grad():
            for number, (_, expansion, _, positions) in enumerate(self.maps.maps()):
                empty = torch.zeros(expansion.parameters_shape, device=device)
                self.shared.append(None if empty.numel() else expansion.expand(empty))
                for index, position in enumerate(positions):
                    self.sources[position].append((number, index))

    def follow(self, model: nn.Module) -> bool:
        """Move to the model's device; True if it has changed."""
        if (device := device_of(model)) == self.device:
            return False
        self._prepare(device)
        self._base = {name: values.to(device) for name, values in self._base.items()}
        return True

    @property
    def fixed(self) -> dict[str, Tensor]:
        """Values of the head's parameters that are the same for all adapters, by canonical name."""
        return {name: values for name, values in self._base.items() if name in self._fixed}

    def check(self, model: nn.Module, file: AdapterFile) -> Labels | None:
        """Verify one more file as `capaft.load` does; what the family has verified is not verified again.

        Returns:
            The labels of its head; None if they are the model's.

        Raises:
            AdapterFileError: the file is damaged, or belongs to another model.
        """
        claims = _claims(file)
        if claims not in self._fitting:
            check_head(model, file, self._rename, self._shapes)
            check_base(model, file, self.plan, self._shapes, self._allow_mismatch)
            self._fitting[claims] = labels_on(model, file, self._shapes)
        stored_values(file, self._parameters)
        return self._fitting[claims]

    def expand(self, rows: Sequence[int]) -> list[Expanded]:
        """The factors of several adapters, from one batched operation for each shape of factor."""
        stored = [self.rows.read(row) for row in rows]
        values = {
            name: torch.stack([decode_tensor(name, tensors, shape, self._dtype) for tensors in stored]).to(self.device)
            for name, shape in self._parameters.items()
        }
        with torch.no_grad():
            factors = [
                torch.empty(len(rows), 0, device=self.device)
                if self.shared[number] is not None
                else _in_parts(expansion.expand, values[role].flatten(1)[:, span], expansion.parameters_shape)
                for number, (role, expansion, span, _) in enumerate(self.maps.maps())
            ]
            heads = {name: values[HEAD + name] for name in self.plan.trained} | dict(self._moved(factors))
            # Apart, so that an adapter that is kept does not keep those that were expanded with it.
            return [
                Expanded(
                    tuple(batch[index].clone() for batch in factors),
                    {name: batch[index].to(self._base[name].dtype, copy=True) for name, batch in heads.items()},
                )
                for index in range(len(rows))
            ]

    def _moved(self, factors: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The parameters of the head that move along a basis, `W0 + G c`, of several adapters."""
        for place in range(len(self.plan.sites), len(self.plan.placed)):
            name = _moved_names(self.plan)[place - len(self.plan.sites)]
            ((number, position),) = self.sources[place]
            base = self._base[name]
            yield name, base + factors[number][:, position].reshape(-1, *base.shape).to(base.dtype)


def _claims(file: AdapterFile) -> Hashable:
    """What a file says about its base model and its labels, beside what its family has in common."""
    task = file.task
    return file.header.base.weights, task and (task.labels, task.options.get("problem_type"))


def _in_parts(expand: Callable[[Tensor], Tensor], values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Expand the parameters of several adapters, not all at once if the factors take much memory."""
    first = expand(values[:1].reshape(-1, *shape))
    step = max(1, MOST_ENTRIES // max(1, first.numel()))
    parts = [expand(part.reshape(-1, *shape)) for part in values[1:].split(step)] if len(values) > 1 else []
    return torch.cat([first, *parts])


def _head_values(model: nn.Module, fit: Fit) -> dict[str, Tensor]:
    """The values that the parameters in place of the model's start from, by canonical name."""
    names = {canonical_name(model, name, fit.plan.rename): name for name in base_parameters(model)}
    values = {}
    for name in dict.fromkeys((*fit.plan.trained, *fit.start, *_moved_names(fit.plan))):
        base = model.get_parameter(names[name]).detach()
        values[name] = fit.start[name].to(base.device, base.dtype) if name in fit.start else base
    return values


def _moved_names(plan: Plan) -> list[str]:
    """Canonical names of the head's parameters that have coefficients, in the order of their places."""
    return [f"{site.path}.{site.parameter}".removeprefix(".") for site in plan.head.moved]


def _places(model: nn.Module, names: Mapping[str, Tensor], rename: dict[str, str]) -> dict[str, list[tuple[str, str]]]:
    """For every parameter, by canonical name, the modules that hold it, and its name in each."""
    places: dict[str, list[tuple[str, str]]] = {}
    for owners in weight_owners(model).values() if names else ():
        name = canonical_name(model, ".".join(filter(None, owners[0])), rename)
        if name in names:
            places[name] = owners
    return places


def _refuse(model: nn.Module, file: AdapterFile, plan: Plan) -> None:
    """Refuse an adapter that acts elsewhere than on what a module takes and gives.

    Raises:
        AdapterFileError: it does.
    """
    advice = "attach it with capaft.load"
    if plan.stack.method == "full":
        raise AdapterFileError(f"{file.path} replaces every weight, so it shares nothing with others; {advice}")
    for host, site in plan.placed:
        if site.kind == "attention":
            raise AdapterFileError(f"{file.path}: {host.name} acts within attention, where a bank cannot; {advice}")
        if host.name != HEAD_ROLE and parametrised(host, site):
            raise AdapterFileError(
                f"{file.path} changes the weight of {site.module}, which the model reads without calling it; {advice}"
            )
    if plan.stack.host and type(plan.stack.host).prepare is not Host.prepare:
        raise AdapterFileError(f"{file.path}: {plan.stack.host.name} changes the model as a whole; {advice}")


def _refuse_head(model: nn.Module, file: AdapterFile, head: Mapping[str, list[tuple[str, str]]]) -> None:
    """Refuse parameters in place of the model's whose modules are not simply called.

    Raises:
        AdapterFileError: the model reads one elsewhere.
    """
    read = read_without_calling(model) if head else set()
    for places in head.values():
        for path, leaf in places:
            module = model.get_submodule(path)
            if path in read or not path or next(module.children(), None) is not None:
                raise AdapterFileError(
                    f"{file.path} trains {path}.{leaf}, which the model may read without calling a layer; attach it "
                    "with capaft.load"
                )
