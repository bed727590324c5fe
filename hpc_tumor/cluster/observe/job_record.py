"""A run's job as job.json holds it: which one it is, what it asked for, and which came before and come after it."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field

from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.cluster.plan.plan import Plan
from hpc_tumor.config import ClusterProfile
from hpc_tumor.errors import UsageError
from hpc_tumor.records import Count, Record, Seconds, Text
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system import atomic

JobId = Annotated[str, Field(pattern=r"^\d{1,18}(_\d{1,9})?$")]  # of SLURM, a task of an array, or a process
OTHER_VERSION = "So it is not known what was asked for, and where: submit it anew, with hpc-tumor submit."
JobFolder = Annotated[str, Field(pattern=r"^\.submissions-\d+/[\w-]+$")]


class JobRecord(Record):
    """The job of a run; empty where it was never submitted.

    Attributes:
        cluster: name of the profile.
        job_id: None until the scheduler has given one.
        job_name: name in the queue.
        submitted: seconds since 1970.
        plan: what was asked for.
        profile: where, with what is secret masked.
        start: starts before this job.
        earlier: jobs before this one, the latest last; earlier_folders: where they left their logs.
        chain: jobs that follow this one.
        folder: of an array's scripts and logs, from the runs folder on; None: the run's own.
    """

    model_config = ConfigDict(extra="allow")  # what another version wrote stays when the record is written again

    cluster: Text = ""
    job_id: JobId | None = None
    job_name: Text | None = None
    submitted: Seconds | None = None
    plan: Plan | None = None
    profile: ClusterProfile | None = None
    start: Count = 0
    earlier: tuple[JobId | None, ...] = ()
    earlier_folders: tuple[JobFolder | None, ...] = ()
    chain: tuple[JobId, ...] = ()
    folder: JobFolder | None = None

    @classmethod
    def of_run(cls, run: RunDir) -> Self:
        """Return the job of `run`."""
        return cls.read(run.job) or cls()

    @property
    def is_local(self) -> bool:
        return self.cluster == LOCAL

    @property
    def job_ids(self) -> tuple[str, ...]:
        """Its own job, and those that follow it in a chain."""
        return tuple(job_id for job_id in (self.job_id, *self.chain) if job_id)

    @property
    def log_folders(self) -> tuple[str | None, ...]:
        """Folders of the logs of its jobs, the earlier ones and its own."""
        before = len(self.earlier)
        missing = max(0, before - len(self.earlier_folders))  # of a version that did not write them
        return (*[None] * missing, *self.earlier_folders[:before], self.folder)

    def planned(self, where: str) -> Plan:
        """Return the plan. UsageError where there is none that can be read, as of another version."""
        if self.plan is None:
            raise UsageError(f"{'; '.join(self.faults) or f'{where} holds no plan'}. {OTHER_VERSION}")
        return self.plan

    def write(self, run: RunDir, **changed: Any) -> Self:
        """Replace the run's job.json by this record with the fields `changed`, and return that."""
        record = self.model_copy(update=changed)
        atomic.write_json(run.job, record.model_dump(mode="json", exclude={"faults"}))
        return record
