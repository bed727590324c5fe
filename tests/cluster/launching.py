"""Helpers of the launching tests: a small experiment, a profile, and waiting for a condition."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpc_tumor.cluster.launch.planned import PlannedRun
from hpc_tumor.cluster.launch.submit import Submission, submit_all
from hpc_tumor.cluster.plan.plan import Plan
from hpc_tumor.config import ClusterProfile, Experiment
from hpc_tumor.run_dir import RunDir
from hpc_tumor.validation import build

STAND_IN = Path(__file__).parent / "stand_in"


def small_experiment(store: Path = Path("brats.zarr"), gpus: int = 1, **values: Any) -> Experiment:
    settings = {
        "model": {"name": "unet"},
        "task": "segmentation",
        "data": {"store": store},
        "hardware": {"gpus": gpus},
        **values,
    }
    return build(Experiment, settings, where="test")


def profile_with(name: str = "two-gpu-nodes", **sections: Any) -> ClusterProfile:
    """Nodes of 2 GPUs, 24 CPUs and 234 GB; two of them, for two hours."""
    values = {
        "name": name,
        "description": "made up",
        "slurm": {"partition": "GPU"},
        "node": {"gpus": 2, "cpus": 24, "memory_gb": 234},
        "limits": {"walltime": "2h", "nodes": 2},
    }
    for section, more in sections.items():
        values[section] = {**values.get(section, {}), **more}  # type: ignore[dict-item]
    return build(ClusterProfile, values, where="test")


def submit_experiment(
    experiment: Experiment, profile: ClusterProfile, plan: Plan, runs: Path, share: float = 1.0
) -> Submission:
    """Submit one run; raises the error that prevented it."""
    submitted = submit_all([PlannedRun(experiment, plan, share=share)], profile, runs)
    for error in (submitted.interrupted, submitted.error):
        if error is not None:
            raise error
    return submitted.started[0]


def wait_for(condition: Callable[[], Any], seconds: float = 90, every: float = 0.1) -> Any:
    """Return the value of `condition` once it is true; the test fails if it never is."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(every)
    raise AssertionError(f"not true after {seconds} s: {condition}")


def events(run: RunDir) -> list[str]:
    return [line["event"] for line in run.read_events()]
