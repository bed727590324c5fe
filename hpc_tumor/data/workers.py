"""Worker processes of a conversion on one machine: as many as its CPUs and its memory allow."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing.connection import wait as wait_for_handles

from hpc_tumor.data.convert import Unit, UnitResult, convert_unit
from hpc_tumor.data.target import ConversionError
from hpc_tumor.resources import available_cpus, available_memory

WORKER_BYTES = 350_000_000  # of a worker with a case of 240 × 240 × 155: 234 MB at its peak, libraries included


def convert_here(units: Iterable[Unit], workers: int) -> Generator[UnitResult, None, None]:
    """Convert the units as they are asked for, at most two per worker ahead; results in the order they are ready.

    With one worker, in this process, else in fresh ones: a fork could hang the threads of a store.

    Raises ConversionError where a result cannot be written, or a worker was killed.
    """
    if workers <= 1:
        yield from map(convert_unit, units)
        return
    with ExitStack() as stack:
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        running: dict[Future[UnitResult], Unit] = {}
        waiting = iter(units)
        try:
            while True:
                while len(running) < 2 * workers and (unit := next(waiting, None)) is not None:
                    running[pool.submit(convert_unit, unit)] = unit
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    del running[future]
                    yield result
        except BrokenProcessPool as error:
            names = ", ".join(unit.cases[0].id for unit in list(running.values())[: 2 * workers])
            raise ConversionError(
                f"a worker process was killed, most likely for lack of memory, at one of {names}: use fewer --workers."
            ) from error


def default_workers() -> int:
    """One per CPU that this process may use, but no more than there is memory for."""
    return max(1, min(available_cpus(), available_memory() // WORKER_BYTES))


def _start_worker() -> None:
    """A worker leaves Ctrl-C to its parent, and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for_handles([sentinel])
    os._exit(1)
