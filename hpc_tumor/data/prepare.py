"""Raw → store: list, convert, commit, case by case; in parallel; to be stopped and gone on with at any moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_handles
from pathlib import Path

import numpy as np

from hpc_tumor.data.case import LABELS, CaseReader
from hpc_tumor.data.convert import Unit, UnitResult, convert_unit
from hpc_tumor.data.sources import READERS, SourceReport, detect_reader, inspect_source
from hpc_tumor.data.store import Store, read_about
from hpc_tumor.data.target import ConversionError, disk_error, identity_of, open_target
from hpc_tumor.data.writers import make_writer
from hpc_tumor.errors import DataError, UsageError

__all__ = ["READERS", "PrepareSummary", "SourceReport", "detect_reader", "inspect_source", "prepare_dataset"]

Progress = Callable[[int, int], None]  # cases done (kept ones too), and all


@dataclass(frozen=True)
class PrepareSummary:
    """What a conversion did, and what the store holds now.

    Attributes:
        cases: in the store: `converted` in this run plus `kept` from before; `removed` had vanished from the source.
        failed: (case, reason) of each case that was refused.
        slices: axial slices (BraTS) or images.
        classes: images per class (Brain MRI), or slices that show each label (BraTS).
        parts: images per published part; empty for BraTS.
        duplicates: images that repeat an earlier one of identical pixels.
        leaking: test images with a twin of identical pixels among the training images.
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
    leaking: int
    bytes_before: int
    bytes_after: int
    seconds: float
    fingerprint: str


def prepare_dataset(
    reader: CaseReader,
    source: Path,
    store: Path,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PrepareSummary:
    """Convert what `source` holds into the store, or go on where an earlier conversion stopped.

    Cases whose files have not changed are kept, others converted, vanished ones removed. A case that cannot be read is
    listed in the summary, and the rest converted. Cases are committed one by one; a run that ends early, however it
    ends, leaves a store that says it is unfinished and that the same call completes.

    Args:
        workers: processes; absent: one per CPU of this process. Memory grows with them, by some 500 MB each for BraTS.
        overwrite: convert everything anew, also where the store is of another kind, schema or options.

    Raises:
        DataError: no cases, none that can be read, a target that cannot or must not be written, or a full disk.
        UsageError: workers below 1.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: at least 1 process is needed.")
    began = time.perf_counter()
    store = Path(store)
    cases = reader.list_cases(Path(source))
    before = set(_ids(store))
    failed: list[tuple[str, str]] = []
    with open_target(store, identity_of(reader.name, reader.task, reader.options), overwrite=overwrite) as target:
        writer = make_writer(target, reader)
        count = workers or _cpus()
        units = writer.units(cases, max(1, _cpus() // count))
        kept = len(writer.rows)
        done = kept
        if progress:
            progress(done, len(cases))
        try:
            for result in _converted(units, count):
                failed += result.failed
                writer.commit(result)
                done += len(result.unit.cases)
                if progress:
                    progress(done, len(cases))
            if not writer.rows:
                raise DataError(_all_failed(source, failed))
            writer.finish({"refused": sorted(case for case, _ in failed)})
        except OSError as error:
            raise DataError(f"{disk_error(error, 'the converted cases', store)} {target.remains()}") from error
        except ConversionError as error:
            raise DataError(f"{error} {target.remains()}") from error
        rows = writer.rows
    return _summary(
        Store.open(store), sum(int(row["bytes"]) for row in rows.values()), failed=sorted(failed), kept=kept,
        removed=len(before - {case.id for case in cases}), seconds=time.perf_counter() - began,
    )  # fmt: skip


def _converted(units: Sequence[Unit], workers: int) -> Iterator[UnitResult]:
    """Convert the units, in this process where one is enough, else in fresh ones: a fork could hang TensorStore."""
    workers = min(workers, len(units))
    if workers <= 1:
        yield from map(convert_unit, units)
        return
    with ExitStack() as stack:
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        running: set[Future[UnitResult]] = set()
        waiting = iter(units)
        try:
            while True:
                while len(running) < 2 * workers and (unit := next(waiting, None)) is not None:
                    running.add(pool.submit(convert_unit, unit))
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        except BrokenProcessPool as error:
            raise ConversionError(
                "a worker process was killed, most likely for lack of memory: use fewer --workers."
            ) from error


def _start_worker() -> None:
    """A worker leaves Ctrl-C to its parent, and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for_handles([sentinel])
    os._exit(1)


def _summary(
    store: Store, bytes_before: int, *, failed: list[tuple[str, str]], kept: int, removed: int, seconds: float
) -> PrepareSummary:
    parts: Counter[str] = Counter()
    duplicates = leaking = 0
    if store.task == "segmentation":
        slices = int(store.shapes[:, 0].sum())
        shown = (store.label_counts[:, :, 1:] > 0).sum(axis=(0, 1)).tolist()
        classes = dict(zip(LABELS[1:], shown, strict=True))
    else:
        slices = len(store)
        classes = {name: int((store.label == i).sum()) for i, name in enumerate(store.classes)}
        parts.update(store.part.tolist())
        duplicates = slices - len(np.unique(store.group))
        test = store.part == "test"
        leaking = int(np.isin(store.group[test], store.group[~test]).sum())
    after = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
    return PrepareSummary(
        store.dataset, store.path, len(store), len(store) - kept, kept, removed, failed, slices, classes, dict(parts),
        duplicates, leaking, bytes_before, after, seconds, store.fingerprint,
    )  # fmt: skip


def _ids(store: Path) -> list[str]:
    """Cases of the finished store that was there before, if any."""
    if not (read_about(store) or {}).get("complete"):
        return []
    try:
        return Store.open(store).case_ids
    except DataError:
        return []


def _all_failed(source: Path, failed: Sequence[tuple[str, str]]) -> str:
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return f"no case of {source} can be used: {failed[0][1]}{more}"


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
