"""A directory as a bank: the file NAME.safetensors for each adapter, and nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Hashable
from pathlib import Path

from capaft.adapter.file.adapter_file import ADAPTER, read
from capaft.adapter.file.alone import check_streams
from capaft.support.errors import AdapterFileError, TrainingError, UsageError, did_you_mean
from capaft.support.files import write_atomically
from capaft.support.paths import named_path, shown_path
from capaft.training.record.found_run import find_adapter_file, name_on_hub

SUFFIX = ".safetensors"
# Safe in paths, addresses and shells, and never hidden.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


def check_name(name: str) -> str:
    """Return a name that an adapter of a bank can have.

    Raises:
        UsageError: it is none.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"an adapter cannot be named {shown_path(name)!r}; take at most 128 letters, digits and . _ + -, the first "
            "a letter or digit"
        )
    return name


class BankDirectory:
    """The adapter files of a directory, by name.

    Args:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = named_path("DIR", path)

    def files(self) -> dict[str, Path]:
        """The files by name, in the order of their names.

        Raises:
            UsageError: there is no such directory.
        """
        return {file.name.removesuffix(SUFFIX): file for file in self._entries() if self.is_named(file)}

    def _entries(self) -> list[Path]:
        """Everything in the directory but what is hidden, such as files that are being written."""
        try:
            with os.scandir(self.path) as entries:
                return sorted(self.path / entry.name for entry in entries if not entry.name.startswith("."))
        except OSError as error:
            raise UsageError(
                f"{shown_path(self.path)}: {error.strerror}; name a bank's directory, which capaft bank add makes"
            ) from None

    @staticmethod
    def is_named(file: Path) -> bool:
        """True for the file of an adapter, by its name."""
        return file.name.endswith(SUFFIX) and NAME.fullmatch(file.name.removesuffix(SUFFIX)) is not None

    def file(self, name: str) -> Path:
        """The file of a name, whether or not there is one.

        Raises:
            UsageError: no adapter can have this name.
        """
        return self.path / f"{check_name(name)}{SUFFIX}"

    def add(self, run: str, name: str | None = None, *, replace: bool = False) -> Path:
        """Copy the adapter of a run into the directory, which is made if it is missing; the file.

        Args:
            run: a run directory, a directory with one adapter file, or an adapter file.
            name: its name in the bank; by default the run's, or the repository's.
            replace: replace the adapter of that name.

        Raises:
            UsageError: nothing is called so, no adapter can have the name, or one has it already.
            AdapterFileError: the file is damaged.
            TrainingError: the file cannot be written.
        """
        source, _ = find_adapter_file(run)
        check_streams(read(source), {})
        if name is None and (on_hub := name_on_hub(run)):
            name = on_hub.repository.rpartition("/")[2]
        elif name is None:
            whole = source.resolve()
            name = whole.parent.name if whole.name == ADAPTER else whole.name.removesuffix(SUFFIX)
            if not NAME.fullmatch(name):
                raise UsageError(f"{shown_path(name)!r} cannot be a name in a bank; pass --name")
        target = self.file(name)
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{shown_path(self.path)} is a file; name a directory")
        if target.exists() and not replace:
            raise UsageError(f"{self.path} already has an adapter {name}; pass --replace, or another --name")
        try:
            content = source.read_bytes()
        except OSError as error:
            raise AdapterFileError(f"cannot read {source}: {error.strerror}") from None
        write_atomically(target, content)
        return target

    def remove(self, names: Collection[str]) -> None:
        """Delete adapters: all of these names, or none if one of them is not there.

        Raises:
            UsageError: the bank has no adapter of one of these names.
            TrainingError: a file cannot be deleted.
        """
        files = self.files()
        for name in names:
            if name not in files:
                raise UsageError(f"{self.path} has no adapter {shown_path(name)}{did_you_mean(name, files)}")
        for name in names:
            try:
                files[name].unlink(missing_ok=True)
            except OSError as error:
                raise TrainingError(f"cannot delete {files[name]}: {error.strerror}") from None

    def problems(self, advance: Callable[[int], None] = lambda files: None) -> dict[Path, str]:
        """What is wrong with each file that no bank could take in, in one line.

        Args:
            advance: called with the number of files that are done.

        Raises:
            UsageError: there is no such directory.
        """
        problems: dict[Path, str] = {}
        streams: dict[Hashable, str] = {}
        for path in self._entries():
            if not self.is_named(path):
                problems[path] = f"{path} is not an adapter of this bank: its name is not NAME{SUFFIX}"
                continue
            try:
                if path.is_dir():
                    raise AdapterFileError(f"{path} is a directory")
                check_streams(read(path), streams)
            except UsageError as error:
                problems[path] = str(error)
            advance(1)
        return problems
