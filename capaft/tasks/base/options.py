"""Options of a task that have no flag, from the entries of `--task-option`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from capaft.config.pairs import parse_pairs
from capaft.config.values import Text, parse_value
from capaft.support.errors import UsageError, did_you_mean


def parse_task_options(task: str, types: Mapping[str, Any], entries: Sequence[str]) -> dict[str, Any]:
    """The options of entries `name=value`.

    Args:
        task: name of the task.
        types: by name, the types of its options without a flag.
        entries: as the user wrote them.

    Raises:
        UsageError: an entry is not NAME=VALUE, the task has no such option, or the value does not fit.
    """
    options = {}
    for name, text in parse_pairs(entries, "--task-option NAME=VALUE", may_be_empty=True).items():
        if name not in types:
            hint = did_you_mean(name, types)
            raise UsageError(f"--task-option {name}: {task} has no option {name} without a flag{hint}")
        try:
            # A text may be empty, as its default often is.
            options[name] = parse_value(Text if types[name] is str else types[name], text)
        except ValueError as error:
            raise UsageError(f"--task-option {name} {error}") from None
    return options
