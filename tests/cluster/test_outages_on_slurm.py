"""Runs on a SLURM that takes their nodes away, or whose nodes and daemons die: they end as a quiet run does."""

from __future__ import annotations

import signal

import faults
import pytest
from launching import events, wait_for
from small_trainings import (
    Launcher,
    at_work,
    command,
    finishes_like,
    job_of,
    last_checkpoint_before_requeue,
    saved_after_the_warning,
    start_now,
    state_of,
    went_on_from,
)

from hpc_tumor.run_dir import RunDir, read_json

pytestmark = [pytest.mark.slow, pytest.mark.alone]


def test_preempted(launch: Launcher, quiet: RunDir) -> None:
    run = launch(options={"nodelist": "gpu001"}, checkpoint_minutes=60)
    wait_for(lambda: (read_json(run.status) or {}).get("step", 0) >= 2, seconds=90)
    request = ("--account=hpc", "--partition=HIGH", "--nodelist=gpu001", "--gres=gpu:2", "--output=/dev/null")
    other = command("sbatch", "--parsable", *request, "--wrap=sleep 60").strip()
    wait_for(lambda: "requeued" in events(run), seconds=60)
    command("scancel", other)
    launch.let_go()
    start_now(job_of(run))
    finishes_like(run, quiet)
    assert events(run).count("requeued") == 1
    assert saved_after_the_warning(run)
    assert went_on_from(run) == last_checkpoint_before_requeue(run)


def test_the_node_dies(launch: Launcher, quiet: RunDir) -> None:
    run = launch(options={"nodelist": "gpu002"})
    job_id = at_work(run)
    faults.kill_node("gpu002")
    wait_for(lambda: state_of(run).state in ("requeued", "node-fail"), seconds=90)
    faults.repair()
    launch.let_go()
    start_now(job_id)
    finishes_like(run, quiet)


def test_the_controller_is_restarted(launch: Launcher, quiet: RunDir) -> None:
    """It dies while the run trains, and is away when the run is warned: the run waits for it to be requeued."""
    launch.slow_down(1.5)
    run = launch()
    job_id = at_work(run)
    faults.kill_daemon("slurmctld")
    for pid in faults.ranks(job_id).values():
        faults.send(pid, signal.SIGUSR2)
    wait_for(lambda: "requeued" in events(run), seconds=60)
    state = state_of(run)
    assert state.state == "requeued", state
    faults.repair()
    launch.let_go()
    start_now(job_id, seconds=200)  # SLURM takes its time to clean up after a job that it found again
    finishes_like(run, quiet)


def test_the_accounting_is_down(launch: Launcher, quiet: RunDir) -> None:
    faults.kill_daemon("slurmdbd")
    launch.let_go()
    run = launch()
    finishes_like(run, quiet)
    assert state_of(run).state == "finished"
