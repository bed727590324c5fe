"""Files that nobody needs any more go when it is asked for, and nothing else."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from launching import profile_with, small_experiment

from hpc_tumor import cli
from hpc_tumor.cluster.launch.private import code_folder, make_private, submission_lock
from hpc_tumor.cluster.observe.clean import QUIET_SECONDS, Cleaning, clean
from hpc_tumor.data.convert.target import identity_of, open_target
from hpc_tumor.errors import DataError
from hpc_tumor.run_dir import RunDir

DAYS = 86_400.0


@pytest.fixture(autouse=True)
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """File with the answer of squeue; no profile names a disk."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("squeue", "sacct"):
        (folder / name).write_text(f"#!/bin/sh\ncat {folder}/{name}.says\n")
        (folder / name).chmod(0o755)
        (folder / f"{name}.says").touch()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr("hpc_tumor.cluster.observe.clean.list_profiles", lambda: ([], []))
    return folder / "squeue.says"


def make_run(runs: Path, job_id: str = "42", finished: bool = True, **job: Any) -> RunDir:
    """A run with everything that runs leave behind, and one pickle of its job."""
    run = RunDir.create(runs, small_experiment(runs / "brats.zarr"))
    job = {"cluster": "orfeo", "job_id": job_id, "job_name": run.name, "submitted": time.time(), **job}
    run.job.write_text(json.dumps(job))
    run.add_event("submitted")
    kept = (run.best_weights, run.epoch_checkpoint(5), run.submission / f"{job_id}_0_log.out", run.metrics)
    for path in (*kept, run.last_checkpoint, run.previous_checkpoint, run.submission / f"{job_id}_submitted.pkl"):
        path.write_bytes(bytes(1000))
    if finished:
        run.result.write_text(json.dumps({"weights_lost": None}))
    return run


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_mode for path in folder.rglob("*")}


def gone(runs: Path, **how: Any) -> set[str]:
    """Names of the files and folders that went, without what is below them."""
    before = tree(runs)
    done = clean(runs, delete=True, **how)
    assert not done.failed
    left = tree(runs)
    return {
        Path(name).name for name in before if name not in left and str(Path(name).parent) not in before.keys() - left
    }


def test_of_finished_runs_checkpoints_and_pickles_go_and_what_is_read_later_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    before = tree(tmp_path)
    shown = clean(tmp_path / "runs")
    assert tree(tmp_path) == before
    (size,) = shown.sizes
    assert (len(shown.of("checkpoints")), len(shown.of("pickles"))) == (2, 1)
    assert size.may_go == 3000
    assert size.files == len([path for path in run.path.rglob("*") if path.is_file()])
    assert gone(tmp_path / "runs") == {"last.pt", "previous.pt", "42_submitted.pkl"}
    assert run.scored_weights().is_file()
    again = clean(tmp_path / "runs", delete=True)
    assert (again.leftovers, again.sizes[0].files) == ([], size.files - 3)


def test_pickles_of_an_array_go_for_its_finished_runs_alone(tmp_path: Path, squeue: Path) -> None:
    runs, name = tmp_path / "runs", f".submissions-{os.getuid()}/20260101-000000-aaaaaa"
    make_run(runs, "42_0", folder=name)
    make_run(runs, "42_1", folder=name, finished=False, job_name="hpc-tumor-aaaaaa")
    squeue.write_text("42_1|hpc-tumor-aaaaaa|RUNNING|5:00|1|N/A|n1|None\n")
    (runs / name).mkdir(parents=True)
    for task in (
        "42_0_0_log.out",
        "42_0_submitted.pkl",
        "42_0_0_result.pkl",
        "42_1_submitted.pkl",
        "42_10_submitted.pkl",
    ):
        (runs / name / task).touch()
    went = gone(runs)
    assert {"42_0_submitted.pkl", "42_0_0_result.pkl"} <= went
    assert {path.name for path in (runs / name).iterdir()} == {
        "42_0_0_log.out", "42_1_submitted.pkl", "42_10_submitted.pkl"
    }  # fmt: skip


@pytest.mark.parametrize("case", ["queued", "running", "ending", "unreadable", "stopped", "lost best", "no best"])
def test_what_a_run_may_still_need_stays(tmp_path: Path, squeue: Path, case: str) -> None:
    run = make_run(tmp_path / "runs", finished=case in ("ending", "lost best", "no best"))
    state = {"queued": "PENDING", "running": "RUNNING", "ending": "COMPLETING"}.get(case)
    if state:
        squeue.write_text(f"42|{run.name}|{state}|5:00|1|N/A|n1|None\n")
    if case == "unreadable":
        run.job.write_text("{")
    if case == "stopped":
        run.write_status(state="stopped")
    if case == "lost best":
        run.result.write_text(json.dumps({"weights_lost": "damaged"}))
    if case == "no best":
        run.best_weights.unlink()
    went = gone(tmp_path / "runs")
    assert "last.pt" not in went
    assert "previous.pt" not in went
    if case not in ("lost best", "no best"):
        assert not went


def test_temporary_files_go_once_nobody_can_be_writing_them(tmp_path: Path, squeue: Path) -> None:
    runs = tmp_path / "runs"
    stopped, running = make_run(runs, "42", finished=False), make_run(runs, "43", finished=False)
    stopped.write_status(state="stopped")
    squeue.write_text(f"43|{running.name}|RUNNING|5:00|1|N/A|n1|None\n")
    half = runs / ".20260101-000000-unet-aaaaaa"
    (half / "logs").mkdir(parents=True)
    beside = runs / ".results.csv.tmp"
    old = [stopped.checkpoints / ".last.pt.new.tmp", running.checkpoints / ".last.pt.old.tmp", beside, half]
    new = [stopped.path / ".status.json.abcd.tmp", runs / ".results.md.tmp"]
    (runs / ".20260101-000000-unet-bbbbbb").mkdir()
    for path in (*old[:3], *new):
        path.touch()
    for path in old:
        os.utime(path, (time.time() - 2 * QUIET_SECONDS,) * 2)
    assert gone(runs) == {".last.pt.new.tmp", beside.name, half.name}


def test_code_goes_that_no_unfinished_run_needs(tmp_path: Path, squeue: Path) -> None:
    runs, now = tmp_path / "runs", time.time()
    make_run(runs, "41")
    stopped, running = (
        make_run(runs, "42", finished=False),
        make_run(runs, "43", finished=False, submitted=now - 10 * DAYS),
    )
    stopped.provenance.write_text(json.dumps({"code": "named.zip"}))
    squeue.write_text(f"43|{running.name}|RUNNING|5:00|1|N/A|n1|None\n")
    folder = runs / f".code-{os.getuid()}"
    folder.mkdir(mode=0o700)
    for name, age in {"named": 90, "old": 90, "submitted-since": 9, "new": 0}.items():
        (folder / f"{name}.zip").touch()
        os.utime(folder / f"{name}.zip", (now - age * DAYS,) * 2)
    assert gone(runs) >= {"old.zip"}
    assert {path.name for path in folder.glob("*.zip")} == {"named.zip", "submitted-since.zip", "new.zip"}
    running.result.write_text("{}")
    squeue.write_text("")
    gone(runs)
    assert {path.name for path in folder.glob("*.zip")} == {"named.zip"}


def test_links_and_what_is_behind_them_stay(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    elsewhere = make_run(tmp_path / "elsewhere", "41")
    linked, inside, file = (make_run(runs, str(number)) for number in (42, 43, 44))
    (runs / elsewhere.name).symlink_to(elsewhere.path)
    inside.checkpoints.rename(tmp_path / "scratch")
    inside.checkpoints.symlink_to(tmp_path / "scratch")
    file.last_checkpoint.rename(tmp_path / "last.pt")
    file.last_checkpoint.symlink_to(tmp_path / "last.pt")
    clean(runs, delete=True)
    assert not linked.last_checkpoint.exists()
    kept = (elsewhere.last_checkpoint, inside.last_checkpoint, tmp_path / "scratch" / "last.pt", file.last_checkpoint)
    assert all(path.exists() for path in kept)
    assert file.last_checkpoint.is_symlink()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_what_others_own_stays_and_its_size_is_shown(tmp_path: Path) -> None:
    theirs, mixed = make_run(tmp_path / "runs", "42"), make_run(tmp_path / "runs", "43")
    os.chown(theirs.path, 4242, 4242)
    os.chown(mixed.last_checkpoint, 4242, 4242)
    done = clean(tmp_path / "runs", delete=True)
    assert theirs.last_checkpoint.exists()
    assert mixed.last_checkpoint.exists()
    assert not mixed.previous_checkpoint.exists()
    (size,) = [size for size in done.sizes if size.run == theirs.name]
    assert (size.left_alone, size.bytes > 5000) == ("another user's", True)


def test_unfinished_work_in_a_store_goes_unless_a_conversion_holds_it(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    make_run(runs)
    store = runs / "brats.zarr"
    with open_target(store, identity_of("brats", "segmentation", {}), overwrite=False) as target:
        (target.staging / "case").write_bytes(bytes(500))
        assert clean(runs).of("staging") == []
    store.mkdir()
    (store / ".staging-dead0000").mkdir()
    (store / ".staging-dead0000" / "case").write_bytes(bytes(500))
    assert [item.bytes for item in clean(runs).of("staging")] == [500]
    assert ".staging-dead0000" in gone(runs)
    assert store.is_dir()


def test_copies_on_this_machines_disk_go_unless_a_run_reads_them(tmp_path: Path) -> None:
    runs, disk = tmp_path / "runs", tmp_path / "disk"
    profile = profile_with(environment={"node_disk": str(disk)})
    make_run(runs, profile=profile.model_dump(mode="json"))
    folder = disk / f"hpc-tumor-{os.getuid()}-{socket.gethostname()}"
    for name in ("used", "unused"):
        (folder / name).mkdir(parents=True)
        (folder / name / "data").write_bytes(bytes(700))
        (folder / f"{name}.lock").touch()
    with (folder / "used.lock").open() as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        assert [item.path.name for item in clean(runs).of("copies")] == ["unused"]
        clean(runs, delete=True)
    assert (folder / "used" / "data").exists()
    assert not (folder / "unused").exists()


def test_nothing_goes_while_another_command_submits(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    done: list[Cleaning] = []
    cleaning = threading.Thread(target=lambda: done.append(clean(tmp_path / "runs", delete=True)))
    with submission_lock(tmp_path / "runs"):
        cleaning.start()
        cleaning.join(0.3)
        assert run.last_checkpoint.exists()
    cleaning.join()
    assert not run.last_checkpoint.exists()
    assert len(done) == 1


def test_the_command_shows_first_and_removes_when_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = make_run(tmp_path / "runs", "42"), make_run(tmp_path / "runs", "43")
    assert cli.main(["clean"]) == 0
    shown = capsys.readouterr()
    assert "checkpoints of finished runs" in shown.out
    assert "hpc-tumor clean --delete" in shown.err
    assert first.last_checkpoint.exists()
    assert cli.main(["clean", first.name, "--delete", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["removed"]
    assert values["kinds"]["checkpoints"] == {"files": 2, "bytes": 2000}
    assert [run["run"] for run in values["runs"]] == [first.name]
    assert [run.last_checkpoint.exists() for run in (first, second)] == [False, True]
    assert cli.main(["status", "--json"]) == 0
    assert [run["state"] for run in json.loads(capsys.readouterr().out)] == ["finished", "finished"]


@pytest.mark.parametrize(
    ("answer", "failed"),
    [
        (False, "in use again"), (FileNotFoundError(), None), (DataError("in use by a conversion."), "in use by a"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
    ],
)  # fmt: skip
def test_a_copy_that_changed_since_it_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, failed: str | None
) -> None:
    make_run(tmp_path / "runs", profile=profile_with(environment={"node_disk": "/disk"}).model_dump(mode="json"))
    copy = tmp_path / "copy"
    copy.mkdir()
    monkeypatch.setattr("hpc_tumor.cluster.observe.clean.list_copies", lambda disk: [copy])
    monkeypatch.setattr("hpc_tumor.cluster.observe.clean.remove_copy", MagicMock(side_effect=[answer]))
    done = clean(tmp_path / "runs", delete=True)
    assert len(done.of("copies")) == (failed is None)
    assert str(done.failed.get(copy, "")).startswith(failed or "")
    assert len(done.failed) == (failed is not None)


def test_without_locks_code_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "runs")
    code = make_private(code_folder(tmp_path / "runs")) / "0123.zip"
    code.touch()
    monkeypatch.setattr("hpc_tumor.cluster.observe.clean.submission_lock", lambda runs: nullcontext(False))
    done = clean(tmp_path / "runs", delete=True)
    assert list(done.failed) == [code]
    assert (code.exists(), len(done.of("checkpoints"))) == (True, 2)


@pytest.mark.parametrize(("age", "goes"), [(0.0, False), (DAYS, True)])
def test_while_slurm_does_not_answer_runs_that_just_ended_are_left_alone(
    tmp_path: Path, squeue: Path, age: float, goes: bool
) -> None:
    run = make_run(tmp_path / "runs")
    os.utime(run.result, (time.time() - age,) * 2)
    squeue.with_name("squeue").write_text("#!/bin/sh\nexit 1\n")
    assert bool(gone(tmp_path / "runs")) is goes


def test_what_cannot_be_removed_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "runs")
    unlink = Path.unlink

    def refuse(path: Path, **how: bool) -> None:
        if path.name == "last.pt":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        unlink(path, **how)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert cli.main(["clean", "--runs", str(tmp_path / "runs"), "--delete"]) == 5
    shown = capsys.readouterr()
    assert "1 file could not be removed. The first, " in shown.err
    assert "last.pt: Permission denied" in shown.err
