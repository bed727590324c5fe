"""TrainingJob: the small picklable callable that SLURM or the local queue runs as one rank.

`python -m hpc_tumor.cluster.node.job RUN` runs it as a rank of the local queue, with torchrun's variables.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

from hpc_tumor.cluster.node.local_queue import hand_over_gpu
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.console import log
from hpc_tumor.errors import Cause, ClusterError, HpcTumorError
from hpc_tumor.records import Failure
from hpc_tumor.run_dir import RunDir, read_json
from hpc_tumor.system.processes import end_with_parent
from hpc_tumor.system.resources import available_cpus
from hpc_tumor.training.watch.torch_errors import is_transient
from hpc_tumor.vocabulary import RunStatus

_LASTING_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS)


class StopFlag:
    """Received stop signals. The handlers only note them: the ranks agree after a step and save together."""

    def __init__(self, run: RunDir | None = None, start: int = 0) -> None:
        self._received: list[str] = []
        self._start = start
        self._run = run  # records the first signal: rank 0 only

    def install(self) -> None:
        """Handle USR2 (time limit, preemption), TERM (cancelled, or end of the grace time) and INT."""
        for name in ("USR2", "TERM", "INT"):
            signal.signal(signal.Signals[f"SIG{name}"], self._note)

    def __call__(self) -> str | None:
        """Return the signal to stop for, or None. TERM outranks USR2: a cancelled run is not requeued."""
        if not self._received:
            return None
        reason = next((name for name in self._received if name != "USR2"), "USR2")
        if self._run is not None:
            run, self._run = self._run, None
            with suppress(OSError):  # a full disk must not prevent the attempt to save a checkpoint
                run.add_event("signal", signal=reason, start=self._start)
        return reason

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._received.append(signal.Signals(number).name.removeprefix("SIG"))


class TrainingJob:
    """One rank of a run; it pickles as a path and imports torch only when called."""

    def __init__(self, run_path: Path) -> None:
        self.run_path = Path(run_path)

    def __call__(self) -> str:
        """Train and return "finished" or "stopped". Errors are recorded in the run directory and raised again.

        A hanging rank ends all ranks with exit code 1 about ten seconds after `hardware.timeout_minutes`, a dead one
        within seconds: srun and the local queue end the rest once one has failed.
        """
        run = RunDir(self.run_path)
        job = JobRecord.of_run(run)
        start = start_number(job)
        starts_ranks = under_slurm() and not job.together  # SLURM does, not the process that runs several runs
        if starts_ranks:
            os.environ.pop("RANK", None)  # inherited from the login: SLURM's variables count
        rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
        stop = StopFlag(run if rank == 0 else None, start)
        stop.install()
        try:
            if starts_ranks:
                _redirect_output(run.logs / f"rank-{rank}.{start}.out")
                _prepare_slurm(run, job)
            return _train(run, job, stop, RankFailure(run, start, rank), start)
        except Exception as error:
            RankFailure(run, start, rank).error(error)
            raise


def job_id_here() -> str:
    """Return the id of the SLURM job of this process as scontrol takes it: `42`, or `42_7` for an array task."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]


def start_number(job: JobRecord) -> int:
    """Return the number of this start of the run, counted from 0."""
    return job.start + (int(os.environ.get("SLURM_RESTART_COUNT") or 0) if under_slurm() else 0)


def under_slurm() -> bool:
    """Return True in a SLURM job of a run."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


class RankFailure:
    """Record why one rank failed, if the disk still allows it."""

    def __init__(self, run: RunDir, start: int, rank: int) -> None:
        self._run, self._start, self._rank = run, start, rank

    def error(self, error: Exception) -> None:
        """Record that this rank raised `error`; if it only reports a lost rank, record that rank as the cause."""
        from hpc_tumor.training.watch.watchdog import explain_loss

        lost = explain_loss(error)  # also gives the other rank time to record why it failed
        if lost:
            error.add_note(f"Cause: {lost.reason}")  # the traceback shows only its consequence
        self._write_traceback("".join(traceback.format_exception(error)))
        with suppress(OSError):
            record_failure(
                self._run, self._start, lost.rank if lost else self._rank, lost.reason if lost else _to_line(error),
                retry=lost is not None or _may_pass(error),
                expected=lost is None and isinstance(error, HpcTumorError),
                cause=error.cause if lost is None and isinstance(error, HpcTumorError) else None,
            )  # fmt: skip

    def hang(self, reason: str, culprit: int | None, stack: str) -> None:
        """Record that the watchdog ends this rank, which was at `stack`, because of the rank `culprit`."""
        self._write_traceback(f"{reason}\n\nrank {self._rank} was in\n{stack}")
        with suppress(OSError):
            record_failure(self._run, self._start, culprit, reason, retry=True)

    def _write_traceback(self, text: str) -> None:
        with suppress(OSError):
            (self._run.logs / f"rank-{self._rank}.{self._start}.error.txt").write_text(text, encoding="utf-8")


def record_failure(
    run: RunDir, start: int, rank: int | None, reason: str, *, overrule: bool = False, retry: bool = False,
    expected: bool = False, cause: Cause | None = None,
) -> None:  # fmt: skip
    """Record why this start of the run failed, as failure file, event and status; only the first rank's report counts.

    Later ranks mostly report that they lost the first one.

    Args:
        overrule: replace an earlier report; for observers outside the ranks.
        retry: another start may succeed.
        expected: the reason needs no traceback.
        cause: the failure's cause, for code to act on.
    """
    failure = Failure(rank=rank, reason=reason, retry=retry, expected=expected, cause=cause)
    try:
        handle = os.open(run.failure(start), os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if overrule else os.O_EXCL), 0o666)
    except FileExistsError:
        return
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(failure.model_dump_json())
    except OSError:  # full disk: an empty record would hide the cause
        run.failure(start).unlink(missing_ok=True)
        raise
    run.add_event("failed", reason=reason, rank=rank)
    set_failed(run)


def set_failed(run: RunDir) -> None:
    """Set the heartbeat's state to failed, keeping the progress in it."""
    status = read_json(run.status) or {}
    status.pop("time", None)
    run.write_status(**{**status, "state": RunStatus.FAILED})


def rendezvous(variables: Mapping[str, str], suffix: str = "") -> tuple[str, int]:
    """Return the rendezvous of a SLURM job's ranks: its first node, and a port derived from job id and restart count.

    The port is below 32768, where Linux's range for outgoing connections begins.
    """
    number = int(variables["SLURM_JOB_ID"]) * 7 + int(variables.get("SLURM_RESTART_COUNT") or 0) * 101
    port = 20_000 + number % 12_000
    if int(variables.get("SLURM_JOB_NUM_NODES") or 1) == 1:
        return "127.0.0.1", port
    nodes = variables["SLURM_JOB_NODELIST"]
    done = subprocess.run(
        ["scontrol", "show", "hostnames", nodes], capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode != 0 or not done.stdout.strip():
        raise ClusterError(f"scontrol cannot expand the node list {nodes!r}: {done.stderr.strip()}")
    return done.stdout.split()[0] + suffix, port


def _prepare_slurm(run: RunDir, job: JobRecord) -> None:
    for name in ("LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    if (cpus := os.environ.get("SLURM_CPUS_PER_TASK", "")).isdigit():
        os.environ.setdefault("OMP_NUM_THREADS", str(min(int(cpus), available_cpus())))
    suffix = job.profile.environment.master_suffix if job.profile else ""
    address, port = rendezvous(os.environ, suffix)
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    remove_half_result(run, job)


def remove_half_result(run: RunDir, job: JobRecord) -> None:
    """Remove what a start left that was killed while submitit wrote its result: submitit does not overwrite it."""
    leftover = f"{job_id_here()}_{os.environ.get('SLURM_PROCID', '0')}_result.pkl.save_tmp"
    (run.path.parent / job.folder if job.folder else run.submission).joinpath(leftover).unlink(missing_ok=True)


def _train(run: RunDir, job: JobRecord, stop: StopFlag, record: RankFailure, start: int) -> str:
    from hpc_tumor.data.feed.staging import stage_store
    from hpc_tumor.training.distributed import init_distributed
    from hpc_tumor.training.loop import train

    experiment = run.experiment()
    distributed = init_distributed(experiment.hardware.timeout_minutes, experiment.hardware.threads, record.hang)
    print(f"rank {distributed.rank} of {distributed.world_size} on {socket.gethostname()}, {distributed.device}")
    disk = job.profile.environment.node_disk if job.profile else None
    with stage_store(
        experiment.data.store, disk, log, leads=distributed.local_rank == 0, agree=distributed.any, stop=stop,
        patience=60 * experiment.hardware.timeout_minutes,
    ) as copy:  # fmt: skip
        released = partial(hand_over_gpu, run.path.parent, run.name)
        outcome = train(experiment, run, distributed, stop, start=start, read_from=copy, released=released)
    distributed.shutdown()
    return outcome


def _may_pass(error: Exception) -> bool:
    """Return True if the error may be transient: caused by the network, a disk or a device."""
    if isinstance(error, HpcTumorError | MemoryError):
        return False
    if isinstance(error, OSError):
        return error.errno not in _LASTING_ERRNOS
    return is_transient(error)


def _to_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    message = text if isinstance(error, HpcTumorError) else f"{type(error).__name__}: {text}"
    return message if len(message) <= 500 else f"{message[:500]} …"


def _redirect_output(path: Path) -> None:
    """Redirect stdout and stderr of this process to `path`, including what libraries write below Python."""
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def main(arguments: list[str]) -> int:
    """Run one rank on this machine; it ends when its parent process does."""
    end_with_parent(signal.SIGKILL, expected=os.environ.get("HPC_TUMOR_PARENT"))
    try:
        print(TrainingJob(Path(arguments[0]))())
    except HpcTumorError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception:
        with suppress(OSError):
            traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
