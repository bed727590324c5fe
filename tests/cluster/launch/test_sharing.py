"""Which runs share a GPU: the memory that each needs, and how they are divided among GPUs and jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launching import profile_with, small_experiment

from hpc_tumor.cli.planning import plan_runs
from hpc_tumor.cluster.describe.profiles import local_profile
from hpc_tumor.cluster.launch.existing import with_absolute_store
from hpc_tumor.cluster.launch.planned import PlannedRun, share_again
from hpc_tumor.cluster.launch.sharing import Need, estimate_need, find_needs, pack, share_gpus
from hpc_tumor.cluster.node.local_queue import MOST_SHARING
from hpc_tumor.cluster.plan.plan import make_plan
from hpc_tumor.config import Experiment
from hpc_tumor.errors import UsageError
from hpc_tumor.models import MODELS
from hpc_tumor.run_dir import RunDir

H100 = 80 * 2**30


def published(model: str, **values: Any) -> Experiment:
    """Return the experiment of a preset."""
    recipe = {"batch_size": 64 if MODELS[model].task == "classification" else 32}
    more = {"recipe": {**recipe, **values.pop("recipe", {})}, **values}
    return small_experiment(model={"name": model}, task=MODELS[model].task, **more)


@pytest.mark.parametrize("name", MODELS)
def test_networks_keep_as_much_for_the_backward_pass_as_the_registry_says(name: str) -> None:
    import torch

    spec, kept, tensors = MODELS[name], dict[int, int](), list[torch.Tensor]()
    network = spec.build()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        tensors.append(tensor)  # so that no address is used twice
        return tensor

    side = spec.image_size if spec.task == "classification" else 48
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.zeros(2, spec.in_channels, side, side))
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    found = sum(size for address, size in kept.items() if address not in weights) / (2 * side**2)
    assert found == pytest.approx(spec.pixel_bytes, rel=0.25)
    assert sum(weight.numel() for weight in network.parameters()) == spec.parameters


def test_a_run_needs_memory_for_its_network_its_batch_and_its_rows() -> None:
    unet = estimate_need(published("unet", data={"store": "brats.zarr", "keep": "none"}))
    kept = 0.6 * 32 * 240**2 * MODELS["unet"].pixel_bytes
    assert unet.bytes == pytest.approx(1e9 + 16 * MODELS["unet"].parameters + 1.5 * kept)
    auto = estimate_need(published("unet"))
    assert auto.bytes == pytest.approx(unet.bytes / 0.6)  # rows take at most 40 % of a share
    some = estimate_need(published("unet", data={"store": "brats.zarr", "keep_gb": 3.0}))
    assert some.bytes == pytest.approx(unet.bytes + 3e9)
    halves = published(
        "unet", recipe={"batch_size": 32}, hardware={"accumulate": 2}, data={"store": "b", "keep": "none"}
    )
    assert estimate_need(halves).bytes == pytest.approx(unet.bytes - 0.75 * kept)


def test_u_nets_at_the_published_batch_are_large_and_classifiers_small() -> None:
    large = {name for name in MODELS if estimate_need(published(name)).is_large}
    assert large == {"unet", "improved-unet", "attention-unet"}
    assert all(estimate_need(published(name)).share_of(H100) <= 1 / 8 for name in MODELS.keys() - large)


def test_small_runs_are_spread_beside_the_large_ones() -> None:
    shares = [estimate_need(published(name)).share_of(H100) for name in MODELS]
    gpus = [[list(MODELS)[run] for run in gpu] for gpu in pack(shares)]
    assert [gpu[0] for gpu in gpus] == ["unet", "improved-unet", "attention-unet"]
    assert sorted(len(gpu) for gpu in gpus) == [2, 2, 3]


@pytest.mark.parametrize(
    ("shares", "gpus"),
    [
        ([], []),
        ([1.0, 0.125], [[0], [1]]),
        ([0.125] * 5, [[0, 2, 4], [1, 3]]),
        ([0.625, 0.625, 0.375, 0.375], [[0, 2], [1, 3]]),
        ([0.4, 0.3, 0.3, 0.6, 0.4], [[3, 0], [4, 1, 2]]),
    ],
)
def test_no_gpu_gets_more_than_it_has(shares: list[float], gpus: list[list[int]]) -> None:
    assert pack(shares) == gpus
    assert all(sum(shares[run] for run in gpu) <= 1 + 1e-6 and len(gpu) <= MOST_SHARING for gpu in gpus)


def test_runs_of_a_job_get_all_of_its_gpu() -> None:
    plan = make_plan(profile_with(), 1)
    other = make_plan(profile_with(), 2)
    needs = [Need(1.0, is_large=True), Need(1.0, is_large=False), Need(1.0, is_large=False), Need(H100, is_large=True)]
    plans = [plan, plan, other, plan]
    planned = [PlannedRun(small_experiment(seed=seed), plan) for seed, plan in enumerate(plans)]
    shared = share_gpus(planned, needs, H100)
    assert [item.experiment.seed for item in shared] == [0, 1, 2, 3]
    assert [item.job for item in shared] == [0, 0, None, None]
    assert [item.plan.runs for item in shared] == [2, 2, 1, 1]
    assert [item.share for item in shared] == pytest.approx([5 / 6, 1 / 6, 1, 1])
    assert "1 GPU shared by 2 runs" in shared[0].plan.describe()
    assert (shared[2].plan, shared[3].plan) == (other, plan)


def test_memory_that_a_run_with_the_same_settings_used_replaces_the_estimate(tmp_path: Path) -> None:
    earlier = RunDir.create(tmp_path, with_absolute_store(small_experiment(seed=7)))
    (earlier.logs / "usage-0.0.json").write_text(json.dumps({"gpu": {"reserved": 5 * 10**9}}))
    same, other = small_experiment(seed=8, recipe={"epochs": 3}), small_experiment(recipe={"batch_size": 1})
    assert not any(need.measured for need in find_needs([same, other], tmp_path))  # it has not finished
    earlier.result.write_text("{}")
    found, unknown = find_needs([same, other], tmp_path)
    assert (found.measured, found.bytes) == (True, pytest.approx(1.1 * 5e9 + 1e9))
    assert unknown == estimate_need(other)


@pytest.mark.parametrize(
    ("sections", "gpus", "at_once", "message"),
    [
        ({}, 1, None, r"set gpu_memory_gb, .*, in \[node\] of the profile two-gpu-nodes"),
        ({"node": {"gpus": 0}}, 1, None, "two-gpu-nodes has no GPUs"),
        ({"node": {"gpu_memory_gb": 32}}, 4, None, "a run on 2 nodes × 2 GPUs needs its GPUs for itself"),
        ({"slurm": {"requeue": False}}, 1, None, "each run is a chain of jobs"),
        ({"node": {"gpu_memory_gb": 32}}, 1, 3, "--at-once limits the tasks of an array"),
    ],
)
def test_what_cannot_share_is_refused(sections: dict[str, Any], gpus: int, at_once: int | None, message: str) -> None:
    experiments = [small_experiment(gpus=gpus, seed=seed) for seed in range(2)]
    with pytest.raises(UsageError, match=message):
        plan_runs(experiments, profile_with(**sections), at_once, share_gpu=True)


def test_this_machine_needs_a_gpu_whose_memory_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="nvidia-smi does not tell the memory"):
        plan_runs([small_experiment()], local_profile(), share_gpu=True)
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '0, GPU-aa, 24576, 100'\n")
    smi.chmod(0o755)
    assert plan_runs([small_experiment()], local_profile(), share_gpu=True).gpu_bytes == 24 * 2**30
    assert plan_runs([small_experiment()], local_profile()).gpu_bytes is None


def test_runs_that_shared_a_job_share_one_again(tmp_path: Path) -> None:
    plan = make_plan(profile_with(), 1)
    runs = [RunDir.create(tmp_path, small_experiment(seed=seed)) for seed in range(4)]
    together = [run.name for run in runs[:3]]
    for run, share in zip(runs[:3], (0.5, 0.25, 0.25), strict=True):
        run.job.write_text(json.dumps({"cluster": "c", "job_id": "42", "together": together, "share": share}))
    runs[3].job.write_text(json.dumps({"cluster": "local", "job_id": "43", "share": 0.25}))
    planned = [PlannedRun(run.experiment(), plan, run) for run in runs]

    def again(*numbers: int) -> list[tuple[str, int, float]]:
        chosen = [planned[number] for number in numbers]
        result = share_again(chosen, [runs[number] for number in numbers])
        return [(item.run.name, item.plan.runs, item.share) for item in result if item.run]

    assert again(1, 2) == [(runs[1].name, 2, 0.5), (runs[2].name, 2, 0.5)]
    assert again(1) == [(runs[1].name, 1, 1.0)]
    assert again(3) == [(runs[3].name, 1, 0.25)]
