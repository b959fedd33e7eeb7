"""Words keep their tags through any tokenizer, and scores are those of words and entities."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    ByT5Tokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForTokenClassification,
    RobertaTokenizer,
)

from capaft.config.parts.model import ModelSettings
from capaft.config.train_config import TrainConfig
from capaft.data import lazy, spool
from capaft.model.load import BaseModel
from capaft.model.origin import Origin
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.language import cut_words, long_texts
from capaft.tasks.token_classification import TokenClassification

NER = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TASK = TokenClassification(NER)
COLUMNS = Columns("tokens", None, "tags")
WORDS = [
    ["Ada", "Lovelace", "wasn't", "in", "Saint-Étienne", ",", "France", "."],
    ["electroencephalographically"],
    ["He", "paid", "$3,999.50", "(in", "cash)", "to", "U.N.", "envoys", "日本", "🙂"],
]
TAGS = [[1, 2, 0, 0, 3, 0, 3, 0], [0], [0, 0, 0, 0, 0, 0, 1, 0, 3, 0]]


def rows(words: list[list[Any]] = WORDS, tags: list[Any] = TAGS, tag: Any = None) -> Dataset:
    features = Features({"tokens": List(Value("string")), "tags": List(tag or ClassLabel(names=list(NER)))})
    return Dataset.from_dict({"tokens": words, "tags": tags}, features=features)


def byte_level(pre_tokenizer: Any) -> Tokenizer:
    """A byte-level BPE, whatever splits its text, trained on a few words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = " ".join(word for row in WORDS for word in row)
    tokenizer.train_from_iterator([f"{text} Saint in wasn envoys paid cash Love lace France Ada"] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def roberta(**options: Any) -> RobertaTokenizer:
    trained = json.loads(byte_level(pre_tokenizers.ByteLevel()).to_str())["model"]
    return RobertaTokenizer(vocab=trained["vocab"], merges=[tuple(pair) for pair in trained["merges"]], **options)


def qwen() -> PreTrainedTokenizerFast:
    split = pre_tokenizers.Split(Regex(r"'(?:s|t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return wrapped(byte_level(pre_tokenizers.Sequence([split, level])))


def metaspace() -> PreTrainedTokenizerFast:
    return wrapped(byte_level(pre_tokenizers.Metaspace()))


def based(tokenizer: Any, model: Any = None) -> BaseModel:
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())
    return BaseModel(model or SimpleNamespace(config=config), tokenizer, Origin("some/model", None), (), True)


@pytest.fixture(scope="module")
def minilm() -> BaseModel:
    return TASK.load_model(ModelSettings(), seed=0)


def naive(tokenizer: Any, words: list[str], tags: list[int], space: str) -> tuple[list[int], list[int]]:
    """Pieces and labels of a row from its words one by one, without special tokens."""
    ids, labels = [], []
    for word, tag in zip(words, tags, strict=True):
        pieces = tokenizer(space + word, add_special_tokens=False)["input_ids"]
        ids += pieces
        labels += [tag if at == 0 else -100 for at in range(len(pieces))]
    return ids, labels


# Alignment


@pytest.mark.parametrize(
    ("make", "space"),
    [
        (None, ""),
        (roberta, " "),
        (lambda: roberta(add_prefix_space=True), " "),
        (qwen, " "),
        (metaspace, ""),
    ],
    ids=["minilm", "roberta", "prefix space", "qwen", "metaspace"],
)
def test_first_tokens_carry_the_tags(minilm: BaseModel, make: Any, space: str) -> None:
    base = based(make()) if make else minilm
    examples = TASK.features(base, rows(), COLUMNS, training=True)
    tokenizer = base.processor
    start, end = (tokenizer.cls_token_id, tokenizer.sep_token_id) if not make else (0, 2)
    for index, (words, tags) in enumerate(zip(WORDS, TAGS, strict=True)):
        ids, labels = naive(tokenizer, words, tags, space)
        assert examples.inputs["input_ids"][index] == [start, *ids, end]
        assert examples.inputs["labels"][index] == [-100, *labels, -100]
        assert examples.references[index].tolist() == tags
        assert examples.inputs["tagged"][index] == list(range(len(words)))
    assert examples.lengths.tolist() == [len(ids) for ids in examples.inputs["input_ids"]]
    assert examples.truncated == 0
    # The words of the row read as in running text; a test of single words would not show it.
    together = tokenizer(" " + "Ada paid in France", add_special_tokens=False)["input_ids"]
    plain = TASK.features(base, rows([["Ada", "paid", "in", "France"]], [[1, 0, 0, 3]]), COLUMNS, training=True)
    assert plain.inputs["input_ids"][0][1:-1] == together


def test_a_word_without_a_token_has_no_label_but_a_reference(minilm: BaseModel) -> None:
    examples = TASK.features(minilm, rows([["Ada", "\u200b", "", "sang"]], [[1, 0, 0, 0]]), COLUMNS, training=True)
    assert examples.inputs["labels"][0] == [-100, 1, 0, -100]
    assert examples.inputs["tagged"][0] == [0, 3]
    assert examples.references[0].tolist() == [1, 0, 0, 0]
    with pytest.raises(UsageError, match=r"row 2: .*no token for any word in column 'tokens'"):
        TASK.features(minilm, rows([["Ada"], ["\u200b"]], [[1], [0]]), COLUMNS, training=True)


def test_cut_rows_are_counted(minilm: BaseModel) -> None:
    short = TokenClassification(NER, max_length=6)
    examples = short.features(
        minilm, rows([["one"] * 4, ["one"] * 5, ["one"] * 9], [[0] * 4, [0] * 5, [0] * 9]), COLUMNS, training=True
    )
    assert examples.truncated == 2
    assert examples.lengths.tolist() == [6, 6, 6]
    assert examples.inputs["tagged"][2] == [0, 1, 2, 3]
    assert len(examples.references[2]) == 9


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(UsageError, match=r"some/model: token-classification needs a fast tokenizer.*ByT5Tokenizer"):
        TASK.features(based(ByT5Tokenizer()), rows(), COLUMNS, training=True)


def test_show_marks_what_counts(minilm: BaseModel) -> None:
    examples = TASK.features(minilm, rows([["Ada", "wasn't"]], [[1, 0]]), COLUMNS, training=True)
    assert TASK.show(minilm, examples, 0) == "[CLS] ada/B-PER wasn/O ' t [SEP]"


# Batches, loss and predictions


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_are_padded_on_the_tokenizers_side(side: str) -> None:
    base = based(roberta(padding_side=side))
    examples = TASK.features(base, rows(), COLUMNS, training=True)
    batch = TASK.collate(base, examples, [1, 0], training=True)
    width = max(examples.lengths[:2])
    assert {name: tensor.shape for name, tensor in batch.inputs.items()} == {
        "input_ids": (2, width),
        "attention_mask": (2, width),
    }
    for at, index in enumerate([1, 0]):
        length = examples.lengths[index]
        tokens = slice(width - length, width) if side == "left" else slice(0, length)
        assert batch.inputs["input_ids"][at, tokens].tolist() == examples.inputs["input_ids"][index]
        assert batch.targets["labels"][at, tokens].tolist() == examples.inputs["labels"][index]
        assert batch.inputs["attention_mask"][at].sum() == length
        assert (batch.targets["labels"][at] != -100).sum() == len(WORDS[index])
    assert batch.terms == len(WORDS[0]) + len(WORDS[1])


def outputs(*shape: int) -> SimpleNamespace:
    return SimpleNamespace(logits=torch.randn(*shape, len(NER), generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_sum_over_words(minilm: BaseModel, smoothing: float) -> None:
    examples = TASK.features(minilm, rows(), COLUMNS, training=True)
    batch = TASK.collate(minilm, examples, [0, 1, 2], training=True)
    result = outputs(*batch.targets["labels"].shape)
    expected = 0.0
    for scores, labels in zip(result.logits.tolist(), batch.targets["labels"].tolist(), strict=True):
        for logits, label in zip(scores, labels, strict=True):
            if label != -100:
                losses = [math.log(sum(map(math.exp, logits))) - score for score in logits]
                expected += (1 - smoothing) * losses[label] + smoothing * sum(losses) / len(losses)
    assert float(TASK.loss(result, batch.targets, smoothing)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_predictions_are_the_classes_of_first_tokens(side: str) -> None:
    base = based(roberta(padding_side=side))
    examples = TASK.features(base, rows(), COLUMNS, training=False)
    batch = TASK.collate(base, examples, [2, 0], training=False)
    made = outputs(*batch.targets["labels"].shape)
    predictions = TASK.predict(base, None, examples, [2, 0], batch, made)
    for at, index in enumerate([2, 0]):
        offset = batch.inputs["input_ids"].shape[1] - examples.lengths[index] if side == "left" else 0
        expected, position = [], offset + 1
        for word in WORDS[index]:
            expected.append(max(range(len(NER)), key=made.logits[at, position].tolist().__getitem__))
            position += len(base.processor(" " + word, add_special_tokens=False)["input_ids"])
        assert predictions[at].tolist() == expected


@pytest.mark.parametrize(("names", "unseen"), [(NER, "O"), (("NOUN", "VERB"), None)])
def test_unseen_words_are_outside_or_wrong(minilm: BaseModel, names: tuple[str, ...], unseen: str | None) -> None:
    task = TokenClassification(names, max_length=4)
    data = rows([["one", "two", "three", "four"]], [[1, 0, 0, 1]], ClassLabel(names=list(names)))
    examples = task.features(minilm, data, COLUMNS, training=False)
    batch = task.collate(minilm, examples, [0], training=False)
    logits = torch.full((1, 4, len(names)), 0.0)
    logits[0, 1, 1] = logits[0, 2, 0] = 1.0
    predictions = task.predict(minilm, None, examples, [0], batch, SimpleNamespace(logits=logits))
    assert task.report(examples, predictions) == [
        {
            "tokens": ["one", "two", "three", "four"],
            "label": [names[1], names[0], names[0], names[1]],
            "predicted": [names[1], names[0], unseen, unseen],
        }
    ]
    scores = task.score(examples, predictions)
    if unseen:
        # The entity that was cut is missed, and a word outside is right.
        assert scores == pytest.approx({"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "accuracy": 0.75})
    else:
        assert scores == pytest.approx({"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "accuracy": 0.5})


# Scores


def scored(names: tuple[str, ...], truth: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    references, predictions = (
        [np.array([names.index(tag) for tag in row]) for row in rows] for rows in (truth, predicted)
    )
    return TokenClassification(names).score(SimpleNamespace(references=references), predictions)


def test_scores_of_seqevals_own_example() -> None:
    """From the documentation of seqeval 1.2.2."""
    names = ("O", "B-MISC", "I-MISC", "B-PER", "I-PER")
    truth = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    assert scored(names, truth, predicted) == {"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 0.8}


def random_entities(generator: np.random.Generator, length: int) -> list[tuple[int, int, str]]:
    """Entities `(first, last, type)` that may stand side by side."""
    entities, at = [], 0
    while at < length:
        size = int(generator.integers(1, 4))
        if generator.random() < 0.5 and at + size <= length:
            entities.append((at, at + size - 1, str(generator.choice(["PER", "LOC"]))))
        at += size
    return entities


SCHEMES = {"IOB2": "BIII", "IOBES": "BIES", "BILOU": "BILU", "BMEWO": "BMEW"}


def tagged(scheme: str, entities: list[tuple[int, int, str]], length: int) -> list[str]:
    begin, inside, end, single = SCHEMES[scheme]
    tags = ["O"] * length
    for first, last, kind in entities:
        for at in range(first, last + 1):
            tags[at] = f"{begin if at == first else end if at == last else inside}-{kind}"
        if first == last:
            tags[first] = f"{'B' if scheme == 'IOB2' else single}-{kind}"
    return tags


@pytest.mark.parametrize("scheme", SCHEMES)
def test_entity_scores_by_counting_entities(scheme: str) -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 12, size=60).tolist()
    truth = [random_entities(generator, length) for length in lengths]
    # Half of the rows are guessed at random, so that some entities are right and some are not.
    predicted = [random_entities(generator, length) if at % 2 else truth[at] for at, length in enumerate(lengths)]
    right = sum(len(set(entities) & set(guessed)) for entities, guessed in zip(truth, predicted, strict=True))
    precision, recall = right / sum(map(len, predicted)), right / sum(map(len, truth))
    names = ("O", *(f"{letter}-{kind}" for letter in sorted(set("B" + SCHEMES[scheme])) for kind in ("PER", "LOC")))
    tags = [[tagged(scheme, row, n) for row, n in zip(rows, lengths, strict=True)] for rows in (truth, predicted)]
    same = [a == b for rows in zip(*tags, strict=True) for a, b in zip(*rows, strict=True)]
    assert scored(names, *tags) == pytest.approx(
        {
            "f1": 2 * precision * recall / (precision + recall),
            "precision": precision,
            "recall": recall,
            "accuracy": sum(same) / len(same),
        }
    )


@pytest.mark.parametrize("names", [("ADJ", "NOUN", "VERB", "X"), ("0", "1", "2", "3")])
def test_scores_of_tags_without_a_scheme_are_means(names: tuple[str, ...]) -> None:
    a, b, c, _ = names
    truth, predicted = [[a, a, b], [b, b, c]], [[a, b, b], [b, b, b]]
    precision, recall = (1 + 3 / 5 + 0) / 3, (1 / 2 + 1 + 0) / 3
    f1 = (2 * 1 * 0.5 / 1.5 + 2 * 0.6 * 1 / 1.6 + 0) / 3
    expected = {"f1": f1, "precision": precision, "recall": recall, "accuracy": 4 / 6}
    assert scored(names, truth, predicted) == pytest.approx(expected)


def test_no_entity_at_all_scores_zero() -> None:
    assert scored(NER, [["O", "O"]], [["O", "O"]]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 1.0}


def test_unknown_metric() -> None:
    with pytest.raises(UsageError, match="f1, precision, recall, accuracy"):
        TokenClassification(NER, metric="bleu")


# Columns and labels


def table(**columns: Any) -> Dataset:
    """Two rows of columns: `s` lists of strings, `i` lists of integers, `t` texts."""
    values = {"s": [["a"], ["b"]], "i": [[0], [1]], "t": ["a", "b"]}
    return Dataset.from_dict({name: values[kind] for name, kind in columns.items()})


@pytest.mark.parametrize(
    ("columns", "named", "expected"),
    [
        ({"id": "t", "tokens": "s", "pos_tags": "i", "chunk_tags": "i", "ner_tags": "i"}, {}, ("tokens", "ner_tags")),
        ({"words": "s", "tags": "s"}, {}, ("words", "tags")),
        ({"text": "t", "tokens": "s", "lemmas": "s", "upos": "i", "xpos": "s"}, {}, ("tokens", "upos")),
        ({"Sentence #": "t", "Word": "s", "POS": "s", "Tag": "s"}, {}, ("Word", "Tag")),
        ({"Tokens": "s", "Labels": "s"}, {}, ("Tokens", "Labels")),
        ({"pieces": "s", "marks": "i"}, {}, ("pieces", "marks")),
        ({"tokens": "s", "ner_tags": "i", "pos_tags": "i"}, {"label": "pos_tags"}, ("tokens", "pos_tags")),
        ({"a": "s", "b": "s"}, {"text": "b", "label": "a"}, ("b", "a")),
        ({"a": "s", "b": "s"}, {"label": "a"}, ("b", "a")),
    ],
)
def test_columns(columns: dict[str, str], named: dict[str, str], expected: tuple[str, str]) -> None:
    read = TokenClassification.recognise(table(**columns), named)
    assert read == Columns(expected[0], None, expected[1])


@pytest.mark.parametrize(
    ("columns", "named", "message"),
    [
        ({"a": "s", "b": "s"}, {}, "which column is the text.*--text-column"),
        ({"tokens": "s", "b": "s", "c": "i"}, {}, "which column is the label.*--label-column"),
        ({"tokens": "s", "label": "t"}, {}, "which column is the label.*no column holds lists of tags"),
        ({"tokens": "s", "tags": "i"}, {"label": "nertags"}, "--label-column nertags: there is no such column"),
        ({"tokens": "s", "tags": "i", "t": "t"}, {"text": "t"}, "--text-column t: .*not hold lists of words"),
        ({"tokens": "s", "tags": "i"}, {"pair": "tags"}, "--pair-column tags: .*drop it"),
    ],
)
def test_columns_that_cannot_be_told(columns: dict[str, str], named: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        TokenClassification.recognise(table(**columns), named)
    assert "\n" not in str(error.value)


def task_for(data: Dataset) -> TokenClassification:
    return TokenClassification.decide(data, COLUMNS, TrainConfig(max_length=40))


def test_labels() -> None:
    words = [["a", "b"], ["c"]]
    assert task_for(rows(words, [[0, 1], [0]])) == TokenClassification(NER, 40)
    assert task_for(rows(words, [["O", "I-X"], ["B-X"]], Value("string"))).labels == ("B-X", "I-X", "O")
    assert task_for(rows(words, [[10, 9], [2]], Value("int32"))).labels == ("2", "9", "10")


def classes(task: TokenClassification, base: BaseModel, tags: list[Any], tag: Any) -> list[int]:
    return task.features(base, rows([["a", "b"]], tags, tag), COLUMNS, training=False).references[0].tolist()


def test_tags_are_matched_by_name(minilm: BaseModel) -> None:
    assert classes(TASK, minilm, [["I-PER", "O"]], Value("string")) == [2, 0]
    assert classes(TASK, minilm, [[1, 0]], ClassLabel(names=["I-LOC", "O"])) == [0, 4]
    assert classes(TASK, minilm, [[3, 0]], Value("int64")) == [3, 0]
    assert classes(TokenClassification(("2", "9", "10")), minilm, [[9, 2]], Value("int64")) == [1, 0]


@pytest.mark.parametrize(
    ("words", "tags", "tag", "message"),
    [
        (
            [["a"], ["b", "c"]],
            [["O"], ["O"]],
            Value("string"),
            "row 2: 2 words in column 'tokens' but 1 tags in column",
        ),
        ([["a"], ["b"]], [["O"], None], Value("string"), "row 2: 1 words in column 'tokens' but 0 tags"),
        ([["a"], []], [["O"], []], Value("string"), "row 2: there are no words in column 'tokens'"),
        ([["a"], None], [["O"], []], Value("string"), "row 2: there are no words in column 'tokens'"),
        ([["a"], ["b", None]], [["O"], ["O", "O"]], Value("string"), "row 2: a word is missing in column 'tokens'"),
        ([["a"], ["b"]], [["O"], ["B-ORG"]], Value("string"), "row 2: .*no label 'B-ORG'; its labels are O, B-PER"),
        ([["a"], ["b"]], [[0], [5]], Value("int64"), "row 2: .*no label '5'"),
    ],
)
def test_rows_that_cannot_be_used(words: list[Any], tags: list[Any], tag: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        TASK.check_labels(rows(words, tags, tag), COLUMNS)
    assert "\n" not in str(error.value)


def test_words_without_a_tag_are_neither_learnt_nor_scored(minilm: BaseModel) -> None:
    data = rows([["a", "b", "c"], ["d", "e"]], [[0, -100, 1], [-1, 2]], ClassLabel(names=NER))
    assert TokenClassification.classes(data, COLUMNS) == NER
    TASK.check_labels(data, COLUMNS)
    made = TASK.features(minilm, data, COLUMNS, training=False)
    assert [tags.tolist() for tags in made.references] == [[0, -100, 1], [-100, 2]]
    assert [[label for label in row if label != -100] for row in made.inputs["labels"]] == [[0, 1], [2]]
    batch = TASK.collate(minilm, made, [0, 1], training=False)
    assert batch.terms == 3
    logits = torch.nn.functional.one_hot(batch.targets["labels"].clamp(0), len(NER)).float()
    predictions = TASK.predict(minilm, minilm.model, made, [0, 1], batch, SimpleNamespace(logits=logits))
    assert TASK.score(made, predictions) == {"f1": 1.0, "precision": 1.0, "recall": 1.0, "accuracy": 1.0}
    assert [record["label"] for record in TASK.report(made, predictions)] == [[NER[0], None, NER[1]], [None, NER[2]]]
    assert [record["predicted"] for record in TASK.report(made, predictions)] == [
        [NER[0], None, NER[1]],
        [None, NER[2]],
    ]


@pytest.mark.parametrize(
    ("words", "tags", "tag"),
    [
        ([["a"], ["b"], [], None, ["c", None], ["d"]], [["O"], [], [], ["O"], ["O", "O"], [""]], Value("string")),
        ([["a"], ["b"], ["c", "d"]], [[0], [-1], [-100, -1]], Value("int64")),
        ([["a"], ["b"], ["c", "d"]], [[0], None, [None, -1]], ClassLabel(names=NER)),
    ],
)
def test_rows_without_any_tag_are_of_no_use(words: list[Any], tags: list[Any], tag: Any) -> None:
    usable = TokenClassification.usable(rows(words, tags, tag), COLUMNS, TrainConfig())
    assert usable.tolist() == [True] + [False] * (len(words) - 1)


def test_one_tag_is_nothing_to_learn() -> None:
    with pytest.raises(UsageError, match="column 'tags' has 1 different tags"):
        task_for(rows([["a"], ["b"]], [["O"], ["O"]], Value("string")))


# Learning


def test_a_small_model_learns_to_find_names(tmp_path: Any) -> None:
    """A name is whatever follows a title, up to two words; elsewhere the same words are not names."""
    generator = np.random.default_rng(0)
    names, fillers = ["Ada", "France", "Lovelace", "cash"], ["in", "paid", "envoys", "to", "."]
    words, tags = [], []
    for _ in range(192):
        row, marks = [], []
        for _ in range(3):
            filler = [str(generator.choice(fillers + names)) for _ in range(int(generator.integers(1, 3)))]
            name = [str(generator.choice(names)) for _ in range(int(generator.integers(1, 3)))]
            row += [*filler, "Saint", *name, "."]
            marks += ["O"] * (len(filler) + 1) + ["B-PER", "I-PER"][: len(name)] + ["O"]
        words.append(row)
        tags.append(marks)
    train = rows(words[:128], tags[:128], Value("string"))
    held_out = rows(words[128:], tags[128:], Value("string"))

    tokenizer = roberta(model_max_length=128)
    tokenizer.save_pretrained(tmp_path)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=130,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    RobertaForTokenClassification(config).save_pretrained(tmp_path)
    task = TokenClassification(task_for(train).labels)
    base = task.load_model(ModelSettings(model=str(tmp_path)), seed=0)
    features, unseen = (task.features(base, data, COLUMNS, training=True) for data in (train, held_out))

    def scores() -> dict[str, float]:
        batch = task.collate(base, unseen, range(len(unseen)), training=False)
        with torch.inference_mode():
            result = base.model.eval()(**batch.inputs)
        return task.score(unseen, task.predict(base, base.model, unseen, range(len(unseen)), batch, result))

    before, losses = scores(), []
    optimizer = torch.optim.AdamW(base.model.parameters(), lr=4e-3)
    base.model.train()
    for step in range(90):
        batch = task.collate(base, features, [(step * 16 + at) % 128 for at in range(16)], training=True)
        loss = task.loss(base.model(**batch.inputs), batch.targets, 0.0) / batch.terms
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    after = scores()
    assert losses[-1] < 0.3 * losses[0]
    assert before["f1"] < 0.5 < 0.8 < after["f1"]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_only_as_many_words_of_a_long_row_are_tokenised_as_are_read(
    side: str, add_prefix_space: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = wrapped(byte_level(pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)))
    tokenizer.truncation_side = side
    loaded = based(tokenizer)
    data = rows([*WORDS, [*WORDS[0] * 9, "x" * 900], WORDS[2] * 5], [*TAGS, [*TAGS[0] * 9, 1], TAGS[2] * 5])
    task = TokenClassification(NER, max_length=20)
    whole = task.features(loaded, data, COLUMNS, training=True)
    for module, name, value in (
        (cut_words, "PIECE", 48),
        (long_texts, "PIECE", 48),
        (long_texts, "LONGEST_PIECE", 2000),
        (spool, "KEPT", 0),
        (spool, "KEPT_NUMBERS", 0),
        (lazy, "ROWS", 2),
    ):
        monkeypatch.setattr(module, name, value)
    parts = task.features(loaded, data, COLUMNS, training=True)
    assert isinstance(parts.inputs["labels"], spool.StoredColumn)
    assert parts.truncated == whole.truncated >= 2
    for column in whole.inputs:
        assert list(parts.inputs[column]) == list(whole.inputs[column])
    for one, another in zip(parts.references, whole.references, strict=True):
        assert one.tolist() == another.tolist()
    assert list(parts.sources) == list(whole.sources)
