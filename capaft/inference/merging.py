"""Finished adapters merged into their base: tensor by tensor from its files where that can be, else in memory."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from capaft.adapter.activation import activate, active_names
from capaft.adapter.file.adapter_file import AdapterFile
from capaft.adapter.file.on_disk import activate_together, attach_on_disk, runnable
from capaft.adapter.file.save_load import load
from capaft.adapter.merge import merge_measured
from capaft.adapter.merged_weight import Rounding
from capaft.adapter.module import adapters
from capaft.config.choices import BaseDtype
from capaft.config.open_options import MergeOptions
from capaft.exchange.checkpoint_files import parse_size
from capaft.exchange.merged_directory import MergedModel, write_merged
from capaft.exchange.peft_import import import_peft
from capaft.exchange.probe import NoProbe, answers
from capaft.exchange.streamed_merge import StreamedMerge, plan_merge
from capaft.inference.merge_check import Verdict, check_answers, coarsest, in_float32
from capaft.model.quantised import quantised_layers
from capaft.model.site import is_quantised
from capaft.model.skeleton import NeedsWeights, runs_from_disk
from capaft.model.stored_dtypes import NAMES, stored_dtypes
from capaft.model.weights import dtype_of
from capaft.support.console import say_nothing
from capaft.support.errors import UsageError, one_line
from capaft.training.record.found_run import find_peft
from capaft.training.record.saved_run import SavedRun, open_run, read_run

Say = Callable[[str], None]

SMALL_ENTRIES = 2**24
"""Entries of the largest tensor up to which models are compared in float32."""


@dataclass(frozen=True, eq=False)
class Merge:
    """Adapters that are about to be merged.

    Attributes:
        saved: the first of them on its base, which gives head, labels and task.
        options: how they are merged.
        weights: the names of all on the model, each with the factor of its update.
        streamed: the decided merge, if the weights of the base are on disk; None if they are in memory.
        others: the files of the other adapters, by name.
        rounding: what rounding costs, once the model is written.
    """

    saved: SavedRun
    options: MergeOptions
    weights: Mapping[str, float]
    streamed: StreamedMerge | None = None
    others: Mapping[str, AdapterFile] = field(default_factory=dict)
    rounding: Rounding = field(default_factory=Rounding)
    _asked: list[tuple[Tensor, torch.dtype, torch.dtype]] = field(default_factory=list)

    @staticmethod
    def open(runs: Sequence[str], options: MergeOptions, say: Say = say_nothing) -> Merge:
        """Open runs to merge them, the weights of their base on disk if it can be.

        Args:
            runs: run directories or adapter files, the first of which gives the head.
            options: how they are opened and merged.
            say: called with a line for what is noteworthy.

        Raises:
            UsageError: a run or the base cannot be opened, or the adapters cannot be merged.
            AdapterFileError: a file is damaged, or belongs to another model.
        """
        if options.max_shard_size is not None:
            parse_size(options.max_shard_size)
        factors = options.weights or (1.0,) * len(runs)
        if len(factors) != len(runs):
            raise UsageError(f"--weights has {len(factors)} entries for {len(runs)} runs; give one for each")
        names = ["default", *(f"run{index + 1}" for index in range(1, len(runs)))]
        weights = dict(zip(names, factors, strict=True))
        if options.base_dtype in ("float32", "bfloat16", "float16") and options.dtype is None:
            options = replace(options, dtype=options.base_dtype, base_dtype=None)
        try:
            return _on_disk(runs, options, weights, say)
        except NeedsWeights as reason:
            say(f"the whole base model is read into memory: {reason}")
        return _in_memory(runs, options, weights, say)

    @property
    def auto_class(self) -> str:
        """The transformers class that loads the merged model."""
        return self.saved.task.auto_class_for(self.saved.base.model.config)

    def write(self, output: str, path: Path, *, overwrite: bool = False) -> int:
        """Merge, and write a plain model directory.

        Args:
            output: the directory as the user names it.
            path: the directory.
            overwrite: replace the model in that directory.

        Returns:
            Number of merged sites.

        Raises:
            UsageError: the directory holds something else, or the adapters cannot be merged.
            TrainingError: the disk is full or cannot be written.
        """
        base = self.saved.base.base.name
        if base and path.exists() and os.path.exists(base) and os.path.samefile(base, path):
            raise UsageError(f"--output {output} is the base model, which other adapters need; name another directory")
        if (streamed := self.streamed) is not None:
            limit = self.options.max_shard_size and parse_size(self.options.max_shard_size)
            description = replace(self._description(), dtype=streamed.dtype)
            write_merged(
                output, path, description, lambda aside: streamed.write(aside, limit or None), overwrite=overwrite
            )
            self.rounding.include(streamed.tensors.rounding)
            return streamed.sites
        if self.options.verify:
            self._ask()
        sites, dtype, rounding = _merged_in_memory(self.saved, self.options, self.weights)
        self.rounding.include(rounding)
        description, model = replace(self._description(), dtype=dtype), self.saved.base.model
        size = {"max_shard_size": self.options.max_shard_size} if self.options.max_shard_size else {}
        write_merged(output, path, description, lambda aside: model.save_pretrained(aside, **size), overwrite=overwrite)
        return sites

    def _ask(self) -> None:
        """Keep the answers of a model in memory, which is about to be changed."""
        model = self.saved.model
        floats = (tensor.dtype for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point())
        # Layers of codes compute in 16 bits, or round what they are given to 8.
        codes = [torch.bfloat16] if quantised_layers(model) else []
        with suppress(NoProbe), in_float32(model):
            self._check_unweighted()
            before = active_names(model)
            activate_together(model, list(self.weights))
            try:
                self._asked.append((answers(model), dtype_of(model), coarsest((*floats, *codes))))
            finally:
                # Heads leave in the order opposite to that in which they came: the first adapter's lies on top.
                activate(model, ())
                activate(model, before)

    def verify(self, path: Path) -> Verdict:
        """Compare the answers of base and adapters with those of the model that was written.

        Both compute in one dtype: float32 where that takes little memory. A merge from file to file runs both from
        disk, a module at a time.

        Args:
            path: the directory that was written.

        Raises:
            NoProbe: they cannot be asked.
            TrainingError: the merged model answers otherwise.
        """
        import transformers

        kind, trust = getattr(transformers, self.auto_class), self.saved.settings.trust_remote_code
        load = partial(kind.from_pretrained, path, trust_remote_code=trust)
        if (streamed := self.streamed) is None:
            self._check_unweighted()
            if not self._asked:
                answers(self.saved.base.model)
                raise NoProbe("it fails on a probe with the adapter")
            adapted, computed, rounded = self._asked.pop()
            written = (parameter.dtype for parameter in self.saved.base.model.parameters())
            floats = (dtype for dtype in written if dtype.is_floating_point)
            return check_answers(path, adapted, partial(load, dtype=computed), coarsest((rounded, *floats)))
        # In float32 no more than the rounding of the weights is seen, if that takes little memory.
        largest = max(tensor.shape.numel() for tensor in streamed.planned)
        dtype: BaseDtype = "float32" if largest <= SMALL_ENTRIES else self.saved.settings.base_dtype
        computed = getattr(torch, dtype)
        floats = (NAMES[tensor.code] for tensor in streamed.planned if tensor.code in NAMES)
        with tempfile.TemporaryDirectory(prefix=".capaft.", dir=path.parent) as scratch:
            adapted = self._answers_from_disk(scratch, dtype)
            gc.collect()
            disk = {"device_map": {"": "disk"}, "offload_folder": str(Path(scratch, "merged"))}
            return check_answers(path, adapted, partial(load, dtype=computed, **disk), coarsest((computed, *floats)))

    def _check_unweighted(self) -> None:
        if any(weight != 1 for weight in self.weights.values()):
            raise NoProbe("a weighted sum of adapters exists only merged")

    def _answers_from_disk(self, scratch: str, dtype: BaseDtype) -> Tensor:
        self._check_unweighted()
        present = {name.rpartition(".")[0] for name, p in self.saved.model.named_parameters() if not p.is_meta}
        files = {name: self.others.get(name, self.saved.file) for name in self.weights}
        places = runs_from_disk(self.saved.model, present)
        try:
            model = runnable(
                self.saved.task,
                replace(self.saved.settings, base_dtype=dtype),
                files,
                self.options,
                places,
                str(Path(scratch, "base")),
            )
        except (UsageError, ValueError, RuntimeError, NotImplementedError) as error:
            raise NoProbe(f"the base cannot be run from disk ({one_line(error)})") from None
        return answers(model)

    def _description(self) -> MergedModel:
        saved = self.saved
        return MergedModel(
            base=saved.base,
            settings=saved.settings,
            origin=saved.file.base,
            method=saved.file.header.method.method,
            auto_class=self.auto_class,
            pipeline_tag=saved.task.pipeline_tag,
            labels=saved.task.labels,
        )


def _on_disk(runs: Sequence[str], options: MergeOptions, weights: Mapping[str, float], say: Say) -> Merge:
    """Open runs whose base stays on disk, and decide how every tensor is merged.

    Raises:
        NeedsWeights: it cannot stay there.
    """
    opening = _exactly(options)
    saved = open_run(runs[0], opening, say, as_stored=True, on_disk=True)
    assert saved.form is not None
    others: dict[str, AdapterFile] = {}
    for run, name in zip(runs[1:], list(weights)[1:], strict=True):
        if find_peft(run):
            raise NeedsWeights(f"{run} is a PEFT adapter")
        others[name] = read_run(run, say).file
        attach_on_disk(saved.form, others[name], options, name)
    _say_whose_head(saved.model, runs, weights, say)
    stored = stored_dtypes(saved.base.base)
    assert stored is not None
    dtype = getattr(torch, options.dtype) if options.dtype else None
    return Merge(saved, options, weights, plan_merge(saved.form, stored, weights, dtype), others)


def _in_memory(runs: Sequence[str], options: MergeOptions, weights: Mapping[str, float], say: Say) -> Merge:
    saved = open_run(runs[0], _exactly(options), say, as_stored=True)
    for run, name in zip(runs[1:], list(weights)[1:], strict=True):
        if directory := find_peft(run):
            import_peft(saved.model, directory, name=name, rename=options.renames)
            continue
        file = read_run(run, say).file
        load(saved.model, file, name=name, rename=options.renames, allow_base_mismatch=options.allow_base_mismatch)
    _say_whose_head(saved.model, runs, weights, say)
    return Merge(saved, options, weights)


def _exactly(options: MergeOptions) -> MergeOptions:
    """The options that open the base in a dtype that holds all sums, if the merged weights are to have one dtype."""
    return replace(options, base_dtype=options.base_dtype or "float32") if options.dtype else options


def _say_whose_head(model: nn.Module, runs: Sequence[str], weights: Mapping[str, float], say: Say) -> None:
    """Say which head the merged model has, if there are several."""
    others = [adapters(model)[name].plan for name in weights][1:]
    if any(plan.trained or plan.head.parameters for plan in others):
        say(f"head   that of {runs[0]}; those of the other runs are left out")


def _merged_in_memory(
    saved: SavedRun, options: MergeOptions, weights: Mapping[str, float]
) -> tuple[int, str | None, Rounding]:
    """Merge into a model in memory; the number of sites, the dtype that its configuration is to name, and the cost."""
    model: Any = saved.model
    stored = stored_dtypes(saved.base.base) if options.dtype is None and options.base_dtype is None else None
    if stored and options.quantised == "refuse":
        # Exact, since these values were stored so; what is merged into them is then rounded once.
        stored.restore(model)
    plain = list(weights.values()) == [1.0]
    final = getattr(torch, options.dtype) if options.dtype else None
    factors = None if plain else weights
    sites, rounding = merge_measured(model, quantised=options.quantised, weights=factors, dtype=final)
    if stored:
        stored.restore(model)
    if final:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and not is_quantised(tensor):
                tensor.data = tensor.data.to(final)
    return sites, options.dtype or (stored.config if stored else None), rounding
