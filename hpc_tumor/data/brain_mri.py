"""The Brain Tumor MRI tree: `Training/` and `Testing/`, a folder per class, JPEG or PNG of any size and mode."""

from __future__ import annotations

import hashlib
import re
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from hpc_tumor.data.case import Case, CaseData, Listing, no_cases, walk
from hpc_tumor.errors import DataError

WANTED = "Brain Tumor MRI images ([Training|Testing]/glioma|meningioma|notumor|pituitary/*.jpg|png)"
CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
IMAGE_SIZE = 256  # pixels per side, as in the published study
MOST_PIXELS = 10**8  # a header that claims more is refused before anything is decoded
_SUFFIXES = (".jpg", ".jpeg", ".png")
_PARTS = {"training": "train", "train": "train", "testing": "test", "test": "test"}
_FORMATS = ("JPEG", "PNG")
_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_THUMBNAIL = 192  # pixels; the head's outline needs no more
_BRIGHT = 0.15  # of the 99th percentile; background noise stays well below
_GAP = 0.02  # of the shorter side, on either side of a gap
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
        return {"size": self.size, "crop": "head", "filter": "bilinear, antialiased"}

    def find(self, listing: Listing) -> list[Case]:
        """One case per image in a class folder; its id is its path below the source.

        Raises DataError for a folder of an unknown class beside known ones.
        """
        images = [file for file in listing.files if PurePosixPath(file.relative).suffix.lower() in _SUFFIXES]
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
                cases.append(Case(file.relative, {"image": file}, file.path, meta))
            elif part is not None:
                strange[PurePosixPath(file.relative).parent] = name
        if cases and strange:
            folder, name = next(iter(strange.items()))
            raise DataError(
                f"{listing.source / folder} is a folder of the unknown class {name!r}."
                f" Known: {', '.join(CLASSES)} (also as glioma_tumor, no_tumor). Rename it or move it out."
            )
        return cases

    def list_cases(self, source: Path) -> list[Case]:
        """Images below the folder, sorted by path. Raises DataError where there is none."""
        listing = walk(source)
        cases = self.find(listing)
        if not cases:
            raise no_cases(listing, WANTED)
        return cases

    def read_case(self, case: Case) -> CaseData:
        """Decode, turn, make grey, crop and resize one image to `(size, size)` uint8.

        `meta` has the original (height, width) and mode, the crop box (left, top, right, bottom), and the SHA-256 of
        the grey pixels before the crop. Raises DataError for what is not a JPEG or PNG, is truncated, or is too large.
        """
        grey, mode = decode_grey(case.files["image"].path)
        pixels = np.asarray(grey)
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        box = head_box(grey)
        small = grey.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        meta = {
            "class": case.meta["class"],
            "part": case.meta["part"],
            "size": [grey.height, grey.width],
            "mode": mode,
            "box": list(box),
            "sha256": digest,
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=_FORMATS)
        with image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(f"{path} claims {image.width} × {image.height} pixels: refused, over {MOST_PIXELS:,}.")
            mode = image.mode
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


def head_box(grey: Image.Image) -> tuple[int, int, int, int]:
    """The largest bright region as (left, top, right, bottom) in pixels; the whole picture where there is none."""
    factor = max(1, min(grey.size) // _THUMBNAIL)
    small = np.asarray(grey.reduce(factor) if factor > 1 else grey)
    bright = small > max(_BRIGHT * float(np.percentile(small, 99)), 8)
    # The skull is often a ring of its own around a dark gap: regions that near count as one.
    regions, count = ndimage.label(ndimage.maximum_filter(bright, 2 * round(_GAP * min(bright.shape)) + 1))
    whole = (0, 0, grey.width, grey.height)
    if not count:
        return whole
    largest = int(np.argmax(np.bincount(regions[bright])[1:])) + 1
    rows, columns = ndimage.find_objects((regions == largest) & bright, max_label=1)[0]
    if (rows.stop - rows.start) * (columns.stop - columns.start) < _SMALLEST_HEAD * small.size:
        return whole
    return (
        columns.start * factor,
        rows.start * factor,
        min(columns.stop * factor, grey.width),
        min(rows.stop * factor, grey.height),
    )


def _grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _from_deep(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "black"), layers).convert("L")
    if image.mode in ("L", "RGB", "1"):
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
