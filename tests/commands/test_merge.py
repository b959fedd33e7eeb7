"""`capaft merge`: a plain model with the same outputs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import invoke
from safetensors.torch import load_file, save_file
from tiny_job import bert, config, execute
from transformers import BertForSequenceClassification

from capaft.adapter.merge import merge
from capaft.exchange import merged_directory
from capaft.model.load import locate_model
from capaft.support import directories
from capaft.training.record.saved_run import open_run


def test_merge_is_a_plain_model_with_the_same_logits(run: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    done = invoke("merge", run, "--output", tmp_path / "merged", "--json")
    assert done.code == 0, done.err
    results = json.loads(done.out)
    differences = {"largest_difference", "relative_difference", "rounding_error", "largest_rounding_error"}
    assert results.keys() == {"output", "sites", "seconds"} | differences
    assert results["rounding_error"] == 0
    assert results["relative_difference"] < 1e-5
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert plain.config.id2label == {0: "bad", 1: "good"}
    assert not [name for name, _ in plain.named_parameters() if "capaft" in name]
    assert (tmp_path / "merged" / "README.md").exists()
    batch = tokenizer(["A superb film.", "A most tedious and lengthy play."], padding=True, return_tensors="pt")
    saved = open_run(str(run))
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits, saved.model(**batch).logits, atol=1e-5, rtol=0)


def test_a_merge_does_not_replace_its_base(run: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(locate_model(open_run(str(run)).settings.model), base)
    before = {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()}
    (tmp_path / "link").symlink_to(base)
    for output in (base, tmp_path / "link"):
        done = invoke("merge", run, "--model", base, "--output", output, "--overwrite")
        assert (done.code, "is the base model, which a merge reads; name another" in done.err) == (2, True), done.err
    assert {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()} == before


def test_an_interrupted_merge_leaves_what_was_there(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the new model is written, and while it takes the place of the old one."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    old = tmp_path / "merged"
    old.mkdir()
    (old / "config.json").write_text("{}")
    for module, name in ((merged_directory, "_card"), (directories, "replace_directory")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stop)
            done = invoke("merge", run, "--output", old, "--overwrite")
        assert (done.code, done.err.splitlines()[-1:]) == (130, ["stopped by Ctrl-C"])
        assert [path.name for path in tmp_path.rglob("*")] == ["merged", "config.json"]
    real = directories.replace_directory

    def asked(*paths: Path) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        real(*paths)

    monkeypatch.setattr(directories, "replace_directory", asked)
    done = invoke("merge", run, "--output", old, "--overwrite")
    assert (done.code, done.err.splitlines()[-1:]) == (130, ["stopped by SIGTERM"])
    assert (old / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_plain_model_is_merged_the_same_with_dequantise(run: Path, tmp_path: Path) -> None:
    for name, flags in (("plain", ()), ("dequantised", ("--quantised", "dequantise"))):
        done = invoke("merge", run, "--output", tmp_path / name, *flags)
        assert done.code == 0, done.err
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "dequantised")]
    assert weights[0] == weights[1]


def test_the_merged_files_have_the_permissions_of_new_ones(run: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert invoke("merge", run, "--output", tmp_path / "merged").code == 0
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "merged").iterdir()} == {0o640}
    assert stat.S_IMODE((tmp_path / "merged").stat().st_mode) == 0o750


def stored(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, reviews: Path) -> Callable[..., tuple[Path, Path]]:
    """A function that gives a base model, its norms in a dtype of their own, and an adapter trained on it."""
    root = tmp_path_factory.mktemp("bases")
    path, output = bert(root / "base", BertForSequenceClassification), root / "run"
    execute(config(path, reviews, epochs=1, head="full"), output)
    weights = load_file(path / "model.safetensors")

    def cast(dtype: torch.dtype, norms: torch.dtype) -> tuple[Path, Path]:
        save_file(
            {name: tensor.to(norms if "LayerNorm" in name else dtype) for name, tensor in weights.items()},
            path / "model.safetensors",
            {"format": "pt"},
        )
        settings = json.loads((path / "config.json").read_text()) | {"dtype": str(dtype).removeprefix("torch.")}
        (path / "config.json").write_text(json.dumps(settings))
        return path, output

    return cast


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(("dtype", "norms"), [(BF16, BF16), (FP16, FP16), (BF16, FP32), (FP32, FP32)])
@pytest.mark.parametrize("flags", [(), ("--quantised", "dequantise")])
def test_each_tensor_keeps_the_dtype_of_the_checkpoint(
    dtype: torch.dtype, norms: torch.dtype, flags: tuple[str, ...], bases: Any, tmp_path: Path
) -> None:
    base, run = bases(dtype, norms)
    merged = tmp_path / "merged"
    done = invoke("merge", run, "--output", merged, *flags)
    assert done.code == 0, done.err
    assert dtype != FP32 or "warning" not in done.err
    name = str(dtype).removeprefix("torch.")
    assert (f"rounding to {name} changes an update by " in done.out) == (dtype != FP32)
    assert ("rounding: none" in done.out) == (dtype == FP32 and bool(flags))
    before, after = stored(base), stored(merged)
    assert {name: tensor.dtype for name, tensor in after.items()} == {n: t.dtype for n, t in before.items()}
    sizes = [(path / "model.safetensors").stat().st_size for path in (base, merged)]
    assert abs(sizes[0] - sizes[1]) < 1000
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[-2] for name in changed} == {"query", "value", "classifier"}
    assert json.loads((merged / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    # What was added in float32 is rounded once.
    saved = open_run(str(run))
    merge(saved.model)
    for name, tensor in saved.model.state_dict().items():
        assert torch.equal(after[name], tensor.to(after[name].dtype)), name


def test_a_base_dtype_of_the_command_is_that_of_the_files(bases: Any, tmp_path: Path) -> None:
    _, run = bases(BF16, BF16)
    done = invoke("merge", run, "--output", tmp_path / "merged", "--base-dtype", "float32")
    assert done.code == 0, done.err
    assert {tensor.dtype for tensor in stored(tmp_path / "merged").values()} == {FP32}


def test_the_base_is_not_replaced(reviews: Path, tmp_path: Path) -> None:
    model = bert(tmp_path / "model", BertForSequenceClassification)
    execute(config(model, reviews, max_steps=1), tmp_path / "run")
    (tmp_path / "link").symlink_to(model)
    before = {path: path.read_bytes() for path in model.iterdir()}
    for output in (model, tmp_path / "link"):
        done = invoke("merge", tmp_path / "run", "--output", output, "--overwrite")
        assert (done.code, done.out) == (2, "")
        assert "is the base model, which other adapters need" in done.err
    assert {path: path.read_bytes() for path in model.iterdir()} == before


def test_several_adapters_are_verified_with_the_head_of_the_first(tmp_path: Path) -> None:
    model = bert(tmp_path / "model", BertForSequenceClassification)
    for name, labels in (("one", "yz"), ("two", "abc"), ("three", "de")):
        data = tmp_path / f"{name}.csv"
        data.write_text("text,label\n" + "".join(f"A film {at},{labels[at % len(labels)]}\n" for at in range(30)))
        # Far from the start, so that a wrong head is seen.
        execute(config(model, data, max_steps=2, lr=0.3, head_lr=0.3), tmp_path / name)
    assert invoke("export", tmp_path / "three", "--output", tmp_path / "peft").code == 0
    # One is merged from file to file, the other in memory.
    for second, output in (("two", "merged"), ("peft", "in-memory")):
        done = invoke("merge", tmp_path / "one", tmp_path / second, "--output", tmp_path / output, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["relative_difference"] < 1e-5
    head = load_file(tmp_path / "one" / "adapter.safetensors")["head:classifier.weight"]
    assert torch.equal(load_file(tmp_path / "merged" / "model.safetensors")["classifier.weight"], head)
