"""Decoder of untrusted image files to upright 8-bit grey images, checked before decoding."""

from __future__ import annotations

import io
import logging
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpc_tumor.data.raw.files.file_kind import BMP, IMAGE_FORMATS, JPEG, PNG, TIFF, WEBP, wrong_kind_error
from hpc_tumor.data.raw.files.listing import read_source
from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import series

# Larger images are refused before decoding. An 8K screen fits; decoding takes up to 21 bytes a pixel (16-bit grey). The
# limit per side protects `head_box`, which reduces by the shorter side, from long strips.
MOST_PIXELS = 2**25
MOST_SIDE = 2**14
_MOST_SCANNED = 2**32  # pixels times scans: a progressive JPEG can rescan all its pixels for every ten bytes
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")  # chunks that determine the pixels
_KINDS = {"JPEG": JPEG, "PNG": PNG, "BMP": BMP, "TIFF": TIFF, "WEBP": WEBP}
_TILE_WIDTH, _TILE_LENGTH, _PHOTOMETRIC, _WHITE_IS_ZERO = 322, 323, 262, 0  # TIFF tags, and a value of one
_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip

logging.getLogger("PIL").setLevel(logging.CRITICAL)  # damaged files are reported by the errors here


def decode_grey(path: Path) -> tuple[Image.Image, str]:
    """Decode an image upright in mode L; return it with its original mode.

    Colour becomes ITU-R 601 luma, transparency black, more than 8 bits are scaled by the brightest pixel. JPEG and PNG
    are read under any suffix, BMP, TIFF and WebP only under their own. Raises DataError for other formats, damaged or
    multi-page files, and files that would take too long or too much memory.
    """
    data = read_source(path, most=4 * MOST_PIXELS)
    formats = tuple(dict.fromkeys(("JPEG", "PNG", IMAGE_FORMATS.get(path.suffix.lower(), "PNG"))))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes, which are checked here, and damaged metadata
            with Image.open(io.BytesIO(data), formats=formats) as image:
                _check_size(image, path)
                _CHECKS[str(image.format)](image, data, path)
                mode = image.mode
                if image.format == "JPEG":
                    # Decode only luma, at full size: equal to converting via RGB up to rounding.
                    image.draft("L", None)
                grey = _grey(image)
                turn = _TURNS.get(_orientation(image))
        return (grey.transpose(turn) if turn is not None else grey), mode
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} has more than the {MOST_PIXELS:,} pixels allowed.") from error
    except Image.UnidentifiedImageError as error:
        own = [_KINDS[name] for name in formats]
        wanted = series(formats, "or").replace("WEBP", "WebP")
        raise wrong_kind_error(
            path, f"a {wanted} image", data, " that can be read. Remove or replace it.", own
        ) from error
    except Exception as error:  # Pillow's plugins raise any exception on damaged files
        raise DataError(f"{path} cannot be decoded ({error}). It may be truncated: fetch it again.") from error


def _check_size(image: Image.Image, path: Path) -> None:
    pixels = image.width * image.height
    if pixels > MOST_PIXELS or max(image.size) > MOST_SIDE:
        allowed = f"{MOST_PIXELS:,} and {MOST_SIDE:,} per side"
        raise DataError(f"{path} has {image.width} × {image.height} pixels; the limit is {allowed}.")


def _check_jpeg(image: Image.Image, data: bytes, path: Path) -> None:
    if image.width * image.height * data.count(b"\xff\xda") > _MOST_SCANNED:
        raise DataError(f"{path} is a JPEG with too many scans. Save it as a baseline JPEG.")


def _check_png(image: Image.Image, data: bytes, path: Path) -> None:
    """Refuse PNGs whose pixel chunks fail their checksums, which Pillow does not verify."""
    start = 8
    while start + 12 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4], "big")
        kind = data[start + 4 : start + 8]
        if kind in _PNG_PIXELS and zlib.crc32(memoryview(data)[start + 4 : end]).to_bytes(4) != data[end : end + 4]:
            raise DataError(f"{path} is damaged or truncated: a checksum of its pixels differs. Fetch it again.")
        if kind == b"IEND":
            return
        start = end + 4


def _check_bmp(image: Image.Image, data: bytes, path: Path) -> None:
    decoder, _, offset, args = image.tile[0]  # type: ignore[attr-defined]
    if decoder != "raw":
        raise DataError(f"{path} is a run-length encoded BMP, which is not supported. Save it as PNG.")
    if offset + args[1] * image.height > len(data):
        raise DataError(f"{path} is truncated: it holds fewer pixels than its header claims. Fetch it again.")


def _check_tiff(image: Image.Image, data: bytes, path: Path) -> None:
    tags, packed = image.tag_v2, image.info.get("compression")  # type: ignore[attr-defined]
    if packed != "raw":  # decoded by libtiff, which prints messages about damaged files to the terminal
        raise DataError(f"{path} is a TIFF with {packed} compression, which is not supported. Save it as PNG.")
    if image.mode.startswith(("I", "F")) and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise DataError(f"{path} is a TIFF of over 8 bits with 0 as white, which is not supported. Save it as PNG.")
    sides = [tags.get(_TILE_WIDTH, 1), tags.get(_TILE_LENGTH, 1)]
    pixels = image.width * image.height
    drawn = sum((x1 - x0) * (y1 - y0) for _, (x0, y0, x1, y1), *_ in image.tile)  # type: ignore[attr-defined]
    if not all(isinstance(side, int) and side <= MOST_SIDE for side in sides) or drawn > 5 * pixels:
        raise DataError(f"{path} is a TIFF with tiles that do not fit the image. Save it as PNG.")
    if pixels > 8 * len(data):
        raise DataError(f"{path} is truncated: too small for the pixels in its header. Fetch it again.")
    try:
        image.seek(1)
    except EOFError:
        return
    raise DataError(f"{path} has several pages: save the right one as PNG.")


def _check_webp(image: Image.Image, data: bytes, path: Path) -> None:
    if getattr(image, "is_animated", False):
        raise DataError(f"{path} is animated: save the right frame as PNG.")


_CHECKS = {
    "JPEG": _check_jpeg,
    "MPO": _check_jpeg,
    "PNG": _check_png,
    "BMP": _check_bmp,
    "TIFF": _check_tiff,
    "WEBP": _check_webp,
}


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
        raise ValueError("it has values that are not finite")
    scaled = np.clip(values.astype(np.float64), 0, None)
    scaled *= 255 / max(float(scaled.max()), 1.0)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # ignore damaged EXIF: the pixels are already decoded
        return 1
