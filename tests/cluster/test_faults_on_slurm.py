"""Faults on the real SLURM with real training: afterwards runs have the weights of an undisturbed run."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import faults
import pytest
from launching import events, wait_for
from small_trainings import (
    PROFILE,
    RANKS,
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

from hpc_tumor.cluster.launch.submit import resume_run
from hpc_tumor.errors import UsageError
from hpc_tumor.run_dir import RunDir, read_json

pytestmark = pytest.mark.slow


def test_warned_before_the_time_limit(launch: Launcher, quiet: RunDir) -> None:
    """SLURM itself warns, before the limit of three minutes, and nothing that was learned is lost."""
    launch.slow_down(3)
    run = launch(minutes=3, checkpoint_minutes=60)
    wait_for(lambda: "requeued" in events(run), seconds=170)
    assert run.read_events("signal")[-1]["signal"] == "USR2"
    launch.let_go()
    start_now(job_of(run))
    finishes_like(run, quiet)
    assert run.read_events("requeued")[0]["because"] == "warned"
    assert saved_after_the_warning(run)
    assert went_on_from(run) == last_checkpoint_before_requeue(run)


def test_requeued_by_hand(launch: Launcher, quiet: RunDir) -> None:
    run = launch()
    job_id = at_work(run)
    command("scontrol", "requeue", job_id)
    launch.let_go()
    start_now(job_id)
    finishes_like(run, quiet)
    assert events(run).count("resumed") == 1


def test_cancelled_by_hand_and_resumed(launch: Launcher, quiet: RunDir) -> None:
    """With SLURM's own command: what was learned is saved, and nothing starts it again but its user."""
    run = launch(checkpoint_minutes=60)
    wait_for(lambda: (read_json(run.status) or {}).get("step", 0) >= 2, seconds=90)
    command("scancel", job_of(run))
    state = wait_for(lambda: not (state := state_of(run)).alive and state, seconds=60)
    assert state.state == "cancelled"
    assert "requeued" not in events(run)
    before = run.read_events("checkpoint")[-1]
    launch.let_go()
    resume_run(run)
    finishes_like(run, quiet)
    assert went_on_from(run) == (before["epoch"], before["step"])


def test_ended_by_slurm_without_a_warning(launch: Launcher, quiet: RunDir) -> None:
    """As in the grace time of a preemption where SLURM is not told to warn: the ranks get TERM, and that is all."""
    run = launch(checkpoint_minutes=60)
    wait_for(lambda: (read_json(run.status) or {}).get("step", 0) >= 2, seconds=90)
    for pid in faults.ranks(job_of(run)).values():
        faults.send(pid, signal.SIGTERM)
    wait_for(lambda: "requeued" in events(run), seconds=60)
    launch.let_go()
    start_now(job_of(run))
    finishes_like(run, quiet)
    assert went_on_from(run) == last_checkpoint_before_requeue(run)


def test_one_rank_killed(launch: Launcher) -> None:
    """One of four on two nodes: with more than two, the order of adding up their gradients shows in the last bits."""
    run = launch(ranks=4)
    job_id = at_work(run)
    faults.send(faults.ranks(job_id)[3])
    seen: set[str] = set()
    wait_for(lambda: seen.add(state_of(run).state) or "requeued" in events(run), seconds=60)
    assert "failed" not in seen  # in the seconds between the record of the failure and the decision on it
    event = run.read_events("requeued")[-1]
    assert (event["because"], event["attempt"]) == ("failed", 2)
    assert "rank 3" in event["reason"]
    launch.let_go()
    start_now(job_id)
    wait_for(run.is_finished, seconds=120, every=0.5)  # it and the quiet one need both nodes
    quiet = launch(ranks=4)
    wait_for(quiet.is_finished, seconds=120, every=0.5)
    finishes_like(run, quiet)
    assert (read_json(run.result) or {})["nodes"] == 2


def test_all_ranks_killed(launch: Launcher, quiet: RunDir) -> None:
    run = launch()
    job_id = at_work(run)
    for pid in faults.ranks(job_id).values():
        faults.send(pid)
    wait_for(lambda: "requeued" in events(run), seconds=60)
    launch.let_go()
    start_now(job_id)
    finishes_like(run, quiet)


def test_a_rank_that_hangs(launch: Launcher, quiet: RunDir) -> None:
    run = launch(hardware={"gpus": RANKS, "timeout_minutes": 0.25})
    job_id = at_work(run)
    faults.send(faults.ranks(job_id)[1], signal.SIGSTOP)
    wait_for(lambda: "requeued" in events(run), seconds=120)
    assert "rank 1" in run.read_events("requeued")[-1]["reason"]
    launch.let_go()
    start_now(job_id)
    finishes_like(run, quiet)


def test_the_batch_script_is_killed(launch: Launcher, quiet: RunDir) -> None:
    """Nothing of the job is left that could start it again: it can be resumed."""
    run = launch()
    faults.kill_batch_script(at_work(run))
    state = wait_for(lambda: not (state := state_of(run)).alive and state, seconds=60)
    assert state.state == "failed", state
    launch.let_go()
    wait_for(lambda: resumed(run), seconds=60, every=2)
    finishes_like(run, quiet)


def resumed(run: RunDir) -> bool:
    with suppress(UsageError):  # SLURM still cleans up after it
        resume_run(run)
        return True
    return False


def test_squeue_fails_for_a_while(launch: Launcher, quiet: RunDir, tmp_path: Path) -> None:
    run = launch()
    at_work(run)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "squeue").write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n"
    )
    (tools / "squeue").chmod(0o755)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        state = state_of(run)
    assert state.state == "running"
    launch.let_go()
    finishes_like(run, quiet)


def test_the_disk_is_full_at_a_checkpoint(launch: Launcher, quiet: RunDir, tmp_path: Path) -> None:
    with faults.small_disk(tmp_path / "disk", 150) as disk:
        run = launch(runs=disk / "runs")
        at_work(run)
        filler = faults.fill(disk)
        state = wait_for(lambda: not (state := state_of(run)).alive and state, seconds=90)
        assert "requeued" not in events(run)
        filler.unlink()
        assert "the disk or quota of its folder is full" in state.reason or "a disk is full" in state.reason, state
        launch.let_go()
        resume_run(run)
        finishes_like(run, quiet)


def test_the_last_checkpoint_is_damaged(launch: Launcher, quiet: RunDir) -> None:
    run = launch()
    job_id = at_work(run)
    command("scontrol", "requeue", job_id)
    wait_for(lambda: "PENDING" in command("squeue", "--noheader", "--jobs", job_id, "--format=%T"), seconds=60)
    whole = run.last_checkpoint.read_bytes()
    run.last_checkpoint.write_bytes(whole[:-1000] + bytes(1000))
    launch.let_go()
    start_now(job_id)
    finishes_like(run, quiet)
    assert "checkpoint damaged" in events(run)


def test_where_requeue_is_forbidden_a_chain_goes_on(launch: Launcher, quiet: RunDir) -> None:
    slurm = PROFILE.slurm.model_copy(update={"requeue": False, "chain": 3})
    run = launch(profile=PROFILE.model_copy(update={"slurm": slurm}), checkpoint_minutes=60)
    wait_for(lambda: (read_json(run.status) or {}).get("step", 0) >= 2, seconds=90)
    first = job_of(run)
    links = (read_json(run.job) or {})["chain"]
    assert len(links) == 2
    command("scancel", "--signal=USR2", first)
    wait_for(lambda: "requeued" in events(run), seconds=60)
    launch.let_go()
    finishes_like(run, quiet)
    assert job_of(run) == links[0]
    assert went_on_from(run) == last_checkpoint_before_requeue(run)
    wait_for(
        lambda: not command("squeue", "--noheader", "--jobs", ",".join(links), "--states=PD,R").strip(), seconds=60
    )


def test_what_fails_at_once_on_each_start_is_given_up(launch: Launcher) -> None:
    run = launch(options={"comment": "fails"})
    job_id = job_of(run)
    for attempt in (2, 3):
        wait_for(lambda: faults.ranks(job_id), seconds=60)
        faults.send(faults.ranks(job_id)[0])
        wait_for(lambda attempt=attempt: len(run.read_events("requeued")) == attempt - 1, seconds=60)
        assert run.read_events("requeued")[-1]["attempt"] == attempt
        start_now(job_id)
    wait_for(lambda: faults.ranks(job_id), seconds=60)
    faults.send(faults.ranks(job_id)[0])
    state = wait_for(lambda: not (state := state_of(run)).alive and state, seconds=60)
    assert state.state == "failed"
    assert "killed" in state.reason
    assert "gave up after 3 starts without progress" in state.reason


def test_the_same_run_submitted_twice(launch: Launcher, quiet: RunDir) -> None:
    """The second is refused here; a job that was started around this, too, leaves the run alone."""
    run = launch()
    job_id = at_work(run)
    with pytest.raises(UsageError, match="is running"):
        resume_run(run)
    script = next(run.submission.glob("*_submission.sh"))
    second = command("sbatch", "--parsable", str(script)).strip()
    wait_for(lambda: "not the job of" in (run.submission / f"{second}_0_log.out").read_text()
             if (run.submission / f"{second}_0_log.out").exists() else False, seconds=60)  # fmt: skip
    launch.let_go()
    finishes_like(run, quiet)
    assert job_of(run) == job_id
