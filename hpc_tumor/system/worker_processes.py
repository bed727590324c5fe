"""Processes that call functions beside this one, whose interpreter stays free to keep a GPU busy.

`python -m hpc_tumor.system.worker_processes HANDLE` is one of them. Functions and results travel over a socket, as
semaphores and shared memory may be unavailable. A process imports only what its functions need, and ends with its
parent, however that ends.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from types import TracebackType
from typing import Any

from hpc_tumor.system.processes import module_command, start_process

_AHEAD = 2  # calls that a process has received and not answered: the next one is there when it has done one
_NICENESS = 5  # the processes give way to the one that feeds the GPU, and to other runs

Call = tuple[Callable[..., Any], tuple[Any, ...]]


class WorkerProcesses:
    """Processes that share calls of functions, which must be importable and change nothing here."""

    def __init__(self, count: int) -> None:
        """Start `count` processes; with 0, or once all were killed, `results` calls the functions in this one."""
        self._workers: list[_Worker] = []
        self._waiting: deque[Call] = deque()
        self._results: list[Any] = []
        with suppress(OSError):  # no memory or no process left: fewer, or this one alone
            for _ in range(count):
                self._workers.append(_Worker())

    def __enter__(self) -> WorkerProcesses:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Queue a call, without waiting for it."""
        self._waiting.append((function, arguments))
        self._exchange(0.0)

    @property
    def pending(self) -> int:
        """Number of calls whose results were not returned yet."""
        return len(self._waiting) + sum(len(worker.calls) for worker in self._workers) + len(self._results)

    def results(self, seconds: float) -> list[Any]:
        """Return new results in the order of completion; wait at most so many seconds for the first.

        Raises the error of a call.
        """
        if self._waiting and not self._workers:
            function, arguments = self._waiting.popleft()
            self._results.append(function(*arguments))
        elif self.pending > len(self._results):
            self._exchange(0.0 if self._results else seconds)
        results, self._results = self._results, []
        return results

    def close(self) -> None:
        """End the processes, busy or not."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _exchange(self, seconds: float) -> None:
        self._assign()
        waited = {worker.connection: worker for worker in self._workers if worker.calls or not worker.ready}
        for connection in wait(list(waited), seconds):
            self._receive(waited[connection])  # type: ignore[index]
        self._assign()

    def _assign(self) -> None:
        for number in range(_AHEAD):
            for worker in self._workers:
                if self._waiting and worker.ready and len(worker.calls) <= number:
                    worker.give(self._waiting.popleft())

    def _receive(self, worker: _Worker) -> None:
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):  # killed, as for lack of memory: others do its work
            self._workers.remove(worker)
            worker.end()
            self._waiting.extendleft(reversed(worker.calls))
            return
        if not worker.ready:
            worker.ready = True
            return
        worker.calls.popleft()
        if isinstance(answer, Exception):
            raise answer
        self._results.append(answer)


class ConnectedProcess:
    """Process of a module that is run with the handle of a socket, whose other end is `connection`."""

    def __init__(self, module: str) -> None:
        self.connection, theirs = Pipe()
        handle = theirs.fileno()
        # In a new process group: Ctrl-C reaches only the parent. Output of libraries goes to stderr.
        self.process = start_process(
            module_command(module, str(handle)), stdin=subprocess.DEVNULL, stdout=2, pass_fds=(handle,),
            process_group=0,
        )  # fmt: skip
        theirs.close()

    def send(self, value: Any) -> None:
        """Send a value; a process that has ended is noticed when its answer is read."""
        with suppress(OSError):
            self.connection.send(value)

    def end(self) -> int:
        """End the process, busy or not; return its exit code, negative for a signal."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


class _Worker(ConnectedProcess):
    """One process. It is given calls only once it is `ready`, as it would not empty the socket before."""

    def __init__(self) -> None:
        super().__init__("hpc_tumor.system.worker_processes")
        self.ready = False
        self.calls: deque[Call] = deque()

    def give(self, call: Call) -> None:
        self.calls.append(call)
        self.send(call)


def listen(connection: Connection, received: queue.SimpleQueue[Any]) -> None:
    """Put what the parent sends into a queue, and exit when the parent ends, even during a call."""
    while True:
        try:
            received.put(connection.recv())
        except (EOFError, OSError):
            os._exit(1)
        except Exception as error:  # a module that cannot be imported here
            received.put(error)


def portable(error: Exception) -> Exception:
    """Return the error in a form that can be pickled, with its traceback as a note."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def main(handle: int) -> None:
    """Answer calls until the parent ends this process; signals to a whole job are for the parent."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    os.nice(_NICENESS)
    connection = Connection(handle)
    calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(connection, calls), daemon=True).start()
    connection.send(None)
    while True:
        call = calls.get()
        try:
            if isinstance(call, Exception):
                raise call
            function, arguments = call
            answer = function(*arguments)
        except Exception as error:
            answer = portable(error)
        connection.send(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]))
