"""Run prepare-data on a cluster: a job array converts, and the waiting command commits.

The tasks write their results to the store's staging folder, which all nodes must see. Only the command writes to the
store, as with workers on one machine, so the store is identical byte for byte.
"""

from __future__ import annotations

import secrets
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hpc_tumor.cluster import slurm
from hpc_tumor.cluster.convert.task import MORE_MEMORY
from hpc_tumor.cluster.convert.work_queue import WorkQueue
from hpc_tumor.cluster.describe.profiles import LOCAL, find_profile
from hpc_tumor.cluster.launch.sbatch import require_sbatch, submit_script
from hpc_tumor.cluster.launch.script import log_folder, sbatch_options, setup_lines
from hpc_tumor.cluster.plan.plan import Plan, make_plan, refuse_options
from hpc_tumor.cluster.slurm import SlurmJob
from hpc_tumor.config import ClusterProfile
from hpc_tumor.data.convert.case import Unit, UnitResult
from hpc_tumor.data.convert.prepare import Convert
from hpc_tumor.data.convert.target import ConversionError
from hpc_tumor.errors import ClusterError, UsageError
from hpc_tumor.signals import held
from hpc_tumor.vocabulary import counted, hours

CPUS, GB_PER_CPU = 4, 1.0  # per task; a worker needs a third of a GB for a patient
MAX_ARRAY_TASKS = 16  # by default
MOST_LOSSES = 3  # lost tasks after which their unit is given up
LOOK_SECONDS = 2.0  # at most, between two polls of the results
_END_SECONDS = 60.0  # for the tasks to end
Say = Callable[[str], None]


def conversion_on(
    cluster: str | None,
    tasks: int | None,
    say: Say,
    *,
    account: str | None = None,
    partition: str | None = None,
    walltime: str | None = None,
    memory_gb: float | None = None,
) -> Convert | None:
    """Return a converter for `prepare_dataset` that runs array tasks on a cluster; None for this machine.

    Raises:
        UsageError: unknown profile, or the request exceeds the cluster's limits.
        ClusterError: SLURM is not available.
    """
    if cluster is None or cluster == LOCAL:
        refuse_options(
            "cases are converted on this machine", walltime=walltime, memory_gb=memory_gb, account=account,
            partition=partition,
        )  # fmt: skip
        return None
    profile = find_profile(cluster)
    cpus = min(CPUS, profile.node.cpus, max(1, int(profile.node.memory_gb / GB_PER_CPU)))
    memory = min(cpus * GB_PER_CPU, profile.node.memory_gb) if memory_gb is None else memory_gb
    options = {"account": account, "partition": partition, "walltime": walltime}
    planned = make_plan(profile, 1, cpus=cpus, memory_gb=memory, **options)  # type: ignore[arg-type]
    plan = replace(planned, gpus_per_node=0)
    if plan.total is not None:
        raise UsageError(f"--time {walltime} is longer than {profile.name} allows: at most {hours(plan.walltime)}.")
    most = profile.limits.queued_jobs
    if tasks is not None and (tasks < 1 or (most is not None and tasks > most)):
        limit = f" {profile.name} allows at most {most} queued jobs per user." if most else ""
        raise UsageError(f"--workers {tasks}: give the number of array tasks, at least 1.{limit}")
    require_sbatch(profile, "leave out --cluster")
    count = tasks or min(MAX_ARRAY_TASKS, profile.limits.running_jobs or MAX_ARRAY_TASKS, most or MAX_ARRAY_TASKS)

    def convert(units: Sequence[Unit]) -> Generator[UnitResult, None, None]:
        if units:
            yield from _Conversion(profile, plan, count, units, say).results()

    return convert


class _Conversion:
    """A conversion by array jobs: usually one; others convert what was lost with its tasks."""

    def __init__(self, profile: ClusterProfile, plan: Plan, tasks: int, units: Sequence[Unit], say: Say):
        self.profile, self.plan, self.tasks, self.units, self.say = profile, plan, tasks, units, say
        self.work = WorkQueue.create(units[0].staged.parent.absolute() / "array", units)
        self.open = set(range(len(units)))
        self.losses: Counter[int] = Counter()
        self.job: str | None = None
        self.count = 0  # tasks of that job
        self.pace = slurm.Pace()
        self.made_progress = True  # of the latest array: if it did nothing, another one would not either
        self.shown: set[str] = set()

    def results(self) -> Generator[UnitResult, None, None]:
        """Yield results as they arrive. No task outlives the generator.

        Raises:
            ClusterError: SLURM refused the job, or all tasks ended without converting anything.
            ConversionError: a task could not write its results.
        """
        pause = 0.1
        try:
            self._submit()
            while self.open:
                self.work.beat()
                results = list(self._new_results())
                yield from results
                pause = 0.1 if results else min(1.5 * pause, LOOK_SECONDS)
                if self.open and not results and self.pace.is_due():
                    yield from self._check_tasks()
                if self.open:
                    time.sleep(pause)
        finally:
            self._end()

    def _new_results(self) -> Generator[UnitResult, None, None]:
        for number, result in self.work.results(self.units):
            if number in self.open:
                self.open.discard(number)
                self.made_progress = True
                yield result

    def _check_tasks(self) -> Generator[UnitResult, None, None]:
        """Reassign the units of lost tasks, and submit another array if no task is left."""
        owners = self.work.owners()  # before the queue is read, so that every owner was alive then
        records = slurm.read_queue([self.job] if self.job else [])
        self.pace.done()
        failures = self.work.failures()
        if fatal := [failure["reason"] for failure in failures.values() if failure["fatal"]]:
            raise ConversionError(fatal[0])
        if records is None:
            self._say_once("SLURM does not answer: still waiting for results (Ctrl-C to interrupt)")
            return
        yield from self._new_results()
        running = {name for name, record in records.items() if record.state in slurm.ALIVE}
        for number, owner in owners.items():
            if number in self.open and owner.partition(".")[0] not in running:
                record, failure = records.get(owner.partition(".")[0]), failures.get(owner)
                reason = failure["reason"] if failure else _describe_end(record)
                self.made_progress = self.made_progress or failure is None
                yield from self._reassign(number, owner, reason)
        if not any(map(slurm.is_alive, records.values())):
            yield from self._new_results()
            if self.open:
                self._submit_again(records)
        elif not running:
            self._say_pending(records)

    def _reassign(self, number: int, owner: str, reason: str) -> Generator[UnitResult, None, None]:
        """Let another task take the unit of a lost task, or give it up."""
        self._say_once(f"task {owner.partition('.')[0]} was lost ({reason.rstrip('.')}): other tasks take its cases")
        self.losses[number] += 1
        if self.losses[number] < MOST_LOSSES:
            self.work.put_back(number, owner)
            return
        self.open.discard(number)
        self.work.finish(number)
        unit = self.units[number]
        message = f"was not converted: {MOST_LOSSES} tasks were lost with it, the last one: {reason}"
        yield UnitResult(unit, [], [(case.id, f"{case.folder} {message}") for case in unit.cases])

    def _submit_again(self, records: dict[str, SlurmJob]) -> None:
        if any(record.state == "CANCELLED" for record in records.values()):
            raise ConversionError(f"array job {self.job} was cancelled.")
        if not self.made_progress:
            reasons = [failure["reason"] for failure in self.work.failures().values()]
            states = ", ".join(sorted({record.state for record in records.values()}))
            reason = reasons[-1] if reasons else self.work.last_line() or f"state {states or 'unknown'}"
            raise ClusterError(f"the tasks of array job {self.job} ended without converting anything: {reason}")
        self._submit()

    def _say_pending(self, records: dict[str, SlurmJob]) -> None:
        reasons = {slurm.explain(r.reason, r.job_id) for r in records.values() if r.state in slurm.WAITING and r.reason}
        if reasons:
            self._say_once(f"array job {self.job} is queued: {'; '.join(sorted(reasons))}")

    def _say_once(self, line: str) -> None:
        if line not in self.shown:
            self.shown.add(line)
            self.say(line)

    def _submit(self) -> None:
        self.count = tasks = min(self.tasks, len(self.open))
        folder, profile, name = self.work.path, self.profile, f"hpc-tumor-prepare-{secrets.token_hex(4)}"
        log_folder(folder.parents[1], "Rename it.")
        output, array = f"{log_folder(folder)}/logs/%a.out", f"0-{tasks - 1}"
        options = sbatch_options(name, profile, self.plan, output, requeue=profile.slurm.requeue, array=array)
        with held():
            self.job = submit_script(_script(profile, folder), name, profile, self.plan, *options)
        self.pace.done()  # it cannot have started yet
        self.made_progress = False
        self.say(
            f"array job {self.job} on {self.profile.name}: {counted(tasks, 'task')} of {self.plan.cpus_per_task} CPUs,"
            f" {self.plan.memory_gb:g} GB, at most {hours(self.plan.walltime)}"
        )

    def _end(self) -> None:
        """Wait until all tasks have ended, cancelling them if needed: the staging folder is removed next."""
        if self.job is None:
            return
        if self.open or len(self.work.begun(self.job)) < self.count:
            with suppress(ClusterError):
                slurm.cancel_job(self.job)
        end, pause = time.monotonic() + _END_SECONDS, 0.1
        while time.monotonic() < end and self.work.working(self.job):
            if self.pace.is_due():  # killed tasks leave no mark of their end
                records = slurm.read_queue([self.job])
                self.pace.done()
                if records is not None and not any(map(slurm.is_alive, records.values())):
                    return
            time.sleep(pause)
            pause = min(2 * pause, LOOK_SECONDS)


def _describe_end(record: SlurmJob | None) -> str:
    """Describe the end of a task that recorded none itself."""
    if record is None:
        return "state unknown"
    return f"state {record.state}{f': {MORE_MEMORY}' if record.state == 'OUT_OF_MEMORY' else ''}"


def _script(profile: ClusterProfile, folder: Path) -> str:
    command = [sys.executable, "-u", "-m", "hpc_tumor.cluster.convert.task", str(folder)]
    return "\n".join(["#!/bin/bash", *setup_lines(profile), f"exec {shlex.join(command)}", ""])
