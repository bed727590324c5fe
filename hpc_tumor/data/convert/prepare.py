"""Raw → store: list, convert, commit, case by case; in parallel; to be stopped and gone on with at any moment."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hpc_tumor.data.case import Case, CaseReader, walk
from hpc_tumor.data.convert.assumptions import assumptions, differs, is_renamed
from hpc_tumor.data.convert.case import Unit, UnitResult
from hpc_tumor.data.convert.target import ConversionError, Target, disk_error, identity_of, open_target
from hpc_tumor.data.convert.vanished import refuse_lost, refuse_vanished, why_unreadable
from hpc_tumor.data.convert.workers import convert_locally, default_workers
from hpc_tumor.data.convert.writers import Writer, make_writer
from hpc_tumor.data.editions import EDITIONS, edition_of
from hpc_tumor.data.raw.brain_mri import refuse_one_class
from hpc_tumor.data.raw.clinical import Clinical, clinical_counts, read_clinical
from hpc_tumor.data.raw.leftovers import none_usable_error
from hpc_tumor.data.raw.sources import SourceReport, inspect_listing
from hpc_tumor.data.splits.units import describe_patients, disagreements, doubtful_joins, repeated_cases
from hpc_tumor.data.store.store import Store, read_about
from hpc_tumor.errors import DataError, UsageError
from hpc_tumor.system.resources import available_cpus

Progress = Callable[[int, int], None]  # cases done (kept ones too), and all
Convert = Callable[[Sequence[Unit]], Generator[UnitResult, None, None]]  # results in any order; closing it stops


@dataclass(frozen=True)
class PrepareSummary:
    """Outcome of a conversion, and the contents of the store after it.

    Attributes:
        cases: in the store: `converted` in this run plus `kept` from before; `removed` were in it and can no longer be
            found or read.
        failed: (case, reason) of each case that was refused.
        still_stored: those of them that stay in the store as they were, since their content is only absent now.
        slices: axial slices (BraTS) or images.
        classes: images per class (Brain MRI), or slices that show each label (BraTS).
        parts: images per published part; empty for BraTS.
        duplicates: images that repeat an earlier one of identical pixels.
        near_duplicates: further images that are nearly one that stands before them by path.
        leaking: published test images with a duplicate among the published training images, identical or nearly so.
        clinical: of how many cases grade, survival, age, resection are known, and how many patients were last seen
            alive; empty for Brain MRI.
        not_taken: number of files in the source that belong to no case, by kind.
        notes: those of the source, then on the tables beside the cases and on what was converted, a line each.
        bytes_before: of the source files of the cases in the store; `bytes_after`: of the store.
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
    """Convert what `source` holds into the store, or go on where an earlier conversion stopped.

    Cases whose files have not changed are kept, others converted, vanished ones removed. A case that cannot be read is
    listed in the summary, and the rest converted. Cases are committed one by one; a run that ends early, however it
    ends, leaves a store that says it is unfinished and that the same call completes.

    Args:
        workers: processes; absent: one per CPU of this process, as far as its memory goes, 350 MB each.
        overwrite: convert everything anew, also where the store is of another kind, schema or options.
        strict: stop at the first case that cannot be read, with its error.
        prune: remove vanished cases even where they are more than half of the store.
        convert: how units are converted; absent: by `workers` on this machine.
        report: on what `reader` finds in `source`, where it was listed already.

    Raises:
        DataError: no cases, none that can be read, a target that cannot or must not be written, a full disk, a source
            that went away, or most of the store's cases gone from it.
        UsageError: workers below 1.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: at least 1 process is needed.")
    began = time.perf_counter()
    source, store = Path(source), Path(store)
    report = report or inspect_listing(walk(source), reader)
    if strict and report.failed:
        raise DataError(f"{report.failed[0][1]} Stopped there, as --strict asks.")
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
    return _summary(Store.open(store), report, plan, failed, time.perf_counter() - began)


@dataclass(frozen=True)
class _Plan:
    """A conversion before its first case.

    Attributes:
        before: cases in the store that was there.
        kept: how many of them `writer` has already.
        units: what is to be converted, by so many `workers`.
        notes: on the source, and on the tables beside its cases.
    """

    writer: Writer
    before: set[str]
    kept: int
    units: Sequence[Unit]
    workers: int
    notes: Sequence[str]


def _plan(target: Target, report: SourceReport, workers: int, prune: bool) -> _Plan:
    """Find what is to be converted, and what of the store that was there is kept.

    `prune`: cases that cannot be found go. Raises DataError where most of the store's cases have vanished.
    """
    cases, source, store = report.cases, report.listing.source, target.path
    before = _ids(store)
    refused = set(report.failed) - set(report.links)  # links go by their paths, which may read like an id
    there = {case.id for case in (*cases, *report.absent)} | {case for case, _ in refused}
    if not prune:
        named = {PurePosixPath(path).name for path, _ in report.links}
        refuse_vanished(before, there | named, source, store)
    if report.reader.task == "classification":
        refuse_one_class([*cases, *report.absent], source)
    # What cannot be found may lie behind a link that is not followed, or in content that was not fetched.
    unseen = sorted(before - there) if report.links and not prune else []
    kept_as_they_are = [*report.absent, *(Case(name, {}, Path(name)) for name in unseen)]
    clinical = Clinical()
    if report.reader.task == "segmentation":
        clinical = read_clinical(report.listing, [*cases, *kept_as_they_are])
    # Nothing is known now of cases that cannot be seen: what was known of them stays.
    writer = make_writer(target, report.reader, {**clinical.facts, **_clinical_before(store, unseen)})
    units = writer.units(cases, max(1, available_cpus() // workers), [case.id for case in kept_as_they_are])
    notes = [*report.notes, *_inside(store, source), *_kept_unseen(unseen), *clinical.notes]
    return _Plan(writer, before, len(writer.rows), units, min(workers, len(units)), notes)


def _inside(store: Path, source: Path) -> list[str]:
    """A note on a store that is made in its own source."""
    if not store.resolve().is_relative_to(source.resolve()):
        return []
    return [f"the store {store} lies in its own source: whoever copies or removes the one takes the other along"]


def _kept_unseen(cases: Sequence[str]) -> list[str]:
    """A note on cases that cannot be found and are kept."""
    if not cases:
        return []
    behind = "behind what is linked and not followed, or not fetched"
    if len(cases) == 1:
        return [f"1 case of the store, {cases[0]}, cannot be found now and stays there: it may lie {behind}"]
    named = f"{len(cases):,} cases of the store, such as {cases[0]}, cannot be found now and stay there"
    return [f"{named}: they may lie {behind}"]


def _commit_all(
    writer: Writer,
    target: Target,
    results: Generator[UnitResult, None, None],
    report: SourceReport,
    strict: bool,
    progress: Progress | None,
) -> list[tuple[str, str]]:
    """Commit results as they come; gives (case, reason) of all that were refused, those of the report too."""
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
            _look_at_source(result.failed[0], failed, report, strict)
        done += len(result.unit.cases)
        if progress:
            progress(done, total)
    return sorted([*report.failed, *failed, *_without_doubtful(writer, uncertain)])


def _without_doubtful(writer: Writer, uncertain: str | None) -> list[tuple[str, str]]:
    """Take cases back that another case shows to be read in a meaning that may be wrong; gives (case, reason) of them.

    Case by case, a dataset with label 3 in some of its cases would be stored with two meanings. Doubtful are labels
    that were read by assumption, where a case whose name tells as little was refused (`uncertain` says why), and those
    read by the edition of a name, where names turn out to be of another edition than the labels.
    """
    doubtful = {}
    volumes = {name: row for name, row in writer.rows.items() if "label_counts" in row}
    renamed = next((name for name, row in volumes.items() if is_renamed(row)), None)
    for name, row in volumes.items():
        read, asked = EDITIONS[row["meta"]["labels"]], EDITIONS.get(row["meta"].get("labels_asked"))
        if uncertain is not None and row["meta"].get("labels_assumed"):
            doubtful[name] = f"its labels may not be those of {read.meaning}, since {uncertain}"
        elif renamed and asked and edition_of(name).edition == read and differs(row, read, asked):
            doubtful[name] = (
                f"by its name its labels are those of {read.meaning}, but {renamed} has others, as of --labels"
                f" {asked.meaning}. Give cases names that tell no edition, or convert them to a store of their own."
            )
    for name in doubtful:
        del writer.rows[name]
    return [(name, f"{name}: {reason}") for name, reason in doubtful.items()]


def _look_at_source(
    refused: tuple[str, str], failed: Sequence[tuple[str, str]], report: SourceReport, strict: bool
) -> None:
    """Raises ConversionError where a case was refused because the source went away, or where one is enough."""
    case, reason = refused
    if lost := why_unreadable(report.cases, {name for name, _ in failed}):
        where = f"{report.listing.source} cannot be read any more ({lost}), first noticed at {case}"
        raise ConversionError(f"{where}: is its disk or network mount there?")
    if strict:
        raise ConversionError(f"{reason} Stopped there, as --strict asks.")


def _summary(
    store: Store, report: SourceReport, plan: _Plan, failed: list[tuple[str, str]], seconds: float
) -> PrepareSummary:
    rows = plan.writer.rows
    notes = [*plan.notes]
    parts: Counter[str] = Counter()
    clinical: dict[str, int] = {}
    duplicates = near = leaking = 0
    if store.task == "segmentation":
        notes += assumptions(list(rows.values()))
        slices = int(store.shapes[:, 0].sum())
        shown = (store.label_counts[:, :, 1:] > 0).sum(axis=(0, 1)).tolist()
        classes = dict(zip(store.labels[1:], shown, strict=True))
        clinical = clinical_counts(store.clinical)
        if repeated := repeated_cases(store):
            notes.append(f"{describe_patients(len(store), repeated)}; a split keeps each patient on one side.")
        notes += doubtful_joins(store)
    else:
        slices = len(store)
        classes = {name: int((store.label == i).sum()) for i, name in enumerate(store.classes)}
        parts.update(store.part.tolist())
        duplicates = slices - len(np.unique(store.identical))
        near = slices - len(np.unique(store.group)) - duplicates
        notes += disagreements(store)
        test = store.part == "test"
        leaking = int(np.isin(store.group[test], store.group[~test]).sum())
    after = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
    size = sum(int(row["bytes"]) for row in rows.values())
    stored = sorted({case for case, _ in failed} & rows.keys())
    return PrepareSummary(
        store.dataset, store.path, len(store), len(store) - plan.kept, plan.kept, len(plan.before - rows.keys()),
        failed, slices, classes, dict(parts), duplicates, near, leaking, size, after, seconds, store.fingerprint,
        clinical, report.not_taken, stored, notes,
    )  # fmt: skip


def _clinical_before(store: Path, cases: Sequence[str]) -> dict[str, Any]:
    """Clinical facts of these cases in the store that was there."""
    if not cases or not (read_about(store) or {}).get("complete"):
        return {}
    before = Store.open(store)
    if before.task == "classification":
        return {}
    return {name: facts for name, facts in zip(before.case_ids, before.clinical, strict=True) if name in cases}


def _ids(store: Path) -> set[str]:
    """Cases in the store that was there before, finished or not."""
    if not (read_about(store) or {}).get("complete"):
        folder = store / "cases"
        return {entry.name for entry in folder.iterdir() if entry.is_dir()} if folder.is_dir() else set()
    try:
        return set(Store.open(store).case_ids)
    except DataError:
        return set()
