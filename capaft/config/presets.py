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
        UsageError: there is none of that name.
    """
    if name not in preset_names():
        raise UsageError(
            f"--preset {name}: there is none{did_you_mean(name, preset_names(), '; `capaft presets` lists them')}"
        )
    return DIRECTORY / f"{name}.yaml"


def preset_summaries() -> dict[str, str]:
    """By name, the first line of each preset's comment, which says what it is."""
    return {name: _first_line(DIRECTORY / f"{name}.yaml") for name in preset_names()}


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8") as stream:
        return stream.readline().removeprefix("#").strip()
