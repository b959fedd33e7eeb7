"""What a file is by its content, where its name says something else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from capaft.data.conll import CONLL_SUFFIXES, is_conll
from capaft.support.errors import UsageError

_MAGIC = {b"PAR1": ".parquet", b"ARROW1": ".arrow", b"FEA1": ".feather"}
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|\?xml|head|body)\b", re.IGNORECASE)
_POINTER = b"version https://git-lfs.github.com/spec/"


def binary_suffix(content: bytes) -> str | None:
    """The suffix of the binary format that the first bytes tell, if any."""
    return next((suffix for magic, suffix in _MAGIC.items() if content.startswith(magic)), None)


def check_is_data(path: Path, content: bytes) -> None:
    """Make sure that a file holds data, and not what was sent or left in their place.

    Raises:
        UsageError: it is a web page, or Git LFS's pointer to a file.
    """
    if _HTML.match(content[:1000]):
        raise UsageError(f"{path}: this is a web page, perhaps an error message, and not data; download the file again")
    if content.startswith(_POINTER):
        raise UsageError(f"{path}: this is Git LFS's pointer to the file, not the file; fetch it with git lfs pull")


def text_suffix(suffix: str, lines: Iterable[str]) -> str:
    """The suffix of the format that the lines of a text file have: its own, unless they tell another.

    Lines of JSON are told by the first of them, and words with tags by the blank lines between sentences.
    """
    first = next((line.strip() for line in lines if line.strip()), "")
    if suffix in CONLL_SUFFIXES or suffix in (".jsonl", ".ndjson", ".json"):
        return suffix
    if first.startswith("{") and _is_record(first):
        return ".jsonl"
    if first.startswith("[") and _are_records("".join(lines)):
        return ".json"
    return CONLL_SUFFIXES[0] if is_conll(lines) else suffix


def _is_record(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _are_records(text: str) -> bool:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, list) and all(isinstance(record, dict) for record in document)
