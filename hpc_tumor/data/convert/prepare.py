"""Conversion of a raw dataset to a store, in parallel and case by case; can be interrupted and resumed at any time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hpc_tumor.data.case import Case, CaseReader, walk
from hpc_tumor.data.convert.assumptions import assumptions, differs, is_renamed
from hpc_tumor.data.convert.case import Unit, UnitResult
from hpc_tumor.data.convert.target import ConversionError, Target, disk_error, identity_of, open_target
from hpc_tumor.data.convert.update import bring_up_to_date
from hpc_tumor.data.convert.vanished import refuse_lost, refuse_vanished, why_unreadable
from hpc_tumor.data.convert.workers import convert_locally, default_workers
from hpc_tumor.data.convert.writers import Writer, make_writer
from hpc_tumor.data.editions import EDITIONS, edition_of
from hpc_tumor.data.raw.brain_mri import refuse_one_class
from hpc_tumor.data.raw.cheng import differences_from_published
from hpc_tumor.data.raw.clinical import Clinical, clinical_counts, read_clinical
from hpc_tumor.data.raw.leftovers import none_usable_error
from hpc_tumor.data.raw.sources import SourceReport, inspect_listing
from hpc_tumor.data.splits.units import describe_patients, disagreements, doubtful_joins, repeated_cases
from hpc_tumor.data.store.store import Store, read_about
from hpc_tumor.errors import DataError, UsageError
from hpc_tumor.system.resources import available_cpus

Progress = Callable[[int, int], None]  # cases done (including kept ones), and total
Convert = Callable[[Sequence[Unit]], Generator[UnitResult, None, None]]  # results in any order; closing it stops


@dataclass(frozen=True)
class PrepareSummary:
    """Outcome of a conversion, and the contents of the store after it.

    Attributes:
        cases: in the store: `converted` now plus `kept` from before; `removed` can no longer be found or read.
        failed: (case, reason) of each refused case.
        still_stored: failed cases that stay in the store, since only their content is missing now.
        slices: axial slices (BraTS) or images.
        classes: images per class (Brain MRI), or slices that show each label (BraTS).
        parts: images per published part; empty for BraTS.
        duplicates: images with the same pixels as an earlier one by path.
        near_duplicates: further images that nearly repeat an earlier one.
        leaking: published test images with a duplicate or near copy among the published training images.
        known: images of known patients; `patients`: number of these patients.
        clinical: number of cases with known grade, survival, age, resection, and of patients last seen alive; empty for
            Brain MRI.
        not_taken: number of files in the source that belong to no case, by kind.
        notes: one line each on the source, the clinical tables and the converted cases.
        bytes_before: size of the source files of the stored cases; `bytes_after`: of the store.
    """

    dataset: str
    store: Path
    cases: int
    converted: int
    kept: int
    removed: int
    failed: list[tuple[str, str]]
    slices: int
    classes: dict[str, int]
    parts: dict[str, int]
    duplicates: int
    near_duplicates: int
    leaking: int
    known: int
    patients: int
    bytes_before: int
    bytes_after: int
    seconds: float
    fingerprint: str
    clinical: dict[str, int]
    not_taken: dict[str, int]
    still_stored: list[str]
    notes: list[str]


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
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: must be at least 1.")
    began = time.perf_counter()
    source, store = Path(source), Path(store)
    report = report or inspect_listing(walk(source), reader)
    if strict and report.failed:
        raise DataError(f"{report.failed[0][1]} Stopped because of --strict.")
    updated = None if overwrite else bring_up_to_date(store)
    with open_target(store, identity_of(reader.name, reader.task, reader.options), overwrite=overwrite) as target:
        try:
            plan = _plan(target, report, workers or default_workers(), prune=overwrite or prune)
            with closing(convert(plan.units) if convert else convert_locally(plan.units, plan.workers)) as results:
                failed = _commit_all(plan.writer, target, results, report, strict, progress)
            if not plan.writer.rows:
                raise none_usable_error(source, failed)
            if not (overwrite or prune):
                refuse_lost(plan.before, plan.writer.rows, failed, store)
            plan.writer.finish({"refused": sorted({case for case, _ in failed} - plan.writer.rows.keys())})
        except OSError as error:
            raise DataError(f"{disk_error(error, 'its cases', store)} {target.remains()}") from error
        except ConversionError as error:
            raise DataError(f"{error} {target.remains()}") from error
    summary = _summary(Store.open(store), report, plan, failed, time.perf_counter() - began)
    return replace(summary, notes=[*summary.notes, updated.note]) if updated else summary


@dataclass(frozen=True)
class _Plan:
    """A conversion before its first case.

    Attributes:
        before: ids of the cases in the existing store.
        kept: number of them that need no conversion.
        units: units to convert.
        notes: on the source and its clinical tables.
    """

    writer: Writer
    before: set[str]
    kept: int
    units: Sequence[Unit]
    workers: int
    notes: Sequence[str]


def _plan(target: Target, report: SourceReport, workers: int, prune: bool) -> _Plan:
    """Determine the cases to convert, and the stored ones to keep.

    `prune`: remove vanished cases. Raises DataError if most of the store's cases have vanished.
    """
    cases, source, store = report.cases, report.listing.source, target.path
    before = _stored_ids(store)
    refused = set(report.failed) - set(report.links)  # links are named by paths, which may equal an id
    present = {case.id for case in (*cases, *report.absent)} | {case for case, _ in refused}
    if not prune:
        named = {PurePosixPath(path).name for path, _ in report.links}
        refuse_vanished(before, present | named, source, store)
    if report.reader.task == "classification":
        refuse_one_class([*cases, *report.absent], source)
    # Missing cases may be behind a link that is not followed, or in content that was not fetched.
    unseen = sorted(before - present) if report.links and not prune else []
    unchanged = [*report.absent, *(Case(name, {}, Path(name)) for name in unseen)]
    clinical = Clinical()
    if report.reader.task == "segmentation":
        clinical = read_clinical(report.listing, [*cases, *unchanged])
    writer = make_writer(target, report.reader, {**clinical.facts, **_clinical_before(store, unseen)})
    units = writer.units(cases, max(1, available_cpus() // workers), [case.id for case in unchanged])
    notes = [*report.notes, *_inside(store, source), *_kept_unseen(unseen), *clinical.notes]
    return _Plan(writer, before, len(writer.rows), units, min(workers, len(units)), notes)


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
    report: SourceReport,
    strict: bool,
    progress: Progress | None,
) -> list[tuple[str, str]]:
    """Commit results as they arrive; return (case, reason) of all refused cases, including the report's."""
    failed: list[tuple[str, str]] = []
    uncertain: str | None = None
    done = len(writer.rows)
    total = len({case.id for case in report.cases} | writer.rows.keys())
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
            _check_source(result.failed[0], failed, report, strict)
        done += len(result.unit.cases)
        if progress:
            progress(done, total)
    return sorted([*report.failed, *failed, *_without_doubtful(writer, uncertain)])


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
    refused: tuple[str, str], failed: Sequence[tuple[str, str]], report: SourceReport, strict: bool
) -> None:
    """Raise ConversionError if a case was refused because the source is unavailable, or with `strict`."""
    case, reason = refused
    if lost := why_unreadable(report.cases, {name for name, _ in failed}):
        where = f"{report.listing.source} can no longer be read ({lost}), first at case {case}"
        raise ConversionError(f"{where}: is its disk or network share still mounted?")
    if strict:
        raise ConversionError(f"{reason} Stopped because of --strict.")


def _summary(
    store: Store, report: SourceReport, plan: _Plan, failed: list[tuple[str, str]], seconds: float
) -> PrepareSummary:
    rows = plan.writer.rows
    notes = [*plan.notes]
    parts: Counter[str] = Counter()
    clinical: dict[str, int] = {}
    duplicates = near = leaking = 0
    patients: list[str] = []
    if store.task == "segmentation":
        notes += assumptions(list(rows.values()))
        slices = int(store.shapes[:, 0].sum())
        shown = (store.label_counts[:, :, 1:] > 0).sum(axis=(0, 1)).tolist()
        classes = dict(zip(store.labels[1:], shown, strict=True))
        clinical = clinical_counts(store.clinical)
        if repeated := repeated_cases(store):
            notes.append(f"{describe_patients(len(store), repeated)}; splits keep each patient in one part.")
        notes += doubtful_joins(store)
    else:
        slices = len(store)
        classes = {name: int((store.label == i).sum()) for i, name in enumerate(store.classes)}
        parts.update(store.part.tolist())
        duplicates = slices - len(np.unique(store.identical))
        near = slices - len(np.unique(store.group)) - duplicates
        notes += [*differences_from_published(list(rows.values())), *disagreements(store)]
        test = store.part == "test"
        leaking = int(np.isin(store.group[test], store.group[~test]).sum())
        patients = list(filter(None, store.patients))
    after = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
    size = sum(int(row["bytes"]) for row in rows.values())
    stored = sorted({case for case, _ in failed} & rows.keys())
    return PrepareSummary(
        store.dataset, store.path, len(store), len(store) - plan.kept, plan.kept, len(plan.before - rows.keys()),
        failed, slices, classes, dict(parts), duplicates, near, leaking, len(patients), len(set(patients)), size, after,
        seconds, store.fingerprint, clinical, report.not_taken, stored, notes,
    )  # fmt: skip


def _clinical_before(store: Path, cases: Sequence[str]) -> dict[str, Any]:
    if not cases or not (read_about(store) or {}).get("complete"):
        return {}
    before = Store.open(store)
    if before.task == "classification":
        return {}
    return {name: facts for name, facts in zip(before.case_ids, before.clinical, strict=True) if name in cases}


def _stored_ids(store: Path) -> set[str]:
    if not (read_about(store) or {}).get("complete"):
        folder = store / "cases"
        return {entry.name for entry in folder.iterdir() if entry.is_dir()} if folder.is_dir() else set()
    try:
        return set(Store.open(store).case_ids)
    except DataError:
        return set()
