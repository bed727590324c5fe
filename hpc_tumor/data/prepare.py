"""Raw → store: list, convert, commit, case by case; in parallel; to be stopped and gone on with at any moment."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpc_tumor.data.assumptions import assumptions
from hpc_tumor.data.case import Case, CaseReader, walk
from hpc_tumor.data.clinical import Clinical, clinical_counts, read_clinical
from hpc_tumor.data.convert import Unit, UnitResult
from hpc_tumor.data.sources import READERS, SourceReport, detect_reader, inspect_source
from hpc_tumor.data.store import Store, read_about
from hpc_tumor.data.target import ConversionError, Target, disk_error, identity_of, open_target
from hpc_tumor.data.units import describe_patients, disagreements, repeated_cases
from hpc_tumor.data.vanished import refuse_lost, refuse_vanished, why_unreadable
from hpc_tumor.data.workers import convert_here, default_workers
from hpc_tumor.data.writers import Writer, make_writer
from hpc_tumor.errors import DataError, UsageError
from hpc_tumor.resources import available_cpus

__all__ = ["READERS", "PrepareSummary", "SourceReport", "detect_reader", "inspect_source", "prepare_dataset"]

Progress = Callable[[int, int], None]  # cases done (kept ones too), and all
Convert = Callable[[Sequence[Unit]], Generator[UnitResult, None, None]]  # results in any order; closing it stops


@dataclass(frozen=True)
class PrepareSummary:
    """What a conversion did, and what the store holds now.

    Attributes:
        cases: in the store: `converted` in this run plus `kept` from before; `removed` were in it and can no longer be
            found or read.
        failed: (case, reason) of each case that was refused.
        slices: axial slices (BraTS) or images.
        classes: images per class (Brain MRI), or slices that show each label (BraTS).
        parts: images per published part; empty for BraTS.
        duplicates: images that repeat an earlier one of identical pixels.
        near_duplicates: further images that are nearly one that stands before them by path.
        leaking: published test images with a duplicate among the published training images, identical or nearly so.
        clinical: of how many cases grade, survival, age, resection are known, and how many patients were last seen
            alive; empty for Brain MRI.
        notes: what was left out of the tables beside the cases, a line each.
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

    Raises:
        DataError: no cases, none that can be read, a target that cannot or must not be written, a full disk, a source
            that went away, or most of the store's cases gone from it.
        UsageError: workers below 1.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: at least 1 process is needed.")
    began = time.perf_counter()
    source, store = Path(source), Path(store)
    listing = walk(source)
    cases = reader.find(listing) or reader.list_cases(source)  # which says what it looked for
    clinical = read_clinical(listing, cases) if reader.task == "segmentation" else Clinical()
    with open_target(store, identity_of(reader.name, reader.task, reader.options), overwrite=overwrite) as target:
        try:
            before = _ids(store)
            if not (overwrite or prune):
                refuse_vanished(before, cases, source, store)
            writer = make_writer(target, reader, clinical.facts)
            count = workers or default_workers()
            units = writer.units(cases, max(1, available_cpus() // count))
            kept = len(writer.rows)
            with closing(convert(units) if convert else convert_here(units, min(count, len(units)))) as results:
                failed = _commit_all(writer, target, results, cases, source, strict, progress)
            if not writer.rows:
                raise DataError(_all_failed(source, failed))
            if not (overwrite or prune):
                refuse_lost(before, writer.rows, failed, store)
            writer.finish({"refused": sorted(case for case, _ in failed)})
        except OSError as error:
            raise DataError(f"{disk_error(error, 'its cases', store)} {target.remains()}") from error
        except ConversionError as error:
            raise DataError(f"{error} {target.remains()}") from error
        rows = writer.rows
    return _summary(
        Store.open(store), sum(int(row["bytes"]) for row in rows.values()), failed=sorted(failed), kept=kept,
        removed=len(before - set(rows)), seconds=time.perf_counter() - began,
        notes=[*clinical.notes, *(assumptions(list(rows.values())) if reader.task == "segmentation" else [])],
    )  # fmt: skip


def _commit_all(
    writer: Writer,
    target: Target,
    results: Generator[UnitResult, None, None],
    cases: Sequence[Case],
    source: Path,
    strict: bool,
    progress: Progress | None,
) -> list[tuple[str, str]]:
    """Commit results as they come; gives (case, reason) of those refused."""
    failed: list[tuple[str, str]] = []
    done = len(writer.rows)
    if progress:
        progress(done, len(cases))
    for result in results:
        try:
            writer.commit(result)
        except OSError as error:
            raise disk_error(error, result.unit.cases[0].id, target.path) from error
        failed += result.failed
        if result.failed:
            _look_at_source(result.failed, failed, cases, source, strict)
        done += len(result.unit.cases)
        if progress:
            progress(done, len(cases))
    return failed


def _look_at_source(
    new: Sequence[tuple[str, str]],
    failed: Sequence[tuple[str, str]],
    cases: Sequence[Case],
    source: Path,
    strict: bool,
) -> None:
    """Raises ConversionError where cases were refused because the source went away, or where one is enough."""
    case, reason = new[0]
    if lost := why_unreadable(cases, {name for name, _ in failed}):
        raise ConversionError(
            f"{source} cannot be read any more ({lost}), first noticed at {case}: is its disk or network mount there?"
        )
    if strict:
        raise ConversionError(f"{reason} Stopped there, as --strict asks.")


def _summary(
    store: Store,
    bytes_before: int,
    *,
    failed: list[tuple[str, str]],
    kept: int,
    removed: int,
    seconds: float,
    notes: list[str],
) -> PrepareSummary:
    parts: Counter[str] = Counter()
    clinical: dict[str, int] = {}
    duplicates = near = leaking = 0
    if store.task == "segmentation":
        slices = int(store.shapes[:, 0].sum())
        shown = (store.label_counts[:, :, 1:] > 0).sum(axis=(0, 1)).tolist()
        classes = dict(zip(store.labels[1:], shown, strict=True))
        clinical = clinical_counts(store.clinical)
        if repeated := repeated_cases(store):
            notes = [*notes, f"{describe_patients(len(store), repeated)}; a split keeps each patient on one side."]
    else:
        slices = len(store)
        classes = {name: int((store.label == i).sum()) for i, name in enumerate(store.classes)}
        parts.update(store.part.tolist())
        duplicates = slices - len(np.unique(store.identical))
        near = slices - len(np.unique(store.group)) - duplicates
        notes = [*notes, *disagreements(store)]
        test = store.part == "test"
        leaking = int(np.isin(store.group[test], store.group[~test]).sum())
    after = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
    return PrepareSummary(
        store.dataset, store.path, len(store), len(store) - kept, kept, removed, failed, slices, classes, dict(parts),
        duplicates, near, leaking, bytes_before, after, seconds, store.fingerprint, clinical, notes,
    )  # fmt: skip


def _ids(store: Path) -> set[str]:
    """Cases in the store that was there before, finished or not."""
    if not (read_about(store) or {}).get("complete"):
        folder = store / "cases"
        return {entry.name for entry in folder.iterdir() if entry.is_dir()} if folder.is_dir() else set()
    try:
        return set(Store.open(store).case_ids)
    except DataError:
        return set()


def _all_failed(source: Path, failed: Sequence[tuple[str, str]]) -> str:
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return f"no case of {source} can be used: {failed[0][1]}{more}"
