"""`capaft info` shows what an adapter file holds, and where its bytes go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from command_line import invoke

import capaft
from capaft.adapter.file.header import TaskRecord
from capaft.config.choices import SaveDtype
from capaft.model.origin import Origin


def saved(path: Path, method: str = "nola", dtype: SaveDtype = "float32", ext: Any = None, **options: Any) -> Path:
    model = tiny.bert()
    capaft.attach(model, method, head=["classifier.weight", "classifier.bias"], **options)
    task = TaskRecord("text-classification", ("bad", "so so", "good"), 128, "accuracy")
    capaft.save(model, path, base=Origin("tiny"), task=task, dtype=dtype, ext=ext)
    return path


def test_sites_tensors_and_bytes(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", rank=2, k=8, targets="query,value,word_embeddings", ext={"made by": "a test"})
    lines = invoke("info", path).out.splitlines()
    assert "sites     5 for query,value,word_embeddings" in lines
    assert "          encoder.layer.{0-1}.attention.self.{query,value}: 32 x 32, width 2" in lines
    assert "          embeddings.word_embeddings: 32 x 64, width 2, embedding" in lines
    assert "tensors   4, 179 parameters as float32" in lines
    assert "          head:classifier.weight  96 parameters, F32, 384 bytes" in lines
    assert "ext       made by" in lines
    (sizes,) = (line for line in lines if line.startswith("bytes     716 tensors, "))
    assert sum(int(part.split()[0]) for part in sizes.removeprefix("bytes").split(", ")) == path.stat().st_size


@pytest.mark.parametrize("dtype", ["float32", "int4"])
@pytest.mark.parametrize("method", ["head", "lora+nola+capaboost"])
def test_as_json(method: str, dtype: SaveDtype, tmp_path: Path) -> None:
    path = saved(tmp_path / "a", method, dtype, targets="" if method == "head" else "query")
    record = json.loads(invoke("info", path, "--json").out)
    tensors, header = record["tensors"], record["header_bytes"]
    assert (
        sum(size["bytes"] for size in tensors.values()) + sum(header.values()) == record["bytes"] == path.stat().st_size
    )
    assert min(header.values()) >= 0
    assert tensors["head:classifier.weight"]["parameters"] == 96
    assert tensors["head:classifier.bias"]["parameters"] == (4 if dtype == "int4" else 3)
    assert ("scale:head:classifier.bias" in tensors) == (dtype == "int4")
    sites = [] if method == "head" else [f"encoder.layer.{layer}.attention.self.query" for layer in (0, 1)]
    assert record["sites"] == sites
    assert record["header"]["ext"] == {}


def test_many_lines_are_counted(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", "full")
    lines, tensors = invoke("info", path).out.splitlines(), json.loads(invoke("info", path, "--json").out)["tensors"]
    assert sum(" parameters, F32, " in line for line in lines) == 12
    assert f"          and {len(tensors) - 12} more, which --json lists" in lines
    assert [size["bytes"] for size in tensors.values()] == sorted((s["bytes"] for s in tensors.values()), reverse=True)


def test_paths_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    """A site's name may hold anything, also in a file that is intact."""
    model: Any = tiny.bert()
    model.bert.add_module("a\x1b[2J\n", tiny.bert().bert.pooler)
    capaft.attach(model, "lora", targets="re:2J")
    capaft.save(model, tmp_path / "a")
    out = invoke("info", tmp_path / "a").out
    assert "\x1b" not in out
    assert r"a\x1b[2J\n.dense: 32 x 32" in out
