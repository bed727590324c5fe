from __future__ import annotations

import errno
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from launching import events, profile_with, small_experiment

from hpc_tumor.cluster.launch.snapshot import CODE_LOST, CODE_LOST_WORDS
from hpc_tumor.cluster.node import batch
from hpc_tumor.cluster.node.job import record_failure
from hpc_tumor.cluster.observe.causes import NO_ROOM
from hpc_tumor.cluster.plan.plan import make_plan
from hpc_tumor.records import Failure
from hpc_tumor.run_dir import RunDir, read_json
from hpc_tumor.system import atomic


class Job:
    """A run and its job as the batch script finds them; SLURM's commands note what they were asked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **job: Any):
        self.monkeypatch, self.asked = monkeypatch, folder / "asked"
        profile = profile_with(slurm={"requeue": not job.get("chain")})
        self.run = RunDir.create(folder / "runs", small_experiment())
        self.folder = self.run.submission
        atomic.write_json(self.folder / "runs.json", [self.run.name])
        values = {
            "cluster": "c", "job_id": "42", "start": 0, "plan": make_plan(profile, 1).as_dict(),
            "profile": profile.model_dump(mode="json"), **job,
        }  # fmt: skip
        atomic.write_json(self.run.job, values)
        self.run.add_event("submitted")
        tools = folder / "bin"
        tools.mkdir()
        for name in ("scontrol", "scancel", "squeue"):
            text = f'echo "{name} $*" >> {self.asked}\n[ -f "$0.rc" ] && . "$0.rc"\nexit 0\n'
            (tools / name).write_text(f"#!/bin/sh\n{text}")
            (tools / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
        self.now = 0.0  # by a clock that only sleep moves
        made_up = SimpleNamespace(
            sleep=lambda seconds: self.sleep(seconds),
            monotonic=lambda: self.now,
            time=lambda: time.time(),
            strftime=time.strftime,
        )
        monkeypatch.setattr(batch, "time", made_up)
        self.begin("42")

    def begin(self, job_id: str, restarts: int = 0) -> None:
        """This process is the batch script of that job."""
        self.monkeypatch.setenv("SLURM_JOB_ID", job_id)
        self.monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        self.monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def answers(self, name: str, script: str) -> None:
        (self.asked.parent / "bin" / f"{name}.rc").write_text(script)

    def log(self, text: str) -> None:
        (self.folder / "42_0_log.out").write_text(f"\n--- start 0 of it\n{text}")

    def progress(self, epoch: int, step: int) -> None:
        self.run.add_event("started")
        self.run.add_event("checkpoint", epoch=epoch, step=step)

    def signal(self, name: str = "USR2", start: int = 0) -> None:
        self.run.add_event("signal", signal=name, start=start)

    def after(self, code: int) -> int:
        return batch.main(["after", str(self.folder), str(code)])

    def before(self) -> int:
        return batch.main(["before", str(self.folder)])

    @property
    def commands(self) -> list[str]:
        lines = self.asked.read_text().splitlines() if self.asked.exists() else []
        return [line for line in lines if not line.startswith("squeue")]

    def last(self, event: str) -> dict[str, Any]:
        return self.run.read_events(event)[-1]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path, monkeypatch)


@pytest.fixture
def chained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path, monkeypatch, chain=["43", "44"])


def test_a_warned_run_is_requeued(job: Job) -> None:
    job.progress(1, 5)
    job.signal()
    assert job.after(0) == 0
    assert job.commands == ["scontrol requeue 42"]
    assert (job.last("requeued")["because"], job.last("requeued")["restart"]) == ("warned", 1)


def test_so_is_one_that_was_ended_by_slurm_in_its_grace_time(job: Job) -> None:
    """Without a warning before it: a user's own scancel ends this shell before the ranks."""
    job.progress(1, 5)
    job.signal("TERM")
    assert job.after(0) == 0
    assert job.commands == ["scontrol requeue 42"]


def test_one_that_ended_by_itself_is_not(job: Job) -> None:
    job.progress(1, 5)
    assert job.after(0) == 0
    assert job.commands == []


def test_an_older_warning_is_not_this_starts_and_one_before_training_is(job: Job) -> None:
    job.signal()  # while the store was copied to the node
    job.run.add_event("started")
    assert job.after(0) == 0
    assert job.commands == ["scontrol requeue 42"]
    job.begin("42", restarts=1)
    job.run.add_event("resumed")
    assert job.after(0) == 0
    assert job.commands == ["scontrol requeue 42"]


def test_a_warning_before_the_ranks_could_listen_is_one(job: Job) -> None:
    job.log("srun: error: gpu001: tasks 0-1: User defined signal 2\n")
    assert job.after(140) == 0
    assert job.last("requeued")["because"] == "warned"


def test_a_cancelled_run_is_not_requeued_whatever_happened(job: Job) -> None:
    job.progress(1, 5)
    job.signal()
    job.run.add_event("cancelled")
    assert (job.after(0), job.after(137)) == (0, 137)
    assert job.commands == []


def test_the_time_asked_for_in_all_is_not_exceeded(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four hours are two starts of two, or more of them where some were cut short."""
    values = read_json(job.run.job) or {}
    plan = make_plan(profile_with(), 1, walltime="4h")
    atomic.write_json(job.run.job, {**values, "plan": plan.as_dict()})
    clock = [time.time()]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    for restart, minutes in enumerate((1, 114, 114)):  # preempted at once, then warned six minutes before the limit
        job.begin("42", restart)
        job.progress(1, restart)
        clock[0] += 60 * minutes
        job.signal(start=restart)
        assert job.after(0) == 0
    assert job.commands == ["scontrol requeue 42"] * 2
    assert "the requested 4:00 h are used up" in job.last("stopped")["reason"]


def test_starts_that_are_too_short_to_come_further_end(job: Job) -> None:
    job.progress(1, 5)
    for restart in range(batch.MOST_WARNINGS + 1):
        job.begin("42", restart)
        job.signal(start=restart)
        assert job.after(0) == 0
    assert job.commands == ["scontrol requeue 42"] * batch.MOST_WARNINGS
    assert "request more --time" in job.last("stopped")["reason"]


def test_a_killed_rank_is_named_and_tried_again(job: Job) -> None:
    job.progress(2, 7)
    job.log("srun: error: gpu002: task 3: Killed\nsrun: Terminating StepId=42.0\n")
    assert job.after(137) == 137
    assert job.commands == ["scontrol requeue 42"]
    event = job.last("requeued")
    assert (event["because"], event["attempt"], event["of"], event["at"]) == ("failed", 2, 3, [2, 7])
    assert event["reason"].startswith("rank 3 on gpu002 was killed")
    assert job.last("failed")["rank"] == 3


def test_ranks_that_do_not_find_the_code_say_so(job: Job) -> None:
    """As on a node whose file system lags behind: another start may find it."""
    job.log("error: the code of this run is gone: /somewhere/0123.zip")
    assert job.after(CODE_LOST) == CODE_LOST
    assert job.run.read_events("requeued")[0]["reason"] == CODE_LOST_WORDS


def test_three_failures_without_progress_are_enough(job: Job) -> None:
    job.progress(1, 0)
    for restart in range(3):
        job.begin("42", restart)
        job.run.write_status(state="training", epoch=1, step=restart)  # the heartbeat is no checkpoint
        assert job.after(1) == 1
    assert job.commands == ["scontrol requeue 42"] * 2
    assert "gave up after 3 starts without progress" in job.last("failed")["reason"]
    assert (read_json(job.run.status) or {})["state"] == "failed"


def test_progress_begins_the_count_anew(job: Job) -> None:
    for restart in range(6):
        job.begin("42", restart)
        job.progress(1, restart)
        assert job.after(1) == 1
    assert job.commands == ["scontrol requeue 42"] * 6


@pytest.mark.parametrize("said", ["slurmstepd: error: Detected 1 oom_kill event in StepId=42.0.", "ImportError: x"])
def test_what_would_come_again_is_not_tried_again(job: Job, said: str) -> None:
    job.progress(1, 5)
    job.log(f"{said}\nsrun: error: gpu001: task 0: Killed\n")
    assert job.after(137) == 137
    assert job.commands == []
    assert job.last("failed")["reason"]


def test_a_full_disk_is_not_tried_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks could not write down why they failed, so that the batch script has to find out."""

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    job.progress(1, 5)
    monkeypatch.setattr(atomic, "write_bytes", no_room)
    assert job.after(1) == NO_ROOM
    assert job.commands == []


@pytest.mark.parametrize("retry", [True, False])
def test_the_ranks_say_whether_it_may_pass(job: Job, retry: bool) -> None:
    job.progress(1, 5)
    record_failure(job.run, 0, 1, "a reason", retry=retry)
    assert job.after(1) == 1
    assert (job.commands == ["scontrol requeue 42"]) == retry
    assert len(job.run.read_events("failed")) == 1


def test_a_controller_that_is_away_is_waited_for(job: Job) -> None:
    job.answers(
        "scontrol",
        f"[ $(grep -c scontrol {job.asked}) -gt 2 ] ||"
        " { echo 'slurm_update error: Unable to contact slurm controller (connect failure)' >&2; exit 1; }\n",
    )
    job.progress(1, 5)
    job.signal()
    assert job.after(0) == 0
    assert job.commands == ["scontrol requeue 42"] * 3
    assert "stopped" not in events(job.run)


def test_a_refused_requeue_is_said(job: Job) -> None:
    job.answers("scontrol", "echo 'Requested operation is presently disabled' >&2; exit 1\n")
    job.progress(1, 5)
    job.signal()
    assert job.after(0) == 0
    assert "presently disabled): continue with hpc-tumor resume" in job.last("stopped")["reason"]


@pytest.mark.parametrize(
    ("restarts", "requeue", "words"),
    [(batch.MOST_RESTARTS, True, "already restarted"), (0, False, "the cluster does not allow requeueing")],
)
def test_where_it_may_not_be_requeued_a_warned_run_stops(job: Job, restarts: int, requeue: bool, words: str) -> None:
    values = read_json(job.run.job) or {}
    atomic.write_json(
        job.run.job, {**values, "profile": profile_with(slurm={"requeue": requeue}).model_dump(mode="json")}
    )
    job.begin("42", restarts)
    job.progress(1, 5)
    job.signal(start=restarts)
    assert job.after(0) == 0
    assert words in job.last("stopped")["reason"]
    assert job.commands == []


def test_another_job_leaves_the_run_alone(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.begin("41")
    assert job.before() == 1
    assert "job 41 is not the job of" in capsys.readouterr().err
    assert job.after(1) == 1
    assert events(job.run) == ["submitted"]


def test_a_finished_run_needs_no_ranks(job: Job) -> None:
    assert job.before() == 0
    job.run.result.write_text("{}")
    assert job.before() == batch.NOTHING_TO_DO
    assert job.after(134) == 0  # what broke after the result is no failure of the run


def test_a_full_disk_does_not_keep_a_run_out_of_the_queue(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.progress(1, 5)
    job.signal()

    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(RunDir, "add_event", no_room)
    assert job.after(0) == 0
    assert job.commands == ["scontrol requeue 42"]


def test_a_plan_of_another_version_is_said(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    values = read_json(job.run.job) or {}
    atomic.write_json(job.run.job, {**values, "plan": {**values["plan"], "new": 1}})
    job.progress(1, 5)
    job.signal()
    assert job.after(0) == 2
    assert "plan.new = 1: unexpected keyword argument. The request is therefore unknown" in (capsys.readouterr().err)


def test_ranks_of_a_plan_of_another_version_do_not_begin(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    values = read_json(job.run.job) or {}
    atomic.write_json(job.run.job, {**values, "plan": {**values["plan"], "new": 1}})
    assert job.before() == 1
    assert "plan.new = 1: unexpected keyword argument" in (capsys.readouterr().err)
    assert events(job.run) == ["submitted"]


def test_the_number_of_the_job_is_waited_for(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    values = read_json(job.run.job) or {}
    atomic.write_json(job.run.job, {**values, "job_id": None})
    monkeypatch.setattr(job, "sleep", lambda _: atomic.write_json(job.run.job, values))
    assert job.before() == 0


def test_a_number_that_never_came_is_this_jobs(job: Job) -> None:
    """The submitting process was killed before it could record the number."""
    values = read_json(job.run.job) or {}
    atomic.write_json(job.run.job, {**values, "job_id": None})
    assert job.before() == 0
    assert (read_json(job.run.job) or {})["job_id"] == "42"  # so that it can be cancelled
    atomic.write_json(job.run.job, {**values, "job_id": None, "folder": ".submissions-0/of-another-array"})
    assert job.before() == 0
    assert (read_json(job.run.job) or {})["job_id"] is None


def test_the_next_job_of_a_chain_makes_itself_the_runs(chained: Job) -> None:
    (chained.run.logs / "rank-0.0.out").write_text("")
    chained.begin("43")
    assert chained.before() == 0
    job = read_json(chained.run.job) or {}
    assert (job["job_id"], job["chain"], job["start"], job["earlier"]) == ("43", ["44"], 1, ["42"])
    chained.begin("42")
    assert chained.before() == 1  # its time has passed


def test_a_chain_goes_on_by_itself_and_ends_with_the_run(chained: Job) -> None:
    chained.progress(1, 5)
    chained.signal()
    assert chained.after(0) == 0
    assert chained.last("requeued")["because"] == "warned"
    assert chained.commands == []
    chained.run.result.write_text("{}")
    assert chained.after(0) == 0
    assert chained.commands == ["scancel 43", "scancel 44"]


def test_a_chain_ends_with_a_cancelled_link(chained: Job) -> None:
    chained.answers("squeue", "echo '42|name|CANCELLED|1:00|1|N/A|gpu001|None'\n")
    chained.begin("43")
    assert chained.before() == batch.NOTHING_TO_DO
    assert chained.commands == ["scancel 44"]


def test_a_task_of_an_array_finds_its_run(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    other = RunDir.create(job.run.path.parent, small_experiment())
    folder = job.run.path.parent / ".submissions-0" / "x"
    folder.mkdir(parents=True)
    (folder / "runs.json").write_text(json.dumps([job.run.name, other.name]))
    atomic.write_json(other.job, {**(read_json(job.run.job) or {}), "job_id": "40_1"})
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    other.add_event("started")
    other.add_event("signal", signal="USR2", start=0)
    assert batch.main(["before", str(folder)]) == 0
    assert batch.main(["after", str(folder), "0"]) == 0
    assert job.commands == ["scontrol requeue 40_1"]
    assert "requeued" not in events(job.run)


def test_a_chain_whose_next_job_was_cancelled_says_so(chained: Job) -> None:
    chained.answers("squeue", f"echo '43|{chained.run.name}|CANCELLED|0:00|1|N/A||None'")
    chained.progress(1, 5)
    chained.signal()
    assert chained.after(0) == 0
    assert not chained.run.read_events("requeued")
    assert "job 43, the next of its chain, was cancelled" in chained.last("stopped")["reason"]


def test_what_is_recorded_of_a_killed_rank_does_not_say_that_the_run_is_over(job: Job) -> None:
    job.progress(1, 5)
    job.log("srun: error: gpu001: task 1: Killed\n")
    job.after(137)
    failure = Failure.read(job.run.failure(0))
    assert failure is not None
    assert failure.retry
