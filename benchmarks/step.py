"""Time of one training step: PEFT's LoRA, capaft lora, capaft nola; interleaved in one process, so ratios hold.

A RoBERTa-base-shaped classifier with random weights, batch 8 x 128, query and value projections, rank 8, k 1024,
float32, AdamW. `--memory` measures the peak memory of each method instead, each in its own process.

    pip install -c constraints.txt -e '.[bench]'
    python benchmarks/step.py --output benchmarks/results/step-cpu.json
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import RobertaConfig, RobertaForSequenceClassification

import capaft

BATCH, LENGTH, RANK, K = 8, 128, 8, 1024
HEAD = ("classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight", "classifier.out_proj.bias")
METHODS = ("peft-lora", "capaft-lora", "capaft-nola", "capaft-capaboost", "capaft-lora+nola+capaboost")


def model(method: str, device: str) -> torch.nn.Module:
    torch.manual_seed(0)
    base = RobertaForSequenceClassification(RobertaConfig(vocab_size=50265, max_position_embeddings=514, num_labels=2))
    if method == "peft-lora":
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["query", "value"], modules_to_save=["classifier"])
        return get_peft_model(base, config).to(device).train()
    capaft.attach(base, method.removeprefix("capaft-"), rank=RANK, k=K, head=HEAD)
    return base.to(device).train()


def stepper(method: str, device: str) -> Callable[[], float]:
    """A function that runs one optimizer step and returns its seconds."""
    adapted = model(method, device)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-3)
    batch = {
        "input_ids": torch.randint(5, 50000, (BATCH, LENGTH), device=device),
        "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.long, device=device),
        "labels": torch.zeros(BATCH, dtype=torch.long, device=device),
    }

    def step() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        adapted(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return step


def times(rounds: int, device: str) -> dict[str, Any]:
    steps = {method: stepper(method, device) for method in METHODS}
    for step in steps.values():
        step()
        step()
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for index in range(rounds):
        # The order changes every round, so that no method is always timed in the same place.
        for offset in range(len(METHODS)):
            method = METHODS[(index + offset) % len(METHODS)]
            seconds[method].append(steps[method]())
    reference = seconds["peft-lora"]
    return {
        method: {
            "median_seconds": statistics.median(samples),
            "ratio_to_peft": statistics.median(a / b for a, b in zip(samples, reference, strict=True)),
        }
        for method, samples in seconds.items()
    }


def peak_memory(method: str, device: str, steps: int = 3) -> int:
    """Peak bytes of a few steps: of the GPU, or of the whole process on a CPU."""
    step = stepper(method, device)
    for _ in range(steps):
        step()
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory(device: str, repeats: int) -> dict[str, Any]:
    """Median peak memory over fresh processes, and its ratio to capaft's own LoRA."""
    peaks = {}
    for method in METHODS:
        command = [sys.executable, __file__, "--one", method, "--device", device]
        runs = [int(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(repeats)]
        peaks[method] = statistics.median(runs)
    return {
        method: {"peak_bytes": peak, "ratio_to_lora": peak / peaks["capaft-lora"]} for method, peak in peaks.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of time")
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.one:
        print(peak_memory(options.one, options.device))
        return
    measured = memory(options.device, 2) if options.memory else times(options.rounds, options.device)
    record = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "setting": f"RoBERTa-base shape, batch {BATCH} x {LENGTH}, q and v, rank {RANK}, k {K}, float32, AdamW",
        "methods": measured,
    }
    text = json.dumps(record, indent=2)
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
