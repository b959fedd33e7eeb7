"""Parameters that take the place of a model's own when a PEFT LoRA is taken over: copies, rows, the head's updates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from capaft.exchange.peft_directory import PeftDirectory, StoredTensor
from capaft.exchange.peft_updates import Changes, Update
from capaft.model.layers import is_transposed
from capaft.model.names import base_parameters, canonical_name, input_embeddings
from capaft.model.site import is_quantised
from capaft.model.weights import weight_owners
from capaft.support.errors import AdapterFileError


@dataclass(frozen=True)
class ReplacedWeights:
    """The parameters that are replaced as a whole.

    Attributes:
        model: the base model.
        peft: the directory.
        base: the model's own values of these parameters, by canonical name.
        copies: stored copies of them.
        tokens: stored rows of some.
        indices: numbers of these rows.
        updates: updates of some.
        biases: by the name of a bias, the update that adds to it.
    """

    model: nn.Module
    peft: PeftDirectory
    base: dict[str, Tensor]
    copies: dict[str, StoredTensor] = field(default_factory=dict)
    tokens: dict[str, StoredTensor] = field(default_factory=dict)
    indices: dict[str, tuple[int, ...]] = field(default_factory=dict)
    updates: dict[str, Update] = field(default_factory=dict)
    biases: dict[str, Update] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Their canonical names."""
        return sorted(self.base)

    def values(self) -> dict[str, Tensor]:
        """The new values, float32, by canonical name.

        Raises:
            AdapterFileError: a tensor cannot be read.
        """
        values = {name: tensor.detach().float().clone() for name, tensor in self.base.items()}
        for name, stored in self.peft.read(self.copies):
            values[name].copy_(stored)
        for name, rows in self.peft.read(self.tokens):
            values[name][list(self.indices[name])] = rows.to(values[name].device)
        for name, update in self.updates.items():
            values[name] = self._updated(values[name], update)
        for name, update in self.biases.items():
            ((_, bias),) = self.peft.read({name: update.tensors["bias"]})
            values[name] += update.scale * bias.to(values[name].device)
        return values

    def _updated(self, weight: Tensor, update: Update) -> Tensor:
        """A weight as stored, with an update merged into it."""
        parts = {part: tensor for part, tensor in update.tensors.items() if part != "bias"}
        read = {part: values.to(weight.device) for part, values in self.peft.read(parts)}
        transposed = is_transposed(self.model.get_submodule(update.module))
        matrix = weight.T if transposed else weight.flatten(1)
        merged = matrix.addmm(read["up"].flatten(1), read["down"].flatten(1), alpha=update.scale)
        if "magnitude" in read:
            merged *= (read["magnitude"].flatten() / torch.linalg.vector_norm(merged, dim=1))[:, None]
        return merged.T if transposed else merged.view(weight.shape)


def replaced_weights(
    model: nn.Module, peft: PeftDirectory, changes: Changes, rename: dict[str, str] | None
) -> ReplacedWeights:
    """The parameters that changes replace as a whole.

    Raises:
        AdapterFileError: one of them cannot be replaced.
    """
    base = {canonical_name(model, name, rename): p for name, p in base_parameters(model).items()}
    copies = _that_differ(model, peft, changes, base, rename)
    whole = copies.keys() | changes.tokens.keys()
    by_weight: dict[str, list[Update]] = defaultdict(list)
    for update in changes.updates:
        if update.in_head or (update.parameter in whole and update.experts is None):
            by_weight[update.parameter].append(update)
        elif update.parameter in whole:
            raise AdapterFileError(f"{peft.path}: it has a copy of {update.path} and adapts it too; merge it in PEFT")
    biases = {f"{u.path}.bias": u for u in changes.updates if "bias" in u.tensors}
    if missing := sorted(biases.keys() - base.keys()):
        raise AdapterFileError(f"{peft.path}: its LoRA adds a bias at {missing[0]}, where the model has none; merge it")
    _refuse_shared(model, peft, changes.updates)
    # PEFT stores the update of an embedding again for the head that shares its weight.
    updates = {name: min(alike, key=lambda update: update.kind != "embedding") for name, alike in by_weight.items()}
    names = whole | updates.keys() | biases.keys()
    for name in sorted(names):
        if is_quantised(base[name]):
            raise AdapterFileError(f"{peft.path}: it changes {name} directly, which is quantised; load it unquantised")
    return ReplacedWeights(
        model,
        peft,
        {name: base[name] for name in names},
        copies,
        dict(changes.tokens),
        dict(changes.indices),
        updates,
        biases,
    )


def _that_differ(
    model: nn.Module,
    peft: PeftDirectory,
    changes: Changes,
    base: dict[str, nn.Parameter],
    rename: dict[str, str] | None,
) -> dict[str, StoredTensor]:
    """The stored copies without those of embeddings that are the model's own, which PEFT saves for good measure."""
    embeddings = [input_embeddings(model), getattr(model, "get_output_embeddings", lambda: None)()]
    owned = {id(weight) for module in embeddings if (weight := getattr(module, "weight", None)) is not None}
    doubtful = {name: stored for name, stored in changes.parameters.items() if id(base[name]) in owned}
    same = {
        name
        for name, values in peft.read(doubtful)
        if not is_quantised(base[name]) and torch.equal(values, base[name].detach().cpu().float())
    }
    return {name: stored for name, stored in changes.parameters.items() if name not in same}


def _refuse_shared(model: nn.Module, peft: PeftDirectory, updates: Collection[Update]) -> None:
    """Refuse updates of a weight in one of the modules that share it: capaft's are updates of the weight.

    Raises:
        AdapterFileError: there is one.
    """
    if peft.config.ties_weights:
        return
    owners = weight_owners(model)
    for update in updates:
        name = update.experts[0] if update.experts else "weight"
        sharing = owners[id(model.get_submodule(update.module)._parameters.get(name))]
        if len(sharing) > 1:
            other = next(path for path, _ in sharing if path != update.module)
            raise AdapterFileError(
                f"{peft.path}: it adapts {update.path} alone, which shares its weight with {other}; load the model "
                "untied and pass it with --model"
            )
