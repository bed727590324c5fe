"""Who am I among the ranks, and on which device. The only module that reads rank variables."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hpc_tumor.errors import UsageError

_THREADS_END = 0.2  # seconds for threads of groups that something still holds to let go of their last work
_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Distributed:
    """This process among the others. Alone, every collective is the identity."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    nodes: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the record."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` added up over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Rank 0's `tensor` on every rank, in place."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether any rank raised it. On the CPU: it never waits for a GPU."""
        if self.world_size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised]

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every rank, in order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.world_size > 1:
            self.any(False)

    def shutdown(self) -> None:
        """Leave the group of ranks.

        Gloo's threads may still hold a tensor when a collective has ended. One that lets go of it after the interpreter
        has begun to end takes the whole process down (SIGABRT), so they are ended here: with the last reference to the
        group, which a network in DDP holds, too.
        """
        if self.world_size > 1 and dist.is_initialized():
            self.barrier()
            gc.collect()
            dist.destroy_process_group()
            gc.collect()
            time.sleep(_THREADS_END)


def init_distributed(timeout_minutes: float = 15, threads: int | None = None, *, alone: bool = False) -> Distributed:
    """Join the ranks that torchrun or SLURM started, or be alone where neither did.

    NCCL carries the gradients between GPUs, gloo those between CPUs and all control messages.

    Args:
        timeout_minutes: after which a collective that does not end is an error.
        threads: CPU threads of this rank; by default OMP_NUM_THREADS, else the CPUs given.
        alone: be one process whatever the rank variables say (debugging inside a job).

    Raises:
        UsageError: only part of the rank variables is set, or there are fewer GPUs than ranks on this node.
    """
    rank, local_rank, world_size, ranks_here = (0, 0, 1, 1) if alone else _read_ranks(os.environ)
    place = _device(local_rank, ranks_here, shared="RANK" in os.environ and not alone)
    torch.set_num_threads(threads or max(1, _cpus_of_rank(ranks_here)))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timedelta(minutes=timeout_minutes))
    nodes = -(-world_size // ranks_here)
    return Distributed(rank, local_rank, world_size, nodes, place)


def _read_ranks(variables: Mapping[str, str]) -> tuple[int, int, int, int]:
    """Rank, local rank, world size and ranks on this node."""
    if any(name in variables for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")):
        rank, local_rank, world_size = (int(value) for value in _all_or_none(variables, _TORCHRUN)[:3])
        return rank, local_rank, world_size, int(variables.get("LOCAL_WORLD_SIZE", world_size))
    if "SLURM_PROCID" in variables and int(variables.get("SLURM_NTASKS", "1")) > 1:
        rank, local_rank, world_size = (int(value) for value in _all_or_none(variables, _SLURM)[:3])
        per_node = variables.get("SLURM_STEP_TASKS_PER_NODE") or variables.get("SLURM_TASKS_PER_NODE", "")
        first = per_node.split(",")[0].split("(")[0]
        return rank, local_rank, world_size, int(first) if first.isdigit() else world_size
    return 0, 0, 1, 1


def _all_or_none(variables: Mapping[str, str], names: tuple[str, ...]) -> list[str]:
    missing = [name for name in names if name not in variables]
    if missing:
        raise UsageError(
            f"only part of the rank variables is set: {', '.join(missing)} missing among {', '.join(names)}."
            " Start ranks with torchrun or hpc-tumor submit, or unset all of them to train alone."
        )
    return [variables[name] for name in names]


def _device(local_rank: int, ranks_here: int, shared: bool) -> torch.device:
    """This rank's GPU, or the CPU. `shared`: all ranks of this node see the same GPUs, as under torchrun."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    seen = torch.cuda.device_count()
    if seen == 1 and not shared:  # SLURM may show each task its own GPU
        return torch.device("cuda", 0)
    if local_rank >= seen:
        raise UsageError(
            f"{ranks_here} ranks on this node, but only {seen} GPU{'s' * (seen > 1)} visible:"
            " ask for one GPU per rank, or for fewer ranks."
        )
    return torch.device("cuda", local_rank)


def _cpus_of_rank(ranks_here: int) -> int:
    if (chosen := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(chosen) > 0:
        return int(chosen)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    return min(int(given), usable) if given and given.isdigit() else usable // ranks_here
