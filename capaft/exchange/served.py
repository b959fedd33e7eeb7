"""What servers take of a PEFT adapter, as lines on what they would refuse."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Values of vLLM's `--max-lora-rank`.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Heads that vLLM takes from an adapter.
CLASSIFIERS = frozenset(["classifier", "score"])


def cautions(config: Mapping[str, Any]) -> Iterator[str]:
    """Lines on what vLLM and its like would not take.

    Args:
        config: the configuration of an adapter.
    """
    if config["peft_type"] != "LORA":
        yield "vLLM and SGLang serve LoRA only; PEFT itself loads this adapter"
        return
    if config.get("use_dora"):
        yield "vLLM and SGLang do not serve DoRA; PEFT itself does, and a merged model is served by all"
    rank = config["r"]
    if rank > VLLM_RANKS[-1]:
        yield f"vLLM takes ranks up to {VLLM_RANKS[-1]}, and this adapter has {rank}; merge the run to serve it there"
    elif rank not in VLLM_RANKS:
        larger = next(known for known in VLLM_RANKS if known > rank)
        yield (
            f"vLLM refuses rank {rank}, which is none of its {', '.join(map(str, VLLM_RANKS))}, unless it is started "
            f"with --max-lora-rank {larger}; --pad-rank {larger} fills the rank up with zeros"
        )
    if others := sorted(set(config["modules_to_save"] or ()) - CLASSIFIERS):
        yield f"vLLM refuses modules_to_save other than a classifier's, and this adapter has {', '.join(others)}"
    if any(re.search(r"(?<![^.])\d+(?![^.])", name) for name in config.get("target_modules", ())):
        yield (
            "target_modules names some layers by their whole paths, since no common ending tells them from others; "
            "vLLM and SGLang look for endings"
        )
    if "target_parameters" in config:
        yield "only PEFT takes target_parameters, by which this adapter changes weights that are no layers of their own"
