"""Tiny random checkpoints for images and recordings, saved with their processors."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny import build
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ConvNextImageProcessorPil,
    HubertConfig,
    HubertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
)

SIZE = 16
RATE = 4000
NO_COLUMNS: dict[str, str | None] = {"text": None, "pair": None, "label": None}

_TRANSFORMER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
# A frame is 80 samples, another begins every 40.
WAVES: dict[str, Any] = {
    **_TRANSFORMER,
    "conv_dim": (16, 32),
    "conv_kernel": (20, 4),
    "conv_stride": (10, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
}


def picture(*size: int, seed: int = 0) -> Image.Image:
    """Noise of (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def tone(hertz: float, seconds: float, rate: int = RATE) -> np.ndarray:
    """Sine of half the full amplitude."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def wav(samples: Any, rate: int = RATE) -> bytes:
    """A mono WAV file of 16-bit samples."""
    body = (np.asarray(samples) * 2**15).astype("<i2").tobytes()
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return b"RIFF\0\0\0\0WAVE" + head + b"data" + struct.pack("<I", len(body)) + body


def save(path: Path, model: Any, processor: Any) -> str:
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


def vit(path: Path, channels: int = 3, **processor: Any) -> str:
    config = ViTConfig(image_size=SIZE, patch_size=4, num_channels=channels, **_TRANSFORMER)
    middle = [0.3, 0.5, 0.6][:channels]
    options = {"size": {"height": SIZE, "width": SIZE}, "image_mean": middle, "image_std": middle, **processor}
    return save(path, build(ViTForImageClassification, config), ViTImageProcessorPil(**options))


def resnet(path: Path) -> str:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    processor = ConvNextImageProcessorPil(size={"shortest_edge": SIZE}, crop_pct=0.875)
    return save(path, build(ResNetForImageClassification, config), processor)


def wav2vec2(path: Path, *, masks: bool = True) -> str:
    """Save a model with attention masks, as the large checkpoints have, or without, as the base one."""
    config = Wav2Vec2Config(**WAVES, feat_extract_norm="layer" if masks else "group")
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=masks)
    return save(path, build(Wav2Vec2ForSequenceClassification, config), extractor)


def hubert(path: Path) -> str:
    config = HubertConfig(**WAVES, feat_extract_norm="layer")
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)
    return save(path, build(HubertForSequenceClassification, config), extractor)


def whisper_config(**more: Any) -> WhisperConfig:
    """A Whisper that takes exactly 2 seconds at 16 kHz."""
    return WhisperConfig(
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        num_mel_bins=16,
        max_source_positions=100,
        **more,
    )


def whisper(path: Path) -> str:
    """Save a model that takes exactly 2 seconds at 16 kHz."""
    config = whisper_config(classifier_proj_size=16, vocab_size=64, pad_token_id=0)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    return save(path, build(WhisperForAudioClassification, config), extractor)


def ast(path: Path) -> str:
    """Save a model that takes exactly 64 frames, 0.65 seconds at 16 kHz."""
    config = ASTConfig(max_length=64, num_mel_bins=32, **_TRANSFORMER)
    return save(path, build(ASTForAudioClassification, config), ASTFeatureExtractor(max_length=64, num_mel_bins=32))
