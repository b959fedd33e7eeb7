"""A second reader of adapter files, written from docs/adapter-format.md: plain, slow, and without a line of capaft.

The standard library and numpy only, and none of numpy's random numbers. The other tests take their reference values
from here, and tests/factors/test_rng.py checks its generator against the published vectors.
"""

from __future__ import annotations

import base64
import json
import math
import re
import struct
from collections import defaultdict
from decimal import Decimal
from functools import cache
from hashlib import blake2b
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Key = tuple[int, int]
MASK = 2**64 - 1
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int8": "I8", "int4": "U8"}
BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1}


class Site(NamedTuple):
    """One site of a file, with the hidden width r of its factors and its mark (section 2)."""

    path: str
    wide_out: int
    wide_in: int
    r: int = 0
    mark: str = ""


class Factor(NamedTuple):
    """One row of the table of section 4."""

    name: str
    shape: tuple[int, ...]
    hidden_axis: int | None = None
    start: str | float = 0.0
    fan_in: int = 1
    frozen: bool = False


class Damaged(ValueError):  # noqa: N818
    """A check of section 11 failed."""


def check(holds: bool, what: str) -> None:
    if not holds:
        raise Damaged(what)


# Streams (sections 6 and 7)


@cache
def philox(counter: tuple[int, ...], key: Key) -> tuple[int, ...]:
    """Philox4x64-10."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p, q = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = q >> 64 ^ c1 ^ k0, q & MASK, p >> 64 ^ c3 ^ k1, p & MASK
        k0, k1 = k0 + 0x9E3779B97F4A7C15 & MASK, k1 + 0xBB67AE8584CAA73B & MASK
    return c0, c1, c2, c3


def digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def key_of(seed: int, site: str, factor: str, purpose: str) -> Key:
    text = json.dumps(["capaft/1", seed, site, factor, purpose], separators=(",", ":"))
    return struct.unpack("<QQ", digest(text.encode("ascii")))


def word(key: Key, i: int) -> int:
    return philox((i // 4, 0, 0, 0), key)[i % 4]


def words(key: Key, count: int, start: int = 0) -> list[int]:
    first, last = start // 4, -(-(start + count) // 4)
    drawn = [output for block in range(first, last) for output in philox((block, 0, 0, 0), key)]
    return drawn[start - 4 * first :][:count]


def bits(key: Key, count: int) -> list[int]:
    drawn = words(key, -(-count // 64))
    return [drawn[i // 64] >> i % 64 & 1 for i in range(count)]


def signs(key: Key, count: int) -> Array:
    return np.array([1 if bit else -1 for bit in bits(key, count)])


def uniform(key: Key, count: int, start: int = 0) -> Array:
    drawn = words(key, -(-count // 4), start)
    lanes = [drawn[i // 4] >> 16 * (i % 4) & 0xFFFF for i in range(count)]
    return np.array([(2 * lane + 1 - 65536) / 65536 for lane in lanes])


def order(key: Key, n: int) -> list[int]:
    drawn = words(key, n)
    return sorted(range(n), key=lambda i: (drawn[i], i))


def buckets(key: Key, n: int, count: int) -> Array:
    return np.array([(drawn >> 32) * count >> 32 for drawn in words(key, n)])


# From streams to masks, bases and initial values (sections 7 and 8)


def masks(method: dict[str, Any], streams: tuple[int, str, str], n: int) -> Array:
    """`(d, n)`, one row per copy; without copies, one row of ones."""
    if "copies" not in method:
        return np.ones((1, n), bool)
    copies = range(method["copies"])
    if method["masks"] == "partition":
        owner = buckets(key_of(*streams, "mask.partition"), n, len(copies))
        return np.stack([owner == j for j in copies])
    kept = math.floor(Decimal(repr(method["density"])) * n)
    drawn = np.zeros((len(copies), n), bool)
    for j in copies:
        drawn[j, order(key_of(*streams, f"mask.{j}"), n)[:kept]] = True
    return drawn


def transform_size(n: int, k: int) -> int:
    size = 1
    while size < n or size < 2 * k:
        size *= 2
    return size


def basis(kind: str, streams: tuple[int, str, str], n: int, k: int, sizes: Array | None = None) -> Array:
    """G, `(n, k)`, entry by entry; `sizes` are those of the groups, if several factors share their coefficients."""
    if kind == "hadamard":
        half = transform_size(n, k) // 2
        low = order(key_of(*streams, "hadamard.columns"), half)
        top = bits(key_of(*streams, "hadamard.top"), k)
        sign = signs(key_of(*streams, "hadamard.signs"), n)
        column = [low[j] + top[j] * half for j in range(k)]
        parity = [[(-1) ** (i & column[j]).bit_count() for j in range(k)] for i in range(n)]
        return sign[:, None] * np.array(parity) / math.sqrt(3 * k)
    if kind == "uniform":
        key, stride = key_of(*streams, "uniform"), -(-n // 4)
        return np.stack([uniform(key, n, j * stride) for j in range(k)], axis=1) / math.sqrt(k)
    key, sign = key_of(*streams, "group"), signs(key_of(*streams, "group.signs"), n)
    if sizes is None:
        group = np.zeros(n, int)
        group[order(key, n)] = np.arange(n) % k
        sizes = np.bincount(group, minlength=k)
    else:
        group = buckets(key, n, k)
    matrix = np.zeros((n, k))
    for i in range(n):
        matrix[i, group[i]] = sign[i] / math.sqrt(sizes[group[i]])
    return matrix


def theta0(start: str | float, streams: tuple[int, str, str], n: int, fan_in: int) -> Array:
    if not isinstance(start, str):
        return np.full(n, np.float32(start), np.float64)
    scale = np.float32(1 / math.sqrt(fan_in))
    return (uniform(key_of(*streams, "init"), n).astype(np.float32) * scale).astype(np.float64)


def streams_read(method: dict[str, Any], start: str | float, n: int) -> dict[str, int]:
    """Number of words read for each purpose (section 3)."""
    read = {"init": -(-n // 4)} if start == "uniform" else {}
    if "k" in method:
        k = method["k"][start != "uniform"]
        read |= {
            "hadamard": {
                "hadamard.columns": transform_size(n, k) // 2,
                "hadamard.top": -(-k // 64),
                "hadamard.signs": -(-n // 64),
            },
            "uniform": {"uniform": k * -(-n // 4)},
            "group": {"group": n, "group.signs": -(-n // 64)},
        }[method["basis"]]
    if "copies" in method:
        random = {f"mask.{j}": n for j in range(method["copies"])}
        read |= random if method["masks"] == "random" else {"mask.partition": n}
    return read


# The file (sections 1 to 5)


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    check(len(dict(pairs)) == len(pairs), "a key stands twice")
    return dict(pairs)


def integer(text: str) -> int:
    check(len(text) <= 20 and -(2**63) <= int(text) < 2**64, "an integer of more than 64 bits")
    check(text != "-0", "a negative zero")
    return int(text)


def number(text: str) -> float:
    check(math.isfinite(float(text)) and not (text[0] == "-" and float(text) == 0), "a number")
    return float(text)


def constant(text: str) -> Any:
    raise Damaged(f"{text} is no number")


def parse(text: str) -> Any:
    """JSON with neither a key twice nor half of a surrogate pair."""
    value = json.loads(text, object_pairs_hook=distinct, parse_int=integer, parse_float=number, parse_constant=constant)
    json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def read(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """The header, and every parameter as float32, after steps 1 to 4 of section 11."""
    check(len(data) >= 8, "too short")
    (length,) = struct.unpack("<Q", data[:8])
    check(length <= min(len(data) - 8, 2**24), "truncated, or too long a header")
    try:
        entries = parse(data[8 : 8 + length].decode("utf-8"))
        metadata = entries.pop("__metadata__")
        text = metadata.pop("capaft")
        header = parse(text)
        check(metadata == {} and canonical(header) == text, "canonical JSON")
        for entry in entries.values():
            check(set(entry) == {"dtype", "shape", "data_offsets"} and len(entry["data_offsets"]) == 2, "a tensor")
            check({type(count) for count in (*entry["shape"], *entry["data_offsets"])} == {int}, "a tensor")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise Damaged("not an adapter") from error
    before, marker, after = text.partition('"digest":{"header":"')
    without = before + '"digest":{' + after[32 + len('",') :]
    check(marker != "" and digest(without.encode()).hex() == header["digest"]["header"], "digest of the header")
    check((header["format"], header["contract"]) == (1, 1), "versions")
    check(type(header["ext"]) is dict and len(canonical(header["ext"])) <= 65_536, "ext")
    stored: dict[str, bytes] = {}
    end = 8 + length
    for name in sorted(entries, key=lambda name: entries[name]["data_offsets"]):
        start, stop = (8 + length + offset for offset in entries[name]["data_offsets"])
        check(start == end, "a gap between tensors")
        size = math.prod(entries[name]["shape"]) * BYTES.get(entries[name]["dtype"], 0)
        check(stop - start == size, "a tensor's size")
        stored[name], end = data[start:stop], stop
    check(end == len(data), "length of the file")
    check(digest_of_tensors(entries, stored) == header["digest"]["tensors"], "digest of the tensors")
    parameters = [name for name in stored if not name.startswith("scale:")]
    for name in stored:
        expected = DTYPES[header["save_dtype"]] if name in parameters else "F32"
        check(entries[name]["dtype"] == expected, "a tensor's dtype")
    sites_of(header)
    return header, {name: decode(header["save_dtype"], name, stored) for name in parameters}


def digest_of_tensors(entries: dict[str, Any], stored: dict[str, bytes]) -> str:
    return digest(b"".join(hashed_tensor(name, entries[name], stored[name]) for name in sorted(stored))).hex()


def hashed_tensor(name: str, entry: dict[str, Any], data: bytes) -> bytes:
    """The part of one tensor in the digest of all."""
    texts = b"".join(struct.pack("<Q", len(text)) + text for text in (name.encode(), entry["dtype"].encode()))
    shape = entry["shape"]
    return texts + struct.pack(f"<{len(shape) + 2}Q", len(shape), *shape, len(data)) + data


def decode(save_dtype: str, name: str, stored: dict[str, bytes]) -> Array:
    """The values of a parameter, flat. int4 gives an even number of them; the last may be unused."""
    raw = stored[name]
    if save_dtype == "bfloat16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    if save_dtype in ("float32", "float16"):
        return np.frombuffer(raw, {"float32": "<f4", "float16": "<f2"}[save_dtype]).astype(np.float32)
    if save_dtype == "int8":
        whole = np.frombuffer(raw, "i1")
    else:
        whole = np.array([half - 8 for byte in raw for half in (byte & 15, byte >> 4)])
    scales = np.frombuffer(stored["scale:" + name], "<f4")
    return whole.astype(np.float32) * np.repeat(scales, 128)[: len(whole)]


# Hosts and their factors (sections 4 and 9)


def factors_of(method: dict[str, Any], site: Site) -> list[Factor]:
    _, out, wide, r, mark = site
    host, fan_in = method["method"].partition("+")[0], 1 if mark == "embedding" else wide
    pair = [Factor("down", (r, wide), 0, "uniform", fan_in), Factor("up", (out, r), 1)]
    match host:
        case "lora":
            return pair
        case "dora":
            return [*pair, Factor("magnitude", (out,))]
        case "vera":
            up = Factor("up", (out, r), 1, "uniform", r, frozen=True)
            return [pair[0]._replace(frozen=True), up, Factor("inner", (r,), start=0.1), Factor("outer", (out,))]
        case "ia3":
            return [Factor("scale", (wide if mark == "input" else out,))]
        case "bitfit":
            return [Factor("bias", (out,))]
        case "prefix":
            key, value = (Factor(name, (r, w), 0, "uniform", w) for name, w in (("key", wide), ("value", out)))
            return [key, value, Factor("gate", (1,))]
        case _:
            biases = [Factor("down_bias", (r,), 0), Factor("up_bias", (out,))]
            return pair + biases if method["bias"] else pair


def method_of(method: dict[str, Any], factor: Factor) -> dict[str, Any]:
    """The method as one factor sees it: without `k` or `copies` where they do not apply to it."""
    n, without = math.prod(factor.shape), set()
    if factor.frozen or ("k" in method and len(factor.shape) == 1 and n <= method["k"][factor.start != "uniform"]):
        without.add("k")
    if factor.hidden_axis is None:
        without.add("copies")
    return {name: value for name, value in method.items() if name not in without}


# Sites (sections 2 and 9)


def slots(template: str) -> list[list[str]]:
    """A template's slots, each with its alternatives; a character outside braces is a slot with one."""
    filled: list[list[str]] = []
    items: list[str] | None = None
    characters = iter(template)
    for character in characters:
        if character == "{" and items is None:
            items = [""]
        elif character == "," and items is not None:
            items.append("")
        elif character == "}" and items is not None:
            filled.append([path for item in items for path in alternatives(item)])
            items = None
        else:
            check(character not in "{},", "a brace or comma out of place")
            if character == "\\":
                character = next(characters, "")
                check(character in ("{", "}", ",", "\\"), "a backslash")
            if items is None:
                filled.append([character])
            else:
                items[-1] += character
    check(items is None, "an open brace")
    return filled


def alternatives(item: str) -> list[str]:
    check(item != "", "an empty alternative")
    bounds = re.fullmatch("(0|[1-9][0-9]{0,8})-(0|[1-9][0-9]{0,8})", item)
    if not bounds:
        return [item]
    first, last = int(bounds[1]), int(bounds[2])
    check(first < last < first + 2**18, "a range")
    return [str(number) for number in range(first, last + 1)]


def sites_of(header: dict[str, Any]) -> list[Site]:
    """The sites of a file, sorted by path; step 4 of section 11."""
    sites: dict[str, Site] = {}
    for template, *shape in header["sites"]:
        parts = slots(template)
        check(math.prod(map(len, parts)) <= 2**18 - len(sites), "too many sites")
        for path in map("".join, product(*parts)):
            check(path not in sites, "a site twice")
            sites[path] = Site(path, *shape)
    return [sites[path] for path in sorted(sites)]


# A file and a model (sections 4, 8, 9, 10)


def check_sites(header: dict[str, Any], sites: list[Site]) -> None:
    """Compare with a model's sites, whatever their hidden width."""
    listed = [site._replace(r=0) for site in sites_of(header)]
    check(listed == sorted(site._replace(r=0) for site in sites), "sites")


def streams_digest(header: dict[str, Any]) -> str:
    method, read = header["method"], set()
    for site in sites_of(header):
        for factor in factors_of(method, site):
            for purpose, count in streams_read(
                method_of(method, factor), factor.start, math.prod(factor.shape)
            ).items():
                path = "" if factor.frozen and purpose == "init" else site.path
                read.add((path, factor.name, purpose, count))
    for (_, path, name), (n, k) in moved(header).items():
        read |= {(path, name, *stream) for stream in streams_read(of_head(header, k), 0.0, n).items()}
    hashed = b""
    for path, name, purpose, count in sorted(read):
        key = key_of(header["seed"], path, name, purpose)
        hashed += struct.pack("<QQ", word(key, 0), word(key, count - 1))
    return digest(hashed).hex()


def check_base(header: dict[str, Any], weights: dict[str, Array]) -> None:
    """Compare with the sites' weights `(out, in)` by path."""
    check_samples(header, "base", weights)


def check_head(header: dict[str, Any], weights: dict[str, Array]) -> None:
    """Compare with the model's values of the head's parameters that are not stored whole, by name."""
    shapes = {name: [len(weight), weight[0].size] for name, weight in weights.items()}
    check(shapes == header["head"]["parameters"], "shapes of the head")
    check_samples(header, "head", weights)


def check_samples(header: dict[str, Any], what: str, weights: dict[str, Array]) -> None:
    text = header[what]["weights"]
    stored = np.frombuffer(base64.b64decode(text.lstrip("~")), "<f2").astype(float)
    count = len(stored)
    drawn = [output >> 32 for output in words(key_of(header["seed"], "", what, "fingerprint"), 2 * count)]
    paths, samples = sorted(weights), []
    for i, (first, second) in enumerate(zip(drawn[0::2], drawn[1::2], strict=True)):
        number = first * len(paths) >> 32 if count == 64 else ((i << 32) + first) * len(paths) // (count << 32)
        weight = weights[paths[number]]
        samples.append(weight.flatten()[second * weight.size >> 32])
    sampled = np.array(samples, "<f2").astype(float)
    change = abs(sampled - stored)
    large = abs(stored) >= 2.0**-14
    relative = (sampled - stored)[large] / stored[large]
    is_rounded = (change <= 2e-7 + 0.006 * abs(stored)).all() and (
        not large.any() or (abs(relative.mean()) <= 0.0015 and np.sqrt((relative**2).mean()) <= 0.0025)
    )
    is_near = text.startswith("~") and np.linalg.norm(change) <= 0.35 * np.linalg.norm(stored)
    check(bool(is_rounded or is_near), "weights of the base model")


def factors(header: dict[str, Any], parameters: dict[str, Array]) -> dict[str, dict[str, Array]]:
    """By path and name, the widened factors, float64, from the file alone; the steps of section 11 without a model."""
    sites = sites_of(header)
    check(streams_digest(header) == header["digest"]["streams"], "digest of the streams")
    wide: dict[str, dict[str, Array]] = {site.path: {} for site in sites}
    by_name: dict[str, list[tuple[Factor, str]]] = defaultdict(list)
    for site in sites:
        for factor in factors_of(header["method"], site):
            by_name[factor.name].append((factor, site.path))
    for name, places in by_name.items():
        row = parameters.get(name, np.zeros(0)).astype(np.float64)
        places.sort(key=lambda place: (place[0].shape, place[0].fan_in, place[1]))
        used = expand(header, row, places, wide)
        check(used + (used % 2 if header["save_dtype"] == "int4" else 0) == len(row), "number of values")
    names = set(by_name) | ({"head"} if moved(header) else set())
    check({name for name in parameters if not name.startswith("head:")} <= names, "names of the tensors")
    return wide


# The head (sections 2, 4, 8)


def moved(header: dict[str, Any]) -> dict[tuple[str, str, str], tuple[int, int]]:
    """By name, site and factor, the counts of entries and coefficients of every parameter of the head that has any."""
    head = header["head"] or {"k": 0, "parameters": {}}
    counts = {}
    for name, (out, wide) in sorted(head["parameters"].items()):
        path, _, leaf = name.rpartition(".")
        counts[name, path, f"head:{leaf}"] = (out * wide, head["k"])
    return counts if head["k"] else {}


def of_head(header: dict[str, Any], k: int) -> dict[str, Any]:
    """The method as the head sees it: its basis is the stack's, and nothing is copied."""
    return {"k": [k, k], "basis": header["method"].get("basis", "hadamard")}


def head(header: dict[str, Any], parameters: dict[str, Array]) -> dict[str, Array]:
    """By name, the update of a parameter of the head as a matrix `(out, in)`, float64."""
    updates, counts = {}, moved(header)
    rows = parameters.get("head", np.zeros(0)).astype(np.float64)
    count = sum(k for _, k in counts.values())
    check(len(rows) == count + (count % 2 if header["save_dtype"] == "int4" else 0), "number of values")
    check(bool(np.isfinite(rows).all()), "values")
    for at, ((name, path, factor), (n, k)) in enumerate(counts.items()):
        check(n > k, "coefficients")
        method = of_head(header, k)
        matrix = basis(method["basis"], (header["seed"], path, factor), n, k)
        updates[name] = (matrix @ rows[at * k : (at + 1) * k]).reshape(header["head"]["parameters"][name])
    return updates


def expand(
    header: dict[str, Any], row: Array, places: list[tuple[Factor, str]], wide: dict[str, dict[str, Array]]
) -> int:
    """Fill in the factors of one name, in the order of their values in the file; return how many values they take."""
    at, shared, sizes = 0, None, None
    if header["method"].get("scope") == "model" and header["method"]["basis"] == "group":
        sharing = [(factor, path) for factor, path in places if "k" in method_of(header["method"], factor)]
        k = header["method"]["k"][places[0][0].start != "uniform"]
        keys = [(key_of(header["seed"], path, one.name, "group"), math.prod(one.shape)) for one, path in sharing]
        sizes = sum(np.bincount(buckets(key, n, k), minlength=k) for key, n in keys)
    for factor, path in places:
        method, n = method_of(header["method"], factor), math.prod(factor.shape)
        streams = (header["seed"], path, factor.name)
        drawn = masks(method, streams, n)
        kept = drawn.any(axis=0)
        start = theta0(factor.start, (header["seed"], "" if factor.frozen else path, factor.name), n, factor.fan_in)
        if factor.frozen:
            flat = start
        elif "k" in method:
            k = method["k"][factor.start != "uniform"]
            if shared is None or method["scope"] == "site":
                shared, at = row[at : at + k], at + k
            check(len(shared) == k and np.isfinite(shared).all(), "values")
            flat = start + basis(method["basis"], streams, n, k, sizes) @ shared
        else:
            entries, at, flat = row[at : at + kept.sum()], at + int(kept.sum()), np.zeros(n)
            check(len(entries) == kept.sum() and np.isfinite(entries).all(), "values")
            flat[kept] = entries
        if "copies" not in method:
            wide[path][factor.name] = flat.reshape(factor.shape)
            continue
        scale = 1 / math.sqrt(method["density"]) if method["mask_rescale"] == "variance" else 1
        copies = [(scale * mask * flat).reshape(factor.shape) for mask in drawn]
        wide[path][factor.name] = np.concatenate(copies, axis=factor.hidden_axis)
    return at


def merged(header: dict[str, Any], weight: Array, site: Site, parts: dict[str, Array]) -> Array:
    """The weight `(out, in)` of a site with the adapter merged, for hosts that only change weights."""
    method, wide = header["method"], list(parts.values())
    match method["method"].partition("+")[0]:
        case "ia3":
            return weight * (1 + (wide[0] if site.mark == "input" else wide[0][:, None]))
        case "bitfit":
            return weight + wide[0][:, None]
        case "vera":
            down, up, inner, outer = wide
            whole = np.resize(inner, len(down))
            return weight + (outer[:, None] * up) @ (whole[:, None] * down)
    new = weight + update(header, site, parts)
    if "magnitude" in parts:
        length = np.sqrt((weight**2).sum(1)) + parts["magnitude"]
        new *= (length / np.sqrt((new**2).sum(1)))[:, None]
    return new


def update(header: dict[str, Any], site: Site, parts: dict[str, Array]) -> Array:
    """The low-rank update `(out, in)` of `lora`, and of the direction with `dora`."""
    method, r = header["method"], site.r
    return method["alpha"] / (math.sqrt(r) if method.get("rslora") else r) * parts["up"] @ parts["down"]
