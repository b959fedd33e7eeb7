"""Parts of a transformer block: its attentions and its feed-forward parts, with the projections that end them.

An attention is recognised by its name, or by its query, key and value projections; it ends in its output projections.
A feed-forward part is a module, or a pair of layers as in BERT, whose first linear layer leaves the width of the block
and whose last returns to it, and which looks at one position at a time; a mixture of experts is one as a whole. Layers
that belong to neither, such as state spaces, convolutions and gates, are named but never taken for one of the two.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from capaft.model.fused_projections import OUTPUTS, PROJECTION_NAMES
from capaft.model.layers import CONVOLUTIONS, is_router, layer_kind, layer_widths, packs_experts
from capaft.model.targets import in_attention

# The field's words for feed-forward parts. Where a block has parts of such names, others that are built alike (low-rank
# side paths, language adapters, inputs of single layers) are not feed-forward parts.
FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward|intermediate|expert|moe|(^|[._])(ff|fc)_?\d*($|[._])")
NORM = re.compile(r"[nN]orm(\d[dD])?(Gated)?$")
EXPERTS = re.compile(r"(^|_)experts?$")
LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass(frozen=True)
class Projection:
    """A layer, or a mixture of experts, that ends an attention or a feed-forward part.

    Attributes:
        path: of the module in the model.
        width: of its output.
    """

    path: str
    width: int


@dataclass(frozen=True)
class Attention:
    """One attention.

    Attributes:
        path: of the module in the model.
        ends: its output projections, several if it has several streams; none if they are unknown.
    """

    path: str
    ends: tuple[Projection, ...]


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward part.

    Attributes:
        end: the projection whose output is the part's contribution; a mixture of experts as a whole.
        enters: path of the module whose input is the part's input.
        closing: paths of the linear layers that read the inner activations: the end itself, or those of all experts;
            empty if they are packed.
        norm: path of the norm that follows the end in one module, as in BERT; empty if none does.
    """

    end: Projection
    enters: str
    closing: tuple[str, ...]
    norm: str = ""


@dataclass(frozen=True)
class Parts:
    """The parts of a module, in the module's order.

    Attributes:
        attentions: its attentions.
        feed_forwards: its feed-forward parts.
        others: paths of modules with weights that are neither.
    """

    attentions: tuple[Attention, ...]
    feed_forwards: tuple[FeedForward, ...]
    others: tuple[str, ...]


def block_parts(path: str, block: nn.Module) -> Parts:
    """The attentions and feed-forward parts of a module."""
    attentions = tuple(_attentions(path, block))
    widths = frozenset(end.width for attention in attentions for end in attention.ends) or _norm_widths(block)
    # The name of the list that holds the block counts too.
    root = path.rpartition(".")[0].rpartition(".")[0]
    search = _FeedForwards(widths, frozenset(attention.path for attention in attentions), root)
    if not layer_kind(block):
        search.visit(path, block, None)
    search.pair()
    feed_forwards = search.named()
    is_other = not attentions and not feed_forwards and any(p.ndim > 1 for p in block.parameters(recurse=False))
    return Parts(attentions, feed_forwards, (path,) if is_other else tuple(search.others))


def _attentions(path: str, module: nn.Module) -> Iterator[Attention]:
    """The attentions in a module, or the module itself if it is one."""
    if _is_attention(path, module):
        yield Attention(path, tuple(_ends(path, module)))
        return
    for name, child in module.named_children():
        yield from _attentions(f"{path}.{name}", child)


def _is_attention(path: str, module: nn.Module) -> bool:
    if layer_kind(module):
        return False
    if in_attention(path.rsplit(".", 1)[-1]) or type(module).__name__.endswith("Attention"):
        direct = any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
        computes = direct or len(linear_layers(module)) > 1
        return computes and (not is_norm(path, module) or bool(_ends(path, module)))
    if _holds_queries(module):
        return True
    # As in LXMERT, where the output projection stands beside the module that computes the attention.
    holders = [name for name, child in module.named_children() if _holds_queries(child) and not _ends("", child)]
    return bool(holders) and bool(_ends(path, module))


def _holds_queries(module: nn.Module) -> bool:
    """True if a module has a projection to queries, and one to keys or values."""
    names = {name for name, child in module.named_children() if layer_kind(child) == "linear"}
    return bool(names & PROJECTION_NAMES["q"]) and bool(names & (PROJECTION_NAMES["k"] | PROJECTION_NAMES["v"]))


def _ends(path: str, attention: nn.Module) -> list[Projection]:
    """The output projections of an attention: layers of such a name, or inside a module of one."""
    linear = linear_layers(attention)
    for depth in (1, 2):
        ends = [name for name in linear if name.split(".")[-depth:][0] in OUTPUTS and name.count(".") >= depth - 1]
        if ends:
            return [Projection(f"{path}.{name}", layer_widths(linear[name])[1]) for name in ends]
    return []


def linear_layers(module: nn.Module) -> dict[str, nn.Module]:
    """The linear layers in a module by their paths in it, without routers."""
    return {
        name: child
        for name, child in module.named_modules()
        if name and layer_kind(child) == "linear" and not (isinstance(child, nn.Linear) and is_router(child))
    }


def is_norm(path: str, module: nn.Module) -> bool:
    """True if a module is a norm, by its name or its class."""
    return "norm" in path.rsplit(".", 1)[-1].lower() or bool(NORM.search(type(module).__name__))


def _norm_widths(block: nn.Module) -> frozenset[int]:
    """The widths of the norms among a block's children."""
    weights: list[Any] = [getattr(c, "weight", None) for name, c in block.named_children() if is_norm(name, c)]
    return frozenset(weight.shape[0] for weight in weights if weight is not None and weight.ndim == 1)


class _FeedForwards:
    """A search for the feed-forward parts of one block.

    Attributes:
        widths: the widths that a part may start from and return to; empty for any.
        attentions: paths of the block's attentions.
        root: beginning of all paths that says nothing about the block.
        parts: the parts found so far.
        loose: linear layers that are part of no module that is one: halves of parts, or something else.
        others: paths of modules that are no feed-forward parts.
    """

    def __init__(self, widths: frozenset[int], attentions: frozenset[str], root: str = "") -> None:
        self.widths = widths
        self.attentions = attentions
        self.root = root
        self.parts: list[FeedForward] = []
        self.loose: list[tuple[str, nn.Module, nn.Module | None]] = []
        self.others: list[str] = []

    def visit(self, path: str, module: nn.Module, parent: nn.Module | None) -> None:
        """Sort what a module holds; `parent` is the module itself, or None if it is the block."""
        if path in self.attentions:
            return
        for name, child in module.named_children():
            self._sort(f"{path}.{name}", child, parent)

    def _sort(self, path: str, module: nn.Module, parent: nn.Module | None) -> None:
        """Sort a module, or what it holds, into parts, loose layers and others."""
        holds_attention = any(attention.startswith(path + ".") for attention in self.attentions)
        if path in self.attentions or (is_norm(path, module) and not holds_attention):
            return
        if layer_kind(module) == "linear":
            self.loose.append((path, module, parent))
        elif not _has_weights(module):
            return
        elif layer_kind(module):
            self.others.append(path)
        elif holds_attention or _is_list(path, module):
            self.visit(path, module, module)
        elif not self._take(path, module):
            if _mixes(module) and not self._is_named(path):
                self.others.append(path)
            else:
                before = len(self.parts) + len(self.loose) + len(self.others)
                self.visit(path, module, module)
                if before == len(self.parts) + len(self.loose) + len(self.others):
                    self.others.append(path)

    def pair(self) -> None:
        """Make parts of two loose layers each: one that leaves the block's width, and the next that returns to it."""
        while self.loose:
            path, entry, _ = self.loose.pop(0)
            width, inner = layer_widths(entry)
            for index, (end, layer, parent) in enumerate(self.loose):
                if self._is_width(width) and layer_widths(layer)[1] == width and _chained(inner, layer):
                    del self.loose[index]
                    norm = _norm_after(end, parent) if parent else ""
                    self.parts.append(FeedForward(Projection(end, width), path, (end,), norm))
                    break
            else:
                self.others.append(path)

    def named(self) -> tuple[FeedForward, ...]:
        """The parts, without those that are only built like one if others are also named like one."""
        named = tuple(part for part in self.parts if self._is_named(part.end.path) or self._is_named(part.enters))
        if not named:
            return tuple(self.parts)
        for part in self.parts:
            if part not in named:
                self.others += [part.enters, part.end.path]
        return named

    def _take(self, path: str, module: nn.Module) -> bool:
        """Add a module if it is a feed-forward part as a whole; return True if it is."""
        if _is_mixture(path, module):
            path, module = _unwrapped(path, module)
            width = max(self.widths, default=0) or _router_width(module)
            if width:
                self.parts.append(FeedForward(Projection(path, width), path, tuple(_closing_of_experts(path, module))))
            else:
                self.others.append(path)
            return True
        if _mixes(module) and not self._is_named(path):
            return False
        layers = {name: layer for name, layer in linear_layers(module).items() if not _in_norm(module, name)}
        names = self._entry_and_end(layers)
        if names is None:
            return False
        entry, end = names
        width = layer_widths(layers[end])[1]
        parent = module.get_submodule(end.rpartition(".")[0])
        # With weights of its own, the module does more to its input than its first layer sees.
        enters = path if any(True for _ in module.parameters(recurse=False)) else f"{path}.{entry}"
        norm = _norm_after(f"{path}.{end}", parent)
        self.parts.append(FeedForward(Projection(f"{path}.{end}", width), enters, (f"{path}.{end}",), norm))
        return True

    def _entry_and_end(self, layers: dict[str, nn.Module]) -> tuple[str, str] | None:
        """Names of the first and the last layer of a part, or None if these layers are not one."""
        if not layers or not self._is_width(width := layer_widths(next(iter(layers.values())))[0]):
            return None
        entry, *later = layers
        inner = layer_widths(layers[entry])[1]
        ends = [name for name in later if layer_widths(layers[name])[1] == width]
        chained = [name for name in ends if _chained(inner, layers[name])]
        return (entry, (chained or ends)[-1]) if ends else None

    def _is_width(self, width: int) -> bool:
        return not self.widths or width in self.widths

    def _is_named(self, path: str) -> bool:
        return bool(FEED_FORWARD.search(path.removeprefix(self.root).lower()))


def _is_list(path: str, module: nn.Module) -> bool:
    """True if a module only holds others, which are not experts."""
    holds_layers = any(layer_kind(child) == "linear" for child in module.children())
    return isinstance(module, LISTS) and not holds_layers and not EXPERTS.search(path.rsplit(".", 1)[-1])


def _chained(inner: int, layer: nn.Module) -> bool:
    """True if a layer can read an inner activation, as it is or after one half of it gates the other."""
    return layer_widths(layer)[0] in (inner, inner // 2)


def _has_weights(module: nn.Module) -> bool:
    """True if a module holds layers, some perhaps of codes, or other matrices; norms and scales do not count."""
    return any(parameter.ndim > 1 for parameter in module.parameters()) or any(map(layer_kind, module.modules()))


def _mixes(module: nn.Module) -> bool:
    """True if a module may look at several positions: it has kernels, or weights of its own outside its layers."""
    for name, child in module.named_modules():
        if isinstance(child, CONVOLUTIONS) and set(child.kernel_size) != {1}:
            return True
        if not layer_kind(child) and not is_norm(name, child) and any(True for _ in child.parameters(recurse=False)):
            return True
    return False


def _in_norm(module: nn.Module, name: str) -> bool:
    """True if a layer is part of a norm in a module."""
    pieces = name.split(".")
    paths = [".".join(pieces[:index]) for index in range(1, len(pieces))]
    return any(is_norm(path, module.get_submodule(path)) for path in paths)


def _is_mixture(path: str, module: nn.Module) -> bool:
    names = ((f"{path}.{name}" if name else path, child) for name, child in module.named_modules())
    return any(packs_experts(child) or EXPERTS.search(name.rsplit(".", 1)[-1]) for name, child in names)


def _unwrapped(path: str, module: nn.Module) -> tuple[str, nn.Module]:
    """The mixture in a module that only adds a norm and a residual connection to it, as in T5."""
    while True:
        children = dict(module.named_children())
        norms = [name for name, child in children.items() if is_norm(name, child)]
        inner = [name for name, child in children.items() if name not in norms and _has_weights(child)]
        if not norms or len(inner) != 1 or any(True for _ in module.parameters(recurse=False)):
            return path, module
        path, module = f"{path}.{inner[0]}", children[inner[0]]


def _router_width(module: nn.Module) -> int:
    """The width that a mixture's router reads; 0 if none is a layer."""
    layers = [child for child in module.modules() if isinstance(child, nn.Linear)]
    return layer_widths(layers[0])[0] if layers else 0


def _closing_of_experts(path: str, mixture: nn.Module) -> list[str]:
    """Paths of the last layers of a mixture's experts; none if they are packed."""
    if any(packs_experts(module) for module in mixture.modules()):
        return []
    closing = []
    for name, experts in mixture.named_modules():
        if EXPERTS.search(name.rsplit(".", 1)[-1]) and isinstance(experts, LISTS):
            for expert, module in experts.named_children():
                names = _FeedForwards(frozenset(), frozenset())._entry_and_end(linear_layers(module))
                closing += [f"{path}.{name}.{expert}.{names[1]}"] if names else []
    return closing


def _norm_after(projection: str, parent: nn.Module) -> str:
    """Path of the norm that follows a projection, alone with it in one module; empty if none does."""
    children = dict(parent.named_children())
    above, _, name = projection.rpartition(".")
    norms = [
        child
        for child, module in children.items()
        if "norm" in type(module).__name__.lower()
        and not isinstance(module, nn.modules.batchnorm._BatchNorm)
        and len(inspect.signature(module.forward).parameters) == 1
    ]
    is_alone = sum(layer_kind(module) == "linear" for module in children.values()) == 1
    if len(norms) != 1 or not is_alone or list(children).index(norms[0]) < list(children).index(name):
        return ""
    return f"{above}.{norms[0]}"
