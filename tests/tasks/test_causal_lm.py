"""Causal language modelling: the tokens that count in each layout, the sums, and the generated texts."""

from __future__ import annotations

import json
import weakref
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_text import PLAIN_TEMPLATE, SPECIALS, base, ids, table, tokenizer
from torch.nn import functional as F

from capaft.config.train_config import TrainConfig
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.base.evidence import Evidence
from capaft.tasks.causal_lm import CausalLM
from capaft.tasks.language.token_loss import IGNORED

END = [SPECIALS["<end>"]]
PAIRS = Columns("prompt", None, "completion")
TWO = table(prompt=["say a", "b"], completion=["aaa", "bb"])


def task_for(rows: Dataset, **settings: Any) -> CausalLM:
    return CausalLM.decide(rows, CausalLM.recognise(rows, {}), TrainConfig(**settings))


def features(task: CausalLM, rows: Dataset, model: Any = None, *, training: bool = True) -> Any:
    model = model or base("llama", tokenizer())
    return task.features(model, rows, CausalLM.recognise(rows, {}), training=training)


CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


@pytest.mark.parametrize(
    ("rows", "named", "columns", "layout"),
    [
        (table(text=["a"]), {}, Columns("text"), "text"),
        (table(text=["a"], label=[1]), {}, Columns("text"), "text"),
        (TWO, {}, PAIRS, "prompt"),
        (table(text=["a"], summary=["b"]), {}, Columns("text", None, "summary"), "prompt"),
        (table(body=["a"], head=["b"]), {"text": "body"}, Columns("body"), "text"),
        (table(body=["a"], head=["b"]), {"text": "body", "label": "head"}, Columns("body", None, "head"), "prompt"),
        (table(prompt=["a"], messages=[CHAT]), {}, Columns("messages"), "messages"),
        (table(talk=[CHAT]), {"text": "talk"}, Columns("talk"), "messages"),
        (table(id=["a"], anything=[CHAT]), {}, Columns("anything"), "messages"),
        (table(prompt=["a"], completion=["b"], history=[CHAT]), {}, PAIRS, "prompt"),
        (table(prompt=[CHAT[:1]], completion=[CHAT[1:]]), {}, PAIRS, "messages"),
        (table(prompt=[CHAT], completion=[CHAT], messages=[CHAT]), {}, Columns("messages"), "messages"),
    ],
)
def test_layouts_are_told_by_the_columns(rows: Dataset, named: dict[str, str], columns: Columns, layout: str) -> None:
    assert CausalLM.recognise(rows, named) == columns
    task = CausalLM.decide(rows, columns, TrainConfig())
    assert (task.layout, task.metric) == (layout, "perplexity")
    assert CausalLM(max_length=task.max_length, metric=task.metric, **task.options()) == task


@pytest.mark.parametrize("layout", ["prompt", "text", "messages"])
def test_the_columns_to_score_are_those_of_the_layout(layout: str) -> None:
    task = CausalLM(layout=layout)
    rows = {
        "prompt": table(instruction=["a"], input=["b"]),
        "text": table(text=["a"], summary=["b"]),
        "messages": table(prompt=[CHAT[:1]], note=["b"]),
    }
    expected = {"prompt": Columns("instruction", "input"), "text": Columns("text"), "messages": Columns("prompt")}
    assert task.find_columns(rows[layout], {}) == expected[layout]


def test_chats_that_wait_for_an_answer_are_prompts_as_a_whole() -> None:
    task, model = CausalLM(layout="messages", metric="bleu"), base("llama", tokenizer(PLAIN_TEMPLATE))
    rows = table(prompt=[[*CHAT, {"role": "user", "content": "and?"}]])
    scored = task.features(model, rows, Columns("prompt"), training=False)
    assert "and?" in scored.sources[0]
    assert scored.references == [()]
    assert not task.has_targets(scored)
    with pytest.raises(UsageError, match="column 'prompt' have no answers to compare with"):
        task.check_labels(rows, Columns("prompt"))


def test_settings_become_fields() -> None:
    settings = {"separator": " => ", "num_beams": 3, "max_new_tokens": 7, "chat_template": False, "metric": "bleu"}
    task = task_for(TWO, **settings, source_prefix="say ", max_length=40)
    assert {**task.options(), "metric": task.metric}.items() >= settings.items()
    assert (task.source_prefix, task.max_length) == ("say ", 40)
    assert task.generates


def test_plain_text_has_no_completions_to_compare() -> None:
    with pytest.raises(UsageError, match="--metric bleu compares completions"):
        task_for(table(text=["a"]), metric="bleu")
    with pytest.raises(UsageError, match="--metric must be one of perplexity"):
        task_for(table(text=["a"]), metric="f1")
    with pytest.raises(UsageError, match="layout"):
        CausalLM(layout="poem")


def test_packed_texts() -> None:
    rows = table(text=["abc", "", "defgh"])
    examples = features(task_for(rows, max_length=4), rows)
    stream = [*ids("abc"), *END, *ids("defgh"), *END]
    assert [block.tolist() for block in examples.inputs["input_ids"]] == [stream[:4], stream[4:8], stream[8:]]
    assert examples.lengths.tolist() == [4, 4, 2]
    assert examples.truncated == 0
    framed = features(task_for(rows, max_length=99), rows, base("llama", tokenizer(framed=True)))
    start = [SPECIALS["<start>"]]
    assert framed.inputs["input_ids"][0].tolist() == [*start, *ids("abc"), *END, *start, *ids("defgh"), *END]


def test_texts_row_by_row() -> None:
    rows = table(text=["abc", "", "defgh"])
    examples = features(task_for(rows, max_length=4, packing=False), rows)
    assert examples.inputs["input_ids"] == [[*ids("abc"), *END], ids("defg")]
    assert examples.truncated == 1


def test_prompts_do_not_count() -> None:
    examples = features(task_for(TWO), TWO)
    prompts, completions = [ids("say a\n"), ids("b\n")], [ids("aaa") + END, ids("bb") + END]
    assert examples.inputs["input_ids"] == [prompts[0] + completions[0], prompts[1] + completions[1]]
    assert examples.inputs["labels"] == [[IGNORED] * 6 + completions[0], [IGNORED] * 2 + completions[1]]
    assert features(task_for(TWO), TWO, training=False).inputs["prompt_ids"] == prompts


def test_separator_prefix_and_leading_tokens() -> None:
    task = task_for(TWO, separator="", source_prefix="> ")
    examples = features(task, TWO, base("llama", tokenizer(framed=True)))
    assert examples.inputs["input_ids"][1] == [SPECIALS["<start>"], *ids("> b"), *ids("bb"), *END]
    assert examples.sources == ["> say a", "> b"]


def test_prompts_in_the_chat_template() -> None:
    model = base("llama", tokenizer(PLAIN_TEMPLATE))
    whole = features(task_for(TWO), TWO, model).inputs
    turn, stop = [SPECIALS["<turn>"]], [SPECIALS["<stop>"]]
    asked = turn + ids("user\nb") + stop + ids("\n") + turn + ids("assistant\n")
    assert whole["input_ids"][1] == asked + ids("bb") + stop
    assert whole["labels"][1] == [IGNORED] * len(asked) + ids("bb") + stop
    assert features(task_for(TWO, chat_template=False), TWO, model).inputs == features(task_for(TWO), TWO).inputs


def test_prompts_and_completions_that_are_chats() -> None:
    model = base("llama", tokenizer(PLAIN_TEMPLATE))
    rows = table(prompt=[[{"role": "user", "content": row["prompt"]}] for row in TWO])
    rows = rows.add_column("completion", [[{"role": "assistant", "content": row["completion"]}] for row in TWO])
    assert features(task_for(rows), rows, model).inputs == features(task_for(TWO), TWO, model).inputs


def test_several_references() -> None:
    rows = table(mr=["a"], refs=[["xy", "z"]])
    train, validation = (features(task_for(rows), rows, training=training) for training in (True, False))
    assert train.inputs["input_ids"] == [ids("a\nxy") + END, ids("a\nz") + END]
    assert validation.inputs["input_ids"] == [ids("a\nxy") + END]
    assert validation.references == [("xy", "z")]


def test_what_is_too_long_loses_its_end() -> None:
    rows = table(prompt=["a", "a long prompt"], completion=["xyz", "xyz"])
    task = task_for(rows, max_length=4)
    train, validation = (features(task, rows, training=training) for training in (True, False))
    # The second row has no token left that counts: it cannot be learnt from, but it is scored.
    assert train.inputs["input_ids"] == [ids("a\nxy")]
    assert validation.inputs["input_ids"] == [ids("a\nxy"), ids("a lo")]
    assert set(validation.inputs["labels"][1]) == {IGNORED}
    assert (train.truncated, validation.truncated) == (2, 2)
    with pytest.raises(
        UsageError, match=r"no training prompt leaves any of the 2 tokens .* takes 2; raise --max-length"
    ):
        features(task_for(rows, max_length=2), rows)


def test_no_more_tokens_than_the_model_has_positions() -> None:
    rows = table(text=["x" * 100])
    examples = features(task_for(rows, max_length=99), rows, base("gpt2", tokenizer()))
    assert examples.lengths.tolist() == [64, 37]


def test_chats_and_texts_are_not_mixed() -> None:
    chats = table(text=[CHAT])
    with pytest.raises(UsageError, match="'text' does not hold texts"):
        task_for(table(text=["a"])).check_labels(chats, Columns("text"))
    with pytest.raises(UsageError, match="'prompt' does not hold chats"):
        task_for(chats).check_labels(TWO, PAIRS)
    with pytest.raises(UsageError, match="no column holds the target"):
        task_for(TWO).check_labels(table(prompt=["a"]), Columns("prompt"))
    task_for(TWO).check_labels(TWO, PAIRS)
    task_for(chats).check_labels(chats, Columns("text"))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_next_tokens(smoothing: float) -> None:
    model, task = base("llama", tokenizer()), task_for(TWO)
    examples = features(task, TWO)
    batch = task.collate(model, examples, [0, 1], training=True)
    assert batch.inputs["attention_mask"].sum(1).tolist() == [10, 5]
    # Only places where a completion continues: 5 to 8 of the longer row, 1 to 3 of the shorter.
    assert batch.inputs["logits_to_keep"].tolist() == [1, 2, 3, 5, 6, 7, 8]
    outputs = model.model(**batch.inputs)
    expected, terms = 0.0, 0
    for tokens, labels in zip(examples.inputs["input_ids"], examples.inputs["labels"], strict=True):
        scores = model.model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)
        for place in range(1, len(tokens)):
            if labels[place] != IGNORED:
                right, spread = scores[place - 1, labels[place]], scores[place - 1].mean()
                expected -= ((1 - smoothing) * right + smoothing * spread).item()
                terms += 1
    assert batch.terms == terms == 7
    assert float(task.loss(outputs, batch.targets, smoothing).detach()) == pytest.approx(expected, rel=1e-5)


def test_all_tokens_of_plain_text_count_but_the_first() -> None:
    rows = table(text=["abc", "d"])
    model, task = base("gpt2", tokenizer()), task_for(rows, packing=False)
    batch = task.collate(model, features(task, rows), [1, 0], training=True)
    assert batch.targets["labels"].tolist() == [[*END, IGNORED, IGNORED, IGNORED], [*ids("bc"), *END, IGNORED]]
    assert batch.terms == 4
    logits = model.model(**batch.inputs).logits
    expected = sum(
        F.cross_entropy(logits[row, place], torch.tensor(label), reduction="sum")
        for row, place, label in ((0, 0, END[0]), (1, 0, ids("b")[0]), (1, 1, ids("c")[0]), (1, 2, END[0]))
    )
    torch.testing.assert_close(task.loss(model.model(**batch.inputs), batch.targets, 0.0), expected)


def test_a_batch_in_which_nothing_counts() -> None:
    rows = table(text=["abcd"])
    model, task = base("llama", tokenizer()), task_for(rows, max_length=4)
    batch = task.collate(model, features(task, rows), [1], training=True)
    assert batch.terms == 0
    assert task.loss(model.model(**batch.inputs), batch.targets, 0.0).item() == 0


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("beams", [1, 2])
def test_batches_are_written_like_single_prompts(kind: str, beams: int) -> None:
    rows = table(prompt=["say a", "b", "and so on"], completion=["x", "y", "z"])
    model = base(kind, tokenizer())
    task = task_for(rows, metric="bleu", num_beams=beams, max_new_tokens=6)
    examples = features(task, rows, model, training=False)

    def written(indices: list[int]) -> list[str]:
        batch = task.collate(model, examples, indices, training=False)
        return [
            text for *_, text in task.predict(model, model.model, examples, indices, batch, model.model(**batch.inputs))
        ]

    with torch.inference_mode():
        together = written([0, 1, 2])
        assert together == [written([index])[0] for index in range(3)]
    if beams == 1:
        tokens = ids("b\n")
        for _ in range(6):
            tokens.append(int(model.model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        assert together[1] == model.processor.decode(tokens[2:], skip_special_tokens=True).strip()


def test_plain_text_is_scored_and_not_reported() -> None:
    rows = table(text=["abc", "d"])
    model, task = base("gpt2", tokenizer()), task_for(rows)
    examples = features(task, rows, training=False)
    batch = task.collate(model, examples, [0], training=False)
    with torch.inference_mode():
        predictions = task.predict(model, model.model, examples, [0], batch, model.model(**batch.inputs))
    assert set(task.score(examples, predictions)) == {"perplexity", "loss", "accuracy"}
    assert task.report(examples, predictions) == []


def test_nothing_is_written_unless_texts_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = base("llama", tokenizer()), task_for(TWO)
    examples = features(task, TWO, training=False)
    monkeypatch.setattr(type(model.model), "generate", None)
    batch = task.collate(model, examples, [0, 1], training=False)
    with torch.inference_mode():
        outputs = model.model(**batch.inputs)
        predictions = task.predict(model, model.model, examples, [0, 1], batch, outputs)
    assert [text for *_, text in predictions] == [None, None]
    assert sum(loss for loss, *_ in predictions) == pytest.approx(float(task.loss(outputs, batch.targets, 0.0)))
    assert set(task.score(examples, predictions)) == {"perplexity", "loss", "accuracy"}
    assert task.report(examples, predictions) == []


def test_the_logits_are_gone_before_the_model_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = base("llama", tokenizer()), task_for(TWO, metric="bleu", max_new_tokens=2)
    examples = features(task, TWO, training=False)
    batch = task.collate(model, examples, [0, 1], training=False)
    made: list[weakref.ref[torch.Tensor]] = []
    handle = model.model.register_forward_hook(lambda module, inputs, outputs: made.append(weakref.ref(outputs.logits)))
    generate = type(model.model).generate

    def look(model: Any, **options: Any) -> Any:
        assert made[0]() is None
        return generate(model, **options)

    monkeypatch.setattr(type(model.model), "generate", look)
    with torch.inference_mode():
        loss, predictions = task.evaluate_batch(model, model.model, examples, [0, 1], batch)
        handle.remove()
        outputs = model.model(**batch.inputs)
        assert predictions == task.predict(model, model.model, examples, [0, 1], batch, outputs)
        assert loss == task.loss(outputs, batch.targets, 0.0)
    assert len(made) > 1


def test_prompts_without_completions_can_be_continued() -> None:
    model, task = base("llama", tokenizer()), task_for(TWO, metric="rougeL", max_new_tokens=3)
    rows = table(prompt=["say a", "b"])
    examples = task.features(model, rows, CausalLM.recognise(rows, {"text": "prompt"}), training=False)
    batch = task.collate(model, examples, [0, 1], training=False)
    predictions = task.predict(model, model.model, examples, [0, 1], batch, model.model(**batch.inputs))
    assert task.score(examples, predictions) == {}
    assert [record["source"] for record in task.report(examples, predictions)] == ["say a", "b"]


def test_a_model_of_few_positions_still_has_room_to_write() -> None:
    rows = table(prompt=["x" * 60], completion=["y"])
    model, task = base("gpt2", tokenizer()), task_for(rows, metric="bleu")
    examples = features(task, rows, model, training=False)
    batch = task.collate(model, examples, [0], training=False)
    assert len(task.written(model, model.model, examples, [0], batch)) == 1


def test_prompts_that_are_cut_keep_their_first_token_and_are_counted() -> None:
    rows = table(prompt=["x" * 40 + "ab", "x" * 30], completion=["y", "y"])
    model = base("gpt2", tokenizer(framed=True))
    start = [SPECIALS["<start>"]]
    # Half of the 64 positions are for the generated text, which leaves 32 for 44 and 32 tokens.
    examples = features(task_for(rows, metric="bleu"), rows, model, training=False)
    assert examples.inputs["prompt_ids"] == [start + ids("x" * 28 + "ab\n"), start + ids("x" * 30 + "\n")]
    assert examples.truncated == 1
    assert features(task_for(rows, metric="bleu"), rows, model).truncated == 0
    assert features(task_for(rows), rows, model, training=False).truncated == 0


def test_show() -> None:
    examples = features(task_for(TWO), TWO)
    assert task_for(TWO).show(base("llama", tokenizer()), examples, 0) == "say a\n⟦aaa<end>⟧"
    rows = table(text=["ab"])
    assert task_for(rows).show(base("llama", tokenizer()), features(task_for(rows), rows), 0) == "⟦ab<end>⟧"


def test_what_stands_beside_prompts_is_named() -> None:
    rows = table(prompt=["a"], completion=["b"], system_prompt=["be brief"])
    assert features(task_for(rows), rows).notes == [
        "not read beside prompts, but only beside chats (messages): 'system_prompt'"
    ]


def test_json_text_of_chats_is_certain_unless_the_model_reads_both_ways() -> None:
    rows = table(messages=[json.dumps(CHAT)])
    writer, encoder = (Evidence(base(kind, tokenizer()).model.config, {}) for kind in ("llama", "bert"))
    assert CausalLM.is_certain(rows, writer)
    assert not CausalLM.is_certain(rows, encoder)
    assert CausalLM.is_certain(table(messages=[CHAT]), encoder)
