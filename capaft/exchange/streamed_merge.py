"""Merging from file to file: the model exists as a skeleton, its weights one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from capaft.adapter.activation import disabled, get_adapter
from capaft.adapter.install import detach
from capaft.adapter.merge import check_mergeable, check_sum, warn_of_rounding
from capaft.exchange.adapter_places import places_of
from capaft.exchange.checkpoint_files import into_files, write_checkpoint
from capaft.exchange.merged_directory import write_configuration
from capaft.exchange.merged_tensor import MergedTensor
from capaft.exchange.merged_tensors import MergedTensors
from capaft.model.stored_dtypes import StoredDtypes
from capaft.model.stored_form import StoredForm


@dataclass(frozen=True, eq=False)
class StreamedMerge:
    """A merge that is decided, with nothing written yet.

    Attributes:
        model: the skeleton of the merged model, with the head and the labels of the first adapter.
        tensors: the rules by which its tensors are made.
        planned: every tensor to write.
        sites: number of merged sites.
    """

    model: Any
    tensors: MergedTensors
    planned: tuple[MergedTensor, ...]
    sites: int

    @property
    def dtype(self) -> str | None:
        """The dtype that the configuration is to name: the one asked for, that of the base, or else the first."""
        names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
        first = next((names[tensor.code] for tensor in self.planned if tensor.code in names), None)
        asked = str(self.tensors.dtype).removeprefix("torch.") if self.tensors.dtype else None
        return asked or self.tensors.stored.config or first

    def write(self, directory: Path, limit: int | None = None) -> None:
        """Write weights and configuration.

        Args:
            directory: an empty directory.
            limit: bytes of a file of weights; None for the files of the base.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        write_configuration(self.model, directory)
        write_checkpoint(directory, into_files(self.planned, limit))
        warn_of_rounding(self.tensors.rounding)


def plan_merge(
    form: StoredForm, stored: StoredDtypes, weights: Mapping[str, float], dtype: torch.dtype | None
) -> StreamedMerge:
    """Decide how the adapters on a skeleton are merged, and take them off it.

    Args:
        form: the skeleton and the tensors of its checkpoint.
        stored: the dtypes of the checkpoint.
        weights: the adapters by name, each with the factor of its update; head and labels are those of the first.
        dtype: of the merged weights; None for that of each in the checkpoint.

    Raises:
        UsageError: an adapter cannot be merged, or they do not add up.
        NeedsWeights: the model cannot be merged tensor by tensor.
    """
    model: Any = form.model
    merged = {name: get_adapter(model, name) for name in weights}
    first, *_ = merged.values()
    with disabled(model):
        for adapter in merged.values():
            check_mergeable(model, adapter, on_disk=True)
        check_sum(model, merged, weights)
        first.give(model)
    for name in merged:
        detach(model, name)
    tensors = MergedTensors(form, stored, places_of([(merged[name], weights[name]) for name in weights]), dtype)
    sites = sum(len(adapter.plan.sites) for adapter in merged.values())
    return StreamedMerge(model, tensors, tuple(tensors), sites)
