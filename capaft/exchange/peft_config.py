"""The settings of a PEFT LoRA, as `adapter_config.json` holds them: those that count, and those that are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from capaft.model.targets import path_matcher
from capaft.support.errors import AdapterFileError, UsageError

CONFIG = "adapter_config.json"
# A pattern of ranks may name every layer of a large model.
MAX_CONFIG_BYTES = 4 * 2**20
# Each is compared with every layer, one by one.
_MOST_PATTERNS = 10_000
# Initial values beside a base that stays as it is. All others take something from the base's weights.
_PLAIN_STARTS = frozenset(["true", "false", "none", "gaussian", "eva", "orthogonal", "mica"])
# Settings that do not tell what a finished adapter computes, or that its tensors tell better.
_SETTLED = frozenset(
    {"_custom_modules", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying"}
    | {"eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"}
    | {"layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config"}
    | {"megatron_config", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r"}
    | {"alpha_pattern", "rank_pattern", "revision", "runtime_config", "target_modules", "target_parameters"}
    | {"task_type", "trainable_token_indices", "use_dora", "use_rslora"}
)
_REFUSED = {
    "alora_invocation_tokens": "it acts only after certain tokens (aLoRA)",
    "arrow_config": "it chooses among several adapters for each token (Arrow)",
    "kasa_config": "it changes the base's weights (KaSA)",
    "layer_replication": "it repeats layers of the base, which merging into the base's own layers cannot do",
    "monteclora_config": "it draws from a distribution of adapters (MonteCLoRA)",
    "use_bdlora": "its factors are block-diagonal (BD-LoRA)",
    "use_qalora": "it pools the inputs of its layers (QA-LoRA)",
}
_PLAIN_NAME = re.compile(r"[\w.]+")


@dataclass(frozen=True)
class PeftConfig:
    """The settings of a PEFT LoRA that tell what it computes.

    Attributes:
        path: the file they stand in.
        base: name of the base model; None if it has none.
        revision: its revision.
        task_type: PEFT's name for the task, or None.
        model_class: name of the class of the base model, where PEFT noted it.
        rank: its rank, where no pattern names another.
        alpha: its scale, where no pattern names another.
        rank_pattern: ranks of modules, by their names or regular expressions.
        alpha_pattern: scales of modules, likewise.
        rslora: the scale is divided by the square root of the rank.
        dora: each weight has a magnitude and a direction.
        saved_modules: names of modules that it has its own copies of.
        ties_weights: copies of modules that share a weight share one, too.
        token_indices: rows of embeddings that it trains, by the name of the embedding; "" is the model's own.
    """

    path: Path
    base: str | None
    revision: str | None
    task_type: str | None
    model_class: str | None
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    dora: bool
    saved_modules: tuple[str, ...]
    ties_weights: bool
    token_indices: Mapping[str, tuple[int, ...]]

    def rank_of(self, module: str) -> int:
        """The rank at a module, by its path in the model."""
        return _by_pattern(self.path, self.rank_pattern, module, self.rank)

    def scale_of(self, module: str, rank: int) -> float:
        """The factor on the product of the two matrices of a module."""
        alpha = _by_pattern(self.path, self.alpha_pattern, module, self.alpha)
        return alpha / (sqrt(rank) if self.rslora else rank)

    def saves(self, module: str) -> bool:
        """True if it has its own copy of a module, or of one around it."""
        pieces = module.split(".")
        paths = [".".join(pieces[:length]) for length in range(1, len(pieces) + 1)]
        # Letter by letter, as PEFT compares: `classifier` is also `pre_classifier`.
        return any(path.endswith(name) for path in paths for name in self.saved_modules)


def read_config(path: Path) -> PeftConfig:
    """Read the settings of a PEFT LoRA.

    Raises:
        AdapterFileError: the file is no such settings, is damaged, or asks for something that no capaft adapter does.
    """
    record = _record(path)
    method = record.get("peft_type")
    if method != "LORA":
        raise AdapterFileError(
            f"{path}: its method is {method!s:.60}, and only PEFT's LORA can be taken over; merge it in PEFT instead"
        )
    _refuse(path, record)
    auto = record.get("auto_mapping") or {}
    rank = _value(path, record, "r", int, 8)
    return PeftConfig(
        path=path,
        base=_text(path, record, "base_model_name_or_path"),
        revision=_text(path, record, "revision"),
        task_type=_text(path, record, "task_type"),
        model_class=_text(path, auto, "base_model_class") if isinstance(auto, dict) else None,
        rank=rank,
        alpha=float(_value(path, record, "lora_alpha", (int, float), 8)),
        rank_pattern=_pattern(path, record, "rank_pattern", int),
        alpha_pattern=_pattern(path, record, "alpha_pattern", (int, float)),
        rslora=_value(path, record, "use_rslora", bool, False),
        dora=_value(path, record, "use_dora", bool, False),
        saved_modules=tuple(_texts(path, record, "modules_to_save")),
        ties_weights=_value(path, record, "ensure_weight_tying", bool, False),
        token_indices=_indices(path, record),
    )


def _record(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise AdapterFileError(f"{path} has {size:,} bytes, and at most {MAX_CONFIG_BYTES:,} are read")
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise AdapterFileError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise AdapterFileError(f"{path} is damaged: it is not JSON ({error}); get it again") from None
    if not isinstance(record, dict):
        raise AdapterFileError(f"{path} is damaged: it is not a JSON object; get it again")
    return record


def _refuse(path: Path, record: Mapping[str, Any]) -> None:
    """Refuse settings under which a finished adapter computes something else than LoRA does.

    Raises:
        AdapterFileError: one is set.
    """
    for name, value in record.items():
        if name in _SETTLED or value in (None, False, "", [], {}):
            continue
        if reason := _REFUSED.get(name):
            raise AdapterFileError(f"{path}: {name} is set: {reason}; merge it in PEFT instead")
        if name != "velora_config":  # It saves memory in the backward pass alone.
            raise AdapterFileError(
                f"{path}: this capaft does not know the setting {name:.60}, which may change what the adapter "
                "computes; upgrade capaft, or merge it in PEFT"
            )
    start = str(record.get("init_lora_weights", True)).lower()
    if start not in _PLAIN_STARTS:
        raise AdapterFileError(
            f"{path}: it starts from {start:.60}, which changes the base's weights; save it again from PEFT with "
            "path_initial_model_for_weight_conversion, which makes it plain LoRA"
        )


def _value(path: Path, record: Mapping[str, Any], name: str, kind: Any, default: Any) -> Any:
    """An entry, or its default if it is missing or null.

    Raises:
        AdapterFileError: it is of another type, or a number that is not finite, or no positive rank.
    """
    value = record.get(name)
    if value is None:
        return default
    is_number = kind is not bool and isinstance(value, kind) and not isinstance(value, bool)
    # Neither NaN nor what is infinite is less than anything.
    if not (is_number and abs(value) < 1e9) and not (kind is bool and isinstance(value, bool)):
        raise AdapterFileError(f"{path} is damaged: {name} is {value!r:.60}; get it again")
    if kind is int and value < 1:
        raise AdapterFileError(f"{path} is damaged: {name} is {value}, and a rank is at least 1; get it again")
    return value


def _text(path: Path, record: Mapping[str, Any], name: str) -> str | None:
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        raise AdapterFileError(f"{path} is damaged: {name} is {value!r:.60} and not a text; get it again")
    return value or None


def _texts(path: Path, record: Mapping[str, Any], name: str) -> list[str]:
    value = record.get(name) or []
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise AdapterFileError(f"{path} is damaged: {name} is {value!r:.60} and not a list of names; get it again")
    return value


def _pattern(path: Path, record: Mapping[str, Any], name: str, kind: Any) -> dict[str, Any]:
    value = record.get(name) or {}
    if not isinstance(value, dict):
        raise AdapterFileError(f"{path} is damaged: {name} is {value!r:.60} and not an object; get it again")
    if len(value) > _MOST_PATTERNS:
        raise AdapterFileError(f"{path}: {name} has {len(value):,} entries, and at most {_MOST_PATTERNS:,} are read")
    return {key: _value(path, value, key, kind, 1) for key in value}


def _indices(path: Path, record: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The rows of embeddings that are trained, by the name of the embedding."""
    value = record.get("trainable_token_indices") or {}
    value = {"": value} if isinstance(value, list) else value
    try:
        indices = {str(name): tuple(rows) for name, rows in value.items()}
        if any(type(row) is not int or row < 0 for rows in indices.values() for row in rows):
            raise TypeError
    except (TypeError, AttributeError):
        raise AdapterFileError(f"{path} is damaged: trainable_token_indices are no indices; get it again") from None
    return indices


def _by_pattern(path: Path, pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first key that matches a module as PEFT matches it: the end of its path, from a dot on.

    Raises:
        AdapterFileError: a key is a regular expression that is invalid, or that takes too long.
    """
    for key, value in pattern.items():
        if _PLAIN_NAME.fullmatch(key):
            end = module[-len(key) :]
            is_whole = len(module) == len(key) or module[-len(key) - 1 :][:1] == "."
            if is_whole and len(end) == len(key) and all(k in (".", m) for k, m in zip(key, end, strict=True)):
                return value
            continue
        try:
            if path_matcher(rf"re:^(?:.*\.)?(?:{key})$")(module):
                return value
        except UsageError as error:
            raise AdapterFileError(f"{path}: a pattern of its ranks cannot be searched: {error}") from None
    return default
