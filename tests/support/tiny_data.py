"""A data set as a run takes it, without a task: what it validates on is cut off where there is no split for it."""

from __future__ import annotations

from typing import Any

import datasets

from capaft.data.load import load_data, load_evaluation_data
from capaft.data.sampling import hold_out


def load(spec: str, *, validation_split: float = 0.1, seed: int = 0, **options: Any) -> dict[str, datasets.Dataset]:
    found = load_data(spec, **{"say": ignore, **options})
    assert found.train is not None
    train, validation = found.train, found.evaluation
    if validation is None:
        train, validation = hold_out(spec, train, validation_split, seed)
    return {"train": train, "validation": validation}


def load_evaluation(spec: str, **options: Any) -> datasets.Dataset:
    found = load_evaluation_data(spec, **{"say": ignore, **options})
    rows = found.train if found.evaluation is None else found.evaluation
    assert rows is not None
    return rows


def ignore(line: str) -> None:
    pass
