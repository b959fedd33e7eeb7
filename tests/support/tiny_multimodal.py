"""Tiny random checkpoints that read images beside text, saved with their processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_text
from tiny import build
from tiny_media import save
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GitConfig,
    GitForCausalLM,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionConfig,
)

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_TEXT: dict[str, Any] = {**_SMALL, "vocab_size": tiny_text.SIZE + 1, "max_position_embeddings": 256, "pad_token_id": 0}
_IMAGES: dict[str, Any] = {**_SMALL, "image_size": 16, "patch_size": 8}


def llava_model() -> Any:
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_IMAGES),
        text_config=LlamaConfig(**_TEXT, attention_bias=True),
        image_token_index=tiny_text.SIZE,
    )
    return build(LlavaForConditionalGeneration, config)


def git_model() -> Any:
    """A model whose decoder holds the encoder of images."""
    return build(GitForCausalLM, GitConfig(vision_config={**_IMAGES, "model_type": "git_vision_model"}, **_TEXT))


def llava(path: Path) -> str:
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16),
        tiny_text.tokenizer(tiny_text.PLAIN_TEMPLATE),
        patch_size=8,
        image_token="<mask>",
    )
    return save(path, llava_model(), processor)


def gemma3(path: Path) -> str:
    text = {**_TEXT, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 8}
    config = Gemma3Config(
        text_config=text, vision_config=SiglipVisionConfig(**_IMAGES).to_dict(), mm_tokens_per_image=4
    )
    return save(path, build(Gemma3ForConditionalGeneration, config), tiny_text.tokenizer())


def idefics(path: Path) -> str:
    """Save a model that reads no text without an image."""
    vision = {"embed_dim": 32, "image_size": 16, "patch_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = IdeficsConfig(**_TEXT, vision_config=vision, use_resampler=False)
    return save(path, build(IdeficsForVisionText2Text, config), tiny_text.tokenizer())
