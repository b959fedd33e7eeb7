"""A bank against `capaft.load`, one adapter after the other, on a model of its own each time."""

from __future__ import annotations

import copy
import gc
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from tiny import bert, gpt2, scramble
from torch import Tensor, nn

import capaft
from capaft.adapter.file.header import TaskRecord
from capaft.methods.registry import HOSTS
from capaft.methods.stack import stacks_of
from capaft.support.errors import AdapterFileError, UsageError

HEAD = ("classifier.weight", "classifier.bias")
NAMES = ["a", "b", None, "a", "c", "d", "b"]
IDS = torch.randint(1, 60, (len(NAMES), 8), generator=torch.Generator().manual_seed(0))
HOST_NAMES = [name for name in HOSTS if name != "prefix"]


def fresh() -> Any:
    """A model with a configuration of its own, whose labels may change."""
    model = bert()
    model.config = copy.deepcopy(model.config)
    return model


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def write(
    path: Path,
    method: str,
    seed: int = 3,
    values: int = 0,
    build: Callable[[], Any] = bert,
    dtype: Any = "float32",
    task: TaskRecord | None = None,
    **options: Any,
) -> Path:
    """A file of an adapter whose parameters are random."""
    model = build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter = capaft.attach(model, method, **({"k": 9, "rank": 2, "head": HEAD, "seed": seed} | options))
    scramble(adapter, seed=values)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(values)
        for parameter in adapter.substitutes.tensors(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    capaft.save(model, path, dtype=dtype, task=task)
    return path


def four(directory: Path, stacks: list[str], build: Callable[[], Any] = bert, **options: Any) -> dict[str, Path]:
    """Four files, the last with another seed than the others."""
    return {
        name: write(directory / name, stacks[i % len(stacks)], 4 if name == "d" else 3, i, build, **options)
        for i, name in enumerate("abcd")
    }


def one_by_one(files: dict[str, Path], build: Callable[[], Any] = bert) -> list[Tensor]:
    """The logits of each example on a fresh model that has its adapter."""
    outputs = []
    for row, name in enumerate(NAMES):
        model = build()
        if name is not None:
            capaft.load(model, files[name])
        outputs.append(logits(model, IDS[row : row + 1])[0])
    return outputs


def filled(model: nn.Module, files: dict[str, Path], **options: Any) -> capaft.Bank:
    bank = capaft.Bank(model, **options)
    for name, file in files.items():
        bank.add(name, file)
    return bank


def check_law(files: dict[str, Path], build: Callable[[], Any] = bert) -> None:
    """One adapter at a time and one for each example are both as `capaft.load` has it; the model is as it was."""
    expected, model = one_by_one(files, build), build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with filled(model, files) as bank:
        for row, name in enumerate(NAMES):
            bank.use(name)
            torch.testing.assert_close(logits(model, IDS[row : row + 1])[0], expected[row], rtol=0, atol=1e-5)
        bank.use(None)
        with bank.batch(NAMES):
            torch.testing.assert_close(list(logits(model)), expected, rtol=0, atol=1e-5)
        assert torch.equal(logits(model), logits(build()))
        assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not torch.allclose(expected[0], expected[4], atol=1e-3)


@pytest.mark.parametrize("host", HOST_NAMES)
def test_every_host(host: str, tmp_path: Path) -> None:
    stacks = stacks_of(HOSTS[host])
    check_law(four(tmp_path, [stacks[0], stacks[-1]]))


@pytest.mark.parametrize("mode", ["full", "nola", "frozen"])
def test_methods_and_heads_in_one_batch(mode: str, tmp_path: Path) -> None:
    check_law(four(tmp_path, ["nola", "lora+capaboost", "ia3", "houlsby"], head_mode=mode, head_k=20))


@pytest.mark.parametrize("targets", ["all-linear", "embeddings"])
def test_other_targets(targets: str, tmp_path: Path) -> None:
    # Positions are looked up once for all examples.
    exclude = "token_type_embeddings,position_embeddings" if targets == "embeddings" else ""
    check_law(four(tmp_path, ["nola", "vera"], targets=targets, exclude=exclude))


@pytest.mark.parametrize("stack", ["nola", "dora", "parallel", "ia3"])
def test_fused_and_transposed_weights(stack: str, tmp_path: Path) -> None:
    check_law(four(tmp_path, [stack], gpt2, head=()), gpt2)
    check_law(four(tmp_path, [stack], tiny.neox, head=()), tiny.neox)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "int4"])
def test_stored_dtypes(dtype: str, tmp_path: Path) -> None:
    check_law(four(tmp_path, ["nola"], dtype=dtype))


def test_heads_with_other_labels(tmp_path: Path) -> None:
    labels: dict[str, Any] = {"a": ["no", "yes"], "b": [f"class {i}" for i in range(5)], "c": None, "d": ["one"]}
    files = {
        name: write(tmp_path / name, "nola", values=i, build=fresh, labels=labels[name])
        for i, name in enumerate("abcd")
    }
    expected, model = one_by_one(files, fresh), fresh()
    with filled(model, files) as bank:
        with bank.batch(NAMES):
            together = logits(model)
        assert together.shape == (len(NAMES), 5)
        for row, name in enumerate(NAMES):
            count = len(bank.labels(name))
            assert count == len(expected[row])
            torch.testing.assert_close(together[row, :count], expected[row], rtol=0, atol=1e-5)
            assert (together[row, count:] == -torch.inf).all()
        with bank.batch(["a", "d"]):
            assert logits(model, IDS[:2]).shape == (2, 2)
        assert bank.labels("a") == ("no", "yes")
        assert bank.labels(None) == bank.labels("c") == ("LABEL_0", "LABEL_1", "LABEL_2")


class PositionsFirst(nn.Module):
    """A layer whose inputs have the positions first, as many as examples, and then a layer on both in one axis."""

    def __init__(self, shuffled: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 6)
        self.query, self.value, self.shuffled = nn.Linear(6, 6), nn.Linear(6, 4), shuffled

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        hidden = self.query(self.embed(input_ids).transpose(0, 1)).transpose(0, 1)
        flat = hidden.flatten(0, 1)
        order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(1)) if self.shuffled else None
        values = self.value(flat if order is None else flat[order])
        if order is not None:
            values = values[order.argsort()]
        return SimpleNamespace(logits=values.unflatten(0, hidden.shape[:2]))


def positions_first(shuffled: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PositionsFirst(shuffled).eval()


def test_examples_are_found_wherever_they_stand(tmp_path: Path) -> None:
    # As many positions as examples, so that a wrong axis would fit.
    files, ids, model = four(tmp_path, ["nola"], positions_first, head=()), IDS[:, :7], positions_first()
    with filled(model, files) as bank:
        with bank.batch(NAMES):
            together = logits(model, ids)
        for row, name in enumerate(NAMES):
            bank.use(name)
            torch.testing.assert_close(logits(model, ids[row : row + 1])[0], together[row], rtol=0, atol=1e-5)


def test_rows_in_no_order_are_refused(tmp_path: Path) -> None:
    files = four(tmp_path, ["nola"], positions_first, head=())
    model = positions_first(shuffled=True)
    with filled(model, files) as bank:
        with bank.batch(NAMES), pytest.raises(UsageError, match="value does not give one row after the other"):
            logits(model)
        with bank.batch(["a"] * 7):
            logits(model)


def test_the_same_text_for_every_adapter(tmp_path: Path) -> None:
    files, model = four(tmp_path, ["nola"]), bert()
    same = IDS[:1].expand(4, -1)
    with filled(model, files) as bank:
        with bank.batch(list("abcd")):
            together = logits(model, same)
        for row, name in enumerate("abcd"):
            bank.use(name)
            torch.testing.assert_close(logits(model, IDS[:1])[0], together[row], rtol=0, atol=1e-5)


def test_generated_texts_of_a_batch(tmp_path: Path) -> None:
    files, model = four(tmp_path, ["nola"], gpt2, head=()), gpt2()
    options = {"max_new_tokens": 5, "do_sample": False, "num_beams": 2}
    with filled(model, files) as bank:
        with bank.batch(NAMES):
            together = model.generate(IDS, attention_mask=torch.ones_like(IDS), **options)
        for row, name in enumerate(NAMES):
            bank.use(name)
            alone = model.generate(IDS[row : row + 1], attention_mask=torch.ones(1, 8), **options)
            assert torch.equal(together[row], alone[0])


def test_threads_do_not_see_one_another(tmp_path: Path) -> None:
    files, model = four(tmp_path, ["nola", "ia3"]), bert()
    expected, wrong = one_by_one(files), []
    with filled(model, files, cache_bytes=0) as bank:

        def work(row: int) -> None:
            for _ in range(5):
                bank.use(NAMES[row])
                alone = logits(model, IDS[row : row + 1])[0]
                with bank.batch([NAMES[row], None, "b"]):
                    first = logits(model, IDS[[row, 2, 1]])
                if not all(
                    torch.allclose(x, expected[y], atol=1e-5)
                    for x, y in zip([alone, *first], [row, row, 2, 1], strict=True)
                ):
                    wrong.append(row)

        threads = [threading.Thread(target=work, args=(row,)) for row in range(len(NAMES))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.equal(logits(model), logits(bert()))
    assert not wrong


def test_names_come_and_go(tmp_path: Path) -> None:
    files, model = four(tmp_path, ["nola"]), bert()
    expected = one_by_one(files)
    with filled(model, files) as bank:
        assert bank.names == list("abcd")
        assert len(bank) == 4
        assert "a" in bank
        bank.use("a")
        bank.remove("a")
        bank.add("e", files["b"])
        # The forward goes on with what it has, though another adapter has taken the row.
        torch.testing.assert_close(logits(model, IDS[:1])[0], expected[0], rtol=0, atol=1e-5)
        bank.use("e")
        torch.testing.assert_close(logits(model, IDS[1:2])[0], expected[1], rtol=0, atol=1e-5)
        for call in (lambda: bank.use("a"), lambda: bank.remove("a"), lambda: bank.labels("a")):
            with pytest.raises(UsageError, match="no adapter named 'a'"):
                call()
        with pytest.raises(UsageError, match="already has an adapter named e; pass replace=True"):
            bank.add("e", files["c"])
        bank.add("e", files["c"], replace=True)
        bank.use("e")
        torch.testing.assert_close(logits(model, IDS[4:5])[0], expected[4], rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match="closed"):
        bank.use("e")
    with pytest.raises(UsageError, match="closed"):
        bank.add("a", files["a"])


def test_families_go_with_their_last_adapter(tmp_path: Path) -> None:
    files, model = four(tmp_path, ["nola"]), bert()
    expected = one_by_one(files)
    with filled(model, files) as bank:
        bank.use("d")
        bank.remove("d")
        gc.collect()
        # A forward that uses one goes on with it.
        torch.testing.assert_close(logits(model, IDS[5:6])[0], expected[5], rtol=0, atol=1e-5)
        bank.use(None)
        gc.collect()
        assert len(bank._families) == 1
        bank.add("d", files["d"])
        bank.use("d")
        torch.testing.assert_close(logits(model, IDS[5:6])[0], expected[5], rtol=0, atol=1e-5)


def test_factors_that_are_kept_stay_below_the_limit(tmp_path: Path) -> None:
    files, model = four(tmp_path, ["nola"]), bert()
    with filled(model, files) as bank:
        bank.use("a")
        one = bank._cache.nbytes
    with filled(bert(), files, cache_bytes=2 * one) as bank:
        for name in "abcab":
            bank.use(name)
            assert bank._cache.nbytes <= 2 * one
        assert bank._cache.get(bank._entries["a"]) is not None
        assert bank._cache.get(bank._entries["c"]) is None


def test_what_is_refused(tmp_path: Path) -> None:
    model = bert()
    bank = capaft.Bank(model)
    for method, why in (("prefix", "acts within attention"), ("full", "replaces every weight")):
        file = write(tmp_path / method, method)
        with pytest.raises(AdapterFileError, match=f"{why}.*capaft.load"):
            bank.add("x", file)
        assert bank.names == []
    good = write(tmp_path / "good", "nola")
    bank.verify(good)
    damaged = tmp_path / "damaged"
    content = bytearray(good.read_bytes())
    content[-3] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(AdapterFileError, match="do not match their digest"):
        bank.add("x", damaged)
    other = bert()
    with torch.no_grad():
        other.bert.encoder.layer[0].attention.self.query.weight.mul_(1.5)
    bank.add("good", good)
    foreign = write(tmp_path / "foreign", "nola", build=lambda: tiny._copy(other))
    for call in (bank.verify, lambda file: bank.add("y", file)):
        with pytest.raises(AdapterFileError, match="other base weights"):
            call(foreign)
    for names in ([], "a", None, ["nobody"], [3]):
        with pytest.raises(UsageError), bank.batch(names):  # type: ignore[arg-type]
            pass
    with (
        bank.batch(["good", None, "good"]),
        pytest.raises(UsageError, match="names 3 adapters, but the model got 7 rows"),
    ):
        logits(model)
    with pytest.raises(UsageError, match="a bank acts on this model; close it first"):
        capaft.attach(model, "nola")
    bank.close()
    capaft.attach(model, "nola")
    capaft.attach(other, "nola")
    with pytest.raises(UsageError, match="carries the adapter default"):
        capaft.Bank(other)


def test_the_task_of_a_file(tmp_path: Path) -> None:
    task = TaskRecord("text-classification", ("x", "y", "z"), 16, "accuracy", {})
    model = bert()
    with capaft.Bank(model) as bank:
        for index in range(2):
            bank.add(str(index), write(tmp_path / str(index), "nola", values=index, task=task))
        assert bank.task("0") == task
        assert bank.task("0") is bank.task("1")
        assert bank.labels("1") == ("x", "y", "z")


def test_bytes_of_thousands(tmp_path: Path) -> None:
    file = capaft.read(write(tmp_path / "a", "nola", dtype="int8", head=()))
    with capaft.Bank(bert()) as bank:
        for index in range(3000):
            bank.add(f"n{index}", file)
        stored = sum(tensor.nbytes for tensor in file.tensors.values())
        assert bank.nbytes < 3000 * (stored + 8) + 2**23
        assert len({id(entry.family) for entry in bank._entries.values()}) == 1


def test_a_model_that_is_cast_or_copied(tmp_path: Path) -> None:
    files, model = four(tmp_path, ["nola", "dora"]), bert()
    with filled(model, files) as bank:
        with bank.batch(NAMES):
            expected = logits(model)
            assert torch.equal(logits(copy.deepcopy(model)), expected)
        model.double()
        with bank.batch(NAMES):
            torch.testing.assert_close(logits(model).float(), expected, rtol=0, atol=1e-5)
