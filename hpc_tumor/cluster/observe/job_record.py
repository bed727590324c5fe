"""job.json: the scheduler's job of a run, its request, and the jobs before and after it."""

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

JobId = Annotated[str, Field(pattern=r"^\d{1,18}(_\d{1,9})?$")]  # of a SLURM job, an array task or a process
OTHER_VERSION = "The request is therefore unknown: submit the run again with hpc-tumor submit."
JobFolder = Annotated[str, Field(pattern=r"^\.submissions-\d+/[\w-]+$")]


class JobRecord(Record):
    """The job of a run; empty if it was never submitted.

    Attributes:
        cluster: name of the profile.
        job_id: None until the scheduler has assigned one.
        job_name: name in the queue.
        submitted: seconds since 1970.
        plan: the request.
        profile: the cluster profile, with secrets masked.
        start: starts before this job.
        earlier: previous jobs, the latest last; earlier_folders: their log folders.
        chain: jobs that follow this one.
        together: names of all runs of a job that share its GPUs; empty if there is one.
        share: of the GPU's memory for this run; 1 if it does not share.
        folder: scripts and logs of an array, relative to the runs folder; None: the run's own folder.
    """

    model_config = ConfigDict(extra="allow")  # keep fields of other versions when the record is rewritten

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
    together: tuple[Text, ...] = ()
    share: Annotated[float, Field(gt=0, le=1)] = 1.0

    @classmethod
    def of_run(cls, run: RunDir) -> Self:
        """Return the job of `run`."""
        return cls.read(run.job) or cls()

    @property
    def is_local(self) -> bool:
        return self.cluster == LOCAL

    @property
    def job_ids(self) -> tuple[str, ...]:
        """Ids of this job and of those that follow it in a chain."""
        return tuple(job_id for job_id in (self.job_id, *self.chain) if job_id)

    @property
    def log_folders(self) -> tuple[str | None, ...]:
        """Log folders of the earlier jobs and this one."""
        before = len(self.earlier)
        missing = max(0, before - len(self.earlier_folders))  # earlier versions did not record them
        return (*[None] * missing, *self.earlier_folders[:before], self.folder)

    def planned(self, where: str) -> Plan:
        """Return the plan. Raises UsageError if there is none or another version wrote it."""
        if self.plan is None:
            raise UsageError(f"{'; '.join(self.faults) or f'{where} has no plan'}. {OTHER_VERSION}")
        return self.plan

    def write(self, run: RunDir, **changed: Any) -> Self:
        """Write job.json with the fields `changed`, and return the new record."""
        record = self.model_copy(update=changed)
        atomic.write_json(run.job, record.model_dump(mode="json", exclude={"faults"}))
        return record
