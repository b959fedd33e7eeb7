"""The tensors of a merged model, each made from those of the base's checkpoint as it is written.

What no adapter changes is copied as it lies there. Of the rest no more than one tensor is in memory at a time; where
the checkpoint stores the experts of a mixture one by one, one expert.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from capaft.adapter.merged_weight import Rounding, add_updates
from capaft.exchange.adapter_places import Place
from capaft.exchange.merged_tensor import MergedTensor, cast, described, raw
from capaft.model.checkpoint_tensors import StoredTensor
from capaft.model.names import base_modules
from capaft.model.skeleton import NeedsWeights
from capaft.model.stored_dtypes import StoredDtypes
from capaft.model.stored_form import Conversion, StoredForm


@dataclass
class MergedTensors:
    """The tensors of a merged model.

    Attributes:
        form: the model and the tensors of its checkpoint. What an adapter trained directly stands in the model.
        stored: the dtypes of the checkpoint.
        places: those of all adapters, by the name of the parameter that they change.
        dtype: of the values written; None for that of the checkpoint.
        rounding: counts what rounding costs, as the tensors are made.
    """

    form: StoredForm
    stored: StoredDtypes
    places: Mapping[str, Sequence[Place]]
    dtype: torch.dtype | None = None
    rounding: Rounding = field(default_factory=Rounding)
    _last: dict[Any, dict[str, Tensor]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[MergedTensor]:
        """The tensors, in the order of the model.

        Raises:
            NeedsWeights: transformers saves the model in a way that is not known here.
        """
        try:
            names = self._saved_names()
        except NeedsWeights:
            raise
        except Exception as error:  # The insides of transformers change without notice, and raise anything.
            raise NeedsWeights(f"transformers saves it in an unknown way ({type(error).__name__})") from None
        for name, source in names.items():
            if isinstance(source, Conversion):
                yield self._converted(name, source)
            elif (values := self.model_tensors[source]).is_meta:
                yield self._stored(name, source)
            else:
                yield self._in_memory(name, source, values)

    def _saved_names(self) -> dict[str, str | Conversion]:
        """By name in the files, the model's tensor that is saved under it, or the conversion that gives it."""
        from transformers.core_model_loading import revert_weight_conversion
        from transformers.modeling_utils import remove_tied_weights_from_state_dict

        model: Any = self.form.model
        ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
        model_tensors = {name: value for name, value in self.form.own_tensors().items() if name not in ignored}
        self.model_tensors = model_tensors = remove_tied_weights_from_state_dict(model_tensors, model)
        self.aliases = self._aliases()
        by_value = {id(value): name for name, value in model_tensors.items()}
        names: dict[str, str | Conversion] = {}
        for name, value in revert_weight_conversion(model, dict(model_tensors)).items():
            names[name] = by_value.get(id(value), "")
        conversions = {id(conversion): conversion for conversion in self.form.conversions.values()}
        self.saved_as: dict[int, dict[str, torch.Size]] = {}
        for conversion in conversions.values():
            part = {name: model_tensors[name] for name in conversion.targets if name in model_tensors}
            if any(not value.is_meta for value in part.values()) or len(part) != len(conversion.targets):
                raise NeedsWeights(f"{conversion.target} is trained directly, and stored in another form")
            saved = {name: value.shape for name, value in revert_weight_conversion(model, dict(part)).items()}
            if any(names.get(name) != "" for name in saved):
                raise NeedsWeights(f"{conversion.target} is saved in an unknown form")
            names |= dict.fromkeys(saved, conversion)
            self.saved_as[id(conversion)] = saved
        if unknown := [name for name, source in names.items() if source == ""]:
            raise NeedsWeights(f"{unknown[0]} is saved in an unknown form")
        return names

    def _aliases(self) -> dict[str, list[str]]:
        """By name of a tensor of the model, all names that it has."""
        names: dict[int, list[str]] = defaultdict(list)
        for path, module in base_modules(self.form.model):
            for leaf, tensor in (module._parameters | module._buffers).items():
                if tensor is not None:
                    names[id(tensor)].append(f"{path}.{leaf}" if path else leaf)
        return {name: aliases for aliases in names.values() for name in aliases}

    def _stored(self, name: str, parameter: str) -> MergedTensor:
        """A tensor that the checkpoint has as it is."""
        plain = self.form.plain
        sources = [plain[alias] for alias in (parameter, *self.aliases.get(parameter, ())) if alias in plain]
        if not sources:
            raise NeedsWeights(f"the checkpoint does not have {parameter}")
        source = self.form.tensors[sources[0]]
        if source.shape != self.model_tensors[parameter].shape:
            raise NeedsWeights(f"the checkpoint has {parameter} in another shape")
        places = [place for alias in self.aliases.get(parameter, [parameter]) for place in self.places.get(alias, ())]
        of_bias = [] if places else self._places_of_bias(parameter)
        if source.dtype is None:
            if places or of_bias:
                raise NeedsWeights(f"{parameter} is stored as {source.code}, to which nothing can be added")
            return MergedTensor(name, source.code, source.shape, source.size, source.file, source.pieces)
        target = self.dtype or source.dtype
        if any(f"{place.site.module}.weight".removeprefix(".") not in plain for place in of_bias):
            raise NeedsWeights(f"the weight beside {parameter} is stored in another form")
        make: Callable[[], Iterator[Any]]
        if places or of_bias:
            make = partial(self._bytes_of_merged, source, target, places, of_bias)
        elif target == source.dtype:
            make = source.pieces
        else:
            make = partial(cast, source, target)
        return described(name, source.shape, target, source.file, make)

    def _places_of_bias(self, parameter: str) -> list[Place]:
        """The places whose method changes a bias beside the weight."""
        path, _, leaf = parameter.rpartition(".")
        weight = f"{path}.weight" if path else "weight"
        if leaf != "bias" or weight not in self.places:
            return []
        return [place for place in self.places[weight] if place.changes_bias(self.model_tensors[parameter])]

    def _bytes_of_merged(
        self, source: StoredTensor, target: torch.dtype, places: Sequence[Place], of_bias: Sequence[Place]
    ) -> Iterator[Any]:
        assert source.dtype is not None
        values = source.read().to(torch.promote_types(source.dtype, target))
        with torch.no_grad():
            if places:
                add_updates(values, None, [place.update() for place in places], self.rounding, target)
            for place in of_bias:
                weight = self._read(f"{place.site.module}.weight".removeprefix("."))
                add_updates(weight, values, [place.update()], Rounding())
        yield from raw(values, target)

    def _read(self, parameter: str) -> Tensor:
        """The values of a parameter, in memory of their own."""
        return self.form.tensors[self.form.plain[parameter]].read()

    def _in_memory(self, name: str, parameter: str, values: Tensor) -> MergedTensor:
        """A tensor that the adapter trained directly, or that is new."""
        if not values.is_floating_point():
            whole = values.contiguous()
            return described(name, values.shape, values.dtype, None, lambda: raw(whole, whole.dtype))
        target = self.dtype or self._dtype_of(parameter, values)
        places = [place for alias in self.aliases.get(parameter, [parameter]) for place in self.places.get(alias, ())]
        return described(name, values.shape, target, None, partial(self._bytes_in_memory, values, target, places))

    def _dtype_of(self, parameter: str, values: Tensor) -> torch.dtype:
        plain = self.form.plain
        stored = [
            self.form.tensors[plain[alias]].dtype
            for alias in self.aliases.get(parameter, [parameter])
            if alias in plain
        ]
        return next((dtype for dtype in stored if dtype is not None), self.stored.usual)

    def _bytes_in_memory(self, values: Tensor, target: torch.dtype, places: Sequence[Place]) -> Iterator[Any]:
        values = values.detach()
        if places:
            with torch.no_grad():
                values = values.to(torch.promote_types(values.dtype, target), copy=True)
                add_updates(values, None, [place.update() for place in places], self.rounding, target)
        yield from raw(values, target)

    def _converted(self, name: str, conversion: Conversion) -> MergedTensor:
        """A tensor that the checkpoint has in another form than the model."""
        sources = [self.form.tensors[source] for names in conversion.sources.values() for source in names]
        dtypes = {source.dtype for source in sources}
        dtype = dtypes.pop()
        if dtypes or dtype is None:
            raise NeedsWeights(f"{conversion.target} is stored in several dtypes")
        target, shape = self.dtype or dtype, self.saved_as[id(conversion)][name]
        kept = {source.name: source for source in sources}
        home = kept[name].file if name in kept else sources[0].file
        is_changed = any(self.places.get(parameter) for parameter in conversion.targets)
        as_stored = set(kept) == set(self.saved_as[id(conversion)]) and kept[name].shape == shape
        make: Callable[[], Iterator[Any]]
        if as_stored and not is_changed:
            make = kept[name].pieces if target == dtype else partial(cast, kept[name], target)
        elif as_stored and conversion.experts:
            make = partial(self._bytes_of_expert, name, conversion, dtype, target)
        else:
            make = partial(self._bytes_of_all, name, conversion, dtype, target)
        return described(name, shape, target, home, make)

    def _bytes_of_expert(
        self, name: str, conversion: Conversion, dtype: torch.dtype, target: torch.dtype
    ) -> Iterator[Any]:
        """A matrix of one expert, which is changed as the model has it: joined with the expert's others."""
        index = next(names.index(name) for names in conversion.sources.values() if name in names)
        key = (id(conversion), index)
        if key not in self._last:
            saved = self._changed(conversion.expert(index), dtype, target, index)
            first = {names[0]: names[index] for names in conversion.sources.values()}
            self._last[key] = {first[of_first]: values for of_first, values in saved.items()}
        yield from raw(self._last[key][name], target)

    def _bytes_of_all(
        self, name: str, conversion: Conversion, dtype: torch.dtype, target: torch.dtype
    ) -> Iterator[Any]:
        key = (id(conversion), None)
        if key not in self._last:
            self._last[key] = self._changed(conversion, dtype, target, None)
        yield from raw(self._last[key][name], target)

    def _changed(
        self, conversion: Conversion, dtype: torch.dtype, target: torch.dtype, expert: int | None
    ) -> dict[str, Tensor]:
        """The tensors that a conversion's are saved as, with all updates."""
        from transformers.core_model_loading import revert_weight_conversion

        # What was made together is kept until it is written; what else one expert has lies between.
        while self._last and (expert is None or len(self._last) > 1):
            del self._last[next(iter(self._last))]
        work = torch.promote_types(dtype, target)
        names = [name for names in conversion.sources.values() for name in names]
        values = {name: self.form.tensors[name].read().to(work) for name in names}
        model: Any = self.form.model
        with torch.no_grad():
            converted = {name: value.contiguous() for name, value in conversion.convert(model, values).items()}
            for parameter, value in converted.items():
                updates = []
                for place in self.places.get(parameter, ()):
                    if expert is None or place.site.index == expert:
                        site = place.site if expert is None else replace(place.site, index=0)
                        updates.append(place.update(site))
                add_updates(value, None, updates, self.rounding, target)
            return revert_weight_conversion(model, converted)
