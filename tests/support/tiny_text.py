"""Tokenizers and tiny random models for text tasks: every byte is a token, so that ids are easily written by hand."""

from __future__ import annotations

from functools import cache
from typing import Any

from datasets import Dataset
from tiny import build
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from capaft.model.load import BaseModel
from capaft.model.origin import Origin

PAD, END, START, MASK, TURN, STOP = "<pad>", "<end>", "<start>", "<mask>", "<turn>", "<stop>"
SPECIALS = {PAD: 0, END: 1, START: 2, MASK: 3, TURN: 4, STOP: 5}
# Two line breaks merge into one token, even across the boundary of two texts.
BREAKS = 6 + 256
SIZE = BREAKS + 1
PLAIN_TEMPLATE = (
    "{% for message in messages %}<turn>{{ message['role'] }}\n{{ message['content'] }}<stop>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
MARKED_TEMPLATE = (
    "{% for message in messages %}<turn>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<stop>{% endgeneration %}{% else %}{{ message['content'] }}<stop>"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
# Like Qwen3's: only the last answer keeps its thoughts.
THINKING_TEMPLATE = (
    "{% for message in messages %}<turn>{{ message['role'] }}\n{% if message['role'] == 'assistant' and loop.last %}"
    "<think></think>{% endif %}{{ message['content'] }}<stop>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


def tokenizer(template: str | None = None, *, framed: bool = False, masks: bool = False) -> Any:
    """A tokenizer whose tokens are bytes; with `framed`, a text stands between start and end tokens as in BERT."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = SPECIALS | {letter: 6 + index for index, letter in enumerate(letters)} | {"ĊĊ": BREAKS}
    backend = Tokenizer(BPE(vocabulary, [("Ċ", "Ċ")]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = ByteLevelDecoder()
    backend.add_special_tokens(list(SPECIALS))
    if framed:
        ends = [(START, SPECIALS[START]), (END, SPECIALS[END])]
        backend.post_processor = TemplateProcessing(single=f"{START} $A {END}", pair=None, special_tokens=ends)
    names = {"pad_token": PAD, "eos_token": END, **({"mask_token": MASK} if masks else {})}
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    fast.chat_template = template
    return fast


@cache
def _model(kind: str) -> Any:
    size = {"vocab_size": SIZE, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    match kind:
        case "llama":
            shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
            return build(LlamaForCausalLM, LlamaConfig(**size, **shape, max_position_embeddings=512))
        case "gpt2":
            return build(GPT2LMHeadModel, GPT2Config(**size, n_embd=32, n_layer=2, n_head=4, n_positions=64))
        case "t5":
            shape = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}
            return build(T5ForConditionalGeneration, T5Config(**size, **shape, decoder_start_token_id=0))
        case "bart" | "m2m":
            heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 256}
            start = {"decoder_start_token_id": 2, "forced_eos_token_id": None}
            if kind == "bart":
                return build(BartForConditionalGeneration, BartConfig(**size, **small, **heads, **start))
            return build(M2M100ForConditionalGeneration, M2M100Config(**size, **small, **heads, **start))
        case _:
            shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
            return build(BertForMaskedLM, BertConfig(vocab_size=SIZE, pad_token_id=0, **shape))


def base(kind: str, processor: Any) -> BaseModel:
    """A tiny model with a tokenizer; tests must not change it."""
    return BaseModel(_model(kind), processor, Origin(kind, None), (), False)


def ids(text: str) -> list[int]:
    """A text's tokens, computed by hand from its bytes in the order of the byte-level alphabet."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = sorted(ByteLevel.alphabet())
    return [6 + letters.index(bytes_to_unicode()[byte]) for byte in text.encode()]


def table(**columns: list[Any]) -> Dataset:
    return Dataset.from_dict(columns)
