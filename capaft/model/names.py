"""Names of modules and parameters that survive wrappers, heads and renaming."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from capaft.support.errors import UsageError, did_you_mean

# Prefix of the children that hold an adapter, in the model and beside its modules.
CHILD_PREFIX = "capaft_"
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def canonical_path(model: nn.Module, path: str) -> str:
    """A parameter's or module's path without wrapper prefixes and without the model's `base_model_prefix`."""
    prefix = getattr(unwrapped_model(model), "base_model_prefix", "")
    return without_wrappers(path).removeprefix(prefix + "." if prefix else "")


def renamed_path(path: str, rename: dict[str, str] | None) -> str:
    """A canonical path with whole pieces `new` renamed back to `old`, all at once, so that two names can swap."""
    if not rename:
        return path
    olds = {new: old for old, new in rename.items()}
    # Of pieces that begin alike, the longest counts.
    pieces = "|".join(re.escape(new) for new in sorted(olds, key=len, reverse=True))
    return re.sub(rf"(?<![^.])(?:{pieces})(?![^.])", lambda piece: olds[piece[0]], path)


def check_renames(model: nn.Module, rename: dict[str, str] | None) -> None:
    """Refuse renames that do not concern a model, which would be passed over.

    Raises:
        UsageError: the model has no module of the new name, or two old names have one new name.
    """
    olds: dict[str, str] = {}
    names = {canonical_path(model, path) for path, _ in base_modules(model)} | {
        canonical_path(model, name) for name in base_parameters(model)
    }
    for old, new in (rename or {}).items():
        if not (isinstance(old, str) and isinstance(new, str) and old and new):
            raise UsageError(f"--rename {old}={new} must be old=new, the names of two modules")
        if new in olds:
            raise UsageError(f"--rename {olds[new]}={new} and {old}={new}: {new} cannot be both; give longer pieces")
        olds[new] = old
        if any(f".{new}." in f".{name}." for name in names):
            continue
        if any(f".{old}." in f".{name}." for name in names):
            hint = f"; it has {old}: the name at the training comes first, as in --rename {new}={old}"
        else:
            length = new.count(".") + 1
            parts = [name.split(".") for name in names]
            pieces = {".".join(part[at : at + length]) for part in parts for at in range(len(part) - length + 1)}
            hint = did_you_mean(new, pieces, "; name a module as the model at hand does")
        raise UsageError(f"--rename {old}={new}: {type(unwrapped_model(model)).__name__} has no module {new}{hint}")


def backbone_prefix(model: nn.Module) -> str:
    """Path prefix of the model without its head (`"bert."`), or `""` for a bare model."""
    bare = unwrapped_model(model)
    prefix = getattr(bare, "base_model_prefix", "")
    return prefix + "." if prefix and isinstance(getattr(bare, prefix, None), nn.Module) else ""


def in_head(model: nn.Module, path: str) -> bool:
    """True if a module belongs to the model's output head."""
    output: Any = getattr(unwrapped_model(model), "get_output_embeddings", lambda: None)()
    if isinstance(output, nn.Module) and any(model.get_submodule(path) is module for module in output.modules()):
        return True
    backbone = backbone_prefix(model)
    if backbone:
        return not without_wrappers(path).startswith(backbone)
    # The model does not separate body and head: take a top-level layer with one output per label.
    bare = unwrapped_model(model)
    labels = getattr(getattr(bare, "config", None), "num_labels", None)
    layer: Any = model.get_submodule(path)
    return (
        "For" in type(bare).__name__
        and "." not in without_wrappers(path)
        and getattr(layer, "out_features", None) == labels
    )


def input_embeddings(model: nn.Module) -> nn.Module | None:
    """The module that embeds the model's input, or None if the model has none or does not name it."""
    try:
        module: Any = getattr(unwrapped_model(model), "get_input_embeddings", lambda: None)()
    except (NotImplementedError, AttributeError):
        return None
    return module if isinstance(module, nn.Module) else None


def without_wrappers(path: str) -> str:
    """A path without wrapper prefixes."""
    return ".".join(part for part in path.split(".") if part + "." not in WRAPPERS)


def unwrapped_model(model: nn.Module) -> nn.Module:
    """The model inside its wrappers (such as DDP), which hide its attributes."""
    inner = _wrapped(model)
    return model if inner is None else unwrapped_model(inner)


def _wrapped(module: nn.Module) -> nn.Module | None:
    """The module inside a wrapper; None if it is no wrapper."""
    children = module._modules
    return next((children[name] for wrapper in WRAPPERS if (name := wrapper[:-1]) in children), None)


def child_of(module: nn.Module, name: str) -> nn.Module | None:
    """A module's child of that name, past wrappers around the module; None if it has none."""
    children = module._modules
    if name in children:
        return children[name]
    inner = _wrapped(module)
    return None if inner is None else child_of(inner, name)


def canonical_name(model: nn.Module, name: str, rename: dict[str, str] | None) -> str:
    """Name of a parameter in an adapter file: canonical, and the old one if modules were renamed."""
    return renamed_path(canonical_path(model, name), rename)


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters by name, without those of its adapters."""
    names: dict[nn.Parameter, str] = {}
    for path, module in base_modules(model):
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                names.setdefault(parameter, f"{path}.{leaf}" if path else leaf)
    return {name: parameter for parameter, name in names.items()}


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The model's own modules by path, each once, without those of its adapters, which may be many."""
    seen: set[nn.Module] = set()
    ahead = [("", model)]
    while ahead:
        path, module = ahead.pop()
        if module in seen:
            continue
        seen.add(module)
        yield path, module
        children = ((name, child) for name, child in module._modules.items() if not name.startswith(CHILD_PREFIX))
        ahead += reversed(
            [(f"{path}.{name}" if path else name, child) for name, child in children if child is not None]
        )
