"""PEFT directories: PEFT itself loads each onto a fresh base, and its outputs are those of capaft."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from peft import PeftModel
from safetensors import safe_open
from tiny_families import model_of
from torch import Tensor, nn

import capaft
from capaft.adapter.module import Adapter
from capaft.exchange.peft_config import CONFIG
from capaft.exchange.peft_directory import WEIGHTS
from capaft.exchange.peft_export import peft_adapter
from capaft.support.errors import UsageError

HEAD = ["classifier.weight", "classifier.bias"]
TAILS: dict[str, dict[str, Any]] = {
    "": {},
    "+nola": {"k": 8},
    "+capaboost": {"copies": 3},
    "+nola+capaboost": {"k": 8, "copies": 3},
}


def llama() -> Any:
    """Fewer key heads than query heads."""
    return model_of("LlamaForCausalLM", "cpu", num_key_value_heads=2)


def phi3() -> Any:
    """Query, key and value in one projection, gate and up in another."""
    return model_of("Phi3ForCausalLM", "cpu", num_key_value_heads=2)


def outputs(model: Any) -> Tensor:
    with torch.no_grad():
        found = model(input_ids=tiny.IDS)
    return next(value for key, value in vars(found).items() if key in ("logits", "start_logits", "last_hidden_state"))


def adapted(make: Callable[[], Any], method: str, **options: Any) -> tuple[Any, Adapter]:
    """A model with an adapter whose parameters are as training might leave them, those of a head included."""
    model = make()
    adapter = tiny.scramble(capaft.attach(model, method, seed=3, **options))
    for name, parameter in adapter.trained(model).items():
        if name.startswith("head:"):
            nn.init.normal_(parameter.data, generator=torch.Generator().manual_seed(1))
    return model, adapter


def loaded(make: Callable[[], Any], directory: Path) -> Any:
    """PEFT's model of a directory; that some key is missing or too many is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(keys|fan_in_fan_out|Unexpected).*")
        return PeftModel.from_pretrained(make(), directory).eval()


def exported(make: Callable[[], Any], directory: Path, method: str, **options: Any) -> dict[str, Any]:
    """Export an adapter, compare what PEFT makes of it, and return the configuration."""
    pad = options.pop("pad_rank", 0)
    model, _ = adapted(make, method, **options)
    expected = outputs(model)
    capaft.export_peft(model, directory, pad_rank=pad)
    assert torch.equal(outputs(model), expected)
    assert (outputs(make()) - expected).abs().max() > 2e-5
    largest = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(outputs(loaded(make, directory)), expected, rtol=0, atol=1e-6 * largest)
    config = json.loads((directory / CONFIG).read_text())
    if config["peft_type"] == "LORA":
        again = make()
        capaft.import_peft(again, directory)
        torch.testing.assert_close(outputs(again), expected, rtol=0, atol=1e-6 * largest)
    return config


def test_what_was_exported_and_imported_is_exported_the_same(tmp_path: Path) -> None:
    options = {"rank": 4, "k": 8, "copies": 3, "targets": "all-linear", "head": HEAD}
    exported(tiny.bert, tmp_path / "first", "lora+nola+capaboost", **options)
    model = tiny.bert()
    capaft.import_peft(model, tmp_path / "first")
    capaft.export_peft(model, tmp_path / "second")
    first, second = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("first", "second"))
    assert first == second


@pytest.mark.parametrize("targets", ["qv", "all-linear"])
@pytest.mark.parametrize("host", ["lora", "vera"])
@pytest.mark.parametrize("make", [llama, tiny.gpt2, phi3])
def test_peft_computes_the_same(make: Callable[[], Any], host: str, targets: str, tmp_path: Path) -> None:
    fused = targets == "qv" and make is not llama
    for tail, options in TAILS.items():
        config = exported(make, tmp_path / f"peft{tail}", host + tail, rank=4, targets=targets, **options)
        rank = 4 * options.get("copies", 1) * (2 if fused else 1)
        assert (config["r"], config["lora_alpha"]) == (rank, rank)
        assert config["fan_in_fan_out"] == (make is tiny.gpt2)


def test_the_files_are_those_that_servers_expect(tmp_path: Path) -> None:
    config = exported(tiny.bert, tmp_path / "peft", "lora", rank=4, head=HEAD, rank_pattern=("value=2",))
    assert config == {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 4,
        "lora_dropout": 0.0,
        "modules_to_save": ["classifier"],
        "peft_type": "LORA",
        "r": 4,
        "revision": None,
        "target_modules": ["query", "value"],
        "task_type": "SEQ_CLS",
    }
    with safe_open(tmp_path / "peft" / WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - no mapping
    attention = "base_model.model.bert.encoder.layer.{}.attention.self.{}.lora_{}.weight"
    assert shapes == {
        attention.format(layer, name, side): [4, 32] if side == "A" else [32, 4]
        for layer in (0, 1)
        for name in ("query", "value")
        for side in "AB"
    } | {"base_model.model.classifier.weight": [3, 32], "base_model.model.classifier.bias": [3]}


def test_layers_that_are_left_out_get_zeros(tmp_path: Path) -> None:
    config = exported(tiny.bert, tmp_path / "peft", "lora", rank=4, layers="1")
    assert config["target_modules"] == ["query", "value"]
    with safe_open(tmp_path / "peft" / WEIGHTS, "pt") as file:
        keys = [key for key in file.keys() if "layer.0." in key and "lora" in key]  # noqa: SIM118
        assert len(keys) == 4
        assert not any(file.get_tensor(key).any() for key in keys)


def test_a_rank_filled_up_with_zeros(tmp_path: Path) -> None:
    config = exported(llama, tmp_path / "peft", "capaboost", rank=4, copies=3, pad_rank=16)
    assert (config["r"], config["lora_alpha"]) == (16, 16)
    model, _ = adapted(llama, "lora", rank=4)
    with pytest.raises(UsageError, match=r"pad_rank.* 2 is lower than the rank of the adapter, 4"):
        capaft.export_peft(model, tmp_path / "other", pad_rank=2)


@pytest.mark.parametrize("mode", ["full", "nola", "frozen"])
def test_a_head_is_a_module_to_save(mode: str, tmp_path: Path) -> None:
    config = exported(tiny.bert, tmp_path / "peft", "nola", rank=4, k=8, head=HEAD, head_mode=mode, head_k=16)
    assert config["modules_to_save"] == ["classifier"]


def test_a_head_of_other_labels(tmp_path: Path) -> None:
    labels = ["bad", "good"]
    model, _ = adapted(tiny.bert, "lora", rank=4, head=HEAD, labels=labels)
    expected = outputs(model)
    capaft.export_peft(model, tmp_path / "peft")

    def two() -> Any:
        return model_of_bert(2)

    torch.testing.assert_close(outputs(loaded(two, tmp_path / "peft")), expected, rtol=0, atol=1e-6)
    card = (tmp_path / "peft" / "README.md").read_text()
    assert 'labels = ["bad", "good"]' in card
    assert "AutoModelForSequenceClassification.from_pretrained(" in card


def model_of_bert(labels: int) -> Any:
    """The tiny BERT with another head."""
    model = tiny.bert()
    model.classifier = nn.Linear(32, labels)
    model.num_labels = labels
    return model


@pytest.mark.parametrize(
    ("name", "head", "task_type", "saved"),
    [
        ("RobertaForSequenceClassification", "classifier", "SEQ_CLS", ["classifier"]),
        # PEFT's name `classifier` means both parts of this head, also where the adapter trains one.
        (
            "DistilBertForSequenceClassification",
            "pre_classifier classifier",
            "SEQ_CLS",
            ["classifier", "pre_classifier"],
        ),
        ("DistilBertForSequenceClassification", "classifier", "SEQ_CLS", ["classifier"]),
        ("LlamaForSequenceClassification", "score", "SEQ_CLS", ["score"]),
        ("BertForTokenClassification", "classifier", "TOKEN_CLS", ["classifier"]),
        ("BertForQuestionAnswering", "qa_outputs", "QUESTION_ANS", ["qa_outputs"]),
        # What PEFT would keep for the task lies inside what the adapter trains.
        ("BigBirdForQuestionAnswering", "qa_classifier", None, ["qa_classifier"]),
        ("BertForMultipleChoice", "classifier", None, ["classifier"]),
        ("BertForMaskedLM", "cls.predictions.transform", None, ["transform"]),
        ("BertModel", "", None, None),
    ],
)
def test_heads_of_many_kinds(name: str, head: str, task_type: str | None, saved: Any, tmp_path: Path) -> None:
    options = {"attention_type": "original_full"} if name.startswith("BigBird") else {}

    def make() -> Any:
        return model_of(name, "cpu", **options)

    parts = tuple(head.split())
    names = [key for key, _ in make().named_parameters() if parts and key.startswith(parts)]
    model, _ = adapted(make, "lora", rank=4, head=names)
    ids = tiny.IDS[:, None] if name == "BertForMultipleChoice" else tiny.IDS

    def run(model: Any) -> Tensor:
        with torch.no_grad():
            return next(iter(model(input_ids=ids).values()))

    expected = run(model)
    capaft.export_peft(model, tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / CONFIG).read_text())
    assert config["task_type"] == task_type
    assert config["modules_to_save"] == saved
    torch.testing.assert_close(run(loaded(make, tmp_path / "peft")), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "method", "options"),
    [
        (tiny.bert, "dora", {"rank": 4, "targets": "all-linear", "head": HEAD}),
        (tiny.gpt2, "dora+nola+capaboost", {"rank": 4, "k": 8, "copies": 3}),
        (tiny.kernels, "dora", {"rank": 4, "targets": "words,line,out"}),
        (tiny.bert, "dora", {"rank": 4, "layers": "1"}),
        (tiny.bert, "ia3", {"head": HEAD}),
        (tiny.gpt2, "ia3", {}),
        (llama, "ia3", {}),
        (tiny.bert, "ia3", {"layers": "0"}),
        (tiny.kernels, "lora", {"rank": 4, "targets": "words,line,out"}),
        (tiny.neox, "nola+capaboost", {"rank": 4, "k": 8, "targets": "qv"}),
        (tiny.mixtral, "nola+capaboost", {"rank": 4, "k": 8, "targets": "experts,all-linear"}),
        (tiny.bert, "lora", {"rank": 4, "targets": "word_embeddings,query"}),
        (tiny.bert, "lora", {"rank": 4, "head": HEAD, "modules_to_save": "LayerNorm"}),
        (tiny.bert, "lora", {"rank": 4, "rslora": True}),
    ],
)
def test_other_methods_layers_and_modules(
    make: Callable[[], Any], method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    exported(make, tmp_path / "peft", method, **options)


def test_layers_that_only_whole_paths_tell_from_others(tmp_path: Path) -> None:
    config = exported(tiny.bert, tmp_path / "peft", "lora", rank=8, targets=r"re:.*layer\.\d+\.output\.dense")
    assert config["target_modules"] == [f"bert.encoder.layer.{layer}.output.dense" for layer in (0, 1)]


def test_one_of_several_adapters(tmp_path: Path) -> None:
    model, _ = adapted(tiny.bert, "lora", rank=4, head=HEAD, name="first")
    expected = outputs(model)
    tiny.scramble(capaft.attach(model, "vera", rank=4, head=HEAD, name="second"))
    capaft.switch(model, "second")
    other = outputs(model)
    capaft.export_peft(model, tmp_path / "peft", "first")
    assert torch.equal(outputs(model), other)
    torch.testing.assert_close(outputs(loaded(tiny.bert, tmp_path / "peft")), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [tiny.gpt2, llama])
def test_embeddings_with_rows_that_the_checkpoint_lacks(make: Callable[[], Any], tmp_path: Path) -> None:
    def resized(rows: float) -> Any:
        model = make()
        model.config = copy.deepcopy(model.config)
        model.resize_token_embeddings(70, mean_resizing=False)
        for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
            module.weight.data[64:] = rows
        return model

    model, _ = adapted(lambda: resized(0.5), "lora", rank=4)
    ids = torch.tensor([[3, 65, 69, 2]])
    expected = model(input_ids=ids).logits
    capaft.export_peft(model, tmp_path / "peft", embeddings=True)
    actual = loaded(lambda: resized(0.0), tmp_path / "peft")(input_ids=ids).logits
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    assert "model.resize_token_embeddings(70)" in (tmp_path / "peft" / "README.md").read_text()


def test_a_trained_tied_weight_is_saved_in_all_its_places(tmp_path: Path) -> None:
    config = exported(tiny.gpt2, tmp_path / "peft", "lora", rank=8, modules_to_save="wte,ln_f")
    assert config["modules_to_save"] == ["lm_head", "ln_f", "wte"]


def test_weights_that_are_tied_are_adapted_in_all_their_places(tmp_path: Path) -> None:
    def tied() -> Any:
        model = tiny.bert()
        layers = model.bert.encoder.layer
        layers[1].attention.self.query.weight = layers[0].attention.self.query.weight
        return model

    model, adapter = adapted(tied, "lora", rank=4, targets="query,value")
    assert len(adapter.plan.sites) == 3
    expected = outputs(model)
    capaft.export_peft(model, tmp_path / "peft")
    torch.testing.assert_close(outputs(loaded(tied, tmp_path / "peft")), expected, rtol=0, atol=1e-6)


class Shared(nn.Module):
    """One layer that two parts of the model call their own."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.first, self.second = nn.Embedding(64, 16), nn.Module(), nn.Module()
        self.first.query = self.second.query = nn.Linear(16, 16)

    def forward(self, input_ids: Tensor) -> Any:
        hidden = self.second.query(torch.tanh(self.first.query(self.words(input_ids))))
        return SimpleNamespace(logits=hidden)


class Sometimes(nn.Module):
    """A layer that is read in place of being called, if the model is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.query, self.exact = nn.Embedding(64, 16), nn.Linear(16, 16), False
        self.dummy_inputs = {"input_ids": tiny.IDS}

    def forward(self, input_ids: Tensor) -> Any:
        hidden = self.words(input_ids)
        return SimpleNamespace(logits=hidden @ self.query.weight.T if self.exact else self.query(hidden))


class Halves(nn.Linear):
    """More than a product."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) * torch.sigmoid(hidden)


class Halved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.query, self.value = nn.Embedding(64, 16), Halves(16, 16), nn.Linear(16, 8)

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(logits=self.value(self.query(self.words(input_ids))))


def test_a_layer_that_is_more_than_a_product(tmp_path: Path) -> None:
    def make() -> Any:
        return tiny.build(Halved)

    config = exported(make, tmp_path / "peft", "lora", rank=8, targets="query,value")
    assert (config["target_modules"], config["target_parameters"]) == (["value"], ["query.weight"])


def test_a_layer_that_may_be_read_instead_of_called(tmp_path: Path) -> None:
    def make() -> Any:
        return tiny.build(Sometimes)

    exported(make, tmp_path / "peft", "lora", rank=8, targets="query")
    (line,) = peft_adapter(adapted(make, "lora", rank=8, targets="query")[0]).cautions
    assert "can be set to read the weight of query without calling the layer" in line
    model, _ = adapted(make, "lora", rank=8, targets="query")
    model.exact = True
    with pytest.raises(UsageError, match="reads the weight of query without calling it"):
        capaft.export_peft(model, tmp_path / "other")


def test_the_base_by_name_and_a_model_inside_wrappers(tmp_path: Path) -> None:
    model, _ = adapted(tiny.bert, "lora", rank=8, head=HEAD)
    expected = outputs(model)
    capaft.export_peft(torch.compile(model), tmp_path / "peft", base="org/name")
    config = json.loads((tmp_path / "peft" / CONFIG).read_text())
    assert (config["base_model_name_or_path"], config["modules_to_save"]) == ("org/name", ["classifier"])
    assert "base_model: org/name" in (tmp_path / "peft" / "README.md").read_text()
    torch.testing.assert_close(outputs(loaded(tiny.bert, tmp_path / "peft")), expected, rtol=0, atol=1e-6)
    for wrong in ({"base": 3}, {"pad_rank": -1}, {"pad_rank": "8"}, {"name": "other"}):
        with pytest.raises(UsageError):
            capaft.export_peft(model, tmp_path / "other", **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "method", "options", "reason"),
    [
        (tiny.bert, "prefix", {}, "PEFT's virtual tokens move the positions of the text"),
        (tiny.bert, "houlsby", {}, "PEFT has no adapter layers with an activation"),
        (tiny.bert, "pfeiffer+nola", {"k": 8}, "PEFT has no adapter layers with an activation"),
        (tiny.bert, "parallel", {}, "PEFT has no adapter layers with an activation"),
        (tiny.bert, "bitfit", {}, "PEFT has no method that trains biases alone"),
        (tiny.bert, "head", {"head": HEAD}, "has adapted layers, and the method head none"),
        (tiny.bert, "full", {}, "has adapted layers, and the method full none"),
        (tiny.kernels, "lora", {"targets": "picture"}, "PEFT leaves out the dilation"),
        (tiny.kernels, "ia3", {"targets": "line"}, "PEFT's IA3 cannot rescale line, a Conv1d"),
        (tiny.reader, "lora", {"targets": "value"}, "reads the weight of value without calling it"),
        (lambda: tiny.build(Shared), "lora", {"targets": "query"}, "first.query has several places in the model"),
        (lambda: tiny.build(Halved), "dora", {"targets": "query"}, "PEFT's DoRA does not reach query"),
    ],
)
def test_a_refusal_says_why_and_leaves_nothing(
    make: Callable[[], Any], method: str, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model, _ = adapted(make, method, **options)
    with pytest.raises(UsageError, match=reason):
        capaft.export_peft(model, tmp_path / "peft")
    assert not list(tmp_path.iterdir())


def test_cautions() -> None:
    def lines(method: str, **options: Any) -> str:
        return "\n".join(peft_adapter(adapted(tiny.bert, method, **options)[0]).cautions)

    assert lines("lora", rank=8, head=HEAD) == ""
    assert "--pad-rank 32 fills the rank up" in lines("capaboost", rank=8, copies=3)
    assert "up to 512, and this adapter has 576" in lines("vera+capaboost", rank=24, copies=24, targets="query")
    assert "do not serve DoRA" in lines("dora", rank=8)
    assert "serve LoRA only" in lines("ia3")
    assert "other than a classifier's, and this adapter has LayerNorm" in lines("lora", modules_to_save="LayerNorm")
