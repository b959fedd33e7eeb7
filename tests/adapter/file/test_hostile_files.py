"""No file does harm or loads wrongly, though all its digests hold."""

from __future__ import annotations

import base64
import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import naive_reader
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import bert
from tiny_files import Change, adapted, bounded, equal, forged, put, refused, tensor, trained_values, unpack

from capaft.adapter.file.adapter_file import read
from capaft.adapter.file.save_load import load, save
from capaft.support.errors import AdapterFileError, UsageError


def _method(**options: Any) -> Change:
    return lambda header, _: header["method"].update(options)


def _whole(method: str, **options: Any) -> Change:
    """Another stack, complete."""
    record = {"rank": 3, "alpha": 3.0, "rslora": False, "rank_pattern": []}
    record |= {"mask_rescale": "none"} if "copies" in options else {}
    return lambda header, _: header.update(method={"method": method, **record, **options})


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
    "method of another kind": put("method", value={"method": "head"}),
    "method everything": put("method", value={"method": "full"}),
    "method without options": put("method", value={"method": "lora+nola"}),
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
    "targets that catch everything": put("targets", "modules", value="all-linear"),
    "targets that catch nothing": put("targets", "modules", value="nowhere"),
    "targets of several lines": put("targets", "modules", value="a\nb\x1b[2J\udc80"),
    "targets of a megabyte": put("targets", "modules", value="a," * 2**19),
    "pattern that backtracks": put("targets", "modules", value=r"re:(?:[a-z.]|\w|.)+(?<!y|e)$"),
    "pattern that backtracks often": put("targets", "modules", value=r"re:(?:\w|[a-z])+\.(?:\w|[a-z]|\.)+\d$"),
    "pattern that recurses": put("targets", "modules", value="re:(?R)a|b(?R)"),
    "pattern that fills memory": put("targets", "modules", value="re:a{1000000000}"),
    "pattern that fills memory in two steps": put("targets", "modules", value="re:(?:(?:ab?){9999}){9999}"),
    "pattern of nested repeats": put("targets", "modules", value="re:" + "(?:" * 90 + "a" + ")+" * 90),
    "pattern of nested groups": put("targets", "modules", value="re:" + "(" * 490 + "a" + ")" * 490),
    "pattern that is none": put("targets", "modules", value="re:("),
    "targets of the old form": put("targets", value="qv"),
    "exclude everything": put("targets", "exclude", value="re:."),
    "exclude some": put("targets", "exclude", value="query"),
    "exclude of a megabyte": put("targets", "exclude", value="a," * 2**19),
    "exclude that backtracks": put("targets", "exclude", value=r"re:(?:[a-z.]|\w|.)+(?<!y|e)$"),
    "exclude that is none": put("targets", "exclude", value="re:("),
    "layers some": put("targets", "layers", value="1"),
    "layers that are not there": put("targets", "layers", value="0-2"),
    "layers backwards": put("targets", "layers", value="1-0"),
    "layers of a billion": put("targets", "layers", value="0-1000000000"),
    "layers of many ranges": put("targets", "layers", value="0-99999," * 2000 + "0"),
    "layers null": put("targets", "layers", value=None),
    "seed negative": put("seed", value=-1),
    "seed too large": put("seed", value=2**64),
    "seed fractional": put("seed", value=0.0),
    "another seed": put("seed", value=1),
    **{f"sites {name}": put("sites", value=value) for name, value in SITES.items()},
    "streams digest": put("digest", "streams", value="0" * 32),
    "digest of another type": put("digest", "streams", value=0),
    "save dtype unknown": put("save_dtype", value="float64"),
    "save dtype of other tensors": put("save_dtype", value="int8"),
    "half the values": put("save_dtype", value="int4"),
    "base samples that are no base64": put("base", "weights", value="?é"),
    "base samples of odd length": put("base", "weights", value="AAAA"),
    "no base samples": put("base", "weights", value=""),
    "too many base samples": put("base", "weights", value=base64.b64encode(bytes(2**20)).decode()),
    "base samples that are not finite": put("base", "weights", value=base64.b64encode(b"\xff" * 128).decode()),
    "labels that are no text": put("task", "labels", value=[1, 2]),
    "task incomplete": put("task", value={"labels": []}),
    "task of another type": put("task", value=[]),
    "task without options": lambda header, _: header["task"].pop("options"),
    "options of another type": put("task", "options", value=[]),
    "options nested": put("task", "options", value={"a": {}}),
    "options of a thousand": put("task", "options", value={str(number): 0 for number in range(1000)}),
    **{f"ext {name}": put("ext", value=value) for name, value in EXTS.items()},
    "an option of more than 64 bits": put("task", "options", value={"a": 2**64}),
    "a label that is half a pair": put("task", "labels", value=["\ud800", "b", "c"]),
    "a name that is half a pair": put("base", "name", value="\udc80"),
    "a head of another type": put("head", value=[]),
    "a head of no keys": put("head", value={}),
    "a head that is stored whole": put("head", value={"k": 4, "parameters": LARGE, "weights": None}),
    "a frozen head that is stored whole": put("head", value={"k": 0, "parameters": LARGE, "weights": None}),
    "one key more": put("comment", value=""),
    "one key less": lambda header, _: header.pop("seed"),
    "format text": put("format", value="1"),
    "format true": put("format", value=True),
    "format zero": put("format", value=0),
    "another seed contract": put("contract", value=2),
    "no up": lambda _, tensors: tensors.pop("up"),
    "no tensors": lambda _, tensors: tensors.clear(),
    "one tensor more": tensor("side", "F32", [1], bytes(4)),
    "a scale of nothing": tensor("scale:down", "F32", [1], bytes(4)),
    "a head that the model lacks": tensor("head:score.weight", "F32", [1], bytes(4)),
    "a head of another shape": tensor("head:classifier.bias", "F32", [1], bytes(4)),
    "a head of another dtype": tensor("head:classifier.bias", "BF16", [3], bytes(6)),
    "a head without a name": tensor("head:", "F32", [1], bytes(4)),
    "down of another shape": tensor("down", "F32", [9, 4], bytes(144)),
    "down of another dtype": tensor("down", "F16", [4, 9], bytes(72)),
    "down empty": tensor("down", "F32", [0], b""),
    "down of a million": tensor("down", "F32", [10**6], bytes(4 * 10**6)),
    "NaN": tensor("down", "F32", [4, 9], struct.pack("<f", float("nan")) * 36),
    "infinity": tensor("head:classifier.bias", "F32", [3], struct.pack("<3f", 0, 1, float("inf"))),
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
    refused(path, forged(good, put("method", value=ADAPTER_LAYER | wrong)))


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
@settings(max_examples=150, deadline=None)
def test_any_value_anywhere_is_refused_or_does_no_harm(
    place: tuple[str, ...], value: Any, good: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "forged.safetensors"
    file.write_bytes(forged(good, put(*place, value=value)))
    with bounded(), contextlib.suppress(AdapterFileError):
        described = read(file)
        load(model := bert(), described)
        # Only what nothing random depends on can have been another value, and targets that find the same sites.
        harmless = place[0] in ("base", "ext", "targets", "task") or place[-1] in ("alpha", "rank_pattern", "rslora")
        assert harmless or described.header.record() == unpack(good)[0]
        assert equal(trained_values(model), trained_values(adapted()))
