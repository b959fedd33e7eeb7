"""What tasks whose model writes text have in common: how it generates, and how that is scored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from capaft.model.load import BaseModel
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.base.task import Task
from capaft.tasks.language.text_scores import TEXT_METRICS, score_texts
from capaft.tasks.language.token_loss import loss_by_example, score_tokens, summed_loss

Prediction = tuple[float, int, int, str | None]
"""Of one feature: the loss, the tokens that count, those that are right, and the generated text, if there is one."""


@dataclass(frozen=True)
class Generation(Task):
    """Base of these tasks. They generate only if the metric compares texts, for it takes a forward for each token.

    Attributes:
        source_prefix: put before each source, such as "summarize: ".
        max_new_tokens: tokens generated at most.
        num_beams: beams of the search; 1 is greedy. Nothing is ever sampled.
        length_penalty: of beam search; above 0 longer texts are preferred.
        no_repeat_ngram_size: groups of this many tokens occur once; 0 does not mind.
    """

    max_length: int = 512
    source_prefix: str = ""
    max_new_tokens: int = 128
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    @property
    def generates(self) -> bool:
        """Whether evaluation has the model write."""
        return self.metric in TEXT_METRICS

    def loss(self, outputs: Any, targets: Mapping[str, Tensor], smoothing: float) -> Tensor:
        """The sum of the cross-entropy over the tokens that count."""
        return summed_loss(outputs.logits, targets["labels"], smoothing)

    def predict(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch, outputs: Any
    ) -> list[Prediction]:
        """The loss of each feature, and what the model writes where that is asked for."""
        counted = loss_by_example(outputs.logits, batch.targets["labels"])
        texts = self.written(base, model, features, indices, batch) if self.generates else [None] * len(counted)
        return [(*each, text) for each, text in zip(counted, texts, strict=True)]

    @abstractmethod
    def written(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch
    ) -> Sequence[str]:
        """What the model writes for some features."""

    def generated(self, base: BaseModel, model: Any, new_tokens: int, ends: set[int], **inputs: Tensor) -> list[str]:
        """What the model writes after, or instead of, `input_ids` `(batch, tokens)`, as text without special tokens.

        What the checkpoint would have liked otherwise (sampling, penalties, lengths) is switched off: the task's
        fields are all there is to it.
        """
        known = model.generation_config.eos_token_id
        stops = ends | set(known if isinstance(known, list) else [known]) - {None}
        found = model.generate(
            **inputs,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            min_length=0,
            max_length=None,
            max_new_tokens=new_tokens,
            num_beams=self.num_beams,
            length_penalty=self.length_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            eos_token_id=sorted(stops) or None,
            pad_token_id=base.processor.pad_token_id,
        )
        start = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        texts = base.processor.batch_decode(
            found[:, start:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [str(text).strip() for text in texts]

    def score(self, features: Features, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Perplexity, loss and accuracy of the tokens, and how good the texts are if there are any."""
        found = score_tokens(prediction[:3] for prediction in predictions)
        texts = [text for *_, text in predictions if text is not None]
        is_comparable = texts and self.has_targets(features)
        return found | (score_texts(texts, features.references) if is_comparable else {})

    def has_targets(self, features: Features) -> bool:
        """Whether there is anything to compare with: plain text is its own target, other rows need references."""
        return features.references is None or all(features.references)

    def report(self, features: Features, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
        """Source, prediction and references, where the model wrote anything."""
        if not features.references:
            return []
        return [
            {"source": source, "prediction": text, "references": list(references)}
            for source, (*_, text), references in zip(features.sources, predictions, features.references, strict=True)
            if text is not None
        ]
