"""The methods side by side on the embedded demo, by the command line: metric, trainable parameters, bytes, seconds.

python benchmarks/methods.py --output benchmarks/results/methods-demo.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

METHODS = ("head", "nola", "lora+nola+capaboost", "lora", "capaboost", "full")


def train(method: str, seed: int, extra: list[str]) -> dict[str, Any]:
    """The results of one run in its own process."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "capaft", "train", "--method", method, "--seed", str(seed), "--json"]
        command += ["--output", f"{directory}/run", *extra]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--output", type=Path)
    options, extra = parser.parse_known_args()
    rows = []
    for method in options.methods:
        runs = [train(method, seed, extra) for seed in range(options.seeds)]
        values = [run["value"] for run in runs]
        constant = ("method", "metric", "baseline", "adapter_parameters", "head_parameters", "adapter_bytes")
        rows.append(
            {key: runs[0][key] for key in constant}
            | {"values": values, "mean": statistics.mean(values)}
            | {key: statistics.median(run[key] for run in runs) for key in ("seconds", "examples_per_second")}
            | {"peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs)}
        )
        print(json.dumps(rows[-1]), flush=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
