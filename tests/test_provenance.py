from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from hpc_tumor import provenance
from hpc_tumor.config import ClusterProfile
from hpc_tumor.validation import build


def profile_with(**sections: object) -> ClusterProfile:
    return build(ClusterProfile, {"name": "n", "description": "d", **sections}, where="test")


def test_store_is_named_by_its_fingerprint(tmp_path: Path) -> None:
    attributes = {"hpc_tumor": {"schema": 1, "dataset": "brats", "task": "segmentation", "fingerprint": "ab12", "x": 0}}
    (tmp_path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "attributes": attributes}))
    found = {**provenance.collect_provenance(), **provenance.provenance_of(tmp_path, plan={"nodes": 2})}
    assert found["store"] == {
        "path": str(tmp_path), "schema": 1, "dataset": "brats", "task": "segmentation", "fingerprint": "ab12",
    }  # fmt: skip
    assert found["plan"] == {"nodes": 2}
    assert found["versions"]["submitit"].startswith("1.")


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JWT_TOKEN", "HPC_TUMOR_PASSWORD", "WANDB_API_KEY", "SLURM_JWT"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("TORCH_HOME", "https://anna:hunter2@host/cache")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    found = provenance.collect_provenance()
    assert "hunter2" not in json.dumps(found["variables"])
    assert found["variables"]["NCCL_SOCKET_IFNAME"] == "ib0"
    assert found["variables"]["TORCH_HOME"] == "https://***@host/cache"
    assert "WANDB_API_KEY" not in found["variables"]

    variables = {"WANDB_API_KEY": "hunter2", "NCCL_DEBUG": "INFO"}
    setup = ["export COMET_KEY='hunter 2' OMP_NUM_THREADS=1", "source ~/site.sh"]
    shown = provenance.without_secrets(profile_with(environment={"variables": variables, "setup": setup}))
    assert shown.environment.variables == {"WANDB_API_KEY": "***", "NCCL_DEBUG": "INFO"}
    assert shown.environment.setup == ("export COMET_KEY=*** OMP_NUM_THREADS=1", "source ~/site.sh")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://u:p@ss@host/x", "https://***@host/x"),
        ("https://token@host", "https://***@host"),
        ("https://host/a@b", "https://host/a@b"),
        ("DB_PWD=x SLURM_JWT=y", "DB_PWD=*** SLURM_JWT=***"),
        ("recipe.epochs=2", "recipe.epochs=2"),
        ("--set=learning_rate=1e-3", "--set=learning_rate=1e-3"),
    ],
)
def test_passwords_in_texts_are_masked(text: str, kept: str) -> None:
    assert provenance.without_passwords(text) == kept


def test_outside_git_there_is_no_commit(tmp_path: Path) -> None:
    assert provenance.git_state(tmp_path) is None
    assert provenance.store_identity(tmp_path) == {}


def test_changed_files_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
        if words[0] == "add":
            assert provenance.git_state(tmp_path) is None  # nothing is committed yet
    state = provenance.git_state(tmp_path)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "__init__.py").write_text("changed = 1\n")
    state = provenance.git_state(tmp_path) or {}
    assert state["dirty"] is True
    assert "+changed = 1" in state["diff"]


def test_packages_that_are_not_installed_have_no_version() -> None:
    assert provenance.versions(["numpy", "no-such-package"])["no-such-package"] is None
    assert provenance.versions(["numpy"])["numpy"]
