"""The local test SLURM behaves as a real cluster does, and comes and goes without a trace."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from local_slurm import TOOL
from local_slurm import slurm_tool as tool

AS_NOBODY = """
import os, sys
sys.path.insert(0, sys.argv[1])
import slurm_cluster
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(slurm_cluster.main(sys.argv[2:]))
"""
WITHOUT_PROGRAMS = """
import sys
sys.path.insert(0, sys.argv[1])
import slurm_cluster, slurm_cluster_config
slurm_cluster_config.SYSTEM_PATH = sys.argv.pop(2)
sys.exit(slurm_cluster.main(sys.argv[2:]))
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def call(slurm: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def submit(slurm: dict[str, str], script: str, *options: str) -> str:
    return call(slurm, "sbatch", "--parsable", "--mem=500M", "--chdir=/", *options, "--wrap", script).strip()


def wait_for(what: str, condition: Callable[[], object], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.25)


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def processes_naming(folder: Path) -> list[str]:
    listing = subprocess.run(["ps", "-eww", "-o", "pid,stat,args"], capture_output=True, text=True, check=True).stdout
    lines = (line for line in listing.splitlines() if str(folder) in line)
    return [line for line in lines if line.split()[1][0] != "Z" and "slurm_cluster.py" not in line]


def test_four_nodes_with_two_gpus_each(slurm: dict[str, str]) -> None:
    nodes = call(slurm, "sinfo", "-h", "-N", "-p", "GPU", "-o", "%N %G %c").splitlines()
    assert nodes == [f"gpu00{number} gpu:2 8" for number in (1, 2, 3, 4)]
    tiers = dict(line.split() for line in call(slurm, "sinfo", "-h", "-o", "%P %p").splitlines())
    assert int(tiers["HIGH"]) > int(tiers["GPU*"])
    status = tool("status")
    assert status.returncode == 0, status.stderr
    assert status.stdout.count("running, pid") == 8


def test_four_tasks_on_two_nodes_see_two_gpus_each(slurm: dict[str, str]) -> None:
    output = call(
        slurm, "srun", "--nodes=2", "--ntasks-per-node=2", "--gres=gpu:2", "--mem=500M", "bash", "-c",
        "echo $SLURM_PROCID $SLURMD_NODENAME $SLURM_LOCALID $CUDA_VISIBLE_DEVICES",
    )  # fmt: skip
    tasks = [line.split() for line in sorted(output.splitlines())]
    first, second = tasks[0][1], tasks[2][1]
    assert first != second
    assert tasks == [
        ["0", first, "0", "0,1"],
        ["1", first, "1", "0,1"],
        ["2", second, "0", "0,1"],
        ["3", second, "1", "0,1"],
    ]


def test_a_job_with_one_gpu_sees_one(slurm: dict[str, str]) -> None:
    seen = call(slurm, "srun", "--gres=gpu:1", "--mem=500M", "printenv", "CUDA_VISIBLE_DEVICES").strip()
    assert seen in ("0", "1")


def test_accounting_knows_how_jobs_ended(slurm: dict[str, str], tmp_path: Path) -> None:
    good = submit(slurm, "true", "--output=/dev/null", "--gres=gpu:1")
    bad = submit(slurm, "exit 3", "--output=/dev/null")

    def ended() -> dict[str, list[str]]:
        columns = "JobID,State,ExitCode,Account,AllocTRES"
        rows = call(slurm, "sacct", "-X", "-n", "-P", "-j", f"{good},{bad}", "-o", columns)
        return {row.split("|")[0]: row.split("|")[1:] for row in rows.splitlines()}

    wait_for("both jobs end", lambda: [row[0] for row in ended().values()] == ["COMPLETED", "FAILED"])
    assert ended()[good][1:3] == ["0:0", "hpc"]
    assert "gres/gpu=1" in ended()[good][3]
    assert ended()[bad][1] == "3:0"


def test_requeued_job_runs_again(slurm: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "out.txt"
    script = "echo start ${SLURM_RESTART_COUNT:-0}; [ ${SLURM_RESTART_COUNT:-0} = 1 ] || sleep 300"
    job = submit(slurm, script, "--requeue", "--open-mode=append", f"--output={output}")
    wait_for("the job starts", lambda: "start 0" in text(output))
    call(slurm, "scontrol", "requeue", job)

    def state() -> str:
        return call(slurm, "squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip()

    wait_for("the job is pending again", lambda: state() == "PENDING")
    time.sleep(2)  # in the second of the requeue, nodes still refuse the job: "Job credential revoked"
    call(slurm, "scontrol", "update", f"JobId={job}", "StartTime=now")  # SLURM would wait two minutes
    wait_for("the job runs again", lambda: "start 1" in text(output))
    wait_for("the job completes", lambda: state() == "COMPLETED")


def test_wrong_account_is_refused(slurm: dict[str, str]) -> None:
    done = subprocess.run(
        ["sbatch", "--account=nobodys", "--wrap", "true"], env=slurm, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "Invalid account" in done.stderr


def test_second_up_changes_nothing(slurm: dict[str, str]) -> None:
    before = tool("status").stdout.split("\n\n")[0]
    began = time.monotonic()
    again = tool("up")
    assert time.monotonic() - began < 5
    assert (again.returncode, again.stdout) == (0, f"export SLURM_CONF={slurm['SLURM_CONF']}\n")
    assert "already up" in again.stderr
    assert tool("env").stdout == again.stdout
    assert tool("status").stdout.split("\n\n")[0] == before


def test_usr2_arrives_before_the_time_limit(slurm: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "out.txt"
    wait = "trap 'echo USR2 at rank $SLURM_PROCID; exit 0' USR2; while :; do sleep 0.2; done"
    submit(
        slurm, f'srun bash -c "{wait.replace("$", chr(92) + "$")}"',
        "--time=1", "--signal=USR2@55", "--nodes=2", "--ntasks-per-node=1", f"--output={output}",
    )  # fmt: skip
    wait_for("both ranks get USR2", lambda: all(f"USR2 at rank {rank}" in text(output) for rank in (0, 1)), 60)


@pytest.fixture
def second_dir() -> Iterator[Path]:
    """Directory of a second cluster, beside the shared one."""
    folder = Path(f"/tmp/hpc-tumor-slurm-test-{os.getpid()}")
    yield folder
    if folder.exists():
        tool("down", "--dir", folder)


@pytest.mark.slow
def test_up_repairs_and_down_leaves_no_trace(slurm: dict[str, str], second_dir: Path) -> None:
    """With a cluster of its own, so that the shared one goes on."""
    hosts = Path("/etc/hosts").read_text()
    begun = tool("up", "--dir", second_dir)
    assert begun.returncode == 0, begun.stderr
    own = {**slurm, "SLURM_CONF": str(second_dir / "slurm.conf")}
    kept = call(own, "srun", "bash", "-c", "echo $SLURM_JOB_ID").strip()

    def accounted() -> list[str]:
        return call(own, "sacct", "-X", "-n", "-j", kept, "-o", "State").split()

    wait_for("the job is accounted for", lambda: accounted() == ["COMPLETED"])
    wait_for("slurmctld saves its state", (second_dir / "state" / "job_state").exists)

    daemons = tool("status", "--dir", second_dir).stdout.split("\n\n")[0].splitlines()
    pids = {line.split()[0]: int(line.split()[-1]) for line in daemons}
    for name in ("slurmctld", "slurmd-gpu002"):
        os.kill(pids[name], signal.SIGKILL)
    wait_for("the cluster is seen to be broken", lambda: tool("status", "--dir", second_dir).returncode == 4)
    repaired = tool("up", "--dir", second_dir)
    assert repaired.returncode == 0, repaired.stderr
    assert "repairing" in repaired.stderr
    assert accounted() == ["COMPLETED"]

    # A job that ignores TERM must not outlive the cluster, nor its files.
    marker = second_dir / "job-runs"
    stubborn = f"trap '' TERM; touch {marker}; srun bash -c \"trap '' TERM; while :; do sleep 1; : {marker}; done\""
    submit(own, stubborn, "--output=/dev/null")
    wait_for("the job runs", lambda: marker.exists() and len(processes_naming(marker)) > 0)
    stopped = tool("down", "--dir", second_dir)
    assert stopped.returncode == 0, stopped.stderr
    assert processes_naming(second_dir) == []
    assert not second_dir.exists()
    assert Path("/etc/hosts").read_text() == hosts
    assert tool("down", "--dir", second_dir).returncode == 0
    assert tool("env", "--dir", second_dir).returncode == 4
    assert call(slurm, "sinfo", "-h", "-o", "%P").split() == ["GPU*", "HIGH"]


@needs_root
def test_up_refuses_beside_another_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=theirs\nSlurmctldHost=login1\n")
    where = ("--dir", tmp_path / "state", "--no-install")
    by_folder = tool("up", *where, "--etc-dir", tmp_path)
    monkeypatch.setenv("SLURM_CONF", str(conf))
    by_variable = tool("up", *where)
    for refused in (by_folder, by_variable):
        assert (refused.returncode, refused.stdout) == (4, "")
        assert f"{conf} belongs to another SLURM" in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slurm.conf"]


@needs_root
@pytest.mark.alone
def test_up_refuses_beside_a_running_slurmctld(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CONF", raising=False)
    theirs = tmp_path / "slurmctld"  # a process is known by its program's name
    shutil.copy(shutil.which("sleep") or "/bin/sleep", theirs)
    with subprocess.Popen([str(theirs), "60"]) as process:
        try:
            refused = tool("up", "--dir", tmp_path / "state", "--no-install")
        finally:
            process.kill()
    assert refused.returncode == 4
    assert f"slurmctld (pid {process.pid}) of another SLURM runs here" in refused.stderr


@needs_root
def test_directory_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    refused = tool("down", "--dir", tmp_path)
    assert (refused.returncode, text(tmp_path / "thesis.tex")) == (4, "years of work")
    assert "choose another --dir" in refused.stderr


@needs_root
def test_user_without_root_is_told_what_is_needed() -> None:
    folder = f"/tmp/hpc-tumor-slurm-nobody-{os.getpid()}"
    command = [sys.executable, "-c", AS_NOBODY, str(TOOL.parent), "up", "--dir", folder]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 4
    assert len(refused.stderr.splitlines()) == 1
    for word in ("root", "slurm-wlm", "munge", "slurmdbd", "mariadb-server"):
        assert word in refused.stderr
    assert not Path(folder).exists()


@needs_root
def test_missing_packages_are_named(tmp_path: Path) -> None:
    empty, state = str(tmp_path / "no-programs"), str(tmp_path / "state")
    command = [sys.executable, "-c", WITHOUT_PROGRAMS, str(TOOL.parent), empty, "up", "--dir", state]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 4
    assert "no apt-get" in refused.stderr
    assert "slurm-wlm munge slurmdbd mariadb-server" in refused.stderr
    assert not (tmp_path / "state").exists()
