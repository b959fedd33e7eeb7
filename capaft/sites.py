"""Which modules of a model can be hosts, and what they are called.

A site is a linear layer, or a slice of a fused one, under a name that survives wrappers and heads: `layer.0.attention`
is the same site in a bare encoder, in a classifier built on it, and inside DDP. Nothing here knows an architecture;
it knows the names that transformers gives to query and value projections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import regex
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from capaft.errors import UsageError

WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")

QUERY_VALUE = frozenset(
    {"query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "query_proj", "value_proj", "q_linear", "v_linear"}
    | {"q", "v", "to_q", "to_v", "wq", "wv"}
)
# Fused projections whose output is [query | key | value]; key and value may be narrower (grouped queries).
FUSED_THIRDS = frozenset(["c_attn", "Wqkv", "qkv_proj", "qkv"])


@dataclass(frozen=True)
class Site:
    """One place where a host attaches.

    Attributes:
        path: canonical name, the one that seeds its streams; a slice of a fused projection is `path#q`.
        module: path of the module in the model at hand.
        in_features: width of the input.
        out_features: width of the output, or of the slice.
        transposed: the weight is stored `(in, out)`, as transformers' Conv1D does.
        start: first output of the slice; 0 for a whole module.
        whole: the site is the module's whole output.
    """

    path: str
    module: str
    in_features: int
    out_features: int
    transposed: bool = False
    start: int = 0
    whole: bool = True

    def weight(self, model: nn.Module) -> torch.Tensor:
        """The site's part of the base weight as a view of shape `(out, in)`; editing it edits the model."""
        stored: Any = model.get_submodule(self.module).weight
        matrix = stored.T if self.transposed else stored
        return matrix[self.start : self.start + self.out_features]


def canonical(model: nn.Module, path: str) -> str:
    """A parameter's or module's path without wrapper prefixes and without the model's `base_model_prefix`."""
    for wrapper in WRAPPERS:
        path = path.removeprefix(wrapper).replace("." + wrapper, ".")
    prefix = getattr(model, "base_model_prefix", "")
    return path.removeprefix(prefix + ".") if prefix else path


def backbone(model: nn.Module) -> str:
    """Path prefix of the part of the model that is not head (`"bert."`), or `""` for a bare model."""
    prefix = getattr(model, "base_model_prefix", "")
    return prefix + "." if prefix and isinstance(getattr(model, prefix, None), nn.Module) else ""


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear-like module outside the output head, by its path in the model."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    inside = backbone(model)
    return {
        path: module
        for path, module in model.named_modules()
        if path.startswith(inside) and module is not output and _is_linear(module)
    }


def find(model: nn.Module, targets: str, rename: dict[str, str] | None = None) -> tuple[Site, ...]:
    """Resolve a target pattern to sites, sorted by canonical path.

    Args:
        model: the base model.
        targets: `qv` (query and value projections), `all-linear`, `re:<regular expression>` searched in canonical
            paths, or a comma-separated list of module names or path endings.
        rename: `{old: new}` pieces of module paths: where the model at hand says `new`, the sites are seeded as `old`.

    Raises:
        UsageError: nothing matches, or the regular expression does not compile. The message lists the linear layers.
    """
    layers = linear_layers(model)
    if not layers:
        raise UsageError(f"{type(model).__name__} has no linear layers to adapt; choose --method full or head")
    if targets == "qv":
        sites = [s for path, module in layers.items() for s in _query_value(model, path, module)]
    else:
        match = _matcher(targets)
        sites = [_whole(model, p, m) for p, m in layers.items() if match(canonical(model, p))]
    if not sites:
        what = "query and value projections" if targets == "qv" else f"--target-modules {targets}"
        names = sorted({path.rsplit(".", 1)[-1] for path in layers})
        raise UsageError(
            f"no layer of {type(model).__name__} matches {what}; its linear layers are named: "
            f"{', '.join(names)}. Choose some with --target-modules NAME,NAME or all-linear"
        )
    for old, new in (rename or {}).items():
        sites = [replace(site, path=site.path.replace(new, old)) for site in sites]
    return tuple(sorted(sites, key=lambda site: site.path))


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, (nn.Linear, Conv1D)):
        return True
    quantised = ("in_features", "out_features", "weight")
    return all(hasattr(module, name) for name in quantised) and not isinstance(module, nn.Bilinear)


def _features(module: Any) -> tuple[int, int]:
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    return module.in_features, module.out_features


def _whole(model: nn.Module, path: str, module: nn.Module) -> Site:
    wide_in, wide_out = _features(module)
    return Site(canonical(model, path), path, wide_in, wide_out, isinstance(module, Conv1D))


def _query_value(model: nn.Module, path: str, module: nn.Module) -> list[Site]:
    name = path.rsplit(".", 1)[-1]
    if name in QUERY_VALUE:
        return [_whole(model, path, module)]
    if name not in FUSED_THIRDS:
        return []
    wide_in, wide_out = _features(module)
    config = getattr(model, "config", None)
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    if wide_out % (heads + 2 * groups):
        return []
    head = wide_out // (heads + 2 * groups)
    slices = {"q": (0, heads * head), "v": ((heads + groups) * head, groups * head)}
    return [
        Site(
            path=f"{canonical(model, path)}#{which}",
            module=path,
            in_features=wide_in,
            out_features=width,
            transposed=isinstance(module, Conv1D),
            start=start,
            whole=False,
        )
        for which, (start, width) in slices.items()
    ]


def _matcher(targets: str) -> Callable[[str], bool]:
    if targets == "all-linear":
        return lambda path: True
    if targets.startswith("re:"):
        return _search(targets)
    endings = [ending.strip() for ending in targets.split(",") if ending.strip()]
    return lambda path: any(path == ending or path.endswith("." + ending) for ending in endings)


def _search(targets: str) -> Callable[[str], bool]:
    """A bounded search: a pattern may come from a stranger's adapter file, and must not hang on it."""
    try:
        pattern = regex.compile(targets[3:])
    except regex.error as error:
        raise UsageError(f"--target-modules {targets} is not a regular expression: {error}") from None

    def match(path: str) -> bool:
        try:
            return pattern.search(path, timeout=1.0) is not None
        except TimeoutError:
            raise UsageError(f"--target-modules {targets} takes too long to match {path}; simplify it") from None

    return match
