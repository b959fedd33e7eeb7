"""The columns of a split, found with the help of those that are known: the user's, and those of the training rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from capaft.config.parts.data import DataSettings
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, list_columns
from capaft.tasks.base.task import Task
from capaft.tasks.language.generation import Generation

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class ColumnHints:
    """Hints for recognising the columns of a split, which may have too few rows to show them.

    Attributes:
        find: finds the columns of a split, given those that are named, by role.
        expected: columns of the training rows, by role; the split may have others.
        named: columns that the user names, by role, which override the expected ones.
        inputs: the input columns of the training rows, of which the split must have as many; None for one that they
            lack.
        expects_labels: True if the training rows have labels.
    """

    find: Callable[[Dataset, Mapping[str, str | None]], Columns]
    expected: Mapping[str, str | None]
    named: Mapping[str, str | None]
    inputs: tuple[str | None, str | None]
    expects_labels: bool = False

    def recognise(self, rows: Dataset) -> Columns:
        """The columns of a split: the expected ones if it has them and they fit, else any that fit.

        Raises:
            UsageError: the columns cannot be determined, or there are fewer inputs than in the training rows.
        """
        named = {role: name for role, name in self.named.items() if name is not None}
        try:
            columns = self.find(rows, present_columns(rows, self.expected) | named)
        except UsageError:
            columns = self.find(rows, named)
        first, second = self.inputs
        if second is not None and columns.pair is None:
            raise UsageError(
                f"the training data had two inputs, {first!r} and {second!r}, and these rows only {columns.text!r}; "
                f"name the second with --pair-column among {list_columns(rows)}"
            )
        return columns

    def expect_labels(self, rows: Dataset) -> ColumnHints:
        """Hints that expect labels if these rows have a column of them that can be determined."""
        try:
            return replace(self, expects_labels=self.recognise(rows).label is not None)
        except UsageError:
            return replace(self, expects_labels=False)


def given_columns(settings: DataSettings) -> dict[str, str | None]:
    """The columns that the settings name, by role."""
    return {"text": settings.text_column, "pair": settings.pair_column, "label": settings.label_column}


def column_settings(kind: type[Task], columns: Columns) -> dict[str, str | None]:
    """The settings that name these columns, by role.

    For generation there is none for the label: one split may have a target, and another references, which take
    precedence.
    """
    if issubclass(kind, Generation):
        return {"text": columns.text, "pair": columns.pair}
    return {"text": columns.text, "pair": columns.pair, "label": columns.label or ",".join(columns.choices) or None}


def present_columns(rows: Dataset, named: Mapping[str, str | None]) -> dict[str, str | None]:
    """The named columns, or fields within one, that a split has, by role; None for those it has not."""
    present = {*rows.column_names, *(name.rpartition(".")[2] for name in rows.flatten().column_names)}

    def is_present(name: str | None) -> bool:
        # Labels that have a column each are named in one list.
        return name in present or (name is not None and present >= {part.strip() for part in name.split(",")})

    columns = {role: name if is_present(name) else None for role, name in named.items()}
    # Half of a pair would be mistaken for a single text.
    return columns | {"text": None} if named.get("pair") and not columns["pair"] else columns
