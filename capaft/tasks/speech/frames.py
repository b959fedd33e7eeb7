"""Speech written one token a frame, by connectionist temporal classification (CTC; Graves et al. 2006).

Such a model's vocabulary is mostly the letters of one language in one case. A transcript is written in that case, and
without the characters that the vocabulary lacks: learnt as unknown tokens, they would come back as gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft.model.load import BaseModel
from capaft.support.errors import UsageError
from capaft.tasks.base.features import Batch
from capaft.tasks.speech.transcriber import Transcriber, Transcripts

# Above this share of letters that the vocabulary lacks, the model is one for another language.
_MOST_LACKING = 0.1
_SHOWN = 20
# Of wav2vec 2.0; a frame is 20 ms.
_SAMPLES_PER_FRAME = 320


@dataclass(frozen=True)
class FrameTranscriber(Transcriber):
    """The way of wav2vec 2.0 and its kin. The model computes the loss itself, from the labels among its inputs."""

    auto_class: ClassVar[str] = "AutoModelForCTC"

    def adjust(self, base: BaseModel) -> None:
        """Let the model's loss be a sum, in which a recording too short for its transcript counts nothing."""
        base.model.config.ctc_loss_reduction = "sum"
        base.model.config.ctc_zero_infinity = True

    def transcripts(self, base: BaseModel, texts: Sequence[str]) -> Transcripts:
        """See `Transcriber.transcripts`; without the characters that the vocabulary lacks."""
        tokenizer = base.processor.tokenizer
        cased = [" ".join(_in_case(text, _case(tokenizer)).split()) for text in texts]
        characters = {character for text in cased for character in text} - {" "}
        lacking = {character for character in characters if tokenizer.unk_token_id in _ids(tokenizer, character)}
        letters = [character for text in cased for character in text if character.isalpha()]
        shown = " ".join(sorted(lacking)[:_SHOWN])
        if sum(letter in lacking for letter in letters) > _MOST_LACKING * len(letters):
            raise UsageError(
                f"the model's vocabulary lacks letters of the transcripts ({shown}); choose a model of their language"
            )
        written = [" ".join("".join(c for c in text if c not in lacking).split()) for text in cased]
        note = f"the model's vocabulary lacks {shown}, which transcripts are written without" if lacking else ""
        return Transcripts(written, [_ids(tokenizer, text) for text in written], note=note)

    def batch(self, recordings: dict[str, Any], labels: Tensor, terms: int) -> Batch:
        """See `Transcriber.batch`."""
        return Batch({**recordings, "labels": labels}, {}, terms)

    def positions(self, base: BaseModel, samples: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Transcriber.positions`; the frames."""
        return samples // getattr(base.model.config, "inputs_to_logits_ratio", _SAMPLES_PER_FRAME) + 1

    def loss(self, outputs: Any, targets: Any, smoothing: float) -> Tensor:
        """CTC; there is no target distribution to smooth."""
        return outputs.loss.float()

    def written(self, base: BaseModel, model: nn.Module, batch: Batch, outputs: Any) -> list[str]:
        """The likeliest token of each frame, repetitions and blanks left out."""
        ids = outputs.logits.argmax(-1)
        mask = batch.inputs.get("attention_mask")
        frames_of = getattr(base.model, "_get_feat_extract_output_lengths", None)
        if mask is not None and frames_of is not None:
            # What the model makes of padding is not part of the recording.
            frames = frames_of(mask.sum(-1))
            positions = torch.arange(ids.shape[1], device=ids.device)
            ids = ids.masked_fill(positions >= frames[:, None], base.processor.tokenizer.pad_token_id)
        return [str(text).strip() for text in base.processor.tokenizer.batch_decode(ids)]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _case(tokenizer: Any) -> str:
    """`upper` or `lower` if all letters of the vocabulary are in this case, else nothing."""
    special = set(tokenizer.all_special_tokens)
    letters = "".join(token for token in tokenizer.get_vocab() if token not in special and not token.startswith("<"))
    return "upper" if letters.isupper() else "lower" if letters.islower() else ""


def _in_case(text: str, case: str) -> str:
    return text.upper() if case == "upper" else text.lower() if case == "lower" else text
