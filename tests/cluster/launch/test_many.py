"""Many runs: arrays, what is there already, limits; and the code that was submitted is the code that runs."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import signal
import stat
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from launching import events, profile_with, small_experiment

import hpc_tumor
from hpc_tumor.cli import control, launch
from hpc_tumor.cli.planning import LaunchPlan
from hpc_tumor.cluster.describe.profiles import local_profile
from hpc_tumor.cluster.launch import snapshot
from hpc_tumor.cluster.launch.executors import cancel_started
from hpc_tumor.cluster.launch.existing import find_existing
from hpc_tumor.cluster.launch.planned import PlannedRun, share_job
from hpc_tumor.cluster.launch.private import code_folder, locked, make_private, submission_lock
from hpc_tumor.cluster.launch.submit import array_script, group_runs, resume_all, resume_run, submit_all
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.cluster.observe.queue import read_states
from hpc_tumor.cluster.plan.plan import make_plan
from hpc_tumor.config import ClusterProfile, Experiment
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.sources import READERS
from hpc_tumor.errors import ClusterError, DataError, HpcTumorError, PartialFailure, UsageError
from hpc_tumor.run_dir import RunDir, find_runs, read_json
from hpc_tumor.settings import settings_by_name
from hpc_tumor.system import atomic

SECRET = secrets.token_hex(8)
COUNTS = '#!/bin/sh\necho x >> "$0.calls"; cp "$1" "$0.script"\necho "Submitted batch job $(wc -l < "$0.calls")"\n'


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An sbatch that numbers the jobs and takes all of them; a squeue and a sacct that have forgotten them."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sbatch", "srun", "scancel", "squeue", "sacct"):
        (tools / name).write_text(COUNTS if name == "sbatch" else "#!/bin/sh\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    return tools / "sbatch"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of the small experiments, in the working directory."""
    make_phantom(tmp_path / "raw", "brats", 3, seed=1, shape=(32, 32, 12))
    prepare_dataset(READERS["brats"](), tmp_path / "raw", tmp_path / "brats.zarr", workers=1)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "brats.zarr"


def wanted(seeds: range, profile: ClusterProfile, gpus: int = 1) -> list[PlannedRun]:
    return [PlannedRun(small_experiment(seed=seed, gpus=gpus), make_plan(profile, gpus)) for seed in seeds]


def jobs(runs: Path) -> list[str]:
    return [(read_json(run.job) or {})["job_id"] for run in find_runs(runs)]


def test_runs_of_one_shape_are_one_array(tmp_path: Path, sbatch: Path) -> None:
    profile, runs = profile_with(), tmp_path / "runs"
    submitted = submit_all([*wanted(range(3), profile), *wanted(range(2), profile, gpus=2)], profile, runs, at_once=5)
    assert [item.job_id for item in submitted.started] == ["1_0", "1_1", "1_2", "2_0", "2_1"]
    assert sbatch.with_suffix(".script").read_text().count("#SBATCH --array=0-1%2\n") == 1
    run = submitted.started[1].run
    job = read_json(run.job) or {}
    folder = runs / job["folder"]
    assert json.loads((folder / "runs.json").read_text())[1] == run.name
    assert (folder / "1_1_submitted.pkl").is_file()
    assert events(run) == ["submitted"]
    script = (read_json(run.provenance) or {})["script"]
    assert script == next(folder.glob("*_submission.sh")).read_text()
    assert job["job_name"] in script
    for private in (folder, folder.parent, run.submission, runs / f".code-{os.getuid()}"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o700


def test_arrays_are_no_larger_than_slurm_takes(tmp_path: Path, sbatch: Path) -> None:
    profile = profile_with()
    many = wanted(range(5), profile)
    assert [len(group) for group in group_runs(many, profile, max_array_tasks=2)] == [2, 2, 1]
    submitted = submit_all(many, profile, tmp_path / "runs", max_array_tasks=2)
    assert [item.job_id for item in submitted.started] == ["1_0", "1_1", "2_0", "2_1", "3"]


def test_where_requeue_is_forbidden_each_run_has_a_chain(tmp_path: Path, sbatch: Path) -> None:
    profile = profile_with(slurm={"requeue": False, "chain": 3})
    submitted = submit_all(wanted(range(2), profile), profile, tmp_path / "runs")
    assert [(read_json(item.run.job) or {})["chain"] for item in submitted.started] == [["2", "3"], ["5", "6"]]
    assert "#SBATCH --dependency=afterany:5\n" in sbatch.with_suffix(".script").read_text()


def test_what_slurm_refuses_leaves_nothing_and_the_rest_stays(tmp_path: Path, sbatch: Path) -> None:
    profile, runs = profile_with(), tmp_path / "runs"
    sbatch.write_text(
        COUNTS.replace("echo x", '[ -e "$0.calls" ] && { echo "sbatch: error: no" >&2; exit 1; }\necho x')
    )
    planned = LaunchPlan([*wanted(range(2), profile), *wanted(range(2), profile, gpus=2)])
    with pytest.raises(PartialFailure, match=r"2 of 4 runs were submitted, then: SLURM refused"):
        launch.submit(planned, profile, runs)
    assert len(find_runs(runs)) == 2
    assert len(list((runs / f".submissions-{os.getuid()}").iterdir())) == 1


@pytest.mark.parametrize("count", [1, 2], ids=["job", "array"])
def test_what_slurm_refuses_altogether_leaves_nothing_in_the_folder_of_runs(
    tmp_path: Path, sbatch: Path, count: int
) -> None:
    sbatch.write_text('#!/bin/sh\necho "sbatch: error: no" >&2; exit 1\n')
    (tmp_path / "runs").mkdir()
    for runs in (tmp_path / "runs", tmp_path / "new" / "runs"):
        with pytest.raises(ClusterError, match="SLURM refused"):
            launch.submit(LaunchPlan(wanted(range(count), profile_with())), profile_with(), runs)
    assert list((tmp_path / "runs").iterdir()) == []
    assert not (tmp_path / "new").exists()


def test_the_dry_run_shows_the_array(tmp_path: Path, sbatch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile, runs = profile_with(), tmp_path / "runs"
    launch.show_scripts(LaunchPlan(wanted(range(9), profile)), profile, runs, at_once=4)
    said = capsys.readouterr()
    assert said.out.rstrip() == array_script(9, profile, make_plan(profile, 1), runs, 4).rstrip()
    assert "--array=0-8%4" in said.out
    assert "unet, seed 6 and 2 more, each on two-gpu-nodes: 1 node × 1 GPU" in said.err
    assert not runs.exists()


def sharing(profile: ClusterProfile, *shares: float, job: int = 0) -> list[PlannedRun]:
    plan = make_plan(profile, 1)
    planned = [
        PlannedRun(small_experiment(seed=10 * job + seed), plan, share=share) for seed, share in enumerate(shares)
    ]
    return share_job(planned, job)


def test_runs_that_share_a_gpu_are_one_job_of_one_task(tmp_path: Path, sbatch: Path) -> None:
    profile, runs = profile_with(), tmp_path / "runs"
    planned = [*sharing(profile, 0.5, 0.25), *sharing(profile, 0.5, 0.5, job=2)]
    done = submit_all(planned, profile, runs, max_array_tasks=1).started
    assert [item.job_id for item in done] == ["1", "1", "2", "2"]
    records = [JobRecord.of_run(item.run) for item in done]
    assert [job.share for job in records] == pytest.approx([2 / 3, 1 / 3, 0.5, 0.5])
    assert records[0].together == records[1].together == (done[0].run.name, done[1].run.name)
    script = sbatch.with_suffix(".script").read_text()
    assert "--ntasks-per-node=1\n" in script
    assert "--cpus-per-task=12\n" in script
    assert "--gres=gpu:1\n" in script
    assert "--array" not in script
    two = array_script(3, profile, replace(make_plan(profile, 2), runs=3), runs)
    assert "--ntasks-per-node=1\n" in two
    assert "--cpus-per-task=24\n" in two
    assert "--gres=gpu:2\n" in two


def test_runs_that_shared_a_job_are_resumed_in_one_and_alone_have_the_gpu(
    tmp_path: Path, sbatch: Path, store: Path
) -> None:
    profile, runs = profile_with(), tmp_path / "runs"
    done = [item.run for item in submit_all(sharing(profile, 0.5, 0.25, 0.25), profile, runs).started]
    assert resume_all(done[1:]) == {}
    assert [JobRecord.of_run(run).job_id for run in done] == ["1", "2", "2"]
    assert [JobRecord.of_run(run).share for run in done] == [0.5, 0.5, 0.5]
    resume_run(done[0])
    job = JobRecord.of_run(done[0])
    assert (job.job_id, job.share, job.together) == ("3", 1.0, ())
    assert job.plan == make_plan(profile, 1)


def test_what_shares_a_gpu_is_said_before_it_is_submitted(
    tmp_path: Path, sbatch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile, runs = profile_with(limits={"queued_jobs": 1}), tmp_path / "runs"
    planned = [
        PlannedRun(small_experiment(model={"name": "cnn"}, task="classification", seed=seed), make_plan(profile, 1))
        for seed in range(5)
    ]
    launch.show_scripts(LaunchPlan(planned, gpu_bytes=80 * 2**30), profile, runs)
    said = capsys.readouterr()
    assert "share a GPU: cnn, seed 0 (1.7 GB estimated, 33%); cnn, seed 2 " in said.err
    assert "share a GPU: cnn, seed 1 (1.7 GB estimated, 50%); cnn, seed 3 " in said.err
    assert "two-gpu-nodes: 1 node × 1 GPU shared by 3 runs, 12 CPUs per GPU" in said.err
    assert "2 runs not submitted: two-gpu-nodes allows 1 queued jobs" in said.err  # those of the second job
    launch.submit(LaunchPlan(planned[:1], gpu_bytes=80 * 2**30), profile, runs)
    assert "each run has a GPU for itself" in capsys.readouterr().err
    assert JobRecord.of_run(find_runs(runs)[0]).share == 1.0


def finish(run: RunDir) -> None:
    run.result.write_text("{}")


def test_the_same_request_again_starts_only_what_is_missing(
    tmp_path: Path, sbatch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    profile, runs = profile_with(), tmp_path / "runs"
    planned = LaunchPlan(wanted(range(3), profile))
    launch.submit(planned, profile, runs)
    first, second, third = find_runs(runs)
    before = jobs(runs)[:2]
    for run in (first, second):
        finish(run)
    third.add_event("failed", reason="x")
    (third.logs / "failure.0.json").write_text('{"reason": "x"}')
    capsys.readouterr()
    launch.submit(LaunchPlan(wanted(range(4), profile)), profile, runs)
    said = capsys.readouterr().err
    assert "2 of 4 runs exist already (2 finished)" in said
    assert "1 run that ended without a result will resume" in said
    assert len(find_runs(runs)) == 4
    assert [(read_json(run.job) or {})["job_id"] for run in (first, second)] == before
    job = read_json(third.job) or {}
    assert (job["job_id"].partition("_")[0], job["start"]) == ("2", 1)

    for run in find_runs(runs):
        finish(run)
    launch.submit(LaunchPlan(wanted(range(4), profile)), profile, runs)
    assert "all runs exist already" in capsys.readouterr().err
    launch.submit(LaunchPlan(wanted(range(4), profile)), profile, runs, again=True)
    assert len(find_runs(runs)) == 8


def test_the_same_run_twice_is_refused(tmp_path: Path, sbatch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile, runs = profile_with(), tmp_path / "runs"
    planned = LaunchPlan(wanted(range(1), profile))
    launch.submit(planned, profile, runs)
    (run,) = find_runs(runs)
    finish(run)
    with pytest.raises(UsageError, match=rf"{run.name} has the same settings and data and has finished"):
        launch.submit(planned, profile, runs)
    launch.submit(LaunchPlan(wanted(range(7, 8), profile)), profile, runs)  # another seed is another run
    atomic.write_json(run.provenance, {"store": {"fingerprint": "of other data"}})
    launch.submit(planned, profile, runs)
    assert len(find_runs(runs)) == 3


def test_the_same_settings_are_found_with_and_without_a_signature_and_after_an_edit(tmp_path: Path) -> None:
    runs, experiment = tmp_path / "runs", small_experiment(seed=1, store=tmp_path / "brats.zarr")
    run = RunDir.create(runs, experiment)

    def is_there(asked: Experiment = experiment) -> bool:
        return find_existing([asked], runs)[0] is not None

    assert is_there()
    assert not is_there(experiment.model_copy(update={"seed": 2}))
    settings = json.loads(run.config.read_text())
    del settings["tensorboard"]  # which the version that made the run did not have
    run.config.write_text(json.dumps(settings))
    run.signature.unlink()
    assert is_there()
    run.set_gpus(2)
    assert not is_there()
    run.config.write_text(json.dumps({**settings, "seed": 2}))  # later than the signature
    assert is_there(experiment.model_copy(update={"seed": 2}))
    run.signature.write_text(experiment.signature)  # as of a copy
    assert not is_there()


def test_two_commands_cannot_resume_one_run(tmp_path: Path, sbatch: Path) -> None:
    profile, runs = profile_with(), tmp_path / "runs"
    run = submit_all(wanted(range(1), profile), profile, runs).started[0].run
    with (run.submission / "claim").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="being resumed by another command"):
            resume_run(run)
    resume_run(run)  # what the other command left behind does not matter
    assert not (run.submission / "claim").exists()


def test_a_lock_that_goes_with_its_holder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    """Each holder removes the file and its folder, for which others may be waiting, or which they are making."""
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count() -> None:
        for _ in range(25):
            with locked(tmp_path / ".code" / "lock") as alone:
                assert alone
                counter.write_text(str(int(counter.read_text()) + 1))

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(count) for _ in range(8)]:
            done.result()
    assert counter.read_text() == "200"
    assert list(tmp_path.iterdir()) == [counter]


def test_a_command_that_waits_survives_the_removal_of_the_folder(tmp_path: Path) -> None:
    """The first of two submissions to a new folder is refused, and removes it while the second waits for its lock."""
    runs = tmp_path / "new" / "runs"

    def submit() -> bool:
        with submission_lock(runs) as exclusive:
            return exclusive and runs.is_dir()

    with ThreadPoolExecutor(1) as threads:
        with submission_lock(runs):
            second = threads.submit(submit)
            time.sleep(0.2)
        assert second.result()
    assert list(tmp_path.iterdir()) == []


def test_what_may_still_go_on_is_not_resumed(tmp_path: Path, sbatch: Path) -> None:
    profile, runs = profile_with(), tmp_path / "runs"
    run = submit_all(wanted(range(1), profile), profile, runs).started[0].run
    job = read_json(run.job) or {}
    sbatch.with_name("squeue").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(UsageError, match="SLURM does not answer, so"):
        resume_run(run)
    run.add_event("requeued", because="warned")
    with pytest.raises(UsageError, match="SLURM does not answer, so"):
        resume_run(run)
    sbatch.with_name("squeue").write_text("#!/bin/sh\n")
    atomic.write_json(run.job, {**job, "job_id": None, "submitted": time.time()})  # by a command that waits for sbatch
    with pytest.raises(UsageError, match="is queued"):
        resume_run(run)
    assert read_states([run])[0].reason == "is being submitted"
    assert find_existing([run.experiment()], runs)[0] is not None
    assert len(sbatch.with_suffix(".calls").read_text()) == 2


def test_a_run_without_a_job_can_be_asked_for_again(tmp_path: Path, sbatch: Path) -> None:
    profile, runs = profile_with(), tmp_path / "runs"
    first = RunDir.create(runs, small_experiment(seed=1, store=tmp_path / "brats.zarr"))
    launch.submit(
        LaunchPlan([PlannedRun(first.experiment(), make_plan(profile, 1)), *wanted(range(5, 6), profile)]),
        profile,
        runs,
    )
    assert (read_json(first.job) or {})["job_id"] == "1_0"


def test_many_are_resumed_as_one_array_and_cancelled_with_one_call(tmp_path: Path, sbatch: Path, store: Path) -> None:
    profile, runs = profile_with(), tmp_path / "runs"
    submit_all(wanted(range(3), profile), profile, runs)
    found = find_runs(runs)
    control.resume_runs(found, yes=True)
    assert sorted(jobs(runs)) == ["2_0", "2_1", "2_2"]
    names = {run.name for run in found}
    name = (read_json(found[0].job) or {})["job_name"]
    lines = [f"2_{task}|{name}|RUNNING|1:00|1|N/A|n1|None" for task in range(3)]
    sbatch.with_name("squeue").write_text("#!/bin/sh\ncat <<END\n" + "\n".join(lines) + "\nEND\n")
    sbatch.with_name("scancel").write_text('#!/bin/sh\necho "$*" >> "$0.asked"\n')
    control.cancel_runs(found, yes=True)
    (asked,) = sbatch.with_name("scancel.asked").read_text().splitlines()
    assert sorted(asked.split()) == ["2_0", "2_1", "2_2"]
    assert {run.name for run in found if "cancelled" in events(run)} == names


def test_of_many_that_are_resumed_each_failure_is_told(tmp_path: Path, sbatch: Path, store: Path) -> None:
    profile, runs = profile_with(), tmp_path / "runs"
    submit_all(wanted(range(2), profile), profile, runs)
    found = find_runs(runs)
    unsubmitted = RunDir.create(runs, small_experiment(seed=9))
    sbatch.write_text("#!/bin/sh\necho Invalid account >&2; exit 1\n")
    errors = resume_all([*found, unsubmitted])
    assert set(errors) == {run.name for run in (*found, unsubmitted)}
    assert "never submitted" in str(errors.pop(unsubmitted.name))
    assert all("Invalid account" in str(error) for error in errors.values())
    assert {str((read_json(run.job) or {})["job_id"]) for run in found} == {"1_0", "1_1"}


@pytest.mark.parametrize(
    ("cancels", "words"),
    [("exit 0", "the disk is full"), ("exit 1", "could neither be recorded .* nor cancelled .* use scancel")],
)
def test_a_job_that_cannot_be_recorded_is_cancelled(
    tmp_path: Path, sbatch: Path, monkeypatch: pytest.MonkeyPatch, cancels: str, words: str
) -> None:
    write = JobRecord.write

    def refuse(record: JobRecord, run: RunDir, **changed: Any) -> JobRecord:
        if changed.get("job_id"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(record, run, **changed)

    monkeypatch.setattr(JobRecord, "write", refuse)
    sbatch.with_name("scancel").write_text(f'#!/bin/sh\necho "$*" >> "$0.asked"; {cancels}\n')
    profile = profile_with()
    submitted = submit_all(wanted(range(2), profile), profile, tmp_path / "runs")
    assert re.search(words, str(submitted.error))
    assert submitted.started == []
    assert sbatch.with_name("scancel.asked").read_text() == "1\n"


@pytest.mark.parametrize("command", [control.resume_runs, launch.rerun, control.cancel_runs])
def test_what_is_not_confirmed_is_not_done(
    tmp_path: Path, sbatch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: Any
) -> None:
    profile, runs = profile_with(), tmp_path / "runs"
    run = submit_all(wanted(range(1), profile), profile, runs).started[0].run
    name = (read_json(run.job) or {})["job_name"]
    if command is control.cancel_runs:
        sbatch.with_name("squeue").write_text(f"#!/bin/sh\necho '1|{name}|RUNNING|1:00|1|N/A|n1|None'\n")
    before = events(run)
    monkeypatch.setattr(control.out, "confirm", lambda question: False)
    command([run], False)
    assert "nothing was done" in capsys.readouterr().err
    assert events(run) == before
    assert sbatch.with_suffix(".calls").read_text() == "x\n"


def test_of_several_that_are_rerun_those_that_go_on_are_skipped(
    tmp_path: Path, sbatch: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile, runs = profile_with(), tmp_path / "runs"
    first, second = (item.run for item in submit_all(wanted(range(2), profile), profile, runs).started)
    name = (read_json(first.job) or {})["job_name"]
    sbatch.with_name("squeue").write_text(f"#!/bin/sh\necho '1_0|{name}|RUNNING|1:00|1|N/A|n1|None'\n")
    launch.rerun([first, second], yes=True)
    assert "skipped: 1 " in capsys.readouterr().err
    assert sorted(run.experiment().seed for run in find_runs(runs)) == [0, 1, 1]


def test_a_run_that_ended_without_a_result_is_mentioned_where_it_is_submitted_again(
    tmp_path: Path, sbatch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile, runs = profile_with(), tmp_path / "runs"
    run = submit_all(wanted(range(1), profile), profile, runs).started[0].run
    launch.submit(LaunchPlan(wanted(range(1), profile)), profile, runs)
    said = capsys.readouterr().err
    assert f"{run.name} has the same settings and is" in said
    assert "hpc-tumor resume would continue it" in said
    assert len(find_runs(runs)) == 2


def test_a_run_that_is_still_ending_is_not_resumed(tmp_path: Path, sbatch: Path) -> None:
    profile, runs = profile_with(), tmp_path / "runs"
    run = submit_all(wanted(range(1), profile), profile, runs).started[0].run
    name = (read_json(run.job) or {})["job_name"]
    sbatch.with_name("squeue").write_text(f"#!/bin/sh\necho '1|{name}|COMPLETING|1:00|1|N/A|n1|None'\n")
    with pytest.raises(UsageError, match="is still ending: try again"):
        resume_run(run)
    atomic.write_json(run.job, {**(read_json(run.job) or {}), "plan": {"gpus": "many"}})
    assert isinstance(resume_all([run])[run.name], UsageError)


def test_a_process_that_was_just_started_is_ended() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        cancel_started([str(process.pid)], local_profile())
        assert process.wait(10) == -signal.SIGTERM
    cancel_started([str(process.pid)], local_profile())  # it is gone


def test_what_others_may_not_see_is_not_submitted_by_them(tmp_path: Path, sbatch: Path) -> None:
    profile, runs = profile_with(environment={"variables": {"SITE_TOKEN": SECRET}}), tmp_path / "runs"
    run = submit_all(wanted(range(1), profile), profile, runs).started[0].run
    (run.submission / "profile.json").unlink()  # which others cannot read
    with pytest.raises(UsageError, match=r"with secret settings \(SITE_TOKEN\)"):
        launch.rerun([run], yes=True)


def test_only_as_many_as_the_queue_takes(tmp_path: Path, sbatch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile, runs = profile_with(limits={"queued_jobs": 5}), tmp_path / "runs"
    squeue = sbatch.with_name("squeue")
    squeue.write_text("#!/bin/sh\ncase $* in *--user=*) echo 9; echo 10;; esac\n")
    squeue.chmod(0o755)
    launch.submit(LaunchPlan(wanted(range(7), profile)), profile, runs)
    assert len(find_runs(runs)) == 3
    assert "4 runs not submitted" in capsys.readouterr().err
    squeue.write_text("#!/bin/sh\nseq 5\n")
    with pytest.raises(ClusterError, match="0 more can be queued"):
        launch.submit(LaunchPlan(wanted(range(7, 9), profile)), profile, runs)


def test_what_is_known_to_fail_is_not_resumed(
    tmp_path: Path, sbatch: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile, runs = profile_with(), tmp_path / "runs"
    submit_all(wanted(range(3), profile), profile, runs)
    first, *rest = find_runs(runs)
    settings = json.loads(first.config.read_text())
    first.config.write_text(json.dumps({**settings, "recipe": {**settings["recipe"], "epochs": 0}}))
    before = [run.job.read_bytes() for run in (first, *rest)]
    with pytest.raises(UsageError, match=r"config\.json: recipe\.epochs = 0"):
        control.resume_runs([first], yes=True)
    with pytest.raises(PartialFailure, match=r"1 of 3 runs could not be resumed.*recipe\.epochs = 0"):
        control.resume_runs([first, *rest], yes=True)
    assert [run.job.read_bytes() == text for run, text in zip((first, *rest), before, strict=True)] == [1, 0, 0]
    assert sbatch.with_suffix(".calls").read_text() == "x\n" * 2

    first.config.write_text(json.dumps({**settings, "recipe": {**settings["recipe"], "learning_rate": 0.5}}))
    provenance = {**(read_json(first.provenance) or {}), "settings": settings_by_name(rest[0].experiment())}
    first.provenance.write_text(json.dumps(provenance))
    first.last_checkpoint.touch()
    with pytest.raises(DataError, match=r"recipe\.learning_rate = 0\.5, but was 0\.001"):
        control.resume_runs([first], yes=True)
    with pytest.raises(DataError, match=r"recipe\.learning_rate = 0\.5, but was 0\.001"):
        resume_run(first)
    assert sbatch.with_suffix(".calls").read_text() == "x\n" * 2

    store.rename(store.with_name("elsewhere"))
    for again in (control.resume_runs, launch.rerun):
        with pytest.raises(DataError, match=f"there is no store {store}"):
            again(rest[:1], yes=True)
    assert sbatch.with_suffix(".calls").read_text() == "x\n" * 2
    assert len(find_runs(runs)) == 3


REFUSED = {
    "a path that SLURM misreads": "cannot contain a backslash",
    "a file": "is not a folder",
    "a folder of code that is a link": "not a folder of yours",
    "what is there": "has the same settings and data",
    "a full queue": "0 more can be queued",
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_dry_run_refuses_what_submit_refuses(tmp_path: Path, sbatch: Path, case: str) -> None:
    profile, runs = profile_with(limits={"queued_jobs": 5}), tmp_path / ("%j" if "path" in case else "runs")
    if case == "a file":
        runs.write_text("")
    elif "link" in case:
        runs.mkdir()
        code_folder(runs).symlink_to(tmp_path)
    elif case == "what is there":
        submit_all(wanted(range(1), profile), profile, runs).started[0].run.result.write_text("{}")
    elif "queue" in case:
        sbatch.with_name("squeue").write_text("#!/bin/sh\nseq 5\n")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(HpcTumorError, match=REFUSED[case]):
        launch.show_scripts(LaunchPlan(wanted(range(1), profile)), profile, runs)
    assert set(tmp_path.rglob("*")) == before
    with pytest.raises(HpcTumorError, match=REFUSED[case]):
        launch.submit(LaunchPlan(wanted(range(1), profile)), profile, runs)


def test_the_dry_run_shows_only_what_would_be_submitted(
    tmp_path: Path, sbatch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile, runs = profile_with(), tmp_path / "runs"
    submit_all(wanted(range(2), profile), profile, runs).started[0].run.result.write_text("{}")
    launch.show_scripts(LaunchPlan(wanted(range(3), profile)), profile, runs)
    assert "dry run of 2 runs" in capsys.readouterr().err
    launch.show_scripts(LaunchPlan(wanted(range(3), profile)), profile, runs, again=True)
    assert "dry run of 3 runs" in capsys.readouterr().err


def test_rerun_is_new_runs_as_the_old_ones_were_asked_for(tmp_path: Path, sbatch: Path, store: Path) -> None:
    profile, runs = profile_with(environment={"variables": {"SITE_TOKEN": SECRET}}), tmp_path / "runs"
    old = submit_all(wanted(range(2), profile), profile, runs).started
    launch.rerun([item.run for item in old], yes=True)
    new = find_runs(runs)
    assert len(new) == 4
    assert sorted(run.experiment().seed for run in new) == [0, 0, 1, 1]
    assert f"export SITE_TOKEN={SECRET}" in sbatch.with_suffix(".script").read_text()
    for run in new:  # what others may read does not hold it
        for path in (run.job, run.provenance, run.config):
            assert SECRET not in path.read_text()


@pytest.mark.slow
def test_a_snapshot_is_the_code_as_it_was(tmp_path: Path) -> None:
    old = make_private(code_folder(tmp_path)) / "0123.zip"
    for name, days in ((old, 200), (old.with_name("4567.zip"), 100)):
        name.touch()
        os.utime(name, (time.time() - days * 86_400,) * 2)
    path = snapshot.take_snapshot(tmp_path)
    assert {found.name for found in path.parent.iterdir()} == {path.name, "4567.zip"}
    assert path == snapshot.snapshot_path(tmp_path) == snapshot.take_snapshot(tmp_path)
    code = "import hpc_tumor.cluster.node.job, hpc_tumor.training.recipe; print(hpc_tumor.__file__)"
    variables = {**os.environ, "PYTHONPATH": str(path), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=variables)
    assert done.stdout.strip() == f"{path}/hpc_tumor/__init__.py"
    package = Path(hpc_tumor.__file__).parent
    with zipfile.ZipFile(path) as archive:
        packed = {name.removeprefix("hpc_tumor/") for name in archive.namelist()}
        assert archive.read("hpc_tumor/run_dir.py") == (package / "run_dir.py").read_bytes()
    there = {file.relative_to(package).as_posix() for file in package.rglob("*") if file.is_file()}
    assert packed == {name for name in there if "__pycache__" not in name}


def test_a_damaged_snapshot_is_written_anew_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_private(code_folder(tmp_path))
    path = snapshot.take_snapshot(tmp_path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[:1000], b"", bytes(flipped)):
        path.write_bytes(damaged)
        assert snapshot.take_snapshot(tmp_path).read_bytes() == whole
        assert f"{path} was damaged and has been rewritten" in " ".join(capsys.readouterr().err.split())
    snapshot.take_snapshot(tmp_path)
    assert capsys.readouterr().err == ""


def test_a_folder_of_somebody_else_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_private(tmp_path / "mine") == make_private(tmp_path / "mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match="not a folder of yours"):
        make_private(tmp_path / "link")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UsageError, match="not a folder of yours"):
        make_private(tmp_path / "mine")


@pytest.mark.slow
def test_two_commands_at_the_same_moment_start_a_run_once(tmp_path: Path, sbatch: Path) -> None:
    """The second waits until the first has written down what it started, and then refuses."""
    sbatch.write_text(COUNTS.replace("echo x", "sleep 1\necho x"))
    sbatch.with_name("squeue").write_text("#!/bin/sh\nexit 1\n")  # what it does not say may well go on
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from pathlib import Path; from launching import profile_with, small_experiment\n"
        "from hpc_tumor.cli import launch; from hpc_tumor.cluster.plan.plan import make_plan\n"
        "from hpc_tumor.cluster.launch.planned import PlannedRun; from hpc_tumor.cli.planning import LaunchPlan\n"
        "profile = profile_with()\n"
        "launch.submit(LaunchPlan([PlannedRun(small_experiment(), make_plan(profile, 1))]), profile, Path('runs'))\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parents[1]), str(Path(hpc_tumor.__file__).parent.parent)]
    both = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    assert any("has the same settings and data and is unknown" in text for text in said), said
    assert len(find_runs(tmp_path / "runs")) == 1


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, sbatch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    launch.submit(LaunchPlan(wanted(range(1), profile_with())), profile_with(), tmp_path / "runs")
    assert "has no file locks: run only one submit command there at a time" in " ".join(capsys.readouterr().err.split())
    assert len(find_runs(tmp_path / "runs")) == 1


def test_what_still_goes_on_is_not_rerun(tmp_path: Path, sbatch: Path) -> None:
    profile, runs = profile_with(), tmp_path / "runs"
    run = submit_all(wanted(range(1), profile), profile, runs).started[0].run
    name = (read_json(run.job) or {})["job_name"]
    sbatch.with_name("squeue").write_text(f"#!/bin/sh\necho '1|{name}|RUNNING|1:00|1|N/A|n1|None'\n")
    with pytest.raises(UsageError, match="is running: it can be rerun once it has ended"):
        launch.rerun([run], yes=True)
