"""The base model, and what its weights are held in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from capaft.config.choices import BaseDtype
from capaft.config.settings import Settings, setting

_setting = partial(setting, panel="Model and data")


@dataclass(frozen=True)
class ModelSettings(Settings):
    """The base model, and what its weights are held in."""

    model: str | None = _setting(
        None, "Base model, as a directory, a GGUF file or a hub id (default: the embedded demo).", metavar="path|id"
    )
    revision: str | None = _setting(None, "Branch, tag or commit of a base model from the hub (default: its main one).")
    trust_remote_code: bool = _setting(False, "Run Python code that the model's or the data's repository brings.")
    base_dtype: BaseDtype = _setting(
        "float32", "What the frozen weights are held in; 8bit and 4bit need the package bitsandbytes."
    )
