"""Keys that PEFT would rename by mistake."""

from __future__ import annotations

import pytest
import tiny
from tiny_families import model_of

from capaft.exchange.peft_renames import renamed_key

LAYER = "base_model.model.model.layers.1."


@pytest.mark.parametrize(
    ("name", "is_renamed"),
    [
        # The pattern for `mlp.shared_expert.` fits, since its dot is any letter.
        ("mlp.shared_experts.down_proj.lora_A.weight", True),
        ("self_attn.q_proj.lora_A.weight", False),
        # What is saved as a whole is not renamed.
        ("mlp.shared_experts.down_proj.weight", False),
    ],
)
def test_a_pattern_that_fits_a_new_name(name: str, is_renamed: bool) -> None:
    model = model_of("LagunaForCausalLM", num_key_value_heads=2, num_experts=2, num_experts_per_tok=1)
    assert renamed_key(model, [LAYER + name]) == (LAYER + name if is_renamed else None)


def test_a_model_without_older_names() -> None:
    assert renamed_key(tiny.bert(), [LAYER + "mlp.shared_experts.down_proj.lora_A.weight"]) is None
    assert renamed_key(tiny.kernels(), ["base_model.model.words.lora_embedding_A"]) is None
