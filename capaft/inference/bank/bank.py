"""A bank: thousands of adapters over one base model, kept as coefficients and expanded when they are used."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from capaft.adapter.file.adapter_file import AdapterFile, read
from capaft.adapter.file.header import TaskRecord
from capaft.adapter.module import adapters, carrier
from capaft.inference.bank.cache import Expanded, FactorCache
from capaft.inference.bank.entry import Entry
from capaft.inference.bank.family import Family, family_key
from capaft.inference.bank.frame import CurrentFrame, Frame, Group
from capaft.inference.bank.places import Place
from capaft.inference.bank.probe import run_probe, settle_axes
from capaft.model.labels import Labels
from capaft.support.errors import UsageError, check_type, did_you_mean

CACHE_BYTES = 512 * 2**20


class Bank:
    """Adapters over one base model, by name, of which each forward uses one, or one for each of its examples.

    An adapter takes the bytes of its trained parameters, as they are in its file; what the seed gives is made once for
    all adapters of one method, seed and sites. The factors of those that were used last are kept as well.

    The model gets hooks and nothing else: its tensors, names and modes are what they were. What one thread uses, no
    other thread sees; each begins with the base model alone. The labels of an adapter are in `labels`, and not in the
    model's configuration, which all threads share.

    Args:
        model: the base model, without adapters. Put it in evaluation mode.
        cache_bytes: the most that factors may take which are kept for the next use.
        rename: `{old: new}` pieces of module paths, if this model names its modules differently.
        allow_base_mismatch: take adapters that were trained on other base weights.

    Raises:
        UsageError: the model carries adapters.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> size = capaft.save(model, path)
        >>> _ = capaft.detach(model)
        >>> bank = capaft.Bank(model)
        >>> bank.add("reviews", path)
        >>> bank.names
        ['reviews']
        >>> with bank.batch(["reviews", None]):
        ...     outputs = model(torch.tensor([[1, 2, 3], [1, 2, 3]]))
        >>> bank.close()
    """

    # Tells `capaft.attach` to keep off a model with these hooks.
    excludes_adapters = True

    def __init__(
        self,
        model: nn.Module,
        *,
        cache_bytes: int = CACHE_BYTES,
        rename: dict[str, str] | None = None,
        allow_base_mismatch: bool = False,
    ) -> None:
        check_type("model", model, nn.Module, "a torch module")
        check_type("cache_bytes", cache_bytes, int, "a number of bytes")
        check_type("rename", rename, dict | None, "a dictionary")
        self.model = carrier(model)
        if present := adapters(model):
            raise UsageError(f"the model carries the adapter {next(iter(present))}; take it off with capaft.detach")
        self._rename, self._allow_mismatch = rename, allow_base_mismatch
        self._entries: dict[str, Entry] = {}
        # Kept alive by the adapters, and by the forwards under way: a family of which none is left takes no memory.
        self._families: WeakValueDictionary[Hashable, Family] = WeakValueDictionary()
        self._tasks: dict[str, TaskRecord] = {}
        self._cache = FactorCache(cache_bytes)
        self._places: dict[str, Place] = {}
        self._axes: dict[str, int | None] = {}
        self._lock = threading.RLock()
        self._current: CurrentFrame = ContextVar("capaft_bank", default=None)
        self._handles: list[Any] = [
            self.model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            self.model.register_forward_hook(self._after_forward),
        ]

    def __repr__(self) -> str:
        return f"Bank({len(self)} adapters of {len(self._families)} kinds, {self.nbytes:,} bytes)"

    def __deepcopy__(self, memo: object) -> Bank:
        # It belongs to the hooks of a model, of which copies go on with it.
        return self

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __enter__(self) -> Bank:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def names(self) -> list[str]:
        """The names of the adapters, in the order in which they were added."""
        return list(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of the adapters' parameters in memory."""
        return sum(family.rows.nbytes for family in list(self._families.values()))

    def add(self, name: str, file: str | Path | AdapterFile, *, replace: bool = False) -> None:
        """Take in the adapter of a file, verified as `capaft.load` verifies it.

        Args:
            name: its name in the bank, any text.
            file: the file, a directory with one adapter file, or what `capaft.read` returned.
            replace: take the place of an adapter of that name.

        Raises:
            AdapterFileError: the file is damaged, belongs to another model, or its method acts elsewhere than on what
                layers take and give (`prefix`, `full`).
            UsageError: the bank is closed, or has an adapter of this name.
        """
        check_type("name", name, str, "a text")
        read_file = _read(file)
        with self._lock:
            if not replace and name in self._entries:
                raise UsageError(f"the bank already has an adapter named {name}; pass replace=True to replace it")
            family, labels = self._fit(read_file)
            entry = Entry(family, family.rows.add(read_file.tensors), self._known(read_file.task), labels)
            previous = self._entries.get(name)
            self._entries[name] = entry
            if previous is not None:
                self._forget(previous)

    def verify(self, file: str | Path | AdapterFile) -> None:
        """Check that the bank could take in the adapter of a file.

        Raises:
            AdapterFileError: it could not; see `add`.
            UsageError: the bank is closed.
        """
        read_file = _read(file)
        with self._lock:
            self._fit(read_file)

    def remove(self, name: str) -> None:
        """Forget an adapter. Forwards that use it already go on with it.

        Raises:
            UsageError: the bank has no adapter of this name.
        """
        with self._lock:
            entry = self._entry(name)
            del self._entries[name]
            self._forget(entry)

    def use(self, name: str | None) -> None:
        """Send every example of this thread's forwards through one adapter from now on, or through none.

        Raises:
            UsageError: the bank is closed, or has no adapter of this name.
        """
        self._check_open()
        if name is None:
            self._current.set(None)
            return
        with self._lock:
            entry = self._entry(name)
            (expanded,) = self._expanded([entry])
        self._current.set(Frame((Group(entry.family, [expanded]),)))

    @contextmanager
    def batch(self, names: Sequence[str | None]) -> Iterator[None]:
        """Send each example of this thread's forwards through an adapter of its own, while the context lasts.

        Logits of examples with fewer labels than the most are filled up with minus infinity.

        Args:
            names: for each example its adapter, or None for the base model alone.

        Raises:
            UsageError: the bank is closed, has no adapter of one of these names, or the model does not keep examples
                apart where an adapter acts.
        """
        self._check_open()
        if isinstance(names, str) or not isinstance(names, Sequence) or not names:
            raise UsageError(f"batch takes a list with a name, or None, for each example, got {names!r:.200}")
        with self._lock:
            chosen = [None if name is None else self._entry(name) for name in names]
            frame = self._frame(chosen)
        token = self._current.set(frame)
        try:
            yield
        finally:
            self._current.reset(token)

    def labels(self, name: str | None) -> tuple[str, ...]:
        """The names of an adapter's labels, in the order of its outputs; of the base model's for None.

        Raises:
            UsageError: the bank has no adapter of this name.
        """
        return self._entry(name).labels if name is not None else self._base_labels()

    def task(self, name: str) -> TaskRecord | None:
        """The task in the file of an adapter; None if it has none.

        Raises:
            UsageError: the bank has no adapter of this name.
        """
        return self._entry(name).task

    def close(self) -> None:
        """Take the bank off the model, which is as it was before, and forget all adapters."""
        with self._lock:
            for handle in self._handles:
                handle.remove()
            self._handles = []
            self._entries.clear()
            self._families.clear()
            self._places.clear()
            self._tasks.clear()
            self._axes.clear()
            self._cache = FactorCache(0)

    def _check_open(self) -> None:
        if not self._handles:
            raise UsageError("the bank is closed; make a new one")

    def _entry(self, name: str) -> Entry:
        entry = self._entries.get(name)
        if entry is None:
            hint = did_you_mean(name, self._entries) if isinstance(name, str) and len(self) <= 10_000 else ""
            raise UsageError(f"the bank has no adapter named {name!r:.200}{hint}")
        return entry

    def _base_labels(self) -> tuple[str, ...]:
        labels = Labels.of(self.model)
        return labels.names if labels else ()

    def _fit(self, file: AdapterFile) -> tuple[Family, tuple[str, ...]]:
        """A file's family, and the names of its labels, once all checks hold."""
        self._check_open()
        key = family_key(file)
        family = self._families.get(key)
        if family is None:
            family = Family(self.model, file, self._rename, self._allow_mismatch)
            self._install(family)
            self._families[key] = family
        labels = family.check(self.model, file)
        return family, labels.names if labels else self._base_labels()

    def _known(self, task: TaskRecord | None) -> TaskRecord | None:
        """The same task as one that another adapter has, so that thousands share one object."""
        return task if task is None else self._tasks.setdefault(repr(task), task)

    def _forget(self, entry: Entry) -> None:
        self._cache.drop(entry)
        entry.family.rows.free(entry.row)

    def _install(self, family: Family) -> None:
        """Hook the modules that a family acts at, and have been free of hooks so far."""
        for index, site in enumerate(family.plan.sites):
            for path in site.modules:
                self._place(path).sites.setdefault(family, []).append(index)
            if site.source:
                self._place(site.source).sources.setdefault(family, []).append(index)
        for name, places in family.head.items():
            for path, leaf in places:
                self._place(path).head.setdefault(family, {})[name] = leaf

    def _place(self, path: str) -> Place:
        if path not in self._places:
            self._places[path] = Place(path, self._current)
            self._handles += self._places[path].install(self.model.get_submodule(path))
        return self._places[path]

    def _expanded(self, entries: Sequence[Entry]) -> list[Expanded]:
        """The factors of several adapters of one family, in order: those that are kept, and the others expanded."""
        (family, *_) = (entry.family for entry in entries)
        if family.follow(self.model):
            self._cache = FactorCache(self._cache.limit)
        by_entry = {entry: self._cache.get(entry) for entry in entries}
        if missing := [entry for entry, expanded in by_entry.items() if expanded is None]:
            for entry, made in zip(missing, family.expand([entry.row for entry in missing]), strict=True):
                by_entry[entry] = made
                self._cache.put(entry, made)
        return [expanded for entry in entries if (expanded := by_entry[entry]) is not None]

    def _frame(self, chosen: Sequence[Entry | None]) -> Frame:
        """The frame of a batch."""
        rows: dict[Family, list[int]] = {}
        for row, entry in enumerate(chosen):
            if entry is not None:
                rows.setdefault(entry.family, []).append(row)
        groups = []
        for family, own in rows.items():
            of_group = [entry for entry in (chosen[row] for row in own) if entry is not None]
            members = list(dict.fromkeys(of_group))
            position = {entry: index for index, entry in enumerate(members)}
            where = None if len(own) == len(chosen) else torch.tensor(own, device=family.device)
            groups.append(Group(family, self._expanded(members), [position[entry] for entry in of_group], where))
        return Frame(tuple(groups), len(chosen), self._axes)

    def _before_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find out where the modules have the examples, before the first batch of several adapters; a root hook."""
        frame = self._current.get()
        if (
            frame is None
            or frame.probed_axes is not None
            or not frame.is_mixed
            or self._places.keys() <= frame.axes.keys()
        ):
            return
        probe = Frame((), probed_axes=dict.fromkeys(self._places))
        token = self._current.set(probe)
        try:
            run_probe(model, args, kwargs, frame.count)
        finally:
            self._current.reset(token)
        assert probe.probed_axes is not None
        self._axes.update(settle_axes(probe.probed_axes))

    def _after_forward(self, model: nn.Module, args: Any, output: Any) -> None:
        """Warn once of sites that were not called; a root hook."""
        frame = self._current.get()
        for group in frame.groups if frame is not None else ():
            family, unfired = group.family, group.family.unfired
            family.unfired = None
            if not unfired:
                continue
            if len(unfired) == len(family.plan.sites):
                raise UsageError("the forward called none of the adapted layers; call the whole model")
            paths = [family.plan.sites[index].path for index in sorted(unfired)]
            shown = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
            warnings.warn(f"adapted but not called in the first forward: {shown}", stacklevel=2)


def _read(file: str | Path | AdapterFile) -> AdapterFile:
    check_type("file", file, str | os.PathLike | AdapterFile, "a path or an AdapterFile")
    return file if isinstance(file, AdapterFile) else read(file)
