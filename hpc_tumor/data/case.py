"""One subject or image, where it came from, and what every reader of a raw layout offers."""

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
class FoundCases:
    """The cases that a reader finds in a listing.

    Attributes:
        cases: to be read, sorted by id.
        absent: cases some of whose content is not here: links that are not followed, and pointers to content.
        refused: (case, reason) of those that their files' names alone refuse.
        taken: paths below the source of the files of all these cases, and of those left out on purpose.
        notes: what a person should know before the conversion, a line each.
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
        """Tell cases whose content is not here from those that can be read."""
        groups: tuple[list[Case], list[Case]] = [], []
        for case in sorted(cases, key=lambda case: case.id):
            groups[any(content_absent(file) for file in case.files.values())].append(case)
        refused = list(refused)
        everything = [*groups[0], *groups[1], *left_out, *(case for case, _ in refused)]
        taken = frozenset(file.relative for case in everything for file in case.files.values())
        reasons = list(dict.fromkeys((case.id, reason) for case, reason in refused))
        return cls(*groups, reasons, taken, list(notes))

    @property
    def failed(self) -> list[tuple[str, str]]:
        """(case, reason) of those that are not to be read."""
        return sorted([*self.refused, *((case.id, _absence(case)) for case in self.absent)])


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
        """Options that decide the stored values, as JSON. Others make another store."""

    @property
    def wanted(self) -> str:
        """The files that `find` looks for, for the error where there are none."""

    def find(self, listing: Listing) -> FoundCases:
        """Cases among the files; none where the files are of another layout."""

    def read_case(self, case: Case) -> CaseData:
        """Raises DataError naming the file and the reason where the case cannot be used."""


def _absence(case: Case) -> str:
    """The reason why a case cannot be read now, and the remedy."""
    absent = [(file, kind) for file in case.files.values() if (kind := content_absent(file))]
    file, kind = min(absent, key=lambda item: item[0].relative)
    others = len(absent) - 1
    more = f" (so {'are' if others > 1 else 'is'} {others} more of its files)" if others else ""
    return f"{printable(str(file.path))} is {kind.text}{more}. {kind.advice}"


def check_names(case: Case) -> None:
    """Refuse a case whose files have names that cannot be shown and stored as they are, or are links not followed.

    Raises DataError.
    """
    for file in case.files.values():
        where = printable(str(file.path))
        if not is_plain(file.relative):
            raise DataError(f"{where}: its name holds control characters or bytes that are not UTF-8. Rename it.")
        if file.absent is not None:
            raise DataError(f"{where} is {file.absent.text}. {file.absent.advice}")
