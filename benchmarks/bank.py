"""A bank of adapters over RoBERTa-base's shape: bytes of an adapter, time to use one, and a batch of 32 adapters.

The model has random weights; times are of the processor, in one thread, the least and the median of many.

    python benchmarks/bank.py --json benchmarks/results/bank-cpu.json
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

import capaft

EXAMPLES = 32


def roberta() -> Any:
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=2)
    return RobertaForSequenceClassification(config).eval()


def file(model: Any, path: Path, **options: Any) -> Path:
    """A file of one adapter, k = 256 a factor, int8, with values as training leaves them."""
    adapter = capaft.attach(model, "nola", k=256, rank=8, seed=7, **options)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    capaft.save(model, path, dtype="int8")
    capaft.detach(model)
    return path


def times(call: Callable[[int], object], count: int) -> dict[str, float]:
    """Milliseconds of processor time of some calls, in one thread: the least, and the median."""
    taken = []
    for index in range(count):
        started = time.process_time()
        call(index)
        taken.append(1000 * (time.process_time() - started))
    return {"min_ms": round(min(taken), 2), "median_ms": round(statistics.median(taken), 2)}


def resident() -> int:
    """Bytes of this process in memory now."""
    with Path("/proc/self/statm").open() as stream:
        return int(stream.read().split()[1]) * resource.getpagesize()


def memory(model: Any, directory: Path) -> dict[str, Any]:
    """Bytes of 2,000, 4,000 .. 10,000 adapters, the line through them, and what it says about 100,000."""
    read = capaft.read(file(model, directory / "plain"))
    bank = capaft.Bank(model)
    bank.add("first", read)
    counts, held = [], []
    before = resident()
    started = time.process_time()
    for count in range(1, 10_001):
        # As many as come from files of their own: nothing of the header is shared by being the same object.
        bank.add(f"adapter-{count}", replace(read, tensors={n: t.clone() for n, t in read.tensors.items()}))
        if count % 2000 == 0:
            counts.append(count)
            held.append(resident() - before)
    seconds = time.process_time() - started
    slope, offset = statistics.linear_regression(counts, held)
    bank.close()
    return {
        "counts": counts,
        "bytes": held,
        "bytes_an_adapter": round(slope),
        "bytes_of_100000": round(offset + 100_000 * slope),
        "add_ms": round(1000 * seconds / 10_000, 3),
    }


def use(model: Any, directory: Path) -> dict[str, Any]:
    """Time to use one adapter whose factors are kept, and one whose factors are not, by the kind of its head."""
    head = [name for name, _ in model.named_parameters() if name.startswith("classifier")]
    results = {}
    for mode, options in {"none": {}, "full": {"head": head}, "nola": {"head": head, "head_mode": "nola"}}.items():
        path = file(model, directory / mode, **options)
        kept = capaft.Bank(model)
        kept.add("a", path)
        kept.use("a")
        apart = capaft.Bank(model, cache_bytes=0)
        apart.add("a", path)
        apart.use("a")
        results[mode] = {
            "bytes_in_file": path.stat().st_size,
            "kept": times(lambda _, bank=kept: bank.use("a"), 200),
            "not_kept": times(lambda _, bank=apart: bank.use("a"), 60),
        }
        kept.close()
        apart.close()
    return results


def batches(model: Any, directory: Path, lengths: list[int]) -> list[dict[str, Any]]:
    """32 examples with 32 adapters: one forward, against one adapter after the other, by the examples' length."""
    head = ["classifier.out_proj.weight", "classifier.out_proj.bias"]
    names = [f"n{index}" for index in range(EXAMPLES)]
    bank = capaft.Bank(model)
    for name in names:
        bank.add(name, file(model, directory / name, head=head))
    rows = []
    for length in lengths:
        ids = torch.randint(10, 50_000, (EXAMPLES, length))

        def together(_: int, ids: torch.Tensor = ids) -> torch.Tensor:
            with torch.inference_mode(), bank.batch(names):
                return model(ids).logits

        def apart(_: int, ids: torch.Tensor = ids) -> torch.Tensor:
            outputs = []
            with torch.inference_mode():
                for index, name in enumerate(names):
                    bank.use(name)
                    outputs.append(model(ids[index : index + 1]).logits)
            bank.use(None)
            return torch.cat(outputs)

        def base(_: int, ids: torch.Tensor = ids) -> torch.Tensor:
            with torch.inference_mode():
                return model(ids).logits

        difference = float((together(0) - apart(0)).abs().max())
        row = {"tokens": length, "difference": difference}
        for name, call in (("together", together), ("one_by_one", apart), ("base", base)):
            row[name] = times(call, 4)
        row["times_faster"] = round(row["one_by_one"]["min_ms"] / row["together"]["min_ms"], 2)
        row["times_base"] = round(row["together"]["min_ms"] / row["base"]["min_ms"], 2)
        rows.append(row)
        print(row, flush=True)
    bank.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = roberta()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        results = {"threads": arguments.threads, "memory": memory(model, directory)}
        print(results, flush=True)
        results["use"] = use(model, directory)
        print(results["use"], flush=True)
        results["batch"] = batches(model, directory, arguments.lengths)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
