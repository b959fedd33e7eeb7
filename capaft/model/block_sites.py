"""Sites in the structure of a transformer: its blocks, with the ends of their attentions and feed-forward parts.

A block is an element of a list of modules that holds attention and a feed-forward part, or stands in a list with one
that does, as the layers of hybrid models do. No architecture is known by name, so a model that is built differently
has no blocks, and the message says so; what an adapted model has beside the two is named in a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from torch import nn

from capaft.model.block_parts import Attention, FeedForward, Projection, block_parts, linear_layers
from capaft.model.layers import layer_kind, layer_widths, read_without_calling
from capaft.model.names import canonical_path, in_head, renamed_path
from capaft.model.site import Site
from capaft.model.targets import Targets, select_sites
from capaft.support.errors import UsageError

LISTS = (nn.ModuleList, nn.Sequential)
SHOWN = 4


@dataclass(frozen=True)
class Block:
    """One transformer block.

    Attributes:
        path: of the block in the model.
        attentions: its attentions.
        feed_forwards: its feed-forward parts.
        others: paths of modules in it that are neither.
        joined: True if what is beside them reads several of its streams side by side, so that the width of its output
            is unknown.
    """

    path: str
    attentions: tuple[Attention, ...]
    feed_forwards: tuple[FeedForward, ...]
    others: tuple[str, ...] = ()
    joined: bool = False

    @property
    def is_whole(self) -> bool:
        """True if the block has both attention and a feed-forward part."""
        return bool(self.ends and self.feed_forwards)

    @property
    def ends(self) -> tuple[Projection, ...]:
        """The projections that the attentions end in."""
        return tuple(end for attention in self.attentions for end in attention.ends)


def find_blocks(model: nn.Module) -> list[Block]:
    """Every transformer block of a model, in the model's order.

    Raises:
        UsageError: the model has none.
    """
    lists = {
        path: {f"{path}.{name}" if path else name: child for name, child in module.named_children()}
        for path, module in model.named_modules()
        if isinstance(module, LISTS) and not in_head(model, path)
    }
    hidden = read_without_calling(model, always=True)
    blocks = {path: _block(path, module, hidden) for elements in lists.values() for path, module in elements.items()}
    stages = [path for path, elements in lists.items() if _alternates([blocks[element] for element in elements])]
    whole = {path for path, block in blocks.items() if block.is_whole and not any(_overlaps(path, s) for s in stages)}
    # Only the innermost: a stage of blocks, or a group of shared ones, is not a block itself.
    whole = {path for path in whole if not any(other.startswith(path + ".") for other in whole)}
    chosen = {path for elements in lists.values() if whole & elements.keys() for path in elements}
    chosen = {path for path in chosen if path in whole or not any(other.startswith(path + ".") for other in whole)}
    for name, elements in lists.items():
        holds_stages = any(stage.startswith(name + ".") for stage in stages)
        if not holds_stages and not any(_overlaps(path, other) for path in elements for other in chosen):
            chosen |= _half_blocks(elements, blocks)
    kept = [block for path, block in blocks.items() if path in chosen]
    if not any(block.feed_forwards for block in kept):
        raise UsageError(
            f"{type(model).__name__} has no transformer blocks to put an adapter layer in; choose a method "
            "such as lora that adapts layers"
        )
    return _once(model, kept)


def _alternates(elements: list[Block]) -> bool:
    """True if elements of a list take turns at attention and feed-forward: what is around them is not one block."""
    only = [(bool(block.ends), bool(block.feed_forwards)) for block in elements]
    return only.count((True, False)) > 1 and only.count((False, True)) > 1


def _block(path: str, module: nn.Module, hidden: set[str]) -> Block:
    """The block at a path; of its projections none is `hidden`, read and not called."""
    parts = block_parts(path, module)
    attentions = tuple(replace(part, ends=tuple(_called_ends(part, hidden))) for part in parts.attentions)
    feed_forwards = tuple(part for part in parts.feed_forwards if part.end.path not in hidden)
    unreached = (part.end.path for part in parts.feed_forwards if part.end.path in hidden)
    width = feed_forwards[-1].end.width if feed_forwards else 0
    layers = (module.get_submodule(name[len(path) + 1 :]) for name in parts.others if name != path)
    reads = [layer_widths(layer)[0] for layer in layers if layer_kind(layer) == "linear"]
    joined = any(width and wide > width and wide % width == 0 for wide in reads)
    return Block(path, attentions, feed_forwards, (*parts.others, *unreached), joined)


def _called_ends(attention: Attention, hidden: set[str]) -> Iterator[Projection]:
    """The ends of an attention; for a layer of it that is not called, the attention, whose output is the layer's."""
    for end in attention.ends:
        if end.path not in hidden:
            yield end
        elif end.path.rpartition(".")[0] == attention.path:
            yield Projection(attention.path, end.width)


def _overlaps(path: str, other: str) -> bool:
    """True if one of two modules is in the other, or they are the same."""
    return f"{path}.".startswith(other + ".") or other.startswith(path + ".")


def _half_blocks(elements: dict[str, nn.Module], blocks: dict[str, Block]) -> set[str]:
    """Paths of the elements of a list that together hold feed-forward parts and something beside them.

    Such are the layers of hybrid models without a layer that has both. Stages of images, whose channels come before
    their positions, are none.
    """
    chosen = [blocks[path] for path in elements]
    images = any(isinstance(child, nn.Conv2d) for module in elements.values() for child in module.modules())
    others = [
        module.get_submodule(path[len(top) + 1 :]) for top, module in elements.items() for path in blocks[top].others
    ]
    mixes = any(linear_layers(other) or any(True for _ in other.parameters(recurse=False)) for other in others)
    has_parts = any(block.feed_forwards for block in chosen) and (mixes or any(block.attentions for block in chosen))
    return set(elements) if has_parts and not images else set()


def _once(model: nn.Module, blocks: list[Block]) -> list[Block]:
    """The blocks without the parts that an earlier one shares with them, as Zamba's do."""
    blocks = list({id(model.get_submodule(block.path)): block for block in reversed(blocks)}.values())[::-1]
    seen: set[int] = set()

    def is_new(path: str) -> bool:
        module = id(model.get_submodule(path))
        is_first = module not in seen
        seen.add(module)
        return is_first

    return [
        Block(
            block.path,
            tuple(attention for attention in block.attentions if is_new(attention.path)),
            tuple(part for part in block.feed_forwards if is_new(part.end.path)),
            tuple(path for path in block.others if is_new(path)),
            block.joined,
        )
        for block in blocks
    ]


def find_block_sites(
    model: nn.Module,
    targets: Targets,
    rename: dict[str, str] | None,
    places: Callable[[Block], list[Site]],
    method: str,
) -> tuple[Site, ...]:
    """Sites of a host in every block, sorted by path.

    Args:
        model: the base model.
        targets: the choice of blocks and places; the words of `modules` are matched against the sites' paths.
        rename: see `find_weight_sites`.
        places: gives the sites of a block, each named by its path in the model.
        method: its name, for a warning about what it leaves out.

    Raises:
        UsageError: the model has no blocks, or no site is left.
    """
    blocks = find_blocks(model)
    sites = [
        replace(site, path=renamed_path(canonical_path(model, site.path), rename))
        for block in blocks
        for site in places(block)
    ]
    if not targets.modules:
        endless = [attention.path for block in blocks for attention in block.attentions if not attention.ends]
        warn_of_left_out(method, [*endless, *(path for block in blocks for path in block.others)])
    return select_sites(targets, sites, "places of the method")


def warn_of_left_out(method: str, paths: Iterable[str]) -> None:
    """Name what a method leaves out in the blocks that it adapts, with `*` for the numbers in the paths."""
    names = [".".join("*" if piece.isdecimal() else piece for piece in path.split(".")) for path in paths]
    if names := list(dict.fromkeys(names)):
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        warnings.warn(f"{method} has no place in {', '.join(names[:SHOWN])}{more}, and leaves them out", stacklevel=2)
