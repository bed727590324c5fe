"""Damaged and hostile files, made from valid ones with a fixed seed; each mutant has a descriptive name.

Structured bytes are mutated by structure: purely random bytes are refused at the first checksum.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from typing import Any

import nibabel as nib
import numpy as np
from raw_samples import LPS, brain

Mutant = tuple[str, bytes]
Random = np.random.Generator
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 16, 127, 128, 255, 256, 348, 512, 32767, 65535, 2**31 - 1, 2**32 - 1, 2**63 - 1)
_REALS = (0.0, 1.0, 0.5, 352.0, 1e-45, 1e-12, 1e6, 1e12, 1e18, 3e38, 1e300, float("nan"), float("inf"))


# -- any bytes ---------------------------------------------------------------------------------------------------------


def damaged(random: Random, data: bytes) -> Mutant:
    """Flip bits; drop, repeat, zero or insert bytes; truncate or extend the end."""
    at = int(random.integers(len(data)))
    size = int(random.integers(1, 17))
    some = random.bytes(size)
    kind = str(random.choice(("flip", "cut", "lose", "repeat", "zero", "insert", "overwrite", "append")))
    new = bytearray(data)
    if kind == "flip":
        new[at] ^= 1 << int(random.integers(8))
    elif kind == "cut":
        del new[at:]
    elif kind == "lose":
        del new[at : at + size]
    elif kind == "repeat":
        new[at:at] = new[at : at + size]
    elif kind == "zero":
        new[at : at + size] = bytes(len(new[at : at + size]))
    elif kind == "insert":
        new[at:at] = some
    elif kind == "overwrite":
        new[at : at + size] = some[: len(new[at : at + size])]
    else:
        new += some if random.random() < 0.5 else bytes(size)
    return f"{kind} {size} at {at}", bytes(new)


def _value(random: Random, dtype: np.dtype[Any]) -> Any:
    """Return a value that often breaks programs."""
    if dtype.kind == "S":
        return random.bytes(dtype.itemsize)
    sign = -1 if random.random() < 0.3 else 1
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return dtype.type(sign * float(random.choice(_REALS)))
    info = np.iinfo(dtype)
    number = int(NUMBERS[random.integers(len(NUMBERS))]) if random.random() < 0.8 else int(random.integers(1 << 15))
    return min(max(sign * number, int(info.min)), int(info.max))


# -- NIfTI and gzip ----------------------------------------------------------------------------------------------------


def nifti_samples() -> list[bytes]:
    """Return valid uncompressed files: both kinds of header, both byte orders, several types."""
    samples = []
    for kind, order, dtype in (
        (nib.Nifti1Image, "<", "int16"), (nib.Nifti1Image, ">", "int16"), (nib.Nifti2Image, "<", "float32"),
        (nib.Nifti1Image, "<", "float64"), (nib.Nifti2Image, ">", "uint8"),
    ):  # fmt: skip
        header = kind.header_class(endianness=order)
        header.set_data_dtype(np.dtype(dtype))
        image = kind(brain(3).astype(dtype), LPS, header)
        image.set_sform(LPS, int(order == ">"))
        samples.append(image.to_bytes())
    return samples


def nifti(seed: int, count: int) -> Iterator[Mutant]:
    """Yield NIfTI files, compressed or not, with one to three wrong header fields, or with damaged bytes."""
    random = np.random.default_rng([seed, 1])
    samples = nifti_samples()
    for _ in range(count):
        data = samples[random.integers(len(samples))]
        if random.random() < 0.8:
            name, data = lying_header(random, data)
        else:
            name, data = damaged(random, data)
        if random.random() < 0.5:
            name, data = f"{name}, packed", gzip.compress(data, 1, mtime=0)
        yield name, data


def lying_header(random: Random, data: bytes) -> Mutant:
    """Change one to three fields of the header."""
    kind = nib.Nifti1Header if 348 in (int.from_bytes(data[:4], o) for o in ("little", "big")) else nib.Nifti2Header
    size = kind.template_dtype.itemsize
    order = "<" if int.from_bytes(data[:4], "little") == size else ">"
    fields = np.frombuffer(data[:size], kind.template_dtype.newbyteorder(order)).copy()
    # Fields that affect reading are mutated more often than descriptive ones.
    likely = ("dim", "dim", "datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "pixdim", "qform_code",
              "sform_code", "quatern_b", "srow_x", "srow_z", "magic", "sizeof_hdr")  # fmt: skip
    names = []
    for _ in range(random.choice((1, 1, 2, 3))):
        names.append(str(random.choice(likely if random.random() < 0.9 else fields.dtype.names)))
    for name in names:
        place = fields[name][0]
        if getattr(place, "ndim", 0):
            place[random.integers(len(place))] = _value(random, place.dtype)
        else:
            fields[name][0] = _value(random, fields[name].dtype)
    said = ", ".join(f"{name} {fields[name][0]!s}" for name in names)
    return f"{order}NIfTI-{1 if size == 348 else 2} with {said}", fields.tobytes() + data[size:]


def packed(seed: int, count: int) -> Iterator[Mutant]:
    """Yield gzip streams that are truncated, damaged, in many members, followed by data, or with wrong lengths."""
    random = np.random.default_rng([seed, 2])
    raw = nifti_samples()[0]
    good = gzip.compress(raw, 6, mtime=0)
    for cut in (*range(24), *range(len(good) - 16, len(good))):
        yield f"gzip cut at {cut}", good[:cut]
    for position in (*range(10), *range(len(good) - 8, len(good))):  # header; checksum and length
        new = bytearray(good)
        new[position] ^= int(random.integers(1, 256))
        yield f"gzip byte {position} changed", bytes(new)
    for tail in (bytes(100), b"\x1f\x8b", b"\x1f\x8b\x08", good[:40], random.bytes(100), gzip.compress(b"", mtime=0)):
        yield f"gzip followed by {tail[:12].hex()}", good + tail
    for parts in (2, 5, 40, 500):
        cuts = sorted(random.integers(0, len(raw), parts - 1).tolist())
        pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        yield f"gzip in {parts} parts", b"".join(gzip.compress(piece, 1, mtime=0) for piece in pieces)
    empty = gzip.compress(b"", mtime=0)
    yield "gzip with 50,000 empty parts before", empty * 50_000 + good
    yield "gzip with 50,000 empty parts behind", good + empty * 50_000
    for beyond in (1 << 19, 1 << 22, 1 << 26):
        yield f"gzip that goes on for {beyond:,} bytes", gzip.compress(raw + bytes(beyond), 9, mtime=0)
    while count > 0:
        yield damaged(random, good)
        count -= 1


# -- text --------------------------------------------------------------------------------------------------------------

_WORDS = ("", "NA", "-1", "1e999", "nan", "9" * 400, "\0", '"', '""', "\x1b[31m", "\u202e", "ALIVE (",
          "ALIVE (x days later)", "60.463", "=1+1", "GTR", ",", "\r", "\n", "../../etc/passwd", "é" * 50,
          "x" * 200_000)  # fmt: skip


def csv(seed: int, count: int, sample: str) -> Iterator[Mutant]:
    """Yield tables with wrong cells, columns, quotes, line ends and encodings."""
    random = np.random.default_rng([seed, 5])
    for encoding in ("utf-16", "utf-8-sig", "utf-32"):
        yield f"CSV in {encoding}", sample.encode(encoding)
    yield "CSV of one quote that never ends", sample.encode() + b'\n"' + b"a,\n" * 100_000
    yield "CSV with 100,000 columns", b"a," * 100_000 + b"\n" + b"1," * 100_000
    yield "CSV that is empty", b""
    yield "CSV of one line end", b"\r\n"
    for _ in range(count):
        lines = sample.splitlines()
        row = int(random.integers(len(lines)))
        cells = lines[row].split(",")
        cells[random.integers(len(cells))] = _WORDS[random.integers(len(_WORDS))]
        if random.random() < 0.2:
            cells = cells[: int(random.integers(len(cells) + 1))] + cells
        lines[row] = ",".join(cells)
        data = "\r\n".join(lines).encode()
        name = f"CSV with row {row} {lines[row][:40]!r}"
        if random.random() < 0.3:
            change, data = damaged(random, data)
            name += f", {change}"
        yield name, data
