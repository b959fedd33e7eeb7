"""The adapter file keeps what was trained, and no file, however damaged or hostile, does harm or loads wrongly."""

from __future__ import annotations

import base64
import contextlib
import copy
import errno
import json
import os
import pickle
import random
import re
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import naive_reader
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import bert, gpt2, logits, scramble
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import capaft
from capaft.adapter.file.adapter_file import AdapterFile, read
from capaft.adapter.file.encoding import SAVE_DTYPES, SaveDtype, decode_tensor, encode_tensor
from capaft.adapter.file.header import FORMAT, TaskRecord
from capaft.adapter.file.save_load import load, restore_parameters, save
from capaft.adapter.module import Adapter
from capaft.factors import rng
from capaft.model.origin import Origin
from capaft.support import files
from capaft.support.errors import AdapterFileError, TrainingError, UsageError

HEAD = ("classifier.weight", "classifier.bias")
OPTIONS = {"problem": "single", "stride": 128, "threshold": 0.5, "packing": True, "prefix": None}
TASK = TaskRecord("text-classification", ("bad", "so so", "très bon 😀"), 128, "accuracy", OPTIONS)
STACKS: dict[str, dict[str, Any]] = {
    "head": {"method": "head"},
    "full": {"method": "full"},
    "lora": {"method": "lora", "targets": "all-linear"},
    "nola": {"method": "nola", "k": (9, 5)},
    "nola-uniform": {"method": "nola", "k": 9, "basis": "uniform"},
    "nola-group": {"method": "nola", "k": 9, "basis": "group"},
    "capaboost": {"method": "capaboost", "copies": 3, "density": 0.29},
    "partition": {"method": "capaboost", "copies": 2, "masks": "partition"},
    "everything": {"method": "lora+nola+capaboost", "k": 9, "targets": "re:layer\\.1\\.", "seed": 2**64 - 1},
    "blocks": {"method": "nola", "targets": "all-linear", "exclude": "query,mlp", "layers": "1"},
    "ranks": {"method": "lora", "rslora": True, "rank_pattern": ("value=5", "re:^encoder=2")},
    "shared": {"method": "lora+nola+capaboost", "scope": "model", "basis": "group", "mask_rescale": "variance"},
    "dora": {"method": "dora+nola", "k": (9, 40), "scope": "model", "targets": "mlp"},
    "vera": {"method": "vera+capaboost", "rank": 40},
    "ia3": {"method": "ia3"},
    "bitfit": {"method": "bitfit+nola", "modules_to_save": "pooler", "exclude": "re:^pooler"},
    "houlsby": {"method": "houlsby+capaboost", "bottleneck": 4, "scaling": 2},
    "pfeiffer": {"method": "pfeiffer", "bottleneck": 4, "activation": "tanh", "bias": False},
    "parallel": {"method": "parallel", "bottleneck": 4},
    "prefix": {"method": "prefix+nola"},
    "head-nola": {"method": "head", "head_mode": "nola", "head_k": 20},
    "lora-head-nola": {"method": "lora", "head_mode": "nola", "head_k": 2, "modules_to_save": "pooler"},
    "frozen": {"method": "nola", "head_mode": "frozen"},
}


def adapted(method: str = "nola", model: nn.Module | None = None, **options: Any) -> Any:
    """A model with an adapter and a head, both with values as training might leave them."""
    model = bert() if model is None else model
    adapter = capaft.attach(model, method, **({"rank": 3, "k": 9, "head": HEAD} | options))
    scramble(adapter)
    with torch.no_grad():
        for name in adapter.plan.trained:
            model.get_parameter(_full_name(model, name)).add_(0.01)
    return model


def _full_name(model: nn.Module, canonical: str) -> str:
    names = dict(model.named_parameters())
    return canonical if canonical in names else f"bert.{canonical}"


def trained_values(model: nn.Module) -> dict[str, Tensor]:
    (adapter,) = capaft.adapters(model).values()
    return {key: parameter.detach().clone() for key, parameter in adapter.trained(model).items()}


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "adapter.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small valid file, to be spoilt."""
    path = tmp_path_factory.mktemp("good") / "adapter.safetensors"
    save(adapted(), path, base=Origin("tiny"), task=TASK)
    return path.read_bytes()


# What is saved comes back


@pytest.mark.parametrize("dtype", SAVE_DTYPES)
@pytest.mark.parametrize("stack", STACKS)
def test_round_trip(stack: str, dtype: SaveDtype, path: Path) -> None:
    model, fresh = adapted(**STACKS[stack]), bert()
    size = save(model, path, base=Origin("tiny", "main"), task=TASK, dtype=dtype)
    file = read(path)
    assert size == file.size == path.stat().st_size
    assert (file.base, file.task) == (Origin("tiny", "main"), TASK)
    # The same values in the same order.
    assert json.dumps(file.header.record()) == json.dumps(unpack(path.read_bytes())[0])
    adapter = load(fresh, path)
    plan = capaft.adapters(model)["default"].plan
    assert (adapter.plan.stack, adapter.plan.seed, adapter.plan.targets) == (plan.stack, plan.seed, plan.targets)
    assert (adapter.plan.sites, adapter.plan.trained) == (plan.sites, plan.trained)
    stored = {
        key: decode_tensor(key, encode_tensor(key, n, dtype), tuple(n.shape), dtype)
        for key, n in trained_values(model).items()
    }
    assert equal(trained_values(fresh), stored)
    restore_parameters(model, path)
    assert torch.equal(logits(fresh), logits(model))
    # What came back is saved as the same file.
    save(fresh, path.with_name("again"), base=Origin("tiny", "main"), task=TASK, dtype=dtype)
    if dtype.startswith(("float", "bfloat")):
        assert path.with_name("again").read_bytes() == path.read_bytes()


ANY_TEXT = st.text()
PLAIN = (
    ANY_TEXT
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.none()
)


@given(
    labels=st.lists(ANY_TEXT, max_size=4),
    name=st.text() | st.none(),
    options=st.dictionaries(ANY_TEXT, PLAIN, max_size=32),
)
@settings(max_examples=50)
def test_any_text_comes_back(
    labels: list[str], name: str | None, options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file, model = tmp_path_factory.getbasetemp() / "text.safetensors", _one_layer()
    task = TaskRecord("text-classification", tuple(labels), 1, "f1", options)
    capaft.attach(model, "nola", rank=1, k=2)
    save(model, file, base=Origin(name, name), task=task)
    assert (read(file).task, read(file).base) == (task, Origin(name, name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({str(number): number for number in range(33)}, "a task has more than 32 options"),
        ({"a": [1]}, "the task's option a is not a text, number or truth value"),
        ({"a": float("nan")}, "the task's option a is not finite"),
        ({1: 1}, "the task's option 1 is not a text"),
        ({"a": 2**64}, "the task's option a has more than 64 bits"),
        ({"a": "\ud800"}, "the task's option a holds a half of a surrogate pair"),
        ({"\ud800": 1}, "the name of a task's option holds a half of a surrogate pair"),
    ],
)
def test_options_that_a_file_cannot_hold(options: Any, message: str, path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        save(adapted(), path, task=TaskRecord("text-classification", (), 1, "f1", options))
    assert not path.exists()
    assert TaskRecord("text-classification", (), 1, "f1").options == {}


LONG = "a" * 17 * 2**20


@pytest.mark.parametrize(
    ("labels", "base", "message"),
    [
        (("a", "\ud83d"), None, r"labels\[1\] holds a half of a surrogate pair"),
        (("a", LONG), None, "the header takes 17,.* bytes, more than 16,777,216; shorten the labels"),
        ((), "caf\udce9", "the base model's name"),
        ((), LONG, "more than 16,777,216"),
    ],
)
def test_texts_that_a_file_cannot_hold(labels: tuple[str, ...], base: str | None, message: str, path: Path) -> None:
    path.write_bytes(b"what was there before")
    with pytest.raises(UsageError, match=message) as error:
        save(adapted(), path, base=Origin(base), task=TaskRecord("text-classification", labels, 1, "f1"))
    assert "\n" not in str(error.value)
    assert path.read_bytes() == b"what was there before"


def test_ext_is_kept_and_ignored(path: Path) -> None:
    ext = {"made by": "a test", "": [{"digest": {"header": "0" * 32}}, 1, -0.0, None], "é": {"a": {"b": True}}}
    model, fresh = adapted(), bert()
    size = save(model, path)
    assert save(model, path, ext=ext) > size
    assert read(path).header.ext == ext
    assert naive_reader.read(path.read_bytes())[0]["ext"] == ext
    load(fresh, path)
    assert equal(trained_values(fresh), trained_values(model))
    save(fresh, path)
    assert read(path).header.ext == {}


@pytest.mark.parametrize(
    ("ext", "message"),
    [
        ([1], "ext is not an object"),
        ({"a": float("inf")}, r"ext\.a is not finite"),
        ({"a": {1: 1}}, r"ext\.a has the key 1, which is not text"),
        ({"a": Path()}, r"ext\.a is a \w*Path"),
        ({"a": "é" * 11_000}, "ext takes more than 65,536 characters"),
        ({"a": json.loads("[" * 16 + "]" * 16)}, "nested more than 16 levels"),
    ],
)
def test_ext_that_a_file_cannot_hold(ext: Any, message: str, path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        save(adapted(), path, ext=ext)
    assert not path.exists()


def test_sites_are_listed_by_path(path: Path) -> None:
    save(adapted(targets="query,value,word_embeddings", rank_pattern=("value=2",)), path)
    sites = read(path).header.sites
    assert sites.record() == [
        ["embeddings.word_embeddings", 32, 64, 3, "embedding"],
        ["encoder.layer.{0-1}.attention.self.query", 32, 32, 3, ""],
        ["encoder.layer.{0-1}.attention.self.value", 32, 32, 2, ""],
    ]
    assert list(sites) == [
        "embeddings.word_embeddings",
        *(f"encoder.layer.{layer}.attention.self.{name}" for layer in (0, 1) for name in ("query", "value")),
    ]
    assert (len(sites), sites.shapes["encoder.layer.1.attention.self.value"].width) == (5, 2)


def test_a_parameter_is_never_taken_for_scales(path: Path) -> None:
    """A model may name its parameters as it likes."""
    model = _one_layer()
    model["ln"] = nn.Module()
    model["ln"].register_parameter("gain", nn.Parameter(torch.ones(300)))
    model["ln"].register_parameter("gain_scale", nn.Parameter(torch.full((3,), 2.0)))
    model["scale:head:ln"] = nn.Module()
    model["scale:head:ln"].register_parameter("gain", nn.Parameter(torch.full((5,), 3.0)))
    names = ["ln.gain", "ln.gain_scale", "scale:head:ln.gain"]
    capaft.attach(model, "nola", rank=1, k=2, head=names)
    save(model, path, dtype="int8")
    model_again = copy.deepcopy(model)
    capaft.detach(model_again)
    with torch.no_grad():
        for name in names:
            model_again.get_parameter(name).zero_()
    load(model_again, path)
    for name in names:
        torch.testing.assert_close(model_again.get_parameter(name), model.get_parameter(name), rtol=0.01, atol=0)


def test_a_wrapped_model_and_a_bare_encoder_have_the_same_sites(path: Path) -> None:
    model = adapted(head=())
    save(model, path)
    bare = bert().bert
    load(bare, path)
    with torch.no_grad():
        expected = model.bert(input_ids=torch.tensor([[1, 2, 3]])).last_hidden_state
        assert not torch.equal(expected, bert().bert(input_ids=torch.tensor([[1, 2, 3]])).last_hidden_state)
        assert torch.allclose(bare(input_ids=torch.tensor([[1, 2, 3]])).last_hidden_state, expected, atol=1e-6)


def test_renamed_modules_keep_their_streams(path: Path) -> None:
    old, new = _nested("old"), _nested("new")
    scramble(capaft.attach(old, "nola", rank=2, k=3, targets="old.query"))
    save(old, path)
    with pytest.raises(AdapterFileError, match="pass the --model it was trained on"):
        load(new, path)
    adapter = load(new, path, rename={"old": "new"})
    assert [site.path for site in adapter.plan.sites] == ["old.query"]
    inputs = torch.ones(1, 6)
    assert torch.equal(new["new"]["query"](inputs), old["old"]["query"](inputs))


def _nested(name: str) -> nn.Module:
    return nn.ModuleDict({name: nn.ModuleDict({"query": _one_layer()["query"]})})


def _one_layer() -> nn.ModuleDict:
    """A base model of one layer, with weights that do not depend on a generator."""
    layer = nn.Linear(6, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_((torch.arange(24) / 16 - 0.7).view(4, 6))
    return nn.ModuleDict({"query": layer})


def test_restore_refuses_another_adapter(path: Path) -> None:
    save(adapted(seed=1), path)
    model = adapted()
    before = trained_values(model)
    with pytest.raises(AdapterFileError, match="not a file of the attached adapter"):
        restore_parameters(model, path)
    assert equal(trained_values(model), before)


# The same adapter is the same file


def golden(method: str, **options: Any) -> nn.Module:
    """An adapter on a model whose every value comes from a seeded stream, so that its file never changes."""
    widths = {"query": (32, 32), "key": (32, 32), "value": (32, 40), "classifier": (32, 3)}
    model = nn.ModuleDict({name: nn.Linear(*width) for name, width in widths.items()})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_stream("weights", name, parameter))
        adapter = capaft.attach(model, method, rank=4, alpha=8, seed=3, head=HEAD, **options)
        for name, parameter in adapter.trained(model).items():
            parameter.copy_(_stream("numbers", name, parameter))
    return model


def _stream(what: str, name: str, like: Tensor) -> Tensor:
    return torch.from_numpy(rng.uniform(rng.fold_in(0, "golden", name, what), like.numel())).view_as(like)


@pytest.mark.parametrize(
    ("options", "dtype", "digest"),
    [
        ({"method": "nola", "k": 16}, "float32", "044aa3dd6df57942ce6efdd5087e39c1e7db36d0ac5c6a51b68564d1bedf2358"),
        (
            {"method": "lora+nola+capaboost", "k": (7, 5), "basis": "uniform"},
            "bfloat16",
            "e1f32dffcf0f8ad3ca31f8de23441e3203e84848be55b2b9b9bc018d26ad7073",
        ),
        (
            {"method": "nola", "k": 8, "basis": "group"},
            "float16",
            "4d4d8e105cc809e8d35e9f091518c9f7a70ccadb818631ecffc6b106ef7a11a0",
        ),
        (
            {"method": "capaboost", "copies": 3, "density": 0.29},
            "int4",
            "499aec05398098fc3be12a16f1d96429d9fd2c4abdf1af26503a0f4f74b4023a",
        ),
        (
            {"method": "capaboost", "copies": 2, "masks": "partition", "targets": "query,key,value"},
            "int8",
            "011d0d3b1f6cfd1f9fbd4c1cc11f991e0b584b3a0e91eecf9aa04f168a969584",
        ),
        (
            {"method": "lora", "head_mode": "nola", "head_k": 9},
            "float32",
            "1856411f8bd75322bb95a5cf0619f208d0bd113ade0c10a7f48275d1dc1d9d1a",
        ),
    ],
)
def test_golden_file(options: dict[str, Any], dtype: SaveDtype, digest: str, path: Path) -> None:
    save(golden(**options), path, base=Origin("tiny"), task=TASK, dtype=dtype)
    naive_reader.read(path.read_bytes())
    assert sha256(path.read_bytes()).hexdigest() == digest


TRAINING = """
import sys
import torch
from torch import nn
import capaft
from capaft.adapter.file.save_load import save
from capaft.model.origin import Origin

torch.manual_seed(0)
model = nn.ModuleDict({name: nn.Linear(40, 40) for name in ("query", "value", "other")})
capaft.attach(model, "lora+nola+capaboost", rank=3, k=9)
for _ in range(5):
    model["value"](model["query"](torch.randn(8, 40)).relu()).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.sub_(0.1 * parameter.grad)
save(model, sys.argv[1], base=Origin("tiny"))
"""


def test_two_fresh_processes_write_the_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    running = [
        subprocess.Popen([sys.executable, "-c", TRAINING, str(path)], env=os.environ | {"PYTHONHASHSEED": seed})
        for seed, path in zip("12", paths, strict=True)
    ]
    assert [process.wait() for process in running] == [0, 0]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_whole_number_and_its_float_are_one_file(path: Path) -> None:
    contents = []
    for alpha in (16, 16.0):
        save(adapted(alpha=alpha), path)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("targets", ["qv", "all-linear"])
def test_the_header_stays_small_however_many_sites(targets: str, path: Path) -> None:
    config = BertConfig(vocab_size=4, hidden_size=4, num_hidden_layers=60, num_attention_heads=1, intermediate_size=4)
    model = BertModel(config)
    adapter = capaft.attach(model, "lora+nola+capaboost", rank=1, k=2, targets=targets)
    assert len(adapter.plan.sites) == {"qv": 120, "all-linear": 361}[targets]
    save(model, path, base=Origin("some-organisation/some-model-with-a-long-name", "0" * 40), task=TASK)
    header = read(path).header.record()
    header["task"]["labels"], header["task"]["options"] = [], {}
    assert len(json.dumps(header)) < 2048


# Files made by hand


Parts = tuple[dict[str, Any], dict[str, tuple[str, list[int], bytes]]]
Change = Callable[[dict[str, Any], dict[str, tuple[str, list[int], bytes]]], Any]


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def unpack(data: bytes) -> Parts:
    """Header and tensors of a file."""
    (length,) = struct.unpack("<Q", data[:8])
    listed = json.loads(data[8 : 8 + length])
    header = json.loads(listed.pop("__metadata__")["capaft"])
    body = data[8 + length :]
    return header, {
        name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])]) for name, entry in listed.items()
    }


def pack(header: dict[str, Any], tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    """A file whose own digests hold, whatever it says."""
    hashed = b"".join(map(hashable, sorted(tensors.items())))
    if isinstance(header.get("digest"), dict):
        header["digest"].pop("header", None)
        header["digest"]["tensors"] = digest(hashed)
        header["digest"]["header"] = digest(canonical(header).encode())
    return _enveloped(header, tensors)


def _enveloped(header: dict[str, Any], tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    listed: dict[str, Any] = {"__metadata__": {"capaft": canonical(header)}}
    body = b""
    for name, (dtype, shape, raw) in tensors.items():
        listed[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    return envelope(listed, body)


def hashable(tensor: tuple[str, tuple[str, list[int], bytes]]) -> bytes:
    """What the digest of the tensors takes of one: its name, dtype, shape and bytes, with their lengths."""
    name, (dtype, shape, raw) = tensor
    texts = b"".join(struct.pack("<Q", len(text.encode())) + text.encode() for text in (name, dtype))
    return texts + struct.pack(f"<{len(shape) + 2}Q", len(shape), *shape, len(raw)) + raw


def envelope(listed: Any, body: bytes = b"") -> bytes:
    text = listed if isinstance(listed, bytes) else json.dumps(listed).encode()
    return struct.pack("<Q", len(text)) + text + body


def forged(data: bytes, change: Change) -> bytes:
    header, tensors = unpack(data)
    change(header, tensors)
    return pack(header, tensors)


@contextlib.contextmanager
def bounded(seconds: float = 5, room: int = 2**29) -> Iterator[None]:
    """Fail if the body takes too long, or too much memory."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + room, before[1]))
    start = time.perf_counter()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.perf_counter() - start < seconds


def refused(path: Path, data: bytes, says: str = ".", kind: type[UsageError] = AdapterFileError) -> None:
    """The file is refused in one line, soon, without much memory, and the model stays as it was."""
    path.write_bytes(data)
    model = bert()
    before = copy.deepcopy(model.state_dict())
    with bounded(), pytest.raises(kind, match=says) as error:
        load(model, path)
    assert isinstance(error.value, kind)
    assert "\n" not in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 700
    assert capaft.adapters(model) == {}
    assert equal(dict(model.state_dict()), dict(before))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_file_made_by_hand_is_as_good(good: bytes, path: Path) -> None:
    path.write_bytes(forged(good, lambda header, tensors: None))
    model = bert()
    load(model, path)
    assert equal(trained_values(model), trained_values(adapted()))


# Damaged files


def test_every_truncation_is_refused(good: bytes, path: Path) -> None:
    for length in range(0, len(good), 3):
        path.write_bytes(good[:length])
        with pytest.raises(AdapterFileError):
            read(path)
    refused(path, good[:-1], "truncated")


def test_bytes_at_the_end_are_refused(good: bytes, path: Path) -> None:
    refused(path, good + b"\0", "bytes that its header does not name")


def test_every_flipped_bit_is_refused(good: bytes, path: Path) -> None:
    """Every eleventh of them: eleven and eight have no common divisor, so every bit of a byte has its turn."""
    for position in range(0, 8 * len(good), 11):
        data = bytearray(good)
        data[position // 8] ^= 1 << position % 8
        path.write_bytes(data)
        with pytest.raises(AdapterFileError):
            read(path)


@given(st.binary(max_size=300))
@settings(max_examples=100)
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "random.safetensors"
    for content in (data, envelope(data), envelope(data, data)):
        file.write_bytes(content)
        with pytest.raises(AdapterFileError):
            read(file)


@pytest.mark.parametrize(
    ("dtype", "shape"), [("I8", [4, 9, 4]), ("U8", [144]), ("F16", [4, 18]), ("F32", [36]), ("F32", [1, 36])]
)
def test_the_digest_tells_dtypes_and_shapes(dtype: str, shape: list[int], good: bytes, path: Path) -> None:
    header, tensors = unpack(good)
    tensors["down"] = (dtype, shape, tensors["down"][2])
    wrong = header["digest"]["tensors"]
    path.write_bytes(pack(header, tensors))
    assert header["digest"]["tensors"] != wrong
    header["digest"] |= {"tensors": wrong}
    del header["digest"]["header"]
    header["digest"]["header"] = digest(canonical(header).encode())
    path.write_bytes(_enveloped(header, tensors))
    with pytest.raises(AdapterFileError, match="do not match their digest"):
        read(path)


def test_mutated_files_are_refused(good: bytes, path: Path) -> None:
    """Bytes changed, moved, doubled, cut; and digits, quotes, braces in the JSON, with its length made right again."""
    draw, length = random.Random(1), int.from_bytes(good[:8], "little")
    refusals = 0
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(draw.choice([1, 1, 2, 5])):
            start = draw.randrange(len(data))
            part = slice(start, start + draw.choice([0, 1, 1, 2, 8, 40]))
            data[part] = draw.choice(
                [
                    b"",
                    bytes(data[part]) * 2,
                    draw.randbytes(1),
                    b'"',
                    b"{",
                    b"}",
                    b"[",
                    b"\\",
                    b"-",
                    b"9",
                    b"e",
                    b",",
                    b"\xed\xa0\x80",
                ]
            )
        if draw.random() < 0.5 and len(data) > 8:
            data[:8] = struct.pack("<Q", max(length + len(data) - len(good), 0))
        path.write_bytes(data)
        try:
            file = read(path)
        except AdapterFileError:
            refusals += 1
        else:  # Nothing was changed, or JSON has another form of the same.
            assert file.header.record() == unpack(good)[0]
    assert refusals > 2900


# The digests cover the header and the tensors; the JSON around them means one thing, or nothing.


ODD: dict[str, Callable[[bytes], bytes]] = {
    "the metadata twice": lambda text: text.replace(b'{"__metadata__":', b'{"__metadata__":{},"__metadata__":', 1),
    "the header twice": lambda text: text.replace(b'{"capaft":', b'{"capaft":"","capaft":', 1),
    "a tensor twice": lambda text: text.replace(b'"down":', b'"down":{},"down":', 1),
    "a dtype twice": lambda text: text.replace(b'{"dtype":"F32"', b'{"dtype":"F16","dtype":"F32"', 1),
    "a tensor with a further key": lambda text: text.replace(b'{"dtype"', b'{"comment":1,"dtype"', 1),
    "fractional offsets": lambda text: re.sub(rb'"data_offsets":\[0,', b'"data_offsets":[0.0,', text, count=1),
    "true offsets": lambda text: re.sub(rb'"data_offsets":\[0,', b'"data_offsets":[false,', text, count=1),
    "NaN beside it": lambda text: text.replace(b'"down":', b'"a":NaN,"down":', 1),
    "half a pair in a name": lambda text: text.replace(b'"down":', b'"\\ud800":', 1),
    "half a pair as it is": lambda text: text.replace(b'"down":', b'"\xed\xa0\x80":', 1),
    "half a pair in the header": lambda text: text.replace(b"so so", b"\\\\ud800", 1),
    "a raw character in the header": lambda text: text.replace(b"so so", "so\u00e9so".encode(), 1),
    "an escape too many": lambda text: text.replace(b"so so", b"\\\\u0073o so", 1),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_two_readers_could_take_in_two_ways_is_refused(kind: str, good: bytes, path: Path) -> None:
    length = int.from_bytes(good[:8], "little")
    text = ODD[kind](good[8 : 8 + length])
    assert text != good[8 : 8 + length]
    content = envelope(text, good[8 + length :])
    with pytest.raises(naive_reader.Damaged):
        naive_reader.read(content)
    refused(path, content)


# Foreign files


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


PEFT = {"base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight": torch.zeros(3, 32)}
DEEP = b"[" * 200_000 + b"]" * 200_000
FOREIGN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated or is not an adapter"),
    "text": (b"adapter: none\n", "truncated or is not an adapter"),
    "pickle": (pickle.dumps(Bomb()), "truncated or is not an adapter"),
    "zip": (b"PK\x03\x04" + bytes(60), "truncated or is not an adapter"),
    "random": (random.Random(0).randbytes(5000), "truncated or is not an adapter"),
    "PEFT": (safetensors.torch.save(PEFT, {"format": "pt"}), "not a capaft adapter; adapters of other tools"),
    "model": (safetensors.torch.save(PEFT), "not a capaft adapter"),
    "more metadata": (safetensors.torch.save(PEFT, {"capaft": "{}", "format": "pt"}), "not a capaft adapter"),
    "list": (envelope([]), "not a capaft adapter"),
    "deep": (envelope(DEEP), "not a capaft adapter"),
    "deep inside": (envelope({"__metadata__": {"capaft": DEEP.decode()}}), "not JSON, or not in this form"),
    "metadata of another type": (envelope({"__metadata__": ["capaft"]}), "not a capaft adapter"),
    "header of another type": (envelope({"__metadata__": {"capaft": {}}}), "not a capaft adapter"),
    "not UTF-8": (envelope(b'{"\xff\xfe": 1}'), "not a capaft adapter"),
    "UTF-16": (envelope('{"__metadata__":{"capaft":"{}"}}'.encode("utf-16")), "not a capaft adapter"),
    "UTF-8 with a mark": (envelope('{"__metadata__":{"capaft":"{}"}}'.encode("utf-8-sig")), "not a capaft adapter"),
    "a number of many digits": (envelope(b'{"a":' + b"9" * 100_000 + b"}"), "not a capaft adapter"),
    "a length beyond the end": (struct.pack("<Q", 2**63) + b"{}", "truncated or is not an adapter"),
    "a header of a gigabyte": (struct.pack("<Q", 2**30) + b"{}", "truncated or is not an adapter"),
    "a header of 17 MB": (
        envelope(b"{}" + b" " * 17_000_000),
        "has a header of 17,000,002 bytes, and at most 16,777,216",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_refused(kind: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    refused(path, *FOREIGN[kind])
    assert os.listdir(path.parent) == [path.name]


def test_a_foreign_file_is_refused_whatever_its_size(path: Path) -> None:
    path.write_bytes(safetensors.torch.save(PEFT))
    os.truncate(path, 2**36)
    with bounded(), pytest.raises(AdapterFileError, match="not a capaft adapter"):
        read(path)


def test_what_is_no_file_is_said(path: Path) -> None:
    with pytest.raises(AdapterFileError, match=r"cannot read .*No such file"):
        read(path)
    with pytest.raises(AdapterFileError, match=r"holds no adapter\.safetensors or other adapter file"):
        read(path.parent)


def _entry(shape: list[Any], stop: Any = 4, dtype: str = "F32", start: Any = 0) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


ENTRIES: dict[str, Any] = {
    "huge": _entry([2**62, 2**62]),
    "huge and empty": _entry([2**62, 0], 0),
    "huge in small steps": _entry([10**6] * 300_000),
    "negative": _entry([-1, -1]),
    "fractional": _entry([1.0]),
    "true": _entry([True]),
    "overlapping": _entry([1], start=-4, stop=0),
    "offsets of another type": _entry([1], "4"),
    "no offsets": {"dtype": "F32", "shape": [1]},
    "three offsets": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]},
    "unknown dtype": _entry([1], dtype="F128"),
    "dtype of another type": {"dtype": [], "shape": [1], "data_offsets": [0, 4]},
    "no entry": 5,
    "null": None,
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_tensors_that_lie_wrong_are_refused(kind: str, path: Path) -> None:
    refused(path, envelope({"__metadata__": {"capaft": "{}"}, "down": ENTRIES[kind]}, bytes(4)), "damaged")


# Hostile files: every digest holds


def _put(*where: str, value: Any) -> Change:
    def change(header: dict[str, Any], _: Any) -> None:
        for key in where[:-1]:
            header = header[key]
        header[where[-1]] = value

    return change


def _method(**options: Any) -> Change:
    return lambda header, _: header["method"].update(options)


def _whole(method: str, **options: Any) -> Change:
    """Another stack, complete."""
    record = {"rank": 3, "alpha": 3.0, "rslora": False, "rank_pattern": []}
    record |= {"mask_rescale": "none"} if "copies" in options else {}
    return lambda header, _: header.update(method={"method": method, **record, **options})


def _tensor(name: str, dtype: str, shape: list[int], raw: bytes) -> Change:
    return lambda _, tensors: tensors.update({name: (dtype, shape, raw)})


def _both(*changes: Change) -> Change:
    return lambda header, tensors: [change(header, tensors) for change in changes]


LARGE = {"classifier.weight": [3, 32]}
HERE = "encoder.layer.{0-1}.attention.self.{query,value}"
SITES: dict[str, Any] = {
    "of another type": 4,
    "of no groups": [],
    "that are text": [HERE],
    "of three values": [[HERE, 32, 32]],
    "of six values": [[HERE, 32, 32, 3, "", ""]],
    "fractional": [[HERE, 32.0, 32, 3, ""]],
    "true": [[HERE, 32, 32, True, ""]],
    "negative": [[HERE, -32, 32, 3, ""]],
    "of no width": [[HERE, 32, 0, 3, ""]],
    "of another width": [[HERE, 32, 48, 3, ""]],
    "of another rank": [[HERE, 32, 32, 2, ""]],
    "of an unknown mark": [[HERE, 32, 32, 3, "conv"]],
    "of another mark": [[HERE, 32, 32, 3, "embedding"]],
    "of a billion": [["encoder.{0-999999999}", 32, 32, 3, ""]],
    "of a billion in groups": [[f"a{number:05}" + ".{0-999}" * 2, 32, 32, 3, ""] for number in range(10**3)],
    "of 2 ** 3,000,000": [["{0-1}" * 10**6, 32, 32, 3, ""]],
    "of a gigabyte": [["a" * 2**20 + ".{0-999}", 32, 32, 3, ""]],
    "twice": [[HERE, 32, 32, 3, ""], ["encoder.layer.{0-1}.attention.self.{value,query}", 32, 32, 3, ""]],
    "twice in one": [["encoder.layer.{0-1,1}.attention.self.{query,value}", 32, 32, 3, ""]],
    "too few": [["encoder.layer.{0-1}.attention.self.query", 32, 32, 3, ""]],
    "too many": [["encoder.layer.{0-1}.attention.self.{key,query,value}", 32, 32, 3, ""]],
    "of other names": [["encoder.layer.{0-1}.attention.self.{key,value}", 32, 32, 3, ""]],
    "out of order": [[f"encoder.layer.{layer}.attention.self.query", 32, 32, 3, ""] for layer in (1, 0)],
    "of an open brace": [["encoder.layer.{0-1", 32, 32, 3, ""]],
    "of braces in braces": [["{a{b,c}}", 32, 32, 3, ""]],
    "of an empty alternative": [["{a,}", 32, 32, 3, ""]],
    "of a comma": [["a,b", 32, 32, 3, ""]],
    "of a range backwards": [["{1-0}", 32, 32, 3, ""]],
    "of several lines": [["a\nb\x1b[2J", 32, 32, 3, ""]],
    "of millions of braces": [["{" * 10**6, 32, 32, 3, ""]],
    "of too many alternatives": [["{" + ",".join(["a"] * 10**5 * 3) + "}", 32, 32, 3, ""]],
}
EXTS: dict[str, Any] = {
    "null": None,
    "a list": [],
    "too long": {"a": "b" * 2**16},
    "too deep": {"a": json.loads("[" * 16 + "]" * 16)},
    "much too deep": {"a": json.loads("[" * 900 + "]" * 900)},
    "of a number too large": {"a": 2**64},
    "of many lists": {"a": [[]] * 10**5},
}
HOSTILE: dict[str, Change] = {
    "a rank of a billion": _method(rank=10**9),
    "a rank beyond the layer": _method(rank=65),
    "a rank that is true": _method(rank=True),
    "k of a trillion": _method(k=[10**12, 10**12]),
    "k of a trillion, uniform": _method(k=[10**12, 10**12], basis="uniform"),
    "k of a trillion, group": _method(k=[10**12, 10**12], basis="group"),
    "k of one too many": _method(k=[10, 9]),
    "k of one number": _method(k=[9]),
    "k nested": _method(k=[[9], [9]]),
    "k fractional": _method(k=[9.0, 9.0]),
    "no k": _method(k=[]),
    "alpha zero": _method(alpha=0.0),
    "alpha huge": _method(alpha=1e300),
    "alpha text": _method(alpha="3"),
    "alpha that is whole": _method(alpha=3),
    "alpha of hundreds of digits": _method(alpha=10**400),
    "rslora of another type": _method(rslora=1),
    "rank pattern of another type": _method(rank_pattern=5),
    "rank pattern text": _method(rank_pattern="query=3"),
    "rank pattern nested": _method(rank_pattern=[["query=3"]]),
    "rank pattern without a rank": _method(rank_pattern=["query"]),
    "rank pattern of rank zero": _method(rank_pattern=["query=0"]),
    "rank pattern of another rank": _method(rank_pattern=["query=2"]),
    "rank pattern beyond the layer": _method(rank_pattern=["query=1000000000"]),
    "rank pattern of thousands of digits": _method(rank_pattern=["query=" + "9" * 5000]),
    "rank pattern not canonical": _method(rank_pattern=["query=03"]),
    "rank pattern in other digits": _method(rank_pattern=["query=\u0663"]),
    "rank pattern of a megabyte": _method(rank_pattern=["re:a+b+c+=3"] * 10**5),
    "rank pattern that backtracks": _method(rank_pattern=[r"re:(?:[a-z.]|\w|.)+(?<!y|e)$=3"]),
    "scope unknown": _method(scope="block"),
    "scope list": _method(scope=["site"]),
    "scope of the model": _method(scope="model"),
    "basis list": _method(basis=["hadamard"]),
    "basis object": _method(basis={}),
    "basis unknown": _method(basis="fourier"),
    "method unknown": _method(method="lora+nolla"),
    "method list": _method(method=["lora"]),
    "method not canonical": _method(method="nola"),
    "method of another kind": _put("method", value={"method": "head"}),
    "method everything": _put("method", value={"method": "full"}),
    "method without options": _put("method", value={"method": "lora+nola"}),
    "options of another method": _method(copies=2, density=0.5, masks="random"),
    "copies of a billion": _whole("lora+capaboost", copies=10**9, density=0.5, masks="random"),
    "copies beyond the layer": _whole("lora+capaboost", copies=64, density=0.5, masks="random"),
    "density that keeps nothing": _whole("lora+capaboost", copies=2, density=5e-324, masks="random"),
    "density text": _whole("lora+capaboost", copies=2, density="0.5", masks="random"),
    "density list": _whole("lora+capaboost", copies=2, density=[0.5], masks="random"),
    "masks list": _whole("lora+capaboost", copies=2, density=0.5, masks=[]),
    "rescaling list": _whole("lora+capaboost", copies=2, density=0.5, masks="random", mask_rescale=[]),
    "rescaling unknown": _whole("lora+capaboost", copies=2, density=0.5, masks="random", mask_rescale="mean"),
    "density beside a partition": _whole("lora+capaboost", copies=2, density=0.25, masks="partition"),
    "dense factors that are not there": _whole("lora"),
    "targets that catch everything": _put("targets", "modules", value="all-linear"),
    "targets that catch nothing": _put("targets", "modules", value="nowhere"),
    "targets of several lines": _put("targets", "modules", value="a\nb\x1b[2J\udc80"),
    "targets of a megabyte": _put("targets", "modules", value="a," * 2**19),
    "pattern that backtracks": _put("targets", "modules", value=r"re:(?:[a-z.]|\w|.)+(?<!y|e)$"),
    "pattern that backtracks often": _put("targets", "modules", value=r"re:(?:\w|[a-z])+\.(?:\w|[a-z]|\.)+\d$"),
    "pattern that recurses": _put("targets", "modules", value="re:(?R)a|b(?R)"),
    "pattern that fills memory": _put("targets", "modules", value="re:a{1000000000}"),
    "pattern that fills memory in two steps": _put("targets", "modules", value="re:(?:(?:ab?){9999}){9999}"),
    "pattern of nested repeats": _put("targets", "modules", value="re:" + "(?:" * 90 + "a" + ")+" * 90),
    "pattern of nested groups": _put("targets", "modules", value="re:" + "(" * 490 + "a" + ")" * 490),
    "pattern that is none": _put("targets", "modules", value="re:("),
    "targets of the old form": _put("targets", value="qv"),
    "exclude everything": _put("targets", "exclude", value="re:."),
    "exclude some": _put("targets", "exclude", value="query"),
    "exclude of a megabyte": _put("targets", "exclude", value="a," * 2**19),
    "exclude that backtracks": _put("targets", "exclude", value=r"re:(?:[a-z.]|\w|.)+(?<!y|e)$"),
    "exclude that is none": _put("targets", "exclude", value="re:("),
    "layers some": _put("targets", "layers", value="1"),
    "layers that are not there": _put("targets", "layers", value="0-2"),
    "layers backwards": _put("targets", "layers", value="1-0"),
    "layers of a billion": _put("targets", "layers", value="0-1000000000"),
    "layers of many ranges": _put("targets", "layers", value="0-99999," * 2000 + "0"),
    "layers null": _put("targets", "layers", value=None),
    "seed negative": _put("seed", value=-1),
    "seed too large": _put("seed", value=2**64),
    "seed fractional": _put("seed", value=0.0),
    "another seed": _put("seed", value=1),
    **{f"sites {name}": _put("sites", value=value) for name, value in SITES.items()},
    "streams digest": _put("digest", "streams", value="0" * 32),
    "digest of another type": _put("digest", "streams", value=0),
    "save dtype unknown": _put("save_dtype", value="float64"),
    "save dtype of other tensors": _put("save_dtype", value="int8"),
    "half the values": _put("save_dtype", value="int4"),
    "base samples that are no base64": _put("base", "weights", value="?é"),
    "base samples of odd length": _put("base", "weights", value="AAAA"),
    "no base samples": _put("base", "weights", value=""),
    "too many base samples": _put("base", "weights", value=base64.b64encode(bytes(2**20)).decode()),
    "base samples that are not finite": _put("base", "weights", value=base64.b64encode(b"\xff" * 128).decode()),
    "labels that are no text": _put("task", "labels", value=[1, 2]),
    "task incomplete": _put("task", value={"labels": []}),
    "task of another type": _put("task", value=[]),
    "task without options": lambda header, _: header["task"].pop("options"),
    "options of another type": _put("task", "options", value=[]),
    "options nested": _put("task", "options", value={"a": {}}),
    "options of a thousand": _put("task", "options", value={str(number): 0 for number in range(1000)}),
    **{f"ext {name}": _put("ext", value=value) for name, value in EXTS.items()},
    "an option of more than 64 bits": _put("task", "options", value={"a": 2**64}),
    "a label that is half a pair": _put("task", "labels", value=["\ud800", "b", "c"]),
    "a name that is half a pair": _put("base", "name", value="\udc80"),
    "a head of another type": _put("head", value=[]),
    "a head of no keys": _put("head", value={}),
    "a head that is stored whole": _put("head", value={"k": 4, "parameters": LARGE, "weights": None}),
    "a frozen head that is stored whole": _put("head", value={"k": 0, "parameters": LARGE, "weights": None}),
    "one key more": _put("comment", value=""),
    "one key less": lambda header, _: header.pop("seed"),
    "format text": _put("format", value="1"),
    "format true": _put("format", value=True),
    "format zero": _put("format", value=0),
    "another seed contract": _put("contract", value=2),
    "no up": lambda _, tensors: tensors.pop("up"),
    "no tensors": lambda _, tensors: tensors.clear(),
    "one tensor more": _tensor("side", "F32", [1], bytes(4)),
    "a scale of nothing": _tensor("scale:down", "F32", [1], bytes(4)),
    "a head that the model lacks": _tensor("head:score.weight", "F32", [1], bytes(4)),
    "a head of another shape": _tensor("head:classifier.bias", "F32", [1], bytes(4)),
    "a head of another dtype": _tensor("head:classifier.bias", "BF16", [3], bytes(6)),
    "a head without a name": _tensor("head:", "F32", [1], bytes(4)),
    "down of another shape": _tensor("down", "F32", [9, 4], bytes(144)),
    "down of another dtype": _tensor("down", "F16", [4, 9], bytes(72)),
    "down empty": _tensor("down", "F32", [0], b""),
    "down of a million": _tensor("down", "F32", [10**6], bytes(4 * 10**6)),
    "NaN": _tensor("down", "F32", [4, 9], struct.pack("<f", float("nan")) * 36),
    "infinity": _tensor("head:classifier.bias", "F32", [3], struct.pack("<3f", 0, 1, float("inf"))),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused(kind: str, good: bytes, path: Path) -> None:
    refused(path, forged(good, HOSTILE[kind]))


def test_an_option_of_a_later_version_asks_for_an_upgrade(good: bytes, path: Path) -> None:
    def later(header: dict[str, Any], tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
        header["method"]["init_down"] = "kaiming-rank"

    refused(path, forged(good, later), r"has the option init_down, which this capaft does not know; upgrade it")


def test_a_basis_that_cannot_be_is_refused(good: bytes, path: Path) -> None:
    """Parameters and streams are what the header says, but no such adapter can have been written."""

    def empty_groups(header: dict[str, Any], tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
        header["method"].update(basis="group", k=[9, 100])
        header["digest"]["streams"] = naive_reader.streams_digest(header)
        tensors["up"] = ("F32", [4, 100], bytes(1600))

    refused(path, forged(good, empty_groups), r"k 100 is more than --basis group has room for", UsageError)


@pytest.fixture(scope="module", params=["nola", "frozen"])
def good_head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The same with a head of which little is stored."""
    path = tmp_path_factory.mktemp("good") / "adapter.safetensors"
    save(adapted(head_mode=request.param, head_k=20), path, base=Origin("tiny"), task=TASK)
    return path.read_bytes()


def _head(**values: Any) -> Change:
    return lambda header, _: header["head"].update(values)


HOSTILE_HEADS: dict[str, Change] = {
    "one key more": _head(mode="nola"),
    "one key less": lambda header, _: header["head"].pop("k"),
    "k negative": _head(k=-1),
    "k fractional": _head(k=20.0),
    "k true": _head(k=True),
    "k of a trillion": _head(k=10**12),
    "k of one too many": _head(k=21),
    "k of all the entries": _head(k=96),
    "no parameters": _head(parameters={}),
    "parameters of another type": _head(parameters=["classifier.weight"]),
    "a parameter that the model lacks": _head(parameters={"score.weight": [3, 32]}),
    "a parameter of several lines": _head(parameters={"a\nb\x1b[2J": [3, 32]}),
    "a parameter of a megabyte": _head(parameters={"a" * 2**20: [3, 32]}),
    "another shape": _head(parameters={"classifier.weight": [32, 3]}),
    "a huge shape": _head(parameters={"classifier.weight": [2**62, 2**62]}),
    "a shape of one side": _head(parameters={"classifier.weight": [96]}),
    "a shape of another type": _head(parameters={"classifier.weight": [3, 32.0]}),
    "a shape that is text": _head(parameters={"classifier.weight": "ab"}),
    "a small parameter": _head(parameters={"classifier.bias": [3, 1]}),
    "one parameter more": _head(parameters=LARGE | {"pooler.dense.weight": [32, 32]}, k=20),
    "a parameter that is adapted": _head(
        parameters=LARGE | {"encoder.layer.0.attention.self.query.weight": [32, 32]}, k=20
    ),
    "a parameter stored whole": _tensor("head:classifier.weight", "F32", [3, 32], bytes(384)),
    "samples that are no base64": _head(weights="?"),
    "samples of another type": _head(weights=1),
    "samples of another start": _head(weights=base64.b64encode(bytes(128)).decode()),
    "no samples": _head(weights=""),
    "coefficients of another shape": _tensor("head", "F32", [20], bytes(80)),
    "coefficients of a million": _tensor("head", "F32", [1, 10**6], bytes(4 * 10**6)),
    "coefficients of another dtype": _tensor("head", "F16", [1, 20], bytes(40)),
    "coefficients that are not finite": _tensor("head", "F32", [1, 20], struct.pack("<f", float("inf")) * 20),
    "another seed": _put("seed", value=1),
    "method full": _put("method", value={"method": "full"}),
    "method head": _put("method", value={"method": "head"}),
}


@pytest.mark.parametrize("kind", HOSTILE_HEADS)
def test_hostile_heads_are_refused(kind: str, good_head: bytes, path: Path) -> None:
    refused(path, forged(good_head, HOSTILE_HEADS[kind]))


@pytest.mark.parametrize("good_head", ["nola"], indirect=True)
def test_coefficients_and_their_head_belong_together(good_head: bytes, path: Path) -> None:
    for change in (lambda _, tensors: tensors.pop("head"), _put("head", value=None), _head(k=0)):
        refused(path, forged(good_head, change), "its tensors are not those of its method")


def test_every_flipped_bit_of_a_header_with_a_head_is_refused(good_head: bytes, path: Path) -> None:
    for position in range(0, 8 * len(good_head), 37):
        data = bytearray(good_head)
        data[position // 8] ^= 1 << position % 8
        path.write_bytes(data)
        with pytest.raises(AdapterFileError):
            read(path)


ADAPTER_LAYER = {"method": "houlsby", "bottleneck": 3, "activation": "relu", "bias": True, "scaling": 1.0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"activation": ["relu"]},
        {"activation": "sine"},
        {"bias": 1},
        {"scaling": 1},
        {"scaling": "1"},
        {"bottleneck": 0},
    ],
)
def test_hostile_adapter_layers_are_refused(wrong: dict[str, Any], good: bytes, path: Path) -> None:
    refused(path, forged(good, _put("method", value=ADAPTER_LAYER | wrong)))


@pytest.mark.parametrize(("method", "size"), [("houlsby", "bottleneck"), ("prefix", "prefix_length"), ("vera", "rank")])
def test_a_small_file_cannot_ask_for_huge_factors(method: str, size: str, path: Path) -> None:
    """Their coefficients are few whatever the hidden width, and every digest holds."""
    model = adapted(f"{method}+nola", **{size: 10})
    save(model, path)

    def huge(header: dict[str, Any], _: Any) -> None:
        header["method"][size] = 2**27
        header["sites"] = [[template, out, wide, 2**27, mark] for template, out, wide, _, mark in header["sites"]]
        header["digest"]["streams"] = naive_reader.streams_digest(header)

    refused(path, forged(path.read_bytes(), huge), "hidden width of 134217728")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PLACES = [
    *(("base", key) for key in ("name", "revision", "weights")),
    *(("digest", key) for key in ("streams", "tensors")),
    *(("method", key) for key in ("method", "rank", "alpha", "rslora", "rank_pattern", "k", "basis", "scope")),
    *(("task", key) for key in ("labels", "max_length", "metric", "name", "options")),
    *(("targets", key) for key in ("exclude", "layers", "modules")),
    *(
        (key,)
        for key in ("base", "contract", "digest", "ext", "format", "head", "method", "save_dtype", "seed", "sites")
    ),
    ("targets",),
]


@given(place=st.sampled_from(PLACES), value=JSON)
@settings(max_examples=150)
def test_any_value_anywhere_is_refused_or_does_no_harm(
    place: tuple[str, ...], value: Any, good: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "forged.safetensors"
    file.write_bytes(forged(good, _put(*place, value=value)))
    with bounded(), contextlib.suppress(AdapterFileError):
        described = read(file)
        load(model := bert(), described)
        # Only what nothing random depends on can have been another value, and targets that find the same sites.
        harmless = place[0] in ("base", "ext", "targets", "task") or place[-1] in ("alpha", "rank_pattern", "rslora")
        assert harmless or described.header.record() == unpack(good)[0]
        assert equal(trained_values(model), trained_values(adapted()))


# Another model


def test_another_architecture_is_refused(path: Path) -> None:
    model = gpt2()
    scramble(capaft.attach(model, "nola", rank=3, k=9))
    save(model, path)
    refused(path, path.read_bytes(), "pass the --model it was trained on")


def test_another_width_is_refused(good: bytes, path: Path) -> None:
    path.write_bytes(good)
    config = copy.deepcopy(bert().config)
    config.hidden_size = 48
    with pytest.raises(
        AdapterFileError, match=r"self.query is 32 x 32, width 3 in the file and 48 x 48, width 3 in the model"
    ):
        load(type(bert())(config), path)


def _other_weights() -> Any:
    model = bert()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    return model


def test_other_base_weights_are_refused_unless_allowed(good: bytes, path: Path) -> None:
    path.write_bytes(good)
    model = _other_weights()
    with pytest.raises(AdapterFileError, match=r"it names tiny.*--allow-base-mismatch"):
        load(model, path)
    assert capaft.adapters(model) == {}
    load(model, path, allow_base_mismatch=True)
    assert equal(trained_values(model), trained_values(adapted()))


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loaded", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", ["nola", "head"])
def test_copies_in_fewer_bits_are_the_same_model(
    method: str, saved: torch.dtype, loaded: torch.dtype, path: Path
) -> None:
    save(adapted(method, bert().to(saved), head=()), path)
    load(bert().to(loaded), path)


def test_a_quantised_base_gets_a_notice(good: bytes, path: Path) -> None:
    path.write_bytes(forged(good, _put("base", "weights", value=None)))
    with pytest.warns(UserWarning, match="weights are quantised"):
        load(_other_weights(), path)


def test_a_newer_format_asks_for_an_upgrade(good: bytes, path: Path) -> None:
    newer = forged(good, _put("format", value=FORMAT + 1))
    refused(path, newer, f"format {FORMAT + 1}, newer than this capaft reads; upgrade")
    # Even if nothing else about it is known.
    refused(path, envelope({"__metadata__": {"capaft": '{"format": 9, "new": 1e5}'}}), "upgrade")


def test_other_random_numbers_are_noticed(good: bytes, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = rng.words
    monkeypatch.setattr(rng, "words", lambda key, count, start=0: draw(key, count, start + (key.k0 % 7 == 0)))
    file = _read(good, path)
    with pytest.raises(AdapterFileError, match="random streams come out differently"):
        load(bert(), file, allow_base_mismatch=True)


def _read(data: bytes, path: Path) -> AdapterFile:
    path.write_bytes(data)
    return read(path)


def test_a_name_that_is_taken_is_refused(good: bytes, path: Path) -> None:
    model = bert()
    load(model, _read(good, path))
    with pytest.raises(UsageError, match="already has an adapter named default"):
        load(model, path)
    assert isinstance(load(model, path, name="second"), Adapter)


# Writing


@pytest.mark.parametrize("dtype", SAVE_DTYPES)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["up", "head:classifier.bias"])
def test_numbers_that_are_not_finite_are_not_saved(where: str, wrong: float, dtype: SaveDtype, path: Path) -> None:
    model = adapted()
    with torch.no_grad():
        capaft.adapters(model)["default"].trained(model)[where].flatten()[0] = wrong
    with pytest.raises(TrainingError, match=f"{where} holds numbers that are not finite"):
        save(model, path, dtype=dtype)
    assert not path.exists()


def test_numbers_too_large_for_the_dtype_are_not_saved(path: Path) -> None:
    model = adapted()
    with torch.no_grad():
        capaft.adapters(model)["default"].role_parameters["down"][0, 0] = 1e5
    with pytest.raises(TrainingError, match="not finite as float16"):
        save(model, path, dtype="float16")
    assert not path.exists()
    save(model, path, dtype="bfloat16")


def test_an_unknown_dtype_or_adapter_is_refused(path: Path) -> None:
    with pytest.raises(UsageError, match="--save-dtype must be one of float32"):
        save(adapted(), path, dtype="int2")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no adapter named other"):
        save(adapted(), path, name="other")


@contextlib.contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """A real limit: the system refuses to write further."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("old", [b"", b"what was there before"])
def test_a_full_disk_leaves_the_old_file(old: bytes, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if old:
        path.write_bytes(old)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = adapted()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(TrainingError, match="No space left"):
            save(model, path)
    with _largest_file(100), pytest.raises(TrainingError, match="too large"):
        save(model, path)
    assert [file.read_bytes() for file in path.parent.iterdir()] == [old] * bool(old)
