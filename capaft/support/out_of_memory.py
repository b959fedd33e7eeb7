"""Exhausted memory, in the many forms in which libraries report it."""

from __future__ import annotations

from capaft.support.errors import TrainingError

# torch on CPUs and accelerators, its linear algebra, C++, the operating system, and the loader of shared libraries.
_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "status_alloc_failed",
    "failed to map segment",
)
_ACCELERATORS = ("cuda", "hip", "mps", "xpu", "cublas", "cudnn")


ADVICE = "free some, take a smaller model or less data, or a machine with more memory"


def is_out_of_memory(error: BaseException | None) -> bool:
    """True if an error says that memory has run out, or hides one that does."""
    while error is not None:
        if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _SIGNS):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def is_of_accelerator(error: BaseException) -> bool:
    """True if it is an accelerator's memory that has run out."""
    return any(name in str(error).lower() for name in _ACCELERATORS)


def pass_on_exhaustion(error: BaseException) -> None:
    """Raise an error again if memory has run out; for handlers that would take it for damage.

    Raises:
        Exception: the error.
    """
    if is_out_of_memory(error):
        raise error


def report_exhaustion(error: Exception, doing: str) -> None:
    """Raise an error that says what memory did not suffice for, if memory has run out.

    Raises:
        TrainingError: it has.
    """
    if is_out_of_memory(error):
        raise TrainingError(f"out of memory while {doing}; {ADVICE}") from None
