"""Sites that are weights: linear layers and slices of fused ones, kernels, embeddings, experts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from torch import Tensor, nn

from capaft.model.fused_projections import PROJECTION_NAMES, projection_rows
from capaft.model.layers import (
    is_plain,
    is_pointwise,
    is_router,
    is_transposed,
    layer_kinds,
    layer_widths,
    packs_experts,
    read_without_calling,
)
from capaft.model.names import base_modules, canonical_path, in_head, renamed_path
from capaft.model.quantised import is_unreadable
from capaft.model.site import Site, SiteKind, is_quantised
from capaft.model.targets import TARGET_PRESETS, Targets, in_attention, path_matcher
from capaft.model.weights import weight_owners
from capaft.support.errors import UsageError

# The kind of layer that a preset takes; names and regular expressions take any.
PRESET_KINDS: dict[str, SiteKind] = {
    "qv": "linear",
    "kv": "linear",
    "all-linear": "linear",
    "attention": "linear",
    "mlp": "linear",
    "conv": "conv",
    "embeddings": "embedding",
}


def find_weight_sites(model: nn.Module, targets: Targets, rename: dict[str, str] | None = None) -> tuple[Site, ...]:
    """Resolve targets to weights, sorted by canonical path.

    Layers of the output head are never sites. Modules that share one weight are one site. Routers, which return more
    than a product, have to be named.

    Args:
        model: the base model.
        targets: the user's choice; no words mean `qv`.
        rename: `{old: new}` pieces of module paths: sites that the model at hand calls `new` are seeded as `old`.

    Raises:
        UsageError: nothing matches, only the output head does, a weight is tied to one that is not a target, or a
            pattern cannot be used. The message lists the layers.
    """
    layers = _Layers(model, rename or {})
    sites: dict[str, Site] = {}
    unreadable: dict[str, str] = {}
    for word in targets.words or ("qv",):
        unreadable |= {name: layers.unreadable[name] for name in layers.unreadable_matching(word)}
        matching = list(layers.experts() if word == "experts" else layers.matching(word))
        if not matching and not unreadable:
            raise UsageError(layers.no_match(word))
        matching.sort(key=lambda site: site.path)
        for one, other in pairwise(matching):
            if one.path == other.path:
                raise UsageError(
                    f"--rename turns both {one.module} and {other.module} into {one.path}; give longer pieces"
                )
        sites = {site.path: site for site in matching} | sites
    for one, other in pairwise(sorted(sites.values(), key=lambda site: (site.module, site.path))):
        if one.module == other.module and one.parameter == other.parameter and not one.part:
            raise UsageError(
                f"--target-modules {targets.modules} adapts {one.module} twice, as a whole and in part; drop one"
            )
    allowed = targets.allow([*sites, *unreadable])
    if packed := [module for name, module in unreadable.items() if allowed(name)]:
        kind = type(model.get_submodule(packed[0])).__name__
        raise UsageError(
            f"{packed[0]}{f' and {len(packed) - 1} other modules' if packed[1:] else ''} ({kind}) computes with codes, "
            "and its widths cannot be told, so no adapter can stand beside it; load the model unquantised, or leave it "
            "out with --exclude-modules"
        )
    kept = [site for path, site in sorted(sites.items()) if allowed(path)]
    if not kept:
        raise UsageError("--exclude-modules and --layers leave none of the layers to adapt; exclude less")
    kept = _untied(
        model, kept, strict=any(word not in TARGET_PRESETS or word == "embeddings" for word in targets.words)
    )
    hidden = read_without_calling(model)
    return tuple(replace(site, parametrised=_is_hidden(model, site, hidden)) for site in kept)


@dataclass(frozen=True)
class _Layers:
    """The layers of a model, to be matched by words."""

    model: nn.Module
    rename: dict[str, str]

    @cached_property
    def kinds(self) -> dict[str, SiteKind]:
        """The kind of every layer that could be a site, by its path in the model."""
        return layer_kinds(self.model)

    @cached_property
    def names(self) -> dict[str, str]:
        """The canonical names of these layers, by their paths in the model."""
        return {path: self.name(path) for path in self.kinds}

    @cached_property
    def unreadable(self) -> dict[str, str]:
        """Paths of modules that compute with codes and are no layers that an adapter can stand beside, by their names.

        Not those inside a layer, or in the output head.
        """
        paths = (path for path, module in base_modules(self.model) if path and is_unreadable(module))
        layers = tuple(f"{path}." for path, kind in self.kinds.items() if kind == "linear")
        outside = (path for path in paths if path not in self.kinds and not path.startswith(layers))
        return {self.name(path): path for path in outside if not in_head(self.model, path)}

    @cached_property
    def head(self) -> set[str]:
        """Paths of the layers of the output head."""
        return {path for path in self.kinds if in_head(self.model, path)}

    def name(self, path: str) -> str:
        """The canonical path of a module, under its old name."""
        return renamed_path(canonical_path(self.model, path), self.rename)

    def matching(self, word: str) -> Iterator[Site]:
        """The sites of one word: a preset, a name or ending, or a regular expression."""
        match = None if word in ("qv", "kv", "all-linear", "conv", "embeddings") else path_matcher(word)
        for path, kind in self.kinds.items():
            # Names come first: a list of targets may have hundreds, and a model thousands of layers.
            if match is not None and not match(self.names[path]):
                continue
            module = self.model.get_submodule(path)
            as_linear = PRESET_KINDS.get(word) == "linear" and is_pointwise(module)
            if path in self.head or (PRESET_KINDS.get(word, kind) != kind and not as_linear):
                continue
            if word in PRESET_KINDS and isinstance(module, nn.Linear) and is_router(module):
                continue
            wide_in, wide_out = layer_widths(module)
            site = Site(self.names[path], path, wide_in, wide_out, kind, transposed=is_transposed(module))
            rows = projection_rows(self.model, path, word) if word in ("qv", "kv") else {}
            if rows == {}:
                yield site
            for part, its_rows in (rows or {}).items():
                yield replace(site, path=f"{site.path}#{part}", out_features=its_rows.count, rows=its_rows)

    def unreadable_matching(self, word: str) -> Iterator[str]:
        """Names of modules that a word would match if they were linear layers."""
        if PRESET_KINDS.get(word, "linear") != "linear":
            return
        letters = word if word in ("qv", "kv") else ""
        match = in_attention if letters else path_matcher(word)
        for name in self.unreadable:
            leaf = name.rsplit(".", 1)[-1]
            if match(name) or any(leaf in PROJECTION_NAMES[letter] for letter in letters):
                yield name

    def experts(self) -> Iterator[Site]:
        """The experts of mixtures: every matrix of a packed stack, and linear layers that are experts one by one."""
        for path, module in base_modules(self.model):
            if not packs_experts(module):
                continue
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim != 3:
                    continue
                if is_quantised(parameter):
                    raise UsageError(f"the experts of {path} are quantised and packed; load the model unquantised")
                rows, columns = parameter.shape[1:]
                transposed = bool(getattr(module, "is_transposed", False))
                wide_in, wide_out = (rows, columns) if transposed else (columns, rows)
                for index in range(len(parameter)):
                    label = f"{self.name(path)}#{name}.{index}"
                    yield Site(label, path, wide_in, wide_out, "experts", name, transposed, index=index)
        yield from (site for site in self.matching("all-linear") if ".experts." in f".{site.path}.")

    def no_match(self, word: str) -> str:
        """Message for a word that matches nothing, with alternatives."""
        kind = type(self.model).__name__
        if word == "experts":
            return f"{kind} has no experts that can be reached, neither packed nor as linear layers; drop experts"
        site_kind = PRESET_KINDS.get(word, "linear")
        layers = [path for path, kind in self.kinds.items() if path not in self.head and kind == site_kind]
        if not layers:
            other = next(
                (preset for preset in ("conv", "all-linear") if PRESET_KINDS[preset] in self.kinds.values()), None
            )
            hint = f"--target-modules {other}, " if other and PRESET_KINDS[other] != site_kind else ""
            return f"{kind} has no {site_kind} layers to adapt; choose {hint}--method full or head"
        if word not in TARGET_PRESETS and any(path_matcher(word)(self.name(path)) for path in self.head):
            return (
                f"--target-modules {word} matches the output head of {kind}, which is trained directly; choose layers "
                "of the body, or --modules-to-save"
            )
        description = {"qv": "query and value projections", "kv": "key and value projections"}.get(
            word
        ) or f"--target-modules {word}"
        names = ", ".join(sorted({path.rsplit(".", 1)[-1] for path in layers}))
        return (
            f"no layer of {kind} matches {description}; its {site_kind} layers are named: {names}. "
            "Choose some with --target-modules NAME,NAME or all-linear"
        )


def _untied(model: nn.Module, sites: list[Site], strict: bool) -> list[Site]:
    """One site for each weight, with all modules that share it; none if it is shared with one that is not a target."""
    owners = weight_owners(model)
    by_weight: dict[tuple[int, str], list[Site]] = defaultdict(list)
    for site in sites:
        # Codes are no weight to share, and a weight that is computed at every reading is no object that lasts.
        is_held = not (site.is_quantised(model) or site.is_computed(model))
        holder = site.stored(model) if is_held else model.get_submodule(site.module)
        by_weight[id(holder), site.part].append(site)
    kept = []
    for (weight, _), tied in by_weight.items():
        targeted = {site.module for site in tied}
        outside = [path for path, _ in owners[weight] if path not in targeted]
        if outside and strict:
            raise UsageError(
                f"{tied[0].module} shares its weight with {outside[0]}, which an update would change too; leave it "
                "out with --exclude-modules, or load the model untied"
            )
        if not outside:
            kept.append(replace(tied[0], tied=tuple(site.module for site in tied[1:])))
    if not kept:
        raise UsageError("every layer chosen shares its weight with one that is not; load the model untied")
    return kept


def _is_hidden(model: nn.Module, site: Site, read: set[str]) -> bool:
    """True if a hook on the module would miss some use of the weight, or add to something other than a product."""
    if site.kind == "experts":
        return True
    if not site.is_quantised(model):
        return any(path in read or not is_plain(model.get_submodule(path)) for path in site.modules)
    if site.module in read and isinstance(site.stored(model), Tensor):
        raise UsageError(
            f"the weight of {site.module} is quantised, and the model reads it without calling the layer, so that no "
            "adapter can change it; load the model unquantised, or leave it out with --exclude-modules"
        )
    if not is_plain(model.get_submodule(site.module)):
        raise UsageError(
            f"{site.module} is quantised, and computes more than a plain product of its kind, so that no adapter can "
            "stand beside it; load the model unquantised, or leave it out with --exclude-modules"
        )
    return False
