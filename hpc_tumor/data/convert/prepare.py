"""Conversion of a raw dataset to a store, in parallel and case by case; can be interrupted and resumed at any time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from hpc_tumor.data.case import Case, CaseReader, walk
from hpc_tumor.data.convert.assumptions import differs, is_renamed
from hpc_tumor.data.convert.case import Unit, UnitResult
from hpc_tumor.data.convert.stored import StoredSources
from hpc_tumor.data.convert.summary import PrepareSummary, summarise
from hpc_tumor.data.convert.target import (
    ConversionError,
    Target,
    disk_error,
    finish_interrupted,
    identity_of,
    open_target,
)
from hpc_tumor.data.convert.update import bring_up_to_date
from hpc_tumor.data.convert.vanished import refuse_lost, refuse_vanished, why_unreadable
from hpc_tumor.data.convert.workers import convert_locally, default_workers
from hpc_tumor.data.convert.writers import Writer, make_writer
from hpc_tumor.data.editions import EDITIONS, edition_of
from hpc_tumor.data.raw.brain_mri import refuse_one_class
from hpc_tumor.data.raw.clinical import Clinical, read_clinical
from hpc_tumor.data.raw.leftovers import none_usable_error
from hpc_tumor.data.raw.several import (
    SeveralReader,
    Sources,
    check_removal,
    describe_sources,
    name_sources,
    parse_source,
    refuse_overlap,
    source_of,
)
from hpc_tumor.data.raw.sources import SourceReport, inspect_listing, inspect_source
from hpc_tumor.data.store.store import Store, read_about
from hpc_tumor.errors import DataError, UsageError
from hpc_tumor.system.resources import available_cpus
from hpc_tumor.vocabulary import counted

__all__ = ["Convert", "PrepareSummary", "inspect_sources", "prepare_dataset", "prepare_sources"]

Progress = Callable[[int, int], None]  # cases done (including kept ones), and total
Convert = Callable[[Sequence[Unit]], Generator[UnitResult, None, None]]  # results in any order; closing it stops


def prepare_dataset(
    reader: CaseReader,
    source: Path,
    store: Path,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    strict: bool = False,
    prune: bool = False,
    convert: Convert | None = None,
    progress: Progress | None = None,
    report: SourceReport | None = None,
) -> PrepareSummary:
    """Convert `source` to a store, or resume an earlier conversion.

    Cases with unchanged files are kept, others converted, vanished ones removed. Cases that cannot be read are listed
    in the summary. Each case is committed separately; an interrupted run leaves a store marked as unfinished, which the
    same call completes.

    Args:
        workers: processes; default: one per available CPU, limited by memory (350 MB each).
        overwrite: convert everything again, even if the store has another dataset, schema or options.
        strict: stop with the error of the first case that cannot be read.
        prune: remove vanished cases even if they are more than half of the store.
        convert: converts the units; default: `workers` on this machine.
        report: result of `inspect_listing`, if `source` was already listed.

    Raises:
        DataError: no readable case, a target that cannot be written, a full disk, a source that became unavailable, or
            most of the store's cases vanished.
        UsageError: workers below 1.
    """
    report = report or inspect_listing(walk(Path(source)), reader)
    return prepare_sources(
        Sources.single(report), store, workers=workers, overwrite=overwrite, strict=strict, prune=prune,
        convert=convert, progress=progress,
    )  # fmt: skip


def inspect_sources(
    texts: Sequence[str],
    store: Path,
    dataset: str = "auto",
    labels: str | None = None,
    remove: Collection[str] = (),
    *,
    overwrite: bool = False,
) -> Sources:
    """List the sources for a store, given as `PATH` or `NAME=PATH`.

    They are named if there are several, if a name is given, or if the store has named sources.

    Raises UsageError for names and folders that are no separate sources, DataError for a folder that has the name of
    another source of the store, and as `inspect_source`.
    """
    given = [parse_source(text) for text in texts]
    if not given and not remove:
        raise UsageError(f"prepare-data {store}: name the folder of the raw scans, then the store.")
    finish_interrupted(store)
    if remove:
        Store.open(store)  # raises StoreError
    known = StoredSources.read(store, overwrite=overwrite)
    if len(given) == 1 and given[0][0] is None and not (known.named or remove):
        return Sources.single(inspect_source(given[0][1], dataset, labels))
    refuse_overlap([path for _, path in given], store)
    named = name_sources(given, known.names)
    check_removal(remove, known.counts, named, store)
    known.refuse_lost(named, store)
    reports = {name: inspect_source(path, dataset, labels) for name, path in named.items()}
    for (asked, _), (name, report) in zip(given, reports.items(), strict=True):
        if asked is None and not overwrite:
            known.refuse_other(name, report, store)
    return Sources.several(reports, remove)


def prepare_sources(
    sources: Sources,
    store: Path,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    strict: bool = False,
    prune: bool = False,
    convert: Convert | None = None,
    progress: Progress | None = None,
) -> PrepareSummary:
    """Convert one or several sources to a store, as `prepare_dataset` does.

    Images of sources of the store that are not given are kept, and those of `sources.remove` are removed. Cases vanish
    from each source separately.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: must be at least 1.")
    began, reader, store = time.perf_counter(), sources.reader, Path(store)
    if strict and sources.failed:
        raise DataError(f"{sources.failed[0][1]} Stopped because of --strict.")
    updated = None if overwrite else bring_up_to_date(store)
    identity = identity_of(reader.name, reader.task, reader.options)
    grows = SeveralReader.grows if sources.named else ()
    with open_target(store, identity, overwrite=overwrite, grows=grows) as target:
        try:
            plan = _plan(target, sources, workers or default_workers(), prune=overwrite or prune)
            with closing(convert(plan.units) if convert else convert_locally(plan.units, plan.workers)) as results:
                failed = _commit_all(plan.writer, target, results, sources, strict, progress)
            if not plan.writer.rows:
                raise none_usable_error(sources.paths, failed)
            if not (overwrite or prune):
                for name in sources.reports:
                    of_source = [failure for failure in failed if sources.has(name, failure[0])]
                    refuse_lost(plan.stored.of(name), plan.writer.rows, of_source, store)
            about: dict[str, Any] = {"sources": plan.kinds} if sources.named else {}
            refused = {*plan.refused, *(case for case, _ in failed)} - plan.writer.rows.keys()
            plan.writer.finish({"refused": sorted(refused), **about})
        except OSError as error:
            raise DataError(f"{disk_error(error, 'its cases', store)} {target.remains()}") from error
        except ConversionError as error:
            raise DataError(f"{error} {target.remains()}") from error
    summary = summarise(
        Store.open(store), sources, plan.writer.rows, plan.stored.cases, plan.kept, failed, plan.notes,
        time.perf_counter() - began,
    )  # fmt: skip
    return replace(summary, notes=[*summary.notes, updated.note]) if updated else summary


@dataclass(frozen=True)
class _Plan:
    """A conversion before its first case.

    Attributes:
        stored: cases in the existing store.
        refused: ids of cases of sources that are not given, which were refused before.
        kinds: kind of dataset of each named source of the store after the conversion.
        kept: number of stored cases that need no conversion.
        units: units to convert.
        notes: on the sources and their clinical tables.
    """

    writer: Writer
    stored: StoredSources
    refused: Sequence[str]
    kinds: Mapping[str, str]
    kept: int
    units: Sequence[Unit]
    workers: int
    notes: Sequence[str]


def _plan(target: Target, sources: Sources, workers: int, prune: bool) -> _Plan:
    """Determine the cases to convert, and the stored ones to keep.

    `prune`: remove vanished cases. Raises DataError if most of a source's stored cases have vanished.
    """
    store, cases = target.path, sources.cases
    stored, origin = StoredSources.read(store, overwrite=target.overwrite).as_named(sources)
    if stored.named and not sources.named:
        raise DataError(f"{store} has {stored.describe()}: name the source, as in NAME=PATH.")
    others = stored.others(sources)
    if target.overwrite and others.names:
        raise DataError(f"--overwrite converts everything again, but {store} also has {others.describe()}: give all"
                        " sources, or remove those with --remove.")  # fmt: skip
    unseen: list[str] = []
    for name, report in sources.reports.items():
        before = stored.of(name)
        named_by_id = set(report.failed) - set(report.links)  # links are named by paths, which may equal an id
        present = {case.id for case in (*report.cases, *report.absent)} | {case for case, _ in named_by_id}
        if not prune:
            named = {PurePosixPath(path).name for path, _ in report.links}
            refuse_vanished(before, present | named, report.listing.source, store)
            # Missing cases may be behind a link that is not followed, or in content that was not fetched.
            unseen += sorted(before - present) if report.links else []
    if not prune and sources.named and (unknown := len(stored.of(""))):
        raise DataError(f"{store} has {counted(unknown, 'image')} of one source, which is none of those given: give its"
                        " folder too, or remove these images with --prune.")  # fmt: skip
    if sources.reader.task == "classification" and not others.names:
        _refuse_one_class(sources)
    unchanged = [*sources.absent, *(Case(name, {}, Path(name)) for name in unseen)]
    clinical = Clinical()
    if sources.reader.task == "segmentation":
        (report,) = sources.reports.values()
        clinical = read_clinical(report.listing, [*cases, *unchanged])
    facts = {**clinical.facts, **_clinical_before(store, unseen)}
    writer = make_writer(target, sources.reader, facts, origin)
    kept = [*(case.id for case in unchanged), *others.cases]
    units = writer.units(cases, max(1, available_cpus() // workers), kept)
    others.require(writer.rows, store)
    kinds = {**others.kinds, **{name: report.dataset for name, report in sources.reports.items()}}
    kinds = dict(sorted(kinds.items()))
    inside = [note for report in sources.reports.values() for note in _inside(store, report.listing.source)]
    notes = [*sources.notes, *inside, *_kept_unseen(unseen), *_other_sources(stored, others, sources), *clinical.notes]
    refused = [case for case in (target.existing or {}).get("refused", []) if source_of(case) in others.names]
    return _Plan(writer, stored, refused, kinds, len(writer.rows), units, min(workers, len(units)), notes)


def _refuse_one_class(sources: Sources) -> None:
    cases = [*sources.cases, *sources.absent]
    if not sources.named:
        refuse_one_class(cases, sources.reports[""].listing.source)
    elif len(kinds := {case.meta["class"] for case in cases}) == 1:
        raise DataError(f"{sources.paths} contain images of only one class, {kinds.pop()}: nothing to classify.")


def _other_sources(stored: StoredSources, others: StoredSources, sources: Sources) -> list[str]:
    notes = []
    if others.names:
        notes.append(f"not given, so kept as converted before: {others.describe()}")
    if sources.remove:
        notes.append(f"removed from the store: {describe_sources(sources.remove, stored.counts)}")
    return notes


def _inside(store: Path, source: Path) -> list[str]:
    if not store.resolve().is_relative_to(source.resolve()):
        return []
    return [f"the store {store} is inside its source: copying or removing the source includes the store"]


def _kept_unseen(cases: Sequence[str]) -> list[str]:
    if not cases:
        return []
    behind = "be behind links that are not followed, or content that was not fetched"
    if len(cases) == 1:
        return [f"1 case of the store, {cases[0]}, is missing from the source and kept: it may {behind}"]
    named = f"{len(cases):,} cases of the store, such as {cases[0]}, are missing from the source and kept"
    return [f"{named}: they may {behind}"]


def _commit_all(
    writer: Writer,
    target: Target,
    results: Generator[UnitResult, None, None],
    sources: Sources,
    strict: bool,
    progress: Progress | None,
) -> list[tuple[str, str]]:
    """Commit results as they arrive; return (case, reason) of all refused cases, including the sources'."""
    failed: list[tuple[str, str]] = []
    uncertain: str | None = None
    done = len(writer.rows)
    total = len({case.id for case in sources.cases} | writer.rows.keys())
    if progress:
        progress(done, total)
    for result in results:
        try:
            writer.commit(result)
        except OSError as error:
            raise disk_error(error, result.unit.cases[0].id, target.path) from error
        failed += result.failed
        if result.uncertain and uncertain is None and edition_of(result.failed[0][0]).usual:
            uncertain = result.failed[0][1]
        if result.failed:
            _check_source(result.failed, failed, sources, strict)
        done += len(result.unit.cases)
        if progress:
            progress(done, total)
    return sorted([*sources.failed, *failed, *_without_doubtful(writer, uncertain)])


def _without_doubtful(writer: Writer, uncertain: str | None) -> list[tuple[str, str]]:
    """Remove cases whose label numbering another case puts in doubt; return (case, reason) of them.

    Otherwise a dataset with label 3 in only some cases would be stored with two meanings. Doubtful are labels read with
    the default edition if a case with a similar name was refused (`uncertain` is the reason), and labels read with the
    edition of a name if other names turn out to have a wrong edition.
    """
    doubtful = {}
    volumes = {name: row for name, row in writer.rows.items() if "label_counts" in row}
    renamed = next((name for name, row in volumes.items() if is_renamed(row)), None)
    for name, row in volumes.items():
        read, requested = EDITIONS[row["meta"]["labels"]], EDITIONS.get(row["meta"].get("labels_asked"))
        if uncertain is not None and row["meta"].get("labels_assumed"):
            doubtful[name] = f"the labels may not be {read.meaning}, since {uncertain}"
        elif renamed and requested and edition_of(name).edition == read and differs(row, read, requested):
            doubtful[name] = (
                f"the name implies labels of {read.meaning}, but {renamed} has those of --labels {requested.meaning}."
                " Rename the cases so that no edition is implied, or convert them to a separate store."
            )
    for name in doubtful:
        del writer.rows[name]
    return [(name, f"{name}: {reason}") for name, reason in doubtful.items()]


def _check_source(
    refused: Sequence[tuple[str, str]], failed: Sequence[tuple[str, str]], sources: Sources, strict: bool
) -> None:
    """Raise ConversionError if a case was refused because its source is unavailable, or with `strict`."""
    for name, report in sources.reports.items():
        case = next((case for case, _ in refused if sources.has(name, case)), None)
        if case and (lost := why_unreadable(report.cases, {name for name, _ in failed})):
            where = f"{report.listing.source} can no longer be read ({lost}), first at case {case}"
            raise ConversionError(f"{where}: is its disk or network share still mounted?")
    if strict:
        raise ConversionError(f"{refused[0][1]} Stopped because of --strict.")


def _clinical_before(store: Path, cases: Sequence[str]) -> dict[str, Any]:
    if not cases or not (read_about(store) or {}).get("complete"):
        return {}
    before = Store.open(store)
    if before.task == "classification":
        return {}
    return {name: facts for name, facts in zip(before.case_ids, before.clinical, strict=True) if name in cases}
