"""On a real SLURM: the store on the nodes' own disk, and what a run used, by its files and by sacct."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import small_experiment, submit_experiment, wait_for
from local_slurm import LOCAL_TEST

from hpc_tumor.cluster.describe.profiles import find_profile
from hpc_tumor.cluster.observe.efficiency import JobUse, read_efficiency, read_job_use
from hpc_tumor.cluster.observe.queue import read_states
from hpc_tumor.cluster.plan.plan import make_plan
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.run_dir import read_json


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    if Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="hpc-tumor-test-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_staged_run_and_what_it_used(
    slurm: dict[str, str], tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    store = tmp_path / "brats.zarr"
    make_phantom(tmp_path / "raw", "brats", 5, seed=1, shape=(32, 32, 12))
    prepare_dataset(inspect_source(tmp_path / "raw").reader, tmp_path / "raw", store, workers=1)
    profile = find_profile(LOCAL_TEST)
    environment = profile.environment.model_copy(update={"node_disk": f"{disk}/$SLURM_JOB_ID"})
    profile = profile.model_copy(update={"environment": environment})
    experiment = small_experiment(
        store, 2, model={"name": "unet", "filters": 4}, recipe={"epochs": 2, "batch_size": 8}
    )  # fmt: skip
    plan = make_plan(profile, 2, walltime="20m", memory_gb=4)
    done = submit_experiment(experiment, profile, plan, tmp_path / "runs")
    run = done.run
    wait_for(lambda: read_states([run])[0].state in ("finished", "failed"), seconds=240, every=1)
    said = [path.read_text() for path in sorted(run.logs.glob("rank-*.0.out"))]
    assert run.is_finished(), said
    copy = next((disk / str(done.job_id)).glob("*/*/brats.zarr"))
    assert "store: copied in" in said[0]
    assert f"store: read from the copy on the node's disk, {copy}" in said[1]
    assert json.loads(run.result.read_text())["store"] == str(store)
    assert (read_json(run.provenance) or {})["store"]["path"] == str(store)

    by_files = read_efficiency([run])[0]
    assert (by_files.asked_memory, by_files.asked_time, by_files.starts) == (4, 1200, 1)
    assert 0.2 < (by_files.memory or 0) < 4
    assert (by_files.cpus or 0) > 0
    job_id = str(done.job_id)

    def recorded() -> JobUse | None:
        use = read_job_use([job_id]).get(job_id)
        return use if use is not None and use.states == ["COMPLETED"] else None

    use = wait_for(recorded, seconds=60, every=1)  # the accounting is late
    assert use.name == run.name
    assert use.memory == 4 * 2**30
    assert use.allocated["gres/gpu"] == "2"
    for path in run.logs.glob("usage-*"):
        path.unlink()
    by_sacct = read_efficiency([run])[0]
    assert (by_sacct.time, by_sacct.starts) == (use.elapsed[0], 1)
