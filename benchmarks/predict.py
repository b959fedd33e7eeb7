"""Peak memory of `capaft predict` for files of many rows, with a forward that costs nothing; and its rate with one.

    python benchmarks/predict.py RUN [ROWS ...]

RUN is a run of `capaft train` (the demo). Each number of rows is measured in a process of its own. The last line takes
the model as it is.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SENTENCES = (
    "Parse an XML document and return its root element.",
    "Send a message over SMTP, with its attachments.",
    "Run the event loop until a future is done.",
    "Return the default value of an option, or None if it has none, whatever the parser thinks of it.",
)


def write(path: Path, rows: int) -> None:
    with path.open("w") as file:
        file.write("id,text\n")
        file.writelines(f'{row},"{row} {SENTENCES[row % 4]}"\n' for row in range(rows))


def anonymous() -> int:
    """Bytes of memory of this process that no file stands behind."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def measure(run: str, rows: int, fake: bool) -> dict[str, Any]:
    import torch
    from rich.console import Console

    from capaft.config.open_options import PredictOptions
    from capaft.inference.predicting import predict_run
    from capaft.training.record.saved_run import open_run

    saved = open_run(run)
    if fake:
        outputs = len(saved.task.labels)
        saved.model.forward = lambda **inputs: SimpleNamespace(logits=torch.ones(len(inputs["input_ids"]), outputs))
    peak = [0]

    def watch() -> None:
        while True:
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.02)

    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory, "rows.csv"), Path(directory, "records.jsonl")
        write(source, rows)
        threading.Thread(target=watch, daemon=True).start()
        before, started = anonymous(), time.perf_counter()
        options = PredictOptions(data=str(source), output=target)
        result = predict_run(saved, options, say=lambda line: None, console=Console(quiet=True))
        seconds = time.perf_counter() - started
        with target.open() as file:
            assert sum(1 for _ in file) == result.rows == rows
    return {
        "rows": rows,
        "forward": "none" if fake else "real",
        "seconds": round(seconds, 1),
        "rows_per_second": round(rows / seconds),
        "anonymous_before_mib": before >> 20,
        "peak_anonymous_mib": peak[0] >> 20,
        "peak_resident_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[3] in ("none", "real"):
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "none")))
        return
    run, *numbers = sys.argv[1:]
    for rows, forward in [*((int(number), "none") for number in numbers or (10_000, 1_000_000)), (2048, "real")]:
        command = [sys.executable, __file__, run, str(rows), forward]
        subprocess.run(command, check=True, env=os.environ, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
