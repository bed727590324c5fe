"""Runs that share a job and its GPUs, on the real SLURM that tools/slurm_cluster.py starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launching import STAND_IN, events, small_experiment, wait_for
from small_trainings import (
    EPOCHS,
    PROFILE,
    Launcher,
    at_work,
    command,
    finishes_like,
    saved_after_the_warning,
    start_now,
    state_of,
    went_on_from,
)

from hpc_tumor.cluster.cancel import cancel
from hpc_tumor.cluster.launch.planned import PlannedRun, share_job
from hpc_tumor.cluster.launch.submit import submit_all
from hpc_tumor.cluster.observe.logs import log_text
from hpc_tumor.cluster.plan.plan import make_plan
from hpc_tumor.run_dir import RunDir

pytestmark = pytest.mark.slow


@pytest.fixture
def share(
    slurm: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[str, list[RunDir]]]]:
    """Submits runs that share a job; returns its id and the runs. Leaves no job behind."""
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("HPC_TUMOR_ACCOUNT", raising=False)
    jobs = []

    def submit(planned: list[PlannedRun]) -> tuple[str, list[RunDir]]:
        result = submit_all(share_job(planned, 0), PROFILE, tmp_path / "it's 100% shared")
        assert result.error is None
        (job,) = {item.job_id for item in result.started}
        jobs.append(job)
        return job, [item.run for item in result.started]

    yield submit
    for job in jobs:
        command("scancel", "--full", job)


def test_each_run_of_a_job_ends_for_its_own_reasons(
    share: Callable[..., tuple[str, list[RunDir]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "crash,wait,wait")
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))
    plan = make_plan(PROFILE, 1, memory_gb=3, cpus=2)
    job, runs = share([PlannedRun(small_experiment(seed=seed), plan, share=0.25) for seed in range(3)])
    failed, cancelled, warned = runs
    for run in runs:
        wait_for(lambda run=run: run.status.exists(), seconds=60)
    wait_for(lambda: not state_of(failed).alive, seconds=60)
    assert state_of(failed).state == "failed"
    assert "a defect in two lines" in log_text(failed, errors=True)
    assert [state_of(run).state for run in (cancelled, warned)] == ["running", "running"]

    cancel(state_of(cancelled))
    wait_for(lambda: not state_of(cancelled).alive, seconds=60)
    assert [state_of(run).state for run in runs] == ["failed", "cancelled", "running"]

    command("scancel", "--signal=USR2", job)  # as SLURM before the time limit
    wait_for(lambda: "requeued" in events(warned), seconds=60)
    wait_for(lambda: state_of(warned).state == "requeued", seconds=60)
    start_now(job)
    wait_for(lambda: events(warned).count("started") == 2, seconds=60)
    assert [state_of(run).state for run in runs] == ["failed", "cancelled", "running"]
    assert [events(run).count("started") for run in runs] == [1, 1, 2]

    cancel(state_of(warned))  # the last run of the job
    wait_for(lambda: not state_of(warned).alive, seconds=60)
    assert "CANCELLED" in command("sacct", "--noheader", "--parsable2", "--jobs", job, "--format=State")
    assert [state_of(run).state for run in runs] == ["failed", "cancelled", "cancelled"]


def test_trainings_that_share_gpus_and_are_requeued_get_the_weights_of_a_quiet_one(
    share: Callable[..., tuple[str, list[RunDir]]], launch: Launcher, quiet: RunDir
) -> None:
    job, (first, second) = share([launch.planned(), launch.planned(seed=1)])
    for run in (first, second):
        at_work(run)
    command("scancel", "--signal=USR2", job)
    for run in (first, second):
        wait_for(lambda run=run: "requeued" in events(run), seconds=60)
        assert saved_after_the_warning(run)
    launch.let_go()
    start_now(job)
    finishes_like(first, quiet, seconds=240)
    wait_for(second.is_finished, seconds=120)
    assert went_on_from(first) != (0, 0)
    assert len([line for line in second.read_metrics() if line["part"] == "train"]) == EPOCHS
    assert [state_of(run).state for run in (first, second)] == ["finished", "finished"]
