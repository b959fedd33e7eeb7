"""One adapter of a bank: its family, its row there, and what its outputs mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capaft.adapter.file.header import TaskRecord
    from capaft.inference.bank.family import Family


@dataclass(frozen=True, eq=False, slots=True)
class Entry:
    """One adapter of a bank.

    Attributes:
        family: the adapters that share everything with it but their parameters.
        row: the row of its parameters.
        task: the task in its file, the same object for all that have the same; None if there is none.
        labels: the names of its labels, in the order of the outputs; the base model's if it has none of its own.
    """

    family: Family
    row: int
    task: TaskRecord | None
    labels: tuple[str, ...]
