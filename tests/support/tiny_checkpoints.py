"""Tiny random checkpoints for text tasks, one for each architecture in the presets, saved with a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import build
from tiny_text import END, PLAIN_TEMPLATE, SIZE, SPECIALS, START, base, tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

_ENCODER: dict[str, Any] = {
    "vocab_size": SIZE,
    # CapaBoost's presets have two copies of rank 32.
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 258,
    "pad_token_id": SPECIALS["<pad>"],
    "bos_token_id": SPECIALS[START],
    "eos_token_id": SPECIALS[END],
}


def encoder_tokenizer() -> Any:
    """Byte-level tokenizer with a start and an end, and two ends between the texts of a pair, as in RoBERTa."""
    processor = tokenizer(framed=True, masks=True)
    ends = [(START, SPECIALS[START]), (END, SPECIALS[END])]
    processor.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A {END}", pair=f"{START} $A {END} {END} $B {END}", special_tokens=ends
    )
    processor.add_special_tokens({"cls_token": START, "sep_token": END})
    return processor


def save(kind: str, directory: Path, *, chats: bool = False) -> Path:
    """Save a checkpoint as on the hub: with the head of its pretraining, if any.

    Args:
        kind: `roberta`, `deberta`, `t5`, `gpt2` or `llama`.
        directory: to save it in.
        chats: the tokenizer has a chat template.
    """
    match kind:
        case "roberta":
            model = build(RobertaForMaskedLM, RobertaConfig(**_ENCODER, type_vocab_size=1))
        case "deberta":
            # As in DeBERTa-v3.
            attention = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
            shape = {"position_buckets": 16, "share_att_key": True, "norm_rel_ebd": "layer_norm", "type_vocab_size": 0}
            model = build(DebertaV2ForMaskedLM, DebertaV2Config(**_ENCODER, **attention, **shape))
        case "gpt2":
            size = {"vocab_size": SIZE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
            ends = dict.fromkeys(("bos_token_id", "eos_token_id"), SPECIALS[END])
            model = build(GPT2LMHeadModel, GPT2Config(**size, **ends))
        case "t5":
            size = {"vocab_size": SIZE, "d_model": 64, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 4}
            ends = {"pad_token_id": 0, "eos_token_id": SPECIALS[END], "decoder_start_token_id": 0}
            model = build(T5ForConditionalGeneration, T5Config(**size, **ends))
        case _:
            model = base(kind, None).model
    processor = encoder_tokenizer() if kind in ("roberta", "deberta") else tokenizer(PLAIN_TEMPLATE if chats else None)
    if kind == "t5":
        processor.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, SPECIALS[END])]
        )
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory
