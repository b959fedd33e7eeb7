"""GGUF files that hold a LoRA of llama.cpp, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capaft.config.choices import FloatDtype
from capaft.model.origin import Origin
from capaft.support.errors import TrainingError, UsageError
from capaft.support.files import check_writable, flush_directory, make_ordinary
from capaft.support.paths import named_path
from capaft.support.signals import uninterrupted

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from capaft.exchange.gguf_lora import GgufLora

_NAMES_OF_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def check_gguf_output(output: str | Path, *, overwrite: bool = False) -> None:
    """Make sure that the file that `--output` names may be written, and can be.

    Raises:
        UsageError: it cannot, something is there that is not to be replaced, or the gguf package is not installed.
    """
    gguf_library()
    path = named_path("--output", output)
    check_writable("--output", path)
    if not path.exists():
        return
    if not (path.is_file() and _begins(path) == b"GGUF"):
        raise UsageError(f"--output {output} is something else; name a file that is new")
    if not overwrite:
        raise UsageError(f"--output {output} is there; name another file, or replace it with --overwrite")


def _begins(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(4)


def write_gguf(lora: GgufLora, output: str | Path, dtype: FloatDtype, base: Origin) -> None:
    """Write a LoRA as a file.

    Raises:
        TrainingError: it cannot be written; a file that was there is unchanged.
    """
    path, temporary = named_path("--output", output), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with uninterrupted():
            handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
            os.close(handle)
        _write(lora, Path(temporary), dtype, base)
        with uninterrupted():
            os.replace(temporary, path)
            temporary = None
        flush_directory(path.parent)
    except OSError as error:
        raise TrainingError(f"cannot write {output}: {error.strerror or error}; any file there is unchanged") from None
    finally:
        if temporary:
            with suppress(OSError):
                os.unlink(temporary)


def _write(lora: GgufLora, path: Path, dtype: FloatDtype, base: Origin) -> None:
    """Write a file, and flush it to the disk.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    gguf = gguf_library()
    writer = gguf.GGUFWriter(path, lora.architecture)
    try:
        _describe(writer, lora, base)
        code = gguf.GGMLQuantizationType[_NAMES_OF_DTYPES[dtype]]
        for name, tensor in lora.tensors.items():
            writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), code), raw_dtype=code)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    make_ordinary(path)
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def gguf_library() -> Any:
    """The gguf package.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise UsageError("writing a GGUF file needs the gguf package; pip install gguf") from None
    return gguf


def _describe(writer: GGUFWriter, lora: GgufLora, base: Origin) -> None:
    """Say what the file is; llama.cpp refuses it for another kind of model."""
    import gguf

    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, lora.alpha)
    if base.hub_id:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base.hub_id)
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{base.hub_id}")
