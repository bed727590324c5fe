"""Cancel queued or running runs, on SLURM and on this machine.

A run that shares a job with others ends alone: the process that started its ranks there sees the event `cancelled` and
ends them, or does not start them. The job itself is cancelled with the last of its runs.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Collection
from pathlib import Path

from hpc_tumor.cluster import slurm
from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.cluster.observe.queue import read_states
from hpc_tumor.cluster.observe.states import RunState
from hpc_tumor.errors import ClusterError, UsageError
from hpc_tumor.run_dir import RunDir, is_run


def cancel(*states: RunState) -> dict[str, ClusterError]:
    """Cancel queued or running runs with one call to SLURM; they stay resumable.

    scancel is also tried if SLURM cannot tell whether a run is queued. Returns the errors by run name.

    Raises:
        UsageError: a run is neither queued nor running.
        ClusterError: a single run was given and cannot be cancelled.
    """
    for state in states:
        if not state.cancellable or state.job_id is None:
            raise UsageError(f"{state.name} is {state.state}: nothing to cancel.")
    errors: dict[str, ClusterError] = {}
    names = {state.name for state in states}
    on_slurm = [state for state in states if state.cluster != LOCAL and not _others_in_job(state, names)]
    # The last job of a chain first, so that none starts meanwhile.
    jobs = {state.name: (JobRecord.of_run(state.run).job_ids or (str(state.job_id),))[::-1] for state in on_slurm}
    try:
        if jobs:
            slurm.cancel_job(*(job_id for ids in jobs.values() for job_id in ids))
    except ClusterError as error:
        errors = dict.fromkeys(jobs, error)
        for name, ids in jobs.items() if len(jobs) > 1 else ():
            try:
                slurm.cancel_job(*ids)
                del errors[name]
            except ClusterError as own:
                errors[name] = own
    for state in states:
        if state.cluster == LOCAL:
            try:
                _end_process(state)
            except OSError as error:
                errors[state.name] = ClusterError(
                    f"{state.name}: cannot stop process {state.job_id}: {error.strerror}."
                )
        if state.name not in errors:
            state.run.add_event("cancelled", job_id=state.job_id)
    if len(states) == 1 and errors:
        raise errors[states[0].name]
    return errors


def _others_in_job(state: RunState, cancelled: Collection[str]) -> bool:
    """Return True if the run shares its job with runs that are not to be cancelled and have not ended."""
    together = JobRecord.of_run(state.run).together
    others = [RunDir(state.run.path.with_name(name)) for name in together if name not in cancelled]
    states = read_states([run for run in others if is_run(run.path)])
    return any(other.job_id == state.job_id and other.state.open for other in states)


def _end_process(state: RunState) -> None:
    """Send SIGTERM to the process of a local run. Raises ProcessLookupError if its id was reused."""
    proc_file = Path(f"/proc/{int(str(state.job_id))}/cmdline")
    command_line = proc_file.read_bytes() if proc_file.exists() else b""
    if os.fsencode(state.run.submission) not in command_line and Path("/proc/self").exists():  # no /proc: cannot check
        raise ProcessLookupError(errno.ESRCH, "it no longer belongs to this run")
    os.kill(int(str(state.job_id)), signal.SIGTERM)
