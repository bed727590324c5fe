"""One subject or image, where it came from, and what every reader of a raw layout offers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.errors import DataError

MODALITIES = ("FLAIR", "T1", "T1ce", "T2")
LABELS = ("background", "NCR/NET", "ED", "ET")


@dataclass(frozen=True)
class SourceFile:
    """A file of the raw dataset as it was found. `relative` is its path below the source, with slashes."""

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
        label: `(Z, Y, X)` uint8 with 0 background, 1 NCR/NET, 2 ED, 3 ET; None for an image.
        spacing: voxel size along z, y, x in mm.
        affine: `(4, 4)`, from voxel (x, y, z) of `image` to mm in scanner space (RAS+).
        header: the NIfTI header as in the file of the first modality.
        meta: JSON values: what the reader found out.
    """

    id: str
    image: NDArray[Any]
    label: NDArray[np.uint8] | None = None
    spacing: tuple[float, float, float] | None = None
    affine: NDArray[np.float64] | None = None
    header: bytes = b""
    meta: Mapping[str, Any] = field(default_factory=dict)


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
        """The dataset's name: brats, brain-mri."""

    @property
    def task(self) -> str:
        """segmentation or classification."""

    @property
    def options(self) -> dict[str, Any]:
        """What decides the stored values, as JSON. Other options make another store."""

    def find(self, listing: Listing) -> list[Case]:
        """Cases among the files, sorted by id; none where the files are of another layout."""

    def list_cases(self, source: Path) -> list[Case]:
        """Cases below the folder. DataError where there is none."""

    def read_case(self, case: Case) -> CaseData:
        """Raises DataError naming the file and the reason where the case cannot be used."""


def walk(source: Path) -> Listing:
    """List the files below `source`, hidden ones left out; links are followed only where they stay inside.

    Raises DataError where the folder does not exist, is no folder, or cannot be read.
    """
    source = Path(source)
    if not source.is_dir():
        what = "is not a folder" if source.exists() else "does not exist"
        raise DataError(f"the source {source} {what}: name the folder that holds the raw dataset.")
    root = source.resolve()
    files: list[SourceFile] = []
    links_out: list[str] = []
    pending = [source]
    while pending:
        folder = pending.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{folder} cannot be listed: {error.strerror}.") from error
        for entry in entries:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            path = Path(entry.path)
            if entry.is_symlink() and not path.resolve().is_relative_to(root):
                links_out.append(path.relative_to(source).as_posix())
            elif entry.is_dir():
                if not entry.is_symlink():  # a linked folder inside the source is listed where it stands
                    pending.append(path)
            elif entry.is_file():
                stat = entry.stat()
                files.append(SourceFile(path, path.relative_to(source).as_posix(), stat.st_size, stat.st_mtime_ns))
    return Listing(source, sorted(files, key=lambda file: file.relative), links_out)


def no_cases(listing: Listing, wanted: str) -> DataError:
    """The error for a folder without cases: what was looked for, and what is there."""
    suffixes: dict[str, int] = {}
    for file in listing.files:
        suffix = "".join(Path(file.relative).suffixes[-2:]).lower() or "no suffix"
        suffixes[suffix] = suffixes.get(suffix, 0) + 1
    common = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))[:4]
    found = ", ".join(f"{count} × {suffix}" for suffix, count in common) or "no files"
    links = f" {len(listing.links_out)} links lead out of it and were not followed." if listing.links_out else ""
    return DataError(f"{listing.source} holds no such dataset: looked for {wanted}; found {found}.{links}")
