"""Exhausted memory, told from other errors."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from capaft.support.errors import TrainingError, UsageError
from capaft.support.out_of_memory import is_out_of_memory, pass_on_exhaustion, report_exhaustion


def raised_from(error: Exception, cause: Exception, *, hidden: bool = False) -> Exception:
    try:
        try:
            raise cause
        except Exception:
            if hidden:
                raise error from None
            raise error  # noqa: B904 - as libraries do
    except Exception as whole:
        return whole


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        pa.ArrowMemoryError("malloc of size 7 failed"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 7 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        raised_from(ValueError("cannot build"), MemoryError()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_form_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(type(error)) as passed:
        pass_on_exhaustion(error)
    assert passed.value is error
    with pytest.raises(TrainingError, match="out of memory while reading rows; free some"):
        report_exhaustion(error, "reading rows")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes differ"), UsageError("no such file"), raised_from(ValueError(), MemoryError(), hidden=True)],
)
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert not is_out_of_memory(error)
    pass_on_exhaustion(error)
    report_exhaustion(error, "reading rows")
