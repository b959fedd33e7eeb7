"""Time and peak memory of `capaft merge`, against copying the base's files.

A Llama of random weights in nine files of bfloat16, 3.9 GB, with a NOLA on all linear layers. Copying (`cp`, then
flushed to disk) and merging (the whole command, which flushes too) take turns, each in a process of its own.

    python benchmarks/merge.py --directory DIR --json benchmarks/results/merge-cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SHAPE = {
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 24,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
}


def write_base(directory: Path, small: bool) -> Path:
    """A sharded Llama of random weights, written file by file."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from capaft.model.demo import demo_model

    base = directory / "base"
    if (base / "model.safetensors.index.json").exists():
        return base
    base.mkdir(parents=True, exist_ok=True)
    shape = SHAPE | ({"hidden_size": 320, "intermediate_size": 864} if small else {})
    config = LlamaConfig(**shape, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(base)
    AutoTokenizer.from_pretrained(demo_model()).save_pretrained(base)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LlamaForCausalLM(config).named_parameters()}
    files: list[dict[str, Any]] = [{}]
    size = 0
    for name, sides in shapes.items():
        if size + 2 * sides.numel() > 5e8:
            files.append({})
            size = 0
        files[-1][name] = sides
        size += 2 * sides.numel()
    places = {}
    generator = torch.Generator().manual_seed(0)
    for number, of_file in enumerate(files, 1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        values = {n: (0.02 * torch.randn(s, generator=generator)).to(torch.bfloat16) for n, s in of_file.items()}
        save_file(values, base / file, {"format": "pt"})
        places |= dict.fromkeys(of_file, file)
    index = {"metadata": {"total_size": sum(2 * s.numel() for s in shapes.values())}, "weight_map": places}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    return base


def write_adapter(base: Path, file: Path) -> Path:
    """A NOLA on all linear layers, with an update as large as training makes it."""
    import torch
    from transformers import AutoModelForCausalLM

    import capaft
    from capaft.adapter.file.header import TaskRecord
    from capaft.model.origin import Origin

    if not file.exists():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        adapter = capaft.attach(model, "lora+nola", k=256, rank=8, targets="all-linear", seed=3)
        generator = torch.Generator().manual_seed(0)
        for parameter in adapter.role_parameters.values():
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        capaft.save(model, file, base=Origin(str(base)), task=TaskRecord("causal-lm", (), 32, "perplexity"))
    return file


def measured(*command: str | Path) -> tuple[float, float]:
    """Seconds of a command, and the peak memory of its process in MB."""
    os.sync()
    started = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a model of an eighth of the width, to try the script")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    base = write_base(arguments.directory, arguments.small)
    adapter = write_adapter(base, arguments.directory / "adapter.safetensors")
    copy, merged = arguments.directory / "copy", arguments.directory / "merged"
    capaft = [sys.executable, "-m", "capaft", "merge", adapter, "--model", base, "--output", merged]
    runs: dict[str, list[tuple[float, float]]] = {"copy": [], "merge": [], "merge and verify": []}
    for _ in range(arguments.rounds):
        for name, command in (
            ("copy", ["sh", "-c", f"cp -r '{base}' '{copy}' && sync '{copy}'/*"]),
            ("merge", [*capaft, "--no-verify"]),
            ("merge and verify", capaft),
        ):
            runs[name].append(measured(*command))
            print(name, *(f"{value:.1f}" for value in runs[name][-1]), flush=True)
            shutil.rmtree(copy, ignore_errors=True)
            shutil.rmtree(merged, ignore_errors=True)
    files = list(base.glob("*.safetensors"))
    largest = max(2 * n for n in (SHAPE["vocab_size"] * SHAPE["hidden_size"], 6912 * 2560))
    seconds = {name: statistics.median(second for second, _ in values) for name, values in runs.items()}
    peaks = {name: max(peak for _, peak in values) for name, values in runs.items()}
    results = {
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "bytes": sum(file.stat().st_size for file in files),
        "files": len(files),
        "largest_tensor_mb": largest / 1e6,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "ratio_to_copying": {name: round(value / seconds["copy"], 2) for name, value in seconds.items()},
        "peak_mb": {name: round(value) for name, value in peaks.items() if name != "copy"},
        "runs": {name: [[round(s, 1), round(p)] for s, p in values] for name, values in runs.items()},
    }
    print(json.dumps(results, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
