"""A sharded base model: each process keeps its part of the frozen weights and borrows the others, block by block.

For base models that one device cannot hold (FSDP2; Zhao et al. 2023, arXiv 2304.11277). The trainable parameters are
not sharded: every process holds them whole, and their gradients are added up as always.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from capaft.support.errors import UsageError

_FSDP, _DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"


def sharding_requested() -> bool:
    """True if a launcher's configuration asks for a sharded base model; from then on Accelerate no longer sees it.

    Accelerate would shard the trainable parameters as well. DeepSpeed's stages 1 and 2 shard the optimizer's state and
    the gradients, a few kilobytes here, so they amount to plain data parallelism.

    Raises:
        UsageError: it asks for DeepSpeed's stage 3, or for FSDP 1.
    """
    if os.environ.pop(_DEEPSPEED, "").lower() == "true" and _zero_stage() == 3:
        raise UsageError("ZeRO-3 cannot leave the trainable parameters whole; shard the base model with FSDP2 instead")
    if os.environ.pop(_FSDP, "").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UsageError(
            "FSDP 1 cannot leave the trainable parameters whole; set fsdp_version: 2 in Accelerate's configuration"
        )
    return True


def _zero_stage() -> int:
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if file and file != "none":
        try:
            stage = json.loads(Path(file).read_text(encoding="utf-8"))["zero_optimization"]["stage"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(f"{file} is not a DeepSpeed configuration with a zero_optimization stage") from None
        return int(stage)
    return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") or 2)


def shard_model(model: nn.Module, trained: Iterable[nn.Parameter], device: torch.device) -> None:
    """Shard a model's weights over the processes, block by block and then the remainder; changes it in place.

    Args:
        model: the base model with its adapter attached.
        trained: the parameters that every process keeps whole.
        device: the device of the shards.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    whole = set(trained)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole)
    # transformers asks this name: processes that generate then go on until the last one is done.
    model._is_fsdp_managed_module = True  # type: ignore[assignment]


def is_sharded(model: nn.Module) -> bool:
    """True for a model that `shard_model` has sharded."""
    return bool(getattr(model, "_is_fsdp_managed_module", False))


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks: those that transformers would not split, else the elements of the longest list."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return blocks or max(lists, key=len, default=[])
