from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpc_tumor import provenance
from hpc_tumor.config import Experiment
from hpc_tumor.validation import build


def experiment(store: Path) -> Experiment:
    settings = {"model": {"name": "unet"}, "task": "segmentation", "data": {"store": store}}
    return build(Experiment, settings, where="test")


def test_store_is_named_by_its_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attributes = {"hpc_tumor": {"schema": 1, "dataset": "brats", "task": "segmentation", "fingerprint": "ab12", "x": 0}}
    (tmp_path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "attributes": attributes}))
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    found = provenance.collect_provenance(experiment(tmp_path), plan={"nodes": 2})
    assert found["store"] == {
        "path": str(tmp_path), "schema": 1, "dataset": "brats", "task": "segmentation", "fingerprint": "ab12",
    }  # fmt: skip
    assert found["plan"] == {"nodes": 2}
    assert found["versions"]["submitit"].startswith("1.")
    assert "hunter2" not in json.dumps(found)


def test_outside_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path)
    assert provenance.git_state() is None
    assert provenance.store_identity(tmp_path) == {}


def test_changed_files_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path)
    (tmp_path / "__init__.py").write_text("")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        assert provenance._git(*words) is not None
    state = provenance.git_state()
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "__init__.py").write_text("changed = 1\n")
    assert (provenance.git_state() or {})["dirty"] is True
