"""The resolver that vLLM calls, against a stub of its published interface."""

from __future__ import annotations

import asyncio
import inspect
import logging
import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import tiny_checkpoints
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import capaft
from capaft.adapter.file import adapter_file
from capaft.exchange import vllm_resolver
from capaft.model.offloaded import load_offloaded_writer


@dataclass
class LoRARequest:
    """`vllm.lora.request.LoRARequest`, its first fields."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    base_model_name: str | None = None


class LoRAResolver:
    """`vllm.lora.resolver.LoRAResolver`, which has one abstract method."""

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        raise NotImplementedError


class Registry:
    """`vllm.lora.resolver.LoRAResolverRegistry`."""

    def __init__(self) -> None:
        self.resolvers: dict[str, LoRAResolver] = {}

    def get_supported_resolvers(self) -> Any:
        return self.resolvers.keys()

    def register_resolver(self, resolver_name: str, resolver: LoRAResolver) -> None:
        assert resolver_name not in self.resolvers
        self.resolvers[resolver_name] = resolver


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry:
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request", "vllm.lora.resolver")}
    found = Registry()
    vars(modules["vllm.lora.request"])["LoRARequest"] = LoRARequest
    vars(modules["vllm.lora.resolver"]).update(LoRAResolver=LoRAResolver, LoRAResolverRegistry=found)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("CAPAFT_VLLM_CACHE", str(tmp_path / "cache"))
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.save("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "adapters"
    path.mkdir()
    monkeypatch.setenv("CAPAFT_ADAPTERS", str(path))
    return path


def adapted(base: Path, path: Path, method: str = "nola", **options: Any) -> torch.Tensor:
    """Save an adapter of a checkpoint; its logits."""
    model = AutoModelForCausalLM.from_pretrained(base)
    defaults = {"k": 8} if "nola" in method else {}
    tiny.scramble(capaft.attach(model, method, **{"rank": 2, **defaults, **options}))
    path.parent.mkdir(parents=True, exist_ok=True)
    capaft.save(model, path)
    with torch.no_grad():
        return tiny.logits(model)


def resolver(registry: Registry) -> Any:
    vllm_resolver.register()
    return registry.resolvers["capaft"]


def resolve(found: Any, base: Any, *names: str) -> list[Any]:
    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(found.resolve_lora(str(base), name) for name in names))

    return asyncio.run(all_at_once())


def peft_logits(base: Path, directory: str) -> torch.Tensor:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), directory).eval()
    with torch.no_grad():
        return tiny.logits(model)


def test_names_become_peft_directories_with_the_same_logits(
    registry: Registry, adapters: Path, base: Path, tmp_path: Path
) -> None:
    expected = {
        "reviews": adapted(base, adapters / "reviews.safetensors", seed=1),
        "run": adapted(base, adapters / "run" / "adapter.safetensors", seed=2),
        "team/one.v2": adapted(base, adapters / "team" / "one.v2.safetensors", "capaboost", copies=2),
    }
    found = resolver(registry)
    requests = resolve(found, base, *expected)
    assert [request.lora_name for request in requests] == list(expected)
    for request in requests:
        torch.testing.assert_close(peft_logits(base, request.lora_path), expected[request.lora_name])
        assert Path(request.lora_path).parent == tmp_path / "cache"
        assert 1 <= request.lora_int_id < 2**63
    assert len({request.lora_int_id for request in requests}) == 3
    # Asked for again, in another process too, a name gives the same request and makes nothing.
    other = vllm_resolver.Expander.from_environment(adapters, {"CAPAFT_VLLM_CACHE": str(tmp_path / "cache")})
    other._write = None  # type: ignore[assignment,method-assign]
    assert [str(other.expand(str(base), name)) for name in expected] == [request.lora_path for request in requests]
    assert resolve(found, base, *expected) == requests
    adapted(base, adapters / "reviews.safetensors", seed=3)
    (changed,) = resolve(found, base, "reviews")
    assert changed.lora_path != requests[0].lora_path
    assert changed.lora_int_id != requests[0].lora_int_id


def test_the_base_is_there_without_its_weights(base: Path, tmp_path: Path) -> None:
    model = load_offloaded_writer(str(base), tmp_path)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not list(tmp_path.iterdir())


def test_a_base_that_cannot_be_loaded_leaves_the_last_one(adapters: Path, base: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two", "three")):
        adapted(base, adapters / f"{name}.safetensors", seed=seed)
    expander = vllm_resolver.Expander(adapters, tmp_path / "cache", 10**9)
    assert expander.expand(str(base), "one")
    folder = expander._offloaded
    assert expander.expand(str(tmp_path / "nowhere"), "two") is None
    assert expander._offloaded is folder
    assert expander.expand(str(base), "three")


def test_what_cannot_be_served_is_none_with_one_line(
    registry: Registry, adapters: Path, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tiny_checkpoints.save("llama", tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(other)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.1)
    model.save_pretrained(other)
    adapted(other, adapters / "other.safetensors")
    adapted(base, adapters / "dora.safetensors", "dora")
    adapted(base, adapters / "prefix.safetensors", "prefix+nola", rank=None)
    adapted(base, adapters / "extra.safetensors", modules_to_save="norm")
    (adapters / "broken.safetensors").write_bytes(b"not an adapter")
    reasons = {
        "other": "trained on other base weights",
        "dora": "does not serve DoRA",
        "prefix": "prefix cannot be exported",
        "extra": "also trains norm.weight",
        "broken": "broken.safetensors",
    }
    found = resolver(registry)
    for name, reason in reasons.items():
        caplog.clear()
        with caplog.at_level(logging.WARNING, "vllm.capaft"):
            assert resolve(found, base, name) == [None]
        (record,) = (record for record in caplog.records if record.name == "vllm.capaft")
        assert reason in record.getMessage()
        assert "\n" not in record.getMessage()
    for wrong in (tmp_path / "nowhere", adapters / "dora.safetensors"):
        adapted(base, adapters / "good.safetensors")
        assert resolve(found, wrong, "good") == [None]
    assert resolve(found, base, "good")[0] is not None


def test_a_file_that_changes_while_it_is_read(
    registry: Registry, adapters: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its directory would be that of the old content for good."""
    adapted(base, adapters / "reviews.safetensors", seed=1)
    adapted(base, tmp_path / "new.safetensors", seed=2)
    read = adapter_file.read

    def changing(path: Path) -> Any:
        shutil.copy(tmp_path / "new.safetensors", path)
        return read(path)

    found = resolver(registry)
    with monkeypatch.context() as patch:
        patch.setattr(adapter_file, "read", changing)
        assert resolve(found, base, "reviews") == [None]
    assert resolve(found, base, "reviews") != [None]


def test_names_lead_nowhere_else(registry: Registry, adapters: Path, base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path / "secret.safetensors")
    adapted(base, adapters / ".hidden.safetensors")
    (adapters / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (adapters / "up").symlink_to(tmp_path)
    (adapters / "inside.safetensors").symlink_to(adapters / ".hidden.safetensors")
    found = resolver(registry)
    names = ("../secret", str(tmp_path / "secret"), "link", "up/secret", ".hidden", "", ".", "a//b", "x" * 600, "a\0b")
    assert resolve(found, base, *names, "../adapters/inside", "nothing") == [None] * 12
    assert resolve(found, base, "inside") != [None]


def test_registering(
    registry: Registry,
    adapters: Path,
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    vllm_resolver.register()
    vllm_resolver.register()
    assert list(registry.resolvers) == ["capaft"]
    registry.resolvers.clear()
    for settings, says in (
        ({"CAPAFT_ADAPTERS": str(tmp_path / "nowhere")}, "is no directory"),
        ({"CAPAFT_VLLM_CACHE_GB": "many"}, "CAPAFT_VLLM_CACHE_GB=many is not a number"),
        ({"CAPAFT_VLLM_CACHE_GB": "0"}, "above 0"),
    ):
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            caplog.clear()
            vllm_resolver.register()
            assert says in caplog.text
            assert not registry.resolvers
    # Its limit is too small for the adapter.
    adapted(base, adapters / "good.safetensors")
    monkeypatch.setenv("CAPAFT_VLLM_CACHE_GB", "0.000001")
    assert resolve(resolver(registry), base, "good") == [None]
    assert "no room" in caplog.text
    registry.resolvers.clear()
    # The unquantised checkpoint in place of the one that is served.
    monkeypatch.setenv("CAPAFT_VLLM_CACHE_GB", "1")
    monkeypatch.setenv("CAPAFT_VLLM_BASE", str(base))
    assert resolve(resolver(registry), "served/as-4-bits", "good") != [None]
    monkeypatch.setitem(sys.modules, "vllm.lora.resolver", None)
    vllm_resolver.register()
    assert "capaft serves no adapters: import of vllm.lora.resolver halted" in caplog.text
    monkeypatch.delenv("CAPAFT_ADAPTERS")
    vllm_resolver.register()


def test_the_entry_point() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["vllm.general_plugins"] == {"capaft": "capaft.exchange.vllm_resolver:register"}
    assert not inspect.signature(vllm_resolver.register).parameters
