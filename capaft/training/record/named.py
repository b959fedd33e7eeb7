"""What a file makes a command load: said before it is loaded, since a stranger may have written the file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from capaft.config.local_paths import PASSED, PLACES, is_path
from capaft.config.settings import Settings
from capaft.model.demo import MODEL_NAME
from capaft.support import hub

_WORDS = {"model": "loading the base model", "data": "reading the data", "init_from": "starting from the adapter"}


def report_named(setting: str, spec: str | None, file: Path, say: Callable[[str], None]) -> None:
    """Say what a file names, if it lies outside the file's directory and the working directory, or is not here yet.

    Args:
        setting: `model`, `data` or `init_from`.
        spec: the path or hub id; None and the demo's name are part of capaft, and rows come from a
            program.
        file: the file that names it.
        say: called with the line.
    """
    if spec is None or spec in (MODEL_NAME, "demo", PASSED):
        return
    if is_path(spec):
        real = Path(os.path.realpath(os.path.expanduser(spec)))
        is_near = any(real.is_relative_to(os.path.realpath(place)) for place in (file.parent, os.curdir))
        origin = ""
    else:
        is_near, origin = hub.is_cached(spec, is_data=setting == "data"), " from the Hugging Face hub"
    if not is_near:
        say(f"{_WORDS[setting]} {spec}{origin}, as {file.name} says")


def report_settings(
    settings: Settings, sources: Mapping[str, str], files: Sequence[Path], say: Callable[[str], None]
) -> None:
    """Say what the user's files of settings name, as `report_named` does.

    Args:
        settings: the settings.
        sources: the source of each, as `resolve_settings` gives them.
        files: those that the settings were read from.
        say: called with each line.
    """
    for setting in PLACES:
        for file in files:
            if sources[setting].startswith(f"{file}:"):
                report_named(setting, getattr(settings, setting), file, say)
