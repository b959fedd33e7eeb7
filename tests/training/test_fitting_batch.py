"""Batches that are halved when memory runs out: every feature is scored once, whatever did not fit."""

from __future__ import annotations

import resource
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_job import fork, wait
from transformers import GPT2Config, GPT2LMHeadModel

from capaft.model.load import BaseModel
from capaft.model.origin import Origin
from capaft.support.errors import TrainingError
from capaft.tasks.base.features import Features
from capaft.tasks.causal_lm import CausalLM
from capaft.training import batches
from capaft.training.evaluate import evaluate
from capaft.training.fitting_batch import FittingBatch
from capaft.training.parallel.processes import Processes

CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried")


@given(st.integers(1, 100), st.integers(1, 100))
def test_every_index_once_and_in_order(count: int, room: int) -> None:
    def forward(part: Sequence[int]) -> int:
        if len(part) > room:
            raise CPU
        return len(part)

    fitting = FittingBatch()
    with warnings.catch_warnings(record=True) as lines:
        warnings.simplefilter("always")
        parts = list(fitting.in_parts(range(count), forward))
        again = list(fitting.in_parts(range(count), forward))
    assert [index for part, _ in parts for index in part] == list(range(count))
    assert all(size == len(part) for part, size in parts)
    # What did not fit is not tried again.
    assert again == parts
    limits = [int(str(line.message).split("batches of ")[1].split()[0]) for line in lines]
    assert limits == sorted(set(limits), reverse=True)
    assert (fitting.limit or count) <= room


def test_a_single_example_that_does_not_fit_is_one_line() -> None:
    def forward(part: Sequence[int]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    with pytest.warns(UserWarning, match="going on with batches of 1 example$"), pytest.raises(TrainingError) as error:
        list(FittingBatch().in_parts([3, 4], forward))
    assert "with a single example" in str(error.value)
    assert "\n" not in str(error.value)


def test_other_errors_are_not_tried_again() -> None:
    calls = []

    def forward(part: Sequence[int]) -> None:
        calls.append(part)
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(FittingBatch().in_parts([3, 4], forward))
    assert len(calls) == 1


@pytest.mark.slow  # It depends on what earlier tests have left of the memory.
def test_a_batch_that_truly_exhausts_memory(tmp_path: Path) -> None:
    # 64 texts of 8 tokens over a real vocabulary have 100 MB of logits.
    vocabulary = 49152
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, bos_token_id=1, eos_token_id=1, **shape))
    tokenizer = type("Tokenizer", (), {"pad_token_id": 0})
    base = BaseModel(model, tokenizer, Origin(None, None), (), False)
    ids = np.random.default_rng(0).integers(2, vocabulary, (64, 8)).tolist()
    features = Features({"input_ids": ids}, np.full(64, 8, dtype=np.int64))
    task = CausalLM()
    assert len(batches.evaluation_batches(features.lengths, 64, task.logits(base, features))) == 1

    def scores() -> list[float]:
        return list(evaluate(task, base, model, features, 64, processes=Processes(0, 1)).scores.values())

    expected = scores()

    def work() -> None:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + 70 * 2**20,) * 2)
        with pytest.warns(UserWarning, match="out of memory in evaluation; going on with batches of"):
            limited = scores()
        assert limited == pytest.approx(expected, rel=1e-6)

    assert wait(fork(work)) == 0
