"""A text handed on while it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, TextStreamer


class ShowError(BaseException):
    """What showing a piece raised, kept apart from what the model raises.

    Args:
        cause: the error.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(cause)
        self.cause = cause


class PieceStreamer(TextStreamer):
    """Hands on the words of a text as they are finished, without the white space around the text.

    Args:
        tokenizer: of the model.
        show: called with each piece.
    """

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self._show = show
        self._begun = False
        self._blanks = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """See `TextStreamer`."""
        text = self._blanks + text if self._begun else text.lstrip()
        piece = text.rstrip()
        self._blanks = text[len(piece) :]
        if piece:
            self._begun = True
            try:
                self._show(piece)
            except Exception as error:
                raise ShowError(error) from None


class StopRequest(StoppingCriteria):
    """Stops a text between two tokens, once it is asked to.

    Args:
        is_asked: tells whether it is.
    """

    def __init__(self, is_asked: Callable[[], bool]) -> None:
        self._is_asked = is_asked

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        """True for each of the texts, `(batch,)`, or for none."""
        return torch.full((len(input_ids),), self._is_asked(), device=input_ids.device)
