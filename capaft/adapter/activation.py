"""The active adapters of a model: those that take part in its forward, with the head and the labels they own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import combinations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from capaft.adapter.module import Adapter, adapters, carrier
from capaft.adapter.trainable import hold, release
from capaft.support.errors import UsageError, check_type


def get_adapter(model: nn.Module, name: str = "default") -> Adapter:
    """The adapter of that name.

    Raises:
        UsageError: the model has no adapter of this name.
    """
    by_name = adapters(model)
    check_type("name", name, str, "a text")
    if name not in by_name:
        raise UsageError(f"the model has no adapter named {name}; it has: {', '.join(by_name) or 'none'}")
    return by_name[name]


def switch(model: nn.Module, *names: str | Iterable[str]) -> None:
    """Make the adapters of these names the active ones: one name, or a list of names; an empty list leaves the base.

    Active adapters act together. Each brings its own head, whatever `modules_to_save` trains, and its labels in the
    model's configuration; the parameters of the others need no gradient until they are switched to. An optimizer trains
    what it was given: make it after the switch, or give it `model.parameters()`.

    Raises:
        UsageError: the model has no adapter of one of these names, two of them have heads of their own or other
            labels, or the model is inside DistributedDataParallel. Nothing was changed.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> other = capaft.attach(model, "ia3", name="other")
        >>> adapter.enabled, other.enabled
        (True, False)
        >>> capaft.switch(model, "other")
        >>> adapter.enabled, other.enabled
        (False, True)
        >>> capaft.switch(model, ["default", "other"])
        >>> adapter.enabled, other.enabled
        (True, True)
    """
    refuse_distributed(model, "switch")
    chosen = list(_flat(names))
    for name in chosen:
        get_adapter(model, name)
    _check_together(model, chosen)
    activate(model, chosen)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Run the base model alone, with its own head and labels, while the context lasts.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> for parameter in adapter.parameters():
        ...     _ = torch.nn.init.normal_(parameter)
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> with capaft.disabled(model):
        ...     before = model(ids).pooler_output
        >>> torch.equal(model(ids).pooler_output, before)
        False
    """
    before = active_names(model)
    try:
        _set_active(model, ())
        yield
    finally:
        # What was attached meanwhile stays active only if nothing else was.
        activate(model, [name for name in before if name in adapters(model)] if before else active_names(model))


def active_names(model: nn.Module) -> list[str]:
    """Names of the active adapters."""
    return [name for name, adapter in adapters(model).items() if adapter.enabled]


def activate(model: nn.Module, names: Collection[str]) -> None:
    """Make these adapters the active ones; only their parameters need gradients."""
    by_name = adapters(model)
    # While an adapter is inactive its tensors need not be looked for in the model.
    for name in names:
        release(carrier(model), by_name[name])
    _set_active(model, names)
    for name, adapter in by_name.items():
        if name not in names:
            hold(carrier(model), adapter)


def refuse_distributed(model: nn.Module, what: str) -> None:
    """Refuse a change of the trainable parameters that DistributedDataParallel would not see.

    Raises:
        UsageError: the model is wrapped in it.
    """
    if isinstance(model, DistributedDataParallel):
        raise UsageError(
            f"DistributedDataParallel synchronises only what was trainable when it was made; {what} the model inside "
            "it (model.module), and wrap it anew"
        )


def _set_active(model: nn.Module, names: Collection[str]) -> None:
    """Exchange the tensors of adapters that are to be inactive and active, without a change to what is trainable."""
    model, by_name = carrier(model), adapters(model)
    for name, adapter in by_name.items():
        if adapter.enabled and name not in names:
            adapter.leave(model)
    for name, adapter in by_name.items():
        if not adapter.enabled and name in names:
            adapter.enter(model)


def _flat(names: Iterable[object]) -> Iterator[str]:
    """Names, whether given one by one or in a list.

    Raises:
        UsageError: something else is among them.
    """
    for name in names:
        if isinstance(name, str):
            yield name
        elif isinstance(name, Iterable):
            yield from _flat(name)
        else:
            raise UsageError(f"switch takes the names of adapters, got {name!r:.200}")


def _check_together(model: nn.Module, names: Collection[str]) -> None:
    """Check that adapters can be active at the same time.

    Raises:
        UsageError: two of them own the same parameter, or have other labels.
    """
    for one, other in combinations(dict.fromkeys(names), 2):
        first, second = get_adapter(model, one), get_adapter(model, other)
        if shared := sorted(_conflicts(first, second) | _conflicts(second, first)):
            raise UsageError(
                f"{one} and {other} each have a {shared[0]} of their own, and only one can be in the model; switch to "
                "one of them"
            )
        labels, others = first.own_labels(model), second.own_labels(model)
        if labels and others and not labels.agrees(others):
            raise UsageError(f"{one} and {other} have other labels; switch to one of them")


def _conflicts(owner: Adapter, other: Adapter) -> set[str]:
    """Parameters that one adapter owns and another one owns or moves."""
    moved = {f"{site.path}.{site.parameter}".removeprefix(".") for site in other.plan.head.parameters}
    return set(owner.substitutes.names) & (moved | set(other.substitutes.names))
