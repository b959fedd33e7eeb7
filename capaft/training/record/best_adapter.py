"""The best adapter of a run, kept so that a resumed run can tell it from any other file.

The rest of a run may not beat it, so a resumed run would hand on whatever lies in its place. Every checkpoint records
its digest, and that of the last adapter. A run that dies between an evaluation and the checkpoint after it may leave a
best adapter that no checkpoint knows yet: then it is the same as the last one, which no checkpoint knows either.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from capaft.adapter.file.adapter_file import read
from capaft.support.errors import UsageError
from capaft.support.files import write_atomically
from capaft.training.early_stopping import Best
from capaft.training.record.checkpoint import Progress
from capaft.training.record.run_directory import RunDirectory


def keep_last(run: RunDirectory, best: Best, *, is_best: bool) -> Best:
    """Make the last adapter the best, if it is, and note the digests.

    Args:
        run: the run's directory, where the last adapter has just been written.
        best: the best evaluation so far.
        is_best: the last one was it.

    Raises:
        TrainingError: the file cannot be written.
    """
    content = run.last.read_bytes()
    digest = _digest(content)
    if is_best:
        write_atomically(run.adapter, content, make_parents=False)
    return replace(best, digest=digest if is_best else best.digest, last=digest)


def check_best_adapter(run: RunDirectory, progress: Progress) -> None:
    """Refuse to go on without the best adapter so far.

    Args:
        run: the run's directory.
        progress: the progress of its last checkpoint.

    Raises:
        UsageError: it is missing or damaged, or another one lies in its place.
    """
    if progress.best.value is None:
        return
    then = "restore it, or start anew in another --output"
    try:
        read(run.adapter)
    except UsageError as error:
        raise UsageError(f"--resume: {error}; {then}") from None
    digest, last = _digest(run.adapter.read_bytes()), _digest_of(run.last)
    is_newer = digest == last != progress.best.last
    # Earlier versions of capaft recorded none.
    if progress.best.digest not in ("", digest) and not is_newer:
        raise UsageError(
            f"--resume: {run.adapter} is not the adapter that this run saved at step {progress.best.step}; {then}"
        )


def _digest_of(file: Path) -> str:
    try:
        return _digest(file.read_bytes())
    except OSError:
        return ""


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
