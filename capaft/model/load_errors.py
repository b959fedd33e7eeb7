"""A checkpoint that cannot be loaded, in one line that says why."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from capaft.model.checkpoint_files import broken_file
from capaft.model.origin import GGUF
from capaft.support import hub
from capaft.support.errors import CapaftError, UsageError, one_line
from capaft.support.out_of_memory import report_exhaustion
from capaft.support.printable import printable

# Errors whose message says by itself what is wrong.
_SPOKEN = (OSError, ValueError, ImportError, RuntimeError)


@contextmanager
def explaining_load_errors(name: str, source: str) -> Iterator[None]:
    """Has whatever the library raises while it reads a checkpoint explained.

    A checkpoint is a stranger's, and transformers trusts it: a wrong value can surface as any error.

    Args:
        name: the user's name for the checkpoint.
        source: directory, file or hub id.

    Raises:
        UsageError: the checkpoint cannot be loaded.
        TrainingError: memory ran out.
    """
    try:
        yield
    except CapaftError:
        raise
    except Exception as error:
        report_exhaustion(error, f"loading {name}")
        raise UsageError(explain_load_error(name, source, error)) from None


def explain_load_error(name: str, source: str, error: Exception) -> str:
    """One-line message for a checkpoint that failed to load."""
    path = Path(source)
    reason = printable(one_line(error) if isinstance(error, _SPOKEN) else f"{type(error).__name__}: {one_line(error)}")
    if "trust_remote_code" in str(error):
        return (
            f"--model {name} needs Python code of its own; read its .py files, and set --trust-remote-code yourself if "
            "you trust them"
        )
    if kind := re.match(r"Unrecognized configuration class .* for this kind of AutoModel: (\w+)", str(error)):
        return (
            f"--model {name} cannot do this task: transformers has no {kind[1]} for its architecture; choose another "
            "--model or --task"
        )
    if path.is_file() and path.suffix == GGUF:
        return f"--model {name} cannot be loaded and may be damaged: {reason}"
    if path.is_file():
        return f"--model {name} is a file; pass the directory with config.json and the weights, or a .gguf file"
    if path.is_dir():
        if not (path / "config.json").exists():
            return f"--model {name}: the directory has no config.json, so it is not a Hugging Face model"
        if broken := broken_file(path):
            return f"--model {name} cannot be loaded: {broken}"
        return f"--model {name} cannot be loaded: {reason}; check its config.json and the files of its tokenizer"
    if hub.offline():
        return (
            f"--model {name}: no such directory, and the Hugging Face hub cannot be reached; check the name or the "
            "network, or pass a local directory"
        )
    return f"--model {name} cannot be loaded from the Hugging Face hub: {reason}"
