"""Damaged or unusual files of a store: metadata, and shards with a wrong index."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Iterator
from typing import Any

import google_crc32c
from fuzzing import Mutant, Random, damaged

_STRANGE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 7, 0.5, -2.5, 10**30, 2**63, 1e308, float("nan"), float("inf"), "", "0",
    "../../../etc", "/etc/passwd", "a/../../b", "\0", "\ud800", "int16", "float64", "O", "V8", "blosc", "\u202e",
    [], {}, [[]], [0], [1, 1, 1], [-1, 4, 4], [10**12, 10**12], [0, 0, 0, 0], ["x"], [None], {"name": "x"},
    {"a": {"b": 1}},
)  # fmt: skip
_TEXTS = (b"", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"null", b"[]", b"1", b'"x"', b"{}", b"\xff\xfe", b"\0" * 50,
          b"NaN", b"9" * 10_000, b"\xef\xbb\xbf{}", b'{"zarr_format": 3}')  # fmt: skip


def json_file(random: Random, data: bytes) -> Mutant:
    """Return a JSON document with missing, unusual or renamed values; sometimes broken text."""
    chance = random.random()
    if chance < 0.1:
        text = _TEXTS[random.integers(len(_TEXTS))]
        return f"text {text[:20]!r} of {len(text):,} bytes", text
    if chance < 0.25:
        return damaged(random, data)
    document = copy.deepcopy(json.loads(data))
    names = []
    for _ in range(random.choice((1, 1, 2))):
        places = list(_places(document))
        path, holder, key = places[random.integers(len(places))]
        if random.random() < 0.25:
            del holder[key]
            names.append(f"no {path}")
        else:
            value = copy.deepcopy(_STRANGE[random.integers(len(_STRANGE))])
            holder[key] = value
            names.append(f"{path} = {value!r}")
    return "; ".join(names), json.dumps(document).encode()


def _places(value: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Return all (name, container, key) of a document; of a long list the first and last items."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = sorted({0, len(value) - 1}) if value else []
    else:
        return
    for key in keys:
        yield f"{path}.{key}", value, key
        yield from _places(value[key], f"{path}.{key}")


def shard(random: Random, data: bytes, chunks: int) -> Mutant:
    """Return a shard with damaged bytes, or with a wrong index and a matching checksum."""
    if random.random() < 0.5 or len(data) < 40:
        return damaged(random, data)
    new = bytearray(data)
    entries = min((len(data) - 4) // 16, 6)
    at = len(new) - 4 - 16 * int(random.integers(1, entries + 1)) + 8 * int(random.integers(2))
    value = int((0, 1, 10, 19, len(data), 2**31, 2**40, 2**63, 2**64 - 1, 2**64 - 2)[random.integers(10)])
    new[at : at + 8] = struct.pack("<Q", value)
    start = len(new) - 4 - 16 * chunks
    new[-4:] = struct.pack("<I", google_crc32c.value(bytes(new[start:-4])))
    return f"index entry at {at} = {value}", bytes(new)
