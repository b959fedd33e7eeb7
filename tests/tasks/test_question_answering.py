"""Windows against the tokenizer's own, spans against a search of all pairs, scores against the official definitions."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import build
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    T5Config,
    XLNetConfig,
)

from capaft.config.parts.model import ModelSettings
from capaft.config.train_config import TrainConfig
from capaft.data import spool
from capaft.model.demo import demo_model
from capaft.model.load import BaseModel
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.language import long_texts
from capaft.tasks.question_answering import QuestionAnswering
from capaft.tasks.spans import squad_metrics
from capaft.tasks.spans.answers import Answer, locate_answer, read_answers
from capaft.tasks.spans.best_span import Span, best_span
from capaft.tasks.spans.windows import TokenisedRow, Window, tokenise_rows

COLUMNS = Columns("question", "context", "answers")
CONTEXT = "The Tower of London was built in 1078. William the Conqueror, a Norman, built it. " + "It still stands. " * 9
TASK = QuestionAnswering(max_length=32, stride=8)


def byte_level() -> PreTrainedTokenizerFast:
    """One token a byte, no special tokens around texts, padded on the left: as GPT-2 for generation."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<pad>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", padding_side="left")


def classifier_last() -> PreTrainedTokenizerFast:
    """Words, and the special tokens where XLNet has them; padded on the left."""
    words = sorted({*CONTEXT.replace(".", " . ").replace(",", " , ").split(), "Who", "When", "?"})
    names = ["<unk>", "<sep>", "<cls>", "<pad>", *words]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <sep> <cls>", pair="$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2", special_tokens=[("<sep>", 1), ("<cls>", 2)]
    )
    special = {name: f"<{name[:3]}>" for name in ("unk_token", "sep_token", "cls_token", "pad_token")}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", model_input_names=names, **special)


BERT = AutoTokenizer.from_pretrained(demo_model())
TOKENIZERS = {"bert": BERT, "bytes": byte_level(), "classifier last": classifier_last()}
LENGTHS = {"bert": 32, "bytes": 96, "classifier last": 24}


def base(tokenizer, model=None, *, segments=True) -> BaseModel:
    config = SimpleNamespace(get_text_config=lambda: None)
    forward = (lambda input_ids, token_type_ids: None) if segments else lambda input_ids: None
    model = model or SimpleNamespace(forward=forward, config=config)
    return BaseModel(model, tokenizer, None, (), True)


def rows(*triples: tuple[str, str, list[tuple[str, int]]], **more: list) -> Dataset:
    questions, contexts, places = map(list, zip(*triples, strict=True))
    answers = [{"text": [text for text, _ in of_row], "answer_start": [at for _, at in of_row]} for of_row in places]
    table = {"question": questions, "context": contexts, "answers": answers, **more}
    kinds = {"answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))}}
    kinds |= {name: Value("string") for name in table if name != "answers"}
    return Dataset.from_dict(table, features=Features(kinds))


def at(text: str, context: str = CONTEXT) -> tuple[str, int]:
    return text, context.index(text)


def expected_windows(tokenizer, question, context, answer, max_length, stride):
    """Ids, segments and positions as the example scripts of transformers find them, by the tokenizer's own windows."""
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    windows = []
    for index, ids in enumerate(encoded["input_ids"]):
        sequence, offsets = encoded.sequence_ids(index), encoded["offset_mapping"][index]
        null = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
        where = (null, null)
        if answer is not None:
            start, end = answer[1], answer[1] + len(answer[0])
            tokens = [token for token in range(len(ids)) if sequence[token] == 1]
            if offsets[tokens[0]][0] <= start and end <= offsets[tokens[-1]][1]:
                first, last = tokens[0], tokens[-1]
                while offsets[first][1] <= start:
                    first += 1
                while offsets[last][0] >= end:
                    last -= 1
                where = (first, last)
        windows.append((ids, encoded["token_type_ids"][index], *where))
    return windows


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("stride", [0, 3, 8])
def test_windows_and_positions_are_those_of_the_tokenizer(name: str, stride: int) -> None:
    tokenizer, length = TOKENIZERS[name], LENGTHS[name]
    task = QuestionAnswering(max_length=length, stride=stride, no_answer=True)
    words = list(re.finditer(r"\w+", CONTEXT))
    pairs = [(CONTEXT[one.start() : two.end()], one.start()) for one, two in pairwise(words)]
    data = [("Who?", CONTEXT, [pair]) for pair in pairs]
    data += [("When?", CONTEXT, []), ("When?", "in 1078", [("1078", 3)])]
    examples = task.features(base(tokenizer), rows(*data), COLUMNS, training=True)
    expected = [
        window
        for question, context, answers in data
        for window in expected_windows(tokenizer, question, context, (answers or [None])[0], length, stride)
    ]
    got = zip(*(examples.inputs[name] for name in ("input_ids", "start", "end")), strict=True)
    assert [(ids.tolist(), *where) for ids, *where in got] == [(ids, *where) for ids, _, *where in expected]
    segments = [window.token_type_ids.tolist() for window in examples.references.windows]
    assert segments == [types for _, types, *_ in expected]
    assert ("token_type_ids" in examples.inputs) == (name != "bytes")
    assert examples.lengths.tolist() == [len(ids) for ids, *_ in expected]
    assert len(examples) > 2 * len(data)
    assert examples.truncated == 0


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_of_long_contexts_on_disk_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    long = " ".join(f"{CONTEXT} {number}" for number in range(9))
    data = rows(*(("Who?", f"{blank}{long}", [("The", len(blank))]) for blank in ("", " \n")), ("Who?", "The b", []))
    task = replace(TASK, max_length=LENGTHS[name], no_answer=True)
    whole = task.features(base(TOKENIZERS[name]), data, COLUMNS, training=False)
    monkeypatch.setattr(long_texts, "PIECE", 48)
    monkeypatch.setattr(long_texts, "_NEAR", 12)
    monkeypatch.setattr(spool, "KEPT", 0)
    monkeypatch.setattr(spool, "KEPT_NUMBERS", 0)
    parts = task.features(base(TOKENIZERS[name]), data, COLUMNS, training=False)
    assert isinstance(parts.inputs["input_ids"], spool.StoredColumn)
    assert parts.lengths.tolist() == whole.lengths.tolist()
    for column in whole.inputs:
        assert list(map(plain, parts.inputs[column])) == list(map(plain, whole.inputs[column]))
    for one, another in zip(parts.references.windows, whole.references.windows, strict=True):
        assert [plain(getattr(one, name)) for name in Window.__slots__] == [
            plain(getattr(another, name)) for name in Window.__slots__
        ]


def plain(value: Any) -> Any:
    return np.asarray(value).tolist()


WORDS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=9)


@settings(deadline=None, max_examples=60)
@given(words=st.lists(WORDS, min_size=1, max_size=40), data=st.data(), name=st.sampled_from(["bert", "bytes"]))
def test_positions_decode_to_the_answer_and_windows_cover_the_context(words, data, name) -> None:
    tokenizer, context = TOKENIZERS[name], " ".join(words)
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(first + 3, len(words) - 1)))
    start = sum(map(len, words[:first])) + first
    text = " ".join(words[first : last + 1])
    task = QuestionAnswering(max_length=data.draw(st.integers(240, 300)), stride=200)
    if name == "bert":
        task = replace(task, max_length=data.draw(st.integers(70, 90)), stride=60)
    examples = task.features(base(tokenizer), rows(("Who?", context, [(text, start)])), COLUMNS, training=True)
    cut = examples.references.windows
    assert [window.begin for window in cut[1:]] == [window.end - task.stride for window in cut[:-1]]
    assert cut[0].begin == 0
    assert cut[-1].end == len(tokenizer(context, add_special_tokens=False)["input_ids"])
    assert max(examples.lengths) <= task.max_length
    alone = tokenizer(text, add_special_tokens=False)["input_ids"]
    for window, ids, one, two in zip(
        cut, *(examples.inputs[name] for name in ("input_ids", "start", "end")), strict=True
    ):
        shown = ids[window.first : window.first + window.end - window.begin]
        assert shown.tolist() == tokenizer(context, add_special_tokens=False)["input_ids"][window.begin : window.end]
        if (one, two) == (window.null, window.null):
            continue
        assert window.text(context, one, two) == text
        assert ids[one : two + 1].tolist() == alone
    if len(alone) <= task.stride:
        assert any(one != window.null for window, one in zip(cut, examples.inputs["start"], strict=True))


def test_spaces_that_belong_to_a_token_are_not_part_of_an_answer() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "Ġ": 1, "Ġa": 2, "b": 3, "Ġb": 4}, [("Ġ", "a"), ("Ġ", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    (row,) = tokenise_rows(PreTrainedTokenizerFast(tokenizer_object=tokenizer), ["a"], ["a b a"], 8)
    assert row.characters.tolist() == [[0, 1], [1, 3], [3, 5]]
    (cut,) = row.windows(8, 2, "row 1")
    assert cut.shifted(row.tokens(2, 3)) == (2, 2)
    assert cut.text("a b a", 2, 2) == "b"


def test_tokens_that_stand_for_nothing_are_no_answers() -> None:
    characters = np.array([[0, 0], [0, 3], [0, 0], [3, 5]])
    nothing = Window(0, np.arange(5), np.zeros(5), 0, 1, 0, 4, characters)
    assert nothing.answerable().tolist() == [False, False, True, False, True]
    row = TokenisedRow(0, np.arange(4), characters, np.zeros((2, 1)), np.zeros((2, 0)), 0, 0)
    assert nothing.shifted(row.tokens(0, 3)) == (2, 2)
    assert nothing.shifted(row.tokens(1, 5)) == (2, 4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side(side: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model(), padding_side=side)
    data = rows(("Who?", CONTEXT, [at("William")]), ("When?", "in 1078", [("1078", 3)]))
    examples = TASK.features(base(tokenizer), data, COLUMNS, training=True)
    last = len(examples) - 1
    batch = TASK.collate(base(tokenizer), examples, [0, last], training=True)
    assert batch.terms == 2
    assert batch.inputs["input_ids"].shape == (2, 32) == batch.targets["mask"].shape
    for row, index in enumerate((0, last)):
        positions = [int(batch.targets[name][row]) for name in ("start", "end")]
        kept = batch.inputs["input_ids"][row][positions[0] : positions[1] + 1].tolist()
        start, end = (examples.inputs[name][index] for name in ("start", "end"))
        assert kept == examples.inputs["input_ids"][index][start : end + 1].tolist()
    answer = tokenizer("1078", add_special_tokens=False)["input_ids"]
    assert batch.inputs["input_ids"][1][batch.targets["start"][1] : batch.targets["end"][1] + 1].tolist() == answer


def test_segments_go_only_to_models_that_take_them() -> None:
    plain = base(BERT, segments=False)
    examples = TASK.features(plain, rows(("When?", "in 1078", [("1078", 3)])), COLUMNS, training=True)
    assert set(TASK.collate(plain, examples, [0], training=True).inputs) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_is_that_of_unpadded_windows(side: str, smoothing: float) -> None:
    lengths, width = [5, 3, 4], 5
    start, end = torch.randn(2, 3, width, dtype=torch.float64).unbind()
    positions = torch.tensor([[1, 3], [0, 2], [-100, -100]])
    mask, shift = torch.zeros(3, width, dtype=torch.bool), [0, 0, 0]
    for row, length in enumerate(lengths):
        shift[row] = width - length if side == "left" else 0
        mask[row, shift[row] : shift[row] + length] = True
    moved = torch.where(positions < 0, positions, positions + torch.tensor(shift)[:, None])
    outputs = SimpleNamespace(start_logits=start.requires_grad_(), end_logits=end)
    loss = TASK.loss(outputs, {"mask": mask, "start": moved[:, 0], "end": moved[:, 1]}, smoothing)
    expected = sum(
        F.cross_entropy(logits[row][mask[row]].float(), positions[row, which], label_smoothing=smoothing)
        for which, logits in enumerate((start, end))
        for row in range(2)
    )
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(expected.detach()) / 2, rel=1e-6)
    loss.backward()
    assert outputs.start_logits.grad.isfinite().all()
    assert not outputs.start_logits.grad[2].any()


def naive_answers(features, logits, task: QuestionAnswering) -> list[str]:
    """Every pair of tokens of every window, by the rules of the official scripts."""
    answers = []
    for row, context in enumerate(features.references.contexts):
        candidates, nulls = [], []
        for window, (start, end) in zip(features.references.windows, logits, strict=True):
            if window.row != row:
                continue
            nulls.append(float(start[window.null] + end[window.null]))
            inside = range(window.first, window.first + window.end - window.begin)
            starts = sorted(inside, key=lambda token: -start[token])[: task.n_best]
            ends = sorted(inside, key=lambda token: -end[token])[: task.n_best]
            for first in starts:
                for last in ends:
                    if first <= last < first + task.max_answer_length:
                        characters = window.characters
                        text = context[characters[first - window.first, 0] : characters[last - window.first, 1]]
                        candidates.append((float(start[first] + end[last]), text))
        score, text = max(candidates, default=(-np.inf, ""))
        answers.append("" if task.no_answer and min(nulls) > score + task.no_answer_threshold else text)
    return answers


@pytest.mark.parametrize("n_best", [2, 1000])
@pytest.mark.parametrize("no_answer", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_answers_are_those_of_a_search_of_all_pairs(seed: int, no_answer: bool, n_best: int) -> None:
    task = replace(TASK, n_best=n_best, no_answer=no_answer, max_answer_length=4, no_answer_threshold=0.3 * (seed % 2))
    loaded = base(AutoTokenizer.from_pretrained(demo_model(), padding_side=["left", "right"][seed % 2]))
    data = rows(*((f"Who {i}?", CONTEXT[:length], [("The", 0)]) for i, length in enumerate([9, 90, 200, 40, 160])))
    examples = task.features(loaded, data, COLUMNS, training=False)
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(2, int(length), generator=generator) for length in examples.lengths]
    for window, pair in zip(examples.references.windows, logits, strict=True):
        pair[:, window.null] += 1.5
        # The question is likeliest, but is not an answer.
        pair[:, 2] += 5
    predictions = [None] * len(examples)
    for indices in (range(0, len(examples), 2), range(1, len(examples), 2)):
        batch = task.collate(loaded, examples, list(indices), training=False)
        padded = torch.full((2, *batch.inputs["input_ids"].shape), 100.0)
        for row, index in enumerate(indices):
            padded[:, row, batch.targets["mask"][row]] = logits[index]
        outputs = SimpleNamespace(start_logits=padded[0], end_logits=padded[1])
        spans = task.predict(loaded, None, examples, list(indices), batch, outputs)
        for index, span in zip(indices, spans, strict=True):
            predictions[index] = pickle.loads(pickle.dumps(span))
    expected = naive_answers(examples, logits, task)
    report = task.report(examples, predictions)
    assert [record["predicted"] for record in report] == expected
    assert [record["id"] for record in report] == ["1", "2", "3", "4", "5"]
    assert report[1]["question"] == "Who 1?"
    assert report[1]["references"] == ["The"]
    if no_answer and n_best > 2:
        assert "" in expected
        assert set(expected) != {""}


def test_a_window_in_which_no_start_goes_with_an_end() -> None:
    window = Window(0, np.arange(4), np.zeros(4), 0, 1, 0, 3, np.array([[0, 1], [1, 2], [2, 3]]))
    rising = torch.tensor([0.0, 1, 2, 3])
    assert best_span(rising, -rising, window, 1, 30).score == -np.inf
    assert best_span(rising, -rising, window, 3, 30).score == 0.0
    examples = replace(TASK, n_best=1).features(base(BERT), rows(("Who?", "a b", [("a", 0)])), COLUMNS, training=False)
    assert TASK.report(examples, [Span(0, 0, -np.inf, 0.0)])[0]["predicted"] == ""


# Answers, references, exact match and F1, counted by hand by the rules of evaluate-v2.0.py.
SCORED = [
    ("The Eiffel Tower!", ["Eiffel tower"], 1.0, 1.0),
    ("an  Eiffel\ttower", ["the eiffel-tower"], 0.0, 0.0),
    ("in Paris, France", ["Paris", "Paris France"], 0.0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
    ("theatre and anthem", ["the theatre"], 0.0, 2 * (1 / 3) * 1 / (1 / 3 + 1)),
    ("to be or not to be", ["be to be"], 0.0, 2 * (3 / 6) * (3 / 3) / (3 / 6 + 1)),
    ("London", ["Paris", "Rome"], 0.0, 0.0),
    ("", [], 1.0, 1.0),
    ("something", [], 0.0, 0.0),
    ("", ["Paris"], 0.0, 0.0),
    ("U.S.", ["us"], 1.0, 1.0),
    # Version 2 expects an empty answer where all references are articles.
    ("a", ["The"], 1.0, 1.0),
    ("Paris", ["the", "Paris"], 1.0, 1.0),
    ("a", ["the", "Paris"], 0.0, 0.0),
]


@pytest.mark.parametrize(("answer", "references", "exact", "f1"), SCORED)
def test_exact_match_and_f1(answer: str, references: list[str], exact: float, f1: float) -> None:
    assert squad_metrics.exact_match(answer, references) == exact
    assert squad_metrics.f1(answer, references) == pytest.approx(f1)


def test_version_2_is_scored_by_kind_too() -> None:
    data = rows(
        ("Who?", "William did", [("William", 0)]),
        ("When?", "William did", []),
        ("Where?", "William did", []),
        ("What?", "William did", [("did", 8)]),
    )
    task = QuestionAnswering.decide(data, COLUMNS, TrainConfig(max_length=16, no_answer_threshold=1.0))
    assert task.no_answer
    assert task.options()["no_answer_threshold"] == 1.0
    examples = task.features(base(BERT), data, COLUMNS, training=False)
    silent, whole, right = Span(4, 4, 0.0, 2.0), Span(4, 5, 3.0, 3.5), Span(4, 4, 3.0, 4.0)
    scores = task.score(examples, [right, silent, whole, whole])
    assert scores == pytest.approx(
        {
            "f1": (1 + 1 + 0 + 2 / 3) / 4,
            "exact_match": 2 / 4,
            "f1_answerable": (1 + 2 / 3) / 2,
            "exact_match_answerable": 1 / 2,
            "no_answer_accuracy": 1 / 2,
        }
    )
    assert set(scores) == set(QuestionAnswering.metrics)
    version_1 = QuestionAnswering.decide(data.select([0, 3]), COLUMNS, TrainConfig())
    assert not version_1.no_answer
    assert (version_1.max_length, version_1.metric) == (384, "f1")
    examples = version_1.features(base(BERT), data.select([0, 3]), COLUMNS, training=False)
    assert version_1.score(examples, [silent, whole]) == pytest.approx({"f1": (1 + 2 / 3) / 2, "exact_match": 1 / 2})


def test_columns_are_told_by_name_and_by_what_they_hold() -> None:
    answer = {"text": "c", "answer_start": 0}
    structs = Dataset.from_dict({"title": ["t"], "context": ["c"], "question": ["q"], "answers": [[answer]]})
    lists = rows(("q", "c", [("c", 0)]))
    for data in (structs, lists):
        assert QuestionAnswering.recognise(data, {}) == COLUMNS
        assert read_answers(data, "answers") == [[Answer("c", 0)]]
    renamed = lists.rename_columns({"question": "query", "context": "passage", "answers": "gold"})
    assert QuestionAnswering.recognise(renamed, {"label": "gold"}) == Columns("query", "passage", "gold")
    with pytest.raises(UsageError, match=r"no column of a usual name holds answers.*--label-column"):
        QuestionAnswering.recognise(renamed, {})
    with pytest.raises(UsageError, match="another role"):
        QuestionAnswering.recognise(lists, {"text": "question", "pair": "question"})
    with pytest.raises(UsageError, match="does not hold"):
        QuestionAnswering.recognise(lists, {"label": "context"})


def test_ids_are_the_rows_own() -> None:
    examples = TASK.features(base(BERT), rows(("Who?", "a b", [("a", 0)]), id=["5e"]), COLUMNS, training=False)
    assert examples.references.ids == ["5e"]
    assert TASK.show(base(BERT), examples, 0) == "[CLS] who? [SEP] a b [SEP] -> a"


@pytest.mark.parametrize(
    ("context", "answer", "place"),
    [
        ("a cat and a cat", Answer("cat", 12), (12, 15)),
        ("a cat and a cat", Answer("cat", 10), (12, 15)),
        ("a cat and a cat", Answer(" cat ", 1), (2, 5)),
        ("May may May", Answer("may", 8), (4, 7)),
        ("MAY be", Answer("may", 5), (0, 3)),
        ("two\n words (x)", Answer("two words (x)", 0), (0, 14)),
        ("café", Answer("cafe", 0), None),
    ],
)
def test_answers_that_stand_elsewhere_are_found(context: str, answer: Answer, place: tuple[int, int] | None) -> None:
    assert locate_answer(context, answer) == place


def test_rows_whose_answer_is_nowhere() -> None:
    data = rows(("Who?", "a b", [("a", 0)]), ("What?", "a b", [("z", 0)]), ("When?", "a b", [("z", 0), ("b", 2)]))
    examples = TASK.features(base(BERT), data, COLUMNS, training=True)
    assert examples.left_out == "1 of 3 training rows is left out, their answers are not in the context: row 2"
    assert [window.row for window in examples.references.windows] == [0, 2]
    assert examples.inputs["start"][1] > examples.inputs["start"][0] > 0
    with pytest.raises(UsageError, match="2 of 2"):
        TASK.features(base(BERT), data.select([1, 1]), COLUMNS, training=True)
    kept = TASK.features(base(BERT), data, COLUMNS, training=False)
    assert kept.left_out == ""
    batch = TASK.collate(base(BERT), kept, [0, 1, 2], training=False)
    assert batch.terms == 2
    assert TASK.show(base(BERT), kept, 1).endswith("(unknown)")
    assert TASK.score(kept, [Span(4, 4, 1.0, 0.0)] * 3)["exact_match"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (("Who is it? " * 6, CONTEXT, [at("1078")]), "row 1: .*room for 5 tokens.*--stride 8"),
        (("Who is it? " * 9, CONTEXT, [at("1078")]), "row 1: .*room for 0 tokens"),
        (("Who?", "", [("1078", 0)]), "row 1: its context is empty"),
        ((" ", CONTEXT, [at("1078")]), "row 1: its question is empty"),
        ((None, CONTEXT, [at("1078")]), "row 1: no text in column 'question'"),
        (("Who?", None, [at("1078")]), "row 1: no text in column 'context'"),
        (("Who?", CONTEXT, []), "row 1: there is no answer"),
        (("Who?", CONTEXT, [("1078", None)]), "row 1: its answers are not"),
    ],
)
def test_rows_that_cannot_be_used(data, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        TASK.features(base(BERT), rows(data), COLUMNS, training=False)
    assert "\n" not in str(error.value)


def test_metrics_that_these_questions_do_not_have() -> None:
    answered = rows(("Who?", "a b", [("a", 0)]))
    for metric in ("no_answer_accuracy", "f1_answerable", "exact_match_answerable"):
        task = replace(TASK, metric=metric)
        task.features(base(BERT), answered, COLUMNS, training=True)
        with pytest.raises(UsageError, match=f"--metric {metric} needs questions"):
            task.features(base(BERT), answered, COLUMNS, training=False)


def test_slow_tokenizers_are_refused() -> None:
    with pytest.raises(UsageError, match="fast tokenizer"):
        next(tokenise_rows(SimpleNamespace(is_fast=False), ["Who?"], ["a"], 8))


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
MODELS = {
    "llama": LlamaConfig(vocab_size=300, num_key_value_heads=2, **SIZES),
    "gpt2": GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
    "t5": T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0),
    "xlnet": XLNetConfig(vocab_size=300, d_model=16, n_layer=1, n_head=2, d_inner=16),
    "distilbert": DistilBertConfig(vocab_size=300, dim=16, n_layers=1, n_heads=2, hidden_dim=16),
}


@pytest.mark.parametrize("kind", MODELS)
def test_losses_and_answers_are_the_same_in_any_batch(kind: str) -> None:
    model = build(AutoModelForQuestionAnswering.from_config, MODELS[kind])
    tokenizer = {"xlnet": classifier_last, "distilbert": classifier_last}.get(kind, byte_level)()
    if kind != "xlnet":
        # Others count positions from the first token, be it padding or not.
        tokenizer.padding_side = "right"
    loaded = base(tokenizer, model)
    task = QuestionAnswering(max_length=96 if tokenizer.cls_token is None else 24, stride=8)
    data = rows(("Who?", CONTEXT, [at("William the Conqueror")]), ("When?", "in 1078", [("1078", 3)]))
    examples = task.features(loaded, data, COLUMNS, training=False)

    def both(indices):
        batch = task.collate(loaded, examples, indices, training=False)
        with torch.inference_mode():
            outputs = model(**batch.inputs)
        predictions = task.predict(loaded, model, examples, indices, batch, outputs)
        return float(task.loss(outputs, batch.targets, 0.1)), batch.terms, predictions

    loss, terms, together = both(list(range(len(examples))))
    alone = [both([index]) for index in range(len(examples))]
    assert terms == len(examples) > 2
    assert loss == pytest.approx(sum(result[0] for result in alone), rel=1e-4)
    for span, (_, _, other) in zip(together, alone, strict=True):
        assert (span.first, span.last) == (other[0].first, other[0].last)
        assert (span.score, span.null) == pytest.approx((other[0].score, other[0].null), abs=1e-4)


def test_the_embedded_model_gets_a_head_of_two_outputs() -> None:
    loaded = TASK.load_model(ModelSettings(), seed=0)
    assert loaded.model.qa_outputs.out_features == 2
    examples = TASK.features(loaded, rows(("Who?", CONTEXT, [at("William")])), COLUMNS, training=True)
    batch = TASK.collate(loaded, examples, range(len(examples)), training=True)
    loss = TASK.loss(loaded.model(**batch.inputs), batch.targets, 0.0)
    assert float(loss.detach()) / batch.terms == pytest.approx(np.log(32), rel=0.1)
