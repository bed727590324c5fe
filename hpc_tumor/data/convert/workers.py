"""Worker processes of a conversion on one machine.

`python -m hpc_tumor.data.convert.workers HANDLE` is one worker. It receives units and answers over a socket: semaphores
and shared memory may be unavailable, and a killed worker loses only its own unit.
"""

from __future__ import annotations

import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from hpc_tumor.data.convert.case import Unit, UnitResult, convert_unit
from hpc_tumor.data.convert.target import ConversionError, remove
from hpc_tumor.system.resources import available_cpus, available_memory
from hpc_tumor.system.worker_processes import ConnectedProcess, listen, portable

WORKER_BYTES = 350_000_000  # of a worker with a case of 240 × 240 × 155: peak of 234 MB, libraries included
MOST_KILLS = 3  # workers killed at a case before it is refused
_MORE_MEMORY = "convert it on a machine with more"
_END_SECONDS = 10.0  # for a worker to exit after it has closed its connection


def convert_locally(
    units: Iterable[Unit], workers: int, *, more_memory: str = _MORE_MEMORY, apart: bool = False
) -> Generator[UnitResult, None, None]:
    """Convert units lazily, one per worker at a time; yield results in the order of completion.

    One worker runs in this process unless `apart`; several are new processes, not forks, which could deadlock the
    threads of a store. The unit of a killed worker is retried alone after the others have finished; a case at which
    `MOST_KILLS` workers were killed is refused. `more_memory` is the advice if that was for lack of memory.

    Raises ConversionError if a result cannot be written, or workers cannot be started.
    """
    if workers <= 1 and not apart:
        yield from map(convert_unit, units)
        return
    team = _Team(iter(units), workers, more_memory)
    try:
        yield from team.results()
    finally:
        team.end()


def default_workers() -> int:
    """Return one worker per available CPU, limited by the available memory."""
    return max(1, min(available_cpus(), available_memory() // WORKER_BYTES))


@dataclass
class _Task:
    """A unit to convert, with the kills at each of its cases, and (case, reason) of those refused for too many."""

    unit: Unit
    kills: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def rest(self) -> Unit:
        """Return the unit without the refused cases."""
        refused = {case for case, _ in self.refused}
        return replace(self.unit, cases=[case for case in self.unit.cases if case.id not in refused])

    def result(self, rest: UnitResult) -> UnitResult:
        """Return the unit's result from that of its `rest`."""
        return replace(rest, unit=self.unit, failed=[*self.refused, *rest.failed])


class _Worker(ConnectedProcess):
    def __init__(self) -> None:
        super().__init__("hpc_tumor.data.convert.workers")
        self.task: _Task | None = None
        self.case: str | None = None  # the current one; None before the first

    def give(self, task: _Task) -> None:
        self.task = task
        self.send(task.rest())

    def ended(self) -> int:
        """Return the exit code of a process that has closed its connection; negative for a signal."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_SECONDS)
        return self.end()


class _Team:
    def __init__(self, units: Iterator[Unit], size: int, more_memory: str) -> None:
        self._units, self._size, self._more_memory = units, size, more_memory
        self._workers: list[_Worker] = []
        self._again: deque[_Task] = deque()  # to be retried alone, since workers were killed at them

    def results(self) -> Generator[UnitResult, None, None]:
        """See `convert_locally`."""
        while True:
            self._assign()
            busy = {worker.connection: worker for worker in self._workers if worker.task}
            if not busy:
                return
            results = [result for each in wait(list(busy)) if (result := self._answer(busy[each])) is not None]  # type: ignore[index]
            self._assign()  # before yielding, so that workers do not idle while results are committed
            yield from results

    def end(self) -> None:
        """End all workers, busy or not."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _assign(self) -> None:
        """Assign units to idle workers, and start new workers up to the limit."""
        at_work = [worker.task for worker in self._workers if worker.task]
        if self._again or any(task.kills for task in at_work):
            if not at_work:
                self.end()  # to free the memory of idle workers
                self._start(self._again.popleft())
            return
        for worker in self._workers:
            if worker.task is None and (unit := next(self._units, None)):
                worker.give(_Task(unit))
        while len(self._workers) < self._size and (unit := next(self._units, None)):
            self._start(_Task(unit))

    def _start(self, task: _Task) -> None:
        try:
            self._workers.append(worker := _Worker())
        except OSError as error:
            raise ConversionError(f"a worker process cannot be started: {error.strerror or error}.") from error
        worker.give(task)

    def _answer(self, worker: _Worker) -> UnitResult | None:
        """Receive a worker's message; return its result, or None if it is not finished."""
        task = worker.task
        assert task is not None
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            return self._lost(worker, task)
        if isinstance(answer, str):
            worker.case = answer
            return None
        if isinstance(answer, Exception):
            raise answer
        worker.task = None
        return task.result(answer)

    def _lost(self, worker: _Worker, task: _Task) -> UnitResult | None:
        """Queue the unit of a worker that ended for a retry; return its result if no case remains."""
        self._workers.remove(worker)
        code = worker.ended()
        if worker.case is None and code > 0:
            raise ConversionError(f"a worker process ended with exit code {code} at startup: see above.")
        remove(task.unit.staged)
        case = next((case for case in task.unit.cases if case.id == worker.case), task.rest().cases[0])
        task.kills[case.id] += 1
        if task.kills[case.id] == MOST_KILLS:
            task.refused.append((case.id, f"{case.folder} was not converted: {self._why(code)}"))
        if task.rest().cases:
            self._again.append(task)
            return None
        return task.result(UnitResult(task.unit, []))

    def _why(self, code: int) -> str:
        if code == -signal.SIGKILL:
            return f"{MOST_KILLS} processes were killed on it, most likely for lack of memory: {self._more_memory}."
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"{MOST_KILLS} processes ended on it {how}: one of its files may be damaged."


def main(handle: int) -> None:
    """Convert units and report each case before it is read, until the parent ends this process."""
    connection = Connection(handle)
    units: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(connection, units), daemon=True).start()
    while True:
        unit = units.get()
        try:
            if isinstance(unit, Exception):
                raise unit
            answer: UnitResult | Exception = convert_unit(unit, connection.send)
        except Exception as error:
            answer = portable(error)
        connection.send(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]))
