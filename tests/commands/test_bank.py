"""`capaft bank`: files side by side in a directory, added whole, listed by their headers, verified one by one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_bank
import tiny_files
from command_line import invoke
from tiny import bert

import capaft
from capaft.adapter.file.alone import check_streams
from capaft.methods.registry import HOSTS
from capaft.methods.stack import stacks_of


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "lora+nola-1"
    return tiny_bank.write_adapter(
        directory / "adapter.safetensors", tiny_bank.checkpoint(directory / "base"), ("no", "yes"), 0
    )


def test_add_list_verify_remove(file: Path, tmp_path: Path) -> None:
    bank, size = tmp_path / "bank", file.stat().st_size
    done = invoke("bank", "add", bank, file)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"lora+nola-1: {size:,} bytes in {bank}/lora+nola-1.safetensors\n"
    done = invoke("bank", "add", bank, file.parent, "--name", "x.2", "--json")
    assert json.loads(done.out) == {"name": "x.2", "path": f"{bank}/x.2.safetensors", "bytes": size}
    assert (bank / "x.2.safetensors").read_bytes() == file.read_bytes()
    done = invoke("bank", "list", bank)
    head, *lines, total = done.out.splitlines()
    assert head.split() == ["name", "bytes", "method", "base", "task"]
    assert [line.split()[:3] for line in lines] == [[n, f"{size:,}", "lora+nola"] for n in ("lora+nola-1", "x.2")]
    assert total == f"2 adapters, {2 * size:,} bytes"
    (first, _) = json.loads(invoke("bank", "list", bank, "--json").out)
    assert first["task"] == "text-classification"
    assert (first["labels"], first["bytes"]) == (2, size)
    done = invoke("bank", "verify", bank)
    assert (done.code, done.out) == (0, "2 adapters intact\n")
    done = invoke("bank", "remove", bank, "x.2", "lora+nola-1")
    assert (done.code, done.out) == (0, "removed x.2, lora+nola-1\n")
    assert list(bank.iterdir()) == []
    assert invoke("bank", "list", bank).out == "0 adapters, 0 bytes\n"


def test_what_is_refused(file: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    assert invoke("bank", "add", bank, file).code == 0
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-1])
    lines: dict[tuple[Any, ...], str] = {
        ("add", bank, file): "already has an adapter lora+nola-1; pass --replace, or another --name",
        ("add", bank, tmp_path / "nothing"): "there is no run or adapter file",
        ("add", bank, cut): "truncated",
        ("add", cut, file): "is a file; name a directory",
        ("remove", bank, "lora+nola-2"): "has no adapter lora+nola-2; did you mean lora+nola-1?",
        ("list", tmp_path / "none"): "No such file or directory; name a bank's directory, which capaft bank add makes",
        ("verify", tmp_path / "none"): "No such file or directory",
        ("verify", cut): "Not a directory",
    }
    lines |= {
        ("add", bank, file, "--name", name): "an adapter cannot be named"
        for name in ("../x", ".x", "a b", "", "é", "a/b", "x" * 129, "-x", "a\nb")
    }
    for arguments, line in lines.items():
        done = invoke("bank", *arguments)
        assert done.code == 2, arguments
        assert line in done.err
        assert len(done.err.splitlines()) == 1
    assert sorted(bank.iterdir()) == [bank / "lora+nola-1.safetensors"]
    assert invoke("bank", "add", bank, file, "--replace").code == 0


def test_a_line_for_every_file_that_cannot_be_used(file: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    assert invoke("bank", "add", bank, file).code == 0
    content = bytearray(file.read_bytes())
    (bank / "cut.safetensors").write_bytes(content[:100])
    content[-1] ^= 1
    (bank / "flipped.safetensors").write_bytes(content)
    (bank / "notes.txt").write_text("mine")
    (bank / "spaced name.safetensors").write_bytes(b"")
    (bank / "inner.safetensors").mkdir()
    os.mkfifo(bank / "pipe.safetensors")
    (bank / ".hidden").write_text("a file that is being written")
    streams = tiny_files.forged(file.read_bytes(), tiny_files.put("digest", "streams", value="0" * 32))
    (bank / "streams.safetensors").write_bytes(streams)
    done = invoke("bank", "verify", bank)
    assert done.code == 1
    *lines, last = done.out.splitlines()
    assert last == "1 adapter intact"
    assert done.err == f"error: 7 files of {bank} cannot be used\n"
    for name, why in {
        "cut": "truncated",
        "flipped": "do not match their digest",
        "inner": "is a directory",
        "notes": "is not an adapter of this bank",
        "pipe": "Not a file",
        "spaced": "is not an adapter of this bank",
        "streams": "random streams come out differently",
    }.items():
        (line,) = (line for line in lines if f"{bank}/{name}" in line)
        assert why in line
    assert json.loads(invoke("bank", "verify", bank, "--json").out)["intact"] == 1
    listed = json.loads(invoke("bank", "list", bank, "--json").out)
    assert {entry["name"]: "error" in entry for entry in listed}["cut"]


@pytest.mark.parametrize("host", HOSTS)
def test_every_method_is_verified_without_its_model(host: str, tmp_path: Path) -> None:
    for index, stack in enumerate(stacks_of(HOSTS[host])):
        model = tiny_files.adapted(stack, bert(), head_mode=("full", "nola", "frozen", "full")[index])
        capaft.save(model, tmp_path / "a", dtype="int8")
        check_streams(capaft.read(tmp_path / "a"), {})


def test_thousands_are_listed_fast(file: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    bank.mkdir()
    shutil.copy(file, bank / "n0.safetensors")
    for index in range(1, 2000):
        os.link(bank / "n0.safetensors", bank / f"n{index}.safetensors")
    listed = json.loads(invoke("bank", "list", bank, "--json").out)
    assert len(listed) == 2000
