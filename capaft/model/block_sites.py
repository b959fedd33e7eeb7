"""Sites in the structure of a transformer: the ends of a block's attention and of its feed-forward part.

A block is an element of a `ModuleList` that holds linear layers. Attention is recognised by its name; attention and the
feed-forward part each end in their last linear layer that is as wide as the block. No architecture is known by name, so
a model that is built differently has no blocks, and the message says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from capaft.model.fused_projections import output_projection
from capaft.model.layers import is_router, layer_kind, layer_widths, packs_experts
from capaft.model.names import canonical_path, in_head, renamed_path
from capaft.model.site import Site
from capaft.model.targets import Targets, in_attention, select_sites
from capaft.support.errors import UsageError


@dataclass(frozen=True)
class Block:
    """One transformer block.

    Attributes:
        path: of the block in the model.
        width: of its output.
        attention: paths of the projections that its attentions end in.
        feed_forward: path of the projection that its feed-forward part ends in.
        enters: path of the feed-forward part's first projection, whose input is that part's input.
        enters_width: width of that input.
        norm: path of the norm that follows the feed-forward part in one module, as in BERT; empty if none does.
    """

    path: str
    width: int
    attention: tuple[str, ...]
    feed_forward: str
    enters: str
    enters_width: int
    norm: str


def find_blocks(model: nn.Module) -> list[Block]:
    """Every transformer block of a model, in the model's order.

    Raises:
        UsageError: the model has none.
    """
    blocks: list[Block] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or in_head(model, path):
            continue
        for name, child in module.named_children():
            block = _block(f"{path}.{name}" if path else name, child)
            if block:
                blocks.append(block)
    # Only the innermost: a stage of blocks, or a group of shared ones, is not a block itself.
    paths = [block.path for block in blocks]
    blocks = [block for block in blocks if not any(path.startswith(block.path + ".") for path in paths)]
    if not blocks:
        raise UsageError(
            f"{type(model).__name__} has no transformer blocks to put an adapter layer in; choose a method "
            "such as lora that adapts layers"
        )
    return blocks


def find_block_sites(
    model: nn.Module,
    targets: Targets,
    rename: dict[str, str] | None,
    places: Callable[[Block], list[Site]],
) -> tuple[Site, ...]:
    """Sites of a host in every block, sorted by path.

    Args:
        model: the base model.
        targets: the choice of blocks and places; the words of `modules` are matched against the sites' paths.
        rename: see `find_weight_sites`.
        places: gives the sites of a block, each named by its path in the model.

    Raises:
        UsageError: the model has no blocks, or no site is left.
    """
    sites = [
        replace(site, path=renamed_path(canonical_path(model, site.path), rename))
        for block in find_blocks(model)
        for site in places(block)
    ]
    return select_sites(targets, sites, "places of the method")


def _block(path: str, block: nn.Module) -> Block | None:
    """The block at a path, or None unless it has both attention and a feed-forward part."""
    linear = {
        name: layer_widths(module)
        for name, module in block.named_modules()
        if name and layer_kind(module) == "linear" and not (isinstance(module, nn.Linear) and is_router(module))
    }
    outside = {name: widths for name, widths in linear.items() if not in_attention(name)}
    attentions = {_attention_of(name) for name in linear if name not in outside}
    ends = [f"{name}.{end}" if end else name for name in attentions if (end := _end(block, name)) is not None]
    ends.sort(key=list(linear).index)
    if not ends:
        return None
    width = linear[ends[0]][1]
    experts = _experts(block)
    enters = experts or next(iter(outside), "")
    feed_forward = experts or next((name for name in reversed(outside) if outside[name][1] == width), "")
    if not feed_forward:
        return None
    return Block(
        path=path,
        width=width,
        attention=tuple(f"{path}.{name}" for name in ends if linear[name][1] == width),
        feed_forward=f"{path}.{feed_forward}",
        enters=f"{path}.{enters}",
        enters_width=width if experts else outside[enters][0],
        norm="" if experts else _norm_after(path, block, feed_forward),
    )


def _attention_of(name: str) -> str:
    """The attention that a layer is part of: its path up to the piece that names it."""
    pieces = name.split(".")
    return ".".join(pieces[: next(index for index, piece in enumerate(pieces) if in_attention(piece)) + 1])


def _end(block: nn.Module, attention: str) -> str | None:
    """Path of an attention's output projection inside it: empty if it is one itself, None if it has none."""
    module = block.get_submodule(attention)
    return "" if layer_kind(module) == "linear" else output_projection(module)


def _experts(block: nn.Module) -> str:
    """The child of a block that mixes packed experts; empty if none does."""
    for name, child in block.named_children():
        if not in_attention(name) and any(packs_experts(module) for module in child.modules()):
            return name
    return ""


def _norm_after(path: str, block: nn.Module, projection: str) -> str:
    """Path of the norm that follows a projection, alone with it in one module; empty if none does."""
    parent, _, name = projection.rpartition(".")
    children = dict(block.get_submodule(parent).named_children()) if parent else {}
    norms = [child for child, module in children.items() if "norm" in type(module).__name__.lower()]
    is_alone = sum(layer_kind(module) == "linear" for module in children.values()) == 1
    if len(norms) != 1 or not is_alone or list(children).index(norms[0]) < list(children).index(name):
        return ""
    return f"{path}.{parent}.{norms[0]}"
