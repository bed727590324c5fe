"""Run on this machine without SLURM: wait in the queue, start one process per rank, end them together."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from hpc_tumor.cluster.launch.snapshot import CODE_LOST, CODE_LOST_WORDS, running_archive, verified_python
from hpc_tumor.cluster.node.job import record_failure, set_failed
from hpc_tumor.cluster.node.local_queue import give_back, is_turn, share_of
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.errors import HpcTumorError, TrainingError
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system.gpu_memory import read_gpu_memory
from hpc_tumor.system.processes import end_with_parent
from hpc_tumor.system.resources import SHARE_VARIABLE, available_cpus, share_of_cpus

_TICK = 0.1  # seconds between polls of the ranks
_TURN_TICK = 0.5  # seconds between polls of the queue
_MEASURE_SECONDS = 10.0  # between two calls of nvidia-smi
_SECONDS_TO_SAVE = 60.0  # after a stop signal
_SECONDS_TO_END = 10.0  # after a rank failed


class LocalRun:
    """All ranks of one run on this machine, as a picklable callable; runs in its own session and survives logout."""

    def __init__(self, run_path: Path) -> None:
        self.run_path = Path(run_path)

    def __call__(self) -> str:
        """Wait for this run's turn, then train; return "finished", "stopped", "failed" or, while queued, "cancelled".

        The reason of a failure is recorded in the run directory, by the rank or here.
        """
        end_with_parent(signal.SIGTERM)
        run, signals = RunDir(self.run_path), Signals()
        try:
            runs, share = run.path.parent, share_of(run.path.parent, run.name)
            in_use = MemoryInUse(run.experiment().hardware.gpus) if share < 1 else lambda: 0.0
            while not is_turn(runs, run.name, in_use()):
                if signals.asked_to_end:
                    return "cancelled"
                time.sleep(_TURN_TICK)
            return "cancelled" if signals.asked_to_end else self._train(run, signals, share)
        except Exception as error:  # the ranks have recorded nothing
            message = str(error) if isinstance(error, HpcTumorError) else f"{type(error).__name__}: {error}"
            start = JobRecord.of_run(run).start
            with suppress(OSError):
                record_failure(run, start, None, " ".join(message.split()))
            raise
        finally:
            give_back(run.path.parent, run.name)

    def _train(self, run: RunDir, signals: Signals, share: float) -> str:
        try:
            Path.cwd()
        except OSError:  # removed while the run was queued; importing torch needs a current folder
            os.chdir(run.path)
        start, count = JobRecord.of_run(run).start, run.experiment().hardware.gpus
        ranks = _start_ranks(run, start, count, share)

        def record(rank: int, code: int) -> None:
            if signals.asked_to_end:
                return
            with suppress(OSError):  # retried below, once the other ranks have ended
                # A killed rank records nothing; the others' reports only say that they lost it.
                record_failure(run, start, rank, _describe(rank, code), overrule=code < 0)

        failed = watch_ranks(ranks, signals, record)
        if failed is not None and not signals.asked_to_end:
            record_failure(run, start, failed, _describe(failed, ranks[failed].returncode))
            set_failed(run)  # a rank may have written its heartbeat since
            return "failed"
        return "finished" if run.is_finished() else "stopped"


class MemoryInUse:
    """Share of the GPUs' memory that all programs use, by nvidia-smi; measured again only after some seconds."""

    def __init__(self, gpus: int) -> None:
        """Measure the first `gpus` GPUs, and return the largest share."""
        self._gpus, self._share, self._until = gpus, 0.0, 0.0

    def __call__(self) -> float:
        if time.monotonic() >= self._until:
            gpus = read_gpu_memory()[: self._gpus]
            self._share = max((gpu.used / gpu.total for gpu in gpus), default=0.0)
            self._until = time.monotonic() + _MEASURE_SECONDS
        return self._share


class Signals:
    """Signals received by this process, to be forwarded to the ranks."""

    def __init__(self) -> None:
        self.pending: list[signal.Signals] = []
        self.asked_to_end = False
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(signum, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.pending.append(signal.Signals(number))
        self.asked_to_end = True


def rank_variables(rank: int, count: int, port: int) -> dict[str, str]:
    """Return the variables that torchrun sets for one of `count` ranks; the visible GPUs are not changed."""
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return {name: str(value) for name, value in variables.items()}


def _start_ranks(run: RunDir, start: int, count: int, share: float) -> list[subprocess.Popen[bytes]]:
    port = _free_port()
    threads = str(max(1, share_of_cpus(available_cpus(), share) // count))
    code = running_archive()  # may have been damaged or removed while the run was queued
    python = [sys.executable, *(verified_python(code) if code else ())]
    ranks = []
    for rank in range(count):
        variables = {"OMP_NUM_THREADS": threads, **os.environ, **rank_variables(rank, count, port)}
        variables |= {"HPC_TUMOR_PARENT": str(os.getpid()), SHARE_VARIABLE: str(share)}
        with (run.logs / f"rank-{rank}.{start}.out").open("ab") as log:
            command = [*python, "-u", "-m", "hpc_tumor.cluster.node.job", str(run.path)]
            ranks.append(
                subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
            )
    return ranks


def watch_ranks(
    ranks: list[subprocess.Popen[bytes]], signals: Signals, record: Callable[[int, int], None]
) -> int | None:
    """Wait for all ranks, forwarding signals; return the first that failed, if any, after ending the rest within 10 s.

    `record` is called with the rank and its exit code at once, before the other ranks report that they lost it.
    """
    failed: int | None = None
    deadline = float("inf")
    while True:
        alive = None in [process.poll() for process in ranks]  # poll every rank: poll() sets its return code
        while signals.pending:
            _send(ranks, signals.pending.pop(0))
            deadline = min(deadline, time.monotonic() + _SECONDS_TO_SAVE)
        if failed is None:
            failed = _first_failed(ranks)
            if failed is not None:
                record(failed, ranks[failed].returncode)
                _send(ranks, signal.SIGTERM)
                deadline = min(deadline, time.monotonic() + _SECONDS_TO_END)
        if not alive:
            return failed
        if time.monotonic() > deadline:
            _send(ranks, signal.SIGKILL)
        time.sleep(_TICK)


def _first_failed(ranks: list[subprocess.Popen[bytes]]) -> int | None:
    failed = [rank for rank, process in enumerate(ranks) if process.returncode]
    killed = [rank for rank in failed if ranks[rank].returncode < 0]  # the other ranks fail as a consequence
    return next(iter(killed or failed), None)


def _send(ranks: list[subprocess.Popen[bytes]], signum: signal.Signals) -> None:
    for process in ranks:
        if process.poll() is None:
            process.send_signal(signum)


def _describe(rank: int, code: int) -> str:
    if code == -signal.SIGKILL:
        return f"rank {rank} was killed (SIGKILL): by a user, or by the system because memory ran out"
    if code == CODE_LOST:
        return f"rank {rank} did not start: {CODE_LOST_WORDS}"
    if code < 0:
        return f"rank {rank} was ended by {signal.Signals(-code).name}"
    return f"rank {rank} ended with exit code {code}"


def _free_port() -> int:
    """Return a free port below Linux's range for outgoing connections."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise TrainingError("no free port between 20000 and 32000 for the rendezvous of the ranks.")
