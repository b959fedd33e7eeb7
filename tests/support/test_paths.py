"""Paths that can belong to no file."""

from __future__ import annotations

from pathlib import Path

import pytest

from capaft.support.errors import UsageError
from capaft.support.paths import named_path


def test_what_exists_and_what_does_not(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "missing", "missing/below", "file/below", "caf\udce9"):
        assert named_path("--output", str(tmp_path / name)) == tmp_path / name
    assert named_path("--output", "~/x") == Path.home() / "x"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("x" * 300, "File name too long"),
        ("a\0b", "null"),
        ("~nobody-of-that-name/x", "home"),
        ("loop", "symbolic links"),
    ],
)
def test_what_cannot_be(name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(UsageError, match=rf"^--output .*{says}.*; choose another path$") as caught:
        named_path("--output", name)
    assert len(str(caught.value)) < 400
