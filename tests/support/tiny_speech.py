"""Tiny random checkpoints that write speech, saved with their processors, and spoken words of tones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Audio, Dataset
from tiny import build
from tiny_media import RATE, WAVES, save, tone, wav, whisper_config
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    GenerationConfig,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
LANGUAGES = ("en", "zh", "de")
WORDS = {"low": 200, "high": 1400}


def said(text: str) -> np.ndarray:
    """A tone of a fifth of a second for each word."""
    return np.concatenate([tone(WORDS.get(word, 700), 0.2) for word in text.split()])


def spoken(*texts: str, **columns: list[Any]) -> Dataset:
    """Recordings in which every word is a tone of its own, and their transcripts."""
    files = [{"path": None, "bytes": wav(said(text))} for text in texts]
    split = Dataset.from_dict({"audio": files, "transcription": list(texts), **columns})
    return split.cast_column("audio", Audio(decode=False))


def ctc(path: Path, letters: str = LETTERS) -> str:
    """Save a wav2vec 2.0 whose vocabulary is letters of one case."""
    path.mkdir(parents=True, exist_ok=True)
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *letters]
    (path / "vocab.json").write_text(json.dumps({token: at for at, token in enumerate(tokens)}))
    config = Wav2Vec2Config(**WAVES, feat_extract_norm="layer", vocab_size=len(tokens), pad_token_id=0)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)
    processor = Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(path / "vocab.json")))
    return save(path, build(Wav2Vec2ForCTC, config), processor)


def whisper(path: Path, *, languages: tuple[str, ...] = LANGUAGES) -> str:
    """Save a Whisper that takes exactly 2 seconds at 16 kHz, and whose tokens are bytes."""
    path.mkdir(parents=True, exist_ok=True)
    specials = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES)]
    specials += ["<|translate|>", "<|transcribe|>", "<|notimestamps|>"]
    vocabulary = {token: at for at, token in enumerate([*sorted(ByteLevel.alphabet()), *specials])}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], additional_special_tokens=specials[1:])
    config = whisper_config(
        max_target_positions=40,
        vocab_size=len(tokenizer),
        pad_token_id=vocabulary["<|endoftext|>"],
        bos_token_id=vocabulary["<|endoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        decoder_start_token_id=vocabulary["<|startoftranscript|>"],
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    model = build(WhisperForConditionalGeneration, config)
    ends = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    multilingual = {
        "lang_to_id": {f"<|{code}|>": vocabulary[f"<|{code}|>"] for code in languages},
        "task_to_id": {task: vocabulary[f"<|{task}|>"] for task in ("transcribe", "translate")},
    }
    model.generation_config = GenerationConfig(
        **ends,
        decoder_start_token_id=config.decoder_start_token_id,
        no_timestamps_token_id=vocabulary["<|notimestamps|>"],
        is_multilingual=bool(languages),
        **(multilingual if languages else {}),
    )
    return save(path, model, WhisperProcessor(WhisperFeatureExtractor(feature_size=16, chunk_length=2), tokenizer))
