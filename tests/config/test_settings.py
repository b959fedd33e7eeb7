"""Fields of settings: the range and the choices that each carries."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tiny_settings import Oven

from capaft.config.settings import Settings, check_range, flag_of, setting


@dataclasses.dataclass(frozen=True)
class Menu(Settings):
    dish: str = setting("bread", "What to bake.", "Food", choices=("bread", "cake"))


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (Oven, "heat", 300.0),
        (Oven, "heat", None),
        # Without a range, any value; a name that is no setting has none.
        (Oven, "dish", "stew"),
        (Oven, "smoke", 3),
        (Menu, "dish", "cake"),
    ],
)
def test_values_in_range(cls: type[Settings], name: str, value: Any) -> None:
    check_range(cls, name, value, str(value))


@pytest.mark.parametrize(
    ("cls", "name", "value", "text", "message"),
    [
        (Oven, "heat", 301.0, " 301 ", r"^must be in \(0, 300\], got 301$"),
        (Oven, "minutes", 0, "0", "^must be at least 1, got 0$"),
        (Menu, "dish", "cak", "cak", r"^must be one of bread, cake, got 'cak'; did you mean cake\?$"),
    ],
)
def test_values_out_of_range(cls: type[Settings], name: str, value: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_range(cls, name, value, text)


def test_a_flag_has_hyphens() -> None:
    assert flag_of("batch_size") == "--batch-size"
