"""Detection of the dataset in a folder."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hpc_tumor.data.case import Case, CaseReader, Listing, walk
from hpc_tumor.data.editions import get_edition
from hpc_tumor.data.raw.brain_mri import BrainMRIReader
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.raw.brats_h5 import BraTSH5Reader
from hpc_tumor.data.raw.clinical import is_table
from hpc_tumor.data.raw.leftovers import find_leftovers, no_cases_error, require_cases
from hpc_tumor.errors import DataError, UsageError, unknown
from hpc_tumor.vocabulary import plural

READERS: dict[str, type[CaseReader]] = {"brats": BraTSReader, "brats-h5": BraTSH5Reader, "brain-mri": BrainMRIReader}


@dataclass(frozen=True)
class SourceReport:
    """The contents of a source, before anything is read.

    Attributes:
        cases: to be read.
        absent: cases some of whose content is not here; what a store has of them stays.
        failed: (case, reason) of those that are not to be read: the absent ones, those refused, and `links`.
        links: (path, reason) of links that are not followed, in whose place cases may have been meant.
        bytes: of the files that belong to cases.
        groups: cases by edition (BraTS), or by part and class (Brain MRI).
        not_taken: number of other files by kind: a suffix, "link", "hidden", "Zarr store" …
        notes: what a person should know before the conversion, a line each.
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

    @property
    def dataset(self) -> str:
        return self.reader.name


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
        get_edition(labels)
    listing = walk(source)
    reader = _detect(listing) if dataset == "auto" else READERS[dataset]()
    if labels is not None:
        if not isinstance(reader, BraTSReader):
            raise UsageError(f"--labels {labels}: {source} holds {reader.name}, whose labels have one meaning.")
        reader = BraTSReader(labels)
    return inspect_listing(listing, reader)


def inspect_listing(listing: Listing, reader: CaseReader) -> SourceReport:
    """Report on what `reader` finds in a listing. Raises DataError where that is no case that can be read."""
    found = require_cases(listing, reader.find(listing), reader.wanted)
    tables = {file.relative for file in listing.entries if reader.task == "segmentation" and is_table(file)}
    rest = find_leftovers(listing, found.taken | tables, reader.task)
    kinds = (str(case.meta.get("edition") or f"{case.meta['part']}/{case.meta['class']}") for case in found.cases)
    size = sum(case.bytes for case in found.cases)
    notes = [*found.notes, *(f"not taken: {note}" for note in rest.notes)]
    return SourceReport(
        listing, reader, found.cases, found.absent, sorted([*found.failed, *rest.refused]), rest.refused, size,
        dict(sorted(Counter(kinds).items())), rest.counts, notes,
    )  # fmt: skip


def _detect(listing: Listing) -> CaseReader:
    """The reader that finds cases which can be read, else one that finds others. DataError where none does, or two."""
    found = [(reader, reader.find(listing)) for reader in (kind() for kind in READERS.values())]
    good = [(reader, those) for reader, those in found if those.cases]
    if len(good) > 1:
        kinds = " and ".join(
            f"{len(those.cases)} {reader.name} {plural(len(those.cases), 'case')}" for reader, those in good
        )
        raise DataError(f"{listing.source} holds {kinds}: say which with --dataset, or name the folder of one.")
    for reader, _ in good or [(reader, those) for reader, those in found if those.failed]:
        return reader
    raise no_cases_error(listing, ", ".join(reader.wanted for reader, _ in found))
