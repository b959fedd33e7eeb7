"""Which modules of a model can be hosts, and what they are called.

A site is a linear layer, or a slice of a fused one, under a name that survives wrappers and heads: `layer.0.attention`
is the same site in a bare encoder, in a classifier built on it, and inside DDP. Nothing here knows an architecture;
it knows the names that transformers gives to query and value projections.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import regex
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from capaft.errors import UsageError

WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")

QUERY_VALUE = frozenset(
    {"query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "query_proj", "value_proj", "q_linear", "v_linear"}
    | {"q", "v", "to_q", "to_v", "wq", "wv", "linear_q", "linear_v"}
)
# Fused projections whose output is [query | key | value]; key and value may be narrower (grouped queries).
FUSED_THIRDS = frozenset(["c_attn", "Wqkv", "qkv_proj", "qkv"])
# Model types that use these names for another order (interleaved heads, say), of which a slice would be a mixture.
OTHER_ORDERS = frozenset(["codegen", "gpt_bigcode", "minimax"])

# A pattern may come from a stranger's adapter file: bounds on its length, its compiled size and its seconds.
MAX_TARGETS = 1000
MAX_PATTERN_COST = 200_000
MAX_PATTERN_SECONDS = 1.0


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
    prefix = getattr(_unwrapped(model), "base_model_prefix", "")
    return _stripped(path).removeprefix(prefix + "." if prefix else "")


def backbone(model: nn.Module) -> str:
    """Path prefix of the part of the model that is not head (`"bert."`), or `""` for a bare model."""
    bare = _unwrapped(model)
    prefix = getattr(bare, "base_model_prefix", "")
    return prefix + "." if prefix and isinstance(getattr(bare, prefix, None), nn.Module) else ""


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear-like module outside the output head, by its path in the model."""
    output = getattr(_unwrapped(model), "get_output_embeddings", lambda: None)()
    inside = backbone(model)
    return {
        path: module
        for path, module in model.named_modules()
        if _stripped(path).startswith(inside) and module is not output and _is_linear(module)
    }


def _stripped(path: str) -> str:
    """A path without wrapper prefixes."""
    return ".".join(part for part in path.split(".") if part + "." not in WRAPPERS)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside its wrappers (DDP, say), which hide its attributes."""
    inside = next((child for name, child in model.named_children() if name + "." in WRAPPERS), None)
    return model if inside is None else _unwrapped(inside)


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
    if len(targets) > MAX_TARGETS:
        raise UsageError(f"--target-modules has more than {MAX_TARGETS} characters; a short re:PATTERN can say as much")
    layers = linear_layers(model)
    if not layers:
        raise UsageError(f"{type(model).__name__} has no linear layers to adapt; choose --method full or head")
    named = {path: _renamed(canonical(model, path), rename or {}) for path in layers}
    if targets == "qv":
        sites = [s for path, module in layers.items() for s in _query_value(model, path, module, named[path])]
    else:
        match = _matcher(targets)
        sites = [_whole(p, m, named[p]) for p, m in layers.items() if match(named[p])]
    if not sites:
        what = "query and value projections" if targets == "qv" else f"--target-modules {targets}"
        names = sorted({path.rsplit(".", 1)[-1] for path in layers})
        raise UsageError(
            f"no layer of {type(model).__name__} matches {what}; its linear layers are named: "
            f"{', '.join(names)}. Choose some with --target-modules NAME,NAME or all-linear"
        )
    sites.sort(key=lambda site: site.path)
    for one, other in pairwise(sites):
        if one.path == other.path:
            raise UsageError(f"--rename calls both {one.module} and {other.module} {one.path}; name longer pieces")
    return tuple(sites)


def _renamed(path: str, rename: dict[str, str]) -> str:
    """The path with whole pieces `new` called `old` again."""
    path = f".{path}."
    for old, new in rename.items():
        path = path.replace(f".{new}.", f".{old}.")
    return path[1:-1]


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, (nn.Linear, Conv1D)):
        return True
    quantised = ("in_features", "out_features", "weight")
    return all(hasattr(module, name) for name in quantised) and not isinstance(module, nn.Bilinear)


def _features(module: Any) -> tuple[int, int]:
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    return module.in_features, module.out_features


def _whole(module_path: str, module: nn.Module, name: str) -> Site:
    wide_in, wide_out = _features(module)
    return Site(name, module_path, wide_in, wide_out, isinstance(module, Conv1D))


def _query_value(model: nn.Module, module_path: str, module: nn.Module, name: str) -> list[Site]:
    """The query and value projections that a module is or holds."""
    kind = module_path.rsplit(".", 1)[-1]
    if kind in QUERY_VALUE:
        return [_whole(module_path, module, name)]
    if kind not in FUSED_THIRDS:
        return []
    wide_in, wide_out = _features(module)
    query, key_value = _fused_widths(_config(model, module_path), wide_in)
    if wide_out != query + 2 * key_value:
        return []
    slices = {"q": (0, query), "v": (query + key_value, key_value)}
    return [
        Site(
            path=f"{name}#{which}",
            module=module_path,
            in_features=wide_in,
            out_features=width,
            transposed=isinstance(module, Conv1D),
            start=start,
            whole=False,
        )
        for which, (start, width) in slices.items()
    ]


def _config(model: nn.Module, path: str) -> Any:
    """The configuration of the innermost module around a path that has one: a vision tower has its own heads."""
    while path:
        path = path.rpartition(".")[0]
        config = getattr(model.get_submodule(path), "config", None)
        if config is not None:
            return config
    return None


def _fused_widths(config: Any, wide_in: int) -> tuple[int, int]:
    """Widths of query and of key in a fused projection; `(0, 0)` where the order of its rows is another."""
    if getattr(config, "model_type", None) in OTHER_ORDERS:
        return 0, 0
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return wide_in, wide_in
    head = getattr(config, "head_dim", None) or getattr(config, "hidden_size", wide_in) // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    return heads * head, groups * head


def _matcher(targets: str) -> Callable[[str], bool]:
    if targets == "all-linear":
        return lambda path: True
    if targets.startswith("re:"):
        return _search(targets)
    endings = [ending.strip() for ending in targets.split(",") if ending.strip()]
    return lambda path: any(path == ending or path.endswith("." + ending) for ending in endings)


def _search(targets: str) -> Callable[[str], bool]:
    """A bounded search.

    Only `regex` knows a time limit, but nested repetitions grow exponentially when it compiles them, and it has
    recursive patterns that fill memory; so the repetitions are counted first, and `re`, which has none, must agree.
    """
    text = targets[3:]
    repeats = re.findall(r"[*+?]|\{[^}]*", text)
    counts = [int(count) for repeat in repeats for count in re.findall(r"\d+", repeat)]
    if len(text) * 2 ** len(repeats) * math.prod(max(count, 1) for count in counts) > MAX_PATTERN_COST:
        raise UsageError(f"--target-modules {targets} repeats too much to be searched safely; simplify it")
    try:
        re.compile(text)
        pattern = regex.compile(text)
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        raise UsageError(f"--target-modules {targets} is not a regular expression: {error}") from None
    deadline = time.monotonic() + MAX_PATTERN_SECONDS

    def match(path: str) -> bool:
        try:
            return pattern.search(path, timeout=max(deadline - time.monotonic(), 0.01)) is not None
        except TimeoutError:
            raise UsageError(f"--target-modules {targets} takes too long to match {path}; simplify it") from None

    return match
