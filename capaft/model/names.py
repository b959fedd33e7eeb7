"""Names of modules and parameters that survive wrappers, heads and renaming."""

from __future__ import annotations

from typing import Any

from torch import nn

# An adapter stands in its model, and beside its modules, as a child of this name.
CHILD_PREFIX = "capaft_"
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def canonical_path(model: nn.Module, path: str) -> str:
    """A parameter's or module's path without wrapper prefixes and without the model's `base_model_prefix`."""
    prefix = getattr(unwrapped_model(model), "base_model_prefix", "")
    return without_wrappers(path).removeprefix(prefix + "." if prefix else "")


def renamed_path(path: str, rename: dict[str, str] | None) -> str:
    """A canonical path with whole pieces `new` called `old` again."""
    path = f".{path}."
    for old, new in (rename or {}).items():
        path = path.replace(f".{new}.", f".{old}.")
    return path[1:-1]


def backbone_prefix(model: nn.Module) -> str:
    """Path prefix of the part of the model that is not head (`"bert."`), or `""` for a bare model."""
    bare = unwrapped_model(model)
    prefix = getattr(bare, "base_model_prefix", "")
    return prefix + "." if prefix and isinstance(getattr(bare, prefix, None), nn.Module) else ""


def in_head(model: nn.Module, path: str) -> bool:
    """Whether a module belongs to the model's output head."""
    output: Any = getattr(unwrapped_model(model), "get_output_embeddings", lambda: None)()
    if isinstance(output, nn.Module) and any(model.get_submodule(path) is each for each in output.modules()):
        return True
    inside = backbone_prefix(model)
    if inside:
        return not without_wrappers(path).startswith(inside)
    # A model that does not tell its body from its head: a layer at its top that is as wide as there are labels.
    bare = unwrapped_model(model)
    labels = getattr(getattr(bare, "config", None), "num_labels", None)
    layer: Any = model.get_submodule(path)
    return (
        "For" in type(bare).__name__
        and "." not in without_wrappers(path)
        and getattr(layer, "out_features", None) == labels
    )


def input_embeddings(model: nn.Module) -> nn.Module | None:
    """The module that embeds the model's input, or None where it has none or does not say."""
    try:
        found: Any = getattr(unwrapped_model(model), "get_input_embeddings", lambda: None)()
    except (NotImplementedError, AttributeError):
        return None
    return found if isinstance(found, nn.Module) else None


def without_wrappers(path: str) -> str:
    """A path without wrapper prefixes."""
    return ".".join(part for part in path.split(".") if part + "." not in WRAPPERS)


def unwrapped_model(model: nn.Module) -> nn.Module:
    """The model inside its wrappers (DDP, say), which hide its attributes."""
    inside = next((child for name, child in model.named_children() if name + "." in WRAPPERS), None)
    return model if inside is None else unwrapped_model(inside)


def canonical_name(model: nn.Module, name: str, rename: dict[str, str] | None) -> str:
    """The name of a parameter as an adapter file has it: canonical, and the old one where modules were renamed."""
    return renamed_path(canonical_path(model, name), rename)


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters by name, without those of its adapters."""
    return {name: p for name, p in model.named_parameters() if not name.startswith(CHILD_PREFIX)}
