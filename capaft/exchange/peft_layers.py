"""The layers of a model as PEFT adapts them: what it can add an update to, and in which of its forms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from capaft.adapter.activation import disabled
from capaft.model.layers import (
    CONVOLUTIONS,
    is_plain,
    is_transposed,
    layer_kinds,
    layer_widths,
    packs_experts,
    read_without_calling,
)
from capaft.model.names import CHILD_PREFIX, base_modules, unwrapped_model, without_wrappers
from capaft.model.site import Site
from capaft.model.weights import device_of
from capaft.support.errors import UsageError

# `parameter` is a change of the weight while its module is called, which PEFT calls `target_parameters`.
Form = Literal["linear", "conv", "embedding", "parameter"]
# Names that were those of experts before transformers packed them. Where there are packed experts, PEFT takes them for
# experts still, and leaves layers alone that have them.
_ONCE_EXPERTS = frozenset(["gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj"])

# Kinds of model that PEFT knows to read these layers in kernels of their own.
_STATE_SPACES = frozenset(["falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"])
_UNREACHED = frozenset(["out_proj", "conv1d"])


@dataclass(frozen=True)
class PeftLayers:
    """The modules of a model, by the paths that PEFT knows them by: without wrappers.

    Attributes:
        model: the model.
    """

    model: nn.Module

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The modules by path, each once."""
        return {without_wrappers(path): module for path, module in base_modules(self.model)}

    @cached_property
    def places(self) -> dict[str, nn.Module]:
        """The modules by every path that they have; one that two others share has several."""
        return dict(_walk(self.model, ""))

    def adaptable(self) -> list[str]:
        """Paths of the layers that PEFT can add an update to."""
        kinds = {without_wrappers(path): kind for path, kind in layer_kinds(self.model).items()}
        return [path for path in kinds if self._is_known(path) and not self._obstacle(path)]

    def site(self, path: str) -> Site:
        """A layer as a site."""
        module = self.modules[path]
        wide_in, wide_out = layer_widths(module)
        kind = "embedding" if isinstance(module, nn.Embedding) else "linear"
        kind = "conv" if isinstance(module, CONVOLUTIONS) else kind
        return Site(path, path, wide_in, wide_out, kind, transposed=is_transposed(module))  # type: ignore[arg-type]

    def form(self, site: Site) -> Form:
        """The form in which PEFT can change the weight of a site.

        Raises:
            UsageError: there is none.
        """
        for path in map(without_wrappers, site.modules):
            if self._owners[id(self.modules[path])] > 1:
                raise UsageError(
                    f"{path} has several places in the model, and PEFT would adapt it in one of them; merge the run"
                )
            if path in self._read:
                raise UsageError(
                    f"the model reads the weight of {path} without calling it, which PEFT's adapters do not see; merge "
                    "the run"
                )
            if site.kind == "conv" and (obstacle := self._obstacle(path)):
                raise UsageError(f"PEFT has no LoRA for {path}: {obstacle}; merge the run")
            kind = getattr(getattr(unwrapped_model(self.model), "config", None), "model_type", "")
            if kind in _STATE_SPACES and path.rpartition(".")[2] in _UNREACHED:
                raise UsageError(
                    f"PEFT refuses to adapt {path} of a {kind} model, whose kernels read it; merge the run"
                )
            if site.kind == "linear" and not self._is_known(path):
                raise UsageError(f"PEFT has no LoRA for {path}, a {type(self.modules[path]).__name__}; merge the run")
        module = self.modules[without_wrappers(site.module)]
        is_taken_for_expert = self._has_packed_experts and site.module.rpartition(".")[2] in _ONCE_EXPERTS
        if site.kind == "experts" or is_taken_for_expert or self._obstacle(without_wrappers(site.module)):
            return "parameter"
        return "conv" if site.kind == "conv" else "embedding" if isinstance(module, nn.Embedding) else "linear"

    def _is_known(self, path: str) -> bool:
        """True for a layer of a class that PEFT adapts; of those that quantisers make, it knows most."""
        module: Any = self.modules[path]
        known = (nn.Linear, Conv1D, nn.Embedding, *CONVOLUTIONS)
        return isinstance(module, known) or hasattr(unwrapped_model(self.model), "hf_quantizer")

    @cached_property
    def _read(self) -> set[str]:
        """Paths of the modules whose weights the model reads without calling them, always or as it is set now."""
        read = {without_wrappers(path) for path in read_without_calling(self.model)}
        always = {without_wrappers(path) for path in read_without_calling(self.model, always=True)}
        return always | (read - self._called(read - always) if read - always else set())

    def sometimes_read(self, paths: Iterable[str]) -> list[str]:
        """Those of some paths whose weights the model reads without calling them if it is set so."""
        sometimes = {without_wrappers(path) for path in read_without_calling(self.model)}
        return sorted(sometimes.intersection(paths) - self._read)

    def _called(self, paths: set[str]) -> set[str]:
        """Those of some modules that a forward calls; none if the model does not run on transformers' own example."""
        called: set[str] = set()
        hooks = [
            self.modules[path].register_forward_hook(lambda *_, path=path: called.add(path)) for path in sorted(paths)
        ]
        example = getattr(unwrapped_model(self.model), "dummy_inputs", None)
        device = device_of(self.model)
        try:
            # A model may raise anything at inputs that are not meant for it.
            with suppress(Exception), torch.no_grad(), torch.random.fork_rng(), disabled(self.model):
                self.model(**{name: value.to(device) for name, value in (example or {}).items()})
        finally:
            for hook in hooks:
                hook.remove()
        return called

    @cached_property
    def _owners(self) -> Counter[int]:
        """The number of places that hold each module, by its identity."""
        modules = list(base_modules(self.model))
        return Counter(id(child) for _, module in modules for child in module._modules.values() if child is not None)

    @cached_property
    def _has_packed_experts(self) -> bool:
        return any(map(packs_experts, self.modules.values()))

    def _obstacle(self, path: str) -> str:
        """The reason why PEFT cannot add to the output of a layer; empty if it can."""
        module: Any = self.modules[path]
        if isinstance(module, CONVOLUTIONS):
            if not is_plain(module):
                return "it is a convolution in groups, padded by its own values, or more than a convolution"
            return "" if set(module.dilation) == {1} else "PEFT leaves out the dilation of a convolution"
        if isinstance(module, nn.Embedding) and module.max_norm is None and hasattr(module, "embed_scale"):
            return ""  # PEFT multiplies its addition by the same scale.
        return "" if path not in self._read and is_plain(module) else "it is more than a product with a weight"


def is_conv1d(module: nn.Module) -> bool:
    """True for a layer whose weight is `(in, out)`, which PEFT calls `fan_in_fan_out`."""
    return isinstance(module, Conv1D)


def _walk(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """A module and all in it, again in every place; not those of adapters."""
    yield without_wrappers(path), module
    for name, child in module._modules.items():
        if child is not None and not name.startswith(CHILD_PREFIX):
            yield from _walk(child, f"{path}.{name}" if path else name)
