"""A sample of the sweep over every model type; `benchmarks/coverage.py` runs all of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
coverage = pytest.importorskip("coverage", reason="not a checkout")

# The sample covers tied and shared weights, fused and interleaved projections, weights that are read and not called,
# packed experts, latent attention, state spaces, reversible layers, convolutions, and several inputs.
SAMPLE = [
    ("sequence classification", "albert"),
    ("sequence classification", "reformer"),
    ("sequence classification", "zamba2"),
    ("sequence classification", "jamba"),
    ("token classification", "layoutlmv3"),
    ("token classification", "squeezebert"),
    ("question answering", "longformer"),
    ("question answering", "deberta"),
    ("multiple choice", "mobilebert"),
    ("multiple choice", "xlnet"),
    ("masked LM", "modernbert"),
    ("masked LM", "fnet"),
    ("causal LM", "falcon"),
    ("causal LM", "mamba"),
    ("causal LM", "mixtral"),
    ("causal LM", "gpt_oss"),
    ("causal LM", "deepseek_v3"),
    ("causal LM", "rwkv"),
    ("causal LM", "qwen3_next"),
    ("seq2seq", "t5"),
    ("seq2seq", "nllb-moe"),
    ("image classification", "swin"),
    ("image classification", "resnet"),
    ("audio classification", "wavlm"),
    ("audio classification", "whisper"),
]


@pytest.mark.parametrize("method", ["nola", "lora+nola+capaboost"])
@pytest.mark.parametrize(
    ("head", "model_type"),
    [pytest.param(*pair, id=f"{pair[1]}-{pair[0]}") for pair in SAMPLE],
)
def test_a_model_type(head: str, model_type: str, method: str) -> None:
    assert coverage.check(head, model_type, method) is None


def test_a_refusal_is_told_from_a_failure() -> None:
    reason = coverage.check("causal LM", "mamba", "houlsby")
    assert reason is not None
    assert reason.startswith(coverage.REFUSED + "MambaForCausalLM has no transformer blocks")
    assert coverage.check("causal LM", "gpt2", "houlsby") is None
    outcomes = [coverage.Outcome("causal LM", "mamba", failures={"houlsby": reason, "lora": "damaged"})]
    text = coverage.page(outcomes, ("houlsby", "lora"))
    assert "| `houlsby` | 0 (0.0%) | 1 (100.0%) | 0 (0.0%) |" in text
    assert "| `lora` | 0 (0.0%) | 0 (0.0%) | 1 (100.0%) |" in text
    assert "- the model has no transformer blocks" in text
