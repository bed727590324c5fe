"""doctor --submit on the real SLURM that tools/slurm_cluster.py starts: what a node sees, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launching import wait_for
from local_slurm import LOCAL_TEST

pytestmark = pytest.mark.slow
NAME = "hpc-tumor-doctor"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def profile(folder: Path, old: str, new: str) -> Path:
    path = folder.parent / "changed.toml"
    path.write_text(LOCAL_TEST.read_text().replace(old, new))
    assert path.read_text() != LOCAL_TEST.read_text()
    return path


def command(cluster: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "hpc_tumor", "doctor", "--cluster", str(cluster), "--submit", "--json", *more]


def doctor(slurm: dict[str, str], work: Path, cluster: Path = LOCAL_TEST) -> tuple[int, list[dict[str, Any]]]:
    """Exit code, and the findings of the test job."""
    done = subprocess.run(
        command(cluster), env=slurm, cwd=work, capture_output=True, text=True, timeout=300, check=False
    )
    sections = {item["section"]: item["findings"] for item in json.loads(done.stdout)["sections"]}
    assert list(work.iterdir()) == []
    wait_for(lambda: queued(slurm, work) == "")
    return done.returncode, sections["job"]


def queued(slurm: dict[str, str], work: Path) -> str:
    """The test jobs in the queue that were submitted from this folder."""
    ask = ["squeue", "--noheader", "--format=%i %j %Z"]
    lines = subprocess.run(ask, env=slurm, capture_output=True, text=True, check=True).stdout.splitlines()
    return "\n".join(line for line in lines if NAME in line and str(work) in line)


def texts(findings: list[dict[str, Any]], level: str) -> str:
    return "\n".join(item["text"] for item in findings if item["level"] == level)


def test_both_nodes_answer(slurm: dict[str, str], work: Path) -> None:
    code, findings = doctor(slurm, work)
    assert code == 0, findings
    well = texts(findings, "ok")
    assert f"this machine and the nodes share {work}" in well
    assert "the same Python, torch and packages as here" in well
    assert "two nodes communicate with gloo" in well
    assert "SLURM allocated GPU 0, but nvidia-smi finds no driver" in texts(findings, "warning")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("setup = []", "setup = ['echo no licence for this; exit 3']", "in its setup lines; last line: no licence"),
        pytest.param("modules = []", 'modules = ["cuda/99"]', "module", marks=pytest.mark.campaign),
        ("variables = {", "variables = { GLOO_SOCKET_IFNAME = 'ib7',", "GLOO_SOCKET_IFNAME names ib7, but "),
    ],
)  # fmt: skip
def test_profiles_that_break_jobs(slurm: dict[str, str], work: Path, old: str, new: str, words: str) -> None:
    code, findings = doctor(slurm, work, profile(work, old, new))
    assert code == 4
    assert words in texts(findings, "error")


def test_a_folder_that_nodes_do_not_see(slurm: dict[str, str], work: Path) -> None:
    """A file system of its own for the command alone, as the disk of a login node."""
    if os.getuid() or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("needs a mount namespace")
    script = 'mount -t tmpfs tmpfs "$0" && cd "$0" && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, str(work), *command(LOCAL_TEST)],
        env=slurm, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "probably does not see" in done.stdout
    assert queued(slurm, work) == ""


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(other, marks=pytest.mark.campaign) for other in (signal.SIGINT, signal.SIGHUP))],
)
def test_interrupted_it_takes_its_job_back(slurm: dict[str, str], work: Path, number: signal.Signals) -> None:
    waits = profile(work, 'gpu_request = "gres"', 'gpu_request = "gres"\nextra = { begin = "now+1hour" }')
    with subprocess.Popen(
        command(waits), env=slurm, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        wait_for(lambda: queued(slurm, work), seconds=60)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert queued(slurm, work) == ""
    assert list(work.iterdir()) == []
