"""Which task a data set and a model are for, told by the columns first and by the model where those leave it open."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from datasets import Dataset

_CHOICES = re.compile(r"(ending|choice|option|solution|sol)_?([0-9]|[a-e])", re.IGNORECASE)
_CHOICE_LISTS = frozenset({"endings", "choices", "options", "candidates"})
_TAGS = frozenset({"ner_tags", "pos_tags", "chunk_tags", "upos", "xpos", "tags", "ner", "labels", "label"})
_MESSAGES = frozenset({"messages", "conversations", "conversation"})
# What a text is made into: with one of these beside a source, texts are generated.
_SOURCES = frozenset(
    "prompt instruction source document article dialogue mr input src meaning_representation code_tokens".split()
)
_TARGETS = frozenset(
    "completion response output target ref refs references summary highlights translation tgt answer human_reference".split()
)


def recognise(rows: Dataset, config: Any, given: Mapping[str, str | None]) -> str:
    """The name of the task that rows and a model are for.

    Args:
        rows: the training split.
        config: the model's configuration, as transformers has it.
        given: the columns that the user named, by role.

    Raises:
        UsageError: the columns do not tell.
    """
    kinds = {name: _kind(feature) for name, feature in rows.features.items()}
    names = {name.lower() for name in kinds}
    if "image" in kinds.values() or (names & {"image", "img"} and names & {"label", "labels", "digit"}):
        return "image-classification"
    if "audio" in kinds.values() or names & {"audio"}:
        return "audio-classification"
    if {"question", "context", "answers"} <= names:
        return "question-answering"
    if any(kind == "messages" for kind in kinds.values()) or names & _MESSAGES:
        return "causal-lm"
    if len([name for name in names if _CHOICES.fullmatch(name)]) > 1 or (
        any(kinds[name] == "texts" for name in kinds if name.lower() in _CHOICE_LISTS) and names & {"label", "answer"}
    ):
        return "multiple-choice"
    sequences = {name for name, kind in kinds.items() if kind in ("texts", "integers")}
    if any(kinds[name] == "texts" and name.lower() in ("tokens", "words") for name in sequences) and any(
        name.lower() in _TAGS for name in sequences
    ):
        return "token-classification"
    generates = "seq2seq" if getattr(config, "is_encoder_decoder", False) else "causal-lm"
    labelled = given.get("label") or names & {"label", "labels", "class", "category", "sentiment", "intent"}
    if "translation" in kinds.values() or (not labelled and names & _SOURCES and names & _TARGETS):
        return generates
    if not labelled and set(kinds.values()) <= {"text", "other"} and list(kinds.values()).count("text") == 1:
        if _is_masked(config):
            return "masked-lm"
        if generates == "causal-lm":
            return "causal-lm"
    if not labelled and generates == "seq2seq" and names & (_TARGETS | {"text"}):
        return generates
    return "text-classification"


def _is_masked(config: Any) -> bool:
    """Whether a model predicts masked tokens: it has such a head, and none that generates."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    architectures = getattr(config, "architectures", None) or []
    if any("CausalLM" in name or "LMHead" in name for name in architectures):
        return False
    if any("MaskedLM" in name for name in architectures):
        return True
    kind = getattr(config, "model_type", "")
    # BERT and its kin can be decoders too, but seldom are.
    return kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and (
        kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or not getattr(config, "is_decoder", False)
    )


def _kind(feature: Any) -> str:
    import datasets

    if isinstance(feature, datasets.Image):
        return "image"
    if isinstance(feature, datasets.Audio):
        return "audio"
    if isinstance(feature, datasets.Translation):
        return "translation"
    if isinstance(feature, datasets.ClassLabel):
        return "class"
    if isinstance(feature, datasets.Value):
        return "text" if feature.dtype in ("string", "large_string") else "number"
    if isinstance(feature, dict) and set(feature) >= {"role", "content"}:
        return "messages"
    inner = getattr(feature, "feature", None)
    if isinstance(feature, list):
        inner = feature[0]
    if isinstance(inner, dict):
        return "messages" if {"role", "content"} <= set(inner) or {"from", "value"} <= set(inner) else "other"
    if isinstance(inner, datasets.ClassLabel) or (isinstance(inner, datasets.Value) and "int" in inner.dtype):
        return "integers"
    if isinstance(inner, datasets.Value) and inner.dtype in ("string", "large_string"):
        return "texts"
    return "other"
