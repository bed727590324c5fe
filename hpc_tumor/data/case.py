"""Cases of a raw dataset (patients or images), and the protocol of its readers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.raw.files.listing import Listing, SourceFile, content_absent, read_source, walk
from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import is_plain, printable

__all__ = ["Case", "CaseData", "CaseReader", "FoundCases", "Listing",
           "SourceFile", "check_names", "read_source", "walk"]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One patient or one image as listed, not yet read.

    Attributes:
        files: by role: a modality or "label" for BraTS, "image" for images. May be incomplete; reading then raises.
        folder: path that errors about the whole case name.
        meta: facts derived from file and folder names.
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
        """Hash that changes when a file of the case is added, removed, renamed or changed (by size or time)."""
        files = [(role, f.relative, f.size, f.mtime_ns) for role, f in sorted(self.files.items())]
        return hashlib.sha256(repr(files).encode()).hexdigest()


@dataclass(frozen=True)
class CaseData:
    """A case as read.

    Attributes:
        image: `(C, Z, Y, X)` in the source's type, or `(H, W)` uint8 for an image.
        label: `(Z, Y, X)` uint8 with 0 background, 1 NCR/NET, 2 ED, 3 ET, 4 resection cavity; for an image its mask
            `(H, W)`, 1 in the tumour, or None without one.
        spacing: voxel size along z, y, x in mm.
        affine: `(4, 4)`, from voxel (x, y, z) of `image` to mm in scanner space (RAS+).
        header: NIfTI header of the first modality's file.
        meta: JSON values collected by the reader.
        background: `(C, Z)`, the value outside the brain if it differs from slice to slice; else None.
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
class FoundCases:
    """The cases that a reader finds in a listing.

    Attributes:
        cases: readable cases, sorted by id.
        absent: cases with missing content: links that are not followed, or pointer files (Git LFS, DVC).
        refused: (case, reason) of cases refused by their files' names.
        taken: paths below the source of the files of all these cases, and of cases left out on purpose.
        notes: one line each for the user to read before the conversion.
    """

    cases: list[Case]
    absent: list[Case] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    taken: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)

    @classmethod
    def from_cases(
        cls,
        cases: Iterable[Case],
        refused: Iterable[tuple[Case, str]] = (),
        left_out: Iterable[Case] = (),
        notes: Sequence[str] = (),
    ) -> FoundCases:
        """Separate readable cases from those with missing content."""
        readable: list[Case] = []
        absent: list[Case] = []
        for case in sorted(cases, key=lambda case: case.id):
            (absent if any(content_absent(file) for file in case.files.values()) else readable).append(case)
        refused = list(refused)
        everything = [*readable, *absent, *left_out, *(case for case, _ in refused)]
        taken = frozenset(file.relative for case in everything for file in case.files.values())
        reasons = list(dict.fromkeys((case.id, reason) for case, reason in refused))
        return cls(readable, absent, reasons, taken, list(notes))

    @property
    def failed(self) -> list[tuple[str, str]]:
        """(case, reason) of refused and absent cases, sorted."""
        return sorted([*self.refused, *((case.id, _absence(case)) for case in self.absent)])


class CaseReader(Protocol):
    """Reader of one raw layout. Small and picklable: worker processes get a copy."""

    @property
    def name(self) -> str:
        """Dataset name: brats, brats-h5, brain-mri or cheng."""

    @property
    def task(self) -> str:
        """Task: segmentation or classification."""

    @property
    def options(self) -> dict[str, Any]:
        """Options that affect the stored values, as JSON. A store accepts only cases read with the same options."""

    @property
    def wanted(self) -> str:
        """Description of the files that `find` expects, for error messages."""

    def find(self, listing: Listing) -> FoundCases:
        """Find the cases in a listing; none if its files are of another layout."""

    def read_case(self, case: Case) -> CaseData:
        """Read a case. Raises DataError, which names the file and the reason, if it cannot be used."""


def _absence(case: Case) -> str:
    absent = [(file, kind) for file in case.files.values() if (kind := content_absent(file))]
    file, kind = min(absent, key=lambda item: item[0].relative)
    others = len(absent) - 1
    more = f" (so {'are' if others > 1 else 'is'} {others} more of its files)" if others else ""
    return f"{printable(str(file.path))} is {kind.text}{more}. {kind.advice}"


def check_names(case: Case) -> None:
    """Raise DataError if a file's name has unprintable characters, or if a file is a link that is not followed."""
    for file in case.files.values():
        where = printable(str(file.path))
        if not is_plain(file.relative):
            raise DataError(f"{where}: the name contains control characters or is not valid UTF-8. Rename it.")
        if file.absent is not None:
            raise DataError(f"{where} is {file.absent.text}. {file.absent.advice}")
