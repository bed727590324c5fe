"""Runs on this machine, with ranks that stand in for training: real processes, signals, files and locks, no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from launching import STAND_IN, events, small_experiment, submit_experiment, wait_for

from hpc_tumor.cluster.cancel import cancel
from hpc_tumor.cluster.describe.profiles import local_profile
from hpc_tumor.cluster.launch.snapshot import snapshot_path
from hpc_tumor.cluster.launch.submit import resume_run
from hpc_tumor.cluster.node import local, local_queue
from hpc_tumor.cluster.observe.logs import log_text
from hpc_tumor.cluster.observe.queue import read_states
from hpc_tumor.cluster.plan.plan import make_plan
from hpc_tumor.errors import UsageError
from hpc_tumor.run_dir import RunDir, find_runs, read_json

Submit = Callable[..., RunDir]


@pytest.fixture
def submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Submit]:
    """Submits a run whose ranks do as they are told; nothing of it is left when the test ends."""
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)

    def started(task: str, gpus: int = 1, share: float = 1.0) -> RunDir:
        monkeypatch.setenv("STAND_IN", task)
        profile = local_profile()
        plan = make_plan(profile, gpus)
        runs.append(submit_experiment(small_experiment(gpus=gpus), profile, plan, Path("my runs"), share).run)
        return runs[-1]

    runs: list[RunDir] = []
    yield started
    for process in {process for run in runs for process in processes_of(run)}:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@pytest.fixture
def handlers() -> Iterator[None]:
    """The handlers of signals that a run installs are gone when the test ends."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def state_of(run: RunDir) -> str:
    return read_states([run])[0].state


def processes_of(run: RunDir) -> list[int]:
    """Living processes whose command line names the run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes()
        except OSError:
            continue
        if str(run.path).encode() in text:
            found.append(int(path.parent.name))
    return found


def ended(run: RunDir) -> bool:
    return run.name not in local_queue.positions(run.path.parent) and not processes_of(run)


@pytest.mark.slow
def test_two_ranks_finish(submit: Submit) -> None:
    run = submit("finish", gpus=2)
    wait_for(lambda: ended(run))
    assert state_of(run) == "finished"
    assert events(run) == ["submitted", "started", "finished"]
    assert read_json(run.result) == {"run": run.name, "gpus": 2}
    assert "rank 1 of 2" in log_text(run, rank=1)
    assert list((run.path.parent / f".queue-{os.getuid()}").glob("0*")) == []


@pytest.mark.slow
def test_ranks_import_nothing_from_the_current_folder(submit: Submit, tmp_path: Path) -> None:
    for name in ("types", "enum", "signal", "numpy", "torch", "hpc_tumor"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(f'{__file__} was imported')\n")
    run = submit("finish", gpus=2)
    wait_for(lambda: ended(run))
    assert state_of(run) == "finished", log_text(run)


@pytest.mark.slow
def test_runs_go_one_after_another(submit: Submit) -> None:
    first, second, third = submit("wait"), submit("finish"), submit("finish")
    wait_for(lambda: "started" in events(first))
    states = read_states([first, second, third])
    assert [state.state for state in states] == ["running", "queued", "queued"]
    assert states[2].reason == "waiting for 2 earlier runs on this machine"
    cancel(states[1])  # while it waits
    cancel(states[0])  # at work: it saves, and the next one goes on
    wait_for(lambda: state_of(third) == "finished")
    assert [state_of(first), state_of(second)] == ["cancelled", "cancelled"]
    assert events(first) == ["submitted", "started", "cancelled", "signal"] or events(first)[-2:] == [
        "signal",
        "cancelled",
    ]
    assert events(second) == ["submitted", "cancelled"]
    assert (read_json(first.status) or {})["state"] == "stopped"


@pytest.mark.slow
def test_runs_that_fit_on_the_gpu_together_go_side_by_side(submit: Submit) -> None:
    first, second, third = (submit("wait", share=share) for share in (0.625, 0.25, 0.25))
    for run in (first, second):
        wait_for(lambda run=run: "started" in events(run))
    assert [state_of(run) for run in (first, second, third)] == ["running", "running", "queued"]
    cancel(read_states([first])[0])
    wait_for(lambda: "started" in events(third))
    assert state_of(second) == "running"
    wait_for(lambda: ended(first))
    resumed = resume_run(first).run  # needs as much as before: it waits
    assert local_queue.share_of(first.path.parent, first.name) == 0.625
    assert state_of(resumed) in ("queued", "running")


def test_memory_in_use_is_that_of_the_fullest_gpu_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\necho x >> $0.calls\necho 0, GPU-a, 100, 10\necho 1, GPU-b, 100, 20\necho 2, GPU-c, 100, 90\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    in_use = local.MemoryInUse(2)
    assert [in_use(), in_use()] == [0.2, 0.2]
    assert smi.with_name("nvidia-smi.calls").read_text() == "x\n"


def passes_signals_on(process: int) -> bool:
    """True once it has imported what a run needs, and waits for its turn; never of submitit, which watches over it."""
    with suppress(OSError):
        if b"submitit.local" in Path(f"/proc/{process}/cmdline").read_bytes():
            return False
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGUSR2 - 1) & 1)
    return False


@pytest.mark.slow
def test_a_run_whose_code_is_lost_while_it_waits_runs_no_other(submit: Submit) -> None:
    first, second = submit("wait"), submit("finish")
    wait_for(lambda: "started" in events(first))
    wait_for(lambda: any(map(passes_signals_on, processes_of(second))))
    snapshot_path(second.path.parent).unlink()
    cancel(read_states([first])[0])
    wait_for(lambda: ended(second))
    (state,) = read_states([second])
    assert (state.state, events(second)) == ("failed", ["submitted", "failed"])
    assert "the submitted code is gone or damaged: continue with hpc-tumor resume" in state.reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("refuse:1", "the store is of a newer schema."),
        ("crash:1", "ValueError: a defect in two lines"),
        ("die:1", "rank 1 was killed (SIGKILL): by a user, or by the system because memory ran out"),
    ],
)
def test_first_failing_rank_ends_the_rest(submit: Submit, task: str, reason: str) -> None:
    run = submit(task, gpus=3)
    wait_for(lambda: ended(run))
    state = read_states([run])[0]
    assert (state.state, state.reason) == ("failed", reason)
    assert events(run).count("failed") == 1
    assert (read_json(run.status) or {})["state"] == "failed"
    assert not run.result.exists()
    assert (run.logs / "rank-1.0.error.txt").exists() == (task != "die:1")
    assert log_text(run, errors=True).startswith(reason)
    assert ("Traceback" in log_text(run, errors=True)) == (task == "crash:1")


def test_a_killed_rank_is_recorded_before_the_others_end() -> None:
    """They notice that they lost it, and are to find it recorded already."""
    doomed, survivor = (subprocess.Popen(["sleep", "30"]) for _ in range(2))
    alive: list[bool] = []
    doomed.kill()
    ranks = local.RankGroup(
        [survivor, doomed],
        lambda rank, code: alive.append((rank, code) == (1, -signal.SIGKILL) and survivor.poll() is None),
    )
    wait_for(lambda: not ranks.poll())
    assert (ranks.failed, alive, survivor.returncode) == (1, [True], -signal.SIGTERM)


@pytest.mark.slow
def test_ranks_end_with_what_started_them(submit: Submit) -> None:
    run = submit("deaf", gpus=2)
    wait_for(lambda: "started" in events(run))
    controller = int((read_json(run.job) or {})["job_id"])
    (starter,) = (int(word) for word in Path(f"/proc/{controller}/task/{controller}/children").read_text().split())
    os.kill(starter, signal.SIGKILL)
    wait_for(lambda: ended(run), seconds=10)
    assert state_of(run) == "lost"


@pytest.mark.slow
def test_a_dead_run_lets_the_next_one_go(submit: Submit) -> None:
    first, second = submit("wait"), submit("finish")
    wait_for(lambda: "started" in events(first))
    os.kill(int((read_json(first.job) or {})["job_id"]), signal.SIGKILL)
    wait_for(lambda: state_of(second) == "finished")


@pytest.mark.slow
def test_resume(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    run = submit("wait")
    wait_for(lambda: "started" in events(run))
    with pytest.raises(UsageError, match="is running"):
        resume_run(run)
    cancel(read_states([run])[0])
    wait_for(lambda: ended(run))
    monkeypatch.setenv("STAND_IN", "finish")
    resume_run(run)
    wait_for(lambda: state_of(run) == "finished")
    assert (read_json(run.job) or {})["start"] == 1
    assert "restart 1" in log_text(run)
    with pytest.raises(UsageError, match="is finished"):
        resume_run(run)
    with pytest.raises(UsageError, match="nothing to cancel"):
        wait_for(lambda: ended(run)) and cancel(read_states([run])[0])


@pytest.mark.slow
def test_survives_logout(submit: Submit) -> None:
    run = submit("wait")
    job_id = int(json.loads(run.job.read_text())["job_id"])
    assert os.getsid(job_id) == job_id != os.getsid(0)
    wait_for(lambda: "started" in events(run))
    ranks = [process for process in processes_of(run) if process != job_id]
    assert {os.getsid(process) for process in ranks} == {job_id}
    cancel(read_states([run])[0])
    wait_for(lambda: ended(run))


@pytest.mark.slow
def test_a_submission_that_is_ended_leaves_no_process_without_its_run(
    submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = subprocess.Popen

    def interrupted(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = popen(*arguments, **options)
        if "submitit.local._local" in arguments[0]:
            os.kill(os.getpid(), signal.SIGINT)
        return process

    first = submit("finish")
    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        submit("finish")
    monkeypatch.setattr(subprocess, "Popen", popen)
    (run,) = [run for run in find_runs(first.path.parent) if run.name != first.name]
    assert int((read_json(run.job) or {})["job_id"]) > 0
    wait_for(lambda: ended(run))
    assert state_of(run) == "finished"


@pytest.mark.slow
def test_a_run_begins_though_the_folder_it_was_submitted_from_is_gone(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, folder = submit("wait"), tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    plan = make_plan(local_profile(), 1)
    second = submit_experiment(small_experiment(), local_profile(), plan, first.path.parent).run
    monkeypatch.chdir(tmp_path)
    folder.rmdir()
    cancel(read_states([first])[0])
    wait_for(lambda: "started" in events(second))
    (rank,) = [pid for pid in processes_of(second) if b"RANK=0" in Path(f"/proc/{pid}/environ").read_bytes()]
    assert Path(f"/proc/{rank}/cwd").readlink() == second.path
    cancel(read_states([second])[0])
    wait_for(lambda: ended(second))


@pytest.mark.slow
def test_gpus_are_left_as_they_were(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    run = submit("wait", gpus=2)
    wait_for(lambda: "started" in events(run))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    other = submit("wait", gpus=2)
    cancel(read_states([run])[0])
    wait_for(lambda: "started" in events(other))
    environments = [Path(f"/proc/{process}/environ").read_bytes().split(b"\0") for process in processes_of(other)]
    assert all(b"CUDA_VISIBLE_DEVICES=2,3" in environment for environment in environments)
    assert {b"RANK=0", b"RANK=1"} <= {entry for environment in environments for entry in environment}
    cancel(read_states([other])[0])
    wait_for(lambda: ended(other))


def test_what_fails_before_the_ranks_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handlers: None
) -> None:
    run = RunDir.create(tmp_path, small_experiment())
    run.job.write_text(json.dumps({"cluster": "local", "job_id": "1", "start": 2}))
    local_queue.take_ticket(tmp_path, run.name).hand_over()
    run.config.write_text('{"model": ')
    monkeypatch.setattr(local, "end_with_parent", lambda *_: None)
    monkeypatch.setattr(local, "is_turn", lambda *_: True)
    with pytest.raises(UsageError, match="no readable config"):
        local.LocalRun(run.path)()
    state = read_states([run])[0]
    assert (state.state, state.reason) == (
        "failed", f"{run.path} is not a run directory: it has no readable config.json."
    )  # fmt: skip
    assert log_text(run, errors=True).startswith(state.reason)
