"""A server on this machine's loopback, against each adapter opened alone; and what it does not take."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_bank
import torch
import uvicorn
from command_line import invoke

import capaft
from capaft.adapter.file.header import TaskRecord
from capaft.config.serve_options import ServeOptions
from capaft.inference.bank.directory import BankDirectory
from capaft.inference.serving import app as app_module
from capaft.inference.serving import service as service_module
from capaft.inference.serving.app import App
from capaft.inference.serving.batching import Batcher, Full, Request
from capaft.inference.serving.metrics import Metrics
from capaft.inference.serving.service import Service

TEXTS = ["A superb film.", "Rain is likely, and then more rain.", "Goal!", "Buy now"]
TOKEN = "a-secret-of-many-letters"


@contextlib.contextmanager
def served(options: ServeOptions, directory: Path, token: str | None = None) -> Iterator[SimpleNamespace]:
    """A server in a thread."""
    lines: list[str] = []
    metrics = Metrics()
    service = Service(options, BankDirectory(directory), lines.append, metrics.answered)
    app = App(service, metrics, token, options.max_request_bytes, 1024).build(only_local=True)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield SimpleNamespace(port=listener.getsockname()[1], service=service, lines=lines)
    finally:
        server.should_exit = True
        thread.join()
        service.close()
        listener.close()


def ask(
    server: Any, path: str, body: Any = None, method: str | None = None, **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """Status, content and headers of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    kind = {} if data is None else {"Content-Type": "application/json"}
    connection.request(
        method or ("GET" if body is None else "POST"),
        path,
        data,
        kind | {n.replace("_", "-"): v for n, v in headers.items()},
    )
    response = connection.getresponse()
    content = response.read()
    connection.close()
    is_json = "json" in (response.headers["Content-Type"] or "")
    return response.status, json.loads(content) if is_json else content.decode(), dict(response.headers.items())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bank.checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def bank(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bank.write_bank(tmp_path_factory.mktemp("bank"), base)


@pytest.fixture(scope="module")
def server(base: Path, bank: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    service_module.LOOK = 0.05
    copy = Path(shutil.copytree(bank, tmp_path_factory.mktemp("served") / "bank"))
    with served(ServeOptions(model=str(base), window_ms=50, max_request_bytes=5000), copy) as running:
        running.directory = copy
        yield running


def test_requests_of_different_adapters_are_answered_together(server: Any, base: Path, bank: Path) -> None:
    def one(pair: tuple[str, str]) -> tuple[int, Any, Any]:
        return ask(server, "/predict", {"adapter": pair[1], "inputs": [pair[0]], "top": 2})

    pairs = [(text, name) for text, name in zip(TEXTS, tiny_bank.LABELS, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(one, pairs))
    for (text, name), (status, answer, _) in zip(pairs, answers, strict=True):
        (expected,) = capaft.open(bank / f"{name}.safetensors", model=base).predict([text], top=2)
        assert (status, answer["adapter"]) == (200, name)
        (record,) = answer["predictions"]
        assert record["label"] == expected["label"]
        assert record["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
        assert set(record) == set(expected)
    measures = ask(server, "/metrics")[1]
    assert "capaft_batch_adapters_sum 4.0" in measures
    assert 'capaft_requests_total{path="/predict",status="200"} 4.0' in measures


def test_one_request_with_many_inputs_and_with_pairs(server: Any, base: Path, bank: Path) -> None:
    texts = [f"{at} {text}" for at in range(12) for text in TEXTS]
    status, answer, _ = ask(server, "/predict", {"adapter": "star", "inputs": texts})
    expected = capaft.open(bank / "star.safetensors", model=base).predict(texts)
    assert status == 200
    assert [record["label"] for record in answer["predictions"]] == [record["label"] for record in expected]
    pair = [["A film.", "A play."]]
    status, answer, _ = ask(server, "/predict", {"adapter": "mood", "inputs": pair})
    opened = capaft.open(bank / "mood.safetensors", model=base)
    with torch.no_grad():
        logits = opened.model(**opened.processor("A film.", "A play.", return_tensors="pt")).logits
    assert status == 200
    assert answer["predictions"][0]["probability"] == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)


def test_the_other_routes(server: Any) -> None:
    status, adapters, _ = ask(server, "/adapters")
    assert status == 200
    assert {entry["name"]: tuple(entry["labels"]) for entry in adapters} == tiny_bank.LABELS
    assert ask(server, "/health")[:2] == (200, {"status": "ok", "adapters": 4})
    status, document, _ = ask(server, "/openapi.json")
    assert set(document["paths"]) == {"/predict", "/adapters", "/health", "/metrics"}
    status, page, headers = ask(server, "/")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "POST /predict" in page
    assert "http://" not in page.replace("openapi.json", "")
    assert "src=" not in page


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        (b"{", 422, "is not JSON"),
        (b"[" * 4000, 422, "is not JSON"),
        (b"\xff\xfe", 422, "is not JSON"),
        ([], 422, "no object"),
        ({}, 422, "adapter must be"),
        ({"adapter": 3, "inputs": ["a"]}, 422, "adapter must be"),
        ({"adapter": "mood"}, 422, "inputs must be a list"),
        ({"adapter": "mood", "inputs": "a"}, 422, "inputs must be a list"),
        ({"adapter": "mood", "inputs": []}, 422, "inputs must be a list"),
        ({"adapter": "mood", "inputs": ["a", 3]}, 422, "inputs[1] is no text"),
        ({"adapter": "mood", "inputs": [["a"]]}, 422, "inputs[0] is no text"),
        ({"adapter": "mood", "inputs": ["a", ["b", "c"]]}, 422, "all texts, or all pairs"),
        ({"adapter": "mood", "inputs": ["\ud800"]}, 422, "inputs[0] is no text"),
        ({"adapter": "mood", "inputs": ["a"], "top": 0}, 422, "top must be"),
        ({"adapter": "mood", "inputs": ["a"], "top": True}, 422, "top must be"),
        ({"adapter": "mood", "inputs": ["a"], "tpo": 1}, 422, "no field tpo"),
        ({"adapter": "nobody", "inputs": ["a"]}, 404, "no adapter nobody"),
        ({"adapter": "../mood", "inputs": ["a"]}, 404, "no adapter ../mood"),
        ({"adapter": "mood", "inputs": ["a" * 6000]}, 413, "5,000 bytes"),
        ({"adapter": "mood", "inputs": [""] * 1100}, 413, "1,024 inputs"),
    ],
)
def test_bad_requests_get_one_line(server: Any, body: Any, status: int, line: str) -> None:
    got, answer, _ = ask(server, "/predict", body)
    assert got == status
    assert line in answer["error"]
    assert "\n" not in answer["error"]


def test_other_ways_to_ask_are_refused(server: Any) -> None:
    body = json.dumps({"adapter": "mood", "inputs": ["a"]}).encode()
    assert ask(server, "/predict", body, Content_Type="text/plain")[0] == 415
    assert ask(server, "/predict", body, Host="evil.example")[0] == 400
    assert ask(server, "/predict")[0] == 405
    assert ask(server, "/nothing")[0] == 404
    empty = ask(server, "/predict", {"adapter": "mood", "inputs": ["a", ""]})
    assert empty[0] == 200
    assert "error" in empty[1]["predictions"][1]
    assert "error" not in empty[1]["predictions"][0]


def test_a_full_queue_is_told(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def submit(request: Request) -> None:
        raise Full

    monkeypatch.setattr(server.service.batcher, "submit", submit)
    status, answer, headers = ask(server, "/predict", {"adapter": "mood", "inputs": ["a"]})
    assert (status, headers["retry-after"]) == (503, "1")
    assert answer == {"error": "too many inputs are waiting; try again"}


def test_a_request_that_does_not_arrive_is_given_up(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "PATIENCE", 0.05)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        lines = (b"POST /predict HTTP/1.1", b"Host: localhost", b"Content-Type: application/json", b"Content-Length: 9")
        connection.sendall(b"\r\n".join((*lines, b"", b"{")))
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_language_models_are_left_to_vllm(server: Any, base: Path, tmp_path: Path) -> None:
    record = TaskRecord("causal-lm", (), 32, "loss", {})
    file = tiny_bank.write_adapter(tmp_path / "chat.safetensors", base, ("a", "b"), 1, record=record)
    done = invoke("serve", tmp_path, "--model", base, "--port", "0")
    assert done.code == 2
    assert "causal-lm writes texts, which vLLM serves; export it with capaft export RUN --to peft" in done.err
    shutil.copy(file, server.directory)
    wait_for(lambda: any("chat is not served" in line and "vLLM" in line for line in server.lines))
    assert ask(server, "/predict", {"adapter": "chat", "inputs": ["a"]})[0] == 404


def wait_for(condition: Any) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_files_come_change_and_go(server: Any, base: Path) -> None:
    file = server.directory / "new.safetensors"

    def labels() -> Any:
        return {entry["name"]: entry["labels"] for entry in ask(server, "/adapters")[1]}.get("new")

    tiny_bank.write_adapter(file, base, ("x", "y"), 9)
    wait_for(lambda: labels() == ["x", "y"])
    tiny_bank.write_adapter(file, base, ("u", "v", "w"), 9)
    wait_for(lambda: labels() == ["u", "v", "w"])
    assert ask(server, "/predict", {"adapter": "new", "inputs": ["a"]})[0] == 200
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    wait_for(lambda: labels() is None)
    assert any("new is not served" in line and "truncated" in line for line in server.lines)
    file.write_bytes(whole)
    wait_for(lambda: labels() == ["u", "v", "w"])
    file.unlink()
    wait_for(lambda: labels() is None)
    assert ask(server, "/predict", {"adapter": "new", "inputs": ["a"]})[0] == 404


def test_the_token(base: Path, bank: Path, tmp_path: Path) -> None:
    with served(ServeOptions(model=str(base)), bank, TOKEN) as server:
        body = {"adapter": "mood", "inputs": ["a"]}
        for header in (
            {},
            {"Authorization": "Bearer x"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": TOKEN},
        ):
            for path in ("/predict", "/adapters", "/metrics", "/openapi.json", "/"):
                status, _, headers = ask(server, path, body if path == "/predict" else None, **header)
                assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert ask(server, "/health")[0] == 200
        assert ask(server, "/predict", body, Authorization=f"Bearer {TOKEN}")[0] == 200


def test_what_waits_is_bounded() -> None:
    entered, released = threading.Event(), threading.Event()

    def answer(requests: Any) -> Any:
        entered.set()
        released.wait()
        return [[{} for _ in request.values] for request in requests]

    batcher = Batcher(answer, 0.0, 2, 3)
    first, second = Request("a", ("x",)), Request("b", ("x", "y", "z"))
    batcher.submit(first)
    entered.wait()
    batcher.submit(second)
    with pytest.raises(Full):
        batcher.submit(Request("a", ("x",)))
    released.set()
    batcher.close()
    assert (first.records.result(), second.records.result()) == ([{}], [{}] * 3)
    with pytest.raises(Full):
        batcher.submit(first)


def test_a_batch_that_fails_is_answered_one_by_one() -> None:
    def answer(requests: Any) -> Any:
        if len(requests) > 1 or requests[0].adapter == "bad":
            raise ValueError("no")
        return [[{"ok": 1}]]

    batcher = Batcher(answer, 0.2, 8, 8)
    good, bad = Request("good", ("x",)), Request("bad", ("x",))
    batcher.submit(bad)
    batcher.submit(good)
    batcher.close()
    assert good.records.result() == [{"ok": 1}]
    assert "no" in str(bad.records.exception())


def test_command_lines_that_are_refused(bank: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_text("abc")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        lines = {
            ("--host", "0.0.0.0"): "others can reach it; give --token-file",
            ("--token-file", tmp_path / "none"): "No such file",
            ("--token-file", short): "one word of at least 16 characters",
            ("--port", taken.getsockname()[1]): "choose another --port",
            ("--port", "70000"): "0 to 65535",
        }
        for flags, line in lines.items():
            done = invoke("serve", bank, *flags)
            assert done.code == 2
            assert line in done.err
            assert len(done.err.splitlines()) == 1
    assert "holds no adapter file" in invoke("serve", tmp_path, "--port", "0").err


def test_a_missing_extra_is_named(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from capaft.commands import serve

    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    done = invoke("serve", bank)
    assert (done.code, done.err) == (2, "error: capaft serve needs starlette; pip install 'capaft[serve]'\n")


def test_it_ends_at_sigterm_with_all_answered(base: Path, bank: Path) -> None:
    command = [sys.executable, "-m", "capaft", "serve", bank, "--model", base, "--port", "0", "--window-ms", "800"]
    environ = os.environ | {"PYTHONPATH": str(Path(capaft.__file__).parents[1])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "serving 4 adapters" in line:
                break
        server = SimpleNamespace(port=int(line.rsplit(":", 1)[1]))
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, server, "/predict", {"adapter": "mood", "inputs": ["a"]})
            time.sleep(0.4)
            process.send_signal(signal.SIGTERM)
            assert answer.result()[0] == 200
        assert process.wait(20) == 0
