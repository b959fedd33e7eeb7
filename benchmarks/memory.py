"""Peak memory as estimated by `capaft train --dry-run`, against the peak of the run itself.

Each run is a command in its own process, for three sizes of model: a BERT of 4 M weights, all-MiniLM-L6-v2 (22.7 M),
and RoBERTa-base's shape (125 M), the first and the last with random weights.

    python benchmarks/memory.py --json benchmarks/results/memory-estimate-cpu.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "runs",
    "back",
    "home",
    "through",
    "deep",
    "woods",
]
CASES = (
    ("bert-4m", "lora", 32, ()),
    ("bert-4m", "full", 32, ()),
    ("minilm", "nola", 32, ()),
    ("minilm", "nola", 8, ()),
    ("minilm", "lora", 32, ("--gradient-checkpointing",)),
    ("minilm", "full", 32, ()),
    ("roberta-base", "nola", 8, ()),
    ("roberta-base", "full", 4, ()),
)
STEPS, LENGTH = 4, 128


def model(name: str, directory: Path) -> Path:
    """A directory with the model and a tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertModel, RobertaConfig, RobertaModel

    from capaft.model.demo import demo_model

    if name == "minilm":
        return demo_model()
    path = directory / name
    if not path.exists():
        tokenizer = AutoTokenizer.from_pretrained(demo_model())
        small = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
        if name == "bert-4m":
            BertModel(BertConfig(vocab_size=len(tokenizer), **small)).save_pretrained(path)
        else:
            # The tokenizer is BERT's, whose padding token has id 0.
            RobertaModel(RobertaConfig(vocab_size=50265, pad_token_id=0)).save_pretrained(path)
        tokenizer.save_pretrained(path)
    return path


def data(file: Path) -> Path:
    """Rows that fill the maximum length."""
    rows = [{"text": " ".join(WORDS[(i + j) % len(WORDS)] for j in range(LENGTH)), "label": i % 2} for i in range(160)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def measure(case: tuple[str, str, int, tuple[str, ...]], directory: Path) -> dict[str, Any]:
    """One case: estimated and measured bytes."""
    name, method, batch, flags = case
    common = [sys.executable, "-m", "capaft", "train", "--model", str(model(name, directory)), "--json"]
    common += ["--data", str(data(directory / "rows.jsonl")), "--method", method, "--batch-size", str(batch)]
    common += ["--max-length", str(LENGTH), "--max-steps", str(STEPS), "--eval-batch-size", str(batch), *flags]
    common += ["--head-init", "seeded", "--max-eval-examples", str(batch), "--output"]
    results = []
    for dry_run in (["--dry-run"], []):
        output = str(directory / f"{name}-{method}-{batch}-{len(flags)}")
        done = subprocess.run([*common, output, *dry_run], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{case}: {done.stderr}")
        results.append(json.loads(done.stdout))
    estimated, measured = results[0]["estimated_peak_memory_bytes"], results[1]["peak_memory_bytes"]
    record = {"model": name, "method": method, "batch_size": batch, "flags": list(flags)}
    return record | {"estimated": estimated, "measured": measured, "ratio": round(estimated / measured, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        records = []
        for case in CASES:
            records.append(measure(case, Path(directory)))
            print(records[-1], file=sys.stderr)
    text = json.dumps(records, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
