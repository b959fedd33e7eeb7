"""The form in which a checkpoint stores a model's tensors, where it is not the model's own.

transformers renames tensors as it loads them, adds and drops prefixes, joins the experts of a mixture into one tensor,
splits fused ones, and does all of that backwards as it saves. So that a model can be changed without being in memory,
this says for every tensor of a model which tensors of the checkpoint it is made of and which ones it is saved as: asked
of transformers itself, whose own conversions are run on tensors without values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from capaft.model.checkpoint_tensors import StoredTensor
from capaft.model.names import CHILD_PREFIX
from capaft.model.skeleton import NeedsWeights


@dataclass(frozen=True, eq=False)
class Conversion:
    """Tensors of a checkpoint that transformers turns into some of a model's, all at once.

    Attributes:
        converter: the rule, as transformers has it.
        sources: patterns of the rule, each with the tensors of the checkpoint that match it, in their order.
        target: the model's first tensor of the rule, by which transformers calls it.
        targets: all of them.
    """

    converter: Any
    sources: dict[str, tuple[str, ...]]
    target: str
    targets: tuple[str, ...] = ()

    def convert(self, model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's tensors from those of the checkpoint, by name."""
        rule = deepcopy(self.converter)
        for pattern, names in self.sources.items():
            for name in names:
                rule.add_tensor(self.target, name, pattern, values[name])
        converted = rule.convert(self.target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in converted.items()}

    @property
    def experts(self) -> int:
        """Number of experts that the rule joins without mixing them; 0 if it does anything else."""
        first, *others = [(type(step).__name__, vars(step)) for step in self.converter.operations]
        apart = all(name == "Concatenate" and step.get("dim") == 1 for name, step in others)
        counts = {len(names) for names in self.sources.values()}
        joins = first[0] == "MergeModulelist" and first[1].get("dim") == 0
        return counts.pop() if joins and apart and len(counts) == 1 and len(self.targets) == 1 else 0

    def expert(self, index: int) -> Conversion:
        """The conversion of one expert alone, as if there were no other."""
        return Conversion(
            self.converter, {pattern: (names[index],) for pattern, names in self.sources.items()}, self.target
        )


@dataclass(frozen=True, eq=False)
class StoredForm:
    """The tensors of a checkpoint and those of a model.

    Attributes:
        model: the model, whose tensors have no values as a rule.
        tensors: those of the checkpoint, by name.
        plain: by name of a tensor of the model, the one of the checkpoint that it equals.
        conversions: by name of a tensor of the model, the conversion that makes it.
    """

    model: nn.Module
    tensors: Mapping[str, StoredTensor]
    plain: dict[str, str] = field(default_factory=dict)
    conversions: dict[str, Conversion] = field(default_factory=dict)

    @staticmethod
    def of(model: Any, tensors: Mapping[str, StoredTensor]) -> StoredForm:
        """Ask transformers how it loads a checkpoint into a model.

        Raises:
            NeedsWeights: this version of transformers does it in another way.
        """
        form = StoredForm(model, tensors)
        try:
            form._match()
        except Exception as error:  # Its insides change without notice, and raise anything.
            raise NeedsWeights(f"transformers loads it in an unknown way ({type(error).__name__})") from None
        return form

    def _match(self) -> None:
        """Repeat the matching of names of `convert_and_load_state_dict_in_model`."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        model: Any = self.model
        own, prefix = self.own_tensors(), model.base_model_prefix
        rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        sources: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        used: dict[str, Any] = {}
        for name in sorted(self.tensors, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, prefix, own)
            if target not in own and name in own:
                target, pattern = rename_source_key(name, [], [], base_model_prefix=prefix, meta_state_dict=own)
            if target not in own:
                continue
            if pattern is None:
                self.plain.setdefault(target, name)
                continue
            used.setdefault(target, by_pattern[pattern])
            sources[target][pattern].append(name)
        for target, rule in used.items():
            matched = {pattern: tuple(names) for pattern, names in sources[target].items()}
            conversion = Conversion(rule, matched, target)
            targets = conversion.convert(model, self._empty(conversion))
            if any(name not in own or own[name].shape != value.shape for name, value in targets.items()):
                raise ValueError(target)
            conversion = Conversion(rule, matched, target, tuple(targets))
            self.conversions.update(dict.fromkeys(targets, conversion))

    def own_tensors(self) -> dict[str, Tensor]:
        """The model's own tensors by name, as it would save them, without values where it has none."""
        state = self.model.state_dict()
        return {name: value for name, value in state.items() if f".{CHILD_PREFIX}" not in f".{name}"}

    def _empty(self, conversion: Conversion) -> dict[str, Tensor]:
        """The sources of a conversion, without values."""
        names = (name for names in conversion.sources.values() for name in names)
        return {name: torch.empty(self.tensors[name].shape, device="meta") for name in names}

    def look(self, name: str) -> Any:
        """The values of one of the model's tensors to look at, not to keep; None if the checkpoint does not have them.

        Experts that are stored one by one are given as an object that is indexed by the expert.
        """
        if name in self.plain:
            return self.tensors[self.plain[name]].look()
        conversion = self.conversions.get(name)
        if conversion is None:
            return None
        if conversion.experts:
            return Experts(self, conversion)
        values = {source: self.tensors[source].look() for names in conversion.sources.values() for source in names}
        return conversion.convert(self.model, values)[name]


@dataclass(frozen=True, eq=False)
class Experts:
    """A tensor of a model that the checkpoint stores expert by expert, one of which is read at a time."""

    form: StoredForm
    conversion: Conversion

    def __getitem__(self, index: int) -> Tensor:
        conversion = self.conversion.expert(index)
        values = {name: self.form.tensors[name].look() for names in conversion.sources.values() for name in names}
        (converted,) = conversion.convert(self.form.model, values).values()
        return converted[0]
