"""The files of a checkpoint: those that are not what their names say, as after a broken download."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import safetensors

from capaft.data.disguise import check_is_data
from capaft.support.errors import UsageError, one_line

# Read as plain text, so that a pointer to one of them would be taken for a vocabulary.
_VOCABULARIES = ("vocab.txt", "merges.txt")
# Files that transformers goes without if it cannot read them, as if there were none.
_OPTIONAL = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# How a pickled file without an archive around it begins, by the protocols that PyTorch wrote.
_PICKLED = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def check_unread_files(directory: Path) -> None:
    """Refuse a checkpoint with a broken file that transformers would read, or go without, and say nothing.

    Raises:
        UsageError: there is such a file; says what to do.
    """
    names = [*_OPTIONAL, "chat_template.jinja"]
    # All of a tokenizer may be in one other file.
    names += [] if (directory / "tokenizer.json").is_file() else _VOCABULARIES
    for path in (directory / name for name in names):
        if os.path.lexists(path) and (broken := _fault(path)):
            raise UsageError(broken)


def broken_file(directory: Path) -> str | None:
    """The first file of a checkpoint's directory that is broken, and how; None if all look whole."""
    return next(filter(None, map(_fault, _files(directory))), None)


def _files(directory: Path) -> Iterator[Path]:
    """The files that transformers may read, the most important first."""
    patterns = ["config.json", "*.index.json", "*.safetensors", "*.bin", "*.json", "*.model", "*.txt", "*.jinja"]
    if any(directory.glob("*.safetensors")):
        patterns.remove("*.bin")
    seen: set[Path] = set()
    for path in (path for pattern in patterns for path in sorted(directory.glob(pattern))):
        if path not in seen:
            seen.add(path)
            yield path


def _fault(path: Path) -> str | None:
    """What is wrong with a file, and what to do; None if it looks whole."""
    try:
        _check(path)
    except UsageError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror or error}); download it again"
    return None


def _check(path: Path) -> None:
    """Make sure that a file is one, and whole as far as its format tells.

    Raises:
        UsageError: it is not; says what to do.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise UsageError(f"{path} is not a file, but a {'directory' if path.is_dir() else 'device'}; replace it")
    if size == 0:
        raise UsageError(f"{path} is empty; download it again")
    check_is_data(path, _start(path))
    if path.suffix == ".json":
        _check_json(path)
    elif path.suffix == ".safetensors":
        _check_safetensors(path, size)
    elif path.suffix == ".bin" and not (zipfile.is_zipfile(path) or _start(path).startswith(_PICKLED)):
        raise UsageError(f"{path} is cut or damaged: it is not a file of PyTorch; download it again")


def _check_json(path: Path) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON ({one_line(error)}); download it again") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not a JSON object; download it again")
    if not path.name.endswith(".index.json"):
        return
    shards = content.get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise UsageError(f"{path} does not map weights to files; download it again")
    missing = sorted({name for name in shards.values() if not (path.parent / name).is_file()})
    if missing:
        others = f" and {len(missing) - 1} other files" if missing[1:] else ""
        raise UsageError(f"{path} names {missing[0]}{others}, not there; download the rest of the checkpoint")


def _check_safetensors(path: Path, size: int) -> None:
    try:
        with safetensors.safe_open(path, framework="pt"):
            return
    except safetensors.SafetensorError as error:
        reason = one_line(error).removeprefix("Error while deserializing header: ")
        raise UsageError(f"{path} is cut or damaged ({size:,} bytes: {reason}); download it again") from None


def _start(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(1000)
