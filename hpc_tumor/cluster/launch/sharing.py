"""Share GPUs among runs: the memory that each needs, and which of them run side by side.

A large network gets the larger part of a GPU, and small ones are put beside it. A run is large if its step keeps much
for the backward pass: then its kernels, not their launches, take the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpc_tumor.cluster.launch.existing import with_absolute_store
from hpc_tumor.cluster.launch.planned import PlannedRun, share_job
from hpc_tumor.cluster.node.local_queue import MOST_SHARING
from hpc_tumor.config import CLASSIFICATION_SIZE, Experiment
from hpc_tumor.errors import UsageError
from hpc_tumor.models import MODELS
from hpc_tumor.records import section
from hpc_tumor.run_dir import RunDir, is_run, matching, read_json
from hpc_tumor.system.resources import GPU_SHARE

LARGE_BYTES = 1.5e9  # kept for the backward pass: 3 ms of an H100, as long as some hundred launches
LARGE_SHARE, SMALL_SHARE = 5 / 8, 1 / 8  # least shares of a GPU: one large run and three small ones fit
_CONTEXT = 1e9  # bytes of CUDA's context and of libraries
_STATE = 16  # bytes of a parameter: itself, its gradient and the two moments of Adam
_AVERAGE = 4  # bytes of a parameter's moving average
_WORKSPACE = 1.5  # memory of a step as a multiple of what it keeps for the backward pass
_HALF = 0.6  # of the float32 memory in half precision, as some values stay in float32
_MARGIN = 1.1  # of a measured peak
_TENSORS = 0.9  # of a GPU's memory that may be planned


@dataclass(frozen=True)
class Need:
    """Memory that a run needs on each of its GPUs, in bytes.

    Attributes:
        is_large: it is to have the larger part of a GPU.
        measured: an earlier run with the same settings used this, else it is estimated.
    """

    bytes: float
    is_large: bool
    measured: bool = False

    def share_of(self, gpu_bytes: float) -> float:
        """Return the share of a GPU with this memory that the run is to have."""
        return min(1.0, max(self.bytes / (_TENSORS * gpu_bytes), LARGE_SHARE if self.is_large else SMALL_SHARE))


def estimate_need(experiment: Experiment) -> Need:
    """Estimate the memory that a run needs, from the size of its network and batch."""
    spec, hardware, recipe = MODELS[experiment.model.name], experiment.hardware, experiment.recipe
    filters = spec.options.get("filters", 0)
    width = (experiment.model.filters or filters) / filters if filters else 1.0
    classifier = CLASSIFICATION_SIZE if experiment.task == "classification" else spec.image_size
    batch = -(-recipe.batch_size // (hardware.gpus * hardware.accumulate))
    kept = batch * (experiment.data.image_size or classifier) ** 2 * spec.pixel_bytes * width
    kept *= 1.0 if hardware.precision == "float32" else _HALF
    need = _CONTEXT + spec.parameters * width**2 * (_STATE + _AVERAGE * bool(recipe.ema)) + _WORKSPACE * kept
    if experiment.data.keep in ("auto", "gpu"):
        rows = experiment.data.keep_gb
        need = need / (1 - GPU_SHARE) if rows is None else need + rows * 1e9
    return Need(need, is_large=kept > LARGE_BYTES)


def _memory_key(experiment: Experiment) -> dict[str, Any]:
    """Return the settings on which the memory of a run depends."""
    values = experiment.model_dump(mode="json")
    recipe = {name: values["recipe"][name] for name in ("batch_size", "ema")}
    data = {name: values["data"][name] for name in ("store", "image_size", "keep", "keep_gb")}
    return {"model": values["model"], "hardware": values["hardware"], "recipe": recipe, "data": data}


def _measured_bytes(run: RunDir) -> float:
    """Return the most memory that a rank of a run reserved on its GPU; 0 if it is not known."""
    gpus = [section((read_json(path) or {}).get("gpu")) for path in matching(run.logs, "usage-*.json")]
    return max((float(gpu["reserved"]) for gpu in gpus if isinstance(gpu.get("reserved"), int)), default=0.0)


def find_needs(experiments: Sequence[Experiment], runs: Path) -> list[Need]:
    """Return the need of each experiment: what finished runs in `runs` with the same settings used, or an estimate."""
    by_network: dict[str, list[RunDir]] = {}
    for path in sorted(runs.iterdir()) if runs.is_dir() else ():
        if is_run(path):
            by_network.setdefault(RunDir(path).network, []).append(RunDir(path))

    def find(experiment: Experiment) -> Need:
        key = _memory_key(with_absolute_store(experiment))
        alike = (run for run in by_network.get(experiment.model.name, ()) if _is_alike(run, key))
        peak = max((_measured_bytes(run) for run in alike if run.is_finished()), default=0.0)
        need = estimate_need(experiment)
        return replace(need, bytes=_MARGIN * peak + _CONTEXT, measured=True) if peak else need

    return [find(experiment) for experiment in experiments]


def _is_alike(run: RunDir, key: dict[str, Any]) -> bool:
    with suppress(UsageError):  # settings of another version
        return _memory_key(run.experiment()) == key
    return False


def pack(shares: Sequence[float]) -> list[list[int]]:
    """Divide runs among as few GPUs as their shares allow, at most MOST_SHARING on each, spread evenly.

    Returns the indices of the runs on each GPU, the largest run first.
    """
    tight = _fill(shares, 0, lambda fitting: fitting[0])
    spread = _fill(shares, len(tight), lambda fitting: min(fitting, key=lambda gpu: sum(shares[run] for run in gpu)))
    return spread if len(spread) == len(tight) else tight


def _fill(shares: Sequence[float], count: int, choose: Callable[[list[list[int]]], list[int]]) -> list[list[int]]:
    gpus: list[list[int]] = [[] for _ in range(count)]
    for run in sorted(range(len(shares)), key=lambda run: -shares[run]):
        fitting = [
            gpu
            for gpu in gpus
            if len(gpu) < MOST_SHARING and sum(shares[other] for other in gpu) + shares[run] <= 1 + 1e-6
        ]
        if not fitting:
            gpus.append([])
            fitting = gpus[-1:]
        choose(fitting).append(run)
    return gpus


def share_gpus(planned: Sequence[PlannedRun], needs: Sequence[Need], gpu_bytes: float) -> list[PlannedRun]:
    """Return the runs with the jobs that they share, those of a job together; runs with other plans share none.

    The shares of a job's runs add up to its GPUs. A run that is alone in a job is planned as without sharing.
    """
    by_plan: dict[str, list[int]] = {}
    for index, item in enumerate(planned):
        by_plan.setdefault(repr(item.plan), []).append(index)
    jobs: list[list[int]] = []
    for group in by_plan.values():
        jobs += [[group[run] for run in gpu] for gpu in pack([needs[index].share_of(gpu_bytes) for index in group])]

    def shared(index: int) -> PlannedRun:
        return replace(planned[index], share=needs[index].share_of(gpu_bytes))

    return [item for job in sorted(jobs, key=min) for item in share_job([shared(index) for index in job], job[0])]
