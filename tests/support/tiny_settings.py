"""Settings of an oven, to test how settings are read, checked, shown and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from capaft.config.settings import Settings, setting
from capaft.config.values import Count, Text


@dataclasses.dataclass(frozen=True)
class Oven(Settings):
    """A few settings, with every type that a setting may have."""

    alternatives: ClassVar = (("minutes", "timer"), ("note", "seeds"))

    dish: str = setting("bread", "What to bake.", "Food", metavar="dish")
    note: str | None = setting(None, "A note (default: none).", "Food")
    toppings: tuple[str, ...] = setting((), "What goes on top.", "Food")
    sizes: tuple[int, ...] = setting((20, 30), "Sizes of the tins.", "Food")
    seeds: Count | None = setting(None, "Seeds to sow.", "Food")  # noqa: RUF009
    between: Text | None = setting(None, "What goes between layers (default: none).", "Food")  # noqa: RUF009
    heat: float = setting(180.0, "Degrees.", "Machine", check=("in (0, 300]", lambda heat: 0 < heat <= 300))
    minutes: int = setting(30, "Minutes.", "Machine", check=("at least 1", lambda minutes: minutes >= 1))
    mode: Literal["fan", "grill"] = setting("fan", "Where the heat comes from.", "Machine")
    light: bool = setting(False, "Switch the light on.", "Machine")
    timer: bool | None = setting(None, "Ring at the end (default: by day).", "Machine")
    recipe: Path | None = setting(None, "File of the recipe.", "Machine")  # noqa: RUF009

    def conflicts(self, labels: Mapping[str, str]) -> list[str]:
        return ["--heat and --mode grill cannot go together"] if "heat" in labels and self.mode == "grill" else []
