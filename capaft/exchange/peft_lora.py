"""LoRA and DoRA in PEFT's form: the tensors, and the fields of the configuration that say where they belong.

There is one rank for all layers, with zeros in what a layer does not need, and alpha equals it, since some servers read
only `lora_alpha / r`: the method's own scale is in the up factors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from capaft.adapter.module import Adapter
from capaft.exchange.low_rank_pairs import LowRankPair, low_rank_pairs, spread, whole_pairs, whole_site
from capaft.exchange.peft_layers import PeftLayers, is_conv1d
from capaft.exchange.peft_names import target_names
from capaft.methods.dora import Dora
from capaft.model.names import without_wrappers
from capaft.model.site import Site, stored_parameter
from capaft.support.errors import UsageError

PREFIX = "base_model.model."


@dataclass(frozen=True, eq=False)
class PeftMethod:
    """An adapter's method in PEFT's form.

    Attributes:
        config: its fields of the configuration.
        tensors: its tensors by key.
        targets: paths of the modules that it changes.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    targets: frozenset[str]

    @property
    def rank(self) -> int:
        """The rank of all pairs; 0 for a method without."""
        return int(self.config.get("r", 0))


def lora(layers: PeftLayers, adapter: Adapter, name: str, least_rank: int) -> PeftMethod:
    """An adapter with a low-rank update of each weight, or DoRA's.

    Args:
        layers: the layers of the model.
        adapter: the adapter.
        name: its name.
        least_rank: the rank to write if the adapter's is lower; 0 for the adapter's own.

    Raises:
        UsageError: PEFT cannot hold the adapter exactly.
    """
    host = adapter.plan.stack.host
    is_dora = isinstance(host, Dora)
    if isinstance(host, Dora):
        products = ((site, *host.product(site, factors)) for site, factors in adapter.factors_of_sites())
        pairs = whole_pairs(products)
    else:
        pairs = low_rank_pairs(layers.model, name)
    rank = max(pair.rank for pair in pairs)
    if 0 < least_rank < rank:
        raise UsageError(f"--pad-rank {least_rank} is lower than the rank of the adapter, {rank}")
    rank = max(rank, least_rank)
    forms = {pair.site.path: layers.form(pair.site) for pair in pairs}
    called = [pair for pair in pairs if forms[pair.site.path] != "parameter"]
    changed = [pair for pair in pairs if forms[pair.site.path] == "parameter"]
    if changed and is_dora:
        raise UsageError(f"PEFT's DoRA does not reach {changed[0].site.module}, as its LoRA does; merge the run")
    modules = _of_modules(layers, called, rank, _magnitudes(layers.model, adapter) if is_dora else None)
    parameters = _of_parameters(layers, changed, rank) if changed else None
    transposed = any(is_conv1d(layers.modules[path]) for path in modules.targets)
    if transposed and changed:
        raise UsageError("PEFT cannot adapt Conv1D layers and packed experts in one adapter; merge the run")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "init_lora_weights": True,
        **({"use_dora": True} if is_dora else {}),
        **modules.config,
        **(parameters.config if parameters else {}),
    }
    tensors = {**modules.tensors, **(parameters.tensors if parameters else {})}
    return PeftMethod(config, tensors, modules.targets | (parameters.targets if parameters else frozenset()))


def _of_modules(
    layers: PeftLayers, pairs: list[LowRankPair], rank: int, magnitudes: Mapping[str, Tensor] | None
) -> PeftMethod:
    """Updates beside the output of layers; zeros for layers of the same name that have none."""
    by_path = {without_wrappers(path): pair for pair in pairs for path in pair.site.modules}
    names = target_names(by_path.keys(), layers.adaptable(), layers.modules)
    tensors: dict[str, Tensor] = {}
    for path in sorted(names.modules):
        pair = by_path[path] if path in by_path else _zeros(layers.site(path))
        tensors |= _pair_tensors(PREFIX + path, layers.modules[path], pair.padded(rank))
        if magnitudes is not None:
            site = pair.site
            size = magnitudes.get(site.path, _row_norms(site, layers.modules[path]))
            shape = (1, -1, *[1] * (stored_parameter(layers.modules[path], "weight").ndim - 2))
            tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = (
                size.view(shape) if site.kind == "conv" else size
            ).clone()
    return PeftMethod({"target_modules": list(names.names)}, tensors, names.modules)


def _zeros(site: Site) -> LowRankPair:
    """An update of nothing."""
    return LowRankPair(site, torch.zeros(0, site.in_features), torch.zeros(site.out_features, 0))


def _pair_tensors(key: str, module: nn.Module, pair: LowRankPair) -> dict[str, Tensor]:
    """The two tensors of a layer."""
    down, up = pair.down, pair.up
    if isinstance(module, nn.Embedding):
        return {f"{key}.lora_embedding_A": down, f"{key}.lora_embedding_B": up}
    if pair.site.kind == "conv":
        kernel = stored_parameter(module, "weight").shape[1:]
        down, up = down.view(-1, *kernel), up.view(*up.shape, *[1] * (len(kernel) - 1))
    return {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}


def _of_parameters(layers: PeftLayers, pairs: list[LowRankPair], rank: int) -> PeftMethod:
    """Changes of weights while their module is called: packed experts, and layers that are no plain product."""
    by_key: dict[str, list[LowRankPair]] = defaultdict(list)
    for pair in pairs:
        for path in pair.site.modules:
            by_key[f"{without_wrappers(path)}.{pair.site.parameter}"].append(pair)
    keys = [f"{path}.{leaf}" for path, module in layers.modules.items() for leaf in module._parameters]
    similar = [key for key in keys if _shape(layers, key) is not None]
    names = target_names(by_key.keys(), similar, keys)
    tensors: dict[str, Tensor] = {}
    for path in {key.rpartition(".")[0] for key in names.modules}:
        # PEFT wraps the module once for each of its parameters, in their order; the last is outermost.
        wrapped = [leaf for leaf in layers.modules[path]._parameters if f"{path}.{leaf}" in names.modules]
        for depth, leaf in enumerate(reversed(wrapped)):
            shape = _shape(layers, f"{path}.{leaf}")
            assert shape is not None
            down, up = _stacked(by_key.get(f"{path}.{leaf}", []), shape, rank)
            key = PREFIX + path + ".base_layer" * depth
            tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    targets = frozenset(key.rpartition(".")[0] for key in names.modules)
    return PeftMethod({"target_parameters": list(names.names)}, tensors, targets)


def _shape(layers: PeftLayers, key: str) -> tuple[int, int, int] | None:
    """The number of matrices in a parameter, their inputs and their outputs; None if PEFT has no update for it."""
    path, _, leaf = key.rpartition(".")
    module = layers.modules[path]
    parameter = stored_parameter(module, leaf)
    if not isinstance(parameter, Tensor) or parameter.ndim not in (2, 3):
        return None
    if parameter.ndim == 2:
        return 1, parameter.shape[1], parameter.shape[0]
    count, rows, columns = parameter.shape
    return (count, rows, columns) if getattr(module, "is_transposed", False) else (count, columns, rows)


def _stacked(pairs: list[LowRankPair], shape: tuple[int, int, int], rank: int) -> tuple[Tensor, Tensor]:
    """The factors of packed matrices, `(count * rank, in)` and `(out, rank * count)`, the count turning fastest."""
    count, wide_in, wide_out = shape
    downs, ups = torch.zeros(count, rank, wide_in), torch.zeros(wide_out, rank, count)
    for pair in (pair.padded(rank) for pair in pairs):
        site, index = pair.site, pair.site.index or 0
        swap = site.index is None and site.transposed
        downs[index], ups[..., index] = (pair.up.T, pair.down.T) if swap else (pair.down, pair.up)
    return downs.flatten(0, 1), ups.flatten(1)


def _magnitudes(model: nn.Module, adapter: Adapter) -> dict[str, Tensor]:
    """DoRA's magnitude of each output of every weight, `(out,)`, by the weight's canonical path."""
    magnitudes: dict[str, Tensor] = {}
    for site, (_, _, change) in adapter.factors_of_sites():
        whole = whole_site(site)
        norms = magnitudes.get(whole.path)
        if norms is None:
            norms = _row_norms(whole, model.get_submodule(site.module))
        change = change.detach().cpu().float()
        magnitudes[whole.path] = norms + (spread(site.rows, change) if site.rows else change)
    return magnitudes


def _row_norms(site: Site, module: nn.Module) -> Tensor:
    """The norm of the weights of each output, `(out,)`, float32.

    Raises:
        UsageError: the weight is offloaded.
    """
    weight = stored_parameter(module, site.parameter).detach()
    if weight.is_meta:
        raise UsageError(f"{site.module} is offloaded; load the base model without offloading to export its norms")
    weight = weight.cpu().float()
    return torch.linalg.vector_norm(replace(site, rows=None).matrix(weight), dim=1)
