"""An adapter as a PEFT directory: `adapter_config.json` and `adapter_model.safetensors`, exact and without capaft."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from capaft.adapter.activation import activate, active_names, get_adapter
from capaft.adapter.module import Adapter
from capaft.config.local_paths import shared_name
from capaft.exchange.peft_card import card
from capaft.exchange.peft_config import CONFIG
from capaft.exchange.peft_directory import WEIGHTS
from capaft.exchange.peft_ia3 import ia3
from capaft.exchange.peft_layers import PeftLayers
from capaft.exchange.peft_lora import PREFIX, PeftMethod, lora
from capaft.exchange.peft_renames import renamed_key
from capaft.exchange.peft_saved import saved_modules
from capaft.exchange.served import cautions
from capaft.methods.bottleneck import Bottleneck
from capaft.methods.host import check_whole
from capaft.methods.ia3 import Ia3
from capaft.model.names import input_embeddings, unwrapped_model, without_wrappers
from capaft.model.origin import Origin
from capaft.support.directories import check_directory, written_whole
from capaft.support.errors import UsageError, check_type
from capaft.support.files import write_atomically
from capaft.support.paths import named_path

INSTEAD = "use it with capaft"


@dataclass(frozen=True, eq=False)
class PeftAdapter:
    """An adapter in PEFT's form.

    Attributes:
        config: the content of `adapter_config.json`.
        tensors: those of `adapter_model.safetensors`, by key.
        cautions: lines on what would not take it as it is.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    cautions: tuple[str, ...]


def peft_adapter(
    model: nn.Module,
    name: str = "default",
    *,
    base: Origin | str | None = None,
    pad_rank: int = 0,
    embeddings: bool = False,
) -> PeftAdapter:
    """An adapter in PEFT's form, which computes the same.

    Args:
        model: a model with the adapter, which need not be active.
        name: the adapter's name.
        base: name of the base model, or name and revision; None for the name that transformers loaded it by.
        pad_rank: a rank to fill up to with zeros; 0 for that of the adapter.
        embeddings: bring the model's own embeddings, whose number of rows is not the checkpoint's.

    Raises:
        UsageError: there is no such adapter, or PEFT cannot hold it exactly.
    """
    check_type("model", model, nn.Module, "a torch module")
    check_type("base", base, Origin | str | None, "the name of a model")
    check_whole("pad-rank", pad_rank, 0)
    adapter = get_adapter(model, name)
    adapter.check_places(model)
    bare: Any = unwrapped_model(model)
    base = base or getattr(bare, "name_or_path", None) or None
    origin = base if isinstance(base, Origin) else Origin(base)
    with _alone(model, name):
        layers = PeftLayers(model)
        method = _method(layers, adapter, name, pad_rank)
        saved = saved_modules(layers, adapter, method.targets, _task_type(bare))
        tensors = {**method.tensors, **saved.tensors}
        if embeddings:
            tensors = {**_embeddings(layers, bare, method, saved.tensors), **tensors}
    config = {
        **method.config,
        "task_type": saved.task_type,
        "base_model_name_or_path": shared_name(origin.name) if origin.name else None,
        "revision": origin.revision,
        "modules_to_save": list(saved.names) or None,
        "inference_mode": True,
    }
    if saved.task_type is None:
        config["auto_mapping"] = {"base_model_class": type(bare).__name__, "parent_library": type(bare).__module__}
    if key := renamed_key(bare, tensors):
        raise UsageError(
            f"PEFT would rename {key} while it loads it, as if it were of an older checkpoint; merge the run"
        )
    lines = list(cautions(config))
    if read := layers.sometimes_read(method.targets):
        lines.append(
            f"the model can be set to read the weight of {read[0]}{f' and {len(read) - 1} more' if read[1:] else ''} "
            "without calling the layer, as under tensor parallelism; PEFT's adapter has no effect there"
        )
    return PeftAdapter(config, tensors, tuple(lines))


def export_peft(
    model: nn.Module,
    output: str | Path,
    name: str = "default",
    *,
    base: Origin | str | None = None,
    pad_rank: int = 0,
    embeddings: bool = False,
    overwrite: bool = False,
) -> PeftAdapter:
    """Write an adapter as a directory that PEFT loads, whole or not at all.

    PEFT's LoRA takes `lora`, `vera` and their stacks, PEFT's DoRA `dora`, and PEFT's IA3 `ia3`, each exactly. The
    other methods are refused.

    Args:
        model: a model with the adapter, which need not be active; it is not changed.
        output: the directory, which must be new or empty.
        name: the adapter's name.
        base: name of the base model, or name and revision; None for the name that transformers loaded it by.
        pad_rank: a rank to fill up to with zeros, for servers that take only some; 0 for that of the adapter.
        embeddings: bring the model's own embeddings, whose number of rows is not the checkpoint's.
        overwrite: replace an adapter that the directory holds.

    Returns:
        What was written, with lines on what would not take it.

    Raises:
        UsageError: there is no such adapter, PEFT cannot hold it exactly, or the directory holds something else.
        TrainingError: the directory cannot be written.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> capaft.export_peft(model, path.parent / "exported").config["target_modules"]
        ['query', 'value']
    """
    check_type("output", output, str | os.PathLike, "a path")
    path = named_path("--output", output)
    check_peft_output(output, path, overwrite=overwrite)
    peft = peft_adapter(model, name, base=base, pad_rank=pad_rank, embeddings=embeddings)
    with written_whole(output, path) as directory:
        save_file(dict(peft.tensors), directory / WEIGHTS, {"format": "pt"})
        text = json.dumps(peft.config, indent=2, sort_keys=True) + "\n"
        write_atomically(directory / CONFIG, text)
        write_atomically(
            directory / "README.md", card(model, get_adapter(model, name), peft.config, resized=embeddings)
        )
    return peft


def check_peft_output(output: str | Path, path: Path, *, overwrite: bool) -> None:
    """Make sure that an adapter may be written to a directory.

    Raises:
        UsageError: it is a file, or holds an adapter that is not to be replaced, or something else.
    """
    check_directory(output, path, CONFIG, "an adapter", overwrite=overwrite)


def _method(layers: PeftLayers, adapter: Adapter, name: str, pad_rank: int) -> PeftMethod:
    """The adapter's method in PEFT's form.

    Raises:
        UsageError: PEFT has none.
    """
    stack = adapter.plan.stack
    host = stack.host
    if host is None:
        raise UsageError(
            f"a PEFT adapter has adapted layers, and the method {stack.method} none; merge the run instead"
        )
    if host.name == "prefix":
        reason = "PEFT's virtual tokens move the positions of the text and have no gate, so they compute something else"
        raise UsageError(f"prefix cannot be exported: {reason}; {INSTEAD}")
    if isinstance(host, Bottleneck):
        raise UsageError(f"{host.name} cannot be exported: PEFT has no adapter layers with an activation; {INSTEAD}")
    if host.name == "bitfit":
        raise UsageError(
            "bitfit cannot be exported: PEFT has no method that trains biases alone; merge the run instead"
        )
    if isinstance(host, Ia3):
        if pad_rank:
            raise UsageError("--pad-rank has no effect on ia3, which has no rank; drop it")
        return ia3(layers, adapter)
    return lora(layers, adapter, name, pad_rank)


@contextmanager
def _alone(model: nn.Module, name: str) -> Iterator[None]:
    """Make an adapter the only active one while the context lasts, so that the model shows its head."""
    before = active_names(model)
    if before == [name]:
        yield
        return
    try:
        activate(model, [name])
        yield
    finally:
        activate(model, before)


def _task_type(model: nn.Module) -> str | None:
    """PEFT's name for what a model does, from its class; None where PEFT has none."""
    from transformers.models.auto import modeling_auto as auto

    by_task = {
        "SEQ_CLS": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "TOKEN_CLS": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        "QUESTION_ANS": auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        "CAUSAL_LM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "SEQ_2_SEQ_LM": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    kind = type(model).__name__
    return next((task for task, names in by_task.items() if kind in names.values()), None)


def _embeddings(layers: PeftLayers, model: Any, method: PeftMethod, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the model's embedding and of its output for tokens, as PEFT keeps resized ones."""
    tensors: dict[str, Tensor] = {}
    outputs = getattr(model, "get_output_embeddings", lambda: None)()
    for module in (input_embeddings(model), outputs):
        path = next((path for path, place in layers.modules.items() if place is module), None)
        if module is None or path is None or any(key.startswith(f"{PREFIX}{path}.") for key in saved):
            continue
        inner = f"{path}.base_layer" if path in method.targets else path
        for leaf, value in module.named_parameters(recurse=False):
            tensors[f"{PREFIX}{without_wrappers(inner)}.{leaf}"] = value.detach().cpu().clone()
    return tensors
