"""Functions called in processes: their results, and what happens to what is killed, fails, or loses its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hpc_tumor.system.processes import import_path
from hpc_tumor.system.worker_processes import WorkerProcesses


def collect(processes: WorkerProcesses, seconds: float = 60) -> list[object]:
    """Return all results, in the order of completion."""
    results, end = [], time.monotonic() + seconds
    while processes.pending:
        assert time.monotonic() < end
        results += processes.results(0.1)
    return results


@pytest.mark.parametrize("count", [0, 1, 3])
def test_every_call_is_answered_once(count: int) -> None:
    with WorkerProcesses(count) as processes:
        for number in range(20):
            processes.call(divmod, number, 3)
        assert sorted(collect(processes)) == [divmod(number, 3) for number in range(20)]  # type: ignore[type-var]
        assert processes.results(0.0) == []
        processes.call(os.getpid)
        assert (collect(processes) == [os.getpid()]) == (count == 0)


def test_nothing_heavy_is_imported_to_measure_a_case() -> None:
    code = (
        "import sys, hpc_tumor.training.scoring.cases, hpc_tumor.system.worker_processes; print('torch' in sys.modules)"
    )
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(import_path())}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=variables)
    assert done.stdout.strip() == "False"


def test_an_error_is_raised_here_with_its_traceback() -> None:
    with WorkerProcesses(1) as processes:
        processes.call(divmod, 1, 0)
        with pytest.raises(ZeroDivisionError) as raised:
            collect(processes)
    assert "function(*arguments)" in raised.value.__notes__[0]


def test_the_calls_of_a_killed_process_are_done_by_others() -> None:
    """The last one is killed, too: then this process does them itself."""
    with WorkerProcesses(2) as processes:
        for _ in range(2):
            processes.call(os.getpid)
        for pid in set(collect(processes)):
            os.kill(int(str(pid)), signal.SIGKILL)
        for number in range(6):
            processes.call(abs, -number)
        assert sorted(collect(processes)) == list(range(6))  # type: ignore[type-var]


def test_processes_end_when_they_are_closed_even_at_work() -> None:
    with WorkerProcesses(1) as processes:
        processes.call(os.getpid)
        (pid,) = collect(processes)
        processes.call(time.sleep, 600)
        processes.results(0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(int(str(pid)), 0)


PARENT = """
import os, time
from hpc_tumor.system.worker_processes import WorkerProcesses
processes = WorkerProcesses(1)
processes.call(os.getpid)
while not (found := processes.results(1.0)):
    pass
processes.call(time.sleep, 600)
processes.results(0.2)
print(found[0], flush=True)
time.sleep(600)
"""


def test_processes_end_with_their_parent_and_not_by_a_signal_to_the_job() -> None:
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(import_path())}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=variables)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    for signum in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        os.kill(pid, signum)
    time.sleep(0.2)
    assert not ended(pid)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20
    while not ended(pid):
        assert time.monotonic() < end
        time.sleep(0.05)
    parent.stdout.close()


def ended(pid: int) -> bool:
    """Return True for a process that is gone, or that nobody has waited for."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True
