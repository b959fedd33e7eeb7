"""A bank of adapters over RoBERTa-base's shape: bytes of an adapter, time to use one, and a batch of 32 adapters.

The model has random weights. Times are by the clock and of the processor, the least and the median of several. What is
compared is called in turns, so that a machine that gets busier in between slows down all of it.

    python benchmarks/bank.py --json benchmarks/results/bank-cpu.json
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

import capaft

EXAMPLES = 32
KINDS = {"by_clock": "min_ms", "by_processor": "processor_min_ms"}


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


def times(calls: Mapping[str, Callable[[], object]], count: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each call, by the clock and of the processor: the least and the median of its turns."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(count):
        for name, call in calls.items():
            started = time.perf_counter(), time.process_time()
            call()
            ended = time.perf_counter(), time.process_time()
            taken[name].append((1000 * (ended[0] - started[0]), 1000 * (ended[1] - started[1])))
    return {name: _summary(*zip(*turns, strict=True)) for name, turns in taken.items()}


def _summary(clock: Sequence[float], processor: Sequence[float]) -> dict[str, float]:
    return {
        "min_ms": round(min(clock), 2),
        "median_ms": round(statistics.median(clock), 2),
        "processor_min_ms": round(min(processor), 2),
        "processor_median_ms": round(statistics.median(processor), 2),
    }


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
            **times({"kept": lambda bank=kept: bank.use("a")}, 200),  # type: ignore[misc]
            **times({"not_kept": lambda bank=apart: bank.use("a")}, 60),  # type: ignore[misc]
        }
        kept.close()
        apart.close()
    return results


def batches(model: Any, directory: Path, lengths: list[int], rounds: int) -> list[dict[str, Any]]:
    """32 examples with 32 adapters, by the examples' length, with factors that are kept and factors that are not."""
    head = ["classifier.out_proj.weight", "classifier.out_proj.bias"]
    names = [f"n{index}" for index in range(EXAMPLES)]
    files = [file(model, directory / name, head=head) for name in names]
    rows: list[dict[str, Any]] = [{"tokens": length} for length in lengths]
    for kind, cache_bytes in {"kept": 2**29, "not_kept": 0}.items():
        with capaft.Bank(model, cache_bytes=cache_bytes) as bank:
            for name, path in zip(names, files, strict=True):
                bank.add(name, path)
            for row in rows:
                row[kind] = batch(model, bank, names, row["tokens"], rounds)
                print(row["tokens"], kind, row[kind], flush=True)
    return rows


def batch(model: Any, bank: capaft.Bank, names: list[str], length: int, rounds: int) -> dict[str, Any]:
    """One forward of examples with an adapter each, against one adapter after the other, and the base model alone."""
    ids = torch.randint(10, 50_000, (len(names), length))

    def together() -> torch.Tensor:
        with torch.inference_mode(), bank.batch(names):
            return model(ids).logits

    def one_by_one() -> torch.Tensor:
        outputs = []
        with torch.inference_mode():
            for index, name in enumerate(names):
                bank.use(name)
                outputs.append(model(ids[index : index + 1]).logits)
        bank.use(None)
        return torch.cat(outputs)

    def base() -> torch.Tensor:
        with torch.inference_mode():
            return model(ids).logits

    def base_one_by_one() -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([model(ids[index : index + 1]).logits for index in range(len(ids))])

    difference = float((together() - one_by_one()).abs().max())
    base()
    calls = {"together": together, "one_by_one": one_by_one, "base": base, "base_one_by_one": base_one_by_one}
    measured = times(calls, rounds)
    ratios = {kind: _ratios({name: m[key] for name, m in measured.items()}) for kind, key in KINDS.items()}
    return {"difference": difference, **ratios, **measured}


def _ratios(least: Mapping[str, float]) -> dict[str, float]:
    return {
        "times_faster": round(least["one_by_one"] / least["together"], 2),
        "base_times_faster": round(least["base_one_by_one"] / least["base"], 2),
        "times_base": round(least["together"] / least["base"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--lengths", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", default=["memory", "use", "batch"], help="the others keep their figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():
        results = json.loads(arguments.json.read_text())
    model = roberta()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if "memory" in arguments.parts:
            results["memory"] = memory(model, directory)
            print(results["memory"], flush=True)
        if "use" in arguments.parts:
            results["use"] = use(model, directory)
            print(results["use"], flush=True)
        if "batch" in arguments.parts:
            results["batch"] = {}
        for threads in arguments.threads if "batch" in arguments.parts else ():
            torch.set_num_threads(threads)
            print(f"{threads} threads", flush=True)
            results["batch"][f"{threads} threads"] = batches(model, directory, arguments.lengths, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
