"""Settings of the base model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from capaft.config.choices import BaseDtype
from capaft.config.settings import Settings, setting

_setting = partial(setting, panel="Model and data")


@dataclass(frozen=True)
class ModelSettings(Settings):
    """Settings of the base model."""

    model: str | None = _setting(
        None, "Base model, as a directory, a GGUF file or a hub id (default: the embedded demo).", metavar="path|id"
    )
    revision: str | None = _setting(
        None, "Branch, tag or commit of a base model from the hub (default: its main branch)."
    )
    trust_remote_code: bool = _setting(
        False, "Run Python code from the repository of the model; no file can set this.", marks=("permission",)
    )
    resize_embeddings: bool = _setting(
        False, "Add rows to the embedding for tokens that the tokenizer has and the model lacks, drawn from the seed."
    )
    base_dtype: BaseDtype = _setting(
        "float32", "Number format of the frozen weights; 8bit and 4bit need the package bitsandbytes."
    )
