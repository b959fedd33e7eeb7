"""Settings of generation, and the scores and report of its texts."""

from __future__ import annotations

import copy

import numpy as np
import torch
from tiny_text import SPECIALS, base, ids, tokenizer

from capaft.tasks.base.features import Features
from capaft.tasks.causal_lm import CausalLM

TASK = CausalLM(layout="prompt", metric="bleu", max_new_tokens=4)


def prompt() -> dict[str, torch.Tensor]:
    tokens = torch.tensor([ids("some")])
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def test_what_a_checkpoint_likes_otherwise_is_switched_off() -> None:
    model = base("llama", tokenizer())
    plain = TASK.generated(model, model.model, 4, set(), **prompt())
    wild = copy.deepcopy(model.model)
    wild.generation_config.update(
        do_sample=True, temperature=5.0, top_k=3, top_p=0.5, repetition_penalty=9.0, min_length=50, max_length=60
    )
    assert TASK.generated(model, wild, 4, set(), **prompt()) == plain


def test_writing_ends_at_any_of_the_ends() -> None:
    model = base("llama", tokenizer())
    tokens = model.model.generate(**prompt(), do_sample=False, max_new_tokens=4, eos_token_id=None)[0, 4:].tolist()
    assert SPECIALS["<end>"] not in tokens
    (text,) = TASK.generated(model, model.model, 4, {tokens[0]}, **prompt())
    assert text == model.processor.decode(tokens[:1], skip_special_tokens=True).strip()


def test_scores_and_report() -> None:
    features = Features({}, np.array([1, 1]), [("a b c d",), ("x", "y")], sources=["p", "q"])
    predictions = [(2.0, 2, 1, "a b c d"), (1.0, 1, 0, "y")]
    scores = TASK.score(features, predictions)
    assert scores["loss"] == 1.0
    assert scores["accuracy"] == 1 / 3
    assert scores["exact_match"] == scores["rougeL"] == 1
    assert set(scores) == set(TASK.metrics)
    assert TASK.report(features, predictions)[1] == {"source": "q", "prediction": "y", "references": ["x", "y"]}


def test_without_references_there_is_no_target() -> None:
    prediction = (0.0, 0, 0, "a")
    bare = Features({}, np.array([1]), [()], sources=["p"])
    assert not TASK.has_targets(bare)
    assert TASK.score(bare, [prediction]) == {}
    assert TASK.report(bare, [prediction]) == [{"source": "p", "prediction": "a", "references": []}]
    assert TASK.has_targets(Features({}, np.array([1]), [("a",)]))
    assert CausalLM().has_targets(Features({}, np.array([1])))
