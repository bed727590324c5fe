"""Several sources of one store: their names, a reader for all of them, and checks that they are separate folders.

In a store of named sources, the id of an image is `NAME/path below the source`.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from hpc_tumor.data.case import Case, CaseData, CaseReader, FoundCases, Listing
from hpc_tumor.data.raw.brain_mri import BrainMRIReader
from hpc_tumor.data.raw.cheng import LABELS, ChengReader
from hpc_tumor.data.raw.classes import spelling_of
from hpc_tumor.data.raw.sources import SourceReport
from hpc_tumor.errors import DataError, UsageError
from hpc_tumor.vocabulary import counted, printable, series

_NAME = re.compile(r"\w[\w.-]{0,63}")
_UNUSUAL = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class SeveralReader:
    """Reads the images of named sources, each with its own reader; all are stored in the form of Brain Tumor MRI."""

    readers: Mapping[str, CaseReader]
    grows: ClassVar[tuple[str, ...]] = (
        BrainMRIReader.name,
        ChengReader.name,
    )  # datasets of stores that may be continued

    @property
    def name(self) -> str:
        return BrainMRIReader.name

    @property
    def task(self) -> str:
        return BrainMRIReader.task

    @property
    def wanted(self) -> str:
        return BrainMRIReader.wanted

    @property
    def options(self) -> dict[str, Any]:
        return next(iter(self.readers.values()), BrainMRIReader()).options

    def find(self, listing: Listing) -> FoundCases:
        raise NotImplementedError("each source is listed by its own reader")

    def read_case(self, case: Case) -> CaseData:
        """Read an image with the reader of its source."""
        name = case.meta["source"]
        data = self.readers[name].read_case(case)
        return replace(data, meta={**data.meta, "source": name})


@dataclass(frozen=True)
class Sources:
    """The sources of one conversion.

    Attributes:
        reports: contents of each source by name, in the order given; a single source may have the name "".
        remove: names of sources to remove from the store.
    """

    reader: CaseReader
    reports: Mapping[str, SourceReport]
    remove: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def single(cls, report: SourceReport) -> Sources:
        """Return a source without a name, whose ids are not prefixed."""
        return cls(report.reader, {"": report})

    @classmethod
    def several(cls, reports: Mapping[str, SourceReport], remove: Collection[str] = ()) -> Sources:
        """Name the cases of each report. Raises DataError if they cannot share a store."""
        for name, report in reports.items():
            if report.reader.task != BrainMRIReader.task:
                raise DataError(
                    f"{report.listing.source} ({name}) contains {report.dataset}: only images can have several or named"
                    " sources, since a patient's scans are stored under the name of its folder. Give it without a name,"
                    " and convert each such source to a store of its own."
                )
        reader = SeveralReader({name: report.reader for name, report in reports.items()})
        options = {name: report.reader.options for name, report in reports.items()}
        if other := next((name for name in options if options[name] != reader.options), None):
            raise DataError(f"images of {other} are stored with other options than those of {next(iter(options))}:"
                            " convert them to separate stores.")  # fmt: skip
        return cls(reader, {name: _named(name, report) for name, report in reports.items()}, frozenset(remove))

    @property
    def named(self) -> bool:
        return "" not in self.reports

    @property
    def cases(self) -> list[Case]:
        return [case for report in self.reports.values() for case in report.cases]

    @property
    def absent(self) -> list[Case]:
        return [case for report in self.reports.values() for case in report.absent]

    @property
    def failed(self) -> list[tuple[str, str]]:
        return sorted(failure for report in self.reports.values() for failure in report.failed)

    @property
    def notes(self) -> list[str]:
        return [note for report in self.reports.values() for note in report.notes]

    @property
    def not_taken(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for report in self.reports.values():
            counts.update(report.not_taken)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def paths(self) -> str:
        """The folders, for messages."""
        return series([str(report.listing.source) for report in self.reports.values()], "and")

    def has(self, name: str, case: str) -> bool:
        """Return True if an id is of the source `name`."""
        return not name or source_of(case) == name


def source_of(case: str) -> str:
    """Return the name of the source from the id of an image of a named source."""
    return case.partition("/")[0]


def _named(name: str, report: SourceReport) -> SourceReport:
    def named(cases: Sequence[Case]) -> list[Case]:
        return [replace(case, id=f"{name}/{case.id}", meta={**case.meta, "source": name}) for case in cases]

    folders = {spelling_of(case.files["image"].relative): str(case.meta["class"]) for case in report.cases}
    spellings = {printable(folder): kind for folder, kind in folders.items() if folder and folder != kind}
    if isinstance(report.reader, ChengReader):
        spellings = {str(number): kind for number, kind in LABELS.items()}
    return replace(
        report,
        cases=named(report.cases),
        absent=named(report.absent),
        failed=[(f"{name}/{case}", reason) for case, reason in report.failed],
        links=[(f"{name}/{path}", reason) for path, reason in report.links],
        notes=[f"{name}: {note}" for note in report.notes],
        spellings=dict(sorted(spellings.items())),
    )


def name_sources(given: Sequence[tuple[str | None, Path]], known: Collection[str]) -> dict[str, Path]:
    """Return the folders of sources by name, from pairs of name (None: to be chosen) and folder.

    Unnamed folders get the name that the store knows them by, else that of the folder, with those of the folders above
    it where several have the same. `known` has the names in the store.

    Raises UsageError for a name given twice, or several folders that the store may know by one name.
    """
    names: list[str | None] = [name for name, _ in given]
    for i, (_, path) in enumerate(given):
        if names[i] is None:
            names[i] = next((name for name in reversed(_candidates(path)) if name in known), None)
    for depth in range(max((len(path.resolve().parts) for _, path in given), default=0)):
        candidates = [name or _candidate(path, depth) for name, (_, path) in zip(names, given, strict=True)]
        counts = Counter(candidates)
        for i, candidate in enumerate(candidates):
            if names[i] is None and counts[candidate] == 1 and candidate not in known:
                names[i] = candidate
    chosen = [name or _candidate(path, 0) for name, (_, path) in zip(names, given, strict=True)]
    if repeated := next((name for name, count in Counter(chosen).items() if count > 1), None):
        paths = [path for name, (_, path) in zip(chosen, given, strict=True) if name == repeated]
        raise UsageError(f"{series(list(map(str, paths)), 'and')} would both be source {repeated}: name them, as in"
                         f" {repeated}-2={paths[1]}.")  # fmt: skip
    return {name: path for name, (_, path) in zip(chosen, given, strict=True)}


def parse_source(text: str) -> tuple[str | None, Path]:
    """Return name and folder from `NAME=PATH`, or None and the folder from `PATH`. Raises UsageError."""
    name, equals, path = text.partition("=")
    if not equals or "/" in name or os.path.lexists(text):
        return None, Path(text)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{printable(text)}: {printable(name)!r} cannot name a source: use at most 64 letters, digits,"
                         " dots, - and _, the first a letter or a digit.")  # fmt: skip
    if not path:
        raise UsageError(f"{printable(text)}: name a folder after the =.")
    return name, Path(path)


def _candidates(path: Path) -> list[str]:
    return [_candidate(path, depth) for depth in range(len(path.resolve().parts))]


def _candidate(path: Path, depth: int) -> str:
    """Return a name from a folder and `depth` folders above it."""
    name = "-".join(path.resolve().parts[1:][-depth - 1 :])
    return _UNUSUAL.sub("-", printable(name)).strip("-._")[-64:].lstrip("-._") or "source"


def refuse_overlap(paths: Sequence[Path], store: Path) -> None:
    """Raise UsageError for a folder given twice or inside another, or a source that is the store or inside it."""
    target = Path(os.path.realpath(store))
    for path in paths:
        real = Path(os.path.realpath(path))
        if real.is_relative_to(target):
            where = "is the store itself" if real == target else f"is inside the store {store}"
            raise UsageError(f"the source {path} {where}: name the folder of the images.")
    for one, other in itertools.permutations(paths, 2):
        inner, outer = (Path(os.path.realpath(path)) for path in (one, other))
        if inner == outer or (inner.exists() and outer.exists() and inner.samefile(outer)):
            raise UsageError(f"the sources {one} and {other} are the same folder: give it once.")
        if inner.is_relative_to(outer):
            raise UsageError(
                f"the source {one} is inside the source {other}, so its images would be stored twice: give only one of"
                " them."
            )


def check_removal(remove: Collection[str], known: Mapping[str, int], given: Collection[str], store: Path) -> None:
    """Raise UsageError for sources to remove that the store lacks, that are also given, or that are all.

    `known` has the number of images of each source in the store.
    """
    for name in remove:
        if name not in known:
            names = f"its sources are {series(sorted(known), 'and')}" if known else "its source has no name"
            raise UsageError(f"--remove {printable(name)}: {store} has no source of this name: {names}.")
        if name in given:
            raise UsageError(f"--remove {name}: this source is also to be converted: leave out one of them.")
    if remove and not given and set(remove) == set(known):
        raise UsageError(f"--remove: no image would be left in {store}: delete the store instead.")


def describe_sources(names: Collection[str], counts: Mapping[str, int]) -> str:
    """Format `kaggle (811 images) and cheng (3,064 images)`."""
    return series([f"{name} ({counted(counts[name], 'image')})" for name in sorted(names)], "and")
