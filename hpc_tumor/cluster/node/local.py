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
from hpc_tumor.cluster.node.job import record_failure, set_failed, start_number, under_slurm
from hpc_tumor.cluster.node.local_queue import give_back, is_turn, share_of
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.errors import HpcTumorError, TrainingError
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system.gpu_memory import read_gpu_memory
from hpc_tumor.system.processes import end_with_parent
from hpc_tumor.system.resources import SHARE_VARIABLE, available_cpus, share_of_cpus

TICK = 0.1  # seconds between polls of the ranks
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
        started = StartedRun(run, signals, share)
        while started.is_alive():
            while signals.pending:
                started.send(signals.pending.pop(0))
            time.sleep(TICK)
        return started.outcome()


class StartedRun:
    """A run whose ranks this process has started on this machine; they end together."""

    def __init__(
        self, run: RunDir, signals: Signals, share: float = 1.0, seconds_to_save: float = _SECONDS_TO_SAVE
    ) -> None:
        """Start the ranks, with this share of the GPUs, CPUs and memory; `signals` are those of this process."""
        self.run, self._signals, self._told_to_end = run, signals, False
        self._start = start_number(JobRecord.of_run(run))
        self._ranks = _start_ranks(run, self._start, run.experiment().hardware.gpus, share)
        self._group = RankGroup(self._ranks, self._record, seconds_to_save)

    def send(self, signum: signal.Signals) -> None:
        """Forward a signal that asks the run to end; after some time to save a checkpoint, its ranks are killed."""
        self._told_to_end = True
        self._group.send(signum)

    def is_alive(self) -> bool:
        """Return True while a rank is alive. Call it often: it ends the others once one has failed."""
        return self._group.poll()

    def outcome(self) -> str:
        """Return "finished", "stopped" or "failed" once all ranks have ended, with the failure recorded."""
        failed = self._group.failed
        if failed is not None and not self._is_to_end:
            self._describe_failure(failed, self._ranks[failed].returncode)
            set_failed(self.run)  # a rank may have written its heartbeat since
            return "failed"
        return "finished" if self.run.is_finished() else "stopped"

    @property
    def _is_to_end(self) -> bool:
        return self._told_to_end or self._signals.asked_to_end

    def _record(self, rank: int, code: int) -> None:
        if self._is_to_end:
            return
        with suppress(OSError):  # retried by `outcome`, once the other ranks have ended
            # A killed rank records nothing; the others' reports only say that they lost it.
            self._describe_failure(rank, code, overrule=code < 0)

    def _describe_failure(self, rank: int, code: int, overrule: bool = False) -> None:
        # Under SLURM, the batch script decides whether to start it again.
        retry = code < 0 and under_slurm()
        record_failure(self.run, self._start, rank, _describe(rank, code), overrule=overrule, retry=retry)


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


class RankGroup:
    """Processes of the ranks of a run. Once one has failed, the rest are ended within 10 s."""

    def __init__(
        self,
        ranks: list[subprocess.Popen[bytes]],
        record: Callable[[int, int], None],
        seconds_to_save: float = _SECONDS_TO_SAVE,
    ) -> None:
        """Watch the ranks. `record` is called with the rank that failed first and its exit code.

        It is called at once, before the other ranks report that they lost it.
        """
        self.failed: int | None = None
        self._ranks, self._record, self._seconds_to_save = ranks, record, seconds_to_save
        self._deadline = float("inf")

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to all ranks, and kill those that do not end in time."""
        _send(self._ranks, signum)
        self._deadline = min(self._deadline, time.monotonic() + self._seconds_to_save)

    def poll(self) -> bool:
        """Return True while a rank is alive; to be called often."""
        alive = None in [process.poll() for process in self._ranks]  # poll every rank: poll() sets its return code
        if self.failed is None:
            self.failed = _first_failed(self._ranks)
            if self.failed is not None:
                self._record(self.failed, self._ranks[self.failed].returncode)
                _send(self._ranks, signal.SIGTERM)
                self._deadline = min(self._deadline, time.monotonic() + _SECONDS_TO_END)
        if alive and time.monotonic() > self._deadline:
            _send(self._ranks, signal.SIGKILL)
        return alive


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
