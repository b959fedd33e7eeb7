"""The best adapter of a run, kept so that a resumed run can tell it from any other file.

The rest of a run may not beat it, so a resumed run would hand on whatever lies in its place. Every checkpoint records
its digest. A run that dies between an evaluation and the checkpoint after it leaves an adapter that no checkpoint knows
yet, so the digest is noted before the file is written.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from capaft.adapter.file.adapter_file import read
from capaft.support.errors import UsageError
from capaft.support.files import write_atomically
from capaft.training.record.checkpoint import Progress
from capaft.training.record.run_directory import RunDirectory


def keep_best(run: RunDirectory, step: int) -> str:
    """Make the last adapter the best.

    Args:
        run: the run's directory.
        step: optimizer steps after which it was evaluated.

    Returns:
        A digest of its file.

    Raises:
        TrainingError: the file cannot be written.
    """
    content = run.last.read_bytes()
    digest = _digest(content)
    run.checkpoints.mkdir(exist_ok=True)
    write_atomically(run.best, json.dumps({"digest": digest, "step": step}) + "\n", make_parents=False)
    write_atomically(run.adapter, content, make_parents=False)
    return digest


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
    digest = _digest(run.adapter.read_bytes())
    # Earlier versions of capaft recorded none.
    if progress.best.digest not in ("", digest) and digest != _noted_after(run.best, progress.step):
        raise UsageError(
            f"--resume: {run.adapter} is not the adapter that this run saved at step {progress.best.step}; {then}"
        )


def _noted_after(file: Path, step: int) -> str:
    """The digest of the best adapter of an evaluation after a step, or nothing."""
    try:
        noted = json.loads(file.read_text(encoding="utf-8"))
        return str(noted["digest"]) if noted["step"] > step else ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
