"""Fields of settings: the range and the choices that each carries."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pytest
from tiny_settings import Oven

from capaft.config.settings import Settings, check_range, flag_of, setting, setting_types


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
    ],
)
def test_values_in_range(cls: type[Settings], name: str, value: Any) -> None:
    check_range(cls, name, value, str(value))


@pytest.mark.parametrize(
    ("cls", "name", "value", "text", "message"),
    [
        (Oven, "heat", 301.0, " 301 ", r"^must be in \(0, 300\], got 301$"),
        (Oven, "minutes", 0, "0", "^must be at least 1, got 0$"),
    ],
)
def test_values_out_of_range(cls: type[Settings], name: str, value: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_range(cls, name, value, text)


def test_the_type_of_a_setting_with_choices_is_one_of_them() -> None:
    assert setting_types(Menu) == {"dish": Literal["bread", "cake"]}


def test_a_flag_has_hyphens() -> None:
    assert flag_of("batch_size") == "--batch-size"
