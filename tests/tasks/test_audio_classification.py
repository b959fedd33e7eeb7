from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Audio, Dataset, Features, List, Value
from tiny_media import RATE, ast, hubert, tone, wav, wav2vec2, whisper

from capaft.config.parts.model import ModelSettings
from capaft.model.load import BaseModel
from capaft.support.errors import UsageError
from capaft.tasks.audio_classification import AudioClassification
from capaft.tasks.base.columns import Columns

COLUMNS = Columns("audio", None, "label")
LABELS = ("low", "high")
TASK = AudioClassification(LABELS)
MAKERS = {"wav2vec2": wav2vec2, "hubert": hubert, "whisper": whisper, "ast": ast}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseModel]:
    return {
        name: TASK.load_model(ModelSettings(model=make(tmp_path_factory.mktemp(name))), seed=0)
        for name, make in MAKERS.items()
    }


def rows(*recordings: Any, rate: int = RATE) -> Dataset:
    """Recordings in memory, their classes in turn."""
    files = [{"path": None, "bytes": wav(samples, rate)} for samples in recordings]
    split = Dataset.from_dict({"audio": files, "label": [LABELS[at % 2] for at in range(len(files))]})
    # `datasets` needs torchcodec to encode recordings, but not to cast a column of encoded ones.
    return split.cast_column("audio", Audio(decode=False))


def collated(base: BaseModel, split: Dataset, task: AudioClassification = TASK) -> Any:
    features = task.features(base, split, COLUMNS, training=True)
    return task.collate(base, features, range(len(split)), training=True)


# Preparing


def test_lengths_and_truncation(bases: dict[str, BaseModel]) -> None:
    split = rows(tone(300, 0.5, 8000), tone(300, 1.5, 8000), tone(300, 1.0, 8000), rate=8000)
    task = AudioClassification(LABELS, max_seconds=1.0)
    examples = task.features(bases["wav2vec2"], split, COLUMNS, training=False)
    assert examples.lengths.tolist() == [RATE // 2, RATE, RATE]
    assert examples.truncated == 1
    assert task.collate(bases["wav2vec2"], examples, [1, 0], training=False).inputs["input_values"].shape == (2, RATE)


def test_values_and_mask_are_the_extractors(bases: dict[str, BaseModel]) -> None:
    long, short = tone(300, 0.5), tone(700, 0.3)
    batch = collated(bases["wav2vec2"], rows(long, short))
    assert batch.terms == 2
    assert batch.targets["labels"].tolist() == [0, 1]
    values, mask = batch.inputs["input_values"], batch.inputs["attention_mask"]
    assert mask.sum(1).tolist() == [len(long), len(short)]
    for samples, row in zip((long, short), values.numpy(), strict=True):
        # Zero mean and unit variance over the recording alone, zeros after it.
        whole = np.trunc(samples * 2**15) / 2**15
        assert np.allclose(row[: len(samples)], (whole - whole.mean()) / np.sqrt(whole.var() + 1e-7), atol=1e-4)
        assert not row[len(samples) :].any()


def test_no_mask_where_the_checkpoint_had_none(tmp_path: Path) -> None:
    base = TASK.load_model(ModelSettings(model=wav2vec2(tmp_path, masks=False)), seed=0)
    batch = collated(base, rows(tone(300, 0.5), tone(700, 0.3)))
    assert batch.inputs.keys() == {"input_values"}
    assert base.model(**batch.inputs).logits.shape == (2, 2)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("wav2vec2", {"input_values": (2, 2000), "attention_mask": (2, 2000)}),
        ("hubert", {"input_values": (2, 2000), "attention_mask": (2, 2000)}),
        ("whisper", {"input_features": (2, 16, 200)}),
        ("ast", {"input_values": (2, 64, 32)}),
    ],
)
def test_every_kind_of_model(bases: dict[str, BaseModel], name: str, shapes: dict[str, Any]) -> None:
    base = bases[name]
    batch = collated(base, rows(tone(300, 0.5), tone(700, 0.3)))
    assert {key: tuple(tensor.shape) for key, tensor in batch.inputs.items()} == shapes
    model = base.model.train()
    TASK.loss(model(**batch.inputs), batch.targets, 0.1).backward()
    gradients = [base.named_parameters()[head].grad for head in base.head]
    assert all(gradient is not None and gradient.any() for gradient in gradients)
    model.zero_grad()
    model.eval()


def test_the_shortest_recordings_go_through_every_model(bases: dict[str, BaseModel]) -> None:
    for base in bases.values():
        batch = collated(base, rows([0.5], [0.1, 0.2]))
        assert base.model(**batch.inputs).logits.isfinite().all()


def test_training_is_random_in_nothing_but_torch(tmp_path: Path) -> None:
    base = TASK.load_model(ModelSettings(model=wav2vec2(tmp_path)), seed=0)
    assert base.model.wav2vec2.encoder.config.layerdrop == 0
    batch = collated(base, rows(tone(300, 0.5), tone(700, 0.3)))
    logits = []
    for seed in (0, 1):
        np.random.seed(seed)
        torch.manual_seed(0)
        logits.append(base.model.train()(**batch.inputs).logits)
    assert torch.equal(*logits)


# Rows


def test_arrays_with_their_rate_are_recordings(bases: dict[str, BaseModel]) -> None:
    samples = tone(300, 0.5)
    kinds = Features(
        {"audio": {"array": List(Value("float32")), "sampling_rate": Value("int64")}, "label": Value("string")}
    )
    split = Dataset.from_dict({"audio": [{"array": samples, "sampling_rate": RATE}], "label": ["low"]}, kinds)
    values = collated(bases["wav2vec2"], split).inputs["input_values"]
    expected = collated(bases["wav2vec2"], rows(samples)).inputs["input_values"]
    assert torch.allclose(values, expected, atol=1e-3)


def test_files_that_cannot_be_read_name_their_row(bases: dict[str, BaseModel], tmp_path: Path) -> None:
    good, cut = tmp_path / "good.wav", tmp_path / "cut.wav"
    good.write_bytes(wav(tone(300, 0.2)))
    cut.write_bytes(wav(tone(300, 0.2))[:-7])
    for bad, message in ((cut, "cannot read this recording"), (tmp_path / "gone.wav", "no such file")):
        split = Dataset.from_dict({"audio": [str(good), str(bad)], "label": ["low", "high"]})
        with pytest.raises(UsageError, match=f"^row 2: {bad}: .*{message}") as caught:
            TASK.features(bases["ast"], split, COLUMNS, training=True)
        assert "\n" not in str(caught.value)


def test_options_are_recorded() -> None:
    assert AudioClassification(LABELS, max_seconds=3.0).options()["max_seconds"] == 3.0


# Learning


@pytest.mark.parametrize("name", ["wav2vec2", "ast"])
def test_a_small_model_learns_to_tell_tones(name: str, tmp_path: Path) -> None:
    base = TASK.load_model(ModelSettings(model=MAKERS[name](tmp_path)), seed=0)
    random = np.random.default_rng(0)

    def split(count: int) -> Dataset:
        pitches = [random.uniform(*((200, 400) if at % 2 == 0 else (800, 1500))) for at in range(count)]
        noise = [random.normal(0, 0.05, RATE // 4) for _ in range(count)]
        return rows(*(tone(pitch, 0.25) * 0.8 + hiss for pitch, hiss in zip(pitches, noise, strict=True)))

    train = TASK.features(base, split(128), COLUMNS, training=True)
    validation = TASK.features(base, split(40), COLUMNS, training=False)
    model = base.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(24):
        torch.manual_seed(step)
        batch = TASK.collate(base, train, range(step % 4 * 32, step % 4 * 32 + 32), training=True)
        optimizer.zero_grad()
        (TASK.loss(model(**batch.inputs), batch.targets, 0.0) / batch.terms).backward()
        optimizer.step()
    model.eval()
    batch = TASK.collate(base, validation, range(40), training=False)
    with torch.inference_mode():
        outputs = model(**batch.inputs)
    predictions = TASK.predict(base, model, validation, range(40), batch, outputs)
    assert TASK.score(validation, predictions)["accuracy"] > 0.9
