"""capaft inside trainers that do not know it: an adapter is parameters and hooks, and that must be enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import bert, build
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

import capaft

# `gradient_checkpointing` has a new name in the newest transformers, and only the old one in the oldest supported.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")

HEAD = ["classifier.weight", "classifier.bias"]


def examples(count: int = 48) -> list[dict[str, Any]]:
    """Three classes, each with words of its own."""
    words = torch.randint(20, (count, 8), generator=torch.Generator().manual_seed(0))
    return [
        {"input_ids": 20 * (index % 3) + row, "attention_mask": torch.ones_like(row), "labels": index % 3}
        for index, row in enumerate(words)
    ]


def classifier(method: str = "lora+nola+capaboost") -> Any:
    model = bert()
    capaft.attach(model, method, k=32, rank=4, seed=3, head=HEAD)
    return model


def accuracy(predicted: Any) -> dict[str, float]:
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


def trainer(model: Any, output: Path, **options: Any) -> Trainer:
    settings = {
        "max_steps": 30,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(output_dir=str(output), **(settings | options))
    return Trainer(model, arguments, train_dataset=examples(), eval_dataset=examples(16), compute_metrics=accuracy)


def trained(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def frozen(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"bf16": True},
        {"bf16": True, "gradient_checkpointing": True},
        {"gradient_accumulation_steps": 2},
    ],
    ids=str,
)
def test_trainer_trains_the_adapter_and_nothing_else(options: dict[str, Any], tmp_path: Path) -> None:
    model = classifier()
    before, base = trained(model), frozen(model)
    assert any(name.startswith("capaft_") for name in before)
    run = trainer(model, tmp_path, **options)
    run.train()
    after = trained(model)
    assert same(frozen(model), base)
    assert not any(torch.equal(after[name], before[name]) for name in before)
    assert {p.dtype for p in after.values()} == {torch.float32}
    assert sum(losses(run)[-3:]) < 0.6 * sum(losses(run)[:3]), losses(run)


def test_evaluation_within_the_trainer(tmp_path: Path) -> None:
    model = classifier()
    run = trainer(model, tmp_path, eval_strategy="steps", eval_steps=15)
    run.train()
    scores = [entry["eval_accuracy"] for entry in run.state.log_history if "eval_accuracy" in entry]
    assert len(scores) == 2
    scored = run.evaluate()
    assert scored["eval_accuracy"] == scores[-1] > 0.9
    with capaft.disabled(model):
        assert run.evaluate()["eval_loss"] > 1.5 * scored["eval_loss"]


def test_resuming_from_a_checkpoint_is_going_on(tmp_path: Path) -> None:
    whole = classifier()
    trainer(whole, tmp_path / "whole", save_steps=12).train()
    checkpoint = tmp_path / "whole" / "checkpoint-12"
    resumed = classifier()
    run = trainer(resumed, tmp_path / "resumed")
    run.train(resume_from_checkpoint=str(checkpoint))
    assert len(losses(run)) == 30
    assert same(trained(resumed), trained(whole))
    assert same(frozen(resumed), frozen(whole))


def test_load_best_model_at_end(tmp_path: Path) -> None:
    model = classifier()
    run = trainer(
        model,
        tmp_path,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=5,
        save_steps=5,
        load_best_model_at_end=True,
    )
    run.train()
    best = min(entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry)
    assert run.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-6)


def test_what_a_trainer_trained_is_saved_and_merged(tmp_path: Path) -> None:
    model = classifier()
    trainer(model, tmp_path).train()
    batch = torch.stack([row["input_ids"] for row in examples(4)])
    model.eval()
    capaft.save(model, tmp_path / "adapter.safetensors")
    fresh = bert()
    capaft.load(fresh, tmp_path / "adapter.safetensors")
    with torch.no_grad():
        expected = model(batch).logits
        assert torch.equal(fresh(batch).logits, expected)
        capaft.merge(model)
        assert torch.allclose(model(batch).logits, expected, atol=1e-5)


WORDS = ("the", "cat", "dog", "bird", "sat", "ran", "flew", "on", "under", "over", "mat", "road", "sky")
TEXTS = [
    f"the {who} {did} {where} the {what}"
    for who, did, where, what in zip(
        ("cat", "dog", "bird") * 8,
        ("sat", "ran", "flew") * 8,
        ("on", "under", "over") * 8,
        ("mat", "road", "sky") * 8,
        strict=True,
    )
]


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: index for index, word in enumerate(("<pad>", "<unk>", "<end>", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", model_max_length=32
    )


def llama() -> Any:
    return build(
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=32,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
            pad_token_id=0,
            eos_token_id=2,
            bos_token_id=None,
        ),
    )


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"bf16": True}, {"packing": True}], ids=str)
def test_sft_trainer(options: dict[str, Any], tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    model = llama()
    capaft.attach(model, "nola", targets="all-linear", k=64, rank=4, seed=0)
    before, base = trained(model), frozen(model)
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        max_steps=20,
        per_device_train_batch_size=8,
        learning_rate=5e-2,
        logging_steps=1,
        max_length=16,
        **({"bf16": False, "gradient_checkpointing": False} | options),
    )
    run = trl.SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=tokenizer(),
    )
    run.train()
    after = trained(model)
    assert same(frozen(model), base)
    assert after.keys() == before.keys()
    assert not any(torch.equal(after[name], before[name]) for name in before)
    assert losses(run)[-1] < losses(run)[0] - 0.3, losses(run)
