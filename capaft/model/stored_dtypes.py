"""Dtypes in which a checkpoint stores its tensors, so that a merged model is stored in the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from capaft.config.choices import BaseDtype
from capaft.model.load import BASE_DTYPES, locate_model
from capaft.model.names import base_modules, canonical_path
from capaft.model.origin import Origin
from capaft.model.site import VALUES, is_quantised
from capaft.support import hub
from capaft.support.out_of_memory import pass_on_exhaustion

# In the order in which transformers looks for them.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# As safetensors calls them. A checkpoint's other tensors are counters, or codes that mean nothing without a scale.
NAMES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredDtypes:
    """Dtypes of a checkpoint's values.

    Attributes:
        by_name: of each tensor, by its name in the checkpoint; codes are left out.
        usual: that of most values.
        has_codes: True if some weights are stored as codes.
        config: the dtype that the configuration names; None if it names none.
    """

    by_name: Mapping[str, torch.dtype]
    usual: torch.dtype
    has_codes: bool
    config: str | None

    @property
    def base_dtype(self) -> BaseDtype | None:
        """The smallest dtype that holds all values as they are stored; None if the model has to be loaded otherwise."""
        widest = reduce(torch.promote_types, self.by_name.values())
        name = str(widest).removeprefix("torch.")
        return cast(BaseDtype, name) if name in BASE_DTYPES and not self.has_codes else None

    def restore(self, model: nn.Module) -> None:
        """Round a model's own parameters, and those of its buffers that are stored, to the dtypes of the checkpoint.

        A parameter that the checkpoint does not have, such as a new head, gets the usual one. One that it has in
        another form (transformers joins the experts of some models) gets that of what no other parameter came from,
        and stays as it is if that is not one dtype.
        """
        stored = {canonical_path(model, name): dtype for name, dtype in self.by_name.items()}
        names: dict[torch.Tensor, list[str]] = {}
        buffers: dict[torch.Tensor, str] = {}
        for path, module in base_modules(model):
            for leaf, tensor in (module._parameters | module._buffers).items():
                name = canonical_path(model, f"{path}.{leaf}" if path else leaf)
                if isinstance(tensor, nn.Parameter):
                    names.setdefault(tensor, []).append(name)
                elif tensor is not None:
                    buffers[tensor] = name
        known = {*buffers.values(), *(name for aliases in names.values() for name in aliases)}
        unread = {dtype for name, dtype in stored.items() if name not in known}
        # What lies beside codes are scales, whose dtype is not that of the weights.
        others = {self.usual} if self.has_codes or not unread else unread
        for parameter, aliases in names.items():
            dtypes = {stored[name] for name in aliases if name in stored} or others
            if len(dtypes) == 1:
                _round(parameter, *dtypes)
        for buffer, name in buffers.items():
            if name in stored:
                _round(buffer, stored[name])


def stored_dtypes(base: Origin) -> StoredDtypes | None:
    """The dtypes of a checkpoint, read without its weights; None if it has no files that tell them, as in GGUF."""
    source = locate_model(base.name)
    if Path(source).is_file():
        return None
    sizes: Counter[torch.dtype] = Counter()
    by_name: dict[str, torch.dtype] = {}
    try:
        for name, dtype, size in _tensors(source, base.revision):
            if dtype in VALUES:
                sizes[dtype] += size
                by_name[name] = dtype
        config = json.loads(Path(_file(source, base.revision, "config.json") or "").read_text(encoding="utf-8"))
    # What is wrong with a file is reported, in any of a dozen ways, by what loads it.
    except Exception as error:
        pass_on_exhaustion(error)
        return None
    if not by_name:
        return None
    named = config.get("dtype", config.get("torch_dtype"))
    return StoredDtypes(
        by_name, sizes.most_common(1)[0][0], "quantization_config" in config, named if isinstance(named, str) else None
    )


def _tensors(source: str, revision: str | None) -> Iterator[tuple[str, torch.dtype | None, int]]:
    """Name, dtype (if it holds values) and size of each tensor of a checkpoint."""
    for file in weight_files(source, revision):
        yield from _in_safetensors(file) if file.endswith(".safetensors") else _in_pickle(file)


def weight_files(source: str, revision: str | None) -> list[str]:
    """The files that hold a checkpoint's weights, as transformers finds them; none if there are none."""
    first = next(filter(None, (_file(source, revision, name) for name in _WEIGHTS)), None)
    if first is None:
        return []
    if not first.endswith(".json"):
        return [first]
    index = json.loads(Path(first).read_text(encoding="utf-8"))["weight_map"]
    return [_file(source, revision, name) or "" for name in sorted(set(index.values()))]


def _in_safetensors(file: str) -> Iterator[tuple[str, torch.dtype | None, int]]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
            part = tensors.get_slice(name)
            yield name, NAMES.get(part.get_dtype()), torch.Size(part.get_shape()).numel()


def _in_pickle(file: str) -> Iterator[tuple[str, torch.dtype | None, int]]:
    state: dict[str, Any] = torch.load(file, map_location="meta", weights_only=True)
    for name, tensor in state.items():
        yield name, tensor.dtype, tensor.numel()


def _file(source: str, revision: str | None, name: str) -> str | None:
    """A file of a checkpoint, in a directory or in the hub's cache; None if it has none of that name."""
    from transformers.utils import cached_file

    local = {} if Path(source).is_dir() else {"local_files_only": hub.offline()}
    return cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False, **local)


def _round(tensor: torch.Tensor, dtype: torch.dtype) -> None:
    if not is_quantised(tensor) and tensor.is_floating_point() and not tensor.is_meta:
        tensor.data = tensor.data.to(dtype)
