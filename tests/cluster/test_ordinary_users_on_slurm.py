"""Two ordinary users share a store and a folder of runs: the package from a wheel, and no home that can be written."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import wait_for
from local_slurm import LOCAL_TEST

import hpc_tumor
from hpc_tumor.cluster.observe.logs import log_text
from hpc_tumor.cluster.observe.queue import read_states
from hpc_tumor.run_dir import RunDir, find_runs, read_json

pytestmark = pytest.mark.slow
ANNA, BORIS = 65534, 1  # nobody and daemon, which every Debian has
NAMES = {ANNA: "nobody", BORIS: "daemon"}


def python_for_all() -> str:
    """An interpreter of the same version that others may run; root's own may lie in its closed home."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/{version}"):
        again = "import pydantic, subprocess, sys; subprocess.run([sys.executable, '--version'], check=True)"
        command = ["setpriv", f"--reuid={ANNA}", f"--regid={ANNA}", "--clear-groups", candidate, "-c", again]
        variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": sysconfig.get_path("purelib")}
        if subprocess.run(command, capture_output=True, check=False, cwd="/", env=variables).returncode == 0:
            return candidate
    pytest.skip(f"no {version} with these packages that other users may run")


class Site:
    """A machine as its users see it: a folder that all may write, and commands as one of them."""

    def __init__(self, folder: Path, slurm: dict[str, str]):
        self.folder, self.slurm, self.python = folder, slurm, python_for_all()
        top = Path(hpc_tumor.__file__).parent.parent
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
        subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder / "wheel"), str(top)], check=True)
        wheel = next((folder / "wheel").glob("*.whl"))
        subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
        (folder / "home").mkdir(mode=0o555)
        shutil.copy(LOCAL_TEST, folder)

    def run(self, user: int, *arguments: str) -> subprocess.CompletedProcess[str]:
        variables = {
            "PATH": "/usr/bin:/bin", "HOME": str(self.folder / "home"), "SLURM_CONF": self.slurm["SLURM_CONF"],
            "PYTHONPATH": f"{self.folder / 'site'}:{sysconfig.get_path('purelib')}", "HPC_TUMOR_HINTS": "0",
            "OMP_NUM_THREADS": "1", "USER": NAMES[user],
        }  # fmt: skip
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        return subprocess.run(
            [*become, self.python, "-m", "hpc_tumor", *arguments], cwd=self.folder, env=variables, text=True,
            capture_output=True, timeout=200, check=False,
        )  # fmt: skip

    def well(self, user: int, *arguments: str) -> str:
        done = self.run(user, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def site(slurm: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    if os.geteuid() != 0:
        pytest.skip("only root can become two other users")
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    for name in NAMES.values():
        add = ["sacctmgr", "-i", "add", "user", name, "account=hpc", "DefaultAccount=hpc"]
        subprocess.run(add, capture_output=True, check=False, env=slurm)  # fails for one that is there already
    folder = Path(tempfile.mkdtemp(prefix="hpc-tumor-users-"))
    folder.chmod(0o1777)
    yield Site(folder, slurm)
    shutil.rmtree(folder)


def test_two_users_share_a_store_and_a_folder_of_runs(site: Site) -> None:
    site.well(ANNA, "phantom", "raw", "--dataset", "brain-mri", "--cases", "48")
    site.well(ANNA, "prepare-data", "raw", "images.zarr", "--workers", "1")
    (site.folder / "runs").mkdir()
    (site.folder / "runs").chmod(0o1777)
    small = ("--model", "cnn", "--data", "images.zarr", "--set", "epochs=1", "--set", "image_size=72",
             "--set", "limit_batches=1", "--set", "batch_size=8")  # fmt: skip
    on_slurm = (*small, "--cluster", LOCAL_TEST.name, "--account", "hpc", "--gpus", "2", "--memory", "3")
    site.well(ANNA, "submit", *on_slurm)
    (hers,) = find_runs(site.folder / "runs")

    # Boris sees her run, and can do nothing to it.
    assert hers.name in site.well(BORIS, "status")
    for verb in ("cancel", "resume"):
        refused = site.run(BORIS, verb, hers.name)
        assert refused.returncode in (2, 4), refused.stderr
        assert "Traceback" not in refused.stderr
        assert "error: " in refused.stderr
    assert "cancelled" not in [event["event"] for event in hers.read_events()]

    # Both train in the same folder, on the cluster and on this machine.
    site.well(BORIS, "submit", *on_slurm, "--seed", "1")
    site.well(BORIS, "submit", *small, "--cluster", "local", "--seed", "2")
    site.well(ANNA, "submit", *small, "--cluster", "local", "--seed", "3")
    runs = find_runs(site.folder / "runs")
    assert len(runs) == 4

    def all_ended() -> bool:
        return not any(state.alive for state in read_states(runs))

    wait_for(all_ended, seconds=200, every=0.5)
    for run, state in zip(runs, read_states(runs), strict=True):
        assert state.state == "finished", log_text(run, errors=True) or log_text(run)
    owners = {run.path.stat().st_uid for run in runs}
    assert owners == {ANNA, BORIS}
    assert all(run.name in site.well(BORIS, "collect", "runs", "--json") for run in runs)
    for user in owners:
        for name in (f".code-{user}", *(f"{run.name}/logs/submission" for run in _of(runs, user))):
            found = (site.folder / "runs" / name).stat()
            assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (user, 0o700)
    provenance = read_json(hers.provenance) or {}
    assert provenance["git"] is None  # installed from a wheel
    assert provenance["versions"]["hpc-tumor"]


def _of(runs: list[RunDir], user: int) -> list[RunDir]:
    return [run for run in runs if run.path.stat().st_uid == user]
