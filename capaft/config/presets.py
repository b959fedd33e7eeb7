"""Published experiments as settings: one YAML file each, with its source, in `presets/`."""

from __future__ import annotations

from pathlib import Path

from capaft.support.errors import UsageError, did_you_mean

DIRECTORY = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """The presets by name, sorted."""
    return sorted(path.stem for path in DIRECTORY.glob("*.yaml"))


def preset_file(name: str) -> Path:
    """The file of a preset.

    Raises:
        UsageError: no preset is called that.
    """
    names = preset_names()
    if name not in names:
        hint = did_you_mean(name, names, "; `capaft presets` lists them")
        raise UsageError(f"--preset {name}: no preset is called that{hint}")
    return DIRECTORY / f"{name}.yaml"


def preset_summaries() -> dict[str, str]:
    """Each preset's description, the first line of its comment, by name."""
    return {name: _first_line(DIRECTORY / f"{name}.yaml") for name in preset_names()}


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8") as stream:
        return stream.readline().removeprefix("#").strip()
