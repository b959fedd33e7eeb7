"""The tensors of a PEFT LoRA on a model: updates of its weights, and parameters that take the place of its own."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from torch import nn

from capaft.exchange.peft_directory import PeftDirectory, StoredPair, StoredTensor
from capaft.model.layers import layer_kind, layer_widths, packs_experts
from capaft.model.names import base_modules, base_parameters, canonical_name, canonical_path, in_head, renamed_path
from capaft.model.site import SiteKind
from capaft.model.targets import shared_pattern_time
from capaft.model.weights import weight_owners
from capaft.support.errors import AdapterFileError


@dataclass(frozen=True)
class Update:
    """One LoRA of the directory on a weight of the model.

    Attributes:
        path: canonical path of the module, as sites are named.
        module: its path in the model.
        parameter: canonical name of the weight.
        kind: of the module.
        rank: number of rows of its down matrix, for each expert of a stack.
        scale: the factor on the product of its matrices.
        tensors: its tensors by part.
        experts: name of the packed parameter whose matrices it updates, and their number; None for an ordinary weight.
        sides: outputs and inputs of the weight, or of one expert's.
        in_head: the module belongs to the model's output head, which no adapter stands beside.
    """

    path: str
    module: str
    parameter: str
    kind: SiteKind
    rank: int
    scale: float
    tensors: Mapping[str, StoredTensor]
    sides: tuple[int, int]
    experts: tuple[str, int] | None = None
    in_head: bool = False

    @property
    def full_rank(self) -> bool:
        """True if its rank is beyond what the weight can have, so that a smaller pair has the same product."""
        return self.rank > min(self.sides)

    @property
    def own_rank(self) -> int:
        """The rank of the pair that an adapter needs."""
        return min(self.rank, *self.sides)


@dataclass(frozen=True)
class Changes:
    """Everything that a PEFT LoRA changes in a model.

    Attributes:
        updates: of weights, sorted by path.
        parameters: copies that take the place of the model's, by canonical name.
        tokens: rows that take the place of those of an embedding, by the canonical name of its weight.
        indices: the numbers of these rows.
    """

    updates: tuple[Update, ...]
    parameters: Mapping[str, StoredTensor]
    tokens: Mapping[str, StoredTensor]
    indices: Mapping[str, tuple[int, ...]]


def changes_on(model: nn.Module, peft: PeftDirectory, rename: dict[str, str] | None = None) -> Changes:
    """What a PEFT LoRA changes in a model; nothing of it is read yet.

    Raises:
        AdapterFileError: its tensors do not fit the model, or it does something that no capaft adapter does.
    """
    with shared_pattern_time():
        reader = _Reader(model, peft, rename)
        updates = sorted((reader.update(pair) for pair in peft.pairs), key=lambda update: update.path)
    for one, other in pairwise(updates):
        if (one.path, one.experts) == (other.path, other.experts):
            raise reader.error(f"{one.path} has two LoRAs, of which the file does not tell which is for what")
    tokens, indices = reader.tokens()
    return Changes(tuple(updates), reader.parameters(), tokens, indices)


@dataclass(frozen=True)
class _Reader:
    """The model and the directory, for questions about both."""

    model: nn.Module
    peft: PeftDirectory
    rename: dict[str, str] | None

    @cached_property
    def modules(self) -> dict[str, str]:
        """The paths of the model's modules by their canonical ones, under their old names."""
        return {self._canonical(path): path for path, _ in base_modules(self.model) if path}

    @cached_property
    def shared(self) -> dict[str, str]:
        """For every name that a parameter has in the model, the one by which an adapter file calls it."""
        names = {id(p): canonical_name(self.model, n, self.rename) for n, p in base_parameters(self.model).items()}
        owners = weight_owners(self.model)
        return {
            canonical_name(self.model, f"{path}.{leaf}" if path else leaf, self.rename): names[key]
            for key in names
            for path, leaf in owners[key]
        }

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the model's parameters by canonical name."""
        named = base_parameters(self.model).items()
        return {canonical_name(self.model, name, self.rename): tuple(p.shape) for name, p in named}

    @cached_property
    def buffers(self) -> set[str]:
        """Canonical names of the model's buffers."""
        return {canonical_path(self.model, name) for name, _ in self.model.named_buffers()}

    def error(self, problem: str) -> AdapterFileError:
        """A refusal that names the directory."""
        return AdapterFileError(f"{self.peft.path}: {problem}")

    def _canonical(self, path: str) -> str:
        return renamed_path(canonical_path(self.model, path), self.rename)

    def update(self, pair: StoredPair) -> Update:
        """The update of a pair of matrices.

        Raises:
            AdapterFileError: the model has no such layer, or one of other widths.
        """
        path = canonical_path(self.model, pair.module)
        module = self.modules.get(path)
        if module is None:
            raise self.error(
                f"{type(self.model).__name__} has no module {pair.module}; pass the --model that it was trained on, or "
                "--rename old=new if modules were renamed"
            )
        if missing := {"down", "up"} - pair.parts.keys():
            raise self.error(
                f"the LoRA of {pair.module} has no {' and no '.join(sorted(missing))} matrix; get it again"
            )
        layer: Any = self.model.get_submodule(module)
        if packs_experts(layer):
            return self._of_experts(pair, path, module)
        kind = layer_kind(layer)
        if kind is None:
            raise self.error(
                f"{pair.module} ({type(layer).__name__}) is no layer that a capaft adapter can stand beside"
            )
        self._refuse_other_convolutions(pair.module, layer)
        rank = pair.parts["down"].shape[0] if pair.parts["down"].shape else 0
        wide_in, wide_out = layer_widths(layer)
        inner = tuple(layer.weight.shape[1:]) if kind == "conv" else (wide_in,)
        spatial = (1,) * (len(inner) - 1)
        expected = {"down": (rank, *inner), "up": (wide_out, rank, *spatial), "bias": (wide_out,)}
        magnitude = (1, wide_out, *spatial) if kind == "conv" else (wide_out,)
        self._check(pair, expected | {"magnitude": magnitude}, rank, pair.module)
        scale = self.peft.config.scale_of(pair.module, rank)
        weight = self.shared.get(f"{path}.weight", f"{path}.weight")
        head = in_head(self.model, module) or self._is_tied_on_purpose(path)
        sides = (wide_out, math.prod(inner))
        return Update(path, module, weight, kind, rank, scale, dict(pair.parts), sides, in_head=head)

    def _is_tied_on_purpose(self, path: str) -> bool:
        """True for the weight of an embedding that PEFT changes in every module that shares it."""
        name = f"{path}.weight"
        return self.peft.config.ties_weights and len([n for n, first in self.shared.items() if first == name]) > 1

    def _refuse_other_convolutions(self, name: str, layer: nn.Module) -> None:
        """Refuse convolutions beside which PEFT computes something else than an update of their weight."""
        if getattr(layer, "groups", 1) != 1:
            raise self.error(
                f"{name} is a convolution in groups, and PEFT's LoRA beside it is not an update of its weight"
            )
        dilation = getattr(layer, "dilation", 1)
        if layer_kind(layer) == "conv" and (set(dilation) != {1} or layer.padding_mode != "zeros"):  # type: ignore[arg-type]
            raise self.error(
                f"{name} is a convolution with dilation or padding that PEFT's LoRA beside it does not have"
            )

    def _of_experts(self, pair: StoredPair, path: str, module: str) -> Update:
        """The update of a packed stack of experts: by its shape, since the file does not name the parameter."""
        matching = []
        down, up = pair.parts["down"].shape, pair.parts["up"].shape
        layer = self.model.get_submodule(module)
        transposed = bool(getattr(layer, "is_transposed", False))
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter.ndim != 3 or len(down) != 2:
                continue
            count, rows, columns = parameter.shape
            wide_in, wide_out = (rows, columns) if transposed else (columns, rows)
            if down[0] % count == 0 and down == (down[0], wide_in) and up == (wide_out, down[0]):
                matching.append((name, count))
        if len(matching) != 1:
            raise self.error(
                f"the LoRA of {pair.module} fits {'several' if matching else 'none'} of its weights; merge it in PEFT"
            )
        ((name, count),) = matching
        rank = down[0] // count
        full = f"{pair.module}.{name}"
        self._check(pair, {"down": down, "up": up}, rank, full)
        scale = self.peft.config.scale_of(full, rank)
        parameter_name = self.shared.get(f"{path}.{name}", f"{path}.{name}")
        return Update(
            path, module, parameter_name, "experts", rank, scale, dict(pair.parts), (up[0], down[1]), (name, count)
        )

    def _check(self, pair: StoredPair, expected: Mapping[str, tuple[int, ...]], rank: int, name: str) -> None:
        """Compare the shapes of a pair with the layer's, and its rank with that of the settings."""
        for part, stored in pair.parts.items():
            if not stored.is_float:
                raise self.error(f"{stored.key} is damaged: it holds whole numbers; get it again")
            if part not in expected:
                raise self.error(f"{stored.key}: experts have no {part} in PEFT; get it again")
            if stored.shape != expected[part]:
                raise self.error(
                    f"{stored.key} has the shape {stored.shape}, and {type(self.model).__name__} needs "
                    f"{expected[part]}; pass the --model that it was trained on"
                )
        if rank < 1 or rank != self.peft.config.rank_of(name):
            raise self.error(
                f"{name} has rank {rank}, and the settings say {self.peft.config.rank_of(name)}; get it again"
            )
        if self.peft.config.dora != ("magnitude" in pair.parts):
            raise self.error(f"{name} has a magnitude or lacks one, unlike what use_dora says; get it again")

    def parameters(self) -> dict[str, StoredTensor]:
        """The copies of the model's parameters, by canonical name.

        Raises:
            AdapterFileError: the model has none of that name or shape, or shares one that PEFT does not.
        """
        copies: dict[str, StoredTensor] = {}
        given: dict[str, set[str]] = defaultdict(set)
        for stored_name, stored in self.peft.parameters.items():
            alias = canonical_path(self.model, stored_name)
            name = self.shared.get(alias)
            if name is None and alias in self.buffers:
                raise self.error(
                    f"it has a copy of {stored_name}, statistics that no adapter file holds; merge it in PEFT instead"
                )
            if name is None:
                raise self.error(
                    f"{type(self.model).__name__} has no parameter {stored_name}; pass the --model that it was trained "
                    "on"
                )
            if stored.shape != self.shapes[name] or not stored.is_float:
                raise self.error(self._other_shape(stored_name, stored, self.shapes[name]))
            copies.setdefault(name, stored)
            given[name].add(alias)
        for name, aliases in given.items():
            owners = {alias for alias, first in self.shared.items() if first == name}
            alone = [alias for alias in aliases if self.peft.config.saves(alias.rpartition(".")[0])]
            if alone and not self.peft.config.ties_weights and aliases != owners:
                raise self.error(
                    f"it has a copy of {alone[0]} alone, which {type(self.model).__name__} shares with "
                    f"{min(owners - aliases)}; load the model untied and pass it with --model"
                )
        return copies

    def _other_shape(self, name: str, stored: StoredTensor, shape: tuple[int, ...]) -> str:
        advice = "pass the --model that it was trained on"
        if len(shape) == 2 and stored.shape[1:] == shape[1:]:
            advice += ", with as many rows (a larger vocabulary, or as many labels)"
        return f"its copy of {name} has the shape {stored.shape}, and {type(self.model).__name__} has {shape}; {advice}"

    def tokens(self) -> tuple[dict[str, StoredTensor], dict[str, tuple[int, ...]]]:
        """The trained rows of embeddings and their numbers, by the canonical name of the embedding's weight.

        Raises:
            AdapterFileError: the model has no such embedding or rows.
        """
        rows: dict[str, StoredTensor] = {}
        numbers: dict[str, tuple[int, ...]] = {}
        wanted = self.peft.config.token_indices
        for module, stored in self.peft.tokens.items():
            name = self.shared.get(canonical_path(self.model, f"{module}.weight"))
            chosen = [wanted[key] for key in wanted if not key or module == key or module.endswith(f".{key}")]
            shape = self.shapes.get(name or "", ())
            if name is None or len(shape) != 2 or len(chosen) != 1:
                raise self.error(f"{type(self.model).__name__} has no embedding {module} of which rows were trained")
            if stored.shape != (len(chosen[0]), shape[1]) or max(chosen[0], default=0) >= shape[0]:
                raise self.error(f"the rows of {module} that were trained do not fit its shape {shape}; get it again")
            rows[name], numbers[name] = stored, chosen[0]
        return rows, numbers
