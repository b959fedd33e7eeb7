"""Tiny checkpoints on disk, each with an adapter whose update is large, to be merged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny
import torch
import transformers
from safetensors.torch import load_file
from tiny_families import EXPERTS, GROUPED, model_of
from tiny_text import SIZE, tokenizer

import capaft
from capaft.adapter.file.header import TaskRecord
from capaft.model.origin import Origin

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
VOCABULARY = {"vocab_size": SIZE}


@dataclass(frozen=True)
class Case:
    """A family of models and the adapter on it.

    Attributes:
        family: name of the model's class.
        method: the adapter's method.
        targets: its targets.
        dtype: that of the checkpoint.
        shard: size of a file of the checkpoint.
        config: what is particular about the model.
        options: what is particular about the adapter.
    """

    family: str
    method: str = "lora+nola"
    targets: str = ""
    dtype: torch.dtype = FP32
    shard: str = "50GB"
    config: tuple[tuple[str, Any], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def task(self) -> TaskRecord:
        """The task that the adapter was trained for."""
        if "Classification" in self.family:
            return TaskRecord("text-classification", ("bad", "fair", "good"), 32, "accuracy")
        return TaskRecord("causal-lm", (), 32, "perplexity")


CASES = {
    "llama, tied, in files": Case("LlamaForCausalLM", targets="all-linear", dtype=BF16, shard="40KB",
        config=(*GROUPED.items(), ("tie_word_embeddings", True))),
    "llama, its embedding too": Case("LlamaForCausalLM", "lora", "embeddings", config=tuple(GROUPED.items())),
    "gpt2, transposed and fused": Case("GPT2LMHeadModel", "lora+nola+capaboost", "qv", FP16),
    "gpt2, rescaled": Case("GPT2LMHeadModel", "ia3"),
    "gpt2, biases": Case("GPT2LMHeadModel", "bitfit", dtype=BF16),
    "phi3, fused": Case("Phi3ForCausalLM", "lora", "qv", BF16, config=tuple(GROUPED.items())),
    "neox, fused by heads": Case("GPTNeoXForCausalLM", "ia3", "qv"),
    "neox, magnitudes": Case("GPTNeoXForCausalLM", "dora", "qv", BF16),
    "mixtral, experts one by one": Case("MixtralForCausalLM", "lora", "experts", BF16, "40KB",
        config=(*EXPERTS.items(), ("num_local_experts", 3))),
    "bert, a new head": Case("BertModel", targets="all-linear", config=(("num_labels", 3),)),
}  # fmt: skip


def write_base(case: Case, directory: Path) -> Path:
    """Save the model of a case, as on the hub."""
    model = model_of(case.family, "cpu", **VOCABULARY, **dict(case.config))
    model.to(case.dtype).save_pretrained(directory, max_shard_size=case.shard)
    tokenizer().save_pretrained(directory)
    return directory


def load_base(case: Case, directory: Path, **options: Any) -> tuple[Any, list[str]]:
    """The model of a case in memory, as transformers loads it, and the names of a new head."""
    name = "BertForSequenceClassification" if case.family == "BertModel" else case.family
    kind = getattr(transformers, name)
    labels = {"id2label": {0: "bad", 1: "fair", 2: "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}
    model = kind.from_pretrained(directory, **options, **(labels if name != case.family else {}))
    return model, [name for name, _ in model.named_parameters() if name.startswith("classifier.")]


def write_adapter(case: Case, base: Path, file: Path, seed: int = 7, **options: Any) -> Path:
    """Save an adapter of a case, with a large update."""
    model, head = load_base(case, base, dtype=FP32)
    chosen = {"targets": case.targets} | dict(case.options) | options
    if case.method.endswith("nola") or "nola+" in case.method:
        chosen["k"] = 16
    if case.method.startswith(("lora", "dora")):
        chosen["rank"] = 2
    tiny.scramble(capaft.attach(model, case.method, seed=seed, head=head, **chosen), seed)
    for name in head:
        torch.nn.init.normal_(model.get_parameter(name).data, std=0.5)
    task = TaskRecord("text-classification", ("bad", "fair", "good"), 32, "accuracy") if head else case.task
    capaft.save(model, file, base=Origin(str(base)), task=task)
    return file


def stored(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint."""
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}
