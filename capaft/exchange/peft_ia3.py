"""IA3 in PEFT's form: a vector of factors for each layer, which capaft trains as their difference from 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from capaft.adapter.module import Adapter
from capaft.exchange.low_rank_pairs import spread, whole_site
from capaft.exchange.peft_layers import PeftLayers, is_conv1d
from capaft.exchange.peft_lora import PREFIX, PeftMethod
from capaft.exchange.peft_names import saved_by, target_names
from capaft.model.layers import layer_widths
from capaft.model.names import without_wrappers
from capaft.support.errors import UsageError


def ia3(layers: PeftLayers, adapter: Adapter) -> PeftMethod:
    """An IA3 adapter.

    Raises:
        UsageError: PEFT cannot rescale one of the layers.
    """
    scales: dict[str, Tensor] = {}
    feed_forward: set[str] = set()
    for site, (scale,) in adapter.factors_of_sites():
        scale = scale.detach().cpu().float()
        scale = spread(site.rows, scale) if site.rows else scale
        layers.form(whole_site(site))
        for path in map(without_wrappers, site.modules):
            if not _can_rescale(layers.modules[path]) or (site.kind == "conv" and site.scales == "input"):
                raise UsageError(f"PEFT's IA3 cannot rescale {path}, a {type(layers.modules[path]).__name__}")
            scales[path] = scales.get(path, torch.ones_like(scale)) + scale
            feed_forward |= {path} if site.scales == "input" else set()
    similar = [path for path in layers.adaptable() if _can_rescale(layers.modules[path])]
    # Layers of one name have to be rescaled on one side, which `feedforward_modules` tells by the same names.
    inner = target_names(feed_forward, similar, layers.modules)
    outer = target_names(scales.keys() - feed_forward, similar, layers.modules)
    mixed = (inner.modules & outer.modules) | (saved_by(inner.names, outer.modules))
    if mixed:
        raise UsageError(f"PEFT's IA3 cannot tell on which side {min(mixed)} is rescaled; merge the run")
    tensors = {}
    for path in sorted(inner.modules | outer.modules):
        module, is_inner = layers.modules[path], path in inner.modules
        width = layer_widths(module)[0 if is_inner else 1]
        scale = scales.get(path, torch.ones(width))
        shape: tuple[int, ...] = (1, -1) if is_inner else (-1, 1)
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            shape = (1, -1, *[1] * (module.weight.ndim - 2))
        tensors[f"{PREFIX}{path}.ia3_l"] = scale.view(shape)
    targets = inner.modules | outer.modules
    config = {
        "peft_type": "IA3",
        "target_modules": sorted({*inner.names, *outer.names}),
        "feedforward_modules": list(inner.names),
        "fan_in_fan_out": any(is_conv1d(layers.modules[path]) for path in targets),
        "init_ia3_weights": True,
    }
    return PeftMethod(config, tensors, targets)


def _can_rescale(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)) or is_conv1d(module)
