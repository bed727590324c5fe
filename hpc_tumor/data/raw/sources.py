"""Detection of the dataset in a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpc_tumor.data.case import Case, CaseReader, Listing, walk
from hpc_tumor.data.editions import get_edition
from hpc_tumor.data.raw.brain_mri import BrainMRIReader
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.raw.brats_h5 import BraTSH5Reader
from hpc_tumor.data.raw.cheng import ChengReader
from hpc_tumor.data.raw.clinical import is_table
from hpc_tumor.data.raw.leftovers import find_leftovers, no_cases_error, require_cases
from hpc_tumor.errors import DataError, UsageError, unknown
from hpc_tumor.vocabulary import plural

READERS: dict[str, type[CaseReader]] = {
    "brats": BraTSReader, "brats-h5": BraTSH5Reader, "brain-mri": BrainMRIReader, "cheng": ChengReader,
}  # fmt: skip


@dataclass(frozen=True)
class SourceReport:
    """The contents of a source, before any case is read.

    Attributes:
        cases: readable cases.
        absent: cases with missing content; they stay in a store that has them.
        failed: (case, reason) of cases that cannot be read: the absent, the refused, and `links`.
        links: (path, reason) of links that are not followed and may stand for cases.
        bytes: size of the files that belong to cases.
        groups: cases by edition (BraTS), or by part and class (Brain MRI).
        not_taken: number of other files by kind: a suffix, "link", "hidden", "Zarr store" …
        notes: one line each for the user to read before the conversion.
        spellings: class by the name of its folders, or its number, where that differs; only of a named source.
    """

    listing: Listing
    reader: CaseReader
    cases: list[Case]
    absent: list[Case]
    failed: list[tuple[str, str]]
    links: list[tuple[str, str]]
    bytes: int
    groups: dict[str, int]
    not_taken: dict[str, int]
    notes: list[str]
    spellings: Mapping[str, str] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        return self.reader.name


def inspect_source(source: Path, dataset: str = "auto", labels: str | None = None) -> SourceReport:
    """Report on the cases in `source`.

    Args:
        dataset: a reader's name, or "auto" to detect it.
        labels: edition of the segmentations' numbers; None: determined by each case's name.

    Raises:
        UsageError: unknown dataset or edition, or an edition for a dataset other than BraTS NIfTI.
        DataError: no dataset found, or several with "auto".
    """
    if dataset != "auto" and dataset not in READERS:
        raise unknown("dataset", dataset, ["auto", *READERS])
    if labels is not None:
        get_edition(labels)
    listing = walk(source)
    reader = _detect(listing) if dataset == "auto" else READERS[dataset]()
    if labels is not None:
        if not isinstance(reader, BraTSReader):
            raise UsageError(f"--labels {labels}: {source} contains {reader.name}, which has a fixed label numbering.")
        reader = BraTSReader(labels)
    return inspect_listing(listing, reader)


def inspect_listing(listing: Listing, reader: CaseReader) -> SourceReport:
    """Report on the cases that `reader` finds in a listing. Raises DataError if none can be read."""
    found = require_cases(listing, reader.find(listing), reader.wanted)
    tables = {file.relative for file in listing.entries if reader.task == "segmentation" and is_table(file)}
    rest = find_leftovers(listing, found.taken | tables, reader.task)
    kinds = (str(case.meta.get("edition") or f"{case.meta['part']}/{case.meta['class']}") for case in found.cases)
    size = sum(case.bytes for case in found.cases)
    notes = [*found.notes, *(f"not used: {note}" for note in rest.notes)]
    return SourceReport(
        listing, reader, found.cases, found.absent, sorted([*found.failed, *rest.refused]), rest.refused, size,
        dict(sorted(Counter(kinds).items())), rest.counts, notes,
    )  # fmt: skip


def _detect(listing: Listing) -> CaseReader:
    """Return the reader that finds readable cases, else one that finds others. Raises DataError for none or several."""
    results = [(reader, reader.find(listing)) for reader in (kind() for kind in READERS.values())]
    readable = [(reader, result) for reader, result in results if result.cases]
    if len(readable) > 1:
        kinds = " and ".join(
            f"{len(result.cases)} {reader.name} {plural(len(result.cases), 'case')}" for reader, result in readable
        )
        raise DataError(f"{listing.source} contains {kinds}: choose one with --dataset, or name its folder.")
    for reader, _ in readable or [(reader, result) for reader, result in results if result.failed]:
        return reader
    raise no_cases_error(listing, ", ".join(reader.wanted for reader, _ in results))
