"""Cases of an existing store by the source that they came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpc_tumor.data.convert.target import ConversionError
from hpc_tumor.data.raw.several import Sources, describe_sources
from hpc_tumor.data.raw.sources import SourceReport
from hpc_tumor.data.store.store import Store, read_about
from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import series


@dataclass(frozen=True)
class StoredSources:
    """Cases of a store.

    Attributes:
        cases: source of each case by id, "" in a store of one source without a name.
        kinds: kind of dataset of each named source.
        signatures: hash of the source files of each image, by id.
        sizes: bytes of the source files of each image, by id.
    """

    cases: Mapping[str, str]
    kinds: Mapping[str, str]
    signatures: Mapping[str, str]
    sizes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, *, overwrite: bool = False) -> StoredSources:
        """Read the cases of a store; none if there is no store.

        An unfinished or damaged store without named sources has the cases of its folder. Raises DataError for a damaged
        store of named sources, whose other sources would be lost, unless it is to be overwritten.
        """
        about = read_about(path) or {}
        kinds: Mapping[str, str] = about.get("sources") or {}
        if not about.get("complete"):
            folder = path / "cases"
            names = [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
            return cls(dict.fromkeys(names, ""), {}, {})
        try:
            store = Store.open(path)
        except DataError:
            if kinds and not overwrite:
                raise
            return cls({}, kinds, {})
        if store.task != "classification" or not store.names_patients:  # or of an earlier version, to be overwritten
            return cls(dict.fromkeys(store.case_ids, ""), {}, {})
        signatures, sizes = (
            dict(zip(store.paths, store.text_column(name), strict=True)) for name in ("signature", "bytes")
        )
        return cls(dict(zip(store.paths, store.sources, strict=True)), kinds, signatures, sizes)

    @property
    def named(self) -> bool:
        return bool(self.kinds)

    @property
    def names(self) -> set[str]:
        return set(self.kinds)

    @property
    def counts(self) -> dict[str, int]:
        """Number of cases of each named source."""
        counts = Counter(self.cases.values())
        return {name: counts[name] for name in self.kinds}

    def of(self, name: str) -> set[str]:
        """Return the ids of the cases of a source."""
        return {case for case, source in self.cases.items() if source == name}

    def as_named(self, sources: Sources) -> tuple[StoredSources, str]:
        """Name the only source of a store after that of the named `sources` which has most of its images.

        Returns the cases under their new ids, and the name; "" if no source has any of them, or if none is to be named.
        """
        if not sources.named or self.named or not self.cases:
            return self, ""
        found: dict[str, tuple[int, int]] = {}
        for name, report in sources.reports.items():
            below = {case.id.removeprefix(f"{name}/"): case for case in report.cases}
            same = self.cases.keys() & below.keys()
            unchanged = sum(below[case].signature == self.signatures.get(case) for case in same)
            found[name] = (unchanged, len(same))
        origin = max(found, key=lambda name: found[name])
        if not any(found[origin]):
            return self, ""
        cases = {f"{origin}/{case}": origin for case in self.cases}
        return StoredSources(cases, {origin: sources.reports[origin].dataset}, {}), origin

    def refuse_lost(self, given: Collection[str], store: Path) -> None:
        """Raise DataError if the images of a source that is not given cannot be kept, since the store is damaged."""
        if lost := sorted(self.names - set(given)) if not self.cases else []:
            raise DataError(f"{store} is damaged: give its sources {series(lost, 'and')} too, or choose another name.")

    def refuse_other(self, name: str, report: SourceReport, store: Path) -> None:
        """Raise DataError if a folder has the name of a source by chance: nearly all of its files differ in size."""
        same = [case for case in report.cases if f"{name}/{case.id}" in self.sizes]
        differing = sum(case.bytes != self.sizes[f"{name}/{case.id}"] for case in same)
        if 10 * differing > 9 * len(same):
            path = report.listing.source
            raise DataError(f"{path} seems to be another dataset than the source {name} of {store}: {differing:,} of"
                            f" {len(same):,} files of the same name differ. To replace the source, give {name}={path};"
                            f" to add it, give it another name.")  # fmt: skip

    def others(self, sources: Sources) -> StoredSources:
        """Return the named sources that are neither given nor to be removed."""
        names = self.names - sources.reports.keys() - sources.remove
        cases = {case: name for case, name in self.cases.items() if name in names}
        return StoredSources(cases, {name: self.kinds[name] for name in names}, {})

    def require(self, kept: Collection[str], store: Path) -> None:
        """Raise ConversionError if a case is not among those `kept`."""
        if lost := sorted({name for case, name in self.cases.items() if case not in kept}):
            raise ConversionError(f"{store}: the images of {series(lost, 'and')} cannot be read. To convert them again,"
                                  " give these sources too.")  # fmt: skip

    def describe(self) -> str:
        """Format the names of the sources with their numbers of images."""
        return describe_sources(self.kinds, self.counts)
