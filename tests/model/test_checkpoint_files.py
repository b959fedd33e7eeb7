"""Files of a checkpoint that are not what their names say."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import save

from capaft.config.parts.model import ModelSettings
from capaft.model.checkpoint_files import broken_file, check_unread_files
from capaft.model.load import load_base_model, load_configuration, load_skeleton
from capaft.support.errors import UsageError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
INDEX = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("roberta", tmp_path_factory.mktemp("whole") / "roberta")


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copied")


def load(directory: Path) -> str:
    """The one line of a refused checkpoint."""
    from transformers import AutoModelForSequenceClassification

    with pytest.raises(UsageError) as caught:
        load_base_model(AutoModelForSequenceClassification, ModelSettings(model=str(directory)), seed=0, num_labels=2)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith((f"--model {directory}", str(directory)))
    return line


def halved(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("model.safetensors", lambda _: POINTER.encode(), "model.safetensors: this is Git LFS's pointer"),
        ("model.safetensors", halved, r"model.safetensors is cut or damaged \([\d,]+ bytes: .*\); download it again"),
        ("model.safetensors", lambda _: b"", "model.safetensors is empty"),
        ("model.safetensors", lambda _: b"<html><body>404</body></html>", "web page"),
        ("config.json", halved, "config.json is not JSON"),
        ("config.json", lambda _: b"null", "config.json is not a JSON object"),
        ("config.json", lambda _: b"[" * 100_000, "config.json is not JSON"),
        ("tokenizer.json", halved, "tokenizer.json is not JSON"),
        ("tokenizer.json", lambda _: b"[]", "tokenizer.json is not a JSON object"),
        ("tokenizer.json", lambda _: b'{"version": 3}', "check its config.json and the files of its tokenizer"),
        ("tokenizer_config.json", lambda _: POINTER.encode(), "tokenizer_config.json: this is Git LFS's pointer"),
        ("tokenizer_config.json", lambda _: b"3", "tokenizer_config.json is not a JSON object"),
        # transformers would go on without these.
        ("generation_config.json", lambda _: POINTER.encode(), "generation_config.json: this is Git LFS's pointer"),
        ("chat_template.jinja", lambda _: POINTER.encode(), "chat_template.jinja: this is Git LFS's pointer"),
    ],
)
def test_a_broken_file_is_named(copied: Path, name: str, change: Callable[[bytes], bytes], says: str) -> None:
    content = (copied / name).read_bytes() if (copied / name).exists() else b""
    (copied / name).write_bytes(change(content))
    assert re.search(says, load(copied))


def test_what_is_no_file_is_named(copied: Path) -> None:
    (copied / "tokenizer_config.json").unlink()
    (copied / "tokenizer_config.json").symlink_to("blobs/missing")
    assert "cannot be read (No such file or directory); download it again" in load(copied)
    (copied / "tokenizer_config.json").unlink()
    (copied / "tokenizer_config.json").mkdir()
    assert "is not a file, but a directory" in load(copied)


def test_a_vocabulary_that_is_a_pointer_is_no_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(POINTER)
    with pytest.raises(UsageError, match=r"vocab.txt: this is Git LFS's pointer"):
        check_unread_files(tmp_path)
    # With this file the other is not read.
    (tmp_path / "tokenizer.json").write_text("{}")
    check_unread_files(tmp_path)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (INDEX, "names model-1.safetensors and 1 other files, not there"),
        ([], "is not a JSON object"),
        ({"weight_map": []}, "does not map weights to files"),
        ({"weight_map": {"a": 3}}, "does not map weights to files"),
    ],
)
def test_shards_that_are_missing(copied: Path, index: object, says: str) -> None:
    (copied / "model.safetensors").unlink()
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    assert says in load(copied)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_weights(copied: Path, legacy: bool) -> None:
    from safetensors.torch import load_file

    stream = io.BytesIO()
    torch.save(load_file(copied / "model.safetensors"), stream, _use_new_zipfile_serialization=not legacy)
    (copied / "model.safetensors").unlink()
    file = copied / "pytorch_model.bin"
    file.write_bytes(stream.getvalue())
    assert broken_file(copied) is None
    file.write_bytes(halved(stream.getvalue()))
    assert "cannot be loaded" in load(copied)
    file.write_bytes(b"\0" * 64)
    assert "pytorch_model.bin is cut or damaged: it is not a file of PyTorch" in load(copied)
    file.write_bytes(b"")
    assert "pytorch_model.bin is empty" in load(copied)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_size": 0}, "gives hidden_size as 0"),
        ({"hidden_size": -64}, "gives hidden_size as -64"),
        ({"hidden_size": "x"}, "hidden_size"),
        ({"hidden_size": 10**30}, "gives hidden_size as 1000"),
        ({"num_attention_heads": 0}, "gives num_attention_heads as 0"),
        ({"num_attention_heads": 7}, "not a multiple"),
        ({"num_hidden_layers": 10**12}, "gives num_hidden_layers as 1000000000000"),
        ({"num_hidden_layers": 3}, "its weights do not fit its config.json: encoder.layer.2"),
        ({"intermediate_size": 48}, "its weights do not fit its config.json"),
        ({"vocab_size": 300}, "its weights do not fit its config.json: embeddings.word_embeddings.weight cannot"),
        ({"architectures": [3]}, "architectures"),
        ({"model_type": "nope"}, "cannot be loaded"),
        ({"model_type": 3}, "cannot be loaded"),
        ({"id2label": 3}, "cannot be loaded"),
        ({"hidden_act": "nope"}, "cannot be loaded: KeyError"),
    ],
)
def test_nonsense_in_a_configuration(copied: Path, change: dict[str, object], says: str) -> None:
    file = copied / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert says in configured(copied)


def configured(directory: Path) -> str:
    """The one line of a checkpoint that is refused by its configuration, or else by what it makes of the weights."""
    try:
        load_configuration(ModelSettings(model=str(directory)))
    except UsageError as error:
        return str(error)
    return load(directory)


def test_a_skeleton_is_refused_as_well(copied: Path) -> None:
    (copied / "config.json").write_text('{"model_type": "roberta", "num_hidden_layers": 1000000000000}')
    with pytest.raises(UsageError, match="gives num_hidden_layers as 1000000000000"):
        load_skeleton(str(copied))
