"""A PEFT LoRA on a model as an adapter of capaft: dense `lora` or `dora`, with the same outputs."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from capaft.adapter.activation import disabled, refuse_distributed
from capaft.adapter.install import attach_plan, detach
from capaft.adapter.module import Adapter, carrier
from capaft.adapter.plan import Placement, Plan, make_plan
from capaft.exchange.peft_directory import PeftDirectory, StoredTensor, read_peft
from capaft.exchange.peft_updates import Update, changes_on
from capaft.exchange.replaced_weights import replaced_weights
from capaft.exchange.site_names import most_common, rank_pattern_of, targets_of
from capaft.methods.dora import Dora
from capaft.methods.host import Host
from capaft.methods.lora import Lora
from capaft.methods.stack import Stack, parse_stack
from capaft.model.names import check_renames
from capaft.model.site import Site
from capaft.support.errors import AdapterFileError, UsageError, check_type


def import_peft(
    model: nn.Module,
    directory: str | Path | PeftDirectory,
    *,
    name: str = "default",
    rename: dict[str, str] | None = None,
) -> Adapter:
    """Attach the adapter of a PEFT directory to a model, as `lora` or `dora` of capaft with the same outputs.

    Its matrices become the factors, with what PEFT multiplies them by where capaft would not. Copies of modules (a new
    head), trained rows of an embedding and updates of the output head become parameters that are trained directly.

    Args:
        model: the base model, with a head of as many labels as PEFT's; changed in place only if the adapter fits.
        directory: the directory, with `adapter_config.json` and `adapter_model.safetensors`, or what `read_peft` gave.
        name: the adapter's name on this model.
        rename: `{old: new}` pieces of module paths, if this model names its modules differently.

    Raises:
        AdapterFileError: the directory is damaged, does not fit the model, or holds what no capaft adapter computes.
        UsageError: the model already has an adapter of this name, or an argument is of the wrong type.

    Example:
        >>> import copy
        >>> from peft import LoraConfig, get_peft_model
        >>> of_peft = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, target_modules=["query", "value"]))
        >>> of_peft.save_pretrained(path.parent / "peft")
        >>> capaft.import_peft(model, path.parent / "peft")
        Adapter(lora, rank 4, 4 sites, 1,024 trainable parameters, seed 0)
    """
    check_type("model", model, nn.Module, "a torch module")
    check_type("directory", directory, str | os.PathLike | PeftDirectory, "a directory")
    check_type("name", name, str, "a text")
    check_type("rename", rename, dict | None, "a dictionary")
    refuse_distributed(model, "load onto")
    peft = directory if isinstance(directory, PeftDirectory) else read_peft(Path(directory).expanduser())
    with disabled(model):
        model = carrier(model)
        check_renames(model, rename)
        changes = changes_on(model, peft, rename)
        weights = replaced_weights(model, peft, changes, rename)
        beside = [update for update in changes.updates if update.parameter not in weights.names]
        plan = _plan(model, peft, beside, tuple(weights.names), rename)
        replaced = weights.values()
    adapter = attach_plan(model, plan, name=name, trains=False)
    try:
        _fill(adapter, model, peft, beside)
        trained = adapter.trained(model)
        with torch.no_grad():
            for parameter, values in replaced.items():
                trained[f"head:{parameter}"].copy_(values)
    except BaseException:
        detach(model, name)
        raise
    return adapter


def _plan(
    model: nn.Module,
    peft: PeftDirectory,
    updates: list[Update],
    trained: tuple[str, ...],
    rename: dict[str, str] | None,
) -> Plan:
    """The plan of an adapter with these updates.

    Raises:
        AdapterFileError: none can be made.
    """
    placement = Placement(trained=trained, rename=rename)
    if not updates and not trained:
        raise AdapterFileError(f"{peft.path}: it changes nothing in {type(model).__name__}; pass the --model it is for")
    ranks = {path: update.own_rank for update in updates for path in _site_paths(update)}
    try:
        if not updates:
            return make_plan(model, parse_stack("head"), placement)
        targets = targets_of(model, ranks, rename)
        plan = make_plan(model, _stack(peft, ranks), Placement(targets=targets, trained=trained, rename=rename))
    except UsageError as error:
        raise AdapterFileError(f"{peft.path} cannot be put on {type(model).__name__} as capaft's: {error}") from None
    if lost := sorted(ranks.keys() - {site.path for site in plan.sites}):
        raise AdapterFileError(f"{peft.path}: {lost[0]} is no layer that a capaft adapter can stand beside")
    return plan


def _stack(peft: PeftDirectory, ranks: Mapping[str, int]) -> Stack:
    """The method of the adapter: PEFT's rank, scale and pattern where they can be written so, else its largest rank."""
    most, largest = most_common(ranks), max(ranks.values())
    alpha = peft.config.alpha or None
    if peft.config.dora:
        return parse_stack("dora", rank=largest, alpha=alpha)
    pattern = rank_pattern_of(ranks, most)
    if pattern is None:  # Further rows of a matrix stay without effect.
        most, pattern = largest, ()
    return parse_stack("lora", rank=most, alpha=alpha, rslora=peft.config.rslora, rank_pattern=pattern)


def _site_paths(update: Update) -> list[str]:
    """Paths of the sites of an update: one, or one for each expert."""
    if update.experts is None:
        return [update.path]
    name, count = update.experts
    return [f"{update.path}#{name}.{index}" for index in range(count)]


@dataclass(frozen=True)
class _Slot:
    """A place in a role's parameter that a stored tensor, or an expert's part of it, goes to.

    Attributes:
        role: of the factor.
        offset: where the factor begins in the role's parameter.
        shape: of the factor.
        index: of the site among those of its update.
        update: the update.
        site: path of the site.
    """

    role: str
    offset: int
    shape: tuple[int, ...]
    index: int
    update: Update
    site: str


def _fill(adapter: Adapter, model: nn.Module, peft: PeftDirectory, updates: list[Update]) -> None:
    """Copy the matrices into an adapter whose up factors are zero."""
    owners = {path: (update, index) for update in updates for index, path in enumerate(_site_paths(update))}
    slots: dict[str, list[_Slot]] = defaultdict(list)
    stored: dict[str, StoredTensor] = {}
    for role, groups in adapter.plan.groups().items():
        offset = 0
        for factor, sites in groups:
            for site in sites:
                if site.path in owners:
                    update, index = owners[site.path]
                    tensor = update.tensors[role]
                    stored[tensor.key] = tensor
                    slots[tensor.key].append(_Slot(role, offset, factor.shape, index, update, site.path))
                offset += factor.size
    sites_by_path = {site.path: site for site in adapter.plan.sites}
    with torch.no_grad():
        for key, values in peft.read(stored):
            for slot in slots[key]:
                target = adapter.role_parameters[slot.role].view(-1)[slot.offset :]
                factor = target[: torch.Size(slot.shape).numel()].view(slot.shape)
                if slot.role == "magnitude":
                    weight = sites_by_path[slot.site].weight(model)
                    factor.copy_(values.flatten() - torch.linalg.vector_norm(weight.float(), dim=1).to(values.device))
                    continue
                matrix = _matrix(slot, values, peft)
                if slot.role == "up":
                    scale = _scale_of_host(adapter.plan.stack.host, sites_by_path[slot.site])
                    matrix = matrix * (slot.update.scale / scale)
                    factor[:, : matrix.shape[1]] = matrix
                else:
                    factor[: len(matrix)] = matrix


def _matrix(slot: _Slot, values: Tensor, peft: PeftDirectory) -> Tensor:
    """A site's part of a stored tensor, as a matrix whose rank is at most that of the weight."""
    update = slot.update
    matrix = _part(slot, values)
    if not update.full_rank:
        return matrix
    # One of the two becomes the identity, and the other the product.
    out, inner = update.sides
    wide = "down" if out <= inner else "up"
    if slot.role != wide:
        return torch.eye(update.own_rank)
    other = "up" if wide == "down" else "down"
    ((_, stored),) = peft.read({other: update.tensors[other]})
    partner = _part(replace(slot, role=other), stored)
    return partner @ matrix if wide == "down" else matrix @ partner


def _part(slot: _Slot, values: Tensor) -> Tensor:
    """A site's part of a stored tensor, as a matrix."""
    rank, experts = slot.update.rank, slot.update.experts
    if experts is None:
        return values.flatten(1)
    if slot.role == "down":
        return values.view(experts[1], rank, -1)[slot.index]
    return values.view(len(values), rank, experts[1])[:, :, slot.index]


def _scale_of_host(host: Host | None, site: Site) -> float:
    """The factor by which capaft multiplies the product of a site's factors."""
    assert isinstance(host, Lora | Dora)
    return host.scale_at(site)
