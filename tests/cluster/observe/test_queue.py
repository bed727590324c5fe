from __future__ import annotations

import json
import os
import pwd
import time
from pathlib import Path
from typing import Any

import pytest
from launching import profile_with, small_experiment

from hpc_tumor import cli
from hpc_tumor.cluster import slurm
from hpc_tumor.cluster.cancel import cancel
from hpc_tumor.cluster.node.job import record_failure
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.cluster.observe.queue import read_states
from hpc_tumor.cluster.observe.states import State
from hpc_tumor.cluster.plan.plan import make_plan
from hpc_tumor.errors import Cause, ClusterError, UsageError
from hpc_tumor.run_dir import RunDir, read_json


class MadeUpSlurm:
    """squeue and sacct that print what a test wrote, and count how often they are called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("squeue", "sacct"):
            command = folder / name
            command.write_text(f'#!/bin/sh\necho "$@" >> {folder}/{name}.calls\ncat {folder}/{name}.says\n')
            command.chmod(0o755)
            self.says(name, "")

    def says(self, name: str, text: str, run: RunDir | None = None) -> None:
        """Return the output of the command for jobs named after `run`."""
        lines = [line.replace("|", f"|{run.name}|", 1) if run else line for line in text.splitlines()]
        (self.folder / f"{name}.says").write_text("".join(f"{line}\n" for line in lines))

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUpSlurm:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return MadeUpSlurm(tmp_path / "bin")


def submitted(runs: Path, job_id: str = "42", **job: Any) -> RunDir:
    run = RunDir.create(runs, small_experiment(gpus=4))
    plan = make_plan(profile_with(), 4).as_dict()
    run.job.write_text(json.dumps({"cluster": "orfeo", "job_id": job_id, "plan": plan, **job}))
    run.add_event("submitted", job_id=job_id)
    return run


def state_of(run: RunDir) -> tuple[str, str]:
    state = read_states([run])[0]
    return state.state, state.reason


def test_waiting_is_explained(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = submitted(tmp_path)
    made_up.says("squeue", "42|PENDING|0:00|2|2099-12-01T08:30:00||AssocMaxJobsLimit\n", run)
    state, reason = state_of(run)
    assert state == "queued"
    assert "for your running jobs" in reason
    assert "starts about Tue 01 Dec 08:30, in " in reason
    made_up.says("squeue", "42|PENDING|0:00|2|N/A||launch failed requeued held\n", run)
    assert "scontrol release 42" in state_of(run)[1]


def test_a_finished_run_is_read_once(tmp_path: Path, made_up: MadeUpSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of an earlier version, whose events alone tell that it lost its best weights."""
    run = submitted(tmp_path)
    run.result.write_text(json.dumps({"best": {"epoch": 3}, "last": {"epoch": 3}}))
    run.add_event("best weights lost", reason="it is damaged")
    read, real = [], Path.read_text

    def noted(path: Path, **how: Any) -> str:
        read.append(path)
        return real(path, **how)

    monkeypatch.setattr(Path, "read_text", noted)
    state = read_states([run])[0]
    assert (state.state, state.weights_lost) == ("finished", "damaged")
    assert [read.count(path) for path in (run.result, run.events)] == [1, 1]


@pytest.mark.parametrize(
    "reason", ["Priority", "Resources", "QOSMaxGRESPerUser", "ReqNodeNotAvail, UnavailableNodes:n1"]
)
def test_frequent_reasons_are_put_into_words(reason: str) -> None:
    assert slurm.explain(reason) != reason


def test_running_with_progress(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = submitted(tmp_path)
    run.add_event("started")
    run.write_status(
        state="training", epoch=3, epochs=20, step=4, steps=9, loss=0.25, best=0.8, rate=50.0, eta_s=60, restarts=1
    )
    made_up.says("squeue", "42|RUNNING|1-02:03:04|2|2026-12-01T08:30:00|gpu[001-002]|None\n", run)
    state = read_states([run])[0]
    assert (state.state, state.reason, state.alive) == ("running", "", True)
    assert (state.nodes, state.gpus, state.elapsed) == (2, 4, 93_784)
    assert (state.epoch, state.loss, state.best, state.eta, state.restarts) == (3, 0.25, 0.8, 60, 1)
    assert state.heartbeat_age is not None
    assert state.heartbeat_age < 5
    json.dumps(state.as_dict())


def test_silence_of_a_running_job_is_named(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = submitted(tmp_path)
    made_up.says("squeue", "42|RUNNING|30:00|1|N/A|gpu001|None\n", run)
    assert state_of(run) == ("running", "running for 30 min without a heartbeat yet")
    run.write_status(state="training")
    os.utime(run.status, (time.time() - 1200,) * 2)
    assert state_of(run) == ("running", "no heartbeat for 20 min: it may be hanging")


@pytest.mark.parametrize(
    ("line", "state", "words"),
    [
        ("42|TIMEOUT|7200|2|0:0|gpu001", "timeout", "resume"),
        ("42|NODE_FAIL|10|2|0:0|gpu001", "node-fail", "resume"),
        ("42|FAILED|10|2|0:9|gpu001\n42.0|OUT_OF_MEMORY|10|2|0:125|gpu001", "out-of-memory", "--memory"),
        ("42|CANCELLED by 987654|10|2|0:0|gpu001", "cancelled", "by user 987654"),
        ("42|FAILED|10|2|2:0|gpu001", "failed", "exit code 2:0"),
        ("42|COMPLETED|10|2|0:0|gpu001", "failed", "without a result"),
    ],
)
def test_ends_that_only_accounting_knows(
    tmp_path: Path, made_up: MadeUpSlurm, line: str, state: str, words: str
) -> None:
    run = submitted(tmp_path)
    made_up.says("sacct", f"{line}\n", run)
    found, reason = state_of(run)
    assert found == state
    assert words in reason


def test_an_end_without_a_word_is_no_error_to_show(
    tmp_path: Path, made_up: MadeUpSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its reason only names the command that is at work."""
    run = submitted(tmp_path)
    made_up.says("sacct", "42|FAILED|10|2|2:0|gpu001\n", run)
    (state,) = read_states([run])
    assert (state.state, state.cause) == (State.FAILED, Cause.UNSAID)
    assert "cause" not in state.as_dict()
    assert cli.main(["logs", run.name, "--runs", str(run.path.parent), "--errors"]) == 0
    assert state.reason not in capsys.readouterr().out
    (run.path / "logs" / "submission" / "42_0_log.out").write_text("slurmstepd: error: Detected 1 oom_kill event\n")
    (state,) = read_states([run])
    assert state.cause is Cause.HOST_MEMORY
    assert cli.main(["logs", run.name, "--runs", str(run.path.parent), "--errors"]) == 0
    assert state.reason in capsys.readouterr().out


def test_accounting_that_has_no_name_yet_does_not_hide_the_end(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    """For a moment sacct calls a job that just ended `allocation`, while squeue knows it well."""
    run = submitted(tmp_path)
    run.write_status(state="stopped")  # by the ranks that were ended because one was lost
    made_up.says("squeue", "42|FAILED|0:10|2|N/A|gpu001|NonZeroExitCode\n", run)
    made_up.says("sacct", "42|allocation|FAILED|10|2|9:0|gpu001\n")
    assert state_of(run)[0] == "failed"
    made_up.says("squeue", "")
    assert state_of(run)[0] == "failed"


def test_what_the_run_says_of_its_failure(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = submitted(tmp_path)
    run.add_event("started")
    record_failure(run, 0, 1, "the loss is no longer finite")
    record_failure(run, 0, 0, "RuntimeError: Connection closed by peer")
    made_up.says("sacct", "42|FAILED|10|2|1:0|gpu001\n", run)
    assert state_of(run) == ("failed", "the loss is no longer finite")
    made_up.says("sacct", "42|NODE_FAIL|10|2|1:0|gpu001\n", run)  # ranks that lose a node fail too: SLURM knows why
    assert state_of(run)[0] == "node-fail"
    run.add_event("started")  # rank 0 may get so far after rank 1 failed
    made_up.says("squeue", "42|RUNNING|0:10|2|N/A|gpu001|None\n", run)
    assert state_of(run)[0] == "failed"
    run.job.write_text(json.dumps({**json.loads(run.job.read_text()), "start": 1}))
    run.add_event("submitted")
    made_up.says("squeue", "42|PENDING|0:00|2|N/A||Priority\n", run)
    assert state_of(run)[0] == "queued"


def test_a_run_that_stopped_by_itself_says_why(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = submitted(tmp_path)
    run.write_status(state="stopped")
    run.add_event("started")
    run.add_event("stopped", reason="the time limit was reached and the cluster does not allow requeueing")
    made_up.says("sacct", "42|COMPLETED|10|2|0:0|gpu001\n", run)
    assert state_of(run) == ("stopped", "the time limit was reached and the cluster does not allow requeueing")


def test_a_failure_that_is_known_gets_a_remedy(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = submitted(tmp_path)
    run.add_event("started")
    record_failure(run, 0, 0, "OSError: [Errno 28] No space left on device.")
    made_up.says("sacct", "42|FAILED|10|2|1:0|gpu001\n", run)
    state, reason = state_of(run)
    assert state == "failed"
    assert reason.startswith("OSError: [Errno 28] No space left on device – ")


@pytest.mark.parametrize("start", ["2020-12-01T08:30:00", "soon"])
def test_a_start_that_is_over_or_no_time_is_left_out(tmp_path: Path, made_up: MadeUpSlurm, start: str) -> None:
    run = submitted(tmp_path)
    made_up.says("squeue", f"42|PENDING|0:00|2|{start}||Priority\n", run)
    state, reason = state_of(run)
    assert state == "queued"
    assert "starts about" not in reason


def test_without_accounting_the_heartbeat_counts(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = submitted(tmp_path)
    assert state_of(run)[0] == "lost"
    run.write_status(state="stopped")
    assert state_of(run)[0] == "stopped"
    run.write_status(state="training")
    assert state_of(run)[0] == "running"
    run.result.write_text("{}")
    assert state_of(run)[0] == "finished"


def test_no_answer_is_not_an_end(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = submitted(tmp_path)
    (made_up.folder / "squeue").write_text(
        "#!/bin/sh\necho 'squeue: error: Unable to contact slurm controller' >&2; exit 1\n"
    )
    (made_up.folder / "sacct").write_text("#!/bin/sh\nexit 1\n")
    assert state_of(run) == ("unknown", "SLURM does not answer")


def test_one_call_for_all(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    runs = [submitted(tmp_path, job_id=str(number)) for number in range(100, 130)]
    for run in runs[:5]:
        run.result.write_text("{}")
    names = {int(str((read_json(run.job) or {})["job_id"])): run.name for run in runs}
    lines = [f"{number}|{names[number]}|RUNNING|0:10|1|N/A|gpu001|None" for number in range(110, 130)]
    made_up.says("squeue", "\n".join(lines))
    made_up.says("sacct", "".join(f"{number}|{names[number]}|TIMEOUT|60|1|0:0|gpu001\n" for number in range(105, 110)))
    states = [state.state for state in read_states(runs)]
    assert states == ["finished"] * 5 + ["timeout"] * 5 + ["running"] * 20
    assert len(made_up.calls("squeue")) == 1
    assert len(made_up.calls("sacct")) == 1
    assert "--jobs=105,106,107,108,109 " in made_up.calls("sacct")[0]


def test_no_slurm_command_is_run_for_runs_on_this_machine(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = submitted(tmp_path, cluster="local")
    assert state_of(run) == ("lost", "its processes no longer exist; hpc-tumor resume starts it again")
    assert made_up.calls("squeue") == []


def test_a_number_that_now_is_another_job(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = submitted(tmp_path)
    made_up.says("squeue", "42|someone-elses|RUNNING|0:10|1|N/A|gpu001|None\n")
    state = read_states([run])[0]
    assert (state.state, state.alive) == ("lost", False)


def scancel_says(made_up: MadeUpSlurm, script: str) -> None:
    command = made_up.folder / "scancel"
    command.write_text(f'#!/bin/sh\necho "$@" >> {made_up.folder}/scancel.calls\n{script}\n')
    command.chmod(0o755)


def test_cancel_is_tried_where_slurm_does_not_say_how_it_is(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    silent, alive, done = submitted(tmp_path, "41"), submitted(tmp_path, "42"), submitted(tmp_path, "43")
    alive.write_status(state="training")
    done.result.write_text("{}")
    for name in ("squeue", "sacct"):
        (made_up.folder / name).write_text("#!/bin/sh\nexit 1\n")
    states = {state.name: state for state in read_states([silent, alive, done])}
    assert [states[run.name].state for run in (silent, alive, done)] == ["unknown", "running", "finished"]
    assert [states[run.name].cancellable for run in (silent, alive, done)] == [True, True, False]
    scancel_says(made_up, "echo 'scancel: error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(ClusterError, match="Unable to contact"):
        cancel(states[silent.name])
    assert not silent.read_events("cancelled")
    scancel_says(made_up, "")
    cancel(states[alive.name])
    assert alive.read_events("cancelled")
    assert made_up.calls("scancel") == ["41", "42"]
    with pytest.raises(UsageError, match="nothing to cancel"):
        cancel(states[done.name])


def test_no_other_job_is_cancelled(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    """squeue is silent, and the accounting knows the number as another job's."""
    run = submitted(tmp_path)
    (made_up.folder / "squeue").write_text("#!/bin/sh\nexit 1\n")
    made_up.says("sacct", "42|someone-elses|RUNNING|10|1|0:0|gpu001\n")
    assert not read_states([run])[0].cancellable


def test_who_cancelled_it_has_a_name(tmp_path: Path, made_up: MadeUpSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    run = submitted(tmp_path)
    root = pwd.getpwuid(0).pw_name
    made_up.says("sacct", "42|CANCELLED by 0|10|2|0:0|gpu001\n", run)
    run.last_checkpoint.write_bytes(b"")
    again = "hpc-tumor resume continues from its last checkpoint"
    theirs = f"only {root} can resume it; hpc-tumor rerun trains it as your own run"
    for me, words in ((1234, f"cancelled by {root}; {theirs}"), (0, f"cancelled; {again}")):
        monkeypatch.setattr(os, "getuid", lambda me=me: me)
        assert state_of(run) == ("cancelled", words)


def test_what_was_never_submitted_is_not_sent_to_resume(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = submitted(tmp_path)
    run.job.unlink()
    assert state_of(run) == ("lost", "was never submitted; submit it again")
    profile = profile_with()
    JobRecord(cluster=profile.name, plan=make_plan(profile, 4), profile=profile).write(run)
    assert state_of(run) == ("lost", "was never submitted; hpc-tumor resume starts it again")


def test_an_array_is_asked_for_by_its_number(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    runs = [submitted(tmp_path, f"42_{task}", job_name="hpc-tumor-ab12") for task in range(3)]
    made_up.says(
        "squeue",
        "42_0|hpc-tumor-ab12|RUNNING|1:00|1|N/A|gpu001|None\n42_1|hpc-tumor-ab12|PENDING|0:00|1|N/A||Priority\n",
    )
    made_up.says("sacct", "42_2|hpc-tumor-ab12|TIMEOUT|7200|1|0:0|gpu001\n42_2.0|x|CANCELLED|1|1|0:0|gpu001\n")
    assert [state.state for state in read_states(runs)] == ["running", "queued", "timeout"]
    (asked,) = (made_up.folder / "squeue.calls").read_text().splitlines()
    assert "--jobs=42 " in f"{asked} "
    assert "--array" in asked


def test_tasks_that_were_cancelled_before_they_began(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    """sacct gives them in one line, and without a name."""
    runs = [submitted(tmp_path, f"42_{task}", job_name="hpc-tumor-ab12") for task in (0, 1, 5, 9)]
    made_up.says(
        "sacct",
        "42_0|hpc-tumor-ab12|COMPLETED|10|1|0:0|n1\n42_[1,4-6%2]|allocation|CANCELLED by 0|0|1|0:0|None\n"
        "42|allocation|CANCELLED by 0|0|1|0:0|None\n",
    )
    assert [state.state for state in read_states(runs)] == ["failed", "cancelled", "cancelled", "cancelled"]


def test_a_chain_is_in_the_state_of_its_living_job(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = submitted(tmp_path, chain=["43", "44"])
    made_up.says("squeue", "42|RUNNING|1:00|1|N/A|gpu001|None\n43|PENDING|0:00|1|N/A||Dependency\n", run)
    assert state_of(run)[0] == "running"
    run.add_event("started")
    made_up.says("squeue", "42|TIMEOUT|2:00:00|1|N/A|gpu001|None\n43|PENDING|0:00|1|N/A||Priority\n", run)
    assert state_of(run)[0] == "requeued"
    made_up.says("squeue", "")
    made_up.says("sacct", "42|TIMEOUT|7200|1|0:0|gpu001\n43|CANCELLED|0|1|0:0|gpu001\n", run)
    assert state_of(run)[0] == "timeout"


def test_another_try_after_a_failure_is_explained(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = submitted(tmp_path)
    run.add_event("started")
    record_failure(run, 0, 1, "rank 1 was killed", retry=True)
    run.add_event("requeued", because="failed", attempt=2, of=3, reason="rank 1 was killed")
    made_up.says("squeue", "42|PENDING|0:00|1|N/A||BeginTime\n", run)
    state, reason = state_of(run)
    assert state == "requeued"
    assert reason.startswith("attempt 2 of 3 after: rank 1 was killed; not yet allowed to start")


@pytest.mark.parametrize("reason", ["PartitionTimeLimit", "BadConstraints", "JobHeldUser", "InvalidAccount"])
def test_what_will_never_start_is_said(reason: str) -> None:
    assert slurm.explain(reason, "42").startswith("cannot start: ")
    assert not slurm.explain("Priority").startswith("cannot start")


def test_starts_that_are_still_needed(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = submitted(tmp_path, plan=make_plan(profile_with(), 2, walltime=120).as_dict())
    run.add_event("started")
    made_up.says("squeue", "42|RUNNING|1:00:00|1|N/A|gpu001|None\n", run)
    for eta, more in ((1800, 0), (3599, 0), (3601, 1), (3 * 3600, 1), (3.1 * 3600, 2)):
        run.write_status(state="training", eta_s=eta)
        assert read_states([run])[0].more_starts == more


def test_the_age_of_the_checkpoint_is_told(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = submitted(tmp_path)
    assert read_states([run])[0].checkpoint_age is None
    run.last_checkpoint.write_bytes(b"")
    os.utime(run.last_checkpoint, (time.time() - 90,) * 2)
    age = read_states([run])[0].checkpoint_age
    assert age is not None
    assert 89 < age < 120


def test_a_cancelled_run_that_still_ends_is_ending(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = submitted(tmp_path)
    run.add_event("cancelled")
    made_up.says("squeue", "42|COMPLETING|1:00|1|N/A|gpu001|None\n", run)
    assert read_states([run])[0].ending
    made_up.says("squeue", "42|CANCELLED|1:00|1|N/A|gpu001|None\n", run)
    assert not read_states([run])[0].ending


def test_a_failure_is_no_end_until_the_batch_script_has_decided(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = submitted(tmp_path)
    run.add_event("started")
    record_failure(run, 0, 1, "rank 1 was killed", retry=True)
    made_up.says("squeue", "42|RUNNING|0:10|2|N/A|gpu001|None\n", run)
    state = read_states([run])[0]
    assert (state.state, state.reason, state.alive) == ("restarting", "after: rank 1 was killed", True)
    run.failure(0).write_text('{"rank": 1, "rea')  # being written
    assert state_of(run)[0] == "restarting"
    record_failure(run, 0, 1, "rank 1 was killed; given up", overrule=True)
    assert state_of(run) == ("failed", "rank 1 was killed; given up")
    record_failure(run, 0, 1, "rank 1 was killed", retry=True, overrule=True)
    made_up.says("squeue", "42|FAILED|0:10|2|N/A|gpu001|NonZeroExitCode\n", run)
    assert state_of(run)[0] == "failed"


def test_a_link_of_a_chain_that_was_cancelled_is_named(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = submitted(tmp_path, chain=["43", "44"])
    run.add_event("started")
    running = "42|RUNNING|1:00|1|N/A|gpu001|None\n"
    made_up.says("squeue", f"{running}43|PENDING|0:00|1|N/A||Dependency\n44|PENDING|0:00|1|N/A||Dependency\n", run)
    assert state_of(run) == ("running", "")
    made_up.says("squeue", f"{running}43|CANCELLED|0:00|1|N/A||None\n44|COMPLETED|0:01|1|N/A||None\n", run)
    assert state_of(run) == (
        "running", "job 43 of its chain was cancelled: the run ends before it, then hpc-tumor resume starts it again"
    )  # fmt: skip


def test_ages_are_told_whatever_the_clocks_of_the_nodes_say(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    made_up.says("squeue", "")

    def age(node: float, stamp: float, elapsed: str = "30:00", behind: float = 0) -> tuple[float, str]:
        """Of a heartbeat where the node's clock and the stamps of files are so many seconds off."""
        run = submitted(tmp_path)
        run.events.write_text(json.dumps({"event": "started", "time": time.time() + node - 1800}) + "\n")
        run.status.write_text(json.dumps({"state": "training", "time": time.time() + node - behind}))
        os.utime(run.status, (time.time() + stamp,) * 2)
        made_up.says("squeue", f"42|RUNNING|{elapsed}|2|N/A|gpu001|None\n", run)
        state = read_states([run])[0]
        assert state.heartbeat_age is not None
        assert state.heartbeat_age >= 0
        return round(state.heartbeat_age, -1), state.reason

    assert age(node=3600, stamp=0) == (0, "")
    assert age(node=-3600, stamp=0) == (0, "")
    assert age(node=3600, stamp=3600) == (0, "")  # as on CephFS, where the node stamps
    assert age(node=-3600, stamp=-3600) == (0, "")
    assert age(node=0, stamp=-900, behind=900) == (900, "no heartbeat for 15 min: it may be hanging")
    assert age(node=-3600, stamp=-4500, behind=900) == (900, "no heartbeat for 15 min: it may be hanging")
