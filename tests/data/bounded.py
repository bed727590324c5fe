"""Reading of untrusted files in a process with limited memory and time, with its stderr captured."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import is_plain

ADDRESS_SPACE = 3 * 2**30  # bytes; including what libraries map
SECONDS = 10.0  # of the processor, for one file
WALL_SECONDS = 60  # seconds after which a read counts as hanging; the machine may be busy
NOISE = 48 * 2**20  # bytes by which the process grows for other reasons


@dataclass
class Tally:
    """Counts of refused and read mutants, and the faults of the others."""

    refused: int = 0
    read: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def mutants(self) -> int:
        return self.refused + self.read + len(self.failures)


class Watch:
    """Count the reads of one worker process."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - what reaches stderr, from C libraries too

    def read(self, name: str, read: Callable[[], Any], *, names: str | None, holds: int = 0) -> Any:
        """Return the result of `read`; None if it refuses or misbehaves, which is noted under `name`.

        Args:
            names: texts that a refusal must contain.
            holds: bytes that reading may take in addition to the noise.
        """
        os.ftruncate(self._errors.fileno(), 0)
        _forget_peak()
        before, began = _memory("VmRSS"), time.process_time()
        result = None
        try:
            with self._heard(), _alarm():
                result = read()
            fault = None
            self.tally.read += 1
        except DataError as error:
            fault = _faults(error, names)
            self.tally.refused += fault is None
        except BaseException as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            fault = f"{type(error).__name__}: {str(error)[:200]} ({Path(at.filename).name}:{at.lineno})"
        grown, spent = _memory("VmHWM") - before, time.process_time() - began
        said = os.pread(self._errors.fileno(), 200, 0)
        for bad, text in (
            (grown > holds + NOISE, f"took {grown:,} bytes, allowed are {holds + NOISE:,}"),
            (spent > SECONDS, f"took {spent:.0f} s"),
            (bool(said), f"wrote to stderr: {said!r}"),
        ):
            if bad and not fault:
                fault = text
                self.tally.read -= result is not None
        if fault:
            self.tally.failures.append(f"{name}: {fault}")
            return None
        return result

    def close(self) -> None:
        self._errors.close()

    def wrong(self, name: str, text: str) -> None:
        """Note that the result of reading `name` is wrong."""
        self.tally.read -= 1
        self.tally.failures.append(f"{name}: {text}")

    @contextmanager
    def _heard(self) -> Iterator[None]:
        stderr = os.dup(2)
        os.dup2(self._errors.fileno(), 2)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def run(task: Callable[..., None], *arguments: Any, least: int) -> None:
    """Run `task(watch, *arguments)` in the worker; it must read a minimum of mutants, without faults."""
    tally = in_worker(task, *arguments)
    assert not tally.failures, "\n".join([f"{len(tally.failures)} of {tally.mutants}:", *tally.failures[:40]])
    assert tally.mutants >= least
    assert min(tally.refused, tally.read) > least / 50, tally  # the fuzzer is neither too coarse nor too fine


def in_worker(task: Callable[..., None], *arguments: Any) -> Tally:
    """Run `task(watch, *arguments)` in a process limited to ADDRESS_SPACE; return its counts."""
    try:
        return _worker().submit(_run, task, arguments).result(timeout=500)
    except BrokenProcessPool:
        _worker.cache_clear()
        raise


@cache
def _worker() -> ProcessPoolExecutor:
    """Worker for all tests of a session: starting one takes longer than reading a thousand files."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _limit)


def _run(task: Callable[..., None], arguments: tuple[Any, ...]) -> Tally:
    watch = Watch()
    try:
        task(watch, *arguments)
    finally:
        watch.close()
    return watch.tally


def _limit() -> None:
    import numpy  # noqa: F401 - before the limit: its threads reserve addresses that they never touch

    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))


def _faults(error: DataError, names: str | None) -> str | None:
    text = str(error)
    if names is not None and names not in text:
        return f"the refusal does not name {names}: {text[:300]}"
    if not is_plain(text) or len(text) > 600:
        return f"the refusal is not one line of text: {text[:300]!r}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return f"refused only when memory had run out: {text[:300]}"
        cause = cause.__cause__ or cause.__context__
    return None


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError(f"nothing came of it in {WALL_SECONDS} s")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _forget_peak() -> None:
    """Reset VmHWM (proc(5)); where the system cannot, a peak counts for all later reads too."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _memory(name: str) -> int:
    """Return VmRSS or VmHWM in bytes; 0 if the system does not report it."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    line = next(line for line in text.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
