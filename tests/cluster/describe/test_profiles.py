from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpc_tumor import settings
from hpc_tumor.cluster.describe import profiles
from hpc_tumor.errors import UsageError
from hpc_tumor.system.torch_builds import TorchBuild

TEXT = 'description = "mine"\n[slurm]\npartition = "{partition}"\n[node]\ngpus = 2\ncpus = 24\nmemory_gb = 234\n'


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's configuration directory, empty; the working directory is another."""
    monkeypatch.setenv("HPC_TUMOR_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.delenv("HPC_TUMOR_CLUSTER", raising=False)
    (tmp_path / "config" / "clusters").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "config"


def test_own_profile_goes_before_the_shipped_one(own: Path) -> None:
    (own / "clusters" / "orfeo-gpu.toml").write_text(TEXT.format(partition="mine"))
    profile = profiles.find_profile("orfeo-gpu")
    assert profile.name == "orfeo-gpu"
    assert profile.slurm.partition == "mine"


def test_profile_by_path(own: Path, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.toml"
    path.write_text(TEXT.format(partition="there"))
    assert profiles.find_profile(path).name == "elsewhere"


@pytest.mark.parametrize("path", sorted(settings.shipped("slurm_templates").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_profiles_are_valid(path: Path) -> None:
    profile = profiles.load_profile(path)
    assert profile.name == path.stem
    assert profile.description


def test_unknown_profile_names_the_nearest(own: Path) -> None:
    (own / "clusters" / "leonardo.toml").write_text(TEXT.format(partition="x"))
    with pytest.raises(UsageError, match=r"'leonrado'. Did you mean 'leonardo'\? Known: .*\blocal\b"):
        profiles.find_profile("leonrado")


def test_wrong_setting_names_file_and_neighbour(own: Path) -> None:
    path = own / "clusters" / "typo.toml"
    path.write_text(TEXT.format(partition="x").replace("gpus =", "gpu ="))
    with pytest.raises(UsageError, match=r"typo.toml: unknown setting 'node.gpu'. Did you mean 'node.gpus'"):
        profiles.find_profile("typo")


@pytest.mark.parametrize(
    "lines",
    ['[slurm]\nqos = "a\\nb"', '[environment]\nvariables = {"A B" = "1"}', '[slurm]\nextra = {"x y" = 1}'],
)
def test_what_would_break_the_script_is_refused(own: Path, lines: str) -> None:
    path = own / "clusters" / "bad.toml"
    path.write_text(f'description = "d"\n{lines}\n')
    with pytest.raises(UsageError, match=r"bad\.toml"):
        profiles.find_profile("bad")


def test_default_is_this_machine_where_there_is_no_sbatch(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(own / "no-programs"))
    profile, reason = profiles.default_profile()
    assert profile.name == "local"
    assert "no sbatch" in reason


def test_default_on_a_cluster_must_be_said(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles.shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(UsageError, match="--cluster"):
        profiles.default_profile()
    (own / "clusters" / "mine.toml").write_text(TEXT.format(partition="x"))
    (own / "config.toml").write_text('cluster = "mine"\n')
    assert profiles.default_profile()[0].name == "mine"
    monkeypatch.setenv("HPC_TUMOR_CLUSTER", "local")
    profile, reason = profiles.default_profile()
    assert profile.name == "local"
    assert "HPC_TUMOR_CLUSTER" in reason


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("0,3", 2), ("-1", 0), ("GPU-8f2a,MIG-77", 2)])
def test_gpus_are_counted_as_a_process_would_see_them(
    monkeypatch: pytest.MonkeyPatch, visible: str, count: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert profiles.count_gpus() == count
    assert profiles.local_profile().node.gpus == count


def test_one_broken_profile_leaves_the_others(own: Path) -> None:
    (own / "clusters" / "broken.toml").write_text("[slurm\n")
    (own / "clusters" / "mine.toml").write_text(TEXT.format(partition="x"))
    found, (error,) = profiles.list_profiles()
    assert {"local", "mine", "orfeo-gpu"} <= {profile.name for profile in found}
    assert "broken.toml" in str(error)


def test_no_file_can_call_itself_this_machine(own: Path) -> None:
    (own / "clusters" / "mine.toml").write_text('name = "local"\n' + TEXT.format(partition="x"))
    with pytest.raises(UsageError, match=r"mine\.toml: .*'local'"):
        profiles.find_profile("mine")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_what_somebody_elses_profile_sets_up_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "theirs.toml"
    path.write_text('description = "x"\n[environment]\nsetup = ["touch OOPS"]\n')
    assert profiles.load_profile(path).environment.setup == ("touch OOPS",)
    os.chown(path, 54321, -1)
    with pytest.raises(UsageError, match=r"belongs to user 54321, and its setup commands would run as you: check it"):
        profiles.load_profile(path)
    path.write_text('description = "x"\n[slurm]\npartition = "GPU"\n')  # numbers and names run nothing
    assert profiles.load_profile(path).slurm.partition == "GPU"


@pytest.mark.parametrize(
    ("build", "count"),
    [(TorchBuild("2.9.0+rocm6.4", rocm="6.4.43482"), 2), (TorchBuild("2.9.0+xpu", xpu="20250302"), 1)],
)
def test_amds_and_intels_gpus_are_counted_for_a_torch_that_uses_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, build: TorchBuild, count: int
) -> None:
    files = {
        "kfd/kfd/topology/nodes/0/gpu_id": "0\n",  # a CPU
        "kfd/kfd/topology/nodes/1/gpu_id": "54847\n",
        "kfd/kfd/topology/nodes/2/gpu_id": "16124\n",
        "drm/renderD128/device/vendor": "0x8086\n",
        "drm/renderD129/device/vendor": "0x10de\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(profiles, "SYS", tmp_path)
    monkeypatch.setattr(profiles, "installed_build", lambda: build)
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"):
        monkeypatch.delenv(name, raising=False)
    assert profiles.count_gpus() == count
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "0,1,2")
    assert profiles.count_gpus() == 3
