"""docs/extending.md, word for word: its class in a separate package, installed beside capaft, in fresh processes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from command_line import QUICK, invoke, invoke_apart, write_reviews
from tiny_job import bert
from transformers import BertForSequenceClassification

from capaft.adapter.attach import attach
from capaft.adapter.file.adapter_file import read
from capaft.adapter.file.save_load import save
from capaft.factors.factor import Factor
from capaft.methods import registry, stack
from capaft.methods.lora import Lora
from capaft.methods.registry import BUILT_IN, HOSTS
from capaft.model.site import Site
from capaft.support.errors import AdapterFileError, UsageError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
LOHA, USE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(ENTRY,) = re.findall(r"```toml\n.*?\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    shlex.split(line)[1:] for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]
NAME = "my_package.loha"
STACKS = tuple(NAME + tail for tail in ("", "+nola", "+capaboost", "+nola+capaboost"))


def install(site: Path, name: str, source: str, entry: str) -> Path:
    """Install a distribution as an installer would: a module, and its metadata beside it."""
    site.mkdir(exist_ok=True)
    (site / f"{name}.py").write_text(source, encoding="utf-8")
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    # In pyproject.toml the value is quoted, in entry_points.txt it is not.
    (metadata / "entry_points.txt").write_text(f"[capaft.methods]\n{entry.replace(chr(34), '').strip()}\n")
    files = [f"{name}.py", *(f"{metadata.name}/{file}" for file in ("METADATA", "entry_points.txt", "RECORD"))]
    (metadata / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    return site


def python(code: str, *arguments: str, site: Path, cwd: Path) -> str:
    """Run code in a fresh Python with capaft, the test support and the packages at `site`; return its output."""
    path = os.pathsep.join(map(str, (site, ROOT, Path(__file__).parents[1] / "support")))
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def capaft(*commands: Sequence[Any], site: Path, cwd: Path) -> list[SimpleNamespace]:
    """Run commands one after the other in one fresh process; return exit code, stdout and stderr of each."""
    return invoke_apart(commands, cwd, {"PYTHONPATH": str(site)})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's package, installed."""
    return install(tmp_path_factory.mktemp("loha") / "site", "my_package", LOHA, ENTRY)


LAWS = """
import sys

import tiny
import torch

import capaft
from capaft.methods import HOSTS

assert HOSTS["my_package.loha"].__module__ == "my_package"
options = {"rank": 2, "targets": "query,value,intermediate.dense", "seed": 3}
for method in sys.argv[1:]:
    model = tiny.bert()
    before = tiny.logits(model)
    k = (24, 16) if "nola" in method else None
    adapter = capaft.attach(model, method, method_options={"gain": 1.5}, k=k, **options)
    assert torch.equal(tiny.logits(model), before), "the model changes at the start"

    base = {name: p.detach().clone() for name, p in model.named_parameters() if "capaft_" not in name}
    initial = {role: p.detach().clone() for role, p in adapter.role_parameters.items()}
    assert set(initial) == {"down", "up", "down2", "up2"}
    tiny.train(model, steps=2)
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)
    assert not any(torch.equal(p, initial[role]) for role, p in adapter.role_parameters.items())
    for p in tiny.scramble(adapter).role_parameters.values():
        p.data *= 3  # A product of four small entries is very small.
    after = tiny.logits(model)
    assert not torch.allclose(after, before, atol=1e-3)

    capaft.save(model, "loha.safetensors")
    other = tiny.bert()
    assert capaft.load(other, "loha.safetensors").plan.stack == adapter.plan.stack
    assert torch.equal(tiny.logits(other), after), "the loaded adapter differs from the saved one"

    # The matrix itself, from its definition.
    site, (down, up, down2, up2) = next(adapter.factors_of_sites())
    assert len(down) == (4 if "capaboost" in method else 2)
    expected = site.weight(model).detach() + 1.5 * (up @ down) * (up2 @ down2)
    capaft.merge(model)
    torch.testing.assert_close(site.weight(model).detach(), expected)
    torch.testing.assert_close(tiny.logits(model), after, atol=1e-5, rtol=1e-4)
"""


def test_the_class_keeps_the_laws(site: Path, tmp_path: Path) -> None:
    python(LAWS, *STACKS, site=site, cwd=tmp_path)


def test_the_use_from_python(site: Path, tmp_path: Path) -> None:
    python(USE, site=site, cwd=tmp_path)
    # This process does not have the package.
    done = invoke("info", tmp_path / "loha.safetensors")
    assert done.code == 2
    assert "there is no method my_package.loha; install the package my_package, which adds it" in done.err


@pytest.mark.slow
def test_in_a_notebook(tmp_path: Path) -> None:
    (line,) = re.findall(r"`(capaft\.methods\.register\(Loha\))`", PAGE)
    code = f"{LOHA}\nimport capaft, capaft.methods, tiny\n{line}\ncapaft.attach(tiny.bert(), '{NAME}')"
    python(code, site=tmp_path, cwd=tmp_path)


def test_the_commands(site: Path, tmp_path: Path) -> None:
    write_reviews(tmp_path / "reviews.csv")
    assert [command[0] for command in COMMANDS] == ["methods", "train", "eval", "inspect-rank", "merge"]
    short = ("--epochs", "1", "--max-train-examples", "32")
    commands = [[*command, *short] if command[0] == "train" else command for command in COMMANDS]
    answers = capaft(*commands, site=site, cwd=tmp_path)
    for command, done in zip(commands, answers, strict=True):
        assert done.code == 0, f"{command}\n{done.err}"
        assert "warning" not in done.err
    assert "options: --rank 4, --method-option gain=2.0" in answers[0].out
    assert f"stacks: {', '.join(STACKS)}" in " ".join(answers[0].out.split())


def test_a_run_from_the_command_line_repeats_itself(site: Path, reviews: Path, tmp_path: Path) -> None:
    model = bert(tmp_path / "model", BertForSequenceClassification)
    method = ("--model", model, "--method", f"{NAME}+nola+capaboost", "--method-option", "gain=0.5")
    trained, info, scored, again = capaft(
        ("train", "--json", "--data", reviews, *method, "--output", "first", *QUICK),
        ("info", "first", "--json"),
        ("eval", "first", "--json"),
        ("train", "--json", "--config", "first/run.yaml", "--output", "again"),
        site=site,
        cwd=tmp_path,
    )
    assert trained.code == again.code == 0, trained.err + again.err
    results = json.loads(trained.out)
    # Four factors of 32 coefficients for the queries and the values of two blocks.
    assert results["adapter_parameters"] == 4 * 4 * 32
    recorded = json.loads(info.out)["header"]["method"]
    assert recorded | {"method": f"{NAME}+nola+capaboost", "version": 1, "rank": 4, "gain": 0.5} == recorded
    assert json.loads(scored.out)["value"] == results["value"]
    files = [(tmp_path / name / "adapter.safetensors").read_bytes() for name in ("first", "again")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_what_a_budget_chose_is_kept(reviews: Path, tmp_path: Path) -> None:
    """Even if the option that it chooses has no flag of its own."""
    wide = (
        LOHA.replace("my_package", "wide_package")
        .replace("rank:", "width:")
        .replace("self.rank", "self.width")
        .replace('"rank"', '"width"')
    )
    site = install(tmp_path / "site", "wide_package", wide, "loha = wide_package:Loha")
    flags = (
        "--data",
        reviews,
        "--method",
        "wide_package.loha",
        "--budget",
        "40k",
        "--epochs",
        "1",
        "--max-train-examples",
        "16",
    )
    first, again = capaft(
        ("train", "--json", *flags, "--output", "first"),
        ("train", "--json", "--config", "first/run.yaml", "--output", "again"),
        site=site,
        cwd=tmp_path,
    )
    assert first.code == again.code == 0, first.err + again.err
    counts = [json.loads(run.out)["adapter_parameters"] for run in (first, again)]
    # The budget chose width 2 over the default 4: two pairs of factors at each of twelve sites, 384 wide.
    assert counts == [12 * 2 * 2 * 384 * 2] * 2


def test_wrong_options(site: Path, reviews: Path, tmp_path: Path) -> None:
    wrong = {
        "gain=zero": "--method-option gain must be a finite number",
        "gian=1": "has no option gian; did you mean gain?",
        "gain": "--method-option gain must be",
        "gain=0": "--gain must be a finite number other than 0",
        "k=3": "has no option k",
    }
    flags = ("train", "--data", reviews, "--method", NAME, "--method-option")
    answers = capaft(*((*flags, option) for option in wrong), site=site, cwd=tmp_path)
    for message, done in zip(wrong.values(), answers, strict=True):
        assert (done.code, done.out) == (2, "")
        assert message in done.err
        assert done.err.count("\n") == 1


BARE = "from capaft.methods import Host\nclass Loha(Host):\n    {body}\n"
OWN = "name = 'PACKAGE.loha'"


def _named(name: str) -> str:
    return LOHA.replace(f'"{NAME}"', f'"{name}"')


# A module, in which PACKAGE stands for its package, and part of the reason why its class cannot be used.
BROKEN: dict[str, tuple[str, str]] = {
    "cannot be imported": ("import no_such_module", "No module named 'no_such_module'"),
    "fails when it is imported": ("raise OSError('disk on fire')", "disk on fire"),
    "has no such class": ("", "has no attribute 'Loha'"),
    "no host": ("class Loha: ...", "it is not a capaft.methods.Host"),
    "no class": ("Loha = 3", "it is not a capaft.methods.Host"),
    "no name": (BARE.format(body="..."), "name"),
    "no dataclass": (BARE.format(body=OWN), "dataclass"),
    "abstract": (
        "from dataclasses import dataclass\n"
        + BARE.format(body=f"{OWN}; summary = equation = paper = ''").replace("class", "@dataclass\nclass"),
        "abstract",
    ),
    "an option without a default": (_named("PACKAGE.loha").replace("rank: int = 4", "rank: int"), "missing 1 required"),
    "no summary": (re.sub("    summary: .*\n", "", _named("PACKAGE.loha")), "summary"),
    "an option that stacks have": (_named("PACKAGE.loha").replace("gain", "density"), "density"),
    "no package": (_named("loha"), "'loha' is not PACKAGE.host"),
    "a method of capaft": (_named("lora"), "'lora' is not PACKAGE.host"),
    "a part of a stack": (_named("nola"), "'nola' is not PACKAGE.host"),
    "another package": (_named("another.loha"), "'another.loha' is not PACKAGE.host"),
    "two packages": (_named("PACKAGE.sub.loha"), "is not PACKAGE.host"),
    "capitals": (_named("PACKAGE.LoHa"), "LoHa' is not PACKAGE.host"),
    "no identifier": (_named("PACKAGE.lo+ha"), "lo+ha' is not PACKAGE.host"),
    "no name of its own": (_named("PACKAGE."), "is not PACKAGE.host"),
    "other digits": (_named("PACKAGE.loha\u0663"), "is not PACKAGE.host"),
    "a version that is text": (_named("PACKAGE.loha").replace("[int] = 1", "[int] = '1'"), "version '1' is not"),
    "version 0": (_named("PACKAGE.loha").replace("[int] = 1", "[int] = 0"), "version 0 is not"),
    "version true": (_named("PACKAGE.loha").replace("[int] = 1", "[int] = True"), "version True is not"),
}


@pytest.fixture(scope="module")
def left_out(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The warnings with a package for each of these, and two packages with the same method."""
    site = tmp_path_factory.mktemp("broken") / "site"
    for index, (source, _) in enumerate(BROKEN.values()):
        own = source.replace("PACKAGE", f"broken_{index}")
        install(site, f"broken_{index}", own, f"entry_{index} = broken_{index}:Loha")
    install(site, "my_package", LOHA, ENTRY)
    install(site, "other_package", "", "other = my_package:Loha")
    (listed,) = capaft(("methods", "--json"), site=site, cwd=site)
    assert listed.code == 0, listed.err
    hosts = [row["name"] for row in json.loads(listed.out) if row["kind"] == "host"]
    assert hosts == [*(host.name for host in BUILT_IN), NAME]
    return listed.err.splitlines()


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_used_is_left_out_with_a_warning(case: str, left_out: list[str]) -> None:
    index = list(BROKEN).index(case)
    start = f"warning: the method entry_{index} of broken_{index}:Loha cannot be used: "
    (line,) = (line for line in left_out if line.startswith(start))
    assert BROKEN[case][1].replace("PACKAGE", f"broken_{index}") in line.removeprefix(start)


def test_of_two_entries_with_one_name_one_is_kept(left_out: list[str]) -> None:
    assert len(left_out) == len(BROKEN) + 1
    (line,) = (line for line in left_out if "my_package:Loha" in line)
    assert f"its name '{NAME}' is taken" in line


class Plain(Lora):
    """A host of another package; the tests give it factors."""

    name = "acme.plain"
    names: tuple[str, ...] = ("down", "up")

    def factors(self, site: Site) -> tuple[Factor, ...]:
        return tuple(replace(factor, name=name) for factor, name in zip(super().factors(site), self.names, strict=True))


@pytest.fixture
def plain() -> Iterator[type[Plain]]:
    registry.register(Plain)
    yield Plain
    HOSTS.pop(Plain.name, None)


@pytest.mark.parametrize("wrong", ["head", "head:x", "down.scale", "scale:down", "", "Down", "__metadata__", "down2\n"])
def test_factors_that_a_file_could_not_tell_apart_are_refused(
    wrong: str, plain: type[Plain], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.bert()
    before = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    monkeypatch.setattr(plain, "names", ("down", wrong))
    with pytest.raises(UsageError, match=r"acme\.plain has a factor named ") as error:
        attach(model, "acme.plain")
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    monkeypatch.setattr(plain, "names", ("down", "down"))
    with pytest.raises(UsageError, match="two factors of one name"):
        attach(model, "acme.plain")


def test_a_registered_host_is_one_of_the_stacks(
    plain: type[Plain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.bert()
    attach(model, "acme.plain+nola", k=4, rank=2)
    save(model, tmp_path / "plain")
    assert read(tmp_path / "plain").header.method.record()["version"] == 1
    with pytest.raises(UsageError, match=r"cannot be used: its name 'acme\.plain' is taken"):
        registry.register(plain)
    with pytest.raises(UsageError, match="lora has no version"):
        stack.parse_stack("lora", version=1)
    monkeypatch.setattr(plain, "version", 2)
    with pytest.raises(
        AdapterFileError, match=r"plain: this needs version 1 .* acme\.plain, and .* is version 2; install"
    ):
        read(tmp_path / "plain")
    del HOSTS["acme.plain"]
    with pytest.raises(AdapterFileError, match=r"no method acme\.plain; install the package acme"):
        read(tmp_path / "plain")


def test_one_that_is_broken_keeps_nothing_from_working(reviews: Path, tmp_path: Path) -> None:
    site = install(tmp_path / "site", "my_package", LOHA, ENTRY)
    install(site, "broken_package", "class Loha: ...", "broken = broken_package:Loha")
    model = bert(tmp_path / "model", BertForSequenceClassification)
    flags = ("--data", reviews, "--model", model, "--method", NAME, *QUICK, "--json")
    (done,) = capaft(("train", *flags), site=site, cwd=tmp_path)
    assert done.code == 0, done.err
    assert json.loads(done.out)["adapter_parameters"] == 4 * 4 * 4 * 32
    assert done.err.startswith("warning: the method broken of broken_package:Loha cannot be used: ")
