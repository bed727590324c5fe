"""Damaged and inconsistent images, made from valid ones with a fixed seed."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from fuzzing import NUMBERS, Mutant, damaged
from PIL import Image
from raw_samples import picture


def jpeg_samples() -> list[bytes]:
    grey, samples = picture(1, (64, 48)), []
    exif = Image.Exif()
    exif[0x0112] = 6
    for image, options in (
        (grey, {}), (grey.convert("RGB"), {"progressive": True}), (grey.convert("CMYK"), {}),
        (grey.convert("RGB"), {"exif": exif, "icc_profile": bytes(200), "comment": b"a"}),
    ):  # fmt: skip
        file = io.BytesIO()
        image.save(file, "JPEG", **options)
        samples.append(file.getvalue())
    return samples


_MARKERS = (0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC9, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xED, 0xEE)
_STARTS = (b"Exif\0\0II*\0", b"MPF\0II*\0", b"ICC_PROFILE\0", b"Photoshop 3.0\x008BIM", b"Adobe\0", b"")


def jpeg(seed: int, count: int) -> Iterator[Mutant]:
    """Yield JPEGs with wrong sizes, tables, scans and EXIF, or with damaged bytes."""
    random = np.random.default_rng([seed, 3])
    samples = jpeg_samples()
    for sample in samples:
        for side in (0, 1, 8000, 20_000, 65_535):
            yield f"JPEG of {side} × {side}", sized(sample, side, side)
            yield f"JPEG of 64 × {side}", sized(sample, 64, side)
        yield "JPEG cut before its end marker", sample[:-2]
    yield "progressive JPEG of 8000 × 4000 in 5,000 scans", many_scans(8000, 4000, 5000)
    for _ in range(count):
        name, data = damaged(random, samples[random.integers(len(samples))])
        if random.random() < 0.6:
            segments = _segments(samples[random.integers(len(samples))])
            at = int(random.integers(len(segments)))
            marker, body = segments[at]
            name = str(random.choice(("damage", "drop", "double", "swap", "nonsense")))
            if name == "damage" and body:
                segments[at] = (marker, damaged(random, body)[1])
            elif name == "drop":
                del segments[at]
            elif name == "double":
                segments[at:at] = [segments[at]]
            elif name == "swap":
                other = int(random.integers(len(segments)))
                segments[at], segments[other] = segments[other], segments[at]
            else:
                start = _STARTS[random.integers(len(_STARTS))]
                segments[at:at] = [(int(random.choice(_MARKERS)), start + random.bytes(int(random.integers(0, 60))))]
            name, data = f"JPEG with {name} at segment {at} ({marker:#x})", _joined(segments)
        yield name, data


def many_scans(width: int, height: int, scans: int) -> bytes:
    """Return a small progressive JPEG in which every scan covers all pixels again without a change."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG", progressive=True)
    head = _joined([(m, b) for m, b in _segments(sized(file.getvalue(), width, height)) if m not in (0xDA, 0xD9)])
    # A DC scan that refines: one bit for each block.
    blocks = -(-width // 8) * -(-height // 8)
    first = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 0, 0x01) + bytes(16)
    refine = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 0, 0x10) + bytes(16)
    return head + first + refine * scans + b"\xff\xd9" if blocks else b""


def _segments(data: bytes) -> list[tuple[int, bytes]]:
    """Return (marker, content) up to the first scan, which includes all the rest."""
    at, segments = 2, []
    while data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append((data[at + 1], data[at + 4 : at + 2 + length]))
        at += 2 + length
    return [*segments, (0xDA, data[at + 2 :])]


def _joined(segments: list[tuple[int, bytes]]) -> bytes:
    parts = [b"\xff\xd8"]
    for marker, body in segments:
        length = b"" if marker == 0xDA else struct.pack(">H", min(len(body) + 2, 0xFFFF))
        parts.append(bytes((0xFF, marker)) + length + body)
    return b"".join(parts)


def sized(data: bytes, width: int, height: int) -> bytes:
    segments = [
        (m, b[:1] + struct.pack(">HH", height, width) + b[5:] if m in (0xC0, 0xC2) else b) for m, b in _segments(data)
    ]
    return _joined(segments)


def png_samples() -> list[bytes]:
    grey, samples = picture(2, (64, 48)), []
    for mode in ("L", "RGB", "RGBA", "P", "1", "I;16"):
        deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 200)
        file = io.BytesIO()
        (deep if mode == "I;16" else grey.convert(mode)).save(file, "PNG")
        samples.append(file.getvalue())
    return samples


_KINDS = (b"IDAT", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"cHRM", b"gAMA", b"IEND")


def png(seed: int, count: int) -> Iterator[Mutant]:
    """Yield PNGs with wrong sizes, chunks and checksums, and decompression bombs."""
    random = np.random.default_rng([seed, 4])
    samples = png_samples()
    bomb = zlib.compress(bytes(1 << 26), 9)
    for kind, start in (
        (b"iCCP", b"a\0\0"), (b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"tEXt", b"a\0"),
        (b"eXIf", b"II*\0\x08\0\0\0"),
    ):  # fmt: skip
        for repeats in (1, 300):
            chunks = png_chunks(samples[1])
            chunks[1:1] = [(kind, start + (bomb if repeats == 1 else zlib.compress(bytes(1 << 20), 9)))] * repeats
            yield f"PNG with {repeats} × {kind.decode()} that inflates", png_joined(chunks)
    for width, height in ((0, 0), (100_000, 100_000), (2**31 - 1, 1), (2**32 - 1, 2**32 - 1), (1, 2**25), (2**25, 300)):
        for deep in (1, 8, 16):
            yield f"PNG of {width} × {height}, {deep} bits", hollow_png(width, height, deep)
    for _ in range(count):
        sample = samples[random.integers(len(samples))]
        chunks = png_chunks(sample)
        at = int(random.integers(len(chunks)))
        kind, body = chunks[at]
        name = str(random.choice(("bytes", "damage", "drop", "double", "swap", "rename", "header")))
        if name == "bytes":
            yield damaged(random, sample)
            continue
        if name == "damage" and body:
            chunks[at] = (kind, damaged(random, body)[1])
        elif name == "drop":
            del chunks[at]
        elif name == "double":
            chunks[at:at] = [chunks[at]]
        elif name == "swap":
            other = int(random.integers(len(chunks)))
            chunks[at], chunks[other] = chunks[other], chunks[at]
        elif name == "rename":
            chunks[at] = (_KINDS[random.integers(len(_KINDS))], body)
        else:
            fields = list(struct.unpack(">IIBBBBB", chunks[0][1]))
            which = int(random.integers(7))
            fields[which] = int(NUMBERS[random.integers(len(NUMBERS))]) % (2**32 if which < 2 else 256)
            chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", *fields))
            name = f"header {fields}"
        yield f"PNG with {name} at chunk {at} ({kind!r})", png_joined(chunks)


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    at, chunks = 8, []
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def png_joined(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def hollow_png(width: int, height: int, bits: int = 8, pixels: bytes = b"") -> bytes:
    """Return a grey PNG whose header claims that size."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return png_joined([(b"IHDR", header), (b"IDAT", zlib.compress(pixels or bytes(1000))), (b"IEND", b"")])


# -- TIFF, BMP, WebP ---------------------------------------------------------------------------------------------------

_TAGS = (256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 320, 322, 323, 324, 325, 338, 339, 347, 700, 34665)


def tiff(seed: int, count: int) -> Iterator[Mutant]:
    """Yield TIFFs, also compressed, with wrong tags, types, counts or values of entries, or with damaged bytes."""
    random, samples = np.random.default_rng([seed, 6]), []
    grey = picture(3, (64, 48))
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 200)
    for image in (grey, deep, *(grey.convert(mode) for mode in ("RGB", "RGBA", "P", "1", "F"))):
        samples += [_saved(image, "TIFF", compression=packed) for packed in (None, None, None, "tiff_lzw")]
    for _ in range(count):
        sample = samples[random.integers(len(samples))]
        if random.random() < 0.3:
            yield damaged(random, sample)
            continue
        data, changes = bytearray(sample), []
        first = int.from_bytes(data[4:8], "little")
        entries = int.from_bytes(data[first : first + 2], "little")
        for _ in range(int(random.integers(1, 4))):
            at = first + 2 + 12 * int(random.integers(entries))
            what = str(random.choice(("value", "value", "value", "count", "type", "tag")))
            number = int(NUMBERS[random.integers(len(NUMBERS))]) % 2**32
            if what in ("value", "count"):
                start = at + (8 if what == "value" else 4)
                data[start : start + 4] = number.to_bytes(4, "little")
            elif what == "type":
                data[at + 2 : at + 4] = int(random.integers(14)).to_bytes(2, "little")
            else:
                data[at : at + 2] = int(random.choice(_TAGS)).to_bytes(2, "little")
            changes.append(f"{what} of entry {(at - first) // 12}")
        yield f"TIFF with another {', '.join(changes)}", bytes(data)


def bmp(seed: int, count: int) -> Iterator[Mutant]:
    """Yield BMPs with wrong headers, or with damaged bytes."""
    modes = ("L", "RGB", "P", "1", "RGBA")
    yield from _lying(seed, count, [_saved(picture(3, (64, 48)).convert(mode), "BMP") for mode in modes], 60)


def webp(seed: int, count: int) -> Iterator[Mutant]:
    """Yield lossy and lossless WebP images with wrong headers, or with damaged bytes."""
    samples = [
        _saved(picture(3, (64, 48)).convert(mode), "WEBP", lossless=lossless)
        for mode in ("RGB", "RGBA") for lossless in (True, False)
    ]  # fmt: skip
    yield from _lying(seed, count, samples, 40)


def _lying(seed: int, count: int, samples: list[bytes], header: int) -> Iterator[Mutant]:
    random = np.random.default_rng([seed, 7])
    for _ in range(count):
        sample = samples[random.integers(len(samples))]
        if random.random() < 0.4:
            yield damaged(random, sample)
            continue
        at = int(random.integers(header))
        number = int(NUMBERS[random.integers(len(NUMBERS))]) % 2**32
        yield f"{number} at byte {at}", sample[:at] + number.to_bytes(4, "little") + sample[at + 4 :]


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
