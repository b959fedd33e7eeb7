"""Origin of a base model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
GGUF = ".gguf"


@dataclass(frozen=True)
class Origin:
    """Name and revision of a base model, as the user gave them or as files tell them."""

    name: str | None = None
    revision: str | None = None

    @property
    def hub_id(self) -> str | None:
        """The name, if it is a hub id and no path."""
        is_id = self.name is not None and _HUB_ID.fullmatch(self.name) and not self.name.endswith(GGUF)
        return self.name if is_id else None


def loading_code(origin: Origin) -> str:
    """The arguments of `from_pretrained` in Python that load a base model."""
    name = origin.name or "path/to/the/base/model"
    if name.endswith(GGUF):
        path = PurePosixPath(name)
        return f"{literal(str(path.parent))}, gguf_file={literal(path.name)}"
    return literal(name) + (f", revision={literal(origin.revision)}" if origin.revision else "")


def literal(text: str) -> str:
    """A text as a literal in Python, in double quotes where it needs no escapes."""
    return f'"{text}"' if repr(text) == f"'{text}'" and '"' not in text else repr(text)
