"""Tokens in examples, compared with the model's embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny import build
from tiny_text import SIZE, base, tokenizer
from transformers import BertConfig, BertModel

from capaft.model.load import BaseModel
from capaft.model.origin import Origin
from capaft.support.errors import UsageError
from capaft.tasks.base.features import Features
from capaft.tasks.base.token_ids import check_token_ids, largest_id


def features(**inputs: Any) -> Features:
    return Features(inputs, np.array([1], dtype=np.int64))


def larger() -> Any:
    processor = tokenizer()
    processor.add_tokens(["superb"])
    return processor


def test_a_token_beyond_the_embedding_is_named() -> None:
    model = base("gpt2", larger())
    check_token_ids(model, features(input_ids=[[1, SIZE - 1], []]))
    for inputs in ({"input_ids": [[1], [SIZE]]}, {"input_ids": [[1]], "labels": [[-100, SIZE]]}):
        with pytest.raises(UsageError, match=rf"embeddings for {SIZE}: .* token {SIZE}, 'superb'; .*--resize-embed"):
            check_token_ids(model, features(**inputs))


def test_padding_beyond_the_embedding() -> None:
    processor = tokenizer()
    processor.add_special_tokens({"pad_token": "<other>"})
    with pytest.raises(UsageError, match="<other>"):
        check_token_ids(base("gpt2", processor), features(input_ids=[[1]]))


@pytest.mark.parametrize("start", [None, -1, 10**9, "x", [1]])
def test_a_start_of_decoders_that_is_no_token(start: object, monkeypatch: pytest.MonkeyPatch) -> None:
    model = base("t5", tokenizer())
    check_token_ids(model, features(input_ids=[[1]], labels=[[1]]))
    monkeypatch.setattr(model.model.config, "decoder_start_token_id", start)
    with pytest.raises(UsageError, match="decoder_start_token_id"):
        check_token_ids(model, features(input_ids=[[1]], labels=[[1]]))


def test_a_type_beyond_the_embedding() -> None:
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = build(BertModel, BertConfig(vocab_size=SIZE, type_vocab_size=1, **shape))
    single = BaseModel(model, tokenizer(), Origin("m", None), (), False)
    check_token_ids(single, features(input_ids=[[1, 2]], token_type_ids=[[0, 0]]))
    with pytest.raises(UsageError, match=r"of type 1, and the model has 1 types"):
        check_token_ids(single, features(input_ids=[[1, 2]], token_type_ids=[[0, 1]]))


def test_the_largest_number_in_nested_sequences() -> None:
    assert largest_id([[], [1, [2, 7]], np.array([5], dtype=np.int32)]) == 7
    assert largest_id([]) == largest_id(np.array([], dtype=np.int32)) == -1
