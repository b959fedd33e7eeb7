"""The adapter file, format 1: trained parameters, and a header that says which random numbers they multiply.

One safetensors file. Its `__metadata__` has one key, `capaft`, that holds canonical JSON (several keys would be written
in a different order on every run). docs/adapter-format.md specifies every byte. A reader trusts nothing: it checks
the header's schema, sizes and digests before it draws or allocates anything that they ask for.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor

from capaft.adapter.file.canonical import canonical_json
from capaft.adapter.file.envelope import open_safetensors, seal
from capaft.adapter.file.fingerprint import tensors_digest
from capaft.adapter.file.header import Header, TaskRecord, parse_header
from capaft.model.origin import Origin
from capaft.support.errors import AdapterFileError, check_type
from capaft.support.files import write_atomically
from capaft.support.out_of_memory import pass_on_exhaustion

ADAPTER = "adapter.safetensors"


@dataclass(frozen=True)
class AdapterFile:
    """A file that has been read and whose own digests hold.

    Attributes:
        path: path of the file.
        header: the header, as docs/adapter-format.md specifies it.
        tensors: the stored tensors, still encoded.
        size: bytes in the file.
    """

    path: Path
    header: Header
    tensors: dict[str, Tensor]
    size: int

    def __repr__(self) -> str:
        base = self.base.name or "an unnamed model"
        return f"AdapterFile({str(self.path)!r}, {self.header.method.method} for {base}, {self.size:,} bytes)"

    @property
    def base(self) -> Origin:
        """The base model's name and revision."""
        return Origin(self.header.base.name, self.header.base.revision)

    @property
    def task(self) -> TaskRecord | None:
        """The task that the adapter was trained for, if the file has one."""
        return self.header.task


def find_adapter(path: Path) -> Path:
    """The adapter file that a path means: the file itself, or the one in a directory.

    Raises:
        AdapterFileError: the directory holds no adapter file, or several of which none is `adapter.safetensors`.
    """
    if not path.is_dir() or (path / ADAPTER).is_file():
        return path / ADAPTER if path.is_dir() else path
    files = sorted(file for file in path.glob("*.safetensors") if file.is_file() and _looks_like_adapter(file))
    if not files:
        raise AdapterFileError(
            f"{path} holds no {ADAPTER} or other adapter file; give the directory of a finished run, or an adapter file"
        )
    if len(files) > 1:
        raise AdapterFileError(
            f"{path} holds {len(files)} adapter files ({', '.join(file.name for file in files[:5])}); name one"
        )
    return files[0]


def _looks_like_adapter(file: Path) -> bool:
    """True if a file begins as an adapter file does, even if it is damaged further on."""
    try:
        with file.open("rb") as stream:
            return b'"capaft"' in stream.read(4096)
    except OSError:
        return False


def read(path: str | Path) -> AdapterFile:
    """Read an adapter file and check all that can be checked without a model.

    Args:
        path: the file, or a directory with one adapter file.

    Raises:
        AdapterFileError: the file is missing, truncated, altered, foreign, or of a newer format.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> size = capaft.save(model, path)
        >>> header = capaft.read(path).header
        >>> header.method.method, header.seed, list(header.sites)[:2]
        ('lora+nola', 7, ['encoder.layer.0.attention.self.query', 'encoder.layer.0.attention.self.value'])
    """
    check_type("path", path, str | os.PathLike, "a path")
    path = find_adapter(Path(path))
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            reason = "Is a directory" if stat.S_ISDIR(status.st_mode) else "Not a file"
            raise AdapterFileError(
                f"cannot read {path}: {reason}; give an adapter file, such as a run's adapter.safetensors"
            )
        size = status.st_size
        with path.open("rb") as stream:
            described, text = open_safetensors(path, stream, size)
            header = parse_header(path, text)
            stream.seek(0)
            data = stream.read(size)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AdapterFileError(f"cannot read {path}: {reason}") from None
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:
        pass_on_exhaustion(error)
        raise AdapterFileError(f"{path} is damaged: {error}") from None
    if set(tensors) != set(described):
        raise AdapterFileError(f"{path} is damaged: its tensors are not those its header names")
    if tensors_digest(tensors) != header.digest.tensors:
        raise AdapterFileError(f"{path} is damaged: its tensors do not match their digest; copy it again")
    return AdapterFile(path, header, tensors, len(data))


def write_file(file: AdapterFile, path: Path) -> None:
    """Write a file that was read, byte for byte, to another place.

    Raises:
        TrainingError: it cannot be written.
    """
    write_atomically(path, seal(file.tensors, canonical_json(file.header.record())), make_parents=False)
