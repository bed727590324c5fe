from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import ORFEO, small_experiment

from hpc_tumor import cli
from hpc_tumor.cluster.discover import discover
from hpc_tumor.cluster.facts import Facts, read_facts
from hpc_tumor.cluster.fit import fit_to_cluster
from hpc_tumor.cluster.plan import make_plan
from hpc_tumor.cluster.profiles import find_profile, load_profile
from hpc_tumor.cluster.submit import job_script
from hpc_tumor.errors import ClusterError, UsageError


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_TUMOR_CONFIG_DIR", str(tmp_path / "config"))
    for name in ("SCRATCH", "WORK", "FAST", "TMPDIR", "LOCAL_SCRATCH"):
        monkeypatch.delenv(name, raising=False)


def test_a_profile_of_what_the_cluster_says(
    site: Callable[[dict[str, str]], Facts], monkeypatch: pytest.MonkeyPatch
) -> None:
    site(ORFEO)
    monkeypatch.setenv("SCRATCH", "/fast/anna")
    found = discover(name="mine")
    profile = find_profile("mine")
    assert profile.slurm.partition == "MIXED"  # the most GPUs of those open to this account: DGX is not
    assert (profile.node.gpus, profile.node.cpus, profile.node.gpu_model) == (8, 112, "h100")
    assert found.notes == ("MIXED has 2 kinds of nodes: the profile describes the largest",)
    assert profile.environment.scratch == "$SCRATCH"

    found = discover(name="gpu", partition="GPU")
    profile = find_profile("gpu")
    assert (profile.node.gpus, profile.node.cpus, profile.node.memory_gb) == (2, 24, 234)
    assert (profile.limits.walltime, profile.limits.nodes) == (120, 2)
    assert (profile.limits.running_jobs, profile.limits.queued_jobs) == (5, 20)
    assert (profile.slurm.account, found.path.name) == ("dssc", "gpu.toml")
    with pytest.raises(UsageError, match="is there already"):
        discover(name="mine")
    discover(name="mine", partition="DGX", overwrite=True)
    assert find_profile("mine").node.gpu_model == "a100"


def test_hostile_names_end_as_text(site: Callable[[dict[str, str]], Facts]) -> None:
    name = 'a"b\\]'
    site({
        "sinfo": f"{name}|up|infinite|1|4|4000|gpu:x\"y:1|f\"g\n", "scontrol": "exit 1", "sacctmgr": "exit 1",
    })  # fmt: skip
    found = discover(name="hostile")
    profile = find_profile("hostile")
    assert profile.slurm.partition == name
    assert any("24 hours are a guess" in note for note in found.notes)


def test_without_slurm_there_is_nothing_to_discover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ClusterError, match="login node"):
        discover()
    assert cli.main(["clusters", "discover"]) == 4
    assert not (tmp_path / "config").exists()
    assert cli.main(["clusters"]) == 0
    assert "orfeo-gpu" in capsys.readouterr().out


def test_the_profile_of_the_real_cluster_is_taken_by_sbatch(
    slurm: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    profile = load_profile(discover(output=tmp_path / "here.toml").path)
    assert (profile.node.gpus, profile.node.cpus, profile.limits.walltime) == (2, 8, 120)
    plan = make_plan(profile, 4, account="hpc")
    assert fit_to_cluster(plan, profile, read_facts(), set()).plan == plan
    script = job_script(small_experiment(gpus=4), profile, plan, tmp_path / "runs")
    done = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False)
    assert "to start at" in done.stderr, done.stderr
