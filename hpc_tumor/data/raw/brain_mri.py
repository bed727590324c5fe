"""Reader of the Brain Tumor MRI tree: `Training/` and `Testing/`, a folder per class, images of any size and mode."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from hpc_tumor.data.case import Case, CaseData, FoundCases, Listing, SourceFile, check_names
from hpc_tumor.data.patients import recognise
from hpc_tumor.data.raw.classes import class_of, is_aside, is_mask_of, is_of_masks
from hpc_tumor.data.raw.files.file_kind import IMAGE_FORMATS
from hpc_tumor.data.raw.files.image_files import decode_grey
from hpc_tumor.data.splits import near_duplicates
from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import CLASSES, printable

WANTED = "Brain Tumor MRI images ([Training|Testing]/glioma|meningioma|notumor|pituitary/*.jpg|png|…)"
IMAGE_SIZE = 256  # pixels per side, as in the published study
IMAGE_SUFFIXES = tuple(IMAGE_FORMATS)
PARTS = {"training": "train", "train": "train", "testing": "test", "test": "test"}
_SKETCH = 192  # pixels of the shorter side
_BRIGHT = 0.15  # share of the 99th percentile; background noise is well below
_CELL = 0.01  # share of the shorter side; regions separated by at most three cells count as one
_BORDER = 60  # grey level of a bright border
_BORDER_NOISE = 12  # grey levels
_PLAIN = 0.75  # share of a border's row or column that is of one grey level; the rest is text
_WIDEST_BORDER = 0.25  # share of a side
_SMALLEST_HEAD = 0.05  # share of the image; smaller regions are letters or scratches


@dataclass(frozen=True)
class BrainMRIReader:
    """Reads a tree of class folders as grey images, cropped to the head, of `size` × `size` pixels."""

    name: ClassVar[str] = "brain-mri"
    task: ClassVar[str] = "classification"
    wanted: ClassVar[str] = WANTED
    size: int = IMAGE_SIZE

    @property
    def options(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "crop": "head",
            "filter": "bilinear, antialiased",
            "near_duplicates": near_duplicates.MEASURE,
            "patients": recognise.MEASURE,
        }

    def find(self, listing: Listing) -> FoundCases:
        """Find one case per image below a class folder (the nearest one); its id is its path below the source.

        Masks are skipped, in folders of their own or beside their images. Raises DataError for folders of unknown
        classes beside known ones, and for a class folder inside that of another class.
        """
        images = [file for file in listing.entries if file.suffix in IMAGE_FORMATS]
        stems = {str(PurePosixPath(file.relative).with_suffix("")) for file in images}
        cases: list[Case] = []
        beside: set[tuple[str, ...]] = set()  # folders that hold class folders
        others: list[tuple[str, ...]] = []
        placed: list[tuple[SourceFile, tuple[str, ...], int, int]] = []
        for file in images:
            parents = PurePosixPath(file.relative).parent.parts
            at = next((i for i in reversed(range(len(parents))) if class_of(parents[i])), None)
            if at is None or any(is_of_masks(folder) for folder in parents[at + 1 :]):
                others.append(parents)
            elif not _is_mask(file, stems):
                placed.append((file, parents, at, sum(map(is_of_masks, parents[:at]))))
        least = min((above for *_, above in placed), default=0)  # the whole dataset may be in a "labelled" folder
        for file, parents, at, above in placed:
            if above > least:
                continue
            name = str(class_of(parents[at]))
            if other := next((folder for folder in parents[:at] if class_of(folder) not in (None, name)), None):
                where = printable(str(listing.source.joinpath(*parents[: at + 1])))
                raise DataError(
                    f"{where}: the folder of class {name} is inside {printable(other)}, a folder of class"
                    f" {class_of(other)}. Move it beside the other, or out of the source."
                )
            beside.add(parents[:at])
            cases.append(_case(file, name, parents))
        if not cases and (kind := class_of(listing.source.resolve().name)):
            for file in images:
                parents = PurePosixPath(file.relative).parent.parts
                if not any(is_of_masks(folder) for folder in parents) and not _is_mask(file, stems):
                    cases.append(_case(file, kind, parents))
        elif cases and (folders := _unknown_classes(others, beside)):
            raise _unknown(listing.source, folders)
        present = {case.meta["class"] for case in cases}
        lacking = [name for name in CLASSES if name not in present]
        return FoundCases.from_cases(cases, notes=[f"no images of class {' or '.join(lacking)}"] if lacking else [])

    def read_case(self, case: Case) -> CaseData:
        """Decode, rotate upright, convert to grey, crop and resize one image to `(size, size)` uint8.

        `meta` has the original (height, width) and mode, the crop box (left, top, right, bottom), the SHA-256 and
        thumbnail (hexadecimal) of the grey pixels before the crop, and a thumbnail of the head. Raises DataError for
        files that are not supported images, are truncated, or too large.
        """
        check_names(case)
        return prepare_image(case, *decode_grey(case.files["image"].path), self.size)


def prepare_image(case: Case, grey: Image.Image, mode: str, size: int) -> CaseData:
    """Crop a decoded image to the head and resize it to `(size, size)`; `meta` as described at `read_case`."""
    digest = hashlib.sha256(repr((grey.height, grey.width)).encode())
    digest.update(np.asarray(grey).data)
    sketch = reduced(grey)
    box = head_box(grey, sketch)
    small = grey.resize((size, size), Image.Resampling.BILINEAR, box=box)
    meta = {
        "class": case.meta["class"],
        "part": case.meta["part"],
        "size": [grey.height, grey.width],
        "mode": mode,
        "box": list(box),
        "sha256": digest.hexdigest(),
        "thumbnail": thumbnail(grey, sketch).tobytes().hex(),
        "head": head_thumbnail(small).tobytes().hex(),
    }
    return CaseData(case.id, np.asarray(small), meta=meta)


def refuse_one_class(cases: Sequence[Case], source: Path) -> None:
    """Raise DataError if all images are of one class."""
    kinds = {case.meta["class"] for case in cases}
    if len(kinds) > 1:
        return
    (kind,), folder = kinds, source.resolve()
    way = f"the folder above it, {folder.parent}, which" if class_of(folder.name) else "a folder that"
    raise DataError(
        printable(f"{source} contains images of only one class, {kind}: nothing to classify. Name {way}")
        + " contains a folder for each class."
    )


def _case(file: SourceFile, kind: str, parents: Sequence[str]) -> Case:
    part = next((PARTS[parent.lower()] for parent in reversed(parents) if parent.lower() in PARTS), "train")
    return Case(printable(file.relative), {"image": file}, file.path, {"class": kind, "part": part})


def _is_mask(file: SourceFile, stems: Collection[str]) -> bool:
    path = PurePosixPath(file.relative)
    image = is_mask_of(path.stem)
    return image is not None and str(path.parent / image) in stems


def _unknown_classes(others: Sequence[tuple[str, ...]], beside: set[tuple[str, ...]]) -> list[PurePosixPath]:
    """Return folders of images beside class folders whose names are no known class."""
    unknown = set()
    for parents in others:
        for depth, name in enumerate(parents):
            is_class_level = parents[:depth] in beside or (depth and parents[depth - 1].lower() in PARTS)
            if not is_class_level or name.lower() in PARTS or class_of(name):
                continue
            if not is_of_masks(name) and not is_aside(name):
                unknown.add(PurePosixPath(*parents[: depth + 1]))
            break
    return sorted(unknown)


def _unknown(source: Path, folders: Sequence[PurePosixPath]) -> DataError:
    known = f"Known: {', '.join(CLASSES)} (also as glioma_tumor, no_tumor, normal)."
    if len(folders) > 1:
        names = printable(", ".join(map(str, folders)))
        return DataError(
            f"{printable(str(source))} contains folders of unknown classes: {names}. {known} Rename or move them out."
        )
    where, name = printable(str(source / folders[0])), printable(folders[0].name)
    return DataError(f"{where}: unknown class {name!r}. {known} Rename the folder or move it out.")


def reduced(grey: Image.Image) -> Image.Image:
    """Reduce an image by an integer factor to 192 to 383 pixels on the shorter side; smaller ones are unchanged.

    This suffices for the head's outline and the thumbnail, at a cost independent of the image's size.
    """
    factor = _factor(grey)
    return grey.reduce(factor) if factor > 1 else grey


def thumbnail(grey: Image.Image, sketch: Image.Image | None = None) -> NDArray[np.uint8]:
    """Return a `(32, 32)` thumbnail of the whole image, used to find near copies. `sketch` is the result of `reduced`.

    Hamming separates copies from other images best among Pillow's filters: smoother ones merge neighbouring slices, and
    a box filter misses copies that were halved without smoothing.
    """
    side, factor = near_duplicates.SIDE, _factor(grey)
    whole = (0, 0, grey.width / factor, grey.height / factor)  # the last pixels of the sketch may be narrower
    small = (sketch or reduced(grey)).resize((side, side), Image.Resampling.HAMMING, box=whole)
    return np.asarray(small)


def head_thumbnail(crop: Image.Image) -> NDArray[np.uint8]:
    """Return a `(32, 32)` thumbnail of the head in an image that is cropped to the head, as stores keep it.

    The crop of an image with a bright border is all of it: there the head is found within the border.
    """
    side = near_duplicates.SIDE
    inside = _within_border(np.asarray(crop))
    if inside.size < crop.width * crop.height:
        inner = Image.fromarray(inside[2:-2, 2:-2])  # without what resizing mixed of the border and the picture
        return np.asarray(inner.resize((side, side), Image.Resampling.HAMMING, box=head_box(inner)))
    return np.asarray(crop.resize((side, side), Image.Resampling.HAMMING))


def _within_border(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the pixels within a bright border of one grey level, which may hold text; all of them if there is none."""
    top, bottom, left, right = (_border(lines) for lines in (pixels, pixels[::-1], pixels.T, pixels.T[::-1]))
    return pixels[top : pixels.shape[0] - bottom, left : pixels.shape[1] - right]


def _border(lines: NDArray[np.uint8]) -> int:
    """Return the number of lines of a border along the first line: up to the last that is as plain and bright."""
    outer = lines[: round(_WIDEST_BORDER * len(lines))].astype(np.int16)
    level = int(np.median(outer[0]))
    plain = (np.abs(outer - level) <= _BORDER_NOISE).mean(axis=1) > _PLAIN
    return int(np.flatnonzero(plain)[-1]) + 1 if level > _BORDER and plain[0] else 0


def head_box(grey: Image.Image, sketch: Image.Image | None = None) -> tuple[int, int, int, int]:
    """Return the largest bright region as (left, top, right, bottom) in pixels; the whole image if there is none.

    `sketch` is the result of `reduced`. Regions are separated on cells of a few pixels, their borders located to a
    pixel of the sketch.
    """
    factor, small = _factor(grey), sketch or reduced(grey)
    pixels = np.asarray(small)
    bright = pixels > int(max(_BRIGHT * percentile_of(small.histogram(), 0.99), 8))
    cell = max(1, round(_CELL * min(small.size)))
    cells = _cells(bright, cell)
    # The skull is often a separate ring around a dark gap, so regions this close count as one.
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


def percentile_of(histogram: list[int], share: float) -> float:
    """Return the quantile `share` of the values counted in `histogram`, interpolated as in NumPy."""
    until = np.cumsum(histogram)
    at = share * (int(until[-1]) - 1)
    low, high = np.searchsorted(until, [math.floor(at), math.ceil(at)], side="right")
    return float(low + (high - low) * (at - math.floor(at)))


def _cells(bright: NDArray[np.bool_], cell: int) -> NDArray[np.bool_]:
    height, width = (-(-n // cell) * cell for n in bright.shape)
    padded = np.zeros((height, width), bool)
    padded[: bright.shape[0], : bright.shape[1]] = bright
    rows = reduce(np.logical_or, (padded[i::cell] for i in range(cell)))
    return reduce(np.logical_or, (rows[:, i::cell] for i in range(cell)))


def _widened(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.zeros((cells.shape[0] + 3, cells.shape[1] + 3), bool)
    padded[2:-1, 2:-1] = cells
    rows = padded[:-3] | padded[1:-2] | padded[2:-1] | padded[3:]
    return rows[:, :-3] | rows[:, 1:-2] | rows[:, 2:-1] | rows[:, 3:]
