"""The Brain Tumor MRI tree: `Training/` and `Testing/`, a folder per class, JPEG or PNG of any size and mode."""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
import zlib
from dataclasses import dataclass
from functools import reduce
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from hpc_tumor.data import near_duplicates
from hpc_tumor.data.case import Case, CaseData, Listing, cases_below, check_names, read_source
from hpc_tumor.errors import DataError
from hpc_tumor.names import printable

WANTED = "Brain Tumor MRI images ([Training|Testing]/glioma|meningioma|notumor|pituitary/*.jpg|png)"
CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
IMAGE_SIZE = 256  # pixels per side, as in the published study
# A header that claims more is refused before anything is decoded. A screen of 8K fits; decoding takes up to 21 bytes a
# pixel (16 bits, grey). The limit on a side keeps `head_box`, which reduces by the shorter side, from long strips.
MOST_PIXELS = 2**25
MOST_SIDE = 2**14
_MOST_SCANNED = 2**32  # pixels times scans: a progressive JPEG can go over all its pixels again for every ten bytes
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")  # chunks that decide them
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_PARTS = {"training": "train", "train": "train", "testing": "test", "test": "test"}
_FORMATS = ("JPEG", "PNG")
_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_SKETCH = 192  # pixels of the shorter side
_BRIGHT = 0.15  # of the 99th percentile; background noise stays well below
_CELL = 0.01  # of the shorter side; regions with three cells or fewer between them count as one
_SMALLEST_HEAD = 0.05  # of the picture; less is a letter or a scratch


@dataclass(frozen=True)
class BrainMRIReader:
    """Reads a tree of classes: one grey channel, cropped to the head, `size` × `size` pixels."""

    size: int = IMAGE_SIZE

    @property
    def name(self) -> str:
        return "brain-mri"

    @property
    def task(self) -> str:
        return "classification"

    @property
    def options(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "crop": "head",
            "filter": "bilinear, antialiased",
            "near_duplicates": near_duplicates.MEASURE,
        }

    def find(self, listing: Listing) -> list[Case]:
        """One case per image in a class folder; its id is its path below the source.

        Raises DataError for a folder of an unknown class beside known ones.
        """
        images = [file for file in listing.files if PurePosixPath(file.relative).suffix.lower() in IMAGE_SUFFIXES]
        cases: list[Case] = []
        strange: dict[PurePosixPath, str] = {}
        for file in images:
            parents = PurePosixPath(file.relative).parent.parts
            # A source that is itself a class folder would otherwise have no class.
            name = parents[-1] if parents else listing.source.resolve().name
            part = next((_PARTS[p.lower()] for p in reversed(parents[:-1]) if p.lower() in _PARTS), None)
            kind = class_of(name)
            if kind is not None:
                meta = {"class": kind, "part": part or "train"}
                cases.append(Case(printable(file.relative), {"image": file}, file.path, meta))
            elif part is not None:
                strange[PurePosixPath(file.relative).parent] = name
        if cases and strange:
            folder, name = next(iter(strange.items()))
            raise DataError(
                f"{printable(str(listing.source / folder))} is a folder of the unknown class {printable(name)!r}."
                f" Known: {', '.join(CLASSES)} (also as glioma_tumor, no_tumor). Rename it or move it out."
            )
        return cases

    def notes(self, listing: Listing) -> list[str]:
        """Nothing: all that is found is read."""
        return []

    def list_cases(self, source: Path) -> list[Case]:
        """Images below the folder, sorted by path. Raises DataError where there is none."""
        return cases_below(source, self.find, WANTED)

    def read_case(self, case: Case) -> CaseData:
        """Decode, turn, make grey, crop and resize one image to `(size, size)` uint8.

        `meta` has the original (height, width) and mode, the crop box (left, top, right, bottom), and of the grey
        pixels before the crop their SHA-256 and their thumbnail in hexadecimal. Raises DataError for what is not a
        JPEG or PNG, is truncated, or is too large.
        """
        check_names(case)
        grey, mode = decode_grey(case.files["image"].path)
        digest = hashlib.sha256(repr((grey.height, grey.width)).encode())
        digest.update(np.asarray(grey).data)
        sketch = reduced(grey)
        box = head_box(grey, sketch)
        small = grey.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        meta = {
            "class": case.meta["class"],
            "part": case.meta["part"],
            "size": [grey.height, grey.width],
            "mode": mode,
            "box": list(box),
            "sha256": digest.hexdigest(),
            "thumbnail": thumbnail(grey, sketch).tobytes().hex(),
        }
        return CaseData(case.id, np.asarray(small), meta=meta)


def class_of(folder: str) -> str | None:
    """The class that a folder's name stands for: glioma, glioma_tumor, Glioma Tumor, no_tumor …; None if none."""
    plain = re.sub(r"[^a-z]", "", folder.lower())
    if plain in CLASSES:
        return plain
    stem = plain.removesuffix("tumor").removesuffix("tumour")
    return "notumor" if stem == "no" else stem if stem in CLASSES else None


def decode_grey(path: Path) -> tuple[Image.Image, str]:
    """The image upright in mode L, and the mode that it had.

    Colour becomes ITU-R 601 luma, transparency black, more than 8 bits are scaled by the brightest pixel.
    """
    data = read_source(path, most=4 * MOST_PIXELS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are checked here, and of damage beside the picture
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check(image, data, path)
                mode = image.mode
                if image.format == "JPEG":
                    # Its luma alone, at full size: the same, up to rounding, as making RGB of it and then grey of that.
                    image.draft("L", None)
                grey = _grey(image)
                turn = _TURNS.get(_orientation(image))
        return (grey.transpose(turn) if turn is not None else grey), mode
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} claims more pixels than the {MOST_PIXELS:,} allowed: refused.") from error
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{path} is not a JPEG or PNG image. Remove or replace it.") from error
    except Exception as error:  # on damaged files Pillow's plugins raise whatever their parsing ran into
        raise DataError(f"{path} cannot be decoded ({error}). It may be truncated: fetch it again.") from error


def reduced(grey: Image.Image) -> Image.Image:
    """The picture reduced by a whole number, so that its shorter side has 192 to 383 pixels; smaller ones as they are.

    The head's outline needs no more, nor does a thumbnail: both cost as little for large pictures as for small ones.
    """
    factor = _factor(grey)
    return grey.reduce(factor) if factor > 1 else grey


def thumbnail(grey: Image.Image, sketch: Image.Image | None = None) -> NDArray[np.uint8]:
    """`(32, 32)`: the whole picture, by which near copies are found. `sketch` is what `reduced` gives.

    Of Pillow's filters the one that separates copies from other pictures best: smoother ones bring neighbouring slices
    together, a box lets a copy that was halved without smoothing go.
    """
    side, factor = near_duplicates.SIDE, _factor(grey)
    whole = (0, 0, grey.width / factor, grey.height / factor)  # the last pixels of the sketch may be narrower
    small = (sketch or reduced(grey)).resize((side, side), Image.Resampling.HAMMING, box=whole)
    return np.asarray(small)


def head_box(grey: Image.Image, sketch: Image.Image | None = None) -> tuple[int, int, int, int]:
    """The largest bright region as (left, top, right, bottom) in pixels; the whole picture where there is none.

    `sketch` is what `reduced` gives. Regions are told apart on cells of a few pixels, and their borders found to the
    pixel of the sketch.
    """
    factor, small = _factor(grey), sketch or reduced(grey)
    pixels = np.asarray(small)
    bright = pixels > int(max(_BRIGHT * _percentile(small.histogram(), 0.99), 8))
    cell = max(1, round(_CELL * min(small.size)))
    cells = _cells(bright, cell)
    # The skull is often a ring of its own around a dark gap: regions that near count as one.
    regions, count = ndimage.label(_widened(cells))
    whole = (0, 0, grey.width, grey.height)
    if not count:
        return whole
    if count > 1:
        largest = int(np.argmax(np.bincount(regions[cells])))
        chosen = (regions == largest).repeat(cell, axis=0).repeat(cell, axis=1)
        bright &= chosen[: small.height, : small.width]
    rows, columns = (np.flatnonzero(bright.any(axis=axis)) for axis in (1, 0))
    left, top, right, bottom = (int(n) for n in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    if (right - left) * (bottom - top) < _SMALLEST_HEAD * pixels.size:
        return whole
    return left * factor, top * factor, min(right * factor, grey.width), min(bottom * factor, grey.height)


def _factor(grey: Image.Image) -> int:
    return max(1, min(grey.size) // _SKETCH)


def _percentile(histogram: list[int], share: float) -> float:
    """Of the values counted, interpolated as NumPy does."""
    until = np.cumsum(histogram)
    at = share * (int(until[-1]) - 1)
    low, high = np.searchsorted(until, [math.floor(at), math.ceil(at)], side="right")
    return float(low + (high - low) * (at - math.floor(at)))


def _cells(bright: NDArray[np.bool_], cell: int) -> NDArray[np.bool_]:
    """Which cells of `cell` × `cell` pixels have a bright one."""
    height, width = (-(-n // cell) * cell for n in bright.shape)
    padded = np.zeros((height, width), bool)
    padded[: bright.shape[0], : bright.shape[1]] = bright
    rows = reduce(np.logical_or, (padded[i::cell] for i in range(cell)))
    return reduce(np.logical_or, (rows[:, i::cell] for i in range(cell)))


def _widened(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The cells, each grown to a square of 4 × 4."""
    padded = np.zeros((cells.shape[0] + 3, cells.shape[1] + 3), bool)
    padded[2:-1, 2:-1] = cells
    rows = padded[:-3] | padded[1:-2] | padded[2:-1] | padded[3:]
    return rows[:, :-3] | rows[:, 1:-2] | rows[:, 2:-1] | rows[:, 3:]


def _check(image: Image.Image, data: bytes, path: Path) -> None:
    """Refuse what would take too long or too much memory to decode, and PNGs whose pixels fail their checksums."""
    pixels = image.width * image.height
    if pixels > MOST_PIXELS or max(image.size) > MOST_SIDE:
        allowed = f"{MOST_PIXELS:,} and {MOST_SIDE:,} on a side"
        raise DataError(f"{path} claims {image.width} × {image.height} pixels: refused, over {allowed}.")
    if image.format != "PNG":
        if pixels * data.count(b"\xff\xda") > _MOST_SCANNED:
            raise DataError(f"{path} goes over its pixels in too many scans: refused. Save it again as a plain JPEG.")
        return
    start = 8
    while start + 12 <= len(data):  # Pillow does not look at the checksums of pixels
        end = start + 8 + int.from_bytes(data[start : start + 4], "big")
        kind = data[start + 4 : start + 8]
        if kind in _PNG_PIXELS and zlib.crc32(memoryview(data)[start + 4 : end]).to_bytes(4) != data[end : end + 4]:
            raise DataError(f"{path} is damaged or truncated: a checksum of its pixels differs. Fetch it again.")
        if kind == b"IEND":
            return
        start = end + 4


def _grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _from_deep(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "black"), layers).convert("L")
    if image.mode == "L":
        image.load()
        return image
    if image.mode in ("RGB", "1"):
        return image.convert("L")
    return image.convert("RGB").convert("L")


def _from_deep(values: NDArray[Any]) -> Image.Image:
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    scaled = np.clip(values.astype(np.float64), 0, None)
    scaled *= 255 / max(float(scaled.max()), 1.0)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing about the picture, which has been decoded by now
        return 1
