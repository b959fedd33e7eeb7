"""The model card of a PEFT directory: what it holds, and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from torch import nn

from capaft.adapter.module import Adapter
from capaft.model.names import input_embeddings, unwrapped_model
from capaft.model.origin import Origin, literal, loading_code
from capaft.support.markdown import fenced, front_matter, inline

_AUTO_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
# Heads that read the last token that is no padding, and so have to know what is.
_LAST_TOKEN = "score"


def card(model: nn.Module, adapter: Adapter, config: Mapping[str, Any], *, resized: bool = False) -> str:
    """The card as Markdown, with the metadata block that the Hugging Face hub reads.

    Args:
        model: the model with the adapter.
        adapter: the adapter.
        config: its configuration in PEFT's form.
        resized: the model's embedding has other rows than the checkpoint's.
    """
    base = Origin(config["base_model_name_or_path"], config["revision"])
    method = adapter.plan.stack.method
    kind = "IA3" if config["peft_type"] == "IA3" else "DoRA" if config.get("use_dora") else "LoRA"
    labels = adapter.own_labels(model)
    names = f"\nLabels: {', '.join(map(inline, labels.names))}.\n" if labels else ""
    rank = f" of rank {config['r']}" if "r" in config else ""
    metadata = {"library_name": "peft", "base_model": base.hub_id, "tags": [kind.lower(), "capaft"]}
    code = _code(model, config, base, labels.names if labels else (), resized)
    return f"""{front_matter(metadata)}
# {inline(base.name or "an unnamed base model")}, adapted

A {kind}{rank}, written by capaft from a {inline(method)} adapter, with the same outputs. PEFT loads it:

{fenced(code, "python")}
{names}"""


def _code(model: nn.Module, config: Mapping[str, Any], base: Origin, labels: tuple[str, ...], resized: bool) -> str:
    """Python code that loads base model and adapter."""
    bare: Any = unwrapped_model(model)
    kind = type(bare).__name__
    task_class = _AUTO_CLASSES.get(config["task_type"] or "", kind if hasattr(transformers, kind) else "AutoModel")
    arguments = [loading_code(base)]
    head = []
    if labels:
        head.append(f"labels = [{', '.join(map(literal, labels))}]")
        arguments += ["id2label=dict(enumerate(labels))", "label2id={label: n for n, label in enumerate(labels)}"]
    pad = getattr(bare.config, "pad_token_id", None) if hasattr(bare, "config") else None
    if pad is not None and _LAST_TOKEN in (config["modules_to_save"] or ()):
        arguments.append(f"pad_token_id={pad}")
    rows = getattr(getattr(input_embeddings(model), "weight", None), "shape", (0,))[0]
    lines = [
        "from peft import PeftModel",
        f"from transformers import {task_class}",
        "",
        *head,
        f"model = {task_class}.from_pretrained(",
        *(f"    {argument}," for argument in arguments),
        ")",
        *([f"model.resize_token_embeddings({rows})"] if resized else []),
        'model = PeftModel.from_pretrained(model, "path/to/this/directory")',
    ]
    return "\n".join(lines)
