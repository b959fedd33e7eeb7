from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import QUICK, invoke

from capaft.config.parts.model import ModelSettings
from capaft.model.load import BaseModel
from capaft.tasks.base.features import Features
from capaft.tasks.text_classification import TextClassification
from capaft.training.setup import fitted_head, head_cache
from capaft.training.setup.fitted_head import FittedHead
from capaft.training.setup.head_cache import Start

TASK = TextClassification(("a", "b"), 16)
SETTINGS = {"seed": 0}
START = Start(FittedHead(np.array([[0.1, 1 / 3], [-2.0, 1e-300]]), np.array([0.0, np.pi])), 0.1 + 0.2)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    directory = tmp_path / "heads"
    directory.mkdir()
    monkeypatch.setattr(head_cache, "cached_assets_path", lambda *_: directory)
    return directory


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return TASK.load_model(ModelSettings(), seed=0)


def features() -> Features:
    return Features({"input_ids": [[1, 2], [3, 4, 5]]}, np.array([2, 3]), np.array([0, 1]))


def key(base: BaseModel, task: Any = TASK, data: Features | None = None, **settings: Any) -> str | None:
    return head_cache.start_key(task, base, [data or features()], SETTINGS | settings)


def test_what_is_kept_is_found_to_the_bit() -> None:
    for start in (START, replace(START, baseline=None)):
        head_cache.keep_start("k", start)
        cached = head_cache.cached_start("k")
        assert cached is not None
        assert cached.baseline == start.baseline
        np.testing.assert_array_equal(cached.head.weight, START.head.weight)
        np.testing.assert_array_equal(cached.head.bias, START.head.bias)
    assert head_cache.cached_start("other") is None


def test_what_cannot_be_read_is_fitted_anew(cache: Path) -> None:
    head_cache.keep_start("k", START)
    path = cache / "k.safetensors"
    whole = path.read_bytes()
    for broken in (b"", whole[:40], b"no tensors at all"):
        path.write_bytes(broken)
        assert head_cache.cached_start("k") is None
    head_cache.keep_start("k", START)
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_stops_nobody(cache: Path) -> None:
    cache.rmdir()
    cache.write_text("a file, where the directory should be")
    head_cache.keep_start("k", START)
    assert head_cache.cached_start("k") is None


def test_the_oldest_go_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr(head_cache, "KEPT_STARTS", 3)
    for number in range(5):
        head_cache.keep_start(f"{number}", START)
        os.utime(cache / f"{number}.safetensors", (number, number)) if number < 4 else None
    assert {path.stem for path in cache.iterdir()} == {"2", "3", "4"}


def changes(base: BaseModel) -> Iterator[tuple[str, str | None]]:
    """The key after each change that would change the fitted head or its score."""
    yield "setting", key(base, seed=1)
    yield "labels", key(base, TextClassification(("a", "c"), 16))
    yield "metric", key(base, replace(TASK, metric="f1"))
    ids = [[1, 2], [3, 4, 5]]
    yield "token", key(base, data=replace(features(), inputs={"input_ids": [[1, 2], [3, 4, 6]]}))
    yield "boundary", key(base, data=replace(features(), inputs={"input_ids": [[1, 2, 3], [4, 5]]}))
    yield "kinds", key(base, data=replace(features(), inputs={"input_ids": ids, "token_type_ids": [[0, 0], [0, 1, 1]]}))
    yield "class", key(base, data=replace(features(), references=np.array([1, 1])))
    yield "split", head_cache.start_key(TASK, base, [features(), features()], SETTINGS)
    bias = base.model.bert.encoder.layer[3].output.LayerNorm.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias[7] += 1e-3
        yield "weight", key(base)
        bias.copy_(before)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    yield "threads", key(base)
    torch.set_num_threads(threads)


def test_everything_that_a_head_follows_from_is_in_its_key(base: BaseModel) -> None:
    plain = key(base)
    keys = dict(changes(base))
    assert plain == key(base)
    assert None not in keys.values()
    assert len({plain, *keys.values()}) == 1 + len(keys)


def test_what_is_read_later_has_no_key(base: BaseModel) -> None:
    assert key(base, data=replace(features(), inputs={"image": iter(()), "row": [0, 1]})) is None  # type: ignore[dict-item]


def command(reviews: Path, output: Path, *flags: str) -> tuple[Any, ...]:
    return "train", "--data", reviews, "--output", output, *QUICK, "--baseline", *flags


def test_a_second_run_takes_the_head_and_ends_with_the_same_bytes(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = invoke(*command(reviews, tmp_path / "first"))
    assert first.code == 0
    assert "earlier run" not in first.err

    def fit(*arguments: Any) -> None:
        raise AssertionError("fitted again")

    with monkeypatch.context() as patched:
        patched.setattr(fitted_head, "fit_heads", fit)
        second = invoke(*command(reviews, tmp_path / "second"))
        assert second.code == 0
        assert "by an earlier run (--no-head-cache fits it anew)" in second.err
        for flags in (("--no-head-cache",), ("--seed", "5")):
            assert "fitted again" in invoke(*command(reviews, tmp_path / flags[0], *flags)).err
    for name in ("adapter.safetensors", "predictions.jsonl"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_nothing_is_kept_where_it_is_not_wanted(reviews: Path, tmp_path: Path, cache: Path) -> None:
    assert invoke(*command(reviews, tmp_path / "run", "--no-head-cache")).code == 0
    assert list(cache.iterdir()) == []
