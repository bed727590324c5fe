"""One subject or image, where it came from, and what every reader of a raw layout offers."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.errors import DataError
from hpc_tumor.names import is_plain, printable

MODALITIES = ("FLAIR", "T1", "T1ce", "T2")
LABELS = ("background", "NCR/NET", "ED", "ET")  # by their values in a store
CAVITY = "resection cavity"  # value 4, in stores of an edition that labels it
TUMOUR_LABELS = len(LABELS)  # values below are background and tumour: what networks learn and scores count
MOST_BYTES = 2**30 + 2**20  # of a source file: 512³ voxels of 64 bits, and what stands around them


@dataclass(frozen=True)
class SourceFile:
    """A file of the raw dataset as it was found. `relative` is its path below the source, with slashes.

    Names are those of the file system, whatever they hold: see `check_names`.
    """

    path: Path
    relative: str
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class Case:
    """One patient or one image as listed, not yet read.

    Attributes:
        files: by role: a modality or "label" for BraTS, "image" for Brain MRI. May be incomplete: reading says so.
        folder: what an error about the case as a whole names.
        meta: what else the reader knows from names alone.
    """

    id: str
    files: Mapping[str, SourceFile]
    folder: Path
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of the case's files on disk."""
        return sum(file.size for file in self.files.values())

    @property
    def signature(self) -> str:
        """Changes when a file of the case is added, removed, renamed or changed (by size or time)."""
        files = [(role, f.relative, f.size, f.mtime_ns) for role, f in sorted(self.files.items())]
        return hashlib.sha256(repr(files).encode()).hexdigest()


@dataclass(frozen=True)
class CaseData:
    """A case as read.

    Attributes:
        image: `(C, Z, Y, X)` in the source's type, or `(H, W)` uint8 for an image.
        label: `(Z, Y, X)` uint8 with 0 background, 1 NCR/NET, 2 ED, 3 ET, 4 resection cavity; None for an image.
        spacing: voxel size along z, y, x in mm.
        affine: `(4, 4)`, from voxel (x, y, z) of `image` to mm in scanner space (RAS+).
        header: the NIfTI header as in the file of the first modality.
        meta: JSON values: what the reader found out.
        background: `(C, Z)`, the value outside the brain where it differs from slice to slice; else None.
    """

    id: str
    image: NDArray[Any]
    label: NDArray[np.uint8] | None = None
    spacing: tuple[float, float, float] | None = None
    affine: NDArray[np.float64] | None = None
    header: bytes = b""
    meta: Mapping[str, Any] = field(default_factory=dict)
    background: NDArray[Any] | None = None


@dataclass(frozen=True)
class Listing:
    """All visible files below a source. `links_out` lead out of it and were not followed."""

    source: Path
    files: Sequence[SourceFile]
    links_out: Sequence[str]


class CaseReader(Protocol):
    """A raw layout. Readers are small and picklable: worker processes get a copy."""

    @property
    def name(self) -> str:
        """The dataset's name: brats, brats-h5, brain-mri."""

    @property
    def task(self) -> str:
        """segmentation or classification."""

    @property
    def options(self) -> dict[str, Any]:
        """What decides the stored values, as JSON. Other options make another store."""

    def find(self, listing: Listing) -> list[Case]:
        """Cases among the files, sorted by id; none where the files are of another layout."""

    def notes(self, listing: Listing) -> list[str]:
        """What a person should know of the files before they are converted: what is left out, or lacking."""

    def list_cases(self, source: Path) -> list[Case]:
        """Cases below the folder. DataError where there is none."""

    def read_case(self, case: Case) -> CaseData:
        """Raises DataError naming the file and the reason where the case cannot be used."""


def walk(source: Path) -> Listing:
    """List the files below `source`, hidden ones left out; links are followed only where they stay inside.

    Raises DataError where the folder does not exist, is no folder, or cannot be read.
    """
    source = Path(source)
    shown = printable(str(source))
    try:
        is_folder = stat.S_ISDIR(source.stat().st_mode)
    except (OSError, ValueError) as error:  # ValueError: a null character
        gone = isinstance(error, FileNotFoundError)
        what = "does not exist" if gone else f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise DataError(f"the source {shown} {what}: name the folder that holds the raw dataset.") from error
    if not is_folder:
        raise DataError(f"the source {shown} is not a folder: name the folder that holds the raw dataset.")
    root = os.path.realpath(source)
    files: list[SourceFile] = []
    links_out: list[str] = []
    pending = [source]
    while pending:
        folder = pending.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{printable(str(folder))} cannot be listed: {error.strerror}.") from error
        for entry in entries:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            path = folder / entry.name
            relative = path.relative_to(source).as_posix()
            kind, size, mtime_ns = _look(entry, root)
            if kind == "out":
                links_out.append(relative)
            elif kind == "folder":
                pending.append(path)
            elif kind == "file":
                files.append(SourceFile(path, relative, size, mtime_ns))
    return Listing(source, sorted(files, key=lambda file: file.relative), links_out)


def _look(entry: os.DirEntry[str], root: str) -> tuple[str, int, int]:
    """What an entry is ("file", "folder", a link "out" of `root`, or "" for what is passed over), its size and time."""
    try:
        if entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(root):
            return "out", 0, 0
        if entry.is_dir():
            # A linked folder inside the source is listed where it stands.
            return "" if entry.is_symlink() else "folder", 0, 0
        if entry.is_file():
            found = entry.stat()
            return "file", found.st_size, found.st_mtime_ns
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):  # gone since it was listed; links in a circle
            raise DataError(f"{printable(entry.path)} cannot be looked at: {error.strerror}.") from error
    return "", 0, 0  # a pipe, a socket, a device, a link to nothing


def read_source(path: Path, most: int = MOST_BYTES) -> bytes:
    """What a source file holds, at most `most` bytes.

    Raises DataError where it is no regular file (a pipe would be waited for without end), holds more, cannot be read,
    or changes while it is read.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise DataError(f"{path} is not a regular file. Remove it, or put the file itself in its place.")
            if before.st_size > most:
                raise DataError(f"{path} holds {before.st_size:,} bytes: refused, over {most:,}.")
            data = file.read(before.st_size + 1)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) != after.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(f"{path} changed while it was read. Run the same command again when it is complete.")
    return data


def check_names(case: Case) -> None:
    """Refuse a case whose files have names that cannot be shown and stored as they are. Raises DataError."""
    for file in case.files.values():
        if not is_plain(file.relative):
            where = printable(str(file.path))
            raise DataError(f"{where}: its name holds control characters or bytes that are not UTF-8. Rename it.")


def cases_below(source: Path, find: Callable[[Listing], list[Case]], wanted: str) -> list[Case]:
    """What `find` finds below the folder. DataError, which says what was looked for, where that is nothing."""
    listing = walk(source)
    cases = find(listing)
    if not cases:
        raise no_cases(listing, wanted)
    return cases


def no_cases(listing: Listing, wanted: str) -> DataError:
    """The error for a folder without cases: what was looked for, and what is there."""
    suffixes: dict[str, int] = {}
    for file in listing.files:
        suffix = printable("".join(Path(file.relative).suffixes[-2:]).lower()) or "no suffix"
        suffixes[suffix] = suffixes.get(suffix, 0) + 1
    common = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))[:4]
    found = ", ".join(f"{count} × {suffix}" for suffix, count in common) or "no files"
    links = f" {len(listing.links_out)} links lead out of it and were not followed." if listing.links_out else ""
    return DataError(f"{listing.source} holds no such dataset: looked for {wanted}; found {found}.{links}")
