"""The launcher's configuration, and a sharded base model that trains as a whole one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_job import bert
from transformers import BertModel

from capaft.support.errors import UsageError
from capaft.training.parallel.sharding import sharding_requested

VARIABLES = (
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
    "FSDP_VERSION",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE",
    "ACCELERATE_DEEPSPEED_CONFIG_FILE",
)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, False),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, True),
        ({"ACCELERATE_USE_FSDP": "false", "FSDP_VERSION": "2"}, False),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, False),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, False),
    ],
)
def test_what_is_asked_for(environment: dict[str, str], asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert sharding_requested() is asked
    # Accelerate would shard the trainable parameters too, and must not see it.
    assert not {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"} & os.environ.keys()


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version: 2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ZeRO-3"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_what_is_refused(environment: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=says):
        sharding_requested()


def test_a_configuration_file_of_deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deepspeed.json"
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UsageError, match="ZeRO-3"):
        sharding_requested()
    file.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert sharding_requested() is False


# Each process checks what it holds: its shards of the frozen weights, and whole trainable parameters.
LOOK = """
import os, sys
from capaft.training import loop, run
def looking(*arguments, **more):
    from torch.distributed.tensor import DTensor
    for name, p in arguments[0].model.named_parameters():
        assert isinstance(p, DTensor) is not p.requires_grad, name
    return loop.train(*arguments, **more)
run.train = looking
from capaft.commands.app import app
app(sys.argv[1:])
"""


def test_a_base_in_shares_trains_as_a_whole_one(reviews: Path, tmp_path: Path) -> None:
    model = bert(tmp_path / "model", BertModel)
    flags = ["train", "--model", model, "--data", reviews, "--epochs", "1", "--batch-size", "8", "--k", "16"]
    flags += ["--rank", "2", "--max-length", "16", "--head-init", "seeded"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = subprocess.Popen(
        [sys.executable, "-m", "capaft", *map(str, flags), "--output", str(tmp_path / "whole")],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    in_shares = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOOK, *map(str, flags), "--output", str(tmp_path / "shares")],
            env=environment | in_shares | {"MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    for process in (*processes, whole):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err.decode()
    losses = [
        [r["loss"] for r in map(json.loads, (tmp_path / run / "metrics.jsonl").read_text().splitlines()) if "loss" in r]
        for run in ("whole", "shares")
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    # The file names the base by weights that no process could still read when it was written.
    from capaft.adapter.file.adapter_file import read

    headers = [read(tmp_path / run / "adapter.safetensors").header for run in ("whole", "shares")]
    assert headers[0].base == headers[1].base
