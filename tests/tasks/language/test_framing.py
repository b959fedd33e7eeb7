"""Special tokens that a text already holds, in every task: none is doubled, and none is lost."""

from __future__ import annotations

import pytest
from datasets import Dataset
from tiny_text import ids, table, tokenizer

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.language.framing import tokenise_rows


def test_tokenised_leaves_out_empty_texts() -> None:
    tokens = tokenise_rows(tokenizer(framed=True), table(text=["ab", "", "c"]), Columns("text"))
    assert tokens == ([ids("ab"), ids("c")], [])
    with pytest.raises(UsageError, match="every text"):
        tokenise_rows(tokenizer(), table(text=[""]), Columns("text"))
    with pytest.raises(UsageError, match="row 2"):
        tokenise_rows(tokenizer(), Dataset.from_dict({"text": ["a", None]}), Columns("text"))
