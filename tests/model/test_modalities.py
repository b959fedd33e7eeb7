"""Checkpoints that read more than text: their class, their text path, and the layers that are adapted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import tiny_multimodal
import torch
from command_line import invoke
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

import capaft
from capaft.model.modalities import READS_IMAGES, WRITES, auto_class_of_writer, has_towers, reads_text
from capaft.support.errors import UsageError

QUICK = ("--max-steps", "2", "--batch-size", "4", "--k", "16", "--rank", "2", "--max-length", "32")


def write_rows(directory: Path) -> Path:
    rows = ({"prompt": f"Ship {i}?", "completion": f"Red {i}."} for i in range(12))
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("kind", "architecture", "expected"),
    [
        ("llava", "LlavaForConditionalGeneration", READS_IMAGES),
        ("qwen2_5_vl", "", READS_IMAGES),
        ("qwen3_5", "Qwen3_5ForConditionalGeneration", READS_IMAGES),
        ("qwen3_5", "Qwen3_5ForCausalLM", WRITES),
        ("gemma3", "Gemma3ForConditionalGeneration", READS_IMAGES),
        ("gemma3_text", "Gemma3ForCausalLM", WRITES),
        ("llama", "LlamaForCausalLM", WRITES),
        ("bert", "BertModel", WRITES),
    ],
)
def test_a_checkpoint_is_loaded_as_what_it_was_saved_as(kind: str, architecture: str, expected: str) -> None:
    assert auto_class_of_writer(SimpleNamespace(model_type=kind, architectures=[architecture])) == expected


def test_which_models_have_towers_and_what_reads_text() -> None:
    model = tiny_multimodal.llava_model()
    assert has_towers(model)
    assert not has_towers(tiny.gpt2())
    assert not has_towers(tiny.bert())
    is_text = reads_text(model)
    assert is_text("model.language_model.layers.0.mlp.up_proj")
    assert not is_text("model.vision_tower.encoder.layers.0.mlp.fc1")
    assert not is_text("model.multi_modal_projector.linear_1")


def test_a_tower_inside_the_decoder_reads_no_text() -> None:
    model = tiny_multimodal.git_model()
    adapter = capaft.attach(model, "lora", targets="all-linear")
    assert adapter.plan.sites
    assert not any("image_encoder" in site.module for site in adapter.plan.sites)


@pytest.mark.parametrize("method", ["lora", "nola", "houlsby", "prefix", "ia3", "bitfit"])
def test_towers_are_adapted_only_if_named(method: str) -> None:
    model = tiny_multimodal.llava_model()
    options = {"targets": "all-linear"} if method in ("lora", "nola") else {}
    adapter = capaft.attach(model, method, **options)
    assert adapter.plan.sites
    assert {site.module.split(".")[1] for site in adapter.plan.sites} <= {"language_model"}


def test_a_named_layer_may_be_in_a_tower() -> None:
    adapter = capaft.attach(tiny_multimodal.llava_model(), "lora", targets="fc1,linear_1")
    towers = {site.module.split(".")[1] for site in adapter.plan.sites}
    assert towers == {"vision_tower", "multi_modal_projector"}


def test_a_preset_that_only_a_tower_has_is_refused() -> None:
    with pytest.raises(
        UsageError,
        match=r"^the part of the model that reads text has nothing to adapt by this choice",
    ):
        capaft.attach(tiny_multimodal.llava_model(), "lora", targets="conv")


@pytest.mark.parametrize("make", [tiny_multimodal.llava, tiny_multimodal.gemma3])
def test_text_is_trained_scored_and_merged_in_the_checkpoints_own_class(
    make: Callable[[Path], str], tmp_path: Path
) -> None:
    model, run = make(tmp_path / "model"), tmp_path / "run"
    rows = write_rows(tmp_path)
    done = invoke("train", "--model", model, "--data", rows, "--output", run, *QUICK)
    assert done.code == 0, done.err
    assert "task   causal-lm, inferred" in done.err
    scored = invoke("eval", run, "--json")
    assert scored.code == 0, scored.err
    merged = invoke("merge", run, "--output", tmp_path / "merged")
    assert merged.code == 0, merged.err
    before, after = (load_file(Path(path) / "model.safetensors") for path in (model, tmp_path / "merged"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("language_model" in name for name in changed)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert type(loaded).__name__.endswith("ForConditionalGeneration")
    if isinstance(loaded, LlavaForConditionalGeneration):
        assert AutoProcessor.from_pretrained(tmp_path / "merged").image_processor is not None


def test_a_model_that_needs_an_image_is_refused(tmp_path: Path) -> None:
    rows = write_rows(tmp_path)
    model = tiny_multimodal.idefics(tmp_path / "model")
    done = invoke("train", "--model", model, "--data", rows, "--output", tmp_path / "run", *QUICK)
    assert done.code == 2
    assert f"error: --model {model} does not read text alone (" in done.err
    assert done.err.rstrip().endswith("; choose another --model")
