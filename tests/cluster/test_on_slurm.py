"""The main job, and what happens to runs, on the real SLURM that tools/slurm_cluster.py starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launching import STAND_IN, events, small_experiment, submit_experiment, wait_for
from local_slurm import LOCAL_TEST

import hpc_tumor
from hpc_tumor.cluster.cancel import cancel
from hpc_tumor.cluster.describe.profiles import find_profile
from hpc_tumor.cluster.launch.planned import PlannedRun
from hpc_tumor.cluster.launch.submit import job_script, submit_all
from hpc_tumor.cluster.observe.logs import log_text
from hpc_tumor.cluster.observe.queue import read_states
from hpc_tumor.cluster.observe.states import RunState
from hpc_tumor.cluster.plan.plan import make_plan
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.errors import ClusterError
from hpc_tumor.run_dir import RunDir, find_runs, read_json

pytestmark = pytest.mark.slow
Submit = Callable[..., RunDir]


@pytest.fixture
def on_slurm(slurm: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM's commands reach the test cluster from this process."""
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("HPC_TUMOR_ACCOUNT", raising=False)


@pytest.fixture
def submit(on_slurm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Submits a run; where it is told a task, its ranks only stand in for training. Leaves no job behind."""
    runs: list[RunDir] = []

    def started(gpus: int, stand_in: str | None = None, **settings: Any) -> RunDir:
        if stand_in is None:
            monkeypatch.delenv("STAND_IN", raising=False)
        else:
            monkeypatch.setenv("STAND_IN", stand_in)
            monkeypatch.setenv("PYTHONPATH", f"{STAND_IN}:")  # as `export PYTHONPATH=FOLDER:$PYTHONPATH` leaves it
        profile = find_profile(LOCAL_TEST)
        plan = make_plan(profile, gpus, memory_gb=7 if gpus > 2 else 3.5 * gpus)
        experiment = small_experiment(gpus=gpus, **settings)
        runs.append(submit_experiment(experiment, profile, plan, tmp_path / "it's 100% the runs").run)
        return runs[-1]

    yield started
    for state in read_states(runs):
        if state.alive and state.job_id:
            command("scancel", "--full", state.job_id)


def command(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def state_of(run: RunDir) -> RunState:
    return read_states([run])[0]


def ended(run: RunDir) -> RunState | None:
    state = state_of(run)
    return None if state.alive else state


def real_store(name: str, folder: Path) -> Path:
    """A store made of the real sample of that name."""
    data = os.environ.get("HPC_TUMOR_REAL_DATA")
    if not data:
        pytest.skip("HPC_TUMOR_REAL_DATA does not name the folder of the real samples")
    source = Path(data) / name
    prepare_dataset(inspect_source(source).reader, source, folder / f"{name}.zarr", workers=2)
    return folder / f"{name}.zarr"


def test_main_job_on_real_data(submit: Submit, tmp_path: Path) -> None:
    unet = submit(
        4, store=real_store("brats", tmp_path), model={"name": "unet", "filters": 8},
        recipe={"epochs": 1, "batch_size": 8}, limit_batches=2,
    )  # fmt: skip
    cnn = submit(
        2, store=real_store("brain-mri", tmp_path), model={"name": "cnn"}, task="classification",
        recipe={"epochs": 1, "batch_size": 64}, limit_batches=2,
    )  # fmt: skip
    for run in (unet, cnn):
        state = wait_for(lambda run=run: ended(run), seconds=150, every=0.5)
        assert state.state == "finished", log_text(run, errors=True) or log_text(run)
    result = read_json(unet.result) or {}
    assert (result["gpus"], result["nodes"]) == (4, 2)
    assert result["cases"] == {"train": 1, "val": 0, "test": 1}
    assert 0 <= result["best"]["test"]["dice"] <= 1
    result = read_json(cnn.result) or {}
    assert (result["gpus"], result["nodes"]) == (2, 1)
    assert 0 <= result["best"]["test"]["accuracy"] <= 1
    assert log_text(unet, rank=3).startswith("rank 3 of 4 ")
    submitted = next(unet.submission.glob("*_submission.sh")).read_text()
    profile = find_profile(LOCAL_TEST)
    plan = make_plan(profile, 4)
    assert submitted == job_script(unet.experiment(), profile, plan, unet.path.parent, unet.name)


def test_ranks_import_nothing_from_the_current_folder(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("types", "enum", "signal", "numpy", "torch", "hpc_tumor"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(f'{__file__} was imported')\n")
    monkeypatch.chdir(tmp_path)
    state = wait_for(lambda run=submit(2, "finish"): ended(run), seconds=60)
    assert state.state == "finished", log_text(state.run)


def test_one_lost_rank_ends_the_job(submit: Submit) -> None:
    """An error of the run's own is not tried again: it would only come again."""
    run = submit(4, "crash:3")
    state = wait_for(lambda: ended(run), seconds=90)
    assert state.state == "failed", state.reason
    assert "ValueError: a defect in two lines" in state.reason
    assert "Traceback" in log_text(run, errors=True)
    assert "requeued" not in events(run)


def test_a_task_of_an_array_is_requeued_alone(submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN", "wait")
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))
    profile = find_profile(LOCAL_TEST)
    plan = make_plan(profile, 1, memory_gb=2)
    runs = tmp_path / "100% the runs"
    done = submit_all([PlannedRun(small_experiment(seed=seed), plan) for seed in range(3)], profile, runs).started
    try:
        first, second, third = (item.run for item in done)
        for run in (first, second, third):
            wait_for(lambda run=run: "started" in events(run), seconds=60)
        task = done[1].job_id
        assert task.endswith("_1")
        command("scancel", "--signal=USR2", task)
        wait_for(lambda: "requeued" in events(second), seconds=60)
        wait_for(lambda: state_of(second).state == "requeued", seconds=60)
        assert [state_of(run).state for run in (first, third)] == ["running", "running"]
        time.sleep(2)  # in the second of its requeue the nodes still refuse it
        command("scontrol", "update", f"JobId={task}", "StartTime=now")
        wait_for(lambda: events(second).count("started") == 2, seconds=60)
        assert (second.logs / "rank-0.1.out").exists()
        cancel(state_of(third))
        assert wait_for(lambda: ended(third), seconds=60).state == "cancelled"
        assert state_of(first).state == "running"
    finally:
        command("scancel", "--full", done[0].job_id.partition("_")[0])


def test_a_job_is_known_by_its_run_though_its_submission_was_interrupted(
    on_slurm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ctrl-C, while sbatch is at work."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/bash\nkill -INT -- -$PPID\nexec {shutil.which("sbatch")} "$@"\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from launching import small_experiment, submit_experiment\n"
        "from hpc_tumor.cluster.plan.plan import make_plan\n"
        "from hpc_tumor.cluster.describe.profiles import find_profile\n"
        "profile = find_profile(sys.argv[2])\n"
        "plan = make_plan(profile, 1, memory_gb=1, options={'hold': True})\n"
        "submit_experiment(small_experiment(), profile, plan, Path('runs'))\n"
    )
    folders = str(Path(__file__).parent), str(Path(hpc_tumor.__file__).parent.parent)
    monkeypatch.setenv("PYTHONPATH", folders[1])
    done = subprocess.run(
        [sys.executable, "-c", code, folders[0], LOCAL_TEST], cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=60, start_new_session=True,
    )  # fmt: skip
    assert "KeyboardInterrupt" in done.stderr
    (run,) = find_runs(tmp_path / "runs")
    state = state_of(run)
    assert (state.state, events(run)) == ("queued", ["submitted"])
    cancel(state)
    wait_for(lambda: ended(run), seconds=60)


def test_a_module_that_is_not_there_is_explained(on_slurm: None, tmp_path: Path) -> None:
    profile = find_profile(LOCAL_TEST)
    environment = profile.environment.model_copy(update={"modules": ("cuda/99.1",)})
    profile = profile.model_copy(update={"environment": environment})
    run = submit_experiment(small_experiment(), profile, make_plan(profile, 1), tmp_path / "runs").run
    state = wait_for(lambda: ended(run), seconds=60)
    assert state.state == "failed"
    assert "the node has no `module` command" in state.reason
    assert log_text(run, errors=True, reason=state.reason).startswith("the node has no `module` command")


@pytest.mark.parametrize(
    ("option", "words"), [({"partition": "NONE"}, "invalid partition"), ({"account": "x"}, "account")]
)
def test_what_slurm_refuses(on_slurm: None, tmp_path: Path, option: dict[str, str], words: str) -> None:
    profile = find_profile(LOCAL_TEST)
    with pytest.raises(ClusterError, match=rf"(?i)SLURM refused .*{words}"):
        submit_experiment(small_experiment(), profile, make_plan(profile, 1, **option), tmp_path / "runs")  # type: ignore[arg-type]
    assert not (tmp_path / "runs").exists()
