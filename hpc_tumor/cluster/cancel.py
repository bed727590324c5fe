"""Ending runs that are queued or running, on SLURM and on this machine."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

from hpc_tumor.cluster import slurm
from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.cluster.observe.states import RunState
from hpc_tumor.errors import ClusterError, UsageError


def cancel(*states: RunState) -> dict[str, ClusterError]:
    """End queued or running runs, with one call to SLURM; they stay resumable.

    Where SLURM does not say whether they are queued, scancel is tried. Gives the errors by the names of the runs.

    Raises:
        UsageError: a run is neither queued nor running.
        ClusterError: the one run that was given cannot be ended.
    """
    for state in states:
        if not state.cancellable or state.job_id is None:
            raise UsageError(f"{state.name} is {state.state}: there is nothing to cancel.")
    errors: dict[str, ClusterError] = {}
    on_slurm = [state for state in states if state.cluster != LOCAL]
    # The links of a chain from the last on: none may begin meanwhile.
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
                    f"{state.name}: process {state.job_id} cannot be ended: {error.strerror}."
                )
        if state.name not in errors:
            state.run.add_event("cancelled", job_id=state.job_id)
    if len(states) == 1 and errors:
        raise errors[states[0].name]
    return errors


def _end_process(state: RunState) -> None:
    """Ask the process of a local run to end. ProcessLookupError where that number is another process by now."""
    shown = Path(f"/proc/{int(str(state.job_id))}/cmdline")
    there = shown.read_bytes() if shown.exists() else b""
    if os.fsencode(state.run.submission) not in there and Path("/proc/self").exists():  # else it cannot be told
        raise ProcessLookupError(errno.ESRCH, "it is not of this run any more")
    os.kill(int(str(state.job_id)), signal.SIGTERM)
