"""Dropout on the input of an adapter."""

from __future__ import annotations

import pytest
import tiny

import capaft


def test_dropout_that_has_no_place_is_told() -> None:
    with pytest.warns(UserWarning, match="no dropout at embeddings.word_embeddings"):
        capaft.attach(tiny.bert(), "lora", targets="word_embeddings,query", dropout=0.1)
