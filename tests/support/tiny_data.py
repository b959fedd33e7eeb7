"""Load a data set as a run does, without a task: validation rows are held out if there is no split for them."""

from __future__ import annotations

from typing import Any

import datasets

from capaft.data.load import load_data, load_evaluation_data
from capaft.data.sampling import hold_out


def load(spec: str, *, validation_split: float = 0.1, seed: int = 0, **options: Any) -> dict[str, datasets.Dataset]:
    splits = load_data(spec, **{"say": ignore, **options})
    assert splits.train is not None
    train, validation = splits.train, splits.evaluation
    if validation is None:
        train, validation = hold_out(spec, train, validation_split, seed)
    return {"train": train, "validation": validation}


def load_evaluation(spec: str, **options: Any) -> datasets.Dataset:
    splits = load_evaluation_data(spec, **{"say": ignore, **options})
    rows = splits.train if splits.evaluation is None else splits.evaluation
    assert rows is not None
    return rows


def ignore(line: str) -> None:
    pass
