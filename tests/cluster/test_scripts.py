"""The job script of every shipped profile, compared with the one on record.

After a change that is meant, `HPC_TUMOR_RECORD=1 python -m pytest tests/cluster/test_scripts.py` writes them anew: read
the difference before it is committed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from launching import small_experiment

from hpc_tumor.cluster.plan import make_plan
from hpc_tumor.cluster.profiles import load_profile
from hpc_tumor.cluster.snapshot import snapshot_path
from hpc_tumor.cluster.submit import array_script, job_script
from hpc_tumor.settings import shipped

RECORDED = Path(__file__).parent / "scripts"
PROFILES = sorted(shipped("slurm_templates").glob("*.toml"))
RUNS = Path("/somewhere/runs")


def script_of(path: Path, monkeypatch: pytest.MonkeyPatch, many: bool) -> str:
    """The script for a whole node, as it would be on any machine."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("HPC_TUMOR_ACCOUNT", "physics")
    profile = load_profile(path)
    gpus = max(profile.node.gpus, 1)
    plan = make_plan(profile, gpus)
    experiment = small_experiment(gpus=gpus)
    script = array_script(21, profile, plan, RUNS, 4) if many else job_script(experiment, profile, plan, RUNS)
    here = {sys.executable: "PYTHON", snapshot_path(RUNS).name: "CODE.zip", f"-{os.getuid()}/": "-UID/"}
    for found, shown in here.items():
        script = script.replace(found, shown)
    return script


@pytest.mark.parametrize("many", [False, True], ids=["job", "array"])
@pytest.mark.parametrize("path", PROFILES, ids=[path.stem for path in PROFILES])
def test_script_is_as_recorded(path: Path, many: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    script = script_of(path, monkeypatch, many)
    record = RECORDED / f"{path.stem}.{'array' if many else 'job'}.sh"
    if os.environ.get("HPC_TUMOR_RECORD"):
        record.parent.mkdir(exist_ok=True)
        record.write_text(script)
    assert script == record.read_text()
    subprocess.run(["bash", "-n", record], check=True)


def test_nothing_is_on_record_that_is_not_shipped() -> None:
    assert {path.name.partition(".")[0] for path in RECORDED.iterdir()} == {path.stem for path in PROFILES}
