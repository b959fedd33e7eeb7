"""Speech written by a decoder: Whisper and the like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from capaft.model.load import BaseModel
from capaft.support.errors import UsageError, did_you_mean
from capaft.tasks.base.features import Batch
from capaft.tasks.language.token_loss import summed_loss
from capaft.tasks.language.words import base_language
from capaft.tasks.speech.transcriber import Transcriber, Transcripts


@dataclass(frozen=True)
class DecoderTranscriber(Transcriber):
    """The way of Whisper. The decoder starts with the language and the task, if the model knows several."""

    auto_class: ClassVar[str] = "AutoModelForSpeechSeq2Seq"

    def adjust(self, base: BaseModel) -> None:
        """See `Transcriber.adjust`; the tokenizer puts the language before each transcript, as generation does."""
        codes = [token.strip("<|>") for token in _languages(base)]
        if not codes:
            return
        if not self.language:
            raise UsageError("this model writes several languages; set the one of the recordings, as --language en")
        if self._code not in codes:
            hint = did_you_mean(self._code, codes)
            raise UsageError(f"--language {self.language}: the model does not know this language{hint}")
        base.processor.tokenizer.set_prefix_tokens(language=self._code, task="transcribe")

    def transcripts(self, base: BaseModel, texts: Sequence[str]) -> Transcripts:
        """See `Transcriber.transcripts`; cut to the decoder's positions.

        Raises:
            UsageError: the model does not know the language, which need not be the one that it was loaded for.
        """
        self.adjust(base)
        written = [text.strip() for text in texts]
        ids = [list(base.processor.tokenizer(text, verbose=False)["input_ids"]) for text in written]
        # The decoder begins with this token anyway.
        start = base.model.config.decoder_start_token_id
        ids = [tokens[1:] if tokens[:1] == [start] else tokens for tokens in ids]
        limit = getattr(base.model.config, "max_target_positions", None) or max(map(len, ids), default=0)
        truncated = sum(len(tokens) > limit for tokens in ids)
        return Transcripts(written, [tokens[:limit] for tokens in ids], truncated)

    def batch(self, recordings: dict[str, Any], labels: Tensor, terms: int) -> Batch:
        """See `Transcriber.batch`; the model makes the decoder's inputs of the labels."""
        return Batch({**recordings, "labels": labels}, {"labels": labels}, terms)

    def positions(self, base: BaseModel, samples: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Transcriber.positions`; the tokens of the transcripts."""
        return tokens

    def loss(self, outputs: Any, targets: Any, smoothing: float) -> Tensor:
        """The sum of the cross-entropy."""
        return summed_loss(outputs.logits, targets["labels"], smoothing)

    def written(self, base: BaseModel, model: Any, batch: Batch, outputs: Any) -> list[str]:
        """The texts that the model generates, always the same."""
        options = {"language": self._code, "task": "transcribe"} if _languages(base) else {}
        positions = getattr(base.model.config, "max_target_positions", None)
        # The decoder's first tokens take positions too.
        new_tokens = min(self.max_new_tokens, positions - 4) if positions else self.max_new_tokens
        recordings = {name: value for name, value in batch.inputs.items() if name != "labels"}
        tokens = model.generate(
            **recordings,
            **options,
            do_sample=False,
            num_beams=self.num_beams,
            max_length=None,
            max_new_tokens=max(1, new_tokens),
        )
        texts = base.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [str(text).strip() for text in texts]

    @property
    def _code(self) -> str:
        """The language without its region: models know `pt`, not `pt-BR`."""
        return base_language(self.language)


def _languages(base: BaseModel) -> dict[str, int]:
    """Tokens of the languages that the model can be told to write, such as `<|en|>`; none if it knows but one."""
    generation = getattr(base.model, "generation_config", None)
    return getattr(generation, "lang_to_id", None) or {}
