"""Places of code, interpreter and runs, and their changes while a job waits, on the real SLURM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from launching import STAND_IN, wait_for
from local_slurm import LOCAL_TEST

import hpc_tumor
from hpc_tumor.cluster.observe.logs import log_text
from hpc_tumor.cluster.observe.queue import read_states
from hpc_tumor.run_dir import RunDir, find_runs, read_json

pytestmark = pytest.mark.slow
HOSTILE = 'it\'s; a "$(touch OOPS)" `touch OOPS` & né\nfolder'
RUNS = HOSTILE.replace("\n", " ")  # SLURM's own file names cannot hold a line end


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout and an environment of its own, in a folder of the worst name."""
    folder = tmp_path / HOSTILE
    folder.mkdir()
    top = Path(hpc_tumor.__file__).parent.parent
    for name in ("hpc_tumor", "jobs", "slurm_templates"):
        shutil.copytree(top / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(folder / "env")], check=True)
    return folder


def cli(checkout: Path, slurm: dict[str, str], *arguments: str, stand_in: str) -> subprocess.CompletedProcess[str]:
    """Run a command from that checkout, with its interpreter; its ranks only stand in for training."""
    python_path = [str(checkout), str(STAND_IN), sysconfig.get_path("purelib")]
    variables = {
        **os.environ, **slurm, "PYTHONPATH": os.pathsep.join(python_path), "STAND_IN": stand_in,
        "HPC_TUMOR_HINTS": "0",
    }  # fmt: skip
    python = str(checkout / "env" / "bin" / "python")
    return subprocess.run(
        [python, "-m", "hpc_tumor", *arguments], cwd=checkout.parent, env=variables, capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip


def test_a_queued_job_runs_the_code_that_was_submitted(
    checkout: Path, slurm: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Submitted from a folder of the worst name, then edited and broken while it waits: it finishes as it was."""
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    run, job_id = submit_held(checkout, slurm)
    (checkout / "hpc_tumor" / "cluster" / "node" / "job.py").write_text("raise RuntimeError('edited')\n")
    shutil.rmtree(checkout / "hpc_tumor" / "training")
    subprocess.run(["scontrol", "release", job_id], check=True)
    state = wait_for(lambda: not (state := read_states([run])[0]).alive and state, seconds=90)
    assert state.state == "finished", log_text(run, errors=True) or log_text(run)
    assert [found.name for found in find_runs(tmp_path / RUNS)] == [run.name]
    assert not list(tmp_path.rglob("OOPS"))


def test_a_queued_job_whose_code_is_lost_says_so_and_runs_no_other(
    checkout: Path, slurm: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    run, job_id = submit_held(checkout, slurm)
    (code,) = (tmp_path / RUNS).glob(".code-*/*.zip")
    os.truncate(code, 1000)
    subprocess.run(["scontrol", "release", job_id], check=True)
    state = wait_for(lambda: not (state := read_states([run])[0]).alive and state, seconds=90)
    assert (state.state, [event["event"] for event in run.read_events()]) == ("failed", ["submitted"])
    assert "the submitted code is gone or damaged" in state.reason
    done = cli(checkout, slurm, "resume", run.name, "--runs", RUNS, stand_in="finish")
    assert done.returncode == 0, done.stderr
    assert "was damaged and has been rewritten" in " ".join(done.stderr.split())
    subprocess.run(["scontrol", "release", (read_json(run.job) or {})["job_id"]], check=True)
    state = wait_for(lambda: not (state := read_states([run])[0]).alive and state, seconds=90)
    assert state.state == "finished", log_text(run, errors=True) or log_text(run)


def submit_held(checkout: Path, slurm: dict[str, str]) -> tuple[RunDir, str]:
    """A run that waits in the queue until it is released, and the number of its job."""
    made = ("phantom", "raw", "--dataset", "brain-mri", "--cases", "40")
    assert cli(checkout, slurm, *made, stand_in="").returncode == 0
    assert cli(checkout, slurm, "prepare-data", "raw", "brain-mri.zarr", stand_in="").returncode == 0
    submit = (
        "submit", "--model", "cnn", "--data", "brain-mri.zarr", "--gpus", "2", "--cluster", str(LOCAL_TEST),
        "--memory", "2", "--runs", RUNS, "--sbatch", "hold", "--json",
    )  # fmt: skip
    done = cli(checkout, slurm, *submit, stand_in="finish")
    assert done.returncode == 0, done.stderr
    (values,) = json.loads(done.stdout)
    return RunDir(values["path"]), values["job_id"]
