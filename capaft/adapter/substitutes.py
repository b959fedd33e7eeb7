"""The tensors that an adapter has in place of the model's own: a head, and whatever else it trains as it is.

While the adapter is active they stand in the model, under the names of those they replace, so that optimizers, heads
and checkpoints see ordinary parameters; the model's own wait here, untouched. Otherwise it is the other way round, and
there is one copy of each. A `state_dict` does not depend on who is active: the model's own tensors stand in it under
their own names, the adapter's under the adapter's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from capaft.adapter.bystander import Bystander
from capaft.model.names import canonical_name
from capaft.model.site import is_quantised
from capaft.model.weights import weight_owners
from capaft.support.errors import UsageError

# Attributes in which layers keep the first side of their weight.
_OUTPUTS = ("out_features", "out_channels", "num_embeddings")

Places = dict[str, list[tuple[str, nn.Module, str]]]


def places_of(model: nn.Module, names: Collection[str], rename: dict[str, str] | None) -> Places:
    """By canonical name, the paths, modules and leaf names that hold each of some of the model's own parameters.

    Raises:
        UsageError: the model has one of them no more.
    """
    places: Places = {}
    for owners in weight_owners(model).values() if names else ():
        name = canonical_name(model, ".".join(filter(None, owners[0])), rename)
        if name in names:
            places[name] = [(path, model.get_submodule(path), leaf) for path, leaf in owners]
    if lost := sorted(set(names) - places.keys()):
        raise UsageError(
            f"{lost[0]} has been replaced or removed since the adapter was attached; put it back, or attach the "
            "adapter to a fresh model"
        )
    return places


class Substitutes(Bystander):
    """An adapter's tensors in place of the model's own.

    Attributes:
        kept: the adapter's tensors while they are not in the model, by canonical name with `:` for `.`.
        displaced: the model's own while the adapter's are in their place. They are no parameters of this module, so
            that nobody trains, counts or initialises them.
        names: canonical names of all.
        rename: see `Plan`.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], rename: dict[str, str] | None = None) -> None:
        super().__init__()
        self.kept = nn.ParameterDict({_key(name): parameter for name, parameter in parameters.items()})
        self.displaced: dict[str, nn.Parameter] = {}
        self.names = tuple(parameters)
        self.rename = rename

    def tensors(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The adapter's tensors by canonical name, wherever they are."""
        if not self.displaced:
            return {name: self.kept[_key(name)] for name in self.names}
        places = places_of(model, self.names, self.rename)
        return {name: _held(places[name][0]) for name in self.names}

    def enter(self, model: nn.Module) -> None:
        """Put the adapter's tensors in place of the model's own."""
        self.displaced = _exchange(model, self.tensors(model), self.rename)
        self.kept.clear()

    def leave(self, model: nn.Module) -> None:
        """Put the model's own tensors back, the same objects as before."""
        taken = _exchange(model, self.displaced, self.rename)
        self.kept.update({_key(name): parameter for name, parameter in taken.items()})
        self.displaced = {}

    def give(self, model: nn.Module) -> None:
        """Make the adapter's tensors the model's own for good, in the dtype of those that they replace."""
        given = self.tensors(model)
        replaced = self.displaced or _exchange(model, given, self.rename)
        for name, parameter in given.items():
            if not is_quantised(replaced[name]):
                parameter.data = parameter.data.to(replaced[name].dtype)
        self.kept.clear()
        self.displaced, self.names = {}, ()

    def add(self, name: str, parameter: nn.Parameter) -> None:
        """Take one more tensor, while the adapter is inactive."""
        self.kept[_key(name)] = parameter
        self.names = (*self.names, name)

    def move(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Apply to the displaced tensors what `nn.Module` applies to all in the model."""
        if self.displaced:
            holder = nn.ParameterList(self.displaced.values())
            holder._apply(fn)
            self.displaced = dict(zip(self.displaced, holder, strict=True))

    def write_state(self, model: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        """Name the tensors in a state dictionary by whose they are; a hook of the model."""
        for (key, places), own in zip(self._keys(model, prefix), self.displaced.values(), strict=True):
            if places[0] in state:
                state[key] = state[places[0]]
                for place in places:
                    state[place] = own if isinstance(state[key], nn.Parameter) else own.detach()

    def read_state(
        self, model: nn.Module, state: dict[str, Any], prefix: str, metadata: Any, strict: bool, *reports: Any
    ) -> None:
        """Undo `write_state` before a state dictionary is loaded; a hook of the model."""
        with torch.no_grad():
            for (key, places), own in zip(self._keys(model, prefix), self.displaced.values(), strict=True):
                values = [state.pop(place) for place in places if place in state]
                for value in values[:1]:
                    own.copy_(value)
                if key in state:
                    state.update(dict.fromkeys(places, state.pop(key)))

    def _keys(self, model: nn.Module, prefix: str) -> list[tuple[str, list[str]]]:
        """For each displaced tensor, the key of the adapter's in a state dictionary, and the keys of its places."""
        if not self.displaced:
            return []
        (here,) = (path for path, module in model.named_modules() if module is self)
        places = places_of(model, self.displaced, self.rename)
        return [
            (
                f"{prefix}{here}.kept.{_key(name)}",
                [prefix + ".".join(filter(None, (path, leaf))) for path, _, leaf in places[name]],
            )
            for name in self.displaced
        ]


def _key(name: str) -> str:
    return name.replace(".", ":")


def _held(place: tuple[str, nn.Module, str]) -> nn.Parameter:
    _, module, leaf = place
    held = module._parameters[leaf]
    assert held is not None
    return held


def _exchange(
    model: nn.Module, incoming: Mapping[str, nn.Parameter], rename: dict[str, str] | None
) -> dict[str, nn.Parameter]:
    """Put parameters into a model, by canonical name; those that stood there before."""
    places = places_of(model, incoming, rename)
    outgoing: dict[str, nn.Parameter] = {}
    for name, parameter in incoming.items():
        for place in places[name]:
            _, module, leaf = place
            outgoing[name] = _held(place)
            if parameter.ndim and parameter.shape[0] != outgoing[name].shape[0]:
                for attribute in _OUTPUTS:
                    if getattr(module, attribute, None) == outgoing[name].shape[0]:
                        setattr(module, attribute, parameter.shape[0])
            # Not through `_parameters`: recurrent layers keep a second list.
            setattr(module, leaf, parameter)
    return outgoing
