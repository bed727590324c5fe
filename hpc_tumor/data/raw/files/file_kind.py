"""Detection of a file's kind by its first bytes or its link target, for files that do not match their suffix."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import printable

START = 1024  # bytes read to detect a kind
# Supported images by suffix; JPEG and PNG are interchangeable.
IMAGE_FORMATS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG",
    ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP",
}  # fmt: skip


@dataclass(frozen=True)
class FileKind:
    """A kind of file.

    Attributes:
        text: with its article, such as "an HTML page".
        advice: what to do with such a file in place of a scan or an image, as a sentence.
        absent: True for a pointer to content that is stored elsewhere.
        packed: True for an archive.
    """

    text: str
    advice: str
    absent: bool = False
    packed: bool = False


_AGAIN = "Fetch it again."
_DOWNLOAD = "The server returned a message instead of the file: read it, log in if necessary, and fetch it again."
_SCAN = "Convert it to NIfTI."
EMPTY = FileKind("an empty file", _AGAIN)
DICOM = FileKind("a DICOM file", "Convert DICOM series to NIfTI with dcm2niix, one folder per patient.")
NIFTI = FileKind("a NIfTI file", "A patient is a folder with four scans and a segmentation.")
HDF5 = FileKind("an HDF5 file", "Rename it to end in .h5.")
MAT5 = FileKind("a MATLAB file of a version before 7.3", "Save it in MATLAB with `save -v7.3`.")
MAT73 = FileKind("a MATLAB file", "Rename it to end in .mat.")
JPEG = FileKind("a JPEG image", "Rename it to end in .jpg.")
PNG = FileKind("a PNG image", "Rename it to end in .png.")
BMP = FileKind("a BMP image", "Rename it to end in .bmp.")
TIFF = FileKind("a TIFF image", "Rename it to end in .tif.")
WEBP = FileKind("a WebP image", "Rename it to end in .webp.")


def _archive(text: str) -> FileKind:
    return FileKind(text, "Unpack it, and name the resulting folder.", packed=True)


_LFS = FileKind("a Git LFS pointer, not the content", "Run `git lfs pull` in its dataset.", absent=True)
_ANNEX = FileKind("git-annex content that was not fetched",
                  "Run `git annex get .` in its dataset (DataLad: `datalad get .`).", absent=True)  # fmt: skip
DVC = FileKind("DVC content that was not fetched", "Run `dvc pull` in its dataset.", absent=True)

_STARTS = (
    (0, b"version https://git-lfs", _LFS), (0, b"version https://hawser", _LFS),
    (0, b"/annex/objects/", _ANNEX), (0, b"outs:\n- md5:", DVC),
    (128, b"DICM", DICOM),
    (344, b"n+1\0", NIFTI), (344, b"ni1\0", NIFTI), (4, b"n+2\0", NIFTI),
    (0, b"\x89HDF\r\n\x1a\n", HDF5),
    (0, b"\xff\xd8\xff", JPEG), (0, b"\x89PNG\r\n\x1a\n", PNG), (8, b"WEBP", WEBP),
    (0, b"II*\0", TIFF), (0, b"MM\0*", TIFF), (0, b"II+\0", TIFF), (0, b"MM\0+", TIFF), (0, b"BM", BMP),
    (0, b"GIF8", FileKind("a GIF image", "Save it as PNG.")),
    (4, b"ftyp", FileKind("a HEIC, AVIF or video file", "Save it as PNG.")),
    (0, b"\0\0\0\x0cjP  ", FileKind("a JPEG 2000 image", "Save it as PNG.")),
    (0, b"PK\x03\x04", _archive("a zip archive")), (0, b"PK\x05\x06", _archive("a zip archive")),
    (257, b"ustar", _archive("a tar archive")),
    (0, b"7z\xbc\xaf\x27\x1c", _archive("a 7-Zip archive")),
    (0, b"Rar!\x1a\x07", _archive("a RAR archive")),
    (0, b"\x1f\x8b", _archive("a gzip file")), (0, b"BZh", _archive("a bzip2 file")),
    (0, b"\xfd7zXZ\0", _archive("an xz file")), (0, b"\x28\xb5\x2f\xfd", _archive("a Zstandard file")),
    (0, b"%PDF", FileKind("a PDF document", "Take it out of the dataset.")),
    (0, b"NRRD000", FileKind("an NRRD scan", _SCAN)), (0, b"ObjectType =", FileKind("a MetaImage scan", _SCAN)),
    (0, b"MATLAB 5.0 MAT-file", MAT5), (0, b"MATLAB 7.3 MAT-file", MAT73),
    (0, b"\x93NUMPY", FileKind("a NumPy array", _SCAN)),
)  # fmt: skip
LOOP = FileKind("a link that points to itself", "Remove it, or replace it with the file or folder.",
                absent=True)  # fmt: skip
_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_XML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:\?xml|error)\b", re.IGNORECASE)
_JSON = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{\s*(?:\"|\}|$)")
_ANNEXED = re.compile(r"(?:^|/)\.git/annex/objects/|(?:^|/)annex/objects/")
_DVC_CACHED = re.compile(r"(?:^|/)\.dvc/cache/|/files/md5/[0-9a-f]{2}/")


def kind_of(start: bytes) -> FileKind | None:
    """Return the kind of a file that begins with these bytes, at most `START` of them, or None if unknown."""
    if not start:
        return EMPTY
    for offset, magic, kind in _STARTS:
        if start[offset : offset + len(magic)] == magic:
            return kind
    if _HTML.match(start):
        return FileKind("an HTML page", _DOWNLOAD)
    if _XML.match(start):
        return FileKind("XML text", _DOWNLOAD)
    if _JSON.match(start):
        return FileKind("JSON text", _DOWNLOAD)
    if not any(start):
        return FileKind("a file of zeros", "The copy is incomplete: fetch it again.")
    return None


def wrong_kind_error(
    path: Path, wanted: str, start: bytes, otherwise: str, own: Collection[FileKind] = ()
) -> DataError:
    """Return the error for a file that is not `wanted`, with the kind detected instead.

    Args:
        wanted: with its article, such as "a NIfTI file".
        start: the file's first bytes, decompressed.
        otherwise: end of the sentence if the kind is unknown, or one of `own`.
    """
    kind = kind_of(start[:START])
    if kind is None or kind in own:
        return DataError(f"{path} is not {wanted}{otherwise}")
    return DataError(f"{path} is not {wanted} but {kind.text}. {kind.advice}")


def kind_of_link(target: str, real: str, exists: bool) -> FileKind:
    """Return the kind of a link that is not followed: it leads out of the source, or is broken.

    Args:
        target: the link's target as stored.
        real: the target, resolved.
        exists: the target exists.
    """
    shown = printable(target)
    for pattern, kind in ((_ANNEXED, _ANNEX), (_DVC_CACHED, DVC)):
        if not exists and (pattern.search(target) or pattern.search(real)):
            return FileKind(f"a link to {kind.text}", kind.advice, absent=True)
    if exists:
        text, advice = f"a link to {shown}, outside the source, and not followed", (
            "Name the folder that it points to, or copy the dataset with `cp -rL` and name the copy."
        )  # fmt: skip
    else:
        text, advice = f"a link to {shown}, which does not exist", (
            "Mount the disk that it points to, or copy the dataset again with links resolved (`cp -rL`, `rsync -L`)."
        )  # fmt: skip
    return FileKind(text, advice, absent=True)
