"""Ranks that SLURM shows one GPU: each its own, or all the same."""

from __future__ import annotations

import os

from processes import NullGpu

from hpc_tumor.errors import UsageError
from hpc_tumor.training.distributed import init_distributed

FROM_TORCHRUN = {
    "RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS",
    "LOCAL_WORLD_SIZE": "SLURM_TASKS_PER_NODE",
}  # fmt: skip


def join_as_tasks() -> str:
    """Join the ranks of the test as tasks of SLURM; return the device, or the message."""
    for torchrun, slurm in FROM_TORCHRUN.items():
        os.environ[slurm] = os.environ.pop(torchrun)
    try:
        return str(init_distributed(10, threads=1).device)
    except UsageError as error:
        return str(error)


def test_each_task_has_a_gpu_of_its_own(null_gpu: NullGpu) -> None:
    assert null_gpu.call(join_as_tasks, ranks=2) == ["cuda:0", "cuda:1"]


def test_tasks_that_see_the_same_gpu_are_all_refused(null_gpu: NullGpu) -> None:
    messages = null_gpu.call(join_as_tasks, ranks=2, variables={"NULL_GPU_DEVICES": "1"})
    assert messages[0] == messages[1]
    assert messages[0].startswith("ranks 0, 1 on ")
    assert "all got the same GPU" in messages[0]
