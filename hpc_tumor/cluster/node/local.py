"""A run on this machine without SLURM: wait for its turn, start one process per rank, end them together."""

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
from hpc_tumor.cluster.node.local_queue import give_back, is_turn
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.errors import HpcTumorError, TrainingError
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system.processes import end_with_parent
from hpc_tumor.system.resources import available_cpus

_TICK = 0.1  # seconds between two looks at the ranks
_TURN_TICK = 0.5  # and between two looks at the queue
_SECONDS_TO_SAVE = 60.0  # for ranks that were asked to stop
_SECONDS_TO_END = 10.0  # for ranks that lost one of them


class LocalRun:
    """All ranks of one run on this machine, to be pickled. It runs in a session of its own, and survives logout."""

    def __init__(self, run_path: Path) -> None:
        self.run_path = Path(run_path)

    def __call__(self) -> str:
        """Wait for this run's turn, then train: "finished", "stopped", "failed", or "cancelled" while it waited.

        Why it failed is recorded in the run directory, by the rank itself or here.
        """
        end_with_parent(signal.SIGTERM)
        run, signals = RunDir(self.run_path), Signals()
        try:
            while not is_turn(run.path.parent, run.name):
                if signals.asked_to_end:
                    return "cancelled"
                time.sleep(_TURN_TICK)
            return "cancelled" if signals.asked_to_end else self._train(run, signals)
        except Exception as error:  # before the ranks could say anything
            message = str(error) if isinstance(error, HpcTumorError) else f"{type(error).__name__}: {error}"
            start = JobRecord.of_run(run).start
            with suppress(OSError):
                record_failure(run, start, None, " ".join(message.split()))
            raise
        finally:
            give_back(run.path.parent, run.name)

    def _train(self, run: RunDir, signals: Signals) -> str:
        try:
            Path.cwd()
        except OSError:  # it was removed while this run waited for its turn, and torch cannot be loaded from nowhere
            os.chdir(run.path)
        start, count = JobRecord.of_run(run).start, run.experiment().hardware.gpus
        ranks = _start_ranks(run, start, count)

        def record(rank: int, code: int) -> None:
            if signals.asked_to_end:
                return
            with suppress(OSError):  # the other ranks are to be ended first; it is tried again below
                # A rank that was killed could not say so; what the others said is that they lost it.
                record_failure(run, start, rank, _describe(rank, code), overrule=code < 0)

        failed = watch_ranks(ranks, signals, record)
        if failed is not None and not signals.asked_to_end:
            record_failure(run, start, failed, _describe(failed, ranks[failed].returncode))
            set_failed(run)  # a rank that was still at work may have written its heartbeat since
            return "failed"
        return "finished" if run.is_finished() else "stopped"


class Signals:
    """Signals that came to this process and are to be passed on to the ranks."""

    def __init__(self) -> None:
        self.pending: list[signal.Signals] = []
        self.asked_to_end = False
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(signum, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.pending.append(signal.Signals(number))
        self.asked_to_end = True


def rank_variables(rank: int, count: int, port: int) -> dict[str, str]:
    """Variables as torchrun sets them for one of `count` ranks here; which GPUs are seen is left as it is."""
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return {name: str(value) for name, value in variables.items()}


def _start_ranks(run: RunDir, start: int, count: int) -> list[subprocess.Popen[bytes]]:
    port = _free_port()
    threads = str(max(1, available_cpus() // count))
    code = running_archive()  # which may have been damaged or removed while this run waited for its turn
    python = [sys.executable, *(verified_python(code) if code else ())]
    ranks = []
    for rank in range(count):
        variables = {"OMP_NUM_THREADS": threads, **os.environ, **rank_variables(rank, count, port)}
        variables["HPC_TUMOR_PARENT"] = str(os.getpid())
        with (run.logs / f"rank-{rank}.{start}.out").open("ab") as log:
            command = [*python, "-u", "-m", "hpc_tumor.cluster.node.job", str(run.path)]
            ranks.append(
                subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
            )
    return ranks


def watch_ranks(
    ranks: list[subprocess.Popen[bytes]], signals: Signals, record: Callable[[int, int], None]
) -> int | None:
    """Wait for all ranks; the first that failed, if any. It ends the rest, and signals are passed on to all.

    The failure goes to `record`, as rank and exit code, at once: before the others, which notice that they lost that
    rank, can say so. They end within 10 s.
    """
    failed: int | None = None
    deadline = float("inf")
    while True:
        alive = None in [process.poll() for process in ranks]  # each is asked: that is how its end is noticed
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
    killed = [rank for rank in failed if ranks[rank].returncode < 0]  # the others fail because they lose this one
    return next(iter(killed or failed), None)


def _send(ranks: list[subprocess.Popen[bytes]], signum: signal.Signals) -> None:
    for process in ranks:
        if process.poll() is None:
            process.send_signal(signum)


def _describe(rank: int, code: int) -> str:
    if code == -signal.SIGKILL:
        return f"rank {rank} was killed (SIGKILL): by hand, or by the system because memory ran out"
    if code == CODE_LOST:
        return f"rank {rank} did not start: {CODE_LOST_WORDS}"
    if code < 0:
        return f"rank {rank} was ended by {signal.Signals(-code).name}"
    return f"rank {rank} ended with exit code {code}"


def _free_port() -> int:
    """A port below those that Linux hands out to outgoing connections."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise TrainingError("no free port between 20000 and 32000 for the ranks to meet at.")
