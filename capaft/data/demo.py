"""The embedded demo's data set, which needs no download.

It is text that every Python installation has: the first sentence of each docstring in the standard library, labelled
with its package. The modules are read as files, not imported, so that training on text never runs the code around it.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from capaft.support.errors import UsageError

if TYPE_CHECKING:
    from datasets import DatasetDict


# In every CPython from 3.11 on, never split off by Linux distributions as tkinter and distutils are, and each
# with over fifty sentences. `encodings` would qualify, but it repeats one sentence a hundred times.
PACKAGES = (
    "asyncio",
    "collections",
    "email",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "unittest",
    "urllib",
    "wsgiref",
    "xml",
    "xmlrpc",
)
_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
_SENTENCE_END = re.compile(r"\n\s*\n|(?<=[.!?])\s+(?=[A-Z])")
_MINIMUM_WORDS = 3
_MINIMUM_SENTENCES = 30
_VALIDATION_EVERY = 5


def demo_examples() -> DatasetDict:
    """Docstring sentences of this Python as splits `train` and `validation`, columns `text` and `label`.

    A sentence's split depends on its text alone, so no other sentence, file or Python version can move it.

    Raises:
        UsageError: this Python has no standard library sources, or too few of them.
    """
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    pairs = sentences(stdlib)
    counts = Counter(package for _, package in pairs)
    scarce = [package for package in PACKAGES if counts[package] < _MINIMUM_SENTENCES]
    if scarce:
        raise UsageError(
            f"the demo reads docstrings from the standard library's sources, but {stdlib} has too few for "
            f"{', '.join(scarce)}: use a Python installed with its .py files, or pass --model and --data"
        )

    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=list(PACKAGES))})
    splits: dict[str, dict[str, list[str]]] = {
        "train": {"text": [], "label": []},
        "validation": {"text": [], "label": []},
    }
    for text, package in pairs:
        columns = splits["validation" if in_validation(text) else "train"]
        columns["text"].append(text)
        columns["label"].append(package)
    return DatasetDict({name: Dataset.from_dict(rows, features=features) for name, rows in splits.items()})


def sentences(stdlib: Path) -> list[tuple[str, str]]:
    """Every distinct (first sentence of a docstring, package), sorted; `stdlib` may be any Python's library.

    A sentence that occurs in two packages has no right label and is left out.
    """
    packages_of: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in (stdlib / package).rglob("*.py"):
            if _TEST_FOLDERS.isdisjoint(path.relative_to(stdlib).parts):
                for text in _first_sentences(path):
                    packages_of.setdefault(text, set()).add(package)
    unambiguous = ((text, packages) for text, packages in packages_of.items() if len(packages) == 1)
    return sorted((text, package) for text, packages in unambiguous for package in packages)


def in_validation(text: str) -> bool:
    """True if a hash of `text` puts it in the fifth of all sentences that is held out."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _VALIDATION_EVERY == 0


def _first_sentences(path: Path) -> Iterator[str]:
    """First sentence of every docstring in a file; none if the file cannot be read as Python."""
    try:
        with warnings.catch_warnings():
            # Newer Pythons warn about invalid escapes in their own older sources.
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            words = _SENTENCE_END.split(ast.get_docstring(node) or "", maxsplit=1)[0].split()
            text = " ".join(words)
            # Printable text has no lone surrogates, which can be neither hashed nor stored.
            if len(words) >= _MINIMUM_WORDS and text.isprintable():
                yield text
