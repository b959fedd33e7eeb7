"""The ways in which memory runs out, as one line."""

from __future__ import annotations

import pytest
import torch

from capaft.support.errors import PeerError, TrainingError
from capaft.training.memory_guard import memory_guard


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
            "the accelerator is out of memory; lower",
        ),
        (MemoryError(), "out of memory; lower --micro-batch-size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory; lower"),
    ],
)
def test_memory_that_runs_out(raised: Exception, says: str) -> None:
    with pytest.raises(TrainingError) as error, memory_guard():
        raise raised
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("raised", [RuntimeError("shapes differ"), PeerError("another"), KeyboardInterrupt()])
def test_what_is_something_else_stays_what_it_is(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as error, memory_guard():
        raise raised
    assert error.value is raised
