"""What a folder holds, found by looking."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hpc_tumor.data import brain_mri, brats, brats_h5
from hpc_tumor.data.brain_mri import BrainMRIReader
from hpc_tumor.data.brats import BraTSReader
from hpc_tumor.data.brats_h5 import BraTSH5Reader
from hpc_tumor.data.case import Case, CaseReader, Listing, no_cases, walk
from hpc_tumor.data.editions import edition_called
from hpc_tumor.errors import DataError, UsageError, unknown

READERS: dict[str, type[CaseReader]] = {"brats": BraTSReader, "brats-h5": BraTSH5Reader, "brain-mri": BrainMRIReader}
_WANTED = {"brats": brats.WANTED, "brats-h5": brats_h5.WANTED, "brain-mri": brain_mri.WANTED}


@dataclass(frozen=True)
class SourceReport:
    """What was found in a source, before anything is read.

    Attributes:
        bytes: of the files that belong to cases.
        groups: cases by edition (BraTS), or by part and class (Brain MRI).
        links_out: links that lead out of the source and were not followed.
        notes: what a person should know before the conversion, a line each.
    """

    source: Path
    reader: CaseReader
    cases: list[Case]
    bytes: int
    groups: dict[str, int]
    links_out: int
    notes: list[str]

    @property
    def dataset(self) -> str:
        return self.reader.name


def detect_reader(source: Path) -> CaseReader:
    """The reader for what `source` holds. Raises DataError where it holds no known dataset, or both."""
    return _detect(walk(source))[0]


def inspect_source(source: Path, dataset: str = "auto", labels: str | None = None) -> SourceReport:
    """List what `source` holds; `dataset` is "auto" or a reader's name.

    Args:
        labels: name of the edition whose numbers the segmentations have; absent: that of each case's name.

    Raises:
        UsageError: unknown dataset or edition, or an edition for what has no such segmentations.
        DataError: no such dataset there, or both where the kind was left to be found.
    """
    if dataset != "auto" and dataset not in READERS:
        raise unknown("dataset", dataset, ["auto", *READERS])
    if labels is not None:
        edition_called(labels)
    listing = walk(source)
    if dataset == "auto":
        reader, cases = _detect(listing)
    else:
        reader = READERS[dataset]()
        cases = reader.find(listing)
        if not cases:
            raise no_cases(listing, _WANTED[dataset])
    if labels is not None:
        if not isinstance(reader, BraTSReader):
            raise UsageError(f"--labels {labels}: {source} holds {reader.name}, whose labels have one meaning.")
        reader = BraTSReader(labels)
    groups = Counter(str(case.meta.get("edition") or f"{case.meta['part']}/{case.meta['class']}") for case in cases)
    size = sum(case.bytes for case in cases)
    notes = reader.notes(listing)
    return SourceReport(Path(source), reader, cases, size, dict(sorted(groups.items())), len(listing.links_out), notes)


def _detect(listing: Listing) -> tuple[CaseReader, list[Case]]:
    found: list[tuple[CaseReader, list[Case]]] = []
    for kind in READERS.values():
        reader = kind()
        if cases := reader.find(listing):
            found.append((reader, cases))
    if not found:
        raise no_cases(listing, ", ".join(_WANTED.values()))
    if len(found) > 1:
        kinds = " and ".join(f"{len(cases)} {reader.name} case{'s' * (len(cases) > 1)}" for reader, cases in found)
        raise DataError(f"{listing.source} holds {kinds}: say which with --dataset, or name the folder of one.")
    return found[0]
