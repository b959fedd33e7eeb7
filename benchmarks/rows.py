"""Peak memory of preparing many rows, by stage: the process's anonymous memory, without the pages of mapped files.

Each number of rows is prepared in its own process, as `capaft train` does it up to the first step, with the embedded
model; then each example is read once, in the order of training.

    python benchmarks/rows.py --rows 100000 1000000 --json benchmarks/results/rows-cpu.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SUFFIXES = ("csv", "jsonl", "parquet")


def write_rows(file: Path, count: int) -> Path:
    """Rows of a text of 12 words, all different, and one of two labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "home", "through"]
    texts = (f"{i} " + " ".join(words[(i * 7 + j * (1 + i % 5)) % 13] for j in range(12)) for i in range(count))
    labels = (("good", "bad")[i % 2] for i in range(count))
    if file.suffix == ".csv":
        with file.open("w") as stream:
            stream.write("text,label\n")
            stream.writelines(f"{text},{label}\n" for text, label in zip(texts, labels, strict=True))
    elif file.suffix == ".jsonl":
        with file.open("w") as stream:
            rows = zip(texts, labels, strict=True)
            stream.writelines(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    else:
        pq.write_table(pa.table({"text": list(texts), "label": list(labels)}), file)
    return file


def anonymous() -> int:
    """Bytes of this process's anonymous memory."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


class Stages:
    """The peak of each stage, in MB, and its seconds."""

    def __init__(self) -> None:
        self.peaks: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Watch a stage."""
        peak, done = anonymous(), threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.01):
                peak = max(peak, anonymous())

        thread = threading.Thread(target=watch)
        thread.start()
        start = time.perf_counter()
        try:
            yield
        finally:
            done.set()
            thread.join()
            seconds = time.perf_counter() - start
            self.peaks[name] = {"MB": round(max(peak, anonymous()) / 1e6), "s": round(seconds, 1)}


def measure(file: Path) -> dict[str, Any]:
    """The stages of one file, in this process."""
    import transformers

    from capaft.config.train_config import TrainConfig
    from capaft.training.batches import training_batches
    from capaft.training.setup.examples import make_examples, sample_examples
    from capaft.training.setup.prepare import load_base
    from capaft.training.setup.selection import load_splits
    from capaft.training.setup.task_choice import choose_task

    transformers.logging.set_verbosity_error()
    config = TrainConfig(data=str(file))

    def say(line: str) -> None:
        pass

    stages = Stages()
    with stages.stage("base"):
        base = None
    with stages.stage("read"):
        splits = load_splits(config, say)
    with stages.stage("choose"):
        choice = sample_examples(choose_task(config, splits, say), config, say)
    with stages.stage("model"):
        base = load_base(choice.task, config)
    with stages.stage("tokenise"):
        train, _ = make_examples(choice, base, str(file), say)
    with stages.stage("batches"):
        for batch in training_batches(train.lengths, 32, 0, 0):
            choice.task.collate(base, train, batch, training=True)
    return stages.peaks


def main() -> None:
    """Measure each number of rows in each format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--formats", nargs="+", choices=SUFFIXES, default=list(SUFFIXES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.file:
        print(json.dumps(measure(arguments.file)))
        return
    results = []
    for suffix in arguments.formats:
        for count in arguments.rows:
            with tempfile.TemporaryDirectory() as directory:
                file = write_rows(Path(directory) / f"rows.{suffix}", count)
                command = [sys.executable, __file__, "--file", str(file)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks = json.loads(done.stdout.splitlines()[-1])
            results.append({"format": suffix, "rows": count, "stages": peaks})
            line = "  ".join(f"{name} {peak['MB']:.0f} MB {peak['s']} s" for name, peak in peaks.items())
            print(f"{suffix} {count:>9,} rows: {line}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
