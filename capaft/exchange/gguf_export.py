"""An adapter as a file that llama.cpp loads beside its base model."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from torch import nn

from capaft.config.choices import FloatDtype
from capaft.exchange.gguf_file import check_gguf_output, write_gguf
from capaft.exchange.gguf_lora import GgufLora, check_range, gguf_lora
from capaft.model.names import unwrapped_model
from capaft.model.origin import Origin
from capaft.support.errors import UsageError


def export_gguf(
    model: nn.Module,
    output: str | Path,
    name: str = "default",
    *,
    base: Origin | None = None,
    dtype: FloatDtype = "float32",
    overwrite: bool = False,
) -> GgufLora:
    """Write an adapter as a LoRA that llama.cpp loads beside its base model, whole or not at all.

    `lora`, `vera` and their stacks become exactly the same update of every weight. Whatever llama.cpp cannot hold is
    refused: other methods, a head, kinds of models that are not among `LAYOUTS`.

    Args:
        model: a model with the adapter, which need not be active.
        output: the file.
        name: the adapter's name.
        base: name of the base model, which the file tells if it is one of the hub; None for that which transformers
            loaded it by.
        dtype: of the tensors; llama.cpp computes their products in it.
        overwrite: replace a GGUF file that is there.

    Raises:
        UsageError: there is no such adapter, llama.cpp cannot hold it exactly or not in this dtype, the gguf package is
            not installed, or something else is there.
        TrainingError: the file cannot be written; one that was there is unchanged.

    Example:
        >>> capaft.export_gguf(language_model, "adapter.gguf")  # doctest: +SKIP
    """
    if dtype not in get_args(FloatDtype):
        raise UsageError(f"dtype must be one of {', '.join(get_args(FloatDtype))}, got {dtype}")
    check_gguf_output(output, overwrite=overwrite)
    lora = gguf_lora(model, name)
    check_range(lora, dtype)
    write_gguf(lora, output, dtype, base or Origin(getattr(unwrapped_model(model), "name_or_path", None) or None))
    return lora
