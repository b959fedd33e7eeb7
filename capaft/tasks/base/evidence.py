"""Evidence of the task that rows are for, beside the rows themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from capaft.tasks.base.columns import Columns


@dataclass(frozen=True)
class Evidence:
    """The model, and what the user said.

    Attributes:
        config: the model's configuration, as transformers has it.
        named: the columns that the user named, by role: `text`, `pair`, `label`.
        classify: the user set an option that only text classification has.
    """

    config: Any
    named: Mapping[str, str | None]
    classify: bool = False

    @property
    def is_encoder_decoder(self) -> bool:
        """True if the model reads with an encoder and writes with a decoder."""
        return bool(getattr(self.config, "is_encoder_decoder", False))

    @property
    def is_masked(self) -> bool:
        """True if the model predicts masked tokens, and so cannot write."""
        return not self.is_encoder_decoder and predicts_masked_tokens(self.config)

    def agrees_with(self, columns: Columns) -> bool:
        """True if columns include the pair and the label that the user named."""
        return self.named.get("pair") in (None, columns.pair) and self.named.get("label") in (None, columns.label)


def predicts_masked_tokens(config: Any) -> bool:
    """True if a model was made to predict masked tokens, or is of a type that can and is no decoder."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    made_for = " ".join(getattr(config, "architectures", None) or ())
    if "CausalLM" in made_for or "LMHead" in made_for:
        return False
    can_predict = getattr(config, "model_type", "") in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "MaskedLM" in made_for or (can_predict and not getattr(config, "is_decoder", False))
