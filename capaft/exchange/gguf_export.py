"""An adapter as a LoRA of llama.cpp: one GGUF file of pairs under llama.cpp's names, in its order of rows."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from capaft.adapter.activation import get_adapter
from capaft.config.choices import GgufDtype
from capaft.exchange.gguf_layouts import LAYOUTS, Layout
from capaft.exchange.low_rank_pairs import LowRankPair, low_rank_pairs
from capaft.model.names import unwrapped_model, without_wrappers
from capaft.model.origin import Origin
from capaft.support.errors import TrainingError, UsageError
from capaft.support.files import flush_directory, make_ordinary

if TYPE_CHECKING:
    from gguf import GGUFWriter, TensorNameMap

# The way of an adapter that llama.cpp cannot hold beside its base.
INSTEAD = "write one model with capaft merge, and convert that with llama.cpp's convert_hf_to_gguf.py"
_NAMES_OF_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, eq=False)
class GgufLora:
    """An adapter as llama.cpp holds it.

    Attributes:
        architecture: llama.cpp's name for the kind of model.
        alpha: llama.cpp multiplies each pair by alpha over its rank.
        tensors: by name, float32: `lora_a`, `(rank, in)`, and `lora_b`, `(out, rank)`, one after the other; the
            `lora_a` of an embedding is `(in, rank)`.
    """

    architecture: str
    alpha: float
    tensors: dict[str, Tensor]


def gguf_lora(model: nn.Module, name: str = "default") -> GgufLora:
    """An adapter as llama.cpp's LoRA, exact: the same update of every weight.

    Args:
        model: a model with the adapter, which need not be active.
        name: the adapter's name.

    Raises:
        UsageError: the gguf package is not installed, or llama.cpp cannot hold the adapter exactly.
    """
    gguf = _library()
    trained = get_adapter(model, name).plan
    if others := sorted({*trained.trained, *(site.path for site in trained.head.moved)}):
        more = f" and {len(others) - 1} more" if others[1:] else ""
        raise UsageError(f"a LoRA of llama.cpp has no place for {others[0]}{more}, which was trained too; {INSTEAD}")
    config: Any = getattr(unwrapped_model(model), "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    kind = getattr(config, "model_type", type(unwrapped_model(model)).__name__)
    if (layout := LAYOUTS.get(kind)) is None:
        raise UsageError(f"capaft does not know how llama.cpp lays out {kind}; {INSTEAD}")
    number = next((key for key, word in gguf.MODEL_ARCH_NAMES.items() if word == layout.architecture), None)
    if number is None:
        raise UsageError(f"this gguf package does not know {layout.architecture} models; pip install --upgrade gguf")
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    pairs = low_rank_pairs(model, name)
    # With one rank for all, llama.cpp's factor is 1.
    alpha = float(max(pair.rank for pair in pairs))
    tensors: dict[str, Tensor] = {}
    for pair in pairs:
        tensor = _tensor_name(names, pair)
        down, up = _as_stored(pair, layout, config)
        tensors |= {f"{tensor}.lora_a": down, f"{tensor}.lora_b": up * (pair.rank / alpha)}
    return GgufLora(layout.architecture, alpha, tensors)


def write_gguf(lora: GgufLora, path: Path, *, dtype: GgufDtype = "float32", base: Origin | None = None) -> int:
    """Write a LoRA for `llama-cli --lora`, whole or not at all; its size in bytes.

    Args:
        lora: the adapter.
        path: the file; one that exists is replaced.
        dtype: of its tensors. llama.cpp rounds the inputs of a product to the dtype of its weight.
        base: the base model, which the file then names if it is one of the hub.

    Raises:
        TrainingError: the file cannot be written; one that was there is unchanged.
    """
    gguf = _library()
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
        os.close(handle)
        writer = gguf.GGUFWriter(temporary, lora.architecture)
        _describe(writer, lora, base)
        code = gguf.GGMLQuantizationType[_NAMES_OF_DTYPES[dtype]]
        for name, tensor in lora.tensors.items():
            writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), code), raw_dtype=code)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        make_ordinary(Path(temporary))
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        size = os.path.getsize(temporary)
        os.replace(temporary, path)
        temporary = None
        flush_directory(path.parent)
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error.strerror or error}; any file there is unchanged") from None
    finally:
        if temporary:
            with suppress(OSError):
                os.unlink(temporary)
    return size


def _library() -> Any:
    """The gguf package.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise UsageError("writing a GGUF file needs the gguf package; pip install gguf") from None
    return gguf


def _describe(writer: GGUFWriter, lora: GgufLora, base: Origin | None) -> None:
    """Say what the file is; llama.cpp refuses it for another kind of model."""
    import gguf

    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, lora.alpha)
    if base and base.hub_id:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base.hub_id)
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{base.hub_id}")


def _tensor_name(names: TensorNameMap, pair: LowRankPair) -> str:
    """llama.cpp's name of the weight of a pair.

    Raises:
        UsageError: it has none, or cannot add a LoRA to that one.
    """
    site = pair.site
    path = without_wrappers(site.module)
    if site.index is not None or site.kind not in ("linear", "embedding"):
        raise UsageError(f"{path}: only linear layers and embeddings go into a LoRA of llama.cpp; {INSTEAD}")
    # A model that also reads images keeps the part that llama.cpp has one level further down.
    own = path.replace("language_model.", "", 1)
    tensor = names.get_name(f"{own}.{site.parameter}", (f".{site.parameter}",))
    if tensor is None:
        raise UsageError(f"llama.cpp has no tensor for {path}; {INSTEAD}")
    return tensor


def _as_stored(pair: LowRankPair, layout: Layout, config: Any) -> tuple[Tensor, Tensor]:
    """The factors in llama.cpp's order: down `(rank, in)`, or `(in, rank)` of an embedding, and up `(out, rank)`."""
    order = layout.orders.get(pair.site.module.rpartition(".")[2])
    up = pair.up if order is None else pair.up[order(config, len(pair.up))]
    return (pair.down.T if pair.site.kind == "embedding" else pair.down).contiguous(), up.contiguous()
