"""`capaft serve` under load, against loading PEFT adapters one by one: all-MiniLM-L6-v2, one text a request.

Everything happens on this machine's loopback, with a bounded number of requests. The PEFT side answers the same
requests in this process, without HTTP: it loads each request's adapter from its directory, answers, and drops it; and
once more with all adapters loaded, switching among them.

    python benchmarks/serve.py --json benchmarks/results/serve-cpu.json
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import capaft
from capaft.adapter.file.header import TaskRecord
from capaft.config.parts.model import ModelSettings
from capaft.model.demo import demo_model
from capaft.model.origin import Origin
from capaft.tasks.text_classification import TextClassification

TEXT = "The plot is thin, but the two leads carry it, and the music is better than the film deserves."
OPTIONS = {"problem": "single", "label_separator": "", "positive_label": "", "normalise_labels": False}


def write(directory: Path, count: int) -> None:
    """Adapter files, and the same adapters as PEFT directories; the base with its head for PEFT."""
    made = TextClassification(("bad", "good")).load_model(ModelSettings(model=str(demo_model())), seed=0)
    for index in range(count):
        adapter = capaft.attach(made.model, "nola", k=64, rank=8, seed=0, head=made.head)
        for parameter in adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        task = TaskRecord("text-classification", ("bad", "good"), 128, "accuracy", OPTIONS)
        (directory / "bank").mkdir(exist_ok=True)
        file = directory / "bank" / f"a{index}.safetensors"
        capaft.save(made.model, file, base=Origin(str(demo_model())), task=task, dtype="int8")
        capaft.export_peft(made.model, directory / f"peft-a{index}")
        capaft.detach(made.model)
    made.model.save_pretrained(directory / "base")
    AutoTokenizer.from_pretrained(demo_model()).save_pretrained(directory / "base")


def served(directory: Path, requests: list[str], clients: int) -> dict[str, Any]:
    """Requests a second and milliseconds of each, by so many clients at a time."""
    command = [sys.executable, "-m", "capaft", "serve", directory / "bank", "--model", demo_model(), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if line.startswith("serving"))
        port = int(line.rsplit(":", 1)[1])

        def ask(name: str) -> float:
            started = time.perf_counter()
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            body = json.dumps({"adapter": name, "inputs": [f"{name}: {TEXT}"]})
            connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200, response.read()
            response.read()
            connection.close()
            return 1000 * (time.perf_counter() - started)

        for name in requests[:clients]:
            ask(name)
        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            taken = list(pool.map(ask, requests))
        seconds = time.perf_counter() - started
        process.terminate()
        code = process.wait(60)
    return {"clients": clients, "exit_code": code} | figures(taken, seconds)


def figures(taken: list[float], seconds: float) -> dict[str, Any]:
    """Requests a second, and the median and the 95th of a hundred of their milliseconds."""
    return {
        "requests_a_second": round(len(taken) / seconds, 1),
        "median_ms": round(statistics.median(taken), 1),
        "p95_ms": round(sorted(taken)[int(0.95 * len(taken))], 1),
    }


def one_by_one(directory: Path, requests: list[str]) -> dict[str, Any]:
    """The same requests by PEFT in this process: each adapter loaded for its request, or all loaded before."""
    tokenizer = AutoTokenizer.from_pretrained(directory / "base")
    base = AutoModelForSequenceClassification.from_pretrained(directory / "base", num_labels=2).eval()
    peft = PeftModel.from_pretrained(base, directory / "peft-a0", adapter_name="a0").eval()

    def forward(name: str) -> None:
        inputs = tokenizer(f"{name}: {TEXT}", return_tensors="pt")
        with torch.inference_mode():
            peft(**inputs).logits.softmax(-1).tolist()

    def loaded(name: str) -> None:
        peft.load_adapter(str(directory / f"peft-{name}"), adapter_name="now")
        peft.set_adapter("now")
        forward(name)
        peft.set_adapter("a0")
        peft.delete_adapter("now")

    results = {"loaded_each_time": timed(loaded, requests)}
    for name in sorted(set(requests) - {"a0"}):
        peft.load_adapter(str(directory / f"peft-{name}"), adapter_name=name)

    def switched(name: str) -> None:
        peft.set_adapter(name)
        forward(name)

    return results | {"switched": timed(switched, requests)}


def timed(call: Callable[[str], None], requests: list[str]) -> dict[str, Any]:
    taken = []
    started = time.perf_counter()
    for name in requests:
        before = time.perf_counter()
        call(name)
        taken.append(1000 * (time.perf_counter() - before))
    return figures(taken, time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    random.seed(0)
    requests = [f"a{random.randrange(arguments.adapters)}" for _ in range(arguments.requests)]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write(directory, arguments.adapters)
        results: dict[str, Any] = {"adapters": arguments.adapters, "requests": arguments.requests}
        results["serve"] = [served(directory, requests, clients) for clients in arguments.clients]
        print(results["serve"], flush=True)
        results["peft"] = one_by_one(directory, requests)
        print(results["peft"], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
