"""A padding token for tokenizers that have none."""

from __future__ import annotations

from capaft.model.load import BaseModel
from capaft.support.errors import UsageError


def ensure_padding(loaded: BaseModel) -> None:
    """Let a tokenizer without a padding token pad with its end-of-text token; attention masks hide it.

    Raises:
        UsageError: it has neither.
    """
    tokenizer, config = loaded.processor, loaded.model.config
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise UsageError("the tokenizer has neither a padding nor an end-of-text token; add one to the checkpoint")
    # Heads of decoders read the last token that is not the configuration's padding.
    for part in (config, config.get_text_config()):
        part.pad_token_id = tokenizer.pad_token_id
