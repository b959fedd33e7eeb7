"""Tags of words that mark entities: the schemes IOB1, IOB2, IOE, IOBES, BILOU and BMEWO."""

from __future__ import annotations

import re
from collections.abc import Collection

# A letter, and a type. L ends a chunk and U is one; M is inside and W is one.
_CHUNK_TAG = re.compile(r"O|[BIESLUMW](-.+)?")


def are_chunk_tags(tags: Collection[str]) -> bool:
    """True if all tags belong to a scheme; "O" alone, for words outside of any entity, does."""
    return all(map(_CHUNK_TAG.fullmatch, set(tags)))
