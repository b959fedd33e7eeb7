"""The directory of a PEFT LoRA: its settings, and its tensors, described before one of them is read."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from capaft.adapter.file.envelope import read_layout
from capaft.exchange.peft_config import CONFIG, PeftConfig, read_config
from capaft.model.names import without_wrappers
from capaft.support.errors import AdapterFileError

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
_PREFIX = "base_model.model."
_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8}
_FLOATS = frozenset(["F64", "F32", "F16", "BF16"])

# The part of a LoRA by the end of its tensor's name.
_PARTS = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_B.bias": "bias",
    "lora_embedding_A": "down",
    "lora_embedding_B": "up",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
_TOKENS = re.compile(r"(?:(.+)\.)?token_adapter\.trainable_tokens_delta")
# Pieces that PEFT's wrappers put into the names of modules.
_WRAPPERS = frozenset(["base_layer", "modules_to_save", "token_adapter", "parametrizations"])


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the file that has not been read.

    Attributes:
        key: its name in the file.
        shape: its shape.
        is_float: True if its values are fractions.
    """

    key: str
    shape: tuple[int, ...]
    is_float: bool


@dataclass
class StoredPair:
    """The tensors of one LoRA.

    Attributes:
        module: path of the module in PEFT's base model.
        depth: wrappers between the module and this LoRA, of which a module with several parameters has several.
        parts: its tensors: `down`, `up`, `bias`, `magnitude`.
    """

    module: str
    depth: int
    parts: dict[str, StoredTensor] = field(default_factory=dict)


@dataclass(frozen=True)
class PeftDirectory:
    """A directory as PEFT writes it.

    Attributes:
        path: the directory.
        config: its settings.
        pairs: its LoRAs, in the order of their modules.
        tokens: by module, rows of an embedding.
        parameters: parameters of the base model that it has a copy of, by their names.
        size: bytes of the file of tensors.
    """

    path: Path
    config: PeftConfig
    pairs: tuple[StoredPair, ...]
    tokens: Mapping[str, StoredTensor]
    parameters: Mapping[str, StoredTensor]
    size: int

    def read(self, tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
        """The values of some tensors one by one, by the names they are given here, floats as float32.

        Raises:
            AdapterFileError: the file cannot be read, or holds numbers that are not finite.
        """
        path = self.path / WEIGHTS
        try:
            with safe_open(path, "pt") as file:
                for name, stored in tensors.items():
                    values = file.get_tensor(stored.key)
                    values = values.float() if stored.is_float else values
                    if not torch.isfinite(values).all():
                        raise AdapterFileError(f"{path}: {stored.key} holds numbers that are not finite; get it again")
                    yield name, values
        except (OSError, SafetensorError) as error:
            raise AdapterFileError(f"cannot read {path}: {error}") from None


def read_peft(path: Path) -> PeftDirectory:
    """Read the settings of a PEFT LoRA, and the names and shapes of its tensors.

    Raises:
        AdapterFileError: a file is missing, damaged, pickled or foreign, or asks for what no capaft adapter does.
    """
    config = read_config(path / CONFIG)
    weights = path / WEIGHTS
    if not weights.is_file():
        if (path / PICKLED).exists():
            raise AdapterFileError(
                f"{path / PICKLED} is pickled, and unpickling runs whatever code is in it; load it in PEFT where you "
                "trust it, and save it again, which writes safetensors"
            )
        raise AdapterFileError(f"{path} holds {CONFIG} and no {WEIGHTS}; get it again")
    try:
        status = weights.stat()
        if not stat.S_ISREG(status.st_mode):
            raise AdapterFileError(f"{weights} is not a file; get it again")
        with weights.open("rb") as stream:
            described = read_layout(weights, stream, status.st_size, _DTYPE_BYTES)
    except OSError as error:
        raise AdapterFileError(f"cannot read {weights}: {error.strerror or error}") from None
    pairs: dict[tuple[str, int], StoredPair] = {}
    tokens: dict[str, StoredTensor] = {}
    parameters: dict[str, StoredTensor] = {}
    for key, entry in sorted(described.items()):
        stored = StoredTensor(key, tuple(entry["shape"]), entry["dtype"] in _FLOATS)
        if not key.startswith(_PREFIX):
            raise AdapterFileError(f"{weights}: {key} is none of PEFT's names for a LoRA; get the file again")
        name = without_wrappers(key.removeprefix(_PREFIX))
        if match := _TOKENS.fullmatch(name):
            tokens[match[1] or ""] = stored
        elif (part := _part_of(name)) is not None:
            module, depth = _module(name[: -len(part) - 1])
            pair = pairs.setdefault((module, depth), StoredPair(module, depth))
            if pair.parts.setdefault(_PARTS[part], stored) is not stored:
                raise AdapterFileError(f"{weights} is damaged: it holds {key} twice; get it again")
        elif "lora_" in name or "original_module" in name.split("."):
            raise AdapterFileError(f"{weights}: this capaft does not know the tensor {key}; merge it in PEFT instead")
        else:
            parameters[_module(name)[0]] = stored
    if not described:
        raise AdapterFileError(f"{weights} holds no tensors; it was saved from a sharded model, or is damaged")
    return PeftDirectory(path, config, tuple(pairs.values()), tokens, parameters, status.st_size)


def _part_of(name: str) -> str | None:
    """The end of a LoRA tensor's name, from which its part follows; None for any other tensor."""
    return next((ending for ending in _PARTS if name.endswith(f".{ending}")), None)


def _module(name: str) -> tuple[str, int]:
    """A name without the pieces of PEFT's wrappers, and the number of `base_layer` among them."""
    pieces = name.split(".")
    return ".".join(piece for piece in pieces if piece not in _WRAPPERS), pieces.count("base_layer")
