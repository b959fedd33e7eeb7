"""The names under which a run's files speak of its model and data, and the paths behind them on this machine.

A name is a hub id, or a path from where the run began that does not lead through the user's home; all else goes by
the last part of its path. The paths stand in one file beside the run's settings, which is not to be shared.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from capaft.support.errors import UsageError

CONFIG = "run.yaml"
LOCAL = "local.json"
PLACES = ("model", "data", "init_from")
"""The settings whose values are paths or hub ids."""
PASSED = "rows passed in Python"
"""The name of a data set that a program hands over."""

_MOST_BYTES = 2**16
# A checkpoint in the cache of the Hugging Face hub.
_SNAPSHOT = re.compile(r".*/models--(?P<id>[\w.-]+?(--[\w.-]+)?)/snapshots/[0-9a-f]{40}/?")


@dataclass(frozen=True)
class LocalPaths:
    """The paths behind the names in a run's settings.

    Attributes:
        paths: by setting, the absolute path of each name.
    """

    paths: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @staticmethod
    def read(directory: Path) -> LocalPaths:
        """Read the paths of a run; none if its directory was copied without them.

        Raises:
            UsageError: the file is damaged.
        """
        file = directory / LOCAL
        if not file.is_file():
            return LocalPaths()
        try:
            with file.open("rb") as stream:
                entries = json.loads(stream.read(_MOST_BYTES))
            base = os.path.realpath(directory)
            paths = {
                setting: {str(name): os.path.normpath(os.path.join(base, path)) for name, path in names.items()}
                for setting, names in entries.items()
            }
        except (OSError, ValueError, AttributeError, TypeError, RecursionError):
            raise UsageError(f"{file} is damaged; remove it, and pass --model and --data") from None
        return LocalPaths(paths)

    @staticmethod
    def beside(config: Path) -> LocalPaths:
        """The paths of the run whose settings a file holds; none if it is another file.

        Raises:
            UsageError: their file is damaged.
        """
        return LocalPaths.read(config.parent) if config.name == CONFIG else LocalPaths()

    def locate(self, setting: str, name: str) -> str:
        """The path or hub id that a name means; a slice may follow the name.

        Where nothing is left at a path, as after a move, a name is looked up in the working directory.
        """
        paths = self.paths.get(setting, {})
        for end in (len(name), name.rfind("[")):
            if end > 0 and (path := paths.get(name[:end])):
                has_moved = not os.path.exists(path) and os.path.exists(name[:end])
                return name if has_moved else path + name[end:]
        return name

    def name_of(self, setting: str, spec: str) -> str:
        """The name of a path or hub id: the one it has here, or else its shared name."""
        path, part = _split(spec)
        if path is not None:
            for name, known in self.paths.get(setting, {}).items():
                if os.path.realpath(known) == os.path.realpath(path):
                    return name + part
        return shared_name(spec)

    def with_only(self, setting: str, spec: str | None) -> LocalPaths:
        """These paths, with one of a setting: that of its value, by the name it has; none for a hub id."""
        paths = {key: names for key, names in self.paths.items() if key != setting}
        path, part = _split(spec or "")
        if spec is None or path is None:
            return LocalPaths(paths)
        return LocalPaths({**paths, setting: {self.name_of(setting, spec).removesuffix(part): path}})

    def with_copy(self, setting: str, spec: str, copy: Path) -> LocalPaths:
        """These paths, with that of a copy behind the name of a setting's value."""
        return LocalPaths({**self.paths, setting: {self.name_of(setting, spec): os.path.abspath(copy)}})

    def text(self, directory: Path) -> str:
        """The content of the file in a run's directory.

        A path is relative if it lies in the directory, or where the run began as the directory does, so that both can
        be moved together.
        """
        start, home = os.path.realpath(os.curdir), os.path.realpath(directory)

        def written(path: str) -> str:
            real = os.path.realpath(path)
            moves_along = _is_inside(real, home) or (_is_inside(real, start) and _is_inside(home, start))
            return os.path.relpath(real, home) if moves_along else path

        entries = {
            setting: {name: written(path) for name, path in names.items()} for setting, names in self.paths.items()
        }
        return json.dumps(entries, indent=2) + "\n"


def shared_name(spec: str) -> str:
    """The name of a model or data set in files that are shared.

    A directory's starts with a dot, so that it is not mistaken for a hub id.
    """
    path, part = _split(spec)
    if path is None:
        return spec
    if snapshot := _SNAPSHOT.fullmatch(Path(path).as_posix()):
        return snapshot["id"].replace("--", "/") + part
    start = os.path.abspath(os.curdir)
    typed = os.path.expanduser(spec.removesuffix(part))
    is_open = not os.path.isabs(typed) or _is_inside(path, start)
    shown = os.path.relpath(path, start) if is_open and not _leads_home(path, start) else os.path.basename(path)
    shown = Path(shown).as_posix()
    return (shown if shown.startswith(".") or os.path.isfile(path) else f"./{shown}") + part


def same_place(one: str, other: str) -> bool:
    """True if two paths or hub ids mean the same."""
    (path, part), (other_path, other_part) = _split(one), _split(other)
    if path is None or other_path is None:
        return one == other
    return (os.path.realpath(path), part) == (os.path.realpath(other_path), other_part)


def may_be_same_place(name: str, spec: str) -> bool:
    """True if a name means a path or hub id, or nothing that is here, but something that is called the same."""
    path, _ = _split(name)
    is_here = path is not None and os.path.exists(path)
    return same_place(name, spec) or (not is_here and os.path.basename(name) == os.path.basename(spec))


def is_path(spec: str) -> bool:
    """True if a model or data set is a path, not a hub id."""
    return _split(spec)[0] is not None


def _split(spec: str) -> tuple[str | None, str]:
    """The absolute path that a name means, None for a hub id, and the slice behind it."""
    for end in (len(spec), spec.rfind("[") if spec.endswith("]") else 0):
        path = os.path.expanduser(spec[:end])
        if end > 0 and os.path.exists(path):
            return os.path.abspath(path), spec[end:]
    is_written_as_path = os.path.isabs(os.path.expanduser(spec)) or spec.startswith(".")
    return (os.path.abspath(os.path.expanduser(spec)), "") if is_written_as_path else (None, "")


def _is_inside(path: str, directory: str) -> bool:
    return Path(path).is_relative_to(directory)


def _leads_home(path: str, start: str) -> bool:
    """True if the way from a directory to a path may lead through the name of somebody's home."""
    try:
        common = os.path.commonpath([path, start])
    except ValueError:  # On two drives of Windows.
        return True
    home = os.path.expanduser("~")
    return common == os.path.dirname(common) or (common != home and _is_inside(home, common))
