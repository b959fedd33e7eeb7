"""Time to expand all factors of a RoBERTa-base-shaped NOLA adapter once, forward and backward, for each random basis.

python benchmarks/basis.py --output benchmarks/results/basis-cpu.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from capaft.factors.basis import BASES, Uniform
from capaft.factors.rng import Streams

SITES, SIZE, K = 24, 8 * 768, 1024


def seconds(kind: str, device: str, rounds: int) -> float:
    """Median seconds of one expansion and its adjoint, for all factors of one role."""
    basis = BASES[kind]([Streams(0, f"site.{i}", "down") for i in range(SITES)], SIZE, K).to(device)
    coefficients, gradient = torch.randn(SITES, K, device=device), torch.randn(SITES, SIZE, device=device)
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        basis.expand(coefficients)
        basis.adjoint(gradient)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    medians = {"hadamard": seconds("hadamard", options.device, 20)}
    Uniform.RESIDENT_BYTES = 2**40
    medians["uniform, lanes in memory"] = seconds("uniform", options.device, 3)
    Uniform.RESIDENT_BYTES = 0
    medians["uniform, drawn in every pass"] = seconds("uniform", options.device, 1)
    record = {"setting": f"{SITES} sites, n {SIZE}, k {K}", "device": options.device, "seconds": medians}
    text = json.dumps(record, indent=2)
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
