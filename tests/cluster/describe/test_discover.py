"""First profiles of clusters that made-up commands repeat, and of the real local SLURM."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from launching import small_experiment
from sites import JEAN_ZAY, LEONARDO, ORFEO

from hpc_tumor import cli
from hpc_tumor.cluster.describe import discover as discovery
from hpc_tumor.cluster.describe.discover import discover
from hpc_tumor.cluster.describe.facts import read_facts
from hpc_tumor.cluster.describe.profiles import find_profile, load_profile
from hpc_tumor.cluster.describe.site import Facts, Limits, NodeKind, Partition
from hpc_tumor.cluster.launch.submit import job_script
from hpc_tumor.cluster.plan.fit import fit_to_cluster
from hpc_tumor.cluster.plan.plan import make_plan
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.errors import ClusterError, UsageError

Site = Callable[[dict[str, str]], Facts]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_TUMOR_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("SCRATCH", "WORK", "FAST", "CINECA_SCRATCH", "TMPDIR", "LOCAL_SCRATCH", "JOBSCRATCH", "SLURM_TMPDIR"):
        monkeypatch.delenv(name, raising=False)


def written_for(facts: Facts, monkeypatch: pytest.MonkeyPatch, partition: str | None = None) -> str:
    """The text of the profile that is written from these facts."""
    monkeypatch.setattr(discovery, "read_facts", lambda: facts)
    found = discover(name="made-up", partition=partition, overwrite=True)
    assert load_profile(found.path) == found.profile
    return found.path.read_text()


def test_a_profile_of_what_the_cluster_says(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site(ORFEO)
    (tmp_path / "fast").mkdir()
    monkeypatch.setenv("SCRATCH", str(tmp_path / "not-there"))
    monkeypatch.setenv("WORK", str(tmp_path / "fast"))
    found = discover(name="mine")
    profile = find_profile("mine")
    assert profile == found.profile
    assert profile.slurm.partition == "MIXED"  # the most GPUs of those open to this account: DGX is not
    assert (profile.node.gpus, profile.node.cpus, profile.node.gpu_model) == (8, 112, "h100")
    assert (profile.limits.walltime, profile.limits.nodes) == (120, 3)
    assert found.notes == ("MIXED has several kinds of nodes: the profile describes those with 8 GPUs",)
    assert profile.environment.scratch == "$WORK"
    text = found.path.read_text()
    assert "others: DGX (8 GPUs), GPU (2 GPUs), EPYC" in text
    assert "local disk of a node, here 879 GB" in text

    found = discover(name="gpu", partition="GPU")
    profile = find_profile("gpu")
    assert (profile.node.gpus, profile.node.cpus, profile.node.memory_gb) == (2, 24, 234)
    assert (profile.limits.walltime, profile.limits.nodes) == (120, 2)
    assert (profile.limits.running_jobs, profile.limits.queued_jobs) == (5, 20)
    assert (profile.slurm.account, found.path.name) == ("dssc", "gpu.toml")
    assert found.notes == ("the cluster does not report the model of its GPUs: fill in gpu_model",)
    with pytest.raises(UsageError, match="exists already"):
        discover(name="mine")
    discover(name="mine", partition="DGX", overwrite=True)
    assert find_profile("mine").node.gpu_model == "a100"
    with pytest.raises(UsageError, match="Did you mean 'DGX'"):
        discover(name="other", partition="DGXX")


def test_every_setting_is_explained_where_it_stands(site: Site) -> None:
    site(ORFEO)
    for line in discover(name="mine").path.read_text().splitlines():
        assert line == "" or line.startswith(("#", "[", "description")) or " # " in line, line


def test_a_profile_of_leonardo(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 54321)
    facts = site(LEONARDO)
    found = discover()
    profile = found.profile
    assert found.path.name == "leonardo-boost-usr-prod.toml"
    assert (profile.node.gpus, profile.node.cpus, profile.node.memory_gb) == (4, 32, 482)  # that all of them have
    assert (profile.slurm.account, profile.slurm.requeue) == ("required", False)
    assert (profile.limits.walltime, profile.limits.nodes) == (1440, 64)
    assert any("you have several accounts" in note and "euhpc_b, iscra_a" in note for note in found.notes)
    assert "boost_qos_lprod (at most 96:00 h)" in found.path.read_text()
    plan = make_plan(profile, 8, account="iscra_a")
    assert fit_to_cluster(plan, profile, facts, set()).plan == plan


def test_a_profile_of_jean_zay(site: Site) -> None:
    facts = site(JEAN_ZAY)
    profile = discover(partition="gpu_p6").profile
    assert (profile.node.gpus, profile.node.gpu_model, profile.limits.walltime) == (4, "h100", 20 * 60)
    assert fit_to_cluster(make_plan(profile, 8, account="xxx@h100"), profile, facts, set()).notes == ()


def test_gpus_of_several_kinds_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = NodeKind(9, 40, 156.0, 4, ("v100",)), NodeKind(3, 64, 500.0, 4, ("2080ti",))
    text = written_for(Facts({"GPU": Partition("GPU", kinds=(old, new))}), monkeypatch)
    assert 'gpu_type = "v100" #' in text  # of the two, the one with more nodes
    old, new = replace(old, gpu_types=(), features=("ib", "V100")), replace(new, gpu_types=(), features=("ib", "a100"))
    text = written_for(Facts({"GPU": Partition("GPU", kinds=(old, new))}), monkeypatch)
    assert '\nconstraint = "V100" #' in text
    assert '\ngpu_model = "V100" #' in text
    alike = replace(old, nodes=1, cpus=32, memory_gb=100.0)
    text = written_for(Facts({"GPU": Partition("GPU", kinds=(old, alike))}), monkeypatch)
    assert "\ncpus = 32 #" in text
    assert "\nmemory_gb = 100 #" in text
    assert "\nnodes = 10 #" in text
    assert "\nconstraint" not in text


def test_a_user_may_have_fewer_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Partition("GPU", kinds=(NodeKind(6, 8, 7.9, 4),))
    text = written_for(Facts({"GPU": part}, qos={"normal": Limits(gpus=9)}), monkeypatch)
    assert "\nnodes = 2 #" in text
    assert "\nmemory_gb = 7.9 #" in text


def test_a_qos_that_the_partition_wants_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Partition("GPU", qos=("gpu-day",), kinds=(NodeKind(2, 8, 16.0, 2),))
    mine = Limits(qos=("normal", "gpu-day"), default_qos="normal")
    facts = Facts({"GPU": part}, {"a": mine}, "a", {"gpu-day": Limits(60), "normal": Limits()})
    text = written_for(facts, monkeypatch)
    assert '\nqos = "gpu-day" #' in text
    assert 'walltime = "01:00:00"' in text
    shut = replace(facts, accounts={"a": Limits(qos=("normal",))})
    monkeypatch.setattr(discovery, "read_facts", lambda: shut)
    with pytest.raises(ClusterError, match="no partition here is open to your accounts"):
        discover(name="other")


def test_a_cluster_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    text = written_for(Facts({"CPU": Partition("CPU", walltime=90, kinds=(NodeKind(2, 8, 16.0),))}), monkeypatch)
    assert 'gpu_request = "none"' in text
    assert "\ngpus = 0" in text
    assert 'walltime = "01:30:00"' in text


@pytest.mark.parametrize("name", ['a"b\\]', "ü'#$(x)", "[slurm]", "a = 1 # b"])
def test_hostile_names_end_as_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = NodeKind(1, 4, 4.0, 1, (name,), (name, f'{name}\nsetup = ["touch owned"]'))
    facts = Facts({name: Partition(name, kinds=(kind, replace(kind, gpu_types=("other",))))},
                  {name: Limits(qos=(name,))}, cluster=name)  # fmt: skip
    text = written_for(facts, monkeypatch)
    profile = find_profile("made-up")
    assert (profile.slurm.partition, profile.slurm.account, profile.node.gpu_model) == (name, name, name)
    assert profile.environment.setup == ()
    assert "24 hours is a guess" not in text


def test_names_and_files(site: Site, tmp_path: Path) -> None:
    site(ORFEO)
    for name in ("../x", "a/b", "local", "-x", ".x", "a\nb"):
        with pytest.raises(UsageError, match="--name"):
            discover(name=name)
    with pytest.raises(UsageError, match=r"profiles are TOML files"):
        discover(output=tmp_path / "mine")
    found = discover(name="other", output=tmp_path / "mine.toml")
    assert load_profile(tmp_path / "mine.toml").name == found.profile.name == "other"
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        discover(output=tmp_path / "file" / "mine.toml")


def test_without_sacctmgr_a_profile_is_written_and_says_so(site: Site) -> None:
    site({**ORFEO, "sacctmgr": "exit 1"})
    found = discover(name="mine", partition="GPU")
    assert found.profile.slurm.account is None
    assert found.profile.limits.walltime == 1080
    assert any("no answer from sacctmgr show assoc" in note for note in found.notes)


def test_what_the_command_shows(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site(ORFEO)
    assert cli.main(["clusters", "discover", "--name", "mine", "--partition", "GPU"]) == 0
    said = capsys.readouterr()
    assert "2 GPUs, 24 CPUs, 234 GB" in said.out
    assert "2:00 h, 2 nodes, 5 running jobs, 20 queued jobs" in said.out
    assert "hpc-tumor submit --cluster mine --dry-run" in said.err
    assert cli.main(["clusters", "discover", "--name", "mine"]) == 2
    capsys.readouterr()
    assert cli.main(["clusters", "discover", "--name", "mine", "--overwrite", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["profile"]["slurm"]["partition"] == "MIXED"
    assert cli.main(["clusters"]) == 0
    assert "mine" in capsys.readouterr().out


def test_without_slurm_there_is_nothing_to_discover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))
    with pytest.raises(ClusterError, match="login node"):
        discover()
    assert cli.main(["clusters", "discover"]) == 4
    assert not (tmp_path / "config").exists()
    assert cli.main(["clusters"]) == 0
    assert "orfeo-gpu" in capsys.readouterr().out


def test_the_profile_of_the_real_cluster_is_taken_by_sbatch(
    slurm: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    profile = load_profile(discover(output=tmp_path / "here.toml").path)
    assert (profile.node.gpus, profile.node.cpus, profile.limits.walltime) == (2, 8, 120)
    plan = make_plan(profile, 4, account="hpc")
    assert fit_to_cluster(plan, profile, read_facts(), set()).plan == plan
    script = job_script(small_experiment(gpus=4), profile, plan, tmp_path / "runs")
    done = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False)
    assert "to start at" in done.stderr, done.stderr

    make_phantom(tmp_path / "raw", "brats", 3, seed=1, shape=(32, 32, 12))
    assert cli.main(["prepare-data", str(tmp_path / "raw"), str(tmp_path / "brats.zarr")]) == 0
    asked = ["submit", "--model", "unet", "--gpus", "4", "--data", str(tmp_path / "brats.zarr"), "--account", "hpc"]
    asked += ["--cluster", str(tmp_path / "here.toml"), "--runs", str(tmp_path / "runs"), "--dry-run"]
    capsys.readouterr()
    assert cli.main(asked) == 0
    assert "2 nodes × 2 GPUs" in "".join(capsys.readouterr())
    assert cli.main([*asked, "--partition", "GPUS"]) == 2
    assert "Did you mean 'GPU'" in capsys.readouterr().err
