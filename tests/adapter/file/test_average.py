"""Averages of adapters that differ in their trained parameters alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import capaft
from capaft.adapter.file.header import TaskRecord
from capaft.support.errors import UsageError

HEAD = ["classifier.weight", "classifier.bias"]


def written(path: Path, scramble: int, dtype: Any = "float32", labels: str = "abc", **options: Any) -> Path:
    model = tiny.bert()
    chosen: dict[str, Any] = {"method": "lora+nola", "rank": 2, "k": 16, "seed": 7} | options
    tiny.scramble(capaft.attach(model, head=HEAD, **chosen), scramble)
    torch.nn.init.normal_(model.classifier.weight.data, mean=scramble)
    capaft.save(model, path, dtype=dtype, task=TaskRecord("text-classification", tuple(labels), 32, "accuracy"))
    return path


def factors(path: Path) -> list[torch.Tensor]:
    model = tiny.bert()
    adapter = capaft.load(model, path)
    return [factor.detach().double() for place in adapter.expand() for factor in place] + [
        model.classifier.weight.detach().double()
    ]


@pytest.mark.parametrize("method", ["lora+nola", "lora+nola+capaboost", "capaboost", "vera", "ia3"])
def test_the_factors_are_the_average_of_the_factors(method: str, tmp_path: Path) -> None:
    options = {} if method in ("vera", "ia3") else {"rank": 2}
    options |= {"k": 16} if "nola" in method else {}
    files = []
    for seed in (1, 2, 3):
        model = tiny.bert()
        tiny.scramble(capaft.attach(model, method, head=HEAD, seed=7, **options), seed)
        capaft.save(model, tmp_path / f"{seed}.safetensors")
        files.append(tmp_path / f"{seed}.safetensors")
    size = capaft.average(files, tmp_path / "mean.safetensors", weights=[2, 1, 1])
    assert size == (tmp_path / "mean.safetensors").stat().st_size
    one, two, three = map(factors, files)
    for mean, *terms in zip(factors(tmp_path / "mean.safetensors"), one, two, three, strict=True):
        torch.testing.assert_close(mean, 0.5 * terms[0] + 0.25 * terms[1] + 0.25 * terms[2], atol=1e-6, rtol=1e-5)


def test_the_update_of_averages_differs_by_the_covariance_of_the_factors(tmp_path: Path) -> None:
    """As the formula in the module says; numpy's way, pair by pair."""
    files = [written(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2)]
    capaft.average(files, tmp_path / "mean.safetensors", weights=[0.75, 0.25])
    (down, up), (other_down, other_up), (mean_down, mean_up) = (
        factors(path)[:2] for path in (*files, tmp_path / "mean.safetensors")
    )
    updates = 0.75 * up @ down + 0.25 * other_up @ other_down
    expected = updates - 0.75 * 0.25 * (up - other_up) @ (down - other_down)
    torch.testing.assert_close(mean_up @ mean_down, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtypes", [("int8", "int8"), ("int4", "int4"), ("bfloat16", "bfloat16"), ("int8", "float32")])
def test_files_of_few_bits(dtypes: tuple[Any, Any], tmp_path: Path) -> None:
    files = [written(tmp_path / f"{i}.safetensors", i, dtype) for i, dtype in enumerate(dtypes)]
    capaft.average(files, tmp_path / "mean.safetensors")
    header = capaft.read(tmp_path / "mean.safetensors").header
    assert header.save_dtype == (dtypes[0] if dtypes[0] == dtypes[1] else "float32")
    for mean, one, two in zip(*map(factors, (tmp_path / "mean.safetensors", *files)), strict=True):
        lost = (mean - (one + two) / 2).norm()
        assert lost <= (0.3 if "int4" in dtypes else 0.02) * (one + two).norm() / 2


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 8}, r"the seed \(8 and 7\)"),
        ({"k": 32}, r"the method's k \(\[32, 32\] and \[16, 16\]\)"),
        ({"method": "vera", "rank": 4, "k": None}, "the method"),
        ({"targets": "query"}, "the sites"),
        ({"labels": "abd"}, r"the labels \(a, b, d and a, b, c\)"),
    ],
)
def test_adapters_of_other_kinds_are_refused_by_the_difference(
    change: dict[str, Any], difference: str, tmp_path: Path
) -> None:
    files = [written(tmp_path / "one.safetensors", 1), written(tmp_path / "two.safetensors", 2, **change)]
    with pytest.raises(UsageError, match=difference):
        capaft.average(files, tmp_path / "mean.safetensors")
    assert not (tmp_path / "mean.safetensors").exists()


def test_another_base_and_unfit_weights_are_refused(tmp_path: Path) -> None:
    files = [written(tmp_path / "one.safetensors", 1), tmp_path / "two.safetensors"]
    model = tiny.bert()
    torch.nn.init.normal_(model.bert.encoder.layer[0].attention.self.query.weight.data)
    capaft.attach(model, "lora+nola", rank=2, k=16, seed=7, head=HEAD)
    capaft.save(model, files[1], task=TaskRecord("text-classification", tuple("abc"), 32, "accuracy"))
    with pytest.raises(UsageError, match="the base weights"):
        capaft.average(files, tmp_path / "mean.safetensors")
    for weights, match in (([1.0], "1 entries for 2 runs"), ([1.0, -1.0], "more than 0")):
        with pytest.raises(UsageError, match=match):
            capaft.average([files[0], files[0]], tmp_path / "mean.safetensors", weights=weights)
    with pytest.raises(UsageError, match="at least two"):
        capaft.average(files[:1], tmp_path / "mean.safetensors")
