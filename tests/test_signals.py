"""Commands that are asked to end while they submit: each job that stays in the queue is known by its run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import hpc_tumor
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.sources import READERS
from hpc_tumor.run_dir import RunDir, find_runs, read_json

# A queue is a folder with a file for each job: its number, and its name inside.
SLURM = {
    "sbatch": """
        number=$(($(ls "$QUEUE" | wc -l) + 40))
        [ -e "$QUEUE/once" ] || { touch "$QUEUE/once"; eval "$BEFORE"; }
        [ -f "$1" ] && sed -n 's/^#SBATCH --job-name=//p' "$1" > "$QUEUE/$number"
        for each in "$@"; do case $each in --job-name=*) echo "${each#--job-name=}" > "$QUEUE/$number";; esac; done
        eval "$THEN"
        echo "Submitted batch job $number"
    """,
    "squeue": """
        for each in "$@"; do
            case $each in --name=*) grep -lx "${each#--name=}" "$QUEUE"/[0-9]* | xargs -rn1 basename;; esac
        done
    """,
    "scancel": """
        for each in "$@"; do
            case $each in
                --name=*) grep -lx "${each#--name=}" "$QUEUE"/[0-9]* | xargs -r rm;;
                *) rm "$QUEUE/$each";;
            esac
        done
    """,
    "srun": "",
    "sacct": "",
}  # fmt: skip
PROFILE = """
description = "made up"
[slurm]
partition = "GPU"
requeue = {requeue}
chain = 3
[node]
gpus = 2
cpus = 8
memory_gb = 16
[limits]
walltime = "2h"
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_phantom(folder / "raw", "brain-mri", 20, seed=1)
    prepare_dataset(READERS["brain-mri"](), folder / "raw", folder / "images.zarr", workers=1)
    return folder / "images.zarr"


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A made-up SLURM that keeps its queue in a folder."""
    for name, text in SLURM.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    (tmp_path / "queue").mkdir()
    for name, requeue in (("requeue", "true"), ("chain", "false")):
        (tmp_path / f"{name}.toml").write_text(PROFILE.format(requeue=requeue))
    return tmp_path


def hpc_tumor_command(slurm: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "HPC_TUMOR_CACHE_DIR" or not name.startswith("HPC_TUMOR_")
    }
    environment = {
        **kept, "PATH": f"{slurm / 'bin'}:/usr/bin:/bin", "QUEUE": str(slurm / "queue"),
        "PYTHONPATH": str(Path(hpc_tumor.__file__).parent.parent), "HPC_TUMOR_CONFIG_DIR": str(slurm / "configuration"),
        **variables,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "hpc_tumor", *arguments], cwd=slurm, env=environment, capture_output=True, text=True,
        check=False, timeout=60, start_new_session=True,
    )  # fmt: skip


def queued(slurm: Path) -> set[str]:
    return {path.name for path in (slurm / "queue").iterdir() if path.name != "once"}


def known(runs: list[RunDir]) -> list[str]:
    """Jobs that the runs know of; each run has one."""
    jobs = [read_json(run.job) or {} for run in runs]
    assert all(job.get("job_id") for job in jobs)
    return [str(number).partition("_")[0] for job in jobs for number in (job["job_id"], *job["chain"])]


SHAPES = {
    "one": ("requeue.toml", ()),
    "an array": ("requeue.toml", ("--seed", "0", "--seed", "1")),
    "a chain": ("chain.toml", ("--time", "5h")),
}
# What sbatch does to the command that started it; the last is what a terminal does.
MOMENTS = {
    "before SLURM has it": {"BEFORE": "kill -TERM $PPID; sleep 0.1"},
    "before the answer": {"THEN": "kill -HUP $PPID; sleep 0.1"},
    "after the answer": {"THEN": "(sleep 0.05; kill -TERM $PPID) > /dev/null 2>&1 &"},
    "Ctrl-C": {"THEN": "kill -INT -- -$PPID; sleep 0.1"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "moment"),
    [*(("one", moment) for moment in MOMENTS), ("an array", "before the answer"), ("a chain", "Ctrl-C")],
)
def test_a_submission_that_is_ended_leaves_no_job_without_its_run(
    slurm: Path, store: Path, shape: str, moment: str
) -> None:
    profile, more = SHAPES[shape]
    submit = ("submit", "--model", "cnn", "--data", str(store), "--cluster", str(slurm / profile), *more)
    done = hpc_tumor_command(slurm, *submit, **MOMENTS[moment])
    assert moment == "after the answer" or done.returncode == 130  # which may come once the command is done
    assert "Traceback" not in done.stderr
    runs = find_runs(slurm / "runs")
    assert set(known(runs)) == queued(slurm)
    assert len(runs) == (2 if shape == "an array" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before the answer", "Ctrl-C"])
def test_a_resume_that_is_ended_leaves_no_job_without_its_run(slurm: Path, store: Path, moment: str) -> None:
    submit = ("submit", "--model", "cnn", "--data", str(store), "--cluster", str(slurm / "requeue.toml"))
    assert hpc_tumor_command(slurm, *submit).returncode == 0
    first = known(find_runs(slurm / "runs"))
    for name in ("once", *first):
        (slurm / "queue" / name).unlink()
    (slurm / "queue" / "99").touch()  # of somebody else
    done = hpc_tumor_command(slurm, "resume", "cnn", **MOMENTS[moment])
    assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (130, "interrupted"), done.stderr
    now = known(find_runs(slurm / "runs"))
    assert set(now) == queued(slurm) - {"99"} != set(first)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before the answer", "Ctrl-C"])
def test_a_conversion_that_is_ended_leaves_no_array(slurm: Path, moment: str) -> None:
    make_phantom(slurm / "raw", "brain-mri", 8, seed=1)
    convert = ("prepare-data", "raw", "images.zarr", "--cluster", str(slurm / "requeue.toml"))
    done = hpc_tumor_command(slurm, *convert, **MOMENTS[moment])
    assert (done.returncode, queued(slurm)) == (130, set()), done.stderr
    assert (slurm / "queue" / "once").exists()


@pytest.mark.slow
def test_a_second_interrupt_does_not_reach_what_takes_the_job_back(slurm: Path, store: Path) -> None:
    """The number is not told; Ctrl-C comes while scancel is at work. What became of the job is said all the same."""
    scancel = slurm / "bin" / "scancel"
    scancel.write_text(scancel.read_text().replace("#!/bin/bash", "#!/bin/bash\nkill -INT -- -$PPID; sleep 0.2"))
    (slurm / "bin" / "sbatch").write_text((slurm / "bin" / "sbatch").read_text().replace("Submitted batch", "A"))
    submit = ("submit", "--model", "cnn", "--data", str(store), "--cluster", str(slurm / "requeue.toml"))
    done = hpc_tumor_command(slurm, *submit)
    assert (done.returncode, queued(slurm)) == (130, set())
    lines = done.stderr.splitlines()
    assert lines[0].startswith("interrupted: recording or cancelling")
    assert "printed no job id, but: A job 40" in lines[-2]
    assert lines[-2].endswith("was cancelled.")
    assert not (slurm / "runs").exists()


@pytest.mark.slow
def test_what_sbatch_does_not_tell_of_is_taken_back(slurm: Path, store: Path) -> None:
    """As when the controller takes the job, and answers too late."""
    submit = ("submit", "--model", "cnn", "--data", str(store), "--cluster", str(slurm / "requeue.toml"))
    done = hpc_tumor_command(slurm, *submit, THEN="echo 'sbatch: error: Socket timed out' >&2; exit 1")
    assert done.returncode == 4
    assert "SLURM does not answer" in done.stderr
    assert (queued(slurm), (slurm / "runs").exists()) == (set(), False)
    (slurm / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    done = hpc_tumor_command(slurm, *submit, THEN="echo 'sbatch: error: Socket timed out' >&2; exit 1")
    assert "squeue --name=" in done.stderr


def test_ignored_signals_stay_ignored(slurm: Path, store: Path) -> None:
    """As under nohup."""
    submit = ("submit", "--model", "cnn", "--data", str(store), "--cluster", str(slurm / "requeue.toml"))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        done = hpc_tumor_command(slurm, *submit, THEN="kill -HUP $PPID")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert done.returncode == 0, done.stderr
